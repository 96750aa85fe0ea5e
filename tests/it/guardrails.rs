//! Guardrails: what must not reach a provider does not, nor the log; what must not reach a caller does not; replies fit their format.

use crate::releases::measured;
use crate::support::{Refit, Reply, Server};
use crate::upstream::{Script, Seen, reply, stream, upstream};
use async_openai::types::moderations::CreateModerationResponse;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const MAIL: &str = "ann.canary@example.com";
const CARD: &str = "4111 1111 1111 1111";
const PII: &str = "[guardrails]\ndefault = [\"pii\"]\n[guardrails.pii]\ndetectors = [\"email\", \"credit_card\"]\non = [\"input\"]\n";
const FIT: &str = "[guardrails]\ndefault = [\"fit\"]\n[guardrails.fit]\nvalidate_output = true\n";

/// A gateway before a scripted upstream.
struct Gateway {
    refit: Refit,
    key: String,
    server: Server,
    seen: Receiver<Seen>,
}

impl Gateway {
    fn new(guardrails: &str, scripts: Vec<Script>) -> Self {
        let (port, seen) = upstream(scripts);
        let refit = before(port, guardrails);
        let (key, server) = (refit.key(), refit.serve(&[]));
        Gateway { refit, key, server, seen }
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.server.post(path, Some(&self.key), body)
    }

    fn ask(&self, text: &str, fields: Value) -> Reply {
        self.post(CHAT, &chat(text, fields))
    }

    fn seen(&self) -> Value {
        self.seen.recv_timeout(Duration::from_secs(30)).expect("the upstream was called").body
    }

    /// Whether nobody has called the upstream (any more).
    fn is_quiet(&self) -> bool {
        self.seen.recv_timeout(Duration::from_millis(200)).is_err()
    }

    fn row(&self, reply: &Reply) -> Value {
        self.refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
    }

    /// What the row says about guardrails.
    fn found(&self, reply: &Reply) -> Value {
        self.row(reply)["guardrails"].clone()
    }

    /// Asserts that none of these texts stands anywhere in the data directory or in the process's log, now and after the end.
    fn keeps_nothing_of(mut self, texts: &[&str]) {
        self.assert_nothing_of(texts);
        self.server.kill();
        drop(self.refit.serve(&[]));
        self.assert_nothing_of(texts);
    }

    fn assert_nothing_of(&self, texts: &[&str]) {
        for text in texts {
            assert!(!holds(&self.refit.data_dir(), text), "{text} stands in the data directory");
            assert!(!self.server.errors().contains(text), "{text} stands in the process's log");
        }
    }
}

fn before(port: u16, guardrails: &str) -> Refit {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let section = |name: &str, kind: &str, path: &str| {
        let key = "api_key = { env = \"UP_KEY\" }";
        format!("[providers.{name}]\nkind = \"{kind}\"\nbase_url = \"http://127.0.0.1:{port}{path}\"\n{key}\nmodels = [\"m\"]\n")
    };
    let providers = [section("up", "compatible", "/v1"), section("claude", "anthropic", ""), section("gem", "gemini", "")].concat();
    refit.write("refit.toml", format!("{guardrails}{providers}"));
    refit
}

fn holds(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).expect("a directory").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

fn chat(text: &str, fields: Value) -> Value {
    let mut body = json!({"model": "up/m", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

fn says(message: Value, tokens: (u64, u64)) -> Script {
    let usage = json!({"prompt_tokens": tokens.0, "completion_tokens": tokens.1, "total_tokens": tokens.0 + tokens.1});
    let body = json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m-1", "usage": usage,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [{"token": "x"}]}}]});
    reply("200 OK", "", &body.to_string())
}

fn text(content: &str) -> Script {
    says(json!({"role": "assistant", "content": content}), (3, 1))
}

fn content(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_string()
}

/// The text of a streamed reply.
fn streamed(reply: &Reply) -> String {
    assert!(reply.status == 200 && reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
    let events = reply.body.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
    events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_string)).collect()
}

fn refused(reply: &Reply, guardrail: &str, place: &str) {
    let error = &reply.json()["error"];
    assert_eq!((reply.status, &error["code"], &error["param"]), (400, &json!("content_filter"), &json!(place)), "{reply:?}");
    assert!(error["message"].as_str().is_some_and(|told| told.contains(&format!("\"{guardrail}\"")) && told.contains(place)), "{reply:?}");
}

#[test]
fn what_is_redacted_reaches_neither_the_provider_nor_the_log() {
    let gateway = Gateway::new(PII, vec![text("ok")]);
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "mail", "arguments": format!("{{\"to\": \"{MAIL}\"}}")}});
    let body = json!({"model": "up/m", "user": MAIL, "metadata": {"who": MAIL}, "messages": [
        {"role": "system", "content": format!("Write to {MAIL}.")},
        {"role": "user", "content": [{"type": "text", "text": format!("{CARD} of {MAIL}")}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": format!("sent to {MAIL} and other.canary@example.com")}]});
    let got = gateway.post(CHAT, &body);
    assert_eq!(content(&got), "ok");
    let seen = gateway.seen();
    assert_eq!(seen["messages"][0]["content"], "Write to [EMAIL_1].");
    assert_eq!(seen["messages"][1]["content"][0]["text"], "[CREDIT_CARD_1] of [EMAIL_1]");
    assert_eq!(seen["messages"][2]["tool_calls"][0]["function"]["arguments"], "{\"to\":\"[EMAIL_1]\"}");
    assert_eq!(seen["messages"][3]["content"], "sent to [EMAIL_1] and [EMAIL_2]");
    assert!(!seen.to_string().contains("canary") && !seen.to_string().contains("4111"), "{seen}");
    assert_eq!(gateway.row(&got)["request"]["messages"][0]["content"], "Write to [EMAIL_1].");
    let found = gateway.found(&got);
    let of_card = json!({"set": "pii", "detector": "credit_card", "on": "input", "action": "redact", "count": 1, "where": "messages[1].content[0].text"});
    assert!(found.as_array().expect("a list").contains(&of_card), "{found}");
    assert!(found.to_string().contains("messages[2].tool_calls[0].function.arguments"), "{found}");
    gateway.keeps_nothing_of(&["canary", CARD]);
}

#[test]
fn nothing_passes_as_encoded_data_or_under_a_key_that_stands_twice() {
    let gateway = Gateway::new(PII, vec![text("ok")]);
    let image = "data:image/png;base64,iVBORw0KGgo=";
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "mail", "arguments": format!("{{\"to\": \"{MAIL}\", \"to\": \"you\"}}")}});
    let got = gateway.post(
        CHAT,
        &json!({"model": "up/m", "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": format!("data:;base64, mail {MAIL}")},
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{MAIL}")}},
            {"type": "image_url", "image_url": {"url": image}}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sent"}]}),
    );
    assert_eq!(content(&got), "ok");
    let seen = gateway.seen();
    let parts = &seen["messages"][0]["content"];
    assert_eq!((&parts[0]["text"], &parts[2]["image_url"]["url"]), (&json!("data:;base64, mail [EMAIL_1]"), &json!(image)));
    assert_eq!(seen["messages"][1]["tool_calls"][0]["function"]["arguments"], "{\"to\":\"you\"}");
    assert!(!seen.to_string().contains("canary"), "{seen}");
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn nothing_passes_beside_the_messages() {
    let gateway = Gateway::new(PII, vec![text("ok")]);
    let tool = json!({"type": "function", "function": {"name": "f", "description": MAIL, "parameters": {"type": "object", "title": MAIL}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "description": MAIL}}});
    let fields = json!({"tools": [tool], "response_format": format, "stop": [MAIL], "prompt_cache_key": MAIL, "metadata": {MAIL: "x"},
        "documents": [{"id": MAIL, "data": MAIL, "card": 4111111111111111u64, MAIL: 1}], MAIL: 1, "some_prompt": MAIL});
    let got = gateway.ask("hi", fields);
    assert_eq!(content(&got), "ok");
    let seen = gateway.seen();
    assert!(!seen.to_string().contains("canary") && !seen.to_string().contains("4111"), "{seen}");
    assert_eq!((&seen["stop"][0], &seen["tools"][0]["function"]["name"]), (&json!("[EMAIL_1]"), &json!("f")), "{seen}");
    gateway.keeps_nothing_of(&["canary", "4111"]);
}

#[test]
fn a_protocols_own_words_for_messages_are_refused_beside_them() {
    let gateway = Gateway::new("", Vec::new());
    let contents = json!([{"role": "user", "parts": [{"text": "other"}]}]);
    let system = json!({"parts": [{"text": "other"}]});
    let cases = [
        ("gem/m", "contents", json!({"contents": contents})),
        ("gem/m", "systemInstruction", json!({"systemInstruction": system})),
        ("gem/m", "system_instruction", json!({"system_instruction": system})),
        ("gem/m", "generation_config", json!({"max_tokens": 5, "generationConfig": {}, "generation_config": {"maxOutputTokens": 9}})),
        ("claude/m", "system", json!({"system": "other"})),
        ("claude/m", "system", json!({"anthropic": {"system": "other"}})),
        ("claude/m", "stop_sequences", json!({"stop": "a", "stop_sequences": ["b"]})),
    ];
    for (model, field, mut fields) in cases {
        fields["model"] = model.into();
        let got = gateway.ask("hi", fields);
        let error = &got.json()["error"];
        assert_eq!((got.status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!(field)), "{got:?}");
    }
    assert!(gateway.is_quiet());
}

#[test]
fn no_name_of_a_field_hides_what_is_in_it() {
    let answer = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": null,
        "content": [{"type": "text", "text": "ok"}], "usage": {"input_tokens": 1, "output_tokens": 1}});
    let gateway = Gateway::new(PII, vec![text("ok"), reply("200 OK", "", &answer.to_string())]);
    let parts = json!([
        {"type": "text", "text": "see"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": MAIL}},
        {"type": "file", "file": {"filename": "a.txt", "file_data": MAIL}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": MAIL}},
        {"type": "x", "data": {"id": MAIL}, MAIL: 1}]);
    let got = gateway.post(CHAT, &json!({"model": "up/m", "messages": [{"role": "user", "content": parts}]}));
    assert_eq!(content(&got), "ok");
    let seen = gateway.seen().to_string();
    assert!(!seen.contains("canary") && seen.contains("base64,iVBORw0KGgo="), "{seen}");
    // Blocks of a tool's call, as another protocol has them.
    let input = json!({"id": MAIL, "data": MAIL, "type": MAIL, "card": 4111111111111111u64, MAIL: 1});
    let call = json!({"id": "u1", "type": "function", "function": {"name": "f", "arguments": input.to_string()}});
    let blocks = json!([{"type": "server_tool_use", "id": "s1", "name": "web", "input": input},
        {"type": "tool_use", "id": "u1", "name": "f", "input": input}]);
    let got = gateway.post(
        CHAT,
        &json!({"model": "claude/m", "messages": [{"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "tool_calls": [call], "content_blocks": blocks},
        {"role": "tool", "tool_call_id": "u1", "content": [{"type": "document", "source": {"type": "text", "data": MAIL}}]}]}),
    );
    assert_eq!(got.status, 200, "{got:?}");
    let seen = gateway.seen();
    assert_eq!(seen["messages"][1]["content"][0]["type"], "server_tool_use", "the blocks are what is sent: {seen}");
    assert!(!seen.to_string().contains("canary") && !seen.to_string().contains("4111"), "{seen}");
    gateway.keeps_nothing_of(&["canary", "4111"]);
}

#[test]
fn json_behind_white_space_stays_json() {
    let sets = "[guardrails]\ndefault = [\"out\"]\n[guardrails.out]\ndetectors = [\"credit_card\"]\non = [\"output\"]\n";
    let gateway = Gateway::new(sets, vec![text("\n {\"card\": 4111111111111111}")]);
    let got: Value = serde_json::from_str(&content(&gateway.ask("who?", json!({})))).expect("JSON");
    assert_eq!(got, json!({"card": "[CREDIT_CARD_1]"}));
}

#[test]
fn every_endpoint_and_the_fast_lane_redact() {
    let say = format!("I am {MAIL}");
    let vectors = json!({"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1}});
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]});
    let events = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    let cases = [
        (CHAT, chat(&say, json!({})), text("ok")),
        (CHAT, chat(&say, json!({"stream": true})), stream(&events, 50)),
        (CHAT, chat(&say, json!({"logit_bias": {}})), text("ok")),
        ("/v1/completions", json!({"model": "up/m", "prompt": say}), text("ok")),
        ("/v1/responses", json!({"model": "up/m", "input": say}), text("ok")),
        ("/v1/messages", json!({"model": "up/m", "max_tokens": 9, "messages": [{"role": "user", "content": say}]}), text("ok")),
        (
            "/v1/embeddings",
            json!({"model": "up/m", "input": [say], "user": MAIL, "title": MAIL}),
            reply("200 OK", "", &vectors.to_string()),
        ),
        ("/v1/moderations", json!({"model": "up/m", "input": [{"type": "text", "text": say}]}), judged(&[false])),
        // Large enough to be scanned elsewhere.
        (CHAT, chat(&format!("{say} {}", "word ".repeat(60_000)), json!({})), text("ok")),
    ];
    let (bodies, scripts): (Vec<_>, Vec<_>) = cases.into_iter().map(|(path, body, script)| ((path, body), script)).unzip();
    let gateway = Gateway::new(PII, scripts);
    for (path, body) in bodies {
        let got = gateway.post(path, &body);
        assert_eq!(got.status, 200, "{path} {got:?}");
        let seen = gateway.seen().to_string();
        assert!(seen.contains("I am [EMAIL_1]") && !seen.contains("canary"), "{path} {seen}");
    }
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn the_anthropic_protocol_is_not_passed_on_as_it_was_written() {
    let answer = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": null,
        "content": [{"type": "text", "text": "ok"}], "usage": {"input_tokens": 1, "output_tokens": 1}});
    let gateway = Gateway::new(PII, vec![reply("200 OK", "", &answer.to_string())]);
    let body = json!({"model": "claude/m", "max_tokens": 9, "system": [{"type": "text", "text": MAIL}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": MAIL}]}]});
    let got = gateway.post("/v1/messages", &body);
    assert_eq!((got.status, &got.json()["content"][0]["text"]), (200, &json!("ok")), "{got:?}");
    let seen = gateway.seen().to_string();
    assert!(seen.matches("[EMAIL_1]").count() == 2 && !seen.contains("canary"), "{seen}");
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn a_refusal_names_set_and_place_and_asks_nobody() {
    let gateway = Gateway::new(&PII.replace("on =", "action = \"refuse\"\non ="), vec![text("never")]);
    for fields in [json!({}), json!({"stream": true})] {
        let got = gateway.ask(&format!("pay {CARD}"), fields);
        refused(&got, "pii", "messages[0].content");
        assert!(got.body.contains("credit_card") && !got.body.contains("4111"), "{got:?}");
        let row = gateway.row(&got);
        assert_eq!((&row["status"], &row["error_code"]), (&json!(400), &json!("content_filter")));
        assert_eq!(row["request"]["messages"][0]["content"], "pay [CREDIT_CARD_1]", "also a refused secret stays out of the log");
        assert_eq!(gateway.found(&got)[0]["action"], "refuse");
    }
    assert!(gateway.is_quiet());
    gateway.keeps_nothing_of(&[CARD]);
}

#[test]
fn a_set_that_refuses_sees_what_another_would_redact() {
    let sets = "[guardrails]\ndefault = [\"a\", \"b\"]\n[guardrails.a]\ndetectors = [\"credit_card\"]\n\
        [guardrails.b]\ndetectors = [\"credit_card\"]\naction = \"refuse\"\n";
    let gateway = Gateway::new(sets, Vec::new());
    refused(&gateway.ask(CARD, json!({})), "b", "messages[0].content");
}

#[test]
fn requests_that_fail_before_any_guardrail_leave_no_body_behind() {
    let gateway = Gateway::new(PII, Vec::new());
    let wrong = gateway.ask(MAIL, json!({"temperature": 9}));
    let unknown = gateway.ask(MAIL, json!({"model": "no-such-route"}));
    let embedded = gateway.post("/v1/embeddings", &json!({"model": "no-such-route", "input": MAIL}));
    assert_eq!((wrong.status, unknown.status, embedded.status), (400, 404, 404));
    assert_eq!(gateway.row(&unknown)["request"], Value::Null);
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn placeholders_are_restored_for_the_caller_and_not_in_the_log() {
    let call = json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"to\":\"[EMAIL_1]\"}"}}]);
    let answer = json!({"role": "assistant", "content": "Dear [EMAIL_1], [EMAIL_7]", "tool_calls": call});
    let restoring = format!("{PII}restore = true\n");
    let gateway = Gateway::new(&restoring, vec![says(answer.clone(), (3, 1)), says(answer, (3, 1)), text("[EMAIL_1]")]);
    let got = gateway.ask(&format!("I am {MAIL}"), json!({}));
    assert_eq!(content(&got), format!("Dear {MAIL}, [EMAIL_7]"));
    let arguments = &got.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, &json!(format!("{{\"to\":\"{MAIL}\"}}")));
    assert_eq!(gateway.row(&got)["reply"]["choices"][0]["message"]["content"], "Dear [EMAIL_1], [EMAIL_7]");
    let got = gateway.ask(&format!("I am {MAIL}"), json!({"stream": true}));
    assert_eq!(streamed(&got), format!("Dear {MAIL}, [EMAIL_7]"));
    // Nobody gets what another request said.
    assert_eq!(content(&gateway.ask("nothing to hide", json!({}))), "[EMAIL_1]");
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn replies_are_redacted_whole_streamed_and_in_tool_arguments() {
    let sets = "[guardrails]\ndefault = [\"out\"]\n[guardrails.out]\ndetectors = [\"email\"]\non = [\"output\"]\n\
        patterns = [{ name = \"ticket\", regex = \"T-[0-9]{4}\", replace = \"[ticket]\" }]\n";
    let call =
        json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": format!("{{\"to\":\"{MAIL}\",\"n\":1}}")}}]);
    let answer =
        json!({"role": "assistant", "content": format!("{MAIL} about T-1234"), "refusal": format!("not {MAIL}"), "tool_calls": call});
    let gateway =
        Gateway::new(sets, vec![says(answer.clone(), (3, 1)), says(answer, (3, 1)), text(&format!("{{\"card\": 1, \"to\": \"{MAIL}\"}}"))]);
    let got = gateway.ask("who?", json!({"logprobs": true}));
    assert_eq!(content(&got), "[EMAIL_1] about [ticket]");
    let choice = &got.json()["choices"][0];
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"to\":\"[EMAIL_1]\",\"n\":1}");
    assert_eq!((&choice["message"]["refusal"], &choice["logprobs"]), (&json!("not [EMAIL_1]"), &Value::Null));
    assert_eq!(gateway.found(&got)[0]["on"], "output");
    let got = gateway.ask("who?", json!({"stream": true}));
    assert_eq!(streamed(&got), "[EMAIL_1] about [ticket]");
    assert!(!got.body.contains("canary"), "{got:?}");
    // Structured replies stay JSON.
    let got: Value = serde_json::from_str(&content(&gateway.ask("who?", json!({})))).expect("JSON");
    assert_eq!(got, json!({"card": 1, "to": "[EMAIL_1]"}));
    gateway.keeps_nothing_of(&["canary", "T-1234"]);
}

#[test]
fn a_refused_reply_is_not_told_and_its_tokens_are_counted() {
    let sets = "[guardrails]\ndefault = [\"out\"]\n[guardrails.out]\ndetectors = [\"email\"]\non = [\"output\"]\naction = \"refuse\"\n";
    let gateway = Gateway::new(sets, vec![text(MAIL), text(MAIL)]);
    for fields in [json!({}), json!({"stream": true})] {
        let got = gateway.ask("who?", fields);
        refused(&got, "out", "choices[0].message.content");
        let row = gateway.row(&got);
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(3), &json!(1)), "{row}");
        assert_eq!(row["reply"]["choices"][0]["message"]["content"], "[EMAIL_1]");
    }
    gateway.keeps_nothing_of(&["canary"]);
}

#[test]
fn sizes_are_counted_in_characters_over_all_texts() {
    let sets = "[guardrails]\ndefault = [\"size\"]\n[guardrails.size]\nmax_input_chars = 6\nmax_output_chars = 4\n";
    let gateway = Gateway::new(sets, vec![text("äöüß"), text("12345")]);
    assert_eq!(content(&gateway.ask("grüße!", json!({}))), "äöüß");
    let got = gateway.ask("grüße!!", json!({}));
    refused(&got, "size", "messages");
    assert!(got.body.contains("at most 6 characters, found 7"), "{got:?}");
    refused(&gateway.ask("", json!({})), "size", "choices");
}

const AGE: &str = r#"{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"],"additionalProperties":false}"#;

fn format() -> Value {
    let schema: Value = serde_json::from_str(AGE).expect("a schema");
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "age", "schema": schema, "strict": true}}})
}

#[test]
fn a_reply_that_does_not_fit_is_asked_for_once_more() {
    let answers = || vec![text("{\"age\": \"forty\"}"), says(json!({"role": "assistant", "content": "{\"age\": 40}"}), (10, 2))];
    for fields in [json!({}), json!({"stream": true})] {
        let gateway = Gateway::new(FIT, answers());
        let mut asked = format();
        asked.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let got = gateway.ask("how old?", asked);
        let said = if fields.get("stream").is_some() { streamed(&got) } else { content(&got) };
        assert_eq!(said, "{\"age\": 40}");
        let (first, second) = (gateway.seen(), gateway.seen());
        assert_eq!(first["messages"].as_array().map(Vec::len), Some(1));
        assert_eq!(second["messages"][1], json!({"role": "assistant", "content": "{\"age\": \"forty\"}"}));
        let complaint = second["messages"][2]["content"].as_str().expect("a text");
        assert!(complaint.contains("/age") && complaint.contains("integer"), "{complaint}");
        let row = gateway.row(&got);
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(13), &json!(3)), "both calls count: {row}");
        assert_eq!(gateway.found(&got)[0]["action"], "repair");
        assert_eq!(row["request"]["messages"].as_array().map(Vec::len), Some(1), "the log has what the caller asked");
    }
}

#[test]
fn a_reply_that_does_not_fit_twice_is_an_error_with_the_path_and_no_third_call() {
    let gateway = Gateway::new(FIT, vec![text("no JSON"), text("{\"age\": \"forty\"}"), text("{\"age\": 40}")]);
    let got = gateway.ask("how old?", format());
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("invalid_output")), "{got:?}");
    assert!(got.body.contains("/age") && !got.body.contains("forty"), "{got:?}");
    gateway.seen();
    gateway.seen();
    assert!(gateway.is_quiet(), "one repair, not two");
    let row = gateway.row(&got);
    assert_eq!((&row["status"], &row["input_tokens"], &row["output_tokens"]), (&json!(502), &json!(6), &json!(2)), "{row}");
}

#[test]
fn what_is_no_answer_or_has_no_format_is_not_repaired() {
    let call = json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let calls = says(json!({"role": "assistant", "content": null, "tool_calls": call}), (1, 1));
    let refuses = says(json!({"role": "assistant", "content": null, "refusal": "I will not"}), (1, 1));
    let gateway = Gateway::new(FIT, vec![calls, refuses, text("free"), text("[1]"), text("{}")]);
    assert_eq!(gateway.ask("a", format()).status, 200);
    assert_eq!(gateway.ask("a", format()).status, 200);
    assert_eq!(content(&gateway.ask("a", json!({}))), "free");
    // JSON mode asks for an object.
    assert_eq!(content(&gateway.ask("a", json!({"response_format": {"type": "json_object"}}))), "{}");
    let counts: Vec<_> = (0..5).map(|_| gateway.seen()["messages"].as_array().map(Vec::len)).collect();
    assert_eq!(counts, [Some(1), Some(1), Some(1), Some(1), Some(3)]);
}

#[test]
fn a_schema_that_cannot_be_checked_is_refused_before_anybody_is_asked() {
    let gateway = Gateway::new(FIT, vec![text("never")]);
    let mut asked = format();
    asked["response_format"]["json_schema"]["schema"] = json!({"$ref": "http://127.0.0.1:9/schema.json"});
    let got = gateway.ask("a", asked);
    assert_eq!((got.status, &got.json()["error"]["param"]), (400, &json!("response_format.json_schema.schema")), "{got:?}");
    assert!(gateway.is_quiet());
}

fn verdict(flagged: bool) -> Value {
    let names = [
        "hate",
        "hate/threatening",
        "harassment",
        "harassment/threatening",
        "illicit",
        "illicit/violent",
        "self-harm",
        "self-harm/intent",
        "self-harm/instructions",
        "sexual",
        "sexual/minors",
        "violence",
        "violence/graphic",
    ];
    let all = |value: fn(&str, bool) -> Value| {
        names.iter().map(|name| ((*name).to_string(), value(name, flagged))).collect::<serde_json::Map<_, _>>()
    };
    json!({"flagged": flagged, "categories": all(|name, flagged| json!(flagged && name == "violence")),
        "category_scores": all(|name, flagged| json!(if flagged && name == "violence" { 0.97 } else { 0.01 })),
        "category_applied_input_types": all(|_, _| json!(["text"]))})
}

fn judged(verdicts: &[bool]) -> Script {
    let results: Vec<_> = verdicts.iter().map(|flagged| verdict(*flagged)).collect();
    reply("200 OK", "", &json!({"id": "modr-1", "model": "omni-1", "results": results}).to_string())
}

fn moderated(more: &str) -> String {
    format!("[guardrails]\ndefault = [\"mod\"]\n[guardrails.mod]\nmoderation = {{ model = \"up/judge\", {more} }}\n")
}

#[test]
fn a_flagged_request_is_refused_with_its_categories_and_asks_no_model() {
    let gateway = Gateway::new(&moderated("on = [\"input\"]"), vec![judged(&[false, true])]);
    let messages = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "I will hurt you"}]);
    let got = gateway.ask("", json!({"messages": messages}));
    refused(&got, "mod", "messages[1]");
    assert!(got.body.contains("violence") && !got.body.contains("hurt"), "{got:?}");
    assert_eq!(gateway.seen(), json!({"model": "judge", "input": ["be kind", "I will hurt you"]}));
    assert!(gateway.is_quiet(), "no model is asked");
    let found = gateway.found(&got);
    assert_eq!((&found[0]["detector"], &found[0]["detail"]), (&json!("moderation"), &json!("violence")), "{found}");
}

#[test]
fn replies_are_judged_and_a_threshold_decides() {
    let gateway = Gateway::new(&moderated("on = [\"output\"], threshold = 0.98"), vec![text("fist"), judged(&[true])]);
    assert_eq!(content(&gateway.ask("a", json!({}))), "fist", "0.97 is below the threshold, whatever the flag says");
    let gateway = Gateway::new(&moderated("on = [\"output\"], threshold = 0.9"), vec![text("fist"), judged(&[true])]);
    let got = gateway.ask("a", json!({"stream": true}));
    refused(&got, "mod", "choices[0].message");
    gateway.seen();
    assert_eq!(gateway.seen()["input"], json!(["fist"]));
}

#[test]
fn a_moderation_that_fails_refuses_unless_the_set_says_otherwise() {
    let broken = || reply("500 Oops", "", &json!({"error": {"message": "canary-words"}}).to_string());
    let gateway = Gateway::new(&moderated("on = [\"input\"]"), vec![broken(), text("never")]);
    let got = gateway.ask("canary-words", json!({}));
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")), "{got:?}");
    assert!(got.body.contains("mod") && !got.body.contains("canary-words"), "{got:?}");
    gateway.seen();
    assert!(gateway.is_quiet(), "no model is asked");
    assert!(gateway.found(&got)[0]["detail"].as_str().is_some_and(|detail| detail.contains("not judged")));

    let gateway = Gateway::new(&moderated("on = [\"input\"], on_error = \"allow\""), vec![broken(), text("ok"), judged(&[]), text("ok")]);
    for _ in 0..2 {
        // The second time with a verdict too few.
        let got = gateway.ask("a", json!({}));
        assert_eq!(content(&got), "ok");
        let found = gateway.found(&got);
        assert_eq!((&found[0]["action"], found[0]["detail"].as_str().is_some_and(|d| d.contains("not judged"))), (&json!("allow"), true));
    }
}

#[test]
fn a_moderation_model_sees_redacted_texts() {
    let sets = format!("{}detectors = [\"email\"]\n", moderated("on = [\"input\"]"));
    let gateway = Gateway::new(&sets, vec![judged(&[false]), text("ok")]);
    assert_eq!(content(&gateway.ask(&format!("I am {MAIL}"), json!({}))), "ok");
    assert_eq!(gateway.seen()["input"], json!(["I am [EMAIL_1]"]));
}

#[test]
fn moderations_are_served_in_the_shape_of_the_sdk() {
    let gateway = Gateway::new("", vec![judged(&[true, false]), reply("200 OK", "", "{\"results\": [1]}")]);
    let got = gateway.post("/v1/moderations", &json!({"model": "up/judge", "input": ["a", "b"]}));
    let read: CreateModerationResponse = serde_json::from_str(&got.body).unwrap_or_else(|error| panic!("{error}: {got:?}"));
    assert!(read.results.len() == 2 && read.results[0].flagged && read.results[0].categories.violence && !read.results[1].flagged);
    assert_eq!((got.header("x-refit-provider"), gateway.seen()), (Some("up"), json!({"model": "judge", "input": ["a", "b"]})));
    let row = gateway.row(&got);
    assert_eq!((&row["endpoint"], &row["status"], &row["model"]), (&json!("moderations"), &json!(200), &json!("judge")));
    let status = |body: Value| {
        let got = gateway.post("/v1/moderations", &body);
        (got.status, got.json()["error"]["param"].clone())
    };
    assert_eq!(status(json!({"model": "up/judge", "input": "a"})), (502, Value::Null));
    assert_eq!(status(json!({"model": "mock/echo", "input": "a"})), (400, json!("model")));
    assert_eq!(status(json!({"model": "up/judge"})), (400, json!("input")));
    assert_eq!(status(json!({"model": "up/judge", "input": ["a", 1]})), (400, json!("input[1]")));
    assert_eq!(status(json!({"input": "a"})), (400, json!("model")));
}

#[test]
fn a_set_for_some_names_leaves_the_others_alone() {
    let sets = "[guardrails.pii]\ndetectors = [\"email\"]\non = [\"input\"]\nroutes = [\"up/m\"]\n";
    let gateway = Gateway::new(sets, vec![text("ok"), text("ok")]);
    gateway.ask(MAIL, json!({}));
    assert_eq!(gateway.seen()["messages"][0]["content"], "[EMAIL_1]");
    let got = gateway.ask(MAIL, json!({"model": "up/other"}));
    assert_eq!(gateway.seen()["messages"][0]["content"], MAIL);
    assert_eq!((&gateway.row(&got)["request"]["messages"][0]["content"], gateway.found(&got)), (&json!(MAIL), Value::Null));
}

#[test]
fn a_configured_route_names_its_sets() {
    let sets = "[guardrails.pii]\ndetectors = [\"email\"]\non = [\"input\"]\n[routes.desk]\ntargets = [\"up/m\"]\nguardrails = [\"pii\"]\n";
    let gateway = Gateway::new(sets, vec![text("ok"), text("ok")]);
    gateway.ask(MAIL, json!({"model": "desk"}));
    gateway.ask(MAIL, json!({}));
    assert_eq!(gateway.seen()["messages"][0]["content"], "[EMAIL_1]");
    assert_eq!(gateway.seen()["messages"][0]["content"], MAIL);
    gateway.refit.write("wrong.toml", sets.replace("[\"pii\"]", "[\"pi\"]") + "[providers.up]\nkind = \"groq\"\n");
    let done = gateway.refit.run(&["--config", "wrong.toml", "config", "check"]).expect(2);
    assert!(done.stdout.contains("routes.desk.guardrails: there is no set [guardrails.pi]; did you mean \"pii\"?"), "{done:?}");
}

/// A route `answers` with this release live.
fn release_live(refit: &Refit, release: &str) {
    refit.run(&["route", "create", "answers", "--suite", "intake", "--require", "exact_match>=0.5", "--split", "test"]).expect(0);
    measured(refit, "run_1", release, ("intake", "test"), (0.9, 0.8));
    refit.run(&["release", "promote", release, "--route", "answers"]).expect(0);
}

fn manifest(guardrails: Value) -> String {
    json!({"model": "up/m", "model_digest": null, "adapter": null, "prompt": null, "parameters": {}, "guardrails": guardrails}).to_string()
}

#[test]
fn a_release_brings_its_own_guardrails() {
    let (port, seen) = upstream(vec![text("ok"), text("ok")]);
    let refit = before(port, "[guardrails.mail]\ndetectors = [\"email\"]\non = [\"input\"]\n");
    let create = ["release", "create", "--model", "up/m", "--json", "--guardrails"];
    let made = refit.run(&[&create[..], &["mail"]].concat()).expect(0).json();
    assert_eq!(made["manifest"]["guardrails"][0]["detectors"], json!(["email"]), "the set itself, not its name: {made}");
    let unknown = refit.run(&[&create[..], &["mial"]].concat()).expect(2);
    assert!(unknown.stderr.contains("did you mean \"mail\"?"), "{unknown:?}");
    release_live(&refit, made["digest"].as_str().expect("a digest"));
    // What the file says later is nothing to the release.
    let (key, file) = (refit.key(), std::fs::read_to_string(refit.path().join("refit.toml")).expect("the file"));
    refit.write("refit.toml", file.replace("[guardrails.mail]\ndetectors = [\"email\"]\non = [\"input\"]\n", ""));
    let server = refit.serve(&[]);
    for model in ["answers", "up/m"] {
        let got = server.post(CHAT, Some(&key), &chat(MAIL, json!({"model": model})));
        assert_eq!(got.status, 200, "{got:?}");
    }
    let said = || seen.recv_timeout(Duration::from_secs(30)).expect("called").body["messages"][0]["content"].clone();
    assert_eq!((said(), said()), (json!("[EMAIL_1]"), json!(MAIL)));
}

#[test]
fn a_release_with_a_wrong_set_is_not_made_and_one_with_an_unknown_set_is_not_served() {
    let (port, seen) = upstream(vec![text("never")]);
    let refit = before(port, "");
    for (sets, told) in [
        (json!([{"detectors": ["emial"]}]), "guardrails[0]: detectors: there is no detector \"emial\"; did you mean \"email\"?"),
        (json!(["ok", {"patterns": [{"name": "p", "regex": "("}]}]), "guardrails[1]: patterns[0].regex"),
        (json!([7]), "guardrails[0]: expected the name of a set"),
    ] {
        let path = refit.write("release.json", manifest(sets));
        let done = refit.run(&["release", "create", "--manifest", path.to_str().expect("UTF-8")]).expect(2);
        assert!(done.stderr.contains(told), "{done:?}");
    }
    let path = refit.write("release.json", manifest(json!(["gone"])));
    let made = refit.run(&["release", "create", "--manifest", path.to_str().expect("UTF-8")]).expect(0);
    release_live(&refit, made.stdout.trim());
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got = server.post(CHAT, Some(&key), &chat(MAIL, json!({"model": "answers"})));
    assert!(got.status == 500 && got.body.contains("no set \\\"gone\\\""), "{got:?}");
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err(), "nothing passes unguarded");
    assert!(!holds(&refit.data_dir(), "canary"), "and nothing of it is logged");
}

#[test]
fn evaluations_go_through_the_guardrails_too() {
    let (port, seen) = upstream(vec![text("[EMAIL_1]")]);
    let refit = before(port, PII);
    refit.write("d.jsonl", json!({"id": "c1", "input": {"message": format!("I am {MAIL}")}, "target": "x"}).to_string());
    refit.write("s.yaml", "name: s\ndataset: d.jsonl\ntargets:\n  - name: main\n    model: up/m\nscorers:\n  - exact_match\n");
    let done = refit.run(&["eval", "run", "s.yaml", "--json"]);
    let seen = seen.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("nobody was asked: {done:?}"));
    assert_eq!(seen.body["messages"][0]["content"], "I am [EMAIL_1]");
    let rows = refit.run(&["logs", "tail", "--json"]).expect(0).json();
    assert_eq!(rows[0]["endpoint"], "eval", "{rows}");
    assert!(rows[0]["guardrails"].to_string().contains("email"), "{rows}");
    let row = refit.run(&["logs", "show", rows[0]["id"].as_str().expect("an id"), "--json"]).expect(0);
    assert!(!row.stdout.contains("canary"), "{row:?}");
}

#[test]
fn a_set_takes_hold_when_the_file_is_read_again() {
    let gateway = Gateway::new("", (0..200).map(|_| text("ok")).collect());
    gateway.ask(MAIL, json!({}));
    assert_eq!(gateway.seen()["messages"][0]["content"], MAIL);
    let file = std::fs::read_to_string(gateway.refit.path().join("refit.toml")).expect("the file");
    gateway.refit.write("refit.toml", format!("{PII}{file}"));
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        gateway.ask(MAIL, json!({}));
        if gateway.seen()["messages"][0]["content"] == "[EMAIL_1]" {
            break;
        }
        assert!(Instant::now() < give_up, "the file was not read again: {}", gateway.server.errors());
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn texts_made_to_be_slow_are_answered_in_time() {
    let sets = "[guardrails]\ndefault = [\"all\"]\n[guardrails.all]\non = [\"input\"]\n\
        detectors = [\"email\", \"credit_card\", \"iban\", \"phone\", \"ip_address\", \"us_ssn\", \"api_key\"]\n\
        patterns = [{ name = \"evil\", regex = \"(a+)+$\" }, { name = \"twice\", regex = \"(x+x+)+y\" }]\n";
    let texts =
        ["a".repeat(200_000) + "!", "x".repeat(200_000), "a@".repeat(100_000), "4-".repeat(100_000), "eyJaaaaaaaaaaa.".repeat(10_000)];
    let gateway = Gateway::new(sets, texts.iter().map(|_| text("ok")).collect());
    let began = Instant::now();
    for text in &texts {
        assert_eq!(content(&gateway.ask(text, json!({}))), "ok");
    }
    // A backtracking engine would need centuries for the first; this build is not optimised.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn mistakes_in_the_file_are_told_with_line_and_nearest_name() {
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        "[guardrails]\ndefault = [\"pi\"]\n[guardrails.pii]\ndetectors = [\"emial\"]\npatterns = [{ name = \"t\", regex = \"(\" }]\n",
    );
    let done = refit.run(&["config", "check"]);
    assert_eq!(done.code, 2, "{done:?}");
    for told in ["line 2", "did you mean \"pii\"?", "line 4", "did you mean \"email\"?", "line 5", "unclosed group"] {
        assert!(done.stdout.contains(told), "{told}: {done:?}");
    }
}
