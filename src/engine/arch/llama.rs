//! The llama family: pre-norm blocks of rotary grouped attention and SwiGLU (Touvron et al. 2023, arXiv 2302.13971). Our own decoder,
//! because it must serve and train: parity with candle-transformers' is a test.

use super::{Adapter, Batch, Decoder, DecoderConfig, LoraTarget, Mode};
use crate::engine::EngineError;
use crate::engine::gguf::Gguf;
use crate::engine::kv_cache::KvCache;
use crate::engine::nn::add::add;
use crate::engine::nn::attention::{Cached, Heads, TrainAttention, attend_cached};
use crate::engine::nn::linear::{Linear, Lora};
use crate::engine::nn::norm::RmsNorm;
use crate::engine::nn::rope::Rope;
use crate::engine::nn::slices::{tensor, with_slice};
use crate::engine::nn::swiglu::SwiGlu;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Names of the adaptable layers of a block, in forward order.
const MODULES: [&str; 7] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// A decoder of the llama family.
#[derive(Clone)]
pub struct Llama {
    config: DecoderConfig,
    embed_tokens: Tensor,
    lm_head: Linear,
    layers: Vec<Layer>,
    norm: Norm,
    rope: Arc<Rope>,
}

#[derive(Clone)]
struct Layer {
    input_layernorm: Norm,
    post_attention_layernorm: Norm,
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    o_proj: Projection,
    gate_proj: Projection,
    up_proj: Projection,
    down_proj: Projection,
}

#[derive(Clone)]
struct Norm {
    weight: Tensor,
    op: RmsNorm,
}

/// A linear layer and its path in the checkpoint.
#[derive(Clone)]
struct Projection {
    path: String,
    linear: Linear,
}

impl Projection {
    fn forward(&self, x: &Tensor, mode: &Mode<'_>) -> candle_core::Result<Tensor> {
        match mode {
            Mode::Train(adapter) => self.linear.train(x, adapter.lora(&self.path)),
            Mode::Infer { adapters, .. } => {
                let loras: Vec<(Range<usize>, &Lora)> =
                    adapters.iter().filter_map(|(rows, adapter)| Some((rows.clone(), adapter.lora(&self.path)?))).collect();
                self.linear.infer(x, &loras)
            }
        }
    }

    fn merged(&self, adapter: &Adapter) -> candle_core::Result<Self> {
        let Some(lora) = adapter.lora(&self.path) else { return Ok(self.clone()) };
        let update = (lora.b.matmul(&lora.a)? * f64::from(lora.scale))?;
        Ok(Projection { path: self.path.clone(), linear: Linear::new((self.linear.weight() + update)?)? })
    }
}

impl Llama {
    /// Reads the decoder from a GGUF file, dequantised to f32.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the key or tensor that is missing, malformed or of another shape.
    pub fn load(file: &Gguf) -> Result<Self, EngineError> {
        let config = read_config(file)?;
        let epsilon = config.norm_epsilon;
        let embed_tokens = file.tensor("token_embd.weight", &[config.vocabulary, config.hidden])?;
        let lm_head = match file.has_tensor("output.weight") {
            true => file.tensor("output.weight", &[config.vocabulary, config.hidden])?,
            false => embed_tokens.clone(),
        };
        let norm = |name: &str| Norm::load(file, name, config.hidden, epsilon);
        let layers = (0..config.layers).map(|i| Layer::load(file, &config, i)).collect::<Result<_, _>>()?;
        let rope = Arc::new(Rope::new(config.context, config.heads.width, config.rope_base));
        Ok(Llama { norm: norm("output_norm.weight")?, embed_tokens, lm_head: Linear::new(lm_head)?, layers, rope, config })
    }

    fn attention(&self, layer: usize, x: &Tensor, batch: &Batch, mode: &mut Mode<'_>) -> candle_core::Result<Tensor> {
        let block = &self.layers[layer];
        let (q, k, v) = (block.q_proj.forward(x, mode)?, block.k_proj.forward(x, mode)?, block.v_proj.forward(x, mode)?);
        let attended = match mode {
            Mode::Train(_) => {
                let sequences = Arc::new(batch.segments.iter().map(|segment| segment.rows.clone()).collect());
                q.apply_op3(&k, &v, TrainAttention { heads: self.config.heads, rope: self.rope.clone(), sequences })?
            }
            Mode::Infer { cache, .. } => self.attend(layer, [&q, &k, &v], batch, cache)?,
        };
        block.o_proj.forward(&attended, mode)
    }

    fn attend(&self, layer: usize, [q, k, v]: [&Tensor; 3], batch: &Batch, cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let heads = self.config.heads;
        let (mut q, mut k) = (with_slice(q, <[f32]>::to_vec)?, with_slice(k, <[f32]>::to_vec)?);
        let (query_width, key_width) = (heads.query_width(), heads.key_width());
        for segment in &batch.segments {
            for (row, position) in segment.rows.clone().zip(segment.past..) {
                self.rope.rotate(&mut q[row * query_width..][..query_width], position);
                self.rope.rotate(&mut k[row * key_width..][..key_width], position);
            }
        }
        with_slice(v, |v| {
            for segment in &batch.segments {
                let range = segment.rows.start * key_width..segment.rows.end * key_width;
                cache.append(segment.slot, layer, &k[range.clone()], &v[range]);
            }
        })?;
        let cached = |segment: &super::Segment| -> Cached<'_> {
            let (keys, values) = cache.layer(segment.slot, layer);
            Cached { rows: segment.rows.clone(), past: segment.past, keys, values }
        };
        let sequences: Vec<_> = batch.segments.iter().map(cached).collect();
        tensor(attend_cached(&q, heads, &sequences), (batch.tokens.len(), query_width))
    }

    fn feed_forward(&self, layer: usize, x: &Tensor, mode: &Mode<'_>) -> candle_core::Result<Tensor> {
        let block = &self.layers[layer];
        let (gate, up) = (block.gate_proj.forward(x, mode)?, block.up_proj.forward(x, mode)?);
        block.down_proj.forward(&gate.apply_op2(&up, SwiGlu)?, mode)
    }
}

impl Decoder for Llama {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn hidden(&self, batch: &Batch, mut mode: Mode<'_>) -> Result<Tensor, EngineError> {
        let ids = Tensor::from_slice(&batch.tokens, batch.tokens.len(), &Device::Cpu)?;
        let mut x = self.embed_tokens.index_select(&ids, 0)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let attended = self.attention(i, &layer.input_layernorm.op.forward(&x)?, batch, &mut mode)?;
            x = add(&x, &attended)?;
            let fed = self.feed_forward(i, &layer.post_attention_layernorm.op.forward(&x)?, &mode)?;
            x = add(&x, &fed)?;
        }
        Ok(self.norm.op.forward(&x)?)
    }

    fn head(&self) -> &Tensor {
        self.lm_head.weight()
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.lm_head.infer(hidden, &[])?)
    }

    fn lora_targets(&self) -> Vec<LoraTarget> {
        let target = |projection: &Projection| {
            let (inputs, outputs) = projection.linear.widths();
            LoraTarget { path: projection.path.clone(), inputs, outputs }
        };
        self.layers.iter().flat_map(|layer| layer.projections().map(target)).collect()
    }

    fn merged(&self, adapter: &Adapter) -> Result<Box<dyn Decoder>, EngineError> {
        let layers = self.layers.iter().map(|layer| layer.merged(adapter)).collect::<candle_core::Result<_>>()?;
        Ok(Box::new(Llama { layers, ..self.clone() }))
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let mut weights = vec![("model.embed_tokens.weight".to_string(), self.embed_tokens.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            weights.push((format!("{prefix}.input_layernorm.weight"), layer.input_layernorm.weight.clone()));
            weights.push((format!("{prefix}.post_attention_layernorm.weight"), layer.post_attention_layernorm.weight.clone()));
            weights.extend(layer.projections().map(|p| (format!("{}.weight", p.path), p.linear.weight().clone())));
        }
        weights.push(("model.norm.weight".into(), self.norm.weight.clone()));
        weights.push(("lm_head.weight".into(), self.lm_head.weight().clone()));
        weights
    }
}

impl Norm {
    fn load(file: &Gguf, name: &str, width: usize, epsilon: f32) -> Result<Self, EngineError> {
        let weight = file.tensor(name, &[width])?;
        Ok(Norm { op: RmsNorm::new(&weight, epsilon)?, weight })
    }
}

impl Layer {
    fn load(file: &Gguf, config: &DecoderConfig, index: usize) -> Result<Self, EngineError> {
        let heads = config.heads;
        let norm = |name: &str| Norm::load(file, &format!("blk.{index}.{name}.weight"), config.hidden, config.norm_epsilon);
        let load =
            |module: usize, name: &str, outputs: usize, inputs: usize, unpermute: Option<usize>| -> Result<Projection, EngineError> {
                let mut weight = file.tensor(&format!("blk.{index}.{name}.weight"), &[outputs, inputs])?;
                if let Some(heads) = unpermute {
                    weight = unpermuted(&weight, heads)?;
                }
                Ok(Projection { path: format!("model.layers.{index}.{}", MODULES[module]), linear: Linear::new(weight)? })
            };
        Ok(Layer {
            input_layernorm: norm("attn_norm")?,
            post_attention_layernorm: norm("ffn_norm")?,
            q_proj: load(0, "attn_q", heads.query_width(), config.hidden, Some(heads.queries))?,
            k_proj: load(1, "attn_k", heads.key_width(), config.hidden, Some(heads.keys))?,
            v_proj: load(2, "attn_v", heads.key_width(), config.hidden, None)?,
            o_proj: load(3, "attn_output", config.hidden, heads.query_width(), None)?,
            gate_proj: load(4, "ffn_gate", config.inner, config.hidden, None)?,
            up_proj: load(5, "ffn_up", config.inner, config.hidden, None)?,
            down_proj: load(6, "ffn_down", config.hidden, config.inner, None)?,
        })
    }

    fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj].into_iter()
    }

    fn merged(&self, adapter: &Adapter) -> candle_core::Result<Self> {
        Ok(Layer {
            q_proj: self.q_proj.merged(adapter)?,
            k_proj: self.k_proj.merged(adapter)?,
            v_proj: self.v_proj.merged(adapter)?,
            o_proj: self.o_proj.merged(adapter)?,
            gate_proj: self.gate_proj.merged(adapter)?,
            up_proj: self.up_proj.merged(adapter)?,
            down_proj: self.down_proj.merged(adapter)?,
            ..self.clone()
        })
    }
}

/// GGUF files of this family keep the rows of q and k interleaved for the other rotary layout (llama.cpp `convert_hf_to_gguf.py`,
/// `LlamaModel.permute`); this is the inverse.
fn unpermuted(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    weight.reshape((heads, outputs / heads / 2, 2, inputs))?.transpose(1, 2)?.contiguous()?.reshape((outputs, inputs))
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

    #[test]
    fn unpermuting_brings_the_pairs_of_a_head_back_to_its_halves() {
        // One head of width 4: GGUF interleaves (0, 2, 1, 3).
        let weight = Tensor::new(&[[0f32], [2.0], [1.0], [3.0]], &Device::Cpu).expect("tensor");
        let rows = unpermuted(&weight, 1).expect("unpermutes").flatten_all().expect("flat");
        assert_eq!(rows.to_vec1::<f32>().expect("values"), [0.0, 1.0, 2.0, 3.0]);
    }
}
