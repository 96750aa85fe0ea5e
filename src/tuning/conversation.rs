//! What is learned from: conversations with the answer that they should get, and which of their messages carry loss.

use super::TuningError;
use super::recipe::LossOn;
use crate::types::chat::Message;
use serde_json::Value;

/// One thing to learn: a conversation and the answer it should get.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Sample it came from, named in errors.
    pub sample: String,
    /// Messages up to the answer, as serving would send them.
    pub prompt: Vec<Message>,
    /// The answer; of a classification its text is the label.
    pub answer: Message,
    /// The answer that is not preferred, where preferences are learned.
    pub rejected: Option<Message>,
    /// Tools that the prompt offers.
    pub tools: Vec<Value>,
}

/// Conversations of the two splits that training sees.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// To learn.
    pub train: &'a [Conversation],
    /// To measure only.
    pub validation: &'a [Conversation],
}

impl Conversation {
    /// A prompt and the text of its answer.
    pub fn new(sample: impl Into<String>, prompt: Vec<Message>, answer: impl Into<String>) -> Self {
        Conversation { sample: sample.into(), prompt, answer: Message::text("assistant", answer), ..Conversation::default() }
    }

    /// The answer's text: the label of a classification.
    pub fn label(&self) -> String {
        self.answer.plain_text()
    }

    /// Weight of every message, the answer last; none where a message is not the assistant's. A message's own `weight` decides where it
    /// has one (OpenAI's fine-tuning format has 0 and 1), else `loss_on`.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample, when a weight is no number from 0.
    pub fn weights(&self, loss_on: LossOn) -> Result<Vec<Option<f32>>, TuningError> {
        let last = self.prompt.len();
        let weight = |(index, message): (usize, &Message)| {
            if message.role != "assistant" {
                return Ok(None);
            }
            match message.extra.get("weight").filter(|weight| !weight.is_null()) {
                None => Ok(Some(if index == last || loss_on != LossOn::Completion { 1.0 } else { 0.0 })),
                Some(weight) => match weight.as_f64().filter(|weight| (0.0..=1e6).contains(weight)) {
                    Some(weight) => Ok(Some(weight as f32)),
                    None => Err(self.wrong(format!("messages[{index}].weight is {weight}; a number from 0 is expected"))),
                },
            }
        };
        self.prompt.iter().chain([&self.answer]).enumerate().map(weight).collect()
    }

    /// Says what is wrong with a conversation before anybody trains on it.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample.
    pub fn check(&self) -> Result<(), TuningError> {
        if self.answer.role != "assistant" {
            return Err(
                self.wrong(format!("the last message is the {}'s, not the assistant's: there is nothing to learn", self.answer.role))
            );
        }
        for tool in &self.tools {
            let function = tool.get("function").filter(|function| function.get("name").is_some_and(Value::is_string));
            let Some(function) = function else { return Err(self.wrong("a tool names no function".into())) };
            if !function.get("parameters").is_some_and(Value::is_object) {
                let name = &function["name"];
                return Err(self.wrong(format!("the tool {name} has no schema of its parameters (function.parameters)")));
            }
        }
        self.weights(LossOn::Completion).map(drop)
    }

    /// An error about this conversation.
    pub fn wrong(&self, problem: String) -> TuningError {
        TuningError::Example { sample: self.sample.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conversation(messages: Value, answer: Value) -> Conversation {
        let prompt = serde_json::from_value(messages).expect("messages");
        Conversation { sample: "s7".into(), prompt, answer: serde_json::from_value(answer).expect("a message"), ..Conversation::default() }
    }

    #[test]
    fn a_messages_own_weight_decides_before_the_recipe() {
        let said = |weight: Value| json!({"role": "assistant", "content": "a", "weight": weight});
        let prompt = json!([{"role": "user", "content": "q"}, said(json!(0.5)), said(json!(null)), said(json!(0))]);
        let conversation_ = conversation(prompt, said(json!(2)));
        let weights = |loss_on| conversation_.weights(loss_on).expect("weights");
        assert_eq!(weights(LossOn::Completion), [None, Some(0.5), Some(0.0), Some(0.0), Some(2.0)]);
        assert_eq!(weights(LossOn::Assistant), [None, Some(0.5), Some(1.0), Some(0.0), Some(2.0)]);
        for bad in [json!(-1), json!("1"), json!(1e9)] {
            let told = conversation(json!([]), said(bad)).check().expect_err("refused").to_string();
            assert!(told.contains("s7") && told.contains("weight"), "{told}");
        }
    }

    #[test]
    fn what_cannot_be_learned_from_names_the_sample() {
        let user = json!({"role": "user", "content": "q"});
        let told = conversation(json!([]), user.clone()).check().expect_err("refused").to_string();
        assert!(told.contains("s7") && told.contains("not the assistant's"), "{told}");
        let mut with_tools = conversation(json!([user]), json!({"role": "assistant", "content": "a"}));
        with_tools.tools = vec![json!({"type": "function", "function": {"name": "look"}})];
        let told = with_tools.check().expect_err("refused").to_string();
        assert!(told.contains("s7") && told.contains("\"look\"") && told.contains("schema"), "{told}");
        with_tools.tools = vec![json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}})];
        with_tools.check().expect("usable");
    }
}
