//! A row that is trained on proves nothing when it is measured on: the splits must not share one.

use crate::datasets::Dataset;
use crate::datasets::similar::normalise;
use crate::tuning::TuningError;
use crate::types::Failure;
use std::collections::HashMap;

/// The split that is learned.
const TRAIN: &str = "train";

/// Refuses a dataset in which what is asked in the train split is asked in another one as well, but for case, punctuation and spaces.
///
/// # Errors
/// [`TuningError::Example`] naming both samples.
pub(super) fn check(dataset: &Dataset) -> Result<(), Failure> {
    let mut learned: HashMap<String, &str> = HashMap::new();
    for sample in dataset.part(Some(TRAIN))? {
        learned.insert(normalise(&sample.text()), &sample.id);
    }
    for split in dataset.split_names().filter(|split| *split != TRAIN) {
        for sample in dataset.part(Some(split))? {
            if let Some(twin) = learned.get(&normalise(&sample.text())) {
                let problem =
                    format!("it is in the {split} split and asks what sample {twin} of the train split asks: it would prove nothing");
                return Err(TuningError::Example { sample: sample.id.clone(), problem }.into());
            }
        }
    }
    Ok(())
}
