//! Which languages the samples are written in, by trigrams (the crate `whatlang`). Short texts tell little: what is not sure counts as
//! unknown.

use serde::Serialize;
use std::collections::BTreeMap;
use whatlang::detect;

/// Texts with fewer letters are not judged.
const FEWEST_LETTERS: usize = 20;
/// Samples that are looked at: evenly over the dataset.
const MOST_SAMPLES: usize = 5_000;

/// The mix of languages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Languages {
    /// Samples looked at.
    pub looked_at: usize,
    /// Samples by language (ISO 639-3).
    pub counts: BTreeMap<String, usize>,
    /// Samples that are too short, or in no language for sure.
    pub unknown: usize,
}

/// The languages of texts.
pub fn of(texts: &[String]) -> Languages {
    let mut mix = Languages::default();
    for text in texts.iter().step_by(texts.len().div_ceil(MOST_SAMPLES).max(1)) {
        mix.looked_at += 1;
        let is_long = text.chars().filter(|c| c.is_alphabetic()).nth(FEWEST_LETTERS - 1).is_some();
        match detect(text).filter(|found| is_long && found.is_reliable()) {
            Some(found) => *mix.counts.entry(found.lang().code().to_string()).or_default() += 1,
            None => mix.unknown += 1,
        }
    }
    mix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart_and_short_texts_are_not_guessed() {
        let texts = [
            "Where is the parcel that I ordered two weeks ago, and who can tell me when it will arrive?",
            "Wo ist das Paket, das ich vor zwei Wochen bestellt habe, und wer kann mir sagen, wann es ankommt?",
            "Où est le colis que j'ai commandé il y a deux semaines, et qui peut me dire quand il arrivera ?",
            "ok",
        ];
        let mix = of(&texts.map(String::from));
        assert_eq!(mix.counts, BTreeMap::from([("deu".into(), 1), ("eng".into(), 1), ("fra".into(), 1)]));
        assert_eq!((mix.looked_at, mix.unknown), (4, 1));
    }
}
