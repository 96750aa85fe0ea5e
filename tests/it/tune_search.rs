//! Searching with `refit tune`: sweeps that halve their trials and go on after a stop, and advice on the method that is enough.

use crate::local::{MODEL, with_model};
use crate::support::{self, Refit, skip};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NAMES: [&str; 20] = [
    "kettle", "toaster", "lamp", "chair", "table", "clock", "mirror", "carpet", "vase", "shelf", "stove", "radio", "fan", "desk", "sofa",
    "bench", "plate", "spoon", "cup", "pan",
];

/// Questions about things, each of two labels.
fn desk(refit: &Refit) {
    let line = |(at, name): (usize, &&str)| {
        let (text, label) = if at % 2 == 0 {
            (format!("Where is my {name}?"), "delivery")
        } else {
            (format!("Money back for the {name}, please"), "refund")
        };
        json!({"id": format!("s{at}"), "input": {"text": text}, "target": label}).to_string() + "\n"
    };
    refit.write("desk.jsonl", NAMES.iter().enumerate().map(line).collect::<String>());
    refit.run(&["data", "import", "desk.jsonl"]).expect(0);
    refit.run(&["data", "split", "desk", "--by", "target", "--seed", "7", "--near", "2"]).expect(0);
}

#[test]
fn a_sweep_halves_its_trials_goes_on_after_a_stop_and_tests_its_winner_once() {
    let Some(refit) = with_model("tune_search::a_sweep_halves_its_trials_goes_on_after_a_stop_and_tests_its_winner_once") else { return };
    desk(&refit);
    refit.write("recipe.yaml", format!("name: sweep\nmodel: local/{MODEL}\ndataset: desk\nepochs: 4\nbatch_size: 3\nrank: 4\n"));
    let args = ["tune", "sweep", "recipe.yaml", "--learning-rate", "0.00001,0.002", "--rank", "2,4", "--budget", "10m", "--json"];
    // Stopped when the first trial has begun, as Ctrl-C would: the sweep's job is asked to end.
    let mut child = refit.command(&args).spawn().expect("it starts");
    let (begun, mut sweep) = (Instant::now(), None);
    while sweep.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no trial has begun");
        std::thread::sleep(Duration::from_millis(200));
        let all = refit.run(&["tune", "status", "--json"]).expect(0).json();
        let running = |job: &&Value| job["progress"]["rungs"].is_array() && job["progress"]["step"].as_u64() > Some(0);
        sweep = all.as_array().expect("jobs").iter().find(running).map(|job| job["id"].as_str().expect("an id").to_string());
    }
    let sweep = sweep.expect("a sweep");
    refit.run(&["tune", "cancel", &sweep]).expect(0);
    assert_eq!(child.wait().expect("it ends").code(), Some(2));
    let done = refit.run(&["tune", "resume", &sweep, "--json"]).expect(0).json();
    let result = &done["result"];
    let trials = result["trials"].as_array().expect("trials");
    // 12 examples in steps of 3, four times: 16 steps, of which all get 4, the better two 8, and the best 16.
    let mut steps: Vec<_> = trials.iter().map(|trial| trial["steps"].as_u64().expect("steps")).collect();
    assert!(steps.is_sorted_by(|a, b| a >= b), "{result}");
    steps.sort_unstable();
    assert_eq!(steps, [4, 4, 8, 16], "{result}");
    assert_eq!(trials[0]["learning_rate"], json!(0.002), "the rate at which nothing is learned falls out: {result}");
    assert!(result["adapter"].as_str().is_some_and(|adapter| adapter.contains(":sweep-t")), "{result}");
    assert!(
        result["test"]["loss"].as_f64().is_some_and(|loss| loss < 3.0)
            && result["test"]["examples"].as_u64().is_some_and(|count| count > 0),
        "{result}"
    );
    let adapters = refit.run(&["tune", "adapters", "--json"]).expect(0).json();
    assert_eq!(adapters.as_array().map(Vec::len), Some(1), "only the winner was trained to its end");

    // Those that fell out keep their curves and none of their checkpoints.
    let kept = |job: &Value| refit.data_dir().join("jobs").join(job.as_str().expect("an id")).exists();
    assert!(trials.iter().skip(1).all(|trial| !kept(&trial["job"])), "{result}");

    let short = refit.run(&["tune", "sweep", "recipe.yaml", "--learning-rate", "0.001,0.002", "--budget", "1s", "--json"]).expect(0).json();
    assert!(
        short["result"]["adapter"].is_null()
            && short["result"]["note"].as_str().is_some_and(|note| note.contains("refit tune resume job_")),
        "{short}"
    );
    // What the note says to run trains the trial to its end.
    let note = short["result"]["note"].as_str().expect("a note");
    let trial = note.rsplit(' ').next().expect("a job");
    let resumed = refit.run(&["tune", "resume", trial, "--json"]).expect(0).json();
    assert_eq!(resumed["result"]["steps"], 16, "{resumed}");
    assert!(resumed["result"]["adapter"].is_string(), "{resumed}");
    // The trial that is at work is stopped, not only the next one not begun: a second is a small part of 1,200 steps.
    refit.write("long.yaml", format!("name: long\nmodel: local/{MODEL}\ndataset: desk\nepochs: 300\nbatch_size: 3\nrank: 4\n"));
    let long = refit.run(&["tune", "sweep", "long.yaml", "--learning-rate", "0.001", "--budget", "1s", "--json"]).expect(0).json();
    let steps = long["result"]["trials"][0]["steps"].as_u64();
    assert!(
        steps.is_some_and(|steps| steps < 1_200) && long["result"]["adapter"].is_null() && long["result"]["note"].is_string(),
        "{long}"
    );
    refit.write("head.yaml", "name: h\nmethod: head\nmodel: local/all-minilm-l6-v2\ndataset: desk\n");
    assert!(refit.run(&["tune", "sweep", "head.yaml"]).expect(2).stderr.contains("for adapters"));
    for method in ["classifier", "dpo"] {
        sweep_of(&refit, method);
    }
    for wrong in ["soon", "1e308h", "0s", "-1h"] {
        assert!(
            refit.run(&["tune", "sweep", "recipe.yaml", &format!("--budget={wrong}")]).expect(2).stderr.contains("--budget"),
            "{wrong}"
        );
    }
}

/// A sweep whose winner is measured by what its method pursues.
fn sweep_of(refit: &Refit, method: &str) {
    let said = |text: &str| json!([{"role": "assistant", "content": text}]);
    let line = |at: usize| {
        let input = json!({"messages": [{"role": "user", "content": format!("Where is my {}?", NAMES[at])}]});
        match method {
            "dpo" => {
                json!({"id": format!("s{at}"), "input": input, "preferred_output": said("Gladly."), "non_preferred_output": said("No.")})
            }
            _ => json!({"id": format!("s{at}"), "input": input, "target": if at.is_multiple_of(2) { "even" } else { "odd" }}),
        }
    };
    let mut args = vec!["data".to_string(), "import".into(), "--name".into(), method.into()];
    for (split, range) in [("train", 0..4), ("validation", 4..6), ("test", 6..8)] {
        let file = format!("{method}-{split}.jsonl");
        refit.write(&file, range.map(|at| format!("{}\n", line(at))).collect::<String>());
        args.extend(["--split-file".into(), format!("{split}={file}")]);
    }
    refit.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).expect(0);
    let recipe =
        format!("name: s\nmodel: local/{MODEL}\ndataset: {method}\nmethod: {method}\nepochs: 1\nbatch_size: 2\nrank: 2\nqlora: true\n");
    refit.write("method.yaml", recipe);
    let done = refit.run(&["tune", "sweep", "method.yaml", "--learning-rate", "0.001", "--json"]).expect(0).json();
    let (test, metric) = (&done["result"]["test"], if method == "dpo" { "reward_accuracy" } else { "accuracy" });
    assert_eq!(test["examples"], 2, "{done}");
    assert!(test["loss"].as_f64() > Some(0.0) && test["metrics"][metric].is_f64(), "{done}");
}

#[test]
fn the_method_that_is_enough_is_recommended() {
    let Some(refit) = with_model("tune_search::the_method_that_is_enough_is_recommended") else { return };
    let Some(folder) = support::embedder_folder() else {
        return skip("tune_search::the_method_that_is_enough_is_recommended", "REFIT_TEST_EMBEDDER does not name the embedding model");
    };
    refit.run(&["model", "pull", &folder.path().display().to_string(), "--name", "all-minilm-l6-v2"]).expect(0);
    desk(&refit);
    let advice = refit.run(&["tune", "advise", "desk", "--budget", "10m", "--json"]).expect(0).json();
    let of = |method: &str| {
        advice["candidates"].as_array().expect("candidates").iter().find(|c| c["method"] == method).expect("a method").clone()
    };
    let (prompt, head, lora) = (of("prompt"), of("head"), of("lora"));
    assert_eq!(
        (&prompt["target"], &head["target"]),
        (&json!(format!("local/{MODEL}")), &json!("local/all-minilm-l6-v2:desk-head@1")),
        "{advice}"
    );
    assert_eq!(head["accuracy"]["share"], json!(1.0), "{advice}");
    for method in [&prompt, &head, &lora] {
        assert_eq!(
            (&method["accuracy"]["of"], &method["usd_per_1000"]),
            (&head["accuracy"]["of"], &json!(0.0)),
            "the same samples: {advice}"
        );
        assert!(method["seconds_per_1000"].as_f64() > Some(0.0), "{advice}");
    }
    assert!(lora["training_s"].as_f64() > head["training_s"].as_f64(), "{advice}");
    // Nothing is right more often than always, and nothing is cheaper to call.
    assert_eq!(advice["recommended"], "head", "{advice}");
    assert!(advice["because"].as_str().is_some_and(|told| told.contains("the head is enough")), "{advice}");
    let table = refit.run(&["tune", "advise", "desk", "--budget", "2s"]).expect(0).stdout;
    assert!(table.contains("lora") && (table.contains("of the budget") || table.contains("budget is spent")), "{table}");
    assert!(refit.run(&["tune", "advise", "nothing"]).expect(2).stderr.contains("does not exist"));
}
