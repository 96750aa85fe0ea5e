//! What is different between two versions: samples by their names, and content that only got another name. Of each sample two numbers
//! are in memory.

use super::{DatasetError, Datasets, Sample};
use crate::store::datasets::DatasetVersion;
use crate::types::Digest;
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Samples of each kind that are shown.
pub const SHOWN: usize = 10;

/// What is different.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// The one.
    pub from: DatasetVersion,
    /// The other.
    pub to: DatasetVersion,
    /// Samples whose name and content are new.
    pub added: usize,
    /// Samples whose name and content are gone.
    pub removed: usize,
    /// Samples with another content under the same name.
    pub changed: usize,
    /// Samples with the same content under another name.
    pub renamed: usize,
    /// Samples that are the same, name and content.
    pub same: usize,
    /// Some of each.
    pub examples: Examples,
}

/// Some of what is different.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Examples {
    /// Of those that are new.
    pub added: Vec<Sample>,
    /// Of those that are gone.
    pub removed: Vec<Sample>,
    /// Of those that changed: before and after.
    pub changed: Vec<[Sample; 2]>,
}

impl Datasets {
    /// Compares two versions.
    ///
    /// # Errors
    /// As [`Datasets::get`] and [`Datasets::stream`].
    pub fn diff(&self, from: &str, to: &str) -> Result<Difference, DatasetError> {
        let (from, to) = (self.get(from)?, self.get(to)?);
        let mut before: HashMap<u128, u128> = HashMap::new();
        for sample in self.stream(&from)? {
            let sample = sample?;
            before.insert(name(&sample), sample.content().prefix());
        }
        let old: HashSet<u128> = before.values().copied().collect();
        let mut found = Difference { from, to, added: 0, removed: 0, changed: 0, renamed: 0, same: 0, examples: Examples::default() };
        let (mut changed, mut new) = (HashMap::new(), HashSet::new());
        for sample in self.stream(&found.to)? {
            let sample = sample?;
            let content = sample.content().prefix();
            match before.remove(&name(&sample)) {
                Some(known) if known == content => found.same += 1,
                Some(_) => {
                    found.changed += 1;
                    if changed.len() < SHOWN {
                        changed.insert(name(&sample), sample);
                    }
                }
                None if old.contains(&content) => found.renamed += 1,
                None => {
                    found.added += 1;
                    keep(&mut found.examples.added, sample);
                }
            }
            new.insert(content);
        }
        for sample in self.stream(&found.from)? {
            let sample = sample?;
            if let Some(after) = changed.remove(&name(&sample)) {
                found.examples.changed.push([sample, after]);
            } else if before.contains_key(&name(&sample)) && !new.contains(&sample.content().prefix()) {
                found.removed += 1;
                keep(&mut found.examples.removed, sample);
            }
        }
        Ok(found)
    }
}

fn name(sample: &Sample) -> u128 {
    Digest::of(&sample.id).prefix()
}

fn keep(examples: &mut Vec<Sample>, sample: Sample) {
    if examples.len() < SHOWN {
        examples.push(sample);
    }
}
