//! Evaluations: a [`suite`] says which dataset, targets, scorers and gate; [`prepare`] finds all of them before anything is written;
//! the [`runner`] asks the models, stores each case as it ends and can resume; [`columns`] are what is stored as numbers, over which
//! [`metrics`], [`gate`], [`compare`] and [`report`] are computed; [`show`] writes reports for people and programs.

mod affordable;
pub mod aggregates;
pub mod bounds;
mod calls;
pub mod columns;
pub mod compare;
pub mod demands;
pub mod estimate;
pub mod gate;
pub mod graders;
pub mod judge;
pub mod keep;
pub mod matrix;
pub mod metrics;
mod order;
mod pace;
mod paid;
pub mod power;
pub mod prepare;
pub mod promptfoo;
mod proof;
pub mod protect;
mod purse;
pub mod report;
pub mod respond;
pub mod runner;
pub mod samples;
pub mod score;
pub mod scorers;
pub mod show;
pub mod suite;
mod tally;
pub mod variants;
mod work;

pub use bounds::Bounds;
pub use prepare::{Plan, prepare};
pub use report::Report;
pub use respond::{Reply, Respond};
pub use runner::{Runner, resume, resume_within};
pub use suite::Suite;

use crate::types::{Code, Coded};

/// What can go wrong with a suite or a run, beside the failures of other rooms.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The suite cannot be read. Nothing was written.
    #[error("{file}, line {line}: {problem}")]
    Suite {
        /// File.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong, naming the key.
        problem: String,
    },
    /// A part of the suite does not fit another.
    #[error("suite \"{suite}\": {problem}")]
    Invalid {
        /// Suite.
        suite: String,
        /// What is wrong.
        problem: String,
        /// Way out.
        hint: Option<String>,
    },
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// File.
        file: String,
        /// Cause.
        #[source]
        cause: std::io::Error,
    },
    /// A run cannot be used as asked.
    #[error("run {run}: {problem}")]
    Run {
        /// Run.
        run: String,
        /// Why not.
        problem: String,
    },
    /// The writer of outcomes ended early.
    #[error("the outcomes of run {0} could not be stored")]
    Writer(String),
}

impl Coded for EvalError {
    fn code(&self) -> Code {
        match self {
            EvalError::Suite { .. } | EvalError::Read { .. } => Code::INVALID_FILE,
            EvalError::Invalid { .. } | EvalError::Run { .. } => Code::INVALID_VALUE,
            EvalError::Writer(_) => Code::STORAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            EvalError::Invalid { hint, .. } => hint.clone(),
            EvalError::Suite { .. } => Some("nothing was written; mend the suite and run it again".into()),
            _ => None,
        }
    }
}
