//! The translations, case by case: `tests/fixtures/wire/*.json` hold what a caller sends, what the provider must receive, what it
//! answers, and what the caller must get. Written from the providers' public API documents; `./test interop` parses them strictly
//! with the vendors' own SDK types. `REFIT_BLESS=1` writes the two expected sides anew, to be read before they are committed.

use crate::support::{Refit, http_with};
use crate::upstream::{Script, Seen, reply, stream, upstream};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Headers of an upstream request that a translation decides.
const HEADERS: [&str; 5] = ["authorization", "api-key", "x-api-key", "x-goog-api-key", "anthropic-version"];

fn fixtures() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire");
    let mut files: Vec<_> = std::fs::read_dir(directory).expect("the fixtures").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

/// What the upstream sends: a whole body, or events in pieces that split characters.
fn script(fixture: &Value) -> Script {
    let answer = &fixture["upstream_reply"];
    match answer["events"].as_array() {
        None => {
            let status = answer["status"].as_u64().expect("a status");
            reply(&format!("{status} Status"), "", &answer["body"].to_string())
        }
        Some(events) => {
            let text: String = events.iter().map(|event| written(event[0].as_str().expect("a kind"), &event[1])).collect();
            stream(&text, 7)
        }
    }
}

fn written(kind: &str, data: &Value) -> String {
    let data = data.as_str().map_or_else(|| data.to_string(), str::to_string);
    if kind.is_empty() { format!("data: {data}\n\n") } else { format!("event: {kind}\ndata: {data}\n\n") }
}

/// Events as `[kind, data]`; data that is not JSON stays a text.
fn events(body: &str) -> Value {
    let blocks = body.split("\n\n").filter(|block| !block.trim().is_empty());
    let one = |block: &str| {
        let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
        let data = line("data:");
        json!([line("event:"), serde_json::from_str(data).unwrap_or_else(|_| json!(data))])
    };
    blocks.map(one).collect()
}

/// The Rust client's types read every reply that a translation makes; `openai-python`'s and the vendors' own do in `./test interop`.
#[test]
fn async_openai_reads_every_reply() {
    fn reads<T: serde::de::DeserializeOwned>(file: &Path, value: &Value) {
        serde_json::from_value::<T>(value.clone()).unwrap_or_else(|error| panic!("{}: {error}\n{value}", file.display()));
    }
    let mut read = 0;
    for file in fixtures() {
        let fixture: Value = serde_json::from_slice(&std::fs::read(&file).expect("a fixture")).expect("a fixture is JSON");
        let (endpoint, reply) = (fixture["endpoint"].as_str().unwrap_or_default(), &fixture["reply"]);
        if reply["status"].as_u64().is_some_and(|status| status != 200) {
            continue;
        }
        // Without the mark of the end, error events, and Azure's first chunk, which leaves its fields empty.
        let events = reply["events"].as_array().into_iter().flatten().map(|event| &event[1]);
        let events: Vec<_> = events.filter(|data| data.is_object() && data.get("error").is_none() && data["object"] != "").collect();
        match endpoint {
            "/v1/chat/completions" => {
                events.iter().for_each(|event| reads::<async_openai::types::chat::CreateChatCompletionStreamResponse>(&file, event));
                reply
                    .get("body")
                    .into_iter()
                    .for_each(|body| reads::<async_openai::types::chat::CreateChatCompletionResponse>(&file, body));
            }
            "/v1/completions" => {
                events.iter().for_each(|event| reads::<async_openai::types::completions::CreateCompletionResponse>(&file, event));
                reply
                    .get("body")
                    .into_iter()
                    .for_each(|body| reads::<async_openai::types::completions::CreateCompletionResponse>(&file, body));
            }
            "/v1/responses" => {
                events.iter().for_each(|event| reads::<async_openai::types::responses::ResponseStreamEvent>(&file, event));
                reply.get("body").into_iter().for_each(|body| reads::<async_openai::types::responses::Response>(&file, body));
            }
            "/v1/embeddings" if reply["body"]["data"][0]["embedding"].is_array() => {
                reads::<async_openai::types::embeddings::CreateEmbeddingResponse>(&file, &reply["body"]);
            }
            _ => continue,
        }
        read += 1;
    }
    assert!(read >= 25, "only {read} replies were read");
}

/// Ids that are made anew and times of day are not compared.
fn settled(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| match (name.as_str(), &value) {
                ("created_at" | "completed_at", _) => (name, json!(0)),
                // Ours are of today; the upstream's stand in the fixtures.
                ("created", Value::Number(n)) if n.as_i64().is_some_and(|at| at > 1_770_000_000) => (name, json!(0)),
                _ => (name, settled(value)),
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(settled).collect(),
        Value::String(text) => json!(without_ids(&text)),
        other => other,
    }
}

fn without_ids(text: &str) -> String {
    for prefix in ["chatcmpl-", "resp_", "msg_", "rs_", "fc_", "call_", "req_"] {
        if let Some(id) = text.strip_prefix(prefix)
            && id.len() == 32
            && id.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return format!("{prefix}new");
        }
    }
    text.to_string()
}

/// What arrived at the provider of a fixture. Each has a key of its own; there it is written `sk-up`, and another's stays as it is.
fn received(seen: &Seen, provider: &str) -> Value {
    let own = format!("sk-of-{provider}");
    let header = |name: &&str| {
        let value = seen.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))?;
        let value = match value.strip_suffix(&own) {
            Some(scheme) => format!("{scheme}sk-up"),
            None => value.to_string(),
        };
        Some((name.to_string(), json!(value)))
    };
    let headers: serde_json::Map<_, _> = HEADERS.iter().filter_map(header).collect();
    json!({"path": seen.target, "headers": headers, "body": seen.body})
}

#[test]
fn every_translation_is_the_written_one() {
    let files = fixtures();
    assert!(files.len() >= 40, "only {} fixtures were found", files.len());
    let bless = std::env::var_os("REFIT_BLESS").is_some();
    let read = |file: &PathBuf| -> Value { serde_json::from_slice(&std::fs::read(file).expect("a fixture")).expect("a fixture is JSON") };
    let (port, seen) = upstream(files.iter().map(|file| script(&read(file))).collect());
    let provider = |name: &str, more: &str| {
        format!("[providers.{name}]\nbase_url = \"http://127.0.0.1:{port}/{name}\"\napi_key = {{ env = \"KEY_OF_{name}\" }}\n{more}\n")
    };
    let config = [
        provider("openai", ""),
        provider("azure", "api_version = \"2024-10-21\""),
        provider("anthropic", ""),
        provider("gemini", ""),
        provider("mistral", ""),
    ];
    let names = ["openai", "azure", "anthropic", "gemini", "mistral"];
    let refit = names.iter().fold(Refit::new(), |refit, name| refit.env(&format!("KEY_OF_{name}"), format!("sk-of-{name}")));
    refit.write("refit.toml", config.concat());
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut wrong = Vec::new();
    for file in files {
        let mut fixture = read(&file);
        let headers: Vec<_> = fixture["headers"].as_object().into_iter().flatten().collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str().expect("a text"))).collect();
        let url = format!("{}{}", server.url(), fixture["endpoint"].as_str().expect("a path"));
        let got = http_with(&url, Some(&key), &headers, fixture["request"].to_string().into_bytes());
        let Ok(seen) = seen.recv_timeout(Duration::from_secs(20)) else {
            panic!("{}: the provider was not called: {got:?}", file.display());
        };
        let streamed = got.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        let answered = if streamed { json!({"events": events(&got.body)}) } else { json!({"status": got.status, "body": got.json()}) };
        for (side, is) in
            [("upstream_request", received(&seen, fixture["provider"].as_str().expect("a provider"))), ("reply", settled(answered))]
        {
            if bless {
                fixture[side] = is;
            } else if fixture[side] != is {
                wrong.push(format!("{}: {side}\nexpected {}\n  found {is}", file.display(), fixture[side]));
            }
        }
        if bless {
            let text = serde_json::to_string_pretty(&fixture).expect("JSON");
            std::fs::write(&file, text + "\n").expect("written");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
