//! Models whose own weights are trained (`method: full`): stored, served, told where they came from, refused, killed and resumed.

use crate::families::{SHARDS, Small, questions, written};
use crate::support::Refit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A store with a small model and a dataset.
fn with_small(architecture: &str) -> Refit {
    let refit = Refit::new();
    refit.write("questions.jsonl", questions());
    refit.run(&["data", "import", "questions.jsonl", "--name", "questions"]).expect(0);
    refit.run(&["data", "split", "questions", "--seed", "7"]).expect(0);
    written(&refit, "small", &Small::new(architecture).files(&SHARDS));
    refit.run(&["model", "pull", "small"]).expect(0);
    refit
}

fn recipe(refit: &Refit, name: &str, more: &str) {
    let keys = "model: local/small\ndataset: questions\nmethod: full\nlearning_rate: 0.003\n";
    refit.write("recipe.yaml", format!("name: {name}\n{keys}{more}"));
}

/// Where the weights of a stored model lie.
fn weights(refit: &Refit, name: &str) -> Vec<u8> {
    let shown = refit.run(&["model", "show", name, "--json"]).expect(0).json();
    let path = shown["files"]["model.safetensors"].as_str().unwrap_or_else(|| panic!("{shown}")).to_string();
    std::fs::read(refit.path().join(path)).expect("weights")
}

/// Its tensors.
fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let read = safetensors::SafeTensors::deserialize(bytes).expect("safetensors");
    read.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn a_model_is_trained_whole_served_and_says_where_it_came_from() {
    for architecture in ["qwen2", "gemma3_text"] {
        let refit = with_small(architecture);
        recipe(&refit, "own", "max_steps: 4\n");
        let foreseen = refit.run(&["tune", "estimate", "recipe.yaml", "--json"]).expect(0).json();
        assert_eq!(foreseen["parameters"], foreseen["trained_parameters"], "{foreseen}");
        let done = refit.run(&["tune", "run", "recipe.yaml", "--json"]).expect(0).json();
        let result = &done["result"];
        assert_eq!((&result["adapter"], &result["parameters"]), (&json!("local/own"), &foreseen["parameters"]), "{done}");
        let [first, last] = [0, 1].map(|i| result["first_and_last_loss"][i].as_f64().expect("a loss"));
        assert!(last < first, "{first} to {last}");

        let shown = refit.run(&["model", "show", "own", "--json"]).expect(0).json();
        let (job, base) = (done["job"].as_str().expect("a job"), refit.run(&["model", "show", "small", "--json"]).expect(0).json());
        assert_eq!((&shown["digest"], &shown["architecture"]), (&result["digest"], &base["architecture"]));
        assert!(shown["source"].as_str().is_some_and(|source| source.contains(job) && source.contains("local/small")), "{shown}");
        let bytes = weights(&refit, "own");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
        let told: Value = serde_json::from_str(&header.metadata().as_ref().expect("metadata")["refit"]).expect("JSON");
        assert_eq!((&told["model_digest"], &told["recipe"]["method"]), (&base["digest"], &json!("full")));
        assert!(told["dataset"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{told}");

        // Every tensor moved, and what is tied stays tied.
        let own = tensors(&bytes);
        let small = Small::new(architecture);
        assert_eq!(own.keys().collect::<Vec<_>>(), small.tensors.keys().collect::<Vec<_>>());
        for (name, bytes) in &own {
            let values = bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32());
            let moved = values.zip(&small.tensors[name].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(moved > 1e-3, "{name} moved by {moved}");
        }
        let (key, server) = (refit.key(), refit.serve(&[]));
        let body = json!({"model": "local/own", "messages": [{"role": "user", "content": "Where is order 3?"}], "max_tokens": 5});
        let reply = server.post("/v1/chat/completions", Some(&key), &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        // It leaves as one file, and comes back as a model that says the same.
        let out = refit.run(&["tune", "export", "own", "out", "--format", "merged-gguf", "--elements", "f32", "--json"]).expect(0).json();
        assert!(out["exported"]["verified"]["largest_difference"].as_f64().is_some_and(|x| x < 1e-3), "{out}");
        assert!(refit.run(&["tune", "export", "own", "no", "--format", "gguf-lora"]).expect(2).stderr.contains("no adapter"));
        refit.run(&["model", "pull", "out/model.gguf", "--name", "again"]).expect(0);
        let says = |model: &str| {
            let body = json!({"model": model, "messages": [{"role": "user", "content": "Where is order 3?"}], "max_tokens": 1,
                "temperature": 0, "logprobs": true, "top_logprobs": 5});
            let reply = server.post("/v1/chat/completions", Some(&key), &body);
            reply.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"].clone()
        };
        let (own, again) = (says("local/own"), says("local/again"));
        for (a, b) in own.as_array().expect("tokens").iter().zip(again.as_array().expect("tokens")) {
            let apart = a["logprob"].as_f64().expect("a number") - b["logprob"].as_f64().expect("a number");
            // Places in the vocabulary without a token get a name in GGUF.
            assert!((a["token"] == b["token"] || a["token"] == "") && apart.abs() < 0.05, "{own} {again}");
        }
    }
}

#[test]
fn what_cannot_be_trained_whole_is_refused_before_it_begins() {
    let refit = with_small("llama");
    for (name, more, words) in [
        ("small", "", "there is a model \"small\" already"),
        ("smollm2-135m-instruct", "", "or in the catalogue"),
        ("own", "rank: 4\n", "rank must be left out: it belongs to adapters"),
    ] {
        recipe(&refit, name, more);
        let told = refit.run(&["tune", "run", "recipe.yaml"]).expect(2).stderr;
        assert!(told.contains(words), "{told}");
    }
    recipe(&refit, "own", "");
    let told = refit.run(&["tune", "sweep", "recipe.yaml", "--learning-rate", "1e-3,1e-4"]).expect(2).stderr;
    assert!(told.contains("would be a model of its own"), "{told}");
}

/// A training that was begun and has made some steps: its process, and the id of its job.
fn begun(refit: &Refit) -> (Child, String) {
    let child = refit.command(&["tune", "run", "recipe.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    let began = Instant::now();
    let running = || {
        let all = refit.run(&["tune", "status", "--json"]).expect(0).json();
        let job = all.as_array().expect("jobs").iter().find(|job| job["status"] == "running")?;
        Some((job["id"].as_str()?.to_string(), job["progress"]["step"].as_u64()?))
    };
    loop {
        assert!(began.elapsed() < Duration::from_secs(120), "no step came");
        match running() {
            Some((id, step)) if step >= 2 => return (child, id),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Sends a signal to the worker of a job, if it is still there: how the job ended tells.
fn signal(id: &str, signal: Signal) {
    for pid in crate::local::workers(id) {
        let _ = kill_process(Pid::from_raw(pid as i32).expect("a process"), signal);
    }
}

#[test]
fn a_kill_and_a_cancel_leave_a_training_of_a_whole_model_that_goes_on_as_if_nothing_had_been() {
    let refit = with_small("qwen3");
    let keys = "epochs: 40\nbatch_size: 2\ncheckpoint_every: 1\nweight_decay: 0.01\n";
    recipe(&refit, "straight", keys);
    refit.run(&["tune", "run", "recipe.yaml"]).expect(0);
    let straight = tensors(&weights(&refit, "straight"));
    assert!(straight.len() > 20);

    recipe(&refit, "killed", keys);
    let (mut child, id) = begun(&refit);
    signal(&id, Signal::KILL);
    let _ = child.wait();
    assert!(refit.run(&["model", "show", "killed"]).code != 0, "nothing half-written is a model");
    refit.run(&["tune", "resume", &id]).expect(0);
    assert!(tensors(&weights(&refit, "killed")) == straight, "another model after a kill");

    recipe(&refit, "cancelled", keys);
    let (mut child, id) = begun(&refit);
    refit.run(&["tune", "cancel", &id]).expect(0);
    // A worker asks once in a second whether it is to go on: it stands still until it is due to ask, and cannot end before.
    signal(&id, Signal::STOP);
    std::thread::sleep(Duration::from_millis(1_200));
    signal(&id, Signal::CONT);
    let _ = child.wait();
    let all = refit.run(&["tune", "status", "--json"]).expect(0).json();
    let ended = all.as_array().expect("jobs").iter().find(|job| job["id"] == id.as_str()).expect("the job");
    assert_eq!(ended["status"], json!("cancelled"), "{ended}");
    assert!(refit.run(&["model", "show", "cancelled"]).code != 0, "nothing half-trained is a model");
    // Meanwhile somebody takes the name: that model stays what it is.
    refit.run(&["model", "pull", "small", "--name", "cancelled"]).expect(0);
    let digest = |name: &str| refit.run(&["model", "show", name, "--json"]).expect(0).json()["digest"].clone();
    refit.run(&["tune", "resume", &id]).expect(0);
    assert_eq!(digest("cancelled"), digest("small"));
    assert!(tensors(&weights(&refit, "cancelled-2")) == straight, "another model after a cancel");
}

#[test]
fn a_worker_that_dies_after_it_stored_its_model_leaves_one_model() {
    let refit = with_small("llama");
    recipe(&refit, "own", "max_steps: 2\n");
    let done = refit.run(&["tune", "run", "recipe.yaml", "--json"]).expect(0).json();
    let job = done["job"].as_str().expect("a job");
    let names = || {
        let listed = refit.run(&["model", "list", "--json"]).expect(0).json();
        let stored = listed.as_array().expect("a list").iter().filter(|row| row["stored"] == true).map(|row| row["name"].clone());
        stored.collect::<Vec<_>>()
    };
    let before = names();
    // As it stands in the database when the worker dies before it can say that the job succeeded.
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let changed =
        database.execute("UPDATE jobs SET status = 'failed', result = 'null', error = 'gone' WHERE id = ?", [job]).expect("a row");
    assert_eq!(changed, 1);
    drop(database);
    // What it left in the middle of writing.
    let leftover = refit.data_dir().join("jobs").join(job).join("model");
    std::fs::create_dir_all(&leftover).expect("a folder");
    std::fs::write(leftover.join("model.safetensors"), b"half").expect("written");
    let again = refit.run(&["tune", "resume", job, "--json"]).expect(0).json();
    assert_eq!((&again["result"]["adapter"], &again["result"]["digest"]), (&json!("local/own"), &done["result"]["digest"]), "{again}");
    assert_eq!(names(), before);
    assert!(!leftover.exists());
}

#[test]
fn a_worker_that_dies_after_it_stored_its_adapter_leaves_one_adapter() {
    let refit = with_small("llama");
    recipe(&refit, "own", "max_steps: 2\n");
    let text = std::fs::read_to_string(refit.path().join("recipe.yaml")).expect("a recipe").replace("method: full\n", "");
    refit.write("recipe.yaml", text);
    let done = refit.run(&["tune", "run", "recipe.yaml", "--json"]).expect(0).json();
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let job = done["job"].as_str().expect("a job");
    let changed =
        database.execute("UPDATE jobs SET status = 'failed', result = 'null', error = 'gone' WHERE id = ?", [job]).expect("a row");
    assert_eq!(changed, 1);
    drop(database);
    let again = refit.run(&["tune", "resume", job, "--json"]).expect(0).json();
    assert_eq!(
        (&again["result"]["adapter"], &again["result"]["digest"]),
        (&done["result"]["adapter"], &done["result"]["digest"]),
        "{again}"
    );
    assert_eq!(refit.run(&["tune", "adapters", "--json"]).expect(0).json().as_array().map(Vec::len), Some(1));
}
