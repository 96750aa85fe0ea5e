//! What judges cost, and how many calls there are at once: a run's money and concurrency are those of its scorers, too; a provider that
//! rests keeps nobody else waiting; and only what says pass or fail makes a verdict.

use crate::evals_runner::{SUITE, all, cases, directory, rig, run};
use crate::rig::{provider, says, upstream};
use crate::support::Refit;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const JUDGE: &str =
    "\n  - exact_match\n  - llm_judge: {model: up/m, rubric: Is it right?, votes: 5, name: quality, parameters: {max_tokens: 8}}\n";
const VERDICT: &str = "{\"reasons\": \"\", \"verdict\": \"pass\"}";

fn answer(message: &str) -> String {
    if message.starts_with("You judge") { VERDICT.into() } else { "yes".into() }
}

fn judged() -> String {
    SUITE.replace(" [exact_match]\n", JUDGE)
}

fn spent(report: &Value) -> (i64, i64) {
    let cost = |name: &str| report["targets"][0][name].as_i64().expect("a cost");
    (cost("cost_micro_usd"), cost("scoring_cost_micro_usd"))
}

#[test]
fn judges_are_paid_from_the_runs_money_and_told() {
    let (refit, _up, asked) = rig(10, |message, _| answer(message));
    refit.write("s.yaml", judged());
    // Each of 10 answers and 50 votes costs $0.004.
    let free = run(&refit, &[]).expect(0).json();
    assert_eq!((spent(&free), all(&asked)), ((40_000, 200_000), 60));
    let table = refit.run(&["eval", "show", "latest"]).expect(0).stdout;
    assert!(table.contains("cost of scoring") && table.contains("$0.2"), "{table}");
    assert!(cases(&refit).iter().all(|case| case["scoring_cost_micro_usd"] == 20_000));
    // A vote may cost as much as its prompt has bytes, some $0.7: after some of them there is too little for another one.
    let bounded = run(&refit, &["--max-cost", "0.80"]).expect(2).json();
    assert_eq!(bounded["status"], "out_of_money");
    let (of_target, of_judge) = spent(&bounded);
    assert!(of_judge > 0 && of_target + of_judge <= 800_000, "{of_target} {of_judge}");
    let counted = 4_000 * (all(&asked) as i64 - 60);
    assert_eq!(of_target + of_judge, counted, "every call was counted");
    // What it goes on with is what was not spent: nothing is asked twice.
    let whole = refit.run(&["eval", "resume", "latest", "--max-cost", "10", "--json"]).expect(0).json();
    assert_eq!(whole["status"], "finished");
    let counts = asked.lock().expect("whole");
    assert!((0..10).all(|at| counts[&format!("m{at}")] == 2), "each target was asked once in each run: {counts:?}");
    let (of_target, of_judge) = spent(&whole);
    assert_eq!(of_target + of_judge, 4_000 * (counts.values().sum::<usize>() as i64 - 60));
}

#[test]
fn judges_count_towards_the_concurrency() {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, seen) = (inside.clone(), most.clone());
    let up = upstream(move |stream: &mut TcpStream, body: &str| {
        seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(10));
        now.fetch_sub(1, Ordering::SeqCst);
        says(stream, if body.contains("You judge") { VERDICT } else { "yes" })
    });
    let refit = directory(12, up.port);
    // The judge is somebody else's model: two providers have as many calls together as one.
    let judge = provider(up.port).replace("[providers.up]", "[providers.judge]");
    refit.write("refit.toml", format!("{}{judge}", provider(up.port)));
    refit.write("s.yaml", judged().replace("model: up/m, rubric", "model: judge/m, rubric"));
    run(&refit, &[]).expect(0);
    assert_eq!(most.load(Ordering::SeqCst), 4, "as many as the suite says, and no more");
}

#[test]
fn a_bound_of_money_wants_bounded_answers() {
    let (refit, _up, asked) = rig(3, |message, _| answer(message));
    let refused = |suite: String, problem: &str, hint: &str| {
        refit.write("s.yaml", format!("{suite}max_cost: 1.00\n"));
        let done = run(&refit, &[]).expect(2);
        assert!(done.stderr.contains(problem) && done.stderr.contains(hint), "{}", done.stderr);
    };
    let unbounded = SUITE.replace(", parameters: {max_tokens: 8}", "");
    refused(
        unbounded,
        "answers of up/m (target \"up\") have no max_tokens",
        "give the target, or its prompt's config, parameters: {max_tokens",
    );
    let judge = judged().replace("name: quality, parameters: {max_tokens: 8}", "name: quality");
    refused(judge, "answers of up/m (scorer \"quality\") have no max_tokens", "give the scorer parameters: {max_tokens");
    let unpriced = judged().replace("model: up/m, rubric", "model: up/other, rubric");
    refused(unpriced, "the price of up/other (scorer \"quality\") is not known", "[[prices.rows]]");
    assert_eq!((all(&asked), refit.run(&["eval", "list", "--json"]).expect(0).json()), (0, json!([])));
    // The prompt's own config bounds, too.
    refit.write("s.yaml", format!("{}max_cost: 1.00\n", SUITE.replace(", parameters: {max_tokens: 8}", "")));
    refit.write("p.prompt", "---\nconfig:\n  max_tokens: 8\n---\n{{message}}");
    run(&refit, &[]).expect(0);
}

#[test]
fn a_provider_that_rests_keeps_no_other_waiting() {
    let busy = upstream(move |stream: &mut TcpStream, _: &str| {
        let body = "{\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\",\"code\":\"rate_limit_exceeded\"}}";
        let head = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\ncontent-type: application/json";
        stream.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).is_ok()
    });
    let (refit, up, asked) = rig(40, |_, _| "yes".into());
    let second = provider(busy.port).replace("[providers.up]", "[providers.busy]");
    refit.write("refit.toml", format!("{}{second}", provider(up.port)));
    let both = "\n  - {name: busy, model: busy/m, prompt: p.prompt}\n  - {name: up, model: up/m, prompt: p.prompt}\n";
    refit.write("s.yaml", format!("name: s\ndataset: d.jsonl\nconcurrency: 4\ntargets:{both}scorers: [exact_match]\n"));
    let begun = Instant::now();
    let report = run(&refit, &["--max-time", "4s"]).expect(2).json();
    assert!(begun.elapsed() < Duration::from_secs(40));
    assert_eq!((&report["status"], all(&asked)), (&json!("out_of_time"), 40), "all cases of the other one were asked");
    assert_eq!(report["targets"][1]["n"], 40);
}

#[test]
fn how_good_is_no_verdict() {
    let (refit, _up, _) = rig(4, |_, before| if before == 0 { "yes and more".into() } else { "yes".into() });
    let with = |scorers: &str| SUITE.replace(" [exact_match]\n", scorers);
    refit.write("s.yaml", with(" [rouge, edit_distance]\n"));
    let graded = run(&refit, &["--repeats", "2"]).expect(0).json();
    let target = &graded["targets"][0];
    assert_eq!((&graded["pass_metrics"], &target["judged"], &target["passed"]), (&json!([]), &json!(0), &json!(0)));
    assert!(target.get("passes").is_none(), "nobody passes: {target}");
    assert_eq!(refit.run(&["eval", "show", "latest", "--cases", "--missed"]).expect(0).stdout, "");
    refit.run(&["eval", "show", "latest", "--out", "r.html", "--out", "r.xml"]).expect(0);
    let read = |name: &str| std::fs::read_to_string(refit.path().join(name)).expect("a report");
    assert!(read("r.html").contains("no scorer says pass or fail") && !read("r.html").contains("did not pass"));
    assert!(read("r.xml").contains("failures=\"0\"") && !read("r.xml").contains("<failure") && read("r.xml").contains("no scorer says"));
    // A threshold makes a verdict of it, beside measures that say none.
    refit.write("s.yaml", with("\n  - rouge\n  - threshold: {scorer: edit_distance, at_least: 0.9}\n"));
    let judged = run(&refit, &[]).expect(0).json();
    assert_eq!((&judged["pass_metrics"], &judged["targets"][0]["judged"]), (&json!(["threshold"]), &json!(4)));
    // A metric without a value of a case says nothing of it.
    refit.write("s.yaml", with("\n  - exact_match\n  - checks\n"));
    let skipped = run(&refit, &[]).expect(0).json();
    assert_eq!((&skipped["targets"][0]["judged"], &skipped["targets"][0]["passed"]), (&json!(4), &json!(4)));
    refit.write("s.yaml", format!("{}gate:\n  - {{must_pass: {{ids: [c1]}}}}\n", with(" [rouge]\n")));
    let refused = run(&refit, &[]).expect(2);
    assert!(refused.stderr.contains("no scorer of the suite says pass or fail; put one into `threshold`"), "{}", refused.stderr);
}

#[test]
fn what_the_provider_calls_a_refusal_is_still_one_when_it_is_scored_again() {
    let up = upstream(|stream: &mut TcpStream, _: &str| {
        let message = json!({"role": "assistant", "content": null, "refusal": "Nope."});
        let body = json!({"id": "c", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}})
        .to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    });
    let refit: Refit = directory(2, up.port);
    refit.write("s.yaml", SUITE.replace("exact_match", "refusal"));
    let mean = |report: Value| report["targets"][0]["metrics"]["refusal"]["mean"].clone();
    assert_eq!(mean(run(&refit, &[]).expect(0).json()), json!(1.0));
    assert!(cases(&refit).iter().all(|case| case["refusal"] == "Nope."));
    assert_eq!(mean(refit.run(&["eval", "score", "latest", "--json"]).expect(0).json()), json!(1.0));
}
