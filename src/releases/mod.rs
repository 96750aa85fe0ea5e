//! Releases: the immutable unit that serves traffic, the gate it must pass, and the routes it moves along.
//!
//! Changes are handed, as statements with their audit entry, to a [`Commit`] that applies both in one transaction. Rooms of one rank do
//! not import each other, so the caller (`cli`, `jobs`, `gateway`) passes `access::audit`'s.

pub mod conditions;
pub mod create;
pub mod gate;
pub mod manifest;
pub mod route;

pub use conditions::{Condition, Measure, Verdict};
pub use gate::Gate;
pub use manifest::Manifest;

pub use crate::store::{Change, Commit};

use crate::store::StoreError;
use crate::types::{Code, Coded, Digest};

/// What can go wrong with releases and routes.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The manifest is not a usable one.
    #[error("the manifest is wrong: {message}")]
    Manifest {
        /// Field at fault.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A name, stage, weight or gate that cannot be used.
    #[error("{message}")]
    Invalid {
        /// Argument at fault.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The gate did not let the release pass.
    #[error("the gate of route \"{route}\" refused {release}: {}", reasons.join("; "))]
    Refused {
        /// Route.
        route: String,
        /// Release.
        release: Digest,
        /// Suite that proves releases on this route.
        suite: String,
        /// One reason per unmet condition.
        reasons: Vec<String>,
    },
    /// The stage does not hold what the caller expected, or moved meanwhile.
    #[error("{stage} of route \"{route}\" holds {found}, not {expected}")]
    Moved {
        /// Route.
        route: String,
        /// Stage.
        stage: String,
        /// What is there.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// There is no earlier release to go back to.
    #[error("route \"{route}\" has no earlier live release to go back to")]
    NoEarlier {
        /// Route.
        route: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Coded for ReleaseError {
    fn code(&self) -> Code {
        match self {
            ReleaseError::Manifest { .. } => Code::INVALID_REQUEST,
            ReleaseError::Invalid { .. } => Code::INVALID_VALUE,
            ReleaseError::Refused { .. } => Code::GATE_REFUSED,
            ReleaseError::Moved { .. } | ReleaseError::NoEarlier { .. } => Code::CONFLICT,
            ReleaseError::Store(error) => error.code(),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            ReleaseError::Manifest { field, .. } | ReleaseError::Invalid { field, .. } => Some((*field).to_string()),
            ReleaseError::Store(error) => error.param(),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ReleaseError::Refused { suite, .. } => {
                Some(format!("a finished run of suite \"{suite}\" that measured exactly this digest must meet every condition"))
            }
            ReleaseError::Moved { .. } => Some("look with: refit route show NAME; then decide again".into()),
            ReleaseError::Store(error) => error.hint(),
            _ => None,
        }
    }
}
