//! The configuration file of a running process: what was read of it last, whether that is in force or why it was refused, and which
//! changes need a restart. What is built from a configuration, and how it is put in force, is the composition root's business.

use super::{Config, ConfigError, Files, LocalConfig, Problem};
use crate::types::time::now_ms;
use crate::types::{Digest, Failure};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A configuration file and what became of it.
pub struct Live {
    /// None where there is no file to look at: the defaults hold.
    path: Option<PathBuf>,
    /// What the process was started with: some keys are only read then.
    started_with: Config,
    state: Mutex<State>,
}

struct State {
    /// What is in force; none where the defaults hold.
    files: Option<Files>,
    report: Report,
}

/// What is in force, and what was refused.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Name of the file, without its directory; none where the defaults hold.
    pub source: Option<String>,
    /// Of the file's bytes, and of those that it names.
    pub digest: Option<Digest>,
    /// When it was put in force, milliseconds.
    pub loaded_at: i64,
    /// Changes that were applied since the start.
    pub reloads: u64,
    /// Why the file as it is now is not in force.
    pub refused: Option<Refusal>,
    /// Keys whose new values are taken at the next start.
    pub waiting_for_restart: Vec<&'static str>,
}

/// A file that is not put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// When it was read, milliseconds.
    pub at: i64,
    /// Of its bytes, where they could be read.
    pub digest: Option<Digest>,
    /// Why.
    pub message: String,
    /// Every problem with its line.
    pub problems: Vec<Problem>,
}

/// What the file holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// There is no file, and never was one.
    Nothing,
    /// Its text, and those of the files that it names.
    Text(Files),
    /// It cannot be read.
    Unreadable(String),
}

/// A file that can be used.
#[derive(Debug)]
pub struct Found {
    /// What it says.
    pub config: Config,
    /// Of its bytes.
    pub digest: Digest,
    /// Keys that differ from what is in force, two names deep; no values.
    pub changed: Vec<String>,
    files: Files,
}

impl Live {
    /// Reads the file for the first time. A file that is not there is none, unless it `must_exist`.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of the file.
    pub fn open(path: Option<PathBuf>) -> Result<(Live, Config), ConfigError> {
        let Some(file) = &path else { return Ok((Live::of(Config::default()), Config::default())) };
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(source) => return Err(ConfigError::Unreadable { path: file.clone(), source }),
        };
        let files = Files::of(text, file);
        let config = Config::with_files(&files, file)?;
        let mut live = Live::of(config.clone());
        live.watch(path);
        let state = live.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.report.digest = Some(files.digest());
        state.files = Some(files);
        Ok((live, config))
    }

    /// A configuration that came from no file.
    pub fn of(config: Config) -> Live {
        let report = Report { source: None, digest: None, loaded_at: now_ms(), reloads: 0, refused: None, waiting_for_restart: Vec::new() };
        Live { path: None, started_with: config, state: Mutex::new(State { files: None, report }) }
    }

    /// Looks at this file from now on. It need not be there yet.
    pub fn watch(&mut self, path: Option<PathBuf>) {
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).report.source = path.as_ref().and_then(name);
        self.path = path;
    }

    /// What is in force, and what was refused.
    pub fn report(&self) -> Report {
        self.lock().report.clone()
    }

    /// Reads the file, and those that it names. Blocking.
    pub fn look(&self) -> Seen {
        let Some(path) = &self.path else { return Seen::Nothing };
        match Files::read(path) {
            Ok(files) => Seen::Text(files),
            Err(error) if error.kind() == ErrorKind::NotFound && self.lock().files.is_none() => Seen::Nothing,
            Err(error) => Seen::Unreadable(error.to_string()),
        }
    }

    /// Whether this is neither in force nor refused already.
    pub fn is_new(&self, seen: &Seen) -> bool {
        let state = self.lock();
        match (seen, &state.report.refused) {
            (Seen::Nothing, _) => false,
            (Seen::Text(files), Some(refused)) => refused.digest != Some(files.digest()),
            (Seen::Text(files), None) => state.files.as_ref() != Some(files),
            (Seen::Unreadable(why), refused) => refused.as_ref().is_none_or(|refused| !refused.message.ends_with(why.as_str())),
        }
    }

    /// Checks what was seen. None where there is nothing to use.
    ///
    /// # Errors
    /// What is wrong with it, for [`Live::refuse`].
    pub fn check(&self, seen: Seen) -> Result<Option<Found>, Refusal> {
        let refusal = |digest, message, problems| Refusal { at: now_ms(), digest, message, problems };
        let files = match seen {
            Seen::Nothing => return Ok(None),
            Seen::Text(files) => files,
            Seen::Unreadable(why) => return Err(refusal(None, format!("the file cannot be read: {why}"), Vec::new())),
        };
        let digest = files.digest();
        match Config::with_files(&files, self.path.as_deref().unwrap_or(Path::new(""))) {
            Ok(config) => {
                let changed = changed(self.lock().files.as_ref(), &files);
                Ok(Some(Found { config, digest, changed, files }))
            }
            Err(ConfigError::Invalid { problems, .. }) => {
                let of = problems.first().and_then(|problem| problem.file.clone()).unwrap_or_else(|| "the file".into());
                Err(refusal(Some(digest), format!("{of} has {}", super::count(problems.len())), problems))
            }
            Err(error) => Err(refusal(Some(digest), Failure::from(error).to_string(), Vec::new())),
        }
    }

    /// A file that passed the check cannot be put in force all the same.
    pub fn unfit(found: &Found, why: &Failure) -> Refusal {
        Refusal { at: now_ms(), digest: Some(found.digest), message: why.to_string(), problems: Vec::new() }
    }

    /// What was found is in force from now on. Returns the digest that was in force before.
    pub fn accept(&self, found: Found) -> Option<Digest> {
        let mut state = self.lock();
        let before = state.report.digest.replace(found.digest);
        state.report.loaded_at = now_ms();
        state.report.reloads += 1;
        state.report.refused = None;
        state.report.waiting_for_restart = waiting(&self.started_with, &found.config);
        state.files = Some(found.files);
        before
    }

    /// The file is back to what is in force.
    pub fn confirm(&self) {
        self.lock().report.refused = None;
    }

    /// What is in force stays.
    pub fn refuse(&self, refusal: Refusal) {
        self.lock().report.refused = Some(refusal);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a few assignments that cannot panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys that are read at the start only, where the values differ.
fn waiting(running: &Config, wanted: &Config) -> Vec<&'static str> {
    let LocalConfig { threads, max_batch, max_context, max_queue, cache_mib, max_models, max_adapters, adapters_f32 } = &running.local;
    let local = &wanted.local;
    let fixed = [
        ("server.host", running.server.host != wanted.server.host),
        ("server.port", running.server.port != wanted.server.port),
        ("local.threads", *threads != local.threads),
        ("local.max_batch", *max_batch != local.max_batch),
        ("local.max_context", *max_context != local.max_context),
        ("local.max_queue", *max_queue != local.max_queue),
        ("local.cache_mib", *cache_mib != local.cache_mib),
        ("local.max_models", *max_models != local.max_models),
        ("local.max_adapters", *max_adapters != local.max_adapters),
        ("local.adapters_f32", *adapters_f32 != local.adapters_f32),
        ("telemetry", running.telemetry != wanted.telemetry),
        ("batches.concurrency", running.batches.concurrency != wanted.batches.concurrency),
    ];
    fixed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

/// Names of the keys in which two files differ, two deep: `server.drain_s`, `providers.openai`. A file that is named counts as its key.
fn changed(before: Option<&Files>, after: &Files) -> Vec<String> {
    let other_prices = before.is_some_and(|before| before.prices != after.prices);
    let (before, after) = (before.map_or("", |files| files.text.as_str()), after.text.as_str());
    let keys = |text: &str| {
        let table: toml::Table = text.parse().unwrap_or_default();
        let mut keys = std::collections::BTreeMap::new();
        for (section, value) in table {
            match value {
                toml::Value::Table(inner) => keys.extend(inner.into_iter().map(|(key, value)| (format!("{section}.{key}"), value))),
                value => drop(keys.insert(section, value)),
            }
        }
        keys
    };
    let (before, after) = (keys(before), keys(after));
    let mut names: Vec<_> = before.keys().chain(after.keys()).filter(|key| before.get(*key) != after.get(*key)).cloned().collect();
    names.extend(other_prices.then(|| "prices.files".to_string()));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(directory: &Path, text: &str) -> (Live, PathBuf) {
        let path = directory.join("refit.toml");
        std::fs::write(&path, text).expect("written");
        (Live::open(Some(path.clone())).expect("opens").0, path)
    }

    #[test]
    fn a_bad_file_is_refused_once_and_forgotten_when_it_is_put_right() {
        let directory = tempfile::tempdir().expect("a directory");
        let (live, path) = live(directory.path(), "[server]\ndrain_s = 1\n");
        assert!(!live.is_new(&live.look()));
        std::fs::write(&path, "[server]\ndrain_s = -1\nprot = 2\n").expect("written");
        assert!(live.is_new(&live.look()));
        let refusal = live.check(live.look()).expect_err("refused");
        assert_eq!(refusal.problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2, 3]);
        live.refuse(refusal);
        assert!(!live.is_new(&live.look()), "told once");
        std::fs::remove_file(&path).expect("removed");
        assert!(live.is_new(&live.look()), "a file that is gone is another trouble");
        live.refuse(live.check(live.look()).expect_err("unreadable"));
        assert!(!live.is_new(&live.look()));
        std::fs::write(&path, "[server]\ndrain_s = 1\n").expect("written");
        assert!(live.is_new(&live.look()), "also what is in force, while something is refused");
    }

    #[test]
    fn a_price_file_is_looked_at_like_the_file_that_names_it() {
        const HEAD: &str = "provider = \"mock\"\nversion = \"2026-11-01\"\nsource = \"s\"\nunit = \"USD per million tokens\"\n";
        let row = |input: &str| format!("{HEAD}[[rows]]\nmodel = \"m\"\ninput = {input}\noutput = 1\n");
        let directory = tempfile::tempdir().expect("a directory");
        let prices = directory.path().join("own.toml");
        let write = |text: &str| std::fs::write(&prices, text).expect("written");
        write(&row("1"));
        let (live, _) = live(directory.path(), "[prices]\nfiles = [\"own.toml\"]\n");
        assert!(!live.is_new(&live.look()));
        write(&row("2"));
        assert!(live.is_new(&live.look()), "also where refit.toml is as it was");
        let found = live.check(live.look()).expect("fine").expect("files");
        assert_eq!(
            (found.changed.as_slice(), Some(found.digest) == live.report().digest),
            (["prices.files".to_string()].as_slice(), false)
        );
        live.accept(found);
        write(&row("\"cheap\""));
        let refusal = live.check(live.look()).expect_err("refused");
        assert_eq!((refusal.message.as_str(), refusal.problems[0].file.as_deref()), ("own.toml has 1 problem", Some("own.toml")));
        assert!(refusal.problems[0].to_string().starts_with("own.toml, line 7: rows.input: "), "{refusal:?}");
        live.refuse(refusal);
        assert!(!live.is_new(&live.look()), "told once");
        write(&row("3"));
        assert!(live.is_new(&live.look()), "and put right");
        assert!(live.check(live.look()).is_ok());
    }

    #[test]
    fn what_changed_is_named_without_values_and_what_waits_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let (live, path) = live(directory.path(), "[server]\ndrain_s = 1\n[providers.groq]\nmodels = []\n");
        let next = "[server]\ndrain_s = 2\nport = 1\n[local]\nmax_queue = 3\n";
        std::fs::write(&path, next).expect("written");
        let found = live.check(live.look()).expect("fine").expect("a file");
        assert_eq!(found.changed, ["local.max_queue", "providers.groq", "server.drain_s", "server.port"]);
        let before = live.accept(found);
        assert!(before.is_some() && before != live.report().digest);
        assert_eq!(live.report().waiting_for_restart, ["server.port", "local.max_queue"]);
    }
}
