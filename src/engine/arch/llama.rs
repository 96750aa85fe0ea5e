//! The llama family: pre-norm blocks of rotary grouped attention and SwiGLU (Touvron et al. 2023, arXiv 2302.13971). This file says where
//! a GGUF file keeps them; [`serving`](super::serving) and [`training`](super::training) are the network.

use super::serving::{Block, Serving};
use super::training::{Layer, Norm, Projection, Training};
use super::{DecoderConfig, Network, Purpose};
use crate::engine::EngineError;
use crate::engine::gguf::{Gguf, Order};
use crate::engine::kernel::pool;
use crate::engine::kernel::tiles::Weight;
use crate::engine::nn::attention::Heads;
use crate::engine::nn::linear::Linear;
use crate::engine::nn::rope::Rope;
use candle_core::Tensor;
use std::sync::{Arc, OnceLock};

/// Reads a network from a GGUF file.
///
/// # Errors
/// [`EngineError::Model`] naming the key or tensor that is missing, malformed or of another shape.
pub fn load(file: &Gguf, purpose: Purpose) -> Result<(DecoderConfig, Network), EngineError> {
    let config = read_config(file)?;
    let network = match purpose {
        Purpose::Train | Purpose::TrainRounded => Network::Training(Box::new(training(file, &config, purpose)?)),
        Purpose::Serve | Purpose::ServeExact => Network::Serving(Box::new(serving(file, &config, purpose)?)),
    };
    Ok((config, network))
}

/// A linear layer of a block in the file: its name, width of its output and input, and heads whose rows are permuted.
struct Tensors<'a> {
    name: &'a str,
    outputs: usize,
    inputs: usize,
    permuted: Option<usize>,
}

/// The seven linear layers of a block, in forward order.
fn linears(config: &DecoderConfig) -> [Tensors<'static>; 7] {
    let (heads, hidden, inner) = (config.heads, config.hidden, config.inner);
    let of = |name, outputs, inputs, permuted| Tensors { name, outputs, inputs, permuted };
    [
        of("attn_q", heads.query_width(), hidden, Some(heads.queries)),
        of("attn_k", heads.key_width(), hidden, Some(heads.keys)),
        of("attn_v", heads.key_width(), hidden, None),
        of("attn_output", hidden, heads.query_width(), None),
        of("ffn_gate", inner, hidden, None),
        of("ffn_up", inner, hidden, None),
        of("ffn_down", hidden, inner, None),
    ]
}

fn serving(file: &Gguf, config: &DecoderConfig, purpose: Purpose) -> Result<Serving, EngineError> {
    let exact = purpose == Purpose::ServeExact;
    let table = |name: &str| file.weight(name, (config.vocabulary, config.hidden), &|row| row, exact).map(Arc::new);
    // The table and the blocks are packed by as many threads as there are cores.
    let (embed_tokens, blocks) = (OnceLock::new(), (0..config.layers).map(|_| OnceLock::new()).collect::<Vec<_>>());
    let threads = pool::Pool::new(0).map_err(|_| EngineError::Stopped)?;
    threads.install(|| {
        pool::each(config.layers + 1, |i| match i.checked_sub(1) {
            None => drop(embed_tokens.set(table("token_embd.weight"))),
            Some(layer) => drop(blocks[layer].set(block(file, config, layer, exact))),
        });
    });
    let packed = "every part was packed above";
    let embed_tokens = embed_tokens.into_inner().expect(packed)?;
    let lm_head = if file.has_tensor("output.weight") { table("output.weight")? } else { embed_tokens.clone() };
    let blocks = blocks.into_iter().map(|block| block.into_inner().expect(packed)).collect::<Result<_, _>>()?;
    let norm = file.vector("output_norm.weight", config.hidden)?;
    Ok(Serving::new(embed_tokens, lm_head, blocks, norm))
}

fn block(file: &Gguf, config: &DecoderConfig, index: usize, exact: bool) -> Result<Block, EngineError> {
    let load = |linear: &Tensors<'_>| packed(file, &Tensors { name: &format!("blk.{index}.{}.weight", linear.name), ..*linear }, exact);
    let [q, k, v, o, gate, up, down] = &linears(config);
    let norm = |name: &str| file.vector(&format!("blk.{index}.{name}.weight"), config.hidden);
    Ok(Block {
        input_layernorm: norm("attn_norm")?,
        qkv: [load(q)?, load(k)?, load(v)?],
        o_proj: load(o)?,
        post_attention_layernorm: norm("ffn_norm")?,
        gate_up: [load(gate)?, load(up)?],
        down_proj: load(down)?,
    })
}

fn training(file: &Gguf, config: &DecoderConfig, purpose: Purpose) -> Result<Training, EngineError> {
    let table = [config.vocabulary, config.hidden];
    let embed_tokens = file.tensor("token_embd.weight", &table)?;
    let head = if file.has_tensor("output.weight") { "output.weight" } else { "token_embd.weight" };
    let lm_head = trained(file, &Tensors { name: head, outputs: config.vocabulary, inputs: config.hidden, permuted: None }, purpose)?;
    let mut paths = config.lora_targets().into_iter().map(|target| target.path);
    let mut layers = Vec::new();
    for index in 0..config.layers {
        let mut projections = Vec::new();
        for linear in linears(config) {
            let name = format!("blk.{index}.{}.weight", linear.name);
            let linear = trained(file, &Tensors { name: &name, ..linear }, purpose)?;
            projections.push(Projection { path: paths.next().unwrap_or_default(), linear });
        }
        let norm = |name: &str| -> Result<Norm, EngineError> {
            let weight = file.tensor(&format!("blk.{index}.{name}.weight"), &[config.hidden])?;
            Ok(Norm::new(weight, config.norm_epsilon)?)
        };
        let (input_layernorm, post_attention_layernorm) = (norm("attn_norm")?, norm("ffn_norm")?);
        let Ok(projections) = projections.try_into() else { unreachable!("linears gives seven") };
        layers.push(Layer { input_layernorm, post_attention_layernorm, projections });
    }
    let rope = Arc::new(Rope::new(config.context, config.heads.width, config.rope_base));
    let norm = Norm::new(file.tensor("output_norm.weight", &[config.hidden])?, config.norm_epsilon)?;
    Ok(Training::new((embed_tokens, lm_head), layers, norm, (config.heads, rope)))
}

/// A linear layer for training.
fn trained(file: &Gguf, linear: &Tensors<'_>, purpose: Purpose) -> Result<Linear, EngineError> {
    let mut weight = file.tensor(linear.name, &[linear.outputs, linear.inputs])?;
    if let Some(heads) = linear.permuted {
        weight = unpermuted(&weight, heads)?;
    }
    if purpose != Purpose::TrainRounded {
        return Ok(Linear::new(weight)?);
    }
    Ok(Linear::served(weight, packed(file, linear, false)?)?)
}

/// A linear layer for serving.
fn packed(file: &Gguf, linear: &Tensors<'_>, exact: bool) -> Result<Weight, EngineError> {
    let order: Order<'_> = match linear.permuted {
        Some(heads) => &move |row| permuted(row, linear.outputs / heads),
        None => &|row| row,
    };
    file.weight(linear.name, (linear.outputs, linear.inputs), order, exact)
}

/// GGUF files of this family keep the rows of q and k interleaved for the other rotary layout (llama.cpp `convert_hf_to_gguf.py`,
/// `LlamaModel.permute`): the file's row for row `row` of the checkpoint, with heads of `width` rows.
fn permuted(row: usize, width: usize) -> usize {
    let (head, inside, half) = (row / width, row % width, width / 2);
    head * width + if inside < half { 2 * inside } else { 2 * (inside - half) + 1 }
}

/// The rows of a file's matrix in the checkpoint's order.
fn unpermuted(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let outputs = weight.dim(0)?;
    let rows: Vec<u32> = (0..outputs).map(|row| permuted(row, outputs / heads) as u32).collect();
    weight.index_select(&Tensor::from_vec(rows, outputs, weight.device())?, 0)
}

fn read_config(file: &Gguf) -> Result<DecoderConfig, EngineError> {
    let architecture = file.text("general.architecture")?.to_string();
    let key = |name: &str| format!("{architecture}.{name}");
    let integer = |name: &str, most: usize| -> Result<usize, EngineError> {
        let value = file.integer(&key(name))?;
        let usable = (1..=most).contains(&value);
        usable.then_some(value).ok_or_else(|| file.problem(format!("{} is {value}; 1 to {most} is usable", key(name))))
    };
    if file.get(&key("rope.scaling.type")).is_some() || file.has_tensor("rope_freqs.weight") {
        return Err(EngineError::Unsupported("rotary scaling is not supported yet".into()));
    }
    let (queries, hidden) = (integer("attention.head_count", 1 << 12)?, integer("embedding_length", 1 << 20)?);
    let keys = match file.get(&key("attention.head_count_kv")) {
        Some(_) => integer("attention.head_count_kv", queries)?,
        None => queries,
    };
    let width = match file.get(&key("attention.key_length")) {
        Some(_) => integer("attention.key_length", 1 << 12)?,
        None => hidden / queries,
    };
    let rotary = file.get(&key("rope.dimension_count")).map_or(Ok(width), |_| integer("rope.dimension_count", 1 << 12))?;
    if queries % keys != 0 || width == 0 || width % 2 != 0 || rotary != width {
        return Err(
            file.problem(format!("{queries} query heads, {keys} key heads and head width {width} (rotary {rotary}) do not fit together"))
        );
    }
    let vocabulary = file.texts("tokenizer.ggml.tokens")?.len();
    let rope_base = file.get(&key("rope.freq_base")).map_or(Ok(10_000.0), |_| file.number(&key("rope.freq_base")))?;
    Ok(DecoderConfig {
        layers: integer("block_count", 1 << 10)?,
        hidden,
        inner: integer("feed_forward_length", 1 << 20)?,
        heads: Heads { queries, keys, width },
        vocabulary,
        context: integer("context_length", 1 << 17)?,
        rope_base: rope_base as f32,
        norm_epsilon: file.number(&key("attention.layer_norm_rms_epsilon"))? as f32,
        architecture,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn unpermuting_brings_the_pairs_of_a_head_back_to_its_halves() {
        // One head of width 4: GGUF interleaves (0, 2, 1, 3).
        let weight = Tensor::new(&[[0f32], [2.0], [1.0], [3.0]], &Device::Cpu).expect("tensor");
        let rows = unpermuted(&weight, 1).expect("unpermutes").flatten_all().expect("flat");
        assert_eq!(rows.to_vec1::<f32>().expect("values"), [0.0, 1.0, 2.0, 3.0]);
    }
}
