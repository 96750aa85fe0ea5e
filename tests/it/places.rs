//! Upstreams for routing: each answers every call by a rule, on a connection and a thread of its own, and counts what it sees.

use crate::support::{Refit, Reply, Server};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const CHAT: &str = "/v1/chat/completions";

/// What an upstream does with a call.
pub enum Act {
    /// Says these words.
    Say(&'static str),
    /// Answers with this body.
    Json(Value),
    /// Refuses: status line, more headers, body.
    Refuse(&'static str, &'static str, Value),
    /// Sends so many chunks and the end.
    Stream(usize),
    /// Sends so many chunks and nothing more, until the other side closes.
    Stall(usize),
    /// Sends an event stream of this text.
    Events(String),
    /// Sends nothing at all, until the other side closes.
    Hang,
    /// Closes without a word.
    Close,
    /// Does something else, later.
    After(u64, Box<Act>),
}

/// An upstream.
pub struct Place {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    calls: AtomicUsize,
    busy: AtomicUsize,
    busiest: AtomicUsize,
    /// Calls whose other side closed before the answer was out.
    closed: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
}

/// An upstream that does with the n-th call, from 0, what the rule says.
pub fn place(rule: impl Fn(usize, &Value) -> Act + Send + Sync + 'static) -> Place {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let state = Arc::new(State::default());
    let (shared, rule) = (state.clone(), Arc::new(rule));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, rule) = (shared.clone(), rule.clone());
            std::thread::spawn(move || serve(stream, &state, &*rule));
        }
    });
    Place { port, state }
}

/// An upstream that always says the same.
pub fn says(words: &'static str) -> Place {
    place(move |_, _| Act::Say(words))
}

/// An upstream that always fails.
pub fn broken() -> Place {
    place(|_, _| Act::Refuse("500 Oops", "", json!({"error": {"message": "oops"}})))
}

/// A port where nobody listens.
pub fn nobody() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

impl Place {
    pub fn calls(&self) -> usize {
        self.state.calls.load(SeqCst)
    }

    pub fn busiest(&self) -> usize {
        self.state.busiest.load(SeqCst)
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.state.bodies.lock().expect("nobody panicked").clone()
    }

    pub fn wait_for_calls(&self, n: usize) {
        wait_until(|| self.calls() >= n, &format!("{n} calls"));
    }

    pub fn wait_for_closed(&self, n: usize) {
        wait_until(|| self.state.closed.load(SeqCst) >= n, &format!("{n} closed connections"));
    }
}

pub fn wait_until(done: impl Fn() -> bool, what: &str) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn serve(stream: TcpStream, state: &State, rule: &(dyn Fn(usize, &Value) -> Act + Send + Sync)) {
    stream.set_nodelay(true).expect("nodelay");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let Some((_, body)) = read_message(&mut reader) else { return };
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let n = state.calls.fetch_add(1, SeqCst);
    state.busiest.fetch_max(state.busy.fetch_add(1, SeqCst) + 1, SeqCst);
    let act = rule(n, &body);
    state.bodies.lock().expect("nobody panicked").push(body);
    act_on(stream, state, act);
}

fn act_on(mut stream: TcpStream, state: &State, act: Act) {
    let whole = |status: &str, headers: &str, body: &Value| {
        let body = body.to_string();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_string();
    let (text, hangs) = match act {
        Act::After(ms, act) => {
            // Whether the other side goes away meanwhile is noticed.
            stream.set_read_timeout(Some(Duration::from_millis(ms))).expect("a limit");
            if matches!(stream.read(&mut [0]), Ok(0)) {
                state.busy.fetch_sub(1, SeqCst);
                state.closed.fetch_add(1, SeqCst);
                return;
            }
            return act_on(stream, state, *act);
        }
        Act::Say(words) => (whole("200 OK", "", &completion(words)), false),
        Act::Json(body) => (whole("200 OK", "", &body), false),
        Act::Refuse(status, headers, body) => (whole(status, headers, &body), false),
        Act::Stream(n) => (format!("{head}{}{}", chunks(n), end()), false),
        Act::Stall(n) => (format!("{head}{}", chunks(n)), true),
        Act::Events(text) => (head + &text, false),
        Act::Hang => (String::new(), true),
        Act::Close => (String::new(), false),
    };
    // Before the answer is out: with it the other side may begin the next call.
    state.busy.fetch_sub(usize::from(!hangs), SeqCst);
    let _ = stream.write_all(text.as_bytes());
    if hangs {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        let closed = matches!(stream.read(&mut [0]), Ok(0));
        state.busy.fetch_sub(1, SeqCst);
        state.closed.fetch_add(usize::from(closed), SeqCst);
    }
}

pub fn completion(words: &str) -> Value {
    json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
}

fn chunk(n: usize, delta: Value, finish: Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
    format!("data: {}\n\n", json!({"id": "c1", "object": "chat.completion.chunk", "created": n, "model": "m-1", "choices": [choice]}))
}

fn chunks(n: usize) -> String {
    (0..n).map(|i| chunk(i, json!({"role": "assistant", "content": format!("word{i} ")}), Value::Null)).collect()
}

fn end() -> String {
    chunk(0, json!({}), json!("stop")) + "data: [DONE]\n\n"
}

/// Head and body of an HTTP message with a length.
fn read_message(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// A directory whose providers are these places, by name; `more` is the rest of the configuration.
pub fn behind(places: &[(&str, u16)], more: &str) -> Refit {
    behind_with(places, "", more)
}

/// The same; `each` is added to every provider.
pub fn behind_with(places: &[(&str, u16)], each: &str, more: &str) -> Refit {
    let refit = Refit::new();
    let section = |(name, port): &(&str, u16)| {
        format!("[providers.{name}]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n{each}\n")
    };
    refit.write("refit.toml", places.iter().map(section).collect::<String>() + more);
    refit
}

/// A running gateway with its key.
pub struct Up {
    pub refit: Refit,
    pub server: Server,
    pub key: String,
}

pub fn up(refit: Refit) -> Up {
    let key = refit.key();
    let server = refit.serve(&[]);
    Up { refit, server, key }
}

impl Up {
    pub fn ask(&self, model: &str) -> Reply {
        self.ask_with(model, json!({}))
    }

    pub fn ask_with(&self, model: &str, fields: Value) -> Reply {
        self.server.post(CHAT, Some(&self.key), &body(model, fields))
    }

    pub fn row(&self, reply: &Reply) -> Value {
        self.refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
    }

    /// A connection that asks again and again.
    pub fn line(&self) -> Line {
        let stream = TcpStream::connect(self.server.url().trim_start_matches("http://")).expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        Line { reader: BufReader::new(stream.try_clone().expect("a handle")), stream, key: self.key.clone() }
    }

    /// Asks `n` times at once; the statuses, in no order.
    pub fn at_once(&self, n: usize, model: &str) -> Vec<Reply> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..n).map(|_| scope.spawn(|| self.ask(model))).collect();
            asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
        })
    }

    /// Sends a request, waits until `called` says so, and goes away.
    pub fn leave(&self, model: &str, fields: Value, called: impl FnOnce()) {
        let mut line = self.line();
        line.send(&body(model, fields));
        called();
    }
}

/// One connection of a client.
pub struct Line {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    key: String,
}

impl Line {
    pub fn send(&mut self, body: &Value) {
        let body = body.to_string();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n", self.key);
        self.stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("sent");
    }

    /// Asks and reads the answer, which has a length: its status and its text.
    pub fn ask(&mut self, body: &Value) -> (u16, String) {
        self.send(body);
        let (head, body) = read_message(&mut self.reader).expect("an answer");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, String::from_utf8(body).expect("UTF-8"))
    }

    /// Reads until the text has come.
    pub fn read_to(&mut self, text: &str) {
        let mut read = String::new();
        while !read.contains(text) {
            assert!(self.reader.read_line(&mut read).expect("a line") > 0, "ended before {text}: {read}");
        }
    }
}

pub fn body(model: &str, fields: Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

/// The words of a whole reply.
pub fn words(reply: &Reply) -> String {
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_string()
}
