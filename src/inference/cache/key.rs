//! What makes two requests the same: tenant, what would answer, and everything that changes the answer, in an order of its own, so
//! that the order of fields in a body does not matter. Hashed as it is read; nothing is copied.

use crate::inference::plan::Plan;
use crate::inference::road::Road;
use crate::providers::Native;
use crate::types::Digest;
use crate::types::chat::{ChatRequest, Content, Message, Stop};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Fields that say how a reply travels and for whom it is, not what it says.
const BESIDE: [&str; 6] = ["stream", "stream_options", "user", "metadata", "store", "safety_identifier"];
const USER: &str = "user";

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// A number below `n`, evenly spread.
    pub(super) fn below(&self, n: usize) -> usize {
        usize::from(self.0[0]) % n
    }
}

/// Everything that a key is made of.
#[derive(Clone, Copy)]
pub(super) struct Asked<'r> {
    pub(super) project: &'r str,
    pub(super) road: &'r Road,
    pub(super) request: &'r ChatRequest,
    pub(super) native: Option<&'r Native>,
}

/// A question with everything around it.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Everything but the question.
    pub(super) scope: Key,
    /// The user's last message.
    pub(super) text: String,
}

impl Asked<'_> {
    /// The key of the whole request.
    pub(super) fn key(&self) -> Key {
        self.hash(b"exact", None, None)
    }

    /// The user's last message apart from all else; none where it is more than text, or says nothing.
    pub(super) fn question(&self) -> Option<Question> {
        let at = self.request.messages.iter().rposition(|message| message.role == USER)?;
        let text = text_of(self.request.messages[at].content.as_ref()?)?;
        let native = self.native.map(native_question).map_or(Some(None), |at| at.map(Some))?;
        Some(Question { scope: self.hash(b"around", Some(at), native), text }).filter(|question| !question.text.trim().is_empty())
    }

    /// Hashes all but the content of the messages at these places: of the request, and of the body as it was written.
    fn hash(&self, kind: &[u8], without: Option<usize>, without_native: Option<usize>) -> Key {
        let mut hash = Hash(Sha256::new());
        hash.bytes(kind);
        hash.text(self.project);
        hash.text(self.road.name.as_deref().unwrap_or_default());
        let cascade = self.road.cascade.iter().flat_map(|cascade| [Some(&cascade.first), cascade.judge.as_ref()]).flatten();
        for plan in cascade.flat_map(|road| &road.targets).chain(&self.road.targets) {
            hash.plan(plan);
        }
        hash.request(self.request, without);
        if let Some(native) = self.native {
            hash.text(native.version);
            hash.native(&native.body, without_native);
        }
        Key(hash.0.finalize().into())
    }
}

/// The place of the user's last message in a body of another protocol, if it is text and nothing besides.
fn native_question(native: &Native) -> Option<usize> {
    let messages = native.body.get("messages")?.as_array()?;
    let at = messages.iter().rposition(|message| message.get("role").and_then(Value::as_str) == Some(USER))?;
    let only_text = match messages[at].get("content")? {
        Value::String(_) => true,
        Value::Array(blocks) => blocks.iter().all(is_only_text),
        _ => false,
    };
    only_text.then_some(at)
}

fn text_of(content: &Content) -> Option<String> {
    match content {
        Content::Text(text) => Some(text.clone()),
        Content::Parts(parts) => parts.iter().all(is_only_text).then(|| content.plain_text()),
    }
}

/// `{"type": "text", "text": …}` without anything that would have to agree, too.
fn is_only_text(part: &Value) -> bool {
    let fields = part.as_object().filter(|fields| fields.len() == 2);
    fields.is_some_and(|fields| fields.get("type").is_some_and(|kind| kind == "text") && fields.get("text").is_some_and(Value::is_string))
}

/// A hash over values whose lengths are hashed, too: no two lists of values read the same.
struct Hash(Sha256);

impl Hash {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    fn digest(&mut self, digest: Option<Digest>) {
        self.text(&digest.map(|digest| digest.hex()).unwrap_or_default());
    }

    /// What would answer.
    fn plan(&mut self, plan: &Plan) {
        self.text(&plan.provider_name);
        self.text(&plan.model);
        // A prompt of the library that was called by its name is no release, but decides as much.
        self.digest(plan.release.or_else(|| plan.manifest.as_ref().map(|manifest| manifest.digest())));
        self.digest(plan.adapter);
        self.digest(plan.file);
    }

    fn request(&mut self, request: &ChatRequest, without: Option<usize>) {
        // All fields by name: one that is added is not forgotten here.
        let ChatRequest {
            model,
            messages,
            stream: _,
            stream_options: _,
            temperature,
            top_p,
            max_tokens,
            max_completion_tokens,
            stop,
            seed,
            n,
            extra,
        } = request;
        self.text(model);
        self.count(messages.len());
        for (at, message) in messages.iter().enumerate() {
            self.message(message, without == Some(at));
        }
        let real = |number: &Option<f64>| number.map(f64::to_bits);
        let whole = |number: &Option<u32>| number.map(u64::from);
        let numbers = [
            real(temperature),
            real(top_p),
            whole(max_tokens),
            whole(max_completion_tokens),
            seed.map(i64::cast_unsigned),
            // One reply is what everybody gets who does not say.
            Some(u64::from(n.unwrap_or(1))),
        ];
        for number in numbers {
            self.0.update([u8::from(number.is_some())]);
            self.0.update(number.unwrap_or_default().to_le_bytes());
        }
        let stops = stop.as_ref().map(Stop::texts).unwrap_or_default();
        self.count(stops.len());
        stops.iter().for_each(|text| self.text(text));
        self.fields(extra, |name| BESIDE.contains(&name));
    }

    fn message(&mut self, message: &Message, without_content: bool) {
        let Message { role, content, extra } = message;
        self.text(role);
        match content {
            _ if without_content => self.0.update([3]),
            None => self.0.update([0]),
            Some(Content::Text(text)) => {
                self.0.update([1]);
                self.text(text);
            }
            Some(Content::Parts(parts)) => {
                self.0.update([2]);
                self.count(parts.len());
                parts.iter().for_each(|part| self.value(part));
            }
        }
        self.fields(extra, |_| false);
    }

    fn native(&mut self, body: &Map<String, Value>, without: Option<usize>) {
        self.fields(body, |name| BESIDE.contains(&name) || (without.is_some() && name == "messages"));
        let messages = body.get("messages").and_then(Value::as_array).filter(|_| without.is_some());
        for (at, message) in messages.into_iter().flatten().enumerate() {
            match message.as_object().filter(|_| without == Some(at)) {
                Some(fields) => self.fields(fields, |name| name == "content"),
                None => self.value(message),
            }
        }
    }

    /// Fields in the order of their names, but for those that are left out.
    fn fields(&mut self, fields: &Map<String, Value>, left_out: impl Fn(&str) -> bool) {
        let mut kept: Vec<_> = fields.iter().filter(|(name, _)| !left_out(name)).collect();
        kept.sort_unstable_by_key(|(name, _)| name.as_str());
        self.count(kept.len());
        for (name, value) in kept {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.0.update([0]),
            Value::Bool(truth) => self.0.update([1, u8::from(*truth)]),
            Value::Number(number) => {
                self.0.update([2]);
                self.text(&number.to_string());
            }
            Value::String(text) => {
                self.0.update([3]);
                self.text(text);
            }
            Value::Array(items) => {
                self.0.update([4]);
                self.count(items.len());
                items.iter().for_each(|item| self.value(item));
            }
            Value::Object(fields) => {
                self.0.update([5]);
                self.fields(fields, |_| false);
            }
        }
    }
}
