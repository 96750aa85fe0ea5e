//! Import, list and open datasets. A file is read sample by sample into a blob of canonical lines; a broken line leaves nothing behind.

use super::manifest::{Lineage, SplitManifest};
use super::split::{self, Plan};
use super::{DatasetError, Sample, formats};
use crate::store::datasets::{self as rows, DatasetVersion};
use crate::store::{Store, StoreError};
use crate::types::error::did_you_mean;
use crate::types::{Digest, ids};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

/// The stored datasets.
#[derive(Clone)]
pub struct Datasets {
    store: Store,
}

/// A version with its samples.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The stored row.
    pub row: DatasetVersion,
    /// How it was split, when it was.
    pub splits: Option<SplitManifest>,
    /// Sample ids per split.
    pub assignment: BTreeMap<String, Vec<String>>,
    /// All samples, in file order.
    pub samples: Vec<Sample>,
}

impl Datasets {
    /// The datasets of a store.
    pub fn new(store: &Store) -> Self {
        Datasets { store: store.clone() }
    }

    /// Imports a file under a name; the format is the one named, or the one its ending means. The second value says whether the
    /// content is new.
    ///
    /// # Errors
    /// [`DatasetError`]; nothing is stored then.
    pub fn import(&self, name: &str, file: &Path, format: Option<&str>) -> Result<(DatasetVersion, bool), DatasetError> {
        if !ids::is_slug(name) {
            return Err(DatasetError::Name(name.to_string()));
        }
        let shown = file.display().to_string();
        let format = formats::of(&shown, format)?;
        let io = |cause| DatasetError::Read { file: shown.clone(), cause };
        let mut reader = BufReader::new(File::open(file).map_err(io)?);
        let partial = Partial::create(self.store.blobs.incoming())?;
        let mut writer = BufWriter::new(&partial.file);
        let (mut count, mut seen) = (0usize, HashMap::new());
        format.read(&shown, &mut reader, &mut |line, sample| {
            if let Some(first) = seen.insert(Digest::of(&sample.id), line) {
                let problem = format!("id \"{}\" stands in line {first} already", sample.id);
                return Err(DatasetError::Line { file: shown.clone(), line, problem });
            }
            count += 1;
            writeln!(writer, "{}", sample.line()).map_err(|source| StoreError::Io { path: partial.path.clone(), source }.into())
        })?;
        if count == 0 {
            return Err(DatasetError::Empty(shown));
        }
        writer.flush().map_err(|source| StoreError::Io { path: partial.path.clone(), source })?;
        drop(writer);
        let digest = self.store.blobs.adopt(&partial.path)?;
        let lineage = Lineage { kind: "import".into(), source: shown, format: format.name().into() };
        Ok(rows::insert(self.store.db.as_ref(), name, digest, count, &json(&lineage))?)
    }

    /// The newest version of every dataset.
    ///
    /// # Errors
    /// [`DatasetError::Store`].
    pub fn list(&self) -> Result<Vec<DatasetVersion>, DatasetError> {
        Ok(rows::newest(self.store.db.as_ref())?)
    }

    /// The version that a reference names: `name` (newest), `name@2`, `name@sha256:…`, `sha256:…`.
    ///
    /// # Errors
    /// [`DatasetError::Unknown`] with the nearest name.
    pub fn get(&self, reference: &str) -> Result<DatasetVersion, DatasetError> {
        let db = self.store.db.as_ref();
        let (name, selector) = match reference.split_once('@') {
            Some((name, selector)) => (Some(name), Some(selector)),
            None if reference.starts_with("sha256:") => (None, Some(reference)),
            None => (Some(reference), None),
        };
        let found = match (name, selector.map(|text| (text.parse::<Digest>(), text.parse::<i64>()))) {
            (name, Some((Ok(digest), _))) => rows::by_digest(db, name, &digest)?,
            (Some(name), Some((_, Ok(number)))) => rows::versions(db, name)?.into_iter().find(|row| row.version == number),
            (Some(name), None) => rows::versions(db, name)?.into_iter().next(),
            _ => None,
        };
        match found {
            Some(row) => Ok(row),
            None => {
                let known = self.list()?;
                let nearest = did_you_mean(reference, known.iter().map(|row| row.dataset.as_str()));
                Err(DatasetError::Unknown { what: "dataset", name: reference.to_string(), nearest })
            }
        }
    }

    /// A version with all its samples and its split.
    ///
    /// # Errors
    /// As [`Datasets::get`]; [`StoreError::Corrupt`] when the stored samples are damaged.
    pub fn open(&self, reference: &str) -> Result<Dataset, DatasetError> {
        let row = self.get(reference)?;
        let bytes = self.store.blobs.get(&row.digest)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let samples = lines.map(|line| serde_json::from_slice(line).map_err(corrupt)).collect::<Result<Vec<Sample>, _>>()?;
        let splits: Option<SplitManifest> = serde_json::from_value(row.splits.clone()).map_err(corrupt)?;
        let assignment = match &splits {
            Some(splits) => serde_json::from_slice(&self.store.blobs.get(&splits.assignment)?).map_err(corrupt)?,
            None => BTreeMap::new(),
        };
        Ok(Dataset { row, splits, assignment, samples })
    }

    /// Splits a dataset and stores the assignment. The same plan on the same content is the same split.
    ///
    /// # Errors
    /// [`DatasetError::AlreadySplit`] when another split is stored and `replace` is [`Replace::No`]; [`DatasetError::Plan`].
    pub fn split(&self, reference: &str, plan: &Plan, replace: Replace) -> Result<Dataset, DatasetError> {
        let mut dataset = self.open(reference)?;
        let assignment = split::assign(&dataset.samples, plan)?;
        let bytes = serde_json::to_vec(&assignment).expect("a map of texts serialises");
        let digest = Digest::of(&bytes);
        if let Some(stored) = &dataset.splits {
            if stored.assignment == digest {
                return Ok(dataset);
            }
            if replace == Replace::No {
                return Err(DatasetError::AlreadySplit { name: dataset.row.dataset, seed: stored.seed });
            }
        }
        self.store.blobs.put(&bytes)?;
        let sizes = assignment.iter().map(|(name, ids)| (name.clone(), ids.len())).collect();
        let manifest = SplitManifest { seed: plan.seed, by: plan.by.clone(), near: plan.near, sizes, assignment: digest };
        dataset.row.splits = json(&manifest);
        rows::set_splits(self.store.db.as_ref(), &dataset.row.dataset, dataset.row.version, &dataset.row.splits)?;
        (dataset.splits, dataset.assignment) = (Some(manifest), assignment);
        Ok(dataset)
    }
}

/// Whether a stored split may be put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Keep what is stored.
    No,
    /// Put the new one in its place.
    Yes,
}

impl Dataset {
    /// The samples of a split in its order, or all of them.
    ///
    /// # Errors
    /// [`DatasetError::NotSplit`] and [`DatasetError::Unknown`] for a split that is not there.
    pub fn part(&self, split: Option<&str>) -> Result<Vec<&Sample>, DatasetError> {
        let Some(split) = split else { return Ok(self.samples.iter().collect()) };
        if self.splits.is_none() {
            return Err(DatasetError::NotSplit(self.row.dataset.clone()));
        }
        let Some(ids) = self.assignment.get(split) else {
            let nearest = did_you_mean(split, self.assignment.keys().map(String::as_str));
            return Err(DatasetError::Unknown { what: "split", name: split.to_string(), nearest });
        };
        let by_id: HashMap<&str, &Sample> = self.samples.iter().map(|sample| (sample.id.as_str(), sample)).collect();
        Ok(ids.iter().filter_map(|id| by_id.get(id.as_str()).copied()).collect())
    }
}

/// A file that goes away unless it is adopted.
struct Partial {
    path: std::path::PathBuf,
    file: File,
}

impl Partial {
    fn create(directory: std::path::PathBuf) -> Result<Self, StoreError> {
        let path = directory.join(ids::new_id("import"));
        let file = File::create(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        Ok(Partial { path, file })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Adopted files are gone from here already.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("manifests are texts and numbers: serialising cannot fail")
}

fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a stored dataset cannot be read: {error}"))
}
