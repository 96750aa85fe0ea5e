//! The prompt library: immutable numbered versions in the store, labels that point at them, and a row for every move of a label. Each
//! change stands in the audit chain, too: it is handed to a [`Commit`].
//!
//! References: `name` (newest version), `name@3`, `name@production`, `name@sha256:…`, `sha256:…`. The label `latest` is the newest
//! version and cannot be moved. An unknown label is an error, never an older version.

use super::library_error::LibraryError;
use super::parse::Prompt;
use super::{Problem, PromptError};
use crate::store::prompts::{self as rows, Kind, LabelMove, PromptVersion};
use crate::store::{Change, Commit, Db, Store, StoreError};
use crate::types::error::did_you_mean;
use crate::types::{Digest, ids, time};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The label of the newest version.
pub const LATEST: &str = "latest";
const COMPILED: usize = 256;
/// Labels and versions that an error lists.
const MOST_TOLD: usize = 8;

/// Versions, labels, and compiled prompts. Calls block on the database; compiled prompts are kept by content.
#[derive(Clone)]
pub struct Library {
    db: Arc<dyn Db>,
    compiled: Arc<Mutex<Compiled>>,
}

/// Compiled prompts by name and content.
type Compiled = HashMap<(String, Digest), Arc<Prompt>>;

/// Labels with the version that each points at.
pub type Labels = Vec<(String, i64)>;

/// Result of publishing.
#[derive(Debug, Clone)]
pub struct Published {
    /// The version that holds the content.
    pub version: PromptVersion,
    /// Whether it was made by this call; the same content is the same version.
    pub is_new: bool,
}

/// A prompt in a list.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Entry {
    /// Newest version.
    #[serde(flatten)]
    pub newest: PromptVersion,
    /// Labels and their versions.
    pub labels: Labels,
}

/// Who does something, and why, and how it is written down.
#[derive(Clone, Copy)]
pub struct By<'a> {
    /// Person or key.
    pub author: &'a str,
    /// Reason, may be empty.
    pub message: &'a str,
    /// Applies the change together with its audit row.
    pub commit: Commit<'a>,
}

/// Where a label stood before its last move.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// Name of the prompt.
    pub prompt: String,
    /// The label.
    pub label: String,
    /// Where it stands now; none where it was taken away.
    pub from: Option<i64>,
    /// Where it stood.
    pub to: i64,
    /// What let it go there: see [`LabelMove::detail`].
    pub detail: Value,
}

/// What a new version was edited from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// Nobody says: it becomes the newest version whatever stands there.
    Any,
    /// Nothing: there must be no version yet.
    Nothing,
    /// The version with this digest: it must be the newest.
    Version(Digest),
}

impl Library {
    /// The library of a store.
    pub fn new(store: &Store) -> Self {
        Library { db: store.db.clone(), compiled: Arc::default() }
    }

    /// Stores a source as a version of `name`; the newest version's content gets no second number.
    ///
    /// # Errors
    /// [`PromptError`] when the source is not a valid prompt, [`LibraryError::Older`] when an older version has the content; nothing is
    /// stored then.
    pub fn publish(&self, name: &str, source: &str, by: By<'_>) -> Result<Published, LibraryError> {
        self.publish_from(name, source, Parent::Any, by)
    }

    /// As [`Library::publish`], if the newest version is the one that the source was edited from.
    ///
    /// # Errors
    /// As [`Library::publish`]; [`LibraryError::Edited`] when somebody published another version meanwhile.
    pub fn publish_from(&self, name: &str, source: &str, parent: Parent, by: By<'_>) -> Result<Published, LibraryError> {
        if !ids::is_slug(name) || name == LATEST {
            return Err(PromptError::Name(name.to_string()).into());
        }
        let prompt = Prompt::parse(name, source)?;
        if let Some(examples) = prompt.front.examples.as_ref().filter(|examples| !examples.is_pinned()) {
            return Err(Problem::Unpinned(examples.dataset.clone()).of(name).into());
        }
        let db = self.db.as_ref();
        let newest = rows::newest_of(db, name)?;
        if let Some(version) = newest.as_ref().filter(|newest| newest.digest == prompt.digest) {
            return Ok(Published { version: version.clone(), is_new: false });
        }
        let stands = newest.as_ref().map(|newest| newest.digest);
        let edited_from = match (parent, &newest) {
            (Parent::Any, _) | (Parent::Nothing, None) => stands,
            (Parent::Version(digest), _) if stands == Some(digest) => stands,
            (Parent::Version(digest), None) => return Err(self.unknown(&format!("{name}@{digest}")).into()),
            (_, Some(newest)) => return Err(LibraryError::edited(newest)),
        };
        if let (Some(known), Some(newest)) = (rows::by_digest(db, Some(name), &prompt.digest)?, &newest) {
            return Err(LibraryError::Older { prompt: known.prompt, version: known.version, newest: newest.version });
        }
        let version = PromptVersion {
            prompt: name.to_string(),
            version: newest.map_or(0, |newest| newest.version) + 1,
            digest: prompt.digest,
            source: source.to_string(),
            author: by.author.to_string(),
            message: by.message.to_string(),
            created_at: time::now_ms(),
            parent: edited_from,
        };
        let change = Change {
            actor: by.author.to_string(),
            action: "prompt.publish".into(),
            subject: format!("{name}@{}", version.version),
            detail: json!({"digest": version.digest, "parent": version.parent, "message": by.message}),
            statements: vec![rows::insert(&version)],
        };
        match (by.commit)(&change) {
            Ok(()) => Ok(Published { version, is_new: true }),
            // Somebody published between our look and our insert: their row decides.
            Err(StoreError::Conflict(cause)) => match rows::newest_of(db, name)? {
                Some(version) if version.digest == prompt.digest => Ok(Published { version, is_new: false }),
                newest => Err(newest.map_or(StoreError::Conflict(cause).into(), |newest| LibraryError::edited(&newest))),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Every prompt with its newest version and labels.
    ///
    /// # Errors
    /// [`PromptError::Store`].
    pub fn list(&self) -> Result<Vec<Entry>, PromptError> {
        let newest = rows::newest(self.db.as_ref())?;
        newest.into_iter().map(|newest| Ok(Entry { labels: rows::labels(self.db.as_ref(), &newest.prompt)?, newest })).collect()
    }

    /// The version of a prompt that has a content, if there is one.
    ///
    /// # Errors
    /// [`PromptError::Store`].
    pub fn holding(&self, name: &str, content: &Digest) -> Result<Option<PromptVersion>, PromptError> {
        Ok(rows::by_digest(self.db.as_ref(), Some(name), content)?)
    }

    /// The newest version of a prompt, if there is one.
    ///
    /// # Errors
    /// [`PromptError::Store`].
    pub fn newest(&self, name: &str) -> Result<Option<PromptVersion>, PromptError> {
        Ok(rows::newest_of(self.db.as_ref(), name)?)
    }

    /// The version that a reference names.
    ///
    /// # Errors
    /// [`PromptError::Unknown`] with the nearest name.
    pub fn get(&self, reference: &str) -> Result<PromptVersion, PromptError> {
        let db = self.db.as_ref();
        let (name, selector) = match reference.split_once('@') {
            Some((name, selector)) => (Some(name), selector),
            None if reference.starts_with("sha256:") => (None, reference),
            None => (Some(reference), LATEST),
        };
        let found = if let Ok(digest) = selector.parse::<Digest>() {
            rows::by_digest(db, name, &digest)?
        } else {
            match (name, selector, selector.parse::<i64>()) {
                (None, ..) => None,
                (Some(name), LATEST, _) => rows::newest_of(db, name)?,
                (Some(name), _, Ok(number)) => rows::by_version(db, name, number)?,
                (Some(name), label, _) => match self.label_of(name, label)? {
                    Some(version) => rows::by_version(db, name, version)?,
                    None => None,
                },
            }
        };
        found.map_or_else(|| Err(self.unknown(reference)), Ok)
    }

    /// The compiled prompt that a reference names.
    ///
    /// # Errors
    /// As [`Library::get`].
    pub fn open(&self, reference: &str) -> Result<Arc<Prompt>, PromptError> {
        self.compile(&self.get(reference)?)
    }

    /// The compiled prompt of a version.
    ///
    /// # Errors
    /// [`PromptError`] when the stored source cannot be read any more.
    pub fn compile(&self, version: &PromptVersion) -> Result<Arc<Prompt>, PromptError> {
        if let Some(prompt) = self.kept(&version.prompt, &version.digest) {
            return Ok(prompt);
        }
        let prompt = Arc::new(Prompt::parse(&version.prompt, &version.source)?);
        if prompt.digest != version.digest {
            return Err(Problem::Syntax("the stored source does not match its digest".into()).of(&version.prompt));
        }
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= COMPILED {
            compiled.clear();
        }
        compiled.insert((version.prompt.clone(), version.digest), prompt.clone());
        Ok(prompt)
    }

    /// The compiled prompt of a manifest: by name and digest, without a query when it was used before.
    ///
    /// # Errors
    /// As [`Library::get`].
    pub fn by_digest(&self, name: &str, digest: &Digest) -> Result<Arc<Prompt>, PromptError> {
        if let Some(prompt) = self.kept(name, digest) {
            return Ok(prompt);
        }
        match rows::by_digest(self.db.as_ref(), Some(name), digest)? {
            Some(version) => self.compile(&version),
            None => Err(self.unknown(&format!("{name}@{digest}"))),
        }
    }

    /// All versions of a prompt, newest first, and its labels.
    ///
    /// # Errors
    /// [`PromptError::Unknown`].
    pub fn versions(&self, name: &str) -> Result<(Vec<PromptVersion>, Labels), PromptError> {
        let versions = rows::versions(self.db.as_ref(), name)?;
        if versions.is_empty() {
            return Err(self.unknown(name));
        }
        Ok((versions, rows::labels(self.db.as_ref(), name)?))
    }

    /// Labels of a prompt with the version that each points at.
    ///
    /// # Errors
    /// [`PromptError::Store`].
    pub fn labels(&self, name: &str) -> Result<Labels, PromptError> {
        Ok(rows::labels(self.db.as_ref(), name)?)
    }

    /// Points a label at the version that `reference` names; returns the logged move, which keeps `detail`. Whether it may move is
    /// the caller's business.
    ///
    /// # Errors
    /// [`LibraryError::Label`] when it is there already or the label is not a movable one.
    pub fn promote(&self, reference: &str, label: &str, by: By<'_>, detail: Value) -> Result<LabelMove, LibraryError> {
        let version = self.get(reference)?;
        check_label(&version.prompt, label)?;
        let from = self.label_of(&version.prompt, label)?;
        if from == Some(version.version) {
            return Err(LibraryError::label(&version.prompt, label, "it is at that version already"));
        }
        let step = rows::label_move(label, from, version.version, Kind::Promote);
        self.step(&version.prompt, LabelMove { detail, ..step }, by)
    }

    /// Where a label stood before its last move.
    ///
    /// # Errors
    /// [`LibraryError::Label`] when there is no earlier place.
    pub fn earlier(&self, name: &str, label: &str) -> Result<Earlier, LibraryError> {
        let moves = rows::moves(self.db.as_ref(), name, Some(label))?;
        let (trail, is_removed) = trail(&moves);
        let (from, to) = match trail[..] {
            [.., to] if is_removed => (None, to),
            [.., to, from] => (Some(from.to_version), to),
            _ if moves.is_empty() => return Err(self.unknown(&format!("{name}@{label}")).into()),
            _ => return Err(LibraryError::label(name, label, "there is no earlier version to go back to")),
        };
        Ok(Earlier { prompt: name.to_string(), label: label.to_string(), from, to: to.to_version, detail: to.detail.clone() })
    }

    /// Points a label back to where it stood; returns the logged move, which keeps `detail`. Two rollbacks go two moves back. Whether it
    /// may move is the caller's business.
    ///
    /// # Errors
    /// [`LibraryError::Label`] when somebody else moved it meanwhile.
    pub fn rollback(&self, earlier: &Earlier, by: By<'_>, detail: Value) -> Result<LabelMove, LibraryError> {
        let step = rows::label_move(&earlier.label, earlier.from, earlier.to, Kind::Rollback);
        self.step(&earlier.prompt, LabelMove { detail, ..step }, by)
    }

    /// Takes a label away; whoever asks for it from now on is told that it does not exist.
    ///
    /// # Errors
    /// [`LibraryError::Label`] when it is not there.
    pub fn remove_label(&self, name: &str, label: &str, by: By<'_>, detail: Value) -> Result<LabelMove, LibraryError> {
        let Some(from) = self.label_of(name, label)? else {
            return Err(self.unknown(&format!("{name}@{label}")).into());
        };
        let step = rows::label_move(label, Some(from), 0, Kind::Remove);
        self.step(name, LabelMove { detail, ..step }, by)
    }

    /// Moves of a prompt's labels, newest first.
    ///
    /// # Errors
    /// [`PromptError::Store`].
    pub fn history(&self, name: &str) -> Result<Vec<LabelMove>, PromptError> {
        Ok(rows::moves(self.db.as_ref(), name, None)?)
    }

    /// Unified text diff of two versions; empty when they are equal.
    ///
    /// # Errors
    /// As [`Library::get`].
    pub fn diff(&self, old: &str, new: &str) -> Result<String, PromptError> {
        let (old, new) = (self.get(old)?, self.get(new)?);
        let name = |version: &PromptVersion| format!("{}@{}", version.prompt, version.version);
        Ok(super::diff::text((&name(&old), &old.source), (&name(&new), &new.source)))
    }

    /// What a word says that a new version was edited from: `none`, a version's number or digest, a label, or `*` for whatever is there.
    ///
    /// # Errors
    /// [`PromptError::Unknown`].
    pub fn parent(&self, name: &str, word: &str) -> Result<Parent, PromptError> {
        match word {
            "*" => Ok(Parent::Any),
            "none" => Ok(Parent::Nothing),
            _ => {
                let selector = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('@')).unwrap_or(word);
                Ok(Parent::Version(self.get(&format!("{name}@{selector}"))?.digest))
            }
        }
    }

    /// The error for a reference that leads nowhere: with the nearest name, and what the prompt has.
    pub fn unknown(&self, reference: &str) -> PromptError {
        let known = rows::known(self.db.as_ref()).unwrap_or_default();
        let full = |known: &rows::Known| known.label.as_ref().map_or(known.prompt.clone(), |label| format!("{}@{label}", known.prompt));
        let names: Vec<_> = known.iter().map(full).collect();
        let mut nearest = did_you_mean(reference, names.iter().map(String::as_str));
        let name = reference.split_once('@').map_or(reference, |(name, _)| name);
        let own = || known.iter().filter(|known| known.prompt == name);
        if let Some(newest) = own().find(|known| known.label.is_none()) {
            let labels: Vec<_> = own().filter_map(|known| known.label.as_deref()).take(MOST_TOLD).collect();
            let labels = if labels.is_empty() { "no labels".to_string() } else { format!("the labels {}", labels.join(", ")) };
            nearest.push_str(&format!(" (\"{name}\" has {labels}, and versions up to {})", newest.version));
        }
        PromptError::Unknown { reference: reference.to_string(), nearest }
    }

    fn label_of(&self, name: &str, label: &str) -> Result<Option<i64>, StoreError> {
        let labels = rows::labels(self.db.as_ref(), name)?;
        Ok(labels.into_iter().find(|(known, _)| known == label).map(|(_, version)| version))
    }

    /// Moves a label, logs it, and writes it down in the audit chain: one transaction.
    fn step(&self, name: &str, step: LabelMove, by: By<'_>) -> Result<LabelMove, LibraryError> {
        let step = LabelMove { actor: by.author.to_string(), reason: by.message.to_string(), ..step };
        let to = Some(step.to_version).filter(|version| *version > 0);
        let change = Change {
            actor: step.actor.clone(),
            action: format!("prompt.{}", if step.kind == Kind::Remove { "unlabel" } else { step.kind.word() }),
            subject: format!("{name}@{}", step.label),
            detail: json!({"from": step.from_version, "to": to, "reason": step.reason, "proof": step.detail}),
            statements: rows::move_label(name, &step),
        };
        match (by.commit)(&change) {
            Ok(()) => Ok(step),
            Err(StoreError::Conflict(_)) => Err(LibraryError::label(name, &step.label, "somebody else moved it meanwhile")),
            Err(error) => Err(error.into()),
        }
    }

    fn kept(&self, name: &str, digest: &Digest) -> Option<Arc<Prompt>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).get(&(name.to_string(), *digest)).cloned()
    }
}

/// Checks that a text can be a label that moves.
///
/// # Errors
/// [`LibraryError::Label`].
pub fn check_label(prompt: &str, label: &str) -> Result<(), LibraryError> {
    if !ids::is_slug(label) || label == LATEST || label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(LibraryError::label(prompt, label, "a label has lower-case letters, is not a number and not \"latest\""));
    }
    Ok(())
}

/// Moves to the versions that a label stood at and that were not undone, oldest first, and whether it was taken away since.
fn trail(moves: &[LabelMove]) -> (Vec<&LabelMove>, bool) {
    let (mut trail, mut is_removed): (Vec<&LabelMove>, bool) = (Vec::new(), false);
    for step in moves.iter().rev() {
        match step.kind {
            Kind::Remove => is_removed = true,
            // A rollback undoes one step of the trail instead of adding to it.
            Kind::Rollback if std::mem::take(&mut is_removed) => {}
            Kind::Rollback => drop(trail.pop()),
            Kind::Promote => {
                is_removed = false;
                // The last word on why it stands there counts.
                if trail.last().is_some_and(|last| last.to_version == step.to_version) {
                    trail.pop();
                }
                trail.push(step);
            }
        }
    }
    (trail, is_removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library, and a way to change it as Ada, who writes nothing into the audit chain.
    fn with_library(test: impl FnOnce(&Library, By<'_>)) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(directory.path()).expect("opens");
        let commit = |change: &Change| store.db.batch(&change.statements);
        test(&Library::new(&store), By { author: "ada", message: "", commit: &commit });
    }

    #[test]
    fn same_content_is_the_same_version_and_references_resolve() {
        with_library(|library, by| {
            let first = library.publish("greet", "Hi {{name}}", by).expect("publishes");
            let second = library.publish("greet", "Hello {{name}}", by).expect("publishes");
            let again = library.publish("greet", "Hello {{name}}", by).expect("publishes");
            assert_eq!((first.version.version, second.version.version, again.version.version, again.is_new), (1, 2, 2, false));
            let older = library.publish("greet", "Hi {{name}}", by);
            assert!(matches!(older, Err(LibraryError::Older { version: 1, newest: 2, .. })), "{older:?}");
            assert_eq!((first.version.parent, second.version.parent), (None, Some(first.version.digest)));
            let number = |reference: &str| library.get(reference).map(|version| version.version);
            assert_eq!(number("greet").expect("newest"), 2);
            assert_eq!(number("greet@1").expect("by number"), 1);
            assert_eq!(number(&first.version.digest.to_string()).expect("by digest"), 1);
            let error = number("gret").expect_err("unknown").to_string();
            assert!(error.contains("did you mean \"greet\""), "{error}");
            let error = number("greet@production").expect_err("no such label").to_string();
            assert!(error.contains("no labels, and versions up to 2"), "{error}");
            assert!(library.diff("greet@1", "greet@2").expect("diffs").contains("-Hi {{name}}"));
        });
    }

    #[test]
    fn labels_move_forth_and_back_with_a_row_each() {
        with_library(|library, by| {
            for text in ["1", "2", "3"] {
                library.publish("p", text, by).expect("publishes");
            }
            let promote = |reference: &str, label: &str| library.promote(reference, label, by, Value::Null);
            for reference in ["p@1", "p@2", "p@3"] {
                promote(reference, "production").expect("promotes");
            }
            let back = || library.rollback(&library.earlier("p", "production")?, by, Value::Null);
            let at = || library.get("p@production").map(|version| version.version).ok();
            assert!(promote("p@3", "production").is_err() && promote("p@3", "latest").is_err());
            back().expect("back to 2");
            assert_eq!(at(), Some(2));
            library.remove_label("p", "production", by, Value::Null).expect("takes it away");
            assert!(at().is_none() && library.remove_label("p", "production", by, Value::Null).is_err());
            back().expect("back to 2");
            back().expect("back to 1");
            assert_eq!(at(), Some(1));
            assert!(back().is_err());
            assert_eq!(library.history("p").expect("history").len(), 7);
        });
    }

    #[test]
    fn a_version_that_came_in_between_is_not_written_over() {
        with_library(|library, by| {
            let first = library.publish_from("p", "1", Parent::Nothing, by).expect("publishes").version;
            library.publish_from("p", "2", Parent::Version(first.digest), by).expect("publishes");
            for parent in [Parent::Nothing, Parent::Version(first.digest)] {
                let refused = library.publish_from("p", "3", parent, by);
                assert!(matches!(refused, Err(LibraryError::Edited { version: 2, .. })), "{refused:?}");
            }
            assert_eq!(library.newest("p").expect("newest").map(|newest| newest.version), Some(2));
            assert_eq!(library.parent("p", "1").expect("by number"), Parent::Version(first.digest));
        });
    }

    #[test]
    fn a_broken_prompt_is_not_stored() {
        with_library(|library, by| {
            assert!(library.publish("p", "{{#if a}}", by).is_err());
            assert!(library.publish("Not A Name", "x", by).is_err());
            assert!(library.list().expect("lists").is_empty());
        });
    }
}
