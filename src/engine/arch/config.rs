//! Sizes of a decoder, from the metadata of a GGUF file or the `config.json` of a folder. Both are untrusted: what is absurd is refused by
//! its key, and so is what would make other numbers than the ones that were trained.

use super::family::Family;
use crate::engine::EngineError;
use crate::engine::adapter::LoraTarget;
use crate::engine::folder::Folder;
use crate::engine::gguf::Gguf;
use crate::engine::kernel::rows::Gate;
use crate::engine::nn::attention::Heads;
use serde_json::Value;

/// Bounds of what a file may claim.
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 12;
const MAX_LAYERS: usize = 1 << 10;
const MAX_CONTEXT: usize = 1 << 24;
/// Positions that a network for training has rotary tables for, at most.
const TRAINED_POSITIONS: usize = 1 << 15;
/// Elements of those tables, at most: a file of some kilobytes may claim any context.
const TRAINED_ANGLES: usize = 1 << 23;

/// Names of the adaptable layers of a block, in forward order.
const MODULES: [&str; 7] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// Sizes of a decoder, from the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `general.architecture`, or `model_type` of a folder.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub inner: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Factor on the attention's scores.
    pub attention_scale: f32,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// How queries and keys turn, but in layers that slide.
    pub rotary: Rotary,
    /// Layers that see only the last positions.
    pub sliding: Option<Sliding>,
    /// ε of the norms.
    pub norm_epsilon: f32,
    /// The activation.
    pub gate: Gate,
    /// Embeddings are multiplied with it.
    pub embedding_scale: f32,
    /// Logits x become cap · tanh(x / cap).
    pub logit_cap: Option<f32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub base: f32,
    /// What each pair's period is multiplied with, (width / 2); empty: nothing.
    pub stretch: Vec<f32>,
}

/// Sliding windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Sliding {
    /// Positions that a token sees, itself among them.
    pub window: usize,
    /// Which layers.
    pub layers: Vec<bool>,
    /// How queries and keys turn in them.
    pub rotary: Rotary,
}

impl Rotary {
    /// What a position is divided by to get the angle of each pair of a head, (width / 2).
    pub fn periods(&self, width: usize) -> Vec<f32> {
        let period = |j: usize| self.base.powf(2.0 * j as f32 / width as f32) * self.stretch.get(j).unwrap_or(&1.0);
        (0..width / 2).map(period).collect()
    }
}

impl DecoderConfig {
    /// Linear layers that adapters can be put on: the seven of each block, in forward order.
    pub fn lora_targets(&self) -> Vec<LoraTarget> {
        let (query, key) = (self.heads.query_width(), self.heads.key_width());
        let widths = [
            (self.hidden, query),
            (self.hidden, key),
            (self.hidden, key),
            (query, self.hidden),
            (self.hidden, self.inner),
            (self.hidden, self.inner),
            (self.inner, self.hidden),
        ];
        let target = |layer: usize| {
            let named = MODULES.iter().zip(widths);
            named.map(move |(module, (inputs, outputs))| LoraTarget { path: format!("model.layers.{layer}.{module}"), inputs, outputs })
        };
        (0..self.layers).flat_map(target).collect()
    }

    /// The window of a layer: how many positions it sees.
    pub fn window(&self, layer: usize) -> usize {
        self.sliding.as_ref().filter(|sliding| sliding.layers[layer]).map_or(usize::MAX, |sliding| sliding.window)
    }

    /// Positions that a network for training takes, which is the context of one that was loaded for it.
    pub fn trained_positions(&self) -> usize {
        self.context.min(TRAINED_POSITIONS).min(TRAINED_ANGLES / self.heads.width)
    }

    /// Reads a GGUF file's metadata. `stretch` is the tensor `rope_freqs.weight`, where the file has it.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the key, [`EngineError::Unsupported`] for what is not done here.
    pub(super) fn of_gguf(file: &Gguf, family: &Family) -> Result<Self, EngineError> {
        let architecture = file.text("general.architecture")?.to_string();
        let keys = GgufKeys { file, architecture: &architecture };
        let heads = keys.heads()?;
        if keys.has("attn_logit_softcapping") {
            return Err(EngineError::Unsupported(format!("{architecture}.attn_logit_softcapping is not supported")));
        }
        let base = keys.number_or("rope.freq_base", 10_000.0)?;
        let rotary = Rotary { base, stretch: keys.stretch(heads.width)? };
        let layers = keys.integer("block_count", MAX_LAYERS)?;
        let mut config = DecoderConfig {
            layers,
            hidden: keys.integer("embedding_length", MAX_WIDTH)?,
            inner: keys.integer("feed_forward_length", MAX_WIDTH)?,
            heads,
            attention_scale: 0.0,
            vocabulary: file.texts("tokenizer.ggml.tokens")?.len(),
            context: keys.integer("context_length", MAX_CONTEXT)?,
            sliding: keys.sliding(layers, &rotary, family)?,
            rotary,
            norm_epsilon: file.number(&keys.name("attention.layer_norm_rms_epsilon"))? as f32,
            gate: family.gate,
            embedding_scale: 1.0,
            logit_cap: keys.has("final_logit_softcapping").then(|| keys.number_or("final_logit_softcapping", 0.0)).transpose()?,
            architecture: architecture.clone(),
        };
        config.finish(family, None);
        Ok(config)
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// As [`DecoderConfig::of_gguf`].
    pub(super) fn of_folder(folder: &Folder, family: &Family) -> Result<Self, EngineError> {
        let keys = JsonKeys { config: folder.config() };
        keys.refuse_what_is_not_done(family)?;
        let heads = keys.heads()?;
        let layers = keys.integer("num_hidden_layers", MAX_LAYERS)?;
        let context = keys.integer("max_position_embeddings", MAX_CONTEXT)?;
        let rotary = keys.rotary("full_attention", heads.width)?;
        let mut config = DecoderConfig {
            architecture: family.folder.to_string(),
            layers,
            hidden: keys.integer("hidden_size", MAX_WIDTH)?,
            inner: keys.integer("intermediate_size", MAX_WIDTH)?,
            heads,
            attention_scale: 0.0,
            vocabulary: keys.integer("vocab_size", MAX_CONTEXT)?,
            context,
            sliding: keys.sliding(layers, heads.width, family)?,
            rotary,
            norm_epsilon: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            gate: keys.gate(family)?,
            embedding_scale: 1.0,
            logit_cap: keys.number("final_logit_softcapping")?,
        };
        config.finish(family, keys.number("query_pre_attn_scalar")?.map(|scalar| 1.0 / scalar.sqrt()));
        Ok(config)
    }

    /// What follows from the rest.
    fn finish(&mut self, family: &Family, attention_scale: Option<f32>) {
        self.attention_scale = attention_scale.unwrap_or_else(|| (family.attention_scale)(self));
        if family.scales_embeddings {
            self.embedding_scale = (self.hidden as f32).sqrt();
        }
    }
}

/// Whether head counts and widths fit together.
fn fitting(queries: usize, keys: usize, width: usize, rotary: usize) -> Result<Heads, String> {
    if !queries.is_multiple_of(keys) || width == 0 || !width.is_multiple_of(2) || rotary != width || queries * width > MAX_WIDTH {
        return Err(format!("{queries} query heads, {keys} key heads and head width {width} (rotary {rotary}) do not fit together"));
    }
    Ok(Heads { queries, keys, width })
}

/// Layers that slide, where every n-th does not.
fn sliding_layers(layers: usize, full_every: Option<usize>) -> Vec<bool> {
    (1..=layers).map(|layer| full_every.is_none_or(|every| !layer.is_multiple_of(every))).collect()
}

/// The metadata of one architecture.
struct GgufKeys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl GgufKeys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn has(&self, key: &str) -> bool {
        self.file.get(&self.name(key)).is_some()
    }

    fn integer(&self, key: &str, most: usize) -> Result<usize, EngineError> {
        let name = self.name(key);
        let value = self.file.integer(&name)?;
        let usable = (1..=most).contains(&value);
        usable.then_some(value).ok_or_else(|| self.file.problem(format!("{name} is {value}; 1 to {most} is usable")))
    }

    fn integer_or(&self, key: &str, most: usize, fallback: usize) -> Result<usize, EngineError> {
        if self.has(key) { self.integer(key, most) } else { Ok(fallback) }
    }

    /// A positive number.
    fn number_or(&self, key: &str, fallback: f32) -> Result<f32, EngineError> {
        let name = self.name(key);
        let value = if self.has(key) { self.file.number(&name)? as f32 } else { fallback };
        let usable = value > 0.0 && value.is_finite();
        usable.then_some(value).ok_or_else(|| self.file.problem(format!("{name} is {value}; a positive number is usable")))
    }

    fn heads(&self) -> Result<Heads, EngineError> {
        let queries = self.integer("attention.head_count", MAX_HEADS)?;
        let keys = self.integer_or("attention.head_count_kv", queries, queries)?;
        let width = self.integer_or("attention.key_length", MAX_HEADS, self.integer("embedding_length", MAX_WIDTH)? / queries)?;
        let values = self.integer_or("attention.value_length", MAX_HEADS, width)?;
        if values != width {
            return Err(self.file.problem(format!("values have heads of {values} elements, keys of {width}: that is not supported")));
        }
        let rotary = self.integer_or("rope.dimension_count", MAX_HEADS, width)?;
        fitting(queries, keys, width, rotary).map_err(|problem| self.file.problem(problem))
    }

    /// What periods are multiplied with: factors of a tensor, or one factor.
    fn stretch(&self, width: usize) -> Result<Vec<f32>, EngineError> {
        let kind = self.name("rope.scaling.type");
        if self.file.has_tensor("rope_freqs.weight") {
            let stretch = self.file.vector("rope_freqs.weight", width / 2)?;
            let usable = stretch.iter().all(|x| *x > 0.0 && x.is_finite());
            return if usable {
                Ok(stretch)
            } else {
                Err(self.file.problem("tensor rope_freqs.weight holds a factor that is not positive"))
            };
        }
        match self.file.get(&kind).map(|_| self.file.text(&kind)).transpose()? {
            None | Some("none") => Ok(Vec::new()),
            Some("linear") => Ok(vec![self.number_or("rope.scaling.factor", 1.0)?; width / 2]),
            Some(other) => Err(EngineError::Unsupported(format!("{kind} \"{other}\" is not supported (linear and llama3 are)"))),
        }
    }

    fn sliding(&self, layers: usize, rotary: &Rotary, family: &Family) -> Result<Option<Sliding>, EngineError> {
        if !self.has("attention.sliding_window") {
            return Ok(None);
        }
        let window = self.integer("attention.sliding_window", usize::MAX)?;
        let every = match self.has("attention.sliding_window_pattern") {
            true => Some(self.integer("attention.sliding_window_pattern", MAX_LAYERS)?),
            false => family.full_every,
        };
        let own = family.sliding_rope_base.map(|base| self.number_or("rope.freq_base_swa", base)).transpose()?;
        let rotary = own.map_or_else(|| rotary.clone(), |base| Rotary { base, stretch: Vec::new() });
        Ok(Some(Sliding { window, layers: sliding_layers(layers, every), rotary }))
    }
}

/// The keys of `config.json`.
struct JsonKeys<'a> {
    config: &'a Value,
}

fn fault(problem: impl Into<String>) -> EngineError {
    EngineError::Model { file: "config.json".into(), problem: problem.into() }
}

impl JsonKeys<'_> {
    fn integer(&self, key: &str, most: usize) -> Result<usize, EngineError> {
        let value = self.config[key].as_u64().and_then(|value| usize::try_from(value).ok()).filter(|value| (1..=most).contains(value));
        value.ok_or_else(|| fault(format!("{key} is {}; 1 to {most} is usable", self.config[key])))
    }

    fn integer_or(&self, key: &str, most: usize, fallback: usize) -> Result<usize, EngineError> {
        if self.config[key].is_null() { Ok(fallback) } else { self.integer(key, most) }
    }

    /// A positive number, if one is given.
    fn number(&self, key: &str) -> Result<Option<f32>, EngineError> {
        positive(key, &self.config[key])
    }

    fn heads(&self) -> Result<Heads, EngineError> {
        let queries = self.integer("num_attention_heads", MAX_HEADS)?;
        let keys = self.integer_or("num_key_value_heads", queries, queries)?;
        let width = self.integer_or("head_dim", MAX_HEADS, self.integer("hidden_size", MAX_WIDTH)? / queries)?;
        fitting(queries, keys, width, width).map_err(fault)
    }

    fn gate(&self, family: &Family) -> Result<Gate, EngineError> {
        let named = self.config["hidden_activation"].as_str().or_else(|| self.config["hidden_act"].as_str());
        match named {
            None => Ok(family.gate),
            Some("silu" | "swish") => Ok(Gate::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Gate::GeluTanh),
            Some(other) => Err(EngineError::Unsupported(format!(
                "config.json: activation \"{other}\" is not supported (silu and gelu_pytorch_tanh are)"
            ))),
        }
    }

    /// What would be left out without a word.
    fn refuse_what_is_not_done(&self, family: &Family) -> Result<(), EngineError> {
        for (key, fine) in [
            ("attention_bias", !family.has_biases && self.config["attention_bias"] == Value::Bool(true)),
            ("mlp_bias", self.config["mlp_bias"] == Value::Bool(true)),
            ("attn_logit_softcapping", !self.config["attn_logit_softcapping"].is_null()),
            ("use_bidirectional_attention", self.config["use_bidirectional_attention"] == Value::Bool(true)),
        ] {
            if fine {
                return Err(EngineError::Unsupported(format!("config.json: {key} {} is not supported", self.config[key])));
            }
        }
        match self.config["partial_rotary_factor"].as_f64() {
            Some(part) if part != 1.0 => {
                Err(EngineError::Unsupported(format!("config.json: partial_rotary_factor {part} is not supported")))
            }
            _ => Ok(()),
        }
    }

    /// The rotary settings of a kind of layers. transformers 5 keeps all in `rope_parameters`, for each kind or for all; before it, there
    /// were `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
    fn rotary(&self, kind: &str, width: usize) -> Result<Rotary, EngineError> {
        let all = &self.config["rope_parameters"];
        let (settings, base) = if all.is_object() {
            let own = if all[kind].is_object() { &all[kind] } else { all };
            (own, &own["rope_theta"])
        } else {
            (&self.config["rope_scaling"], &self.config["rope_theta"])
        };
        let base = positive("rope_theta", base)?.unwrap_or(10_000.0);
        Ok(Rotary { base, stretch: stretch(settings, base, width)? })
    }

    fn sliding(&self, layers: usize, width: usize, family: &Family) -> Result<Option<Sliding>, EngineError> {
        let is_off = self.config["use_sliding_window"] == Value::Bool(false) || self.config["sliding_window"].is_null();
        if is_off {
            return Ok(None);
        }
        let window = self.integer("sliding_window", usize::MAX)?;
        let listed = match &self.config["layer_types"] {
            Value::Array(kinds) if kinds.len() == layers => {
                let slides = |kind: &Value| match kind.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(EngineError::Unsupported(format!("config.json: layer_types holds {kind}, which is not supported"))),
                };
                kinds.iter().map(slides).collect::<Result<Vec<bool>, _>>()?
            }
            Value::Null => {
                let every = self.integer_or("sliding_window_pattern", MAX_LAYERS, family.full_every.unwrap_or(0))?;
                let full_before = self.config["max_window_layers"].as_u64().unwrap_or(0) as usize;
                let listed = sliding_layers(layers, (every > 0).then_some(every));
                listed.into_iter().enumerate().map(|(layer, slides)| slides && layer >= full_before).collect()
            }
            other => return Err(fault(format!("layer_types is {other}; a kind for each of the {layers} layers is usable"))),
        };
        let is_split = self.config["rope_parameters"]["sliding_attention"].is_object();
        let rotary = match (family.sliding_rope_base, is_split) {
            (Some(base), false) => Rotary { base: self.number("rope_local_base_freq")?.unwrap_or(base), stretch: Vec::new() },
            _ => self.rotary("sliding_attention", width)?,
        };
        Ok(Some(Sliding { window, layers: listed, rotary }))
    }
}

fn positive(key: &str, value: &Value) -> Result<Option<f32>, EngineError> {
    match value {
        Value::Null => Ok(None),
        value => {
            let number = value.as_f64().map(|number| number as f32).filter(|number| *number > 0.0 && number.is_finite());
            number.map(Some).ok_or_else(|| fault(format!("{key} is {value}; a positive number is usable")))
        }
    }
}

/// Factors of `rope_scaling`: `linear`, or `llama3` (Llama 3.1: long periods are stretched whole, short ones not, those between in part).
fn stretch(settings: &Value, base: f32, width: usize) -> Result<Vec<f32>, EngineError> {
    let kind = settings["rope_type"].as_str().or_else(|| settings["type"].as_str()).unwrap_or("default");
    let number = |key: &str| positive(key, &settings[key])?.ok_or_else(|| fault(format!("rope scaling \"{kind}\" needs {key}")));
    match kind {
        "default" => Ok(Vec::new()),
        "linear" => Ok(vec![number("factor")?; width / 2]),
        "llama3" => {
            let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            let trained = number("original_max_position_embeddings")?;
            if high <= low {
                return Err(fault(format!("high_freq_factor {high} is not above low_freq_factor {low}")));
            }
            let one = |period: f32| {
                let turns = trained / (2.0 * std::f32::consts::PI * period);
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            Ok(Rotary { base, stretch: Vec::new() }.periods(width).into_iter().map(one).collect())
        }
        other => Err(EngineError::Unsupported(format!("config.json: rope scaling \"{other}\" is not supported (linear and llama3 are)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn llama3_scaling_is_that_of_the_published_formula() {
        // The values of Llama 3.1 for head width 128 and base 500000: transformers 5.24, `_compute_llama3_parameters`, inverted.
        let settings = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let factors = stretch(&settings, 500_000.0, 128).expect("factors");
        assert_eq!(factors.len(), 64);
        assert!(factors[..26].iter().all(|x| (x - 1.0).abs() < 1e-6), "{factors:?}");
        assert!(factors[40..].iter().all(|x| (x - 8.0).abs() < 1e-4), "{factors:?}");
        assert!(factors.is_sorted());
    }

    #[test]
    fn every_sixth_layer_of_gemma_sees_everything() {
        let layers = sliding_layers(18, Some(6));
        let full: Vec<usize> = (0..18).filter(|layer| !layers[*layer]).collect();
        assert_eq!(full, [5, 11, 17]);
        assert!(sliding_layers(3, None).iter().all(|slides| *slides));
    }
}
