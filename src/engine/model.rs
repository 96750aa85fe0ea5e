//! One loaded model: decoder, tokenizer and chat template.

use super::EngineError;
use super::adapter::{Adapter, LoraTarget};
use super::arch::{self, Decoder, Purpose};
use super::chat_template::{ChatMessage, ChatTemplate};
use super::gguf::Gguf;
use super::kernel::low_rank::Precision;
use super::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Used when a model file brings no template: the ChatML layout.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A model, ready to serve or to train an adapter for.
pub struct Model {
    /// The network.
    pub decoder: Decoder,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Model {
    /// Loads a GGUF file for serving or training.
    ///
    /// # Errors
    /// [`EngineError`] naming the key or tensor at fault.
    pub fn load(path: &Path, purpose: Purpose) -> Result<Self, EngineError> {
        let file = Gguf::open(path)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let source = if file.get("tokenizer.chat_template").is_some() { file.text("tokenizer.chat_template")? } else { CHATML };
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let eos = file.integer("tokenizer.ggml.eos_token_id").ok().map(|id| id as u32);
        let template = ChatTemplate::new(source, token(tokenizer.bos()), token(eos))?;
        Ok(Model { decoder: arch::load(&file, purpose)?, tokenizer, template })
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
        let tools =
            tools.iter().map(|tool| serde_json::from_str(&self.tokenizer.without_control(&tool.to_string())).unwrap_or(Value::Null));
        let tools: Vec<Value> = tools.collect();
        self.tokenizer.encode_prompt(&self.template.render_with_tools(&self.contained(messages), &tools, true)?)
    }

    /// Token ids of a conversation that ends with an assistant message, and how many of them are the prompt: the same ids that
    /// serving sees up to there, so that training and serving cannot drift apart.
    ///
    /// # Errors
    /// As [`Model::prompt_tokens`].
    pub fn example_tokens(&self, prompt: &[ChatMessage], completion: &str) -> Result<(Vec<u32>, usize), EngineError> {
        let mut whole = self.contained(prompt);
        let opened = self.template.render(&whole, true)?;
        whole.push(ChatMessage::new("assistant", self.tokenizer.without_control(completion)));
        let closed = self.template.render(&whole, false)?;
        let Some(answer) = closed.strip_prefix(&opened) else {
            return Err(EngineError::Template("it does not render an assistant's turn as the opened prompt plus the answer".into()));
        };
        let mut ids = self.tokenizer.encode_prompt(&opened)?;
        let prompt_length = ids.len();
        let answer = self.tokenizer.encode(answer)?;
        // What follows the end-of-turn token (a line break in most templates) is never generated.
        let end = answer.iter().position(|id| self.tokenizer.is_end(*id)).map_or(answer.len(), |at| at + 1);
        ids.extend_from_slice(&answer[..end]);
        Ok((ids, prompt_length))
    }

    /// The messages with every control token in their text made harmless.
    fn contained(&self, messages: &[ChatMessage]) -> Vec<ChatMessage> {
        messages.iter().map(|message| message.map_texts(|text| self.tokenizer.without_control(text))).collect()
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
        self.adapter(config, weights)?.for_serving(&self.decoder.lora_targets(), precision)
    }

    /// Modules that can be adapted.
    pub fn lora_targets(&self) -> Vec<LoraTarget> {
        self.decoder.lora_targets()
    }
}
