//! `refit tune` as people see it: what a training will take, its curve, two beside each other; adapters written for other programs and taken in.

use crate::engine::{adapter, trainable};
use crate::local::{MODEL, with_model};
use crate::support::{Done, Refit};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A dataset of so many questions and answers, split.
fn data(refit: &Refit, name: &str, samples: usize, words: usize) {
    let line = |at: usize| {
        let text = format!("question {at} {}", format!("w{at} ").repeat(words));
        json!({"id": format!("s{at}"), "input": {"prompt": text}, "target": format!("answer {at}")}).to_string() + "\n"
    };
    refit.write(&format!("{name}.jsonl"), (0..samples).map(line).collect::<String>());
    refit.run(&["data", "import", &format!("{name}.jsonl")]).expect(0);
    refit.run(&["data", "split", name, "--seed", "7", "--near", "2"]).expect(0);
}

fn recipe(refit: &Refit, name: &str, dataset: &str, more: &str) -> String {
    let file = format!("{name}.yaml");
    refit.write(&file, format!("name: {name}\nmodel: local/{MODEL}\ndataset: {dataset}\nrank: 4\n{more}"));
    file
}

#[test]
fn a_training_is_foretold_drawn_and_compared() {
    let Some(refit) = with_model("tune_cli::a_training_is_foretold_drawn_and_compared") else { return };
    data(&refit, "talk", 20, 1);
    let first = recipe(&refit, "first", "talk", "epochs: 2\nbatch_size: 4\n");
    let told = refit.run(&["tune", "estimate", &first, "--json"]).expect(0).json();
    // 12 of 20 are learned, in batches of 4, twice.
    assert_eq!(
        (&told["examples"], &told["steps"], &told["fits"], &told["seconds"]),
        (&json!(12), &json!(6), &json!(true), &Value::Null),
        "{told}"
    );
    // SmolLM2-135M: 134,515,008 parameters; r = 4 on seven modules of 30 blocks is half of the 2,442,240 that r = 8 has.
    assert_eq!((&told["parameters"], &told["trained_parameters"]), (&json!(134_515_008), &json!(1_221_120)), "{told}");
    let dry = refit.run(&["tune", "run", &first, "--dry-run"]).expect(0);
    assert!(dry.stdout.contains("6, ") && dry.stdout.contains("GiB") && dry.stdout.contains("no training of this model"), "{dry:?}");
    assert_eq!(refit.run(&["tune", "status", "--json"]).expect(0).json(), json!([]), "nothing was queued");

    let done = refit.run(&["tune", "run", &first, "--json"]).expect(0).json();
    let job = done["job"].as_str().expect("a job").to_string();
    assert_eq!(told["trained_parameters"], done["result"]["parameters"]);
    let (foretold, trained) =
        (told["trained_tokens"].as_f64().expect("a number"), done["result"]["trained_tokens"].as_f64().expect("a number"));
    assert!((foretold / trained - 1.0).abs() < 0.25, "{foretold} tokens were foretold, {trained} came");
    let memory = |told: &Value, field: &str| told[field].as_f64().unwrap_or_else(|| panic!("no {field}: {told}"));
    let (foretold, peak) = (memory(&told, "memory_bytes"), memory(&done["result"], "peak_memory_bytes"));
    assert!((0.8..2.0).contains(&(foretold / peak)), "{foretold} bytes were foretold, {peak} came");
    let second = recipe(&refit, "second", "talk", "epochs: 2\nbatch_size: 4\nlearning_rate: 0.0001\n");
    refit.run(&["tune", "run", &second]).expect(0);
    let timed = refit.run(&["tune", "estimate", &second, "--json"]).expect(0).json();
    assert!(timed["seconds"].as_f64() > Some(0.1) && timed["speed"][1].as_str().is_some_and(|job| job.starts_with("job_")), "{timed}");

    let status = refit.run(&["tune", "status", &job]).expect(0).stdout;
    assert!(status.contains("succeeded") && status.contains("· training loss   o validation loss"), "{status}");
    let points = refit.run(&["tune", "curve", &job, "--json"]).expect(0).json();
    let steps: Vec<_> = points[0]["train_loss"].as_array().expect("points").iter().map(|point| point[0].as_i64()).collect();
    assert_eq!(steps, (1..=6).map(Some).collect::<Vec<_>>());
    let [first_loss, last_loss] = [0, 5].map(|at: usize| points[0]["train_loss"][at][1].as_f64().expect("a loss"));
    assert!(
        (done["result"]["first_and_last_loss"][0].as_f64().expect("a loss") - first_loss).abs() < 1e-6 && last_loss < first_loss,
        "{points}"
    );
    let both = [&job, &format!("{MODEL}:second")];
    refit.run(&["tune", "curve", both[0], both[1], "--svg", "curves.svg"]).expect(0);
    let drawn = std::fs::read_to_string(refit.path().join("curves.svg")).expect("a file");
    assert!(drawn.starts_with("<svg") && drawn.matches("<polyline").count() == 4 && drawn.contains("second@1 validation loss"), "{drawn}");

    let table = refit.run(&["tune", "compare", both[0], both[1]]).expect(0).stdout;
    assert!(table.contains("learning_rate") && table.contains("0.0001") && !table.contains("batch_size"), "{table}");
    let compared = refit.run(&["tune", "compare", both[0], both[1], "--json"]).expect(0).json();
    assert_eq!((&compared[0]["differs"], &compared[1]["differs"]), (&json!({"learning_rate": 0.001}), &json!({"learning_rate": 0.0001})));
    assert_eq!(compared[0]["result"]["digest"], done["result"]["digest"]);
    assert!(refit.run(&["tune", "compare", &job]).expect(2).stderr.contains("at least two"));
    assert!(refit.run(&["tune", "curve", "nothing"]).expect(2).stderr.contains("job_"));
}

#[test]
fn a_training_that_cannot_fit_is_refused_before_it_begins() {
    let Some(refit) = with_model("tune_cli::a_training_that_cannot_fit_is_refused_before_it_begins") else { return };
    // 800,000 tokens in one batch: terabytes of activations.
    data(&refit, "long", 1_200, 500);
    let large = recipe(&refit, "large", "long", "batch_size: 1024\nmax_length: 4096\n");
    for args in [["tune", "estimate", large.as_str()], ["tune", "run", large.as_str()]] {
        let Done { code, stderr, .. } = refit.run(&args);
        assert!(
            code == 2 && stderr.contains("GiB of memory") && stderr.contains("are free") && stderr.contains("lower batch_size"),
            "{stderr}"
        );
    }
    assert_eq!(refit.run(&["tune", "status", "--json"]).expect(0).json(), json!([]));
    let small = recipe(&refit, "small", "long", "batch_size: 1\nmax_length: 4096\n");
    refit.run(&["tune", "estimate", &small]).expect(0);
}

/// A PEFT folder with weights that change what the model says.
fn peft(refit: &Refit) {
    let made = adapter(&trainable().expect("the model"), 7);
    refit.write("peft/adapter_config.json", made.to_config_json());
    refit.write("peft/adapter_model.safetensors", made.to_safetensors(None).expect("saved"));
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_adapter_is_written_for_other_programs_and_read_back() {
    let Some(refit) = with_model("tune_cli::an_adapter_is_written_for_other_programs_and_read_back") else { return };
    peft(&refit);
    let name = format!("{MODEL}:taken");
    assert_eq!(refit.run(&["tune", "import", "peft", &name]).expect(0).stdout.trim(), format!("local/{name}@1"));
    let export = |folder: &str, more: &[&str]| {
        let done = refit.run(&[&["tune", "export", name.as_str(), folder, "--json"][..], more].concat()).expect(0).json();
        assert!(files(&refit.path().join(folder)).contains(&"Modelfile".to_string()));
        done["exported"]["verified"]["largest_difference"].as_f64()
    };
    assert_eq!(export("out-peft", &[]), None);
    // The same file again: f32 as it is. Logits of this model reach 30.
    assert_eq!(export("out-lora", &["--format", "gguf-lora"]), Some(0.0));
    let exact = export("out-f32", &["--format", "merged-gguf", "--elements", "f32"]).expect("compared");
    let half = export("out-f16", &["--format", "merged-gguf"]).expect("compared");
    let bytes = export("out-q8", &["--format", "merged-gguf", "--elements", "q8_0"]).expect("compared");
    assert!(exact < 1e-3 && half < 0.1 && half > exact && bytes < 3.0 && bytes > half, "{exact} {half} {bytes}");
    let folder = export("out-hf", &["--format", "merged-safetensors"]).expect("compared");
    assert!(folder < 1e-2, "{folder}");
    export("out-ollama", &["--format", "ollama"]);
    assert_eq!(files(&refit.path().join("out-ollama")), ["Modelfile", "adapter.gguf", "base.gguf", "export.json"]);
    let told: Value = serde_json::from_slice(&std::fs::read(refit.path().join("out-lora/export.json")).expect("a file")).expect("JSON");
    assert!(told["provenance"]["model_digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{told}");

    // A merged file is a model like any other, and says what base and adapter say together.
    refit.run(&["model", "pull", "out-f16/model.gguf", "--name", "merged"]).expect(0);
    // What was exported comes back as the same adapter, and not onto another model.
    let back = format!("{MODEL}:back");
    refit.run(&["tune", "import", "out-peft", &back]).expect(0);
    assert!(refit.run(&["tune", "import", "out-peft", "merged:back"]).expect(2).stderr.contains("another file of this model"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    // Log probabilities of the likeliest first tokens, and how far those of two models are apart on average.
    let say = |model: &str| -> BTreeMap<String, f64> {
        let body = json!({"model": format!("local/{model}"), "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1,
            "temperature": 0, "logprobs": true, "top_logprobs": 20});
        let reply = server.post("/v1/chat/completions", Some(&key), &body);
        let top = reply.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"].clone();
        let one = |token: &Value| (token["token"].to_string(), token["logprob"].as_f64().expect("a number"));
        top.as_array().unwrap_or_else(|| panic!("{reply:?}")).iter().map(one).collect()
    };
    let apart = |a: &BTreeMap<String, f64>, b: &BTreeMap<String, f64>| {
        let both: Vec<f64> = a.iter().filter_map(|(token, log)| Some((log - b.get(token)?).abs())).collect();
        both.iter().sum::<f64>() / both.len() as f64
    };
    let (base, adapted, back, merged) = (say(MODEL), say(&name), say(&back), say("merged"));
    assert_eq!(back, adapted);
    let (changed, kept) = (apart(&base, &adapted), apart(&merged, &adapted));
    assert!(changed > 0.05 && kept < changed / 2.0, "the adapter changes {changed}, merging it {kept}");

    assert!(refit.run(&["tune", "export", &name, "out-peft"]).expect(2).stderr.contains("holds something already"));
    assert!(refit.run(&["tune", "export", &name, "x", "--format", "peef"]).expect(2).stderr.contains("did you mean"));
    assert!(
        refit
            .run(&["tune", "export", &name, "x", "--format", "merged-safetensors", "--elements", "q8_0"])
            .expect(2)
            .stderr
            .contains("q8_0")
    );
    let left: Vec<_> = files(refit.path()).into_iter().filter(|name| name.contains("writing") || name == "x").collect();
    assert!(left.is_empty(), "nothing half-written: {left:?}");
}

#[test]
fn a_folder_that_cannot_be_honoured_is_refused_by_its_name() {
    let Some(refit) = with_model("tune_cli::a_folder_that_cannot_be_honoured_is_refused_by_its_name") else { return };
    peft(&refit);
    let config: Value =
        serde_json::from_slice(&std::fs::read(refit.path().join("peft/adapter_config.json")).expect("a file")).expect("JSON");
    let import = || refit.run(&["tune", "import", "peft", &format!("{MODEL}:x")]).expect(2).stderr;
    for (field, value) in [
        ("modules_to_save", json!(["lm_head"])),
        ("lora_bias", json!(true)),
        ("trainable_token_indices", json!([1])),
        ("rank_pattern", json!({"q_proj": 2})),
        ("bias", json!("all")),
        ("r", json!(0)),
        ("r", json!(1_000_000)),
        ("target_modules", json!(["c_attn"])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("use_qalora", json!(true)),
        ("target_parameters", json!(["mlp.experts"])),
        ("task_type", json!("SEQ_CLS")),
        ("exclude_modules", json!(["q_proj"])),
    ] {
        let mut changed = config.clone();
        changed[field] = value;
        refit.write("peft/adapter_config.json", changed.to_string());
        let told = import();
        assert!(told.contains(field) || (field == "r" && told.contains("r is")), "{field}: {told}");
    }
    refit.write("peft/adapter_config.json", config.to_string());
    std::fs::rename(refit.path().join("peft/adapter_model.safetensors"), refit.path().join("peft/adapter_model.bin")).expect("renamed");
    assert!(import().contains("pickled"));
    std::fs::remove_file(refit.path().join("peft/adapter_model.bin")).expect("removed");
    assert!(import().contains("no adapter_model.safetensors"));
    assert_eq!(refit.run(&["tune", "adapters", "--json"]).expect(0).json(), json!([]));
}
