//! The error-code table: one row per code, with its HTTP status and its OpenAI error type. Rooms define their own `thiserror`
//! enums and implement [`Coded`]; whatever leaves a room becomes a [`Failure`]. Status codes are emitted only from here.

use super::told::Told;
use serde_json::{Value, json};
use std::fmt;

/// A machine-readable error code. The wire name is stable: clients match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// Wire name, the `code` of the error body.
    pub name: &'static str,
    /// HTTP status that the gateway answers with.
    pub status: u16,
    /// OpenAI error type, the `type` of the error body.
    pub kind: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $ident:ident = $name:literal, $status:literal, $kind:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $ident: Code = Code { name: $name, status: $status, kind: $kind };)*
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$ident),*];
        }
    };
}

codes! {
    /// The request body or an argument is not what the endpoint takes.
    INVALID_REQUEST = "invalid_request", 400, "invalid_request_error";
    /// A field holds a value outside its range or of the wrong type.
    INVALID_VALUE = "invalid_value", 400, "invalid_request_error";
    /// A required field or template variable is missing.
    MISSING_FIELD = "missing_required_parameter", 400, "invalid_request_error";
    /// The prompt and the requested completion do not fit the model's context.
    CONTEXT_LENGTH = "context_length_exceeded", 400, "invalid_request_error";
    /// The provider refused the content (its filter, moderation).
    CONTENT_FILTER = "content_filter", 400, "invalid_request_error";
    /// A feature the chosen model or provider does not have.
    UNSUPPORTED = "unsupported", 400, "invalid_request_error";
    /// No API key was sent.
    MISSING_KEY = "missing_api_key", 401, "authentication_error";
    /// The API key is unknown or revoked.
    INVALID_KEY = "invalid_api_key", 401, "authentication_error";
    /// The key may not do this.
    FORBIDDEN = "permission_denied", 403, "permission_error";
    /// No route.
    NOT_FOUND = "not_found", 404, "invalid_request_error";
    /// The method is not offered on this path.
    METHOD_NOT_ALLOWED = "method_not_allowed", 405, "invalid_request_error";
    /// Unknown model, route or adapter.
    MODEL_NOT_FOUND = "model_not_found", 404, "invalid_request_error";
    /// A named thing (prompt, dataset, suite, run, job, release) does not exist.
    UNKNOWN_NAME = "unknown_name", 404, "invalid_request_error";
    /// The thing exists already, or changed meanwhile.
    CONFLICT = "conflict", 409, "conflict_error";
    /// A gate refused a promotion, or the route has no proven live release.
    GATE_REFUSED = "gate_refused", 409, "gate_error";
    /// The body is larger than the server takes.
    TOO_LARGE = "request_too_large", 413, "invalid_request_error";
    /// Too many requests; `Retry-After` says when.
    RATE_LIMIT = "rate_limit_exceeded", 429, "rate_limit_error";
    /// The server's account at the provider has nothing left.
    QUOTA = "insufficient_quota", 429, "insufficient_quota";
    /// The budget of the key or of its project has too little left.
    BUDGET = "budget_exceeded", 429, "insufficient_quota";
    /// A budget stands over a model whose price is not known.
    PRICE_UNKNOWN = "price_unknown", 403, "permission_error";
    /// A queue is full, the engine's or a target's; `Retry-After` says when.
    OVERLOADED = "overloaded", 429, "rate_limit_error";
    /// The client went away or the job was cancelled.
    CANCELLED = "cancelled", 499, "cancelled_error";
    /// A file could not be read, parsed or verified (a broken JSONL line, a truncated GGUF).
    INVALID_FILE = "invalid_file", 400, "invalid_request_error";
    /// The configuration is wrong.
    INVALID_CONFIG = "invalid_config", 400, "invalid_request_error";
    /// A stored thing failed its checksum.
    CORRUPT = "corrupt_data", 500, "server_error";
    /// Something failed inside Refit.
    INTERNAL = "internal_error", 500, "server_error";
    /// The store or the file system failed.
    STORAGE = "storage_error", 500, "server_error";
    /// The upstream provider answered with an error.
    UPSTREAM = "upstream_error", 502, "upstream_error";
    /// The model's reply does not fit the format that was asked for.
    INVALID_OUTPUT = "invalid_output", 502, "upstream_error";
    /// The upstream provider could not be reached.
    UPSTREAM_UNREACHABLE = "upstream_unreachable", 502, "upstream_error";
    /// The upstream provider says that it has too much to do.
    UPSTREAM_OVERLOADED = "upstream_overloaded", 503, "upstream_error";
    /// Shutting down, the model is still loading, or every target is left alone after its failures.
    UNAVAILABLE = "unavailable", 503, "server_error";
    /// The upstream provider did not answer in time.
    UPSTREAM_TIMEOUT = "upstream_timeout", 504, "upstream_error";
}

/// What each room's error enum implements: a code from the table, the field at fault and the way out.
pub trait Coded: std::error::Error + Send + Sync + 'static {
    /// Row of the error-code table.
    fn code(&self) -> Code;
    /// Field, key or argument at fault, as the caller named it.
    fn param(&self) -> Option<String> {
        None
    }
    /// What to do about it, printed by the CLI and added to the message over HTTP.
    fn hint(&self) -> Option<String> {
        None
    }
    /// Seconds after which a retry makes sense (`Retry-After`).
    fn retry_after_s(&self) -> Option<u64> {
        None
    }
    /// What is known about the call that failed.
    fn about(&self) -> Option<&Told> {
        None
    }
}

/// An error on its way out of a room: any [`Coded`] error, boxed.
pub struct Failure(Box<dyn Coded>);

impl Failure {
    /// A failure without an enum of its own, for the edges (CLI, handlers).
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure(Box::new(Plain { code, message: message.into(), param: None, hint: None }))
    }

    /// As [`Failure::new`], naming the field at fault.
    pub fn on(code: Code, param: impl Into<String>, message: impl Into<String>) -> Self {
        Failure(Box::new(Plain { code, message: message.into(), param: Some(param.into()), hint: None }))
    }

    /// The same failure with a hint put in place of its own.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Failure(Box::new(Plain { code: self.code(), message: self.to_string(), param: self.param(), hint: Some(hint.into()) }))
    }

    /// Row of the error-code table.
    pub fn code(&self) -> Code {
        self.0.code()
    }

    /// Field at fault.
    pub fn param(&self) -> Option<String> {
        self.0.param()
    }

    /// Way out.
    pub fn hint(&self) -> Option<String> {
        self.0.hint()
    }

    /// Seconds until a retry makes sense.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.0.retry_after_s()
    }

    /// What is known about the call that failed; none where no call was made.
    pub fn about(&self) -> Option<&Told> {
        self.0.about()
    }

    /// The same failure, of a call about which this is known.
    pub fn of_call(self, told: Told) -> Self {
        Failure(Box::new(OfCall { failure: self, told }))
    }

    /// The same failure, of the call that another one is of.
    pub fn of_call_of(self, other: &Failure) -> Self {
        match other.about() {
            Some(told) => self.of_call(told.clone()),
            None => self,
        }
    }

    /// Message and way out in one text, for callers over HTTP.
    pub fn told(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self} ({hint})"),
            None => self.to_string(),
        }
    }

    /// The OpenAI error body: `{"error":{"message","type","param","code"}}`.
    pub fn to_json(&self) -> Value {
        let code = self.code();
        json!({"error": {"message": self.told(), "type": code.kind, "param": self.param(), "code": code.name}})
    }
}

impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(Box::new(error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.code().name)
    }
}

/// A failure with what is known about its call.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
struct OfCall {
    failure: Failure,
    told: Told,
}

impl Coded for OfCall {
    fn code(&self) -> Code {
        self.failure.code()
    }
    fn param(&self) -> Option<String> {
        self.failure.param()
    }
    fn hint(&self) -> Option<String> {
        self.failure.hint()
    }
    fn retry_after_s(&self) -> Option<u64> {
        self.failure.retry_after_s()
    }
    fn about(&self) -> Option<&Told> {
        Some(&self.told)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Plain {
    code: Code,
    message: String,
    param: Option<String>,
    hint: Option<String>,
}

impl Coded for Plain {
    fn code(&self) -> Code {
        self.code
    }
    fn param(&self) -> Option<String> {
        self.param.clone()
    }
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// `; did you mean "x"?` for the nearest of the known names, or an empty string when none is near.
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let best = known.into_iter().map(|name| (strsim::jaro_winkler(given, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, name)) if score > 0.75 => format!("; did you mean \"{name}\"?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_names_are_unique_and_statuses_are_errors() {
        let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| (400..600).contains(&code.status)));
    }

    #[test]
    fn nearest_name_is_offered_only_when_near() {
        assert_eq!(did_you_mean("smollm2-135m", ["smollm2-135m-instruct", "x"]), "; did you mean \"smollm2-135m-instruct\"?");
        assert_eq!(did_you_mean("zzz", ["smollm2-135m-instruct"]), "");
    }
}
