//! How runs are executed: repeats, answers that are given again, bounds of money and time, providers that have too much to do, kills. An
//! upstream that counts says what was really asked.

use crate::rig::{Upstream, provider, says, upstream};
use crate::support::{Done, Refit};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const SUITE: &str = "name: s\ndataset: d.jsonl\nconcurrency: 4\ntargets:\n  - {name: up, model: up/m, prompt: p.prompt, parameters: {max_tokens: 8}}\n\
    scorers: [exact_match]\n";
const PRICES: &str = "[[prices.rows]]\nprovider = \"up\"\nmodel = \"m\"\ninput = 1000\noutput = 1000\n";

/// How often each message was asked.
pub type Asked = Arc<Mutex<HashMap<String, usize>>>;

/// So many samples, and an upstream that says what `answer` makes of a message and how often it was asked before.
pub fn rig(samples: usize, answer: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> (Refit, Upstream, Asked) {
    let asked = Asked::default();
    let counts = asked.clone();
    let up = upstream(move |stream: &mut TcpStream, body: &str| {
        let message = message(body);
        let before = {
            let mut counts = counts.lock().expect("whole");
            let count = counts.entry(message.clone()).or_default();
            *count += 1;
            *count - 1
        };
        says(stream, &answer(&message, before))
    });
    (directory(samples, up.port), up, asked)
}

pub fn directory(samples: usize, port: u16) -> Refit {
    let refit = Refit::new();
    let line = |i: usize| {
        let sample = json!({"id": format!("c{i}"), "input": {"message": format!("m{i}")}, "target": "yes", "metadata": {"text": format!("t{}", i / 5)}});
        format!("{sample}\n")
    };
    refit.write("d.jsonl", (0..samples).map(line).collect::<String>());
    refit.write("p.prompt", "{{message}}");
    refit.write("s.yaml", SUITE);
    refit.write("refit.toml", provider(port) + PRICES);
    refit
}

fn message(body: &str) -> String {
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["messages"][0]["content"].as_str().expect("a message").to_string()
}

pub fn run(refit: &Refit, more: &[&str]) -> Done {
    let mut args = vec!["eval", "run", "s.yaml", "--json"];
    args.extend(more);
    refit.run(&args)
}

pub fn cases(refit: &Refit) -> Vec<Value> {
    let done = refit.run(&["eval", "show", "latest", "--cases", "--json"]).expect(0);
    done.json().as_array().expect("cases").clone()
}

pub fn all(asked: &Asked) -> usize {
    asked.lock().expect("whole").values().sum()
}

#[test]
fn every_repeat_is_a_call_and_samples_are_averaged_first() {
    // Even messages are answered right always, odd ones the first time only.
    let (refit, _up, asked) = rig(4, |message, before| {
        let is_even = message.ends_with(['0', '2']);
        if is_even || before == 0 { "yes".into() } else { "no".into() }
    });
    let report = run(&refit, &["--repeats", "3"]).expect(0).json();
    assert_eq!((all(&asked), &report["repeats"], &report["samples"]), (12, &json!(3), &json!(4)));
    let target = &report["targets"][0];
    let mean = &target["metrics"]["exact_match"];
    // Per sample 1, 1/3, 1, 1/3: mean 2/3, s² = 4/27, standard error √(1/27).
    assert_eq!((&target["n"], &mean["n"], &target["passed"]), (&json!(12), &json!(4), &json!(8)));
    assert!((mean["mean"].as_f64().expect("a mean") - 2.0 / 3.0).abs() < 1e-12);
    assert!((mean["standard_error"].as_f64().expect("an error") - (1.0f64 / 27.0).sqrt()).abs() < 1e-12);
    // pass@2 of one right in three: 1 − C(2,2)/C(3,2) = 2/3; pass^2: 0. Both are 1 where all three are right.
    let two = &target["passes"][1];
    assert!((two["any"].as_f64().expect("any") - 5.0 / 6.0).abs() < 1e-12 && (two["all"].as_f64().expect("all") - 0.5).abs() < 1e-12);
    let order: Vec<_> = cases(&refit).iter().map(|case| (case["position"].as_u64(), case["repeat"].as_u64())).collect();
    let expected: Vec<_> = (0..4).flat_map(|at| (0..3).map(move |repeat| (Some(at), Some(repeat)))).collect();
    assert_eq!(order, expected);
    let table = refit.run(&["eval", "show", "latest"]).expect(0).stdout;
    assert!(table.contains("4 samples × 3 repeats") && table.contains("pass@3 / pass^3"), "{table}");
}

#[test]
fn answers_are_given_again_only_where_nothing_changed() {
    let (refit, _up, asked) = rig(8, |_, _| "yes".into());
    refit.write("s.yaml", format!("{SUITE}cache: true\n"));
    let totals = |done: Done| done.expect(0).json()["targets"][0].clone();
    let first = totals(run(&refit, &[]));
    assert_eq!((all(&asked), &first["cached"], &first["tokens"]), (8, &json!(0), &json!(32)));
    let second = totals(run(&refit, &[]));
    assert_eq!((all(&asked), &second["cached"], &second["tokens"], &second["cost_micro_usd"]), (8, &json!(8), &json!(0), &json!(0)));
    assert_eq!(second["latency_ms"], json!({"p50": 0.0, "p95": 0.0}), "what was not called has no latency");
    assert_eq!(second["metrics"], first["metrics"]);
    assert!(cases(&refit).iter().all(|case| case["cached"] == true && case["output"] == "yes"));
    // The second repeat was never asked.
    let repeated = totals(run(&refit, &["--repeats", "2"]));
    assert_eq!((all(&asked), &repeated["cached"]), (16, &json!(8)));
    assert_eq!((&totals(run(&refit, &["--no-cache"]))["cached"], all(&asked)), (&json!(0), 24));
    // Another parameter, another prompt, another place: other answers.
    refit.write("s.yaml", format!("{}cache: true\n", SUITE.replace("max_tokens: 8", "max_tokens: 9")));
    assert_eq!((&totals(run(&refit, &[]))["cached"], all(&asked)), (&json!(0), 32));
    refit.write("s.yaml", format!("{SUITE}cache: true\n"));
    refit.write("p.prompt", "{{message}}!");
    assert_eq!((&totals(run(&refit, &[]))["cached"], all(&asked)), (&json!(0), 40));
    refit.write("p.prompt", "{{message}}");
    let (_, elsewhere, counted) = rig(1, |_, _| "no".into());
    refit.write("refit.toml", provider(elsewhere.port) + PRICES);
    assert_eq!((&totals(run(&refit, &[]))["cached"], all(&counted)), (&json!(0), 8));
}

#[test]
fn money_is_never_overspent_and_more_of_it_goes_on() {
    let (refit, _up, asked) = rig(20, |_, _| "yes".into());
    // A call costs 3 + 1 tokens at $1,000 a million: $0.004. At most it costs a frame and two or three bytes read and 8 tokens written:
    // $0.018 or $0.019. After eight calls $0.0175 is left, which is too little for any of them.
    let done = run(&refit, &["--max-cost", "0.0495"]).expect(2);
    assert!(done.stderr.contains("max_cost") && done.stderr.contains("--max-cost DOLLARS"), "{}", done.stderr);
    let report = done.json();
    assert_eq!(report["status"], "out_of_money");
    let spent = report["targets"][0]["cost_micro_usd"].as_i64().expect("a cost");
    let first = all(&asked);
    assert!((1..20).contains(&first) && spent == 4_000 * first as i64 && spent <= 49_500, "{first} calls for {spent}");
    // The money is the run's, whoever executes it: as much again is spent already.
    assert_eq!(refit.run(&["eval", "resume", "latest", "--json"]).expect(2).json()["status"], "out_of_money");
    assert_eq!(all(&asked), first);
    let whole = refit.run(&["eval", "resume", "latest", "--max-cost", "10", "--json"]).expect(0).json();
    assert_eq!((&whole["status"], &whole["targets"][0]["cost_micro_usd"], all(&asked)), (&json!("finished"), &json!(80_000), 20));
}

#[test]
fn a_bound_of_money_over_an_unknown_price_is_refused_before_anything_is_asked() {
    let (refit, up, asked) = rig(3, |_, _| "yes".into());
    refit.write("refit.toml", provider(up.port));
    refit.write("s.yaml", format!("{SUITE}max_cost: 1.00\n"));
    let done = run(&refit, &[]).expect(2);
    assert!(
        done.stderr.contains("the price of up/m (target \"up\") is not known") && done.stderr.contains("[[prices.rows]]"),
        "{}",
        done.stderr
    );
    assert_eq!((all(&asked), refit.run(&["eval", "list", "--json"]).expect(0).json()), (0, json!([])));
    for (line, problem) in
        [("max_cost: much", "max_cost: \"much\" is no amount"), ("max_time: 5", "max_time"), ("repeats: 0", "repeats must be 1 to 1000")]
    {
        refit.write("s.yaml", format!("{SUITE}{line}\n"));
        let done = run(&refit, &[]).expect(2);
        assert!(done.stderr.contains("s.yaml, line 7") && done.stderr.contains(problem), "{line}: {}", done.stderr);
    }
}

#[test]
fn time_that_is_over_leaves_a_run_that_goes_on() {
    let (refit, _up, asked) = rig(40, |_, _| {
        std::thread::sleep(Duration::from_millis(200));
        "yes".into()
    });
    let done = run(&refit, &["--max-time", "1s", "--concurrency", "2"]).expect(2);
    assert!(done.stderr.contains("its time was over") && done.json()["status"] == "out_of_time", "{}", done.stderr);
    let stored: Vec<_> = cases(&refit).iter().map(|case| case["sample"].clone()).collect();
    assert!(!stored.is_empty() && stored.len() < 40, "{}", stored.len());
    let whole = refit.run(&["eval", "resume", "latest", "--max-time", "10m", "--json"]).expect(0).json();
    assert_eq!((&whole["status"], &whole["targets"][0]["n"]), (&json!("finished"), &json!(40)));
    let asked = asked.lock().expect("whole");
    for sample in stored {
        let message = sample.as_str().expect("a name").replace('c', "m");
        assert_eq!(asked[&message], 1, "{message} had its answer");
    }
}

#[test]
fn a_provider_that_has_too_much_to_do_gets_less_and_every_case_its_answer() {
    let (inside, most, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, seen, counted) = (inside.clone(), most.clone(), refused.clone());
    let up = upstream(move |stream: &mut TcpStream, _: &str| {
        let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
        let full = at_once > 2;
        if full {
            counted.fetch_add(1, Ordering::SeqCst);
        } else {
            seen.fetch_max(at_once, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(15));
        }
        now.fetch_sub(1, Ordering::SeqCst);
        if full {
            let body = "{\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\",\"code\":\"rate_limit_exceeded\"}}";
            let head =
                format!("HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            return stream.write_all(format!("{head}{body}").as_bytes()).is_ok();
        }
        says(stream, "yes")
    });
    let refit = directory(60, up.port);
    let report = run(&refit, &["--concurrency", "32"]).expect(0).json();
    assert_eq!(
        (&report["status"], &report["targets"][0]["n"], &report["targets"][0]["errors"]),
        (&json!("finished"), &json!(60), &json!(0))
    );
    let refused = refused.load(Ordering::SeqCst);
    assert!(refused > 0, "it was never too much");
    // Without slowing down, sixty cases at a concurrency of 32 are refused hundreds of times before each has its turn.
    assert!(refused < 150, "{refused} refusals");
    assert_eq!(most.load(Ordering::SeqCst), 2, "what it can do is used");
}

#[test]
fn after_a_kill_what_was_stored_is_never_asked_again() {
    let (refit, _up, asked) = rig(60, |_, _| {
        std::thread::sleep(Duration::from_millis(30));
        "yes".into()
    });
    let mut child = refit.command(&["eval", "run", "s.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let give_up = Instant::now() + Duration::from_secs(60);
    while refit.run(&["eval", "show", "latest", "--cases"]).stdout.lines().count() < 10 {
        assert!(Instant::now() < give_up, "no cases were stored");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let stored: Vec<String> = cases(&refit).iter().map(|case| case["sample"].as_str().expect("a name").replace('c', "m")).collect();
    assert!(stored.len() < 60, "it was killed before its end");
    refit.run(&["eval", "resume", "latest"]).expect(0);
    let asked = asked.lock().expect("whole");
    assert!(stored.iter().all(|message| asked[message] == 1), "{asked:?}");
    let twice = asked.values().filter(|count| **count == 2).count();
    assert!(asked.len() == 60 && asked.values().all(|count| *count <= 2), "{asked:?}");
    // Those under way, and those answered and not yet stored.
    assert!(twice <= 8, "{twice} were asked twice");
}

#[test]
fn samples_in_groups_make_the_error_larger() {
    // The answers of a text are all right or all wrong.
    let (refit, _up, _) = rig(40, |message, _| {
        let text: usize = message[1..].parse::<usize>().expect("a number") / 5;
        if text.is_multiple_of(2) { "yes".into() } else { "no".into() }
    });
    let plain = run(&refit, &[]).expect(0).json();
    refit.write("s.yaml", format!("{SUITE}cluster: metadata.text\n"));
    let grouped = run(&refit, &[]).expect(0).json();
    let error = |report: &Value| report["targets"][0]["metrics"]["exact_match"]["standard_error"].as_f64().expect("a number");
    // Eight texts of five equal answers: about √5 times as unsure.
    assert!(error(&grouped) > 2.0 * error(&plain), "{} {}", error(&grouped), error(&plain));
    refit.write("s.yaml", format!("{SUITE}cluster: metadata.txt\n"));
    let refused = run(&refit, &[]).expect(2);
    assert!(refused.stderr.contains("sample c0 has no field \"metadata.txt\""), "{}", refused.stderr);
}

#[test]
fn a_matrix_makes_its_targets_and_names_them_by_what_varies() {
    let (refit, _up, asked) = rig(2, |_, _| "yes".into());
    refit.write("loud.prompt", "{{message}}!");
    let suite = "name: s\ndataset: d.jsonl\nmatrix:\n  prompts: [p.prompt, loud.prompt]\n  models: [up/m, mock/echo]\n  parameters:\n    \
        - {temperature: 0}\n    - {temperature: 0.5}\n  exclude:\n    - {model: mock/echo, prompt: loud.prompt}\nscorers: [exact_match]\n";
    refit.write("s.yaml", suite);
    let report = run(&refit, &[]).expect(0).json();
    let names: Vec<_> =
        report["targets"].as_array().expect("targets").iter().map(|target| target["name"].as_str().expect("a name")).collect();
    let expected = [
        "p-m-temperature-0",
        "p-m-temperature-0.5",
        "p-echo-temperature-0",
        "p-echo-temperature-0.5",
        "loud-m-temperature-0",
        "loud-m-temperature-0.5",
    ];
    assert_eq!((names, all(&asked)), (expected.to_vec(), 8));
    // Fifteen pairs of targets: no p-value is told as if it were the only one.
    let paired = report["paired"].as_array().expect("pairs");
    assert!(paired.len() == 15 && paired.iter().all(|one| one["p_holm"].as_f64() >= one["p"].as_f64()));
    let one = run(&refit, &["--target", "p-m-temperature-0"]).expect(0).json();
    assert_eq!(one["targets"].as_array().map(Vec::len), Some(1));
    refit.write("s.yaml", suite.replace("model: mock/echo,", "model: mock/ecko,"));
    let refused = run(&refit, &[]).expect(2);
    assert!(refused.stderr.contains("s.yaml, line 10") && refused.stderr.contains("did you mean \"mock/echo\"?"), "{}", refused.stderr);
    let models: Vec<_> = (0..101).map(|i| format!("up/m{i}")).collect();
    refit.write("s.yaml", format!("name: s\ndataset: d.jsonl\nmatrix: {{models: [{}]}}\nscorers: [exact_match]\n", models.join(", ")));
    let refused = run(&refit, &[]).expect(2);
    assert!(refused.stderr.contains("make 101 targets, more than 100"), "{}", refused.stderr);
}
