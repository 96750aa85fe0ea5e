//! What is recorded beside a dataset version: where it came from and how it was split.

use super::split::Method;
use crate::types::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Where a version came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// `import`, `fix`, `curated`, ….
    pub kind: String,
    /// File names as given, or what was done.
    pub source: String,
    /// Format that read it.
    pub format: String,
    /// Shape of its records; none in rows from before shapes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shape: String,
    /// Versions that it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<Digest>,
    /// Counts and choices.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// How a version was split, and where the assignment lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// How samples were told apart.
    #[serde(default)]
    pub method: Method,
    /// Seed.
    pub seed: u64,
    /// Target field that every split has in the same shares.
    pub by: Option<String>,
    /// Field whose values stand on one side each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Field that tells old from new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Jaccard similarity from which samples are kept on one side.
    pub near: f64,
    /// Samples per split.
    pub sizes: BTreeMap<String, usize>,
    /// Blob: `{"train": [ids], …}`, in the order of the split.
    pub assignment: Digest,
}
