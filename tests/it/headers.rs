//! What a reply's `x-refit-*` headers tell about the call.

use crate::support::{Refit, Reply, Server, http_with};
use crate::upstream::{reply, upstream};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const OK: &str = r#"{"id":"c1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;

fn ask(server: &Server, key: &str, model: &str, fields: Value) -> Reply {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    server.post(CHAT, Some(key), &body)
}

/// A header as a number with so many decimals.
fn number(reply: &Reply, name: &str, decimals: usize) -> f64 {
    let text = reply.header(name).unwrap_or_else(|| panic!("no {name}: {reply:?}"));
    assert_eq!(text.split_once('.').map(|(_, behind)| behind.len()), Some(decimals), "{name}: {text}");
    text.parse().expect("a number")
}

fn told(reply: &Reply) -> Vec<&str> {
    let names = reply.headers.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("x-refit-"));
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

fn before(port: u16) -> Refit {
    let refit = Refit::new();
    let up = format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n");
    refit.write("refit.toml", up);
    refit
}

#[test]
fn a_whole_reply_says_what_answered_how_often_it_was_asked_what_it_cost_and_what_refit_took() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    // A plain request goes the fast way, one with metadata the other.
    for fields in [json!({}), json!({"metadata": {"a": "b"}})] {
        let reply = ask(&server, &key, "mock/echo", fields);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!((reply.header("x-refit-target"), reply.header("x-refit-provider")), (Some("mock/echo"), Some("mock")));
        assert_eq!(reply.header("x-refit-attempts"), Some("1"));
        assert!(number(&reply, "x-refit-overhead-ms", 3) >= 0.0);
        // `unknown` or dollars: never an empty text, and never zero for a price that nobody knows.
        let cost = reply.header("x-refit-cost-usd").expect("a cost");
        assert!(cost == "unknown" || cost.parse::<f64>().is_ok(), "{cost}");
        let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
        assert_eq!(row["cost_micro_usd"].is_null(), cost == "unknown", "{row}");
        assert_eq!((&row["attempts"], row["overhead_ms"].as_f64()), (&json!(1), Some(number(&reply, "x-refit-overhead-ms", 3))));
    }
}

#[test]
fn a_stream_says_at_its_first_byte_what_is_known_by_then() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for fields in [json!({"stream": true}), json!({"stream": true, "metadata": {"a": "b"}})] {
        let reply = ask(&server, &key, "mock/echo", fields);
        assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
        assert_eq!(told(&reply), ["x-refit-attempts", "x-refit-overhead-ms", "x-refit-provider", "x-refit-target"], "{reply:?}");
        assert_eq!(reply.header("x-refit-target"), Some("mock/echo"));
    }
}

#[test]
fn every_protocol_tells_and_counting_tokens_too() {
    let (port, _seen) = upstream((0..4).map(|_| reply("200 OK", "", OK)).collect());
    let refit = before(port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let message = json!([{"role": "user", "content": "hello"}]);
    for (path, body) in [
        ("/v1/messages", json!({"model": "up/m", "max_tokens": 9, "messages": message})),
        ("/v1/responses", json!({"model": "up/m", "input": "hello"})),
        ("/v1/completions", json!({"model": "up/m", "prompt": "hello"})),
    ] {
        let reply = server.post(path, Some(&key), &body);
        assert_eq!((reply.status, reply.header("x-refit-target")), (200, Some("up/m")), "{path}: {reply:?}");
        assert_eq!(reply.header("x-refit-cost-usd"), Some("unknown"), "{path}");
    }
    let (port, _seen) = upstream(vec![reply("200 OK", "", r#"{"input_tokens": 5}"#)]);
    let refit = Refit::new();
    refit.write("refit.toml", format!("[providers.anthropic]\nbase_url = \"http://127.0.0.1:{port}\"\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let counted = server.post("/v1/messages/count_tokens", Some(&key), &json!({"model": "anthropic/c", "messages": message}));
    assert_eq!((counted.status, counted.json()["input_tokens"].as_u64()), (200, Some(5)), "{counted:?}");
    assert_eq!(counted.header("x-refit-target"), Some("anthropic/c"));
}

#[test]
fn an_error_of_a_provider_says_which_target_failed() {
    let fault = r#"{"error":{"message":"temperature: no","type":"invalid_request_error","param":"max_completion_tokens","code":null}}"#;
    let (port, _seen) = upstream((0..4).map(|_| reply("400 Bad Request", "", fault)).collect());
    let refit = before(port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let message = json!([{"role": "user", "content": "hello"}]);
    // Under another protocol the failure is renamed on its way; what is known about the call must not be lost.
    for (path, body) in [
        (CHAT, json!({"model": "up/m", "messages": message})),
        (CHAT, json!({"model": "up/m", "messages": message, "stream": true})),
        ("/v1/messages", json!({"model": "up/m", "max_tokens": 9, "messages": message})),
        ("/v1/responses", json!({"model": "up/m", "max_output_tokens": 9, "input": "hello"})),
    ] {
        let reply = server.post(path, Some(&key), &body);
        assert_eq!((reply.status, reply.header("x-refit-target")), (400, Some("up/m")), "{path}: {reply:?}");
        assert_eq!(reply.header("x-refit-attempts"), Some("1"), "{path}");
        assert!(number(&reply, "x-refit-overhead-ms", 3) >= 0.0);
    }
}

#[test]
fn an_error_before_any_call_names_no_target_and_no_cost() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for (key, body, status) in [
        (Some(key.as_str()), json!({"model": "nowhere/m", "messages": [{"role": "user", "content": "x"}]}), 404),
        (Some(key.as_str()), json!({"model": 7}), 400),
        (None, json!({}), 401),
    ] {
        let reply = server.post(CHAT, key, &body);
        assert_eq!((reply.status, told(&reply)), (status, Vec::new()), "{reply:?}");
        assert!(reply.header("x-request-id").is_some());
    }
}

#[test]
fn the_providers_time_is_not_counted_as_ours() {
    const WAITS: Duration = Duration::from_millis(1_500);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut stream = listener.accept().expect("a caller").0;
        crate::upstream::read_request(&mut stream);
        std::thread::sleep(WAITS);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{OK}", OK.len());
    });
    let refit = before(port);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = ask(&server, &key, "up/m", json!({}));
    let ours = number(&reply, "x-refit-overhead-ms", 3);
    assert!(ours < WAITS.as_secs_f64() * 1e3 / 5.0, "{ours} ms are said to be ours");
    let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert!(row["upstream_ms"].as_f64() >= Some(1_499.0), "{row}");
}

#[test]
fn a_caller_chooses_no_header_of_the_reply() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": "x"}]}).to_string().into_bytes();
    let sent = [("x-refit-target", "evil/m"), ("x-refit-cost-usd", "0.1")];
    let reply = http_with(&format!("{}{CHAT}", server.url()), Some(&key), &sent, body);
    assert_eq!(reply.header("x-refit-target"), Some("mock/echo"));
    assert_ne!(reply.header("x-refit-cost-usd"), Some("0.1"));
}
