//! What the library refuses: a label that cannot move, a version that somebody else published meanwhile.

use super::PromptError;
use crate::store::StoreError;
use crate::store::prompts::PromptVersion;
use crate::types::time::rfc3339;
use crate::types::{Code, Coded};

/// Why the library was not changed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The prompt itself.
    #[error(transparent)]
    Prompt(Box<PromptError>),
    /// A label cannot be moved as asked.
    #[error("label \"{label}\" of prompt \"{prompt}\": {reason}")]
    Label {
        /// Name of the prompt.
        prompt: String,
        /// The label.
        label: String,
        /// Why not.
        reason: String,
    },
    /// Another version was published since the one that was edited.
    #[error("prompt \"{prompt}\" has a newer version than the one that was edited: {version}, by {author} at {published}{message}")]
    Edited {
        /// Name of the prompt.
        prompt: String,
        /// Number of the newest version.
        version: i64,
        /// Who published it.
        author: String,
        /// When.
        published: String,
        /// ` ("why")`, or empty.
        message: String,
    },
    /// The content is an older version's: a version does not become the newest again.
    #[error("prompt \"{prompt}\" has this content already, as version {version}, and the newest is {newest}; nothing was published")]
    Older {
        /// Name of the prompt.
        prompt: String,
        /// Version that has the content.
        version: i64,
        /// Number of the newest version.
        newest: i64,
    },
    /// The label is protected, and nothing proves the version.
    #[error("the label \"{label}\" is protected, and {prompt}@{version} may not have it: {}", reasons.join("; "))]
    Protected {
        /// Name of the prompt.
        prompt: String,
        /// Version that was to be promoted.
        version: i64,
        /// The label.
        label: String,
        /// What is missing.
        reasons: Vec<String>,
        /// What to do.
        way_out: String,
    },
}

impl LibraryError {
    /// A label that cannot be moved.
    pub fn label(prompt: &str, label: &str, reason: &str) -> Self {
        LibraryError::Label { prompt: prompt.to_string(), label: label.to_string(), reason: reason.to_string() }
    }

    /// A version that came in between.
    pub fn edited(newest: &PromptVersion) -> Self {
        let message = if newest.message.is_empty() { String::new() } else { format!(" (\"{}\")", newest.message) };
        LibraryError::Edited {
            prompt: newest.prompt.clone(),
            version: newest.version,
            author: newest.author.clone(),
            published: rfc3339(newest.created_at),
            message,
        }
    }
}

impl From<PromptError> for LibraryError {
    fn from(error: PromptError) -> Self {
        LibraryError::Prompt(Box::new(error))
    }
}

impl From<StoreError> for LibraryError {
    fn from(error: StoreError) -> Self {
        PromptError::from(error).into()
    }
}

impl Coded for LibraryError {
    fn code(&self) -> Code {
        match self {
            LibraryError::Prompt(error) => error.code(),
            LibraryError::Label { .. } | LibraryError::Edited { .. } | LibraryError::Older { .. } => Code::CONFLICT,
            LibraryError::Protected { .. } => Code::GATE_REFUSED,
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            LibraryError::Prompt(error) => error.param(),
            LibraryError::Edited { .. } => Some("parent".into()),
            LibraryError::Older { .. } => Some("source".into()),
            LibraryError::Label { .. } | LibraryError::Protected { .. } => Some("label".into()),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            LibraryError::Prompt(error) => error.hint(),
            LibraryError::Label { .. } => None,
            LibraryError::Edited { prompt, version, .. } => Some(format!(
                "look at it (`refit prompt show {prompt}@{version}`), bring your changes into it, and publish with it as the parent: \
                 `--parent {version}`, over HTTP \"parent\": {version}"
            )),
            LibraryError::Older { prompt, version, .. } => Some(format!(
                "to go back to it, point a label at it: `refit prompt promote {prompt}@{version} LABEL`; or publish it with a changed text, \
                 such as another description"
            )),
            LibraryError::Protected { way_out, .. } => Some(way_out.clone()),
        }
    }
}
