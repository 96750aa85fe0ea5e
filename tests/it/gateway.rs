//! The gateway over HTTP, on the mock provider: bodies, streams, errors, keys, and the orderly end.

use crate::support::{Refit, Reply, Server};
use async_openai::error::WrappedError;
use async_openai::types::chat::{CreateChatCompletionResponse, CreateChatCompletionStreamResponse, FinishReason, Role};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

fn body(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn with(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// `data:` payloads of an event stream.
fn events(reply: &Reply) -> Vec<String> {
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")), "{reply:?}");
    let events = reply.body.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    events.map(|event| event.strip_prefix("data: ").expect("a data line").to_string()).collect()
}

fn chunks(reply: &Reply) -> Vec<CreateChatCompletionStreamResponse> {
    let mut events = events(reply);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{reply:?}");
    events.iter().map(|event| serde_json::from_str(event).expect("a chunk as async-openai reads it")).collect()
}

/// Status, code and param of an error that async-openai can read.
fn error(reply: &Reply) -> (u16, String, Option<String>) {
    let WrappedError { error } = serde_json::from_str(&reply.body).unwrap_or_else(|e| panic!("not an OpenAI error ({e}): {reply:?}"));
    assert!(!error.message.is_empty() && error.r#type.is_some(), "{reply:?}");
    assert!(reply.header("x-request-id").is_some_and(|id| id.starts_with("req_")), "{reply:?}");
    (reply.status, error.code.expect("a code"), error.param)
}

fn request(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client.request(method.parse().expect("a method"), format!("{}{path}", server.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let reply = request.send().await.expect("an answer");
        let headers = reply.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("").to_string())).collect();
        Reply { status: reply.status().as_u16(), headers, body: reply.text().await.expect("a body") }
    })
}

#[test]
fn a_plain_reply_is_what_openai_clients_read() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = server.post(CHAT, Some(&key), &body("mock/echo", "one two three"));
    assert_eq!(reply.status, 200, "{reply:?}");
    let read: CreateChatCompletionResponse = serde_json::from_str(&reply.body).expect("async-openai reads it");
    assert_eq!(read.choices[0].message.content.as_deref(), Some("one two three"));
    assert_eq!((read.object.as_str(), read.choices[0].finish_reason), ("chat.completion", Some(FinishReason::Stop)));
    assert_eq!(read.usage.map(|usage| usage.total_tokens), Some(6));

    let reply = server.post(CHAT, Some(&key), &with(body("mock/echo", "one two three"), json!({"max_tokens": 2, "n": 2})));
    let read: CreateChatCompletionResponse = serde_json::from_str(&reply.body).expect("async-openai reads it");
    assert_eq!((read.choices.len(), read.choices[1].finish_reason), (2, Some(FinishReason::Length)));
}

#[test]
fn a_stream_is_role_content_finish_and_usage_only_when_asked() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let streamed = with(body("mock/echo", "grüße an 🦀"), json!({"stream": true}));
    let read = chunks(&server.post(CHAT, Some(&key), &streamed));
    assert_eq!(read[0].choices[0].delta.role, Some(Role::Assistant));
    let text: String = read.iter().filter_map(|chunk| chunk.choices[0].delta.content.clone()).collect();
    assert_eq!(text, "grüße an 🦀");
    assert_eq!(read.last().and_then(|chunk| chunk.choices[0].finish_reason), Some(FinishReason::Stop));
    assert!(read.iter().all(|chunk| chunk.usage.is_none() && chunk.id == read[0].id));

    let read = chunks(&server.post(CHAT, Some(&key), &with(streamed, json!({"stream_options": {"include_usage": true}}))));
    let last = read.last().expect("chunks");
    assert!(last.choices.is_empty() && last.id == read[0].id);
    assert_eq!(last.usage.as_ref().map(|usage| usage.completion_tokens), Some(3));
}

#[test]
fn async_openai_runs_against_it_unchanged() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let config = async_openai::config::OpenAIConfig::new().with_api_base(format!("{}/v1", server.url())).with_api_key(key);
    let client = async_openai::Client::with_config(config);
    let request: async_openai::types::chat::CreateChatCompletionRequest =
        serde_json::from_value(body("mock/echo", "hello there")).expect("a request");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let reply = client.chat().create(request.clone()).await.expect("an answer");
        assert_eq!(reply.choices[0].message.content.as_deref(), Some("hello there"));
        let mut stream = client.chat().create_stream(request).await.expect("a stream");
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            text.extend(chunk.expect("a chunk").choices.into_iter().filter_map(|choice| choice.delta.content));
        }
        assert_eq!(text, "hello there");
    });
}

#[test]
fn a_stream_that_breaks_ends_with_an_error_event() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let broken = with(body("mock/echo", "a b c d"), json!({"stream": true, "mock": {"fail_after": 2}}));
    let reply = server.post(CHAT, Some(&key), &broken);
    let events = events(&reply);
    let last: WrappedError = serde_json::from_str(events.last().expect("events")).expect("an error event");
    assert_eq!((reply.status, events.len(), last.error.code.as_deref()), (200, 4, Some("upstream_error")), "{reply:?}");
    // Before the first byte, the same error has its own status.
    let early = with(body("mock/fail", "a"), json!({"stream": true}));
    assert_eq!(error(&server.post(CHAT, Some(&key), &early)).0, 502);
}

#[test]
fn everything_that_goes_wrong_has_its_code() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |body: &str| error(&server.post_bytes(CHAT, Some(&key), body.as_bytes()));
    let coded = |status: u16, code: &str, param: Option<&str>| (status, code.to_string(), param.map(str::to_string));
    let chat = |fields: Value| post(&with(body("mock/echo", "x"), fields).to_string());

    assert_eq!(post("{\"model\": \"mock/echo\",\n \"messages\": [}"), coded(400, "invalid_request", Some("messages[0]")));
    assert!(server.post_bytes(CHAT, Some(&key), b"{\n \"a\": }").body.contains("line 2, column"), "says where");
    assert_eq!(post(""), coded(400, "invalid_request", None));
    assert_eq!(post("[1]"), coded(400, "invalid_request", None));
    assert_eq!(post("{\"temperature\": 1e999}"), coded(400, "invalid_request", Some("temperature")));
    assert_eq!(post(&"[".repeat(10_000)), coded(400, "invalid_request", None));
    assert_eq!(post("{}"), coded(400, "missing_required_parameter", Some("model")));
    assert_eq!(chat(json!({"temperature": 3})), coded(400, "invalid_value", Some("temperature")));
    assert_eq!(chat(json!({"max_tokens": -1})), coded(400, "invalid_value", Some("max_tokens")));
    assert_eq!(chat(json!({"messages": []})), coded(400, "invalid_value", Some("messages")));
    assert_eq!(chat(json!({"messages": [{"role": "user"}]})), coded(400, "missing_required_parameter", Some("messages[0].content")));
    assert_eq!(chat(json!({"model": "mok/echo"})), coded(404, "model_not_found", Some("model")));
    assert!(server.post(CHAT, Some(&key), &body("mok/echo", "x")).body.contains("did you mean \\\"mock/echo\\\""));
    assert_eq!(chat(json!({"model": "no-such-route"})), coded(404, "model_not_found", Some("model")));
    assert_eq!(chat(json!({"model": "mock/other"})), coded(404, "model_not_found", Some("model")));
    assert_eq!(chat(json!({"model": "../../etc/passwd"})), coded(404, "model_not_found", Some("model")));
    assert_eq!(chat(json!({"model": "mock/fail"})), coded(502, "upstream_error", None));
    assert_eq!(chat(json!({"model": "openai/gpt-4o"})), coded(400, "unsupported", Some("model")));
    assert_eq!(chat(json!({"prompt": {"variables": {}}})), coded(400, "invalid_value", Some("prompt")));

    let wrong = |method: &str, path: &str| error(&request(&server, method, path, &[("x-api-key", &key)], None));
    assert_eq!(wrong("GET", "/v1/embeddings"), coded(405, "method_not_allowed", None));
    assert_eq!(wrong("POST", "/v1/nothing"), coded(404, "not_found", None));
    assert_eq!(wrong("GET", "/v1/models/mock%2Fother"), coded(404, "model_not_found", Some("model")));
    assert_eq!(wrong("GET", "/v1/models/..%2F..%2Fpepper"), coded(404, "model_not_found", Some("model")));
}

#[test]
fn a_body_over_the_limit_is_refused_and_the_connection_lives() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nmax_body_bytes = 2048\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let large = body("mock/echo", &"x".repeat(1 << 20));
    assert_eq!(error(&server.post(CHAT, Some(&key), &large)).1, "request_too_large");
    assert_eq!(server.post(CHAT, Some(&key), &body("mock/echo", "x")).status, 200);
}

#[test]
fn models_are_listed_and_found_with_and_without_percent_encoding() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let list = server.get("/v1/models", Some(&key)).json();
    let ids: Vec<_> = list["data"].as_array().expect("data").iter().filter_map(|model| model["id"].as_str()).collect();
    assert!(list["object"] == "list" && ids.contains(&"mock/echo"), "{list}");
    for path in ["/v1/models/mock/echo", "/v1/models/mock%2Fecho"] {
        let model = server.get(path, Some(&key)).json();
        assert_eq!((&model["id"], &model["object"]), (&json!("mock/echo"), &json!("model")));
        assert!(model["created"].is_i64() && model["owned_by"].is_string());
    }
}

#[test]
fn health_and_metrics_are_public_and_labels_are_bounded() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    server.post(CHAT, Some(&key), &with(body("mock/echo", "a b"), json!({"stream": true})));
    server.post(CHAT, Some(&key), &body("made-up-name-canary", "a b"));
    server.get("/made-up-path-canary", None);
    assert_eq!(server.get("/health", None).json()["status"], "ok");
    let metrics = server.get("/metrics", None).body;
    for line in [
        "refit_requests_total{endpoint=\"chat.completions\",provider=\"mock\",status=\"2xx\"} 1",
        "refit_first_token_seconds_count{endpoint=\"chat.completions\",provider=\"mock\"} 1",
        "refit_tokens_total{provider=\"mock\",direction=\"output\"} 2",
        "refit_requests_in_flight 0",
        "refit_log_rows_dropped_total 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("canary"), "nothing a caller writes is a label: {metrics}");
}

#[test]
fn keys_decide_who_may_call() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let chat = body("mock/echo", "x");
    let coded = |headers: &[(&str, &str)]| {
        let reply = request(&server, "POST", CHAT, headers, Some(chat.clone()));
        if reply.status == 200 { (200, String::new()) } else { (reply.status, error(&reply).1) }
    };
    let bearer = format!("Bearer {key}");
    let other = format!("rk_{}", "A".repeat(43));
    let other_bearer = format!("Bearer {other}");
    assert_eq!(coded(&[("authorization", &bearer)]).0, 200);
    assert_eq!(coded(&[("x-api-key", &key)]).0, 200);
    assert_eq!(coded(&[("x-api-key", &key), ("authorization", &bearer)]).0, 200);
    assert_eq!(coded(&[("x-api-key", ""), ("api-key", ""), ("authorization", &bearer)]).0, 200);
    assert_eq!(coded(&[]), (401, "missing_api_key".into()));
    assert_eq!(coded(&[("authorization", &other_bearer)]), (401, "invalid_api_key".into()));
    assert_eq!(coded(&[("authorization", "Bearer ")]), (401, "invalid_api_key".into()));
    assert_eq!(coded(&[("x-api-key", "' OR 1=1 --")]), (401, "invalid_api_key".into()));
    assert_eq!(coded(&[("x-api-key", &other), ("authorization", &bearer)]), (400, "invalid_request".into()));
    assert_eq!(coded(&[("authorization", &bearer), ("authorization", &other_bearer)]), (400, "invalid_request".into()));
    refit.run(&["key", "revoke", "test"]).expect(0);
    assert_eq!(coded(&[("authorization", &bearer)]), (401, "invalid_api_key".into()));
}

#[test]
fn every_registered_route_refuses_strangers_unless_it_is_public() {
    use refit::gateway::routes::{Access, access_of, table};
    let refit = Refit::new();
    let server = refit.serve(&[]);
    for route in table() {
        let path = route.path.replace("{*id}", "x");
        let statuses = ["GET", "POST"].map(|method| request(&server, method, &path, &[], Some(json!({}))).status);
        match access_of(route.path).unwrap_or_else(|| panic!("{} has no access rule", route.path)) {
            Access::Public => assert!(statuses.contains(&200), "{path}: {statuses:?}"),
            Access::Key(_) => assert_eq!(statuses, [401, 401], "{path}"),
        }
    }
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let refit = Refit::new();
    let server = refit.serve(&[]);
    let done = refit.run(&["serve", "--port", "0"]).expect(2);
    assert!(done.stdout.is_empty() && done.stderr.contains(&format!("process {}", server.pid())), "{done:?}");
}

fn terminate(server: &Server) {
    let sent = Command::new("kill").args(["-TERM", &server.pid().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

/// Starts a slow stream on a thread and returns once its first content has arrived.
fn slow_stream(server: &Server, key: &str) -> std::thread::JoinHandle<String> {
    let (sender, started) = std::sync::mpsc::channel();
    let (url, key) = (format!("{}{CHAT}", server.url()), key.to_string());
    let request = with(body("mock/echo", &"word ".repeat(40)), json!({"stream": true, "mock": {"chunk_delay_ms": 25}}));
    let reader = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let reply = client.post(url).bearer_auth(key).body(request.to_string()).send().await.expect("an answer");
            let (mut stream, mut text) = (reply.bytes_stream(), String::new());
            while let Some(Ok(bytes)) = stream.next().await {
                text.push_str(&String::from_utf8_lossy(&bytes));
                let _ = sender.send(());
            }
            text
        })
    });
    started.recv().expect("the stream begins");
    reader
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < give_up, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn sigterm_lets_streams_end_and_keeps_their_rows() {
    let refit = Refit::new();
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let stream = slow_stream(&server, &key);
    terminate(&server);
    let text = stream.join().expect("the stream is read");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(server.wait(), Some(0));
    let rows = refit.run(&["logs", "tail", "--json"]).expect(0).json();
    assert_eq!((&rows[0]["status"], &rows[0]["output_tokens"]), (&json!(200), &json!(40)));
}

#[test]
fn streams_that_outlast_the_drain_time_end_with_an_error_event() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 0\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let stream = slow_stream(&server, &key);
    terminate(&server);
    let text = stream.join().expect("the stream is read");
    let last = text.trim_end().rsplit("data: ").next().unwrap_or_default();
    let error: WrappedError = serde_json::from_str(last).unwrap_or_else(|e| panic!("no error event ({e}): {text}"));
    assert_eq!(error.error.code.as_deref(), Some("unavailable"));
    assert_eq!(server.wait(), Some(0));
    let rows = refit.run(&["logs", "tail", "--json"]).expect(0).json();
    assert_eq!((&rows[0]["status"], &rows[0]["error_code"]), (&json!(503), &json!("unavailable")));
}

#[test]
fn a_caller_that_goes_away_is_logged_as_cancelled_with_what_it_was_sent() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let request = with(body("mock/echo", &"word ".repeat(4_000)), json!({"stream": true, "mock": {"chunk_delay_ms": 25}}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let reply =
            client.post(format!("{}{CHAT}", server.url())).bearer_auth(&key).body(request.to_string()).send().await.expect("an answer");
        let mut stream = reply.bytes_stream();
        let (first, second) = (stream.next().await, stream.next().await);
        assert!(first.is_some() && second.is_some());
    });
    drop(runtime);
    let rows = || refit.run(&["logs", "tail", "--json"]).expect(0).json();
    wait_for("the row of the cancelled call", || rows()[0]["error_code"] == "cancelled");
    let row = rows()[0].clone();
    assert_eq!(row["status"], 499);
    let whole = refit.run(&["logs", "show", row["id"].as_str().expect("an id"), "--json"]).expect(0).json();
    assert!(whole["reply"]["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.starts_with("word ")), "{whole}");
    wait_for("nothing in flight", || server.get("/metrics", None).body.contains("refit_requests_in_flight 0"));
}

#[test]
fn models_are_refused_in_the_callers_protocol() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let version = ("anthropic-version", "2023-06-01");
    let get = |path: &str, key: &str| request(&server, "GET", path, &[("x-api-key", key), version], None);
    for (path, key, status, kind) in [
        ("/v1/models/nope", key.as_str(), 404, "not_found_error"),
        ("/v1/models/%FF", &key, 404, "not_found_error"),
        ("/v1/models", "rk_wrong", 401, "authentication_error"),
    ] {
        let reply = get(path, key);
        let body = reply.json();
        assert_eq!((reply.status, &body["type"], &body["error"]["type"]), (status, &json!("error"), &json!(kind)), "{reply:?}");
        assert_eq!(reply.header("request-id"), body["request_id"].as_str(), "{reply:?}");
    }
    let list = get("/v1/models", &key).json();
    let names: Vec<_> = list.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["data", "first_id", "last_id", "has_more"]);
    assert_eq!((&list["data"][0]["type"], &list["data"][0]["lifecycle"]), (&json!("model"), &json!("active")), "{list}");
    // The other protocol's callers are told in theirs.
    let reply = request(&server, "GET", "/v1/models/%FF", &[("x-api-key", &key)], None);
    assert_eq!(error(&reply), (404, "model_not_found".into(), Some("model".into())));
}

#[test]
fn a_name_cannot_write_lines_into_the_log() {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    // Nobody listens there.
    refit.write("refit.toml", "[providers.openai]\nbase_url = \"http://127.0.0.1:9\"\napi_key = { env = \"UP_KEY\" }\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for model in ["openai/a\n2026-01-01 WARN forged", "openai/a\u{1b}[31mred"] {
        for (path, input) in [(CHAT, "messages"), ("/v1/responses", "input"), ("/v1/messages", "messages"), ("/v1/embeddings", "input")] {
            let input = json!({"model": model, "max_tokens": 9, input: [{"role": "user", "content": "x"}]});
            let reply = server.post(path, Some(&key), &input);
            assert!(reply.status == 400 && reply.body.contains("control characters"), "{path}: {reply:?}");
        }
    }
}

/// Where a request is refused, in the words of its own API; nothing is sent to a provider.
#[test]
fn the_field_at_fault_has_the_callers_name() {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let provider = |name: &str| format!("[providers.{name}]\nbase_url = \"http://127.0.0.1:9\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", provider("anthropic") + &provider("gemini"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let refused = |path: &str, model: &str, fields: Value, field: &str| {
        let reply = server.post(path, Some(&key), &with(json!({"model": model}), fields));
        let (status, _, param) = error(&reply);
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{reply:?}");
        assert!(reply.json()["error"]["message"].as_str().is_some_and(|message| message.contains(field)), "{field}: {reply:?}");
    };
    let said = |role: &str, content: Value| json!({"instructions": "i", "input": [{"role": role, "content": content}]});
    let text = json!({"type": "input_text", "text": "x"});
    let web = json!({"type": "input_image", "image_url": "https://example.org/a.png"});
    let call = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{oops"});
    let output = json!({"type": "function_call_output", "call_id": "b", "output": "x"});
    for (model, fields, field) in [
        // By our own checks.
        ("mock/echo", said("wizard", json!("x")), "input[0].role"),
        ("mock/echo", json!({"instructions": "i", "input": [{"content": "x"}]}), "input[0].role"),
        ("mock/echo", json!({"instructions": "i", "input": [{"role": "user"}]}), "input[0].content"),
        ("mock/echo", said("user", json!([{"type": "input_text"}])), "input[0].content[0].text"),
        ("mock/echo", said("user", json!([text, {"type": "input_text"}])), "input[0].content[1].text"),
        ("mock/echo", said("user", json!([{"type": "input_file", "file_url": "https://example.org"}])), "input[0].content[0].file_url"),
        ("mock/echo", json!({"input": [{"role": "user", "content": []}]}), "input"),
        (
            "mock/echo",
            json!({"input": [{"type": "function_call_output", "call_id": "a", "output": [{"type": "x"}]}]}),
            "input[0].output[0].type",
        ),
        ("mock/echo", json!({"input": "x", "reasoning": {"effort": 5}}), "reasoning.effort"),
        ("mock/echo", json!({"input": "x", "metadata": {"a": 1}}), "metadata"),
        ("mock/echo", json!({"input": "x", "tool_choice": "required"}), "tool_choice"),
        ("mock/echo", json!({"input": "x", "tools": [], "tool_choice": {"type": "function", "name": "f"}}), "tool_choice"),
        // By a provider's translation.
        ("gemini/m", said("user", json!([text, web])), "input[0].content[1].image_url"),
        ("gemini/m", json!({"instructions": "i", "input": ["x", output]}), "input[0]"),
        ("gemini/m", json!({"instructions": "i", "input": [{"role": "user", "content": "x"}, output]}), "input[1].call_id"),
        ("anthropic/m", json!({"instructions": "i", "input": [{"role": "user", "content": "x"}, call]}), "input[1].arguments"),
        ("anthropic/m", json!({"input": "x", "text": {"format": {"type": "json_object"}}}), "text.format.type"),
        ("anthropic/m", json!({"input": "x", "include": ["message.output_text.logprobs"]}), "include[0]"),
        ("anthropic/m", json!({"input": "x", "top_logprobs": 2}), "top_logprobs"),
    ] {
        refused("/v1/responses", model, fields.clone(), field);
        refused("/v1/responses", model, with(fields, json!({"stream": true})), field);
    }
    refused("/v1/completions", "anthropic/m", json!({"prompt": "x", "logprobs": 2}), "logprobs");
    refused("/v1/completions", "mock/echo", json!({"prompt": [1, 2]}), "prompt");
}

#[test]
fn a_late_error_of_a_response_comes_after_its_beginning() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nkeep_alive_s = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "mock/fail", "stream": true, "input": "x", "mock": {"delay_ms": 1_500}});
    let reply = server.post("/v1/responses", Some(&key), &body);
    let events = reply.body.split("\n\n").filter_map(|event| event.split_once("data: ")).map(|(_, data)| data);
    let events: Vec<Value> = events.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["response.created", "response.in_progress", "error", "response.failed"], "{reply:?}");
    assert_eq!((&events[0]["response"]["model"], &events[2]["code"]), (&json!("mock/fail"), &json!("upstream_error")));
    assert_eq!(events[0]["response"]["id"], events[3]["response"]["id"]);
    assert_eq!((&events[3]["response"]["status"], &events[3]["response"]["error"]["message"]), (&json!("failed"), &events[2]["message"]));
}

#[test]
fn a_prompts_variables_are_texts_and_images() {
    let refit = Refit::new();
    refit.write("look.prompt", "---\nmodel: mock/echo\n---\nWhat is {{what}}? {{media url=picture}}");
    refit.run(&["prompt", "publish", "look.prompt"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |what: Value, picture: Value| {
        let variables = json!({"what": what, "picture": picture});
        server.post("/v1/responses", Some(&key), &json!({"prompt": {"id": "look", "variables": variables}}))
    };
    let (text, image) =
        (json!({"type": "input_text", "text": "this"}), json!({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}));
    let reply = ask(text.clone(), image.clone());
    assert_eq!((reply.status, &reply.json()["output"][0]["content"][0]["text"]), (200, &json!("What is this? ")), "{reply:?}");
    let refused = |what: &Value, picture: Value| error(&ask(what.clone(), picture)).2.unwrap_or_default();
    assert_eq!(ask(text.clone(), json!({"type": "input_file", "file_id": "f"})).status, 200, "files are parts, too");
    assert_eq!(refused(&text, json!({"type": "input_file", "file_url": "https://x/y"})), "prompt.variables.picture.file_url");
    assert_eq!(refused(&text, json!({"type": "input_file"})), "prompt.variables.picture.file_data");
    assert_eq!(refused(&text, json!({"type": "input_image", "file_id": "f"})), "prompt.variables.picture.image_url");
    assert_eq!(refused(&json!({"type": "input_text"}), image), "prompt.variables.what.text");
}
