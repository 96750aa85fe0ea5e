//! The Messages API where its own provider stands behind a prompt, and failures that only this protocol's callers see: nothing is lost
//! on the way, and fields are named as they were written.

use crate::support::{Refit, Reply, Server};
use crate::upstream::{Script, Seen, reply, stream, upstream};
use serde_json::{Value, json};
use std::sync::mpsc::Receiver;
use std::time::Duration;

const MESSAGES: &str = "/v1/messages";

struct Gateway {
    refit: Refit,
    key: String,
    server: Server,
    seen: Receiver<Seen>,
}

/// A gateway whose providers are the scripted upstream, with a prompt that greets.
fn gateway(scripts: Vec<Script>) -> Gateway {
    let (port, seen) = upstream(scripts);
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let provider = |name: &str| format!("[providers.{name}]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", ["openai", "anthropic", "gemini"].map(provider).concat());
    refit.write("greet.prompt", "{{role \"system\"}}Greet {{who}}.{{history}}");
    refit.run(&["prompt", "publish", "greet.prompt"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    Gateway { refit, key, server, seen }
}

impl Gateway {
    fn post(&self, path: &str, body: &Value) -> Reply {
        self.server.post(path, Some(&self.key), body)
    }

    fn received(&self) -> Value {
        self.seen.recv_timeout(Duration::from_secs(20)).expect("the provider was called").body
    }
}

fn whole(body: &Value) -> Script {
    reply("200 OK", "", &body.to_string())
}

fn events(events: &[Value]) -> Script {
    let text: String =
        events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().expect("a type"))).collect();
    stream(&text, 64)
}

/// Everything that a request through a prompt must bring to the provider of its own protocol.
fn prompted(stream: bool) -> Value {
    let mut body = json!({"model": "anthropic/claude-opus-5-5", "max_tokens": 3_000, "prompt": {"id": "greet", "variables": {"who": "Bo"}},
        "stop_sequences": ["END"], "temperature": 1, "cache_control": {"type": "ephemeral"}, "service_tier": "standard_only",
        "thinking": {"type": "enabled", "budget_tokens": 2_000}, "output_config": {"effort": "max", "task_budget": {"type": "tokens", "total": 20_000}},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "input_examples": [{"a": 1}], "defer_loading": true,
            "eager_input_streaming": true}],
        "messages": [
            {"role": "user", "content": [{"type": "document", "title": "T", "context": "c", "citations": {"enabled": true},
                "source": {"type": "text", "media_type": "text/plain", "data": "Ulm: 7 degrees"}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A"}, {"type": "thinking", "thinking": "Then.", "signature": "s2"},
                {"type": "tool_use", "id": "toolu_01", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_01", "content": "7"}]}]});
    if stream {
        body["stream"] = true.into();
    }
    body
}

fn answer() -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-5-5", "stop_reason": "end_turn", "stop_sequence": null,
        "container": {"id": "container_1", "expires_at": "2026-11-25T00:00:00Z"},
        "content": [{"type": "thinking", "thinking": "Look.", "signature": "s"}, {"type": "text", "text": "I look. "},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "ulm"}},
            {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
            {"type": "text", "text": "Seven", "citations": [{"type": "char_location", "cited_text": "7"}]}, {"type": "text", "text": "."}],
        "usage": {"input_tokens": 5, "cache_creation_input_tokens": 1, "cache_read_input_tokens": 0, "output_tokens": 9, "service_tier": "standard",
            "cache_creation": {"ephemeral_5m_input_tokens": 1}, "server_tool_use": {"web_search_requests": 1}}})
}

/// The same answer as its events.
fn answered_in_events() -> Vec<Value> {
    let whole = answer();
    let mut start = whole.clone();
    (start["content"], start["stop_reason"]) = (json!([]), Value::Null);
    start.as_object_mut().expect("an object").remove("container");
    let mut events = vec![json!({"type": "message_start", "message": start})];
    for (index, block) in whole["content"].as_array().expect("blocks").iter().enumerate() {
        let mut empty = block.clone();
        let deltas = match block["type"].as_str().expect("a type") {
            "thinking" => {
                (empty["thinking"], empty["signature"]) = (json!(""), json!(""));
                vec![
                    json!({"type": "thinking_delta", "thinking": block["thinking"]}),
                    json!({"type": "signature_delta", "signature": block["signature"]}),
                ]
            }
            "text" => {
                empty["text"] = json!("");
                if block["citations"].is_array() {
                    empty["citations"] = json!([]);
                }
                let citations = block["citations"].as_array().into_iter().flatten();
                let text = json!({"type": "text_delta", "text": block["text"]});
                std::iter::once(text).chain(citations.map(|citation| json!({"type": "citations_delta", "citation": citation}))).collect()
            }
            "server_tool_use" => {
                empty["input"] = json!({});
                vec![json!({"type": "input_json_delta", "partial_json": block["input"].to_string()})]
            }
            _ => Vec::new(),
        };
        events.push(json!({"type": "content_block_start", "index": index, "content_block": empty}));
        events.extend(deltas.iter().map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    let delta = json!({"stop_reason": "end_turn", "stop_sequence": null, "container": whole["container"]});
    events.push(json!({"type": "message_delta", "delta": delta, "usage": whole["usage"]}));
    events.push(json!({"type": "message_stop"}));
    events
}

/// A streamed message as an SDK puts it together.
fn put_together(text: &str) -> Value {
    let events = text.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    let mut message = Value::Null;
    let mut json = String::new();
    for event in events.map(|data| serde_json::from_str::<Value>(data).expect("JSON")) {
        let at = event["index"].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(0);
        let delta = &event["delta"];
        match event["type"].as_str().expect("a type") {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                assert_eq!(message["content"].as_array().map(Vec::len), Some(at), "blocks are numbered: {event}");
                message["content"].as_array_mut().expect("blocks").push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let block = &mut message["content"][at];
                let field = match delta["type"].as_str().expect("a type") {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "signature_delta" => "signature",
                    "citations_delta" => {
                        if !block["citations"].is_array() {
                            block["citations"] = json!([]);
                        }
                        block["citations"].as_array_mut().expect("a list").push(delta["citation"].clone());
                        continue;
                    }
                    _ => {
                        json.push_str(delta["partial_json"].as_str().expect("JSON"));
                        block["input"] = serde_json::from_str(&json).expect("whole in one event");
                        continue;
                    }
                };
                block[field] = format!("{}{}", block[field].as_str().unwrap_or_default(), delta[field].as_str().expect("a text")).into();
            }
            "message_delta" => {
                for (name, value) in delta.as_object().expect("an object") {
                    message[name] = value.clone();
                }
                message["usage"] = event["usage"].clone();
            }
            _ => json.clear(),
        }
    }
    message
}

#[test]
fn a_prompt_before_the_protocols_own_provider_loses_nothing() {
    let gateway = gateway(vec![whole(&answer()), events(&answered_in_events()), whole(&json!({"input_tokens": 3}))]);
    let got = gateway.post(MESSAGES, &prompted(false));
    let mut wanted = prompted(false);
    wanted.as_object_mut().expect("an object").remove("prompt");
    wanted["model"] = "claude-opus-5-5".into();
    wanted["system"] = json!([{"type": "text", "text": "Greet Bo."}]);
    wanted["temperature"] = json!(1.0);
    wanted["messages"][2]["content"][0]["content"] = json!("7");
    let mut received = gateway.received();
    assert_eq!(received, wanted);
    assert_eq!(got.json(), answer());

    let got = gateway.post(MESSAGES, &prompted(true));
    received = gateway.received();
    received.as_object_mut().expect("an object").remove("stream");
    assert_eq!(received, wanted);
    assert_eq!(put_together(&got.body), answer(), "{}", got.body);

    let mut counted = prompted(false);
    counted.as_object_mut().expect("an object").remove("max_tokens");
    assert_eq!(gateway.post("/v1/messages/count_tokens", &counted).json(), json!({"input_tokens": 3}));
    let received = gateway.received();
    let mut names: Vec<_> = received.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache_control", "messages", "model", "output_config", "system", "thinking", "tools"]);
}

#[test]
fn fields_at_fault_are_named_as_the_caller_wrote_them() {
    let refused = json!({"error": {"message": "Invalid 'messages[2].content[0].image_url.url'.", "type": "invalid_request_error",
        "param": "messages[2].content[0].image_url.url", "code": null}});
    let gateway = gateway(vec![reply("400 Bad Request", "", &refused.to_string())]);
    let image = json!({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}});
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let cases = [
        (json!({"system": "s", "messages": user(json!([{"type": "text"}]))}), "messages[0].content[0].text is missing"),
        (
            json!({"messages": user(json!([{"type": "tool_result", "tool_use_id": "a", "content": "x"}, {"type": "text", "text": "y"}, {"type": "text"}]))}),
            "messages[0].content[2].text is missing",
        ),
        (json!({"system": [{"type": "text"}], "messages": user(json!("x"))}), "system[0].text is missing"),
        (
            json!({"model": "gemini/g", "system": "s", "messages": user(json!([{"type": "text", "text": "x"}, image]))}),
            "messages[0].content[1].source: ",
        ),
        (
            json!({"model": "anthropic/c", "prompt": {"id": "greet", "variables": {"who": "Bo"}}, "thinking": {"type": "enabled", "budget_tokens": 1}}),
            "thinking.budget_tokens: expected a whole number from 1024",
        ),
        (json!({"thinking": {"type": "enabled", "budget_tokens": -5}}), "thinking.budget_tokens: expected a whole number from 1024"),
        (json!({"thinking": {}}), "thinking.type: "),
        (json!({"top_k": -5}), "top_k: "),
        (json!({"top_k": 1.5}), "top_k: "),
        (
            json!({"model": "gemini/g", "messages": user(json!([{"type": "tool_result", "tool_use_id": "a"}]))}),
            "messages[0].content[0].tool_use_id: ",
        ),
        // The provider's own words, last.
        (
            json!({"model": "openai/m", "system": "s", "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}, {"type": "text", "text": "x"}]}, {"role": "user", "content": "y"}]}),
            "Invalid 'messages[0].content[1].source'",
        ),
    ];
    for (fields, told) in cases {
        let mut body = json!({"model": "mock/echo", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
        for (name, value) in fields.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let got = gateway.post(MESSAGES, &body);
        let message = got.json()["error"]["message"].as_str().unwrap_or_default().to_string();
        assert!(got.status == 400 && message.contains(told), "{fields}: {told}: {got:?}");
    }
}

#[test]
fn an_error_inside_a_success_is_logged_as_a_failure() {
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let google = json!({"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}});
    let gateway = gateway([&overloaded, &google, &overloaded, &google].map(whole).into());
    for (i, model) in ["anthropic/c", "gemini/g", "anthropic/c", "gemini/g"].iter().enumerate() {
        let body = json!({"model": model, "max_tokens": 9, "stream": i > 1, "messages": [{"role": "user", "content": "x"}]});
        let got = gateway.post(MESSAGES, &body);
        assert_eq!((got.status, &got.json()["error"]["type"]), (529, &json!("overloaded_error")), "{model}: {got:?}");
        let id = got.header("x-request-id").expect("an id").to_string();
        let row = gateway.refit.run(&["logs", "show", &id, "--json"]).expect(0).json();
        assert_eq!((&row["status"], &row["error_code"]), (&json!(503), &json!("upstream_overloaded")), "{row}");
    }
}

#[test]
fn embeddings_at_gemini_go_in_batches_of_a_hundred() {
    let vectors = |from: u32, count: u32| {
        let vectors: Vec<_> = (from..from + count).map(|i| json!({"values": [f64::from(i)]})).collect();
        whole(&json!({"embeddings": vectors, "usageMetadata": {"promptTokenCount": count}}))
    };
    let gateway = gateway(vec![vectors(0, 100), vectors(100, 1)]);
    let input: Vec<_> = (0..101).map(|i| format!("t{i}")).collect();
    let got = gateway.post("/v1/embeddings", &json!({"model": "gemini/e", "input": input, "encoding_format": "float"})).json();
    let first = gateway.received();
    let second = gateway.received();
    assert_eq!((first["requests"].as_array().map(Vec::len), second["requests"].as_array().map(Vec::len)), (Some(100), Some(1)));
    assert_eq!(second["requests"][0]["content"]["parts"][0]["text"], "t100");
    assert_eq!((&got["data"][100]["embedding"], &got["data"][100]["index"]), (&json!([100.0]), &json!(100)));
    assert_eq!(got["usage"]["prompt_tokens"], 101);
}
