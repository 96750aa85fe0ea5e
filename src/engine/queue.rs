//! Requests that wait for the engine: bounded, and handed out in turn among projects, and inside a project among its keys, so that
//! whoever asks for much waits longer than whoever asks for little.

use super::sequence::Generate;
use crate::types::asker::Asker;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Callers whose turns are remembered.
const REMEMBERED: usize = 4_096;

/// A request that waits.
pub(super) struct Waiting {
    pub(super) request: Generate,
    pub(super) accepted: Instant,
}

/// What [`Queue::push`] does not take.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many wait already.
    Full(usize),
    /// The worker is gone.
    Closed,
}

/// The queue, shared by callers and worker.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// In the order of arrival.
    waiting: Vec<Waiting>,
    turns: Turns,
    /// Sequences that the worker could start now.
    free: usize,
    /// Nobody will ask any more, or nobody will answer.
    closed: bool,
}

impl Queue {
    /// A queue in which `limit` requests may wait beyond the `free` that can be started at once.
    pub(super) fn new(limit: usize, free: usize) -> Self {
        Queue { state: Mutex::new(State { free, ..State::default() }), changed: Condvar::new(), limit }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all requests or none. Those that nobody waits for any more make room.
    pub(super) fn push(&self, requests: Vec<Generate>) -> Result<(), Refused> {
        let mut state = self.state();
        if state.closed {
            return Err(Refused::Closed);
        }
        let room = self.limit + state.free;
        if state.waiting.len() + requests.len() > room {
            state.waiting.retain(|waiting| !waiting.request.events.is_closed());
        }
        if state.waiting.len() + requests.len() > room {
            return Err(Refused::Full(state.waiting.len()));
        }
        let accepted = Instant::now();
        state.waiting.extend(requests.into_iter().map(|request| Waiting { request, accepted }));
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Nothing more is taken; the worker ends when it has done what waits.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// As [`Queue::close`], and what waits is dropped.
    pub(super) fn abort(&self) {
        self.close();
        self.state().waiting.clear();
    }

    /// Waits until there is something to do. `false`: there never will be.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.state();
        while state.waiting.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.waiting.is_empty()
    }

    /// Offers requests in turn to a worker that can start `free` of them, until `start` says that there is no room.
    pub(super) fn offer(&self, free: usize, mut start: impl FnMut(Waiting) -> Offered) {
        let mut state = self.state();
        state.free = free;
        state.waiting.retain(|waiting| !waiting.request.events.is_closed());
        let mut later: Vec<Waiting> = Vec::new();
        while let Some(at) = state.turns.next(&state.waiting) {
            let waiting = state.waiting.remove(at);
            let asker = waiting.request.asker.clone();
            match start(waiting) {
                Offered::Started => {
                    state.free = state.free.saturating_sub(1);
                    state.turns.served(asker);
                }
                Offered::Later(waiting) => later.push(*waiting),
                Offered::NoRoom(waiting) => {
                    later.push(*waiting);
                    break;
                }
            }
        }
        state.waiting.append(&mut later);
        state.waiting.sort_by_key(|waiting| waiting.accepted);
    }
}

/// What became of a request that was offered.
pub(super) enum Offered {
    Started,
    /// It waits for something that others need not wait for.
    Later(Box<Waiting>),
    /// There is no room: whoever's turn it is goes first when there is.
    NoRoom(Box<Waiting>),
}

/// When each project and each key was served last.
#[derive(Default)]
struct Turns {
    now: u64,
    projects: HashMap<String, u64>,
    keys: HashMap<Asker, u64>,
}

impl Turns {
    /// The place of the request whose turn it is: of the project served longest ago, its key served longest ago, the one that came first.
    fn next(&self, waiting: &[Waiting]) -> Option<usize> {
        let turn = |waiting: &Waiting| {
            let asker = &waiting.request.asker;
            (self.projects.get(&asker.project).copied().unwrap_or(0), self.keys.get(asker).copied().unwrap_or(0))
        };
        (0..waiting.len()).min_by_key(|at| turn(&waiting[*at]))
    }

    fn served(&mut self, asker: Asker) {
        self.now += 1;
        if self.keys.len() >= REMEMBERED {
            // Who was not served lately counts as never served.
            let horizon = self.now.saturating_sub(REMEMBERED as u64 / 2);
            self.keys.retain(|_, served| *served >= horizon);
            self.projects.retain(|_, served| *served >= horizon);
        }
        self.projects.insert(asker.project.clone(), self.now);
        self.keys.insert(asker, self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    type Events = UnboundedReceiver<crate::engine::sequence::Event>;

    fn request(project: &str, key: &str, tag: u32) -> (Generate, Events) {
        let (events, receiver) = unbounded_channel();
        let asker = Asker { project: project.into(), key: key.into() };
        (Generate { asker, ..Generate::new(vec![tag], events) }, receiver)
    }

    fn filled(limit: usize, all: &[(&str, &str)]) -> (Queue, Vec<Events>) {
        let queue = Queue::new(limit, 0);
        let mut receivers = Vec::new();
        for (tag, (project, key)) in all.iter().enumerate() {
            let (request, events) = request(project, key, tag as u32);
            queue.push(vec![request]).expect("room");
            receivers.push(events);
        }
        (queue, receivers)
    }

    /// Tags in the order in which they are handed out, one at a time.
    fn order(queue: &Queue) -> Vec<u32> {
        let mut order = Vec::new();
        while queue.len() > 0 {
            let mut took = false;
            queue.offer(0, |waiting| {
                if took {
                    return Offered::NoRoom(Box::new(waiting));
                }
                took = true;
                order.push(waiting.request.tokens[0]);
                Offered::Started
            });
        }
        order
    }

    #[test]
    fn projects_take_turns_and_so_do_the_keys_of_one() {
        let (queue, _kept) = filled(9, &[("a", "1"), ("a", "1"), ("a", "1"), ("a", "2"), ("b", "3")]);
        // a's first, then b (never served), then a's other key, then the rest of a's first key in order.
        assert_eq!(order(&queue), [0, 4, 3, 1, 2]);
    }

    #[test]
    fn a_full_queue_drops_what_nobody_waits_for_and_takes_all_or_none() {
        let (queue, mut kept) = filled(2, &[("a", "1"), ("a", "1")]);
        let (one, _events) = request("b", "2", 7);
        assert_eq!(queue.push(vec![one]), Err(Refused::Full(2)));
        kept.remove(0);
        let ((one, _a), (two, _b)) = (request("b", "2", 7), request("b", "2", 8));
        assert_eq!(queue.push(vec![one, two]), Err(Refused::Full(1)));
        let (one, _c) = request("b", "2", 7);
        assert_eq!(queue.push(vec![one]), Ok(()));
        assert_eq!(order(&queue), [1, 7]);
    }

    #[test]
    fn what_waits_for_another_does_not_hold_up_those_behind_it() {
        let (queue, _kept) = filled(3, &[("a", "1"), ("b", "2")]);
        let mut started = Vec::new();
        queue.offer(0, |waiting| match waiting.request.tokens[0] {
            0 => Offered::Later(Box::new(waiting)),
            tag => {
                started.push(tag);
                Offered::Started
            }
        });
        assert_eq!((started, queue.len()), (vec![1], 1));
    }

    #[test]
    fn a_closed_queue_ends_when_it_is_empty() {
        let (queue, _kept) = filled(3, &[("a", "1")]);
        queue.close();
        let (one, _events) = request("a", "1", 7);
        assert_eq!(queue.push(vec![one]), Err(Refused::Closed));
        assert!(queue.wait());
        assert_eq!(order(&queue), [0]);
        assert!(!queue.wait());
    }
}
