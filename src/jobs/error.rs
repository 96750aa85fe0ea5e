//! What can go wrong with jobs.

use crate::types::{Code, Coded};

/// Errors of the job room itself; the work's own errors keep their codes.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The worker process could not be started.
    #[error("cannot start a worker process")]
    Spawn(#[source] std::io::Error),
    /// No such kind of work in this build.
    #[error("this build of refit cannot run jobs of kind \"{0}\"")]
    Kind(String),
    /// Work that `refit serve` does itself.
    #[error("job {0} is worked on by `refit serve`")]
    Served(String),
    /// Somebody else holds the job, or it ended.
    #[error("job {0} is not waiting to be run")]
    NotQueued(String),
    /// The work was asked to stop and did.
    #[error("the job was cancelled")]
    Cancelled,
    /// A dataset cannot be trained on.
    #[error("dataset {dataset}: {problem}")]
    Data {
        /// Name of the dataset.
        dataset: String,
        /// What is wrong with it.
        problem: String,
        /// Way out.
        hint: String,
    },
}

impl Coded for JobError {
    fn code(&self) -> Code {
        match self {
            JobError::Spawn(_) => Code::INTERNAL,
            JobError::Kind(_) => Code::UNSUPPORTED,
            JobError::NotQueued(_) | JobError::Served(_) => Code::CONFLICT,
            JobError::Cancelled => Code::CANCELLED,
            JobError::Data { .. } => Code::INVALID_REQUEST,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            JobError::Kind(_) => Some("build with the feature `local`, which is on by default".into()),
            JobError::Data { hint, .. } => Some(hint.clone()),
            _ => None,
        }
    }
}
