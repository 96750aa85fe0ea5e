//! Methods of tuning through the built program, on the real model: rsLoRA and DoRA, preferences, classifiers on a chat model; what cannot be
//! learned from, and trainings that meet a full disk or are killed.

use crate::local::{MODEL, with_model, workers};
use crate::rig::{ALL, ENOSPC, Faulty};
use crate::support::Refit;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn import(refit: &Refit, name: &str, splits: &[(&str, Vec<Value>)]) {
    let mut files = Vec::new();
    for (split, lines) in splits {
        let file = format!("{name}-{split}.jsonl");
        refit.write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        files.extend(["--split-file".to_string(), format!("{split}={file}")]);
    }
    let mut args = vec!["data", "import", "--name", name];
    args.extend(files.iter().map(String::as_str));
    refit.run(&args).expect(0);
}

fn recipe(refit: &Refit, name: &str, more: &str) {
    refit.write("recipe.yaml", format!("name: {name}\nmodel: local/{MODEL}\ndataset: {name}\nseed: 3\n{more}"));
}

fn tune(refit: &Refit, name: &str, more: &str) -> Value {
    recipe(refit, name, more);
    refit.run(&["tune", "run", "recipe.yaml", "--json"]).expect(0).json()["result"].clone()
}

fn refused(refit: &Refit, name: &str, more: &str) -> String {
    recipe(refit, name, more);
    let done = refit.run(&["tune", "run", "recipe.yaml"]);
    assert_eq!(done.code, 2, "{done:?}");
    done.stderr
}

/// Orders and the few words that answer them.
fn orders() -> Vec<(&'static str, Vec<Value>)> {
    let sample = |id: usize, asked: &str, answer: &str| json!({"id": format!("s{id}"), "input": {"text": asked}, "target": answer});
    let train = [
        ("Where is my parcel?", "Delivery desk."),
        ("My order has not come", "Delivery desk."),
        ("I want my money back", "Refund desk."),
        ("Please pay me back", "Refund desk."),
    ];
    let train = train.iter().enumerate().map(|(id, (asked, answer))| sample(id, asked, answer)).collect();
    vec![("train", train), ("validation", vec![sample(10, "The courier never came", "Delivery desk.")])]
}

fn answer(server: &crate::support::Server, key: &str, adapter: &str, text: &str) -> Value {
    let body = json!({"model": format!("local/{MODEL}:{adapter}"), "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12});
    server.post("/v1/chat/completions", Some(key), &body).json()
}

#[test]
fn a_dora_adapter_with_rslora_is_trained_served_and_exported() {
    let Some(refit) = with_model("methods::a_dora_adapter_with_rslora_is_trained_served_and_exported") else { return };
    import(&refit, "orders", &orders());
    let keys =
        "rank: 4\nalpha: 8\nrslora: true\ndora: true\ndropout: 0.05\nepochs: 8\nbatch_tokens: 64\nlearning_rate: 0.005\nwarmup_steps: 1\n";
    let result = tune(&refit, "orders", keys);
    let [first, last] = [0, 1].map(|at| result["first_and_last_loss"][at].as_f64().expect("a loss"));
    assert!(last < first / 4.0, "{result}");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for (asked, desk) in [("Where is my parcel?", "Delivery desk."), ("I want my money back", "Refund desk.")] {
        let said = answer(&server, &key, "orders", asked);
        assert_eq!(said["choices"][0]["message"]["content"], json!(desk), "{said}");
    }
    refit.run(&["tune", "export", &format!("{MODEL}:orders"), "out"]).expect(0);
    let config: Value =
        serde_json::from_slice(&std::fs::read(refit.path().join("out/adapter_config.json")).expect("a file")).expect("JSON");
    assert_eq!((&config["use_dora"], &config["use_rslora"], &config["lora_dropout"]), (&json!(true), &json!(true), &json!(0.05)));
    let weights = std::fs::read(refit.path().join("out/adapter_model.safetensors")).expect("a file");
    let held = String::from_utf8_lossy(&weights[..60_000]).into_owned();
    assert!(held.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector\""), "{}", &held[..300]);
}

#[test]
fn preferences_are_learned_and_told_beside_the_loss() {
    let Some(refit) = with_model("methods::preferences_are_learned_and_told_beside_the_loss") else { return };
    let said = |text: &str| json!([{"role": "assistant", "content": text}]);
    let pair = |id: usize, asked: &str| {
        json!({"id": format!("s{id}"), "input": {"messages": [{"role": "user", "content": asked}]},
            "preferred_output": said("With pleasure, dear guest."), "non_preferred_output": said("Find out yourself.")})
    };
    let train = ["Where is the bar?", "When is breakfast?", "Is there a lift?", "May I smoke?"]
        .iter()
        .enumerate()
        .map(|(id, asked)| pair(id, asked));
    import(&refit, "manners", &[("train", train.collect()), ("validation", vec![pair(9, "Is the pool open?")])]);
    let result = tune(&refit, "manners", "method: dpo\nbeta: 0.1\nepochs: 4\nbatch_size: 4\nlearning_rate: 0.001\n");
    let [first, last] = [0, 1].map(|at| result["first_and_last_loss"][at].as_f64().expect("a loss"));
    assert!((first - std::f64::consts::LN_2).abs() < 1e-4 && last < first - 0.02, "{result}");
    assert!(result["metrics"]["reward_margin"].as_f64() > Some(0.0) && result["metrics"]["reward_accuracy"] == json!(1.0), "{result}");
    let stored = refit.run(&["tune", "adapters", "--json"]).expect(0).json();
    let metrics = &stored[0]["provenance"]["metrics"];
    assert_eq!((metrics.as_array().map(Vec::len), metrics[0]["reward_margin"].as_f64()), (Some(4), Some(0.0)), "{stored}");

    import(&refit, "plain", &orders());
    let told = refused(&refit, "plain", "method: dpo\n");
    assert!(told.contains("s0") && told.contains("not preferred"), "{told}");
}

#[test]
fn a_classifier_on_the_chat_model_answers_with_labels() {
    let Some(refit) = with_model("methods::a_classifier_on_the_chat_model_answers_with_labels") else { return };
    let texts = [
        ("delivery", ["Where is my parcel?", "My order has not arrived yet", "The courier never came", "How long does shipping take?"]),
        ("refund", ["I want my money back", "Please refund my purchase", "When do I get the refund?", "You have not paid me back"]),
    ];
    let mut train = Vec::new();
    for (label, texts) in texts {
        train.extend(
            texts.iter().enumerate().map(|(at, text)| json!({"id": format!("{label}{at}"), "input": {"text": text}, "target": label})),
        );
    }
    let validation = vec![json!({"id": "v1", "input": {"text": "Is my parcel here?"}, "target": "delivery"})];
    import(&refit, "desk", &[("train", train), ("validation", validation)]);
    for (keys, parameters) in
        [("method: classifier\ntargets: []\n", 2 * 577), ("method: classifier\nrank: 2\nepochs: 12\n", 2 * 577 + 2 * 30 * 10_176)]
    {
        let result = tune(&refit, "desk", keys);
        assert_eq!(result["parameters"], json!(parameters), "{result}");
        assert!(result["metrics"]["accuracy"].as_f64() >= Some(0.0), "{result}");
        let (key, server) = (refit.key(), refit.serve(&[]));
        let mut right = 0;
        for (text, label) in
            [("The courier never came", "delivery"), ("I want my money back", "refund"), ("Please refund my purchase", "refund")]
        {
            let said = answer(&server, &key, "desk", text);
            assert_eq!(said["usage"]["completion_tokens"], json!(1), "{said}");
            right += usize::from(said["choices"][0]["message"]["content"] == json!(label));
        }
        assert_eq!(right, 3, "what was learned is known: {keys}");
        let body = json!({"model": format!("local/{MODEL}:desk"), "messages": [{"role": "user", "content": "Where is my parcel?"}], "logprobs": true, "top_logprobs": 2});
        let told = server.post("/v1/chat/completions", Some(&key), &body).json();
        let top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().expect("labels").clone();
        let total: f64 = top.iter().map(|label| label["logprob"].as_f64().expect("a number").exp()).sum();
        assert!(top.len() == 2 && (total - 1.0).abs() < 1e-5, "{told}");
        // The model below still chats.
        let chat = json!({"model": format!("local/{MODEL}"), "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4});
        assert_eq!(server.post("/v1/chat/completions", Some(&key), &chat).status, 200);
    }
}

#[test]
fn what_cannot_be_learned_from_is_said_before_anybody_waits() {
    let Some(refit) = with_model("methods::what_cannot_be_learned_from_is_said_before_anybody_waits") else { return };
    let talk = |id: &str, messages: Value, more: Value| {
        let mut record = json!({"id": id, "messages": messages});
        record.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        record
    };
    let (user, said) = (json!({"role": "user", "content": "q"}), json!({"role": "assistant", "content": "a"}));
    let fine = || talk("fine", json!([{"role": "user", "content": "fine?"}, said]), json!({}));
    let case = |name: &str, bad: Value, expected: &[&str]| {
        import(&refit, name, &[("train", vec![fine(), bad])]);
        let told = refused(&refit, name, "");
        assert!(expected.iter().all(|part| told.contains(part)), "{name}: {told}");
    };
    case("open", talk("bad", json!([said, user]), json!({})), &["bad", "no target"]);
    case(
        "toolless",
        talk("bad", json!([user, said]), json!({"tools": [{"type": "function", "function": {"name": "look"}}]})),
        &["bad", "look", "schema"],
    );
    case(
        "weightless",
        talk("bad", json!([user, {"role": "assistant", "content": "a", "weight": 0}]), json!({})),
        &["bad", "no token carries loss"],
    );
    case("negative", talk("bad", json!([user, {"role": "assistant", "content": "a", "weight": -1}]), json!({})), &["bad", "weight is -1"]);
    case("empty", talk("bad", json!([user, {"role": "assistant", "content": " "}]), json!({})), &["bad", "empty"]);
    case(
        "long",
        talk("bad", json!([user, {"role": "assistant", "content": "word ".repeat(2000)}]), json!({})),
        &["bad", "max_length is 1024"],
    );

    let twin = talk("twin", json!([{"role": "user", "content": "  FINE? "}, {"role": "assistant", "content": "b"}]), json!({}));
    import(&refit, "twins", &[("train", vec![fine()]), ("test", vec![twin])]);
    let told = refused(&refit, "twins", "");
    assert!(told.contains("twin") && told.contains("sample fine") && told.contains("test split"), "{told}");

    import(&refit, "good", &[("train", vec![fine()])]);
    for (keys, part) in [
        ("rank: 0\n", "rank"),
        ("rank: 1000000\n", "rank"),
        ("targets: [q_prj]\n", "q_prj"),
        ("lerning_rate: 1\n", "lerning_rate"),
        ("early_stopping: {patience: 1}\n", "validation split"),
    ] {
        let told = refused(&refit, "good", keys);
        assert!(told.contains(part), "{told}");
    }
    let told = refused(&refit, "good", "alpha: 1.0e+30\n");
    assert!(told.contains("the loss is") && told.contains("lower learning_rate"), "{told}");
}

fn losses(refit: &Refit) -> Value {
    let stored = refit.run(&["tune", "adapters", "--json"]).expect(0).json();
    let newest = stored.as_array().and_then(|all| all.last()).expect("an adapter").clone();
    json!([newest["provenance"]["losses"], newest["provenance"]["validations"]])
}

#[test]
fn a_full_disk_and_a_kill_leave_a_training_that_goes_on_as_if_nothing_had_been() {
    let Some(refit) = with_model("methods::a_full_disk_and_a_kill_leave_a_training_that_goes_on_as_if_nothing_had_been") else { return };
    import(&refit, "orders", &orders());
    let keys = "rank: 2\nepochs: 6\nbatch_size: 2\ncheckpoint_every: 1\ndropout: 0.1\n";
    tune(&refit, "orders", keys);
    let expected = losses(&refit);
    recipe(&refit, "orders", keys);

    let faulty = Faulty::new(&refit);
    // The log of the worker is opened before; of a checkpoint the second file finds no room.
    faulty.fail("write,open", ENOSPC, 3..=*ALL.end(), "jobs");
    let output = faulty.command(&refit, &["tune", "run", "recipe.yaml"]).output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("checkpoint") && told.contains("refit tune resume"), "{told}");
    let at = told.find("job_").expect("a job");
    let id: String = told[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').collect();
    faulty.heal();
    let left: Vec<String> = std::fs::read_dir(refit.data_dir().join("jobs").join(&id))
        .expect("the job's folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(left, ["worker.log"], "nothing half written takes room on a full disk");
    refit.run(&["tune", "resume", &id]).expect(0);
    assert_eq!(losses(&refit), expected, "after a full disk");

    let mut child = refit.command(&["tune", "run", "recipe.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    let began = Instant::now();
    let directory = refit.data_dir().join("jobs");
    let checkpoints = || {
        let jobs = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        jobs.flat_map(|job| std::fs::read_dir(job.path()).into_iter().flatten().flatten())
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-"))
            .count()
    };
    while checkpoints() < 2 {
        assert!(began.elapsed() < Duration::from_secs(120) && child.try_wait().expect("asked").is_none(), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = refit.run(&["tune", "status", "--json"]).expect(0).json();
    let running = id.as_array().expect("jobs").iter().find(|job| job["status"] == "running").expect("it runs")["id"]
        .as_str()
        .expect("an id")
        .to_string();
    for pid in workers(&running) {
        kill_process(Pid::from_raw(pid as i32).expect("a process"), Signal::KILL).expect("the worker is there");
    }
    let _ = child.wait();
    refit.run(&["tune", "resume", &running]).expect(0);
    assert_eq!(losses(&refit), expected, "after a kill");
}

#[test]
fn what_a_recipe_leaves_out_is_chosen_from_the_data_and_shown() {
    let Some(refit) = with_model("methods::what_a_recipe_leaves_out_is_chosen_from_the_data_and_shown") else { return };
    import(&refit, "orders", &orders());
    recipe(&refit, "orders", "rank: 2\nmax_steps: 1\n");
    let done = refit.run(&["tune", "run", "recipe.yaml", "--auto"]).expect(0);
    for line in ["max_length: 64  # the longest example has about", "batch_size: 4  # ", "dropout: 0.05  # "] {
        assert!(done.stderr.contains(line), "{}", done.stderr);
    }
    assert!(!done.stderr.contains("rank:") && !done.stderr.contains("epochs:"), "what the recipe says is not chosen: {}", done.stderr);
    let stored = refit.run(&["tune", "adapters", "--json"]).expect(0).json();
    let used = &stored[0]["provenance"]["recipe"];
    assert_eq!((&used["max_length"], &used["rank"], &used["batch_size"]), (&json!(64), &json!(2), &json!(4)));
}
