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

/// The gateway in front of the scripts, with more lines in the provider's table.
fn in_front_of(scripts: Vec<Script>, provider: &str, more: &str) -> (Refit, Receiver<Seen>) {
    let (port, seen) = upstream(scripts);
    let refit = Refit::new().env("UP_KEY", CANARY);
    let config = format!("[providers.{provider}]\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = {{ env = \"UP_KEY\" }}\n{more}\n");
    refit.write("refit.toml", config);
    (refit, seen)
}

fn chat(model: &str, fields: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// `data:` of every event that is JSON.
fn chunks(reply: &Reply) -> Vec<Value> {
    reply.body.split("data: ").filter_map(|event| serde_json::from_str(event.trim()).ok()).collect()
}

/// An object whose key `serde_json` can be told to parse anew, so often that any stack is spent.
fn hostile() -> String {
    (0..14).fold("0".to_string(), |inner, _| {
        format!("{}{}{}", "[".repeat(120), json!({"$serde_json::private::RawValue": inner}), "]".repeat(120))
    })
}

#[test]
fn no_json_ends_the_process() {
    let (hostile, deep) = (hostile(), "[".repeat(100_000));
    let error = format!("{{\"error\": {{\"message\": \"x\", \"details\": {hostile}}}}}");
    let whole = format!(
        "{{\"id\": \"c\", \"x\": {hostile}, \"choices\": [{{\"index\": 0, \"message\": {{\"role\": \"assistant\", \"content\": \"a\", \"x\": {hostile}}}}}]}}"
    );
    let event = format!(
        "data: {{\"x\": {hostile}, \"choices\": [{{\"index\": 0, \"delta\": {{\"content\": \"a\", \"x\": {hostile}}}, \"finish_reason\": \"stop\"}}]}}\n\ndata: [DONE]\n\n"
    );
    let scripts = vec![
        reply("400 Bad Request", "", &error),
        reply("200 OK", "", &whole),
        reply("200 OK", "", &deep),
        stream(&event, 4_096),
        reply("200 OK", "", "{\"object\": \"list\", \"data\": []}"),
    ];
    let (refit, _) = in_front_of(scripts, "up", "kind = \"compatible\"");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut statuses = Vec::new();
    for streamed in [false, false, false, true] {
        let body = chat("up/m", &if streamed { json!({"stream": true}) } else { json!({}) });
        statuses.push(server.post(CHAT, Some(&key), &body).status);
    }
    assert_eq!(statuses, [400, 200, 502, 200]);
    for path in [CHAT, "/v1/messages", "/v1/responses", "/v1/completions", "/v1/embeddings"] {
        let body = format!(
            "{{\"model\": \"mock/echo\", \"max_tokens\": 9, \"x\": {hostile}, \"messages\": [{{\"role\": \"user\", \"content\": \"a\", \"x\": {hostile}}}], \"input\": \"a\", \"prompt\": \"a\"}}"
        );
        let status = server.post_bytes(path, Some(&key), body.as_bytes()).status;
        assert!(status < 500, "{path}: {status}");
    }
    assert_eq!(server.post(CHAT, Some(&key), &chat("mock/echo", &json!({}))).status, 200, "the process lives");
}

#[test]
fn a_mistake_in_the_json_names_its_field_and_place() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for value in ["NaN", "1e400", "-Infinity", &"[".repeat(200)] {
        let body = format!("{{\"model\": \"mock/echo\", \"temperature\": {value}, \"messages\": []}}");
        let reply = server.post_bytes(CHAT, Some(&key), body.as_bytes());
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!("temperature")), "{value}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("line 1, column")), "{error}");
    }
    let many = format!("{{\"model\": \"mock/echo\", \"input\": [{}0]}}", "0,".repeat(1_000_000));
    let reply = server.post_bytes("/v1/embeddings", Some(&key), many.as_bytes());
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("request_too_large")), "{reply:?}");
}

#[test]
fn a_refusal_that_stalls_has_an_end() {
    let head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{\"error\"".to_vec();
    for fields in [json!({}), json!({"stream": true})] {
        let script = Script { pieces: vec![head.clone()], hang: true };
        let (refit, _) = in_front_of(vec![script], "up", "kind = \"compatible\"\ntimeout_s = 1");
        let (key, server) = (refit.key(), refit.serve(&[]));
        let reply = server.post(CHAT, Some(&key), &chat("up/m", &fields));
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (504, &json!("upstream_timeout")), "{reply:?}");
    }
}

#[test]
fn no_name_of_a_model_leads_to_another_path() {
    let (port, seen) = upstream(vec![reply("500 Oops", "", "{}"), reply("500 Oops", "", "{}")]);
    let refit = Refit::new().env("UP_KEY", CANARY);
    let config =
        format!("[providers.azure]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\napi_version = \"v\"\n");
    refit.write("refit.toml", config);
    let (key, server) = (refit.key(), refit.serve(&[]));
    for model in ["azure/.", "azure/.."] {
        for (path, body) in [(CHAT, chat(model, &json!({}))), ("/v1/embeddings", json!({"model": model, "input": "a"}))] {
            let reply = server.post(path, Some(&key), &body);
            let error = &reply.json()["error"];
            assert_eq!((reply.status, &error["code"], &error["param"]), (404, &json!("model_not_found"), &json!("model")), "{reply:?}");
        }
    }
    for (model, target) in [("azure/../x", "..%2Fx"), ("azure/%2e%2e", "%252e%252e")] {
        server.post(CHAT, Some(&key), &chat(model, &json!({})));
        let seen = seen.recv_timeout(Duration::from_secs(30)).expect("the first call to arrive");
        assert_eq!(seen.target, format!("/openai/deployments/{target}/chat/completions?api-version=v"));
    }
}

#[test]
fn a_stream_is_whole_when_every_choice_ended_or_the_server_says_so() {
    let of = |index: u64, finish: Value| {
        let choice = json!({"index": index, "delta": {"role": "assistant", "content": "a"}, "finish_reason": finish});
        format!("data: {}\n\n", json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}))
    };
    let half = of(0, json!("stop")) + &of(1, Value::Null);
    let silent = of(0, json!(""));
    for (text, code) in
        [(half.clone(), json!("upstream_error")), (silent.clone(), json!("upstream_error")), (silent + "data: [DONE]\n\n", Value::Null)]
    {
        let (got, _, refit) = ask(stream(&text, 64), json!({"stream": true, "n": 2}));
        let row = row(&refit, &got);
        assert_eq!((&row["error_code"], got.body.contains("ended before")), (&code, !code.is_null()), "{text} {got:?}");
        assert!(!code.is_null() || row["finish_reason"].is_null(), "no reason is made up: {row}");
    }
    let whole = half + &of(1, json!("length"));
    let (got, _, refit) = ask(stream(&whole, 64), json!({"stream": true, "n": 2}));
    assert_eq!((&row(&refit, &got)["status"], got.body.ends_with("data: [DONE]\n\n")), (&json!(200), true));
}

#[test]
fn errors_in_a_success_are_found_by_their_event_their_mark_and_their_code() {
    let begun = format!("data: {}\n\n", chunk(json!({"role": "assistant", "content": "half"}), Value::Null));
    let vllm = json!({"object": "error", "message": "busy", "code": 503}).to_string();
    let named = json!({"message": "busy", "type": "overloaded_error"}).to_string();
    for text in [format!("{begun}event: error\ndata: {named}\n\n"), format!("{begun}data: {vllm}\n\n"), format!("data: {vllm}\n\n")] {
        let (got, _, refit) = ask(stream(&text, 64), json!({"stream": true}));
        assert!(got.body.contains("upstream_overloaded"), "{text}: {got:?}");
        assert_eq!(row(&refit, &got)["status"], 503);
    }
    for body in [&vllm, &named] {
        let (got, _, _) = ask(reply("200 OK", "", body), json!({}));
        assert_eq!((got.status, &got.json()["error"]["code"]), (503, &json!("upstream_overloaded")), "{got:?}");
    }
    // Plain JSON where events were expected, under another content type.
    let limited = json!({"error": {"message": "slow down", "code": 429}});
    let text = serde_json::to_string_pretty(&limited).expect("JSON");
    let (got, _, _) = ask(stream(&text, 9), json!({"stream": true}));
    assert_eq!((got.status, &got.json()["error"]["code"]), (429, &json!("rate_limit_exceeded")), "{got:?}");
}

#[test]
fn usage_reaches_who_asked_and_once() {
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8});
    let mut last: Value = serde_json::from_str(&chunk(json!({}), json!("stop"))).expect("a chunk");
    last["usage"] = usage.clone();
    last["x_mark"] = json!(1);
    let on_the_last = format!("data: {}\n\ndata: {last}\n\ndata: [DONE]\n\n", chunk(json!({"content": "a"}), Value::Null));
    let own = json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [], "usage": usage,
        "service_tier": "default", "timings": {"predicted_ms": 1.5}});
    let apart = format!("data: {}\n\ndata: {own}\n\ndata: [DONE]\n\n", chunk(json!({"content": "a"}), json!("stop")));
    for (text, asked) in [(&on_the_last, true), (&on_the_last, false), (&apart, true), (&apart, false)] {
        let options = json!({"include_usage": asked, "include_obfuscation": false});
        let (got, seen, refit) = ask(stream(text, 64), json!({"stream": true, "stream_options": options}));
        let found: Vec<_> = chunks(&got).into_iter().filter(|chunk| !chunk["usage"].is_null()).collect();
        assert_eq!(found.len(), usize::from(asked), "{got:?}");
        assert!(found.iter().all(|chunk| chunk["usage"] == usage && chunk["choices"] == json!([])), "{got:?}");
        assert_eq!(row(&refit, &got)["output_tokens"], 3);
        assert_eq!(seen.body["stream_options"], json!({"include_usage": true, "include_obfuscation": false}));
        assert_eq!(text == &on_the_last, got.body.contains("x_mark"), "the rest of the chunk stays: {got:?}");
        if asked && text == &apart {
            assert_eq!((&found[0]["service_tier"], &found[0]["timings"]["predicted_ms"]), (&json!("default"), &json!(1.5)));
        }
    }
}

#[test]
fn chunks_of_careless_servers_pass() {
    let parts = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]);
    let odd = json!({"id": null, "object": null, "created": 1.5, "model": null, "choices": null});
    let text = [
        chunk(json!({"role": "assistant", "content": parts}), Value::Null),
        odd.to_string(),
        chunk(json!({"role": null, "content": [{"type": "text", "text": "a"}]}), Value::Null),
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": null}})
            .to_string(),
    ];
    let text: String = text.iter().map(|data| format!("data: {data}\n\n")).collect();
    let (got, _, refit) = ask(stream(&text, 64), json!({"stream": true}));
    assert_eq!(chunks(&got)[0]["choices"][0]["delta"]["content"], parts, "the provider's own event: {got:?}");
    assert_eq!(chunks(&got)[1], odd);
    let row = row(&refit, &got);
    let message = &row["reply"]["choices"][0]["message"];
    assert_eq!((&row["status"], &message["content"], &message["reasoning_content"]), (&json!(200), &json!("a"), &json!("hm")));
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(2), &json!(0)));

    // Callers of another protocol get thoughts as theirs.
    let whole = json!({"id": null, "created": 1.5, "choices": [{"index": null, "message": {"role": null, "content": [parts[0], {"type": "text", "text": "a"}]}, "finish_reason": "stop"}]});
    let (refit, _) = in_front_of(vec![stream(&text, 64), reply("200 OK", "", &whole.to_string())], "mistral", "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "mistral/m", "max_tokens": 9, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let got = server.post("/v1/messages", Some(&key), &body);
    assert!(got.body.contains("\"thinking\":\"hm\"") && got.body.contains("\"text\":\"a\""), "{got:?}");
    let mut body = body;
    body["stream"] = json!(false);
    let got = server.post("/v1/messages", Some(&key), &body).json();
    assert_eq!((&got["content"][0]["thinking"], &got["content"][1]["text"]), (&json!("hm"), &json!("a")), "{got}");
}

#[test]
fn a_row_gets_what_it_takes() {
    let body = json!({"max_tokens": 9, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": "boom"}]}]});
    for (provider, thoughts, cached) in [("deepseek", json!("hm"), false), ("openrouter", Value::Null, true), ("groq", Value::Null, false)]
    {
        let (refit, seen) = in_front_of(vec![reply("500 Oops", "", "{}")], provider, "");
        let (key, server) = (refit.key(), refit.serve(&[]));
        let mut body = body.clone();
        body["model"] = json!(format!("{provider}/m"));
        server.post("/v1/messages", Some(&key), &body);
        let sent = seen.recv_timeout(Duration::from_secs(30)).expect("called").body;
        assert_eq!((&sent["messages"][1]["reasoning_content"], sent.to_string().contains("cache_control")), (&thoughts, cached), "{sent}");
        assert_eq!(sent["messages"][2], json!({"role": "tool", "tool_call_id": "t1", "content": "Error: boom"}));
        assert!(!sent.to_string().contains("thinking_blocks"), "{sent}");
    }
}

#[test]
fn a_long_stream_is_logged_in_part() {
    let text = format!("data: {}\n\n", chunk(json!({"content": "x".repeat(1 << 20)}), Value::Null)).repeat(6);
    let mut last: Value = serde_json::from_str(&chunk(json!({}), json!("stop"))).expect("a chunk");
    last["usage"] = json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8});
    let (got, _, refit) = ask(stream(&format!("{text}data: {last}\n\n"), 1 << 16), json!({"stream": true}));
    assert!(got.body.len() > 6 << 20, "the caller gets all of it");
    let row = row(&refit, &got);
    let kept = row["reply"]["choices"][0]["message"]["content"].as_str().map(str::len);
    assert!(kept.is_some_and(|kept| kept > 0 && kept <= 4 << 20) && row["reply"]["refit"]["cut"].is_string(), "{kept:?}");
    assert_eq!((&row["output_tokens"], &row["finish_reason"]), (&json!(3), &json!("stop")));
}

#[test]
fn embeddings_give_one_vector_an_input() {
    let vectors = |n: usize| {
        let vector = |index| json!({"object": "embedding", "index": index, "embedding": [0.5, 1.0]});
        json!({"object": "list", "model": "m", "data": (0..n).map(vector).collect::<Vec<_>>(), "usage": {"prompt_tokens": 1, "total_tokens": 1}})
    };
    let cases = [
        (json!(["a", "b"]), vectors(1), 502),
        (json!("a"), json!({}), 502),
        (json!("a"), json!({"data": [{"index": 0, "embedding": []}]}), 502),
        (json!(["a", "b"]), vectors(2), 200),
        (json!([1, 2, 3]), vectors(1), 200),
        (json!([[1, 2], [3]]), vectors(2), 200),
    ];
    let scripts = cases.iter().map(|(_, answer, _)| reply("200 OK", "", &answer.to_string())).collect();
    let (refit, _) = in_front_of(scripts, "up", "kind = \"compatible\"");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for (input, answer, status) in cases {
        let got = server.post("/v1/embeddings", Some(&key), &json!({"model": "up/m", "input": input}));
        assert_eq!(got.status, status, "{input} {answer}: {got:?}");
    }
}

#[test]
fn no_proxy_gets_a_key_in_the_clear() {
    let (proxy, _) = upstream(vec![reply("200 OK", "", "{}")]);
    let (port, seen) = upstream(vec![reply("500 Oops", "", "{}")]);
    let refit = Refit::new()
        .env("UP_KEY", CANARY)
        .env("HTTP_PROXY", format!("http://127.0.0.1:{proxy}"))
        .env("http_proxy", format!("http://127.0.0.1:{proxy}"));
    refit.write("refit.toml", format!("[providers.groq]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    server.post(CHAT, Some(&key), &chat("groq/m", &json!({})));
    let seen = seen.recv_timeout(Duration::from_secs(30)).expect("the service itself was called");
    assert!(seen.head.contains(CANARY));
}

#[test]
fn a_list_that_nobody_waited_for_is_asked_for_again() {
    let list = json!({"object": "list", "data": [{"id": "found"}]}).to_string();
    let (refit, seen) =
        in_front_of(vec![Script { pieces: Vec::new(), hang: true }, reply("200 OK", "", &list)], "up", "kind = \"compatible\"");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut early = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    write!(early, "GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n").expect("sent");
    std::thread::sleep(Duration::from_millis(500));
    drop(early);
    assert!(seen.recv_timeout(Duration::from_secs(30)).expect("asked").closed);
    let got = server.get("/v1/models", Some(&key));
    assert!(got.body.contains("up/found"), "{got:?}");
}
