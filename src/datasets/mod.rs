//! Datasets: named samples, versioned by content, with splits and lineage. Samples are a blob of canonical JSON lines; rows hold digests.
//!
//! A file is cut into records by its [`formats`], which become samples by their [`shapes`]; [`import`] stores them, [`library`] finds and
//! reads them, [`diff`] compares two versions. Train, validation and test in [`split`], quality in [`check`].

pub mod check;
pub mod diff;
pub mod formats;
pub mod import;
pub mod library;
pub mod manifest;
pub mod revise;
pub mod sample;
pub mod shapes;
pub mod similar;
pub mod source;
pub mod split;
pub mod trainable;
pub mod unique;

pub use library::{Dataset, Datasets};
pub use manifest::{Lineage, SplitManifest};
pub use sample::Sample;
pub use split::Plan;

use crate::store::StoreError;
use crate::types::error::did_you_mean;
use crate::types::{Code, Coded};
use formats::Place;

/// What can go wrong with a dataset.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A record of the file is broken; nothing was stored.
    #[error("{file}, {place}: {problem}")]
    Broken {
        /// File.
        file: String,
        /// Where in it.
        place: Place,
        /// What is wrong, naming the field.
        problem: String,
    },
    /// An argument does not fit.
    #[error("{0}")]
    Argument(String),
    /// A sample cannot be written in the shape that was asked for.
    #[error("{0}")]
    Shape(String),
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
    #[error("dataset \"{name}\" is split already ({how})")]
    AlreadySplit {
        /// Dataset.
        name: String,
        /// How: `seed 7`.
        how: String,
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
            DatasetError::Broken { .. } | DatasetError::Read { .. } | DatasetError::Empty(_) | DatasetError::Format { .. } => {
                Code::INVALID_FILE
            }
            DatasetError::Name(_) | DatasetError::Plan(_) | DatasetError::Argument(_) | DatasetError::Shape(_) => Code::INVALID_VALUE,
            DatasetError::Unknown { .. } | DatasetError::NotSplit(_) => Code::UNKNOWN_NAME,
            DatasetError::AlreadySplit { .. } => Code::CONFLICT,
            DatasetError::Store(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            DatasetError::Broken { .. } => {
                Some("nothing was imported; mend it, or go on without such records: --keep-going writes them to a file".into())
            }
            DatasetError::Name(_) => Some("use 1 to 64 lower-case letters, digits, dots, dashes and underscores (--name)".into()),
            DatasetError::NotSplit(name) => Some(format!("split it: refit data split {name} --seed 7")),
            DatasetError::AlreadySplit { .. } => Some("runs may have used it; --replace puts the new split in its place".into()),
            DatasetError::Unknown { what: "dataset", .. } => Some("`refit data list` shows what there is".into()),
            DatasetError::Store(error) => error.hint(),
            _ => None,
        }
    }
}

/// What is said where a name is none of those that are known.
fn unknown_word(what: &str, word: &str, known: &[&str]) -> DatasetError {
    DatasetError::Argument(format!(
        "{what} \"{word}\" is unknown{}; known: {}",
        did_you_mean(word, known.iter().copied()),
        known.join(", ")
    ))
}
