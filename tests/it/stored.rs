//! Stored completions: `store: true` keeps a reply to be read again, in its project, redacted as the log is, until it is deleted.

use crate::support::{Refit, Reply, Server, http};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn ask(server: &Server, key: &str, text: &str, fields: Value) -> Value {
    let mut body =
        json!({"model": "mock/echo", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let reply = server.post(CHAT, Some(key), &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    if body["stream"] == true { json!(reply.body) } else { reply.json() }
}

fn ids(list: &Reply) -> Vec<String> {
    assert_eq!(list.status, 200, "{list:?}");
    list.json()["data"].as_array().expect("a list").iter().map(|item| item["id"].as_str().expect("an id").to_string()).collect()
}

fn key_of(refit: &Refit, project: &str) -> String {
    refit.run(&["key", "create", "k", "--project", project, "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string()
}

#[test]
fn what_is_stored_is_listed_shown_changed_and_deleted_within_its_project() {
    let refit = Refit::new();
    let (key, other) = (refit.key(), key_of(&refit, "other"));
    let server = refit.serve(&[]);
    ask(&server, &key, "not kept", json!({}));
    ask(&server, &key, "not kept", json!({"store": false, "metadata": {"topic": "a"}}));
    let first = ask(&server, &key, "first", json!({"store": true, "metadata": {"topic": "a", "n": "1"}, "temperature": 0.5}));
    let second = ask(&server, &key, "second", json!({"store": true, "metadata": {"topic": "b"}}));
    ask(&server, &key, "streamed", json!({"store": true, "stream": true, "metadata": {"topic": "a"}}));
    let id = |reply: &Value| reply["id"].as_str().expect("an id").to_string();
    let all = ids(&server.get(CHAT, Some(&key)));
    assert_eq!((all.len(), &all[0], &all[1]), (3, &id(&first), &id(&second)), "the oldest first, at once");
    assert_eq!(ids(&server.get(&format!("{CHAT}?order=desc&limit=1"), Some(&key))), all[2..]);
    assert_eq!(ids(&server.get(&format!("{CHAT}?metadata%5Btopic%5D=a"), Some(&key))), [all[0].clone(), all[2].clone()]);
    assert_eq!(ids(&server.get(&format!("{CHAT}?model=mock/echo&after={}", all[0]), Some(&key))), all[1..]);
    assert_eq!(ids(&server.get(&format!("{CHAT}?model=other"), Some(&key))), [""; 0]);
    assert_eq!(server.get(&format!("{CHAT}?after=chatcmpl-none"), Some(&key)).status, 404);
    let page = server.get(&format!("{CHAT}?limit=2"), Some(&key)).json();
    assert_eq!((&page["has_more"], &page["last_id"], &page["object"]), (&json!(true), &json!(all[1]), &json!("list")));

    let shown = server.get(&format!("{CHAT}/{}", all[0]), Some(&key)).json();
    for field in ["id", "object", "created", "model", "choices", "usage"] {
        assert_eq!(shown[field], first[field], "{field}");
    }
    assert_eq!((&shown["metadata"], &shown["temperature"]), (&json!({"topic": "a", "n": "1"}), &json!(0.5)));
    let streamed = server.get(&format!("{CHAT}/{}", all[2]), Some(&key)).json();
    assert_eq!((&streamed["object"], &streamed["choices"][0]["message"]["content"]), (&json!("chat.completion"), &json!("streamed")));
    let asked = server.get(&format!("{CHAT}/{}/messages", all[0]), Some(&key)).json();
    assert_eq!((&asked["data"][1]["content"], &asked["data"][1]["content_parts"]), (&json!("first"), &Value::Null));
    let after = asked["data"][0]["id"].as_str().expect("an id");
    let rest = server.get(&format!("{CHAT}/{}/messages?after={after}", all[0]), Some(&key)).json();
    assert_eq!(rest["data"].as_array().map(Vec::len), Some(1));

    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/messages")] {
        assert_eq!(http(method, &format!("{}{CHAT}/{}{path}", server.url(), all[0]), Some(&other), None).status, 404, "{method}");
    }
    assert_eq!(ids(&server.get(CHAT, Some(&other))), [""; 0]);

    let updated = server.post(&format!("{CHAT}/{}", all[1]), Some(&key), &json!({"metadata": {"topic": "a"}}));
    assert_eq!((updated.status, &updated.json()["metadata"]), (200, &json!({"topic": "a"})));
    assert_eq!(ids(&server.get(&format!("{CHAT}?metadata[topic]=a"), Some(&key))).len(), 3);
    for wrong in [json!({}), json!({"metadata": {"a": 1}}), json!({"metadata": {"a": "x".repeat(513)}}), json!({"metadata": {}, "x": 1})] {
        assert_eq!(server.post(&format!("{CHAT}/{}", all[1]), Some(&key), &wrong).status, 400, "{wrong}");
    }
    let deleted = http("DELETE", &format!("{}{CHAT}/{}", server.url(), all[0]), Some(&key), None);
    assert_eq!(deleted.json(), json!({"id": all[0], "object": "chat.completion.deleted", "deleted": true}));
    assert_eq!(server.get(&format!("{CHAT}/{}", all[0]), Some(&key)).status, 404);
    assert_eq!(ids(&server.get(CHAT, Some(&key))), all[1..]);
}

#[test]
fn what_the_log_redacts_or_does_not_keep_is_not_stored_either() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nredact = [\"email\"]\n");
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        ask(&server, &key, "I am ann@example.com", json!({"store": true, "metadata": {"who": "ann@example.com"}}));
        let list = server.get(CHAT, Some(&key));
        assert!(list.body.contains("I am [email]") && list.body.contains("\"who\":\"[email]\""), "{list:?}");
        let id = ids(&list)[0].clone();
        assert!(server.get(&format!("{CHAT}/{id}/messages"), Some(&key)).body.contains("I am [email]"));
        let updated = server.post(&format!("{CHAT}/{id}"), Some(&key), &json!({"metadata": {"who": "bob@example.com"}}));
        assert_eq!(updated.json()["metadata"], json!({"who": "[email]"}));
    }
    refit.write("refit.toml", "[log]\nbodies = false\n");
    let server = refit.serve(&[]);
    ask(&server, &key, "not kept", json!({"store": true}));
    assert_eq!(ids(&server.get(CHAT, Some(&key))).len(), 1, "only the one from before");
}

#[test]
fn of_replies_with_one_id_the_newest_is_listed_once() {
    let refit = Refit::new();
    refit.write("refit.toml", "[cache]\nenabled = true\n");
    let key = refit.key();
    let server = refit.serve(&[]);
    let fields = |n: usize| json!({"store": true, "metadata": {"n": n.to_string()}, "temperature": 0});
    let replies: Vec<Value> = (0..3).map(|n| ask(&server, &key, "same", fields(n))).collect();
    let list = server.get(&format!("{CHAT}?order=desc"), Some(&key));
    let mut distinct: Vec<_> = replies.iter().rev().map(|reply| reply["id"].as_str().expect("an id").to_string()).collect();
    distinct.dedup();
    assert_eq!((ids(&list), &list.json()["data"][0]["metadata"]["n"]), (distinct, &json!("2")));
}

#[test]
fn what_is_stored_goes_when_the_log_lets_it_go() {
    let refit = Refit::new();
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        for text in ["row", "bodies", "new"] {
            ask(&server, &key, text, json!({"store": true}));
        }
        assert_eq!(ids(&server.get(CHAT, Some(&key))).len(), 3);
    }
    let age = |text: &str, days: i64| {
        let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
        let like = format!("%\"content\":\"{text}\"%");
        let changed =
            database.execute("UPDATE requests SET at = at - ?1 WHERE request LIKE ?2", rusqlite::params![days * 86_400_000, like]);
        assert_eq!(changed, Ok(1));
    };
    age("row", 40);
    age("bodies", 10);
    refit.run(&["logs", "prune", "--days", "30", "--bodies-days", "7"]).expect(0);
    let server = refit.serve(&[]);
    let left = server.get(CHAT, Some(&key));
    assert!(ids(&left).len() == 1 && left.body.contains("\"new\""), "{left:?}");
}

#[test]
fn a_page_is_full_though_of_some_only_a_part_was_kept_and_fields_of_metadata_are_taken_out() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nmax_body_bytes = 1000\nredact_fields = [\"metadata.email\"]\n");
    let key = refit.key();
    let server = refit.serve(&[]);
    for i in 0..3 {
        ask(&server, &key, &"long ".repeat(400), json!({"store": true, "metadata": {"n": format!("{i}")}}));
    }
    ask(&server, &key, "short", json!({"store": true, "metadata": {"email": "ann", "topic": "a"}}));
    let page = server.get(&format!("{CHAT}?limit=2"), Some(&key)).json();
    assert_eq!((page["data"].as_array().map(Vec::len), &page["has_more"]), (Some(1), &json!(false)), "{page}");
    assert_eq!(page["data"][0]["metadata"], json!({"email": "[redacted]", "topic": "a"}));
}
