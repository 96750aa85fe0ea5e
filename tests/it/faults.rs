//! What goes wrong at a provider, at the caller or on the way: each has its status, its row in the log, and costs nothing more.

use crate::support::{Refit, Reply, Server};
use crate::upstream::{Script, Seen, read_request, reply, stream, upstream};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

pub const CHAT: &str = "/v1/chat/completions";

/// A server whose providers of three protocols are all the scripted upstream; `more` is added to each.
pub fn before(port: u16, more: &str) -> Refit {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let section = |name: &str| {
        format!("[providers.{name}]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\nmodels = [\"m\"]\n{more}\n")
    };
    refit.write("refit.toml", ["openai", "anthropic", "gemini", "azure"].map(section).concat());
    refit
}

pub fn body(model: &str, fields: Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

/// One chat request before a script; the reply, its row, and what the upstream saw.
pub fn ask(script: Script, more: &str, request: &Value) -> (Reply, Value, Receiver<Seen>) {
    let (port, seen) = upstream(vec![script]);
    let refit = before(port, more);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got = server.post(CHAT, Some(&key), request);
    let row = row(&refit, &got);
    (got, row, seen)
}

#[test]
fn overloaded_inside_a_200_is_a_failure_in_every_protocol() {
    let anthropic = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let gemini = json!({"error": {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}});
    let whole = |body: &Value| reply("200 OK", "", &body.to_string());
    let cases = [
        ("anthropic/m", false, whole(&anthropic)),
        ("anthropic/m", true, whole(&anthropic)),
        ("anthropic/m", true, stream(&format!("event: error\ndata: {anthropic}\n\n"), 9)),
        ("gemini/m", false, whole(&gemini)),
        ("gemini/m", true, whole(&gemini)),
        ("gemini/m", true, stream(&format!("data: {gemini}\n\n"), 9)),
    ];
    for (i, (model, streamed, script)) in cases.into_iter().enumerate() {
        let (got, row, _) = ask(script, "", &body(model, json!({"stream": streamed})));
        assert_eq!((got.status, &got.json()["error"]["code"]), (503, &json!("upstream_overloaded")), "case {i}: {got:?}");
        assert_eq!((&row["status"], &row["error_code"]), (&json!(503), &json!("upstream_overloaded")), "case {i}: {row}");
    }
    // In the middle of a stream it is an event, and the row says so, too.
    let part = json!({"candidates": [{"content": {"role": "model", "parts": [{"text": "half"}]}, "index": 0}]});
    let (got, row, _) = ask(stream(&format!("data: {part}\n\ndata: {gemini}\n\n"), 9), "", &body("gemini/m", json!({"stream": true})));
    assert!(got.status == 200 && got.body.contains("half") && got.body.contains("upstream_overloaded"), "{got:?}");
    assert_eq!((&row["status"], &row["error_code"]), (&json!(503), &json!("upstream_overloaded")), "{row}");
}

/// Hangs after these bytes until the gateway closes.
pub fn hanging(bytes: &str) -> Script {
    Script { pieces: vec![bytes.as_bytes().to_vec()], hang: true }
}

#[test]
fn a_head_that_does_not_come_times_out_plain_and_streamed() {
    for streamed in [false, true] {
        let began = Instant::now();
        let (got, row, seen) = ask(hanging("HTTP/1.1 200"), "timeout_s = 1", &body("openai/m", json!({"stream": streamed})));
        assert_eq!((got.status, &got.json()["error"]["code"]), (504, &json!("upstream_timeout")), "{got:?}");
        assert!(began.elapsed() < Duration::from_secs(20) && row["status"] == 504, "{row}");
        assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed, "the connection to the upstream is closed");
    }
}

#[test]
fn a_body_that_stalls_times_out() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{\"id\":";
    let (got, row, seen) = ask(hanging(head), "timeout_s = 1", &body("openai/m", json!({})));
    assert_eq!((got.status, &row["error_code"]), (504, &json!("upstream_timeout")), "{got:?}");
    assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed);
}

/// Sends a request and leaves once the upstream has it.
fn leave(server: &Server, key: &str, request: &Value, called: &Receiver<()>) {
    let request = request.to_string();
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{request}", request.len())
        .expect("sent");
    called.recv_timeout(Duration::from_secs(30)).expect("the upstream is called");
}

#[test]
fn a_caller_that_leaves_before_the_first_token_ends_the_upstream_call() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    for (sent, streamed) in [("", false), ("", true), (head, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (sender, called) = std::sync::mpsc::channel();
        let upstream = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a call");
            read_request(&mut stream);
            stream.write_all(sent.as_bytes()).expect("sent");
            sender.send(()).expect("the test waits");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
            // A limit that runs out is an error of another kind than a connection that ends.
            match stream.read(&mut [0]) {
                Ok(n) => n == 0,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        });
        let refit = before(port, "");
        let (key, server) = (refit.key(), refit.serve(&[]));
        leave(&server, &key, &body("openai/m", json!({"stream": streamed})), &called);
        assert!(upstream.join().expect("the upstream ends"), "streamed {streamed}: the connection to the upstream stayed open");
    }
}

/// Peak of a process's memory in MiB.
#[cfg(target_os = "linux")]
fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// 64 MiB are read of a reply; what is sent beyond that neither comes through nor is kept.
#[test]
#[cfg(target_os = "linux")]
fn a_reply_without_end_is_cut_at_its_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let upstream = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\": \"").expect("a head");
        let piece = vec![b'x'; 1 << 20];
        (0..1024).take_while(|_| stream.write_all(&piece).is_ok()).count()
    });
    let refit = before(port, "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got = server.post(CHAT, Some(&key), &body("openai/m", json!({})));
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")), "{got:?}");
    assert!(got.body.contains("larger than"), "{got:?}");
    let sent = upstream.join().expect("the upstream ends");
    assert!(sent < 256, "{sent} MiB were taken");
    // Twice the limit while the buffer grows.
    assert!(peak_mib(&server) < 256, "{} MiB at the peak", peak_mib(&server));
}
