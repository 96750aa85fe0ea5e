//! The tokenizer, rebuilt from GGUF metadata: vocabulary, merges, pre-tokenizer and special tokens. No `tokenizer.json` needed.

use super::EngineError;
use super::detokenizer::TokenBytes;
use super::gguf::Gguf;
use super::grammar::Grammars;
use crate::types::traits::CountTokens;
use std::collections::HashSet;
use std::sync::OnceLock;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// Token types of GGUF (`tokenizer.ggml.token_type`): control and user-defined tokens are matched before anything is split.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splitting patterns of the pre-tokenizers that are not GPT-2's own (llama.cpp `llama-vocab.cpp`, the `LLAMA_VOCAB_PRE_TYPE` table).
const LLAMA3_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Text to token ids and back, as the model was trained.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    add_bos: bool,
    vocabulary: usize,
    /// Control tokens as text.
    control: Vec<String>,
    /// Control tokens.
    control_ids: HashSet<u32>,
    bytes: TokenBytes,
    grammars: OnceLock<Option<Grammars>>,
}

impl Tokenizer {
    /// Rebuilds the tokenizer from a model file's metadata.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the missing or malformed key, [`EngineError::Unsupported`] for a tokenizer family or
    /// pre-tokenizer that is not known: a wrong guess would silently change every token.
    pub fn from_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let family = file.text("tokenizer.ggml.model")?;
        if family != "gpt2" {
            return Err(EngineError::Unsupported(format!(
                "tokenizer family \"{family}\" is not supported yet (byte-level BPE \"gpt2\" is)"
            )));
        }
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let vocab: Vocab = tokens.iter().enumerate().map(|(id, token)| ((*token).to_string(), id as u32)).collect();
        let merges = file
            .texts("tokenizer.ggml.merges")?
            .into_iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_string(), b.to_string())));
        let merges: Option<Vec<_>> = merges.collect();
        let merges = merges.ok_or_else(|| file.problem("tokenizer.ggml.merges holds an entry without a space"))?;
        let pre = file.get("tokenizer.ggml.pre").map_or(Ok("gpt-2"), |_| file.text("tokenizer.ggml.pre"))?;
        let library = |error: tokenizers::Error| file.problem(format!("the tokenizer cannot be built: {error}"));
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre == "llama-bpe").build().map_err(library)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
        inner.with_decoder(Some(ByteLevel::new(false, true, true)));
        let types = file.integers("tokenizer.ggml.token_type")?;
        let special = types.iter().zip(&tokens).filter(|(kind, _)| matches!(**kind, CONTROL | USER_DEFINED));
        let added = special.clone().map(|(kind, token)| AddedToken::from((*token).to_string(), *kind == CONTROL).normalized(false));
        inner.add_special_tokens(added.collect::<Vec<_>>()).map_err(library)?;
        let control = special.filter(|(kind, token)| **kind == CONTROL && !token.is_empty()).map(|(_, token)| (*token).to_string());
        let control: Vec<String> = control.collect();
        let id = |key: &str| file.get(key).map(|_| file.integer(key)).transpose().map(|id| id.map(|id| id as u32));
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let mut eos: Vec<u32> = id("tokenizer.ggml.eos_token_id")?.into_iter().chain(id("tokenizer.ggml.eot_token_id")?).collect();
        eos.extend(["<|im_end|>", "<|eot_id|>", "<|endoftext|>"].iter().filter_map(|token| inner.token_to_id(token)));
        eos.sort_unstable();
        eos.dedup();
        let add_bos = matches!(file.get("tokenizer.ggml.add_bos_token"), Some(super::gguf::Value::Bool(true)));
        let control_ids: HashSet<u32> = types.iter().enumerate().filter(|(_, kind)| **kind == CONTROL).map(|(id, _)| id as u32).collect();
        let bytes = TokenBytes::new(tokens.iter().copied(), |id| control_ids.contains(&(id as u32)));
        let vocabulary = tokens.len();
        Ok(Tokenizer { inner, bos, eos, add_bos, vocabulary, control, control_ids, bytes, grammars: OnceLock::new() })
    }

    /// Token ids of a text, special tokens in it recognised, none added.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the library refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| EngineError::Template(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a rendered conversation: as [`Tokenizer::encode`], with the beginning-of-sequence token where the model wants it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// A text in which no control token can be recognised: a zero-width space is put behind the first character of each. What a person
    /// wrote can then never end a turn or begin one in another role.
    pub fn without_control(&self, text: &str) -> String {
        let mut text = text.to_string();
        for control in self.control.iter().filter(|control| control.chars().count() > 1) {
            if text.contains(control.as_str()) {
                let (first, rest) = control.split_at(control.chars().next().map_or(0, char::len_utf8));
                text = text.replace(control.as_str(), &format!("{first}\u{200b}{rest}"));
            }
        }
        text
    }

    /// The tokenizer as `tokenizer.json`, which other programs read.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the library cannot write it.
    pub fn to_json(&self) -> Result<String, EngineError> {
        self.inner.to_string(false).map_err(|error| EngineError::Template(error.to_string()))
    }

    /// Text of token ids. Bytes that are no UTF-8 (yet) come out as U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether a token ends a reply.
    pub fn is_end(&self, id: u32) -> bool {
        self.eos.binary_search(&id).is_ok()
    }

    /// Text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Bytes that a token adds to a reply; none for control tokens.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether a token shapes the conversation and is no part of its text.
    pub fn is_control(&self, id: u32) -> bool {
        self.control_ids.contains(&id)
    }

    /// Tokens that end a reply, ascending.
    pub fn ends(&self) -> &[u32] {
        &self.eos
    }

    /// Compiles grammars over this vocabulary; built when it is first asked for.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for a vocabulary that the library cannot take.
    pub fn grammars(&self) -> Result<&Grammars, EngineError> {
        let built = self.grammars.get_or_init(|| Grammars::new(self));
        built.as_ref().ok_or_else(|| EngineError::Unsupported("this model's vocabulary cannot be bound to a grammar".into()))
    }

    /// Number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }
}

impl CountTokens for Tokenizer {
    fn count(&self, text: &str) -> usize {
        self.encode(text).map_or(0, |ids| ids.len())
    }
}

fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, EngineError> {
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
