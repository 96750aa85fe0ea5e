//! promptfoo's configuration files: read into a suite that runs, and written from one.

use crate::support::Refit;
use serde_json::{Value, json};

const CONFIG: &str = r#"# yaml-language-server: $schema=https://promptfoo.dev/config-schema.json
description: Answers customers
prompts:
  - "{{question}}"
  - file://chat.json
  - "{% if x %}{{x}}{% endif %}"
providers:
  - echo
  - {id: "exec:python model.py"}
defaultTest:
  vars: {tone: kind}
  assert:
    - {type: not-contains, value: "as an AI"}
tests:
  - description: says it back
    vars: {question: "Where is my parcel?"}
    assert:
      - {type: contains, value: parcel}
      - {type: regex, value: "\\?$"}
      - {type: javascript, value: "output.length < 100"}
  - file://more.csv
evaluateOptions: {maxConcurrency: 3, showProgressBar: true}
outputPath: out.json
"#;

fn refit() -> Refit {
    let refit = Refit::new();
    refit.write("promptfooconfig.yaml", CONFIG);
    refit
        .write("chat.json", "[{\"role\": \"system\", \"content\": \"Be {{tone}}.\"}, {\"role\": \"user\", \"content\": \"{{question}}\"}]");
    refit.write(
        "more.csv",
        "question,__expected,__expected2,__description\n\"Hello, you\",\"equals: Hello, you\",\"contains-any: hello, Hello\",greets\nBye,contains: Hello,,fails\n",
    );
    refit
}

#[test]
fn a_configuration_becomes_a_suite_that_runs() {
    let refit = refit();
    let imported = refit.run(&["eval", "import", "promptfooconfig.yaml", "--name", "support", "--json"]).expect(0).json();
    assert_eq!((&imported["targets"], &imported["samples"]), (&json!(2), &json!(3)), "{imported}");
    let places: Vec<_> = imported["left"].as_array().expect("a list").iter().map(|left| left["place"].as_str().expect("a place")).collect();
    assert_eq!(
        places,
        ["outputPath", "providers[1]", "prompts[2]", "tests[0].assert[2]", "evaluateOptions.showProgressBar"],
        "everything that stayed behind is named"
    );
    let report = refit.run(&["eval", "run", "evals/support.yaml", "--json"]).expect(1).json();
    let mean = |i: usize| report["targets"][i]["metrics"]["checks"]["mean"].as_f64().expect("a mean");
    // The plain prompt says each question back; of the three tests the last one asks for something else.
    assert!((mean(0) - 2.0 / 3.0).abs() < 1e-9 && report["gate"]["passed"] == false, "{report}");
    let cases = refit.run(&["eval", "show", "latest", "--cases", "--missed"]).expect(0).stdout;
    let missed: Vec<Value> = cases.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(missed.iter().any(|case| case["sample"] == "test-0003" && case["output"] == "Bye"), "{cases}");
    // Nothing is written over, and a strict import says that something is missing.
    let again = refit.run(&["eval", "import", "promptfooconfig.yaml", "--name", "support"]).expect(2);
    assert!(again.stderr.contains("is there already"), "{again:?}");
    refit.run(&["eval", "import", "promptfooconfig.yaml", "--name", "support", "--force", "--strict"]).expect(1);
}

#[test]
fn a_suite_becomes_a_configuration_that_comes_back_as_it_was() {
    let refit = refit();
    refit.run(&["eval", "import", "promptfooconfig.yaml", "--name", "support"]).expect(0);
    let out = refit.run(&["eval", "export", "evals/support.yaml", "--out", "back.yaml"]).expect(0).stdout;
    assert!(out.contains("gate"), "{out}");
    let first = refit.run(&["eval", "import", "back.yaml", "--name", "again", "--json"]).expect(0).json();
    assert_eq!((&first["samples"], &first["left"]), (&json!(3), &json!([])), "{first}");
    let samples = |name: &str| {
        let text = std::fs::read_to_string(refit.path().join(format!("evals/{name}.jsonl"))).expect("a dataset");
        let of = |line: &str| {
            let sample: Value = serde_json::from_str(line).expect("JSON");
            (sample["input"].clone(), sample["metadata"]["checks"].clone())
        };
        text.lines().map(of).collect::<Vec<_>>()
    };
    assert_eq!(samples("again"), samples("support"));
    let body = |name: &str| {
        let text = std::fs::read_to_string(refit.path().join(format!("evals/{name}.prompt"))).expect("a prompt");
        text.rsplit("---\n").next().expect("a body").to_string()
    };
    assert_eq!(body("again-prompt-1"), body("support-prompt-1"));
    let report = refit.run(&["eval", "run", "evals/again.yaml", "--json"]).expect(1).json();
    assert!((report["targets"][0]["metrics"]["checks"]["mean"].as_f64().expect("a mean") - 2.0 / 3.0).abs() < 1e-9, "{report}");
}

#[test]
fn what_cannot_be_read_says_where() {
    let refit = Refit::new();
    refit.write("broken.yaml", "prompts: [\nproviders:\n");
    let failed = refit.run(&["eval", "import", "broken.yaml"]).expect(2);
    assert!(failed.stderr.contains("broken.yaml, line"), "{failed:?}");
    refit.write("none.yaml", "prompts: [a]\nproviders: ['python:x.py']\ntests: [{vars: {a: b}}]\n");
    let failed = refit.run(&["eval", "import", "none.yaml"]).expect(2);
    assert!(failed.stderr.contains("providers[0]"), "{failed:?}");
    refit.write("gone.yaml", "prompts: [a]\nproviders: [echo]\ntests: file://tests.csv\n");
    let failed = refit.run(&["eval", "import", "gone.yaml"]).expect(2);
    assert!(failed.stderr.contains("tests.csv"), "{failed:?}");
    assert!(!refit.path().join("evals").exists(), "nothing is half written");
}

#[test]
fn a_suite_that_was_written_by_hand_goes_out_as_a_run_would_read_it() {
    let refit = Refit::new();
    // Neither ids nor metadata: what a run takes, an export takes.
    refit.write("p.prompt", "{{role \"system\"}}Be brief.\n{{role \"user\"}}{{message}}");
    refit.write("d.jsonl", "{\"input\": {\"message\": \"hello\"}, \"target\": \"greeting\"}\n");
    let suite =
        "name: s\ndataset: d.jsonl\ntargets:\n  - {name: a, model: mock/echo, prompt: p.prompt}\nscorers:\n  - exact_match\n  - numeric\n";
    refit.write("s.yaml", suite);
    let exported = refit.run(&["eval", "export", "s.yaml"]).expect(0);
    let config: Value = serde_norway::from_str(&exported.stdout).expect("YAML");
    assert_eq!(config["tests"][0]["vars"], json!({"message": "hello"}), "{config}");
    assert_eq!(config["tests"][0]["assert"], json!([{"type": "equals", "value": "greeting"}]));
    assert!(exported.stderr.contains("scorers[1]: numeric"), "{}", exported.stderr);
    let chat: Value = serde_json::from_str(config["prompts"][0].as_str().expect("a chat")).expect("JSON");
    assert_eq!(chat[1], json!({"role": "user", "content": "{{message}}"}));
}
