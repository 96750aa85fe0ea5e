//! A byte-level tokenizer as the metadata of a GGUF file: the other way round of [`tokenizer_files`](super::tokenizer_files). What a file
//! cannot say, or what no reader would take for the same, is refused by name.

use super::EngineError;
use super::tokenizer::{Inner, Tokenizer};
use super::tokenizer_files::{CONTROL, PRE_TOKENIZERS, USER_DEFINED, composes, ignores_merges, pre_tokenizer};
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
        let pre = pre_name(&written["pre_tokenizer"])?;
        check_as_read(&written, pre)?;
        let pair = |merge: &Value| match merge {
            Value::String(merge) => Some(merge.clone()),
            Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        };
        let merges = written["model"]["merges"].as_array().into_iter().flatten().map(pair).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| unsupported("merges that are no pairs"))?;
        let added = library.get_added_tokens_decoder();
        let mut names: HashMap<u32, String> = HashMap::new();
        for (name, id) in library.get_vocab(true) {
            if let Some(other) = names.insert(id, name.clone()) {
                let [first, second] = if name < other { [name, other] } else { [other, name] };
                return Err(unsupported(&format!("one id, {id}, for {first:?} and {second:?}")));
            }
        }
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
        Ok(Vocabulary { pre, tokens, types, merges })
    }
}

/// Refuses what a reader of the file would not do: it has the name of the pre-tokenizer for all that is not told token by token.
fn check_as_read(written: &Value, pre: &str) -> Result<(), EngineError> {
    let (normalizer, model) = (&written["normalizer"], &written["model"]);
    let read = if composes(pre) { "NFC" } else { "" };
    if normalizer["type"].as_str().unwrap_or_default() != read {
        let own = if normalizer.is_null() { "no normalizer".into() } else { format!("a normalizer of the type {}", normalizer["type"]) };
        return Err(unsupported(&format!("{own} and the pre-tokenizer {pre}")));
    }
    if (model["ignore_merges"] == true) != ignores_merges(pre) {
        return Err(unsupported(&format!("ignore_merges {} and the pre-tokenizer {pre}", model["ignore_merges"])));
    }
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if !(model[key].is_null() || model[key] == "" || model[key] == 0.0) {
            return Err(unsupported(&format!("{key} {}", model[key])));
        }
    }
    // Without a normalizer a text is the same before it and behind it.
    let flags: &[&str] =
        if normalizer.is_null() { &["lstrip", "rstrip", "single_word"] } else { &["lstrip", "rstrip", "single_word", "normalized"] };
    for token in written["added_tokens"].as_array().into_iter().flatten() {
        if let Some(flag) = flags.iter().find(|flag| token[**flag] == true) {
            return Err(unsupported(&format!("the flag {flag} of the token {}", token["content"])));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a tokenizer says of itself beside its vocabulary.
    fn written(changes: &[(&str, Value)]) -> Value {
        let token = json!({"content": "<|im_end|>", "lstrip": false, "rstrip": false, "single_word": false, "normalized": false});
        let mut written = json!({"normalizer": null, "added_tokens": [token], "model": {"ignore_merges": false, "dropout": null,
            "continuing_subword_prefix": "", "end_of_word_suffix": null}});
        for (pointer, value) in changes {
            *written.pointer_mut(pointer).expect("it is there") = value.clone();
        }
        written
    }

    #[test]
    fn only_what_is_read_as_it_was_written_is_written() {
        let nfc = || ("/normalizer", json!({"type": "NFC"}));
        let flag = |name: &'static str| (name, json!(true));
        for (pre, changes) in [
            ("smollm", vec![]),
            ("gpt-2", vec![flag("/added_tokens/0/normalized")]),
            ("qwen2", vec![nfc()]),
            ("llama-bpe", vec![flag("/model/ignore_merges")]),
        ] {
            check_as_read(&written(&changes), pre).expect(pre);
        }
        for (pre, changes, words) in [
            ("smollm", vec![nfc()], "normalizer of the type \"NFC\""),
            ("qwen2", vec![], "no normalizer"),
            ("qwen2", vec![nfc(), flag("/added_tokens/0/normalized")], "normalized of the token \"<|im_end|>\""),
            ("smollm", vec![flag("/added_tokens/0/lstrip")], "lstrip of the token"),
            ("smollm", vec![flag("/added_tokens/0/rstrip")], "rstrip of the token"),
            ("smollm", vec![flag("/added_tokens/0/single_word")], "single_word of the token"),
            ("smollm", vec![flag("/model/ignore_merges")], "ignore_merges true"),
            ("llama-bpe", vec![], "ignore_merges false"),
            ("gpt-2", vec![("/model/dropout", json!(0.1))], "dropout 0.1"),
            ("gpt-2", vec![("/model/end_of_word_suffix", json!("</w>"))], "end_of_word_suffix"),
        ] {
            let told = check_as_read(&written(&changes), pre).expect_err(words).to_string();
            assert!(told.contains(words), "{told}");
        }
    }
}
