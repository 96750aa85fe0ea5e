//! Datasets: named samples, versioned by content, with splits and lineage. Import and reading in [`import`], quality in [`check`],
//! train, validation and test in [`split`]. Samples are a blob of canonical JSON lines; rows hold digests.

pub mod check;
pub mod formats;
pub mod import;
pub mod manifest;
pub mod sample;
pub mod similar;
pub mod split;

pub use import::{Dataset, Datasets};
pub use manifest::{Lineage, SplitManifest};
pub use sample::Sample;
pub use split::Plan;

use crate::store::StoreError;
use crate::types::{Code, Coded};

/// What can go wrong with a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A line of the file is broken; nothing was stored.
    #[error("{file}, line {line}: {problem}")]
    Line {
        /// File.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong, naming the field.
        problem: String,
    },
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// File.
        file: String,
        /// Cause.
        #[source]
        cause: std::io::Error,
    },
    /// The file has no samples.
    #[error("{0} has no samples")]
    Empty(String),
    /// No format of that name or ending.
    #[error("no dataset format for \"{what}\"; formats: {known}")]
    Format {
        /// Name or file.
        what: String,
        /// Names of the formats.
        known: String,
    },
    /// A dataset cannot have that name.
    #[error("\"{0}\" cannot name a dataset")]
    Name(String),
    /// No such dataset, version or split.
    #[error("{what} \"{name}\" does not exist{nearest}")]
    Unknown {
        /// `dataset` or `split`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// `; did you mean …`, or empty.
        nearest: String,
    },
    /// The dataset was never split.
    #[error("dataset \"{0}\" has no splits")]
    NotSplit(String),
    /// Another split exists.
    #[error("dataset \"{name}\" is split already (seed {seed})")]
    AlreadySplit {
        /// Dataset.
        name: String,
        /// Seed of the stored split.
        seed: u64,
    },
    /// The split plan does not fit.
    #[error("{0}")]
    Plan(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Coded for DatasetError {
    fn code(&self) -> Code {
        match self {
            DatasetError::Line { .. } | DatasetError::Read { .. } | DatasetError::Empty(_) | DatasetError::Format { .. } => {
                Code::INVALID_FILE
            }
            DatasetError::Name(_) | DatasetError::Plan(_) => Code::INVALID_VALUE,
            DatasetError::Unknown { .. } | DatasetError::NotSplit(_) => Code::UNKNOWN_NAME,
            DatasetError::AlreadySplit { .. } => Code::CONFLICT,
            DatasetError::Store(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            DatasetError::Line { .. } => Some("nothing was imported; mend the line and import the file again".into()),
            DatasetError::Name(_) => Some("use 1 to 64 lower-case letters, digits, dots, dashes and underscores (--name)".into()),
            DatasetError::NotSplit(name) => Some(format!("split it: refit data split {name} --seed 7")),
            DatasetError::AlreadySplit { .. } => Some("runs may have used it; --replace puts the new split in its place".into()),
            DatasetError::Unknown { what: "dataset", .. } => Some("`refit data list` shows what there is".into()),
            DatasetError::Store(error) => error.hint(),
            _ => None,
        }
    }
}
