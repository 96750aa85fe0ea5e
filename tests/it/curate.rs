//! From production to a dataset: `refit data curate` and `refit data review`, and the same review over HTTP.

use crate::support::{Refit, Server, http};
use crate::upstream::{reply, upstream};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn ask(server: &Server, key: &str, text: &str, fields: Value) -> String {
    let mut body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let reply = server.post(CHAT, Some(key), &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.header("x-request-id").expect("an id").to_string()
}

fn said(server: &Server, key: &str, request: &str, fields: Value) {
    let mut body = json!({"target": {"request_id": request}, "name": "helpful", "value": false});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    assert_eq!(server.post("/v1/feedback", Some(key), &body).status, 200);
}

fn curated(refit: &Refit, args: &[&str]) -> Value {
    let mut all = vec!["data", "curate", "d", "--json"];
    all.extend(args);
    refit.run(&all).expect(0).json()
}

fn waiting(refit: &Refit, status: &str) -> Vec<Value> {
    let list = refit.run(&["data", "review", "list", "d", "--status", status, "--json"]).expect(0).json();
    list.as_array().expect("a list").clone()
}

fn review(refit: &Refit, args: &[&str]) -> crate::support::Done {
    let mut all = vec!["data", "review"];
    all.extend(args);
    refit.run(&all)
}

fn id(item: &Value) -> &str {
    item["id"].as_str().expect("an id")
}

#[test]
fn requests_become_proposals_by_feedback_correction_and_metadata_with_what_is_personal_taken_out() {
    let refit = Refit::new();
    let key = refit.key();
    let asked = {
        let server = refit.serve(&[]);
        let asked = [
            ask(&server, &key, "I am ann@example.com", json!({})),
            ask(&server, &key, "what of returns", json!({"store": true, "metadata": {"topic": "returns"}})),
            ask(&server, &key, "what of parcels", json!({"store": true, "metadata": {"topic": "parcels"}})),
            ask(&server, &key, "what of parcels", json!({})),
        ];
        said(&server, &key, &asked[1], json!({"correction": "Send it back within 30 days."}));
        said(&server, &key, &asked[2], json!({"value": true}));
        asked
    };
    let found = curated(&refit, &["--corrected"]);
    assert_eq!((&found["looked_at"], &found["proposed"]), (&json!(1), &json!(1)));
    let corrected = waiting(&refit, "open").remove(0);
    assert_eq!((&corrected["source"], &corrected["sample"]["target"]), (&json!(asked[1]), &json!("Send it back within 30 days.")));
    assert_eq!(corrected["sample"]["metadata"]["corrected"], true);
    assert_eq!(curated(&refit, &["--max-feedback", "helpful=0"])["known"], 1, "it was proposed before");
    let found = curated(&refit, &["--stored", "topic=parcels", "--variable", "message"]);
    assert_eq!((&found["looked_at"], &found["proposed"]), (&json!(1), &json!(1)));
    assert_eq!(waiting(&refit, "open")[1]["sample"]["input"], json!({"message": "what of parcels"}));
    let found = curated(&refit, &[]);
    let counts = ["looked_at", "proposed", "known", "repeated", "redacted"].map(|name| found[name].as_u64().expect("a count"));
    assert_eq!(counts, [4, 1, 2, 1, 1]);
    let item = waiting(&refit, "open").remove(2);
    assert_eq!(item["sample"]["input"]["messages"][0]["content"], "I am [email]");
    assert_eq!(item["sample"]["target"], "I am [email]", "the echo's answer, too");
    let dry = refit.run(&["data", "curate", "other", "--dry-run"]).expect(0);
    assert_eq!((dry.stdout.lines().count(), waiting(&refit, "open").len()), (3, 3));
}

#[test]
fn a_judge_proposes_what_it_does_not_agree_with() {
    let verdict = |text: &str| {
        let body = json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]});
        reply("200 OK", "", &body.to_string())
    };
    let (port, _seen) = upstream(vec![
        verdict("{\"agrees\": true}"),
        verdict("Well.\n```json\n{\"agrees\": false, \"why\": \"it only repeats\"}\n```"),
        verdict("I cannot say"),
    ]);
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\nmodels = [\"m\"]\n"),
    );
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        for text in ["one", "two", "three"] {
            ask(&server, &key, text, json!({}));
        }
    }
    let found = curated(&refit, &["--judge", "up/m", "--model", "mock/echo"]);
    assert_eq!((&found["proposed"], &found["unjudged"]), (&json!(1), &json!(1)), "{found}");
    let item = waiting(&refit, "open").remove(0);
    assert_eq!((&item["reason"], &item["sample"]["target"]), (&json!("up/m disagrees: it only repeats"), &json!("two")));
    let refused = refit.run(&["data", "curate", "d", "--judge", "nowhere/m"]).expect(2).stderr;
    assert!(refused.contains("nowhere"), "{refused}");
}

#[test]
fn what_two_accept_becomes_a_version_and_a_third_settles_disputes() {
    let refit = Refit::new();
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        for text in ["a", "b", "c", "e"] {
            ask(&server, &key, text, json!({}));
        }
    }
    refit.write("d.jsonl", format!("{}\n", json!({"id": "s", "input": {"m": "old"}, "target": "x"})));
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    assert_eq!(curated(&refit, &["--reviewers", "2"])["proposed"], 4);
    let items = waiting(&refit, "open");
    let [a, b, c, e] = [0, 1, 2, 3].map(|at| id(&items[at]));
    assert!(review(&refit, &["accept", a, "--as", "ann"]).expect(0).stdout.contains("is open after 1 of 2 reviews"));
    assert!(review(&refit, &["accept", a, "--as", "ann"]).expect(2).stderr.contains("ann has reviewed"));
    assert!(review(&refit, &["accept", a, "--as", "bob"]).expect(0).stdout.contains("is accepted after 2 of 2"));
    assert!(review(&refit, &["reject", a, "--as", "eve"]).expect(2).stderr.contains("is accepted, not open"));
    for who in ["ann", "bob"] {
        review(&refit, &["edit", b, "--target", "better", "--as", who]).expect(0);
        review(&refit, &["reject", e, "--as", who, "--comment", "not a question"]).expect(0);
    }
    review(&refit, &["accept", c, "--as", "ann"]).expect(0);
    assert!(review(&refit, &["reject", c, "--as", "bob"]).expect(0).stdout.contains("is disputed"));
    assert!(review(&refit, &["accept", c, "--as", "eve"]).expect(2).stderr.contains("refit data review settle"));
    assert!(review(&refit, &["settle", c, "accept", "--as", "bob"]).expect(2).stderr.contains("bob has reviewed"));
    let agreement = review(&refit, &["agreement", "d", "--json"]).expect(0).json();
    // accept-accept, edit-edit, reject-reject, accept-reject: observed 3/4; expected 2/4·1/4 + 1/4·1/4 + 1/4·2/4 = 5/16.
    assert_eq!((&agreement["items"], &agreement["agreed"]), (&json!(4), &json!(3)));
    assert!((agreement["kappa"].as_f64().expect("a number") - (0.75 - 0.3125) / (1.0 - 0.3125)).abs() < 1e-12);
    let row = review(&refit, &["publish", "d", "--json"]).expect(0).json();
    assert_eq!((&row["version"], &row["samples"], &row["lineage"]["kind"]), (&json!(2), &json!(3), &json!("curated")));
    let shown = refit.run(&["data", "show", "d"]).expect(0).stdout;
    assert!(shown.contains("\"old\"") && shown.contains("\"better\"") && !shown.contains("\"c\""), "{shown}");
    review(&refit, &["settle", c, "edit", "--sample", "{\"target\": \"settled\"}", "--as", "eve"]).expect(0);
    assert_eq!(review(&refit, &["publish", "d", "--json"]).expect(0).json()["samples"], 4);
    assert!(review(&refit, &["publish", "d"]).expect(2).stderr.contains("nothing was accepted"));
    assert_eq!(waiting(&refit, "published").len(), 3);
    for wrong in [&["edit", c][..], &["edit", c, "--sample", "[]"], &["edit", c, "--sample", "{\"inputs\": 1}"], &["accept", "item_none"]] {
        review(&refit, wrong).expect(2);
    }
}

#[test]
fn developers_review_over_http_within_their_project() {
    let refit = Refit::new();
    let key = |project: &str, role: &str| {
        let made = refit.run(&["key", "create", "k", "--project", project, "--role", role, "--json"]).expect(0).json();
        made["key"].as_str().expect("a key").to_string()
    };
    let (app, one, two, other) = (key("p", "app"), key("p", "developer"), key("p", "developer"), key("q", "developer"));
    drop(ask(&refit.serve(&[]), &app, "hello", json!({})));
    assert_eq!(curated(&refit, &["--reviewers", "2"])["proposed"], 1);
    let server = refit.serve(&[]);
    let list = server.get("/v1/reviews?dataset=d&status=open", Some(&one)).json();
    let path = format!("/v1/reviews/{}", list["data"][0]["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path, Some(&app)).status, 403);
    assert_eq!((server.get(&path, Some(&other)).status, server.get("/v1/reviews", Some(&other)).json()["data"].clone()), (404, json!([])));
    let first = server.post(&path, Some(&one), &json!({"verdict": "edit", "sample": {"target": "hi"}, "comment": "shorter"}));
    assert_eq!((first.status, &first.json()["status"]), (200, &json!("open")));
    assert_eq!(server.post(&path, Some(&one), &json!({"verdict": "accept"})).status, 409);
    for wrong in [json!({}), json!({"verdict": "maybe"}), json!({"verdict": "edit"}), json!({"verdict": "accept", "x": 1})] {
        assert_eq!(server.post(&path, Some(&two), &wrong).status, 400, "{wrong}");
    }
    let second = server.post(&path, Some(&two), &json!({"verdict": "edit", "sample": {"target": "hi"}})).json();
    assert_eq!(
        (&second["status"], &second["outcome"]["target"], &second["reviews"][0]["comment"]),
        (&json!("accepted"), &json!("hi"), &json!("shorter"))
    );
    let agreement = server.get("/v1/reviews/agreement/d", Some(&two)).json();
    assert_eq!((&agreement["items"], &agreement["agreed"], &agreement["kappa"]), (&json!(1), &json!(1), &Value::Null));
    assert_eq!(http("GET", &format!("{}/v1/reviews?status=odd", server.url()), Some(&two), None).status, 400);
}

#[test]
fn a_review_whose_settlement_was_cut_off_is_settled_by_the_next_look() {
    let refit = Refit::new();
    let key = refit.key();
    drop(ask(&refit.serve(&[]), &key, "hello", json!({})));
    curated(&refit, &[]);
    let item = waiting(&refit, "open").remove(0);
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let insert = "INSERT INTO reviews (item, reviewer, verdict, is_final, at) VALUES (?, 'ann', 'accept', 0, 1)";
    database.execute(insert, [id(&item)]).expect("written");
    drop(database);
    assert_eq!(review(&refit, &["show", id(&item)]).expect(0).json()["status"], "accepted");
    assert_eq!(review(&refit, &["publish", "d", "--json"]).expect(0).json()["samples"], 1);
}

#[test]
fn what_the_log_would_not_keep_is_taken_out_of_proposals_too() {
    let refit = Refit::new();
    let key = refit.key();
    let arguments = r#"{"to": "bob\u0040example.com", "card": 4111111111111111, "eve@example.com": "ticket T-4711"}"#;
    {
        let server = refit.serve(&[]);
        let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let messages = json!([{"role": "user", "content": "call +49 (30) 1234-5678 about T-4711"},
            {"role": "assistant", "content": null, "tool_calls": call}, {"role": "tool", "tool_call_id": "c", "content": "done"},
            {"role": "user", "content": "thanks", "name": "ann"}]);
        let body = json!({"model": "mock/echo", "messages": messages});
        assert_eq!(server.post(CHAT, Some(&key), &body).status, 200);
    }
    refit.write("refit.toml", "[log]\nredact_patterns = [\"T-[0-9]+\"]\nredact_fields = [\"messages[].name\"]\n");
    assert_eq!(curated(&refit, &[])["redacted"], 1);
    let messages = waiting(&refit, "open").remove(0)["sample"]["input"]["messages"].clone();
    let text = messages.to_string();
    for personal in ["bob", "4111", "eve@", "T-4711", "1234-5678", "ann"] {
        assert!(!text.contains(personal), "{personal}: {text}");
    }
    let arguments = messages[1]["tool_calls"][0]["function"]["arguments"].as_str().expect("a text");
    assert!(serde_json::from_str::<Value>(arguments).expect("still JSON")["to"] == "[email]", "{arguments}");
}

#[test]
fn curation_goes_on_behind_what_was_proposed_before() {
    let refit = Refit::new();
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        for text in ["one", "two", "three"] {
            ask(&server, &key, text, json!({}));
        }
    }
    let proposed = || curated(&refit, &["--limit", "2"])["proposed"].clone();
    assert_eq!([proposed(), proposed(), proposed()], [json!(2), json!(1), json!(0)]);
}

#[test]
fn a_version_keeps_the_split_and_takes_from_one_project() {
    let refit = Refit::new();
    let made = refit.run(&["key", "create", "k", "--project", "q", "--json"]).expect(0).json();
    let (key, other) = (refit.key(), made["key"].as_str().expect("a key").to_string());
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": format!("{i} {} {}", i * 7919, i * 104_729)}, "target": "x"});
    refit.write("d.jsonl", (0..20).map(|i| format!("{}\n", sample(i))).collect::<String>());
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    let before = refit.run(&["data", "split", "d", "--json"]).expect(0).json()["split"]["sizes"].clone();
    {
        let server = refit.serve(&[]);
        ask(&server, &key, "hello", json!({}));
        ask(&server, &other, "secret of q", json!({}));
    }
    curated(&refit, &[]);
    for item in waiting(&refit, "open") {
        review(&refit, &["accept", id(&item)]).expect(0);
    }
    let refused = review(&refit, &["publish", "d"]).expect(2).stderr;
    assert!(refused.contains("--project") && refused.contains("q"), "{refused}");
    let row = review(&refit, &["publish", "d", "--project", "default", "--json"]).expect(0).json();
    assert_eq!((&row["samples"], &row["lineage"]["detail"]["project"]), (&json!(21), &json!("default")));
    let after = &row["splits"]["sizes"];
    assert_eq!((&after["test"], &after["validation"]), (&before["test"], &before["validation"]));
    assert_eq!(after["train"].as_u64(), before["train"].as_u64().map(|train| train + 1));
}

#[test]
fn reviews_are_blind_while_open_and_agreement_is_about_what_becomes_of_it() {
    let refit = Refit::new();
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        for text in ["a", "b"] {
            ask(&server, &key, text, json!({}));
        }
    }
    curated(&refit, &["--reviewers", "2"]);
    let items = waiting(&refit, "open");
    let [a, b] = [0, 1].map(|at| id(&items[at]));
    review(&refit, &["edit", a, "--target", "one", "--as", "ann"]).expect(0);
    let shown = review(&refit, &["show", a]).expect(0).json();
    assert_eq!((&shown["reviews"], &shown["reviewed"]), (&json!([]), &json!(1)));
    assert!(review(&refit, &["edit", a, "--target", "two", "--as", "bob"]).expect(0).stdout.contains("is disputed after 2 of 2"));
    assert_eq!(review(&refit, &["show", a]).expect(0).json()["reviews"].as_array().map(Vec::len), Some(2), "whoever settles it sees both");
    // An edit into what it is accepts it.
    review(&refit, &["accept", b, "--as", "ann"]).expect(0);
    let same = items[1]["sample"]["target"].as_str().expect("a text");
    review(&refit, &["edit", b, "--target", same, "--as", "bob"]).expect(0);
    let agreement = review(&refit, &["agreement", "d", "--json"]).expect(0).json();
    assert_eq!((&agreement["items"], &agreement["agreed"]), (&json!(2), &json!(1)));
}

#[test]
fn conversations_of_every_protocol_are_proposed() {
    let refit = Refit::new();
    let key = refit.key();
    {
        let server = refit.serve(&[]);
        ask(&server, &key, "one", json!({}));
        let post = |path: &str, body: Value| assert_eq!(server.post(path, Some(&key), &body).status, 200, "{path}");
        post(
            "/v1/messages",
            json!({"model": "mock/echo", "max_tokens": 9, "system": "Be brief.", "messages": [{"role": "user", "content": "two"}]}),
        );
        post("/v1/responses", json!({"model": "mock/echo", "input": "three"}));
        post("/v1/completions", json!({"model": "mock/echo", "prompt": "four"}));
    }
    let found = curated(&refit, &[]);
    assert_eq!((&found["looked_at"], &found["proposed"], &found["left_out"]), (&json!(4), &json!(4), &json!(0)), "{found}");
    let items = waiting(&refit, "open");
    let show = |item: &Value| review(&refit, &["show", id(item)]).expect(0).json()["sample"].clone();
    let samples: Vec<Value> = items.iter().map(show).collect();
    let last = |sample: &Value| sample["input"]["messages"].as_array().and_then(|all| all.last()).map(|last| last["content"].clone());
    let mut asked: Vec<_> = samples.iter().filter_map(last).map(|text| text.to_string()).collect();
    asked.sort();
    assert_eq!(asked, ["\"four\"", "\"one\"", "\"three\"", "\"two\""], "{samples:?}");
    let two = samples.iter().find(|sample| sample["target"] == "two").expect("an answer");
    assert_eq!(two["input"]["messages"][0], json!({"role": "system", "content": "Be brief."}));
}
