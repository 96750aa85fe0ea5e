//! `refit data` where it is easily wrong without anybody's notice: copies among texts that begin alike, conversations with one system
//! prompt, what `--fix` takes away, names, lines and splits of imported files.

use crate::support::{Refit, send};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn imported(refit: &Refit, name: &str, records: &[Value]) {
    refit.write("in.jsonl", lines(records));
    refit.run(&["data", "import", "in.jsonl", "--name", name]).expect(0);
}

fn ids(refit: &Refit, args: &[&str]) -> BTreeSet<String> {
    let mut all = vec!["data", "show"];
    all.extend(args);
    let id = |line: &str| serde_json::from_str::<Value>(line).expect("a sample")["id"].as_str().expect("an id").to_string();
    refit.run(&all).expect(0).stdout.lines().map(id).collect()
}

/// Words that nobody else has.
fn words(of: usize, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{:x}", (of * 131 + i + 1) * 2_654_435_761 % 999_983)).collect()
}

#[test]
fn every_copy_is_found_among_mails_that_begin_and_end_alike() {
    let refit = Refit::new();
    let (greeting, closing) = (words(90_001, 15).join(" "), words(90_002, 15).join(" "));
    let mail = |body: &[String]| format!("{greeting} {} {closing}", body.join(" "));
    let sample = |id: String, text: String| json!({"id": id, "input": {"m": text}, "target": "x"});
    let mut records: Vec<Value> = (0..800).map(|i| sample(format!("m{i}"), mail(&words(i, 35)))).collect();
    for i in 0..200 {
        let mut body = words(i, 35);
        body[10] = "other".into();
        records.push(sample(format!("c{i}"), mail(&body)));
    }
    imported(&refit, "d", &records);
    let report = refit.run(&["data", "check", "d", "--json"]).json();
    let near = report["near_duplicates"].as_array().expect("a list");
    let found: BTreeSet<String> = near.iter().map(|pair| pair["ids"].to_string()).collect();
    let missed = (0..200).filter(|i| !found.contains(&json!([format!("m{i}"), format!("c{i}")]).to_string())).count();
    assert_eq!((missed, near.len()), (0, 200));
}

#[test]
fn a_system_prompt_that_all_share_makes_nothing_alike() {
    let refit = Refit::new();
    let system = words(70_000, 150).join(" ");
    let chat = |i: usize| {
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": words(i, 8).join(" ")}]);
        json!({"id": format!("s{i}"), "input": {"messages": messages}, "target": format!("answer {}", i % 3)})
    };
    imported(&refit, "d", &(0..60).map(chat).collect::<Vec<_>>());
    let report = refit.run(&["data", "check", "d", "--json"]).expect(0).json();
    assert_eq!(report["near_duplicates"], json!([]));
    let sizes = refit.run(&["data", "split", "d", "--json"]).expect(0).json()["split"]["sizes"].clone();
    assert_eq!(sizes, json!({"test": 15, "train": 36, "validation": 9}));
}

#[test]
fn a_split_that_would_be_empty_is_refused() {
    let refit = Refit::new();
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": "the very same text for each of them all"}, "target": i});
    imported(&refit, "d", &(0..20).map(sample).collect::<Vec<_>>());
    let refused = refit.run(&["data", "split", "d"]).expect(2).stderr;
    assert!(refused.contains("validation would be empty") && refused.contains("--near"), "{refused}");
    refit.run(&["data", "split", "d", "--near", "2"]).expect(0);
    let refused = refit.run(&["data", "split", "d", "--train", "10", "--validation", "0.15"]).expect(2).stderr;
    assert!(refused.contains("0.15") && refused.contains("counts"), "{refused}");
}

#[test]
fn nothing_goes_that_differs_in_a_number_or_a_sign() {
    let refit = Refit::new();
    let sample = |id: &str, input: Value, target: Value| json!({"id": id, "input": input, "target": target});
    imported(
        &refit,
        "d",
        &[
            sample("p7", json!({"q": "is it prime", "n": 7}), json!(true)),
            sample("p11", json!({"q": "is it prime", "n": 11}), json!(true)),
            sample("yes", json!({"q": "does the flag matter", "f": true}), json!(1)),
            sample("no", json!({"q": "does the flag matter", "f": false}), json!(1)),
            sample("plus", json!({"q": "what is 2 + 0"}), json!(2)),
            sample("minus", json!({"q": "what is 2 - 0"}), json!(2)),
            sample("cpp", json!({"q": "which language is C++"}), json!("a language")),
            sample("c", json!({"q": "which language is C"}), json!("a language")),
            sample("point", json!({"q": "is 1.5 a number"}), json!(true)),
            sample("fifteen", json!({"q": "is 15 a number"}), json!(true)),
            sample("again", json!({"q": "Is 15 a number?"}), json!(true)),
        ],
    );
    let fixed = refit.run(&["data", "check", "d", "--fix", "--json"]).json()["fixed"].clone();
    assert_eq!((&fixed["removed"], ids(&refit, &["d"]).contains("again")), (&json!(1), false), "{fixed}");
}

#[test]
fn of_many_that_say_the_same_one_is_left_and_what_is_open_is_told_by_the_exit_code() {
    let refit = Refit::new();
    let mut records: Vec<Value> =
        (0..100).map(|i| json!({"id": format!("s{i}"), "input": {"m": "where is my order, please"}, "target": "x"})).collect();
    records.push(json!({"id": "other", "input": {"m": "my kettle leaks at the bottom of it"}, "target": "x"}));
    imported(&refit, "d", &records);
    let fixed = refit.run(&["data", "check", "d", "--fix", "--json"]).expect(0).json()["fixed"].clone();
    assert_eq!((&fixed["removed"], &fixed["samples"]), (&json!(99), &json!(2)));
    records.push(json!({"id": "contrary", "input": {"m": "my kettle leaks at the bottom of it"}, "target": "y"}));
    imported(&refit, "e", &records);
    let done = refit.run(&["data", "check", "e", "--fix", "--json"]).expect(1);
    assert_eq!(done.json()["fixed"]["removed"], 99);
}

#[test]
fn leakage_is_found_in_every_copy() {
    let refit = Refit::new();
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": "where is my order, please"}, "target": "x"});
    refit.write("train.jsonl", lines(&(0..60).map(sample).collect::<Vec<_>>()));
    refit.write("test.jsonl", lines(&(60..100).map(sample).collect::<Vec<_>>()));
    let import = ["data", "import", "--name", "d", "--split-file", "train=train.jsonl", "--split-file", "test=test.jsonl"];
    refit.run(&import).expect(0);
    let report = refit.run(&["data", "check", "d", "--json"]).expect(1).json();
    let leaks = report["leakage"].as_array().expect("a list").iter();
    let tested: BTreeSet<String> = leaks.map(|leak| leak["ids"][1].to_string()).collect();
    assert_eq!(tested.len(), 40);
}

#[test]
fn names_are_unique_after_renaming() {
    let refit = Refit::new();
    let content = |text: &str| json!({"input": {"m": text}});
    imported(&refit, "probe", &[content("x")]);
    let own = ids(&refit, &["probe"]).into_iter().next().expect("an id");
    let taken = json!({"id": format!("{own}-2"), "input": {"m": "taken"}});
    imported(&refit, "d", &[content("x"), taken, content("x"), content("x")]);
    assert_eq!(ids(&refit, &["d"]).len(), 4);
}

#[test]
fn a_split_is_that_of_its_own_dataset() {
    let refit = Refit::new();
    let samples: Vec<Value> = (0..40).map(|i| json!({"id": format!("s{i}"), "input": {"m": words(i, 6).join(" ")}})).collect();
    for (name, seed) in [("a", "1"), ("b", "2")] {
        imported(&refit, name, &samples);
        refit.run(&["data", "split", name, "--seed", seed]).expect(0);
    }
    for name in ["a", "b"] {
        let written = refit.run(&["data", "export", name, "--split", "test"]).expect(0).stdout;
        let written: BTreeSet<String> = written
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].as_str().expect("an id").to_string())
            .collect();
        assert_eq!(written, ids(&refit, &[name, "--split", "test"]), "{name}");
    }
}

#[test]
fn an_input_is_never_written_over_by_what_is_put_aside() {
    let refit = Refit::new();
    let text = format!("{}\n{{broken\n", json!({"id": "a", "input": {"m": 1}}));
    refit.write("d.rejects.jsonl", &text);
    let kept = || std::fs::read_to_string(refit.path().join("d.rejects.jsonl")).expect("the input");
    for args in [&["--name", "d"][..], &["--name", "e", "--rejects", "./d.rejects.jsonl"]] {
        let mut import = vec!["data", "import", "d.rejects.jsonl", "--keep-going"];
        import.extend(args);
        let refused = refit.run(&import).expect(2).stderr;
        assert!(refused.contains("is an input") && refused.contains("--rejects"), "{refused}");
        assert_eq!(kept(), text);
    }
    // An import that fails leaves what was there.
    refit.write("old.jsonl", "kept\n");
    refit.write("bad.jsonl", "{broken\n");
    refit.run(&["data", "import", "bad.jsonl", "--keep-going", "--rejects", "old.jsonl"]).expect(2);
    assert_eq!(std::fs::read_to_string(refit.path().join("old.jsonl")).expect("a file"), "kept\n");
}

#[test]
fn compressed_files_are_not_taken_for_training() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let text = lines(&[json!({"prompt": "a", "completion": "b"})]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).expect("packed");
    for (name, bytes) in
        [("t.jsonl.gz", packed.finish().expect("packed")), ("t.jsonl", zstd::encode_all(text.as_bytes(), 1).expect("packed"))]
    {
        let mut body = format!(
            "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--b\r\ncontent-disposition: form-data; \
            name=\"file\"; filename=\"{name}\"\r\n\r\n"
        )
        .into_bytes();
        body.extend(bytes);
        body.extend(b"\r\n--b--\r\n");
        let form = [("content-type", "multipart/form-data; boundary=b")];
        let refused = send("POST", &format!("{}/v1/files", server.url()), Some(&key), &form, Some(body));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("file")), "{name}");
        assert!(refused.json()["error"]["message"].as_str().is_some_and(|told| told.contains("compressed")), "{refused:?}");
    }
}

#[test]
fn lines_are_told_as_editors_count_them_with_either_line_end() {
    let refit = Refit::new();
    for end in ["\n", "\r\n"] {
        refit.write("t.csv", ["text,label", "\"a", "b\",x", "", "", "c,y,z", ""].join(end));
        let refused = refit.run(&["data", "import", "t.csv"]).expect(2).stderr;
        assert!(refused.contains("record 2 (line 6)"), "{end:?}: {refused}");
    }
}

#[test]
fn a_quote_that_is_never_closed_is_told_with_its_line() {
    let refit = Refit::new();
    refit.write("t.csv", "text,label\na,x\nb,\"y\nc,x\nd,x\n");
    let refused = refit.run(&["data", "import", "t.csv"]).expect(2).stderr;
    assert!(refused.contains("line 3") && refused.contains("quote"), "{refused}");
    refit.write("t.csv", "text,label\na,\"x\"\nb,\"y \"\"z\"\"\"");
    assert_eq!(refit.run(&["data", "import", "t.csv", "--json"]).expect(0).json()["samples"], 2);
}

#[test]
fn splits_of_files_are_not_put_aside_silently() {
    let refit = Refit::new();
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": words(i, 6).join(" ")}});
    refit.write("1.jsonl", lines(&(0..20).map(sample).collect::<Vec<_>>()));
    refit.write("2.jsonl", lines(&(20..40).map(sample).collect::<Vec<_>>()));
    let import = ["data", "import", "--name", "d", "--split-file", "train=1.jsonl", "--split-file", "test=2.jsonl"];
    refit.run(&import).expect(0);
    refit.run(&import).expect(0);
    refit.run(&["data", "split", "d", "--replace"]).expect(0);
    let refused = refit.run(&import).expect(2).stderr;
    assert!(refused.contains("split already"), "{refused}");
}

#[test]
fn of_very_many_pairs_all_are_counted_and_some_are_listed() {
    let refit = Refit::new();
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": "where is my order, please"}, "target": "x"});
    imported(&refit, "d", &(0..400).map(sample).collect::<Vec<_>>());
    let report = refit.run(&["data", "check", "d", "--json"]).expect(1).json();
    // Each with the 32 before it: 32 · 400 less those that the first 32 have not.
    assert_eq!((&report["counts"]["duplicates"], report["duplicates"].as_array().map(Vec::len)), (&json!(12_272), Some(10_000)));
}
