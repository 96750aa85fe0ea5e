//! What a run rests on: the modules that scored it, answers that are not too old, comparisons of like with like; and that no text of
//! anybody reaches a terminal as a command.

use crate::evals_runner::{SUITE, all, rig, run};
use crate::support::Refit;
use serde_json::{Value, json};

/// A module that scores everything alike.
fn module(score: &str) -> String {
    format!(
        r#"(module (memory (export "memory") 1) (data (i32.const 8) "{{\"score\": {score}}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "score") (param i32 i32) (result i64) (i64.or (i64.shl (i64.const 8) (i64.const 32)) (i64.const {}))))"#,
        "{\"score\": }".len() + score.len()
    )
}

/// A suite in a folder of its own.
fn foldered(scorers: &str) -> Refit {
    let refit = Refit::new();
    let line = |i: usize| json!({"id": format!("c{i}"), "input": {"message": "yes"}, "target": "yes"}).to_string() + "\n";
    refit.write("suites/d.jsonl", (0..4).map(line).collect::<String>());
    refit.write("suites/p.prompt", "{{message}}");
    let target = "  - {name: echo, model: mock/echo, prompt: p.prompt}\n";
    refit.write("suites/s.yaml", format!("name: s\ndataset: d.jsonl\ntargets:\n{target}scorers: {scorers}\n"));
    refit
}

#[test]
fn a_module_lies_beside_its_suite_and_is_kept_with_the_run() {
    let refit = foldered("[wasm: m.wat]");
    refit.write("suites/m.wat", module("0.25"));
    let run = |more: &[&str]| refit.run(&[&["eval", "run", "suites/s.yaml", "--allow-commands", "--json"], more].concat()).expect(0).json();
    let mean = |report: &Value| report["targets"][0]["metrics"]["wasm"]["mean"].clone();
    let first = run(&[]);
    assert_eq!(mean(&first), json!(0.25));
    let route = ["route", "create", "r", "--suite", "s", "--require", "wasm>=0.2", "--scorers", "latest", "--json"];
    let pinned = refit.run(&route).expect(0).json()["gate"]["scorers_digest"].clone();
    let release = refit.run(&["release", "create", "--run", "latest", "--target", "echo"]).expect(0).stdout.trim().to_string();
    refit.run(&["release", "promote", &release, "--route", "r"]).expect(0);
    // Another module of the same name is another scorer: what it says proves nothing on the route.
    refit.write("suites/m.wat", module("1.0"));
    refit.write("suites/p.prompt", "{{message}}!");
    assert_eq!(mean(&run(&[])), json!(1.0));
    let other = refit.run(&["release", "create", "--run", "latest", "--target", "echo"]).expect(0).stdout.trim().to_string();
    let refused = refit.run(&["release", "promote", &other, "--route", "r"]).expect(1);
    assert!(refused.stderr.contains("with scorers sha256:"), "{}", refused.stderr);
    let by_file = ["route", "create", "q", "--suite", "s", "--require", "wasm>=0.2", "--scorers", "suites/s.yaml", "--json"];
    assert_ne!(refit.run(&by_file).expect(0).json()["gate"]["scorers_digest"], pinned);
    // The first run is scored again, and compared, with the module that it had; nothing is read from the folder.
    std::fs::remove_file(refit.path().join("suites/m.wat")).expect("removed");
    let id = first["run"].as_str().expect("an id");
    let again = refit.run(&["eval", "score", id, "--allow-commands", "--json"]).expect(0).json();
    assert_eq!(mean(&again), json!(0.25));
    let compared = refit.run(&["eval", "compare", id, "latest", "--json"]).expect(0).json();
    assert_eq!(compared["warnings"], json!([]), "the same samples and scorers");
}

#[test]
fn programs_outside_of_the_suite_pin_nothing() {
    let refit = foldered("[{command: {run: [echo, '1']}}]");
    refit.run(&["eval", "run", "suites/s.yaml", "--allow-commands"]).expect(0);
    for scorers in ["suites/s.yaml", "latest"] {
        let args = ["route", "create", "r", "--suite", "s", "--require", "command>=0.5", "--scorers", scorers];
        let refused = refit.run(&args).expect(2);
        assert!(refused.stderr.contains("cannot be pinned") && refused.stderr.contains("`wasm`"), "{}", refused.stderr);
    }
    let open = refit.run(&["route", "create", "r", "--suite", "s", "--require", "command>=0.5", "--json"]).expect(0);
    assert!(open.stderr.contains("takes runs with any scorers") && open.json()["gate"]["scorers_digest"].is_null());
}

#[test]
fn kept_answers_grow_old() {
    let (refit, _up, asked) = rig(3, |_, _| "yes".into());
    refit.write("s.yaml", format!("{SUITE}cache: true\n"));
    run(&refit, &[]).expect(0);
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let aged = |days: i64| database.execute("UPDATE eval_replies SET created_at = created_at - ?", [days * 86_400_000]).expect("aged");
    let kept = || database.query_row("SELECT COUNT(*) FROM eval_replies", [], |row| row.get::<_, i64>(0)).expect("a count");
    let toml = std::fs::read_to_string(refit.path().join("refit.toml")).expect("a file");
    assert_eq!(aged(80), 3);
    run(&refit, &[]).expect(0);
    assert_eq!((all(&asked), kept()), (3, 3), "90 days are not over");
    refit.write("refit.toml", format!("{toml}[evals]\nreplies_retention_days = 30\n"));
    run(&refit, &["--no-cache"]).expect(0);
    assert_eq!((all(&asked), kept()), (6, 3));
    run(&refit, &[]).expect(0);
    assert_eq!(all(&asked), 9, "what is older than 30 days is asked anew");
    aged(40);
    let server = refit.serve(&[]);
    crate::rig::wait_for("old answers to go", || kept() == 0);
    drop(server);
}

#[test]
fn a_comparison_says_what_is_not_alike() {
    let (refit, _up, _) = rig(20, |message, _| if message.ends_with('7') { "no".into() } else { "yes".into() });
    let id = |done: crate::support::Done| done.expect(0).json()["run"].as_str().expect("an id").to_string();
    let first = id(run(&refit, &[]));
    refit.write("s.yaml", SUITE.replace("exact_match", "includes: {value: yes, name: exact_match}"));
    let more: String = (5..25)
        .map(|i| json!({"id": format!("c{i}"), "input": {"message": format!("m{i}")}, "target": "yes", "metadata": {"text": format!("t{}", i / 5)}}))
        .map(|line| format!("{line}\n"))
        .collect();
    refit.write("d.jsonl", more);
    refit.write("s.yaml", std::fs::read_to_string(refit.path().join("s.yaml")).expect("a file").replace("yes, name", "\"yes\", name"));
    let second = id(run(&refit, &[]));
    let done =
        refit.run(&["eval", "compare", &first, &second, "--json", "--out", "c.md", "--out", "c.html", "--out", "c.xml"]).expect(0).json();
    let warnings: Vec<_> = done["warnings"].as_array().expect("warnings").iter().map(|one| one.as_str().expect("a text")).collect();
    assert!(warnings[0].contains("did not measure the same data") && warnings[0].contains("15 samples"), "{warnings:?}");
    assert!(
        warnings[1].contains("did not have the same scorers") && warnings[2].contains("5 samples of the first run and 5"),
        "{warnings:?}"
    );
    let table = refit.run(&["eval", "compare", &first, &second]).expect(0).stdout;
    assert!(table.starts_with("warning: the runs did not measure the same data"), "{table}");
    for (file, word) in
        [("c.md", "⚠️ the runs did not"), ("c.html", "warning: the runs did not"), ("c.xml", "<property name=\"warning 1\"")]
    {
        assert!(std::fs::read_to_string(refit.path().join(file)).expect(file).contains(word), "{file}");
    }
    // Groups of either side count.
    refit.write("s.yaml", format!("{SUITE}cluster: metadata.text\n"));
    let grouped = id(run(&refit, &[]));
    let test = |a: &str, b: &str| refit.run(&["eval", "compare", a, b, "--json"]).expect(0).json()["paired"][0]["test"].clone();
    assert_eq!((test(&grouped, &second), test(&second, &grouped)), (json!("t"), json!("t")));
}

#[test]
fn samples_that_a_difference_takes_are_told_from_a_run() {
    let (refit, _up, _) = rig(40, |message, _| if message.ends_with(['1', '2']) { "no".into() } else { "yes".into() });
    let none = refit.run(&["eval", "power", "s.yaml", "--difference", "0.1"]).expect(2);
    assert!(none.stderr.contains("no run of suite \"s\" ended yet") && none.stderr.contains("--limit"), "{}", none.stderr);
    run(&refit, &[]).expect(0);
    // 8 of 40 are wrong: s² = 0.16·40/39, and with ρ = ½ that is the variance of the differences, too.
    let told = refit.run(&["eval", "power", "s.yaml", "--difference", "0.1", "--json"]).expect(0).json();
    let expected = (0.16f64 * 40.0 / 39.0 * 7.848_880 / 0.01).ceil() as u64;
    assert_eq!((&told["comparisons"][0]["paired"], &told["comparisons"][0]["b"]), (&json!(expected), &Value::Null));
    let surer =
        refit.run(&["eval", "power", "latest", "--difference", "0.1", "--power", "0.95", "--alpha", "0.01", "--json"]).expect(0).json();
    assert!(surer["comparisons"][0]["paired"].as_u64() > Some(2 * expected));
    let shown = refit.run(&["eval", "power", "latest/up", "--difference", "0.1"]).expect(0).stdout;
    assert!(shown.contains(&format!("takes {expected} samples that both are asked")) && shown.contains("(assumed)"), "{shown}");
    refit.run(&["eval", "power", "latest", "--difference", "0"]).expect(2);
    let unknown = refit.run(&["eval", "power", "latest", "--difference", "0.1", "--metric", "nothing"]).expect(2);
    assert!(unknown.stderr.contains("has no metric \"nothing\" (metrics: exact_match)"), "{}", unknown.stderr);
}

#[test]
fn names_of_samples_command_no_terminal() {
    let refit = Refit::new();
    let evil = "c\u{1b}[2J\u{9b}31m\u{202e}";
    // Answers from elsewhere bring the names of their samples along.
    refit.write("o.jsonl", format!("{}\n", json!({"id": evil, "old": "yes", "new": "no", "truth": "yes"})));
    let args = ["eval", "score", "--outputs", "o.jsonl", "--output", "old=old", "--output", "new=new", "--target", "truth", "--id", "id"];
    let table = refit.run(&[&args[..], &["--scorer", "exact_match"]].concat()).expect(0).stdout;
    let obeyed = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    assert!(table.contains("c\\u{1b}[2J\\u{9b}31m\\u{202e}: 1 -> 0") && !obeyed(&table), "{table:?}");
    for format in ["table", "json", "jsonl", "html", "junit", "markdown"] {
        let shown = refit.run(&["eval", "show", "latest", "--format", format]).expect(0).stdout;
        assert!(!obeyed(&shown), "{format}: {shown:?}");
        let compared = refit.run(&["eval", "compare", "latest/old", "latest/new", "--format", format]).expect(0).stdout;
        assert!(!obeyed(&compared) && compared.contains("31m"), "{format}: {compared:?}");
    }
    let listed = refit.run(&["eval", "show", "latest", "--cases", "--json"]).expect(0);
    assert!(!obeyed(&listed.stdout) && listed.json()[0]["sample"] == evil, "{}", listed.stdout);
}
