//! What can go wrong in the engine.

use crate::types::{Code, Coded};
use std::path::PathBuf;

/// Errors of the engine. Each names the file, tensor, key or field at fault.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The model file is malformed.
    #[error("{file} is not a usable model file: {problem}")]
    Model {
        /// File name or `model`.
        file: String,
        /// What is wrong, naming the key or tensor.
        problem: String,
    },
    /// The adapter is malformed or does not fit the model.
    #[error("the adapter cannot be used: {0}")]
    Adapter(String),
    /// Something the engine does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The chat template failed.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// A field of the request is wrong.
    #[error("{param} {problem}")]
    Request {
        /// Field name.
        param: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Prompt and reply do not fit.
    #[error("the prompt has {prompt} tokens; the context holds {context}")]
    ContextLength {
        /// Prompt tokens.
        prompt: usize,
        /// Context length.
        context: usize,
    },
    /// A text is longer than an embedding model takes.
    #[error("input {index} has {tokens} tokens; the model takes {limit}")]
    TooLong {
        /// Place among the inputs, from 0.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// What the model takes.
        limit: usize,
    },
    /// The queue is full.
    #[error("the local model's queue is full ({0} requests waiting)")]
    QueueFull(usize),
    /// The engine thread is gone.
    #[error("the engine stopped")]
    Stopped,
    /// candle reported an error.
    #[error("the tensor library failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Coded for EngineError {
    fn code(&self) -> Code {
        match self {
            EngineError::Io { .. } | EngineError::Model { .. } | EngineError::Adapter(_) => Code::INVALID_FILE,
            EngineError::Unsupported(_) => Code::UNSUPPORTED,
            EngineError::Template(_) => Code::INVALID_REQUEST,
            EngineError::Request { .. } => Code::INVALID_VALUE,
            EngineError::ContextLength { .. } | EngineError::TooLong { .. } => Code::CONTEXT_LENGTH,
            EngineError::QueueFull(_) => Code::OVERLOADED,
            EngineError::Stopped => Code::UNAVAILABLE,
            EngineError::Tensor(_) => Code::INTERNAL,
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            EngineError::Request { param, .. } => Some((*param).to_string()),
            EngineError::ContextLength { .. } => Some("messages".to_string()),
            EngineError::TooLong { .. } => Some("input".to_string()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        let cut = || "split the text, or send \"truncate\": true to have the rest of it left out".to_string();
        matches!(self, EngineError::TooLong { .. }).then(cut)
    }

    fn retry_after_s(&self) -> Option<u64> {
        matches!(self, EngineError::QueueFull(_)).then_some(1)
    }
}
