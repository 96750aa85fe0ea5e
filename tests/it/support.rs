//! Helpers: run the built binary in a temporary directory, start `refit serve`, speak HTTP, skip with a reason that `./test` counts.
#![allow(dead_code, reason = "shared by all topics; each uses a part")]

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The built binary with a working directory of its own; the data directory is `<work>/.refit`. Removed on drop.
pub struct Refit {
    directory: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Done {
    /// Exit code, -1 when a signal ended it.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Done {
    /// The whole of stdout as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON ({error}): {self:?}"))
    }

    /// The same, after checking the exit code.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

impl Refit {
    /// A fresh directory.
    pub fn new() -> Self {
        Refit { directory: tempfile::tempdir().expect("a temporary directory"), variables: Vec::new() }
    }

    /// Sets an environment variable for every later command.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The working directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join(".refit")
    }

    /// Writes a file below the working directory, making its folders.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("folders");
        std::fs::write(&path, content).expect("a written file");
        path
    }

    /// The command, not yet started: working directory and environment set, nothing inherited that Refit reads.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
        command.current_dir(self.path()).args(args).stdin(Stdio::null());
        for name in ["REFIT_DATA_DIR", "REFIT_CONFIG", "REFIT_LOG", "REFIT_HUB_URL", "REFIT_CATALOGUE", "REFIT_PYTHON", "OPENAI_API_KEY"] {
            command.env_remove(name);
        }
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs to the end.
    pub fn run(&self, args: &[&str]) -> Done {
        let output = self.command(args).output().expect("refit starts");
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8 on stderr"),
        }
    }

    /// Makes an API key and returns its secret.
    pub fn key(&self) -> String {
        let done = self.run(&["key", "create", "test", "--json"]).expect(0);
        done.json()["key"].as_str().expect("a key").to_string()
    }

    /// Starts `refit serve --port 0` with more arguments and waits for its JSON line.
    pub fn serve(&self, args: &[&str]) -> Server {
        let mut all = vec!["serve", "--port", "0"];
        all.extend(args);
        start(self.command(&all))
    }
}

/// Starts a `refit serve` that was put together elsewhere, and waits for its JSON line.
pub fn start(mut command: Command) -> Server {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("refit serve starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("a line on stdout");
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
        let _ = child.kill();
        let mut stderr = String::new();
        let _ = child.stderr.take().expect("stderr is piped").read_to_string(&mut stderr);
        panic!("no JSON line from serve ({error}): {line:?} {stderr}")
    });
    // Both pipes are drained so that the server never blocks on them.
    let mut stderr = child.stderr.take().expect("stderr is piped");
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    let errors = Arc::new(Mutex::new(String::new()));
    let kept = errors.clone();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(&mut stderr).lines();
        while let Some(Ok(line)) = lines.next() {
            let mut kept = kept.lock().expect("nobody panicked");
            // Enough for every test, and no memory of an endless one.
            if kept.len() < 1 << 20 {
                kept.push_str(&line);
                kept.push('\n');
            }
        }
    });
    Server { child, ready, errors }
}

/// A running server; killed on drop.
pub struct Server {
    child: Child,
    /// The line it printed when ready.
    pub ready: Value,
    errors: Arc<Mutex<String>>,
}

impl Server {
    /// `http://127.0.0.1:PORT`: the ready line's `url`, else `http://` and its `address`.
    pub fn url(&self) -> String {
        match (self.ready["url"].as_str(), self.ready["address"].as_str()) {
            (Some(url), _) => url.trim_end_matches('/').to_string(),
            (None, Some(address)) => format!("http://{}", address.trim_start_matches("http://")),
            _ => panic!("the ready line has neither url nor address: {}", self.ready),
        }
    }

    /// What it has written to stderr so far.
    pub fn errors(&self) -> String {
        self.errors.lock().expect("nobody panicked").clone()
    }

    /// Process id, for signals.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for it to end by itself; its exit code, none when a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("the server can be waited for").code()
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A GET; the reply's status, headers and body.
    pub fn get(&self, path: &str, key: Option<&str>) -> Reply {
        http("GET", &format!("{}{path}", self.url()), key, None)
    }

    /// A POST of JSON.
    pub fn post(&self, path: &str, key: Option<&str>, body: &Value) -> Reply {
        http("POST", &format!("{}{path}", self.url()), key, Some(body.to_string().into_bytes()))
    }

    /// A POST of any bytes.
    pub fn post_bytes(&self, path: &str, key: Option<&str>, body: &[u8]) -> Reply {
        http("POST", &format!("{}{path}", self.url()), key, Some(body.to_vec()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An HTTP reply.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("the body is not JSON ({error}): {self:?}"))
    }

    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// One blocking request, with 120 s to answer.
pub fn http(method: &str, url: &str, key: Option<&str>, body: Option<Vec<u8>>) -> Reply {
    request(method, url, key, &[], body)
}

/// A POST of JSON with more headers.
pub fn http_with(url: &str, key: Option<&str>, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
    request("POST", url, key, headers, Some(body))
}

/// A request with more headers, which go before the content type of JSON.
pub fn send(method: &str, url: &str, key: Option<&str>, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Reply {
    request(method, url, key, headers, body)
}

fn request(method: &str, url: &str, key: Option<&str>, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().expect("a client");
        let mut request = client.request(method.parse().expect("a method"), url);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            if !headers.iter().any(|(name, _)| *name == "content-type") {
                request = request.header("content-type", "application/json");
            }
            request = request.body(body);
        }
        let reply = request.send().await.expect("an answer");
        let headers = reply.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_string())).collect();
        Reply { status: reply.status().as_u16(), headers, body: reply.text().await.expect("a body") }
    })
}

/// Prints `SKIPPED <test>: <reason>` so that `./test` counts it; the caller returns. With `CI` set nothing may be skipped.
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI skips nothing, but {test} would be: {reason}");
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED {test}: {reason}");
}

/// The real model's file (SmolLM2-135M-Instruct, Q4_1), named by `REFIT_TEST_MODEL`; `./test` pulls it once and sets the variable.
pub fn model_file() -> Option<PathBuf> {
    std::env::var_os("REFIT_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file())
}

/// Gemma 3 270M's file (Q4_K_M), named by `REFIT_TEST_GEMMA`; likewise.
pub fn gemma_file() -> Option<PathBuf> {
    std::env::var_os("REFIT_TEST_GEMMA").map(PathBuf::from).filter(|path| path.is_file())
}

/// A folder of the public data that lies beside the repository; none where it is not there.
pub fn public(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name)).filter(|folder| folder.is_dir())
}

/// A folder with the real embedding model (all-MiniLM-L6-v2), its files under their names: made of what `REFIT_TEST_EMBEDDER` names, the
/// JSON of `refit model show`; `./test` pulls the model once and sets the variable.
pub fn embedder_folder() -> Option<tempfile::TempDir> {
    let shown = std::fs::read(std::env::var_os("REFIT_TEST_EMBEDDER")?).ok()?;
    let shown: Value = serde_json::from_slice(&shown).expect("the JSON of refit model show");
    let folder = tempfile::tempdir().expect("a folder");
    for (name, path) in shown["files"].as_object().expect("files") {
        let place = folder.path().join(name);
        std::fs::create_dir_all(place.parent().expect("a parent")).expect("a folder");
        std::os::unix::fs::symlink(path.as_str().expect("a path"), place).expect("a link");
    }
    Some(folder)
}
