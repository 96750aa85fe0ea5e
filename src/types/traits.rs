//! Small traits that lower rooms need from higher ones; `app` injects the implementations.

use super::Failure;
use futures_util::future::BoxFuture;

/// Counts the tokens a model would see. Implemented by the engine's tokenizer.
pub trait CountTokens: Send + Sync {
    /// Number of tokens of `text`, without special tokens around it.
    fn count(&self, text: &str) -> usize;
}

/// Makes vectors of texts that lie near each other where the texts mean the same.
pub trait Embed: Send + Sync {
    /// One vector a text, in their order, by `provider/model` or a route.
    fn embed<'a>(&'a self, model: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>>;
}

/// Vectors of texts, and what they cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Vectors {
    /// One a text, in their order.
    pub vectors: Vec<Vec<f32>>,
    /// Micro-dollars; none where nobody knows.
    pub cost_micro_usd: Option<i64>,
}

/// Progress of long work, shown as a bar on a terminal and stored for jobs. All methods may be called often; implementations throttle.
pub trait Progress: Send + Sync {
    /// `done` of `total` units are finished; `note` is a short status such as `loss 0.412 · 512 tok/s`.
    fn update(&self, done: u64, total: u64, note: &str);
}

/// Progress that nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _done: u64, _total: u64, _note: &str) {}
}
