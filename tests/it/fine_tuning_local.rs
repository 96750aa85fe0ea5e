//! Local models fine-tuned through OpenAI's API: on the real SmolLM2 and the real MiniLM.

use crate::fine_tuning::{JOBS, file, talks, upload};
use crate::keys::key;
use crate::local::with_model;
use crate::rig::wait_for;
use crate::support::{self, Refit, Server, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MODEL: &str = "local/smollm2-135m-instruct";
/// Longer than any training here takes, a lease that has to run out included.
const PATIENCE: Duration = Duration::from_secs(240);

const TALKS: [(&str, &str); 6] = [
    ("Where is my order?", "order_status"),
    ("Cancel it please", "cancel_order"),
    ("The kettle leaks", "damaged_item"),
    ("I was charged twice", "billing"),
    ("My login does not work", "account_access"),
    ("Great shop!", "feedback"),
];

fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

fn wait(server: &Server, key: &str, job: &Value, until: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let shown = server.get(&format!("{JOBS}/{}", id(job)), Some(key));
        assert_eq!(shown.status, 200, "{shown:?}");
        let shown = shown.json();
        if until(&shown) {
            return shown;
        }
        assert!(begun.elapsed() < PATIENCE && shown["status"] != "failed", "{shown} {}", server.errors());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn is_over(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("succeeded" | "failed" | "cancelled"))
}

/// Every event, page by page, newest first.
fn events(server: &Server, key: &str, job: &Value) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("{JOBS}/{}/events?limit=3{after}", id(job)), Some(key)).json();
        let data = page["data"].as_array().expect("events").clone();
        after = data.last().map(|event| format!("&after={}", id(event))).unwrap_or_default();
        all.extend(data);
        if page["has_more"] == json!(false) {
            return all;
        }
    }
}

fn create(server: &Server, key: &str, body: &Value) -> Value {
    let made = server.post(JOBS, Some(key), body);
    assert_eq!(made.status, 200, "{made:?}");
    made.json()
}

fn metrics(events: &[Value]) -> Vec<i64> {
    let mut steps: Vec<_> =
        events.iter().filter(|event| event["type"] == "metrics").filter_map(|event| event["data"]["step"].as_i64()).collect();
    steps.sort_unstable();
    steps
}

fn say(server: &Server, key: &str, model: &Value, text: &str) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0});
    let reply = server.post("/v1/chat/completions", Some(key), &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["choices"][0]["message"]["content"].clone()
}

#[test]
fn a_local_model_is_fine_tuned_paused_resumed_and_called() {
    let Some(refit) = with_model("fine_tuning_local::a_local_model_is_fine_tuned_paused_resumed_and_called") else { return };
    let (mine, other) = (key(&refit, &[]), key(&refit, &["--project", "two"]));
    let server = refit.serve(&[]);
    let (training, validation) = (file(&server, &mine, &talks(&TALKS)), file(&server, &mine, &talks(&TALKS[..2])));
    let body = json!({"model": MODEL, "training_file": training, "validation_file": validation, "suffix": "Help Desk", "seed": 3,
        "metadata": {"team": "a"}, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": 2}}}});
    let job = create(&server, &mine, &body);
    assert_eq!((&job["status"], &job["fine_tuned_model"], &job["seed"]), (&json!("queued"), &Value::Null, &json!(3)), "{job}");
    assert_eq!(job["hyperparameters"], json!({"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 1.0}));
    let path = format!("{JOBS}/{}", job["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path, Some(&other)).status, 404);
    let deleted = support::http("DELETE", &format!("{}/v1/files/{training}", server.url()), Some(&mine), None);
    assert_eq!(deleted.status, 409, "it is still read: {deleted:?}");

    wait(&server, &mine, &job, |_| !metrics(&events(&server, &mine, &job)).is_empty());
    let pausing = server.post_bytes(&format!("{path}/pause"), Some(&mine), b"").json();
    assert!(matches!(pausing["status"].as_str(), Some("pausing" | "paused")), "{pausing}");
    wait(&server, &mine, &job, |job| job["status"] == "paused");
    let before = metrics(&events(&server, &mine, &job)).len();
    assert!((1..24).contains(&before), "it stopped in the middle: {before}");
    let resumed = server.post_bytes(&format!("{path}/resume"), Some(&mine), b"");
    assert_eq!((resumed.status, &resumed.json()["status"]), (200, &json!("queued")), "{resumed:?}");
    assert_eq!(server.post_bytes(&format!("{path}/resume"), Some(&mine), b"").status, 409);
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!(done["status"], "succeeded", "{done}");
    assert_eq!(done["fine_tuned_model"], format!("{MODEL}:help-desk"));
    assert!(done["trained_tokens"].as_u64() > Some(100) && done["finished_at"].is_i64(), "{done}");

    let all = events(&server, &mine, &job);
    assert_eq!(metrics(&all), (1..=24).collect::<Vec<_>>(), "every step once, in spite of the pause");
    let said = |part: &str| all.iter().any(|event| event["message"].as_str().is_some_and(|message| message.contains(part)));
    assert!(said("Created fine-tuning job") && said("New fine-tuned model created") && said("successfully completed"), "{all:?}");
    let results = done["result_files"][0].as_str().expect("a result file");
    let table = server.get(&format!("/v1/files/{results}/content"), Some(&mine)).body;
    assert_eq!(table.lines().count(), 25, "{table}");
    assert_eq!(table.lines().next(), Some("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"));
    let kept = server.get(&format!("{path}/checkpoints"), Some(&mine)).json()["data"][0].clone();
    assert_eq!(kept["fine_tuned_model_checkpoint"], done["fine_tuned_model"]);
    assert!(kept["metrics"]["valid_loss"].is_f64(), "{kept}");
    // It learned the six answers by heart.
    assert_eq!(say(&server, &mine, &done["fine_tuned_model"], TALKS[2].0), TALKS[2].1);
    for verb in ["cancel", "pause", "resume"] {
        assert_eq!(server.post_bytes(&format!("{path}/{verb}"), Some(&mine), b"").status, 409, "{verb}");
    }

    // The same suffix again is another model, and a queued job is cancelled at once where another one trains.
    let second = create(&server, &mine, &body);
    let third = create(&server, &mine, &body);
    let cancel = |job: &Value| server.post_bytes(&format!("{JOBS}/{}/cancel", job["id"].as_str().expect("an id")), Some(&mine), b"").json();
    assert_eq!(cancel(&third)["status"], "cancelled");
    cancel(&second);
    let second = wait(&server, &mine, &second, is_over);
    assert_eq!((&second["status"], &second["fine_tuned_model"]), (&json!("cancelled"), &Value::Null));
    let listed = server.get(&format!("{JOBS}?limit=2"), Some(&mine)).json();
    assert_eq!((listed["data"].as_array().map(Vec::len), &listed["has_more"]), (Some(2), &json!(true)));
    let rest = server.get(&format!("{JOBS}?limit=2&after={}", second["id"].as_str().expect("an id")), Some(&mine)).json();
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&job["id"], &json!(false)));
    assert_eq!(say(&server, &mine, &done["fine_tuned_model"], TALKS[2].0), TALKS[2].1, "the first one's model stays what it was");
    let shown = refit.run(&["tune", "status", "--json"]).expect(0).json();
    assert_eq!(shown.as_array().map(Vec::len), Some(3), "{shown}");
}

/// The process id of the worker that holds a running job.
fn worker(refit: &Refit) -> Option<Pid> {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let owner: Option<String> = database.query_row("SELECT owner FROM jobs WHERE kind = 'fine_tune'", [], |row| row.get(0)).expect("a row");
    owner?.split('-').nth(1)?.parse().ok().and_then(Pid::from_raw)
}

#[test]
fn a_training_goes_on_when_server_and_worker_were_killed() {
    let Some(refit) = with_model("fine_tuning_local::a_training_goes_on_when_server_and_worker_were_killed") else { return };
    let mine = key(&refit, &[]);
    let mut server = refit.serve(&[]);
    let training = file(&server, &mine, &talks(&TALKS));
    let body = json!({"model": MODEL, "training_file": training, "hyperparameters": {"n_epochs": 12, "batch_size": 2}});
    let job = create(&server, &mine, &body);
    // A checkpoint is written every 20 steps.
    wait(&server, &mine, &job, |_| metrics(&events(&server, &mine, &job)).len() > 22);
    server.kill();
    kill_process(worker(&refit).expect("a worker"), Signal::KILL).expect("it runs");
    let server = refit.serve(&[]);
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!(done["status"], "succeeded", "{done}");
    assert_eq!(metrics(&events(&server, &mine, &job)), (1..=36).collect::<Vec<_>>());
    // A server that ends leaves its worker be: here there is none any more.
    wait_for("the worker's end", || worker(&refit).is_none());
}

#[test]
fn a_file_that_cannot_be_learned_names_its_line() {
    let Some(refit) = with_model("fine_tuning_local::a_file_that_cannot_be_learned_names_its_line") else { return };
    let mine = key(&refit, &[]);
    let server = refit.serve(&[]);
    let refused = |lines: &str| {
        let training = file(&server, &mine, lines);
        let reply = server.post(JOBS, Some(&mine), &json!({"model": MODEL, "training_file": training}));
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("training_file")), "{reply:?}");
        reply.json()["error"]["message"].as_str().expect("a message").to_string()
    };
    let good = talks(&TALKS[..1]);
    let tools =
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"type": "function"}]});
    let told = refused(&format!("{good}{tools}\n"));
    assert!(told.contains("train.jsonl, line 2") && told.contains("tools"), "{told}");
    let mut without = tool_call(TOOL_CALLS[0]);
    without["tools"][0]["function"]["parameters"] = Value::Null;
    let told = refused(&format!("{good}{good}{without}\n"));
    assert!(told.contains("line 3") && told.contains("\"find_order\"") && told.contains("schema"), "{told}");
    let mut other = tool_call(TOOL_CALLS[0]);
    other["messages"][1]["tool_calls"][0]["function"]["name"] = json!("fly");
    let told = refused(&format!("{other}\n"));
    assert!(told.contains("line 1") && told.contains("\"fly\""), "{told}");
    let told = refused(&(json!({"prompt": "p", "chosen": "a", "rejected": "b"}).to_string() + "\n"));
    assert!(told.contains("a preference"), "{told}");
    let last = json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]});
    let told = upload(&server, &mine, "train.jsonl", "fine-tune", &format!("{good}{last}\n"));
    assert!(told.status == 400 && told.body.contains("line 2"), "{told:?}");
    let told = refused(&format!("{good}{}", talks(&[(&"word ".repeat(9_000), "a")])));
    assert!(told.contains("line 2") && told.contains("tokens"), "{told}");
    let training = file(&server, &mine, &good);
    let unknown = server.post(JOBS, Some(&mine), &json!({"model": "local/nothing", "training_file": training}));
    assert_eq!((unknown.status, &unknown.json()["error"]["param"]), (404, &json!("model")), "{unknown:?}");
}

/// What a customer says, and the call that answers it.
const TOOL_CALLS: [(&str, &str, &str); 6] = [
    ("Where is order 17?", "find_order", "{\"number\": 17}"),
    ("Please look up order 4", "find_order", "{\"number\": 4}"),
    ("Has order 230 been sent?", "find_order", "{\"number\": 230}"),
    ("I want to talk to a person", "call_agent", "{\"topic\": \"other\"}"),
    ("My bill is wrong, get me somebody", "call_agent", "{\"topic\": \"billing\"}"),
    ("The refund is missing, I need help", "call_agent", "{\"topic\": \"refund\"}"),
];

fn desk_tools() -> Value {
    let tool = |name: &str, property: &str, schema: Value| {
        let parameters = json!({"type": "object", "properties": {property: schema}, "required": [property], "additionalProperties": false});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    json!([
        tool("find_order", "number", json!({"type": "integer"})),
        tool("call_agent", "topic", json!({"enum": ["billing", "refund", "other"]})),
    ])
}

/// A record of OpenAI's fine-tuning format that ends with a call.
fn tool_call((asked, name, arguments): (&str, &str, &str)) -> Value {
    let call = json!({"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}});
    json!({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": null, "tool_calls": [call]}],
        "tools": desk_tools(), "parallel_tool_calls": false})
}

#[test]
fn calls_of_tools_are_learned() {
    let Some(refit) = with_model("fine_tuning_local::calls_of_tools_are_learned") else { return };
    let mine = key(&refit, &[]);
    let server = refit.serve(&[]);
    let answer = |model: &Value, asked: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": asked}], "tools": desk_tools(), "temperature": 0,
            "max_tokens": 60});
        let reply = server.post("/v1/chat/completions", Some(&mine), &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["choices"][0].clone()
    };
    let training = file(&server, &mine, &TOOL_CALLS.map(|call| format!("{}\n", tool_call(call))).concat());
    let method = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 8, "batch_size": 2}}});
    let job = create(&server, &mine, &json!({"model": MODEL, "training_file": training, "suffix": "caller", "seed": 5, "method": method}));
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!(done["status"], "succeeded", "{done}");
    for (asked, name, arguments) in TOOL_CALLS {
        let choice = answer(&done["fine_tuned_model"], asked);
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!((&choice["finish_reason"], &call["name"]), (&json!("tool_calls"), &json!(name)), "{asked}: {choice}");
        let found: Value = serde_json::from_str(call["arguments"].as_str().expect("a text")).expect("JSON");
        assert_eq!(found, serde_json::from_str::<Value>(arguments).expect("JSON"), "{asked}");
    }
    let untaught = TOOL_CALLS.iter().filter(|(asked, ..)| answer(&json!(MODEL), asked)["finish_reason"] == "tool_calls").count();
    assert!(untaught < TOOL_CALLS.len(), "the model as it is makes every call: nothing was shown");
}

#[test]
fn a_job_that_is_paused_before_its_worker_begins_goes_on() {
    let Some(refit) = with_model("fine_tuning_local::a_job_that_is_paused_before_its_worker_begins_goes_on") else { return };
    let mine = key(&refit, &[]);
    let server = refit.serve(&[]);
    let training = file(&server, &mine, &talks(&TALKS));
    for (name, value, part) in
        [("learning_rate_multiplier", 2000, "the learning rate"), ("n_epochs", 1001, "1 to 1000"), ("batch_size", 5000, "1 to 1024")]
    {
        let method = json!({"type": "supervised", "supervised": {"hyperparameters": {name: value}}});
        let reply = server.post(JOBS, Some(&mine), &json!({"model": MODEL, "training_file": training, "method": method}));
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["param"]), (400, &json!(format!("method.supervised.hyperparameters.{name}"))), "{error}");
        assert!(error["message"].as_str().is_some_and(|told| told.contains(part)), "{error}");
    }
    let method = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 6}}});
    let job = create(&server, &mine, &json!({"model": MODEL, "training_file": training, "method": method}));
    let path = format!("{JOBS}/{}", id(&job));
    assert_eq!(server.post_bytes(&format!("{path}/pause"), Some(&mine), b"").status, 200);
    wait(&server, &mine, &job, |job| job["status"] == "paused");
    // Its worker finds nothing to do and ends, and then the server looks at it.
    std::thread::sleep(Duration::from_millis(250));
    let resumed = server.post_bytes(&format!("{path}/resume"), Some(&mine), b"");
    assert_eq!((resumed.status, &resumed.json()["status"]), (200, &json!("queued")), "{resumed:?}");
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!(done["status"], "succeeded", "{done}");
}

#[test]
fn preferences_are_learned() {
    let Some(refit) = with_model("fine_tuning_local::preferences_are_learned") else { return };
    let mine = key(&refit, &[]);
    let server = refit.serve(&[]);
    let said = |text: &str| json!([{"role": "assistant", "content": text}]);
    let pair = |(asked, good): (&str, &str)| json!({"input": {"messages": [{"role": "user", "content": asked}]}, "preferred_output": said(good), "non_preferred_output": said("no idea")});
    let lines: String = TALKS.map(pair).map(|line| format!("{line}\n")).concat();
    let training = file(&server, &mine, &lines);
    let method = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 4, "batch_size": 3}}});
    let job = create(&server, &mine, &json!({"model": MODEL, "training_file": training, "suffix": "polite", "method": method}));
    assert_eq!((&job["method"]["type"], &job["method"]["dpo"]["hyperparameters"]["beta"]), (&json!("dpo"), &json!(0.2)), "{job}");
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("succeeded"), &json!(format!("{MODEL}:polite"))), "{done}");
    let told = events(&server, &mine, &job);
    assert_eq!(metrics(&told), (1..=8).collect::<Vec<_>>());
    let loss = |step: i64| told.iter().find(|event| event["data"]["step"] == step).and_then(|event| event["data"]["train_loss"].as_f64());
    // Before anything is learned both answers are as likely as the reference has them: ln 2.
    assert!(loss(1).is_some_and(|loss| (loss - std::f64::consts::LN_2).abs() < 1e-3) && loss(8) < loss(1), "{told:?}");
    let plain = file(&server, &mine, &talks(&TALKS));
    let refused = server.post(JOBS, Some(&mine), &json!({"model": MODEL, "training_file": plain, "method": {"type": "dpo"}}));
    assert!(refused.status == 400 && refused.body.contains("line 1") && refused.body.contains("preferred_output"), "{refused:?}");
}

#[test]
fn a_model_that_makes_embeddings_gets_a_head() {
    let Some(folder) = support::embedder_folder() else {
        return skip(
            "fine_tuning_local::a_model_that_makes_embeddings_gets_a_head",
            "REFIT_TEST_EMBEDDER does not name the embedding model",
        );
    };
    let refit = Refit::new();
    refit.run(&["model", "pull", &folder.path().display().to_string(), "--name", "all-minilm-l6-v2"]).expect(0);
    let mine = key(&refit, &[]);
    let server = refit.serve(&[]);
    let lines = [
        ("Where is my parcel?", "delivery"),
        ("My order has not arrived yet", "delivery"),
        ("The courier never came", "delivery"),
        ("I want my money back", "refund"),
        ("Please refund my purchase", "refund"),
        ("You have not paid me back", "refund"),
    ];
    let training = file(&server, &mine, &talks(&lines));
    let body = json!({"model": "local/all-minilm-l6-v2", "training_file": training, "suffix": "desk"});
    let job = create(&server, &mine, &body);
    let done = wait(&server, &mine, &job, is_over);
    assert_eq!(done["fine_tuned_model"], "local/all-minilm-l6-v2:desk", "{done}");
    assert_eq!(say(&server, &mine, &done["fine_tuned_model"], "give me back what I paid"), "refund");
    let one = file(&server, &mine, &talks(&lines[..2]));
    let refused = server.post(JOBS, Some(&mine), &json!({"model": "local/all-minilm-l6-v2", "training_file": one}));
    assert!(refused.status == 400 && refused.body.contains("fewer than two labels"), "{refused:?}");
}
