//! The stored datasets: found by their references, read as a stream or as a whole, split.

use super::manifest::SplitManifest;
use super::split::{self, Plan};
use super::{DatasetError, Sample};
use crate::store::datasets::{self as rows, DatasetVersion};
use crate::store::{Store, StoreError};
use crate::types::Digest;
use crate::types::digest::Hashing;
use crate::types::error::did_you_mean;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// Sample ids by split, in the order of the split.
pub type Assignment = BTreeMap<String, Vec<String>>;

/// The stored datasets.
#[derive(Clone)]
pub struct Datasets {
    pub(super) store: Store,
}

/// A version with its samples.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The stored row.
    pub row: DatasetVersion,
    /// How it was split, when it was.
    pub splits: Option<SplitManifest>,
    /// Sample ids per split.
    pub assignment: Assignment,
    /// All samples, in file order.
    pub samples: Vec<Sample>,
}

/// Whether a stored split may be put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Keep what is stored.
    No,
    /// Put the new one in its place.
    Yes,
}

impl Datasets {
    /// The datasets of a store.
    pub fn new(store: &Store) -> Self {
        Datasets { store: store.clone() }
    }

    /// The newest version of every dataset.
    ///
    /// # Errors
    /// [`DatasetError::Store`].
    pub fn list(&self) -> Result<Vec<DatasetVersion>, DatasetError> {
        Ok(rows::newest(self.store.db.as_ref())?)
    }

    /// Every version of a dataset, newest first.
    ///
    /// # Errors
    /// [`DatasetError::Unknown`] with the nearest name.
    pub fn history(&self, name: &str) -> Result<Vec<DatasetVersion>, DatasetError> {
        let found = rows::versions(self.store.db.as_ref(), name)?;
        if found.is_empty() { Err(self.unknown(name)?) } else { Ok(found) }
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
            None => Err(self.unknown(reference)?),
        }
    }

    /// The version of that content that is split so, whatever it is called; without one that is, the newest of that content.
    ///
    /// # Errors
    /// As [`Datasets::open`].
    pub fn open_split(&self, digest: &Digest, assignment: &Digest) -> Result<Dataset, DatasetError> {
        let rows = rows::all_by_digest(self.store.db.as_ref(), digest)?;
        let is_so = |row: &&DatasetVersion| row.splits["assignment"] == assignment.to_string().as_str();
        match rows.iter().find(is_so).or(rows.first()) {
            Some(row) => self.load(row.clone()),
            None => self.open(&digest.to_string()),
        }
    }

    fn unknown(&self, reference: &str) -> Result<DatasetError, DatasetError> {
        let known = self.list()?;
        let nearest = did_you_mean(reference, known.iter().map(|row| row.dataset.as_str()));
        Ok(DatasetError::Unknown { what: "dataset", name: reference.to_string(), nearest })
    }

    /// A version's samples, one after the other, in file order. Only one is in memory. That the stored bytes are the ones that the digest
    /// names is known at the end: the last item is an error where they are not.
    ///
    /// # Errors
    /// [`StoreError`] when the samples are not there.
    pub fn stream(&self, row: &DatasetVersion) -> Result<Samples, DatasetError> {
        let path = self.store.blobs.path(&row.digest);
        let file = File::open(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        Ok(Samples {
            reader: BufReader::with_capacity(1 << 18, file),
            line: Vec::new(),
            path,
            hashing: Some(Hashing::new()),
            digest: row.digest,
        })
    }

    /// A version with all its samples and its split.
    ///
    /// # Errors
    /// As [`Datasets::get`]; [`StoreError::Corrupt`] when the stored samples are damaged.
    pub fn open(&self, reference: &str) -> Result<Dataset, DatasetError> {
        self.load(self.get(reference)?)
    }

    /// All samples of a version, with its own split: another dataset may have the same content, split otherwise.
    ///
    /// # Errors
    /// As [`Datasets::open`].
    pub fn load(&self, row: DatasetVersion) -> Result<Dataset, DatasetError> {
        let samples = self.stream(&row)?.collect::<Result<Vec<_>, _>>()?;
        let (splits, assignment) = self.assignment(&row)?;
        Ok(Dataset { row, splits, assignment, samples })
    }

    /// How a version is split, and which samples stand where.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when what is stored is damaged.
    pub fn assignment(&self, row: &DatasetVersion) -> Result<(Option<SplitManifest>, Assignment), DatasetError> {
        let splits: Option<SplitManifest> = serde_json::from_value(row.splits.clone()).map_err(corrupt)?;
        let assignment = match &splits {
            Some(splits) => serde_json::from_slice(&self.store.blobs.get(&splits.assignment)?).map_err(corrupt)?,
            None => Assignment::new(),
        };
        Ok((splits, assignment))
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
                return Err(DatasetError::AlreadySplit { name: dataset.row.dataset, how: stored.method.told(stored.seed) });
            }
        }
        self.store.blobs.put(&bytes)?;
        let sizes = assignment.iter().map(|(name, ids)| (name.clone(), ids.len())).collect();
        let manifest = SplitManifest {
            method: plan.method(),
            seed: plan.seed,
            by: plan.by.clone(),
            group: plan.group.clone(),
            time: plan.time.clone(),
            near: plan.near,
            sizes,
            assignment: digest,
        };
        dataset.row.splits = json(&manifest);
        rows::set_splits(self.store.db.as_ref(), &dataset.row.dataset, dataset.row.version, &dataset.row.splits)?;
        (dataset.splits, dataset.assignment) = (Some(manifest), assignment);
        Ok(dataset)
    }
}

impl Dataset {
    /// The split of each sample that stands in one, by its id.
    pub fn sides(&self) -> HashMap<&str, &str> {
        self.assignment.iter().flat_map(|(split, ids)| ids.iter().map(move |id| (id.as_str(), split.as_str()))).collect()
    }

    /// Names of its splits.
    pub fn split_names(&self) -> impl Iterator<Item = &str> {
        self.assignment.keys().map(String::as_str)
    }

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

/// The samples of a stored version, one after the other.
pub struct Samples {
    reader: BufReader<File>,
    line: Vec<u8>,
    path: PathBuf,
    /// None when the end was reached.
    hashing: Option<Hashing>,
    digest: Digest,
}

impl Iterator for Samples {
    type Item = Result<Sample, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let hashing = self.hashing.as_mut()?;
        self.line.clear();
        match self.reader.read_until(b'\n', &mut self.line) {
            Err(source) => {
                self.hashing = None;
                Some(Err(StoreError::Io { path: self.path.clone(), source }.into()))
            }
            Ok(0) => {
                let found = self.hashing.take()?.digest();
                let damaged = || StoreError::Corrupt(format!("blob {} does not match its digest", self.digest));
                (found != self.digest).then(|| Err(damaged().into()))
            }
            Ok(_) => {
                hashing.add(&self.line);
                let read = serde_json::from_slice(&self.line).map_err(|error| corrupt(error).into());
                if read.is_err() {
                    self.hashing = None;
                }
                Some(read)
            }
        }
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("manifests are texts and numbers: serialising cannot fail")
}

pub(super) fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a stored dataset cannot be read: {error}"))
}
