//! `refit key` and `refit audit`, and what stands on disk.

use crate::support::{Refit, Reply, Server, http};
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const KEYS: &str = "/admin/v1/keys";

/// Makes a key with more options.
pub fn key(refit: &Refit, options: &[&str]) -> String {
    let args = [&["key", "create", "test", "--json"], options].concat();
    refit.run(&args).expect(0).json()["key"].as_str().expect("a key").to_string()
}

pub fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn code(reply: &Reply) -> (u16, String, Value) {
    let error = &reply.json()["error"];
    (reply.status, error["code"].as_str().unwrap_or_default().to_string(), error["param"].clone())
}

fn send(server: &Server, method: &str, path: &str, key: &str, body: Value) -> Reply {
    http(method, &format!("{}{path}", server.url()), Some(key), Some(body.to_string().into_bytes()))
}

#[test]
fn a_key_is_shown_once_and_stored_only_as_a_hash() {
    let refit = Refit::new();
    let made = refit.run(&["key", "create", "my app", "--project", "shop", "--role", "viewer", "--json"]).expect(0).json();
    let key = made["key"].as_str().expect("a key");
    assert!(
        key.len() == 46 && key.starts_with("rk_") && key[3..].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
        "{made}"
    );
    assert_eq!((&made["name"], &made["project"], &made["role"]), (&json!("my app"), &json!("shop"), &json!("viewer")));

    let listed = refit.run(&["key", "list", "--json"]).expect(0);
    assert!(!listed.stdout.contains(key) && !listed.stdout.contains("hash"), "{listed:?}");
    assert_eq!(listed.json()[0]["id"], made["id"]);
    for entry in std::fs::read_dir(refit.data_dir()).expect("the data directory").flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).expect("a file");
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{} holds the key", entry.path().display());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let pepper = std::fs::metadata(refit.data_dir().join("pepper")).expect("the pepper");
        assert_eq!(pepper.permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn wrong_names_and_roles_are_refused_and_nothing_is_written() {
    let refit = Refit::new();
    for (args, named) in [
        (vec!["key", "create", "x", "--role", "king"], "role"),
        (vec!["key", "create", "x", "--project", "No Slug"], "project"),
        (vec!["key", "create", ""], "name"),
        (vec!["key", "revoke", "nobody"], "nobody"),
    ] {
        let done = refit.run(&args).expect(2);
        assert!(done.stdout.is_empty() && done.stderr.starts_with("error: ") && done.stderr.contains(named), "{done:?}");
    }
    assert_eq!(refit.run(&["key", "list", "--json"]).expect(0).json(), json!([]));
    assert_eq!(refit.run(&["audit", "verify", "--json"]).expect(0).json(), json!({"rows": 0}));
}

#[test]
fn making_and_revoking_leave_audit_rows_and_tampering_shows() {
    let refit = Refit::new();
    refit.key();
    let id = refit.run(&["key", "list", "--json"]).expect(0).json()[0]["id"].clone();
    refit.run(&["key", "revoke", id.as_str().expect("an id")]).expect(0);
    refit.run(&["key", "revoke", id.as_str().expect("an id")]).expect(2);
    let rows = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let actions: Vec<_> = rows.as_array().expect("rows").iter().map(|row| row["action"].clone()).collect();
    assert_eq!((actions, &rows[1]["subject"]), (vec![json!("key.create"), json!("key.revoke")], &id));
    refit.run(&["audit", "verify"]).expect(0);

    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    database.execute("UPDATE audit SET actor = 'somebody else' WHERE sequence = 2", []).expect("tampers");
    let done = refit.run(&["audit", "verify"]).expect(2);
    assert!(done.stderr.contains("row 2"), "{done:?}");
}

#[test]
fn a_key_calls_and_sees_only_the_names_it_was_given() {
    let refit = Refit::new();
    let (all, some) = (refit.key(), key(&refit, &["--route", "mock/echo", "--route", "openai/*"]));
    let server = refit.serve(&[]);
    assert_eq!(server.post(CHAT, Some(&some), &chat("mock/echo", "hi")).status, 200);
    let refused = (403, "permission_denied".to_string(), json!("model"));
    for model in ["mock/fixed", "mock/echo2", "nobody", "mock/*", "Mock/echo"] {
        assert_eq!(code(&server.post(CHAT, Some(&some), &chat(model, "hi"))), refused, "{model}");
    }
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "mock/fixed", "input": "x"})),
        ("/v1/responses", json!({"model": "mock/fixed", "input": "x"})),
        ("/v1/completions", json!({"model": "mock/fixed", "prompt": "x"})),
        ("/openai/deployments/mock%2Ffixed/chat/completions", chat("mock/echo", "x")),
    ] {
        assert_eq!(server.post(path, Some(&some), &body).status, 403, "{path}");
    }
    let counted = json!({"model": "mock/fixed", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]});
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let reply = server.post(path, Some(&some), &counted);
        assert_eq!((reply.status, &reply.json()["error"]["type"]), (403, &json!("permission_error")), "{path}");
    }
    let ids = |key: &str| -> Vec<String> {
        let list = server.get("/v1/models", Some(key)).json();
        list["data"].as_array().expect("a list").iter().map(|model| model["id"].as_str().expect("an id").to_string()).collect()
    };
    assert_eq!(ids(&some), ["mock/echo"]);
    assert!(ids(&all).len() > 2);
    assert_eq!(
        (server.get("/v1/models/mock/echo", Some(&some)).status, server.get("/v1/models/mock/fixed", Some(&some)).status),
        (200, 404)
    );
}

#[test]
fn a_prompt_does_not_lead_a_key_where_it_may_not_go() {
    let refit = Refit::new();
    refit.write("prompts/hidden.prompt", "---\nmodel: mock/fixed\n---\nhello\n");
    refit.run(&["prompt", "publish", "prompts/hidden.prompt"]).expect(0);
    let (some, fixed) = (key(&refit, &["--route", "mock/echo"]), key(&refit, &["--route", "mock/fixed"]));
    let server = refit.serve(&[]);
    let ask = |key: &str, body: Value| server.post("/v1/responses", Some(key), &body);
    assert_eq!(code(&ask(&some, json!({"prompt": {"id": "hidden"}}))).0, 403);
    assert_eq!(code(&ask(&some, json!({"model": "hidden", "prompt": {"id": "hidden"}}))).0, 403);
    // Neither the model that the prompt names nor a name that is near is told.
    let (all, other) = (refit.key(), |key: &str, prompt: Value| ask(key, json!({"prompt": prompt})));
    assert!(!other(&some, json!({"id": "hidden"})).body.contains("mock/fixed"));
    for (prompt, field) in [(json!({"id": "hiden"}), "prompt.id"), (json!({"id": "hidden", "label": "production"}), "prompt.label")] {
        let told = other(&all, prompt.clone());
        assert!(told.status == 404 && told.body.contains("\\\"hidden\\\""), "{told:?}");
        let told = other(&some, prompt);
        assert!(told.status == 404 && told.json()["error"]["param"] == field && !told.body.contains("hidden"), "{told:?}");
    }
    assert_eq!(ask(&fixed, json!({"prompt": {"id": "hidden"}})).status, 200);
    assert_eq!(ask(&some, json!({"model": "mock/echo", "prompt": {"id": "hidden"}})).status, 200);
}

/// What else there is is not told to a key that may not call it.
#[test]
fn a_name_that_is_near_is_not_offered_to_a_key_that_may_not_call_it() {
    let refit = Refit::new();
    let (all, some) = (refit.key(), key(&refit, &["--route", "mok/*"]));
    let server = refit.serve(&[]);
    let told = |key: &str| server.post(CHAT, Some(key), &chat("mok/echo", "hi"));
    assert!(told(&all).body.contains("mock/echo"));
    assert!(told(&some).status == 404 && !told(&some).body.contains("mock/echo"), "{:?}", told(&some));
}

#[test]
fn a_key_ends_with_its_time_while_the_server_remembers_it() {
    let refit = Refit::new();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let end = jiff::Timestamp::from_millisecond(now.as_millis() as i64 + 3_000).expect("a moment").to_string();
    let key = key(&refit, &["--expires", &end]);
    let server = refit.serve(&[]);
    assert_eq!(server.post(CHAT, Some(&key), &chat("mock/echo", "hi")).status, 200);
    let ended = (0..150).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        server.post(CHAT, Some(&key), &chat("mock/echo", "hi")).status == 401
    });
    assert!(ended, "fifteen seconds later the key still opens");
    let listed = refit.run(&["key", "list"]).expect(0);
    assert!(listed.stdout.contains("expired"), "{listed:?}");
}

#[test]
fn a_rotated_key_keeps_its_id_and_the_old_secret_ends_at_once() {
    let refit = Refit::new();
    let old = refit.key();
    let server = refit.serve(&[]);
    assert_eq!(server.post(CHAT, Some(&old), &chat("mock/echo", "hi")).status, 200);
    let new = refit.run(&["key", "rotate", "test", "--json"]).expect(0).json();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(server.post(CHAT, Some(&old), &chat("mock/echo", "hi")).status, 401);
    assert_eq!(server.post(CHAT, new["key"].as_str(), &chat("mock/echo", "hi")).status, 200);
    let listed = refit.run(&["key", "list", "--json"]).expect(0).json();
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["id"]), (Some(1), &new["id"]));
    assert_ne!(listed[0]["hint"].as_str().map(|hint| &hint[..7]), Some(&old[..7]));
}

#[test]
fn changes_name_what_they_change_and_impossible_ones_change_nothing() {
    let refit = Refit::new();
    refit.key();
    let args =
        ["key", "update", "test", "--rpm", "60", "--budget", "25.50", "--budget-period", "day", "--route", "a", "--expires", "2030-01-31"];
    refit.run(&args).expect(0);
    let shown = || refit.run(&["key", "show", "test", "--json"]).expect(0).json();
    let row = shown();
    assert_eq!(
        (&row["requests_per_minute"], &row["budget_micro_usd"], &row["budget_period"]),
        (&json!(60), &json!(25_500_000), &json!("day"))
    );
    assert_eq!((&row["routes"], &row["expires_at"]), (&json!(["a"]), &json!(1_896_134_399_999_i64)));
    for (args, named) in [
        (vec!["--rpm", "0"], "requests_per_minute"),
        (vec!["--rpm", "many"], "--rpm"),
        (vec!["--tpm=-5"], "--tpm"),
        (vec!["--budget", "1e9"], "--budget"),
        (vec!["--budget", "0.0000001"], "--budget"),
        (vec!["--budget-period", "week"], "budget_period"),
        (vec!["--expires", "soon"], "--expires"),
        (vec!["--route", "a b"], "route"),
        (vec!["--role", "king"], "role"),
    ] {
        let done = refit.run(&[&["key", "update", "test"], args.as_slice()].concat());
        assert!(done.code == 2 && done.stderr.contains(named), "{args:?}: {done:?}");
    }
    assert_eq!(shown(), row);
    refit.run(&["key", "update", "test", "--rpm", "none", "--budget", "none", "--expires", "none", "--all-routes"]).expect(0);
    let row = shown();
    assert!(["requests_per_minute", "budget_micro_usd", "expires_at", "routes"].iter().all(|name| row[*name].is_null()), "{row}");
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn keys_are_administered_over_http_with_the_acting_key_in_the_audit_chain() {
    let refit = Refit::new();
    let admin = refit.run(&["key", "create", "root", "--role", "admin", "--json"]).expect(0).json();
    let (root, actor) = (admin["key"].as_str().expect("a key").to_string(), admin["id"].clone());
    let server = refit.serve(&[]);
    let made = server.post(
        KEYS,
        Some(&root),
        &json!({"name": "shop", "project": "shop", "requests_per_minute": 5, "budget_usd": "1.50", "expires_at": "30d"}),
    );
    assert_eq!(made.status, 200, "{made:?}");
    let (made, secret) = (made.json(), made.json()["key"].as_str().expect("a secret").to_string());
    assert_eq!((&made["role"], &made["budget_micro_usd"], &made["budget_period"]), (&json!("app"), &json!(1_500_000), &json!("month")));
    let path = format!("{KEYS}/{}", made["id"].as_str().expect("an id"));
    assert_eq!(server.post(CHAT, Some(&secret), &chat("mock/echo", "hi")).status, 200);
    assert!(!server.get(KEYS, Some(&root)).body.contains(&secret) && !server.get(&path, Some(&root)).body.contains(&secret));

    let changed = send(&server, "PATCH", &path, &root, json!({"requests_per_minute": null, "routes": ["mock/fixed"], "role": "viewer"}));
    assert_eq!((changed.status, &changed.json()["requests_per_minute"], &changed.json()["role"]), (200, &Value::Null, &json!("viewer")));
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(server.post(CHAT, Some(&secret), &chat("mock/echo", "hi")).status, 403);
    let turned = send(&server, "POST", &format!("{path}/rotate"), &root, json!({})).json();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(server.post(CHAT, Some(&secret), &chat("mock/fixed", "hi")).status, 401);
    assert_eq!(server.post(CHAT, turned["key"].as_str(), &chat("mock/fixed", "hi")).status, 200);
    assert_eq!(send(&server, "DELETE", &path, &root, json!({})).status, 200);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(server.post(CHAT, turned["key"].as_str(), &chat("mock/fixed", "hi")).status, 401);
    assert_eq!(send(&server, "DELETE", &path, &root, json!({})).status, 404);

    let project = send(&server, "PATCH", "/admin/v1/projects/shop", &root, json!({"tokens_per_minute": 100}));
    assert_eq!((project.status, &project.json()["tokens_per_minute"]), (200, &json!(100)), "{project:?}");
    assert!(server.get("/admin/v1/projects", Some(&root)).json()["data"].as_array().is_some_and(|all| all.len() == 2));
    let rows = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let by_key: Vec<_> =
        rows.as_array().expect("rows").iter().filter(|row| row["actor"] == actor).map(|row| row["action"].clone()).collect();
    assert_eq!(by_key, ["key.create", "key.update", "key.rotate", "key.revoke", "project.set"]);
    assert!(!rows.to_string().contains(&secret));
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn what_the_administration_cannot_take_is_named() {
    let refit = Refit::new();
    let admin = key(&refit, &["--role", "admin"]);
    let server = refit.serve(&[]);
    for (body, status, param) in [
        (json!({}), 400, json!("name")),
        (json!({"name": 7}), 400, json!("name")),
        (json!({"name": ""}), 400, json!("key name")),
        (json!({"name": "x", "role": "king"}), 400, json!("role")),
        (json!({"name": "x", "project": "../x"}), 400, json!("project")),
        (json!({"name": "x", "requests_per_minute": -1}), 400, json!("requests_per_minute")),
        (json!({"name": "x", "requests_per_minute": 1.5}), 400, json!("requests_per_minute")),
        (json!({"name": "x", "tokens_per_minute": u64::MAX}), 400, json!("tokens_per_minute")),
        (json!({"name": "x", "tokens_per_minute": 0}), 400, json!("tokens_per_minute")),
        (json!({"name": "x", "budget_usd": "-1"}), 400, json!("budget_usd")),
        (json!({"name": "x", "budget_usd": 1e300}), 400, json!("budget_usd")),
        (json!({"name": "x", "budget_period": "day"}), 400, json!("budget_period")),
        (json!({"name": "x", "expires_at": 1.5}), 400, json!("expires_at")),
        (json!({"name": "x", "routes": "all"}), 400, json!("routes")),
        (json!({"name": "x", "routes": []}), 400, json!("routes")),
        (json!({"name": "x", "rpm": 5}), 400, json!("rpm")),
        (json!([]), 400, Value::Null),
    ] {
        let reply = server.post(KEYS, Some(&admin), &body);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (status, &param), "{body}: {reply:?}");
    }
    for path in ["/admin/v1/keys/test", "/admin/v1/keys/key_0", "/admin/v1/keys/..%2f"] {
        assert_eq!(server.get(path, Some(&admin)).status, 404, "{path}");
    }
    assert_eq!(server.get("/admin/v1/usage?by=hour", Some(&admin)).json()["error"]["param"], "by");
    assert_eq!(server.get("/admin/v1/usage?since=yesterday", Some(&admin)).json()["error"]["param"], "since");
    assert_eq!(refit.run(&["key", "list", "--json"]).expect(0).json().as_array().map(Vec::len), Some(1));
}
