//! Whether a file can be trained on: JSON lines in one of the shapes that fine-tuning takes, every record with an answer.

use super::DatasetError;
use super::formats::{self, Place};
use super::shapes::{self, Draft, Shape};
use super::source::Source;
use std::path::Path;

/// Shapes that fine-tuning takes.
const SHAPES: [&str; 3] = ["openai-chat", "prompt-completion", "dpo"];

/// Reads a file as something to train on; how many records it has. `name` is what its owner calls it.
///
/// # Errors
/// As [`each`].
pub fn check(path: &Path, name: &str) -> Result<u64, DatasetError> {
    each(path, name, &mut |_, _, _| Ok(()))
}

/// Gives every record with its place and the name of its shape; how many there are. What `take` says is wrong is told with the place.
///
/// # Errors
/// [`DatasetError::Broken`] for the first record that is none, [`DatasetError::Empty`], [`DatasetError::Argument`] when it is compressed, or
/// when it cannot be read.
pub fn each(path: &Path, name: &str, take: &mut dyn FnMut(Place, &str, Draft) -> Result<(), String>) -> Result<u64, DatasetError> {
    let failed = |cause| DatasetError::Read { file: name.to_string(), cause };
    let source = Source::open(path, name.to_string(), None).map_err(failed)?;
    // A few bytes may unpack to more than can be read in a request's time.
    if source.is_compressed().map_err(failed)? {
        return Err(DatasetError::Argument(format!("{name} is compressed; files for training are taken as plain JSON lines")));
    }
    let (mut shape, mut count): (Option<&dyn Shape>, u64) = (None, 0);
    formats::of(name, Some("jsonl"))?.read(source, &mut |record| {
        let place = record.place;
        let broken = |problem| DatasetError::Broken { file: name.to_string(), place, problem };
        let fields = record.fields.map_err(broken)?;
        let shape = match shape {
            Some(shape) => shape,
            None => *shape.insert(shapes::of(&fields).ok().filter(|shape| SHAPES.contains(&shape.name())).ok_or_else(|| {
                let expected = "messages, prompt and completion, or input with preferred_output and non_preferred_output";
                broken(format!("expected an object with {expected}"))
            })?),
        };
        let draft = shape.read(fields).map_err(broken)?;
        if draft.target.is_null() {
            return Err(broken("the last message is not the assistant's: there is nothing to learn".into()));
        }
        count += 1;
        take(place, shape.name(), draft).map_err(broken)
    })?;
    if count == 0 { Err(DatasetError::Empty(name.to_string())) } else { Ok(count) }
}
