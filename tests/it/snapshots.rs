//! What answers under the name of a provider's model: who may say that it has changed, how it is told, and which runs prove a release
//! after it has.

use crate::places::{Act, Place, Up, behind, completion, place, up, wait_until};
use crate::rig::gauge;
use crate::support::{Done, Refit};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Name = Arc<Mutex<&'static str>>;

/// An upstream that says "yes" and is called as the name says; a request that asks for another model is answered by that.
fn named(first: &'static str) -> (Place, Name) {
    let name: Name = Arc::new(Mutex::new(first));
    let shared = name.clone();
    let place = place(move |n, body| {
        let mut reply = completion("yes");
        reply["model"] = body["models"][0].as_str().unwrap_or(*shared.lock().expect("a name")).into();
        reply["system_fingerprint"] = format!("fp_{n}").into();
        Act::Json(reply)
    });
    (place, name)
}

fn becomes(name: &Name, now: &'static str) {
    *name.lock().expect("a name") = now;
}

/// What a target's replies have said in `model`, oldest first.
fn known(refit: &Refit, provider: &str) -> Vec<String> {
    let db = database(refit);
    let sql = "SELECT name FROM model_snapshots WHERE provider = ? AND kind = 'model' ORDER BY first_seen, name";
    let mut rows = db.prepare(sql).expect("a table");
    let names = rows.query_map([provider], |row| row.get(0)).expect("rows");
    names.map(|name| name.expect("a name")).collect()
}

fn database(refit: &Refit) -> Connection {
    let db = Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    db.busy_timeout(Duration::from_secs(10)).expect("patience");
    db
}

fn asks(up: &Up, model: &str, fields: Value) {
    let got = up.ask_with(model, fields);
    assert_eq!(got.status, 200, "{got:?}");
}

/// Waits until everything that was seen is in the database.
fn settles(up: &Up) {
    wait_until(|| gauge(&up.server, "refit_log_rows_pending") == 0.0, "the rows' move");
    std::thread::sleep(Duration::from_millis(500));
}

fn changes(up: &Up) -> f64 {
    gauge(&up.server, "refit_model_snapshot_changes_total")
}

#[test]
fn a_fingerprint_that_is_another_one_each_time_hides_no_change_of_the_model() {
    let (place, name) = named("m-1");
    let up = up(behind(&[("up", place.port)], ""));
    (0..40).for_each(|_| asks(&up, "up/m", json!({})));
    settles(&up);
    becomes(&name, "m-2");
    asks(&up, "up/m", json!({}));
    wait_until(|| known(&up.refit, "up") == ["m-1", "m-2"], "the change");
    wait_until(|| up.server.errors().contains("answers with model"), "the warning");
}

#[test]
fn a_caller_who_chooses_the_model_by_a_field_of_the_providers_changes_nothing() {
    let (place, name) = named("m-1");
    let up = up(behind(&[("up", place.port)], "[routes.r]\ntargets = [\"up/m\"]\n"));
    asks(&up, "up/m", json!({}));
    for model in ["up/m", "r"] {
        asks(&up, model, json!({"models": ["evil"]}));
        asks(&up, model, json!({"models": ["evil"], "tools": [], "temperature": 0.5}));
    }
    settles(&up);
    assert_eq!(known(&up.refit, "up"), ["m-1"]);
    // Fields that choose nothing are listened to.
    becomes(&name, "m-2");
    asks(&up, "up/m", json!({"tool_choice": "none", "logprobs": false, "user": "ann", "metadata": {"a": "b"}}));
    wait_until(|| known(&up.refit, "up") == ["m-1", "m-2"], "the change");
}

#[test]
fn a_change_that_another_process_sees_first_counts_in_the_server() {
    let (place, name) = named("m-1");
    let up = up(suite(&place));
    asks(&up, "up/m", json!({}));
    settles(&up);
    let before = changes(&up);
    becomes(&name, "m-2");
    up.refit.run(&["eval", "run", "s.yaml"]).expect(0);
    assert_eq!(known(&up.refit, "up"), ["m-1", "m-2"]);
    let words = |up: &Up| up.server.errors().matches("answers with model").count();
    assert_eq!(words(&up), 0);
    asks(&up, "up/m", json!({}));
    wait_until(|| words(&up) == 1 && changes(&up) > before, "the change");
    asks(&up, "up/m", json!({}));
    settles(&up);
    assert_eq!(words(&up), 1, "it is told once");
}

#[test]
fn what_could_not_be_kept_is_kept_without_another_request() {
    let (place, name) = named("m-1");
    let up = up(behind(&[("up", place.port)], ""));
    asks(&up, "up/m", json!({}));
    settles(&up);
    let db = database(&up.refit);
    db.execute_batch("ALTER TABLE model_snapshots RENAME TO away").expect("away");
    becomes(&name, "m-2");
    asks(&up, "up/m", json!({}));
    settles(&up);
    assert!(up.server.errors().contains("could not be kept"), "{}", up.server.errors());
    db.execute_batch("ALTER TABLE away RENAME TO model_snapshots").expect("back");
    wait_until(|| known(&up.refit, "up") == ["m-1", "m-2"], "the change");
}

#[test]
fn a_first_model_whose_answer_is_not_taken_is_heard_too() {
    let ((small, name), (large, _)) = (named("small-1"), named("large-1"));
    let route = "[routes.r]\ntargets = [\"large/m\"]\n[routes.r.cascade]\nfirst = \"small/m\"\naccept = { schema = true }\n";
    let up = up(behind(&[("small", small.port), ("large", large.port)], route));
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let fields = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    asks(&up, "r", fields.clone());
    becomes(&name, "small-2");
    asks(&up, "r", fields);
    wait_until(|| known(&up.refit, "small") == ["small-1", "small-2"], "the first model's change");
    assert_eq!(known(&up.refit, "large"), ["large-1"]);
}

#[test]
fn a_reply_that_another_target_mends_makes_no_model_of_the_other() {
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]});
    let fields = json!({"n": 2, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let first = place(|n, _| match n {
        0 => {
            let mut reply = completion("{\"age\": 1}");
            reply["model"] = "a-1".into();
            let more = json!({"index": 1, "message": {"role": "assistant", "content": "old"}, "finish_reason": "stop"});
            reply["choices"].as_array_mut().expect("choices").push(more);
            Act::Json(reply)
        }
        _ => Act::Refuse("500 Oops", "", json!({"error": {"message": "oops"}})),
    });
    let second = place(|_, _| {
        let mut reply = completion("{\"age\": 2}");
        reply["model"] = "b-1".into();
        Act::Json(reply)
    });
    let config = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n[guardrails]\ndefault = [\"fit\"]\n[guardrails.fit]\nvalidate_output = true\n";
    let up = up(behind(&[("a", first.port), ("b", second.port)], config));
    let got = up.ask_with("r", fields);
    assert_eq!((got.status, got.json()["choices"][1]["message"]["content"].as_str()), (200, Some("{\"age\": 2}")), "{got:?}");
    settles(&up);
    assert_eq!((known(&up.refit, "a"), known(&up.refit, "b")), (vec!["a-1".to_string()], vec!["b-1".to_string()]));
}

/// A suite over the place's model, whose answers are given again.
fn suite(place: &Place) -> Refit {
    let refit = behind(&[("up", place.port)], "");
    let line = |i: usize| format!("{}\n", json!({"id": format!("c{i}"), "input": {"message": format!("m{i}")}, "target": "yes"}));
    refit.write("d.jsonl", (0..4).map(line).collect::<String>());
    refit.write("p.prompt", "{{message}}");
    refit.write(
        "s.yaml",
        "name: s\ndataset: d.jsonl\ncache: true\ntargets:\n  - {name: up, model: up/m, prompt: p.prompt}\nscorers: [exact_match]\n",
    );
    refit
}

/// Runs it; how many answers were given again.
fn runs(refit: &Refit, more: &[&str]) -> Value {
    refit.run(&[&["eval", "run", "s.yaml", "--json"], more].concat()).expect(0).json()["targets"][0]["cached"].clone()
}

fn gated(refit: &Refit, route: &str) {
    refit.run(&["route", "create", route, "--suite", "s", "--require", "exact_match>=0.5"]).expect(0);
}

fn promotes(refit: &Refit, route: &str) -> Done {
    let release = refit.run(&["release", "create", "--run", "latest", "--target", "up", "--json"]).expect(0).json();
    refit.run(&["release", "promote", release["digest"].as_str().expect("a digest"), "--route", route, "--json"])
}

/// reliability.md, Upstream faults 17.
#[test]
fn answers_from_before_a_change_are_not_given_again_and_the_run_that_sees_it_counts() {
    let (place, name) = named("m-1");
    let refit = suite(&place);
    gated(&refit, "answers");
    assert_eq!(runs(&refit, &[]), 0);
    assert_eq!(runs(&refit, &[]), 4, "nothing has changed");
    becomes(&name, "m-2");
    // The run that discovers the change asked nobody but the new model.
    runs(&refit, &["--no-cache"]);
    assert_eq!(known(&refit, "up"), ["m-1", "m-2"]);
    promotes(&refit, "answers").expect(0);
    assert_eq!((runs(&refit, &[]), place.calls()), (json!(0), 12), "what the old model said is asked again");
    assert_eq!((runs(&refit, &[]), place.calls()), (json!(4), 12), "and what the new one said is given again");
    let cases = refit.run(&["eval", "show", "latest", "--cases", "--json"]).expect(0).json();
    assert!(cases.as_array().expect("cases").iter().all(|case| case["answered_as"] == "m-2"), "{cases}");
}

/// A gated suite on `up/m` with a whole run from before the change of that model, and one from after it.
fn ran_before_and_after() -> (Place, Refit) {
    let (place, name) = named("m-1");
    let refit = suite(&place);
    gated(&refit, "answers");
    runs(&refit, &["--no-cache"]);
    becomes(&name, "m-2");
    runs(&refit, &["--no-cache"]);
    (place, refit)
}

#[test]
fn a_run_with_one_answer_of_the_old_model_proves_nothing() {
    let (_place, refit) = ran_before_and_after();
    let db = database(&refit);
    let with = |name: Option<&str>, cached: i64| {
        let sql = "UPDATE run_samples SET answered_as = ?, cached = ? WHERE position = 1 AND run = (SELECT MAX(id) FROM runs)";
        db.execute(sql, rusqlite::params![name, cached]).expect("a case");
    };
    let refused = |why: &str| {
        let done = promotes(&refit, "answers").expect(1);
        assert!(done.stderr.contains("is unverified: up/m answers as \"m-2\" since"), "{why}: {}", done.stderr);
    };
    with(Some("m-1"), 0);
    refused("the run has seen the change while it went on");
    with(None, 0);
    refused("nobody knows who answered");
    // After the change, too, answers that were given again may be from before it.
    let between = "UPDATE model_snapshots SET first_seen = (SELECT MAX(created_at) FROM runs) - 1 WHERE name = 'm-2'";
    assert_eq!(db.execute(between, []).expect("between the runs"), 1);
    promotes(&refit, "answers").expect(0);
    with(Some("m-1"), 1);
    gated(&refit, "more");
    let done = promotes(&refit, "more").expect(1);
    assert!(done.stderr.contains("is unverified"), "{}", done.stderr);
}

#[test]
fn what_is_live_is_compared_with_by_no_run_from_before_the_change() {
    let (place, name) = named("m-1");
    let refit = suite(&place);
    gated(&refit, "answers");
    runs(&refit, &["--no-cache"]);
    promotes(&refit, "answers").expect(0);
    let suite = std::fs::read_to_string(refit.path().join("s.yaml")).expect("a suite");
    let entry = "  - {name: other, model: mock/echo, prompt: p.prompt}\nscorers";
    let gate = "gate:\n  - {target: other, metric: exact_match, not_worse_than: {route: answers}, margin: 0.1}\n";
    refit.write("s.yaml", suite.replace("scorers", entry) + gate);
    let alone = ["eval", "run", "s.yaml", "--target", "other", "--json"];
    let reason = || {
        let report = refit.run(&alone).expect(1).json();
        report["gate"]["demands"][0]["reason"].as_str().expect("a reason").to_string()
    };
    let compared = reason();
    assert!(compared.contains("against up of run_"), "{compared}");
    becomes(&name, "m-2");
    refit.write("s.yaml", suite.clone());
    runs(&refit, &["--no-cache", "--limit", "1"]);
    refit.write("s.yaml", suite.replace("scorers", entry) + gate);
    let compared = reason();
    assert!(compared.contains("is unverified") && compared.contains("m-2"), "{compared}");
}

#[test]
fn a_protected_label_moves_with_no_run_from_before_the_change() {
    moves_after_the_change("---\nmodel: up/m\n---\n{{message}}", "", "[{metric: exact_match, at_least: 0.5}]");
}

#[test]
fn one_target_of_an_earlier_model_disqualifies_the_others_of_its_run() {
    let gate = "[{target: up, metric: exact_match, at_least: 0.5}, {target: other, metric: exact_match, at_least: 0.0}]";
    moves_after_the_change("---\n---\n{{message}}", "  - {name: other, model: mock/echo, prompt: p.prompt}\n", gate);
}

/// A protected label moves with a whole run from after the change of `up/m`, and with no other.
fn moves_after_the_change(prompt: &str, more_targets: &str, gate: &str) {
    let (place, name) = named("m-1");
    let refit = suite(&place);
    let config = std::fs::read_to_string(refit.path().join("refit.toml")).expect("a configuration");
    refit.write("refit.toml", config + "[prompts]\nprotected = [\"production\"]\n[prompts.suites]\np = \"s\"\n");
    refit.write("p.prompt", prompt);
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let suite = std::fs::read_to_string(refit.path().join("s.yaml")).expect("a suite");
    refit.write("s.yaml", suite.replace("scorers", &format!("{more_targets}scorers")) + "gate: " + gate + "\n");
    let promote = || refit.run(&["prompt", "promote", "p@1", "production"]);
    runs(&refit, &["--no-cache"]);
    becomes(&name, "m-2");
    runs(&refit, &["--no-cache", "--limit", "1"]);
    let refused = promote().expect(1);
    assert!(refused.stderr.contains("is unverified: up/m answers as \"m-2\" since"), "{}", refused.stderr);
    runs(&refit, &["--no-cache"]);
    promote().expect(0);
}

#[test]
fn a_run_from_before_the_change_that_ends_last_hides_none_that_counts() {
    let (_place, refit) = ran_before_and_after();
    let last = "UPDATE runs SET finished_at = finished_at + 60000 WHERE id = (SELECT MIN(id) FROM runs)";
    assert_eq!(database(&refit).execute(last, []).expect("the first run ends last"), 1);
    promotes(&refit, "answers").expect(0);
}
