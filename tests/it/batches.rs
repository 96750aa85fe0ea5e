//! Files and batches over HTTP: what an SDK does with `/v1/files` and `/v1/batches`, and what must hold when the process is killed, the
//! key is revoked or the provider has too much to do.

use crate::support::{Refit, Reply, Server, http, send};
use crate::upstream::{reply as scripted, upstream};
use async_openai::types::batches::{Batch, BatchRequestOutput, ListBatchesResponse};
use async_openai::types::files::{ListFilesResponse, OpenAIFile};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
/// Longer than any batch here takes, a lease that has to run out included.
const PATIENCE: Duration = Duration::from_secs(60);

fn part(name: &str, more: &str, value: &[u8]) -> Vec<u8> {
    let head = format!("--boundary7\r\ncontent-disposition: form-data; name=\"{name}\"{more}\r\n\r\n");
    [head.as_bytes(), value, b"\r\n"].concat()
}

fn upload_with(server: &Server, key: &str, fields: &[(&str, &str)], name: &str, bytes: &[u8]) -> Reply {
    let mut body: Vec<u8> = fields.iter().flat_map(|(name, value)| part(name, "", value.as_bytes())).collect();
    body.extend(part("file", &format!("; filename=\"{name}\"\r\ncontent-type: application/jsonl"), bytes));
    body.extend(b"--boundary7--\r\n");
    let url = format!("{}/v1/files", server.url());
    send("POST", &url, Some(key), &[("content-type", "multipart/form-data; boundary=boundary7")], Some(body))
}

fn upload(server: &Server, key: &str, bytes: &[u8]) -> String {
    let made = upload_with(server, key, &[("purpose", "batch")], "lines.jsonl", bytes);
    assert_eq!(made.status, 200, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_string()
}

fn lines(lines: &[(&str, &str, Value)]) -> Vec<u8> {
    let line =
        |(id, url, body): &(&str, &str, Value)| json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n";
    lines.iter().map(line).collect::<String>().into_bytes()
}

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}]});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn make(server: &Server, key: &str, file: &str, endpoint: &str) -> Reply {
    let body = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {"run": "7"}});
    server.post("/v1/batches", Some(key), &body)
}

fn made(server: &Server, key: &str, file: &str, endpoint: &str) -> String {
    let made = make(server, key, file, endpoint);
    assert_eq!(made.status, 200, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_string()
}

fn show(server: &Server, key: &str, id: &str) -> Value {
    let shown = server.get(&format!("/v1/batches/{id}"), Some(key));
    // What it looks like to the Rust client, at every moment of its life.
    serde_json::from_str::<Batch>(&shown.body).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    shown.json()
}

fn wait(server: &Server, key: &str, id: &str, until: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let batch = show(server, key, id);
        if until(&batch) {
            return batch;
        }
        assert!(begun.elapsed() < PATIENCE, "{batch}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_over(batch: &Value) -> bool {
    ["completed", "failed", "expired", "cancelled"].iter().any(|end| batch["status"] == *end)
}

/// The lines of a file, by custom id.
fn answers(server: &Server, key: &str, batch: &Value, file: &str) -> Vec<(String, Value)> {
    let Some(id) = batch[file].as_str() else { return Vec::new() };
    let content = server.get(&format!("/v1/files/{id}/content"), Some(key));
    assert_eq!(content.status, 200, "{content:?}");
    let read = |line: &str| {
        serde_json::from_str::<BatchRequestOutput>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let value: Value = serde_json::from_str(line).expect("JSON");
        (value["custom_id"].as_str().expect("an id").to_string(), value)
    };
    let mut answers: Vec<_> = content.body.lines().map(read).collect();
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    answers
}

fn ids(answers: &[(String, Value)]) -> Vec<&str> {
    answers.iter().map(|(id, _)| id.as_str()).collect()
}

#[test]
fn files_are_kept_byte_for_byte_and_seen_by_their_project_only() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let other =
        refit.run(&["key", "create", "o", "--project", "other", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let bytes: Vec<u8> = (0..200_000u32).flat_map(|i| i.to_le_bytes()).collect();
    let fields = [("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3600"), ("purpose", "user_data")];
    let file = upload_with(&server, &key, &fields, "../../a b.bin", &bytes);
    serde_json::from_str::<OpenAIFile>(&file.body).expect("a file as async-openai reads it");
    let file = file.json();
    assert_eq!((&file["filename"], &file["bytes"], &file["purpose"]), (&json!("a b.bin"), &json!(bytes.len()), &json!("user_data")));
    assert_eq!(file["expires_at"].as_i64(), file["created_at"].as_i64().map(|at| at + 3600));
    let path = format!("/v1/files/{}", file["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path, Some(&key)).json(), file);
    let content = raw(&format!("{}{path}/content", server.url()), &key);
    assert_eq!(content, bytes);
    for (method, path) in [("GET", path.clone()), ("GET", format!("{path}/content")), ("DELETE", path.clone())] {
        let refused = http(method, &format!("{}{path}", server.url()), Some(&other), None);
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (404, Some("unknown_name")), "{refused:?}");
    }
    assert_eq!(server.get("/v1/files", Some(&other)).json()["data"], json!([]));
    // The SDKs send DELETE with a content type and nothing else.
    let deleted = http("DELETE", &format!("{}{path}", server.url()), Some(&key), Some(Vec::new()));
    assert_eq!(deleted.json(), json!({"id": file["id"], "object": "file", "deleted": true}));
    assert_eq!(server.get(&path, Some(&key)).status, 404);
    let left = walk(&refit.data_dir().join("uploads"));
    assert!(left.is_empty(), "the bytes went, too: {left:?}");
}

fn raw(url: &str, key: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        client.get(url).bearer_auth(key).send().await.expect("an answer").bytes().await.expect("a body").to_vec()
    })
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn files_are_listed_in_pages() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let made: Vec<_> = (0..5).map(|i| upload(&server, &key, i.to_string().as_bytes())).collect();
    upload_with(&server, &key, &[("purpose", "fine-tune")], "t.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}");
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let page = server.get(&format!("/v1/files?purpose=batch&limit=2&order=asc{after}"), Some(&key));
        let list: ListFilesResponse = serde_json::from_str(&page.body).expect("a list as async-openai reads it");
        assert_eq!((list.first_id.as_deref(), list.object.as_str()), (list.data.first().map(|file| file.id.as_str()), "list"));
        seen.extend(list.data.into_iter().map(|file| file.id));
        if !list.has_more {
            break;
        }
        after = format!("&after={}", list.last_id.expect("an id"));
    }
    assert_eq!(seen, made);
    let newest: ListFilesResponse = serde_json::from_str(&server.get("/v1/files", Some(&key)).body).expect("a list");
    assert_eq!((newest.data.len(), newest.data[0].filename.as_str(), newest.has_more), (6, "t.jsonl", false));
}

#[test]
fn bad_uploads_are_refused_by_field_and_leave_nothing() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nmax_file_bytes = 2000\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let refused = |reply: Reply, status: u16, param: Value| {
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (status, &param), "{reply:?}");
    };
    refused(upload_with(&server, &key, &[], "a", b"x"), 400, json!("purpose"));
    refused(upload_with(&server, &key, &[("purpose", "fun")], "a", b"x"), 400, json!("purpose"));
    refused(upload_with(&server, &key, &[("purpose", "batch")], "a", &[b'x'; 2001]), 413, json!("file"));
    let expires = [("purpose", "batch"), ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "60")];
    refused(upload_with(&server, &key, &expires, "a", b"x"), 400, json!("expires_after.seconds"));
    refused(
        upload_with(&server, &key, &[("purpose", "batch"), ("expires_after[anchor]", "now")], "a", b"x"),
        400,
        json!("expires_after.anchor"),
    );
    let url = format!("{}/v1/files", server.url());
    let multipart = [("content-type", "multipart/form-data; boundary=b")];
    refused(
        send("POST", &url, Some(&key), &multipart, Some(b"--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nhalf".to_vec())),
        400,
        Value::Null,
    );
    refused(send("POST", &url, Some(&key), &[], Some(b"{}".to_vec())), 400, Value::Null);
    for path in ["/v1/files/..%2F..%2Fx", "/v1/files/%FF", "/v1/files/nope/content", "/v1/batches/%FF"] {
        let reply = server.get(path, Some(&key));
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (404, Some("unknown_name")), "{reply:?}");
    }
    refused(server.get("/v1/files?limit=0", Some(&key)), 400, json!("limit"));
    let left = walk(&refit.data_dir().join("uploads"));
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(server.get("/v1/files", None).status, 401);
}

#[test]
fn a_batch_answers_every_line_as_the_same_calls_would_have_been() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let input = lines(&[
        ("a", CHAT, chat("one two", json!({}))),
        ("b", "/chat/completions", chat("three", json!({"n": 2}))),
        ("c", CHAT, json!({"model": "mock/nope", "messages": [{"role": "user", "content": "x"}]})),
        ("d", CHAT, chat("four", json!({"temperature": 9}))),
    ]);
    let file = upload(&server, &key, &input);
    let begun = make(&server, &key, &file, CHAT).json();
    assert_eq!((&begun["status"], &begun["metadata"], &begun["object"]), (&json!("validating"), &json!({"run": "7"}), &json!("batch")));
    let id = begun["id"].as_str().expect("an id");
    let batch = wait(&server, &key, id, is_over);
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("completed"), &json!({"total": 4, "completed": 2, "failed": 2})),
        "{batch}"
    );
    assert!(
        ["in_progress_at", "finalizing_at", "completed_at"].iter().all(|at| batch[at].is_i64()) && batch["errors"].is_null(),
        "{batch}"
    );
    assert_eq!((&batch["usage"]["input_tokens"], &batch["usage"]["output_tokens"]), (&json!(3), &json!(4)), "{batch}");
    assert!(batch["model"].is_null(), "the lines name two models");
    let good = answers(&server, &key, &batch, "output_file_id");
    assert_eq!(ids(&good), ["a", "b"]);
    let body = &good[0].1["response"]["body"];
    assert_eq!((&good[0].1["response"]["status_code"], &body["choices"][0]["message"]["content"]), (&json!(200), &json!("one two")));
    let request = good[0].1["response"]["request_id"].as_str().expect("an id");
    let row = refit.run(&["logs", "show", request, "--json"]).expect(0).json();
    assert_eq!(
        (&row["endpoint"], &row["model"], &row["project"]),
        (&json!("chat.completions"), &json!("echo"), &json!("default")),
        "{row}"
    );
    let bad = answers(&server, &key, &batch, "error_file_id");
    assert_eq!(ids(&bad), ["c", "d"]);
    let said = |i: usize| (&bad[i].1["response"]["status_code"], &bad[i].1["response"]["body"]["error"]["param"]);
    assert_eq!((said(0), said(1)), ((&json!(404), &json!("model")), (&json!(400), &json!("temperature"))));
    let list: ListBatchesResponse = serde_json::from_str(&server.get("/v1/batches", Some(&key)).body).expect("a list");
    assert_eq!((list.data.len(), list.data[0].id.as_str()), (1, id));
    let files: ListFilesResponse = serde_json::from_str(&server.get("/v1/files?purpose=batch_output", Some(&key)).body).expect("a list");
    assert_eq!(files.data.len(), 2);
    assert!(!refit.data_dir().join("batches").join(id).exists(), "what it needed on the way is gone");
}

#[test]
fn every_endpoint_can_be_asked() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let cases = [
        ("/v1/responses", json!({"model": "mock/echo", "input": "hi"}), "/output/0/content/0/text"),
        ("/v1/completions", json!({"model": "mock/echo", "prompt": "hi"}), "/choices/0/text"),
        (
            "/v1/messages",
            json!({"model": "mock/echo", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
            "/content/0/text",
        ),
    ];
    for (endpoint, body, text) in cases {
        let file = upload(&server, &key, &lines(&[("a", endpoint, body)]));
        let batch = wait(&server, &key, &made(&server, &key, &file, endpoint), is_over);
        let good = answers(&server, &key, &batch, "output_file_id");
        assert_eq!(good.len(), 1, "{endpoint}: {batch} {:?}", answers(&server, &key, &batch, "error_file_id"));
        assert_eq!(good[0].1["response"]["body"].pointer(text), Some(&json!("hi")), "{good:?}");
        assert_eq!((&batch["model"], &batch["usage"]["input_tokens"]), (&json!("mock/echo"), &json!(1)), "{endpoint}: {batch}");
    }
}

#[test]
fn a_wrong_file_fails_with_its_lines_and_asks_nothing() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut input = lines(&[("a", CHAT, chat("x", json!({}))), ("a", CHAT, chat("x", json!({}))), ("b", "/v1/embeddings", json!({}))]);
    input.extend(b"\nnot json\n");
    let file = upload(&server, &key, &input);
    let batch = wait(&server, &key, &made(&server, &key, &file, CHAT), is_over);
    assert_eq!(batch["status"], "failed");
    let found = |field: &str| batch["errors"]["data"].as_array().expect("errors").iter().map(|e| e[field].clone()).collect::<Vec<_>>();
    assert_eq!(found("line"), [json!(2), json!(3), json!(5)]);
    assert_eq!(found("code"), ["duplicate_custom_id", "invalid_value", "invalid_json_line"]);
    assert_eq!(refit.run(&["logs", "tail", "--json"]).expect(0).json(), json!([]), "nothing was asked");
    let refused = |fields: Value, param: &str| {
        let mut body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
        for (name, value) in fields.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let reply = server.post("/v1/batches", Some(&key), &body);
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{reply:?}");
    };
    refused(json!({"input_file_id": "file-nope"}), "input_file_id");
    refused(json!({"input_file_id": null}), "input_file_id");
    refused(json!({"endpoint": "/v1/files"}), "endpoint");
    refused(json!({"completion_window": "1h"}), "completion_window");
    refused(json!({"metadata": {"a": 1}}), "metadata");
    refused(json!({"output_expires_after": {"anchor": "created_at", "seconds": 1}}), "output_expires_after.seconds");
    let wrong = upload_with(&server, &key, &[("purpose", "user_data")], "a", b"{}").json();
    refused(json!({"input_file_id": wrong["id"]}), "input_file_id");
}

#[test]
fn a_killed_server_goes_on_where_it_was_and_asks_nothing_twice() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 2\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let names: Vec<_> = (0..16).map(|i| format!("line-{i:02}")).collect();
    let slow: Vec<_> = names.iter().map(|name| (name.as_str(), CHAT, chat(name, json!({"mock": {"delay_ms": 150}})))).collect();
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow)), CHAT);
    let kept = refit.data_dir().join("batches").join(&id).join("output.jsonl");
    let begun = Instant::now();
    let before = loop {
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        if text.lines().count() >= 4 {
            break text;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", show(&server, &key, &id));
        std::thread::sleep(Duration::from_millis(20));
    };
    server.kill();
    // What a kill in the middle of a write leaves.
    let whole = std::fs::read_to_string(&kept).expect("answers");
    std::fs::write(&kept, format!("{whole}{{\"id\": \"batch_req_1\", \"cust")).expect("half a line");
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("completed"), &json!({"total": 16, "completed": 16, "failed": 0})),
        "{batch}"
    );
    let file = batch["output_file_id"].as_str().expect("a file");
    let content = server.get(&format!("/v1/files/{file}/content"), Some(&key)).body;
    assert!(content.starts_with(&before), "answers from before the kill stand as they were");
    let good = answers(&server, &key, &batch, "output_file_id");
    assert_eq!(ids(&good), names.iter().map(String::as_str).collect::<Vec<_>>(), "each line once");
    let requests: BTreeSet<_> = good.iter().map(|(_, answer)| answer["response"]["request_id"].to_string()).collect();
    assert_eq!(requests.len(), 16);
}

#[test]
fn an_orderly_end_leaves_a_batch_to_the_next_server_at_once() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let slow: Vec<_> = ["a", "b", "c", "d"].map(|name| (name, CHAT, chat(name, json!({"mock": {"delay_ms": 400}})))).to_vec();
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow)), CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    std::process::Command::new("kill").args(["-TERM", &server.pid().to_string()]).status().expect("kill runs");
    assert_eq!(server.wait(), Some(0));
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!(batch["request_counts"]["completed"], 4, "{batch}");
    // The line that was on its way at the end was answered, not dropped and asked again.
    let rows = refit.run(&["logs", "tail", "--json", "--limit", "100"]).expect(0).json();
    assert_eq!(rows.as_array().map(Vec::len), Some(4), "{rows}");
}

#[test]
fn cancelling_keeps_what_was_answered() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let slow: Vec<_> =
        ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| (name, CHAT, chat(name, json!({"mock": {"delay_ms": 700}})))).to_vec();
    let file = upload(&server, &key, &lines(&slow));
    let id = made(&server, &key, &file, CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    let in_use = http("DELETE", &format!("{}/v1/files/{file}", server.url()), Some(&key), None);
    assert_eq!((in_use.status, in_use.json()["error"]["code"].as_str()), (409, Some("conflict")), "{in_use:?}");
    // The SDKs send an empty body with a JSON content type.
    let asked = http("POST", &format!("{}/v1/batches/{id}/cancel", server.url()), Some(&key), Some(Vec::new()));
    assert_eq!((asked.status, asked.json()["status"].as_str()), (200, Some("cancelling")), "{asked:?}");
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!(batch["status"], "cancelled");
    let good = answers(&server, &key, &batch, "output_file_id");
    assert!((1..8).contains(&good.len()), "{batch}");
    assert_eq!(batch["request_counts"]["completed"], good.len());
    let again = server.post(&format!("/v1/batches/{id}/cancel"), Some(&key), &json!({}));
    assert_eq!((again.status, again.json()["status"].as_str()), (200, Some("cancelled")));
    assert_eq!(http("DELETE", &format!("{}/v1/files/{file}", server.url()), Some(&key), None).status, 200);
}

#[test]
fn a_revoked_key_asks_no_further_line() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reader = refit.run(&["key", "create", "reader", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let slow: Vec<_> =
        ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| (name, CHAT, chat(name, json!({"mock": {"delay_ms": 700}})))).to_vec();
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow)), CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    refit.run(&["key", "revoke", "test"]).expect(0);
    let batch = wait(&server, &reader, &id, is_over);
    assert_eq!((&batch["status"], &batch["errors"]["data"][0]["code"]), (&json!("cancelled"), &json!("invalid_api_key")), "{batch}");
    assert!(batch["request_counts"]["completed"].as_u64() < Some(8), "{batch}");
}

#[test]
fn names_and_limits_that_a_key_gets_meanwhile_hold_for_the_lines_that_are_left() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reader = refit.run(&["key", "create", "reader", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let slow: Vec<_> =
        ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| (name, CHAT, chat(name, json!({"mock": {"delay_ms": 700}})))).to_vec();
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow)), CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    refit.run(&["key", "update", "test", "--route", "openai/*"]).expect(0);
    let batch = wait(&server, &reader, &id, is_over);
    let refused = answers(&server, &reader, &batch, "error_file_id");
    assert!(!refused.is_empty(), "{batch}");
    assert!(refused.iter().all(|(_, line)| line["response"]["status_code"] == 403), "{refused:?}");
}

#[test]
fn a_busy_provider_is_asked_again_when_it_says() {
    let whole = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0,
        "message": {"role": "assistant", "content": "late"}, "finish_reason": "stop"}]});
    let busy = scripted("429 Too Many Requests", "retry-after: 1\r\n", &json!({"error": {"message": "slow down"}}).to_string());
    let down = scripted("503 Service Unavailable", "", &json!({"error": {"message": "down"}}).to_string());
    let refused = scripted("400 Bad Request", "", &json!({"error": {"message": "no"}}).to_string());
    let (port, seen) = upstream(vec![busy, down, scripted("200 OK", "", &whole.to_string()), refused]);
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!("[batches]\nconcurrency = 1\n[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}\"\n"),
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = |text: &str| json!({"model": "up/m", "messages": [{"role": "user", "content": text}]});
    let file = upload(&server, &key, &lines(&[("a", CHAT, body("first")), ("b", CHAT, body("second"))]));
    let batch = wait(&server, &key, &made(&server, &key, &file, CHAT), is_over);
    let texts: Vec<_> = seen.try_iter().map(|seen| seen.body["messages"][0]["content"].clone()).collect();
    assert_eq!(texts, ["first", "first", "first", "second"], "{batch}");
    assert_eq!(answers(&server, &key, &batch, "output_file_id")[0].1["response"]["body"]["choices"][0]["message"]["content"], "late");
    assert_eq!(ids(&answers(&server, &key, &batch, "error_file_id")), ["b"]);
}

#[test]
fn a_batch_out_of_time_says_which_lines_were_not_asked() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let slow: Vec<_> = ["a", "b", "c", "d"].map(|name| (name, CHAT, chat(name, json!({"mock": {"delay_ms": 700}})))).to_vec();
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow)), CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    server.kill();
    // A day has passed.
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    database.execute("UPDATE batches SET expires_at = 1", []).expect("a changed row");
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!(batch["status"], "expired");
    let (good, bad) = (answers(&server, &key, &batch, "output_file_id"), answers(&server, &key, &batch, "error_file_id"));
    assert!(!good.is_empty() && good.len() + bad.len() == 4, "{batch}");
    assert!(bad.iter().all(|(_, line)| line["error"]["code"] == "batch_expired" && line["response"].is_null()), "{bad:?}");
}

#[test]
fn a_retried_request_makes_no_second_batch_and_projects_are_apart() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let other =
        refit.run(&["key", "create", "o", "--project", "other", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let file = upload(&server, &key, &lines(&[("a", CHAT, chat("x", json!({})))]));
    let url = format!("{}/v1/batches", server.url());
    let ask = |key: &str, window: &str| {
        let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": window}).to_string().into_bytes();
        send("POST", &url, Some(key), &[("idempotency-key", "k-1")], Some(body))
    };
    let (first, second) = (ask(&key, "24h").json(), ask(&key, "24h").json());
    assert_eq!(first["id"], second["id"]);
    assert_eq!(ask(&key, "25h").status, 409);
    assert_eq!(ask(&other, "24h").status, 400, "another project's file");
    let id = first["id"].as_str().expect("an id");
    wait(&server, &key, id, is_over);
    for (method, path) in [("GET", format!("/v1/batches/{id}")), ("POST", format!("/v1/batches/{id}/cancel"))] {
        assert_eq!(http(method, &format!("{}{path}", server.url()), Some(&other), None).status, 404);
    }
    let over = server.post(&format!("/v1/batches/{id}/cancel"), Some(&key), &json!({}));
    assert_eq!((over.status, over.json()["error"]["code"].as_str()), (409, Some("conflict")), "{over:?}");
    // Under Azure's paths it is the same batch.
    for path in ["/openai/batches", "/openai/v1/batches", "/openai/deployments/any/batches"] {
        assert_eq!(server.get(&format!("{path}/{id}?api-version=2024-10-21"), Some(&key)).json()["id"], id, "{path}");
    }
}

#[test]
fn no_more_lines_are_asked_at_once_than_configured() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 3\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let names: Vec<_> = (0..6).map(|i| i.to_string()).collect();
    let slow: Vec<_> = names.iter().map(|name| (name.as_str(), CHAT, chat(name, json!({"mock": {"delay_ms": 1500}})))).collect();
    let file = upload(&server, &key, &lines(&slow));
    let batches = [made(&server, &key, &file, CHAT), made(&server, &key, &file, CHAT)];
    let mut most = 0;
    while batches.iter().any(|id| !is_over(&show(&server, &key, id))) {
        let metrics = server.get("/metrics", None).body;
        let in_flight = metrics.lines().find_map(|line| line.strip_prefix("refit_requests_in_flight ")).expect("a gauge");
        most = most.max(in_flight.trim().parse::<u32>().expect("a number"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(most, 3, "the slots are used, and no more of them, over both batches");
}

/// Changes the database behind a stopped server's back, to what a crash or the passing of time would have made of it.
fn amend(refit: &Refit, sql: &str) {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    assert!(database.execute(sql, []).expect("a statement") > 0, "{sql}");
}

fn slow(names: &[&'static str], delay_ms: u64) -> Vec<(&'static str, &'static str, Value)> {
    names.iter().map(|name| (*name, CHAT, chat(name, json!({"mock": {"delay_ms": delay_ms}})))).collect()
}

/// A batch of which one line at least was answered before its server was killed.
fn begun(refit: &Refit, key: &str, names: &[&'static str]) -> String {
    let mut server = refit.serve(&[]);
    let id = made(&server, key, &upload(&server, key, &lines(&slow(names, 1_500))), CHAT);
    wait(&server, key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    server.kill();
    id
}

#[test]
fn a_start_removes_what_a_kill_left() {
    let refit = Refit::new();
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let file = upload(&server, &key, b"kept");
    server.kill();
    refit.write(".refit/uploads/incoming/upload_1", "half an upload");
    let unnamed = format!(".refit/uploads/ab/ab{}", "0".repeat(62));
    refit.write(&unnamed, "bytes that no row names");
    refit.write(".refit/batches/batch_1/output.jsonl", "answers of a batch that ended");
    let server = refit.serve(&[]);
    assert_eq!(server.get(&format!("/v1/files/{file}/content"), Some(&key)).body, "kept");
    assert_eq!(walk(&refit.data_dir().join("uploads")).len(), 1);
    assert!(walk(&refit.data_dir().join("batches")).is_empty());
}

#[test]
fn an_input_that_expires_stays_until_its_batch_has_ended() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let key = refit.key();
    let id = begun(&refit, &key, &["a", "b", "c"]);
    amend(&refit, "UPDATE files SET expires_at = 1 WHERE purpose = 'batch'");
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(3)), "{batch}");
    let input = batch["input_file_id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/files/{input}"), Some(&key)).status, 404);
}

#[test]
fn a_line_that_has_become_too_long_fails_alone() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let long = chat("x", json!({"user": "y".repeat(5_000)}));
    let mut input = slow(&["a", "b"], 1_500);
    input.push(("long", CHAT, long));
    let id = made(&server, &key, &upload(&server, &key, &lines(&input)), CHAT);
    wait(&server, &key, &id, |batch| batch["request_counts"]["completed"].as_u64() >= Some(1));
    server.kill();
    refit.write("refit.toml", "[server]\nmax_body_bytes = 2000\n");
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!(
        (&batch["status"], &batch["request_counts"]),
        (&json!("completed"), &json!({"total": 3, "completed": 2, "failed": 1})),
        "{batch}"
    );
    let bad = answers(&server, &key, &batch, "error_file_id");
    assert_eq!((bad[0].0.as_str(), &bad[0].1["error"]["code"]), ("long", &json!("request_too_large")));
}

#[test]
fn a_batch_whose_input_is_gone_ends_with_what_it_has() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let key = refit.key();
    let id = begun(&refit, &key, &["a", "b", "c"]);
    amend(&refit, "DELETE FROM files WHERE purpose = 'batch'");
    let server = refit.serve(&[]);
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!((&batch["status"], &batch["errors"]["data"][0]["code"]), (&json!("failed"), &json!("unknown_name")), "{batch}");
    assert!(!answers(&server, &key, &batch, "output_file_id").is_empty(), "{batch}");
}

#[test]
fn a_batch_that_was_being_written_down_is_completed_even_when_its_key_is_gone() {
    let refit = Refit::new();
    refit.write("refit.toml", "[batches]\nconcurrency = 1\n");
    let key = refit.key();
    let reader = refit.run(&["key", "create", "reader", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let id = begun(&refit, &key, &["a", "b"]);
    amend(&refit, "UPDATE batches SET status = 'finalizing', finalizing_at = 1");
    refit.run(&["key", "revoke", "test"]).expect(0);
    let server = refit.serve(&[]);
    assert_eq!(wait(&server, &reader, &id, is_over)["status"], "completed");
}

#[test]
fn deleting_a_file_and_naming_it_in_a_batch_exclude_each_other() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for i in 0..20 {
        let file = upload(&server, &key, &lines(&[("a", CHAT, chat(&i.to_string(), json!({})))]));
        let (deleted, batch) = std::thread::scope(|scope| {
            let delete = scope.spawn(|| http("DELETE", &format!("{}/v1/files/{file}", server.url()), Some(&key), None));
            let batch = make(&server, &key, &file, CHAT);
            (delete.join().expect("an answer"), batch)
        });
        match batch.status {
            // The batch may have ended before the file was deleted, but it was answered.
            200 => {
                let batch = wait(&server, &key, batch.json()["id"].as_str().expect("an id"), is_over);
                assert_eq!((&batch["status"], deleted.status == 200 || deleted.status == 409), (&json!("completed"), true), "{deleted:?}");
            }
            400 => assert_eq!((batch.json()["error"]["param"].as_str(), deleted.status), (Some("input_file_id"), 200)),
            _ => panic!("{batch:?}"),
        }
    }
}

#[test]
fn pages_go_on_when_their_last_file_was_deleted() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let made: Vec<_> = (0..3).map(|i| upload(&server, &key, i.to_string().as_bytes())).collect();
    assert_eq!(http("DELETE", &format!("{}/v1/files/{}", server.url(), made[1]), Some(&key), None).status, 200);
    let page = server.get(&format!("/v1/files?after={}", made[1]), Some(&key)).json();
    assert_eq!((page["data"][0]["id"].as_str(), page["data"].as_array().map(Vec::len)), (Some(made[0].as_str()), Some(1)));
}

#[test]
fn messages_are_asked_again_when_their_provider_has_too_much_to_do() {
    let whole = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0,
        "message": {"role": "assistant", "content": "late"}, "finish_reason": "stop"}]});
    let down = scripted("503 Service Unavailable", "", &json!({"error": {"message": "down"}}).to_string());
    let quota = scripted("429 Too Many Requests", "", &json!({"error": {"message": "pay", "code": "insufficient_quota"}}).to_string());
    let (port, seen) = upstream(vec![down, scripted("200 OK", "", &whole.to_string()), quota]);
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!("[batches]\nconcurrency = 1\n[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}\"\n"),
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "up/m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
    let file = upload(&server, &key, &lines(&[("a", "/v1/messages", body.clone())]));
    let batch = wait(&server, &key, &made(&server, &key, &file, "/v1/messages"), is_over);
    assert_eq!(batch["request_counts"]["completed"], 1, "{batch}");
    let file = upload(&server, &key, &lines(&[("a", CHAT, body)]));
    let batch = wait(&server, &key, &made(&server, &key, &file, CHAT), is_over);
    let bad = answers(&server, &key, &batch, "error_file_id");
    assert_eq!(bad[0].1["response"]["body"]["error"]["code"], "insufficient_quota", "{bad:?}");
    assert_eq!(seen.try_iter().count(), 3);
}

#[test]
fn a_project_that_waits_does_not_hold_up_the_others() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        use std::io::Write;
        // Ends with the test's process.
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            crate::upstream::read_request(&mut stream);
            let busy = b"HTTP/1.1 429 Busy\r\nretry-after: 600\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
            let _ = stream.write_all(busy);
        }
    });
    let refit = Refit::new();
    refit.write("refit.toml", format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}\"\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let other =
        refit.run(&["key", "create", "o", "--project", "other", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let busy = upload(&server, &key, &lines(&[("a", CHAT, json!({"model": "up/m", "messages": [{"role": "user", "content": "x"}]}))]));
    let waiting: Vec<_> = (0..12).map(|_| made(&server, &key, &busy, CHAT)).collect();
    let file = upload(&server, &other, &lines(&[("a", CHAT, chat("x", json!({})))]));
    assert_eq!(wait(&server, &other, &made(&server, &other, &file, CHAT), is_over)["status"], "completed");
    assert!(waiting.iter().all(|id| !is_over(&show(&server, &key, id))));
}

#[test]
fn nothing_is_asked_while_answers_cannot_be_kept() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    // No directory can be made there.
    let blocking = refit.write(".refit/batches", "in the way");
    let id = made(&server, &key, &upload(&server, &key, &lines(&slow(&["a", "b"], 0))), CHAT);
    wait(&server, &key, &id, |batch| batch["status"] == "in_progress");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(refit.run(&["logs", "tail", "--json"]).expect(0).json(), json!([]));
    std::fs::remove_file(blocking).expect("removed");
    let batch = wait(&server, &key, &id, is_over);
    assert_eq!((&batch["status"], &batch["request_counts"]["completed"]), (&json!("completed"), &json!(2)), "{batch}");
}

#[test]
fn a_part_without_an_end_to_its_head_is_refused_early() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let url = format!("{}/v1/files", server.url());
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    };
    let before = peak();
    for head in ["", "--b\r\ncontent-disposition: form-data; name=\"file\"\r\nx-y: "] {
        let body = [head.as_bytes(), &vec![b'a'; 60 << 20]].concat();
        let refused = send("POST", &url, Some(&key), &[("content-type", "multipart/form-data; boundary=b")], Some(body));
        assert_eq!(refused.status, 400, "{refused:?}");
    }
    assert!(peak() < before + 32, "the peak rose from {before} to {} MiB", peak());
}

#[test]
fn too_many_lines_are_refused_and_answers_expire_as_asked() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let many: String =
        (0..50_001).map(|i| format!("{{\"custom_id\":\"{i}\",\"method\":\"POST\",\"url\":\"{CHAT}\",\"body\":{{}}}}\n")).collect();
    let batch = wait(&server, &key, &made(&server, &key, &upload(&server, &key, many.as_bytes()), CHAT), is_over);
    assert_eq!((&batch["status"], &batch["errors"]["data"][0]["code"]), (&json!("failed"), &json!("too_many_requests")), "{batch}");
    let file = upload(&server, &key, &lines(&slow(&["a"], 0)));
    let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": 3600}});
    let id = server.post("/v1/batches", Some(&key), &body).json()["id"].as_str().expect("an id").to_string();
    let batch = wait(&server, &key, &id, is_over);
    let output = server.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().expect("an id")), Some(&key)).json();
    assert_eq!(output["expires_at"].as_i64(), output["created_at"].as_i64().map(|at| at + 3600), "{output}");
}
