//! A sliding minute in tenths of a second. What was counted in a tenth is forgotten only when the whole tenth is more than a minute old, so
//! that no window of a minute, wherever it begins, ever holds more than was let in; the price is up to a tenth of a second of patience.
//! Fixed in size, whatever the limit.

/// Milliseconds of one place.
const STEP_MS: u64 = 100;
/// Places: a minute and the tenth that is being filled.
const STEPS: u64 = 601;

/// Amounts of the last minute.
#[derive(Debug)]
pub(super) struct Window {
    steps: Box<[u64]>,
    sum: u64,
    newest: u64,
    /// The newest step that anything was added to.
    last: u64,
}

impl Window {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Window { steps: vec![0; STEPS as usize].into(), sum: 0, newest: 0, last: 0 }
    }

    /// Lets go of what is more than a minute old. Returns the step of now.
    fn advance(&mut self, now_ms: u64) -> u64 {
        let now = now_ms / STEP_MS;
        for step in 1..=now.saturating_sub(self.newest).min(STEPS) {
            let place = &mut self.steps[((self.newest + step) % STEPS) as usize];
            self.sum -= std::mem::take(place);
        }
        self.newest = self.newest.max(now);
        self.newest
    }

    /// What was counted in the last minute.
    pub(super) fn used(&mut self, now_ms: u64) -> u64 {
        self.advance(now_ms);
        self.sum
    }

    /// Milliseconds until so much fits under a limit: 0 for now, none where it never will.
    pub(super) fn wait_ms(&mut self, now_ms: u64, amount: u64, limit: u64) -> Option<u64> {
        self.advance(now_ms);
        let over = self.sum.saturating_add(amount).saturating_sub(limit);
        if over == 0 {
            return Some(0);
        }
        // What never fits is not found: more than everything would have to be freed.
        let mut freed = 0;
        (self.newest.saturating_sub(STEPS - 1)..=self.newest).find_map(|step| {
            freed += self.steps[(step % STEPS) as usize];
            (freed >= over).then(|| ends_ms(step).saturating_sub(now_ms))
        })
    }

    /// Counts an amount. Returns the step that it stands in.
    pub(super) fn add(&mut self, now_ms: u64, amount: u64) -> u64 {
        let step = self.advance(now_ms);
        let place = &mut self.steps[(step % STEPS) as usize];
        let added = amount.min(u64::MAX - self.sum);
        *place += added;
        self.sum += added;
        self.last = step;
        step
    }

    /// Puts what was really used in the place of what was counted in a step. What is over, when that step has gone by, counts now.
    pub(super) fn correct(&mut self, now_ms: u64, step: u64, (counted, used): (u64, u64)) {
        let now = self.advance(now_ms);
        if now - step.min(now) >= STEPS {
            if used > counted {
                self.add(now_ms, used - counted);
            }
            return;
        }
        let place = &mut self.steps[(step % STEPS) as usize];
        let kept = place.saturating_sub(counted);
        self.sum -= *place - kept;
        let added = used.min(u64::MAX - self.sum);
        *place = kept + added;
        self.sum += added;
    }

    /// Milliseconds until nothing is counted any more.
    pub(super) fn reset_ms(&mut self, now_ms: u64) -> u64 {
        self.advance(now_ms);
        if self.sum == 0 { 0 } else { ends_ms(self.last).saturating_sub(now_ms) }
    }
}

/// When a step is forgotten.
fn ends_ms(step: u64) -> u64 {
    (step + STEPS) * STEP_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However requests come, no minute holds more than the limit; and one that is told to wait fits after that time, not before.
        #[test]
        fn no_minute_holds_more_than_the_limit(gaps in prop::collection::vec(0u64..9_000, 1..400), limit in 1u64..40, amount in 1u64..4) {
            let (mut window, mut now, mut admitted) = (Window::new(), 0, Vec::new());
            for gap in gaps {
                now += gap;
                match window.wait_ms(now, amount, limit) {
                    Some(0) => {
                        window.add(now, amount);
                        admitted.push(now);
                    }
                    Some(wait) => {
                        prop_assert!(wait <= 60_100, "{wait}");
                        prop_assert!(window.wait_ms(now + wait - 1, amount, limit) != Some(0));
                        prop_assert_eq!(window.wait_ms(now + wait, amount, limit), Some(0));
                        now += wait;
                    }
                    None => prop_assert!(amount > limit),
                }
            }
            for (i, first) in admitted.iter().enumerate() {
                let within = admitted[i..].iter().filter(|at| **at < first + 60_000).count() as u64;
                prop_assert!(within * amount <= limit, "{within} of {limit} from {first}");
            }
        }
    }

    #[test]
    fn what_was_really_used_takes_the_place_of_the_estimate() {
        let mut window = Window::new();
        let step = window.add(5_000, 100);
        window.correct(6_000, step, (100, 30));
        assert_eq!(window.used(6_000), 30);
        window.correct(6_000, step, (30, 500));
        assert_eq!((window.used(6_000), window.wait_ms(6_000, 1, 100)), (500, Some(59_100)));
        // The step has gone by: what was more than counted is still to be paid for.
        window.correct(70_000, step, (500, 520));
        assert_eq!((window.used(70_000), window.used(200_000)), (20, 0));
        window.add(200_000, u64::MAX);
        window.add(200_000, u64::MAX);
        assert_eq!(window.used(200_000), u64::MAX);
    }
}
