//! OpenAI's Evals API over HTTP: evals, runs, output items; what must hold when the process is killed, a run is canceled, or another
//! project asks.

use crate::places::{Act, completion, place};
use crate::support::{Refit, Reply, Server, http, send};
use async_openai::types::evals::{EvalRun, EvalRunList, EvalRunOutputItem};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longer than any run here takes, a lease that has to run out included.
const PATIENCE: Duration = Duration::from_secs(60);

fn custom(sampled: bool) -> Value {
    let schema = json!({"type": "object", "properties": {"q": {"type": "string"}, "a": {"type": "string"}}, "required": ["q", "a"]});
    json!({"type": "custom", "item_schema": schema, "include_sample_schema": sampled})
}

fn check(operation: &str, input: &str) -> Value {
    json!({"type": "string_check", "name": operation, "input": input, "reference": "{{item.a}}", "operation": operation})
}

fn make(server: &Server, key: &str, config: &Value, criteria: &Value) -> Value {
    let body = json!({"name": "e", "data_source_config": config, "testing_criteria": criteria, "metadata": {"team": "a"}});
    let made = server.post("/v1/evals", Some(key), &body);
    assert_eq!(made.status, 200, "{made:?}");
    made.json()
}

fn begin(server: &Server, key: &str, eval: &Value, source: &Value) -> Reply {
    server.post(&format!("/v1/evals/{}/runs", id(eval)), Some(key), &json!({"name": "r", "data_source": source}))
}

fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

fn content(items: &[Value]) -> Value {
    json!({"type": "file_content", "content": items})
}

fn asking(model: &str, items: &[Value], more: Value) -> Value {
    let mut source = json!({"type": "completions", "model": model, "source": content(items), "input_messages":
        {"type": "template", "template": [{"role": "user", "content": "{{item.q}}"}]}});
    source.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    source
}

fn item(q: &str, a: &str) -> Value {
    json!({"item": {"q": q, "a": a}})
}

fn path(run: &Value) -> String {
    format!("/v1/evals/{}/runs/{}", run["eval_id"].as_str().expect("an eval"), id(run))
}

fn wait(server: &Server, key: &str, run: &Value, until: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let shown = server.get(&path(run), Some(key));
        // What it looks like to the Rust client, at every moment of its life; it knows no completions that no model is asked for.
        if run["data_source"]["type"] == "jsonl" || !run["data_source"]["model"].is_null() {
            serde_json::from_str::<EvalRun>(&shown.body).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
        }
        let run = shown.json();
        if until(&run) {
            return run;
        }
        assert!(begun.elapsed() < PATIENCE, "{run}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn is_over(run: &Value) -> bool {
    matches!(run["status"].as_str(), Some("completed" | "failed" | "canceled"))
}

fn finished(server: &Server, key: &str, eval: &Value, source: &Value) -> (Value, Vec<Value>) {
    let made = begin(server, key, eval, source);
    assert_eq!(made.status, 200, "{made:?}");
    let run = wait(server, key, &made.json(), is_over);
    let items = server.get(&format!("{}/output_items?limit=100", path(&run)), Some(key)).json();
    for item in items["data"].as_array().expect("items") {
        serde_json::from_value::<EvalRunOutputItem>(item.clone()).unwrap_or_else(|error| panic!("{error}: {item}"));
    }
    let list = items["data"].as_array().expect("items").clone();
    (run, list)
}

#[test]
fn a_model_is_asked_and_every_criterion_says_what_it_finds() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let criteria = json!([
        check("eq", "{{sample.output_text}}"),
        {"type": "text_similarity", "name": "near", "input": "{{sample.output_text}}", "reference": "{{item.a}}",
            "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5},
    ]);
    let eval = make(&server, &key, &custom(true), &criteria);
    assert_eq!(eval["data_source_config"]["schema"]["properties"]["item"]["required"], json!(["q", "a"]));
    let items = [item("same", "same"), item("some", "same"), item("x", "yyy"), json!({"item": {"q": 7, "a": "b"}})];
    let (run, found) = finished(
        &server,
        &key,
        &eval,
        &asking("mock/echo", &items, json!({"sampling_params": {"temperature": 0.5, "max_completion_tokens": 9}})),
    );
    assert_eq!((&run["status"], &run["model"]), (&json!("completed"), &json!("mock/echo")), "{run}");
    assert_eq!(run["result_counts"], json!({"total": 4, "passed": 1, "failed": 2, "errored": 1}), "{run}");
    let per = json!([{"testing_criteria": "eq", "passed": 1, "failed": 2}, {"testing_criteria": "near", "passed": 2, "failed": 1}]);
    assert_eq!(run["per_testing_criteria_results"], per);
    let usage = &run["per_model_usage"][0];
    assert_eq!((&usage["model_name"], &usage["invocation_count"]), (&json!("mock/echo"), &json!(3)), "{run}");
    let numbers: Vec<_> = found.iter().map(|item| item["datasource_item_id"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, [0, 1, 2, 3], "the order is the source's");
    assert_eq!(found[1]["status"], "fail");
    assert_eq!(found[1]["results"][1]["score"], json!(0.75));
    assert_eq!(found[1]["sample"]["input"][0]["content"], "some");
    assert_eq!((&found[1]["sample"]["temperature"], &found[1]["sample"]["max_completion_tokens"]), (&json!(0.5), &json!(9)));
    let error = &found[3]["sample"]["error"];
    assert!(found[3]["status"] == "error" && error["message"].as_str().is_some_and(|text| text.contains("item/q")), "{}", found[3]);
    // One by one, and only those that failed, page by page.
    let one = server.get(&format!("{}/output_items/{}", path(&run), id(&found[2])), Some(&key)).json();
    assert_eq!(one, found[2]);
    let first = server.get(&format!("{}/output_items?status=fail&limit=1", path(&run)), Some(&key)).json();
    assert!(first["data"][0]["datasource_item_id"] == 1 && first["has_more"] == true, "{first}");
    let next = format!("{}/output_items?status=fail&limit=1&after={}", path(&run), id(&first["data"][0]));
    assert_eq!(server.get(&next, Some(&key)).json()["data"][0]["datasource_item_id"], 2);
    // Each call is in the log, on the key that made the run.
    let logged = refit.run(&["logs", "export", "--format", "jsonl"]);
    assert_eq!(logged.expect(0).stdout.lines().count(), 3);
}

#[test]
fn stored_answers_are_graded_without_any_model() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let eval = make(&server, &key, &custom(true), &json!([check("eq", "{{sample.output_json.word}}")]));
    let line = |answer: &str| {
        json!({"item": {"q": "?", "a": "yes"}, "sample": {"output_text": format!("{{\"word\": \"{answer}\"}}")}}).to_string()
    };
    let bytes = format!("{}\n\n{}\n{}\n", line("yes"), line("no"), json!({"item": {"q": "?", "a": "yes"}}));
    let file = upload(&server, &key, "evals", bytes.as_bytes());
    let (run, found) = finished(&server, &key, &eval, &json!({"type": "jsonl", "source": {"type": "file_id", "id": file}}));
    assert_eq!(run["result_counts"], json!({"total": 3, "passed": 1, "failed": 1, "errored": 1}), "{run}");
    assert!(found[2]["sample"]["error"]["message"].as_str().is_some_and(|text| text.contains("sample.output_json.word")), "{}", found[2]);
    assert_eq!(run["per_model_usage"], json!([]));
    // A broken line is found before anything is graded.
    let file = upload(&server, &key, "evals", format!("{}\n{{\"item\"\n", line("yes")).as_bytes());
    let (run, found) = finished(&server, &key, &eval, &json!({"type": "jsonl", "source": {"type": "file_id", "id": file}}));
    assert!(run["status"] == "failed" && run["error"]["message"].as_str().is_some_and(|text| text.contains("line 2")), "{run}");
    assert!(found.is_empty());
    let shown = run["data_source"]["source"]["id"].as_str().expect("the file");
    assert_eq!(shown, file);
}

fn upload(server: &Server, key: &str, purpose: &str, bytes: &[u8]) -> String {
    let head = format!(
        "--b7\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--b7\r\ncontent-disposition: form-data; \
        name=\"file\"; filename=\"items.jsonl\"\r\n\r\n"
    );
    let body = [head.as_bytes(), bytes, b"\r\n--b7--\r\n"].concat();
    let url = format!("{}/v1/files", server.url());
    let made = send("POST", &url, Some(key), &[("content-type", "multipart/form-data; boundary=b7")], Some(body));
    assert_eq!(made.status, 200, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_string()
}

#[test]
fn models_grade_and_what_they_do_not_say_is_no_grade() {
    let judge = place(|_, request| {
        let asked = request["messages"][0]["content"].as_str().unwrap_or_default().to_string();
        if !request["response_format"].is_null() {
            return Act::Refuse(
                "400 Bad Request",
                "",
                json!({"error": {"message": "response_format is not known here", "type": "invalid_request_error"}}),
            );
        }
        Act::Json(completion(match asked.as_str() {
            "good" => "{\"result\": \"good\"}",
            "bad" => "bad",
            _ => "I would rather not say",
        }))
    });
    let refit = crate::places::behind(&[("judge", judge.port)], "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let criteria = json!([{"type": "label_model", "name": "tone", "model": "judge/m", "input": [{"role": "user", "content": "{{item.q}}"}],
        "labels": ["good", "bad"], "passing_labels": ["good"]}]);
    let eval = make(&server, &key, &custom(false), &criteria);
    let source = json!({"type": "jsonl", "source": content(&[item("good", ""), item("bad", ""), item("odd", "")])});
    let (run, found) = finished(&server, &key, &eval, &source);
    assert_eq!(run["result_counts"], json!({"total": 3, "passed": 1, "failed": 1, "errored": 1}), "{run}");
    assert_eq!(found[0]["results"][0]["sample"]["output"][0]["content"], "{\"result\": \"good\"}");
    let error = found[2]["sample"]["error"]["message"].as_str().unwrap_or_default();
    assert!(error.contains("\"tone\"") && error.contains("none of the labels"), "{error}");
    assert_eq!(run["per_model_usage"][0]["invocation_count"], 2);
}

#[test]
fn what_is_wrong_is_refused_by_its_field() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let refused = |path: &str, body: Value, field: &str| {
        let reply = server.post(path, Some(&key), &body);
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(field)), "{reply:?}");
    };
    let with = |config: Value, criterion: Value| json!({"data_source_config": config, "testing_criteria": [criterion]});
    let good = check("eq", "{{item.q}}");
    refused("/v1/evals", with(json!({"type": "x"}), good.clone()), "data_source_config.type");
    refused(
        "/v1/evals",
        with(json!({"type": "custom", "item_schema": {"type": "objekt"}}), good.clone()),
        "data_source_config.item_schema",
    );
    refused("/v1/evals", with(custom(false), check("eq", "{{sample.output_text}}")), "testing_criteria[0].input");
    let python = json!({"type": "python", "name": "p", "source": "def grade(sample, item): return 1"});
    refused("/v1/evals", with(custom(true), python), "testing_criteria[0].type");
    refused("/v1/evals", json!({"data_source_config": custom(true), "testing_criteria": [], "metadata": {}}), "testing_criteria");
    let eval = make(&server, &key, &custom(true), &json!([good]));
    let runs = format!("/v1/evals/{}/runs", id(&eval));
    let run = |source: Value| json!({"data_source": source});
    refused(
        &runs,
        run(json!({"type": "jsonl", "source": {"type": "file_content", "content": [{"itm": 1}]}})),
        "data_source.source.content[0]",
    );
    refused(&runs, run(json!({"type": "jsonl", "source": {"type": "file_id", "id": "file-none"}})), "data_source.source.id");
    refused(&runs, run(asking("", &[item("a", "b")], json!({}))), "data_source.model");
    let other = upload(&server, &key, "user_data", b"{}");
    refused(&runs, run(json!({"type": "jsonl", "source": {"type": "file_id", "id": other}})), "data_source.source.id");
    refused(
        &runs,
        run(asking("m/m", &[item("a", "b")], json!({"sampling_params": {"temprature": 1}}))),
        "data_source.sampling_params.temprature",
    );
    for path in ["/v1/evals/eval_none", "/v1/evals/%FF", "/v1/evals/eval_none/runs/evalrun_none/output_items"] {
        assert_eq!(server.get(path, Some(&key)).status, 404, "{path}");
    }
}

#[test]
fn evals_are_listed_changed_and_taken_away_within_their_project() {
    let refit = Refit::new();
    let key = refit.key();
    let other = refit.run(&["key", "create", "b", "--project", "b"]).expect(0).stdout.trim().to_string();
    let server = refit.serve(&[]);
    let criteria = json!([check("eq", "{{item.q}}")]);
    let made: Vec<_> = (0..3).map(|_| make(&server, &key, &custom(false), &criteria)).collect();
    let listed = |query: &str| {
        let list = server.get(&format!("/v1/evals{query}"), Some(&key)).json();
        list["data"].as_array().expect("evals").iter().map(|eval| id(eval).to_string()).collect::<Vec<_>>()
    };
    let all: Vec<_> = made.iter().map(|eval| id(eval).to_string()).collect();
    assert_eq!(listed(""), all);
    assert_eq!(listed(&format!("?order=desc&limit=1&after={}", all[2])), [all[1].clone()]);
    std::thread::sleep(Duration::from_millis(5));
    let changed = server.post(&format!("/v1/evals/{}", all[0]), Some(&key), &json!({"name": "renamed", "metadata": {"x": "y"}})).json();
    assert_eq!((&changed["name"], &changed["metadata"]), (&json!("renamed"), &json!({"x": "y"})));
    assert_eq!(listed("?order_by=updated_at&order=desc")[0], all[0]);
    assert!(server.get(&format!("/v1/evals/{}", all[0]), Some(&other)).status == 404);
    assert_eq!(server.get("/v1/evals", Some(&other)).json()["data"], json!([]));
    let (run, _) = finished(&server, &key, &made[0], &json!({"type": "jsonl", "source": content(&[item("a", "a")])}));
    let list: EvalRunList =
        serde_json::from_str(&server.get(&format!("/v1/evals/{}/runs?status=completed", all[0]), Some(&key)).body).expect("runs");
    assert_eq!((list.data.len(), list.has_more), (1, false));
    let gone = http("DELETE", &format!("{}{}", server.url(), path(&run)), Some(&key), None);
    assert_eq!(gone.json(), json!({"object": "eval.run.deleted", "deleted": true, "run_id": id(&run)}));
    let gone = http("DELETE", &format!("{}/v1/evals/{}", server.url(), all[0]), Some(&key), None);
    assert_eq!(gone.json(), json!({"object": "eval.deleted", "deleted": true, "eval_id": all[0]}));
    assert_eq!(listed("").len(), 2);
}

fn slow(names: &[String]) -> Value {
    asking("slow/m", &names.iter().map(|name| item(name, name)).collect::<Vec<_>>(), json!({}))
}

#[test]
fn a_killed_server_goes_on_where_it_was_and_asks_nothing_twice() {
    let asked = place(|_, request| {
        std::thread::sleep(Duration::from_millis(100));
        Act::Json(completion(request["messages"][0]["content"].as_str().unwrap_or_default()))
    });
    let refit = crate::places::behind(&[("slow", asked.port)], "[batches]\nconcurrency = 2\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let eval = make(&server, &key, &custom(true), &json!([check("eq", "{{sample.output_text}}")]));
    let names: Vec<_> = (0..16).map(|i| format!("item-{i:02}")).collect();
    let run = begin(&server, &key, &eval, &slow(&names)).json();
    let seen = wait(&server, &key, &run, |run| run["result_counts"]["total"].as_u64() >= Some(4));
    let before = seen["result_counts"]["total"].as_u64().expect("a number");
    server.kill();
    let server = refit.serve(&[]);
    let run = wait(&server, &key, &run, is_over);
    assert_eq!(run["result_counts"], json!({"total": 16, "passed": 16, "failed": 0, "errored": 0}), "{run}");
    let mut times = std::collections::BTreeMap::<String, usize>::new();
    for request in asked.bodies() {
        *times.entry(request["messages"][0]["content"].as_str().expect("a text").to_string()).or_default() += 1;
    }
    assert_eq!(times.keys().cloned().collect::<BTreeSet<_>>(), names.iter().cloned().collect());
    // Those that were on their way are asked again, those that were kept are not.
    let twice = times.values().filter(|times| **times > 1).count();
    assert!(twice <= 2 + 16 - usize::try_from(before).expect("few") && twice <= 4, "{times:?}");
}

#[test]
fn an_answer_whose_grading_is_cut_off_is_graded_and_not_asked_again() {
    let asked = place(|_, _| Act::Json(completion("yes")));
    let is_free = Arc::new(AtomicBool::new(false));
    let free = is_free.clone();
    let judge = place(move |_, _| match free.load(Ordering::SeqCst) {
        true => Act::Json(completion("{\"result\": \"good\"}")),
        false => {
            let body = json!({"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}});
            Act::Refuse("429 Too Many Requests", "retry-after: 30\r\n", body)
        }
    });
    let refit = crate::places::behind(&[("slow", asked.port), ("judge", judge.port)], "[batches]\nconcurrency = 2\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let criteria = json!([{"type": "label_model", "name": "tone", "model": "judge/m", "labels": ["good", "bad"], "passing_labels": ["good"],
        "input": [{"role": "user", "content": "{{sample.output_text}}"}]}]);
    let eval = make(&server, &key, &custom(true), &criteria);
    let run = begin(&server, &key, &eval, &slow(&["one".into(), "two".into()])).json();
    let begun = Instant::now();
    while judge.bodies().len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "nobody graded");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = i32::try_from(server.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the process is there");
    server.wait();
    is_free.store(true, Ordering::SeqCst);
    let server = refit.serve(&[]);
    let run = wait(&server, &key, &run, is_over);
    assert_eq!(run["result_counts"], json!({"total": 2, "passed": 2, "failed": 0, "errored": 0}), "{run}");
    assert_eq!(asked.bodies().len(), 2, "each was asked once");
    let items = server.get(&format!("{}/output_items", path(&run)), Some(&key)).json();
    assert_eq!(items["data"][0]["sample"]["output"][0]["content"], "yes", "what was asked and answered is told all the same");
}

#[test]
fn cosine_says_whose_key_must_be_allowed_what() {
    let refit = Refit::new();
    let limited = refit.run(&["key", "create", "limited", "--route", "mock/echo", "--json"]).expect(0).json();
    let (key, server) = (limited["key"].as_str().expect("a key"), refit.serve(&[]));
    let criteria = json!([{"type": "text_similarity", "name": "near", "input": "{{item.q}}", "reference": "{{item.a}}",
        "evaluation_metric": "cosine", "pass_threshold": 0.5}]);
    let eval = make(&server, key, &custom(false), &criteria);
    let (run, found) = finished(&server, key, &eval, &json!({"type": "jsonl", "source": content(&[item("a", "b")])}));
    assert_eq!(run["result_counts"]["errored"], 1, "{run}");
    let error = found[0]["sample"]["error"]["message"].as_str().unwrap_or_default();
    assert!(
        error.contains("cosine calls this model with the key that made the run") && error.contains("local/all-minilm-l6-v2"),
        "{error}"
    );
}

#[test]
fn a_run_is_canceled_and_one_whose_key_is_revoked_fails() {
    let asked = place(|_, _| {
        std::thread::sleep(Duration::from_millis(200));
        Act::Json(completion("x"))
    });
    let refit = crate::places::behind(&[("slow", asked.port)], "[batches]\nconcurrency = 1\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let eval = make(&server, &key, &custom(true), &json!([check("eq", "{{sample.output_text}}")]));
    let names: Vec<_> = (0..200).map(|i| format!("item-{i}")).collect();
    let run = begin(&server, &key, &eval, &slow(&names)).json();
    wait(&server, &key, &run, |run| run["result_counts"]["total"].as_u64() >= Some(1));
    let blocked = http("DELETE", &format!("{}{}", server.url(), path(&run)), Some(&key), None);
    assert_eq!(blocked.status, 409, "{blocked:?}");
    let cancel = format!("{}/cancel", path(&run));
    assert_eq!(server.post(&cancel, Some(&key), &json!({})).status, 200);
    let over = wait(&server, &key, &run, is_over);
    assert!(over["status"] == "canceled" && over["result_counts"]["total"].as_u64() < Some(200), "{over}");
    assert_eq!(server.post(&cancel, Some(&key), &json!({})).status, 409, "it has ended");
    let doomed = refit.run(&["key", "create", "doomed", "--json"]).expect(0).json();
    let run = begin(&server, doomed["key"].as_str().expect("a key"), &eval, &slow(&names)).json();
    wait(&server, &key, &run, |run| run["result_counts"]["total"].as_u64() >= Some(1));
    refit.run(&["key", "revoke", doomed["id"].as_str().expect("an id")]).expect(0);
    let over = wait(&server, &key, &run, is_over);
    assert!(over["status"] == "failed" && over["error"]["message"].as_str().is_some_and(|text| text.contains("revoked")), "{over}");
}

#[test]
fn stored_completions_are_tested_as_they_were_when_the_run_was_made() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let say = |text: &str, team: &str| {
        let body =
            json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}], "store": true, "metadata": {"team": team}});
        assert_eq!(server.post("/v1/chat/completions", Some(&key), &body).status, 200);
    };
    ["yes", "no"].iter().for_each(|text| say(text, "a"));
    say("yes", "b");
    let criterion =
        json!({"type": "string_check", "name": "yes", "input": "{{sample.output_text}}", "reference": "yes", "operation": "eq"});
    let eval = make(&server, &key, &json!({"type": "stored_completions", "metadata": {"team": "a"}}), &json!([criterion]));
    let source = json!({"type": "completions", "source": {"type": "stored_completions", "metadata": {"team": "a"}}});
    let waited = Instant::now();
    let (run, found) = loop {
        let made = begin(&server, &key, &eval, &source);
        // The log's rows are on their way to the database.
        let done = (made.status == 200).then(|| finished(&server, &key, &eval, &source)).filter(|(_, found)| found.len() == 2);
        if let Some(done) = done {
            break done;
        }
        assert!(waited.elapsed() < PATIENCE, "{made:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(run["result_counts"], json!({"total": 2, "passed": 1, "failed": 1, "errored": 0}), "{run}");
    assert_eq!(found[0]["datasource_item"]["input"][0]["content"], "yes");
    // Another model is asked what those were asked.
    let again = json!({"type": "completions", "model": "mock/echo", "source": {"type": "stored_completions", "limit": 1},
        "input_messages": {"type": "item_reference", "item_reference": "item.input"}});
    let (run, found) = finished(&server, &key, &eval, &again);
    assert_eq!((&run["result_counts"]["total"], &found[0]["sample"]["output"][0]["content"]), (&json!(1), &json!("yes")), "{run}");
    for fields in [json!({"metadata": {"team": "c"}}), json!({"created_before": 1}), json!({"created_after": 4_000_000_000_u64})] {
        let mut none = json!({"type": "completions", "source": {"type": "stored_completions"}});
        none["source"].as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let refused = begin(&server, &key, &eval, &none);
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("data_source.source")), "{refused:?}");
    }
}
