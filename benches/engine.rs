//! The engine as the gateway runs it, measured through its queue: `engine MODEL PROMPT GENERATED SEQUENCES REPEATS ADAPTERS`, where
//! ADAPTERS is `none`, `bf16` or `f32` (one for each sequence, rank 8 on every linear layer). Prints one JSON object. `./bench engine`
//! runs it beside its peer.

use candle_core::{Device, Tensor};
use refit::engine::adapter::{Adapter, AdapterConfig};
use refit::engine::kernel::low_rank::Precision;
use refit::engine::nn::linear::Lora;
use refit::engine::sampling::Sampling;
use refit::engine::scheduler::EngineOptions;
use refit::engine::sequence::{Event, Finish, Generate};
use refit::engine::{Engine, Model, Purpose};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const TEXT: &str = include_str!("../README.md");
const RANK: usize = 8;
const THREADS: usize = 2;

struct Plan {
    prompt: usize,
    generated: usize,
    sequences: usize,
    adapters: Vec<Option<Arc<Adapter>>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [file, prompt, generated, sequences, repeats, adapters] = &arguments[..] else {
        eprintln!("usage: engine MODEL PROMPT GENERATED SEQUENCES REPEATS none|bf16|f32");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let (sequences, repeats) = (number(sequences), number(repeats));
    let began = Instant::now();
    let model = Arc::new(Model::load(file.as_ref(), Purpose::Serve).expect("the model loads"));
    let options = EngineOptions { threads: THREADS, max_batch: 24, max_queue: 64, max_context: 4096, cache_bytes: 2 << 30 };
    let engine = Engine::start(model.clone(), options).expect("the engine starts");
    let load_s = began.elapsed().as_secs_f64();
    let adapters = (0..sequences).map(|i| adapter(&model, i, adapters)).collect();
    let plan = Plan { prompt: number(prompt), generated: number(generated), sequences, adapters };
    let text = model.tokenizer.encode(&TEXT.repeat(2)).expect("tokens");
    let rounds: Vec<(f64, f64)> = (0..repeats).map(|round| measure(&engine, &text, &plan, round)).collect();
    let (prefill, decode): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
    println!("{}", json!({"load_s": load_s, "prefill": prefill, "decode": decode, "peak_mb": peak_mb()}));
}

/// Tokens per second of prompts, and of generation, all sequences together.
fn measure(engine: &Engine, text: &[u32], plan: &Plan, round: usize) -> (f64, f64) {
    let began = Instant::now();
    // Another beginning each time, so that no prompt is found in the cache.
    let start = |i: usize| (round * plan.sequences + i) * 37 % (text.len() - plan.prompt);
    let submit = |i: usize| {
        let (events, receiver) = unbounded_channel();
        let tokens = text[start(i)..start(i) + plan.prompt].to_vec();
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let (adapter, max_tokens) = (plan.adapters[i].clone(), plan.generated + 1);
        engine.submit(Generate { adapter, sampling, max_tokens, ..Generate::new(tokens, events) }).expect("accepted");
        receiver
    };
    let running: Vec<_> = (0..plan.sequences).map(submit).collect();
    let ended: Vec<(Finish, f64)> = running.into_iter().map(|receiver| finish(receiver, began)).collect();
    let first = ended.iter().map(|(finish, _)| finish.first_token_ms / 1e3).fold(0.0, f64::max);
    let last = ended.iter().map(|(_, at)| *at).fold(0.0, f64::max);
    let generated: usize = ended.iter().map(|(finish, _)| finish.completion_tokens - 1).sum();
    ((plan.sequences * plan.prompt) as f64 / first, generated as f64 / (last - first))
}

fn finish(mut receiver: UnboundedReceiver<Event>, began: Instant) -> (Finish, f64) {
    loop {
        match receiver.blocking_recv().expect("the engine runs") {
            Event::Done(finish) => return (finish, began.elapsed().as_secs_f64()),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// An adapter of small pseudo-random values, another for each sequence.
fn adapter(model: &Model, index: usize, kind: &str) -> Option<Arc<Adapter>> {
    let precision = match kind {
        "bf16" => Precision::Half,
        "f32" => Precision::Full,
        _ => return None,
    };
    let modules: Vec<String> = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).to_vec();
    let config = AdapterConfig::lora("bench", RANK, 16.0, &modules);
    let mut state = index as u64 + 1;
    let mut tensor = |rows: usize, columns: usize| {
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.01
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| random()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a tensor")
    };
    let targets = model.lora_targets();
    let pair = |target: &refit::engine::adapter::LoraTarget| {
        (target.path.clone(), Lora { a: tensor(RANK, target.inputs), b: tensor(target.outputs, RANK), scale: config.scale() })
    };
    let loras: HashMap<_, _> = targets.iter().map(pair).collect();
    Some(Arc::new(Adapter::new(config, loras).for_serving(&targets, precision).expect("packed")))
}

/// Most memory that the process has had, in MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}
