//! The manifest: everything that decides what a release answers, and nothing else. Its digest is the release's name.

use crate::types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Content of a release. Author, time, lineage and proofs are records elsewhere that name the digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `provider/model`, such as `local/smollm2-135m-instruct`.
    pub model: String,
    /// Digest of the model file for local models; `null` for hosted ones.
    pub model_digest: Option<Digest>,
    /// Digest of the adapter, when one is applied.
    pub adapter: Option<Digest>,
    /// The prompt, when requests are rendered through one.
    pub prompt: Option<PromptRef>,
    /// Decoding parameters (`temperature`, `max_tokens`, `top_p`, `seed`, `stop`), by their wire names.
    pub parameters: Map<String, Value>,
    /// Tools offered with each call.
    #[serde(default)]
    pub tools: Vec<Value>,
    /// `response_format`, when one is set.
    #[serde(default)]
    pub response_format: Option<Value>,
    /// Guardrails applied to input and output.
    #[serde(default)]
    pub guardrails: Vec<Value>,
}

/// A prompt by content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptRef {
    /// Name in the library.
    pub name: String,
    /// Digest of the version's source.
    pub digest: Digest,
}

impl Manifest {
    /// Whether a request passes through as it is: no prompt, no parameters, no tools, no format.
    pub fn adds_nothing(&self) -> bool {
        self.prompt.is_none() && self.parameters.is_empty() && self.tools.is_empty() && self.response_format.is_none()
    }

    /// The release digest: SHA-256 of the manifest's canonical JSON.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&serde_json::to_value(self).expect("a manifest is strings, maps and numbers: serialising cannot fail"))
    }
}
