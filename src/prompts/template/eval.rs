//! A compiled template and variables to pieces. The crate `handlebars` renders; text that it writes and structure that our helpers
//! ([`super::mend`]) make meet here in one list. Structure (a message, a section, an image) is a piece of its own that only helpers make,
//! so no text can become one. Every piece of text, call, loop turn and compared kilobyte is a step, and both steps and bytes have an end.

use super::compile::Compiled;
use super::mend;
use super::tree::Place;
use super::value::Val;
use handlebars::{Context, Output, RenderContext, RenderError, RenderErrorReason, Renderable};
use serde_json::{Map, Value};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A piece of what was rendered.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// A message begins.
    Role(String),
    /// The earlier messages stand here.
    History,
    /// A place that an application fills.
    Section(String),
    /// A file.
    Media {
        /// Address or data URL.
        url: String,
        /// MIME type.
        content_type: Option<String>,
    },
}

/// Why a render ended early.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Too many bytes.
    #[error("too many bytes")]
    Full,
    /// Too many steps.
    #[error("too many steps")]
    Spent,
    /// A helper was given what it cannot use.
    #[error("{1}")]
    Wrong(Place, String),
}

/// What a render may use up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Texts, calls, loop turns, inclusions.
    pub steps: usize,
    /// Bytes of text.
    pub bytes: usize,
}

/// What a render reads.
pub struct Data<'a> {
    /// `this` of the whole template.
    pub root: Val<'a>,
    /// Values for `@name`.
    pub context: Option<&'a Map<String, Value>>,
    /// Value of `@metadata`.
    pub metadata: &'a Value,
}

/// Renders.
///
/// # Errors
/// [`Stop`].
pub fn render(compiled: &Compiled, data: &Data<'_>, limits: Limits) -> Result<Vec<Piece>, Stop> {
    let run = Run { data, limits, pieces: Vec::new(), has_history: false, values: Vec::new() };
    let state = State(Mutex::new(run));
    // The crate copies a context for every partial. Ours is empty: helpers read the variables where they are.
    let context = Context::null();
    {
        let mut surroundings = RenderContext::new(None);
        mend::prepare(&mut surroundings, &state);
        let mut output = Pieces(&state);
        let run = || compiled.body.render(&compiled.partials, &context, &mut surroundings, &mut output);
        compiled.with_stack(run).map_err(stop)?;
    }
    Ok(state.0.into_inner().unwrap_or_else(PoisonError::into_inner).pieces)
}

/// What a render has done so far. Helpers must be `Sync`, hence the lock; nobody else ever waits for it.
pub(super) struct State<'a>(Mutex<Run<'a>>);

pub(super) struct Run<'a> {
    pub(super) data: &'a Data<'a>,
    pub(super) limits: Limits,
    pub(super) pieces: Vec<Piece>,
    /// The earlier messages have their place.
    pub(super) has_history: bool,
    /// Values that the crate hands from helper to helper, by number: it would copy them.
    pub(super) values: Vec<Val<'a>>,
}

/// Where the crate writes text.
struct Pieces<'s, 'a>(&'s State<'a>);

pub(super) type Done = Result<(), Stop>;

impl<'a> State<'a> {
    /// Never held while the crate renders a body.
    pub(super) fn lock(&self) -> MutexGuard<'_, Run<'a>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output for Pieces<'_, '_> {
    fn write(&mut self, text: &str) -> io::Result<()> {
        let mut run = self.0.lock();
        run.step(1).and_then(|()| run.write(text)).map_err(io::Error::other)
    }
}

impl From<Stop> for RenderError {
    fn from(stop: Stop) -> Self {
        RenderErrorReason::NestedError(Box::new(stop)).into()
    }
}

/// The reason behind an error of the crate.
fn stop(error: RenderError) -> Stop {
    let other = |text: String| Stop::Wrong(Place { line: 1, column: 1 }, text);
    match RenderErrorReason::from(error) {
        RenderErrorReason::NestedError(error) => error.downcast::<Stop>().map_or_else(|error| other(error.to_string()), |stop| *stop),
        RenderErrorReason::IOError(error) => error.downcast::<Stop>().unwrap_or_else(|error| other(error.to_string())),
        error => other(error.to_string()),
    }
}

impl Run<'_> {
    pub(super) fn step(&mut self, steps: usize) -> Done {
        if self.limits.steps < steps {
            return Err(Stop::Spent);
        }
        self.limits.steps -= steps;
        Ok(())
    }

    pub(super) fn count(&mut self, bytes: usize) -> Done {
        if self.limits.bytes < bytes {
            return Err(Stop::Full);
        }
        self.limits.bytes -= bytes;
        Ok(())
    }

    pub(super) fn write(&mut self, text: &str) -> Done {
        self.count(text.len())?;
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Text(text.to_string())),
        }
        Ok(())
    }
}
