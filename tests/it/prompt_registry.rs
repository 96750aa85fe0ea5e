//! The prompt registry: edits that meet, labels that need proof, files and the library, and who may do what over HTTP.

use crate::keys::key;
use crate::support::{Done, Refit, Reply, Server, send};
use serde_json::{Value, json};

const V1: &str = "---\nmodel: mock/echo\n---\nSay {{message}}";

fn publish(refit: &Refit, args: &[&str]) -> Done {
    refit.run(&[&["prompt", "publish"], args].concat())
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"]["code"].as_str().unwrap_or_default().to_string())
}

fn keys(refit: &Refit) -> [String; 4] {
    ["app", "viewer", "developer", "admin"].map(|role| key(refit, &["--role", role]))
}

fn post(server: &Server, path: &str, key: &str, body: Value) -> Reply {
    server.post(&format!("/v1/prompts{path}"), Some(key), &body)
}

#[test]
fn edits_over_http_that_meet_are_told_and_nothing_is_lost() {
    let refit = Refit::new();
    let [app, viewer, developer, _] = keys(&refit);
    let server = refit.serve(&[]);
    let new = json!({"name": "p", "source": V1, "message": "first"});
    assert_eq!(code(&post(&server, "", &viewer, new.clone())).0, 403);
    let first = post(&server, "", &developer, new).json();
    assert_eq!((&first["version"], &first["labels"], &first["parent"]), (&json!(1), &json!(["latest"]), &Value::Null));
    let edit = |source: &str, parent: Value| post(&server, "", &developer, json!({"name": "p", "source": source, "parent": parent}));
    assert_eq!(edit("second {{message}}", first["digest"].clone()).json()["version"], 2);
    for parent in [first["digest"].clone(), json!(1), Value::Null, json!("none")] {
        let refused = edit("mine {{message}}", parent.clone());
        assert_eq!(code(&refused), (409, "conflict".into()), "{parent}: {refused:?}");
        assert!(refused.body.contains("\\\"parent\\\": 2"), "says what to do: {refused:?}");
    }
    let url = format!("{}/v1/prompts", server.url());
    let body = json!({"name": "p", "source": "third {{message}}"}).to_string().into_bytes();
    let matched = |tag: &str| send("POST", &url, Some(&developer), &[("if-match", tag)], Some(body.clone()));
    assert_eq!(matched(&format!("\"{}\"", first["digest"].as_str().expect("a digest"))).status, 409);
    assert_eq!(matched("\"2\"").json()["version"], 3);
    assert_eq!(code(&edit("{{#if a}}", json!(3))).1, "invalid_file");
    let get = |path: &str, key: &str| server.get(&format!("/v1/prompts{path}"), Some(key));
    assert_eq!(get("", &app).status, 403);
    assert_eq!(get("", &viewer).json()["data"][0]["version"], 3);
    assert_eq!(get("/p", &viewer).json()["versions"].as_array().map(Vec::len), Some(3));
    let version = get("/p/versions/1", &viewer).json();
    assert_eq!((&version["source"], &version["required_variables"]), (&json!(V1), &json!(["message"])));
    assert_eq!(code(&get("/q", &viewer)).1, "unknown_name");
}

#[test]
fn labels_move_over_http_with_who_when_from_to_and_why() {
    let refit = Refit::new();
    let [_, viewer, developer, _] = keys(&refit);
    let server = refit.serve(&[]);
    post(&server, "", &developer, json!({"name": "p", "source": V1}));
    post(&server, "", &developer, json!({"name": "p", "source": "b", "parent": 1}));
    let promote = |version: Value, key: &str| post(&server, "/p/labels/production", key, json!({"version": version, "message": "why"}));
    assert_eq!(promote(json!(1), &viewer).status, 403);
    assert_eq!(promote(json!(1), &developer).json()["to_version"], 1);
    assert_eq!(promote(json!("latest"), &developer).json()["from_version"], 1);
    assert_eq!(code(&promote(json!(2), &developer)), (409, "conflict".into()));
    let back = post(&server, "/p/labels/production/rollback", &developer, json!({"message": "complaints"})).json();
    assert_eq!((&back["from_version"], &back["to_version"], &back["kind"]), (&json!(2), &json!(1), &json!("rollback")));
    let gone = send("DELETE", &format!("{}/v1/prompts/p/labels/production?message=bye", server.url()), Some(&developer), &[], None).json();
    assert_eq!((&gone["to_version"], &gone["reason"]), (&Value::Null, &json!("bye")));
    assert_eq!(server.get("/v1/prompts/p/versions/production", Some(&viewer)).status, 404);
    let history = server.get("/v1/prompts/p/history", Some(&viewer)).json();
    let moves: Vec<_> = history["data"].as_array().expect("moves").iter().map(|m| (m["kind"].clone(), m["reason"].clone())).collect();
    let told = |kind: &str, why: &str| (json!(kind), json!(why));
    assert_eq!(moves, [told("remove", "bye"), told("rollback", "complaints"), told("promote", "why"), told("promote", "why")]);
    assert!(history["data"][0]["actor"].as_str().is_some_and(|actor| actor.starts_with("key_")), "{history}");
    let audit = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let actions: Vec<_> =
        audit.as_array().expect("rows").iter().filter_map(|row| row["action"].as_str()).filter(|a| a.starts_with("prompt.")).collect();
    assert_eq!(actions.len(), 6, "{actions:?}");
    for action in ["prompt.publish", "prompt.promote", "prompt.rollback", "prompt.unlabel"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
    refit.run(&["audit", "verify"]).expect(0);
}

/// A suite of twenty samples, of which an echo of `{{message}}` answers all right, and anything else none.
fn with_suite(refit: &Refit) {
    let samples: String = (0..20)
        .map(|i| format!("{}\n", json!({"id": format!("s{i}"), "input": {"message": format!("m{i}")}, "target": format!("m{i}")})))
        .collect();
    refit.write("d.jsonl", samples);
    refit.write(
        "s.yaml",
        "name: proof\ndataset: d.jsonl\ntargets:\n  - {name: t, model: mock/echo, prompt: p}\nscorers: [exact_match]\ngate:\n  - {metric: exact_match, at_least: 0.9}\n",
    );
    refit.write("refit.toml", "[prompts]\nprotected = [\"production\"]\n[prompts.suites]\np = \"proof\"\n");
}

#[test]
fn a_protected_label_moves_only_with_a_run_that_passes_for_exactly_that_version() {
    let refit = Refit::new();
    with_suite(&refit);
    let [.., developer, admin] = keys(&refit);
    refit.write("p.prompt", "wrong {{message}}");
    publish(&refit, &["p.prompt"]).expect(0);
    let refused = refit.run(&["prompt", "promote", "p@1", "production"]).expect(1);
    assert!(
        refused.stderr.contains("no finished run of suite \"proof\" measured p@1") && refused.stderr.contains("refit eval run"),
        "{refused:?}"
    );
    refit.run(&["prompt", "promote", "p@1", "staging"]).expect(0);
    refit.run(&["eval", "run", "s.yaml"]).expect(1);
    let refused = refit.run(&["prompt", "promote", "p@1", "production"]).expect(1);
    assert!(refused.stderr.contains("exact_match mean 0.0000 < 0.9"), "{refused:?}");
    refit.write("p.prompt", "{{message}}");
    publish(&refit, &["p.prompt"]).expect(0);
    assert_eq!(refit.run(&["prompt", "promote", "p@2", "production"]).code, 1, "another version's run is no proof");
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let moved = refit.run(&["prompt", "promote", "p@2", "production", "--json"]).expect(0).json();
    assert_eq!(
        (&moved["to_version"], &moved["detail"]["suite"], &moved["detail"]["verdicts"][0]["passed"]),
        (&json!(2), &json!("proof"), &json!(true))
    );
    let server = refit.serve(&[]);
    let promote = |key: &str, more: Value| {
        let mut body = json!({"version": 1});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        post(&server, "/p/labels/production", key, body)
    };
    let refused = promote(&developer, json!({}));
    assert_eq!(code(&refused), (409, "gate_refused".into()), "{refused:?}");
    assert_eq!(promote(&developer, json!({"force": true, "message": "now"})).status, 403);
    assert_eq!(code(&promote(&admin, json!({"force": true}))).1, "missing_required_parameter");
    let forced = promote(&admin, json!({"force": true, "message": "the new one is down"})).json();
    assert_eq!((&forced["to_version"], &forced["detail"]["forced"]), (&json!(1), &json!(true)));
    let take =
        |key: &str, query: &str| send("DELETE", &format!("{}/v1/prompts/p/labels/production{query}", server.url()), Some(key), &[], None);
    assert_eq!(code(&take(&developer, "")).1, "gate_refused");
    assert_eq!(take(&admin, "?force=true&message=x").status, 200);
    let audit = refit.run(&["audit", "list", "--json"]).expect(0).json();
    assert!(audit.to_string().contains("prompt.refuse") && audit.to_string().contains("the new one is down"), "{audit}");
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn a_run_on_another_model_or_split_proves_nothing() {
    let refit = Refit::new();
    with_suite(&refit);
    refit.write("p.prompt", "---\nmodel: mock/fixed\n---\n{{message}}");
    publish(&refit, &["p.prompt"]).expect(0);
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let refused = refit.run(&["prompt", "promote", "p", "production"]).expect(1);
    assert!(refused.stderr.contains("measured the prompt on mock/echo, and the prompt names mock/fixed"), "{refused:?}");
}

#[test]
fn a_file_does_not_write_over_what_was_published_since() {
    let refit = Refit::new();
    refit.write("p.prompt", "one");
    publish(&refit, &["p.prompt"]).expect(0);
    refit.write("p.prompt", "two");
    publish(&refit, &["p.prompt"]).expect(0);
    refit.write("elsewhere/p.prompt", "three");
    let refused = publish(&refit, &["elsewhere/p.prompt"]).expect(2);
    assert!(
        refused.stderr.contains("newer version than the one that was edited: 2") && refused.stderr.contains("--parent 2"),
        "{refused:?}"
    );
    publish(&refit, &["elsewhere/p.prompt", "--parent", "2"]).expect(0);
    refit.write("p.prompt", "four");
    publish(&refit, &["p.prompt"]).expect(2);
    publish(&refit, &["p.prompt", "--parent", "*"]).expect(0);
    assert_eq!(refit.run(&["prompt", "show", "p"]).expect(0).stdout, "four");
}

#[test]
fn files_and_the_library_are_brought_together_and_never_over_each_other() {
    let refit = Refit::new();
    let [.., developer, _] = keys(&refit);
    for name in ["same", "mine", "theirs", "both"] {
        refit.write(&format!("prompts/{name}.prompt"), format!("{name} 1"));
    }
    refit.write("prompts/_part.prompt", "a partial");
    let server = refit.serve(&[]);
    let sync = |more: &[&str]| refit.run(&[&["prompt", "sync", "prompts", "--json"], more].concat());
    assert_eq!(sync(&["--check"]).code, 1);
    sync(&["-m", "first"]).expect(0);
    sync(&["--check"]).expect(0);
    refit.write("prompts/mine.prompt", "mine 2");
    refit.write("prompts/both.prompt", "both, file");
    for (name, source) in [("theirs", "theirs 2"), ("both", "both, library"), ("other", "no file")] {
        let parent = if name == "other" { json!("none") } else { json!(1) };
        assert_eq!(post(&server, "", &developer, json!({"name": name, "source": source, "parent": parent})).status, 200);
    }
    let states = |done: Done| {
        let items = done.json().as_array().expect("a list").clone();
        items.iter().map(|item| [item["prompt"].clone(), item["state"].clone(), item["done"].clone()]).collect::<Vec<_>>()
    };
    let row = |prompt: &str, state: &str, done: &str| [json!(prompt), json!(state), json!(done)];
    let looked = states(sync(&["--check"]).expect(1));
    let expected =
        [("both", "both_changed"), ("mine", "file_newer"), ("other", "library_only"), ("same", "same"), ("theirs", "library_newer")];
    assert_eq!(looked, expected.map(|(prompt, state)| row(prompt, state, "")));
    let brought = sync(&[]).expect(1);
    assert!(brought.stderr.contains("both: both the file and the library changed"), "{brought:?}");
    assert_eq!(states(brought)[1], row("mine", "file_newer", "published"));
    let read = |name: &str| std::fs::read_to_string(refit.path().join(format!("prompts/{name}.prompt"))).expect("a file");
    assert_eq!((read("theirs").as_str(), read("both").as_str()), ("theirs 2", "both, file"));
    let shown = |name: &str| refit.run(&["prompt", "show", name]).expect(0).stdout;
    assert_eq!((shown("mine").as_str(), shown("both").as_str()), ("mine 2", "both, library"));
    publish(&refit, &["prompts/both.prompt", "--parent", "2"]).expect(0);
    sync(&["--check"]).expect(0);
    sync(&["--all"]).expect(0);
    assert_eq!(read("other"), "no file");
    refit.write("prompts/same.prompt", "{{#if x}}");
    assert_eq!(states(sync(&[]).expect(1)).iter().find(|item| item[0] == "same").map(|item| item[1].clone()), Some(json!("unusable")));
}

/// A suite as [`with_suite`] has it, with other targets and another prompt.
fn with_targets(refit: &Refit, targets: &str, prompt: &str) {
    with_suite(refit);
    let suite = std::fs::read_to_string(refit.path().join("s.yaml")).expect("a suite");
    refit.write("s.yaml", suite.replace("  - {name: t, model: mock/echo, prompt: p}\n", targets));
    refit.write("p.prompt", prompt);
    publish(refit, &["p.prompt"]).expect(0);
}

#[test]
fn every_target_of_a_run_that_measured_the_version_must_pass() {
    let refit = Refit::new();
    with_targets(&refit, "  - {name: a, model: mock/echo, prompt: p}\n  - {name: b, model: mock/fixed, prompt: p}\n", "{{message}}");
    // It does not help to measure only the one that passes.
    refit.run(&["eval", "run", "s.yaml", "--target", "a"]).expect(0);
    let refused = refit.run(&["prompt", "promote", "p", "production"]).expect(1);
    assert!(refused.stderr.contains("left target \"b\" out"), "{refused:?}");
    refit.run(&["eval", "run", "s.yaml"]).expect(1);
    let refused = refit.run(&["prompt", "promote", "p", "production"]).expect(1);
    assert!(refused.stderr.contains("target \"b\": exact_match mean 0.0000 < 0.9"), "{refused:?}");
}

#[test]
fn a_run_with_parameters_of_the_suite_proves_nothing() {
    let refit = Refit::new();
    let prompt = "---\nmodel: mock/echo\nconfig: {temperature: 0.5}\n---\n{{message}}";
    with_targets(&refit, "  - {name: t, model: mock/echo, prompt: p, parameters: {temperature: 0}}\n", prompt);
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let refused = refit.run(&["prompt", "promote", "p", "production"]).expect(1);
    assert!(refused.stderr.contains("another \"temperature\" than its own config has"), "{refused:?}");
    let suite = std::fs::read_to_string(refit.path().join("s.yaml")).expect("a suite");
    refit.write("s.yaml", suite.replace(", parameters: {temperature: 0}", ""));
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    refit.run(&["prompt", "promote", "p", "production"]).expect(0);
}

#[test]
fn a_protected_label_goes_back_only_to_what_is_proven() {
    let refit = Refit::new();
    with_suite(&refit);
    let [.., developer, admin] = keys(&refit);
    let protected = std::fs::read_to_string(refit.path().join("refit.toml")).expect("a configuration");
    refit.write("refit.toml", "");
    refit.write("p.prompt", "from before {{message}}");
    publish(&refit, &["p.prompt"]).expect(0);
    refit.run(&["prompt", "promote", "p@1", "production"]).expect(0);
    refit.write("refit.toml", protected);
    for source in ["{{message}}", "---\ndescription: again\n---\n{{message}}"] {
        refit.write("p.prompt", source);
        publish(&refit, &["p.prompt"]).expect(0);
        refit.run(&["eval", "run", "s.yaml"]).expect(0);
        refit.run(&["prompt", "promote", "p", "production"]).expect(0);
    }
    let server = refit.serve(&[]);
    let back = |key: &str, body: Value| post(&server, "/p/labels/production/rollback", key, body);
    let proven = back(&developer, json!({})).json();
    assert_eq!((&proven["to_version"], &proven["detail"]["verdicts"][0]["passed"]), (&json!(2), &json!(true)));
    let refused = back(&developer, json!({}));
    assert_eq!(code(&refused), (409, "gate_refused".into()), "version 1 is from before the label was protected: {refused:?}");
    assert!(refit.run(&["prompt", "rollback", "p", "production"]).expect(1).stderr.contains("without a run that passed"));
    assert_eq!(back(&developer, json!({"force": true, "message": "now"})).status, 403);
    assert_eq!(code(&back(&admin, json!({"force": true}))).1, "missing_required_parameter");
    let taken = send("DELETE", &format!("{}/v1/prompts/p/labels/production?force=true&message=x", server.url()), Some(&admin), &[], None);
    assert_eq!(taken.status, 200, "{taken:?}");
    let refused = back(&developer, json!({}));
    assert!(code(&refused).0 == 409 && refused.body.contains("it was taken away"), "{refused:?}");
    let forced = refit.run(&["prompt", "rollback", "p", "production", "--force", "-m", "a mistake", "--json"]).expect(0).json();
    assert_eq!((&forced["to_version"], &forced["detail"]["forced"]), (&json!(2), &json!(true)));
    refit.run(&["prompt", "unlabel", "p", "production"]).expect(1);
    let audit = refit.run(&["audit", "list", "--json"]).expect(0).json();
    let refusals = audit.as_array().expect("rows").iter().filter(|row| row["action"] == "prompt.refuse").collect::<Vec<_>>();
    assert_eq!(refusals.len(), 4, "{refusals:?}");
    assert!(audit.to_string().contains("it may not be taken away"), "{audit}");
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn older_content_is_refused_with_the_way_out_and_the_file_stays() {
    let refit = Refit::new();
    let [.., developer, _] = keys(&refit);
    refit.write("prompts/p.prompt", "one");
    publish(&refit, &["prompts/p.prompt"]).expect(0);
    refit.write("prompts/p.prompt", "two");
    publish(&refit, &["prompts/p.prompt"]).expect(0);
    refit.write("prompts/p.prompt", "one");
    let refused = publish(&refit, &["prompts/p.prompt"]).expect(2);
    assert!(refused.stderr.contains("as version 1") && refused.stderr.contains("refit prompt promote p@1 LABEL"), "{refused:?}");
    let synced = refit.run(&["prompt", "sync", "prompts", "--json"]).expect(1).json();
    assert_eq!(synced[0]["state"], "went_back", "{synced}");
    assert_eq!(std::fs::read_to_string(refit.path().join("prompts/p.prompt")).expect("a file"), "one");
    let server = refit.serve(&[]);
    let send = |parent: Value| post(&server, "", &developer, json!({"name": "p", "source": "one", "parent": parent}));
    assert_eq!(
        (send(json!(1)).json()["error"]["param"].clone(), send(json!(2)).json()["error"]["param"].clone()),
        (json!("parent"), json!("source"))
    );
}

#[test]
fn an_evaluation_publishes_over_nobody() {
    let refit = Refit::new();
    with_targets(&refit, "  - {name: t, model: mock/echo, prompt: p.prompt}\n", "{{message}}");
    refit.write("elsewhere/p.prompt", "theirs {{message}}");
    publish(&refit, &["elsewhere/p.prompt", "--parent", "1"]).expect(0);
    // An older version is measured as it is, and stays older.
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    refit.write("p.prompt", "---\ndescription: mine\n---\n{{message}}");
    let refused = refit.run(&["eval", "run", "s.yaml"]).expect(2);
    assert!(
        refused.stderr.contains("newer version than the one that was edited: 2") && refused.stderr.contains("--parent 2"),
        "{refused:?}"
    );
    assert_eq!(refit.run(&["prompt", "show", "p"]).expect(0).stdout, "theirs {{message}}");
    publish(&refit, &["p.prompt", "--parent", "2"]).expect(0);
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
}

#[test]
fn one_odd_file_does_not_keep_the_others() {
    let refit = Refit::new();
    for name in ["README", "my prompt", "latest", "a", "z"] {
        refit.write(&format!("prompts/{name}.prompt"), name);
    }
    let synced = refit.run(&["prompt", "sync", "prompts", "--json"]).expect(1).json();
    let rows: Vec<_> = synced
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| [&row["prompt"], &row["state"], &row["done"]].map(|word| word.as_str().unwrap_or_default()))
        .collect();
    let odd = |name| [name, "unusable", ""];
    assert_eq!(rows, [odd("README"), ["a", "file_new", "published"], odd("latest"), odd("my prompt"), ["z", "file_new", "published"]]);
    assert!(synced[0]["note"].as_str().is_some_and(|note| note.contains("rename it")), "{synced}");
}
