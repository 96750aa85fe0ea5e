//! How many tokens examples have, counted before any weights are read: as training renders them, with the model's own template, the system
//! prompt that it writes by itself, and tools.

use super::{Conversation, Method, TuningError};
use crate::engine::chat_template::{ChatMessage, ChatTemplate};
use crate::engine::head::classified_text;
use crate::engine::model::Outline;
use crate::engine::tokenizer::Tokenizer;
use crate::engine::{Classifier, EngineError};
use crate::types::chat::Message;

/// Tokens that a message takes beside its text where the file brings no template, about.
const TEMPLATE_TOKENS: usize = 5;

/// Counts tokens as one model's files say.
pub struct Lengths<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
}

impl<'a> Lengths<'a> {
    /// By what a model says of itself.
    pub fn of(base: &'a Outline) -> Self {
        Lengths { tokenizer: &base.tokenizer, template: base.template.as_ref() }
    }

    /// Tokens of a conversation in a training by that method: of a preference both answers, of a classification what is classified.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample that the template or the tokenizer refuses.
    pub fn count(&self, method: Method, conversation: &Conversation) -> Result<usize, TuningError> {
        Ok(self.sequences(method, conversation)?.iter().sum())
    }

    /// Tokens of each of its sequences: a preference is two of them.
    ///
    /// # Errors
    /// As [`Lengths::count`].
    pub fn sequences(&self, method: Method, conversation: &Conversation) -> Result<Vec<usize>, TuningError> {
        let wrong = |error: EngineError| conversation.wrong(error.to_string());
        match method {
            Method::Classifier => {
                let text = classified_text(&conversation.prompt).map_err(|problem| conversation.wrong(problem.into()))?;
                Ok(vec![Classifier::tokens(self.tokenizer, &text).map_err(wrong)?.len()])
            }
            Method::Dpo => {
                let answers = [&conversation.answer].into_iter().chain(&conversation.rejected);
                answers.map(|answer| self.answered(conversation, answer).map_err(wrong)).collect()
            }
            _ => Ok(vec![self.answered(conversation, &conversation.answer).map_err(wrong)?]),
        }
    }

    fn answered(&self, conversation: &Conversation, answer: &Message) -> Result<usize, EngineError> {
        let Some(template) = &self.template else { return self.plain(conversation, answer) };
        let messages = conversation.prompt.iter().chain([answer]).map(ChatMessage::of).collect::<Result<Vec<_>, _>>()?;
        let tokens = self.tokenizer.encode_prompt(&template.render_with_tools(&messages, &conversation.tools, false)?)?;
        // What follows the end of the answer's turn is never learned.
        Ok(tokens.iter().rposition(|id| self.tokenizer.is_end(*id)).map_or(tokens.len(), |at| at + 1))
    }

    /// Tokens of a conversation in a model without a template.
    fn plain(&self, conversation: &Conversation, answer: &Message) -> Result<usize, EngineError> {
        let mut tokens = self.tokenizer.encode(&answer.plain_text())?.len() + TEMPLATE_TOKENS;
        for message in &conversation.prompt {
            tokens += self.tokenizer.encode(&message.plain_text())?.len() + TEMPLATE_TOKENS;
        }
        Ok(tokens)
    }
}
