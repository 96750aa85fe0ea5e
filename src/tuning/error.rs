//! What can go wrong in tuning.

use crate::engine::EngineError;
use crate::types::{Code, Coded};
use std::path::PathBuf;

/// Errors of tuning. Each names the key, sample or file at fault.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// The recipe is wrong.
    #[error("recipe: {key} {problem}")]
    Recipe {
        /// Key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An example cannot be trained on.
    #[error("sample {sample}: {problem}")]
    Example {
        /// Sample id.
        sample: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A checkpoint cannot be written or read.
    #[error("the checkpoint {} cannot be used: {problem}", path.display())]
    Checkpoint {
        /// File or directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The loss is no number any more. A job keeps the message alone, so it says the way out itself.
    #[error("the loss is {loss} at step {step}: lower learning_rate, or raise warmup")]
    Diverged {
        /// Step.
        step: usize,
        /// NaN or infinity.
        loss: f32,
    },
    /// An adapter cannot be written for another program.
    #[error("the adapter cannot be exported: {0}")]
    Export(String),
    /// Somebody asked for the end.
    #[error("training was cancelled at step {0}")]
    Cancelled(usize),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<candle_core::Error> for TuningError {
    fn from(error: candle_core::Error) -> Self {
        TuningError::Engine(EngineError::Tensor(error))
    }
}

impl Coded for TuningError {
    fn code(&self) -> Code {
        match self {
            TuningError::Recipe { .. } | TuningError::Example { .. } => Code::INVALID_VALUE,
            TuningError::Export(_) => Code::UNSUPPORTED,
            TuningError::Checkpoint { .. } => Code::STORAGE,
            TuningError::Diverged { .. } => Code::INVALID_VALUE,
            TuningError::Cancelled(_) => Code::CANCELLED,
            TuningError::Engine(error) => error.code(),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            TuningError::Recipe { key, .. } => Some(key.clone()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            TuningError::Checkpoint { .. } => Some("check the free space of --data-dir; the job can be resumed".into()),
            _ => None,
        }
    }
}
