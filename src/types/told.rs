//! What a caller is told about a call besides its reply: what answered, what it cost, how long Refit itself took. The gateway writes it
//! into the `x-refit-*` headers, of whole replies, of streams (what is known at the first byte) and of errors.

use super::Digest;
use bytes::Bytes;
use std::sync::Arc;

/// A target's names as headers carry them, written once for each road and shared by its calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `provider/model`.
    pub target: Bytes,
    /// The provider alone.
    pub provider: Bytes,
}

impl Named {
    /// The names of a provider's model.
    pub fn new(provider: &str, model: &str) -> Self {
        Named { target: format!("{provider}/{model}").into(), provider: provider.to_string().into() }
    }
}

/// A version of a prompt, as callers are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPrompt {
    /// Name in the library.
    pub name: String,
    /// Number of the version.
    pub version: i64,
    /// Digest of its source.
    pub digest: Digest,
}

/// What a call cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cost {
    /// Nobody knows yet, or nobody was asked: nothing is told.
    #[default]
    Open,
    /// The price of the model is not known.
    Unknown,
    /// So many micro-dollars.
    MicroUsd(i64),
}

impl Cost {
    /// Micro-dollars, where they are known.
    pub fn micro_usd(self) -> Option<i64> {
        match self {
            Cost::MicroUsd(micro) => Some(micro),
            Cost::Open | Cost::Unknown => None,
        }
    }
}

/// What is known about a call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// The target that answered, or was asked last.
    pub named: Option<Named>,
    /// Route that was called.
    pub route: Option<String>,
    /// Digest of the release that answered.
    pub release: Option<String>,
    /// Prompt that was rendered.
    pub prompt: Option<Arc<NamedPrompt>>,
    /// Calls made to providers; none where nobody was asked.
    pub attempts: Option<u64>,
    /// What the cache said; none where it is off.
    pub cache: Option<String>,
    /// `accepted` or `escalated`, where a cascade was called.
    pub cascade: Option<&'static str>,
    /// What it cost.
    pub cost: Cost,
    /// Milliseconds that Refit itself took so far.
    pub overhead_ms: Option<f64>,
    /// Milliseconds in queues; none where it did not wait in one.
    pub queue_ms: Option<f64>,
}
