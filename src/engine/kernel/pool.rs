//! Threads that share the work of a step. A step hands out some two hundred pieces of work of tens of microseconds each, so a thread
//! that has nothing to do first spins for a moment and only then sleeps: an engine without requests costs nothing. The calling thread
//! takes part. A pool belongs to the one thread that [`Pool::install`]s it; without one, and inside a piece of work, the caller works alone.
#![expect(unsafe_code, reason = "a closure that borrows from the caller's stack is handed to threads that outlive it")]

use super::shared::Shared;
use std::cell::{RefCell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Rounds of spinning before a thread sleeps: some hundred microseconds, which is longer than any gap inside a step.
const SPINS: usize = 1 << 14;
/// Rounds of spinning before a thread lets others have the core between looks.
const POLITE: usize = 1 << 11;

/// What a thread does of its share, before it helps: three quarters.
const SURE: (usize, usize) = (3, 4);
/// Pieces that the rest of a share is cut into.
const PIECES: usize = 2;
/// Items of a share below which nobody helps.
const FEW: usize = 12;

type Task = dyn Fn(usize) + Sync;

/// The threads.
pub struct Pool {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    /// Counts the tasks; a thread that sees it grow runs the new one.
    round: AtomicUsize,
    /// Threads that have not finished the current task.
    busy: AtomicUsize,
    panicked: AtomicBool,
    over: AtomicBool,
    /// The current task; written only while no thread is busy.
    task: UnsafeCell<Option<&'static Task>>,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `task` is written by the caller of `run` while `busy` is 0, before `round` is raised with release ordering, and read by the
// threads after they saw `round` raised, until they lower `busy`.
unsafe impl Sync for State {}

thread_local! {
    static CURRENT: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The current pool, taken away while it works so that it is never entered twice.
struct Taken(Option<Pool>);

impl Taken {
    fn new() -> Self {
        Taken(CURRENT.with(|current| current.take()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let pool = self.0.take();
        CURRENT.with(|current| current.replace(pool));
    }
}

impl Pool {
    /// Starts a pool of `threads` threads, the caller among them; 0 takes all cores.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let others = if threads == 0 { all() } else { threads } - 1;
        let state = Arc::new(State {
            round: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            over: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { state, threads: Vec::new() };
        for index in 0..others {
            let state = pool.state.clone();
            let thread = std::thread::Builder::new().name(format!("engine-{}", index + 1)).spawn(move || state.work(index))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Runs `f` with this pool as the current one of the calling thread; its threads end with it.
    pub fn install<R>(self, f: impl FnOnce() -> R) -> R {
        let _before = Taken::new();
        CURRENT.with(|current| current.replace(Some(self)));
        f()
    }

    /// Threads, the caller among them.
    fn size(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `task(i)` for every i below the number of threads, on one thread each, and returns when all are done.
    fn run(&self, task: &(dyn Fn(usize) + Sync)) {
        let state = &*self.state;
        // SAFETY: only the lifetime changes. `finish` below waits, also when the caller's own part panics, until no thread runs the task.
        let lasting = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        // SAFETY: no thread is busy: the previous `run` waited for that, and a pool is owned by one thread, which took it for this call.
        unsafe { *state.task.get() = Some(lasting) };
        state.busy.store(self.threads.len(), Ordering::Relaxed);
        state.round.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in state.asleep.iter().zip(&self.threads) {
            // Either this sees that the thread went to sleep, or the thread sees the new round before it does.
            if asleep.load(Ordering::SeqCst) {
                wake(thread.thread(), asleep);
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| task(0)));
        spin_until(|| state.busy.load(Ordering::Acquire) == 0);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!state.panicked.swap(false, Ordering::Relaxed), "a thread of the engine panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.state.round.fetch_add(1, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn wake(thread: &Thread, asleep: &AtomicBool) {
    asleep.store(false, Ordering::SeqCst);
    thread.unpark();
}

fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        spins += 1;
        if spins > POLITE { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

impl State {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            self.wait(index, seen);
            seen += 1;
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the round was raised after the task was written, and it stays until this thread lowers `busy`.
            let task = unsafe { *self.task.get() };
            if let Some(task) = task
                && catch_unwind(AssertUnwindSafe(|| task(index + 1))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a round after the one seen.
    fn wait(&self, index: usize, seen: usize) {
        for spins in 0..SPINS {
            if self.round.load(Ordering::Acquire) != seen {
                return;
            }
            if spins > POLITE && spins % 64 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let asleep = &self.asleep[index];
        loop {
            asleep.store(true, Ordering::SeqCst);
            if self.round.load(Ordering::SeqCst) != seen {
                asleep.store(false, Ordering::SeqCst);
                return;
            }
            std::thread::park();
        }
    }
}

/// Threads of the current pool.
pub fn threads() -> usize {
    CURRENT.with(|current| current.borrow().as_ref().map_or(1, Pool::size))
}

/// Calls `f` with ranges that make up `0..count`, one for each thread of the current pool, at most `most` of them.
pub fn ranges(count: usize, most: usize, f: impl Fn(Range<usize>) + Sync) {
    let taken = Taken::new();
    let parts = taken.0.as_ref().map_or(1, Pool::size).min(most).min(count);
    match &taken.0 {
        Some(pool) if parts > 1 => pool.run(&|i| {
            if i < parts {
                f(count * i / parts..count * (i + 1) / parts);
            }
        }),
        _ => f(0..count),
    }
}

/// As [`ranges`], with more than one for a thread: each does [`SURE`] of its share, and the rest is cut into [`PIECES`] for each
/// thread, which whoever becomes free takes. A thread whose core was taken away for a moment then keeps the others waiting for less.
pub fn helped(count: usize, f: impl Fn(Range<usize>) + Sync) {
    let parts = threads();
    if parts == 1 || count < parts * FEW {
        return ranges(count, usize::MAX, f);
    }
    let share = |part: usize| count * part / parts..count * (part + 1) / parts;
    let sure = |share: &Range<usize>| share.start + share.len() * SURE.0 / SURE.1;
    let next = AtomicUsize::new(0);
    ranges(parts, parts, |part| {
        let own = share(part.start);
        f(own.start..sure(&own));
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= parts * PIECES {
                break;
            }
            let (share, piece) = (share(piece % parts), piece / parts);
            let (from, rest) = (sure(&share), share.end - sure(&share));
            f(from + rest * piece / PIECES..from + rest * (piece + 1) / PIECES);
        }
    });
}

/// Calls `f` with every number below `count`; threads take the next one as they become free. For work of unequal size.
pub fn each(count: usize, f: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    ranges(threads(), count, |_| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            f(index);
        }
    });
}

/// Calls `f(first, part)` with parts that make up `items`, cut at multiples of `unit`, one for each thread, at most `most` of them;
/// `first` counts units.
pub fn chunks<T: Send>(items: &mut [T], unit: usize, most: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let count = items.len() / unit;
    let shared = Shared::new(items);
    ranges(count, most.max(1), |range| {
        // SAFETY: the ranges are disjoint.
        let part = unsafe { shared.part(range.start * unit, range.len() * unit) };
        f(range.start, part);
    });
}

/// Where the threads of one piece of work wait for each other's first halves, without an end and a beginning between the halves.
#[derive(Default)]
pub(super) struct Meeting(AtomicUsize);

impl Meeting {
    /// Does a thread's first half, which counts as `share`. It counts as done also when it panics, so that nobody waits for ever.
    pub(super) fn after(&self, share: usize, first: impl FnOnce()) {
        struct Arrives<'a>(&'a AtomicUsize, usize);
        impl Drop for Arrives<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(self.1, Ordering::Release);
            }
        }
        let _arrives = Arrives(&self.0, share);
        first();
    }

    /// Waits until the shares that were counted make up `all`: what their first halves wrote can be read then.
    pub(super) fn wait(&self, all: usize) {
        spin_until(|| self.0.load(Ordering::Acquire) >= all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn in_pool<R>(threads: usize, f: impl FnOnce() -> R) -> R {
        Pool::new(threads).expect("a pool").install(f)
    }

    #[test]
    fn every_item_is_worked_on_once_whatever_the_number_of_threads() {
        for pool in [1, 2, 5] {
            in_pool(pool, || {
                for count in [0, 1, 2, 7, 100] {
                    let mut items = vec![0u32; 3 * count];
                    for _ in 0..50 {
                        chunks(&mut items, 3, usize::MAX, |first, part| {
                            assert_eq!(part.len() % 3, 0);
                            part.iter_mut().enumerate().for_each(|(i, item)| *item += (first * 3 + i) as u32);
                        });
                    }
                    assert!(items.iter().enumerate().all(|(i, item)| *item == 50 * i as u32));
                    let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    each(count, |i| {
                        seen[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1));
                }
            });
        }
    }

    #[test]
    fn whoever_is_free_helps_and_every_item_is_worked_on_once() {
        for pool in [1, 2, 5] {
            in_pool(pool, || {
                for count in [0, 1, 23, 24, 37, 100, 1000] {
                    let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    helped(count, |range| {
                        for i in range {
                            seen[i].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 1), "{count} in {pool}");
                }
            });
        }
        // The second thread waits inside its first item until the first has done what it can: its own share, and all the rest.
        in_pool(2, || {
            let done = AtomicUsize::new(0);
            helped(80, |range| {
                if range.start == 40 {
                    let began = std::time::Instant::now();
                    spin_until(|| done.load(Ordering::Relaxed) == 50 || began.elapsed() > Duration::from_secs(20));
                } else {
                    done.fetch_add(range.len(), Ordering::Relaxed);
                }
            });
            assert_eq!(done.into_inner(), 50);
        });
    }

    /// Whether all threads of the current pool sleep.
    fn all_asleep() -> bool {
        let asleep = |pool: &Pool| pool.state.asleep.iter().all(|asleep| asleep.load(Ordering::SeqCst));
        CURRENT.with(|current| current.borrow().as_ref().is_some_and(asleep))
    }

    #[test]
    fn threads_without_work_go_to_sleep_and_work_wakes_them() {
        in_pool(3, || {
            for _ in 0..5 {
                let began = std::time::Instant::now();
                while !all_asleep() {
                    assert!(began.elapsed() < Duration::from_secs(20), "threads without work still spin");
                    std::thread::sleep(Duration::from_millis(1));
                }
                let count = AtomicUsize::new(0);
                ranges(3, 3, |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.into_inner(), 3);
            }
        });
    }

    #[test]
    fn threads_meet_when_every_first_half_is_done_or_has_panicked() {
        for threads in [1, 2, 3] {
            in_pool(threads, || {
                for _ in 0..50 {
                    let (meeting, first) = (Meeting::default(), AtomicUsize::new(0));
                    ranges(7, 7, |own| {
                        meeting.after(own.len(), || {
                            first.fetch_add(own.len(), Ordering::Relaxed);
                        });
                        meeting.wait(7);
                        assert_eq!(first.load(Ordering::Relaxed), 7);
                    });
                }
                let meeting = Meeting::default();
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    ranges(7, 7, |own| {
                        meeting.after(own.len(), || assert_ne!(own.start, 0, "the first one panics"));
                        meeting.wait(7);
                    });
                }));
                assert!(outcome.is_err());
            });
        }
    }

    #[test]
    fn a_panic_in_any_part_is_the_callers_and_the_pool_goes_on() {
        in_pool(2, || {
            for bad in 0..2 {
                let outcome = catch_unwind(|| ranges(2, 2, |range| assert_ne!(range.start, bad)));
                assert!(outcome.is_err(), "part {bad}");
            }
            let count = AtomicUsize::new(0);
            ranges(2, 2, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 2);
        });
    }
}
