//! How many tokens examples have, counted before any weights are read: as training renders them, with the model's own template, the system
//! prompt that it writes by itself, and tools.

use super::{Conversation, Method, TuningError};
use crate::engine::Classifier;
use crate::engine::chat_template::{ChatMessage, ChatTemplate};
use crate::engine::gguf::Gguf;
use crate::engine::head::classified_text;
use crate::engine::tokenizer::Tokenizer;
use crate::types::chat::Message;

/// Tokens that a message takes beside its text where the file brings no template, about.
const TEMPLATE_TOKENS: usize = 5;

/// Counts tokens as one model's file says.
pub struct Lengths {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Lengths {
    /// Of a model's file.
    ///
    /// # Errors
    /// [`TuningError::Engine`] naming the key of the file that is missing.
    pub fn new(file: &Gguf) -> Result<Self, TuningError> {
        let tokenizer = Tokenizer::from_gguf(file)?;
        Ok(Lengths { template: template(file, &tokenizer)?, tokenizer })
    }

    /// Words of the model's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary()
    }

    /// Tokens of a conversation in a training by that method: of a preference both answers, of a classification what is classified.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample that the template refuses.
    pub fn count(&self, method: Method, conversation: &Conversation) -> Result<usize, TuningError> {
        match method {
            Method::Classifier => {
                let text = classified_text(&conversation.prompt).map_err(|problem| conversation.wrong(problem.into()))?;
                Ok(Classifier::tokens(&self.tokenizer, &text)?.len())
            }
            Method::Dpo => {
                let rejected = conversation.rejected.as_ref().map_or(Ok(0), |rejected| self.answered(conversation, rejected))?;
                Ok(self.answered(conversation, &conversation.answer)? + rejected)
            }
            _ => self.answered(conversation, &conversation.answer),
        }
    }

    fn answered(&self, conversation: &Conversation, answer: &Message) -> Result<usize, TuningError> {
        let Some(template) = &self.template else { return self.plain(conversation, answer) };
        let messages = conversation.prompt.iter().chain([answer]).map(ChatMessage::of).collect::<Result<Vec<_>, _>>();
        let messages = messages.map_err(|error| conversation.wrong(error.to_string()))?;
        let tokens = self.tokenizer.encode_prompt(&template.render_with_tools(&messages, &conversation.tools, false)?)?;
        // What follows the end of the answer's turn is never learned.
        Ok(tokens.iter().rposition(|id| self.tokenizer.is_end(*id)).map_or(tokens.len(), |at| at + 1))
    }

    /// Tokens of a conversation in a model without a template.
    fn plain(&self, conversation: &Conversation, answer: &Message) -> Result<usize, TuningError> {
        let mut tokens = self.tokenizer.encode(&answer.plain_text())?.len() + TEMPLATE_TOKENS;
        for message in &conversation.prompt {
            tokens += self.tokenizer.encode(&message.plain_text())?.len() + TEMPLATE_TOKENS;
        }
        Ok(tokens)
    }
}

/// The file's chat template.
fn template(file: &Gguf, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, TuningError> {
    if file.get("tokenizer.chat_template").is_none() {
        return Ok(None);
    }
    let eos = file.integer("tokenizer.ggml.eos_token_id").ok().and_then(|id| u32::try_from(id).ok());
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
    Ok(Some(ChatTemplate::new(file.text("tokenizer.chat_template")?, token(tokenizer.bos()), token(eos))?))
}
