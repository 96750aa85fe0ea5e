//! A thread that runs only when a core has nothing else to do (SCHED_IDLE, sched(7)), for work that can wait. On a busy machine a task
//! may stand still for a second in the middle: it must hold no lock that somebody waits for who answers requests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

type Task = Box<dyn FnOnce() + Send>;

/// The thread. Dropping it ends it after its task, which is not waited for.
pub(super) struct Idler {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    task: Mutex<Option<Task>>,
    over: AtomicBool,
}

impl Idler {
    /// Starts the thread; none where the system has no such class, or does not give it.
    pub(super) fn new(name: &str) -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let (worked, works) = (shared.clone(), channel());
        let work = move || {
            let may = become_idle();
            // Whoever started the thread waits for this.
            let _ = works.0.send(may);
            if may {
                worked.work();
            }
        };
        let handle = thread::Builder::new().name(name.into()).spawn(work).ok()?;
        works.1.recv().ok()?.then(|| Idler { shared, thread: handle.thread().clone() })
    }

    /// Has a task done, after which the next one may be given.
    pub(super) fn begin(&self, task: Task) {
        *self.shared.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        self.thread.unpark();
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Shared {
    fn work(&self) {
        while !self.over.load(Ordering::Acquire) {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
            match task {
                // One that panics drops what it would have answered with; the thread is there for the next.
                Some(task) => drop(catch_unwind(AssertUnwindSafe(task))),
                None => thread::park(),
            }
        }
    }
}

/// Puts this thread into the idle class. Whether that could be done.
#[cfg(target_os = "linux")]
fn become_idle() -> bool {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let set = thread_priority::set_thread_priority_and_policy(thread_priority::thread_native_id(), ThreadPriority::Min, idle);
    if let Err(error) = &set {
        tracing::debug!(?error, "no thread may be idle: what could wait is done at once");
    }
    set.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn become_idle() -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_done_in_the_idle_class() {
        let idler = Idler::new("idle-test").expect("Linux gives the class to everybody");
        let (sender, receiver) = channel();
        for round in 0..3 {
            let sender = sender.clone();
            let task = move || {
                // The 41st field of proc_pid_stat(5): SCHED_IDLE is 5.
                let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("a proc file system");
                let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
                sender.send((round, fields[38].to_string())).expect("sent");
            };
            idler.begin(Box::new(task));
            assert_eq!(receiver.recv().expect("done"), (round, "5".to_string()));
        }
        let (sender, receiver) = channel::<()>();
        idler.begin(Box::new(move || panic!("with {sender:?}")));
        assert!(receiver.recv().is_err(), "whoever waits learns that nothing comes");
        let (sender, receiver) = channel();
        idler.begin(Box::new(move || sender.send(()).expect("sent")));
        receiver.recv().expect("done after all");
    }
}
