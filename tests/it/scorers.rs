//! Scorers: the examples of their page, judges and programs as scorers, and answers that are stored: in a file, in a run.

use crate::rig::{provider, says, upstream};
use crate::support::{Done, Refit, skip};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Answers for whichever of two answers begins with `new`.
const NEW_WINS: &str = "the new one";

/// What a scripted upstream was asked, and what it says.
#[derive(Clone, Default)]
struct Script {
    asked: Arc<Mutex<Vec<Value>>>,
    answers: Arc<Mutex<Vec<Value>>>,
}

impl Script {
    /// Answers in their order, the last one for ever; vectors for embeddings.
    fn serve(answers: Vec<Value>) -> (Self, u16) {
        let script = Script { asked: Arc::default(), answers: Arc::new(Mutex::new(answers.into_iter().rev().collect())) };
        let serving = script.clone();
        let up = upstream(move |stream: &mut TcpStream, body: &str| serving.answer(stream, body));
        (script, up.port)
    }

    fn answer(&self, stream: &mut TcpStream, body: &str) -> bool {
        let asked: Value = serde_json::from_str(body).expect("JSON");
        let is_embedding = asked.get("input").is_some();
        let text = asked["messages"].to_string();
        self.asked.lock().expect("whole").push(asked);
        let mut answers = self.answers.lock().expect("whole");
        let next = if answers.len() > 1 { answers.pop() } else { answers.first().cloned() }.unwrap_or_default();
        if next == NEW_WINS {
            // Both orders are asked at once: which of them comes first is not settled.
            let which = if text.find("new 0") < text.find("old 0") { "first" } else { "second" };
            return says(stream, &json!({"reasons": "", "better": which}).to_string());
        }
        if !is_embedding {
            return says(stream, &next.as_str().map_or_else(|| next.to_string(), str::to_string));
        }
        let vectors = next.as_array().expect("vectors").iter().enumerate();
        let data: Vec<_> = vectors.map(|(at, vector)| json!({"object": "embedding", "index": at, "embedding": vector})).collect();
        let body = json!({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *self.asked.lock().expect("whole"))
    }
}

fn suite(scorers: &Value) -> String {
    json!({"name": "s", "dataset": "d.jsonl", "targets": [{"name": "t", "model": "mock/echo", "prompt": "p.prompt"}], "scorers": [scorers]})
        .to_string()
}

fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn cases(refit: &Refit, run: &str) -> Vec<Value> {
    refit.run(&["eval", "show", run, "--cases", "--json"]).expect(0).json().as_array().expect("cases").clone()
}

// ---- the page ----------------------------------------------------------------------------------------------------------------

/// Fenced blocks of the page with their languages.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(language), None) => open = Some((language.to_string(), String::new())),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// Scores one answer as the page shows it, and says what came out as the page does.
fn example(scorer: &Value, seen: &Value) -> String {
    let refit = Refit::new();
    let said = seen["judge"].as_array().cloned().unwrap_or_else(|| vec![seen["vectors"].clone()]);
    let (_, port) = Script::serve(said);
    refit.write("refit.toml", provider(port));
    let files = seen["files"].as_object().into_iter().flatten();
    files.for_each(|(name, text)| drop(refit.write(name, text.as_str().expect("a text"))));
    let target = seen.get("target").cloned().unwrap_or(Value::Null);
    let report = match seen.get("message") {
        Some(message) => {
            refit.write("o.jsonl", lines(&[json!({"output": message, "target": target})]));
            let spec = scorer.to_string();
            refit.run(&["eval", "score", "--outputs", "o.jsonl", "--scorer", &spec, "--allow-commands", "--json"])
        }
        None => {
            refit.write(
                "d.jsonl",
                lines(&[json!({"id": "s1", "input": {"m": seen["output"]}, "target": target,
                "metadata": seen.get("metadata").cloned().unwrap_or(json!({}))})]),
            );
            refit.write("p.prompt", "{{m}}");
            refit.write("s.yaml", suite(scorer));
            refit.run(&["eval", "run", "s.yaml", "--allow-commands", "--json"])
        }
    };
    let report = report.expect(0).json();
    let case = &cases(&refit, "latest")[0];
    let shown = |value: &Value| {
        let value = (value.as_f64().expect("a number") * 1000.0).round() / 1000.0;
        value.to_string()
    };
    let mut text = String::new();
    // In the order of the scorer.
    for (metric, value) in case["scores"].as_object().expect("scores") {
        text += &format!("{metric} {}\n", shown(value));
    }
    // What depends on the clock is not on the page.
    if scorer.get("latency").is_none() {
        let notes = case["notes"].as_object().into_iter().flatten();
        notes.for_each(|(_, why)| text += &format!("why: {}\n", why.as_str().expect("a text")));
    }
    let known = case["scores"].as_object().expect("scores");
    let added = report["targets"][0]["metrics"].as_object().expect("metrics").iter().filter(|(metric, _)| !known.contains_key(*metric));
    added.for_each(|(metric, found)| text += &format!("{metric} {}\n", shown(&found["mean"])));
    text
}

#[test]
fn the_examples_of_the_page_are_what_comes_out() {
    let blocks = blocks(include_str!("../../src/docs/scorers.md"));
    let is = |at: usize, language: &str| blocks.get(at).is_some_and(|(found, _)| found == language);
    let mut shown = String::new();
    for at in (0..blocks.len()).filter(|at| is(*at, "yaml") && is(at + 1, "json") && is(at + 2, "text")) {
        let scorer: Value = serde_norway::from_str(&blocks[at].1).expect("YAML");
        let seen: Value = serde_json::from_str(&blocks[at + 1].1).expect("JSON");
        assert_eq!(example(&scorer, &seen), blocks[at + 2].1, "{scorer}");
        shown += &format!("{scorer} {seen}");
    }
    // The registry's words, as the error that lists them has it.
    let refit = Refit::new();
    refit.write("o.jsonl", "{\"output\": \"x\"}\n");
    let unknown = refit.run(&["eval", "score", "--outputs", "o.jsonl", "--scorer", "none"]).expect(2).stderr;
    let known = unknown.split_once("(scorers: ").and_then(|(_, rest)| rest.split_once(')')).expect("a list").0.to_string();
    let page = include_str!("../../src/docs/scorers.md");
    for word in known.split(", ") {
        assert!(page.contains(&format!("`{word}`")), "{word} is not on the page");
        assert!(shown.contains(&format!("\"{word}\"")), "{word} has no example");
    }
    assert!(known.split(", ").count() >= 26, "{known}");
}

// ---- answers from files ------------------------------------------------------------------------------------------------------

const GSM8K: [&str; 4] = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"];

#[test]
fn the_verdicts_of_gsm8k_are_reproduced() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/gsm8k/example_model_solutions.jsonl");
    let Ok(text) = std::fs::read_to_string(&file) else {
        return skip("scorers::the_verdicts_of_gsm8k_are_reproduced", "../shared/data/gsm8k is not there");
    };
    let refit = Refit::new();
    let outputs = GSM8K.map(|model| format!("{model}=/{model}/solution"));
    let shown = file.display().to_string();
    let mut args = vec!["eval", "score", "--outputs", &shown, "--target", "ground_truth", "--input", "question", "--json"];
    args.extend(["--scorer", "numeric: {marker: 'A:'}"]);
    outputs.iter().for_each(|output| args.extend(["--output", output]));
    let report = refit.run(&args).expect(0).json();
    assert_eq!((&report["status"], &report["samples"]), (&json!("scored"), &json!(1319)));
    let run = report["run"].as_str().expect("an id");
    let recorded: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (mut equal, mut all) = (0, 0);
    for case in cases(&refit, run) {
        let (at, model) = (case["position"].as_u64().expect("a place") as usize, case["target"].as_str().expect("a model"));
        let verdict = recorded[at][model]["is_correct"].as_bool().expect("a verdict");
        all += 1;
        equal += usize::from((case["scores"]["numeric"] == json!(1.0)) == verdict);
    }
    assert_eq!((equal, all), (5276, 5276));
    let sides = ["175b_finetuning", "6b_verification"].map(|model| format!("{run}/{model}"));
    let compared = refit.run(&["eval", "compare", &sides[0], &sides[1], "--json"]).expect(0).json();
    let paired = &compared["paired"][0];
    let number = |field: &str| paired[field].as_f64().expect("a number");
    // The dataset's page: +4.3 points, paired standard error 1.44, unpaired 1.88, 209 against 152 discordant cases.
    assert!((number("delta") - 57.0 / 1319.0).abs() < 1e-12 && (number("standard_error") - 0.0144).abs() < 5e-5, "{paired}");
    assert!((number("unpaired_standard_error") - 0.0188).abs() < 5e-5, "{paired}");
    assert_eq!((&paired["wins"], &paired["losses"], &paired["n"]), (&json!(209), &json!(152), &json!(1319)));
}

#[test]
fn answers_of_a_file_are_scored_and_compared() {
    let refit = Refit::new();
    let line = |i: usize| json!({"key": format!("k{i}"), "truth": i, "a": {"text": format!("it is {i}")}, "b": {"text": format!("it is {}", i % 3)}});
    refit.write("two answers.jsonl", lines(&(0..6).map(line).collect::<Vec<_>>()));
    let args = [
        "eval",
        "score",
        "--outputs",
        "two answers.jsonl",
        "--output",
        "a=/a/text",
        "--output",
        "b=/b/text",
        "--target",
        "truth",
        "--id",
        "key",
    ];
    let report = refit.run(&[&args[..], &["--scorer", "numeric", "--json"]].concat()).expect(0).json();
    assert_eq!(
        (&report["suite"], &report["status"], &report["scored_from"]),
        (&json!("two-answers"), &json!("scored"), &json!("two answers.jsonl"))
    );
    let mean = |at: usize| report["targets"][at]["metrics"]["numeric"]["mean"].clone();
    assert_eq!((mean(0), mean(1), &report["paired"][0]["losses"]), (json!(1.0), json!(0.5), &json!(3)));
    let wrong = cases(&refit, "latest").into_iter().find(|case| case["target"] == "b" && case["sample"] == "k4").expect("a case");
    assert_eq!(wrong["notes"], json!({"numeric": "found 1, expected 4"}));
    // The samples are a dataset now, and so the run can be scored again.
    assert_eq!(refit.run(&["data", "show", "two-answers", "--limit", "1"]).expect(0).stdout.lines().count(), 1);
    let again = refit.run(&["eval", "score", "latest", "--scorer", "ends_with", "--json"]).expect(0).json();
    assert_eq!(again["targets"][0]["metrics"]["ends_with"]["mean"], 1.0);
    assert_eq!(again["scored_from"], report["run"]);
    assert_eq!(refit.run(&["eval", "list", "--json"]).expect(0).json().as_array().map(Vec::len), Some(2));
}

#[test]
fn answers_meet_the_samples_of_a_suite() {
    let refit = Refit::new();
    let sample = |id: &str| json!({"id": id, "input": {"m": id}, "target": id});
    refit.write("d.jsonl", lines(&["x", "y", "z"].map(sample)));
    refit.write("p.prompt", "{{m}}");
    let gated = suite(&json!("exact_match")).replacen('{', "{\"gate\": [{\"metric\": \"exact_match\", \"at_least\": 0.9}],", 1);
    refit.write("s.yaml", gated);
    refit.write("o.jsonl", lines(&[json!({"id": "z", "output": "z"}), json!({"id": "x", "output": "no"})]));
    let scored = |more: &[&str]| refit.run(&[&["eval", "score", "--outputs", "o.jsonl", "--suite", "s.yaml", "--json"][..], more].concat());
    let report = scored(&["--id", "id"]).expect(1).json();
    assert_eq!((&report["targets"][0]["n"], &report["targets"][0]["metrics"]["exact_match"]["mean"]), (&json!(2), &json!(0.5)));
    assert_eq!(report["gate"]["passed"], false);
    // By their order: z answers x, and "no" answers y.
    assert_eq!(scored(&[]).expect(1).json()["targets"][0]["metrics"]["exact_match"]["mean"], 0.0);
    refit.write("o.jsonl", lines(&[json!({"id": "w", "output": "z"})]));
    let unknown = scored(&["--id", "id"]).expect(2);
    assert!(unknown.stderr.contains("o.jsonl, line 1: the dataset has no sample \"w\""), "{}", unknown.stderr);
}

#[test]
fn a_broken_line_is_named_and_nothing_is_stored() {
    let refit = Refit::new();
    let good = json!({"output": "a", "target": "a", "id": "1"}).to_string();
    for (broken, problem) in [
        ("{\"output\": ", "not JSON"),
        ("{\"target\": \"a\"}", "there is no /output (the line has: target)"),
        ("{\"output\": \"a\", \"target\": null}", "there is no /target"),
        ("[1]", "there is no /target (the line has: no fields)"),
    ] {
        refit.write("o.jsonl", format!("{good}\n\n{broken}\n{good}\n"));
        let done = refit.run(&["eval", "score", "--outputs", "o.jsonl", "--scorer", "exact_match"]).expect(2);
        assert!(done.stdout.is_empty() && done.stderr.contains("o.jsonl, line 3: ") && done.stderr.contains(problem), "{}", done.stderr);
    }
    refit.write("o.jsonl", format!("{good}\n{good}\n"));
    let twice = refit.run(&["eval", "score", "--outputs", "o.jsonl", "--id", "id", "--scorer", "exact_match"]).expect(2);
    assert!(twice.stderr.contains("o.jsonl, line 2: id \"1\" stands in line 1 already"), "{}", twice.stderr);
    refit.write("o.jsonl", "\n");
    refit.run(&["eval", "score", "--outputs", "o.jsonl", "--scorer", "exact_match"]).expect(2);
    let bare = refit.run(&["eval", "score", "--outputs", "o.jsonl"]).expect(2);
    assert!(bare.stderr.contains("hint: give some: --suite FILE, or --scorer exact_match"), "{}", bare.stderr);
    assert_eq!(refit.run(&["eval", "list", "--json"]).expect(0).json(), json!([]));
}

// ---- runs again --------------------------------------------------------------------------------------------------------------

#[test]
fn a_run_is_scored_again_without_a_call() {
    let refit = Refit::new();
    let (script, port) = Script::serve(vec![json!("It is Paris."), json!("It is Oslo.")]);
    refit.write("refit.toml", provider(port));
    refit.write("d.jsonl", lines(&["Paris", "Oslo", "Rome"].map(|city| json!({"id": city, "input": {"m": city}, "target": city}))));
    refit.write("p.prompt", "{{m}}");
    refit.write("s.yaml", suite(&json!("exact_match")).replace("mock/echo", "up/m").replacen('{', "{\"concurrency\": 1,", 1));
    let first = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    assert_eq!((script.asked().len(), &first["targets"][0]["metrics"]["exact_match"]["mean"]), (3, &json!(0.0)));
    let run = first["run"].as_str().expect("an id");
    let before = cases(&refit, run);
    refit.write("new.yaml", suite(&json!("includes")).replace("mock/echo", "up/m"));
    let again = refit.run(&["eval", "score", run, "--suite", "new.yaml", "--json"]).expect(0).json();
    assert!(script.asked().is_empty(), "no target is asked");
    let mean = again["targets"][0]["metrics"]["includes"]["mean"].as_f64().expect("a mean");
    assert!((mean - 2.0 / 3.0).abs() < 1e-12 && again["run"] != first["run"]);
    assert_eq!(
        (&again["status"], &again["scored_from"], &again["targets"][0]["release"]),
        (&json!("scored"), &json!(run), &first["targets"][0]["release"])
    );
    assert_eq!(cases(&refit, run), before, "what was stored stays as it is");
    let now = cases(&refit, again["run"].as_str().expect("an id"));
    let kept = |case: &Value| ["output", "latency_ms", "input_tokens", "sample"].map(|field| case[field].clone());
    assert_eq!(now.iter().map(kept).collect::<Vec<_>>(), before.iter().map(kept).collect::<Vec<_>>());
    // It proves nothing, and there is nothing to resume.
    let stuck = refit.run(&["eval", "resume", again["run"].as_str().expect("an id")]).expect(2);
    assert!(stuck.stderr.contains("nothing is asked") && stuck.stderr.contains("refit eval score"), "{}", stuck.stderr);
    let own = refit.run(&["eval", "score", run, "--json"]).expect(0).json();
    assert_eq!(own["targets"][0]["metrics"], first["targets"][0]["metrics"], "with its own scorers it is what it was");
}

#[test]
fn what_was_scored_again_proves_no_release() {
    let refit = Refit::new();
    refit.write("d.jsonl", lines(&[json!({"id": "a", "input": {"m": "x"}, "target": "y"})]));
    refit.write("p.prompt", "{{m}}");
    refit.write("s.yaml", suite(&json!("exact_match")));
    let missed = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    let run = missed["run"].as_str().expect("an id");
    refit.write("s.yaml", suite(&json!({"includes": {"value": "x", "name": "exact_match"}})));
    let again = refit.run(&["eval", "score", run, "--suite", "s.yaml", "--json"]).expect(0).json();
    assert_eq!((&again["suite"], &again["targets"][0]["metrics"]["exact_match"]["mean"]), (&json!("s"), &json!(1.0)));
    refit.run(&["route", "create", "r", "--suite", "s", "--require", "exact_match>=0.9"]).expect(0);
    let release = refit.run(&["release", "create", "--run", run, "--target", "t"]).expect(0).stdout.trim().to_string();
    let refused = refit.run(&["release", "promote", &release, "--route", "r"]).expect(1);
    assert!(refused.stderr.contains("exact_match mean 0.0000 < 0.9"), "the run that asked is what counts: {}", refused.stderr);
}

// ---- judges ------------------------------------------------------------------------------------------------------------------

/// Four samples, judged by `up/m`.
fn judged(options: &Value, answers: Vec<Value>) -> (Refit, Script) {
    let refit = Refit::new();
    let (script, port) = Script::serve(answers);
    refit.write("refit.toml", provider(port));
    let line = |i: usize| {
        let human = ["pass", "fail"][i % 2];
        json!({"id": format!("s{i}"), "input": {"m": format!("answer {i}")}, "target": "t", "metadata": {"human": human}})
    };
    refit.write("d.jsonl", lines(&(0..4).map(line).collect::<Vec<_>>()));
    refit.write("p.prompt", "{{m}}");
    let mut scorer = json!({"model": "up/m", "rubric": "Is it right?"});
    scorer.as_object_mut().expect("a map").extend(options.as_object().expect("a map").clone());
    refit.write("s.yaml", suite(&json!({"llm_judge": scorer})).replacen('{', "{\"concurrency\": 1,", 1));
    (refit, script)
}

fn verdict(word: &str) -> Value {
    json!({"reasons": format!("so I say {word}"), "verdict": word})
}

#[test]
fn a_judge_goes_the_road_of_applications_and_agrees_with_people_or_not() {
    let options = json!({"labels": "/metadata/human"});
    let answers = ["pass", "fail", "pass", "pass"].map(verdict).to_vec();
    let (refit, script) = judged(&options, answers);
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    let target = &report["targets"][0];
    assert_eq!(target["metrics"]["llm_judge"]["mean"], 0.75);
    // Three of four agree, two of them by chance: (0.75 − 0.5)/(1 − 0.5).
    assert_eq!((&target["metrics"]["llm_judge.kappa"]["mean"], &target["metrics"]["llm_judge.kappa"]["n"]), (&json!(0.5), &json!(4)));
    // (0.75 + 0.5 − 1)/(1 + 0.5 − 1).
    assert_eq!(target["metrics"]["llm_judge.corrected"]["mean"], 0.5);
    assert_eq!(target["details"]["llm_judge"]["specificity"], 0.5);
    let asked = script.asked();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[0]["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"], json!(["pass", "fail"]));
    assert!(asked[0]["messages"][1]["content"].as_str().is_some_and(|text| text.contains("\"answer\":\"answer 0\"")), "{}", asked[0]);
    assert_eq!(cases(&refit, "latest")[1]["notes"], json!({"llm_judge": "so I say fail"}));
    // Each call of the judge has its row in the request log, as the targets' calls have.
    let logged = refit.run(&["logs", "export"]).expect(0).stdout;
    assert_eq!(logged.lines().filter(|line| line.contains("\"up\"")).count(), 4, "{logged}");
}

#[test]
fn a_judge_that_fails_is_a_third_outcome_and_is_asked_again() {
    let broken = vec![verdict("pass"), json!("I think"), json!("it is fine"), verdict("pass"), verdict("fail")];
    let (refit, script) = judged(&json!({}), broken);
    let done = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(2);
    let report = done.json();
    assert_eq!(
        (&report["status"], &report["targets"][0]["n"], &report["targets"][0]["errors"]),
        (&json!("incomplete"), &json!(3), &json!(1))
    );
    let case = &cases(&refit, "latest")[1];
    let error = case["error"].as_str().expect("an error");
    assert!(error.starts_with("scorer_error: llm_judge: ") && error.contains("also when asked again"), "{error}");
    assert_eq!(case["output"], "answer 1", "the answer is kept");
    script.asked();
    let again = refit.run(&["eval", "score", "latest", "--json"]).expect(0).json();
    assert_eq!((&again["targets"][0]["n"], &again["targets"][0]["errors"]), (&json!(4), &json!(0)));
    assert_eq!(script.asked().len(), 4, "the judge alone");
}

#[test]
fn two_targets_are_compared_once_their_answers_are_stored() {
    let first = json!({"reasons": "", "better": "first"});
    // Both orders of two samples: the new answer wins, then the judge contradicts itself.
    let (refit, script) = judged(&json!({}), vec![json!(NEW_WINS), json!(NEW_WINS), first.clone(), first]);
    let line = |i: usize| json!({"old": format!("old {i}"), "new": format!("new {i}"), "truth": "t"});
    refit.write("o.jsonl", lines(&[line(0), line(1)]));
    let scorer = json!({"llm_judge": {"model": "up/m", "pairwise": "old"}}).to_string();
    let args = ["eval", "score", "--outputs", "o.jsonl", "--output", "old=old", "--output", "new=new", "--target", "truth"];
    let report = refit.run(&[&args[..], &["--scorer", &scorer, "--concurrency", "1", "--json"]].concat()).expect(0).json();
    let of =
        |name: &str| report["targets"].as_array().expect("targets").iter().find(|target| target["name"] == name).expect("a target").clone();
    let (old, new) = (of("old"), of("new"));
    let mean = |metric: &str| new["metrics"][metric]["mean"].clone();
    assert_eq!((mean("llm_judge"), mean("llm_judge.flips"), mean("llm_judge.first")), (json!(0.75), json!(0.5), json!(0.75)));
    assert_eq!((&old["metrics"]["llm_judge"]["n"], &old["errors"]), (&json!(0), &json!(0)), "nothing is compared with itself");
    assert_eq!(script.asked().len(), 4);
    // While a run goes on, not all answers are there.
    refit.write("s.yaml", suite(&json!({"llm_judge": {"model": "up/m", "pairwise": "t2"}})));
    let early = refit.run(&["eval", "run", "s.yaml"]).expect(2);
    assert!(early.stderr.contains("4 cases"), "{}", early.stderr);
    assert!(cases(&refit, "latest")[0]["error"].as_str().is_some_and(|error| error.contains("once they are stored")));
}

#[test]
fn labels_and_corpora_are_added_up_and_gated() {
    let refit = Refit::new();
    let wanted = ["a", "a", "b", "b", "b"];
    let said = ["a", "b", "b", "b", "neither"];
    let line = |i: usize| json!({"id": format!("s{i}"), "input": {"m": said[i]}, "target": wanted[i]});
    refit.write("d.jsonl", lines(&(0..5).map(line).collect::<Vec<_>>()));
    refit.write("p.prompt", "{{m}}");
    let with_gate = |at_least: f64| {
        let mut suite: Value = serde_json::from_str(&suite(&json!({"classification": ["a", "b"]}))).expect("JSON");
        suite["gate"] = json!([{"metric": "classification.macro_f1", "at_least": at_least}]);
        suite.to_string()
    };
    refit.write("s.yaml", with_gate(0.66));
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    let target = &report["targets"][0];
    // F1 of a: 2·1/(2 + 1); of b: 2·2/(3 + 3).
    let f1 = target["metrics"]["classification.macro_f1"].clone();
    assert!((f1["mean"].as_f64().expect("a number") - 2.0 / 3.0).abs() < 1e-12 && f1["standard_error"].as_f64() > Some(0.0), "{f1}");
    assert_eq!(target["details"]["classification"]["matrix"], json!([[1, 1, 0], [0, 2, 1]]));
    refit.write("s.yaml", with_gate(0.67));
    refit.run(&["eval", "run", "s.yaml"]).expect(1);
    let table = refit.run(&["eval", "show", "latest"]).expect(0).stdout;
    assert!(table.contains("classification.macro_f1"), "{table}");
}

// ---- programs ----------------------------------------------------------------------------------------------------------------

/// A suite whose scorer is a shell script.
fn commanded(script: &str, timeout_s: f64) -> Refit {
    let refit = Refit::new().env("OPENAI_SECRET", "sk-not-for-scorers");
    refit.write("d.jsonl", lines(&[json!({"id": "a", "input": {"m": "x"}, "target": "x"})]));
    refit.write("p.prompt", "{{m}}");
    refit.write("score.sh", script);
    refit.write("s.yaml", suite(&json!({"command": {"run": ["sh", "score.sh"], "timeout_s": timeout_s}})));
    refit
}

fn run_it(refit: &Refit) -> Done {
    refit.run(&["eval", "run", "s.yaml", "--allow-commands", "--json"])
}

#[test]
fn programs_run_only_where_that_is_allowed() {
    let refit = commanded("touch ran; echo 1", 10.0);
    let refused = refit.run(&["eval", "run", "s.yaml"]).expect(2);
    assert!(refused.stderr.contains("\"command\" runs a program") && refused.stderr.contains("--allow-commands"), "{}", refused.stderr);
    assert_eq!(refit.run(&["eval", "list", "--json"]).expect(0).json(), json!([]), "nothing was begun");
    assert!(!refit.path().join("ran").exists());
    assert_eq!(run_it(&refit).expect(0).json()["targets"][0]["metrics"]["command"]["mean"], 1.0);
    let refused = refit.run(&["eval", "score", "latest"]).expect(2);
    assert!(refused.stderr.contains("runs a program"), "{}", refused.stderr);
    refit.write("refit.toml", "[evals]\nallow_commands = true\n");
    refit.run(&["eval", "score", "latest"]).expect(0);
}

#[test]
fn programs_see_the_case_and_no_secrets() {
    let refit = commanded("cat > seen.json; env > env.txt; echo '{\"score\": 0.5, \"explanation\": \"half\"}'", 10.0);
    assert_eq!(run_it(&refit).expect(0).json()["targets"][0]["metrics"]["command"]["mean"], 0.5);
    let seen: Value = serde_json::from_slice(&std::fs::read(refit.path().join("seen.json")).expect("seen")).expect("JSON");
    assert_eq!(
        (&seen["sample"], &seen["output"], &seen["target"], &seen["input"]),
        (&json!("a"), &json!("x"), &json!("x"), &json!({"m": "x"}))
    );
    let variables = std::fs::read_to_string(refit.path().join("env.txt")).expect("written");
    assert!(variables.contains("PATH=") && !variables.contains("sk-not-for-scorers"), "{variables}");
    assert_eq!(cases(&refit, "latest")[0]["notes"], json!({"command": "half"}));
}

#[test]
fn programs_that_misbehave_are_errors_and_leave_nothing_behind() {
    for (script, problem) in [
        ("echo broken >&2; exit 3", "it ended with exit status: 3: broken"),
        ("echo hello", "did not answer with JSON but with: hello"),
        ("yes", "says more than 1048576 bytes"),
        ("echo '{\"error\": \"no dictionary\"}'", "command: no dictionary"),
    ] {
        let refit = commanded(script, 20.0);
        run_it(&refit).expect(2);
        let error = cases(&refit, "latest")[0]["error"].as_str().expect("an error").to_string();
        assert!(error.contains(problem), "{script}: {error}");
    }
    // One that hangs, with a child that would write a file later: both are gone.
    let refit = commanded("(sleep 3; touch late) & sleep 60", 0.5);
    let began = Instant::now();
    run_it(&refit).expect(2);
    assert!(began.elapsed() < Duration::from_secs(30), "it was not waited for");
    assert!(cases(&refit, "latest")[0]["error"].as_str().is_some_and(|error| error.contains("took more than 0.5 s")));
    std::thread::sleep(Duration::from_secs(4));
    assert!(!refit.path().join("late").exists(), "what it started was killed with it");
    let missing = commanded("", 1.0);
    missing.write("s.yaml", suite(&json!({"command": {"run": ["no-such-program"]}})));
    run_it(&missing).expect(2);
    assert!(cases(&missing, "latest")[0]["error"].as_str().is_some_and(|error| error.contains("no-such-program cannot be started")));
}

/// A module that says what stands at 8 in its memory, and counts how often it was asked.
const MODULE: &str = r#"(module (memory (export "memory") 1) (global $asked (mut i32) (i32.const 0))
  (data (i32.const 8) "{\"score\": 0.25, \"explanation\": \"from inside\"}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "score") (param i32 i32) (result i64)
    (if (global.get $asked) (then unreachable)) (global.set $asked (i32.const 1))
    (i64.or (i64.shl (i64.const 8) (i64.const 32)) (i64.const 45))))"#;

fn moduled(module: &str, options: Value) -> (Refit, Done) {
    let refit = Refit::new();
    refit.write("d.jsonl", lines(&["a", "b"].map(|id| json!({"id": id, "input": {"m": "x"}, "target": "x"}))));
    refit.write("p.prompt", "{{m}}");
    refit.write("score.wat", module);
    let mut scorer = json!({"file": "score.wat"});
    scorer.as_object_mut().expect("a map").extend(options.as_object().expect("a map").clone());
    refit.write("s.yaml", suite(&json!({"wasm": scorer})));
    let done = run_it(&refit);
    (refit, done)
}

#[test]
fn modules_score_within_their_bounds() {
    let (refit, done) = moduled(MODULE, json!({}));
    assert_eq!(done.expect(0).json()["targets"][0]["metrics"]["wasm"]["mean"], 0.25, "no case meets a module that another one used");
    assert_eq!(cases(&refit, "latest")[0]["notes"], json!({"wasm": "from inside"}));
    let refused = refit.run(&["eval", "run", "s.yaml"]).expect(2);
    assert!(refused.stderr.contains("runs a program"), "{}", refused.stderr);
    let body = |score: &str| MODULE.replace("(if (global.get $asked) (then unreachable))", score);
    for (module, options, problem) in [
        (body("(loop $l (br $l))"), json!({"fuel": 100_000}), "fuel"),
        (body("(if (i32.eq (memory.grow (i32.const 500)) (i32.const -1)) (then unreachable))"), json!({"memory_mib": 1}), "unreachable"),
        (MODULE.replace("(i64.const 45)", "(i64.const 66000)"), json!({}), "not in its memory"),
        (MODULE.replace("(i64.const 45)", "(i64.const 9)"), json!({}), "did not answer with JSON"),
        (MODULE.replace("(i32.const 1024)", "(i32.const 65530)"), json!({}), "does not fit into its memory"),
        (MODULE.replace("\"alloc\"", "\"malloc\""), json!({}), "alloc"),
    ] {
        let (refit, done) = moduled(&module, options);
        done.expect(2);
        let error = cases(&refit, "latest")[0]["error"].as_str().expect("an error").to_string();
        assert!(error.starts_with("scorer_error: wasm: ") && error.contains(problem), "{problem}: {error}");
    }
    for (module, problem) in
        [("(module (import \"env\" \"now\" (func)))", "imports env.now; a scorer imports nothing"), ("(module", "score.wat: ")]
    {
        let (_, done) = moduled(module, json!({}));
        let done = done.expect(2);
        assert!(done.stderr.contains("s.yaml, line 1: ") && done.stderr.contains(problem), "{}", done.stderr);
    }
}

#[test]
fn metrics_of_other_scales_do_not_decide_who_passes() {
    let refit = Refit::new();
    refit.write("d.jsonl", lines(&[json!({"id": "a", "input": {"m": "x"}, "target": "x"})]));
    refit.write("p.prompt", "{{m}}");
    let both = suite(&json!("exact_match")).replace("[\"exact_match\"]", "[\"exact_match\", \"latency\", \"tokens\"]");
    refit.write("s.yaml", both);
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    assert_eq!((&report["targets"][0]["passed"], &report["pass_metrics"]), (&json!(1), &json!(["exact_match"])));
    let metrics: HashMap<String, Value> = serde_json::from_value(report["targets"][0]["metrics"].clone()).expect("metrics");
    assert_eq!(metrics["tokens"]["mean"], 1.0);
    assert!(metrics["latency"]["mean"].as_f64() > Some(0.0));
}
