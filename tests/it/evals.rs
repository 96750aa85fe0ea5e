//! `refit eval`: suites are refused whole, runs resume, exit codes tell done from missed from failed, the report has its shape.

use crate::support::{Done, Refit};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

const SUITE: &str = "\
name: s
dataset: d.jsonl
concurrency: 4
targets:
  - name: echo
    model: mock/echo
    prompt: p.prompt
  - name: fixed
    model: mock/fixed
    prompt: p.prompt
    parameters: {mock: {reply: text 1}}
scorers:
  - exact_match
  - includes: {value: text, name: has_text}
gate:
  - {target: echo, metric: exact_match, at_least: 0.5}
";

/// A directory with a suite, a prompt and twenty samples, of which the echo answers eighteen right.
fn twenty() -> Refit {
    let refit = Refit::new();
    let target = |i: usize| if i < 18 { format!("text {i}") } else { "other".into() };
    let line = |i: usize| format!("{}\n", json!({"id": format!("c{i}"), "input": {"message": format!("text {i}")}, "target": target(i)}));
    refit.write("d.jsonl", (0..20).map(line).collect::<String>());
    refit.write("p.prompt", "{{message}}");
    refit.write("s.yaml", SUITE);
    refit
}

fn rows(refit: &Refit) -> Vec<Value> {
    let done = refit.run(&["eval", "list", "--json"]).expect(0);
    done.json().as_array().expect("a list").clone()
}

fn wrote_nothing(refit: &Refit) {
    assert!(rows(refit).is_empty());
    for verb in ["data", "prompt"] {
        assert_eq!(refit.run(&[verb, "list", "--json"]).expect(0).json(), json!([]), "{verb}");
    }
}

fn cases(refit: &Refit, run: &str) -> Vec<Value> {
    let done = refit.run(&["eval", "show", run, "--cases", "--json"]).expect(0);
    done.json().as_array().expect("cases").clone()
}

#[test]
fn report_has_its_shape_and_its_numbers() {
    let refit = twenty();
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    assert_eq!((&report["suite"], &report["status"], &report["split"]), (&json!("s"), &json!("finished"), &json!("all")));
    let (echo, fixed) = (&report["targets"][0], &report["targets"][1]);
    assert_eq!((&echo["name"], &echo["n"], &echo["errors"]), (&json!("echo"), &json!(20), &json!(0)));
    assert_eq!(echo["metrics"]["exact_match"]["mean"], 0.9);
    // s² = p(1 − p)·n/(n − 1), standard error √(s²/n) = √(0.09/19).
    let error = echo["metrics"]["exact_match"]["standard_error"].as_f64().expect("a number");
    assert!((error - (0.09f64 / 19.0).sqrt()).abs() < 1e-12);
    assert_eq!(echo["metrics"]["exact_match"]["ci95"].as_array().map(Vec::len), Some(2));
    assert_eq!((&fixed["metrics"]["exact_match"]["mean"], &fixed["metrics"]["has_text"]["mean"]), (&json!(0.05), &json!(1.0)));
    // Two words read and two written per case.
    assert_eq!((&echo["tokens"], &echo["input_tokens"]), (&json!(80), &json!(40)));
    assert!(echo["latency_ms"]["p50"].is_number() && echo["latency_ms"]["p95"].is_number());
    assert!(echo["release"].as_str().is_some_and(|digest| digest.starts_with("sha256:")) && echo["release"] != fixed["release"]);
    assert_eq!(report["gate"]["passed"], true);
    let paired = &report["paired"][0];
    assert_eq!((&paired["a"], &paired["b"], &paired["wins"], &paired["losses"]), (&json!("echo"), &json!("fixed"), &json!(0), &json!(17)));
    let run = report["run"].as_str().expect("an id");
    assert_eq!(refit.run(&["eval", "show", run, "--json"]).expect(0).json(), report);
    let order: Vec<_> = cases(&refit, run).iter().map(|case| case["sample"].as_str().unwrap_or("").to_string()).collect();
    let expected: Vec<_> = (0..20).chain(0..20).map(|i| format!("c{i}")).collect();
    assert_eq!(order, expected, "cases keep the order of the dataset");
    let table = refit.run(&["eval", "show", "latest"]).expect(0).stdout;
    assert!(table.contains("0.900 ± 0.069") && table.contains("gate passed") && table.contains("fixed − echo"), "{table}");
}

#[test]
fn exit_codes_tell_done_missed_and_failed() {
    let refit = twenty();
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    refit.write("high.yaml", SUITE.replace("at_least: 0.5", "at_least: 0.95"));
    let missed = refit.run(&["eval", "run", "high.yaml"]).expect(1);
    assert!(missed.stdout.contains("exact_match mean 0.9000 < 0.95"), "{}", missed.stdout);
    refit.write("low.yaml", SUITE.replace("at_least: 0.5", "on: ci_low, at_least: 0.89"));
    refit.run(&["eval", "run", "low.yaml"]).expect(1);
    refit.write("fail.yaml", SUITE.replace("mock/fixed", "mock/fail"));
    let failed = refit.run(&["eval", "run", "fail.yaml"]).expect(2);
    assert!(failed.stderr.contains("20 cases of run run_") && failed.stderr.contains("refit eval resume run_"), "{}", failed.stderr);
    assert!(failed.stdout.contains("[incomplete]"), "{}", failed.stdout);
}

#[test]
fn errors_are_a_third_outcome() {
    let refit = twenty();
    refit.write("fail.yaml", SUITE.replace("mock/fixed", "mock/fail").replace("target: echo, ", ""));
    let done = refit.run(&["eval", "run", "fail.yaml", "--json"]).expect(2);
    let fixed = &done.json()["targets"][1];
    assert_eq!((&fixed["n"], &fixed["errors"]), (&json!(0), &json!(20)));
    let failed: Vec<_> = cases(&refit, "latest").into_iter().filter(|case| case["target"] == "fixed").collect();
    assert!(
        failed.iter().all(|case| case["error"].as_str().is_some_and(|e| e.starts_with("upstream_error: ")) && case["scores"] == json!({}))
    );
    // What cannot be answered is asked again by resume, what was answered is not.
    refit.run(&["eval", "resume", "latest"]).expect(2);
    let again = cases(&refit, "latest");
    let ended = |target: &str, list: &[Value]| {
        list.iter().filter(|case| case["target"] == target).map(|case| case["finished_at"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ended("echo", &again).len(), 20);
    assert!(again.len() == 40 && rows(&refit).len() == 1);
}

#[test]
fn malformed_suites_name_the_line_and_write_nothing() {
    let refit = twenty();
    for (from, to, expected) in [
        ("scorers:", "scorer:", "bad.yaml, line 12: unknown key \"scorer\"; did you mean \"scorers\"?"),
        ("    model: mock/echo", "    modell: mock/echo", "bad.yaml, line 6: targets[0]: unknown key \"modell\"; did you mean \"model\"?"),
        ("- exact_match", "- exactmatch", "bad.yaml, line 13: scorers: there is no scorer \"exactmatch\"; did you mean \"exact_match\"?"),
        ("at_least: 0.5", "at_least: much", "bad.yaml, line 16"),
        ("p.prompt", "none.prompt", "cannot read none.prompt"),
        ("d.jsonl", "none/d.jsonl", "cannot read none/d.jsonl"),
        ("mock/fixed", "local/none", "model \"local/none\" is not stored here"),
        ("name: s", "name: [", "bad.yaml, line "),
    ] {
        refit.write("bad.yaml", SUITE.replace(from, to));
        let done = refit.run(&["eval", "run", "bad.yaml"]).expect(2);
        assert!(done.stdout.is_empty() && done.stderr.contains(expected), "{to}: {}", done.stderr);
        wrote_nothing(&refit);
    }
}

#[test]
fn prompts_and_samples_must_fit_before_anything_is_asked() {
    let refit = twenty();
    refit.write("p.prompt", "---\ninput:\n  schema: {messages: string}\n---\n{{messages}}");
    let done = refit.run(&["eval", "run", "s.yaml"]).expect(2);
    assert!(
        done.stderr.contains("needs variable \"messages\", which sample c0 does not have; did you mean \"message\"?"),
        "{}",
        done.stderr
    );
    assert!(rows(&refit).is_empty());
}

#[test]
fn splits_are_made_once_and_limits_prove_nothing() {
    let refit = twenty();
    let suite = SUITE.replace("concurrency: 4", "splits: {seed: 3, train: 10, validation: 4, test: 6}\nsplit: test");
    refit.write("s.yaml", &suite);
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    assert_eq!((&report["split"], &report["targets"][0]["n"]), (&json!("test"), &json!(6)));
    let other = refit.run(&["eval", "run", "s.yaml", "--split", "validation", "--target", "echo", "--json"]).expect(0).json();
    assert_eq!((&other["targets"][0]["n"], other["targets"].as_array().map(Vec::len)), (&json!(4), Some(1)));
    let limited = refit.run(&["eval", "run", "s.yaml", "--limit", "2", "--json"]).expect(0).json();
    assert_eq!((&limited["status"], &limited["targets"][0]["n"]), (&json!("partial"), &json!(2)));
    let unknown = refit.run(&["eval", "run", "s.yaml", "--split", "tests"]).expect(2);
    assert!(unknown.stderr.contains("did you mean \"test\"?"), "{}", unknown.stderr);
}

#[test]
fn a_killed_run_resumes_and_asks_each_case_once() {
    let refit = twenty();
    let slow = SUITE
        .replace("model: mock/echo", "model: mock/echo\n    parameters: {mock: {delay_ms: 40}}")
        .replace("concurrency: 4", "concurrency: 1");
    refit.write("s.yaml", slow);
    let mut child = refit.command(&["eval", "run", "s.yaml"]).stdout(Stdio::null()).spawn().expect("starts");
    let before = wait_for_cases(&refit, 5);
    child.kill().expect("killed");
    child.wait().expect("ended");
    let run = rows(&refit)[0]["id"].as_str().expect("an id").to_string();
    assert_eq!(rows(&refit)[0]["status"], "running");
    assert!(before.len() < 20, "the run was killed before its end");
    let at_kill = cases(&refit, &run);
    let report = refit.run(&["eval", "resume", &run, "--json"]).expect(0).json();
    assert_eq!((&report["run"], &report["status"], &report["targets"][0]["n"]), (&json!(run), &json!("finished"), &json!(20)));
    let after = cases(&refit, &run);
    assert_eq!(after.len(), 40);
    for case in &at_kill {
        assert!(after.contains(case), "a stored case is kept as it was, not asked again: {case}");
    }
    let again = refit.run(&["eval", "resume", &run]).expect(2);
    assert!(again.stderr.contains("every case has its answer already"), "{}", again.stderr);
}

#[test]
fn ctrl_c_leaves_a_resumable_run() {
    let refit = twenty();
    refit.write(
        "s.yaml",
        SUITE
            .replace("model: mock/echo", "model: mock/echo\n    parameters: {mock: {delay_ms: 40}}")
            .replace("concurrency: 4", "concurrency: 1"),
    );
    let mut child = refit.command(&["eval", "run", "s.yaml"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    wait_for_cases(&refit, 3);
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("signalled");
    let lines: Vec<String> = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("ended").code(), Some(2));
    assert!(lines.iter().any(|line| line.contains("hint: go on with it: refit eval resume run_")), "{lines:?}");
    assert_eq!(rows(&refit)[0]["status"], "cancelled");
    refit.run(&["eval", "resume", "latest"]).expect(0);
}

#[test]
fn two_runs_are_compared_pair_by_pair() {
    let refit = twenty();
    refit.run(&["eval", "run", "s.yaml", "--target", "echo"]).expect(0);
    refit.run(&["eval", "run", "s.yaml", "--target", "fixed"]).expect(0);
    let ids: Vec<String> = rows(&refit).iter().rev().map(|run| run["id"].as_str().expect("an id").to_string()).collect();
    let done = refit.run(&["eval", "compare", &ids[0], &ids[1], "--metric", "exact_match", "--json"]).expect(0).json();
    let paired = &done["paired"][0];
    assert_eq!((&paired["n"], &paired["losses"], &paired["test"]), (&json!(20), &json!(17), &json!("mcnemar_exact")));
    assert!((paired["delta"].as_f64().expect("a number") + 0.85).abs() < 1e-12 && paired["ci95"][1].as_f64() < Some(0.0));
    assert_eq!(done["changed"].as_array().map(Vec::len), Some(17));
    let missing = refit.run(&["eval", "compare", &ids[0], &format!("{}/ecko", ids[0])]).expect(2);
    assert!(missing.stderr.contains("targets: echo"), "{}", missing.stderr);
}

#[test]
fn prompts_are_compared_on_the_same_suite() {
    let refit = twenty();
    refit.write("deep/loud.prompt", "{{message}}!");
    refit.write("deep/p.prompt", "{{message}}");
    refit.run(&["prompt", "publish", "deep/p.prompt", "--name", "plain"]).expect(0);
    let args = ["eval", "run", "s.yaml", "--prompt", "deep/loud.prompt", "--prompt", "plain@1", "--target", "echo", "--json"];
    let report = refit.run(&args).expect(1).json();
    let names: Vec<_> = report["targets"].as_array().expect("targets").iter().map(|target| target["name"].clone()).collect();
    assert_eq!(names, ["loud", "plain-1"]);
    let paired = &report["paired"][0];
    assert_eq!(
        (&paired["a"], &paired["b"], &paired["wins"], &paired["losses"]),
        (&json!("loud"), &json!("plain-1"), &json!(18), &json!(0))
    );
    let verdicts = report["gate"]["verdicts"].as_array().expect("verdicts").iter().map(|one| (&one["target"], &one["passed"]));
    assert_eq!(verdicts.collect::<Vec<_>>(), [(&json!("loud"), &json!(false)), (&json!("plain-1"), &json!(true))]);
    // Every target with every prompt.
    let all = refit.run(&["eval", "run", "s.yaml", "--prompt", "deep/loud.prompt", "--prompt", "deep/p.prompt", "--json"]).expect(1).json();
    let names: Vec<_> = all["targets"].as_array().expect("targets").iter().map(|target| target["name"].clone()).collect();
    assert_eq!(names, ["echo-loud", "echo-p", "fixed-loud", "fixed-p"]);
    let missing = refit.run(&["eval", "run", "s.yaml", "--prompt", "none.prompt"]).expect(2);
    assert!(missing.stderr.contains("cannot read none.prompt"), "{}", missing.stderr);
    let twice = refit.run(&["eval", "run", "s.yaml", "--prompt", "plain@1", "--prompt", "plain@1"]).expect(2);
    assert!(twice.stderr.contains("plain@1 is named twice"), "{}", twice.stderr);
}

#[test]
fn the_smoke_suite_runs_and_the_example_suite_asks_for_its_model() {
    let refit = Refit::new();
    let suite = |name: &str| format!("{}/evals/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let report = refit.run(&["eval", "run", &suite("smoke"), "--json"]).expect(0).json();
    assert_eq!(report["targets"][0]["metrics"]["exact_match"]["mean"], 0.75);
    let done: Done = refit.run(&["eval", "run", &suite("support-intake")]).expect(2);
    assert!(done.stderr.contains("hint: fetch it: refit model pull smollm2-135m-instruct"), "{}", done.stderr);
}

/// Waits until a running evaluation has stored some cases; reads the database as any other process would.
fn wait_for_cases(refit: &Refit, count: usize) -> Vec<Value> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let done = refit.run(&["eval", "show", "latest", "--cases", "--json"]);
        let found = if done.code == 0 { done.json().as_array().cloned().unwrap_or_default() } else { Vec::new() };
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < end, "no cases were stored");
        std::thread::sleep(Duration::from_millis(20));
    }
}
