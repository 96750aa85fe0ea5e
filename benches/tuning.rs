//! A LoRA training step, measured: `tuning MODEL BATCH LENGTH PEFT_FOLDER rounded|exact` reads numbers of steps from its input, a line each,
//! and answers each with one line of JSON: losses, seconds of every step, and the most memory so far. Rank, targets and first values are
//! the folder's; every position of a fixed batch is labelled, and AdamW is PyTorch's with its defaults. `./bench tuning` runs it beside its
//! peer.

use candle_core::Var;
use refit::engine::arch::{Batch, Mode};
use refit::engine::nn::cross_entropy::{Label, cross_entropy};
use refit::engine::nn::linear::Lora;
use refit::engine::{Adapter, Model, Purpose};
use refit::tuning::optimizer::{AdamW, Gradients};
use serde_json::json;
use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

const LEARNING_RATE: f64 = 1e-4;
const DECAY: f64 = 0.01;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [file, sequences, length, folder, precision] = &arguments[..] else {
        eprintln!("usage: tuning MODEL BATCH LENGTH PEFT_FOLDER rounded|exact");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let purpose = if precision == "exact" { Purpose::Train } else { Purpose::TrainRounded };
    let model = Model::load(file.as_ref(), purpose).expect("the model loads");
    let (batch, labels) = fixed_batch(number(sequences), number(length));
    let read = |name: &str| std::fs::read(Path::new(folder).join(name)).expect("a PEFT folder");
    let adapter = model.adapter(&read("adapter_config.json"), &read("adapter_model.safetensors")).expect("an adapter for the model");
    let (adapter, variables) = trainable(&adapter, &model);
    let mut optimizer = AdamW::new(&variables);
    let labelled = labels.iter().flatten().count() as f32;
    let mut step = || -> (f32, f64) {
        let began = Instant::now();
        let hidden = model.decoder.hidden(&batch, Mode::Train(&adapter)).expect("a forward pass");
        let loss = cross_entropy(&hidden, model.decoder.head().expect("a head"), &labels, labelled).expect("a loss");
        let mut gradients = Gradients::zero(&variables);
        gradients.add(&variables, &loss.backward().expect("a backward pass")).expect("gradients");
        optimizer.step(&variables, &gradients, LEARNING_RATE, DECAY, f64::INFINITY).expect("a step");
        (loss.to_scalar().expect("a loss"), began.elapsed().as_secs_f64())
    };
    for line in std::io::stdin().lock().lines() {
        let steps = number(&line.expect("a line"));
        let (losses, seconds): (Vec<f32>, Vec<f64>) = (0..steps).map(|_| step()).unzip();
        println!("{}", json!({"losses": losses, "seconds": seconds, "peak_mb": peak_mb()}));
    }
}

/// The same adapter over variables, and these in the decoder's order.
fn trainable(adapter: &Adapter, model: &Model) -> (Adapter, Vec<Var>) {
    let (mut loras, mut variables) = (HashMap::new(), Vec::new());
    for target in model.lora_targets() {
        let Some(lora) = adapter.lora(&target.path) else { continue };
        let [a, b] = [&lora.a, &lora.b].map(|half| Var::from_tensor(half).expect("a variable"));
        loras.insert(target.path, Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: lora.scale });
        variables.extend([a, b]);
    }
    (Adapter::new(adapter.config.clone(), loras), variables)
}

/// The ids of the peer's script: token i of all is i · 7919 mod 40,000 + 1,000. A position is labelled with the token behind it.
fn fixed_batch(sequences: usize, length: usize) -> (Batch, Vec<Option<Label>>) {
    let id = |i: usize| ((i * 7919) % 40_000 + 1000) as u32;
    let (mut batch, mut labels) = (Batch::default(), Vec::new());
    for sequence in 0..sequences {
        let tokens: Vec<u32> = (0..length).map(|i| id(sequence * length + i)).collect();
        batch.push(&tokens, sequence, 0);
        labels.extend((1..=length).map(|i| tokens.get(i).copied().map(Label::once)));
    }
    (batch, labels)
}

/// Most memory that the process has had, in MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}
