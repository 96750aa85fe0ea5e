//! Our adapters in other people's software, and other people's models in ours ([`families`]). Runs in `./test peft` (part of `./test --full`), which installs what it needs; the group
//! `blackbox` leaves this module out.

mod families;

use crate::engine::{TEXT, adapter, dora, trainable, trained_logits};
use crate::support;
use candle_core::Var;
use refit::engine::arch::{Batch, Mode};
use refit::engine::nn::cross_entropy::{Label, cross_entropy};
use refit::engine::nn::linear::Lora;
use refit::engine::{Adapter, Model, Purpose};
use refit::tuning::optimizer::{AdamW, Gradients};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Logits differ by rounding only; those of this model reach 30.
const TOLERANCE: &str = "0.001";

#[test]
fn peft_folder_gives_the_same_logits_in_hugging_face_peft() {
    let model = trainable().expect("the model");
    gives_the_same_logits_in_peft(&adapter(&model, 7));
}

#[test]
fn a_dora_folder_gives_the_same_logits_in_hugging_face_peft() {
    let model = trainable().expect("the model");
    gives_the_same_logits_in_peft(&dora(&model, 7));
}

fn gives_the_same_logits_in_peft(made: &Adapter) {
    let model = trainable().expect("the model");
    let tokens = model.tokenizer.encode(TEXT).expect("tokens");
    let logits = trained_logits(&model.decoder, &tokens, made);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("peft")).expect("a folder");
    std::fs::write(path("peft/adapter_config.json"), made.to_config_json()).expect("written");
    std::fs::write(path("peft/adapter_model.safetensors"), made.to_safetensors(None).expect("saved")).expect("written");
    let bytes: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(path("logits.f32"), bytes).expect("written");
    let case = json!({"tokens": tokens, "logits_file": path("logits.f32"), "vocabulary": logits[0].len()});
    std::fs::write(path("case.json"), case.to_string()).expect("written");
    python("peft_load.py", &[path("peft").as_os_str(), path("case.json").as_os_str(), TOLERANCE.as_ref()]);
}

#[test]
fn a_folder_of_hugging_face_peft_gives_the_same_logits_here() {
    let model = trainable().expect("the model");
    let tokens = model.tokenizer.encode(TEXT).expect("tokens");
    for kind in ["dora", "rslora"] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let case = json!({"tokens": tokens, "logits_file": path("logits.f32")});
        std::fs::write(path("case.json"), case.to_string()).expect("written");
        python("peft_make.py", &[path("peft").as_os_str(), path("case.json").as_os_str(), kind.as_ref()]);
        let read = |name: &str| std::fs::read(path(name)).expect("a file");
        let (config, weights) = (read("peft/adapter_config.json"), read("peft/adapter_model.safetensors"));
        let expected: Vec<f32> = read("logits.f32").as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let taken = model.adapter(&config, &weights).expect("an adapter");
        let found = trained_logits(&model.decoder, &tokens, &taken).concat();
        assert_eq!(found.len(), expected.len());
        let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{kind}: largest difference {largest}");
        assert!(largest < TOLERANCE.parse().expect("a number"), "{kind}: {largest}");
    }
}

/// Runs a script of `tests/interop` on the model's file.
fn python(script: &str, args: &[&std::ffi::OsStr]) {
    let python = std::env::var("REFIT_INTEROP_PYTHON").expect("./test peft sets REFIT_INTEROP_PYTHON");
    let file = support::model_file().expect("./test peft sets REFIT_TEST_MODEL");
    let script = format!("{}/tests/interop/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python).arg(script).arg(file).args(args).output().expect("python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}\n{stderr}");
}

/// What every export says at every position, written for the scripts: text, tokens and logits of the base with the adapter.
fn case(directory: &std::path::Path) -> std::path::PathBuf {
    let model = trainable().expect("the model");
    let made = adapter(&model, 7);
    let tokens = model.tokenizer.encode(TEXT).expect("tokens");
    let logits = trained_logits(&model.decoder, &tokens, &made);
    let bytes: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(directory.join("logits.f32"), bytes).expect("written");
    let case = json!({"text": TEXT, "tokens": tokens, "logits_file": directory.join("logits.f32"), "vocabulary": logits[0].len()});
    std::fs::write(directory.join("case.json"), case.to_string()).expect("written");
    directory.join("case.json")
}

/// A directory with the adapter in a store, and what it was exported as.
fn exported(formats: &[(&str, &[&str])]) -> support::Refit {
    let file = support::model_file().expect("./test peft sets REFIT_TEST_MODEL");
    let refit = support::Refit::new();
    refit.run(&["model", "pull", &file.display().to_string(), "--name", "m"]).expect(0);
    let made = adapter(&trainable().expect("the model"), 7);
    refit.write("peft/adapter_config.json", made.to_config_json());
    refit.write("peft/adapter_model.safetensors", made.to_safetensors(None).expect("saved"));
    refit.run(&["tune", "import", "peft", "m:a"]).expect(0);
    for (folder, more) in formats {
        refit.run(&[&["tune", "export", "m:a", *folder][..], *more].concat()).expect(0);
    }
    refit
}

/// Runs the script; `python` is a variable that names one with what it needs.
fn compare(python: &str, args: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/exports.py");
    let python = std::env::var(python).unwrap_or_else(|_| panic!("./test peft sets {python}"));
    let output = Command::new(python).arg(script).args(args).output().expect("python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{args:?}: {stdout}\n{stderr}");
}

#[test]
fn a_merged_folder_gives_the_same_logits_in_transformers() {
    let refit =
        exported(&[("exact", &["--format", "merged-safetensors", "--elements", "f32"]), ("half", &["--format", "merged-safetensors"])]);
    let (case, path) = (case(refit.path()), |name: &str| refit.path().join(name).display().to_string());
    let case = case.display().to_string();
    compare("REFIT_INTEROP_PYTHON", &["transformers", &path("exact"), &case, "0.001"]);
    compare("REFIT_INTEROP_PYTHON", &["transformers", &path("half"), &case, "0.02"]);
}

#[test]
fn gguf_files_give_nearly_the_same_logits_in_llama_cpp() {
    let base = support::model_file().expect("./test peft sets REFIT_TEST_MODEL").display().to_string();
    let refit = exported(&[
        ("half", &["--format", "merged-gguf"]),
        ("bytes", &["--format", "merged-gguf", "--elements", "q8_0"]),
        ("lora", &["--format", "gguf-lora"]),
    ]);
    let (case, path) = (case(refit.path()).display().to_string(), |name: &str| refit.path().join(name).display().to_string());
    // llama.cpp rounds activations: to half precision with F16 weights, to 8 bits with quantised ones.
    compare("REFIT_LLAMACPP_PYTHON", &["llama", &path("half/model.gguf"), &case, "0.05"]);
    compare("REFIT_LLAMACPP_PYTHON", &["llama", &path("bytes/model.gguf"), &case, "0.3"]);
    compare("REFIT_LLAMACPP_PYTHON", &["llama-lora", &path("lora/adapter.gguf"), &case, "0.3", &base]);
}

/// Steps, sequences and tokens of each: few, for peft needs a minute for them. With fewer tokens in a step the rounding of the products
/// shows more; `./bench tuning` compares the curve of 4 × 256.
const CURVE: (usize, usize, usize) = (50, 2, 24);

#[test]
fn the_loss_curve_of_fifty_steps_is_pefts() {
    let python = std::env::var("REFIT_INTEROP_PYTHON").expect("./test peft sets REFIT_INTEROP_PYTHON");
    let file = support::model_file().expect("./test peft sets REFIT_TEST_MODEL");
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("peft");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/peft_train.py");
    let (steps, sequences, length) = CURVE;
    let peft = |mode: &str| {
        let mut command = Command::new(&python);
        command.arg(script).arg(&file).arg(&folder).args([sequences.to_string(), length.to_string()]).arg(mode);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python starts");
        writeln!(child.stdin.take().expect("its input"), "{steps}").expect("written");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    peft("write");
    let theirs: Value = serde_json::from_str(&peft("f32")).expect("one line of JSON");
    let theirs: Vec<f32> = serde_json::from_value(theirs["losses"].clone()).expect("losses");
    assert!(theirs.len() == steps && theirs[steps - 1] < theirs[0] - 0.5, "peft itself must learn: {theirs:?}");
    for (purpose, tolerance) in [(Purpose::Train, 0.002), (Purpose::TrainRounded, 0.1)] {
        let model = Model::load(&file, purpose).expect("the model");
        let ours = curve(&model, &folder);
        let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{purpose:?}: the largest difference of {steps} losses is {difference}");
        assert!(ours.len() == steps && difference < tolerance, "{purpose:?} is off by {difference}: {ours:?}, peft {theirs:?}");
    }
}

/// Our losses on the script's batch, with the script's optimiser: AdamW, learning rate 1e-4, decay 0.01, gradients not clipped.
fn curve(model: &Model, folder: &Path) -> Vec<f32> {
    let (steps, sequences, length) = CURVE;
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a PEFT folder");
    let made = model.adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).expect("peft's adapter fits");
    let (mut loras, mut variables) = (HashMap::new(), Vec::new());
    for target in model.lora_targets() {
        let lora = made.lora(&target.path).expect("every projection is adapted");
        let [a, b] = [&lora.a, &lora.b].map(|half| Var::from_tensor(half).expect("a variable"));
        loras.insert(target.path, Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: lora.scale });
        variables.extend([a, b]);
    }
    let adapter = Adapter::new(made.config.clone(), loras);
    let (mut batch, mut labels) = (Batch::default(), Vec::new());
    for sequence in 0..sequences {
        let tokens: Vec<u32> = (0..length).map(|i| (((sequence * length + i) * 7919) % 40_000 + 1000) as u32).collect();
        batch.push(&tokens, sequence, 0);
        labels.extend((1..=length).map(|i| tokens.get(i).copied().map(Label::once)));
    }
    let (mut optimizer, labelled) = (AdamW::new(&variables), labels.iter().flatten().count() as f32);
    let mut step = || {
        let hidden = model.decoder.hidden(&batch, Mode::Train(&adapter)).expect("a forward pass");
        let loss = cross_entropy(&hidden, model.decoder.head().expect("a head"), &labels, labelled).expect("a loss");
        let mut gradients = Gradients::zero(&variables);
        gradients.add(&variables, &loss.backward().expect("a backward pass")).expect("gradients");
        optimizer.step(&variables, &gradients, 1e-4, 0.01, f64::INFINITY).expect("a step");
        loss.to_scalar::<f32>().expect("a loss")
    };
    (0..steps).map(|_| step()).collect()
}
