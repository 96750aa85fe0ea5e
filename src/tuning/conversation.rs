//! What is learned from: conversations with the answer that they should get, and which of their messages carry loss.

use super::TuningError;
use super::recipe::LossOn;
use crate::engine::{schema, tools};
use crate::types::chat::Message;
use serde_json::{Map, Value};

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
        let is_empty = |message: &Message| message.plain_text().trim().is_empty() && calls(message).is_empty();
        if is_empty(&self.answer) || self.rejected.as_ref().is_some_and(is_empty) {
            return Err(self.wrong("the answer is empty: there is nothing to learn".into()));
        }
        self.check_tools()?;
        let weights = self.weights(LossOn::Assistant)?;
        match weights.iter().flatten().any(|weight| *weight > 0.0) {
            true => Ok(()),
            false => Err(self.wrong("every weight is 0: no token carries loss".into())),
        }
    }

    /// The conversation with the tools that a sample's input, or a record of OpenAI's fine-tuning format, has beside its messages: `tools`, and
    /// `parallel_tool_calls`, which allows several calls in one message unless it is `false`.
    ///
    /// # Errors
    /// [`TuningError::Example`] naming the sample and the field.
    pub fn offering(mut self, input: &Map<String, Value>) -> Result<Self, TuningError> {
        let field = |name: &str| input.get(name).filter(|value| !value.is_null());
        self.tools = match field("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => tools.clone(),
            Some(_) => return Err(self.wrong("field \"tools\" must be a list".into())),
        };
        match field("parallel_tool_calls") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => {
                if let Some((at, _)) = self.said().find(|(_, message)| calls(message).len() > 1) {
                    return Err(self.wrong(format!("messages[{at}] makes several calls, and parallel_tool_calls is false")));
                }
            }
            Some(other) => return Err(self.wrong(format!("field \"parallel_tool_calls\" must be true or false, not {other}"))),
        }
        Ok(self)
    }

    /// Messages of the assistant, with their places.
    fn said(&self) -> impl Iterator<Item = (usize, &Message)> {
        let all = self.prompt.iter().chain([&self.answer]).enumerate();
        // Another answer stands in the same place.
        all.chain(self.rejected.iter().map(|rejected| (self.prompt.len(), rejected))).filter(|(_, message)| message.role == "assistant")
    }

    /// A call is learned as serving would write it, which is only told of tools that it can enforce.
    fn check_tools(&self) -> Result<(), TuningError> {
        let mut names = Vec::new();
        for tool in &self.tools {
            let function = tool.get("function").filter(|function| function.get("name").is_some_and(Value::is_string));
            let Some(function) = function else { return Err(self.wrong("field \"tools\": a tool names no function".into())) };
            let name = &function["name"];
            let Some(parameters) = function.get("parameters").filter(|parameters| parameters.is_object()) else {
                return Err(self.wrong(format!("the tool {name} has no schema of its parameters (function.parameters)")));
            };
            if let Err((path, problem)) = schema::check(parameters) {
                let place = if path.is_empty() { String::new() } else { format!(" at {path}") };
                return Err(self.wrong(format!("the schema of the tool {name}{place}: {problem}")));
            }
            if names.contains(&name) {
                return Err(self.wrong(format!("the tool {name} stands there twice")));
            }
            names.push(name);
        }
        for (at, message) in self.said() {
            for call in calls(message) {
                let function = &call["function"];
                if !names.contains(&&function["name"]) {
                    return Err(self.wrong(format!("messages[{at}] calls {}, which is none of its tools", function["name"])));
                }
                if !tools::arguments(function).is_object() {
                    return Err(self.wrong(format!("messages[{at}] calls {} with arguments that are no JSON object", function["name"])));
                }
            }
        }
        Ok(())
    }

    /// An error about this conversation.
    pub fn wrong(&self, problem: String) -> TuningError {
        TuningError::Example { sample: self.sample.clone(), problem }
    }
}

fn calls(message: &Message) -> &[Value] {
    message.extra.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
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
