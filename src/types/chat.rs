//! The chat-completions wire types (OpenAI API, `/v1/chat/completions`), ours, with every unknown field kept in `extra`. Replies are
//! read leniently: servers that speak the API send `null` for what they do not have, fractions of seconds, and texts in parts.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;

/// A chat-completion request. Fields that Refit does not read stay in `extra` and travel on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ChatRequest {
    /// Route, `provider/model`, or `local/<model>:<adapter>`.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Whether the reply is sent as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Streaming options; `include_usage` asks for a last chunk with the usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Sampling temperature, 0 to 2; 0 is greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling mass, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Upper bound of generated tokens (older name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Upper bound of generated tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u32>,
    /// Texts that end the reply; at most four.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Seed: the same seed, parameters and messages give the same text on local models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Number of choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Every other field, as sent.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatRequest {
    /// The token bound, whichever of the two names was used.
    pub fn token_limit(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Whether the caller asked for a usage chunk at the end of the stream.
    pub fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage.unwrap_or(false))
    }
}

/// Whether decoding parameters, by their wire names, bound the tokens of a reply.
pub fn has_token_limit(parameters: &Map<String, Value>) -> bool {
    ["max_completion_tokens", "max_tokens"].into_iter().any(|name| parameters.get(name).is_some_and(Value::is_u64))
}

/// `stream_options`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Send one more chunk with `usage` and no choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
    /// Every other option.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `stop`: one text or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One stop text.
    One(String),
    /// Up to four.
    Many(Vec<String>),
}

impl Stop {
    /// The stop texts as a list.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Stop::One(text) => vec![text.clone()],
            Stop::Many(texts) => texts.clone(),
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text, parts, or absent (an assistant message with tool calls).
    #[serde(default)]
    pub content: Option<Content>,
    /// `tool_calls`, `tool_call_id`, `name`, `refusal` and whatever comes later.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A plain text message.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Message { role: role.to_string(), content: Some(Content::Text(text.into())), extra: Map::new() }
    }

    /// The text of the message: parts of type `text` joined, other parts left out.
    pub fn plain_text(&self) -> String {
        self.content.as_ref().map(Content::plain_text).unwrap_or_default()
    }
}

/// `content`: a text or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts (`{"type":"text","text":…}`, `image_url`, …), as sent.
    Parts(Vec<Value>),
}

impl Content {
    /// Its text: parts with a `text` joined, other parts left out.
    pub fn plain_text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect(),
        }
    }
}

/// A whole reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// `chat.completion`.
    #[serde(deserialize_with = "or_default")]
    pub object: String,
    /// Seconds since the Unix epoch.
    #[serde(deserialize_with = "whole")]
    pub created: i64,
    /// The model that answered.
    #[serde(deserialize_with = "or_default")]
    pub model: String,
    /// The choices, `n` of them.
    #[serde(deserialize_with = "or_default")]
    pub choices: Vec<Choice>,
    /// Token counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ChatResponse {
    /// The first choice's text, empty when there is none.
    pub fn text(&self) -> String {
        self.choices.first().map(|choice| choice.message.plain_text()).unwrap_or_default()
    }
}

/// One choice of a reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    /// Position.
    #[serde(deserialize_with = "whole")]
    pub index: u32,
    /// The assistant's message.
    #[serde(deserialize_with = "or_default")]
    pub message: Message,
    /// `stop`, `length`, `tool_calls`, `content_filter`.
    #[serde(deserialize_with = "text")]
    pub finish_reason: Option<String>,
    /// Every other field (`logprobs`).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Token counts of one reply.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
    /// Every other count (`prompt_tokens_details`, `completion_tokens_details`, and what providers add).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Every reply has one, so that it is read without the detour that `flatten` takes.
impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counts;
        impl<'de> Visitor<'de> for Counts {
            type Value = Usage;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("token counts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Usage, A::Error> {
                let mut usage = Usage::default();
                while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
                    match name.as_ref() {
                        "prompt_tokens" => usage.prompt_tokens = fields.next_value::<Whole>()?.0,
                        "completion_tokens" => usage.completion_tokens = fields.next_value::<Whole>()?.0,
                        "total_tokens" => usage.total_tokens = fields.next_value::<Whole>()?.0,
                        _ => drop(usage.extra.insert(name.into_owned(), fields.next_value()?)),
                    }
                }
                Ok(usage)
            }
        }
        deserializer.deserialize_map(Counts)
    }
}

/// A count, as leniently as [`whole`] reads it.
#[derive(Deserialize)]
struct Whole(#[serde(deserialize_with = "whole")] u64);

impl Usage {
    /// Usage of `prompt` tokens read and `completion` tokens written.
    pub fn new(prompt: u64, completion: u64) -> Self {
        Usage { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion, extra: Map::new() }
    }

    /// Tokens of the prompt that came from the provider's cache.
    pub fn cached_tokens(&self) -> Option<u64> {
        self.detail("prompt_tokens_details", "cached_tokens")
    }

    /// Tokens of the reply that were spent on reasoning.
    pub fn reasoning_tokens(&self) -> Option<u64> {
        self.detail("completion_tokens_details", "reasoning_tokens")
    }

    /// A count one level down, such as `prompt_tokens_details.cached_tokens`.
    pub fn detail(&self, group: &str, name: &str) -> Option<u64> {
        self.extra.get(group)?.get(name)?.as_u64()
    }

    /// Sets a count one level down.
    pub fn set_detail(&mut self, group: &str, name: &str, count: u64) {
        let group = self.extra.entry(group).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(group) = group {
            group.insert(name.into(), count.into());
        }
    }
}

/// One server-sent chunk of a streamed reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatChunk {
    /// `chatcmpl-…`, the same in every chunk.
    #[serde(deserialize_with = "or_default")]
    pub id: String,
    /// `chat.completion.chunk`.
    #[serde(deserialize_with = "or_default")]
    pub object: String,
    /// Seconds since the Unix epoch.
    #[serde(deserialize_with = "whole")]
    pub created: i64,
    /// The model that answers.
    #[serde(deserialize_with = "or_default")]
    pub model: String,
    /// The changes; empty in a usage chunk.
    #[serde(deserialize_with = "or_default")]
    pub choices: Vec<ChunkChoice>,
    /// Only in the last chunk, and only when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One choice of a chunk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChunkChoice {
    /// Position.
    #[serde(deserialize_with = "whole")]
    pub index: u32,
    /// What is new.
    #[serde(deserialize_with = "or_default")]
    pub delta: Delta,
    /// Set in the choice's last chunk.
    #[serde(deserialize_with = "text")]
    pub finish_reason: Option<String>,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a chunk adds to a message.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Delta {
    /// Sent once, first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// New text; of a list of parts (Mistral's thinking models) those of type `text`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "joined")]
    pub content: Option<String>,
    /// Every other field (`tool_calls`, `reasoning_content`).
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// `null` as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A whole number; `null` as 0, fractions cut.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64> + Default>(deserializer: D) -> Result<T, D::Error> {
    let number: Option<serde_json::Number> = Option::deserialize(deserializer)?;
    // A cast takes what is beyond the range to its end.
    let number = number.and_then(|number| number.as_i64().or_else(|| number.as_f64().map(|x| x as i64)));
    Ok(number.and_then(|number| T::try_from(number).ok()).unwrap_or_default())
}

/// A text; an empty one says as little as none.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|text: &String| !text.is_empty()))
}

fn joined<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Content>::deserialize(deserializer)?.map(|content| content.plain_text()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_survive_a_round_trip() {
        let wire = json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": "bo"}],
            "temperature": 0.5, "reasoning_effort": "low", "stream_options": {"include_usage": true, "x": 1}});
        let request: ChatRequest = serde_json::from_value(wire.clone()).expect("parses");
        assert!(request.wants_usage());
        assert_eq!(request.messages[0].plain_text(), "a");
        assert_eq!(serde_json::to_value(&request).expect("serialises"), wire);
    }

    #[test]
    fn replies_of_careless_servers_are_read() {
        let choice = json!({"index": null, "delta": null, "finish_reason": ""});
        let usage = json!({"prompt_tokens": 3.0, "completion_tokens": null, "total_tokens": 3, "queue_time": 0.5});
        let chunk = json!({"id": null, "object": null, "created": 1760000000.75, "model": null, "choices": [choice], "usage": usage});
        let chunk: ChatChunk = serde_json::from_value(chunk).expect("a chunk");
        assert_eq!((chunk.created, &chunk.choices[0].finish_reason), (1_760_000_000, &None));
        assert_eq!(chunk.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.extra.len())), Some((3, 0, 1)));
        let chunk: ChatChunk = serde_json::from_value(json!({"choices": null})).expect("a chunk");
        assert!(chunk.choices.is_empty());
        let parts = json!({"role": null, "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}]});
        let delta: Delta = serde_json::from_value(parts).expect("a delta");
        assert_eq!((delta.role, delta.content.as_deref()), (None, Some("a")));
        let reply: ChatResponse = serde_json::from_value(json!({"created": 1e300, "choices": [{"message": null}]})).expect("a reply");
        assert_eq!((reply.created, reply.choices.len()), (i64::MAX, 1));
    }
}
