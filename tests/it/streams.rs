//! Streams on real sockets: silence is filled, events are not held back, and each protocol says what went wrong in its own words.

use crate::support::{Refit, http_with};
use crate::upstream::read_request;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

fn refit_with(config: &str) -> Refit {
    let refit = Refit::new();
    refit.write("refit.toml", config);
    refit
}

#[test]
fn silence_is_filled_before_the_first_token_and_between_tokens() {
    let refit = refit_with("[server]\nkeep_alive_s = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |path: &str, mock: Value| {
        let body = json!({"model": "mock/fixed", "max_tokens": 9, "stream": true, "input": "x", "messages": [{"role": "user", "content": "x"}], "mock": mock});
        let mut body = body;
        let unused = if path == "/v1/responses" { "messages" } else { "input" };
        body.as_object_mut().expect("an object").remove(unused);
        if path == "/v1/responses" {
            body.as_object_mut().expect("an object").remove("max_tokens");
        }
        server.post(path, Some(&key), &body).body
    };
    // Before the first token.
    let text = ask(CHAT, json!({"reply": "a", "delay_ms": 2_500}));
    assert!(text.starts_with(": keep-alive\n\n: keep-alive\n\ndata: {") && text.ends_with("data: [DONE]\n\n"), "{text}");
    let text = ask("/v1/messages", json!({"reply": "a", "delay_ms": 1_500}));
    assert!(text.starts_with("event: ping\ndata: {\"type\": \"ping\"}\n\nevent: message_start\n"), "{text}");
    let text = ask("/v1/responses", json!({"reply": "a", "delay_ms": 1_500}));
    assert!(text.starts_with(": keep-alive\n\nevent: response.created\n"), "{text}");
    // Between tokens.
    let text = ask(CHAT, json!({"reply": "a b", "chunk_delay_ms": 1_500}));
    assert!(text.matches(": keep-alive\n\n").count() >= 3 && text.contains("\"content\":\"b\""), "{text}");
}

#[test]
fn an_error_after_silence_was_filled_is_an_event() {
    let refit = refit_with("[server]\nkeep_alive_s = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "mock/fail", "max_tokens": 9, "stream": true, "messages": [{"role": "user", "content": "x"}], "mock": {"delay_ms": 1_500}});
    let reply = server.post(CHAT, Some(&key), &body);
    let last = reply.body.trim_end().rsplit("data: ").next().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
    assert_eq!((reply.status, &error["error"]["code"]), (200, &json!("upstream_error")));
    let reply = server.post("/v1/messages", Some(&key), &body);
    assert!(reply.status == 200 && reply.body.contains("event: error\ndata: {\"type\":\"error\""), "{reply:?}");
}

/// An upstream that sends each event of a stream in two small writes, `GAP` apart: what Nagle's algorithm holds back until the
/// receiver's delayed acknowledgement, 40 ms later.
const EVENTS: usize = 100;
const GAP: Duration = Duration::from_millis(10);

fn dripping_upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                stream.set_nodelay(true).expect("nodelay");
                read_request(&mut stream);
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
                stream.write_all(head).expect("a head");
                for i in 0..EVENTS {
                    std::thread::sleep(GAP);
                    let finish = if i + 1 == EVENTS { json!("stop") } else { Value::Null };
                    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                        "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": finish}]});
                    let event = format!("data: {chunk}\n\n");
                    let (first, second) = event.split_at(20);
                    stream.write_all(first.as_bytes()).and_then(|()| stream.write_all(second.as_bytes())).expect("an event");
                }
                stream.write_all(b"data: [DONE]\n\n").expect("the end");
            });
        }
    });
    port
}

/// Milliseconds between the events of one stream, as they reach a client. Its connection has carried requests before: only then does
/// the system delay acknowledgements.
fn gaps(address: &str, key: &str, delay: Duration) -> Vec<f64> {
    std::thread::sleep(delay);
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_nodelay(true).expect("nodelay");
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    for _ in 0..6 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        let mut line = String::new();
        while !line.ends_with('}') {
            let mut byte = [0];
            std::io::Read::read_exact(&mut reader, &mut byte).expect("an answer");
            line.push(char::from(byte[0]));
        }
    }
    let body = json!({"model": "up/m", "stream": true, "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("sent");
    let (mut last, mut gaps) = (None::<Instant>, Vec::new());
    for line in reader.lines() {
        if line.expect("a line").starts_with("data: {") {
            let now = Instant::now();
            gaps.extend(last.map(|before| (now - before).as_secs_f64() * 1e3));
            last = Some(now);
        }
    }
    gaps
}

/// Time is the promise: with `TCP_NODELAY` an event leaves when it comes. Without it the second event of every stream waits for the
/// acknowledgement of the first, 40 ms. The streams begin one after the other, so that a pause of the machine meets few beginnings.
#[test]
fn no_event_waits_for_an_acknowledgement_in_64_streams() {
    let port = dripping_upstream();
    let refit = refit_with(&format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let address = server.url().trim_start_matches("http://").to_string();
    let clients: Vec<_> = (0..64)
        .map(|i| {
            let (address, key) = (address.clone(), key.clone());
            std::thread::spawn(move || gaps(&address, &key, Duration::from_millis(i * 8)))
        })
        .collect();
    let all: Vec<Vec<f64>> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
    assert!(all.iter().all(|gaps| gaps.len() == EVENTS - 1), "every event arrived by itself");
    let stalled = all.iter().filter(|gaps| gaps[..3].iter().any(|gap| *gap > 30.0)).count();
    assert!(stalled < 32, "{stalled} of 64 streams waited for 30 ms at their beginning");
    // What holds back event after event shows later, and in one stream as well as in all: the upstream sends every 10 ms.
    let median = |gaps: &Vec<f64>| {
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let slowest = all.iter().map(median).fold(0.0, f64::max);
    assert!(slowest < 30.0, "in one stream half of the events came {slowest} ms apart");
}

#[test]
fn bad_input_is_refused_by_its_name_in_the_callers_protocol() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let user = json!([{"role": "user", "content": "x"}]);
    let many: Vec<_> = (0..200).map(|i| json!({"name": format!("t{i}"), "input_schema": {}})).collect();
    let tools: Vec<_> = (0..200).map(|i| json!({"type": "function", "function": {"name": format!("t{i}")}})).collect();
    let messages = |fields: Value| ("/v1/messages", json!({"model": "mock/echo", "max_tokens": 9, "messages": user}), fields);
    let responses = |fields: Value| ("/v1/responses", json!({"model": "mock/echo", "input": "x"}), fields);
    let chat = |fields: Value| (CHAT, json!({"model": "mock/echo", "messages": user}), fields);
    let embeddings = |fields: Value| ("/v1/embeddings", json!({"model": "mock/echo", "input": "x"}), fields);
    let completions = |fields: Value| ("/v1/completions", json!({"model": "mock/echo", "prompt": "x"}), fields);
    let cases = [
        (messages(json!({"max_tokens": null})), "max_tokens"),
        (messages(json!({"max_tokens": -1})), "max_tokens"),
        (messages(json!({"max_tokens": 1e30})), "max_tokens"),
        (messages(json!({"temperature": 1.5})), "temperature"),
        (messages(json!({"messages": []})), "messages"),
        (messages(json!({"messages": [{"role": "tool", "content": "x"}]})), "messages[0].role"),
        (messages(json!({"messages": [{"role": "user", "content": [{"text": "x"}]}]})), "messages[0].content[0].type"),
        (messages(json!({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]})), "messages[0].content[0].tool_use_id"),
        (messages(json!({"tools": many})), "tools"),
        (messages(json!({"tools": [{"name": "x"}]})), "tools[0].input_schema"),
        (messages(json!({"tool_choice": {"type": "tool"}})), "tool_choice.name"),
        (messages(json!({"thinking": {"type": "enabled"}})), "thinking.budget_tokens"),
        (messages(json!({"model": "mock/ecco"})), "mock/echo"),
        (responses(json!({"input": null})), "input"),
        (responses(json!({"input": [{"type": "item_reference", "id": "x"}]})), "input[0].type"),
        (responses(json!({"input": [{"type": "function_call", "name": "x"}]})), "input[0].call_id"),
        (responses(json!({"max_output_tokens": 0})), "max_output_tokens"),
        (responses(json!({"temperature": 9})), "temperature"),
        (responses(json!({"tools": [{"type": "web_search"}]})), "tools[0].type"),
        (responses(json!({"conversation": "c"})), "conversation"),
        (responses(json!({"background": true})), "background"),
        (responses(json!({"prompt": {}})), "prompt.id"),
        (chat(json!({"tools": tools})), "tools"),
        (chat(json!({"max_completion_tokens": 18_446_744_073_709_551_615_u64})), "max_completion_tokens"),
        (chat(json!({"model": "x".repeat(1_000)})), "model"),
        (embeddings(json!({"input": []})), "input"),
        (embeddings(json!({"input": ["a", 7]})), "input[1]"),
        (embeddings(json!({"dimensions": 0})), "dimensions"),
        (embeddings(json!({"encoding_format": "hex"})), "encoding_format"),
        (completions(json!({"prompt": null})), "prompt"),
        (completions(json!({"prompt": [1, 2]})), "prompt"),
        (completions(json!({"suffix": "x"})), "suffix"),
        (completions(json!({"logprobs": 6})), "logprobs"),
    ];
    for ((path, mut body, fields), named) in cases {
        for (name, value) in fields.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let reply = server.post(path, Some(&key), &body);
        let error = reply.json();
        assert!((400..500).contains(&reply.status), "{path} {fields}: {reply:?}");
        let message = error["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(named) || error["error"]["param"] == named, "{path}: {named} is not named: {error}");
        assert_eq!(error["type"] == "error", path == "/v1/messages", "{error}");
    }
}

#[test]
fn what_is_no_request_is_refused_in_the_callers_protocol() {
    let refit = refit_with("[server]\nmax_body_bytes = 4096\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let deep = format!("{{\"messages\": {}", "[".repeat(3_000));
    for path in ["/v1/messages", CHAT, "/v1/responses", "/v1/embeddings", "/v1/completions"] {
        for (body, status) in [("{\"temperature\": NaN}", 400), (deep.as_str(), 400), ("", 400), ("[]", 400), (&"x".repeat(9_000), 413)] {
            let reply = server.post_bytes(path, Some(&key), body.as_bytes());
            assert_eq!((reply.status, reply.json()["type"] == "error"), (status, path == "/v1/messages"), "{path}: {reply:?}");
        }
        let reply = server.post_bytes(path, None, b"{}");
        assert_eq!((reply.status, reply.json()["type"] == "error"), (401, path == "/v1/messages"), "{reply:?}");
        let reply = crate::support::http("DELETE", &format!("{}{path}", server.url()), Some(&key), None);
        assert_eq!((reply.status, reply.json()["type"] == "error"), (405, path == "/v1/messages"), "{reply:?}");
    }
    let url = format!("{}/v1/messages", server.url());
    let body = json!({"model": "mock/echo", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}).to_string();
    let reply = http_with(&url, Some(&key), &[("anthropic-version", "1999-01-01")], body.into_bytes());
    assert!(reply.status == 400 && reply.body.contains("2023-06-01"), "{reply:?}");
    assert!(reply.header("request-id").is_some_and(|id| reply.body.contains(id)), "{reply:?}");
}

#[test]
fn the_openapi_document_is_the_written_one() {
    let refit = Refit::new();
    let server = refit.serve(&[]);
    let mut document = server.get("/openapi.json", None).json();
    document["info"]["version"] = json!("0");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openapi.json");
    if std::env::var_os("REFIT_BLESS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&document).expect("JSON") + "\n").expect("written");
    }
    let written: Value = serde_json::from_slice(&std::fs::read(path).expect("the snapshot")).expect("JSON");
    assert_eq!(document, written, "the surface changed; REFIT_BLESS=1 writes the snapshot anew");
}

/// What comes and makes no bytes does not put off what keeps the connection alive.
#[test]
fn pieces_that_say_nothing_are_silence() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        read_request(&mut stream);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("a head");
        for i in 0..12 {
            let delta = if i == 0 { json!({"role": "assistant", "content": "x"}) } else { json!({}) };
            let finish = if i == 11 { json!("stop") } else { Value::Null };
            let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
            stream.write_all(format!("data: {chunk}\n\n").as_bytes()).expect("an event");
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let config = format!("[server]\nkeep_alive_s = 1\n[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n");
    let refit = refit_with(&config);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "up/m", "max_tokens": 9, "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let reply = server.post("/v1/messages", Some(&key), &body);
    assert!(reply.body.matches("event: ping").count() >= 2 && reply.body.contains("message_stop"), "{reply:?}");
}
