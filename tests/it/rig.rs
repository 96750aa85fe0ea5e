//! What the tests of faults share: signals, connections held by hand, upstreams that serve many callers, disks that fill up and files
//! whose calls fail, and looks at a process from outside.
#![allow(dead_code, reason = "each topic uses a part")]

use crate::support::{Refit, Reply, Server, start};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub const CHAT: &str = "/v1/chat/completions";

/// Whether `./test --full` runs: the long forms of tests.
pub fn full() -> bool {
    std::env::var_os("REFIT_TEST_FULL").is_some()
}

/// Sends a signal to a server.
pub fn signal(server: &Server, signal: Signal) {
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the process is there");
}

/// Waits until a condition holds, for half a minute at most.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < give_up, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sets a flag when it is dropped: threads that wait for it end also where an assertion fails.
pub struct Ended<'a>(pub &'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A chat request, with more fields.
pub fn chat(model: &str, text: &str, fields: Value) -> Value {
    let mut body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

/// The value of a metric without labels.
pub fn gauge(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics", None).body;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().expect("a number")
}

/// Descriptors that a process has open.
pub fn descriptors(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("a process").count()
}

/// A figure in MiB of a process's `status`: `VmRSS`, `VmHWM`.
pub fn memory_mib(server: &Server, figure: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{figure}:"))).expect("a figure");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// How many log rows the database has, and whether it is intact.
pub fn rows_in(data: &Path) -> (i64, String) {
    let database = rusqlite::Connection::open(data.join("refit.db")).expect("the database");
    let count = database.query_row("SELECT COUNT(*) FROM requests", [], |row| row.get(0)).expect("a count");
    (count, database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a verdict"))
}

/// A connection held by hand.
pub struct Line {
    pub stream: TcpStream,
    unread: Vec<u8>,
    give_up: Instant,
}

impl Line {
    pub fn to(server: &Server) -> Self {
        Line::try_to(server).expect("connects")
    }

    pub fn try_to(server: &Server) -> std::io::Result<Self> {
        let stream = TcpStream::connect(server.url().trim_start_matches("http://"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Line { stream, unread: Vec::new(), give_up: Instant::now() })
    }

    /// Sends a request; the connection may live on.
    pub fn send(&mut self, method: &str, path: &str, key: Option<&str>, body: &str) -> std::io::Result<()> {
        let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{key}content-length: {}\r\n\r\n", body.len());
        self.stream.write_all(format!("{head}{body}").as_bytes())
    }

    /// A whole reply; none when the connection ended before it did, or it took more than a minute and a half.
    pub fn reply(&mut self) -> Option<Reply> {
        self.give_up = Instant::now() + Duration::from_secs(90);
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8(head).expect("an ASCII head");
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
        let headers: Vec<_> =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_string())).collect();
        let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let body = if header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let size = String::from_utf8(self.until(b"\r\n")?).expect("a size");
                let size = usize::from_str_radix(size.trim(), 16).expect("a size in hex");
                let chunk = self.exactly(size + 2)?;
                if size == 0 {
                    break body;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            let length = header("content-length").map_or(0, |length| length.parse().expect("a length"));
            self.exactly(length)?
        };
        Some(Reply { status, headers, body: String::from_utf8(body).expect("a text") })
    }

    /// Waits until the reply has begun.
    pub fn begun(&mut self) {
        self.give_up = Instant::now() + Duration::from_secs(90);
        while self.unread.is_empty() {
            self.more().expect("the reply begins");
        }
    }

    /// Whether the other end has closed, at once.
    pub fn is_closed(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a limit");
        let closed = match self.stream.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        };
        self.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        closed
    }

    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Some(self.unread.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    fn exactly(&mut self, size: usize) -> Option<Vec<u8>> {
        while self.unread.len() < size {
            self.more()?;
        }
        Some(self.unread.drain(..size).collect())
    }

    fn more(&mut self) -> Option<()> {
        let mut piece = [0; 16_384];
        match self.stream.read(&mut piece) {
            Ok(n) if n > 0 && Instant::now() < self.give_up => self.unread.extend_from_slice(&piece[..n]),
            _ => return None,
        }
        Some(())
    }
}

/// An upstream that serves as many callers as come, a thread each, on one connection after the other request.
pub struct Upstream {
    pub port: u16,
    /// Connections taken.
    pub connections: Arc<AtomicUsize>,
    /// Requests read.
    pub requests: Arc<AtomicUsize>,
}

/// `answer` writes a reply to each request; what it returns says whether the connection lives on.
pub fn upstream(answer: impl Fn(&mut TcpStream, &str) -> bool + Send + Sync + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (taken, asked, answer) = (connections.clone(), requests.clone(), Arc::new(answer));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            taken.fetch_add(1, Ordering::SeqCst);
            let (answer, asked) = (answer.clone(), asked.clone());
            let serve = move || serve(stream, answer.as_ref(), &asked);
            std::thread::Builder::new().stack_size(128 << 10).spawn(serve).expect("a thread");
        }
    });
    Upstream { port, connections, requests }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&mut TcpStream, &str) -> bool, asked: &AtomicUsize) {
    stream.set_nodelay(true).expect("nodelay");
    while let Some(body) = request(&mut stream) {
        asked.fetch_add(1, Ordering::SeqCst);
        if !answer(&mut stream, &body) {
            return;
        }
    }
}

/// The body of the next request; none when the caller has gone.
fn request(stream: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 8_192]);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.trim().parse().unwrap_or(0));
            while bytes.len() < end + 4 + length {
                let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
                bytes.extend_from_slice(&piece[..n]);
            }
            return Some(String::from_utf8_lossy(&bytes[end + 4..]).into_owned());
        }
        let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
    }
}

/// A whole reply that says `text`, on a connection that lives on.
pub fn says(stream: &mut TcpStream, text: &str) -> bool {
    let body = serde_json::json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}})
    .to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
}

/// The head of an event stream that ends with its connection.
pub const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// An event with a piece of text.
pub fn event(text: &str) -> String {
    let chunk = serde_json::json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

/// `[providers.up]` at a port of this machine.
pub fn provider(port: u16) -> String {
    format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n")
}

/// Whether the other end closes within this time; what it sends is thrown away.
pub fn closes_within(stream: &mut TcpStream, time: Duration) -> bool {
    let (until, mut piece) = (Instant::now() + time, [0; 4_096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).expect("a limit");
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    }
}

/// A command whose calls to the file system fail when it is told so.
pub struct Faulty {
    control: PathBuf,
    data: PathBuf,
}

impl Faulty {
    pub fn new(refit: &Refit) -> Self {
        Faulty { control: refit.path().join("faults"), data: refit.data_dir() }
    }

    /// The command with the faults in it.
    pub fn command(&self, refit: &Refit, args: &[&str]) -> Command {
        let mut command = refit.command(args);
        command.env("LD_PRELOAD", preload()).env("REFIT_FAULTS", &self.control);
        command
    }

    /// `refit serve` with the faults in it.
    pub fn serve(&self, refit: &Refit) -> Server {
        start(self.command(refit, &["serve", "--port", "0"]))
    }

    /// From now on the calls (`open`, `write`, `sync`) numbered `nth` on files below `part` of the data directory fail.
    pub fn fail(&self, calls: &str, number: i32, nth: std::ops::RangeInclusive<u32>, part: &str) {
        let place = self.data.join(part);
        let text = format!("{calls} {number} {} {} {}\n", nth.start(), nth.end(), place.display());
        let unnamed = self.control.with_extension("new");
        std::fs::write(&unnamed, text).expect("written");
        std::fs::rename(&unnamed, &self.control).expect("renamed");
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        let _ = std::fs::remove_file(&self.control);
    }
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;
/// Every call.
pub const ALL: std::ops::RangeInclusive<u32> = 1..=1_000_000_000;

/// `preload.c`, compiled once. A C compiler is there: SQLite is compiled with it.
fn preload() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let (library, unnamed) = (directory.join("preload.so"), directory.join(format!("preload-{}.so", std::process::id())));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/preload.c");
        let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&unnamed).arg(source).arg("-ldl").status();
        assert!(compiled.expect("cc runs").success(), "preload.c compiles");
        std::fs::rename(&unnamed, &library).expect("renamed");
        library
    })
}

/// A data directory on a disk that can be filled: a small tmpfs where mounting is allowed, else calls that fail with ENOSPC.
pub enum Disk {
    Mounted(PathBuf),
    Told(Faulty),
}

impl Disk {
    pub fn new(refit: &Refit, mib: u32) -> Self {
        let data = refit.data_dir();
        std::fs::create_dir_all(&data).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&data).output();
        if mounted.is_ok_and(|output| output.status.success()) { Disk::Mounted(data) } else { Disk::Told(Faulty::new(refit)) }
    }

    pub fn serve(&self, refit: &Refit) -> Server {
        match self {
            Disk::Mounted(_) => refit.serve(&[]),
            Disk::Told(faulty) => faulty.serve(refit),
        }
    }

    /// Nothing more can be written.
    pub fn fill(&self) {
        match self {
            Disk::Mounted(data) => {
                let mut file = std::fs::File::create(data.join("filler")).expect("a file");
                for piece in [1 << 20, 4_096, 1] {
                    while file.write_all(&vec![b'x'; piece]).is_ok() {}
                }
            }
            Disk::Told(faulty) => faulty.fail("open,write", ENOSPC, ALL, ""),
        }
    }

    /// There is room again for so many bytes; where the disk only says that it is full, for all.
    pub fn free_some(&self, bytes: u64) {
        match self {
            Disk::Mounted(data) => {
                let file = std::fs::File::options().write(true).open(data.join("filler")).expect("a file");
                file.set_len(file.metadata().expect("a size").len() - bytes).expect("cut");
            }
            Disk::Told(faulty) => faulty.heal(),
        }
    }

    /// There is room again.
    pub fn free(&self) {
        match self {
            Disk::Mounted(data) => std::fs::remove_file(data.join("filler")).expect("removed"),
            Disk::Told(faulty) => faulty.heal(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Disk::Mounted(data) = self {
            let _ = Command::new("umount").arg("-l").arg(data).status();
        }
    }
}
