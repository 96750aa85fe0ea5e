//! Models that are made here: a folder that was written beside the store becomes a stored model.

use super::ModelError;
use super::folder::{Folder, Part, describe};
use crate::store::models::ModelRecord;
use crate::store::{Store, models as rows};
use crate::types::time::now_ms;
use std::path::Path;

/// Stores the named files of a folder as a model; the files are moved into the store. Where a model has that name by now, a number is put
/// behind it: a model that somebody calls never becomes another one. `origin` is what it was made from, `licence` that of its base.
///
/// # Errors
/// [`ModelError::File`] naming what cannot be read; what the store says.
pub fn keep(
    store: &Store,
    name: &str,
    (folder, files): (&Path, &[String]),
    (origin, licence): (&str, &str),
) -> Result<ModelRecord, ModelError> {
    let mut parts = Vec::new();
    let architecture = describe(&folder.join("config.json"))?.architecture;
    for file in files {
        let path = folder.join(file);
        let failed = |source| ModelError::File { path: path.clone(), source };
        let size_bytes = std::fs::metadata(&path).map_err(failed)?.len();
        let digest = store.blobs.adopt(&path)?;
        parts.push(Part { name: file.clone(), digest, size_bytes });
    }
    let list = Folder::new(parts);
    store.blobs.put(&list.bytes())?;
    let mut record = ModelRecord {
        name: name.into(),
        digest: list.digest(),
        size_bytes: list.size_bytes(),
        architecture,
        licence: licence.into(),
        source: origin.into(),
        added_at: now_ms(),
    };
    let mut number = 1;
    while !rows::add(store.db.as_ref(), &record)? {
        number += 1;
        record.name = format!("{name}-{number}");
    }
    Ok(record)
}
