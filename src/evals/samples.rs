//! The samples of a run, in the order of its split. Only where each one lies in the stored file is kept in memory; a sample is read when
//! it is asked, so that a hundred thousand of them take no more room than their places.

use crate::datasets::{DatasetError, Sample, SplitManifest};
use crate::store::datasets::DatasetVersion;
use crate::store::{Store, StoreError};
use crate::types::error::did_you_mean;
use crate::types::{Digest, Failure};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Samples that can be read by their place in the split.
pub struct Samples {
    file: Mutex<File>,
    path: PathBuf,
    /// Where each sample's line begins, and its length.
    places: Vec<Place>,
}

/// Where a sample's line begins, and its length.
type Place = (u64, u32);

/// What of a sample is needed to find it.
#[derive(Deserialize)]
struct Named {
    id: String,
}

impl Samples {
    /// Finds the samples of a dataset version: those of a split in its order, or all of them in the order of the file; at most `limit`.
    ///
    /// # Errors
    /// [`DatasetError::NotSplit`] and [`DatasetError::Unknown`] for a split that is not there; [`StoreError::Corrupt`] when the stored
    /// samples are damaged.
    pub fn open(store: &Store, row: &DatasetVersion, split: Option<(&str, &Digest)>, limit: Option<usize>) -> Result<Self, Failure> {
        store.blobs.check(&row.digest)?;
        let path = store.blobs.path(&row.digest);
        let io = |source| StoreError::Io { path: path.clone(), source };
        let order = split.map(|(name, assignment)| order(store, name, assignment)).transpose()?;
        let file = File::open(&path).map_err(io)?;
        let limit = limit.unwrap_or(usize::MAX);
        let places = match order {
            None => all(&file, limit).map_err(io)?,
            Some(ids) => {
                let by_id = by_id(&file)?;
                ids.iter().filter_map(|id| by_id.get(id).copied()).take(limit).collect()
            }
        };
        Ok(Samples { file: Mutex::new(file), path, places })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The sample at a place of the split.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read.
    pub fn get(&self, position: usize) -> Result<Sample, StoreError> {
        let Some((offset, length)) = self.places.get(position).copied() else {
            return Err(StoreError::Corrupt(format!("the split has no sample {position}")));
        };
        let mut line = vec![0; length as usize];
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut line)).map_err(io)?;
        }
        serde_json::from_slice(&line).map_err(corrupt)
    }

    /// All samples, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sample, StoreError>> + '_ {
        (0..self.places.len()).map(|position| self.get(position))
    }
}

/// The assignment of a version's samples to splits, where it has one: a blob of `{"<split>": [ids]}`.
///
/// # Errors
/// [`DatasetError::NotSplit`] for a version without one.
pub fn assignment_of(row: &DatasetVersion) -> Result<Digest, DatasetError> {
    let splits: Option<SplitManifest> = serde_json::from_value(row.splits.clone()).map_err(corrupt)?;
    splits.map(|splits| splits.assignment).ok_or_else(|| DatasetError::NotSplit(row.dataset.clone()))
}

/// The ids of a split, in its order.
fn order(store: &Store, split: &str, assignment: &Digest) -> Result<Vec<String>, DatasetError> {
    let mut all: BTreeMap<String, Vec<String>> = serde_json::from_slice(&store.blobs.get(assignment)?).map_err(corrupt)?;
    all.remove(split).ok_or_else(|| {
        let nearest = did_you_mean(split, all.keys().map(String::as_str));
        DatasetError::Unknown { what: "split", name: split.to_string(), nearest }
    })
}

fn all(file: &File, limit: usize) -> std::io::Result<Vec<Place>> {
    let mut places = Vec::new();
    each_line(file, &mut |place, _| {
        places.push(place);
        places.len() < limit
    })?;
    places.truncate(limit);
    Ok(places)
}

fn by_id(file: &File) -> Result<HashMap<String, Place>, StoreError> {
    let (mut places, mut broken) = (HashMap::new(), None);
    let read = each_line(file, &mut |place, line| match serde_json::from_slice::<Named>(line) {
        Ok(named) => {
            places.insert(named.id, place);
            true
        }
        Err(error) => {
            broken = Some(error);
            false
        }
    });
    match (read, broken) {
        (Ok(()), None) => Ok(places),
        (_, Some(error)) => Err(corrupt(error)),
        (Err(error), None) => Err(StoreError::Corrupt(format!("a stored dataset cannot be read: {error}"))),
    }
}

/// Hands over every line that is not empty, with where it lies, until `take` has enough.
fn each_line(file: &File, take: &mut dyn FnMut(Place, &[u8]) -> bool) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut offset, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let length = u32::try_from(text.len()).map_err(|_| std::io::Error::other("a sample of more than 4 GB"))?;
        if length > 0 && !take((offset, length), text) {
            return Ok(());
        }
        offset += read as u64;
    }
}

fn corrupt(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a stored dataset cannot be read: {error}"))
}
