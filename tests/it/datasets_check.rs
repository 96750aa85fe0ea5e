//! `refit data check` on public data and on small cases: what it finds, what `--fix` takes away, what vectors and models tell.

use crate::support::{Refit, public, skip};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn stored(refit: &Refit, records: &[Value]) {
    refit.write("d.jsonl", lines(records));
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
}

/// Pairs of a report's list: ids and kind.
fn of_kind(report: &Value, list: &str, kind: &str, across: bool) -> usize {
    let pairs = report[list].as_array().expect("a list").iter();
    pairs.filter(|pair| pair["kind"] == kind && (pair["splits"][0] != pair["splits"][1]) == across).count()
}

/// PolyAI's banking77 (Casanueva et al. 2020), CC-BY-4.0: its overlaps were counted with a script of a few lines.
#[test]
fn banking77_has_the_overlaps_that_it_is_known_for() {
    let Some(folder) = public("banking77") else {
        return skip("datasets_check::banking77_has_the_overlaps_that_it_is_known_for", "../shared/data/banking77 is not there");
    };
    let refit = Refit::new();
    let file = |split: &str| format!("{split}={}", folder.join(format!("{split}.csv")).display());
    let import = ["data", "import", "--name", "banking", "--split-file", &file("train"), "--split-file", &file("test"), "--json"];
    let row = refit.run(&import).expect(0).json();
    assert_eq!((&row["samples"], &row["splits"]["sizes"]), (&json!(13_083), &json!({"test": 3_080, "train": 10_003})));
    let report = refit.run(&["data", "check", "banking", "--json"]).expect(1).json();
    assert_eq!(of_kind(&report, "leakage", "exact", true), 6);
    // Nine overlap when case and punctuation do not count: the six, and three more.
    assert_eq!(of_kind(&report, "leakage", "exact", true) + of_kind(&report, "leakage", "normalised", true), 9);
    let in_train = report["duplicates"].as_array().expect("a list").iter();
    assert_eq!(in_train.filter(|pair| pair["splits"] == json!(["train", "train"])).count(), 4);
    assert_eq!(report["balance"]["target"]["distinct"], 77);
    let (english, looked_at) = (report["languages"]["counts"]["eng"].as_u64(), report["languages"]["looked_at"].as_u64());
    assert!(english > looked_at.map(|all| all / 3) && looked_at > Some(4_000), "{}", report["languages"]);
    // What contradicts is left, and told by the exit code.
    let fixed = refit.run(&["data", "check", "banking", "--fix", "--json"]).expect(1).json()["fixed"].clone();
    assert_eq!(fixed["version"], "banking@2");
    let report = refit.run(&["data", "check", "banking", "--json"]).expect(1).json();
    assert_eq!((&report["duplicates"], of_kind(&report, "leakage", "exact", true)), (&json!([]), 0));
    let splits = refit.run(&["data", "list", "--json"]).expect(0).json()[0]["splits"]["sizes"].clone();
    assert_eq!(splits["test"], 3_079, "what is tested stays, but for its own repetition");
    let log = refit.run(&["data", "log", "banking", "--json"]).expect(0).json();
    assert_eq!((&log[0]["lineage"]["kind"], &log[0]["lineage"]["parents"][0]), (&json!("fix"), &log[1]["digest"]));
}

#[test]
fn only_what_says_the_same_with_the_same_answer_goes() {
    let refit = Refit::new();
    let sample = |id: &str, text: &str, intent: &str| json!({"id": id, "input": {"m": text}, "target": intent});
    let text = "my kettle came without a lid and leaks";
    stored(
        &refit,
        &[
            sample("a", text, "x"),
            sample("b", &format!(" {text}\n"), "x"),
            sample("c", &text.to_uppercase(), "x"),
            sample("d", text, "y"),
            sample("e", &format!("{text} badly"), "x"),
        ],
    );
    let fixed = refit.run(&["data", "check", "d", "--fix", "--json"]).expect(1).json();
    assert_eq!(fixed["fixed"], json!({"removed": 2, "leaks": 0, "version": "d@2", "digest": fixed["fixed"]["digest"], "samples": 3}));
    let left: BTreeSet<String> = refit.run(&["data", "show", "d"]).expect(0).stdout.lines().map(|line| line[7..8].to_string()).collect();
    assert_eq!(left, BTreeSet::from(["a", "d", "e"].map(String::from)));
    let again = refit.run(&["data", "check", "d", "--fix"]).expect(1).stdout;
    assert!(again.contains("nothing may go without a person's look"), "{again}");
}

#[test]
fn personal_data_is_found_in_questions_and_answers_and_not_repeated() {
    let refit = Refit::new();
    stored(
        &refit,
        &[
            json!({"id": "a", "input": {"m": "write to ann@example.com"}, "target": "ok"}),
            json!({"id": "b", "input": {"m": "my card"}, "target": "4111 1111 1111 1111 of ann@example.com"}),
            json!({"id": "c", "input": {"m": "nothing"}, "target": {"n": 4}}),
        ],
    );
    let done = refit.run(&["data", "check", "d", "--json"]).expect(0);
    assert_eq!(done.json()["personal"]["counts"], json!({"credit_card": 1, "email": 2}));
    assert_eq!(done.json()["personal"]["samples"][1], json!({"id": "b", "kinds": ["credit_card", "email"]}));
    assert!(!done.stdout.contains("ann@") && !done.stdout.contains("4111"), "{done:?}");
}

#[test]
fn what_cannot_be_checked_is_said_with_the_way_out() {
    let refit = Refit::new();
    stored(&refit, &[json!({"id": "a", "input": {"m": "x"}})]);
    let report = refit.run(&["data", "check", "d", "--tokens", "mock/echo", "--coverage", "--json"]).expect(0).json();
    let skipped: Vec<_> = report["skipped"].as_array().expect("a list").iter().map(|one| one["check"].as_str().expect("a name")).collect();
    assert_eq!(skipped, ["tokens", "outliers", "label errors", "coverage"]);
    let told = refit.run(&["data", "check", "d"]).expect(0).stdout;
    assert!(told.contains("not checked: outliers (there is no model that makes vectors: refit model pull all-minilm-l6-v2"), "{told}");
}

/// Vectors by the words of a text: kettles, fans, parcels, and everything else.
fn embedder() -> crate::rig::Upstream {
    crate::rig::upstream(|stream, request| {
        let body: Value = serde_json::from_str(request).expect("JSON");
        let texts = body["input"].as_array().expect("texts");
        let vector = |(i, text): (usize, &Value)| {
            let text = text.as_str().expect("a text");
            let small = text.len() as f64 % 7.0 / 100.0;
            let embedding = match text {
                _ if text.contains("kettle") => [1.0, small, 0.0, 0.0],
                _ if text.contains("fan") => [0.0, 1.0, small, 0.0],
                _ if text.contains("parcel") => [small, 0.0, 1.0, 0.0],
                _ => [0.0, 0.0, 0.0, 1.0],
            };
            json!({"object": "embedding", "index": i, "embedding": embedding})
        };
        let data: Vec<_> = texts.iter().enumerate().map(vector).collect();
        let body = json!({"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    })
}

#[test]
fn vectors_tell_outliers_wrong_labels_and_what_live_requests_lack() {
    let refit = Refit::new();
    let up = embedder();
    refit.write("refit.toml", crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"e\"]"));
    let thing = |i: usize| ["kettle", "fan"][i % 2];
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": format!("my {} broke on day {}", thing(i), "x".repeat(i % 13))}, "target": thing(i)});
    let mut records: Vec<Value> = (0..40).map(sample).collect();
    records[8]["target"] = json!("fan");
    records.push(json!({"id": "odd", "input": {"m": "zzz"}, "target": "fan"}));
    stored(&refit, &records);
    {
        let (key, server) = (refit.key(), refit.serve(&[]));
        for text in ["a kettle, please", "where is my parcel", "the parcel is late", "the parcel is lost"] {
            let body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}]});
            assert_eq!(server.post("/v1/chat/completions", Some(&key), &body).status, 200);
        }
    }
    let report = refit.run(&["data", "check", "d", "--embedder", "up/e", "--coverage", "--model", "mock/echo", "--json"]).json();
    assert_eq!(report["label_errors"]["samples"][0]["id"], "s8");
    assert_eq!(
        (&report["label_errors"]["samples"][0]["likely"], report["label_errors"]["samples"].as_array().map(Vec::len)),
        (&json!("kettle"), Some(1))
    );
    assert_eq!((&report["outliers"]["samples"][0]["id"], report["outliers"]["samples"].as_array().map(Vec::len)), (&json!("odd"), Some(1)));
    let coverage = &report["coverage"];
    assert_eq!((&coverage["requests"], &coverage["covered"]), (&json!(4), &json!(1)), "{coverage}");
    assert_eq!((&coverage["lacking"][0]["requests"], &coverage["lacking"][0]["example"]), (&json!(3), &json!("where is my parcel")));
    // A model that makes no vectors is said, and the rest of the report is there.
    let report = refit.run(&["data", "check", "d", "--embedder", "mock/echo", "--json"]).json();
    assert!(report["skipped"][0]["reason"].as_str().is_some_and(|reason| reason.contains("embeddings")), "{report}");
}

#[test]
fn personal_data_is_found_in_metadata_numbers_and_names() {
    let refit = Refit::new();
    let call = json!({"function": {"name": "f", "arguments": "{\"to\": \"ann\\u0040example.com\"}"}});
    stored(
        &refit,
        &[
            json!({"id": "meta", "input": {"m": "x"}, "metadata": {"from": "ann@example.com"}}),
            json!({"id": "number", "input": {"m": "y", "card": 4_111_111_111_111_111_u64}}),
            json!({"id": "name", "input": {"m": "z"}, "target": {"ann@example.com": 1}}),
            json!({"id": "call", "input": {"m": "w"}, "target": {"calls": [call]}}),
        ],
    );
    let personal = refit.run(&["data", "check", "d", "--json"]).json()["personal"].clone();
    assert_eq!(personal["counts"], json!({"credit_card": 1, "email": 3}));
}

#[test]
fn live_requests_are_compared_without_what_is_personal_and_not_logged_anew() {
    let refit = Refit::new();
    let up = embedder();
    refit.write("refit.toml", crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"e\"]"));
    let sample = |i: usize| json!({"id": format!("s{i}"), "input": {"m": format!("my kettle broke on day {}", "x".repeat(i % 13))}});
    stored(&refit, &(0..20).map(sample).collect::<Vec<_>>());
    {
        let (key, server) = (refit.key(), refit.serve(&[]));
        let body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": "a parcel for ann@example.com"}]});
        assert_eq!(server.post("/v1/chat/completions", Some(&key), &body).status, 200);
    }
    let report = refit.run(&["data", "check", "d", "--embedder", "up/e", "--coverage", "--model", "mock/echo", "--json"]).json();
    assert_eq!(report["coverage"]["lacking"][0]["example"], "a parcel for [email]", "{report}");
    let log = refit.run(&["logs", "export"]).expect(0).stdout;
    let rows: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let made: Vec<_> = rows.iter().filter(|row| row["endpoint"] == "data.check").collect();
    assert!(made.len() == 2 && made.iter().all(|row| row["request"].is_null() && row["reply"].is_null()), "{made:?}");
}

#[test]
fn live_conversations_are_compared_with_conversations() {
    let refit = Refit::new();
    let up = embedder();
    refit.write("refit.toml", crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"e\"]"));
    let messages = |i: usize| {
        json!([{"role": "system", "content": "about a fan"}, {"role": "user", "content": format!("my kettle broke {}", "x".repeat(i))},
            {"role": "assistant", "content": "how"}, {"role": "user", "content": "in the parcel"}])
    };
    stored(&refit, &(0..20).map(|i| json!({"id": format!("s{i}"), "input": {"messages": messages(i)}})).collect::<Vec<_>>());
    {
        let (key, server) = (refit.key(), refit.serve(&[]));
        let body = json!({"model": "mock/echo", "messages": messages(3)});
        assert_eq!(server.post("/v1/chat/completions", Some(&key), &body).status, 200);
    }
    let report = refit.run(&["data", "check", "d", "--embedder", "up/e", "--coverage", "--model", "mock/echo", "--json"]).json();
    assert_eq!((&report["coverage"]["requests"], &report["coverage"]["covered"]), (&json!(1), &json!(1)), "{}", report["coverage"]);
}

#[test]
fn what_the_operator_looks_for_is_personal_too() {
    let refit = Refit::new();
    let line = |id: &str, text: &str| json!({"id": id, "input": {"message": text}, "target": "ok"}).to_string();
    let lines = [line("a", "order ORD-77 is late"), line("b", "acct-123456 please"), line("c", "nothing here")];
    refit.write("d.jsonl", lines.join("\n"));
    let set = "[guardrails.own]\npatterns = [{ name = \"order\", regex = \"ORD-[0-9]+\" }]\n";
    refit.write("refit.toml", format!("[log]\nredact_patterns = [\"acct-[0-9]{{6}}\"]\n\n{set}"));
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    let personal = refit.run(&["data", "check", "d", "--json"]).json()["personal"].clone();
    assert_eq!(personal["counts"], json!({"order": 1, "redact_patterns[0]": 1}), "{personal}");
}
