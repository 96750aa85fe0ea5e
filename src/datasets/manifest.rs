//! What is recorded beside a dataset version: where it came from and how it was split.

use crate::types::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a version came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// `import`, `logs`, `filter`.
    pub kind: String,
    /// File name as given.
    pub source: String,
    /// Format that read it.
    pub format: String,
}

/// How a version was split, and where the assignment lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Seed.
    pub seed: u64,
    /// Target field that every split has in the same shares.
    pub by: Option<String>,
    /// Jaccard similarity from which samples are kept on one side.
    pub near: f64,
    /// Samples per split.
    pub sizes: BTreeMap<String, usize>,
    /// Blob: `{"train": [ids], …}`, in the order of the split.
    pub assignment: Digest,
}
