//! `refit data import`, `log`, `diff` and `export`: every format and shape, errors by their place, broken records put aside, splits as the
//! files say, compressed files, files that were uploaded.

use crate::support::{Done, Refit, Reply, Server, http, send};
use serde_json::{Value, json};
use std::io::Write;

/// Runs `refit data …`.
fn data(refit: &Refit, args: &[&str]) -> Done {
    let mut all = vec!["data"];
    all.extend(args);
    refit.run(&all)
}

fn samples(refit: &Refit, name: &str) -> Vec<Value> {
    let shown = data(refit, &["show", name]).expect(0).stdout;
    shown.lines().map(|line| serde_json::from_str(line).expect("a sample")).collect()
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

#[test]
fn csv_columns_mean_what_is_said_and_quoted_line_ends_separators_and_marks_are_read() {
    let refit = Refit::new();
    refit.write("a.csv", "\u{feff}text,category,lang\r\n\"two\nlines, and \"\"quotes\"\"\",greeting,en\r\nplain,order,de\r\n");
    let row = data(&refit, &["import", "a.csv", "--input", "message=text", "--target", "category", "--json"]).expect(0).json();
    assert_eq!((&row["samples"], &row["lineage"]["format"], &row["lineage"]["shape"]), (&json!(2), &json!("csv"), &json!("columns")));
    let found = samples(&refit, "a");
    assert_eq!(found[0]["input"], json!({"message": "two\nlines, and \"quotes\""}));
    assert_eq!((&found[0]["target"], &found[0]["metadata"]), (&json!("greeting"), &json!({"lang": "en"})));
    refit.write("b.csv", "id;question;intent;product\nq-1;why; a;lamp\nq-2;how;b;fan\n");
    let import = ["import", "b.csv", "--input", "question", "--target", "intent=intent", "--target", "what=product", "--id", "id"];
    data(&refit, &import).expect(0);
    let found = samples(&refit, "b");
    assert_eq!((&found[1]["id"], &found[1]["target"]), (&json!("q-2"), &json!({"intent": "b", "what": "fan"})));
    // Common names of columns need no word.
    refit.write("c.tsv", "text\tlabel\nx, y\tgood\n");
    data(&refit, &["import", "c.tsv"]).expect(0);
    assert_eq!(samples(&refit, "c")[0]["input"], json!({"text": "x, y"}));
}

#[test]
fn what_is_wrong_in_a_table_is_named_by_record_and_line() {
    let refit = Refit::new();
    for (file, args, parts) in [
        ("text,label\n\"a\nb\",x\nc,y,z\n", &[][..], ["record 2 (line 4)", "3 fields, but the header has 2"]),
        ("text,label\na,x\nb\n", &[], ["record 2 (line 3)", "1 fields, but the header has 2"]),
        ("text,text\na,x\n", &[], ["line 1", "column \"text\" twice"]),
        (
            "text,label\na,x\n",
            &["--input", "txet"],
            ["record 1 (line 2)", "no column \"txet\"; did you mean \"text\"? (columns: text, label)"],
        ),
        ("uno,due\na,x\n", &[], ["record 1 (line 2)", "(uno, due) have no shape"]),
    ] {
        refit.write("t.csv", file);
        let mut import = vec!["import", "t.csv"];
        import.extend(args);
        let refused = data(&refit, &import).expect(2).stderr;
        assert!(parts.iter().all(|part| refused.contains(part)) && refused.contains("t.csv"), "{refused}");
    }
    refit.write("t.csv", b"text,label\na,x\n\xff,y\n");
    let refused = data(&refit, &["import", "t.csv"]).expect(2).stderr;
    assert!(refused.contains("record 2 (line 3)") && refused.contains("column \"text\" is not UTF-8 at byte 1"), "{refused}");
    assert_eq!(data(&refit, &["list", "--json"]).expect(0).json(), json!([]));
}

#[test]
fn broken_records_are_put_aside_with_place_reason_and_text() {
    let refit = Refit::new();
    let good = |id: &str| json!({"id": id, "input": {"m": id}, "target": 1}).to_string();
    let file = [good("a"), "{\"id\":".into(), good("b"), json!({"id": "c", "inputs": {}}).to_string(), good("a"), good("d")].join("\n");
    refit.write("d.jsonl", &file);
    let refused = data(&refit, &["import", "d.jsonl"]).expect(2).stderr;
    assert!(refused.contains("d.jsonl, line 2") && refused.contains("--keep-going"), "{refused}");
    let row = data(&refit, &["import", "d.jsonl", "--keep-going", "--json"]).expect(0).json();
    assert_eq!((&row["samples"], &row["rejected"], &row["lineage"]["detail"]), (&json!(3), &json!(3), &json!({"rejected": 3})));
    assert_eq!(samples(&refit, "d").iter().map(|sample| sample["id"].clone()).collect::<Vec<_>>(), ["a", "b", "d"]);
    let rejects = std::fs::read_to_string(refit.path().join("d.rejects.jsonl")).expect("a reject file");
    let rejects: Vec<Value> = rejects.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rejects.iter().map(|reject| reject["line"].clone()).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!((&rejects[0]["text"], &rejects[0]["file"]), (&json!("{\"id\":"), &json!("d.jsonl")));
    assert!(rejects[2]["reason"].as_str().is_some_and(|reason| reason == "id \"a\" stands in line 1 already"), "{rejects:?}");
    data(&refit, &["import", "d.jsonl", "--keep-going", "--rejects", "x/y.jsonl"]).expect(2);
}

#[test]
fn samples_without_a_name_that_say_the_same_are_kept_and_told_apart() {
    let refit = Refit::new();
    refit.write("d.csv", "text,label\na,x\nb,y\na,x\na,x\n");
    let done = data(&refit, &["import", "d.csv"]).expect(0);
    assert!(done.stderr.contains("2 samples say what another one says"), "{done:?}");
    let ids: Vec<String> = samples(&refit, "d").iter().map(|sample| sample["id"].as_str().expect("an id").to_string()).collect();
    assert_eq!((ids[2].clone(), ids[3].clone()), (format!("{}-2", ids[0]), format!("{}-3", ids[0])));
}

#[test]
fn files_bring_their_splits_along() {
    let refit = Refit::new();
    refit.write("train.csv", "text,category\na,x\nb,y\n");
    refit.write("test.csv", "text,category\nc,x\na,x\n");
    let import = ["import", "--name", "d", "--split-file", "train=train.csv", "--split-file", "test=test.csv", "--json"];
    let row = data(&refit, &import).expect(0).json();
    assert_eq!((&row["splits"]["sizes"], &row["splits"]["method"]), (&json!({"test": 2, "train": 2}), &json!("given")));
    let test = data(&refit, &["show", "d", "--split", "test"]).expect(0).stdout;
    assert!(test.lines().count() == 2 && test.contains("\"c\""), "{test}");
    let refused = data(&refit, &["split", "d"]).expect(2).stderr;
    assert!(refused.contains("split already (as its files were)"), "{refused}");
    let refused = data(&refit, &["import", "--name", "d", "--split-file", "trian=train.csv"]).expect(2).stderr;
    assert!(refused.contains("split \"trian\" is unknown; did you mean \"train\""), "{refused}");
    let refused = data(&refit, &["import", "train.csv", "test.csv"]).expect(2).stderr;
    assert!(refused.contains("--name"), "{refused}");
    // Names that two files give are told with both places.
    refit.write("1.jsonl", lines(&[json!({"id": "s", "input": {"m": 1}})]));
    refit.write("2.jsonl", lines(&[json!({"id": "r", "input": {"m": 2}}), json!({"id": "s", "input": {"m": 3}})]));
    let refused = data(&refit, &["import", "1.jsonl", "2.jsonl", "--name", "e"]).expect(2).stderr;
    assert!(refused.contains("2.jsonl, line 2: id \"s\" stands in line 1 of 1.jsonl already"), "{refused}");
}

#[test]
fn compressed_files_are_read_as_what_they_hold() {
    let refit = Refit::new();
    let text = lines(&(0..500).map(|i| json!({"id": format!("s{i}"), "input": {"m": i}})).collect::<Vec<_>>());
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).expect("packed");
    refit.write("d.jsonl", &text);
    refit.write("d.jsonl.gz", packed.finish().expect("packed"));
    refit.write("d.jsonl.zst", zstd::encode_all(text.as_bytes(), 1).expect("packed"));
    let digest = |file: &str| data(&refit, &["import", file, "--json"]).expect(0).json()["digest"].clone();
    assert_eq!((digest("d.jsonl.gz"), digest("d.jsonl.zst")), (digest("d.jsonl"), digest("d.jsonl")));
    refit.write("cut.jsonl.gz", &std::fs::read(refit.path().join("d.jsonl.gz")).expect("bytes")[..400]);
    let refused = data(&refit, &["import", "cut.jsonl.gz"]).expect(2).stderr;
    assert!(refused.contains("cannot read cut.jsonl.gz"), "{refused}");
}

/// The file was written by pyarrow (`tests/fixtures/datasets.py`).
#[test]
fn parquet_is_read_with_its_lists_and_structures() {
    let refit = Refit::new();
    let file = |name: &str| format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let row = data(&refit, &["import", &file("chats.parquet"), "--json"]).expect(0).json();
    assert_eq!((&row["samples"], &row["lineage"]["shape"]), (&json!(3), &json!("openai-chat")));
    let found = samples(&refit, "chats");
    assert_eq!(
        found[1]["input"]["messages"],
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question 1"}])
    );
    assert_eq!((&found[1]["target"], &found[1]["metadata"]["score"]), (&json!("answer 1"), &json!(0.5)));
    data(&refit, &["import", &file("labels.parquet"), "--input", "text", "--target", "label"]).expect(0);
    assert_eq!(samples(&refit, "labels")[2]["target"], json!(2));
    let refused = data(&refit, &["import", &file("labels.parquet"), "--input", "txt", "--name", "x"]).expect(2).stderr;
    assert!(refused.contains("labels.parquet, row 1: there is no column \"txt\"; did you mean \"text\"?"), "{refused}");
    refit.write("cut.parquet", b"PAR1 and nothing more");
    assert!(data(&refit, &["import", "cut.parquet"]).expect(2).stderr.contains("cannot read cut.parquet"));
}

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_the_damage_is() {
    let refit = Refit::new();
    let whole = std::fs::read(format!("{}/tests/fixtures/chats.parquet", env!("CARGO_MANIFEST_DIR"))).expect("the fixture");
    let mut refused = 0;
    for at in (4..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        refit.write("d.parquet", &damaged);
        let done = data(&refit, &["import", "d.parquet"]);
        assert!(matches!(done.code, 0 | 2), "byte {at}: {done:?}");
        refused += usize::from(done.code == 2 && done.stderr.contains("d.parquet"));
    }
    assert!(refused >= 10, "{refused} were refused");
}

#[test]
fn what_is_exported_in_a_shape_is_imported_as_the_same() {
    let refit = Refit::new();
    let asked = json!({"role": "user", "content": "q"});
    let said = |text: &str| json!({"role": "assistant", "content": text});
    for (name, shape, records) in [
        (
            "c",
            "openai-chat",
            vec![json!({"messages": [asked, said("a")]}), json!({"messages": [asked, said("b")], "tools": [{"type": "function"}]})],
        ),
        ("p", "prompt-completion", vec![json!({"prompt": "x", "completion": "y"})]),
        ("d", "dpo", vec![json!({"input": {"messages": [asked]}, "preferred_output": [said("a")], "non_preferred_output": [said("b")]})]),
        ("e", "dpo", vec![json!({"prompt": "x", "chosen": "y", "rejected": "z"})]),
        ("i", "jsonl", vec![json!({"id": "s", "input": {"m": "x"}, "target": {"k": [1]}, "metadata": {"n": 1}})]),
    ] {
        refit.write("in.jsonl", lines(&records));
        let row = data(&refit, &["import", "in.jsonl", "--name", name, "--json"]).expect(0).json();
        assert_eq!(row["lineage"]["shape"], shape);
        let written = data(&refit, &["export", name, "--format", shape]).expect(0).stdout;
        let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(written, records);
    }
    let refused = data(&refit, &["export", "i", "--format", "dpo"]).expect(2).stderr;
    assert!(refused.contains("sample s has no \"rejected\""), "{refused}");
    let table = data(&refit, &["export", "i", "--format", "csv"]).expect(0).stdout;
    assert_eq!(table, "id,input.m,target.k,metadata.n\ns,x,[1],1\n");
    assert!(data(&refit, &["export", "i", "--format", "xls"]).expect(2).stderr.contains("expected one of"));
}

#[test]
fn versions_have_a_history_and_differences() {
    let refit = Refit::new();
    let sample = |id: &str, text: &str| json!({"id": id, "input": {"m": text}});
    refit.write("d.jsonl", lines(&[sample("a", "1"), sample("b", "2"), sample("c", "3"), sample("d", "4")]));
    data(&refit, &["import", "d.jsonl"]).expect(0);
    refit.write("d.jsonl", lines(&[sample("a", "1"), sample("b", "2 changed"), sample("c2", "3"), sample("e", "5"), sample("f", "6")]));
    data(&refit, &["import", "d.jsonl"]).expect(0);
    let found = data(&refit, &["diff", "d@1", "d", "--json"]).expect(0).json();
    let counts = ["added", "removed", "changed", "renamed", "same"].map(|kind| found[kind].as_u64().expect("a count"));
    assert_eq!(counts, [2, 1, 1, 1, 1]);
    assert_eq!(
        (&found["examples"]["removed"][0]["id"], &found["examples"]["changed"][0][1]["input"]["m"]),
        (&json!("d"), &json!("2 changed"))
    );
    let told = data(&refit, &["diff", "d@1", "d@2"]).expect(0).stdout;
    assert!(told.starts_with("d@1 to d@2: 2 added, 1 removed, 1 changed, 1 renamed, 1 the same\n+ e:"), "{told}");
    let log = data(&refit, &["log", "d", "--json"]).expect(0).json();
    assert_eq!((&log[0]["version"], &log[1]["version"], &log[0]["lineage"]["source"]), (&json!(2), &json!(1), &json!("d.jsonl")));
    assert!(data(&refit, &["log", "dd"]).expect(2).stderr.contains("did you mean \"d\""));
}

/// Uploads a file for training.
fn uploaded(server: &Server, key: &str, name: &str, text: &str) -> Reply {
    let body = format!(
        "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--b\r\ncontent-disposition: form-data; \
        name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n--b--\r\n"
    );
    let form = [("content-type", "multipart/form-data; boundary=b")];
    send("POST", &format!("{}/v1/files", server.url()), Some(key), &form, Some(body.into_bytes()))
}

#[test]
fn an_uploaded_file_becomes_a_dataset() {
    let refit = Refit::new();
    let key = refit.key();
    let server = refit.serve(&[]);
    let record = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    let made = uploaded(&server, &key, "talks.jsonl", &lines(&[record]));
    assert_eq!(made.status, 200, "{made:?}");
    let id = made.json()["id"].as_str().expect("an id").to_string();
    let row = data(&refit, &["import", &id, "--json"]).expect(0).json();
    assert_eq!((&row["dataset"], &row["lineage"]["source"], &row["samples"]), (&json!("talks"), &json!("talks.jsonl"), &json!(1)));
    assert!(data(&refit, &["import", &id, "--project", "other"]).expect(2).stderr.contains("does not exist"));
    assert_eq!(http("DELETE", &format!("{}/v1/files/{id}", server.url()), Some(&key), None).status, 200);
    assert_eq!(samples(&refit, "talks").len(), 1, "the dataset has its own copy");
}

#[test]
fn a_file_that_cannot_be_trained_on_is_refused_with_its_line_and_not_kept() {
    let refit = Refit::new();
    let key = refit.key();
    let server = refit.serve(&[]);
    let good = json!({"prompt": "a", "completion": "b"});
    for (text, part) in [
        (format!("{good}\n{{\"prompt\":"), "t.jsonl, line 2: not JSON"),
        (format!("{good}\n{}", json!({"prompt": "a"})), "t.jsonl, line 2: field \"completion\" is missing"),
        (json!({"input": {"m": 1}, "target": 1}).to_string(), "t.jsonl, line 1: expected an object with messages"),
        (json!({"messages": [{"role": "user", "content": "q"}]}).to_string(), "line 1: the last message is not the assistant's"),
        (String::new(), "has no samples"),
    ] {
        let refused = uploaded(&server, &key, "t.jsonl", &text);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("file")), "{text}");
        assert!(refused.json()["error"]["message"].as_str().is_some_and(|told| told.contains(part)), "{refused:?}");
    }
    assert_eq!(server.get("/v1/files", Some(&key)).json()["data"], json!([]));
    let left = std::fs::read_dir(refit.data_dir().join("uploads/incoming")).expect("a folder").count();
    assert_eq!(left, 0);
}
