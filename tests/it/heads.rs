//! Classifier heads: fitted on the real all-MiniLM-L6-v2 by a recipe, asked over HTTP, released, exported; and recipes that cannot work.

use crate::support::{self, Refit, skip};
use serde_json::{Value, json};
use std::fmt::Write;

const MODEL: &str = "all-minilm-l6-v2";
const HEAD: &str = "local/all-minilm-l6-v2:desk";

macro_rules! rig_or_skip {
    ($name:literal) => {
        match support::embedder_folder() {
            Some(folder) => {
                let refit = Refit::new();
                refit.run(&["model", "pull", &folder.path().display().to_string(), "--name", MODEL]).expect(0);
                refit
            }
            None => return skip($name, "REFIT_TEST_EMBEDDER does not name the embedding model"),
        }
    };
}

/// Questions to a service desk, eight for each of four labels.
const DESK: [(&str, [&str; 8]); 4] = [
    (
        "delivery",
        [
            "Where is my parcel?",
            "My order has not arrived yet",
            "The courier never came",
            "When will the package be delivered?",
            "Tracking says it is still in the depot",
            "How long does shipping take?",
            "My delivery is a week late",
            "Has my order been sent?",
        ],
    ),
    (
        "refund",
        [
            "I want my money back",
            "How do I return this jacket?",
            "Please refund my purchase",
            "When do I get the refund?",
            "The return label does not print",
            "You have not paid me back",
            "Can I send it back for a refund?",
            "I returned the shoes last week",
        ],
    ),
    (
        "account",
        [
            "I forgot my password",
            "I cannot log in",
            "How do I change my e-mail address?",
            "Please delete my account",
            "The login code does not come",
            "My account is locked",
            "How do I reset my password?",
            "I want to change my user name",
        ],
    ),
    (
        "opening hours",
        [
            "When do you open?",
            "Are you open on Sunday?",
            "What time does the shop close?",
            "Is the store open on holidays?",
            "Until when can I come by today?",
            "Opening times on Saturday, please",
            "Do you open before nine?",
            "Is the shop open tonight?",
        ],
    ),
];

fn desk(refit: &Refit) {
    let mut lines = String::new();
    for (label, texts) in DESK {
        for (at, text) in texts.iter().enumerate() {
            let sample = json!({"id": format!("{}{at}", &label[..1]), "input": {"text": text}, "target": label});
            writeln!(lines, "{sample}").expect("written");
        }
    }
    refit.write("desk.jsonl", lines);
    refit.run(&["data", "import", "desk.jsonl"]).expect(0);
    refit.run(&["data", "split", "desk", "--by", "target", "--seed", "7"]).expect(0);
}

fn fit(refit: &Refit, more: &str) -> Value {
    refit.write("recipe.yaml", format!("name: desk\nmethod: head\nmodel: local/{MODEL}\ndataset: desk\n{more}"));
    refit.run(&["tune", "run", "recipe.yaml", "--json"]).expect(0).json()["result"].clone()
}

fn question(text: &str) -> Value {
    json!({"model": HEAD, "messages": [{"role": "system", "content": "Sort it."}, {"role": "user", "content": text}]})
}

#[test]
fn a_head_is_fitted_and_answers_with_labels() {
    let refit = rig_or_skip!("heads::a_head_is_fitted_and_answers_with_labels");
    desk(&refit);
    let result = fit(&refit, "");
    assert_eq!(result["parameters"], json!(4 * 385));
    let accuracy = &result["accuracy"];
    assert!(accuracy["right"].as_u64() >= Some(2) && accuracy["of"].as_u64() >= Some(3), "{accuracy}");
    // The same data and recipe: the same weights, to the bit.
    assert_eq!(fit(&refit, "")["digest"], result["digest"]);

    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |body: &Value| server.post("/v1/chat/completions", Some(&key), body);
    let asked = [
        ("my packet did not come", "delivery"),
        ("the password is gone from my head", "account"),
        ("are you there on monday morning?", "opening hours"),
        ("give me back what I paid", "refund"),
    ];
    for (text, label) in asked {
        let answer = ask(&question(text)).json();
        assert_eq!(answer["choices"][0]["message"]["content"], json!(label), "{text}: {answer}");
        assert_eq!((&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]), (&json!("stop"), &json!(1)));
    }
    let mut body = question("my packet did not come");
    (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(4));
    let told = ask(&body).json()["choices"][0]["logprobs"]["content"][0].clone();
    let top: Vec<f64> =
        told["top_logprobs"].as_array().expect("labels").iter().map(|label| label["logprob"].as_f64().expect("a number")).collect();
    assert_eq!((&told["token"], &told["top_logprobs"][0]["token"], top.len()), (&json!("delivery"), &json!("delivery"), 4));
    assert!((top.iter().map(|log| log.exp()).sum::<f64>() - 1.0).abs() < 1e-5 && top.is_sorted_by(|a, b| a >= b), "{told}");
    body["stream"] = json!(true);
    let stream = ask(&body);
    assert!(stream.body.contains("\"content\":\"delivery\"") && stream.body.ends_with("data: [DONE]\n\n"), "{stream:?}");
    assert!(stream.body.contains("top_logprobs"), "{stream:?}");

    for (field, value, param) in [
        ("tools", json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]), "tools"),
        ("response_format", json!({"type": "json_object"}), "response_format"),
        ("n", json!(2), "n"),
        ("messages", json!([{"role": "assistant", "content": "x"}]), "messages"),
        ("messages", json!([{"role": "user", "content": "word ".repeat(400)}]), "messages"),
    ] {
        let mut body = question("x");
        body[field] = value;
        let refused = ask(&body);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)), "{refused:?}");
    }
    let listed = server.get("/v1/models", Some(&key)).json();
    assert!(listed["data"].as_array().expect("models").iter().any(|model| model["id"] == json!(HEAD)), "{listed}");
}

#[test]
fn a_head_is_measured_and_exported_like_any_adapter() {
    let refit = rig_or_skip!("heads::a_head_is_measured_and_exported_like_any_adapter");
    desk(&refit);
    fit(&refit, "c: 30\n");
    refit.write("prompts/plain.prompt", "---\n---\n{{text}}");
    refit.run(&["prompt", "publish", "prompts/plain.prompt"]).expect(0);
    refit.write(
        "evals/desk.yaml",
        format!(
            "name: desk\ndataset: desk\ntargets:\n  - name: head\n    model: local/{MODEL}\n    adapter: desk\n    prompt: plain\n\
             scorers:\n  - exact_match\ngate:\n  - metric: exact_match\n    at_least: 0.8\n"
        ),
    );
    let run = refit.run(&["eval", "run", "evals/desk.yaml", "--json"]).expect(0).json();
    assert!(run.to_string().contains("exact_match"), "{run}");
    refit.run(&["tune", "export", &format!("{MODEL}:desk"), "out"]).expect(0);
    let config: Value = serde_json::from_slice(&std::fs::read(refit.path().join("out/head_config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["labels"], json!(["account", "delivery", "opening hours", "refund"]));
    assert_eq!(std::fs::metadata(refit.path().join("out/head.safetensors")).expect("a file").len() as usize / 4 / 385, 4);
}

#[test]
fn what_no_head_can_learn_is_said() {
    let refit = rig_or_skip!("heads::what_no_head_can_learn_is_said");
    let import = |name: &str, lines: &[Value]| {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        refit.write(&format!("{name}.jsonl"), text);
        refit.run(&["data", "import", &format!("{name}.jsonl")]).expect(0);
        refit.run(&["data", "split", name, "--seed", "7"]).expect(0);
    };
    let sample = |at: usize, text: &str, target: &str| json!({"id": format!("s{at}"), "input": {"text": text}, "target": target});
    let run = |name: &str, more: &str| {
        refit.write("recipe.yaml", format!("name: x\nmodel: local/{MODEL}\ndataset: {name}\n{more}"));
        let done = refit.run(&["tune", "run", "recipe.yaml"]);
        assert_eq!(done.code, 2, "{done:?}");
        done.stderr
    };
    import("one", &(0..10).map(|at| sample(at, DESK[at % 4].1[at / 4], "always")).collect::<Vec<_>>());
    let told = run("one", "method: head\n");
    assert!(told.contains("fewer than two labels") && !told.contains("job"), "before anybody waits: {told}");
    import(
        "long",
        &(0..10)
            .map(|at| sample(at, &format!("{} {}", DESK[at % 4].1[at / 4], "word ".repeat(400)), if at % 2 == 0 { "a" } else { "b" }))
            .collect::<Vec<_>>(),
    );
    let told = run("long", "method: head\n");
    assert!(told.contains("tokens, the model takes 256"), "{told}");
    import(
        "fields",
        &(0..10)
            .map(|at| json!({"id": format!("s{at}"), "input": {"a": DESK[at % 4].1[at / 4], "b": "y"}, "target": "a"}))
            .collect::<Vec<_>>(),
    );
    assert!(run("fields", "method: head\n").contains("names no prompt"));
    assert!(run("one", "").contains("method: head"), "a low-rank adapter needs a chat model");
    assert!(run("one", "method: head\nrank: 8\n").contains("rank"));
}

/// PolyAI's banking77 (Casanueva et al. 2020), CC-BY-4.0: ten examples of each of its 77 intents, 500 rows of its test set. On the same
/// rows and vectors scikit-learn's `LogisticRegression` is right on 83.8 % (C = 30) and 83.0 % (C = 300).
#[test]
fn banking77_is_learned_from_ten_examples_of_each_intent() {
    let refit = rig_or_skip!("heads::banking77_is_learned_from_ten_examples_of_each_intent");
    let Some(folder) = support::public("banking77") else {
        return skip("heads::banking77_is_learned_from_ten_examples_of_each_intent", "../shared/data/banking77 is not there");
    };
    let read = |name: &str| -> Vec<(String, String)> {
        let mut reader = csv::Reader::from_path(folder.join(name)).expect("a CSV file");
        reader.deserialize().map(|row| row.expect("a row")).collect()
    };
    // Rows of an intent lie together and are alike: every third, so that all kinds are among them.
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    let train = read("train.csv").into_iter().filter(|(_, label)| {
        let nth = seen.entry(label.clone()).or_default();
        *nth += 1;
        *nth % 3 == 1 && *nth <= 28
    });
    let sets = [("train", train.collect::<Vec<_>>()), ("test", read("test.csv").into_iter().step_by(6).take(500).collect())];
    for (split, rows) in &sets {
        let sample = |(at, (text, label)): (usize, &(String, String))| {
            format!("{}\n", json!({"id": format!("{split}{at}"), "input": {"text": text}, "target": label}))
        };
        refit.write(&format!("{split}.jsonl"), rows.iter().enumerate().map(sample).collect::<String>());
    }
    let files = ["--split-file", "train=train.jsonl", "--split-file", "test=test.jsonl"];
    refit.run(&[&["data", "import", "--name", "desk"][..], &files].concat()).expect(0);
    let result = fit(&refit, "");
    assert_eq!(result["parameters"], json!(77 * 385), "{result}");
    refit.write("prompts/plain.prompt", "---\n---\n{{text}}");
    refit.run(&["prompt", "publish", "prompts/plain.prompt"]).expect(0);
    refit.write(
        "evals/bank.yaml",
        format!(
            "name: bank\ndataset: desk\nsplit: test\ntargets:\n  - name: head\n    model: local/{MODEL}\n    adapter: desk\n    prompt: plain\n\
             scorers:\n  - exact_match\ngate:\n  - metric: exact_match\n    at_least: 0.79\n"
        ),
    );
    refit.run(&["eval", "run", "evals/bank.yaml"]).expect(0);
}
