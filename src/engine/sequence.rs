//! One request inside the scheduler: its tokens, its slot, and the text it has produced so far.

use super::EngineError;
use super::adapter::Adapter;
use super::sampling::{Sampler, Sampling};
use super::tokenizer::{Detokenizer, Tokenizer};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// What a caller asks of the engine.
pub struct Generate {
    /// Prompt tokens.
    pub tokens: Vec<u32>,
    /// Adapter to apply.
    pub adapter: Option<Arc<Adapter>>,
    /// Decoding parameters.
    pub sampling: Sampling,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Where events go. When the receiver is dropped the request is cancelled.
    pub events: UnboundedSender<Event>,
}

/// What the engine reports.
#[derive(Debug)]
pub enum Event {
    /// New text, whole UTF-8 characters.
    Text(String),
    /// The end.
    Done(Finish),
    /// It failed.
    Failed(EngineError),
}

/// How a reply ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// `stop` or `length`.
    pub reason: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens generated, the end-of-turn token included.
    pub completion_tokens: usize,
    /// Milliseconds from acceptance to the first step.
    pub queue_ms: f64,
    /// Milliseconds from acceptance to the first token.
    pub first_token_ms: f64,
}

/// A running request.
pub(super) struct Sequence {
    pub(super) slot: usize,
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) adapter: Option<Arc<Adapter>>,
    max_tokens: usize,
    sampler: Sampler,
    stop: Vec<String>,
    text: Detokenizer,
    /// Text that may be the beginning of a stop text.
    held: String,
    events: UnboundedSender<Event>,
    accepted: Instant,
    started: Instant,
    first_token_ms: f64,
}

impl Sequence {
    pub(super) fn new(request: Generate, accepted: Instant, slot: usize) -> Self {
        Sequence {
            slot,
            prompt_tokens: request.tokens.len(),
            tokens: request.tokens,
            computed: 0,
            cached_tokens: 0,
            adapter: request.adapter,
            max_tokens: request.max_tokens,
            sampler: Sampler::new(request.sampling),
            stop: request.stop,
            text: Detokenizer::default(),
            held: String::new(),
            events: request.events,
            accepted,
            started: Instant::now(),
            first_token_ms: 0.0,
        }
    }

    /// Whether nobody listens any more.
    pub(super) fn abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Tokens it may come to hold.
    pub(super) fn reserved(&self) -> usize {
        self.prompt_tokens + self.max_tokens
    }

    pub(super) fn fail(&self, error: EngineError) {
        let _ = self.events.send(Event::Failed(error));
    }

    /// Takes the logits of the last token; samples, emits text and returns whether the sequence goes on.
    pub(super) fn advance(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> bool {
        let token = self.sampler.next(logits);
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_tokens;
        if generated == 1 {
            self.first_token_ms = self.accepted.elapsed().as_secs_f64() * 1e3;
        }
        if tokenizer.is_end(token) {
            self.finish("stop", tokenizer);
            return false;
        }
        let text = self.text.push(tokenizer, token);
        if self.emit(&text) {
            self.done("stop");
            return false;
        }
        if generated >= self.max_tokens {
            self.finish("length", tokenizer);
            return false;
        }
        true
    }

    /// Sends text on, holding back what may become a stop text. Returns whether a stop text was found.
    fn emit(&mut self, text: &str) -> bool {
        self.held.push_str(text);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let ready = match found {
            Some(at) => at,
            None => self.held.len() - longest_stop_prefix(&self.held, &self.stop),
        };
        if ready > 0 {
            let _ = self.events.send(Event::Text(self.held[..ready].to_string()));
        }
        self.held.drain(..ready);
        found.is_some()
    }

    fn finish(&mut self, reason: &'static str, tokenizer: &Tokenizer) {
        let rest = self.text.finish(tokenizer);
        let stopped = self.emit(&rest);
        if !stopped && !self.held.is_empty() {
            let _ = self.events.send(Event::Text(std::mem::take(&mut self.held)));
        }
        self.done(if stopped { "stop" } else { reason });
    }

    fn done(&self, reason: &'static str) {
        let finish = Finish {
            reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.tokens.len() - self.prompt_tokens,
            queue_ms: self.started.duration_since(self.accepted).as_secs_f64() * 1e3,
            first_token_ms: self.first_token_ms,
        };
        let _ = self.events.send(Event::Done(finish));
    }
}

/// Length of the longest end of `text` that begins one of the stop texts.
fn longest_stop_prefix(text: &str, stop: &[String]) -> usize {
    let ends = |stop: &String| (1..stop.len()).rev().find(|n| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n])).unwrap_or(0);
    stop.iter().map(ends).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_become_a_stop_text_is_held_back() {
        let stop = ["\n\nUser:".to_string(), "é!".to_string()];
        assert_eq!(longest_stop_prefix("hello\n\nUs", &stop), 4);
        assert_eq!(longest_stop_prefix("café", &stop), 2);
        assert_eq!(longest_stop_prefix("hello", &stop), 0);
    }
}
