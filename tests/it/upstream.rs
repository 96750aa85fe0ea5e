//! OpenAI-compatible providers against a scripted upstream on a real loopback socket.

use crate::support::{Refit, Reply};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
/// Planted as the upstream's key: must be sent there and be seen nowhere else.
const CANARY: &str = "sk-canary-5f3a";

/// One exchange of the scripted upstream.
pub struct Script {
    /// Bytes of the reply, in the pieces in which they are written.
    pub pieces: Vec<Vec<u8>>,
    /// Keep the connection open after the last piece until the client closes it.
    pub hang: bool,
}

/// What the upstream saw.
pub struct Seen {
    pub head: String,
    /// Path and query, in their own case.
    pub target: String,
    pub body: Value,
    /// The client closed its side while the upstream hung.
    pub closed: bool,
}

fn target(head: &str) -> String {
    head.split(' ').nth(1).unwrap_or_default().to_string()
}

/// Serves the scripts in order, a connection each; returns the port and what was seen.
pub fn upstream(scripts: Vec<Script>) -> (u16, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, seen) = channel();
    std::thread::spawn(move || {
        for script in scripts {
            let Ok((mut stream, _)) = listener.accept() else { return };
            stream.set_nodelay(true).expect("nodelay");
            let (raw, body) = read_request(&mut stream);
            for piece in &script.pieces {
                if stream.write_all(piece).and_then(|()| stream.flush()).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(300));
            }
            let closed = script.hang && matches!(stream.read(&mut [0]), Ok(0) | Err(_));
            let _ = sender.send(Seen { target: target(&raw), head: raw.to_lowercase(), body, closed });
        }
    });
    (port, seen)
}

pub fn read_request(stream: &mut TcpStream) -> (String, Value) {
    let (mut bytes, mut byte) = (Vec::new(), [0u8]);
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a request") == 1 {
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).expect("an ASCII head");
    let length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    (head, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

pub fn reply(status: &str, headers: &str, body: &str) -> Script {
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    Script { pieces: vec![text.into_bytes()], hang: false }
}

/// An event stream, written in pieces of so many bytes.
pub fn stream(body: &str, piece: usize) -> Script {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_vec();
    Script { pieces: std::iter::once(head).chain(body.as_bytes().chunks(piece).map(<[u8]>::to_vec)).collect(), hang: false }
}

fn configured(port: u16) -> Refit {
    let refit = Refit::new().env("UP_KEY", CANARY);
    let config = format!(
        "[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = {{ env = \"UP_KEY\" }}\nmodels = [\"m\"]\n"
    );
    refit.write("refit.toml", config);
    refit
}

/// One chat request through a fresh gateway in front of the scripted upstream.
fn ask(script: Script, fields: Value) -> (Reply, Seen, Refit) {
    let (port, seen) = upstream(vec![script]);
    let refit = configured(port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut body = json!({"model": "up/m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let reply = server.post(CHAT, Some(&key), &body);
    assert!(!reply.body.contains(CANARY), "the upstream's key is not shown: {reply:?}");
    let seen = seen.recv_timeout(Duration::from_secs(30)).expect("the upstream was called");
    assert!(!seen.head.contains(&key.to_lowercase()), "the caller's key stays here: {}", seen.head);
    (reply, seen, refit)
}

fn chunk(delta: Value, finish: Value) -> String {
    json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-2026", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        .to_string()
}

fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

#[test]
fn a_reply_passes_with_unknown_fields_and_the_key_goes_to_its_origin_only() {
    let body = json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m-2026", "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello", "refusal": null}, "finish_reason": "stop", "logprobs": null}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}});
    let (reply, seen, refit) =
        ask(reply("200 OK", "", &body.to_string()), json!({"temperature": 0.5, "made_up": {"a": [1]}, "mock": {"x": 1}}));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.json()["system_fingerprint"], "fp_1");
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "hello");
    assert!(
        seen.head.starts_with("post /v1/chat/completions ") && seen.head.contains(&format!("authorization: bearer {CANARY}")),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.body,
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "made_up": {"a": [1]}})
    );
    let row = row(&refit, &reply);
    assert_eq!((&row["provider"], &row["model"], &row["input_tokens"]), (&json!("up"), &json!("m"), &json!(3)));
    assert!(!row.to_string().contains(CANARY));
}

#[test]
fn a_stream_cut_at_every_odd_byte_with_mixed_line_ends_arrives_whole() {
    let usage = json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-2026", "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}});
    let text = [
        "\u{feff}: comment\r\n".to_string(),
        format!("data: {}\r\n\r\n", chunk(json!({"role": "assistant", "content": "grüße "}), Value::Null)),
        format!("event: x\rdata:{}\r\r", chunk(json!({"content": "🦀 ende"}), Value::Null)),
        format!("id: 4\ndata: {}\n\n", chunk(json!({}), json!("stop"))),
        format!("data: {usage}\n\ndata: [DONE]\n\n"),
    ]
    .concat();
    for piece in [1, 3, 7] {
        let (reply, seen, refit) = ask(stream(&text, piece), json!({"stream": true}));
        let events: Vec<_> = reply.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        let content: String = events
            .iter()
            .filter_map(|event| serde_json::from_str::<Value>(event).ok())
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_string))
            .collect();
        assert_eq!((content.as_str(), events.last(), events.len()), ("grüße 🦀 ende", Some(&"[DONE]"), 4), "{reply:?}");
        assert_eq!(seen.body["stream_options"], json!({"include_usage": true}), "usage is always asked for, for the log");
        let row = row(&refit, &reply);
        assert_eq!((&row["output_tokens"], &row["finish_reason"]), (&json!(2), &json!("stop")));
        assert_eq!(row["reply"]["choices"][0]["message"]["content"], "grüße 🦀 ende");
    }
}

#[test]
fn upstream_errors_keep_message_field_and_retry_after() {
    let limited = json!({"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limit_exceeded"}}).to_string();
    let (got, _, _) = ask(reply("429 Too Many Requests", "retry-after: 7\r\n", &limited), json!({}));
    assert_eq!((got.status, got.header("retry-after")), (429, Some("7")), "{got:?}");
    assert!(got.body.contains("slow down") && got.json()["error"]["code"] == "rate_limit_exceeded");

    let bad = json!({"error": {"message": "top_k is odd", "param": "top_k", "code": null}}).to_string();
    let (got, _, _) = ask(reply("400 Bad Request", "", &bad), json!({"stream": true}));
    assert_eq!((got.status, &got.json()["error"]["param"]), (400, &json!("top_k")));

    let (got, _, _) =
        ask(reply("401 Unauthorized", "", &json!({"error": {"message": format!("bad key {CANARY}")}}).to_string()), json!({}));
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")), "our key's trouble is not the caller's 401");
    let (got, _, _) = ask(reply("500 Oops", "", "<html>"), json!({}));
    assert_eq!(got.status, 502);
    let (got, _, _) = ask(reply("200 OK", "", "not json"), json!({}));
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")));
}

#[test]
fn overloaded_inside_a_200_is_a_failure_before_and_in_the_stream() {
    let overloaded = json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}).to_string();
    for fields in [json!({}), json!({"stream": true})] {
        let (got, _, refit) = ask(reply("200 OK", "", &overloaded), fields);
        assert_eq!((got.status, &got.json()["error"]["code"]), (503, &json!("upstream_overloaded")), "{got:?}");
        assert_eq!(row(&refit, &got)["status"], 503);
    }
    let begun = format!("data: {}\n\ndata: {overloaded}\n\n", chunk(json!({"role": "assistant", "content": "half"}), Value::Null));
    let (got, _, refit) = ask(stream(&begun, 9), json!({"stream": true}));
    assert!(got.status == 200 && got.body.contains("upstream_overloaded"), "{got:?}");
    assert_eq!((&row(&refit, &got)["status"], &row(&refit, &got)["error_code"]), (&json!(503), &json!("upstream_overloaded")));
}

#[test]
fn a_key_from_the_environment_goes_to_its_own_service_only() {
    let (port, seen) = upstream(vec![reply("500 Oops", "", "{}")]);
    let refit = Refit::new().env("GROQ_API_KEY", CANARY);
    refit.write("refit.toml", format!("[providers.groq]\nbase_url = \"http://127.0.0.1:{port}\"\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    server.post(CHAT, Some(&key), &json!({"model": "groq/m", "messages": [{"role": "user", "content": "hi"}]}));
    let seen = seen.recv_timeout(Duration::from_secs(30)).expect("the upstream was called");
    assert!(!seen.head.contains("authorization") && !seen.head.contains(CANARY), "{}", seen.head);
}

#[test]
fn redirects_are_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("nonblocking");
    let port = elsewhere.local_addr().expect("an address").port();
    for status in ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let (got, _, _) = ask(reply(status, &format!("location: http://127.0.0.1:{port}/v1/chat/completions\r\n"), ""), json!({}));
        assert_eq!(got.status, 502, "{got:?}");
    }
    assert!(elsewhere.accept().is_err(), "nobody went there");
}

#[test]
fn streams_that_break_off_end_with_an_error_event_and_a_partial_row() {
    let begun = format!("data: {}\n\n", chunk(json!({"role": "assistant", "content": "half"}), Value::Null));
    let garbage = format!("{begun}data: {{oops\n\n");
    let told = format!("{begun}data: {}\n\n", json!({"error": {"message": "overheated", "code": "hot"}}));
    for (text, expected) in [(&begun, "ended before"), (&garbage, "not readable"), (&told, "overheated")] {
        let (reply, _, refit) = ask(stream(text, 5), json!({"stream": true}));
        let last = reply.body.trim_end().rsplit("data: ").next().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("no error event ({e}): {reply:?}"));
        assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains(expected)), "{expected}: {error}");
        let row = row(&refit, &reply);
        assert_eq!((&row["status"], &row["error_code"]), (&json!(502), &json!("upstream_error")));
        assert_eq!(row["reply"]["choices"][0]["message"]["content"], "half");
    }
}

#[test]
fn a_silent_stream_times_out() {
    let mut script = stream(&format!("data: {}\n\n", chunk(json!({"role": "assistant", "content": "half"}), Value::Null)), 50);
    script.hang = true;
    let (port, seen) = upstream(vec![script]);
    let refit = configured(port);
    let config = std::fs::read_to_string(refit.path().join("refit.toml")).expect("the file");
    refit.write("refit.toml", format!("{config}idle_timeout_s = 1\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "up/m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let reply = server.post(CHAT, Some(&key), &body);
    assert!(reply.body.contains("upstream_timeout"), "{reply:?}");
    assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed, "the connection to the upstream is closed");
}

#[test]
fn a_caller_that_goes_away_closes_the_upstream_connection() {
    let mut script = stream(&format!("data: {}\n\n", chunk(json!({"role": "assistant", "content": "half"}), Value::Null)), 50);
    script.hang = true;
    let (port, seen) = upstream(vec![script]);
    let refit = configured(port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    let body = json!({"model": "up/m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}).to_string();
    write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("half") {
        let mut buffer = [0; 512];
        let n = stream.read(&mut buffer).expect("the stream begins");
        assert!(n > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..n]);
    }
    drop(stream);
    assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed);
}
