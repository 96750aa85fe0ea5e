//! A model folder as sentence-transformers and transformers write it: JSON configuration, a tokenizer, safetensors weights. The files are
//! untrusted: sizes are checked before anything is allocated, and errors name file and key.

use super::Pooling;
use crate::engine::{EngineError, map};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokenizers::Tokenizer;

/// Bounds of what a configuration may claim.
const MAX_WIDTH: usize = 1 << 16;
const MAX_LAYERS: usize = 1_024;
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_CONFIG_BYTES: usize = 1 << 20;

/// The files of a model, by name.
pub(super) struct Folder<'a> {
    files: &'a BTreeMap<String, PathBuf>,
}

/// Sizes of an encoder, from `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) heads: usize,
    pub(super) positions: usize,
    pub(super) vocabulary: usize,
    pub(super) kinds: usize,
    pub(super) norm_epsilon: f32,
}

impl<'a> Folder<'a> {
    pub(super) fn new(files: &'a BTreeMap<String, PathBuf>) -> Self {
        Folder { files }
    }

    fn path(&self, name: &str) -> Result<&'a PathBuf, EngineError> {
        self.files.get(name).ok_or_else(|| fault(name, "is not in the model's folder"))
    }

    fn json(&self, name: &str) -> Result<Value, EngineError> {
        let path = self.path(name)?;
        let bytes = std::fs::read(path).map_err(|source| EngineError::Io { path: path.clone(), source })?;
        if bytes.len() > MAX_CONFIG_BYTES {
            return Err(fault(name, format!("has {} bytes; at most {MAX_CONFIG_BYTES} are read", bytes.len())));
        }
        serde_json::from_slice(&bytes).map_err(|error| fault(name, format!("is not JSON: {error}")))
    }

    pub(super) fn config(&self) -> Result<Config, EngineError> {
        Config::read(&self.json("config.json")?)
    }

    /// The tokenizer, without the truncation and padding that its file may ask for: both are ours.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer, EngineError> {
        let name = "tokenizer.json";
        let mut tokenizer = Tokenizer::from_file(self.path(name)?).map_err(|error| fault(name, error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| fault(name, error.to_string()))?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    }

    /// `max_seq_length` of sentence-transformers: how long the texts were that the model learnt from.
    pub(super) fn max_tokens(&self) -> Result<Option<usize>, EngineError> {
        let name = "sentence_bert_config.json";
        if !self.files.contains_key(name) {
            return Ok(None);
        }
        match &self.json(name)?["max_seq_length"] {
            Value::Null => Ok(None),
            value => {
                let length = value.as_u64().and_then(|length| usize::try_from(length).ok()).filter(|length| *length >= 3);
                length.map(Some).ok_or_else(|| fault(name, format!("max_seq_length is {value}")))
            }
        }
    }

    /// How sentence-transformers pools; the mean where nothing is said.
    pub(super) fn pooling(&self) -> Result<Pooling, EngineError> {
        let name = "1_Pooling/config.json";
        if !self.files.contains_key(name) {
            return Ok(Pooling::Mean);
        }
        let config = self.json(name)?;
        let on = |key: &str| config[key].as_bool().unwrap_or(false);
        let known = [
            ("pooling_mode_mean_tokens", Pooling::Mean),
            ("pooling_mode_cls_token", Pooling::First),
            ("pooling_mode_max_tokens", Pooling::Max),
        ];
        let asked: Vec<&String> = config
            .as_object()
            .map_or_else(Vec::new, |object| object.keys().filter(|key| key.starts_with("pooling_mode_") && on(key)).collect());
        match (&asked[..], known.iter().find(|(key, _)| on(key))) {
            ([_], Some((_, pooling))) => Ok(*pooling),
            _ => {
                Err(EngineError::Unsupported(format!("{name}: pooling by {asked:?} is not supported (mean, cls or max, one of them, is)")))
            }
        }
    }

    pub(super) fn weights(&self) -> Result<Weights, EngineError> {
        let mut files = Vec::new();
        for (name, path) in self.files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
            files.push((name.clone(), map::map(path)?));
        }
        Ok(Weights { files })
    }
}

impl Config {
    fn read(config: &Value) -> Result<Self, EngineError> {
        let name = "config.json";
        let kind = config["model_type"].as_str().unwrap_or_default();
        if kind != "bert" {
            return Err(EngineError::Unsupported(format!("{name}: architecture \"{kind}\" makes no embeddings here yet (bert does)")));
        }
        let text = |key: &str, fallback: &str| config[key].as_str().unwrap_or(fallback).to_string();
        for (key, value, supported) in [
            ("hidden_act", text("hidden_act", "gelu"), "gelu"),
            ("position_embedding_type", text("position_embedding_type", "absolute"), "absolute"),
        ] {
            if value != supported {
                return Err(EngineError::Unsupported(format!("{name}: {key} \"{value}\" is not supported yet ({supported} is)")));
            }
        }
        let size = |key: &str, most: usize| {
            let value = config[key].as_u64().and_then(|value| usize::try_from(value).ok()).filter(|value| (1..=most).contains(value));
            value.ok_or_else(|| fault(name, format!("{key} is {}, expected 1 to {most}", config[key])))
        };
        let read = Config {
            layers: size("num_hidden_layers", MAX_LAYERS)?,
            hidden: size("hidden_size", MAX_WIDTH)?,
            inner: size("intermediate_size", MAX_WIDTH)?,
            heads: size("num_attention_heads", MAX_WIDTH)?,
            positions: size("max_position_embeddings", MAX_VOCABULARY)?,
            vocabulary: size("vocab_size", MAX_VOCABULARY)?,
            kinds: size("type_vocab_size", MAX_WIDTH)?,
            norm_epsilon: config["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32,
        };
        if !read.hidden.is_multiple_of(read.heads) {
            return Err(fault(name, format!("hidden_size {} is no multiple of num_attention_heads {}", read.hidden, read.heads)));
        }
        Ok(read)
    }
}

/// Mapped safetensors files.
pub(super) struct Weights {
    files: Vec<(String, Mmap)>,
}

impl Weights {
    /// Opens the headers.
    pub(super) fn open(&self) -> Result<Tensors<'_>, EngineError> {
        let mut parsed = Vec::new();
        for (name, map) in &self.files {
            parsed.push((name.as_str(), SafeTensors::deserialize(map).map_err(|error| fault(name, error.to_string()))?));
        }
        Ok(Tensors { files: parsed })
    }
}

/// Tensors by name.
pub(super) struct Tensors<'a> {
    files: Vec<(&'a str, SafeTensors<'a>)>,
}

impl Tensors<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|(_, file)| file.names().contains(&name))
    }

    /// A tensor of that shape, as f32.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        let found = self.files.iter().find_map(|(file, tensors)| tensors.tensor(name).ok().map(|tensor| (file, tensor)));
        let Some((file, tensor)) = found else {
            let file = self.files.first().map_or("model.safetensors", |(file, _)| file);
            return Err(fault(file, format!("has no tensor \"{name}\"")));
        };
        if tensor.shape() != shape {
            return Err(fault(file, format!("tensor \"{name}\" has the shape {:?}, expected {shape:?}", tensor.shape())));
        }
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::BF16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)).collect()),
            Dtype::F16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(fault(file, format!("tensor \"{name}\" has the type {other:?}; F32, F16 and BF16 are read"))),
        }
    }
}

pub(super) fn fault(file: &str, problem: impl Into<String>) -> EngineError {
    EngineError::Model { file: file.to_string(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12,
            "max_position_embeddings": 512, "vocab_size": 30522, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"})
    }

    #[test]
    fn a_wrong_configuration_names_its_key() {
        assert_eq!(Config::read(&good()).expect("good").heads, 12);
        for (key, value) in [
            ("model_type", json!("t5")),
            ("hidden_act", json!("silu")),
            ("position_embedding_type", json!("relative_key")),
            ("num_hidden_layers", json!(1e9)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(385)),
            ("vocab_size", json!(-1)),
        ] {
            let mut config = good();
            config[key] = value.clone();
            let message = Config::read(&config).expect_err(key).to_string();
            let says = if key == "model_type" { "t5" } else { key };
            assert!(message.contains("config.json") && message.contains(says), "{key} = {value}: {message}");
        }
    }
}
