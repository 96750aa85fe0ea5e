//! What a run leaves for people and machines: what changed, comparisons, files in every format, and gates with demands.

use crate::support::Refit;
use serde_json::{Value, json};

const SUITE: &str = "\
name: s
dataset: d.jsonl
targets:
  - {name: echo, model: mock/echo, prompt: p.prompt}
  - {name: fixed, model: mock/fixed, prompt: p.prompt, parameters: {mock: {reply: text 1}}}
scorers:
  - exact_match
  - includes: {value: text, name: has_text}
";
const NASTY: &str = "</pre><script>alert(1)</script> & \"quotes\" | pipes `ticks` @somebody \u{1b}[31m";

/// Twenty samples, of which the echo answers eighteen right; one of the wrong ones is nasty.
fn twenty() -> Refit {
    let refit = Refit::new();
    samples(&refit, 18);
    refit.write("p.prompt", "{{message}}");
    refit.write("s.yaml", SUITE);
    refit
}

fn samples(refit: &Refit, right: usize) {
    let line = |i: usize| {
        let message = if i == 19 { NASTY.to_string() } else { format!("text {i}") };
        let target = if i < right { format!("text {i}") } else { "other".into() };
        format!(
            "{}\n",
            json!({"id": format!("c{i}"), "input": {"message": message}, "target": target, "metadata": {"tags": if i < 3 { json!(["safety"]) } else { json!([]) }}})
        )
    };
    refit.write("d.jsonl", (0..20).map(line).collect::<String>());
}

fn read(refit: &Refit, file: &str) -> String {
    std::fs::read_to_string(refit.path().join(file)).expect("a file")
}

#[test]
fn a_run_says_first_what_changed_since_the_one_before() {
    let refit = twenty();
    let first = refit.run(&["eval", "run", "s.yaml"]).expect(0).stdout;
    assert!(first.contains("fixed against echo, exact_match: 17 worse, 0 better") && first.contains("  worse  c0: 1 -> 0"), "{first}");
    samples(&refit, 16);
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    let changes = &report["changes"][0];
    assert_eq!((&changes["target"], &changes["worse"], &changes["better"]), (&json!("echo"), &json!(2), &json!(0)));
    assert!(changes["against"].as_str().is_some_and(|run| run.starts_with("run_")));
    assert_eq!(changes["samples"][0], json!({"sample": "c16", "a": 1.0, "b": 0.0}));
    let table = refit.run(&["eval", "show", "latest"]).expect(0).stdout;
    let (changed, numbers) = (table.find("c16: 1 -> 0").expect("changed"), table.find("0.800 ±").expect("numbers"));
    assert!(changed < numbers && table.contains("95 % interval"), "{table}");
}

#[test]
fn files_are_written_in_the_format_of_their_ending() {
    let refit = twenty();
    let out = ["--out", "r.html", "--out", "r.xml", "--out", "r.jsonl", "--out", "r.md", "--out", "r.json"];
    let mut args = vec!["eval", "run", "s.yaml", "--json"];
    args.extend(out);
    let report = refit.run(&args).expect(0).json();
    let html = read(&refit, "r.html");
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n") && html.contains("default-src 'none'"));
    assert!(!html.contains("<script") && html.contains("&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;"));
    assert!(!html.contains("http://") && !html.contains("https://") && html.contains("prefers-color-scheme: dark"));
    let xml = read(&refit, "r.xml");
    assert!(xml.contains("<testsuite name=\"s/echo\" tests=\"20\" failures=\"2\" errors=\"0\">"), "{xml}");
    assert!(xml.contains("&lt;script&gt;") && !xml.contains('\u{1b}') && xml.matches("<testcase ").count() == 40, "{xml}");
    let lines: Vec<Value> = read(&refit, "r.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((lines.len(), &lines[0]["type"], &lines[0]["run"], &lines[1]["type"]), (41, &json!("run"), &report["run"], &json!("case")));
    assert_eq!(serde_json::from_str::<Value>(&read(&refit, "r.json")).expect("JSON"), report);
    let markdown = read(&refit, "r.md");
    assert!(markdown.starts_with("### s: no gate\n") && !markdown.contains("<script") && !markdown.contains(" @somebody"), "{markdown}");
    assert!(markdown.lines().filter(|line| line.starts_with("| ")).all(|line| line.ends_with(" |")), "{markdown}");
    // Later, and to stdout, it is the same.
    assert_eq!(refit.run(&["eval", "show", "latest", "--format", "markdown"]).expect(0).stdout, markdown);
    let wrong = refit.run(&["eval", "run", "s.yaml", "--out", "r.pdf"]).expect(2);
    assert!(wrong.stderr.contains("the ending of r.pdf means no format") && wrong.stderr.contains(".html"), "{}", wrong.stderr);
    let runs = refit.run(&["eval", "list", "--json"]).expect(0).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "nothing was asked for a report that cannot be written");
}

#[test]
fn two_runs_are_compared_target_by_target() {
    let refit = twenty();
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    samples(&refit, 14);
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let runs = refit.run(&["eval", "list", "--json"]).expect(0).json();
    let (new, old) = (runs[0]["id"].as_str().expect("an id"), runs[1]["id"].as_str().expect("an id"));
    let table = refit.run(&["eval", "compare", old, new]).expect(0).stdout;
    let (warning, rest) = table.split_once('\n').expect("lines");
    assert!(warning.contains("did not measure the same data") && warning.contains("20 samples with the same id"), "{table}");
    assert!(rest.starts_with("exact_match: 4 worse, 0 better\n  worse  c14: 1 -> 0\n"), "{table}");
    assert_eq!(table.matches("exact_match: ").count(), 2, "echo and fixed: {table}");
    assert!(table.contains("so many pairs show a difference of"), "{table}");
    let one = refit.run(&["eval", "compare", &format!("{old}/echo"), &format!("{new}/echo"), "--out", "c.xml", "--json"]).expect(0).json();
    assert_eq!(
        (&one["worse"], &one["changed"][0]["sample"], &one["paired"][0]["metric"]),
        (&json!(4), &json!("c14"), &json!("exact_match"))
    );
    // Four losses of four: p = 2/2⁴; with two metrics Holm doubles the smaller one.
    let p = |name: &str| one["paired"][0][name].as_f64().expect("a number");
    assert!((p("p") - 0.125).abs() < 1e-9 && (p("p_holm") - 0.25).abs() < 1e-9);
    assert!(read(&refit, "c.xml").contains("failures=\"4\""));
    let several = refit.run(&["eval", "compare", old, new, "--format", "html"]).expect(2);
    assert!(several.stderr.contains("name the targets"), "{}", several.stderr);
}

#[test]
fn a_gate_demands_cases_that_must_pass() {
    let refit = twenty();
    let gate = |entries: &str| refit.write("s.yaml", format!("{SUITE}gate:\n{entries}"));
    gate("  - {target: echo, must_pass: {ids: [c7], tags: [safety]}}\n");
    let report = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    assert_eq!(report["gate"]["demands"][0]["reason"], "must_pass c7, tag safety: all 4 pass");
    gate("  - {target: echo, metric: exact_match, at_least: 0.5}\n  - {target: echo, must_pass: {ids: [c7, c18]}}\n");
    let missed = refit.run(&["eval", "run", "s.yaml"]).expect(1).stdout;
    assert!(
        missed.contains("miss echo: must_pass c7, c18: 1 of 2 do not pass: c18") && missed.contains("ok   echo: exact_match mean"),
        "{missed}"
    );
    gate("  - {target: echo, must_pass: {ids: [nobody]}}\n");
    assert!(refit.run(&["eval", "run", "s.yaml"]).expect(1).stdout.contains("no sample of the split is one of them"));
    for (entry, line, problem) in [
        ("  - {must_pass: {}}\n", 10, "names neither"),
        ("  - {must_pass: {ids: [c1]}, metric: exact_match}\n", 10, "takes no `metric`"),
        ("  - {not_worse_than: {target: echo}}\n", 10, "needs a `metric`"),
        ("  - {not_worse_than: {target: ecko}, metric: exact_match}\n", 10, "did you mean \"echo\"?"),
        ("  - {not_worse_than: {target: echo}, metric: exact_match, margin: -1}\n", 10, "margin must be 0 or more"),
        ("  - {must_pass: {id: [c1]}}\n", 10, "did you mean \"ids\"?"),
    ] {
        gate(entry);
        let done = refit.run(&["eval", "run", "s.yaml"]).expect(2);
        assert!(done.stderr.contains(&format!("s.yaml, line {line}")) && done.stderr.contains(problem), "{entry}: {}", done.stderr);
    }
}

#[test]
fn a_gate_demands_not_to_be_worse_than_what_is_live() {
    let refit = twenty();
    let gate = |margin: &str, entries: &str| {
        let text =
            format!("{SUITE}gate:\n  - {{target: fixed, metric: has_text, not_worse_than: {{route: shop}}, margin: {margin}}}\n{entries}");
        refit.write("s.yaml", text);
    };
    gate("0.2", "");
    let none = refit.run(&["eval", "run", "s.yaml"]).expect(1).stdout;
    assert!(none.contains("there is no route \"shop\""), "{none}");
    refit.run(&["route", "create", "shop", "--suite", "s", "--require", "has_text>=0.5"]).expect(0);
    let none = refit.run(&["eval", "run", "s.yaml"]).expect(1).stdout;
    assert!(none.contains("has no live release yet"), "{none}");
    let release = refit.run(&["release", "create", "--run", "latest", "--target", "echo", "--json"]).expect(0).json();
    let digest = release["digest"].as_str().expect("a digest").to_string();
    refit.run(&["release", "promote", &digest, "--route", "shop"]).expect(0);
    // One better and nineteen ties rule out no more than −0.12.
    gate("0.1", "");
    let few = refit.run(&["eval", "run", "s.yaml"]).expect(1).stdout;
    assert!(few.contains("miss fixed: has_text +0.0500 against echo, interval from -0.1192 < -0.1 (20 pairs)"), "{few}");
    gate("0.2", "");
    // Live is beside it in the run.
    let beside = refit.run(&["eval", "run", "s.yaml", "--json"]).expect(0).json();
    let demand = &beside["gate"]["demands"][0];
    assert!(demand["reason"].as_str().is_some_and(|reason| reason.contains("against echo")), "{demand}");
    // It is in an earlier run.
    let alone = refit.run(&["eval", "run", "s.yaml", "--target", "fixed", "--json"]).expect(0).json();
    let demand = &alone["gate"]["demands"][0];
    assert!(
        demand["reason"].as_str().is_some_and(|reason| reason.contains("against echo of run_")) && demand["paired"]["n"] == 20,
        "{demand}"
    );
    // `fixed` is right once where `echo` is right eighteen times.
    refit.write(
        "s.yaml",
        format!("{SUITE}gate:\n  - {{target: fixed, metric: exact_match, not_worse_than: {{route: shop}}, margin: 0.1}}\n"),
    );
    let worse = refit.run(&["eval", "run", "s.yaml", "--target", "fixed"]).expect(1).stdout;
    assert!(worse.contains("miss fixed: exact_match -0.8500 against echo of run_"), "{worse}");
    // Other scorers, other numbers: what was measured with them is no proof of what is live.
    refit.write("s.yaml", std::fs::read_to_string(refit.path().join("s.yaml")).expect("a suite").replace("value: text,", "value: t,"));
    let other = refit.run(&["eval", "run", "s.yaml", "--target", "fixed"]).expect(1).stdout;
    assert!(other.contains("with these scorers; make it a target of the suite"), "{other}");
    refit
        .write("s.yaml", format!("{SUITE}gate:\n  - {{target: fixed, metric: has_text, not_worse_than: {{target: echo}}, margin: 0.2}}\n"));
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
}

#[test]
fn a_routes_gate_pins_the_scorers() {
    let refit = twenty();
    refit.run(&["eval", "run", "s.yaml", "--target", "echo"]).expect(0);
    let release = refit.run(&["release", "create", "--run", "latest", "--target", "echo"]).expect(0).stdout.trim().to_string();
    for (route, scorers) in [("pinned", None), ("by-file", Some("s.yaml")), ("open", Some("any"))] {
        let mut args = vec!["route", "create", route, "--suite", "s", "--require", "exact_match>=0.5", "--json"];
        args.extend(scorers.iter().flat_map(|scorers| ["--scorers", scorers]));
        let gate = refit.run(&args).expect(0).json()["gate"].clone();
        assert_eq!(gate["scorers_digest"].is_null(), route == "open", "{gate}");
    }
    // A run with laxer scorers of the same names, newer than the one that counts.
    refit.write("s.yaml", SUITE.replace("- exact_match", "- includes: {value: \"\", name: exact_match}"));
    refit.write("p.prompt", "{{message}}, please");
    refit.run(&["eval", "run", "s.yaml", "--target", "echo"]).expect(0);
    let lax = refit.run(&["release", "create", "--run", "latest", "--target", "echo"]).expect(0).stdout.trim().to_string();
    assert_ne!(lax, release);
    for (route, code) in [("pinned", 1), ("by-file", 1), ("open", 0)] {
        let done = refit.run(&["release", "promote", &lax, "--route", route]).expect(code);
        assert_eq!(done.stderr.contains("with scorers sha256:"), code == 1, "{}", done.stderr);
        refit.run(&["release", "promote", &release, "--route", route]).expect(0);
    }
}

/// The fenced blocks of a page: what stands behind the three ticks, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut is_open = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(head) => {
                is_open = !is_open;
                if is_open {
                    blocks.push((head.to_string(), String::new()));
                }
            }
            None if is_open => blocks.iter_mut().last().into_iter().for_each(|(_, text)| *text += &format!("{line}\n")),
            None => {}
        }
    }
    blocks
}

#[test]
fn the_examples_of_the_page_run() {
    let (refit, mut commands, mut printed) = (Refit::new(), 0, String::new());
    for (head, text) in blocks(include_str!("../../src/docs/evals.md")) {
        match head.split_once(' ') {
            Some((_, file)) => drop(refit.write(file, text.trim_end_matches('\n'))),
            None if head == "sh" => {
                printed.clear();
                for line in text.lines() {
                    let (command, code) = line.split_once(" # exit ").unwrap_or((line, "0"));
                    let words: Vec<&str> = command.split(' ').skip(1).map(|word| word.trim_matches('\'')).collect();
                    let done = refit.run(&words).expect(code.parse().expect("a number"));
                    printed += &done.stdout;
                    commands += 1;
                }
            }
            None if head == "text" => {
                for line in text.lines() {
                    assert!(printed.contains(line), "{line} is not in:\n{printed}");
                }
            }
            None => panic!("a block of {head}"),
        }
    }
    assert!(commands >= 10, "only {commands} commands were found");
}

#[test]
fn where_less_is_better_a_comparison_says_so() {
    let refit = twenty();
    // The echo writes two tokens for most samples, `fixed` always two; with a longer reply it writes more.
    refit.write("s.yaml", SUITE.replace("reply: text 1", "reply: text one and more").replace("  - exact_match\n", "  - tokens\n"));
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let args = ["eval", "compare", "latest/echo", "latest/fixed", "--metric", "tokens"];
    let table = refit.run(&args).expect(0).stdout;
    assert!(table.starts_with("tokens: 19 worse, 1 better\n  worse  c"), "{table}");
    let json = refit.run(&[&args[..], &["--json"]].concat()).expect(0).json();
    assert_eq!((&json["worse"], &json["paired"][0]["less_is_better"], &json["paired"][0]["wins"]), (&json!(19), &json!(true), &json!(19)));
}
