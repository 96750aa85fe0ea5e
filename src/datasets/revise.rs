//! Versions that are made of others: samples as they come, with where they come from.

use super::check::fix::Fix;
use super::import::Partial;
use super::library::{Assignment, Dataset, Datasets, json};
use super::manifest::Lineage;
use super::split::NAMES;
use super::{DatasetError, Sample};
use crate::store::StoreError;
use crate::store::datasets::{self as rows, DatasetVersion};
use crate::types::ids;
use serde_json::json;
use std::collections::HashSet;
use std::io::{BufWriter, Write};

impl Datasets {
    /// Stores samples as the next version of a dataset; content that is there already keeps its version. The second value says whether
    /// it is new.
    ///
    /// # Errors
    /// [`DatasetError::Name`], [`DatasetError::Empty`], or what the iterator says; nothing is stored then.
    pub fn store(
        &self,
        name: &str,
        samples: impl IntoIterator<Item = Result<Sample, DatasetError>>,
        lineage: &Lineage,
    ) -> Result<(DatasetVersion, bool), DatasetError> {
        if !ids::is_slug(name) {
            return Err(DatasetError::Name(name.to_string()));
        }
        let (partial, file) = Partial::create(&self.store.blobs.incoming())?;
        let failed = |source| StoreError::Io { path: partial.path.clone(), source };
        let (mut writer, mut count) = (BufWriter::new(file), 0);
        for sample in samples {
            writeln!(writer, "{}", sample?.line()).map_err(failed)?;
            count += 1;
        }
        writer.flush().map_err(failed)?;
        if count == 0 {
            return Err(DatasetError::Empty(name.to_string()));
        }
        let digest = self.store.blobs.adopt(&partial.path)?;
        Ok(rows::insert(self.store.db.as_ref(), name, digest, count, &json(lineage))?)
    }

    /// Splits a version as the one that it was made of; samples that are new in it stand in train.
    ///
    /// # Errors
    /// As [`Datasets::assignment`].
    pub fn split_as_before(&self, row: &mut DatasetVersion, parent: &DatasetVersion, names: HashSet<String>) -> Result<(), DatasetError> {
        let (splits, mut assignment) = self.assignment(parent)?;
        if splits.is_none() {
            return Ok(());
        }
        let known: HashSet<&String> = assignment.values().flatten().collect();
        let mut new: Vec<String> = names.iter().filter(|name| !known.contains(name)).cloned().collect();
        new.sort_unstable();
        assignment.entry(NAMES[0].into()).or_default().extend(new);
        self.give_splits(row, &assignment)
    }

    /// A version without what a fix takes away, split as before.
    ///
    /// # Errors
    /// As [`Datasets::store`].
    pub fn without(&self, dataset: &Dataset, fix: &Fix) -> Result<DatasetVersion, DatasetError> {
        let gone: HashSet<&str> = fix.removed.iter().map(|(id, _)| id.as_str()).collect();
        let lineage = Lineage {
            kind: "fix".into(),
            source: "samples that repeat another one are gone".into(),
            parents: vec![dataset.row.digest],
            detail: json!({"removed": fix.removed.len(), "leaks": fix.leaks}),
            ..Lineage::default()
        };
        let rest = dataset.samples.iter().filter(|sample| !gone.contains(sample.id.as_str()));
        let (mut row, is_new) = self.store(&dataset.row.dataset, rest.map(|sample| Ok(sample.clone())), &lineage)?;
        if dataset.splits.is_some() && is_new {
            let left = |ids: &Vec<String>| ids.iter().filter(|id| !gone.contains(id.as_str())).cloned().collect();
            let assignment: Assignment = dataset.assignment.iter().map(|(split, ids)| (split.clone(), left(ids))).collect();
            self.give_splits(&mut row, &assignment)?;
        }
        Ok(row)
    }
}
