//! What a request asked for besides an answer, as far as spans tell.

use crate::types::chat::ChatRequest;
use serde_json::Value;

/// Parameters of a request; none where they were not given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Params {
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) max_tokens: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) choices: Option<i64>,
    pub(super) stop: Vec<String>,
    /// `text` or `json`.
    pub(super) output: Option<&'static str>,
}

impl Params {
    /// The parameters of a chat request.
    pub fn of(request: &ChatRequest) -> Self {
        let number = |name: &str| request.extra.get(name).and_then(Value::as_f64);
        let format = request.extra.get("response_format").and_then(|format| format.get("type")?.as_str());
        Params {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: number("top_k"),
            frequency_penalty: number("frequency_penalty"),
            presence_penalty: number("presence_penalty"),
            max_tokens: request.token_limit().map(i64::from),
            seed: request.seed,
            choices: request.n.filter(|n| *n != 1).map(i64::from),
            stop: request.stop.as_ref().map(|stop| stop.texts()).unwrap_or_default(),
            output: format.map(|format| if format == "text" { "text" } else { "json" }),
        }
    }
}
