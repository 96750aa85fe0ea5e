//! Tenants apart: every route for every role of two tenants, every id of one in the hands of the other, and secrets that are planted
//! everywhere and found nowhere.

use crate::keys::{chat, key};
use crate::support::{Refit, Reply, Server, http, http_with, send};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

const CHAT: &str = "/v1/chat/completions";
const ROLES: [&str; 4] = ["app", "viewer", "developer", "admin"];

/// Paths of the document with their methods and least roles; none for everybody.
fn operations(server: &Server) -> Vec<(String, String, Option<String>)> {
    let document = server.get("/openapi.json", None).json();
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let role = operation["x-refit-role"].as_str().map(str::to_string);
            assert_eq!(role.is_none(), operation["security"] == json!([]), "{method} {path}");
            all.push((method.to_uppercase(), path.clone(), role));
        }
    }
    all
}

fn call(server: &Server, (method, path): (&str, &str), key: Option<&str>) -> Reply {
    let body = (method != "GET").then(|| b"{}".to_vec());
    http(method, &format!("{}{path}", server.url()), key, body)
}

/// A path with something in the place of its parameters.
fn filled(path: &str, with: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { with } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[test]
fn every_route_takes_the_roles_of_its_rule_and_no_other() {
    let refit = Refit::new();
    let keys: Vec<_> =
        ["one", "two"].iter().flat_map(|project| ROLES.map(|role| (role, key(&refit, &["--role", role, "--project", project])))).collect();
    let server = refit.serve(&[]);
    let operations = operations(&server);
    assert!(operations.len() > 30, "{operations:?}");
    let rank = |role: &str| ROLES.iter().position(|known| *known == role).expect("a role");
    for (method, path, least) in &operations {
        let target = filled(path, "nothing");
        let status = |key: Option<&str>| call(&server, (method, &target), key).status;
        let Some(least) = least else {
            assert_eq!(status(None), 200, "{method} {path}");
            continue;
        };
        // Administration is nothing for applications, and what changes anything there takes an administrator.
        if path.starts_with("/admin/") {
            assert!(rank(least) >= rank(if method == "GET" { "viewer" } else { "admin" }), "{method} {path} takes {least}");
        }
        assert_eq!((status(None), status(Some("rk_none"))), (401, 401), "{method} {path}");
        for (role, key) in &keys {
            let got = status(Some(key));
            assert_eq!(got == 403, rank(role) < rank(least), "{method} {path} with role {role}: {got}");
            assert!(got != 401 && got < 500, "{method} {path} with role {role}: {got}");
        }
    }
    let public: Vec<_> = operations.iter().filter(|(.., least)| least.is_none()).map(|(_, path, _)| path.as_str()).collect();
    assert_eq!(public, ["/health", "/ready", "/status", "/metrics", "/openapi.json", "/schemas/prompt.json"]);
}

fn upload(server: &Server, key: &str) -> String {
    let line = json!({"custom_id": "a", "method": "POST", "url": CHAT, "body": chat("mock/echo", "mine")});
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"l\"\r\n\r\n{line}\n\r\n--x--\r\n"
    );
    let reply = http_with(
        &format!("{}/v1/files", server.url()),
        Some(key),
        &[("content-type", "multipart/form-data; boundary=x")],
        form.into_bytes(),
    );
    reply.json()["id"].as_str().unwrap_or_else(|| panic!("{reply:?}")).to_string()
}

#[test]
fn an_id_of_one_tenant_is_nothing_in_the_hands_of_another() {
    let refit = Refit::new();
    let mine = key(&refit, &["--project", "one", "--role", "developer"]);
    // Somebody else, with every role that is not an administrator's.
    let others = ["app", "viewer", "developer"].map(|role| key(&refit, &["--project", "two", "--role", role]));
    let server = refit.serve(&[]);
    let file = upload(&server, &mine);
    let new = |file: &str| json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
    let batch = server.post("/v1/batches", Some(&mine), &new(&file)).json()["id"].as_str().expect("a batch").to_string();
    let request = server.post(CHAT, Some(&mine), &chat("mock/echo", "mine")).header("x-request-id").expect("an id").to_string();
    let mut kept = chat("mock/echo", "mine");
    kept["store"] = json!(true);
    let kept = server.post(CHAT, Some(&mine), &kept).json()["id"].as_str().expect("an id").to_string();
    assert_eq!(server.get(&format!("{CHAT}/{kept}"), Some(&mine)).status, 200);
    let key_id = refit.run(&["key", "list", "--json"]).expect(0).json()[0]["id"].as_str().expect("an id").to_string();
    let ids = [file.as_str(), &batch, &request, &kept, &key_id, "one"];
    for (method, path, _) in operations(&server).into_iter().filter(|(_, path, least)| path.contains('{') && least.is_some()) {
        if path.contains("{deployment}") {
            continue;
        }
        for id in ids {
            for other in &others {
                let reply = call(&server, (&method, &filled(&path, id)), Some(other));
                assert!(matches!(reply.status, 403 | 404), "{method} {path} with {id}: {reply:?}");
                assert!(!reply.body.contains("mine"), "{method} {path} with {id}: {reply:?}");
            }
        }
    }
    for other in &others {
        assert_eq!(server.post("/v1/batches", Some(other), &new(&file)).status, 400, "another's file is no input");
        for (list, id) in [("/v1/files", &file), ("/v1/batches", &batch), (CHAT, &kept)] {
            let reply = server.get(list, Some(other));
            assert_eq!((reply.status, &reply.json()["data"]), (200, &json!([])), "{list}");
            let from = server.get(&format!("{list}?after={id}"), Some(other));
            assert!(from.status == 404 || from.json()["data"] == json!([]), "{from:?}");
        }
    }
    // Usage: each sees its own project, and may not ask for another's.
    let usage = server.get("/admin/v1/usage?by=project", Some(&others[1])).json();
    assert!(!usage.to_string().contains("one"), "{usage}");
    assert_eq!(server.get("/admin/v1/usage?by=project&project=one", Some(&others[2])).status, 403);
    let own = server.get("/admin/v1/usage?by=project&project=one", Some(&mine)).json();
    assert_eq!(own["data"][0]["project"], "one", "{own}");
    // And the owner still has all of it.
    assert_eq!(server.get(&format!("/v1/files/{file}"), Some(&mine)).status, 200);
    assert_eq!(server.get(&format!("/v1/batches/{batch}"), Some(&mine)).status, 200);
}

/// A server whose standard error is kept.
struct Logged {
    child: Child,
    url: String,
}

impl Logged {
    fn start(refit: &Refit, log: &std::path::Path) -> Self {
        let mut command = refit.command(&["serve", "--port", "0"]);
        command.env("REFIT_LOG", "trace").stdout(Stdio::piped()).stderr(File::create(log).expect("a log"));
        let mut child = command.spawn().expect("refit serve starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line:?} {}", std::fs::read_to_string(log).unwrap_or_default()));
        let url = ready["address"].as_str().expect("an address").trim_end_matches('/').to_string();
        Logged { child, url }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every text of the database but the bodies of the request log.
fn database_texts(refit: &Refit) -> String {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let mut names = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").expect("tables");
    let tables: Vec<String> = names.query_map([], |row| row.get(0)).expect("tables").flatten().collect();
    let mut texts = String::new();
    for table in tables {
        let mut statement = database.prepare(&format!("SELECT * FROM {table}")).expect("a table");
        let columns: Vec<String> = statement.column_names().map(str::to_string).collect();
        let mut rows = statement.query([]).expect("rows");
        while let Some(row) = rows.next().expect("a row") {
            for (at, column) in
                columns.iter().enumerate().filter(|(_, column)| table != "requests" || !["request", "reply"].contains(&column.as_str()))
            {
                texts.push_str(&format!("{table}.{column}: {:?}\n", row.get_ref(at).expect("a value")));
                if let Ok(text) = row.get_ref(at).expect("a value").as_str() {
                    texts.push_str(text);
                }
            }
        }
    }
    texts
}

const CANARIES: [(&str, &str); 4] = [
    ("the provider's key", "sk-canary-of-the-provider-7d1f"),
    ("a prompt", "canary-in-a-prompt-93ac"),
    ("a reply", "canary-in-a-reply-20be"),
    ("a header", "canary-in-a-header-b8e4"),
];

fn assert_clean(what: &str, text: &str, allowed: &[&str]) {
    for (name, canary) in CANARIES.iter().filter(|(name, _)| !allowed.contains(name)) {
        let at = text.find(canary);
        let around = at.map(|at| text[at.saturating_sub(300)..].chars().take(400).collect::<String>());
        assert!(at.is_none(), "{what} holds {name}: …{}", around.unwrap_or_default());
    }
}

#[test]
fn secrets_that_are_planted_everywhere_are_found_nowhere() {
    let [(_, provider_key), (_, prompt), (_, answer), (_, header)] = CANARIES;
    let completion = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]});
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]});
    let told = json!({"error": {"message": format!("Incorrect API key provided: {provider_key}"), "code": "invalid_api_key"}}).to_string();
    let scripts = vec![
        crate::upstream::reply("200 OK", "", &completion.to_string()),
        crate::upstream::stream(&format!("data: {chunk}\n\ndata: [DONE]\n\n"), 30),
        crate::upstream::reply("401 Unauthorized", "", &told),
        crate::upstream::reply("500 Oops", "", &told),
        crate::upstream::stream(&format!("data: {chunk}\n\ndata: {{oops"), 30),
    ];
    let count = scripts.len();
    let (port, _seen) = crate::upstream::upstream(scripts);
    let refit = Refit::new().env("UP_KEY", provider_key);
    let config = format!(
        "[log]\nbodies = true\n[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = {{ env = \"UP_KEY\" }}\n\
         [providers.gone]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key = {{ env = \"UP_KEY\" }}\n"
    );
    refit.write("refit.toml", config);
    let caller = key(&refit, &["--rpm", "100", "--budget", "none"]);
    let log = refit.path().join("log.txt");
    let server = Logged::start(&refit, &log);
    let mut refused = String::new();
    let mut ask = |body: &str, key: Option<&str>| {
        let headers = [("x-secret", header), ("user-agent", header)];
        let reply = send("POST", &format!("{}{CHAT}", server.url), key, &headers, Some(body.as_bytes().to_vec()));
        if reply.status >= 400 {
            refused.push_str(&format!("{reply:?}"));
        }
        reply.status
    };
    let mut body = chat("up/m", prompt);
    let mut seen = BTreeSet::new();
    for streamed in [false, true, false, false, true].into_iter().take(count) {
        body["stream"] = streamed.into();
        seen.insert(ask(&body.to_string(), Some(&caller)));
    }
    for broken in [
        chat("gone/m", prompt).to_string(),
        chat("nobody", prompt).to_string(),
        format!("{{\"model\": \"{prompt}"),
        chat("mock/fail", prompt).to_string(),
    ] {
        seen.insert(ask(&broken, Some(&caller)));
    }
    // A wrong key, also where a key does not belong.
    seen.insert(ask(&chat("mock/echo", prompt).to_string(), Some(provider_key)));
    assert!(seen.is_superset(&BTreeSet::from([200, 400, 401, 404, 502])), "{seen:?}");
    let pages = ["/metrics", "/openapi.json", "/v1/models", "/v1/files", "/health"]
        .map(|path| http("GET", &format!("{}{path}", server.url), Some(&caller), None).body);
    drop(server);

    let log = std::fs::read_to_string(&log).expect("the log");
    assert!(log.matches("TRACE").count() > 10, "trace was on: {log}");
    assert_clean("the process log", &log, &[]);
    assert!(!log.contains(&caller), "the process log holds the caller's key");
    assert_clean("an error body", &refused, &[]);
    pages.iter().for_each(|page| assert_clean("a page", page, &[]));
    let exported = refit.run(&["logs", "tail", "--json"]).expect(0).stdout;
    assert_clean("the export without bodies", &exported, &[]);
    // The bodies are the log's own; nothing else of a request is in the database.
    refit.run(&["usage"]).expect(0);
    let texts = database_texts(&refit);
    assert!(texts.contains("requests.endpoint"), "{texts}");
    assert_clean("the database", &texts, &[]);
    assert!(!texts.contains(&caller), "the database holds the caller's key");
    for entry in std::fs::read_dir(refit.data_dir()).expect("the data directory").flatten().filter(|entry| entry.path().is_file()) {
        let bytes = String::from_utf8_lossy(&std::fs::read(entry.path()).expect("a file")).into_owned();
        assert_clean(&format!("{}", entry.path().display()), &bytes, &["a prompt", "a reply"]);
    }
    // A key that somebody wrote into the configuration is not repeated.
    refit.write("refit.toml", format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://x\"\napi_key = \"{provider_key}\"\n[prices]\nfiles = [\"{provider_key}\"]\n"));
    let done = refit.run(&["price", "list"]).expect(2);
    assert_clean("the complaint about the configuration", &done.stderr, &[]);
}
