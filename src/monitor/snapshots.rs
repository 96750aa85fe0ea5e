//! Whether what answers under a model's name is still what answered before: providers move names to other snapshots without a word. The
//! replies' `model` and `system_fingerprint` tell. What was seen is kept in the database, so that a change between two starts is one, too;
//! what a target has said before, if only once, is no news: some serve several at a time.

use crate::store::snapshots::{self, FINGERPRINT, MODEL, Snapshot};
use crate::store::{Db, StoreError};
use crate::types::time::{now_ms, rfc3339};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

/// Models of providers that are looked after; callers may make names up.
const MAX_MODELS: usize = 2_000;
/// What one model's replies may have said; one that says something else each time is not listened to.
const MAX_NAMES: usize = 32;
/// A name that is longer is none.
const MAX_BYTES: usize = 200;

/// For so long a change is told by `/status` and `refit doctor`, milliseconds.
pub const LATE_MS: i64 = 30 * 86_400_000;

/// What this process has seen.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// By provider and by model: what its replies said.
    seen: RwLock<HashMap<String, HashMap<String, Vec<Said>>>>,
    /// Seen, and not in the database yet.
    unknown: Mutex<Vec<Snapshot>>,
    /// Changes that this process was the first to see.
    pub(super) changes: Counter,
}

#[derive(Debug, PartialEq, Eq)]
struct Said {
    kind: &'static str,
    name: String,
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

impl Snapshots {
    /// A target has answered, and said what it is. Fast where that is known.
    pub fn saw(&self, (provider, model): (&str, &str), name: &str, fingerprint: Option<&str>) {
        for (kind, name) in [(MODEL, Some(name)), (FINGERPRINT, fingerprint)] {
            let name = name.filter(|name| !name.is_empty() && name.len() <= MAX_BYTES);
            if let Some(name) = name.filter(|name| !self.knows(provider, model, kind, name)) {
                self.learn((provider, model), kind, name);
            }
        }
    }

    fn knows(&self, provider: &str, model: &str, kind: &str, name: &str) -> bool {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let said = seen.get(provider).and_then(|models| models.get(model));
        said.is_some_and(|said| said.iter().any(|said| said.kind == kind && said.name == name))
    }

    fn learn(&self, (provider, model): (&str, &str), kind: &'static str, name: &str) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let models = seen.values().map(HashMap::len).sum::<usize>();
        let said = match seen.get_mut(provider).and_then(|models| models.get_mut(model)) {
            Some(said) => said,
            None if models >= MAX_MODELS => return,
            None => seen.entry(provider.into()).or_default().entry(model.into()).or_default(),
        };
        let new = Said { kind, name: name.into() };
        if said.len() >= MAX_NAMES || said.contains(&new) {
            return;
        }
        said.push(new);
        drop(seen);
        let (provider, model, kind, name) = (provider.into(), model.into(), kind.into(), name.into());
        self.unknown().push(Snapshot { provider, model, kind, name, first_seen: now_ms() });
    }

    /// Puts what was seen first into the database, and tells what has changed. Blocking.
    ///
    /// # Errors
    /// When the database fails; it is tried again the next time.
    pub(super) fn keep(&self, db: &dyn Db) -> Result<(), StoreError> {
        loop {
            let Some(snapshot) = self.unknown().pop() else { return Ok(()) };
            match keep(db, &snapshot) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    self.changes.inc();
                    tracing::warn!(target_name = change.target, "a provider's model has changed: {}", change.told());
                }
                Err(error) => {
                    self.unknown().push(snapshot);
                    return Err(error);
                }
            }
        }
    }

    fn unknown(&self) -> std::sync::MutexGuard<'_, Vec<Snapshot>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a snapshot; the change that it is, where its target had others before.
fn keep(db: &dyn Db, snapshot: &Snapshot) -> Result<Option<Change>, StoreError> {
    if !snapshots::add(db, snapshot)? {
        return Ok(None);
    }
    let known = snapshots::of(db, (&snapshot.provider, &snapshot.model), &snapshot.kind)?;
    let before = known.iter().rev().find(|known| known.name != snapshot.name);
    Ok(before.map(|before| change(before, snapshot)))
}

fn change(before: &Snapshot, now: &Snapshot) -> Change {
    let target = format!("{}/{}", now.provider, now.model);
    Change { target, kind: now.kind.clone(), now: now.name.clone(), before: before.name.clone(), at: now.first_seen }
}

/// The newest change of each target and field at or after a moment, by target. Blocking.
///
/// # Errors
/// When the database fails.
pub fn changed_since(db: &dyn Db, since: i64) -> Result<Vec<Change>, StoreError> {
    let all = snapshots::all(db)?;
    let is_same = |a: &Snapshot, b: &Snapshot| (&a.provider, &a.model, &a.kind) == (&b.provider, &b.model, &b.kind);
    let newest = all.chunk_by(is_same).filter_map(|of_one| match of_one {
        [.., before, now] if now.first_seen >= since => Some(change(before, now)),
        _ => None,
    });
    Ok(newest.collect())
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
            names.iter().for_each(|(name, fingerprint)| snapshots.saw(("up", "m"), name, *fingerprint));
            snapshots.keep(store.db.as_ref()).expect("kept");
            snapshots.changes.get()
        };
        let first = Snapshots::default();
        assert_eq!(changes(&first, &[("m-1", Some("fp_1")), ("m-1", Some("fp_1")), ("m-1", None), ("", None)]), 0);
        assert_eq!(changes(&first, &[("m-2", Some("fp_1"))]), 1);
        assert_eq!(changes(&first, &[("m-1", Some("fp_2")), ("m-2", Some("fp_1"))]), 2, "another fingerprint, and models that are known");
        // Another start sees at once what has changed meanwhile, and nothing else.
        let second = Snapshots::default();
        assert_eq!(changes(&second, &[("m-2", Some("fp_2"))]), 0);
        assert_eq!(changes(&second, &[("m-3", None)]), 1);
        let told = changed_since(store.db.as_ref(), 0).expect("read");
        let [fingerprint, model] = &told[..] else { panic!("{told:?}") };
        assert_eq!((fingerprint.now.as_str(), fingerprint.before.as_str(), fingerprint.kind.as_str()), ("fp_2", "fp_1", "fingerprint"));
        assert_eq!((model.target.as_str(), model.now.as_str(), model.before.as_str()), ("up/m", "m-3", "m-2"));
        assert_eq!(changed_since(store.db.as_ref(), i64::MAX).expect("read"), []);
    }

    #[test]
    fn names_that_are_made_up_do_not_pile_up() {
        let snapshots = Snapshots::default();
        (0..MAX_NAMES + 10).for_each(|n| snapshots.saw(("up", "m"), &n.to_string(), None));
        assert_eq!(snapshots.unknown().len(), MAX_NAMES);
        (0..MAX_MODELS + 10).for_each(|n| snapshots.saw(("up", &n.to_string()), "m", None));
        assert_eq!(snapshots.seen.read().expect("seen")["up"].len(), MAX_MODELS);
        snapshots.saw(("up", "m"), &"x".repeat(MAX_BYTES + 1), None);
        assert_eq!(snapshots.unknown().len(), MAX_NAMES + MAX_MODELS - 1);
    }
}
