//! `language`: the answer is in the language that it should be in, detected from its letters and their runs. Options: `is`, a code such as
//! `de` or `deu` or a list of which one is enough; or `same_as`, the JSON pointer of a part of the sample (`/input/message`) whose
//! language it should have. A text without a language (`42`) is in none. Texts of a few words are often taken for another language.

use super::case::text_of;
use super::{Case, Options, Pure, Scale, Scored, Scorer};
use crate::types::error::did_you_mean;
use whatlang::{Lang, detect_lang};

struct Language {
    name: String,
    wanted: Wanted,
}

enum Wanted {
    Is(Vec<Lang>),
    SameAs(String),
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let wanted = match (options.texts("is")?, options.text("same_as")?) {
        (Some(codes), None) => Wanted::Is(codes.iter().map(|code| language(code)).collect::<Result<_, _>>()?),
        (None, Some(pointer)) if pointer.starts_with('/') => Wanted::SameAs(pointer),
        (None, Some(other)) => return Err(format!("same_as must be a pointer such as /input/message, not \"{other}\"")),
        _ => return Err("give one of is and same_as".into()),
    };
    options.finish()?;
    Ok(Box::new(Language { name, wanted }))
}

impl Pure for Language {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let wanted = match &self.wanted {
            Wanted::Is(languages) => languages.clone(),
            Wanted::SameAs(pointer) => {
                let part = case.part(pointer).ok_or_else(|| format!("the sample has no {pointer}"))?;
                vec![detect_lang(&text_of(part)).ok_or_else(|| format!("{pointer} is in no language that can be told"))?]
            }
        };
        let found = detect_lang(case.output());
        let shown = found.map_or("none", |language| language.code());
        Ok(Scored::from(found.is_some_and(|language| wanted.contains(&language))).because(shown))
    }
}

/// A language by its code of two letters (ISO 639-1) or three (ISO 639-3).
fn language(code: &str) -> Result<Lang, String> {
    let lower = code.to_lowercase();
    let long = TWO_LETTERS.iter().find(|(short, _)| *short == lower).map_or(lower.as_str(), |(_, long)| long);
    let known = || TWO_LETTERS.iter().map(|(short, _)| *short);
    let unknown = || {
        format!("no language \"{code}\" is known{} (languages: {})", did_you_mean(&lower, known()), known().collect::<Vec<_>>().join(", "))
    };
    Lang::from_code(long).ok_or_else(unknown)
}

/// Codes of two letters for the languages that can be told apart.
const TWO_LETTERS: &[(&str, &str)] = &[
    ("af", "afr"),
    ("am", "amh"),
    ("ar", "ara"),
    ("az", "aze"),
    ("be", "bel"),
    ("bg", "bul"),
    ("bn", "ben"),
    ("ca", "cat"),
    ("cs", "ces"),
    ("cy", "cym"),
    ("da", "dan"),
    ("de", "deu"),
    ("el", "ell"),
    ("en", "eng"),
    ("eo", "epo"),
    ("es", "spa"),
    ("et", "est"),
    ("fa", "pes"),
    ("fi", "fin"),
    ("fr", "fra"),
    ("gu", "guj"),
    ("he", "heb"),
    ("hi", "hin"),
    ("hr", "hrv"),
    ("hu", "hun"),
    ("hy", "hye"),
    ("id", "ind"),
    ("it", "ita"),
    ("ja", "jpn"),
    ("jv", "jav"),
    ("ka", "kat"),
    ("km", "khm"),
    ("kn", "kan"),
    ("ko", "kor"),
    ("la", "lat"),
    ("lt", "lit"),
    ("lv", "lav"),
    ("mk", "mkd"),
    ("ml", "mal"),
    ("mr", "mar"),
    ("my", "mya"),
    ("nb", "nob"),
    ("ne", "nep"),
    ("nl", "nld"),
    ("no", "nob"),
    ("or", "ori"),
    ("pa", "pan"),
    ("pl", "pol"),
    ("pt", "por"),
    ("ro", "ron"),
    ("ru", "rus"),
    ("si", "sin"),
    ("sk", "slk"),
    ("sl", "slv"),
    ("sn", "sna"),
    ("sr", "srp"),
    ("sv", "swe"),
    ("ta", "tam"),
    ("te", "tel"),
    ("th", "tha"),
    ("tk", "tuk"),
    ("tl", "tgl"),
    ("tr", "tur"),
    ("uk", "ukr"),
    ("ur", "urd"),
    ("uz", "uzb"),
    ("vi", "vie"),
    ("yi", "yid"),
    ("zh", "cmn"),
    ("zu", "zul"),
];

#[cfg(test)]
mod tests {
    use super::super::tests::{look, refused};
    use super::*;
    use serde_json::json;

    #[test]
    fn languages_are_told_apart() {
        let german = "Ihr Paket ist leider noch nicht angekommen, wir kümmern uns sofort darum.";
        let english = "Your parcel has not arrived yet, and we are looking into it at once.";
        let is = |code: &str, text: &str| look(&json!({"language": {"is": code}}), text, json!(null)).expect("a score").values[0];
        assert_eq!(
            [is("de", german), is("deu", german), is("DE", english), is("en", english)],
            [Some(1.0), Some(1.0), Some(0.0), Some(1.0)]
        );
        assert_eq!(is("ja", "荷物はまだ届いていません。"), Some(1.0));
        let none = look(&json!({"language": {"is": ["de", "en"]}}), "42", json!(null)).expect("a score");
        assert_eq!((none.values, none.explanation.as_deref()), (vec![Some(0.0)], Some("none")));
        let same = look(&json!({"language": {"same_as": "/target"}}), german, json!("Wir wissen nicht, wann das Paket ankommt."));
        assert_eq!(same.expect("a score").values, [Some(1.0)]);
    }

    #[test]
    fn every_code_of_two_letters_is_a_language() {
        for (short, long) in TWO_LETTERS {
            assert_eq!(language(short).map(|language| language.code()), Ok(*long));
        }
        assert!(refused(json!({"language": {"is": "klingon"}})).contains("no language \"klingon\""));
        assert!(refused(json!("language")).contains("give one of is and same_as"));
    }
}
