//! `refit prompt optimize` against a scripted upstream that plays both models: the one that proposes and the one that answers. Which
//! candidates are better is known, so that what is kept, thrown away and never shown can be checked.

use crate::rig::{Upstream, says, upstream, wait_for};
use crate::support::{Done, Refit};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SUITE: &str = "name: s\ndataset: d.jsonl\nsplits: {seed: 7, train: 20, validation: 40, test: 40, near: 2}\nsplit: validation\nconcurrency: 4\n\
    targets:\n  - {name: other, model: mock/echo, prompt: other.prompt}\n  - {name: own, model: up/m, prompt: p.prompt}\nscorers: [exact_match]\n";
const PROMPT: &str =
    "---\ndescription: d\ninput: {schema: {message: string}}\n---\n{{role \"system\"}}Plain.\n{{role \"user\"}}{{message}}\n";
const PRICES: &str = "[[prices.rows]]\nprovider = \"up\"\nmodel = \"m\"\ninput = 1\noutput = 1\n\
    [[prices.rows]]\nprovider = \"up\"\nmodel = \"w\"\ninput = 1\noutput = 1\n";

fn template(rule: &str) -> String {
    format!("{{{{role \"system\"}}}}{rule}\n{{{{role \"user\"}}}}{{{{message}}}}")
}

fn message(i: usize) -> String {
    format!("case-{i:03}-end")
}

/// What a model says that knows these rules: with GOOD all is right, with NOISE a few more than without, else every second.
fn answer(body: &Value) -> &'static str {
    let messages = body["messages"].as_array().expect("messages");
    let text = |message: &Value| message["content"].as_str().unwrap_or_default().to_string();
    let question = text(messages.last().expect("a question"));
    let i: usize = question.strip_prefix("case-").and_then(|rest| rest.strip_suffix("-end")).expect("a case").parse().expect("a number");
    let rule = text(&messages[0]);
    let is_right = i.is_multiple_of(2) || rule.contains("GOOD") || (rule.contains("NOISE") && i % 20 == 1);
    if is_right { "yes" } else { "no" }
}

/// A hundred samples, and an upstream whose model `w` proposes these templates. What `w` was asked is kept.
fn bench(templates: &[String], delay: Duration) -> (Refit, Upstream, Arc<Mutex<Vec<String>>>) {
    let refit = Refit::new();
    let line = |i: usize| format!("{}\n", json!({"id": format!("c{i}"), "input": {"message": message(i)}, "target": "yes"}));
    refit.write("d.jsonl", (0..100).map(line).collect::<String>());
    refit.write("p.prompt", PROMPT);
    refit.write("other.prompt", "{{message}}");
    refit.write("s.yaml", SUITE);
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (kept, reply) = (asked.clone(), json!({"templates": templates}).to_string());
    let up = upstream(move |stream: &mut TcpStream, text: &str| {
        let body: Value = serde_json::from_str(text).expect("JSON");
        if body["model"] == "w" {
            kept.lock().expect("whole").push(text.to_string());
            return says(stream, &format!("Here they are:\n```json\n{reply}\n```"));
        }
        std::thread::sleep(delay);
        says(stream, answer(&body))
    });
    refit.write("refit.toml", crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"w\"]") + PRICES);
    (refit, up, asked)
}

fn optimize(refit: &Refit, more: &[&str]) -> Done {
    let mut args = vec!["prompt", "optimize", "p.prompt", "--suite", "s.yaml", "--with", "up/w"];
    args.extend(more);
    refit.run(&args)
}

fn runs(refit: &Refit, split: &str) -> usize {
    let all = refit.run(&["eval", "list", "--json"]).expect(0).json();
    all.as_array().expect("runs").iter().filter(|run| run["split"] == split).count()
}

fn prompts(refit: &Refit) -> Vec<String> {
    let all = refit.run(&["prompt", "list", "--json"]).expect(0).json();
    all.as_array().expect("prompts").iter().map(|prompt| prompt["prompt"].as_str().expect("a name").to_string()).collect()
}

#[test]
fn the_better_candidate_is_kept_and_what_is_none_is_thrown_away_with_its_reason() {
    let templates = [
        template("GOOD: say yes."),
        template("Plain, in other words."),
        "{{role \"user\"}}{{#if message}}{{message}}".to_string(),
        template("GOOD").replace("message", "massage"),
        format!("---\nmodel: up/other\n---\n{}", template("{{json secret}}")),
    ];
    let (refit, up, asked) = bench(&templates, Duration::ZERO);
    let found = optimize(&refit, &["--candidates", "6", "--rounds", "1", "--json"]).expect(0);
    let report = found.json();
    assert_eq!((&report["target"], &report["metric"], &report["compared"]), (&json!("own"), &json!("exact_match"), &json!(3)), "{report}");
    let winner = report["winner"]["source"].as_str().expect("a source");
    assert_eq!(winner, PROMPT.replace("Plain.", "GOOD: say yes."), "front matter and form stay");
    let better: Vec<_> = report["candidates"].as_array().expect("candidates").iter().map(|one| one["is_better"].clone()).collect();
    assert_eq!(better, [json!(false), json!(true), json!(false)], "examples, the good one, the equal one: {report}");
    let good = &report["candidates"][1];
    assert_eq!((&good["mean"], &good["n"], &good["difference"]["losses"]), (&json!(1.0), &json!(40), &json!(0)));
    assert!(good["interval"][0].as_f64() > Some(0.0) && good["interval"][0].as_f64() < good["difference"]["ci95"][0].as_f64(), "{good}");
    let reasons: Vec<_> = report["thrown_away"].as_array().expect("a list").iter().map(|one| one["reason"].to_string()).collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    for (reason, part) in reasons.iter().zip(["line 5", "its variables are (massage), and the prompt's are (message)", "its variables are"])
    {
        assert!(reason.contains(part), "{reason} does not say {part}");
    }
    let test = &report["test"];
    assert_eq!((&test["n"], test["delta"].as_f64() > Some(0.2), runs(&refit, "test")), (&json!(40), true, 2), "{report}");
    assert_eq!(prompts(&refit), ["p.candidates"], "nothing is published");

    // Only train cases that went wrong were shown.
    let question = asked.lock().expect("whole").concat();
    let ids = |split: &str| {
        let shown = refit.run(&["data", "show", "d", "--split", split]).expect(0).stdout;
        let id = |line: &str| {
            serde_json::from_str::<Value>(line).expect("a sample")["id"].as_str().expect("an id")[1..].parse().expect("a number")
        };
        shown.lines().map(id).collect::<Vec<usize>>()
    };
    for i in ids("validation").into_iter().chain(ids("test")) {
        assert!(!question.contains(&message(i)), "case {i} was shown");
    }
    let train: Vec<_> = ids("train").into_iter().filter(|i| question.contains(&message(*i))).collect();
    assert!(!train.is_empty() && train.iter().all(|i| i % 2 == 1), "{train:?}");
    // 4 micro-dollars a call: the train split once, validation four times, test twice, and the proposals.
    assert_eq!(report["spent_usd"], "0.001044");

    // The same again asks nobody anything.
    let calls = up.requests.load(Ordering::SeqCst);
    let again = optimize(&refit, &["--candidates", "6", "--rounds", "1"]).expect(0);
    assert_eq!((again.stdout.as_str(), up.requests.load(Ordering::SeqCst)), (winner, calls), "{}", again.stderr);
    assert!(again.stderr.contains("test split: ") && again.stderr.contains("cost of this execution: $0.00"), "{}", again.stderr);
}

#[test]
fn noise_is_not_kept_and_the_test_split_is_not_asked() {
    let (refit, _up, _) = bench(&[template("NOISE one"), template("NOISE two"), "no template".into()], Duration::ZERO);
    let found = optimize(&refit, &["--candidates", "3", "--rounds", "1", "--examples", "0", "--out", "winner.prompt"]).expect(1);
    assert!(found.stderr.contains("nothing is kept: p.candidates@2 has the highest mean"), "{}", found.stderr);
    assert!(found.stdout.is_empty() && !refit.path().join("winner.prompt").exists());
    assert_eq!((runs(&refit, "test"), runs(&refit, "validation")), (0, 3));
}

#[test]
fn a_second_round_begins_at_the_best_so_far() {
    let (refit, _up, asked) = bench(&[template("GOOD")], Duration::ZERO);
    let found = optimize(&refit, &["--candidates", "2", "--examples", "0", "--out", "winner.prompt"]).expect(0);
    assert!(found.stdout.is_empty() && std::fs::read_to_string(refit.path().join("winner.prompt")).expect("written").contains("GOOD"));
    let asked = asked.lock().expect("whole");
    assert_eq!(asked.len(), 2);
    assert!(asked[1].contains("GOOD") && asked[1].contains("answered every case right"), "{}", asked[1]);
    assert!(found.stderr.contains("round 2, proposal 1 is thrown away: it is the same as one that was tried already"), "{}", found.stderr);
}

#[test]
fn a_budget_ends_it_and_a_larger_one_goes_on() {
    let (refit, up, _) = bench(&[template("GOOD")], Duration::ZERO);
    let args = ["--candidates", "1", "--rounds", "1", "--examples", "0"];
    // 4 micro-dollars a call: some thirty of the forty cases.
    let ended = optimize(&refit, &[&args[..], &["--max-usd", "0.00012"]].concat()).expect(1);
    assert!(ended.stderr.contains("nothing is kept: the budget of money is spent"), "{}", ended.stderr);
    let calls = up.requests.load(Ordering::SeqCst);
    assert!((30..=40).contains(&calls), "{calls} calls");
    let ended = optimize(&refit, &[&args[..], &["--max-minutes", "0", "--json"]].concat()).expect(1);
    assert_eq!((&ended.json()["ended"], &ended.json()["winner"]), (&json!("time"), &Value::Null));
    let found = optimize(&refit, &[&args[..], &["--max-usd", "1", "--json"]].concat()).expect(0).json();
    assert!(found["winner"]["source"].as_str().is_some_and(|source| source.contains("GOOD")), "{found}");
    assert_eq!(runs(&refit, "validation"), 2, "the run that was stopped goes on");
    let unpriced = crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"w\"]");
    refit.write("refit.toml", unpriced);
    let refused = optimize(&refit, &["--max-usd", "1"]).expect(2);
    assert!(refused.stderr.contains("the price of up/w is not known"), "{}", refused.stderr);
}

#[test]
fn ctrl_c_leaves_what_was_measured() {
    let (refit, _up, _) = bench(&[template("GOOD")], Duration::from_millis(30));
    let args =
        ["prompt", "optimize", "p.prompt", "--suite", "s.yaml", "--with", "up/w", "--candidates", "1", "--rounds", "1", "--examples", "0"];
    let child = refit.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let stored = || {
        let done = refit.run(&["eval", "show", "latest", "--cases", "--json"]);
        if done.code == 0 { done.json().as_array().map_or(0, Vec::len) } else { 0 }
    };
    wait_for("a case", || stored() >= 3);
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("signalled");
    let output = child.wait_with_output().expect("ended");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && errors.contains("the same command goes on with it"), "{errors}");
    assert!(stored() >= 3);
    let found = refit.run(&args).expect(0);
    assert!(found.stdout.contains("GOOD") && runs(&refit, "validation") == 2, "{}", found.stderr);
}

#[test]
fn a_winner_is_published_only_when_asked_with_what_shows_it() {
    let (refit, up, _) = bench(&[template("GOOD")], Duration::ZERO);
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let args = ["--candidates", "1", "--rounds", "1", "--examples", "0", "--publish", "-m", "fewer mistakes"];
    refit.write("p.prompt", PROMPT.replace("Plain", "Edited"));
    let refused = optimize(&refit, &args).expect(2);
    assert!(refused.stderr.contains("the newest version of \"p\" is 1") && up.requests.load(Ordering::SeqCst) == 0, "{}", refused.stderr);
    let nowhere = refit.run(&["prompt", "optimize", "p@1", "--suite", "s.yaml", "--with", "nowhere/w"]).expect(2);
    assert!(nowhere.stderr.contains("nowhere/w") && up.requests.load(Ordering::SeqCst) == 0, "{}", nowhere.stderr);
    let mut all = vec!["prompt", "optimize", "p@1", "--suite", "s.yaml", "--with", "up/w"];
    all.extend(args);
    refit.run(&all).expect(0);
    let history = refit.run(&["prompt", "history", "p", "--json"]).expect(0).json();
    let newest = &history["versions"][0];
    assert_eq!((&newest["version"], &newest["parent"]), (&json!(2), &history["versions"][1]["digest"]));
    let message = newest["message"].as_str().expect("a message");
    assert!(message.starts_with("fewer mistakes (p.candidates@2, optimised with up/w, exact_match +0."), "{message}");
    assert_eq!(message.matches("run_").count(), 4, "{message}");
}
