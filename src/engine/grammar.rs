//! Replies that can only be what a grammar allows: before each token, the tokens that may come next (llguidance: Earley parsing over
//! lexemes that are derivatives of regular expressions, and a trie of the vocabulary).
//!
//! Compiling happens on the caller's side and is bounded; the engine's thread only walks what was compiled.

use super::EngineError;
use super::tokenizer::Tokenizer;
use crate::types::Digest;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

/// Longer tokens are never chosen under a grammar: the trie holds up to 1,024 bytes.
const MAX_TOKEN_BYTES: usize = 512;
/// Compiled grammars that are kept; callers mostly send the same few schemas.
const KEPT: usize = 32;
/// Bytes of a grammar, schemas included.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Symbols of a compiled grammar: what some ten thousand properties take.
const MAX_GRAMMAR_SIZE: usize = 200_000;
/// States of a reply's lexer, about 2 kB each.
const MAX_LEXER_STATES: usize = 20_000;
/// Digits in a row, after which a number ends if the grammar lets it: small models never come to its end by themselves. More than a
/// 64-bit number has.
const MAX_DIGITS: usize = 20;
/// Stack of the compiler: it descends with the schema.
const COMPILER_STACK_BYTES: usize = 16 << 20;
/// Time that compiling may take.
const COMPILE_TIME: Duration = Duration::from_secs(10);
/// Grammars that are compiled at once.
const MAX_COMPILING: usize = 4;

/// Compiles grammars over one vocabulary.
pub struct Grammars {
    factory: Arc<ParserFactory>,
    compiling: Arc<Compiling>,
    /// Tokens that begin with a digit.
    digits: Arc<SimpleVob>,
    /// Fresh matchers by the digest of their grammar, the last used last.
    kept: Mutex<Vec<(Digest, Matcher)>>,
}

/// How many grammars are being compiled.
#[derive(Default)]
struct Compiling {
    count: Mutex<usize>,
    changed: Condvar,
}

/// A place among those that compile, given back on drop.
struct Place(Arc<Compiling>);

impl Compiling {
    fn enter(shared: &Arc<Self>) -> Result<Place, String> {
        let count = shared.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = shared.changed.wait_timeout_while(count, COMPILE_TIME, |count| *count >= MAX_COMPILING);
        let (mut count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err("too many others are being compiled; try again".into());
        }
        *count += 1;
        drop(count);
        Ok(Place(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_one();
    }
}

/// What a reply must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Language {
    /// JSON that fits a schema.
    Json(Value),
    /// A grammar in llguidance's dialect of Lark; parts of it may be JSON schemas.
    Lark(String),
}

impl Grammars {
    pub(super) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let word = |id: u32| match tokenizer.bytes(id) {
            _ if tokenizer.is_control(id) => {
                let name = tokenizer.token(id).unwrap_or_default();
                [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
            }
            bytes if bytes.len() > MAX_TOKEN_BYTES => Vec::new(),
            bytes => bytes.to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocabulary() as u32).map(word).collect();
        let build = || {
            let info = TokRxInfo::new(words.len() as u32, *tokenizer.ends().first()?);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(tokenizer.ends());
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&environment).ok()?;
            factory.quiet();
            let limits = factory.limits_mut();
            limits.max_grammar_size = MAX_GRAMMAR_SIZE;
            limits.max_lexer_states = MAX_LEXER_STATES;
            limits.verbose_errors = false;
            Some(factory)
        };
        // The library asserts what it expects of a vocabulary, and vocabularies come out of files.
        let factory = catch_unwind(AssertUnwindSafe(build)).ok().flatten()?;
        let digits: Vec<bool> = words.iter().map(|word| word.first().is_some_and(u8::is_ascii_digit)).collect();
        let (factory, compiling) = (Arc::new(factory), Arc::default());
        Some(Grammars { factory, compiling, digits: Arc::new(SimpleVob::from_slice(&digits)), kept: Mutex::new(Vec::new()) })
    }

    /// Compiles a grammar, or finds it among those compiled lately.
    ///
    /// # Errors
    /// What is wrong with it, in words for the caller.
    pub fn compile(&self, language: &Language) -> Result<Compiled, String> {
        let text = match language {
            Language::Json(schema) => schema.to_string(),
            Language::Lark(grammar) => grammar.clone(),
        };
        if text.len() > MAX_GRAMMAR_BYTES {
            return Err(format!("it has {} bytes; at most {MAX_GRAMMAR_BYTES} are taken", text.len()));
        }
        let digest = Digest::of(text.as_bytes());
        if let Some(matcher) = self.find(&digest) {
            return Ok(Compiled { matcher, digits: self.digits.clone() });
        }
        let grammar = match language {
            Language::Json(schema) => TopLevelGrammar::from_json_schema(with_layout(schema)),
            Language::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let matcher = self.build(grammar)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((digest, matcher.deep_clone()));
        Ok(Compiled { matcher, digits: self.digits.clone() })
    }

    /// Compiles in a thread of its own, for a bounded time. What the first token may be is found out there, too: much of what is too
    /// complex shows then.
    fn build(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        let place = Compiling::enter(&self.compiling)?;
        let (factory, (finished, result)) = (self.factory.clone(), sync_channel(1));
        let build = move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar));
            match matcher.compute_mask() {
                Ok(_) => Ok(matcher),
                Err(error) => Err(in_a_line(&error.to_string())),
            }
        };
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(COMPILER_STACK_BYTES).spawn(move || {
            let built = catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|_| Err("it is too complex".into()));
            drop(place);
            let _ = finished.send(built);
        });
        thread.map_err(|_| "no thread could be started to compile it".to_string())?;
        result.recv_timeout(COMPILE_TIME).unwrap_or_else(|_| Err(format!("compiling it takes more than {COMPILE_TIME:?}")))
    }

    fn find(&self, digest: &Digest) -> Option<Matcher> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(known, _)| known == digest)?;
        let entry = kept.remove(at);
        // A copy of its own: what a reply teaches the lexer goes with the reply, and the kept one does not grow.
        let matcher = entry.1.deep_clone();
        kept.push(entry);
        Some(matcher)
    }
}

/// A schema whose JSON is written in one layout, `{"a": 1, "b": 2}`: as it stands in most of what models have read, and without the
/// room for endless white space.
pub fn with_layout(schema: &Value) -> Value {
    let layout = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
    match schema {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.insert("x-guidance".into(), layout);
            Value::Object(fields)
        }
        other => json!({"allOf": [other], "x-guidance": layout}),
    }
}

/// A message of the library in one line, without the traces that some go on with.
fn in_a_line(problem: &str) -> String {
    if problem.starts_with("panic") {
        return "it is too complex".into();
    }
    let told = problem.split("<backtrace>").next().unwrap_or_default();
    told.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// A compiled grammar.
#[derive(Clone)]
pub struct Compiled {
    matcher: Matcher,
    digits: Arc<SimpleVob>,
}

/// How far one reply has come in its grammar.
pub struct Constraint {
    grammar: Compiled,
    /// Digits at the end of what was said.
    run: usize,
    waits: Option<Waits>,
    is_calls: bool,
}

/// A reply that is free until it says a word.
struct Waits {
    word: &'static str,
    /// The end of what was said, shorter than the word.
    said: Vec<u8>,
}

impl Constraint {
    /// A reply that is in the grammar from its first token on.
    pub fn format(grammar: Compiled) -> Self {
        Constraint { grammar, run: 0, waits: None, is_calls: false }
    }

    /// A reply of tool calls and nothing else.
    pub fn calls(grammar: Compiled) -> Self {
        Constraint { is_calls: true, ..Constraint::format(grammar) }
    }

    /// A reply that is free until it says `word`; the calls that follow are in the grammar.
    pub fn calls_after(word: &'static str, grammar: Compiled) -> Self {
        Constraint { waits: Some(Waits { word, said: Vec::new() }), ..Constraint::calls(grammar) }
    }

    /// Whether the reply is calling tools now.
    pub fn is_call(&self) -> bool {
        self.is_calls && self.waits.is_none()
    }

    /// The tokens that may come next; `None` where all may.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the grammar has become too complex.
    pub fn mask(&mut self) -> Result<Option<SimpleVob>, EngineError> {
        if self.waits.is_some() {
            return Ok(None);
        }
        let mut mask = self.grammar.matcher.compute_mask_or_eos().map_err(|error| self.too_complex(&error.to_string()))?;
        if self.run >= MAX_DIGITS {
            let mut ending = mask.clone();
            ending.sub(&self.grammar.digits);
            if !ending.is_zero() {
                mask = ending;
            }
        }
        Ok(Some(mask))
    }

    /// Takes the token that was chosen. Returns whether the reply can go on.
    ///
    /// # Errors
    /// As [`Constraint::mask`].
    pub fn accept(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<bool, EngineError> {
        if self.waits.is_some() {
            self.listen(tokenizer.bytes(token));
            return Ok(true);
        }
        let bytes = tokenizer.bytes(token);
        let digits = bytes.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        self.run = if digits == bytes.len() { self.run + digits } else { digits };
        self.grammar.matcher.consume_token(token).map_err(|error| self.too_complex(&error.to_string()))?;
        Ok(!self.grammar.matcher.is_stopped())
    }

    /// Begins the grammar where the word was said. What the same token says beyond it must fit, or the word was just a word.
    fn listen(&mut self, bytes: &[u8]) {
        let Some(waits) = &mut self.waits else { return };
        let matcher = &mut self.grammar.matcher;
        waits.said.extend_from_slice(bytes);
        let word = waits.word.as_bytes();
        if let Some(at) = memchr::memmem::find(&waits.said, word) {
            let beyond = waits.said.split_off(at + word.len());
            let tokens = matcher.tok_env().map(|environment| environment.tok_trie().greedy_tokenize(&beyond)).unwrap_or_default();
            if matcher.validate_tokens(&tokens).is_ok_and(|fit| fit == tokens.len()) && matcher.consume_tokens(&tokens).is_ok() {
                self.waits = None;
                return;
            }
            waits.said = beyond;
        }
        let keep = waits.said.len().min(word.len() - 1);
        waits.said.drain(..waits.said.len() - keep);
    }

    fn too_complex(&self, problem: &str) -> EngineError {
        let param = if self.is_calls { "tools" } else { "response_format" };
        EngineError::Request { param, problem: format!("is too complex to be enforced while decoding: {}", in_a_line(problem)) }
    }
}
