//! What a GGUF file says of a model whose base is a folder: sizes, and the tokenizer as llama.cpp keeps it.

use super::failed;
use crate::engine::folder::Folder;
use crate::engine::model::Outline;
use crate::models::Files;
use crate::tuning::TuningError;
use candle_core::quantized::gguf_file::Value;
use std::collections::BTreeMap;

/// What such a file holds beside its weights.
pub(super) struct Described {
    pub(super) metadata: BTreeMap<String, Value>,
    /// Factors on the periods of rotations, where a tensor must say them.
    pub(super) factors: Option<Vec<f32>>,
}

/// What it says of a folder.
pub(super) fn describe(files: &Files, outline: &Outline) -> Result<Described, TuningError> {
    let (config, family) = (&outline.config, outline.family.as_gguf());
    let architecture = family.gguf.unwrap_or_default();
    let mut told = BTreeMap::from([("general.architecture".to_string(), text(architecture))]);
    let mut own = |key: &str, value: Value| told.insert(format!("{architecture}.{key}"), value);
    own("block_count", number(config.layers)?);
    own("context_length", number(config.context)?);
    own("embedding_length", number(config.hidden)?);
    own("feed_forward_length", number(config.inner)?);
    own("vocab_size", number(config.vocabulary)?);
    own("attention.head_count", number(config.heads.queries)?);
    own("attention.head_count_kv", number(config.heads.keys)?);
    own("attention.key_length", number(config.heads.width)?);
    own("attention.value_length", number(config.heads.width)?);
    own("rope.dimension_count", number(config.heads.width)?);
    own("attention.layer_norm_rms_epsilon", Value::F32(config.norm_epsilon));
    own("rope.freq_base", Value::F32(config.rotary.base));
    if let Some(sliding) = &config.sliding {
        own("attention.sliding_window", number(sliding.window)?);
        if family.sliding_rope_base.is_some() {
            own("rope.freq_base_swa", Value::F32(sliding.rotary.base));
        }
    }
    let factors = match config.rotary.stretch.as_slice() {
        [] => None,
        [factor, others @ ..] if others.iter().all(|other| other == factor) => {
            own("rope.scaling.type", text("linear"));
            own("rope.scaling.factor", Value::F32(*factor));
            None
        }
        table => Some(table.to_vec()),
    };
    told.extend(tokenizer(files, outline)?);
    Ok(Described { metadata: told, factors })
}

fn tokenizer(files: &Files, outline: &Outline) -> Result<Vec<(String, Value)>, TuningError> {
    let vocabulary = outline.tokenizer.to_gguf()?;
    let texts = |all: Vec<String>| Value::Array(all.into_iter().map(Value::String).collect());
    let mut told = vec![
        ("model", text("gpt2")),
        ("pre", text(vocabulary.pre)),
        ("tokens", texts(vocabulary.tokens)),
        ("token_type", Value::Array(vocabulary.types.into_iter().map(|kind| Value::I32(kind as i32)).collect())),
        ("merges", texts(vocabulary.merges)),
        ("add_bos_token", Value::Bool(outline.tokenizer.adds_bos())),
    ];
    if let Some(bos) = outline.tokenizer.bos() {
        told.push(("bos_token_id", Value::U32(bos)));
    }
    if let Some(eos) = eos(files, outline)? {
        told.push(("eos_token_id", Value::U32(eos)));
    }
    if let Some(template) = &outline.template {
        told.push(("chat_template", Value::String(template.source())));
    }
    Ok(told
        .into_iter()
        .map(|(name, value)| (format!("tokenizer.{}{name}", if name == "chat_template" { "" } else { "ggml." }), value))
        .collect())
}

/// The token that ends a reply: the first that the configuration names, else the first that the tokenizer knows.
fn eos(files: &Files, outline: &Outline) -> Result<Option<u32>, TuningError> {
    let Files::Folder(files) = files else { return Err(failed("the base is no folder")) };
    let configured = Folder::open(files)?.config()["eos_token_id"].clone();
    let first = configured.as_u64().or_else(|| configured[0].as_u64()).and_then(|id| u32::try_from(id).ok());
    Ok(first.or(outline.tokenizer.ends().first().copied()))
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn number(value: usize) -> Result<Value, TuningError> {
    u32::try_from(value).map(Value::U32).map_err(|_| failed(format!("{value} is too large for GGUF")))
}
