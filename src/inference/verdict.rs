//! What a failure means for the call: whether asking again may help, where, and whose fault it was. And the failures that are told
//! when no target could be asked.

use crate::types::{Code, Coded, Failure};

/// Where a call that failed may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Nowhere: the answer would be the same.
    Never,
    /// At another target alone.
    Elsewhere,
    /// At another target, and after a while at the same.
    Anywhere,
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) again: Again,
    /// The target's fault, which counts for its breaker.
    pub(super) blames_target: bool,
}

/// Reads a failure of a call.
pub(super) fn of(failure: &Failure) -> Verdict {
    let (again, blames_target) = match failure.code() {
        Code::UPSTREAM | Code::UPSTREAM_UNREACHABLE | Code::UPSTREAM_TIMEOUT | Code::UPSTREAM_OVERLOADED => (Again::Anywhere, true),
        // It answers; it has too much to do.
        Code::RATE_LIMIT | Code::OVERLOADED | Code::UNAVAILABLE => (Again::Anywhere, false),
        Code::QUOTA => (Again::Elsewhere, true),
        // The model is gone, the key is missing, or a feature is: another target may have it.
        Code::MODEL_NOT_FOUND | Code::UNSUPPORTED => (Again::Elsewhere, false),
        _ => (Again::Never, false),
    };
    Verdict { again, blames_target }
}

/// Why nobody was asked, or not for long enough.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Every breaker is open.
    #[error("{name}: no target is asked for now, because the calls of late failed")]
    Resting {
        /// The name that was called.
        name: String,
        /// Seconds until the first of them is tried again.
        retry_after_s: u64,
    },
    /// Every target said `Retry-After`.
    #[error("{name}: every target asks to be left alone for {retry_after_s} s")]
    Quiet {
        /// The name that was called.
        name: String,
        /// Seconds until the first of them may be asked.
        retry_after_s: u64,
    },
    /// Every target has as much to do as it may, and the queue is full or too slow.
    #[error("{name}: too many calls are under way or waiting")]
    Full {
        /// The name that was called.
        name: String,
    },
    /// A target took longer than the configuration gives it.
    #[error("{target}: no {what} within {limit_ms} ms")]
    TooSlow {
        /// The target.
        target: String,
        /// `first byte`, `whole reply`.
        what: &'static str,
        /// The limit.
        limit_ms: u128,
    },
    /// The time of the request was over before anybody could be asked.
    #[error("{name}: the time for the request was over before a target could be asked")]
    OutOfTime {
        /// The name that was called.
        name: String,
    },
    /// A name stands for two things.
    #[error("\"{name}\" is two things: the route [routes.{name}] of the configuration, and a gated route of the database")]
    TwoMeanings {
        /// The name.
        name: String,
    },
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Refusal::Resting { .. } => Code::UNAVAILABLE,
            Refusal::Quiet { .. } => Code::RATE_LIMIT,
            Refusal::Full { .. } => Code::OVERLOADED,
            Refusal::TooSlow { .. } | Refusal::OutOfTime { .. } => Code::UPSTREAM_TIMEOUT,
            Refusal::TwoMeanings { .. } => Code::CONFLICT,
        }
    }

    fn param(&self) -> Option<String> {
        matches!(self, Refusal::TwoMeanings { .. }).then(|| "model".to_string())
    }

    fn hint(&self) -> Option<String> {
        match self {
            Refusal::TwoMeanings { .. } => {
                Some("rename the one in refit.toml; the gated route can be a target of it, under its own name".to_string())
            }
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Refusal::Resting { retry_after_s, .. } | Refusal::Quiet { retry_after_s, .. } => Some(*retry_after_s),
            Refusal::Full { .. } => Some(1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_did_wrong_is_neither_repeated_nor_blamed_on_a_target() {
        let read = |code| of(&Failure::new(code, "x"));
        for code in [Code::INVALID_REQUEST, Code::CONTEXT_LENGTH, Code::CONTENT_FILTER, Code::TOO_LARGE, Code::CANCELLED, Code::INTERNAL] {
            assert_eq!(read(code), Verdict { again: Again::Never, blames_target: false }, "{}", code.name);
        }
        assert_eq!(read(Code::RATE_LIMIT), Verdict { again: Again::Anywhere, blames_target: false });
        assert_eq!(read(Code::QUOTA), Verdict { again: Again::Elsewhere, blames_target: true });
        assert_eq!(read(Code::UPSTREAM_TIMEOUT), Verdict { again: Again::Anywhere, blames_target: true });
    }
}
