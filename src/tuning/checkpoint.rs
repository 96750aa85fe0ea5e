//! Checkpoints: adapter, optimiser state and position, written beside their place and renamed, so that one exists whole or not at all.
//! A run that was killed continues from the newest one with the identical curve.

use super::TuningError;
use super::floats::{self, Floats};
use super::objective::Metrics;
use super::optimizer::AdamW;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Checkpoints that are kept.
const KEPT: usize = 2;
/// Written last of all: a checkpoint that has it is whole.
const POSITION: &str = "position.json";
/// What directories are called while a checkpoint is written, with the number of the process, and while one is removed.
const WRITING: &str = "writing-";
const REMOVING: &str = "removing-";

/// Where a training stands: enough, with the recipe and the data, to go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: usize,
    /// Digest of recipe and examples; a checkpoint of another training is not resumed.
    pub training: String,
    /// Tokens that passed through the model.
    pub trained_tokens: u64,
    /// Training loss of every step so far.
    pub losses: Vec<f32>,
    /// What was told beside the loss of every step, where the objective tells something.
    #[serde(default)]
    pub metrics: Vec<Metrics>,
    /// (step, loss) of every validation so far.
    pub validations: Vec<(usize, f32)>,
    /// What was told beside each of them.
    #[serde(default)]
    pub validation_metrics: Vec<Metrics>,
    /// Lowest validation loss so far.
    pub best: Option<f32>,
}

impl Position {
    /// What was told beside the lowest validation loss, or beside the last loss where there was no validation.
    pub fn told(&self) -> Metrics {
        let lowest = self.validations.iter().position(|(_, loss)| Some(*loss) == self.best);
        let beside = lowest.and_then(|at| self.validation_metrics.get(at)).or(self.metrics.last());
        beside.cloned().unwrap_or_default()
    }
}

/// A checkpoint on disk.
pub struct Checkpoint {
    /// Position.
    pub position: Position,
    /// Optimiser state.
    pub optimizer: AdamW,
    /// Configuration of what is trained, as it is stored.
    pub config: Vec<u8>,
    /// Its weights.
    pub weights: Vec<u8>,
    /// Weights at the lowest validation loss, when there was one.
    pub best: Option<Vec<u8>>,
}

impl Checkpoint {
    /// Writes `checkpoint-<step>` into a directory and removes older ones, and those of other trainings. One of this step and this
    /// training that is there already stays: it says the same.
    ///
    /// # Errors
    /// [`TuningError::Checkpoint`] when the disk is full or not writable; what was there before stays, and nothing beside it.
    pub fn write(
        directory: &Path,
        position: &Position,
        optimizer: &AdamW,
        files: (&[u8], &[u8]),
        best: Option<&[u8]>,
    ) -> Result<(), TuningError> {
        let place = directory.join(format!("checkpoint-{:012}", position.step));
        if position_of(&place).is_ok_and(|there| there.is_some_and(|there| there.training == position.training)) {
            return Ok(());
        }
        // Of this process alone: a worker that lost its lease may still be writing its last one.
        let beside = directory.join(format!("{WRITING}{}", std::process::id()));
        let written = write_files((&place, &beside), position, optimizer, files, best);
        if written.is_err() {
            // A disk that is full must not stay full.
            let _ = fs::remove_dir_all(&beside);
            return written;
        }
        let is_own = |place: &PathBuf| position_of(place).map(|there| there.is_some_and(|there| there.training == position.training));
        // Those of another training would be newer for ever if it had come further.
        let (own, others): (Vec<_>, Vec<_>) = list(directory).into_iter().rev().partition(|place| is_own(place).unwrap_or(true));
        own.into_iter().skip(KEPT).chain(others).for_each(|old| discard(&old));
        Ok(())
    }

    /// The newest checkpoint of this training, if there is one.
    ///
    /// # Errors
    /// [`TuningError::Checkpoint`] when it is there but cannot be read.
    pub fn newest(directory: &Path, training: &str) -> Result<Option<Self>, TuningError> {
        let mut newest = None;
        for place in list(directory).into_iter().rev() {
            let failed = |problem| TuningError::Checkpoint { path: place.clone(), problem };
            if let Some(position) = position_of(&place).map_err(failed)?.filter(|position| position.training == training) {
                newest = Some((place, position));
                break;
            }
        }
        let Some((place, position)) = newest else { return Ok(None) };
        let failed = |problem: String| TuningError::Checkpoint { path: place.clone(), problem };
        let read = |name: &str| fs::read(place.join(name)).map_err(|error| failed(format!("{name}: {error}")));
        let optimizer = read_moments(&read("optimizer.safetensors")?, position.step).map_err(failed)?;
        let best = fs::read(place.join("best.safetensors")).ok();
        let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
        Ok(Some(Checkpoint { position, optimizer, config, weights, best }))
    }
}

/// Writes a checkpoint beside its place and puts it there.
fn write_files(
    (place, beside): (&Path, &Path),
    position: &Position,
    optimizer: &AdamW,
    (config, weights): (&[u8], &[u8]),
    best: Option<&[u8]>,
) -> Result<(), TuningError> {
    let unwritten = |problem| TuningError::Checkpoint { path: place.to_path_buf(), problem };
    let failed = |error: std::io::Error| unwritten(error.to_string());
    let _ = fs::remove_dir_all(beside);
    fs::create_dir_all(beside).map_err(failed)?;
    let write = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let mut file = fs::File::create(beside.join(name))?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write("adapter_config.json", config).map_err(failed)?;
    write("adapter_model.safetensors", weights).map_err(failed)?;
    floats::write(moments(optimizer), None, &beside.join("optimizer.safetensors")).map_err(unwritten)?;
    if let Some(best) = best {
        write("best.safetensors", best).map_err(failed)?;
    }
    let position = serde_json::to_vec(position).expect("numbers and texts: serialising cannot fail");
    write(POSITION, &position).map_err(failed)?;
    discard(place);
    fs::rename(beside, place).map_err(failed)
}

/// What a checkpoint says of itself; none where it is not whole, as one that was being removed when its process was killed.
fn position_of(place: &Path) -> Result<Option<Position>, String> {
    match fs::read(place.join(POSITION)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("{POSITION}: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{POSITION}: {error}")),
    }
}

/// Removes a checkpoint so that no part of it is ever taken for one.
fn discard(place: &Path) {
    let Some((directory, name)) = place.parent().zip(place.file_name()) else { return };
    let aside = directory.join(format!("{REMOVING}{}", name.to_string_lossy()));
    let _ = fs::remove_dir_all(&aside);
    if fs::rename(place, &aside).is_ok() {
        let _ = fs::remove_dir_all(aside);
    }
}

/// Removes what processes that were killed left behind: checkpoints half written or half removed.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(WRITING) || name.starts_with(REMOVING)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Checkpoint directories, oldest first.
fn list(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("checkpoint-")))
        .collect();
    found.sort();
    found
}

/// AdamW's moments by name, one vector a variable.
fn moments(optimizer: &AdamW) -> impl Iterator<Item = (String, Floats<'_>)> {
    let halves = [("first", &optimizer.first), ("second", &optimizer.second)];
    halves
        .into_iter()
        .flat_map(|(half, all)| all.iter().enumerate().map(move |(i, values)| (format!("{half}.{i:04}"), Floats::from(values.as_slice()))))
}

fn read_moments(bytes: &[u8], steps: usize) -> Result<AdamW, String> {
    let tensors = safetensors::SafeTensors::deserialize(bytes).map_err(|error| format!("optimizer.safetensors: {error}"))?;
    let half = |name: &str| -> Vec<Vec<f32>> {
        let mut named: Vec<_> = tensors.tensors().into_iter().filter(|(key, _)| key.starts_with(name)).collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        named.into_iter().map(|(_, view)| floats(view.data())).collect()
    };
    Ok(AdamW { first: half("first."), second: half("second."), steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_another_training_are_neither_resumed_nor_in_the_way() {
        let place = tempfile::tempdir().expect("a directory");
        let write = |training: &str, step| {
            let position = Position { step, training: training.into(), ..Position::default() };
            Checkpoint::write(place.path(), &position, &AdamW::new(&[]), (b"{}", b"weights"), None).expect("written");
        };
        let newest = |training| Checkpoint::newest(place.path(), training).expect("read").map(|found| found.position.step);
        write("before", 40);
        write("before", 50);
        assert_eq!((newest("now"), newest("before")), (None, Some(50)));
        write("now", 10);
        assert_eq!((newest("now"), newest("before")), (Some(10), None));
        write("now", 20);
        write("now", 30);
        assert_eq!((newest("now"), list(place.path()).len()), (Some(30), KEPT));
    }
}
