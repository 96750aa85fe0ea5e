//! A row that is trained on proves nothing when it is measured on: the splits must not share one.

use crate::datasets::sample::text_of;
use crate::datasets::similar::letters;
use crate::datasets::{Dataset, Sample};
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
        learned.extend(question(sample).map(|question| (question, sample.id.as_str())));
    }
    for split in dataset.split_names().filter(|split| *split != TRAIN) {
        for sample in dataset.part(Some(split))? {
            if let Some(twin) = question(sample).and_then(|question| learned.get(&question).copied()) {
                let problem =
                    format!("it is in the {split} split and asks what sample {twin} of the train split asks: it would prove nothing");
                return Err(TuningError::Example { sample: sample.id.clone(), problem }.into());
            }
        }
    }
    Ok(())
}

/// What is asked and what it is asked in, as texts are compared that say the same: signs and numbers count. None where nothing is asked in
/// letters, numbers or signs.
fn question(sample: &Sample) -> Option<String> {
    let words = |text: &str| letters(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let asked = words(&sample.asked());
    let around = sample.context().into_iter().map(|value| words(&text_of(value)));
    (!asked.is_empty()).then(|| std::iter::once(asked).chain(around).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(input: &Value) -> Option<String> {
        let sample = json!({"id": "a", "input": input, "target": "t", "metadata": {}});
        question(&serde_json::from_value(sample).expect("a sample"))
    }

    #[test]
    fn questions_are_the_same_but_for_case_punctuation_and_spaces() {
        let asked = |text: &str| json!({"text": text});
        for (a, b) in [("Fine?", "  FINE "), ("Is it  open, now?", "is it open now")] {
            assert_eq!(of(&asked(a)), of(&asked(b)));
        }
        for (a, b) in [("12 + 3", "12 - 3"), ("C++", "C#"), ("👍", "👎"), ("1.5", "15")] {
            assert_ne!(of(&asked(a)), of(&asked(b)), "{a} is not {b}");
        }
        assert_ne!(of(&json!({"age": 30})), of(&json!({"age": 55})));
        assert_ne!(of(&json!({"smokes": true})), of(&json!({"smokes": false})));
        assert_eq!(of(&asked("?")), None);
    }

    #[test]
    fn the_same_word_in_another_conversation_is_another_question() {
        let talk = |said: &str| json!({"messages": [{"role": "assistant", "content": said}, {"role": "user", "content": "Yes"}]});
        assert_ne!(of(&talk("Shall I cancel?")), of(&talk("Shall I refund?")));
        assert_eq!(of(&talk("Shall I cancel?")), of(&talk("shall I cancel")));
    }
}
