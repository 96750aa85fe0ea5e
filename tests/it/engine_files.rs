//! Files from strangers: malformed adapters are refused by name, and model files and adapters with any bytes changed are read or
//! refused, never a panic and never more memory than the file is worth. The seeds are built here; `REFIT_TEST_MUTATIONS` sets how many
//! mutations of each are tried (the default takes some seconds, with `./test --full` twenty times that).

use crate::rig::full;
use crate::support::Refit;
use refit::engine::adapter::{Adapter, AdapterConfig, LoraTarget};
use refit::engine::{Model, Purpose};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

const HIDDEN: usize = 8;
const INNER: usize = 16;
const LAYERS: usize = 2;

/// A sequence of numbers that is the same on every machine (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

pub(crate) fn mutations(default: usize) -> usize {
    let asked = std::env::var("REFIT_TEST_MUTATIONS").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(if full() { 20 * default } else { default })
}

/// A model file of two small layers with a vocabulary of bytes and a few merges, or scores.
fn model_file(architecture: &str) -> Vec<u8> {
    let is_gemma = architecture == "gemma3";
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| (byte as char).to_string()).collect();
    tokens.extend(["\u{120}".into(), "\u{10A}".into(), "th".into(), "he".into(), "<|im_start|>".into(), "<|im_end|>".into()]);
    let end = tokens.len() as u32 - 1;
    let kinds: Vec<i32> = tokens.iter().map(|token| if token.starts_with("<|") { 3 } else { 1 }).collect();
    let tensors = tensors_of(architecture, tokens.len());
    let mut file = Writer(b"GGUF".to_vec());
    file.u32(3);
    file.u64(tensors.len() as u64);
    let counted = file.0.len();
    file.u64(0);
    file.key("general.architecture", 8).text(architecture);
    file.key("tokenizer.ggml.model", 8).text(if is_gemma { "llama" } else { "gpt2" });
    file.key("tokenizer.ggml.pre", 8).text("smollm");
    file.key("tokenizer.chat_template", 8).text("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}");
    for (name, value) in [
        ("block_count", LAYERS),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
        ("attention.sliding_window", if is_gemma { 3 } else { 64 }),
    ] {
        file.key(&format!("{architecture}.{name}"), 4).u32(value as u32);
    }
    file.key("tokenizer.ggml.eos_token_id", 4).u32(end);
    file.key(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6).0.extend(1e-5f32.to_le_bytes());
    file.key("tokenizer.ggml.tokens", 9).u32(8);
    file.u64(tokens.len() as u64);
    tokens.iter().for_each(|token| file.text(token));
    if is_gemma {
        file.key("tokenizer.ggml.scores", 9).u32(6);
        file.u64(tokens.len() as u64);
        (0..tokens.len()).for_each(|id| file.0.extend((-(id as f32)).to_le_bytes()));
    } else {
        file.key("tokenizer.ggml.merges", 9).u32(8);
        file.u64(2);
        file.text("t h");
        file.text("h e");
    }
    file.key("tokenizer.ggml.token_type", 9).u32(5);
    file.u64(kinds.len() as u64);
    kinds.iter().for_each(|kind| file.0.extend(kind.to_le_bytes()));
    // Four texts, seven sizes, the end, ε, and three lists.
    file.0[counted..counted + 8].copy_from_slice(&16u64.to_le_bytes());
    file.tensors(&tensors);
    file.0
}

/// Names and shapes of the tensors of an architecture.
fn tensors_of(architecture: &str, vocabulary: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("token_embd.weight".into(), vec![vocabulary, HIDDEN]), ("output_norm.weight".into(), vec![HIDDEN])];
    let head = HIDDEN / 2;
    for layer in 0..LAYERS {
        let mut parts = vec![
            ("attn_norm.weight", vec![HIDDEN]),
            ("ffn_norm.weight", vec![HIDDEN]),
            ("attn_q.weight", vec![HIDDEN, HIDDEN]),
            ("attn_k.weight", vec![HIDDEN, HIDDEN]),
            ("attn_v.weight", vec![HIDDEN, HIDDEN]),
            ("attn_output.weight", vec![HIDDEN, HIDDEN]),
            ("ffn_gate.weight", vec![INNER, HIDDEN]),
            ("ffn_up.weight", vec![INNER, HIDDEN]),
            ("ffn_down.weight", vec![HIDDEN, INNER]),
        ];
        match architecture {
            "qwen2" => parts.extend([("attn_q.bias", vec![HIDDEN]), ("attn_k.bias", vec![HIDDEN]), ("attn_v.bias", vec![HIDDEN])]),
            "gemma3" => parts.extend([
                ("attn_q_norm.weight", vec![head]),
                ("attn_k_norm.weight", vec![head]),
                ("post_attention_norm.weight", vec![HIDDEN]),
                ("post_ffw_norm.weight", vec![HIDDEN]),
            ]),
            _ => {}
        }
        tensors.extend(parts.into_iter().map(|(name, dims)| (format!("blk.{layer}.{name}"), dims)));
    }
    tensors
}

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }
    /// Table and values of f32 tensors.
    fn tensors(&mut self, tensors: &[(String, Vec<usize>)]) {
        let mut offset = 0;
        for (name, dims) in tensors {
            self.text(name);
            self.u32(dims.len() as u32);
            dims.iter().rev().for_each(|dim| self.u64(*dim as u64));
            self.u32(0);
            self.u64(offset);
            offset = (offset + 4 * dims.iter().product::<usize>() as u64).next_multiple_of(32);
        }
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        let begin = self.0.len();
        let mut numbers = Numbers(9);
        for (_, dims) in tensors {
            for _ in 0..dims.iter().product::<usize>() {
                self.0.extend((numbers.below(2000) as f32 / 1000.0 - 1.0).to_le_bytes());
            }
            self.0.resize(begin + (self.0.len() - begin).next_multiple_of(32), 0);
        }
    }
    fn key(&mut self, name: &str, kind: u32) -> &mut Self {
        self.text(name);
        self.u32(kind);
        self
    }
}

/// Changes a file: bytes flipped, numbers that overflow put somewhere, ends cut, stretches doubled or left out.
fn mutated(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut file = seed.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(file.len());
        match numbers.below(6) {
            0 => file[at] ^= 1 << numbers.below(8),
            1 => file[at] = numbers.next() as u8,
            2 => {
                let hostile = [0u64, 1, 255, 1 << 30, 1 << 31, 1 << 40, u64::MAX, i64::MAX as u64, u64::MAX - 7][numbers.below(9)];
                let width = if numbers.below(2) == 0 { 4 } else { 8 };
                let end = (at + width).min(file.len());
                let bytes = hostile.to_le_bytes();
                file[at..end].copy_from_slice(&bytes[..end - at]);
            }
            3 => file.truncate(at.max(1)),
            4 => {
                let end = (at + numbers.below(64)).min(file.len());
                let part = file[at..end].to_vec();
                file.splice(at..at, part);
            }
            _ => {
                let end = (at + numbers.below(64)).min(file.len());
                if end - at < file.len() {
                    file.drain(at..end);
                }
            }
        }
    }
    file
}

/// Runs a reader over mutations of a seed; how many were read, and how many refused.
pub(crate) fn survives(what: &str, seed: &[u8], count: usize, read: impl Fn(&[u8]) -> bool) -> (usize, usize) {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut taken, mut refused) = (0, 0);
    for nth in 0..count {
        let file = mutated(seed, &mut numbers);
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&file)));
        match outcome {
            Ok(true) => taken += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("mutation {nth} of {what} makes its reader panic"),
        }
    }
    (taken, refused)
}

#[test]
fn model_files_with_any_bytes_changed_are_read_or_refused() {
    let refit = Refit::new();
    for architecture in ["llama", "qwen2", "gemma3"] {
        let seed = model_file(architecture);
        let path = refit.write("seed.gguf", &seed);
        let model = Model::load(&path, Purpose::Serve).expect("the seed is a model");
        let the = if architecture == "gemma3" { "th" } else { "the" };
        assert_eq!(model.tokenizer.encode(the).expect("tokens").len(), the.len() - 1, "pairs are joined");
        let (taken, refused) = survives(architecture, &seed, mutations(2_000), |file| {
            let path = refit.write("changed.gguf", file);
            let model = Model::load(&path, Purpose::Serve);
            let _ = Model::load(&path, Purpose::Train);
            // What was read must be usable, too: tokens, template, grammar and a step.
            let Ok(model) = model else { return false };
            let _ = model.prompt_tokens(&[refit::engine::chat_template::ChatMessage::new("user", "the end<|im_end|> 🦀")]);
            let _ = model.tokenizer.grammars();
            (0..model.tokenizer.vocabulary() as u32 + 3).for_each(|id| drop(model.tokenizer.bytes(id).to_vec()));
            drop(crate::engine::all_logits(&model.decoder, &[0, 1, 2, 3, 4], None));
            true
        });
        assert!(taken > 50 && refused > 50, "{architecture}: {taken} read, {refused} refused: the mutations are too weak or too strong");
    }
}

#[test]
fn model_files_that_lack_a_part_of_their_architecture_are_refused_by_name() {
    let refit = Refit::new();
    // A name of the same length is another tensor, and the one that was meant is missing.
    let refusal = |architecture: &str, from: &str, to: &str| {
        let seed = model_file(architecture);
        let at = seed.windows(from.len()).position(|window| window == from.as_bytes()).expect("it is in the file");
        let mut changed = seed.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        let Err(error) = Model::load(&refit.write("changed.gguf", changed), Purpose::Serve) else { panic!("accepted without {from}") };
        error.to_string()
    };
    for (architecture, from, to, words) in [
        ("qwen2", "blk.1.attn_k.bias", "blk.1.attn_x.bias", "tensor blk.1.attn_x.bias"),
        ("qwen2", "blk.1.attn_k.bias", "blk.2.attn_k.bias", "tensor blk.2.attn_k.bias"),
        ("gemma3", "blk.0.post_ffw_norm", "blk.0.post_xxx_norm", "tensor blk.0.post_xxx_norm"),
        ("gemma3", "tokenizer.ggml.scores", "tokenizer.ggml.xcores", "tokenizer.ggml.scores is missing"),
        ("gemma3", "gemma3.block_count", "gemma3.xxxxx_count", "gemma3.block_count is missing"),
    ] {
        let problem = refusal(architecture, from, to);
        assert!(problem.contains(words), "{words}: {problem}");
    }
}

fn targets() -> Vec<LoraTarget> {
    let target = |module: &str, layer: usize, outputs: usize| LoraTarget {
        path: format!("model.layers.{layer}.self_attn.{module}"),
        inputs: HIDDEN,
        outputs,
    };
    (0..2).flat_map(|layer| [target("q_proj", layer, HIDDEN), target("v_proj", layer, HIDDEN / 2)]).collect()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(rank: usize) -> Tensors {
    let mut all = Tensors::new();
    for target in targets() {
        for (half, dims) in [("lora_A", vec![rank, target.inputs]), ("lora_B", vec![target.outputs, rank])] {
            let count = dims.iter().product::<usize>();
            all.insert(format!("base_model.model.{}.{half}.weight", target.path), (dims, (0..count).map(|i| i as f32 / 100.0).collect()));
        }
    }
    all
}

fn safetensors_of(tensors: &Tensors) -> Vec<u8> {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(key, (dims, values))| (key, dims, values.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let view = |dims: &[usize], bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.to_vec(), bytes).expect("a view");
    safetensors::serialize(bytes.iter().map(|(key, dims, bytes)| (key.as_str(), view(dims, bytes))), None).expect("serialises")
}

fn config(rank: usize) -> Value {
    serde_json::to_value(AdapterConfig::lora("base", rank, 4.0, &["q_proj".into(), "v_proj".into()])).expect("a configuration")
}

fn refusal(config: &Value, weights: &[u8]) -> String {
    Adapter::load(config.to_string().as_bytes(), weights, &targets()).expect_err("must be refused").to_string()
}

#[test]
fn malformed_adapters_are_refused_by_name() {
    let good = safetensors_of(&tensors(2));
    Adapter::load(config(2).to_string().as_bytes(), &good, &targets()).expect("the seed is an adapter");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = config(2);
        change(&mut config);
        refusal(&config, &good)
    };
    for (problem, words) in [
        (with(&|c| c["r"] = 0.into()), "r is 0"),
        (with(&|c| c["r"] = 1_000_000.into()), "r is 1000000"),
        (with(&|c| c["r"] = json!(-1)), "adapter_config.json"),
        (with(&|c| c["r"] = json!("8")), "adapter_config.json"),
        (with(&|c| drop(c.as_object_mut().expect("an object").shift_remove("r"))), "`r`"),
        (with(&|c| c["lora_alpha"] = json!(1e60)), "adapter_config.json"),
        (with(&|c| c["peft_type"] = "IA3".into()), "IA3"),
        (with(&|c| c["bias"] = "all".into()), "bias"),
        (with(&|c| c["target_modules"] = json!(["q_proj", "w_pack"])), "\"w_pack\""),
        (with(&|c| c["target_modules"] = json!(["q_proj", 3])), "target_modules"),
        (with(&|c| c["target_modules"] = json!(null)), "target_modules"),
        (with(&|c| c["modules_to_save"] = json!(["lm_head"])), "modules_to_save"),
        (with(&|c| c["rank_pattern"] = json!({"q_proj": 4})), "rank_pattern"),
    ] {
        assert!(problem.contains(words), "{words}: {problem}");
    }
    let of = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(2);
        change(&mut tensors);
        refusal(&config(2), &safetensors_of(&tensors))
    };
    let key = |layer: usize, module: &str, half: &str| format!("base_model.model.model.layers.{layer}.self_attn.{module}.{half}.weight");
    let (a, b, far) = (key(0, "q_proj", "lora_A"), key(0, "q_proj", "lora_B"), key(9, "q_proj", "lora_A"));
    for (problem, words) in [
        (of(&|t| drop(t.remove(&b))), "model.layers.0.self_attn.q_proj"),
        (of(&|t| drop(t.insert(a.clone(), (vec![2, HIDDEN + 1], vec![0.0; 2 * HIDDEN + 2])))), a.as_str()),
        (of(&|t| drop(t.insert(a.clone(), (vec![HIDDEN, 2], vec![0.0; 2 * HIDDEN])))), a.as_str()),
        (of(&|t| drop(t.insert(far.clone(), (vec![2, HIDDEN], vec![0.0; 2 * HIDDEN])))), far.as_str()),
        (of(&|t| t.get_mut(&a).expect("there").1[3] = f32::NAN), "holds NaN at place 3"),
        (of(&|t| t.get_mut(&b).expect("there").1[0] = f32::INFINITY), b.as_str()),
        (of(&|t| drop(t.insert("model.weight".into(), (vec![1], vec![0.0])))), "model.weight"),
        (of(&|t| t.retain(|key, _| !key.contains("v_proj"))), "\"v_proj\""),
        (of(&|t| t.clear()), "\"q_proj\""),
        (refusal(&config(2), b"PK\x03\x04 archive of torch"), "pickled"),
        (refusal(&config(2), b"\x80\x02}q\x00X\x04\x00\x00\x00"), "pickled"),
        (refusal(&config(2), b"abc"), "truncated"),
        (refusal(&config(2), &[&(100u64 << 20).to_le_bytes()[..], b"{}"].concat()), "header"),
        (refusal(&config(2), &good[..good.len() - 5]), "adapter_model.safetensors"),
    ] {
        assert!(problem.contains(words), "{words}: {problem}");
    }
    let config_bytes = [b"{\"x\": \"".as_slice(), &vec![b'a'; 2 << 20], b"\"}"].concat();
    assert!(Adapter::load(&config_bytes, &good, &targets()).expect_err("refused").to_string().contains("adapter_config.json"));
}

#[test]
fn adapters_with_any_bytes_changed_are_read_or_refused() {
    let (weights, settings) = (safetensors_of(&tensors(2)), config(2).to_string());
    let count = mutations(200_000);
    let (taken, refused) =
        survives("an adapter's weights", &weights, count, |file| Adapter::load(settings.as_bytes(), file, &targets()).is_ok());
    assert!(taken > 100 && refused > 100, "{taken} read, {refused} refused");
    let (taken, refused) =
        survives("an adapter's configuration", settings.as_bytes(), count, |file| Adapter::load(file, &weights, &targets()).is_ok());
    assert!(taken > 10 && refused > 100, "{taken} read, {refused} refused");
}
