//! Where tokenizers come from: the metadata of a GGUF file (vocabulary with merges, or with scores; no `tokenizer.json` needed), or the
//! `tokenizer.json` of a folder.

use super::EngineError;
use super::detokenizer::TokenBytes;
use super::folder::Folder;
use super::gguf::{Gguf, Value};
use super::pieces::Pieces;
use super::tokenizer::{Control, Inner, Special, Spelled, Tokenizer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Token types of GGUF (`tokenizer.ggml.token_type`): control and user-defined tokens are matched before anything is split.
const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;
/// Tokens that end a turn, whatever the file names as the end.
const ENDS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"];

/// Splitting patterns of the pre-tokenizers that are not GPT-2's own (llama.cpp `llama-vocab.cpp`, the `LLAMA_VOCAB_PRE_TYPE` table).
const LLAMA3_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Tokenizer {
    /// Rebuilds the tokenizer from a model file's metadata.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the missing or malformed key, [`EngineError::Unsupported`] for a tokenizer family or
    /// pre-tokenizer that is not known: a wrong guess would silently change every token.
    pub fn from_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let types = file.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            return Err(file.problem(format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), tokens.len())));
        }
        let is_control = |id: usize| types[id] == CONTROL;
        let (inner, bytes) = match file.text("tokenizer.ggml.model")? {
            "gpt2" => {
                let bytes = TokenBytes::new(tokens.iter().copied(), is_control);
                (Inner::Library(Box::new(byte_level(file, &tokens, &types)?)), bytes)
            }
            "llama" => spelled(file, &tokens, &types)?,
            family => {
                return Err(EngineError::Unsupported(format!(
                    "tokenizer family \"{family}\" is not supported yet (byte-level BPE \"gpt2\" and SentencePiece \"llama\" are)"
                )));
            }
        };
        let named = tokens.iter().enumerate().filter(|(id, token)| is_control(*id) && !token.is_empty());
        let control = Control::new(named.map(|(id, token)| (id as u32, (*token).to_string()))).map_err(|problem| file.problem(problem))?;
        let id = |key: &str| file.get(key).map(|_| file.integer(key)).transpose().map(|id| id.map(|id| id as u32));
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let ends = id("tokenizer.ggml.eos_token_id")?.into_iter().chain(id("tokenizer.ggml.eot_token_id")?);
        let eos = ends_of(ends, |name| tokens.iter().position(|token| *token == name));
        let add_bos = match file.get("tokenizer.ggml.add_bos_token") {
            Some(Value::Bool(adds)) => *adds,
            // What SentencePiece does where the file does not say.
            _ => matches!(inner, Inner::Pieces(_)),
        };
        Ok(Tokenizer { inner, bos, eos, add_bos, vocabulary: tokens.len(), control, bytes, grammars: OnceLock::new() })
    }

    /// Reads a folder's `tokenizer.json`, and from its other files what ends a reply. `vocabulary` is the model's.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the file, [`EngineError::Unsupported`] for a tokenizer whose tokens are no bytes of the text.
    pub fn from_folder(folder: &Folder, vocabulary: usize) -> Result<Self, EngineError> {
        let name = "tokenizer.json";
        let fault = |problem: String| EngineError::Model { file: name.into(), problem };
        let source = folder.tokenizer()?;
        serde_json::from_slice::<serde::de::IgnoredAny>(&source).map_err(|error| fault(format!("is not JSON: {error}")))?;
        // The library panics where what it takes apart a second time is no JSON.
        let read = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&source)));
        let mut library = read.map_err(|_| fault("cannot be read".into()))?.map_err(|error| fault(error.to_string()))?;
        // What training tools leave there would cut texts, or fill them up, without a word.
        library.with_truncation(None).map_err(|error| fault(error.to_string()))?;
        library.with_padding(None);
        let highest = library.get_vocab(true).into_values().max().unwrap_or_default() as usize;
        if highest >= vocabulary {
            return Err(fault(format!("has a token {highest}; the model's vocabulary has {vocabulary}")));
        }
        let decoder = serde_json::to_string(&library.get_decoder()).unwrap_or_default();
        drop(source);
        let added = library.get_added_tokens_decoder();
        let is_control = |id: usize| added.get(&(id as u32)).is_some_and(|token| token.special);
        let tokens: Vec<String> = (0..vocabulary as u32).map(|id| library.id_to_token(id).unwrap_or_default()).collect();
        let texts = tokens.iter().map(String::as_str);
        let bytes = if decoder.contains("ByteLevel") {
            TokenBytes::new(texts, is_control)
        } else if decoder.contains("ByteFallback") || decoder.contains("Metaspace") {
            TokenBytes::pieces(texts, is_control, |id| byte_of(&tokens[id]))
        } else {
            return Err(EngineError::Unsupported(format!("{name}: its decoder is neither byte-level nor SentencePiece's")));
        };
        let named = added.iter().filter(|(_, token)| token.special && !token.content.is_empty());
        let control = Control::new(named.map(|(id, token)| (*id, token.content.clone()))).map_err(fault)?;
        let settings = folder.json("tokenizer_config.json")?.unwrap_or_default();
        let told =
            |key: &str| settings[key]["content"].as_str().or_else(|| settings[key].as_str()).and_then(|name| library.token_to_id(name));
        let starts = library.encode_fast("", true).ok().and_then(|encoding| encoding.get_ids().first().copied());
        let bos = told("bos_token").or_else(|| folder.config()["bos_token_id"].as_u64().map(|id| id as u32));
        let eos =
            ends_of(told("eos_token").into_iter().chain(configured_ends(folder)?), |name| library.token_to_id(name).map(|id| id as usize));
        let add_bos = bos.is_some() && starts == bos;
        let inner = Inner::Library(Box::new(library));
        Ok(Tokenizer { inner, bos, eos, add_bos, vocabulary, control, bytes, grammars: OnceLock::new() })
    }
}

/// `eos_token_id` of `generation_config.json`, else `config.json`: one or several.
fn configured_ends(folder: &Folder) -> Result<Vec<u32>, EngineError> {
    let generation = folder.json("generation_config.json")?.unwrap_or_default();
    let told = if generation["eos_token_id"].is_null() { &folder.config()["eos_token_id"] } else { &generation["eos_token_id"] };
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(told.as_array().map_or_else(|| id(told).into_iter().collect(), |several| several.iter().filter_map(id).collect()))
}

/// Tokens that end a reply: those that are named, and those that end a turn in any vocabulary.
fn ends_of(named: impl Iterator<Item = u32>, find: impl Fn(&str) -> Option<usize>) -> Vec<u32> {
    let mut ends: Vec<u32> = named.chain(ENDS.iter().filter_map(|name| find(name)).map(|id| id as u32)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// Byte-level BPE with merges.
fn byte_level(file: &Gguf, tokens: &[&str], types: &[i64]) -> Result<tokenizers::Tokenizer, EngineError> {
    let vocab: Vocab = tokens.iter().enumerate().map(|(id, token)| ((*token).to_string(), id as u32)).collect();
    let merges =
        file.texts("tokenizer.ggml.merges")?.into_iter().map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())));
    let merges: Option<Vec<_>> = merges.collect();
    let merges = merges.ok_or_else(|| file.problem("tokenizer.ggml.merges holds an entry without a space"))?;
    let pre = file.get("tokenizer.ggml.pre").map_or(Ok("gpt-2"), |_| file.text("tokenizer.ggml.pre"))?;
    let library = |error: tokenizers::Error| file.problem(format!("the tokenizer cannot be built: {error}"));
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignores_merges(pre)).build().map_err(library)?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    if composes(pre) {
        inner.with_normalizer(Some(NFC)).map_err(library)?;
    }
    inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    let special = types.iter().zip(tokens).filter(|(kind, _)| matches!(**kind, CONTROL | USER_DEFINED));
    let added = special.map(|(kind, token)| AddedToken::from((*token).to_string(), *kind == CONTROL).normalized(false));
    inner.add_special_tokens(added.collect::<Vec<_>>()).map_err(library)?;
    Ok(inner)
}

/// SentencePiece's BPE with scores.
fn spelled(file: &Gguf, tokens: &[&str], types: &[i64]) -> Result<(Inner, TokenBytes), EngineError> {
    let scores = file.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        return Err(file.problem(format!("tokenizer.ggml.scores has {} entries for {} tokens", scores.len(), tokens.len())));
    }
    let byte = |id: usize| if types[id] == BYTE { byte_of(tokens[id]) } else { None };
    let bytes = TokenBytes::pieces(tokens.iter().copied(), |id| types[id] == CONTROL, byte);
    let is_special = |id: usize| matches!(types[id], CONTROL | USER_DEFINED) && !tokens[id].is_empty();
    let special: Vec<(u32, &str)> = (0..tokens.len()).filter(|id| is_special(*id)).map(|id| (id as u32, tokens[id])).collect();
    let special = Special::new(&special).map_err(|problem| file.problem(problem))?;
    let is_piece = |id: u32| !matches!(types[id as usize], CONTROL | USER_DEFINED | UNKNOWN | BYTE);
    let byte_tokens = (0..tokens.len()).filter_map(|id| Some((byte(id)?, id as u32)));
    let unknown = file.get("tokenizer.ggml.unknown_token_id").map(|_| file.integer("tokenizer.ggml.unknown_token_id")).transpose()?;
    let unknown = unknown.filter(|id| *id < tokens.len()).map(|id| id as u32);
    let pieces = Pieces::new(&bytes, scores, is_piece, byte_tokens, unknown);
    let adds_space = !matches!(file.get("tokenizer.ggml.add_space_prefix"), Some(Value::Bool(false)));
    Ok((Inner::Pieces(Box::new(Spelled { pieces, special, adds_space })), bytes))
}

/// The byte of a token `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Names of pre-tokenizers that are known.
pub(super) const PRE_TOKENIZERS: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

/// Whether a word that is a token as a whole is taken for that, whatever its merges make of it.
pub(super) fn ignores_merges(name: &str) -> bool {
    name == "llama-bpe"
}

/// Whether characters are composed (NFC) before a text is split: Qwen's own tokenizers do, which GGUF files have no key for.
pub(super) fn composes(name: &str) -> bool {
    name == "qwen2"
}

pub(super) fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, EngineError> {
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, EngineError> {
        let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
        let split = split.map_err(|error| EngineError::Unsupported(format!("pre-tokenizer {name}: {error}")))?;
        Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
    };
    match name {
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into()),
        "gpt-2" | "default" => Ok(ByteLevel::new(false, true, true).into()),
        "llama-bpe" => split(LLAMA3_PATTERN),
        "qwen2" => split(QWEN2_PATTERN),
        other => {
            Err(EngineError::Unsupported(format!("pre-tokenizer \"{other}\" is not supported yet (smollm, gpt-2, llama-bpe, qwen2 are)")))
        }
    }
}
