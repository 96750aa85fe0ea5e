//! Prompts: named templates in the dotprompt format (YAML front matter, Handlebars body), kept as immutable numbered versions.
//!
//! [`parse`] splits and checks a file ([`front`]: its front matter, [`template`]: its body), [`validate`] bounds what a body may draw in,
//! [`render`] turns variables into messages, [`library`] keeps versions and labels. Calling a model with the result is `inference`'s work.

pub mod diff;
pub mod examples;
pub mod front;
pub mod helpers;
pub mod library;
pub mod library_error;
pub mod lint;
pub mod parse;
pub mod plain;
pub mod references;
pub mod render;
pub mod schema;
pub mod sync;
pub mod template;
pub mod validate;
pub mod walk;

pub use library::Library;
pub use library_error::LibraryError;
pub use parse::Prompt;
pub use render::{Input, Missing, Rendered};

use crate::store::StoreError;
use crate::types::{Code, Coded};

/// What can be wrong with a prompt, its place, and its name.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A problem at a line of the prompt's file.
    #[error("prompt \"{prompt}\", line {line}{}: {problem}", column.map(|column| format!(", column {column}")).unwrap_or_default())]
    At {
        /// Name of the prompt, or of the partial in whose text the problem is.
        prompt: Box<str>,
        /// Line in the file, from 1.
        line: usize,
        /// Character in the line, from 1.
        column: Option<u32>,
        /// What is wrong.
        problem: Problem,
    },
    /// A problem without one line.
    #[error("prompt \"{prompt}\": {problem}")]
    Whole {
        /// Name of the prompt.
        prompt: String,
        /// What is wrong.
        problem: Problem,
    },
    /// The name is not one that a prompt can have.
    #[error("\"{0}\" cannot name a prompt")]
    Name(String),
    /// The reference does not lead to a stored version.
    #[error("prompt \"{reference}\" does not exist{nearest}")]
    Unknown {
        /// What was asked for.
        reference: String,
        /// `; did you mean …`, or empty.
        nearest: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with a prompt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// Larger than [`validate::MAX_SOURCE_BYTES`].
    #[error("the file has {0} bytes; at most {max} are taken", max = validate::MAX_SOURCE_BYTES)]
    SourceTooLarge(usize),
    /// Blocks or brackets nest or add up beyond the limits.
    #[error("{0}")]
    TooNested(String),
    /// Partials lead back to themselves.
    #[error("partial \"{0}\" includes itself, directly or through others")]
    Recursive(String),
    /// The YAML front matter cannot be read.
    #[error("front matter: {0}")]
    FrontMatter(String),
    /// Examples from whatever version of a dataset is newest: what is published would not stay the same.
    #[error("`examples.dataset` names no version of \"{0}\"")]
    Unpinned(String),
    /// A schema in the front matter is neither Picoschema nor JSON Schema.
    #[error("{0}")]
    Schema(String),
    /// The Handlebars body cannot be read.
    #[error("{0}")]
    Syntax(String),
    /// A part of Handlebars that is left out on purpose.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A required variable was not given.
    #[error("variable \"{name}\" is missing{nearest}")]
    Missing {
        /// The variable.
        name: String,
        /// `; did you mean …`, or empty.
        nearest: String,
        /// Variables the prompt requires.
        required: Vec<String>,
    },
    /// A variable has the wrong type or value.
    #[error("variable \"{name}\" must be {expected}, not {found}")]
    Type {
        /// The variable.
        name: String,
        /// What the schema says.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The rendered text is larger than [`render::MAX_OUTPUT_BYTES`].
    #[error("the rendered text is larger than {max} bytes", max = render::MAX_OUTPUT_BYTES)]
    OutputTooLarge,
    /// The template loops more than [`render::MAX_STEPS`] times.
    #[error("rendering takes more than {max} steps", max = render::MAX_STEPS)]
    TooManySteps,
    /// Anything else while rendering.
    #[error("{0}")]
    Render(String),
}

impl Problem {
    fn at(self, prompt: &str, line: usize) -> PromptError {
        PromptError::At { prompt: prompt.into(), line, column: None, problem: self }
    }

    fn at_place(self, prompt: &str, place: template::tree::Place) -> PromptError {
        PromptError::At { prompt: prompt.into(), line: place.line, column: u32::try_from(place.column).ok(), problem: self }
    }

    fn of(self, prompt: &str) -> PromptError {
        PromptError::Whole { prompt: prompt.to_string(), problem: self }
    }
}

impl PromptError {
    /// What is wrong, where it is the prompt or what it was given.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            PromptError::At { problem, .. } | PromptError::Whole { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

impl Coded for PromptError {
    fn code(&self) -> Code {
        match self {
            PromptError::Name(_) => Code::INVALID_VALUE,
            PromptError::Unknown { .. } => Code::UNKNOWN_NAME,
            PromptError::Store(error) => error.code(),
            PromptError::At { problem, .. } | PromptError::Whole { problem, .. } => match problem {
                Problem::Missing { .. } => Code::MISSING_FIELD,
                Problem::Type { .. } | Problem::OutputTooLarge | Problem::TooManySteps | Problem::Render(_) => Code::INVALID_VALUE,
                _ => Code::INVALID_FILE,
            },
        }
    }

    fn param(&self) -> Option<String> {
        match self.problem() {
            Some(Problem::Missing { name, .. } | Problem::Type { name, .. }) => Some(name.clone()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match (self, self.problem()) {
            (PromptError::Name(_), _) => Some("use 1 to 64 lower-case letters, digits, dots, dashes and underscores".into()),
            (PromptError::Unknown { .. }, _) => {
                Some("`refit prompt list` shows what there is, `refit prompt publish FILE` adds a version".into())
            }
            (PromptError::Store(error), _) => error.hint(),
            (_, Some(Problem::Missing { required, .. })) => Some(format!("required: {}", required.join(", "))),
            (_, Some(Problem::Unpinned(dataset))) => {
                let name = dataset.split('@').next().unwrap_or_default();
                Some(format!("a published prompt stays as it is: write a version, such as {name}@1 (`refit data list` shows them)"))
            }
            (_, Some(Problem::Recursive(_))) => Some("use {{#each}} over a list instead of a partial that includes itself".into()),
            _ => None,
        }
    }
}
