//! Requests and tokens per minute, of keys and projects.

use crate::keys::{chat, key};
use crate::support::{Refit, Reply, Server};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// So many POSTs at once; status, code and body of each.
pub fn at_once(server: &Server, key: &str, body: &Value, count: usize) -> Vec<(u16, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().expect("a client");
        let asked = (0..count).map(|_| {
            let request = client.post(format!("{}{CHAT}", server.url())).bearer_auth(key).body(body.to_string());
            async {
                let reply = request.send().await.expect("an answer");
                let status = reply.status().as_u16();
                (status, serde_json::from_slice(&reply.bytes().await.expect("a body")).unwrap_or(Value::Null))
            }
        });
        join_all(asked).await
    })
}

fn remaining(reply: &Reply, what: &str) -> Option<i64> {
    reply.header(&format!("x-ratelimit-remaining-{what}")).and_then(|text| text.parse().ok())
}

fn limited(body: Value, fields: Value) -> Value {
    let mut body = body;
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

#[test]
fn exactly_as_many_requests_pass_as_the_limit_says() {
    let refit = Refit::new();
    let key = key(&refit, &["--rpm", "10"]);
    let server = refit.serve(&[]);
    let replies = at_once(&server, &key, &chat("mock/echo", "hi"), 60);
    let passed = replies.iter().filter(|(status, _)| *status == 200).count();
    let refused = replies.iter().filter(|(status, body)| *status == 429 && body["error"]["code"] == "rate_limit_exceeded").count();
    assert_eq!((passed, refused), (10, 50));
    let reply = server.post(CHAT, Some(&key), &chat("mock/echo", "hi"));
    let header = |name: &str| reply.header(name).unwrap_or_default().to_string();
    assert_eq!(reply.status, 429, "{reply:?}");
    let wait: u64 = header("retry-after").parse().expect("seconds");
    assert!((1..=61).contains(&wait), "{reply:?}");
    assert_eq!((header("x-ratelimit-limit-requests"), header("x-ratelimit-remaining-requests")), ("10".into(), "0".into()));
    assert!(header("x-ratelimit-reset-requests").ends_with('s'), "{reply:?}");
    assert!(reply.body.contains("10 requests a minute"), "{reply:?}");
}

#[test]
fn a_key_without_limits_is_told_nothing_about_any() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = server.post(CHAT, Some(&key), &chat("mock/echo", "hi"));
    assert!(reply.status == 200 && reply.headers.iter().all(|(name, _)| !name.starts_with("x-ratelimit")), "{reply:?}");
}

#[test]
fn tokens_are_reserved_before_and_settled_after() {
    let refit = Refit::new();
    let key = key(&refit, &["--tpm", "1000"]);
    let server = refit.serve(&[]);
    let slow = limited(chat("mock/echo", "one two three"), json!({"max_tokens": 900, "mock": {"delay_ms": 600}}));
    let mut replies = at_once(&server, &key, &slow, 2);
    replies.sort_by_key(|(status, _)| *status);
    assert_eq!(replies.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 429], "both together are too much: {replies:?}");
    assert!(replies[1].1["error"]["message"].as_str().is_some_and(|text| text.contains("1000 tokens a minute")), "{replies:?}");
    // Three were read and three written; the next one may have what was not used.
    let reply = server.post(CHAT, Some(&key), &limited(chat("mock/echo", "x"), json!({"max_tokens": 900})));
    assert_eq!((reply.status, remaining(&reply, "tokens")), (200, Some(1000 - 6 - 2)), "{reply:?}");
}

#[test]
fn a_call_that_fails_gives_its_tokens_back() {
    let refit = Refit::new();
    let key = key(&refit, &["--tpm", "1000"]);
    let server = refit.serve(&[]);
    for _ in 0..3 {
        let reply = server.post(CHAT, Some(&key), &limited(chat("mock/fail", "x"), json!({"max_tokens": 900})));
        assert_eq!((reply.status, remaining(&reply, "tokens")), (502, Some(1000)), "{reply:?}");
    }
}

#[test]
fn a_call_that_never_fits_is_told_so() {
    let refit = Refit::new();
    let key = key(&refit, &["--tpm", "100"]);
    let server = refit.serve(&[]);
    let reply = server.post(CHAT, Some(&key), &limited(chat("mock/echo", "x"), json!({"max_tokens": 200})));
    assert_eq!((reply.status, reply.header("retry-after")), (429, None), "{reply:?}");
    assert!(reply.body.contains("lower max_tokens"), "{reply:?}");
}

#[test]
fn the_limit_of_a_project_holds_over_all_its_keys() {
    let refit = Refit::new();
    refit.run(&["project", "set", "shop", "--rpm", "3"]).expect(0);
    let (one, two) = (key(&refit, &["--project", "shop", "--rpm", "2"]), key(&refit, &["--project", "shop"]));
    let (other, server) = (refit.key(), refit.serve(&[]));
    let ask = |key: &str| server.post(CHAT, Some(key), &chat("mock/echo", "hi"));
    assert_eq!([ask(&one).status, ask(&one).status, ask(&one).status], [200, 200, 429], "the key's own limit holds as well");
    assert_eq!(ask(&two).status, 200);
    let refused = ask(&two);
    assert!(refused.status == 429 && refused.body.contains("the project \\\"shop\\\""), "{refused:?}");
    assert_eq!(ask(&other).status, 200, "others go on");
}

#[test]
fn limits_that_change_hold_with_the_next_request_and_forget_nothing() {
    let refit = Refit::new();
    let key = refit.key();
    let server = refit.serve(&[]);
    let ask = || {
        std::thread::sleep(Duration::from_millis(10));
        server.post(CHAT, Some(&key), &chat("mock/echo", "hi"))
    };
    assert_eq!(ask().status, 200);
    refit.run(&["key", "update", "test", "--rpm", "2"]).expect(0);
    assert_eq!([ask().status, ask().status, ask().status], [200, 200, 429]);
    refit.run(&["key", "update", "test", "--rpm", "3"]).expect(0);
    assert_eq!([ask().status, ask().status], [200, 429], "the two of before are counted");
    refit.run(&["key", "update", "test", "--rpm", "none"]).expect(0);
    assert_eq!(ask().status, 200);
}

#[test]
fn counting_tokens_is_a_request_and_takes_none_of_them() {
    let refit = Refit::new();
    let key = key(&refit, &["--tpm", "1000", "--rpm", "5", "--budget", "1"]);
    let server = refit.serve(&[]);
    let body = json!({"model": "mock/echo", "max_tokens": 900, "messages": [{"role": "user", "content": "a b c"}]});
    let reply = server.post("/v1/messages/count_tokens", Some(&key), &body);
    assert_eq!((reply.status, remaining(&reply, "tokens"), remaining(&reply, "requests")), (200, Some(1000), Some(4)), "{reply:?}");
}

/// A batch acts for the key that made it: the same names, the same limits.
#[test]
fn the_lines_of_a_batch_are_bound_like_their_key() {
    let refit = Refit::new();
    let key = key(&refit, &["--route", "mock/echo"]);
    let server = refit.serve(&[]);
    let line = |id: &str, model: &str| json!({"custom_id": id, "method": "POST", "url": CHAT, "body": chat(model, "hi")}).to_string();
    let lines = format!("{}\n{}\n", line("a", "mock/echo"), line("b", "mock/fixed"));
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"l\"\r\n\r\n{lines}\r\n--x--\r\n"
    );
    let url = format!("{}/v1/files", server.url());
    let file =
        crate::support::http_with(&url, Some(&key), &[("content-type", "multipart/form-data; boundary=x")], form.into_bytes()).json();
    let new = json!({"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"});
    let batch = server.post("/v1/batches", Some(&key), &new).json();
    let path = format!("/v1/batches/{}", batch["id"].as_str().expect("an id"));
    let ended = (0..300).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        Some(server.get(&path, Some(&key)).json()).filter(|batch| batch["completed_at"].is_number())
    });
    let ended = ended.expect("the batch ends");
    assert_eq!((&ended["request_counts"]["completed"], &ended["request_counts"]["failed"]), (&json!(1), &json!(1)), "{ended}");
    let errors = server.get(&format!("/v1/files/{}/content", ended["error_file_id"].as_str().expect("a file")), Some(&key));
    assert!(errors.body.contains("permission_denied") && errors.body.contains("mock/fixed"), "{errors:?}");
}
