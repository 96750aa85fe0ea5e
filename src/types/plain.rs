//! A chat request of the plainest kind, read at a glance: texts of known roles and the common parameters, each in its range. Such a
//! request is sent on as the caller wrote it, but for the name of the model. Everything else, wrong requests too, is read as a whole.

use super::chat::ChatRequest;
use super::text::IsText;
use bytes::Bytes;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::ops::Range;

/// Larger bodies are read with the bounds of [`json`](super::json).
const MAX_BYTES: usize = 1 << 20;
const MAX_MESSAGES: u64 = 1_000;
const MAX_MODEL_BYTES: usize = 256;
const MAX_TEMPERATURE: f64 = 2.0;
const MAX_PENALTY: f64 = 2.0;
const MAX_CHOICES: u32 = 128;
/// What asks for usage in a stream.
const ASK_USAGE: &str = ",\"stream_options\":{\"include_usage\":true}";

/// A plain request with its text.
#[derive(Debug, Clone)]
pub struct PlainChat {
    /// The body as it came.
    pub text: Bytes,
    /// What it names in `model`.
    pub model: String,
    /// Whether the reply is to be streamed.
    pub streamed: bool,
    /// Whether the caller asked for a chunk of usage.
    pub wants_usage: bool,
    /// Upper bound of generated tokens.
    pub token_limit: Option<u32>,
    /// Number of choices.
    pub choices: u32,
    /// Number of messages.
    pub messages: u64,
    /// Bytes of their texts.
    pub text_bytes: u64,
    /// Where the model's name stands in the text.
    name: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    model: &'a str,
    messages: Messages,
    #[serde(default, deserialize_with = "given")]
    stream: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    stream_options: Option<StreamOptions>,
    #[serde(default, deserialize_with = "given")]
    temperature: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    top_p: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    presence_penalty: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    frequency_penalty: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    n: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    max_tokens: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    max_completion_tokens: Option<u32>,
    #[serde(default, deserialize_with = "given", rename = "seed")]
    _seed: Option<i64>,
    #[serde(default, deserialize_with = "given", rename = "user")]
    _user: Option<IsText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    #[serde(rename = "role")]
    _role: Role,
    content: IsText,
    #[serde(default, deserialize_with = "given")]
    name: Option<IsText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// A list of messages, none of which is kept.
#[derive(Default)]
struct Messages {
    count: u64,
    text_bytes: u64,
}

/// A field that is there and not `null`, which would have to be taken out.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Messages;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("messages")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut messages = Messages::default();
                while let Some(Message { content, name, .. }) = list.next_element::<Message>()? {
                    messages.count += 1;
                    messages.text_bytes += content.0 + name.map_or(0, |name| name.0);
                }
                if (1..=MAX_MESSAGES).contains(&messages.count) { Ok(messages) } else { Err(A::Error::custom("too many, or none")) }
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// As the text that it is.
impl Serialize for PlainChat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read().map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl PlainChat {
    /// Looks at a body; none when it must be read as a whole.
    pub fn of(text: &Bytes) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let fields: Fields<'_> = serde_json::from_slice(text).ok()?;
        let model = fields.model;
        // What is borrowed from the text lies in it.
        let start = (model.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
        let within = |value: Option<f64>, least: f64, most: f64| value.is_none_or(|value| (least..=most).contains(&value));
        let streamed = fields.stream.unwrap_or(false);
        let in_range = (1..=MAX_MODEL_BYTES).contains(&model.len())
            && !model.chars().any(char::is_control)
            && within(fields.temperature, 0.0, MAX_TEMPERATURE)
            && within(fields.top_p, 0.0, 1.0)
            && within(fields.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
            && within(fields.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
            && fields.n.is_none_or(|n| (1..=MAX_CHOICES).contains(&n))
            && fields.max_tokens != Some(0)
            && fields.max_completion_tokens != Some(0);
        // Options of a stream are written anew unless they say what is sent on anyway.
        let wants_usage = fields.stream_options.as_ref().is_some_and(|options| options.include_usage);
        if !in_range || (fields.stream_options.is_some() && !(streamed && wants_usage)) {
            return None;
        }
        Some(PlainChat {
            model: model.to_string(),
            streamed,
            wants_usage,
            token_limit: fields.max_completion_tokens.or(fields.max_tokens),
            choices: fields.n.unwrap_or(1),
            messages: fields.messages.count,
            text_bytes: fields.messages.text_bytes,
            name: start..start + model.len(),
            text: text.clone(),
        })
    }

    /// The request as a whole.
    ///
    /// # Errors
    /// None for a text that was looked at; what `serde_json` says otherwise.
    pub fn read(&self) -> Result<ChatRequest, serde_json::Error> {
        serde_json::from_slice(&self.text)
    }

    /// The request for another model, which in a stream is asked for usage, too: in pieces, so that what is long is not copied.
    pub fn sent(&self, model: &str, asks_usage: bool) -> [Bytes; 4] {
        let text = &self.text;
        // Up to the brace that ends the object.
        let end = text.iter().rposition(|byte| *byte == b'}').unwrap_or(text.len());
        let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
        let model = if model.bytes().all(is_plain) {
            Bytes::copy_from_slice(model.as_bytes())
        } else {
            let quoted = serde_json::to_string(model).expect("a text is JSON");
            Bytes::copy_from_slice(&quoted.as_bytes()[1..quoted.len() - 1])
        };
        let (before, after) = (text.slice(..self.name.start), text.slice(self.name.end..));
        if !(self.streamed && asks_usage && !self.wants_usage) {
            return [before, model, after, Bytes::new()];
        }
        let mut rest = Vec::with_capacity(ASK_USAGE.len() + text.len() - end);
        rest.extend_from_slice(ASK_USAGE.as_bytes());
        rest.extend_from_slice(&text[end..]);
        [before, model, after.slice(..end - self.name.end), rest.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plain(body: &Value) -> Option<PlainChat> {
        PlainChat::of(&Bytes::from(body.to_string()))
    }

    #[test]
    fn a_plain_request_travels_as_it_was_written() {
        let body = json!({"model": "up/m", "messages": [{"role": "system", "content": "\u{e9}\n"}, {"role": "user", "content": "model: up/m", "name": "n"}],
            "temperature": 1, "max_tokens": 7, "stream": true, "user": "u", "seed": -1});
        let seen = plain(&body).expect("plain");
        assert_eq!((seen.model.as_str(), seen.streamed, seen.wants_usage, seen.token_limit), ("up/m", true, false, Some(7)));
        let mut expected = body.clone();
        expected["model"] = json!("a \"b\"");
        expected["stream_options"] = json!({"include_usage": true});
        let sent: Value = serde_json::from_slice(&seen.sent("a \"b\"", true).concat()).expect("JSON");
        assert_eq!(sent, expected);
        assert_eq!(seen.read().expect("readable").messages.len(), 2);
        let text = format!(" {} \n", json!({"messages": [{"role": "user", "content": "x"}], "model": "m"}));
        let seen = PlainChat::of(&Bytes::from(text.clone())).expect("plain");
        assert_eq!(String::from_utf8(seen.sent("m", true).concat()).expect("UTF-8"), text);
    }

    #[test]
    fn whatever_else_is_read_as_a_whole() {
        let good = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        assert!(plain(&good).is_some());
        for (field, value) in [
            ("model", json!("")),
            ("model", json!("a\u{1}")),
            ("model", json!("a\"b")),
            ("model", json!(1)),
            ("messages", json!([])),
            ("messages", json!([{"role": "tool", "content": "x"}])),
            ("messages", json!([{"role": "user", "content": ["x"]}])),
            ("messages", json!([{"role": "user", "content": null}])),
            ("messages", json!([{"role": "user", "content": "x", "tool_calls": []}])),
            ("temperature", json!(2.1)),
            ("temperature", json!(null)),
            ("temperature", json!("1")),
            ("n", json!(0)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("stream_options", json!({"include_usage": true})),
            ("tools", json!([])),
            ("prompt", json!({})),
            ("anything", json!(1)),
        ] {
            let mut other = good.clone();
            other[field] = value.clone();
            assert!(plain(&other).is_none(), "{field} {value}");
        }
        for text in [
            "",
            "[]",
            "{\"model\":\"m\",\"model\":\"n\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
            "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\u{fffd}",
        ] {
            assert!(PlainChat::of(&Bytes::from(text)).is_none(), "{text}");
        }
        assert!(PlainChat::of(&Bytes::from_static(b"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}")).is_none());
    }
}
