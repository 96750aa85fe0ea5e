//! What is forwarded is not held back, and where both sides speak one protocol not a byte of it changes.

use crate::support::Refit;
use crate::upstream::{read_request, reply, stream, upstream};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// A server in front of which nothing but a provider stands.
fn refit_before(provider: &str, port: u16) -> Refit {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let config = format!("[providers.{provider}]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", config);
    refit
}

/// An upstream that sends `first`, waits until it is told that the client has got it, and only then sends `second`.
fn handshaking(first: String, second: String) -> (u16, Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (seen, told) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a call");
        read_request(&mut stream);
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        stream.write_all(head).and_then(|()| stream.write_all(first.as_bytes())).expect("the first event");
        // A gateway that waits for the end never gets one.
        if told.recv_timeout(Duration::from_secs(60)).is_ok() {
            stream.write_all(second.as_bytes()).expect("the second event");
        }
    });
    (port, seen)
}

/// Reads until the text has come.
fn read_until(stream: &mut TcpStream, read: &mut String, text: &str) {
    let mut buffer = [0; 4096];
    while !read.contains(text) {
        let n = stream.read(&mut buffer).unwrap_or_else(|error| panic!("{text:?} did not come ({error}), only {read}"));
        assert!(n > 0, "{text:?} did not come, only {read}");
        read.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

fn chat(delta: &Value, finish: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
    format!("data: {}\n\n", json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}))
}

fn anthropic(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().expect("a type"))
}

fn anthropic_text(text: &str) -> String {
    anthropic(&json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}))
}

/// The two halves of a stream in the protocol of a provider, with `alpha` in the first and `omega` in the second.
fn halves(provider: &str) -> (String, String) {
    if provider == "anthropic" {
        let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1}});
        let begin = anthropic(&json!({"type": "message_start", "message": message}))
            + &anthropic(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}));
        let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
        let end = anthropic(&json!({"type": "content_block_stop", "index": 0}))
            + &anthropic(&json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 2}}))
            + &anthropic(&json!({"type": "message_stop"}));
        return (begin + &anthropic_text("alpha"), anthropic_text("omega") + &end);
    }
    let end = chat(&json!({"content": "omega"}), &Value::Null) + &chat(&json!({}), &json!("stop")) + "data: [DONE]\n\n";
    (chat(&json!({"role": "assistant", "content": "alpha"}), &Value::Null), end)
}

/// A handshake instead of a clock: the second event is not even sent before the client has read the first.
#[test]
fn an_event_reaches_the_client_before_the_next_is_sent() {
    let user = json!([{"role": "user", "content": "x"}]);
    let cases = [
        ("openai", "/v1/chat/completions", json!({"messages": user})),
        ("anthropic", "/v1/chat/completions", json!({"messages": user})),
        ("openai", "/v1/messages", json!({"messages": user, "max_tokens": 9})),
        ("anthropic", "/v1/messages", json!({"messages": user, "max_tokens": 9})),
        ("openai", "/v1/responses", json!({"input": "x"})),
        ("openai", "/v1/completions", json!({"prompt": "x"})),
    ];
    for (provider, path, mut body) in cases {
        let (first, second) = halves(provider);
        let (port, seen) = handshaking(first, second);
        let refit = refit_before(provider, port);
        let (key, server) = (refit.key(), refit.serve(&[]));
        body["model"] = json!(format!("{provider}/m"));
        body["stream"] = json!(true);
        let body = body.to_string();
        let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut read = String::new();
        read_until(&mut stream, &mut read, "alpha");
        assert!(!read.contains("omega"), "{provider} {path}: {read}");
        seen.send(()).expect("the upstream waits");
        read_until(&mut stream, &mut read, "omega");
    }
}

/// `data:` of each event, as it stands.
fn payloads(body: &str) -> Vec<&str> {
    body.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.strip_prefix(' ').unwrap_or(data)).collect()
}

/// Asks for a stream of these payloads; what came.
fn forwarded(provider: &str, path: &str, body: &Value, events: &str) -> String {
    let (port, _seen) = upstream(vec![stream(events, 11)]);
    let refit = refit_before(provider, port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = server.post(path, Some(&key), body);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body
}

#[test]
fn chat_events_pass_byte_for_byte() {
    let sent = [
        r#"{ "object":"chat.completion.chunk",  "id" : "c1","made_up":{"b":1.0e0,"a":[ ]},"created":7, "model":"m","choices":[{"delta":{"role":"assistant","content":"gr\u00fc\u00dfe \ud83e\udd80 <\/b>"},"finish_reason":null,"index":0,"logprobs":null}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":" ü🦀\t"} ,"finish_reason":null}],"id":"c1","object":"chat.completion.chunk","created":7,"model":"m","big":12345678901234567890123,"small":-0.0,"obfuscation":"x"}"#,
        r#"{"id":"c1","choices":[{"index":0,"delta":{ },"finish_reason":"stop","stop_reason":1E2}],"object":"chat.completion.chunk","created":7,"model":"m"}"#,
        "[DONE]",
    ];
    let events: String = sent.iter().map(|data| format!("data: {data}\n\n")).collect();
    let body = json!({"model": "groq/m", "stream": true, "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(payloads(&forwarded("groq", "/v1/chat/completions", &body, &events)), sent);
}

#[test]
fn a_whole_chat_completion_passes_byte_for_byte_and_is_counted() {
    let sent = r#"{ "object":"chat.completion",  "id" : "c1","created":7, "model":"m","made_up":{"b":1.0e0,"a":[ ]},"big":12345678901234567890123,"choices":[{"message":{"role":"assistant","content":"gr\u00fc\u00dfe <\/b>"},"finish_reason":"stop","index":0}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5} }"#;
    let (port, seen) = upstream(vec![reply("200 OK", "", sent)]);
    let refit = refit_before("groq", port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let asked = r#"{"model" : "groq/m", "temperature": 1.0e0, "messages": [{"role": "user", "content": "\u0078"}]}"#;
    let got = server.post_bytes("/v1/chat/completions", Some(&key), asked.as_bytes());
    assert_eq!((got.status, got.body.as_str(), got.header("content-type")), (200, sent, Some("application/json")));
    assert_eq!(got.header("x-refit-provider"), Some("groq"));
    drop(seen.recv_timeout(Duration::from_secs(20)).expect("the provider was called"));
    let row = refit.run(&["logs", "show", got.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["input_tokens"], &row["output_tokens"], &row["finish_reason"]), (&json!(3), &json!(2), &json!("stop")), "{row}");
    assert_eq!((&row["reply"]["made_up"], &row["request"]["model"]), (&json!({"b": 1.0, "a": []}), &json!("groq/m")), "{row}");
}

#[test]
fn messages_events_pass_byte_for_byte_under_their_names() {
    let sent = [
        (
            "message_start",
            r#"{ "message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[ ],"stop_reason":null,"stop_sequence":null,"usage":{"output_tokens":1,"input_tokens":3,"made_up":1.0e0}},"type" : "message_start"}"#,
        ),
        ("content_block_start", r#"{"type":"content_block_start","index":0,"content_block":{"text":"","type":"text","citations":null}}"#),
        ("ping", r#"{"type": "ping"}"#),
        (
            "content_block_delta",
            r#"{"index":0 ,"type":"content_block_delta","delta":{"type":"text_delta","text":"gr\u00fc\u00dfe \ud83e\udd80 <\/b>"},"big":12345678901234567890123}"#,
        ),
        ("content_block_stop", r#"{"index":0,"type":"content_block_stop"}"#),
        ("made_up_event", r#"{"type":"made_up_event","x":[1E2]}"#),
        (
            "message_delta",
            r#"{"type":"message_delta","delta":{"stop_sequence":null,"stop_reason":"end_turn"},"usage":{"output_tokens":2,"made_up":-0.0}}"#,
        ),
        ("message_stop", r#"{"type":"message_stop" }"#),
    ];
    let events: String = sent.iter().map(|(kind, data)| format!("event: {kind}\ndata: {data}\n\n")).collect();
    let body = json!({"model": "anthropic/m", "stream": true, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
    let got = forwarded("anthropic", "/v1/messages", &body, &events);
    assert_eq!(payloads(&got), sent.map(|(_, data)| data));
    let kinds: Vec<_> = got.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(kinds, sent.map(|(kind, _)| kind));
}
