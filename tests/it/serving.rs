//! Routes as applications call them: only a live release with its stored run answers, with its prompt and parameters.

use crate::releases::measured;
use crate::support::{Refit, Reply, Server};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const ONE: &str =
    "---\ninput:\n  schema:\n    message: string\n---\n{{role \"system\"}}Sort the message.\n{{role \"user\"}}Message: {{message}}\n";
const TWO: &str = "{{role \"user\"}}{{greeting}}, {{name}}!\n";

fn ask(server: &Server, key: &str, fields: Value) -> Reply {
    let mut body = json!({"model": "answers", "messages": [{"role": "user", "content": "where is it"}]});
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    server.post(CHAT, Some(key), &body)
}

fn text(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_string()
}

/// A release of `mock/echo` with a prompt, measured and ready to be promoted.
fn release(refit: &Refit, prompt: &str, source: &str, parameters: &[&str]) -> String {
    let file = refit.write(&format!("prompts/{prompt}.prompt"), source);
    refit.run(&["prompt", "publish", file.to_str().expect("UTF-8")]).expect(0);
    let parameters: Vec<_> = parameters.iter().flat_map(|parameter| ["-P", parameter]).collect();
    let made = refit.run(&[&["release", "create", "--model", "mock/echo", "--prompt", prompt], &parameters[..]].concat()).expect(0);
    let digest = made.stdout.trim().to_string();
    measured(refit, &format!("run_{prompt}"), &digest, ("intake", "test"), (0.9, 0.8));
    digest
}

fn with_route() -> Refit {
    let refit = Refit::new();
    refit.run(&["route", "create", "answers", "--suite", "intake", "--require", "exact_match>=0.5"]).expect(0);
    refit
}

fn promote(refit: &Refit, digest: &str) {
    refit.run(&["release", "promote", digest, "--route", "answers"]).expect(0);
}

#[test]
fn a_route_answers_with_its_live_release_and_says_so() {
    let refit = with_route();
    let digest = release(&refit, "one", ONE, &["max_tokens=3"]);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let refused = ask(&server, &key, json!({}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (409, &json!("gate_refused")), "{refused:?}");
    assert!(!server.get("/v1/models", Some(&key)).body.contains("answers"));

    promote(&refit, &digest);
    let reply = ask(&server, &key, json!({}));
    assert_eq!(text(&reply).trim(), "Message: where is", "the release's prompt and its three tokens");
    assert_eq!(reply.header("x-refit-release"), Some(digest.as_str()));
    assert_eq!((reply.header("x-refit-route"), reply.header("x-refit-target")), (Some("answers"), Some("mock/echo")));
    assert_eq!(text(&ask(&server, &key, json!({"max_completion_tokens": 4}))).trim(), "Message: where is it", "the request overrides");
    let streamed = ask(&server, &key, json!({"stream": true}));
    assert!(streamed.header("x-refit-release") == Some(digest.as_str()) && streamed.body.contains("Message: "), "{streamed:?}");
    assert!(server.get("/v1/models", Some(&key)).body.contains("\"answers\""));

    let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["route"], &row["release"], &row["model"]), (&json!("answers"), &json!(digest), &json!("echo")));
    assert_eq!(row["request"]["messages"][0]["content"], "where is it", "what the caller sent, not what the prompt made of it");
}

#[test]
fn a_promotion_and_a_rollback_reach_a_running_server_with_the_next_request() {
    let refit = with_route();
    let (first, second) = (release(&refit, "one", ONE, &[]), release(&refit, "other", "{{role \"user\"}}Other: {{message}}", &[]));
    promote(&refit, &first);
    let (key, server) = (refit.key(), refit.serve(&[]));
    assert_eq!(text(&ask(&server, &key, json!({}))).trim(), "Message: where is it");
    promote(&refit, &second);
    assert_eq!(text(&ask(&server, &key, json!({}))).trim(), "Other: where is it");
    refit.run(&["release", "rollback", "answers"]).expect(0);
    assert_eq!(text(&ask(&server, &key, json!({}))).trim(), "Message: where is it");
}

#[test]
fn a_live_release_without_its_stored_run_is_not_served() {
    let refit = with_route();
    promote(&refit, &release(&refit, "one", ONE, &[]));
    let (key, server) = (refit.key(), refit.serve(&[]));
    assert_eq!(ask(&server, &key, json!({})).status, 200);
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    database.execute("DELETE FROM run_targets", []).expect("deletes");
    assert_eq!(ask(&server, &key, json!({})).json()["error"]["code"], "gate_refused");
}

#[test]
fn several_variables_come_in_the_body_and_missing_ones_are_named() {
    let refit = with_route();
    promote(&refit, &release(&refit, "two", TWO, &[]));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let missing = ask(&server, &key, json!({}));
    assert_eq!((missing.status, &missing.json()["error"]["code"]), (400, &json!("missing_required_parameter")), "{missing:?}");
    assert!(missing.body.contains("greeting") && missing.body.contains("name"), "{missing:?}");
    let half = ask(&server, &key, json!({"prompt": {"variables": {"greeting": "Hi"}}, "messages": []}));
    assert_eq!((half.status, &half.json()["error"]["param"]), (400, &json!("name")), "{half:?}");
    let whole = ask(&server, &key, json!({"prompt": {"variables": {"greeting": "Hi", "name": "Ada"}}, "messages": []}));
    assert_eq!(text(&whole).trim(), "Hi, Ada!");
}
