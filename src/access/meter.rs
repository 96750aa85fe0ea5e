//! What a key or a project has used, counted in memory behind a mutex of its own. A call reserves from its key's meter and from its
//! project's at once, or from neither, and settles with what it really used. A restart forgets the minute; the money is read again from
//! what the request log adds up to.

use super::limits::{Budget, Limits};
use super::window::Window;
use crate::types::money::MicroUsd;
use crate::types::time::{now_ms, rfc3339};
use crate::types::{Code, Coded};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Whose usage a meter counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A key.
    Key {
        /// `key_…`.
        id: String,
        /// Name, for messages.
        name: String,
        /// The project that it is of.
        project: String,
    },
    /// A project.
    Project(String),
}

impl Owner {
    fn told(&self) -> String {
        match self {
            Owner::Key { name, .. } => format!("the key \"{name}\""),
            Owner::Project(name) => format!("the project \"{name}\""),
        }
    }
}

/// A moment on both clocks: minutes are measured, days and months are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Milliseconds since this process began to count.
    pub steady_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: i64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        let steady = BEGAN.get_or_init(Instant::now).elapsed().as_millis();
        // A minute ahead, so that no window begins before the first moment.
        Moment { steady_ms: u64::try_from(steady).unwrap_or(u64::MAX - 120_000) + 60_000, wall_ms: now_ms() }
    }
}

/// Counts what its owner uses.
#[derive(Debug)]
pub struct Meter {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    owner: Owner,
    limits: Limits,
    requests: Option<Window>,
    tokens: Option<Window>,
    purse: Option<Purse>,
    /// Change when the window of tokens or the purse begins anew: what was reserved before is not in it.
    token_epoch: u64,
    purse_epoch: u64,
}

/// The money of the current period.
#[derive(Debug)]
struct Purse {
    budget: Budget,
    first_day: i64,
    ends_ms: i64,
    spent: i64,
    reserved: i64,
    /// Whether `spent` holds what was spent before this process began to count.
    read: bool,
}

/// What a call may need.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Requests that it counts as: one of the caller's, or none of Refit's own.
    pub requests: u64,
    /// Tokens, as far as they can be guessed.
    pub tokens: u64,
    /// The most that it can cost; none where its price is not known.
    pub cost: Option<MicroUsd>,
}

/// What was reserved; settled once.
#[derive(Debug)]
pub struct Receipt {
    tokens: u64,
    cost: i64,
    /// What each meter was like.
    seen: [Seen; 2],
}

/// A meter as a receipt remembers it.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    token_epoch: u64,
    purse_epoch: u64,
    /// First day of the budget's period.
    first_day: i64,
    /// Where the tokens are counted.
    step: u64,
}

/// What is left of a limit per minute, for the headers of replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The limit.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// Milliseconds until all of it is there again.
    pub reset_ms: u64,
}

/// Why a call may not be made now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many requests or tokens in a minute.
    #[error("{who} may use {limit} {what} a minute; {detail}")]
    Rate {
        /// Whose limit.
        who: String,
        /// The limit.
        limit: u64,
        /// `requests` or `tokens`.
        what: &'static str,
        /// What this call would add to what.
        detail: String,
        /// Milliseconds until it would fit; none where it never will.
        wait_ms: Option<u64>,
    },
    /// Too little money.
    #[error("the budget of {who} ({amount} {period}) has {left} left, and this call may cost up to {need}; {resets}")]
    Budget {
        /// Whose budget.
        who: String,
        /// How much it is.
        amount: MicroUsd,
        /// `a day`, `a month`, `in all`.
        period: &'static str,
        /// What is neither spent nor reserved.
        left: MicroUsd,
        /// What the call may cost.
        need: MicroUsd,
        /// When there is more.
        resets: String,
        /// Seconds until then; none where never.
        wait_s: Option<u64>,
    },
    /// A budget stands over a call whose price is not known.
    #[error("the price of this model is not known, and the budget of {who} needs one")]
    Unpriced {
        /// Whose budget.
        who: String,
    },
    /// What was spent before has to be read first.
    #[error("what {who} has spent was not read yet")]
    Unread {
        /// Who.
        who: String,
    },
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Refusal::Rate { .. } => Code::RATE_LIMIT,
            Refusal::Budget { .. } => Code::BUDGET,
            Refusal::Unpriced { .. } => Code::PRICE_UNKNOWN,
            Refusal::Unread { .. } => Code::INTERNAL,
        }
    }

    fn param(&self) -> Option<String> {
        matches!(self, Refusal::Unpriced { .. }).then(|| "model".to_string())
    }

    fn hint(&self) -> Option<String> {
        match self {
            Refusal::Rate { wait_ms: None, .. } => Some("lower max_tokens, or shorten the prompt".into()),
            Refusal::Budget { wait_s: None, .. } => Some("an administrator can raise it with `refit key update` or `refit project set`".into()),
            Refusal::Unpriced { .. } => {
                Some("add a row under [[prices.rows]] in refit.toml, or set budgets.unpriced = \"allow\"; `refit price list` shows the known ones".into())
            }
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Refusal::Rate { wait_ms, .. } => wait_ms.map(|ms| ms.div_ceil(1000).max(1)),
            Refusal::Budget { wait_s, .. } => *wait_s,
            _ => None,
        }
    }
}

impl Meter {
    /// Counts nothing yet.
    pub fn new(owner: Owner) -> Self {
        let (requests, tokens, purse) = (None, None, None);
        let state = State { owner, limits: Limits::default(), requests, tokens, purse, token_epoch: 0, purse_epoch: 0 };
        Meter { state: Mutex::new(state) }
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.lock().owner.clone()
    }

    /// Whose it is, by the name of now.
    pub fn belongs_to(&self, owner: Owner) {
        self.lock().owner = owner;
    }

    /// The part of the budget that is spent in the current period, 0 to 1 and beyond; none without a budget, or before what was spent is
    /// read.
    pub fn spent_ratio(&self, now: Moment) -> Option<f64> {
        let state = self.lock();
        let purse = state.purse.as_ref().filter(|purse| purse.read)?;
        let spent = if now.wall_ms < purse.ends_ms { purse.spent } else { 0 };
        match purse.budget.amount.0 {
            0 => Some(1.0),
            amount => Some(spent as f64 / amount as f64),
        }
    }

    /// Whether a budget stands over calls.
    pub fn has_budget(&self) -> bool {
        self.lock().limits.budget.is_some()
    }

    /// Puts limits in place. What was counted stays, where the limit is still of the same kind.
    pub fn bound_by(&self, limits: &Limits) {
        let mut state = self.lock();
        if state.limits == *limits {
            return;
        }
        // A request is counted once and never corrected: its window needs no epoch.
        begins_anew(&mut state.requests, limits.requests_per_minute);
        let tokens_anew = begins_anew(&mut state.tokens, limits.tokens_per_minute);
        state.token_epoch += u64::from(tokens_anew);
        match (state.purse.as_mut(), limits.budget) {
            (Some(purse), Some(budget)) if purse.budget.period == budget.period => purse.budget = budget,
            (None, None) => {}
            (_, budget) => {
                state.purse = budget.map(Purse::new);
                state.purse_epoch += 1;
            }
        }
        state.limits = limits.clone();
    }

    /// The first day of the period whose spending has to be read before anything can be reserved; none where nothing has to.
    pub fn unread(&self) -> Option<i64> {
        self.lock().purse.as_ref().filter(|purse| !purse.read).map(|purse| purse.first_day)
    }

    /// Puts down what was spent from a day on before this process began to count.
    pub fn spent_before(&self, first_day: i64, amount: MicroUsd) {
        if let Some(purse) = self.lock().purse.as_mut().filter(|purse| !purse.read && purse.first_day == first_day) {
            purse.spent = purse.spent.saturating_add(amount.0);
            purse.read = true;
        }
    }

    /// What is left of requests and of tokens per minute.
    pub fn left(&self, now: Moment) -> (Option<Left>, Option<Left>) {
        let mut state = self.lock();
        let State { limits, requests, tokens, .. } = &mut *state;
        let of = |window: &mut Option<Window>, limit: Option<u64>| {
            let (window, limit) = (window.as_mut()?, limit?);
            let remaining = limit.saturating_sub(window.used(now.steady_ms));
            Some(Left { limit, remaining, reset_ms: window.reset_ms(now.steady_ms) })
        };
        (of(requests, limits.requests_per_minute), of(tokens, limits.tokens_per_minute))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing between the changes of a state can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes or takes away a window as a limit wants it; whether it did.
fn begins_anew(window: &mut Option<Window>, limit: Option<u64>) -> bool {
    let anew = window.is_some() != limit.is_some();
    if anew {
        *window = limit.map(|_| Window::new());
    }
    anew
}

/// Reserves what a call needs from every meter (a key's, then its project's; never more than two), or from none.
///
/// # Errors
/// [`Refusal`] of the first meter that has too little.
pub fn reserve(meters: &[Arc<Meter>], need: Need, now: Moment) -> Result<Receipt, Refusal> {
    let mut held: Vec<MutexGuard<'_, State>> = meters.iter().map(|meter| meter.lock()).collect();
    for state in &mut held {
        state.check(need, now)?;
    }
    let cost = need.cost.map_or(0, |cost| cost.0);
    let mut receipt = Receipt { tokens: need.tokens, cost, seen: [Seen::default(); 2] };
    for (state, seen) in held.iter_mut().zip(&mut receipt.seen) {
        let first_day = state.purse.as_ref().map_or(0, |purse| purse.first_day);
        *seen = Seen { token_epoch: state.token_epoch, purse_epoch: state.purse_epoch, first_day, step: 0 };
        if let Some(requests) = &mut state.requests {
            requests.add(now.steady_ms, need.requests);
        }
        if let Some(tokens) = &mut state.tokens {
            seen.step = tokens.add(now.steady_ms, need.tokens);
        }
        if let Some(purse) = &mut state.purse {
            purse.reserved = purse.reserved.saturating_add(cost);
        }
    }
    Ok(receipt)
}

/// Puts what was really used in the place of what was reserved.
pub fn settle(meters: &[Arc<Meter>], receipt: &Receipt, used: (u64, MicroUsd), now: Moment) {
    let (tokens, MicroUsd(cost)) = used;
    for (meter, seen) in meters.iter().zip(receipt.seen) {
        let mut state = meter.lock();
        let (counted_then, reserved) = (state.token_epoch == seen.token_epoch, state.purse_epoch == seen.purse_epoch);
        if let Some(window) = &mut state.tokens {
            // A window that began since then knows nothing of the call: it takes all of it, now.
            let (step, counted) = if counted_then { (seen.step, receipt.tokens) } else { (0, 0) };
            window.correct(now.steady_ms, step, (counted, tokens));
        }
        let Some(purse) = &mut state.purse else { continue };
        // What was begun in another period is on that one's account, as in the request log.
        if reserved && purse.first_day == seen.first_day {
            purse.reserved = purse.reserved.saturating_sub(receipt.cost).max(0);
            purse.spent = purse.spent.saturating_add(cost);
        } else if !reserved && purse.read {
            purse.spent = purse.spent.saturating_add(cost);
        }
    }
}

impl State {
    fn check(&mut self, need: Need, now: Moment) -> Result<(), Refusal> {
        let owner = &self.owner;
        if let (Some(window), Some(limit)) = (&mut self.requests, self.limits.requests_per_minute) {
            let wait_ms = window.wait_ms(now.steady_ms, need.requests, limit);
            if wait_ms != Some(0) {
                let detail = "they are used up".to_string();
                return Err(Refusal::Rate { who: owner.told(), limit, what: "requests", detail, wait_ms });
            }
        }
        if let (Some(window), Some(limit)) = (&mut self.tokens, self.limits.tokens_per_minute) {
            let wait_ms = window.wait_ms(now.steady_ms, need.tokens, limit);
            if wait_ms != Some(0) {
                let detail = format!("{} are used, and this call may need {}", window.used(now.steady_ms), need.tokens);
                return Err(Refusal::Rate { who: owner.told(), limit, what: "tokens", detail, wait_ms });
            }
        }
        self.purse.as_mut().map_or(Ok(()), |purse| purse.check(owner, need.cost, now.wall_ms))
    }
}

impl Purse {
    fn new(budget: Budget) -> Self {
        let (first_day, ends_ms) = budget.period.around(now_ms());
        Purse { budget, first_day, ends_ms, spent: 0, reserved: 0, read: false }
    }

    fn check(&mut self, owner: &Owner, cost: Option<MicroUsd>, wall_ms: i64) -> Result<(), Refusal> {
        if wall_ms >= self.ends_ms {
            // A new period: nothing of it can have been spent before.
            (self.first_day, self.ends_ms) = self.budget.period.around(wall_ms);
            (self.spent, self.reserved, self.read) = (0, 0, true);
        }
        if !self.read {
            return Err(Refusal::Unread { who: owner.told() });
        }
        let Some(need) = cost else { return Err(Refusal::Unpriced { who: owner.told() }) };
        let amount = self.budget.amount;
        let left = amount.0.saturating_sub(self.spent).saturating_sub(self.reserved);
        // What costs nothing is let through with an empty purse, too.
        if need.0 == 0 || need.0 <= left {
            return Ok(());
        }
        let period = match self.budget.period {
            super::Period::Day => "a day",
            super::Period::Month => "a month",
            super::Period::Total => "in all",
        };
        let (resets, wait_s) = self.more(need, wall_ms);
        Err(Refusal::Budget { who: owner.told(), amount, period, left: MicroUsd(left.max(0)), need, resets, wait_s })
    }

    /// When there may be enough, in words and in seconds.
    fn more(&self, need: MicroUsd, wall_ms: i64) -> (String, Option<u64>) {
        if self.spent.saturating_add(need.0) <= self.budget.amount.0 {
            return (format!("{} are reserved for calls on their way", MicroUsd(self.reserved)), Some(1));
        }
        if need > self.budget.amount {
            return ("it is more than all of it".to_string(), None);
        }
        if self.ends_ms == i64::MAX {
            return ("it does not begin anew".to_string(), None);
        }
        let wait_s = u64::try_from(self.ends_ms - wall_ms).unwrap_or(0).div_ceil(1000).max(1);
        (format!("it begins anew at {}", rfc3339(self.ends_ms)), Some(wait_s))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Period;
    use super::*;

    const NOW: Moment = Moment { steady_ms: 100_000, wall_ms: 1_795_600_000_000 };

    fn meter(limits: Limits) -> Arc<Meter> {
        let meter = Meter::new(Owner::Project("p".into()));
        meter.bound_by(&limits);
        Arc::new(meter)
    }

    fn one(meter: &Arc<Meter>) -> &[Arc<Meter>] {
        std::slice::from_ref(meter)
    }

    fn money(micro: i64, period: Period) -> Limits {
        Limits { budget: Some(Budget { amount: MicroUsd(micro), period }), ..Limits::default() }
    }

    fn need(tokens: u64, micro: i64) -> Need {
        Need { requests: 1, tokens, cost: Some(MicroUsd(micro)) }
    }

    /// A meter whose period holds a moment that the test can move.
    fn read(limits: Limits) -> Arc<Meter> {
        let meter = meter(limits);
        let first = meter.unread().expect("not read yet");
        assert!(matches!(reserve(one(&meter), need(0, 1), Moment::now()), Err(Refusal::Unread { .. })));
        meter.spent_before(first, MicroUsd(0));
        meter
    }

    #[test]
    fn parallel_calls_spend_no_more_than_the_budget() {
        let meter = read(money(1_000, Period::Total));
        let receipts = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..25).for_each(|_| receipts.lock().expect("a list").extend(reserve(one(&meter), need(0, 100), NOW).ok())));
            }
        });
        let receipts = receipts.into_inner().expect("a list");
        assert_eq!(receipts.len(), 10);
        receipts.iter().for_each(|receipt| settle(one(&meter), receipt, (0, MicroUsd(100)), NOW));
        assert!(reserve(one(&meter), need(0, 1), NOW).is_err());
    }

    #[test]
    fn what_is_not_used_is_given_back_and_what_is_used_is_not() {
        let meter = read(money(100, Period::Total));
        let receipt = reserve(one(&meter), need(0, 90), NOW).expect("fits");
        let Err(Refusal::Budget { left, wait_s, .. }) = reserve(one(&meter), need(0, 20), NOW) else { panic!("reserved twice") };
        assert_eq!((left, wait_s), (MicroUsd(10), Some(1)), "calls on their way may leave something");
        settle(one(&meter), &receipt, (0, MicroUsd(30)), NOW);
        assert_eq!(meter.spent_ratio(NOW), Some(0.3));
        reserve(one(&meter), need(0, 70), NOW).expect("70 are left");
        assert_eq!(meter.spent_ratio(NOW), Some(0.3), "what is reserved is not spent");
        let Err(Refusal::Budget { wait_s, .. }) = reserve(one(&meter), need(0, 200), NOW) else { panic!("more than all") };
        assert_eq!(wait_s, None);
        reserve(&[meter], need(0, 0), NOW).expect("what costs nothing passes");
    }

    #[test]
    fn a_limit_per_minute_that_comes_or_goes_leaves_the_purse_alone() {
        let meter = read(money(100, Period::Total));
        for rpm in [Some(5), None] {
            let receipt = reserve(one(&meter), need(0, 90), NOW).expect("fits");
            meter.bound_by(&Limits { requests_per_minute: rpm, tokens_per_minute: rpm, ..money(100, Period::Total) });
            settle(one(&meter), &receipt, (0, MicroUsd(5)), NOW);
        }
        assert!(reserve(one(&meter), need(0, 91), NOW).is_err(), "both calls are on it");
        reserve(one(&meter), need(0, 90), NOW).expect("and nothing of them is reserved any more");
    }

    #[test]
    fn neither_of_two_meters_is_touched_when_one_refuses() {
        let (key, project) = (
            meter(Limits { requests_per_minute: Some(5), ..Limits::default() }),
            meter(Limits { tokens_per_minute: Some(10), ..Limits::default() }),
        );
        let both = [key.clone(), project.clone()];
        let receipt = reserve(&both, need(10, 0), NOW).expect("fits");
        assert!(matches!(reserve(&both, need(1, 0), NOW), Err(Refusal::Rate { what: "tokens", .. })));
        assert_eq!(key.left(NOW).0.map(|left| left.remaining), Some(4), "the refused call is not counted");
        settle(&both, &receipt, (3, MicroUsd(0)), NOW);
        assert_eq!(project.left(NOW).1.map(|left| left.remaining), Some(7));
        assert!(matches!(reserve(&both, need(11, 0), NOW), Err(Refusal::Rate { wait_ms: None, .. })), "it will never fit");
    }

    #[test]
    fn a_new_period_begins_with_a_full_purse_and_old_calls_are_the_old_ones() {
        let meter = read(money(100, Period::Day));
        let spent = reserve(one(&meter), need(0, 60), Moment::now()).expect("fits");
        settle(one(&meter), &spent, (0, MicroUsd(60)), Moment::now());
        let receipt = reserve(one(&meter), need(0, 40), Moment::now()).expect("fits");
        let tomorrow = Moment { wall_ms: now_ms() + 86_400_000, ..NOW };
        let second = reserve(one(&meter), need(0, 100), tomorrow).expect("a new day");
        settle(one(&meter), &receipt, (0, MicroUsd(40)), tomorrow);
        settle(one(&meter), &second, (0, MicroUsd(1)), tomorrow);
        reserve(&[meter], need(0, 99), tomorrow).expect("yesterday's call is yesterday's");
    }

    #[test]
    fn a_budget_that_comes_or_changes_its_period_is_read_and_one_that_grows_is_not() {
        let meter = meter(Limits::default());
        assert_eq!(meter.spent_ratio(NOW), None);
        let early = reserve(one(&meter), need(0, 5), NOW).expect("nothing is bounded");
        meter.bound_by(&money(100, Period::Total));
        meter.spent_before(meter.unread().expect("to be read"), MicroUsd(50));
        settle(one(&meter), &early, (0, MicroUsd(20)), NOW);
        assert!(reserve(one(&meter), need(0, 31), NOW).is_err(), "a call from before the budget is on it");
        meter.bound_by(&money(200, Period::Total));
        assert_eq!(meter.unread(), None);
        reserve(one(&meter), need(0, 130), NOW).expect("200 less 70");
        meter.bound_by(&money(200, Period::Month));
        assert!(meter.unread().is_some());
        assert!(matches!(reserve(one(&meter), Need { requests: 1, tokens: 0, cost: None }, NOW), Err(Refusal::Unread { .. })));
        meter.spent_before(meter.unread().expect("to be read"), MicroUsd(0));
        assert!(matches!(reserve(&[meter], Need { requests: 1, tokens: 0, cost: None }, NOW), Err(Refusal::Unpriced { .. })));
    }
}
