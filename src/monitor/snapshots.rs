//! Whether what answers under a model's name is still what answered before: providers move names to other snapshots without a word. The
//! replies' `model` and `system_fingerprint` tell. What was seen is kept in the database, so that a change between two starts is one, too;
//! what a target has said before, if only once, is no news: some serve several at a time.

use crate::store::snapshots::{self, FINGERPRINT, MODEL, Snapshot};
use crate::store::{Db, StoreError};
use crate::types::time::{now_ms, rfc3339};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// Models of providers that are looked after because somebody called them; callers may make names up.
const MAX_CALLED: usize = 2_000;
/// Those that a configuration, a release or a suite names have this much room besides.
const MAX_OURS: usize = 2_000;
/// New names of one field of a model's replies in [`LATE_MS`]; one that says something else each time is not listened to.
const MAX_NAMES: usize = 32;
/// Those that a process remembers.
const MAX_SEEN: usize = 128;
/// A name that is longer is none.
const MAX_BYTES: usize = 200;

/// For so long a change is told by `/status` and `refit doctor`, milliseconds.
pub const LATE_MS: i64 = 30 * 86_400_000;

/// What this process has seen.
#[derive(Debug)]
pub struct Snapshots {
    /// By provider and by model: what its replies said.
    seen: RwLock<HashMap<String, HashMap<String, Vec<Said>>>>,
    /// Seen and not in the database yet, oldest first.
    unknown: Mutex<VecDeque<Unknown>>,
    /// Changes that this process has seen and that are no older than itself.
    pub(super) changes: Counter,
    began_at: i64,
}

/// Who has named a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A route, a release or a suite.
    ByUs,
    /// Whoever called it.
    ByCaller,
}

impl Named {
    /// Models that there may be.
    fn room(self) -> usize {
        match self {
            Named::ByUs => MAX_CALLED + MAX_OURS,
            Named::ByCaller => MAX_CALLED,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Said {
    kind: &'static str,
    name: String,
}

#[derive(Debug)]
struct Unknown {
    snapshot: Snapshot,
    named: Named,
}

/// A target that has begun to answer as something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `provider/model`, as it is called.
    pub target: String,
    /// `model` or `fingerprint`: the field of its replies that changed.
    pub kind: String,
    /// What it says now.
    pub now: String,
    /// What it said before.
    pub before: String,
    /// Since when, milliseconds.
    pub at: i64,
}

impl Change {
    /// The change in words.
    pub fn told(&self) -> String {
        let Change { target, kind, now, before, at } = self;
        let field = if kind == FINGERPRINT { "system_fingerprint" } else { "model" };
        format!("{target} answers with {field} \"{now}\" since {}, before with \"{before}\"", rfc3339(*at))
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots { seen: RwLock::default(), unknown: Mutex::default(), changes: Counter::default(), began_at: now_ms() }
    }
}

impl Snapshots {
    /// A target has answered, and said what it is: `model` and `system_fingerprint`. Fast where that is known.
    pub fn saw(&self, target: (&str, &str), (model, fingerprint): (&str, Option<&str>), named: Named) {
        for (kind, name) in [(MODEL, Some(model)), (FINGERPRINT, fingerprint)] {
            let name = name.filter(|name| !name.is_empty() && name.len() <= MAX_BYTES);
            if let Some(name) = name.filter(|name| !self.knows(target, kind, name)) {
                self.learn(target, (kind, name), named);
            }
        }
    }

    fn knows(&self, (provider, model): (&str, &str), kind: &str, name: &str) -> bool {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let said = seen.get(provider).and_then(|models| models.get(model));
        said.is_some_and(|said| {
            let mut others = 0;
            let is_known = said.iter().filter(|said| said.kind == kind).inspect(|_| others += 1).any(|said| said.name == name);
            // Where there is no more room nothing is new.
            is_known || others >= MAX_SEEN
        })
    }

    fn learn(&self, (provider, model): (&str, &str), (kind, name): (&'static str, &str), named: Named) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let models = seen.values().map(HashMap::len).sum::<usize>();
        let said = match seen.get_mut(provider).and_then(|models| models.get_mut(model)) {
            Some(said) => said,
            None if models >= named.room() => return,
            None => seen.entry(provider.into()).or_default().entry(model.into()).or_default(),
        };
        let new = Said { kind, name: name.into() };
        // Each field by itself: a fingerprint that is another one each time hides no change of the model.
        if said.iter().filter(|said| said.kind == kind).count() >= MAX_SEEN || said.contains(&new) {
            return;
        }
        said.push(new);
        let (provider, model, kind, name) = (provider.into(), model.into(), kind.into(), name.into());
        let snapshot = Snapshot { provider, model, kind, name, first_seen: now_ms() };
        // In the order in which they were learnt.
        self.unknown().push_back(Unknown { snapshot, named });
    }

    /// Whether something that was seen is not in the database yet.
    pub(super) fn waits(&self) -> bool {
        !self.unknown().is_empty()
    }

    /// Puts what was seen first into the database, and tells what has changed. Blocking.
    ///
    /// # Errors
    /// When the database fails; it is tried again the next time.
    pub(super) fn keep(&self, db: &dyn Db) -> Result<(), StoreError> {
        loop {
            let Some(unknown) = self.unknown().pop_front() else { return Ok(()) };
            match self.keep_one(db, &unknown) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    self.changes.inc();
                    tracing::warn!(target_name = change.target, "a provider's model has changed: {}", change.told());
                }
                Err(error) => {
                    self.unknown().push_front(unknown);
                    return Err(error);
                }
            }
        }
    }

    /// Keeps a snapshot where there is room for it; the change that it is, where its target said something else before.
    fn keep_one(&self, db: &dyn Db, Unknown { snapshot, named }: &Unknown) -> Result<Option<Change>, StoreError> {
        // Read first: what cannot be told is not put down as known, either.
        let known = snapshots::of(db, (&snapshot.provider, &snapshot.model), &snapshot.kind)?;
        let at = known.iter().position(|known| known.name == snapshot.name);
        let before = known[..at.unwrap_or(known.len())].last();
        if let Some(at) = at {
            // Another process saw it first. It counts here, too: this one may be the only one whose metrics are read.
            let is_news = known[at].first_seen >= self.began_at;
            return Ok(before.filter(|_| is_news).map(|before| change(&before.name, &known[at])));
        }
        let of_late = known.iter().filter(|known| known.first_seen >= snapshot.first_seen - LATE_MS).count();
        if of_late >= MAX_NAMES || (known.is_empty() && snapshots::models(db)? >= named.room()) {
            return Ok(None);
        }
        // Where another process was faster it is news in both.
        snapshots::add(db, snapshot)?;
        Ok(before.map(|before| change(&before.name, snapshot)))
    }

    fn unknown(&self) -> MutexGuard<'_, VecDeque<Unknown>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn change(before: &str, now: &Snapshot) -> Change {
    let target = format!("{}/{}", now.provider, now.model);
    Change { target, kind: now.kind.clone(), now: now.name.clone(), before: before.into(), at: now.first_seen }
}

/// The newest change of each target and field at or after a moment, by target. Blocking.
///
/// # Errors
/// When the database fails.
pub fn changed_since(db: &dyn Db, since: i64) -> Result<Vec<Change>, StoreError> {
    let changed = snapshots::changed_since(db, since)?;
    let is_same =
        |(_, a): &(String, Snapshot), (_, b): &(String, Snapshot)| (&a.provider, &a.model, &a.kind) == (&b.provider, &b.model, &b.kind);
    let newest = changed.chunk_by(is_same).filter_map(|of_one| of_one.last());
    Ok(newest.map(|(before, now)| change(before, now)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn only_what_a_target_has_never_said_is_news() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(data.path()).expect("a store");
        let changes = |snapshots: &Snapshots, names: &[(&str, Option<&str>)]| {
            names.iter().for_each(|(name, fingerprint)| snapshots.saw(("up", "m"), (name, *fingerprint), Named::ByCaller));
            snapshots.keep(store.db.as_ref()).expect("kept");
            snapshots.changes.get()
        };
        let first = Snapshots::default();
        assert_eq!(changes(&first, &[("m-1", Some("fp_1")), ("m-1", Some("fp_1")), ("m-1", None), ("", None)]), 0);
        assert_eq!(changes(&first, &[("m-2", Some("fp_1"))]), 1);
        assert_eq!(changes(&first, &[("m-1", Some("fp_2")), ("m-2", Some("fp_1"))]), 2, "another fingerprint, and models that are known");
        // A process that sees what another has seen first counts it where it is news, and tells nothing twice.
        let other = Snapshots { began_at: first.began_at, ..Snapshots::default() };
        assert_eq!(changes(&other, &[("m-2", Some("fp_2")), ("m-2", Some("fp_2"))]), 2);
        let later = Snapshots { began_at: now_ms() + 60_000, ..Snapshots::default() };
        assert_eq!(changes(&later, &[("m-2", Some("fp_2")), ("m-1", Some("fp_1"))]), 0, "a start alone changes nothing");
        assert_eq!(changes(&later, &[("m-3", None)]), 1);
        let told = changed_since(store.db.as_ref(), 0).expect("read");
        let [fingerprint, model] = &told[..] else { panic!("{told:?}") };
        assert_eq!((fingerprint.now.as_str(), fingerprint.before.as_str(), fingerprint.kind.as_str()), ("fp_2", "fp_1", "fingerprint"));
        assert_eq!((model.target.as_str(), model.now.as_str(), model.before.as_str()), ("up/m", "m-3", "m-2"));
        assert_eq!(changed_since(store.db.as_ref(), i64::MAX).expect("read"), []);
    }

    #[test]
    fn names_that_are_made_up_do_not_pile_up() {
        let snapshots = Snapshots::default();
        let saw = |model: &str, name: &str, named| snapshots.saw(("up", model), (name, None), named);
        (0..MAX_SEEN + 10).for_each(|n| saw("m", &n.to_string(), Named::ByCaller));
        assert_eq!(snapshots.unknown().len(), MAX_SEEN);
        (0..MAX_CALLED + 10).for_each(|n| saw(&n.to_string(), "m", Named::ByCaller));
        assert_eq!(snapshots.seen.read().expect("seen")["up"].len(), MAX_CALLED);
        saw("m", &"x".repeat(MAX_BYTES + 1), Named::ByCaller);
        assert_eq!(snapshots.unknown().len(), MAX_SEEN + MAX_CALLED - 1);
        (0..MAX_OURS + 10).for_each(|n| saw(&format!("ours-{n}"), "m", Named::ByUs));
        assert_eq!(snapshots.seen.read().expect("seen")["up"].len(), MAX_CALLED + MAX_OURS, "there is room for what is configured");
    }

    #[test]
    fn a_field_that_says_something_else_each_time_hides_no_change_of_the_other() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(data.path()).expect("a store");
        let rows = || snapshots::of(store.db.as_ref(), ("up", "m"), FINGERPRINT).expect("read").len();
        for start in 0..3 {
            let snapshots = Snapshots { began_at: now_ms() + 60_000, ..Snapshots::default() };
            for n in 0..MAX_SEEN + 10 {
                snapshots.saw(("up", "m"), ("m-0", Some(&format!("fp_{start}_{n}"))), Named::ByCaller);
            }
            snapshots.keep(store.db.as_ref()).expect("kept");
            assert_eq!((rows(), snapshots.changes.get() > 0), (MAX_NAMES, start == 0), "what other starts have seen counts");
            let before = snapshots.changes.get();
            snapshots.saw(("up", "m"), (&format!("m-{}", start + 1), Some("fp")), Named::ByCaller);
            snapshots.keep(store.db.as_ref()).expect("kept");
            assert_eq!(snapshots.changes.get(), before + 1);
        }
    }

    #[test]
    fn changes_are_told_in_their_order() {
        let data = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(data.path()).expect("a store");
        let snapshots = Snapshots::default();
        for name in ["m-2", "m-1"] {
            snapshots.saw(("up", "m"), (name, None), Named::ByCaller);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(snapshots.waits());
        snapshots.keep(store.db.as_ref()).expect("kept");
        assert!(!snapshots.waits());
        let told = changed_since(store.db.as_ref(), 0).expect("read");
        assert_eq!((told[0].before.as_str(), told[0].now.as_str(), snapshots.changes.get()), ("m-2", "m-1", 1));
    }
}
