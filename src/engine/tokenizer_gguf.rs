//! A byte-level tokenizer as the metadata of a GGUF file: the other way round of [`tokenizer_files`](super::tokenizer_files). What a file
//! cannot say, or what no reader would take for the same, is refused by name.

use super::EngineError;
use super::tokenizer::{Inner, Tokenizer};
use super::tokenizer_files::{CONTROL, PRE_TOKENIZERS, USER_DEFINED, pre_tokenizer};
use serde_json::Value;
use std::collections::HashMap;

/// Types of tokens that are matched by merges, and of places in the vocabulary that no token has.
const NORMAL: i64 = 1;
const UNUSED: i64 = 5;

/// A vocabulary with its merges.
pub struct Vocabulary {
    /// `tokenizer.ggml.pre`
    pub pre: &'static str,
    /// `tokenizer.ggml.tokens`
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`
    pub types: Vec<i64>,
    /// `tokenizer.ggml.merges`
    pub merges: Vec<String>,
}

impl Tokenizer {
    /// The vocabulary as GGUF files have it.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming what GGUF has no word for.
    pub fn to_gguf(&self) -> Result<Vocabulary, EngineError> {
        let Inner::Library(library) = &self.inner else {
            return Err(unsupported("scored pieces"));
        };
        let written: Value = serde_json::from_str(&self.to_json()?).map_err(|error| unsupported(&error.to_string()))?;
        if written["model"]["type"] != "BPE" || written["model"]["byte_fallback"] == true {
            return Err(unsupported(&format!("a model of the type {}", written["model"]["type"])));
        }
        if !(written["normalizer"].is_null() || written["normalizer"]["type"] == "NFC") {
            return Err(unsupported(&format!("a normalizer of the type {}", written["normalizer"]["type"])));
        }
        let pair = |merge: &Value| match merge {
            Value::String(merge) => Some(merge.clone()),
            Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        };
        let merges = written["model"]["merges"].as_array().into_iter().flatten().map(pair).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| unsupported("merges that are no pairs"))?;
        let added = library.get_added_tokens_decoder();
        let names: HashMap<u32, String> = library.get_vocab(true).into_iter().map(|(name, id)| (id, name)).collect();
        let (mut tokens, mut types) = (Vec::with_capacity(self.vocabulary), Vec::with_capacity(self.vocabulary));
        for id in 0..self.vocabulary as u32 {
            types.push(match (added.get(&id), names.contains_key(&id)) {
                (Some(token), _) => {
                    if token.special {
                        CONTROL
                    } else {
                        USER_DEFINED
                    }
                }
                (None, true) => NORMAL,
                (None, false) => UNUSED,
            });
            tokens.push(names.get(&id).cloned().unwrap_or_else(|| format!("[PAD{id}]")));
        }
        Ok(Vocabulary { pre: pre_name(&written["pre_tokenizer"])?, tokens, types, merges })
    }
}

/// The name of a pre-tokenizer that splits like this one.
fn pre_name(written: &Value) -> Result<&'static str, EngineError> {
    for name in PRE_TOKENIZERS {
        let known = serde_json::to_value(pre_tokenizer(name)?).unwrap_or_default();
        if without_offsets(&known) == without_offsets(written) {
            return Ok(name);
        }
    }
    Err(unsupported(&format!("a pre-tokenizer that splits otherwise than {}", PRE_TOKENIZERS.join(", "))))
}

/// Without what only matters to places in the text.
fn without_offsets(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| *name != "trim_offsets");
            kept.map(|(name, value)| (name.clone(), without_offsets(value))).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(without_offsets).collect(),
        other => other.clone(),
    }
}

fn unsupported(what: &str) -> EngineError {
    EngineError::Unsupported(format!("a tokenizer with {what} is not written as GGUF"))
}
