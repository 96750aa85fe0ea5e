//! One loaded model: decoder, tokenizer and chat template.

use super::EngineError;
use super::adapter::{Adapter, LoraTarget};
use super::arch::family::Family;
use super::arch::{self, Decoder, DecoderConfig, Purpose};
use super::chat_template::{ChatMessage, ChatTemplate};
use super::classifier::Classifier;
use super::folder::Folder;
use super::gguf::Gguf;
use super::kernel::low_rank::Precision;
use super::tokenizer::Tokenizer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Used when a model brings no template: the ChatML layout.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// The same for vocabularies of Gemma, which knows no system turn: what would stand there goes before the first turn.
const GEMMA: &str = "{{ bos_token }}{% set told = namespace(system='') %}{% for message in messages %}\
    {% if message['role'] == 'system' %}{% set told.system = message['content'] + '\n\n' %}{% else %}\
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + told.system + message['content'] + '<end_of_turn>\n' }}\
    {% set told.system = '' %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";
/// Begins a turn in vocabularies of Gemma.
const GEMMA_TURN: &str = "<start_of_turn>";

/// A model, ready to serve or to train an adapter for.
pub struct Model {
    /// The network.
    pub decoder: Decoder,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    template: ChatTemplate,
}

/// What the files of a model say before its weights are read, of one that can be trained.
pub struct Outline {
    /// Sizes.
    pub config: DecoderConfig,
    /// What sets its architecture apart.
    pub family: &'static Family,
    /// Whether output matrix and embeddings are one.
    pub is_tied: bool,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// The model's own chat template, where it brings one.
    pub template: Option<ChatTemplate>,
}

impl Outline {
    /// Of a GGUF file.
    ///
    /// # Errors
    /// As [`Model::load`]; [`EngineError::Unsupported`] naming what training does not compute.
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let (config, family, is_tied) = arch::trainable(file)?;
        let tokenizer = Tokenizer::from_gguf(file)?;
        let template = gguf_template(file)?;
        let eos = file.integer("tokenizer.ggml.eos_token_id").ok().map(|id| id as u32);
        let template = template.map(|source| self::template(Some(source), &tokenizer, eos)).transpose()?;
        Ok(Outline { config, family, is_tied, tokenizer, template })
    }

    /// Of a folder.
    ///
    /// # Errors
    /// As [`Outline::of_gguf`].
    pub fn of_folder(folder: &Folder) -> Result<Self, EngineError> {
        let (config, family, is_tied) = arch::trainable_folder(folder)?;
        let tokenizer = Tokenizer::from_folder(folder, config.vocabulary)?;
        let eos = tokenizer.ends().first().copied();
        let template = folder_template(folder)?.map(|source| template(Some(source), &tokenizer, eos)).transpose()?;
        Ok(Outline { config, family, is_tied, tokenizer, template })
    }
}

/// A part of a conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Its ids.
    pub tokens: Vec<u32>,
    /// Which message of the assistant it is; none for what stands between.
    pub said: Option<usize>,
}

impl Model {
    /// Loads a GGUF file, or a folder of safetensors, for serving or training.
    ///
    /// # Errors
    /// [`EngineError`] naming the file, key or tensor at fault.
    pub fn load(path: &Path, purpose: Purpose) -> Result<Self, EngineError> {
        if path.is_dir() {
            return Self::load_folder(&Folder::files(path)?, purpose);
        }
        let file = Gguf::open(path)?;
        // Neither needs anything of the other.
        let (language, decoder) = std::thread::scope(|scope| {
            let beside = std::thread::Builder::new().name("vocabulary".into()).spawn_scoped(scope, || gguf_language(&file));
            // Without a thread beside, one after the other.
            let Ok(beside) = beside else { return (gguf_language(&file), arch::load(&file, purpose)) };
            let decoder = arch::load(&file, purpose);
            (beside.join().unwrap_or_else(|panic| resume_unwind(panic)), decoder)
        });
        let (tokenizer, template) = language?;
        Ok(Model { decoder: decoder?, tokenizer, template })
    }

    /// Loads a folder, its files by name: `config.json`, `tokenizer.json`, safetensors, and what there is of `tokenizer_config.json`,
    /// `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_folder(files: &BTreeMap<String, PathBuf>, purpose: Purpose) -> Result<Self, EngineError> {
        let folder = Folder::open(files)?;
        let decoder = arch::load_folder(&folder, purpose)?;
        let tokenizer = Tokenizer::from_folder(&folder, decoder.config().vocabulary)?;
        let eos = tokenizer.ends().first().copied();
        let template = template(folder_template(&folder)?, &tokenizer, eos)?;
        Ok(Model { decoder, tokenizer, template })
    }

    /// Token ids of a conversation, opened for the assistant's turn.
    ///
    /// # Errors
    /// [`EngineError::Template`] when the model's template refuses it.
    pub fn prompt_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, EngineError> {
        self.prompt_tokens_with_tools(messages, &[])
    }

    /// As [`Model::prompt_tokens`], with tools that the model may call (`{"type": "function", "function": {…}}`).
    ///
    /// # Errors
    /// As [`Model::prompt_tokens`].
    pub fn prompt_tokens_with_tools(&self, messages: &[ChatMessage], tools: &[Value]) -> Result<Vec<u32>, EngineError> {
        let tools = self.contained_tools(tools);
        self.tokenizer.encode_prompt(&self.template.render_with_tools(&self.contained(messages), &tools, true)?)
    }

    /// Token ids of a conversation up to the last of some messages of the assistant, cut into those messages and what stands between them.
    /// Up to the first of them the ids are those that serving sees, so that training and serving cannot drift apart.
    ///
    /// # Errors
    /// As [`Model::prompt_tokens`], also when the template renders what was said earlier differently later on.
    pub fn turn_tokens(&self, messages: &[ChatMessage], tools: &[Value], said: &[usize]) -> Result<Vec<Turn>, EngineError> {
        let (messages, tools) = (self.contained(messages), self.contained_tools(tools));
        let (mut done, mut rest, mut turns) = (String::new(), Vec::new(), Vec::new());
        for index in said {
            let opened = self.template.render_with_tools(&messages[..*index], &tools, true)?;
            let closed = self.template.render_with_tools(&messages[..=*index], &tools, false)?;
            let (Some(between), Some(answer)) = (opened.strip_prefix(&done), closed.strip_prefix(&opened)) else {
                return Err(EngineError::Template("it does not render an assistant's turn as the opened prompt plus the answer".into()));
            };
            let mut tokens = std::mem::take(&mut rest);
            tokens.extend(if turns.is_empty() { self.tokenizer.encode_prompt(between)? } else { self.tokenizer.encode(between)? });
            turns.push(Turn { tokens, said: None });
            let mut answer = self.tokenizer.encode(answer)?;
            // What follows the end-of-turn token (a line break in most templates) is never generated.
            let end = answer.iter().position(|id| self.tokenizer.is_end(*id)).map_or(answer.len(), |at| at + 1);
            rest = answer.split_off(end);
            turns.push(Turn { tokens: answer, said: Some(*index) });
            done = closed;
        }
        Ok(turns)
    }

    /// The messages with every control token in their text made harmless.
    fn contained(&self, messages: &[ChatMessage]) -> Vec<ChatMessage> {
        messages.iter().map(|message| message.map_texts(|text| self.tokenizer.without_control(text))).collect()
    }

    fn contained_tools(&self, tools: &[Value]) -> Vec<Value> {
        let contained = |tool: &Value| serde_json::from_str(&self.tokenizer.without_control(&tool.to_string())).unwrap_or(Value::Null);
        tools.iter().map(contained).collect()
    }

    /// Reads an adapter for this model.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when it does not fit.
    pub fn adapter(&self, config: &[u8], weights: &[u8]) -> Result<Adapter, EngineError> {
        Adapter::load(config, weights, &self.decoder.lora_targets())
    }

    /// Reads an adapter for this model that will only serve, and keeps it in the given precision.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when it does not fit.
    pub fn serving_adapter(&self, config: &[u8], weights: &[u8], precision: Precision) -> Result<Adapter, EngineError> {
        self.for_serving(self.adapter(config, weights)?, precision)
    }

    /// Reads a classifier for this model that will only serve.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] when it does not fit.
    pub fn serving_classifier(&self, config: &[u8], weights: &[u8], precision: Precision) -> Result<Classifier, EngineError> {
        let targets = self.decoder.lora_targets();
        let Classifier { head, adapter } = Classifier::load(config, weights, &targets)?;
        let hidden = self.decoder.config().hidden;
        if head.dimensions() != hidden {
            return Err(EngineError::Adapter(format!("the head reads {} dimensions, the model has {hidden}", head.dimensions())));
        }
        let adapter = adapter.map(|adapter| self.for_serving(Arc::unwrap_or_clone(adapter), precision)).transpose()?.map(Arc::new);
        Ok(Classifier { head, adapter })
    }

    fn for_serving(&self, mut adapter: Adapter, precision: Precision) -> Result<Adapter, EngineError> {
        adapter.know_base(|path, lora| self.decoder.row_norms(path, lora))?;
        adapter.for_serving(&self.decoder.lora_targets(), precision)
    }

    /// Modules that can be adapted.
    pub fn lora_targets(&self) -> Vec<LoraTarget> {
        self.decoder.lora_targets()
    }
}

/// The vocabulary of a GGUF file, and the template that goes with it.
fn gguf_language(file: &Gguf) -> Result<(Tokenizer, ChatTemplate), EngineError> {
    let tokenizer = Tokenizer::from_gguf(file)?;
    let eos = file.integer("tokenizer.ggml.eos_token_id").ok().map(|id| id as u32);
    let template = template(gguf_template(file)?, &tokenizer, eos)?;
    Ok((tokenizer, template))
}

/// The template of a GGUF file.
fn gguf_template(file: &Gguf) -> Result<Option<String>, EngineError> {
    let key = "tokenizer.chat_template";
    Ok(file.get(key).map(|_| file.text(key)).transpose()?.map(str::to_string))
}

/// The model's own template, or one that fits its vocabulary.
fn template(own: Option<String>, tokenizer: &Tokenizer, eos: Option<u32>) -> Result<ChatTemplate, EngineError> {
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    let other = if tokenizer.control_id(GEMMA_TURN).is_some() { GEMMA } else { CHATML };
    ChatTemplate::new(own.as_deref().unwrap_or(other), token(tokenizer.bos()), token(eos))
}

/// A folder's template: a file of its own (transformers 4.43 and later), or an entry of the tokenizer's settings, of several the default.
fn folder_template(folder: &Folder) -> Result<Option<String>, EngineError> {
    if let Some(own) = folder.text("chat_template.jinja")? {
        return Ok(Some(own));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let settings = folder.json(name)?.unwrap_or_default();
        let found = match &settings["chat_template"] {
            Value::String(one) => Some(one),
            Value::Array(several) => several.iter().find(|one| one["name"] == "default").and_then(|one| match &one["template"] {
                Value::String(one) => Some(one),
                _ => None,
            }),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(Some(found.clone()));
        }
    }
    Ok(None)
}
