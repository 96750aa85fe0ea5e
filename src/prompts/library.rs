//! The prompt library: immutable numbered versions in the store, labels that point at them, and a row for every move of a label.
//!
//! References: `name` (newest version), `name@3`, `name@production`, `name@sha256:…`, `sha256:…`. The label `latest` is the newest
//! version and cannot be moved. An unknown label is an error, never an older version.

use super::parse::Prompt;
use super::{Problem, PromptError};
use crate::store::prompts::{self as rows, LabelMove, PromptVersion};
use crate::store::{Db, Store, StoreError};
use crate::types::error::did_you_mean;
use crate::types::{Digest, ids};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

const LATEST: &str = "latest";
const COMPILED: usize = 256;

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

/// Who does something, and why; kept with versions and moves.
#[derive(Debug, Clone, Copy)]
pub struct Note<'a> {
    /// Person or key.
    pub author: &'a str,
    /// Reason, may be empty.
    pub message: &'a str,
}

impl Library {
    /// The library of a store.
    pub fn new(store: &Store) -> Self {
        Library { db: store.db.clone(), compiled: Arc::default() }
    }

    /// Stores a source as a version of `name`; content that is there already gets no second number.
    ///
    /// # Errors
    /// [`PromptError`] when the source is not a valid prompt; nothing is stored then.
    pub fn publish(&self, name: &str, source: &str, note: Note<'_>) -> Result<Published, PromptError> {
        if !ids::is_slug(name) || name == LATEST {
            return Err(PromptError::Name(name.to_string()));
        }
        let prompt = Prompt::parse(name, source)?;
        if let Some(version) = rows::by_digest(self.db.as_ref(), Some(name), &prompt.digest)? {
            return Ok(Published { version, is_new: false });
        }
        match rows::insert(self.db.as_ref(), name, source, note.author, note.message) {
            Ok(version) => Ok(Published { version, is_new: true }),
            // Somebody published between our look and our insert: their row decides.
            Err(StoreError::Conflict(cause)) => match rows::by_digest(self.db.as_ref(), Some(name), &prompt.digest)? {
                Some(version) => Ok(Published { version, is_new: false }),
                None => Err(StoreError::Conflict(cause).into()),
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
                (Some(name), LATEST, _) => rows::versions(db, name)?.into_iter().next(),
                (Some(name), _, Ok(number)) => rows::by_version(db, name, number)?,
                (Some(name), label, _) => match rows::labels(db, name)?.into_iter().find(|(known, _)| known == label) {
                    Some((_, version)) => rows::by_version(db, name, version)?,
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

    /// Points a label at the version that `reference` names; returns the logged move.
    ///
    /// # Errors
    /// [`PromptError::Label`] when it is there already or the label is not a movable one.
    pub fn promote(&self, reference: &str, label: &str, note: Note<'_>) -> Result<LabelMove, PromptError> {
        let version = self.get(reference)?;
        let refused = |reason| Err(PromptError::Label { prompt: version.prompt.clone(), label: label.to_string(), reason });
        if !ids::is_slug(label) || label == LATEST || label.bytes().all(|byte| byte.is_ascii_digit()) {
            return refused("a label has lower-case letters, is not a number and not \"latest\"");
        }
        let from = rows::labels(self.db.as_ref(), &version.prompt)?.into_iter().find(|(known, _)| known == label).map(|(_, at)| at);
        if from == Some(version.version) {
            return refused("it is at that version already");
        }
        let step = rows::label_move(label, from, version.version, note.author, note.message);
        rows::move_label(self.db.as_ref(), &version.prompt, &step)?;
        Ok(step)
    }

    /// Points a label back to where it stood before its last move; returns the logged move. Two rollbacks go two moves back.
    ///
    /// # Errors
    /// [`PromptError::Label`] when there is no earlier place.
    pub fn rollback(&self, name: &str, label: &str, note: Note<'_>) -> Result<LabelMove, PromptError> {
        let moves = rows::moves(self.db.as_ref(), name, Some(label))?;
        let mut trail: Vec<i64> = Vec::new();
        for step in moves.iter().rev() {
            // A rollback undoes one step of the trail instead of adding to it.
            if trail.len() >= 2 && step.reason.starts_with(ROLLBACK) && trail[trail.len() - 2] == step.to_version {
                trail.pop();
            } else {
                trail.push(step.to_version);
            }
        }
        let [.., to, from] = trail[..] else {
            let reason = if moves.is_empty() { "it was never set" } else { "there is no earlier version to go back to" };
            return Err(PromptError::Label { prompt: name.to_string(), label: label.to_string(), reason });
        };
        let reason = if note.message.is_empty() { ROLLBACK.to_string() } else { format!("{ROLLBACK}: {}", note.message) };
        let step = rows::label_move(label, Some(from), to, note.author, &reason);
        rows::move_label(self.db.as_ref(), name, &step)?;
        Ok(step)
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
        let diff = similar::TextDiff::from_lines(&old.source, &new.source);
        let name = |version: &PromptVersion| format!("{}@{}", version.prompt, version.version);
        Ok(diff.unified_diff().context_radius(3).header(&name(&old), &name(&new)).to_string())
    }

    fn compile(&self, version: &PromptVersion) -> Result<Arc<Prompt>, PromptError> {
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

    fn kept(&self, name: &str, digest: &Digest) -> Option<Arc<Prompt>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).get(&(name.to_string(), *digest)).cloned()
    }

    fn unknown(&self, reference: &str) -> PromptError {
        let mut known: Vec<String> = Vec::new();
        for entry in self.list().unwrap_or_default() {
            known.extend(entry.labels.iter().map(|(label, _)| format!("{}@{label}", entry.newest.prompt)));
            known.push(entry.newest.prompt);
        }
        PromptError::Unknown { reference: reference.to_string(), nearest: did_you_mean(reference, known.iter().map(String::as_str)) }
    }
}

const ROLLBACK: &str = "rollback";

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> (tempfile::TempDir, Library) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let library = Library::new(&Store::open(directory.path()).expect("opens"));
        (directory, library)
    }

    const NOTE: Note<'static> = Note { author: "ada", message: "" };

    #[test]
    fn same_content_is_the_same_version_and_references_resolve() {
        let (_directory, library) = library();
        let first = library.publish("greet", "Hi {{name}}", NOTE).expect("publishes");
        let second = library.publish("greet", "Hello {{name}}", NOTE).expect("publishes");
        let again = library.publish("greet", "Hi {{name}}", NOTE).expect("publishes");
        assert_eq!((first.version.version, second.version.version, again.version.version, again.is_new), (1, 2, 1, false));
        let number = |reference: &str| library.get(reference).map(|version| version.version);
        assert_eq!(number("greet").expect("newest"), 2);
        assert_eq!(number("greet@1").expect("by number"), 1);
        assert_eq!(number(&first.version.digest.to_string()).expect("by digest"), 1);
        let error = number("gret").expect_err("unknown").to_string();
        assert!(error.contains("did you mean \"greet\""), "{error}");
        assert!(number("greet@production").is_err());
        assert!(library.diff("greet@1", "greet@2").expect("diffs").contains("-Hi {{name}}"));
    }

    #[test]
    fn labels_move_forth_and_back_with_a_row_each() {
        let (_directory, library) = library();
        for text in ["1", "2", "3"] {
            library.publish("p", text, NOTE).expect("publishes");
        }
        for reference in ["p@1", "p@2", "p@3"] {
            library.promote(reference, "production", NOTE).expect("promotes");
        }
        let at = || library.get("p@production").expect("labelled").version;
        assert!(library.promote("p@3", "production", NOTE).is_err() && library.promote("p@3", "latest", NOTE).is_err());
        library.rollback("p", "production", NOTE).expect("back to 2");
        assert_eq!(at(), 2);
        library.rollback("p", "production", NOTE).expect("back to 1");
        assert_eq!(at(), 1);
        assert!(library.rollback("p", "production", NOTE).is_err());
        assert_eq!(library.history("p").expect("history").len(), 5);
    }

    #[test]
    fn a_broken_prompt_is_not_stored() {
        let (_directory, library) = library();
        assert!(library.publish("p", "{{#if a}}", NOTE).is_err());
        assert!(library.publish("Not A Name", "x", NOTE).is_err());
        assert!(library.list().expect("lists").is_empty());
    }
}
