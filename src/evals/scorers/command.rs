//! `command`: a program of yours scores the answer (see [`external`](super::external) for what it is told and says). Options: `run`: the
//! program and its arguments, without a shell, started where `refit` was; `timeout_s` (10); `metrics`: names of more numbers.
//!
//! It only runs where that is allowed (`--allow-commands`, or `allow_commands` under `[evals]`): whoever writes a suite would otherwise
//! run code on every machine that measures it. It gets no variables of the environment but those that say where things are, so no keys.
//! It and what it started are killed when the time is over or the run ends.

use super::external::{self, MAX_OUTPUT, beginning};
use super::{Case, Options, Scored, Scorer, Services};
use futures_util::future::BoxFuture;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command as Process};

struct Command {
    name: String,
    program: String,
    arguments: Vec<String>,
    timeout: Duration,
    more: Vec<String>,
}

/// Variables that a program may need to find things; no others are handed on.
const VARIABLES: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "SystemRoot", "TEMP"];

/// What is said where no program may run.
pub(super) const REFUSED: &str = "it runs a program, which is not allowed here; allow it with --allow-commands, or with allow_commands = true \
                                  under [evals] of refit.toml";

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    options.for_suites_only()?;
    let mut run = options.texts("run")?.ok_or("run is missing")?;
    let timeout = options.number("timeout_s", 0.001)?.unwrap_or(10.0);
    let timeout = Duration::try_from_secs_f64(timeout).map_err(|error| format!("timeout_s: {error}"))?;
    let more = external::more(&mut options)?;
    options.finish()?;
    let program = run.remove(0);
    Ok(Box::new(Command { name, program, arguments: run, timeout, more }))
}

impl Scorer for Command {
    fn metrics(&self) -> Vec<String> {
        external::names(&self.name, &self.more)
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            if !services.allows_commands() {
                return Err(REFUSED.into());
            }
            let mut running = Running::new(self.start()?);
            let outcome = tokio::time::timeout(self.timeout, converse(&mut running.child, external::told(case))).await;
            match outcome {
                Ok(said) => external::said(&said?, &self.more),
                Err(_) => Err(format!("{} took more than {} s", self.program, self.timeout.as_secs_f64())),
            }
        })
    }

    fn runs_commands(&self) -> bool {
        true
    }

    fn is_unpinned(&self) -> bool {
        true
    }
}

impl Command {
    fn start(&self) -> Result<Child, String> {
        let mut process = Process::new(&self.program);
        process.args(&self.arguments).env_clear().kill_on_drop(true);
        process.envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that what it starts ends with it.
        #[cfg(unix)]
        process.process_group(0);
        process.spawn().map_err(|error| format!("{} cannot be started: {error}", self.program))
    }
}

/// A program that is killed with all that it started when nobody waits for it any more.
struct Running {
    child: Child,
    #[cfg(unix)]
    group: Option<rustix::process::Pid>,
}

impl Running {
    fn new(child: Child) -> Self {
        #[cfg(unix)]
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        Running {
            child,
            #[cfg(unix)]
            group,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Also after it ended: what it started may go on.
        #[cfg(unix)]
        if let Some(group) = self.group {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Hands the case over and takes what the program says.
async fn converse(child: &mut Child, case: String) -> Result<String, String> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let hand_over = async {
        if let Some(mut stdin) = stdin {
            // A program that does not want to know closes its end.
            let _ = stdin.write_all(case.as_bytes()).await;
        }
        Ok(())
    };
    // Ends at once when it says too much: a program that nobody reads would wait for ever.
    let ((), said, complaint) = tokio::try_join!(hand_over, read(stdout), read(stderr))?;
    let status = child.wait().await.map_err(|error| format!("it cannot be waited for: {error}"))?;
    match status.success() {
        true => Ok(said),
        false => Err(format!("it ended with {status}: {}", beginning(complaint.lines().last().unwrap_or_default()))),
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Result<String, String> {
    let Some(mut from) = from else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    let mut limited = (&mut from).take(MAX_OUTPUT as u64 + 1);
    limited.read_to_end(&mut bytes).await.map_err(|error| format!("its answer cannot be read: {error}"))?;
    if bytes.len() > MAX_OUTPUT {
        return Err(format!("it says more than {MAX_OUTPUT} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
