//! `refit eval import`: a configuration of promptfoo becomes a suite that runs, and what has no counterpart is listed.

use crate::support::Refit;
use serde_json::{Value, json};

const CONFIG: &str = r#"
description: Greets people
prompts:
  - "Hello {{name}}, you like {{thing}}"
  - file://chat.json
  - "{% if name %}Hi{% endif %}"
providers:
  - id: echo
    label: mirror
    config: {temperature: 0, apiBaseUrl: http://x}
  - openai:chat:gpt-4o-mini
  - python:own.py
sharing: true
defaultTest:
  vars: {thing: tea}
  assert:
    - {type: icontains, value: "HELLO {{name}}"}
tests:
  - vars: {name: Ada}
    description: first
    assert:
      - {type: equals, value: "Hello Ada, you like tea"}
      - {type: not-contains, value: coffee}
      - {type: javascript, value: "output.length < 5"}
      - {type: regex, value: "(?=look)ahead"}
  - vars: {name: [Bob, Cy], thing: coffee}
    threshold: 0.5
    assert:
      - {type: starts-with, value: "Hello Bob", weight: 3}
      - {type: contains-any, value: "tea, coffee"}
  - vars: {name: Dee}
    assert: [{type: llm-rubric, value: is polite}]
  - file://more.csv
"#;
const CSV: &str = "name,thing,__expected1,__expected2,__description\nEve,\"tea, black\",\"contains: tea, black\",,quoted\nFay,\"two\nlines\",equals: no,is-json,\n";

fn directory() -> Refit {
    let refit = Refit::new();
    refit.write("pf/promptfooconfig.yaml", CONFIG);
    refit.write("pf/more.csv", CSV);
    refit.write("pf/chat.json", r#"[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello {{name}}"}]"#);
    refit
}

#[test]
fn a_configuration_becomes_a_suite_that_runs() {
    let refit = directory();
    let done = refit.run(&["eval", "import", "pf/promptfooconfig.yaml", "--json"]).expect(0).json();
    // One of Ada, two of Bob and Cy, one of Dee without her rubric, two of the file.
    assert_eq!(done["carried"], json!({"prompts": 2, "models": 2, "samples": 6, "assertions": 3 + 2 * 3 + 1 + 2 + 3}), "{done}");
    assert_eq!(done["files"], json!(["evals/pf.yaml", "evals/pf.jsonl", "evals/pf-1.prompt", "evals/chat.prompt"]));
    let left: Vec<(String, String)> =
        done["left_out"].as_array().expect("a list").iter().map(|one| (text(&one["place"]), text(&one["why"]))).collect();
    for (place, why) in [
        ("sharing", "no counterpart"),
        ("prompts[2]", "{%"),
        ("providers[0].config.apiBaseUrl", "no counterpart"),
        ("providers[2]", "python:own.py"),
        ("tests[0].assert[2]", "javascript has no counterpart"),
        ("tests[0].assert[3]", "regex: "),
        ("tests[2].assert[0]", "--judge"),
    ] {
        assert!(left.iter().any(|(at, told)| at == place && told.contains(why)), "{place}: {left:?}");
    }
    assert_eq!(left.len(), 7, "{left:?}");
    let args = ["eval", "run", "evals/pf.yaml", "--target", "pf-1-mirror", "--json"];
    let report = refit.run(&args).expect(0).json();
    let totals = &report["targets"][0];
    // Fay's answer is neither "no" nor JSON; Bob passes all; Cy has half of the weight only with coffee (1 of 5) and "hello" (1 of 5).
    assert_eq!((&totals["n"], &totals["errors"], &totals["passed"]), (&json!(6), &json!(0), &json!(4)), "{report}");
    let missed = refit.run(&["eval", "show", "latest", "--cases", "--missed", "--json"]).expect(0).json();
    let names: Vec<Value> = missed.as_array().expect("cases").iter().map(|case| case["output"].clone()).collect();
    assert_eq!(names, [json!("Hello Cy, you like coffee"), json!("Hello Fay, you like two\nlines")]);
}

#[test]
fn a_judge_is_carried_over_once_it_is_named_and_nothing_is_written_over() {
    let refit = directory();
    let done =
        refit.run(&["eval", "import", "pf/promptfooconfig.yaml", "--judge", "openai/gpt-4o", "--name", "greet", "--json"]).expect(0).json();
    assert!(!done["left_out"].to_string().contains("--judge") && done["carried"]["assertions"] == 16, "{done}");
    let samples = std::fs::read_to_string(refit.path().join("evals/greet.jsonl")).expect("samples");
    assert!(samples.contains("\"llm_judge\":{\"model\":\"openai/gpt-4o\",\"rubric\":\"is polite\""), "{samples}");
    let again = refit.run(&["eval", "import", "pf/promptfooconfig.yaml", "--name", "greet"]).expect(2);
    assert!(again.stderr.contains("greet.yaml is there already") && again.stderr.contains("--force"), "{}", again.stderr);
    let told = refit.run(&["eval", "import", "pf/promptfooconfig.yaml", "--name", "greet", "--force"]).expect(0);
    assert!(told.stdout.contains("7 things were not carried over:\n"), "{}", told.stdout);
    refit.write(
        "pf/promptfooconfig.yaml",
        "prompts: [\"{{x}}\"]\nproviders: [\"python:x.py\"]\ntests: [{vars: {x: 1}, assert: [{type: contains, value: a}]}]\n",
    );
    let nothing = refit.run(&["eval", "import", "pf/promptfooconfig.yaml", "--name", "none"]).expect(2);
    assert!(
        nothing.stderr.contains("no providers that can be carried over") && nothing.stderr.contains("python:x.py"),
        "{}",
        nothing.stderr
    );
    refit.write("pf/promptfooconfig.yaml", "prompts: [\n");
    assert!(refit.run(&["eval", "import", "pf/promptfooconfig.yaml"]).expect(2).stderr.contains("promptfooconfig.yaml, line "));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}
