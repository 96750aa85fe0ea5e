//! `refit release` and `refit route`: the gate, promotions, their races, rollback, the audit trail.

use crate::support::{Done, Refit};
use refit::store::{Store, Value as Sql};
use serde_json::{Value, json};

/// A directory with a route `answers` whose gate wants an exact match of 0.5, at the interval's lower end, on the test split.
fn with_route() -> Refit {
    let refit = Refit::new();
    let gate = ["--require", "exact_match:ci_low>=0.5", "--require", "json_schema>=0.9", "--split", "test"];
    refit.run(&[&["route", "create", "answers", "--suite", "intake"], &gate[..]].concat()).expect(0);
    refit
}

fn release(refit: &Refit, seed: u32) -> String {
    let seed = format!("seed={seed}");
    refit.run(&["release", "create", "--model", "mock/echo", "-P", &seed]).expect(0).stdout.trim().to_string()
}

/// Stores a finished run that measured a release, as `refit eval run` does.
pub fn measured(refit: &Refit, run: &str, release: &str, (suite, split): (&str, &str), (mean, low): (f64, f64)) {
    let db = Store::open(&refit.data_dir()).expect("the store").db;
    let manifest = refit.run(&["release", "show", release, "--json"]).expect(0).json()["manifest"].to_string();
    let sql = "INSERT INTO runs (id, suite, suite_digest, dataset, dataset_digest, split, status, config, summary, created_at, finished_at)
        VALUES (?, ?, 'sha256:s', 'd', 'sha256:d', ?, 'finished', '{}', '{}', 1, 2)";
    db.execute(sql, &[run.into(), suite.into(), split.into()]).expect("a run");
    let metrics = json!({"exact_match": {"mean": mean, "standard_error": 0.01, "ci95": [low, 1.0]}, "json_schema": {"mean": 0.95}});
    let params: [Sql; 4] = [run.into(), release.into(), manifest.into(), (&metrics).into()];
    db.execute("INSERT INTO run_targets (run, target, release, manifest, metrics) VALUES (?, 'main', ?, ?, ?)", &params).expect("a target");
}

fn promote(refit: &Refit, release: &str, more: &[&str]) -> Done {
    refit.run(&[&["release", "promote", release, "--route", "answers", "--json"], more].concat())
}

fn shown(refit: &Refit) -> Value {
    refit.run(&["route", "show", "answers", "--json"]).expect(0).json()
}

fn live(refit: &Refit) -> Value {
    let stages = shown(refit)["stages"].clone();
    stages.as_array().expect("stages").iter().find(|stage| stage["stage"] == "live").map_or(Value::Null, |stage| stage["release"].clone())
}

#[test]
fn gate_refuses_a_digest_that_no_run_measured() {
    let refit = with_route();
    let (proven, other) = (release(&refit, 1), release(&refit, 2));
    assert_ne!(proven, other);
    measured(&refit, "run_1", &proven, ("intake", "test"), (0.9, 0.8));
    let refused = promote(&refit, &other, &[]).expect(1);
    assert!(refused.stderr.contains("no finished run of suite \"intake\" on split \"test\" measured this digest"), "{}", refused.stderr);
    assert_eq!(refused.json()["decision"], "refused");
    assert_eq!(live(&refit), Value::Null);
    let decisions = shown(&refit)["decisions"].clone();
    assert_eq!((&decisions[0]["decision"], &decisions[0]["release"]), (&json!("refused"), &json!(other)));
}

#[test]
fn gate_passes_a_proven_digest_and_records_the_numbers() {
    let refit = with_route();
    let proven = release(&refit, 1);
    measured(&refit, "run_1", &proven, ("intake", "test"), (0.9, 0.8));
    let decided = promote(&refit, &proven, &[]).expect(0).json();
    assert_eq!((&decided["decision"], &decided["run"]), (&json!("promoted"), &json!("run_1")));
    assert_eq!(decided["gate"]["verdicts"][0]["value"], 0.8);
    assert_eq!(decided["gate"]["verdicts"][1]["value"], 0.95);
    assert_eq!(live(&refit), json!(proven));
    let again = promote(&refit, &proven, &[]).expect(2);
    assert!(again.stderr.contains("live of route \"answers\" holds"), "{}", again.stderr);
}

#[test]
fn gate_counts_only_its_suite_its_split_and_the_newest_run() {
    let refit = with_route();
    let candidate = release(&refit, 1);
    measured(&refit, "run_1", &candidate, ("other", "test"), (0.9, 0.8));
    measured(&refit, "run_2", &candidate, ("intake", "validation"), (0.9, 0.8));
    promote(&refit, &candidate, &[]).expect(1);
    measured(&refit, "run_3", &candidate, ("intake", "test"), (0.9, 0.49));
    let refused = promote(&refit, &candidate, &[]).expect(1);
    assert!(refused.stderr.contains("exact_match ci_low 0.4900 < 0.5"), "{}", refused.stderr);
    measured(&refit, "run_4", &candidate, ("intake", "test"), (0.9, 0.5));
    promote(&refit, &candidate, &[]).expect(0);
    assert_eq!(shown(&refit)["decisions"].as_array().map(Vec::len), Some(3));
}

/// reliability.md, Upstream faults 17: what was measured before the provider changed the model is no proof.
#[test]
fn gate_counts_no_run_from_before_its_model_became_another() {
    let refit = with_route();
    let candidate = release(&refit, 1);
    measured(&refit, "run_1", &candidate, ("intake", "test"), (0.9, 0.8));
    let db = Store::open(&refit.data_dir()).expect("the store").db;
    let seen = |kind: &str, name: &str, at: i64| {
        let sql = "INSERT INTO model_snapshots (provider, model, kind, name, first_seen) VALUES ('mock', 'echo', ?, ?, ?)";
        db.execute(sql, &[kind.into(), name.into(), at.into()]).expect("a row");
    };
    seen("model", "echo-1", 7);
    seen("fingerprint", "fp_1", 7);
    seen("fingerprint", "fp_2", 8);
    promote(&refit, &candidate, &[]).expect(0);
    let second = release(&refit, 2);
    measured(&refit, "run_2", &second, ("intake", "test"), (0.9, 0.8));
    seen("model", "echo-2", 9);
    let refused = promote(&refit, &second, &[]).expect(1);
    assert!(refused.stderr.contains("run run_2 is unverified: mock/echo answers as \"echo-2\" since"), "{}", refused.stderr);
    assert_eq!(live(&refit), json!(candidate), "what is live stays");
    db.execute("UPDATE runs SET created_at = 10, finished_at = 11 WHERE id = 'run_2'", &[]).expect("a later run");
    promote(&refit, &second, &[]).expect(0);
    assert_eq!(live(&refit), json!(second));
}

#[test]
fn parallel_promotions_have_one_winner() {
    let refit = with_route();
    let candidates: Vec<_> = (0..6).map(|seed| release(&refit, seed)).collect();
    for (i, candidate) in candidates.iter().enumerate() {
        measured(&refit, &format!("run_{i}"), candidate, ("intake", "test"), (0.9, 0.8));
    }
    let done: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = candidates.iter().map(|c| scope.spawn(|| promote(&refit, c, &["--expect", "none"]))).collect();
        runs.into_iter().map(|run| run.join().expect("a run")).collect()
    });
    let winners: Vec<_> = candidates.iter().zip(&done).filter(|(_, done)| done.code == 0).map(|(candidate, _)| candidate).collect();
    assert_eq!(winners.len(), 1, "{done:?}");
    assert!(
        done.iter().filter(|done| done.code != 0).all(|done| done.code == 2 && done.stderr.contains("of route \"answers\" holds")),
        "{done:?}"
    );
    assert_eq!(live(&refit), json!(winners[0]));
    assert_eq!(shown(&refit)["decisions"].as_array().map(Vec::len), Some(1), "losers leave no decision");
}

#[test]
fn rollback_restores_the_release_before_and_stops_at_the_first() {
    let refit = with_route();
    let [a, b, c] = [1, 2, 3].map(|seed| release(&refit, seed));
    for (run, candidate) in [("run_a", &a), ("run_b", &b), ("run_c", &c)] {
        measured(&refit, run, candidate, ("intake", "test"), (0.9, 0.8));
    }
    let rollback = || refit.run(&["release", "rollback", "answers", "--json"]);
    assert!(rollback().expect(2).stderr.contains("no earlier live release"));
    promote(&refit, &a, &[]).expect(0);
    promote(&refit, &b, &[]).expect(0);
    let decided = rollback().expect(0).json();
    assert_eq!((&decided["release"], &decided["previous"], &decided["run"]), (&json!(a), &json!(b), &json!("run_a")));
    assert_eq!(live(&refit), json!(a));
    promote(&refit, &c, &[]).expect(0);
    rollback().expect(0);
    assert_eq!(live(&refit), json!(a), "b was rolled back and is not returned to");
    assert!(rollback().expect(2).stderr.contains("no earlier live release"));
}

#[test]
fn canary_takes_a_weight_and_leaves_its_stage_when_it_goes_live() {
    let refit = with_route();
    let candidate = release(&refit, 1);
    measured(&refit, "run_1", &candidate, ("intake", "test"), (0.9, 0.8));
    assert!(promote(&refit, &candidate, &["--stage", "canary", "--weight", "1.5"]).expect(2).stderr.contains("between 0 and 1"));
    promote(&refit, &candidate, &["--stage", "canary", "--weight", "0.25"]).expect(0);
    assert_eq!(shown(&refit)["stages"][0]["weight"], 0.25);
    promote(&refit, &candidate, &[]).expect(0);
    let stages = shown(&refit)["stages"].clone();
    assert_eq!((stages.as_array().map(Vec::len), &stages[0]["stage"]), (Some(1), &json!("live")));
}

#[test]
fn a_live_release_is_not_moved_off_the_route() {
    let refit = with_route();
    let proven = release(&refit, 1);
    measured(&refit, "run_1", &proven, ("intake", "test"), (0.9, 0.8));
    promote(&refit, &proven, &[]).expect(0);
    let moved = promote(&refit, &proven, &["--stage", "canary"]).expect(2);
    assert!(moved.stderr.contains("is live on route"), "{}", moved.stderr);
    assert_eq!(live(&refit), json!(proven));
}

#[test]
fn a_gate_with_a_dataset_counts_no_run_on_other_data() {
    let refit = Refit::new();
    refit.write("d.jsonl", "{\"id\": \"a\", \"input\": {\"message\": \"x\"}, \"target\": \"y\"}\n");
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    let gate = ["--suite", "intake", "--require", "exact_match>=0.5", "--dataset", "d"];
    refit.run(&[&["route", "create", "answers"], &gate[..]].concat()).expect(0);
    let measured_elsewhere = release(&refit, 1);
    measured(&refit, "run_1", &measured_elsewhere, ("intake", "test"), (0.9, 0.8));
    let refused = promote(&refit, &measured_elsewhere, &[]).expect(1);
    assert!(refused.stderr.contains("on dataset sha256:"), "{}", refused.stderr);
    assert_eq!(live(&refit), Value::Null);
}

#[test]
fn same_content_is_the_same_release_and_bad_manifests_are_named() {
    let refit = Refit::new();
    let digest = release(&refit, 7);
    assert_eq!(release(&refit, 7), digest);
    assert_eq!(refit.run(&["release", "list", "--json"]).expect(0).json().as_array().map(Vec::len), Some(1));
    let manifest = refit.run(&["release", "show", &digest[..15], "--json"]).expect(0).json()["manifest"].clone();
    refit.write("same.json", manifest.to_string());
    assert_eq!(refit.run(&["release", "create", "--manifest", "same.json"]).expect(0).stdout.trim(), digest);
    for (field, value, reason) in [
        ("model", json!("echo"), "\"echo\" is not provider/model"),
        ("model", json!("local/x"), "needs the digest of its file"),
        ("adapter", json!(digest), "is not stored here"),
        ("prompt", json!({"name": "p", "digest": digest}), "prompt \"p\" has no version"),
        ("parameters", json!({"temperatur": 1}), "did you mean \"temperature\"?"),
        ("parameters", json!({"top_p": 3}), "top_p is 3"),
        ("colour", json!("red"), "unknown field `colour`"),
    ] {
        let mut bad = manifest.clone();
        bad[field] = value;
        refit.write("bad.json", bad.to_string());
        let failed = refit.run(&["release", "create", "--manifest", "bad.json"]).expect(2);
        assert!(failed.stderr.contains(reason), "{field}: {}", failed.stderr);
    }
    assert_eq!(refit.run(&["release", "list", "--json"]).expect(0).json().as_array().map(Vec::len), Some(1));
}

#[test]
fn routes_need_a_gate_and_a_name_of_their_own() {
    let refit = with_route();
    let taken = refit.run(&["route", "create", "answers", "--suite", "s", "--require", "a>=1"]).expect(2);
    assert!(taken.stderr.contains("route \"answers\" exists"), "{}", taken.stderr);
    assert_eq!(refit.run(&["route", "create", "other", "--suite", "s"]).expect(2).stdout, "");
    let bad = refit.run(&["route", "create", "other", "--suite", "s", "--require", "a=1"]).expect(2);
    assert!(bad.stderr.contains("expected METRIC>=NUMBER"), "{}", bad.stderr);
    let unknown = refit.run(&["route", "show", "answer"]).expect(2);
    assert!(unknown.stderr.contains("did you mean \"answers\"?"), "{}", unknown.stderr);
}

#[test]
fn every_decision_is_a_row_of_the_audit_chain() {
    let refit = with_route();
    let (a, b) = (release(&refit, 1), release(&refit, 2));
    measured(&refit, "run_1", &a, ("intake", "test"), (0.9, 0.8));
    promote(&refit, &a, &[]).expect(0);
    promote(&refit, &b, &[]).expect(1);
    let store = Store::open(&refit.data_dir()).expect("the store");
    let rows = refit::store::audit::newest(store.db.as_ref(), 10).expect("audit rows");
    let actions: Vec<_> = rows.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["route.create", "release.create", "release.create", "release.promote", "release.refuse"]);
    assert!(rows[3].detail.contains("\"value\":0.8") && rows[3].subject == "answers/live", "{:?}", rows[3]);
}

#[test]
fn a_model_that_a_route_needs_is_not_removed() {
    let refit = with_route();
    // The least that the importer takes for a GGUF file: a header with one metadata entry and no tensors.
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let header = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    let padding = vec![0; 64];
    refit.write("m.gguf", [header, text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama"), padding].concat());
    refit.run(&["model", "pull", "m.gguf"]).expect(0);
    let digest = refit.run(&["release", "create", "--model", "local/m"]).expect(0).stdout.trim().to_string();
    measured(&refit, "run_1", &digest, ("intake", "test"), (0.9, 0.8));
    promote(&refit, &digest, &[]).expect(0);
    let refused = refit.run(&["model", "remove", "m"]).expect(2);
    assert!(refused.stderr.contains("model \"m\" answers on route \"answers\" (live"), "{}", refused.stderr);
    refit.run(&["model", "verify", "m"]).expect(0);
}

#[test]
fn a_run_proves_its_release_which_then_answers_on_the_route() {
    let refit = Refit::new();
    let line = |i: usize| {
        format!("{}\n", json!({"id": format!("c{i}"), "input": {"message": format!("text {i}")}, "target": format!("text {i}")}))
    };
    refit.write("d.jsonl", (0..20).map(line).collect::<String>());
    refit.write("p.prompt", "{{message}}");
    let target = |name: &str, model: &str| format!("  - {{name: {name}, model: {model}, prompt: p.prompt}}\n");
    let targets = [target("echo", "mock/echo"), target("fixed", "mock/fixed")].concat();
    refit.write("intake.yaml", format!("name: intake\ndataset: d.jsonl\ntargets:\n{targets}scorers: [exact_match]\n"));
    let report = refit.run(&["eval", "run", "intake.yaml", "--json"]).expect(0).json();
    let run = report["run"].as_str().expect("a run");
    refit.run(&["route", "create", "answers", "--suite", "intake", "--require", "exact_match:ci_low>=0.5"]).expect(0);
    let made = |target: &str| refit.run(&["release", "create", "--run", run, "--target", target]).expect(0).stdout.trim().to_string();
    let (echo, fixed) = (made("echo"), made("fixed"));
    assert_eq!(echo, report["targets"][0]["release"], "the run's digest is the release's");
    let refused = promote(&refit, &fixed, &[]).expect(1);
    assert!(refused.stderr.contains("exact_match ci_low 0.0000 < 0.5"), "{}", refused.stderr);
    assert_eq!(promote(&refit, &echo, &[]).expect(0).json()["run"], run);
    let key = refit.key();
    let body = json!({"model": "answers", "messages": [{"role": "user", "content": "is it open?"}]});
    let server = refit.serve(&[]);
    let reply = server.post("/v1/chat/completions", Some(&key), &body);
    assert_eq!((reply.status, &reply.json()["choices"][0]["message"]["content"]), (200, &json!("is it open?")), "{reply:?}");
    let unknown = refit.run(&["release", "create", "--run", run, "--target", "other"]).expect(2);
    assert!(unknown.stderr.contains("it has echo, fixed"), "{}", unknown.stderr);
}
