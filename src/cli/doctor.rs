//! `refit doctor`: what is there, what is missing, and how to get it. Looks only; changes nothing and needs no network.

use super::{Context, FAILED, output};
use crate::config::env;
use crate::models::Catalogue;
use crate::monitor::snapshots::{Change, LATE_MS, changed_since};
use crate::store::{Store, models, sqlite};
use crate::types::Failure;
use crate::types::time::now_ms;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Free space below which pulling a model and training beside it gets tight.
const WANTED_DISK_BYTES: u64 = 2_000_000_000;

/// Arguments of `refit doctor`.
#[derive(clap::Args)]
#[command(after_help = "Exit code 2 when something is broken; what is merely missing leaves it at 0.\n\nExample:\n  refit doctor --json")]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Missing,
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// How to get what is missing or mend what is broken.
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, state: State::Ok, found: found.into(), fix: None }
    }

    fn missing(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check { name, state: State::Missing, found: found.into(), fix: Some(fix.into()) }
    }

    fn broken(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Check { name, state: State::Broken, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs all checks.
///
/// # Errors
/// Only when stdout cannot be written; what is broken is reported, with exit code 2.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let mut checks = vec![configuration(context), data_directory(&context.data_dir), disk(&context.data_dir)];
    checks.extend(store(context));
    checks.extend([pip(), processor()]);
    let broken = checks.iter().any(|check| check.state == State::Broken);
    if args.json {
        output::json(&json!({"version": env!("CARGO_PKG_VERSION"), "data_dir": context.data_dir, "broken": broken, "checks": checks}))?;
    } else {
        checks.iter().try_for_each(print)?;
    }
    Ok(if broken { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn print(check: &Check) -> Result<(), Failure> {
    let word = match check.state {
        State::Ok => "ok",
        State::Missing => "missing",
        State::Broken => "BROKEN",
    };
    output::line(format!("{word:<8}{:<15}{}", check.name, check.found))?;
    check.fix.iter().try_for_each(|fix| output::line(format!("{:<23}-> {fix}", "")))
}

fn configuration(context: &Context) -> Check {
    let named = context.config_path.as_ref().map_or("no file: the defaults".to_string(), |path| path.display().to_string());
    match context.config() {
        Ok(_) => Check::ok("configuration", named),
        Err(failure) => Check::broken("configuration", failure.to_string(), failure.hint().unwrap_or_else(|| format!("correct {named}"))),
    }
}

fn data_directory(path: &Path) -> Check {
    let name = "data directory";
    let shown = path.display();
    let probe = nearest_existing(path).join(format!(".refit-doctor-{}", std::process::id()));
    match std::fs::write(&probe, b"") {
        Ok(()) => {
            let _ = std::fs::remove_file(&probe);
            let state = if path.is_dir() { "can be written" } else { "will be made when it is needed" };
            Check::ok(name, format!("{shown} {state}"))
        }
        Err(error) => {
            Check::broken(name, format!("{shown} cannot be written: {error}"), "give another with --data-dir, or change its permissions")
        }
    }
}

/// The directory itself, or the nearest one above it that is there.
fn nearest_existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|ancestor| ancestor.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Free space by `df -Pk` (POSIX): the standard library has no call for it.
fn disk(path: &Path) -> Check {
    let name = "disk";
    let run = Command::new("df").arg("-Pk").arg(nearest_existing(path)).stdin(Stdio::null()).output();
    let text = run.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let Some(free) = text.lines().last().and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).map(|kib| kib * 1024) else {
        return Check::missing(name, "free space is not known", "make sure that 2 GB are free");
    };
    let found = format!("{:.1} GB free", free as f64 / 1e9);
    if free < WANTED_DISK_BYTES { Check::missing(name, found, "free 2 GB, or give another --data-dir") } else { Check::ok(name, found) }
}

/// Database and models; a data directory that is not there yet is left alone.
fn store(context: &Context) -> Vec<Check> {
    let nothing = || Check::missing("model", "no model is stored", pull_hint());
    if !context.data_dir.join("refit.db").exists() {
        return vec![Check::ok("database", "not made yet"), nothing()];
    }
    let store = match context.open_store() {
        Ok(store) => store,
        Err(failure) => {
            let fix = failure.hint().unwrap_or_else(|| "restore refit.db from a backup, or begin with another --data-dir".into());
            return vec![Check::broken("database", failure.to_string(), fix)];
        }
    };
    let database = match sqlite::integrity(store.db.as_ref()) {
        Ok(faults) if faults.is_empty() => Check::ok("database", "intact"),
        Ok(faults) => Check::broken("database", faults.join("; "), "restore refit.db from a backup"),
        Err(error) => Check::broken("database", error.to_string(), "restore refit.db from a backup"),
    };
    let mut checks = vec![database];
    checks.push(snapshots(&store));
    match models::list(store.db.as_ref()) {
        Ok(stored) if stored.is_empty() => checks.push(nothing()),
        Ok(stored) => checks.extend(stored.iter().map(|record| model(&store, record))),
        Err(error) => checks.push(Check::broken("model", error.to_string(), "restore refit.db from a backup")),
    }
    checks
}

/// Whether what answers at providers is still what answered before.
fn snapshots(store: &Store) -> Check {
    let name = "hosted models";
    match changed_since(store.db.as_ref(), now_ms() - LATE_MS) {
        Ok(changes) if changes.is_empty() => Check::ok(name, "none has changed in 30 days"),
        Ok(changes) => {
            let told: Vec<_> = changes.iter().map(Change::told).collect();
            let fix = "what was measured before was another model: evaluate the releases on it again";
            Check::missing(name, told.join("; "), fix)
        }
        Err(error) => Check::broken(name, error.to_string(), "restore refit.db from a backup"),
    }
}

/// The files are there in their sizes; `refit model verify` digests them.
fn model(store: &Store, record: &models::ModelRecord) -> Check {
    if crate::models::is_whole(store, record).unwrap_or(false) {
        return Check::ok("model", format!("local/{} ({:.1} MB)", record.name, record.size_bytes as f64 / 1e6));
    }
    Check::broken("model", format!("a file of local/{} is gone or cut off", record.name), format!("refit model pull {}", record.name))
}

fn pull_hint() -> String {
    let first = Catalogue::load().ok().and_then(|catalogue| Some(catalogue.entries.first()?.name.clone()));
    format!("refit model pull {}", first.as_deref().unwrap_or("path/to/model.gguf"))
}

/// Needed only where the hub cannot be reached.
fn pip() -> Check {
    let python = env::text(env::PYTHON).unwrap_or_else(|| "python3".into());
    let run = Command::new(&python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    match run.ok().filter(|output| output.status.success()) {
        Some(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            Check::ok("pip", text.split(" from ").next().unwrap_or("there").trim().to_string())
        }
        None => Check::missing(
            "pip",
            format!("{python} -m pip does not run; models then come from the hub or from files only"),
            "install python3 and pip (Debian: apt-get install python3-pip)",
        ),
    }
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Check::ok("processor", format!("{cores} cores, {}", vector_unit()))
}

#[cfg(target_arch = "x86_64")]
fn vector_unit() -> &'static str {
    if std::is_x86_feature_detected!("avx512f") {
        "AVX-512"
    } else if std::is_x86_feature_detected!("avx2") {
        "AVX2 (no AVX-512: about two thirds of the speed)"
    } else {
        "neither AVX-512 nor AVX2: local models will be slow"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vector_unit() -> &'static str {
    std::env::consts::ARCH
}
