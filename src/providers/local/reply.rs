//! What the engine says, as a chat completion or its chunks.

use super::provider_error;
use crate::engine::EngineError;
use crate::engine::logprobs::TokenLogprob;
use crate::engine::sequence::{Event, Finish};
use crate::engine::tokenizer::Tokenizer;
use crate::engine::tools::{Reader, Said, Tool};
use crate::providers::{Piece, PieceStream, ProviderError};
use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Content, Delta, Message, Usage};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::engine::Model;

/// A reply on its way: the events of each choice, and what is needed to tell them.
pub(super) struct Replying {
    /// The model's name, with its provider.
    pub(super) name: String,
    pub(super) model: Arc<Model>,
    /// Functions that may be called.
    pub(super) tools: Vec<Tool>,
    /// Log probabilities were asked for.
    pub(super) with_logprobs: bool,
    pub(super) events: Vec<UnboundedReceiver<Event>>,
}

impl Replying {
    /// The whole completion. Dropping the future cancels the request.
    ///
    /// # Errors
    /// What the engine failed with.
    pub(super) async fn whole(self) -> Result<ChatResponse, ProviderError> {
        let mut usage = Counted::default();
        let mut choices = Vec::new();
        for (index, mut events) in self.events.into_iter().enumerate() {
            let mut spoken = Spoken::new(&self.tools);
            let finish = loop {
                match events.recv().await {
                    Some(Event::Logprobs(more)) => spoken.logprobs.extend(more),
                    Some(Event::Text(text)) => spoken.hear(&text),
                    Some(Event::Hidden(_)) => {}
                    Some(Event::Done(finish)) => break finish,
                    Some(Event::Failed(error)) => return Err(provider_error(error.into())),
                    None => return Err(provider_error(EngineError::Stopped.into())),
                }
            };
            usage.add(&finish);
            let mut choice = spoken.choice(index as u32, &finish);
            if self.with_logprobs {
                choice.extra.insert("logprobs".into(), logprobs(&spoken.logprobs, &self.model.tokenizer));
            }
            choices.push(choice);
        }
        Ok(completion(self.name, choices, usage.usage()))
    }

    /// Role, text, calls, finish and usage as chunks, in the order in which the choices say something. Dropping the stream closes the
    /// channels, which cancels the request.
    pub(super) fn stream(self) -> PieceStream {
        let frame = frame(self.name);
        let tellers: Vec<Teller> = self.events.iter().map(|_| Teller::new(&self.tools)).collect();
        let begin = (0..tellers.len() as u32).map(|index| {
            let delta = Delta { role: Some("assistant".into()), content: Some(String::new()), ..Delta::default() };
            Ok(of_choice(&frame, ChunkChoice { index, delta, ..ChunkChoice::default() }))
        });
        let begin: Vec<_> = begin.collect();
        let all = stream::select_all(self.events.into_iter().enumerate().map(|(index, events)| {
            stream::unfold(Some(events), move |events| async move {
                let mut events = events?;
                let event = events.recv().await.unwrap_or(Event::Failed(EngineError::Stopped));
                let rest = (!matches!(event, Event::Done(_) | Event::Failed(_))).then_some(events);
                Some(((index, event), rest))
            })
            .boxed()
        }));
        let state = Telling { frame, tellers, model: self.model, with_logprobs: self.with_logprobs, usage: Counted::default(), ended: 0 };
        let following = stream::unfold(Some((all, state)), |state| async move {
            let (mut all, mut state) = state?;
            let (index, event) = all.next().await?;
            let (chunks, goes_on) = state.tell(index, event);
            Some((chunks, goes_on.then_some((all, state))))
        });
        stream::iter(begin).chain(following.flat_map(stream::iter)).map(|chunk| chunk.map(Piece::from)).boxed()
    }
}

/// The text, calls and log probabilities of one whole choice.
struct Spoken {
    reader: Reader,
    text: String,
    calls: Vec<(String, String)>,
    logprobs: Vec<TokenLogprob>,
}

impl Spoken {
    fn new(tools: &[Tool]) -> Self {
        Spoken { reader: Reader::new(tools), text: String::new(), calls: Vec::new(), logprobs: Vec::new() }
    }

    fn hear(&mut self, text: &str) {
        let said = self.reader.push(text);
        self.take(said);
    }

    fn take(&mut self, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Text(text) => self.text.push_str(&text),
                Said::Call(name) => self.calls.push((name, String::new())),
                Said::Arguments(more) => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        arguments.push_str(&more);
                    }
                }
            }
        }
    }

    fn choice(&mut self, index: u32, finish: &Finish) -> Choice {
        let said = self.reader.finish();
        self.take(said);
        let mut message = Message::text("assistant", std::mem::take(&mut self.text));
        if !self.calls.is_empty() {
            let call = |(name, arguments): &(String, String)| json!({"id": new_id("call"), "type": "function", "function": {"name": name, "arguments": arguments}});
            message.extra.insert("tool_calls".into(), self.calls.iter().map(call).collect());
            // As the OpenAI API has it: no text is null, where there are calls.
            message.content = message.content.filter(|content| *content != Content::Text(String::new()));
            self.logprobs.clear();
        }
        Choice { index, message, finish_reason: Some(reason(finish, !self.calls.is_empty())), extra: Map::new() }
    }
}

/// What a stream needs to go on.
struct Telling {
    frame: ChatChunk,
    tellers: Vec<Teller>,
    model: Arc<Model>,
    with_logprobs: bool,
    usage: Counted,
    ended: usize,
}

/// One choice of a stream.
struct Teller {
    reader: Reader,
    /// Calls begun.
    calls: usize,
    /// Of the text that comes next.
    logprobs: Vec<TokenLogprob>,
}

impl Teller {
    fn new(tools: &[Tool]) -> Self {
        Teller { reader: Reader::new(tools), calls: 0, logprobs: Vec::new() }
    }

    fn delta(&mut self, said: Said) -> Delta {
        let call = |call: Value| Delta { extra: Map::from_iter([("tool_calls".to_string(), json!([call]))]), ..Delta::default() };
        match said {
            Said::Text(text) => Delta { content: Some(text), ..Delta::default() },
            Said::Call(name) => {
                self.calls += 1;
                call(
                    json!({"index": self.calls - 1, "id": new_id("call"), "type": "function", "function": {"name": name, "arguments": ""}}),
                )
            }
            Said::Arguments(more) => call(json!({"index": self.calls.saturating_sub(1), "function": {"arguments": more}})),
        }
    }
}

impl Telling {
    /// Chunks of an event, and whether more follow.
    fn tell(&mut self, index: usize, event: Event) -> (Vec<Result<ChatChunk, ProviderError>>, bool) {
        let said = match event {
            Event::Logprobs(logprobs) => {
                self.tellers[index].logprobs.extend(logprobs);
                return (Vec::new(), true);
            }
            // Nobody who is told text asks for it.
            Event::Hidden(_) => return (Vec::new(), true),
            Event::Text(text) => self.tellers[index].reader.push(&text),
            Event::Failed(error) => return (vec![Err(provider_error(error.into()))], false),
            Event::Done(finish) => return self.end(index, &finish),
        };
        (self.chunks(index, said), true)
    }

    fn chunks(&mut self, index: usize, said: Vec<Said>) -> Vec<Result<ChatChunk, ProviderError>> {
        let mut chunks = Vec::new();
        for said in said {
            let teller = &mut self.tellers[index];
            let is_text = matches!(said, Said::Text(_));
            let mut choice = ChunkChoice { index: index as u32, delta: teller.delta(said), ..ChunkChoice::default() };
            let logprobs_ = std::mem::take(&mut teller.logprobs);
            if self.with_logprobs && is_text {
                choice.extra.insert("logprobs".into(), logprobs(&logprobs_, &self.model.tokenizer));
            }
            chunks.push(Ok(of_choice(&self.frame, choice)));
        }
        chunks
    }

    fn end(&mut self, index: usize, finish: &Finish) -> (Vec<Result<ChatChunk, ProviderError>>, bool) {
        let said = self.tellers[index].reader.finish();
        let mut chunks = self.chunks(index, said);
        let finish_reason = Some(reason(finish, self.tellers[index].calls > 0));
        chunks.push(Ok(of_choice(&self.frame, ChunkChoice { index: index as u32, finish_reason, ..ChunkChoice::default() })));
        self.usage.add(finish);
        self.ended += 1;
        let goes_on = self.ended < self.tellers.len();
        if !goes_on {
            chunks.push(Ok(ChatChunk { usage: Some(self.usage.usage()), ..self.frame.clone() }));
        }
        (chunks, goes_on)
    }
}

/// A chunk with something of a choice.
pub(super) fn of_choice(frame: &ChatChunk, choice: ChunkChoice) -> ChatChunk {
    ChatChunk { choices: vec![choice], ..frame.clone() }
}

/// Why a choice ended; one that ended by itself and called something ended for that.
fn reason(finish: &Finish, calls: bool) -> String {
    if calls && finish.reason == "stop" { "tool_calls".into() } else { finish.reason.into() }
}

/// Tokens of all choices: their prompt was read once.
#[derive(Default)]
struct Counted {
    prompt: usize,
    cached: usize,
    completion: usize,
    choices: usize,
}

impl Counted {
    fn add(&mut self, finish: &Finish) {
        // The other choices take their prompt from the first.
        self.cached = if self.choices == 0 { finish.cached_tokens } else { self.cached.min(finish.cached_tokens) };
        self.prompt = finish.prompt_tokens;
        self.completion += finish.completion_tokens;
        self.choices += 1;
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::new(self.prompt as u64, self.completion as u64);
        usage.set_detail("prompt_tokens_details", "cached_tokens", self.cached as u64);
        usage
    }
}

/// One token of `logprobs`.
pub(super) fn entry(text: &str, logprob: f32, bytes: &[u8]) -> Value {
    // JSON has no infinity; −9999 is what the OpenAI API says of what is next to impossible.
    let logprob = if logprob.is_finite() { f64::from(logprob) } else { -9999.0 };
    json!({"token": text, "logprob": logprob, "bytes": bytes})
}

/// `logprobs` of a choice. A token that ends inside a character is told by its bytes.
fn logprobs(tokens: &[TokenLogprob], tokenizer: &Tokenizer) -> Value {
    let one = |token: u32, logprob: f32| {
        let bytes = tokenizer.bytes(token);
        let text = if tokenizer.is_control(token) {
            tokenizer.token(token).unwrap_or_default()
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        };
        let bytes = if tokenizer.is_control(token) { text.as_bytes() } else { bytes };
        entry(&text, logprob, bytes)
    };
    let row = |found: &TokenLogprob| {
        let mut row = one(found.token, found.logprob);
        row["top_logprobs"] = found.top.iter().map(|(token, logprob)| one(*token, *logprob)).collect();
        row
    };
    json!({"content": tokens.iter().map(row).collect::<Vec<_>>(), "refusal": null})
}

/// A completion of a model, under a new id.
pub(super) fn completion(model: String, choices: Vec<Choice>, usage: Usage) -> ChatResponse {
    ChatResponse {
        id: completion_id(),
        object: "chat.completion".into(),
        created: now_ms() / 1000,
        model,
        choices,
        usage: Some(usage),
        ..ChatResponse::default()
    }
}

/// What all chunks of one reply have, under a new id.
pub(super) fn frame(model: String) -> ChatChunk {
    ChatChunk { id: completion_id(), object: "chat.completion.chunk".into(), created: now_ms() / 1000, model, ..ChatChunk::default() }
}

/// An id of a completion, as the OpenAI API writes it.
fn completion_id() -> String {
    new_id("chatcmpl").replace('_', "-")
}
