//! Our adapters in other people's software. Runs in `./test peft` (part of `./test --full`), which installs what it needs; the group
//! `blackbox` leaves this module out.

use crate::engine::{TEXT, adapter, trainable, trained_logits};
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
    let python = std::env::var("REFIT_INTEROP_PYTHON").expect("./test peft sets REFIT_INTEROP_PYTHON");
    let file = support::model_file().expect("./test peft sets REFIT_TEST_MODEL");
    let model = trainable().expect("the model");
    let made = adapter(&model, 7);
    let tokens = model.tokenizer.encode(TEXT).expect("tokens");
    let logits = trained_logits(&model.decoder, &tokens, &made);
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("peft")).expect("a folder");
    std::fs::write(path("peft/adapter_config.json"), made.to_config_json()).expect("written");
    std::fs::write(path("peft/adapter_model.safetensors"), made.to_safetensors(None).expect("saved")).expect("written");
    let bytes: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
    std::fs::write(path("logits.f32"), bytes).expect("written");
    let case = json!({"tokens": tokens, "logits_file": path("logits.f32"), "vocabulary": logits[0].len()});
    std::fs::write(path("case.json"), case.to_string()).expect("written");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/peft_load.py");
    let mut command = Command::new(python);
    command.arg(script).arg(file).arg(path("peft")).arg(path("case.json")).arg(TOLERANCE);
    let output = command.output().expect("python starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{stdout}\n{stderr}");
}

/// Steps, sequences and tokens of each.
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
    for (purpose, tolerance) in [(Purpose::Train, 0.002), (Purpose::TrainRounded, 0.02)] {
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
