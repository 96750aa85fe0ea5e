//! Feedback on logged requests: found by any of their names, within one project.

use crate::support::{Refit, Reply, Server, http};
use crate::upstream::{reply, stream, upstream};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const FEEDBACK: &str = "/v1/feedback";

fn chat(id: &str) -> String {
    json!({"id": id, "object": "chat.completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]})
    .to_string()
}

fn ask(server: &Server, key: &str, model: &str, fields: Value) -> Reply {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let reply = server.post(CHAT, Some(key), &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply
}

fn id(reply: &Reply) -> String {
    reply.header("x-request-id").expect("an id").to_string()
}

fn said(server: &Server, key: &str, target: Value, fields: Value) -> Reply {
    let mut body = json!({"target": target, "name": "helpful", "value": true});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    server.post(FEEDBACK, Some(key), &body)
}

fn listed(server: &Server, key: &str, query: &str) -> Reply {
    http("GET", &format!("{}{FEEDBACK}?{query}", server.url()), Some(key), None)
}

fn key_of(refit: &Refit, project: &str) -> String {
    let done = refit.run(&["key", "create", "k", "--project", project, "--json"]).expect(0);
    done.json()["key"].as_str().expect("a key").to_string()
}

#[test]
fn a_request_is_found_by_its_id_its_replys_id_and_its_conversation_at_once() {
    let chunk = json!({"id": "chatcmpl-streamed", "object": "chat.completion.chunk", "created": 7, "model": "m",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]});
    let events = format!("data: {chunk}\n\ndata: [DONE]\n\n");
    let scripts = vec![
        reply("200 OK", "", &chat("chatcmpl-plain")),
        reply("200 OK", "", &chat("chatcmpl-read")),
        stream(&events, 1 << 16),
        reply("200 OK", "", &chat("chatcmpl-newer")),
    ];
    let (port, _seen) = upstream(scripts);
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n"),
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    let plain = id(&ask(&server, &key, "up/m", json!({})));
    let read = id(&ask(&server, &key, "up/m", json!({"metadata": {"conversation_id": "talk-7"}})));
    let streamed = id(&ask(&server, &key, "up/m", json!({"stream": true})));
    for (target, found) in [
        (json!({"request_id": plain}), &plain),
        (json!({"completion_id": "chatcmpl-plain"}), &plain),
        (json!({"completion_id": "chatcmpl-read"}), &read),
        (json!({"completion_id": "chatcmpl-streamed"}), &streamed),
        (json!({"conversation_id": "talk-7"}), &read),
    ] {
        let reply = said(&server, &key, target.clone(), json!({}));
        assert_eq!((reply.status, &reply.json()["request_id"]), (200, &json!(found)), "{target}: {reply:?}");
    }
    // Of a conversation the newest request is meant, also when an older one is known already.
    let newer = id(&ask(&server, &key, "up/m", json!({"conversation": {"id": "talk-7"}})));
    assert_eq!(said(&server, &key, json!({"conversation_id": "talk-7"}), json!({})).json()["request_id"], json!(newer));
    let list = listed(&server, &key, "completion_id=chatcmpl-plain").json();
    assert_eq!((list["data"].as_array().map(Vec::len), &list["data"][0]["value"]), (Some(2), &json!(true)), "{list}");
    let unknown = said(&server, &key, json!({"completion_id": "chatcmpl-nobody"}), json!({}));
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("unknown_name")));
}

#[test]
fn replies_of_an_earlier_server_are_found_too() {
    let refit = Refit::new();
    let key = refit.key();
    let mut server = refit.serve(&[]);
    let first = ask(&server, &key, "mock/echo", json!({}));
    server.kill();
    let server = refit.serve(&[]);
    let completion = first.json()["id"].as_str().expect("an id").to_string();
    let reply = said(&server, &key, json!({"completion_id": completion}), json!({}));
    assert_eq!((reply.status, &reply.json()["request_id"]), (200, &json!(id(&first))), "{reply:?}");
}

#[test]
fn another_project_neither_finds_nor_sees_nor_replaces() {
    let refit = Refit::new();
    let (ours, theirs) = (key_of(&refit, "ours"), key_of(&refit, "theirs"));
    let server = refit.serve(&[]);
    let asked = ask(&server, &ours, "mock/echo", json!({"metadata": {"conversation_id": "talk"}}));
    let (request, completion) = (id(&asked), asked.json()["id"].as_str().expect("an id").to_string());
    assert_eq!(said(&server, &ours, json!({"request_id": request}), json!({"id": "fb-1", "comment": "ours"})).status, 200);
    // The names are learned now: what keeps another project out is its name alone.
    assert_eq!(said(&server, &ours, json!({"completion_id": completion}), json!({"id": "fb-1", "comment": "ours"})).status, 200);
    for target in [json!({"request_id": request}), json!({"completion_id": completion}), json!({"conversation_id": "talk"})] {
        assert_eq!(said(&server, &theirs, target.clone(), json!({})).status, 404, "{target}");
        let (name, value) = target.as_object().and_then(|names| names.iter().next()).expect("a name");
        assert_eq!(listed(&server, &theirs, &format!("{name}={}", value.as_str().expect("an id"))).status, 404, "{target}");
    }
    let own = id(&ask(&server, &theirs, "mock/echo", json!({})));
    assert_eq!(said(&server, &theirs, json!({"request_id": own}), json!({"id": "fb-1", "comment": "theirs"})).status, 200);
    let list = listed(&server, &ours, &format!("request_id={request}")).json();
    assert_eq!((list["data"].as_array().map(Vec::len), &list["data"][0]["comment"]), (Some(1), &json!("ours")), "{list}");
}

#[test]
fn feedback_with_an_id_is_there_once_however_often_it_is_sent() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let request = id(&ask(&server, &key, "mock/echo", json!({})));
    for value in [json!(0.25), json!(0.75), json!(0.75)] {
        let reply = said(&server, &key, json!({"request_id": request}), json!({"id": "mine", "value": value}));
        assert_eq!((reply.status, &reply.json()["id"]), (200, &json!("mine")));
    }
    let other = said(&server, &key, json!({"request_id": request}), json!({}));
    assert!(other.json()["id"].as_str().is_some_and(|id| id.starts_with("fb_")), "{other:?}");
    let list = listed(&server, &key, &format!("request_id={request}")).json();
    let values: Vec<_> = list["data"].as_array().expect("a list").iter().map(|one| (one["id"] == "mine", one["value"].clone())).collect();
    assert_eq!((values.len(), values.contains(&(true, json!(0.75)))), (2, true), "{list}");
}

#[test]
fn what_does_not_fit_is_refused_by_the_name_of_its_field() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let request = id(&ask(&server, &key, "mock/echo", json!({})));
    let good = json!({"target": {"request_id": request}, "name": "helpful", "value": 1});
    for (field, value, param) in [
        ("target", json!({}), "target"),
        ("target", json!({"request_id": request, "trace_id": "x"}), "target"),
        ("target", json!({"request_id": "../x"}), "target.request_id"),
        ("target", json!("x"), "target"),
        ("name", json!(""), "name"),
        ("name", json!("x\n"), "name"),
        ("value", json!(null), "value"),
        ("value", json!([1]), "value"),
        ("value", json!("x".repeat(5_000)), "value"),
        ("comment", json!("x".repeat(20_000)), "comment"),
        ("correction", json!({"a": 1}), "correction"),
        ("source", json!("x".repeat(65)), "source"),
        ("id", json!("a b"), "id"),
        ("valeu", json!(1), "valeu"),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let reply = server.post(FEEDBACK, Some(&key), &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{body}: {reply:?}");
    }
    for field in ["target", "name", "value"] {
        let mut body = good.clone();
        body.as_object_mut().expect("an object").remove(field);
        let reply = server.post(FEEDBACK, Some(&key), &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(field)), "{reply:?}");
    }
    assert_eq!(server.post(FEEDBACK, Some(&key), &json!({"comment": "x".repeat(300_000)})).status, 413);
    assert_eq!(server.post(FEEDBACK, None, &good).status, 401);
    assert_eq!(listed(&server, &key, "").status, 400);
    assert_eq!(listed(&server, &key, &format!("request_id={request}")).json()["data"], json!([]));
}

#[test]
fn a_request_has_only_so_much_feedback() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let request = id(&ask(&server, &key, "mock/echo", json!({})));
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) INSERT INTO feedback \
        (project, id, request, api_key, name, value, created_at) SELECT 'default', 'fb-' || i, ?, 'key_x', 'n', '1', 0 FROM n";
    database.execute(sql, [&request]).expect("rows");
    let one_more = said(&server, &key, json!({"request_id": request}), json!({}));
    assert_eq!((one_more.status, &one_more.json()["error"]["code"]), (409, &json!("conflict")), "{one_more:?}");
    assert_eq!(said(&server, &key, json!({"request_id": request}), json!({"id": "fb-7"})).status, 200, "replacing is no more");
}

#[test]
fn feedback_is_shown_exported_and_redacted_like_the_log() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nredact = [\"email\"]\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let request = id(&ask(&server, &key, "mock/echo", json!({})));
    let more = json!({"comment": "write to ann@mail.example", "correction": "better", "source": "user", "value": "ask bob@mail.example"});
    assert_eq!(said(&server, &key, json!({"request_id": request}), more).status, 200);
    let row = refit.run(&["logs", "show", &request, "--json"]).expect(0).json();
    let given = &row["feedback"][0];
    assert_eq!((&given["comment"], &given["value"], &given["source"]), (&json!("write to [email]"), &json!("ask [email]"), &json!("user")));
    let text = refit.run(&["logs", "show", &request]).expect(0).stdout;
    assert!(text.contains("feedback    helpful = \"ask [email]\", by user, comment: write to [email]"), "{text}");
    let line = refit.run(&["logs", "export"]).expect(0).json();
    assert_eq!((&line["feedback"][0]["correction"], &line["id"]), (&json!("better"), &json!(request)));
}
