//! One request inside the scheduler: its tokens, its slot, and the text it has produced so far.

use super::EngineError;
use super::adapter::Adapter;
use super::detokenizer::Detokenizer;
use super::grammar::Constraint;
use super::logprobs::TokenLogprob;
use super::sampling::{Sampler, Sampling};
use super::tokenizer::Tokenizer;
use crate::types::asker::Asker;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;
use toktrie::SimpleVob;

/// What a caller asks of the engine.
pub struct Generate {
    /// Prompt tokens.
    pub tokens: Vec<u32>,
    /// Who asks: waiting requests take turns by it.
    pub asker: Asker,
    /// Adapter to apply.
    pub adapter: Option<Arc<Adapter>>,
    /// Decoding parameters.
    pub sampling: Sampling,
    /// What the reply must be.
    pub constraint: Option<Constraint>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
    /// Report log probabilities, with so many of the likeliest tokens beside each.
    pub logprobs: Option<usize>,
    /// Report the hidden state of the prompt's last token, and generate nothing.
    pub reads_only: bool,
    /// Where events go. When the receiver is dropped the request is cancelled.
    pub events: UnboundedSender<Event>,
}

impl Generate {
    /// A request with default sampling and no bound but the context's.
    pub fn new(tokens: Vec<u32>, events: UnboundedSender<Event>) -> Self {
        Generate {
            tokens,
            asker: Asker::default(),
            adapter: None,
            sampling: Sampling::default(),
            constraint: None,
            max_tokens: usize::MAX,
            stop: Vec::new(),
            logprobs: None,
            reads_only: false,
            events,
        }
    }
}

/// What the engine reports.
#[derive(Debug)]
pub enum Event {
    /// Tokens of the text that follows, where log probabilities were asked for.
    Logprobs(Vec<TokenLogprob>),
    /// New text, whole UTF-8 characters.
    Text(String),
    /// The hidden state (hidden) of the prompt's last token, where nothing is generated.
    Hidden(Vec<f32>),
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
    constraint: Option<Constraint>,
    stop: Vec<String>,
    text: Detokenizer,
    /// Text that may be the beginning of a stop text.
    held: String,
    /// Bytes of text that were sent.
    sent: usize,
    logprobs: Option<usize>,
    pub(super) reads_only: bool,
    /// Log probabilities of tokens that were not sent, and where in the text each begins.
    unsent: VecDeque<(usize, TokenLogprob)>,
    /// What is to be said once every sequence has its token: a listener is then woken once in a step, and not in the middle of it.
    unsaid: Vec<Event>,
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
            sampler: Sampler::new(request.sampling, &request.tokens),
            tokens: request.tokens,
            computed: 0,
            cached_tokens: 0,
            adapter: request.adapter,
            max_tokens: request.max_tokens,
            constraint: request.constraint,
            stop: request.stop,
            text: Detokenizer::default(),
            held: String::new(),
            sent: 0,
            logprobs: request.logprobs,
            reads_only: request.reads_only,
            unsent: VecDeque::new(),
            unsaid: Vec::new(),
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

    /// Whether its prompt is computed and its reply has begun.
    pub(super) fn is_decoding(&self) -> bool {
        self.tokens.len() > self.prompt_tokens
    }

    /// Tokens it may come to hold.
    pub(super) fn reserved(&self) -> usize {
        self.prompt_tokens + self.max_tokens
    }

    /// Ends with an error, unless it has ended. As with all that a sequence says, [`Sequence::say`] sends it.
    pub(super) fn fail(&mut self, error: EngineError) {
        if !matches!(self.unsaid.last(), Some(Event::Done(_) | Event::Failed(_))) {
            self.unsaid.push(Event::Failed(error));
        }
    }

    /// Sends what there is to say.
    pub(super) fn say(&mut self) {
        for event in self.unsaid.drain(..) {
            // Whoever does not listen any more is taken out by the next step.
            let _ = self.events.send(event);
        }
    }

    /// Reports the hidden state of the prompt's last token, and ends.
    pub(super) fn tell(&mut self, hidden: &[f32]) {
        self.first_token_ms = self.accepted.elapsed().as_secs_f64() * 1e3;
        self.unsaid.push(Event::Hidden(hidden.to_vec()));
        self.done("stop");
    }

    /// Takes the logits of the last token; samples, makes text and returns whether the sequence goes on.
    pub(super) fn advance(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> bool {
        let goes_on = self.step(logits, tokenizer);
        goes_on.unwrap_or_else(|error| {
            self.fail(error);
            false
        })
    }

    fn step(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<bool, EngineError> {
        let mask = self.constraint.as_mut().map(Constraint::mask).transpose()?.flatten();
        let token = self.sampler.next(logits, mask.as_ref().map(SimpleVob::as_slice));
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_tokens;
        if generated == 1 {
            self.first_token_ms = self.accepted.elapsed().as_secs_f64() * 1e3;
        }
        if tokenizer.is_end(token) {
            self.finish("stop");
            return Ok(false);
        }
        if let Some(top) = self.logprobs.filter(|_| !tokenizer.bytes(token).is_empty()) {
            self.unsent.push_back((self.sent + self.held.len(), TokenLogprob::of(logits, token, top)));
        }
        // Whatever a call's arguments say, it ends no reply.
        let stops = self.constraint.as_ref().is_none_or(|constraint| !constraint.is_call());
        let is_open = self.constraint.as_mut().map_or(Ok(true), |constraint| constraint.accept(token, tokenizer))?;
        let text = self.text.push(tokenizer, token);
        if self.emit(&text, stops) {
            self.done("stop");
            return Ok(false);
        }
        if !is_open || generated >= self.max_tokens {
            self.finish(if is_open { "length" } else { "stop" });
            return Ok(false);
        }
        Ok(true)
    }

    /// Sends text on, holding back what may become a stop text. Returns whether a stop text was found.
    fn emit(&mut self, text: &str, stops: bool) -> bool {
        self.held.push_str(text);
        let stop = if stops { self.stop.as_slice() } else { &[] };
        let found = stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let ready = found.unwrap_or_else(|| self.held.len() - longest_stop_prefix(&self.held, stop));
        self.send(ready);
        found.is_some()
    }

    /// Sends so many bytes of what is held, and the log probabilities of the tokens that begin in them.
    fn send(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.sent += bytes;
        let count = self.unsent.iter().take_while(|(begin, _)| *begin < self.sent).count();
        if count > 0 {
            let logprobs = self.unsent.drain(..count).map(|(_, logprob)| logprob).collect();
            self.unsaid.push(Event::Logprobs(logprobs));
        }
        let text: String = self.held.drain(..bytes).collect();
        self.unsaid.push(Event::Text(text));
    }

    fn finish(&mut self, reason: &'static str) {
        let rest = self.text.finish();
        let stopped = self.emit(&rest, true);
        if !stopped {
            self.send(self.held.len());
        }
        self.done(if stopped { "stop" } else { reason });
    }

    fn done(&mut self, reason: &'static str) {
        let finish = Finish {
            reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.tokens.len() - self.prompt_tokens,
            queue_ms: self.started.duration_since(self.accepted).as_secs_f64() * 1e3,
            first_token_ms: self.first_token_ms,
        };
        self.unsaid.push(Event::Done(finish));
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
