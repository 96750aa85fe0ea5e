//! Runs that end before their time and go on: what was paid for is kept and counted, nobody executes a run twice at the same time, and what
//! goes on ends as it would have ended.

use crate::evals_runner::{Asked, SUITE, all, cases, directory, rig, run};
use crate::rig::{Upstream, says, upstream, wait_for};
use crate::support::Refit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// So many samples, and an upstream that takes its time for each.
fn slow(samples: usize, time: Duration) -> (Refit, Upstream, Asked) {
    rig(samples, move |_, _| {
        std::thread::sleep(time);
        "yes".into()
    })
}

fn begin(refit: &Refit, more: &[&str]) -> Child {
    let mut command = refit.command(&[&["eval", "run", "s.yaml"], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts")
}

fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::INT).expect("the process is there");
}

fn cost(report: &Value) -> i64 {
    report["targets"][0]["cost_micro_usd"].as_i64().expect("a cost")
}

#[test]
fn two_processes_never_execute_one_run() {
    let (refit, _up, asked) = slow(12, Duration::from_millis(300));
    let mut child = begin(&refit, &[]);
    wait_for("the first case", || all(&asked) > 0);
    let second = refit.run(&["eval", "resume", "latest"]).expect(2);
    assert!(second.stderr.contains("executes run run_") && second.stderr.contains(&format!("process {}", child.id())), "{}", second.stderr);
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(asked.lock().expect("whole").values().all(|count| *count == 1), "each case was asked once");
    // A lock ends with its process, however that ends.
    let mut child = begin(&refit, &[]);
    wait_for("another case", || all(&asked) > 12);
    child.kill().expect("killed");
    child.wait().expect("ended");
    refit.run(&["eval", "resume", "latest"]).expect(0);
}

#[test]
fn what_only_scorers_lack_is_scored_and_not_asked_again() {
    let (refit, _up, asked) = rig(5, |_, _| "yes".into());
    let script = "import os; print(1 if os.path.exists('ready') else 'not ready')";
    let scorers = format!("\n  - exact_match\n  - command: {{run: [python3, -c, \"{script}\"]}}\nmax_cost: 1.00\n");
    refit.write("s.yaml", SUITE.replace(" [exact_match]\n", &scorers));
    let first = run(&refit, &["--allow-commands"]).expect(2).json();
    assert_eq!((&first["targets"][0]["errors"], cost(&first), all(&asked)), (&json!(5), 20_000, 5));
    refit.write("ready", "");
    let second = refit.run(&["eval", "resume", "latest", "--allow-commands", "--json"]).expect(0).json();
    let target = &second["targets"][0];
    assert_eq!((&second["status"], &target["n"], &target["metrics"]["command"]["mean"]), (&json!("finished"), &json!(5), &json!(1.0)));
    assert_eq!((all(&asked), cost(&second)), (5, 20_000), "its answers are paid for once");
}

#[test]
fn an_interrupted_run_keeps_what_is_under_way() {
    let (refit, _up, asked) = slow(40, Duration::from_millis(700));
    let mut child = begin(&refit, &["--max-cost", "1.00"]);
    wait_for("four cases under way", || all(&asked) >= 4);
    interrupt(&child);
    assert_eq!(child.wait().expect("ends").code(), Some(2));
    let before = all(&asked);
    assert_eq!(cases(&refit).len(), before, "every call that was made is stored");
    let whole = refit.run(&["eval", "resume", "latest", "--json"]).expect(0).json();
    assert_eq!((&whole["status"], cost(&whole), all(&asked)), (&json!("finished"), 160_000, 40));
}

#[test]
fn calls_that_are_given_up_cost_what_was_set_aside_for_them() {
    let ended = Arc::new(Mutex::new(false));
    let (is_over, asked) = (ended.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let up = upstream(move |stream: &mut TcpStream, _: &str| {
        count.fetch_add(1, Ordering::SeqCst);
        // Nobody waits for so long.
        for _ in 0..600 {
            if *is_over.lock().expect("whole") {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        says(stream, "yes")
    });
    let refit = directory(4, up.port);
    let mut child = begin(&refit, &["--max-cost", "1.00"]);
    wait_for("four cases under way", || asked.load(Ordering::SeqCst) == 4);
    interrupt(&child);
    // The second one counts once the first was heard.
    wait_for("the end", || {
        std::thread::sleep(Duration::from_millis(200));
        if matches!(child.try_wait(), Ok(None)) {
            interrupt(&child);
        }
        matches!(child.try_wait(), Ok(Some(_)))
    });
    *ended.lock().expect("whole") = true;
    let given_up = cases(&refit);
    assert_eq!(given_up.len(), 4);
    let lost: i64 = given_up.iter().map(|case| case["cost_micro_usd"].as_i64().expect("a cost")).sum();
    assert!(lost > 4 * 4_000 && given_up.iter().all(|case| case["error"].as_str().is_some_and(|why| why.starts_with("cancelled"))));
    let whole = refit.run(&["eval", "resume", "latest", "--json"]).expect(0).json();
    assert_eq!(cost(&whole), lost + 16_000);
}

#[test]
fn a_run_that_goes_on_is_judged_as_it_would_have_been() {
    let (refit, _up, _asked) = rig(10, |_, _| "yes".into());
    let suite = SUITE.replace("scorers:", "  - {name: echo, model: mock/echo, prompt: p.prompt}\nscorers:");
    refit.write("s.yaml", format!("{suite}gate:\n  - {{target: echo, metric: exact_match, at_least: 0.5}}\n"));
    run(&refit, &["--target", "up"]).expect(0);
    run(&refit, &["--target", "up", "--max-cost", "0.03"]).expect(2);
    refit.run(&["eval", "resume", "latest", "--max-cost", "1.00"]).expect(0);
}

#[test]
fn with_a_gate_only_the_gate_fails_a_build() {
    let (refit, _up, _asked) = rig(4, |message, _| if message == "m0" { "no".into() } else { "yes".into() });
    let written = |gate: &str, code: i32| {
        refit.write("s.yaml", format!("{SUITE}{gate}"));
        run(&refit, &["--out", "junit.xml"]).expect(code);
        std::fs::read_to_string(refit.path().join("junit.xml")).expect("it was written")
    };
    let gate = |least: &str| format!("gate:\n  - {{target: up, metric: exact_match, at_least: {least}}}\n");
    let passed = written(&gate("0.1"), 0);
    assert!(!passed.contains("<failure") && passed.contains("<system-out>missed: ") && !passed.contains("failures=\"1\""), "{passed}");
    let missed = written(&gate("0.9"), 1);
    assert_eq!((missed.matches("<failure").count(), missed.matches("failures=\"1\"").count()), (1, 1), "{missed}");
    let open = written("", 0);
    assert_eq!(open.matches("<failure").count(), 1, "{open}");
}

#[test]
fn a_call_that_nobody_waited_for_costs_what_was_set_aside() {
    let first = Arc::new(AtomicUsize::new(0));
    let count = first.clone();
    let up = upstream(move |stream: &mut TcpStream, _: &str| {
        // Five times as long as anybody waits: the provider works, and is paid.
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_secs(5));
        }
        says(stream, "yes")
    });
    let refit = directory(1, up.port);
    let config = std::fs::read_to_string(refit.path().join("refit.toml")).expect("a configuration");
    let slow = config.replacen("[providers.up]\n", "[providers.up]\nfirst_byte_timeout_s = 1\n", 1);
    refit.write("refit.toml", format!("{slow}[resilience]\nattempts = 1\n"));
    let failed = run(&refit, &["--max-cost", "1.00"]).expect(2).json();
    let lost = cost(&failed);
    assert!(failed["targets"][0]["errors"] == 1 && lost > 4_000, "{failed}");
    let whole = refit.run(&["eval", "resume", "latest", "--json"]).expect(0).json();
    assert_eq!(cost(&whole), lost + 4_000);
}
