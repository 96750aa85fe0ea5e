//! `refit data`: nothing is stored of a broken file, checks find what they say, the same seed gives the same split.

use crate::support::Refit;
use serde_json::{Value, json};

fn line(id: usize, text: &str, intent: &str) -> String {
    format!("{}\n", json!({"id": format!("s{id}"), "input": {"message": text}, "target": {"intent": intent}}))
}

/// Sixty different messages in three intents.
fn sixty() -> String {
    let word = |i: usize| format!("{:x}", (i + 1) * 2_654_435_761 % 99_991);
    (0..60).map(|i| line(i, &format!("{} {} {} {}", word(i), word(i + 70), word(i + 140), word(i + 300)), ["a", "b", "c"][i % 3])).collect()
}

#[test]
fn broken_line_is_named_and_nothing_is_stored() {
    let refit = Refit::new();
    refit.run(&["data", "list"]).expect(0);
    for (broken, reason) in [
        ("{\"id\":\"x\",\"input\":{\"message\":\"cut", "not JSON"),
        ("{\"id\":\"x\",\"inputs\":{}}", "unknown field \"inputs\"; did you mean \"input\"?"),
        ("{\"id\":\"s1\",\"input\":{\"message\":\"b\"}}", "id \"s1\" stands in line 2 already"),
    ] {
        refit.write("broken.jsonl", format!("{}{}{broken}\n{}", line(0, "a", "a"), line(1, "b", "a"), line(2, "c", "a")));
        let done = refit.run(&["data", "import", "broken.jsonl"]).expect(2);
        assert!(done.stderr.contains("broken.jsonl, line 3: ") && done.stderr.contains(reason), "{}", done.stderr);
    }
    assert_eq!(refit.run(&["data", "list", "--json"]).expect(0).json(), json!([]));
    let left = std::fs::read_dir(refit.data_dir().join("blobs/incoming")).expect("a folder").count();
    assert_eq!((left, std::fs::read_dir(refit.data_dir().join("blobs")).expect("a folder").count()), (0, 1));
}

#[test]
fn same_content_is_the_same_version() {
    let refit = Refit::new();
    refit.write("one.jsonl", sixty());
    refit.write("two.jsonl", sixty().replace("\"id\"", " \"id\""));
    let import = |file: &str| refit.run(&["data", "import", file, "--name", "d", "--json"]).expect(0).json();
    let (one, two) = (import("one.jsonl"), import("two.jsonl"));
    assert_eq!((&one["digest"], &one["version"], &one["samples"]), (&two["digest"], &two["version"], &json!(60)));
    refit.write("two.jsonl", sixty() + &line(99, "new", "a"));
    assert_eq!(import("two.jsonl")["version"], 2);
    assert!(refit.run(&["data", "show", "d@1", "--limit", "2"]).expect(0).stdout.lines().count() == 2);
}

#[test]
fn same_seed_gives_the_same_split_and_another_is_refused() {
    let split = |refit: &Refit, more: &[&str]| {
        let mut args = vec!["data", "split", "d", "--by", "intent", "--json"];
        args.extend(more);
        refit.run(&args)
    };
    let ids = |refit: &Refit| refit.run(&["data", "show", "d", "--split", "test"]).expect(0).stdout;
    let (first, second) = (Refit::new(), Refit::new());
    let mut reversed: Vec<String> = sixty().lines().map(|line| format!("{line}\n")).collect();
    reversed.reverse();
    first.write("d.jsonl", sixty());
    second.write("d.jsonl", reversed.concat());
    for refit in [&first, &second] {
        refit.run(&["data", "import", "d.jsonl"]).expect(0);
        let sizes = split(refit, &["--train", "30", "--validation", "12", "--test", "18"]).expect(0).json()["split"]["sizes"].clone();
        assert_eq!(sizes, json!({"test": 18, "train": 30, "validation": 12}));
    }
    assert_eq!(ids(&first), ids(&second), "the order of the file does not matter");
    split(&first, &["--train", "30", "--validation", "12", "--test", "18"]).expect(0);
    let refused = split(&first, &["--seed", "8"]).expect(2);
    assert!(refused.stderr.contains("split already (seed 7)") && refused.stderr.contains("--replace"), "{}", refused.stderr);
    let before = ids(&first);
    split(&first, &["--seed", "8", "--replace", "--train", "30", "--validation", "12", "--test", "18"]).expect(0);
    assert_ne!(before, ids(&first));
}

#[test]
fn check_finds_duplicates_contradictions_and_leakage() {
    let refit = Refit::new();
    let text = "the kettle arrived without its base and I cannot boil any water at all";
    let mut file = sixty();
    file += &line(100, text, "a");
    file += &line(101, text, "b");
    file += &line(102, &text.to_uppercase(), "a");
    file += &line(103, &format!("{text} please"), "a");
    refit.write("d.jsonl", file);
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    let report = refit.run(&["data", "check", "d", "--json"]).expect(1).json();
    let count = |key: &str| report[key].as_array().map(Vec::len);
    assert_eq!((count("duplicates"), count("normalised_duplicates"), count("near_duplicates")), (Some(1), Some(2), Some(3)));
    assert_eq!((count("contradictions"), count("leakage")), (Some(3), Some(0)));
    assert_eq!(report["balance"]["intent"]["distinct"], 3);
    // The split keeps all four on one side, so nothing leaks.
    refit.run(&["data", "split", "d", "--by", "intent"]).expect(0);
    let after = refit.run(&["data", "check", "d", "--json"]).expect(1).json();
    assert_eq!(after["leakage"], json!([]));
    assert!(after["duplicates"][0]["splits"][0].is_string());
}

#[test]
fn check_finds_leakage_between_splits() {
    let refit = Refit::new();
    let pair = |i: usize| {
        let word = |k: usize| format!("{:x}", i * k * 2_654_435_761 % 99_991);
        let text = format!("{} {} {} {} {} {}", word(1), word(2), word(3), word(5), word(7), word(11));
        line(2 * i, &text, "a") + &line(2 * i + 1, &format!("{text}, please"), "a")
    };
    refit.write("d.jsonl", (100..130).map(pair).collect::<String>());
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    refit.run(&["data", "split", "d", "--near", "2"]).expect(0);
    let report = refit.run(&["data", "check", "d", "--json"]).expect(1).json();
    let leaks = report["leakage"].as_array().expect("a list");
    assert!(
        !leaks.is_empty() && leaks.iter().all(|leak| leak["splits"][0] != leak["splits"][1] && leak["splits"][0].is_string()),
        "{report}"
    );
    refit.run(&["data", "split", "d", "--replace"]).expect(0);
    let report = refit.run(&["data", "check", "d", "--json"]).expect(0).json();
    assert!(!refit.run(&["data", "show", "d", "--split", "test"]).expect(0).stdout.is_empty());
    assert_eq!(report["leakage"], json!([]), "a split that keeps near-duplicates together leaks nothing");
}

#[test]
fn the_example_dataset_is_clean_and_complete() {
    let refit = Refit::new();
    let file = format!("{}/evals/data/support-intake.jsonl", env!("CARGO_MANIFEST_DIR"));
    let row = refit.run(&["data", "import", &file, "--json"]).expect(0).json();
    assert_eq!(row["samples"], 450);
    let report = refit.run(&["data", "check", "support-intake", "--json"]).expect(0).json();
    for key in ["duplicates", "normalised_duplicates", "near_duplicates", "contradictions"] {
        assert_eq!(report[key], json!([]), "{key}");
    }
    let distinct = |field: &str| report["balance"][field]["distinct"].as_u64();
    assert_eq!(["intent", "product", "urgency", "outcome"].map(distinct), [Some(12), Some(17), Some(3), Some(8)]);
    let split = ["data", "split", "support-intake", "--by", "intent", "--train", "260", "--validation", "60", "--test", "130", "--json"];
    let sizes: Value = refit.run(&split).expect(0).json()["split"]["sizes"].clone();
    assert_eq!(sizes, json!({"test": 130, "train": 260, "validation": 60}));
}
