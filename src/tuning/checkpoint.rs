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
    /// Writes `checkpoint-<step>` into a directory and removes older ones.
    ///
    /// # Errors
    /// [`TuningError::Checkpoint`] when the disk is full or not writable; what was there before stays.
    pub fn write(
        directory: &Path,
        position: &Position,
        optimizer: &AdamW,
        (config, weights): (&[u8], &[u8]),
        best: Option<&[u8]>,
    ) -> Result<(), TuningError> {
        let place = directory.join(format!("checkpoint-{:012}", position.step));
        // Of this process alone: a worker that lost its lease may still be writing its last one.
        let beside = directory.join(format!("writing-{}", std::process::id()));
        let failed = |error: std::io::Error| TuningError::Checkpoint { path: place.clone(), problem: error.to_string() };
        let _ = fs::remove_dir_all(&beside);
        fs::create_dir_all(&beside).map_err(failed)?;
        let write = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
            let mut file = fs::File::create(beside.join(name))?;
            std::io::Write::write_all(&mut file, bytes)?;
            file.sync_all()
        };
        write("adapter_config.json", config).map_err(failed)?;
        write("adapter_model.safetensors", weights).map_err(failed)?;
        floats::write(moments(optimizer), &beside.join("optimizer.safetensors"))?;
        if let Some(best) = best {
            write("best.safetensors", best).map_err(failed)?;
        }
        let position = serde_json::to_vec(position).expect("numbers and texts: serialising cannot fail");
        write("position.json", &position).map_err(failed)?;
        let _ = fs::remove_dir_all(&place);
        fs::rename(&beside, &place).map_err(failed)?;
        for old in list(directory).into_iter().rev().skip(KEPT) {
            let _ = fs::remove_dir_all(old);
        }
        Ok(())
    }

    /// The newest checkpoint of this training, if there is one.
    ///
    /// # Errors
    /// [`TuningError::Checkpoint`] when it is there but cannot be read.
    pub fn newest(directory: &Path, training: &str) -> Result<Option<Self>, TuningError> {
        let Some(place) = list(directory).pop() else { return Ok(None) };
        let failed = |problem: String| TuningError::Checkpoint { path: place.clone(), problem };
        let read = |name: &str| fs::read(place.join(name)).map_err(|error| failed(format!("{name}: {error}")));
        let position: Position = serde_json::from_slice(&read("position.json")?).map_err(|error| failed(error.to_string()))?;
        if position.training != training {
            return Ok(None);
        }
        let optimizer = read_moments(&read("optimizer.safetensors")?, position.step).map_err(failed)?;
        let best = fs::read(place.join("best.safetensors")).ok();
        let (config, weights) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
        Ok(Some(Checkpoint { position, optimizer, config, weights, best }))
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
        .flat_map(|(half, all)| all.iter().enumerate().map(move |(i, values)| (format!("{half}.{i:04}"), Floats::vector(values))))
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
