//! `examples` of the front matter: which samples of a dataset a model is shown before the question. What is written is checked here, and
//! a sample becomes two messages here; the samples are found and chosen by `inference`, which may look into datasets.

use super::parse::Prompt;
use super::render::Input;
use super::{Problem, PromptError};
use crate::types::Digest;
use crate::types::chat::Message;
use crate::types::error::did_you_mean;
use serde_json::{Map, Value};

/// How many examples a prompt shows when it does not say.
pub const COUNT: usize = 4;
/// Most examples of a prompt.
pub const MAX_COUNT: usize = 64;
/// The split that samples are taken from when the prompt does not say.
pub const SPLIT: &str = "train";
/// The word for a dataset as a whole.
pub const WHOLE: &str = "all";
/// The model whose vectors say what is near, when the prompt does not say.
pub const MODEL: &str = "local/all-minilm-l6-v2";
const KEYS: &[&str] = &["dataset", "split", "count", "choose", "seed", "ids", "by", "model"];

/// Which samples are shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// `name@2`, `name@sha256:…`; `name`, the newest version, in a file that is not published.
    pub dataset: String,
    /// Split; none for the whole dataset.
    pub split: Option<String>,
    /// How many.
    pub count: usize,
    /// Which.
    pub choose: Choose,
}

/// How samples are chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Choose {
    /// The first of the split.
    First,
    /// These, by id.
    Ids(Vec<String>),
    /// Any, the same ones each time.
    Random {
        /// Another seed, other samples.
        seed: u64,
    },
    /// Those whose variable means nearly the same as the caller's.
    Nearest {
        /// The variable.
        by: String,
        /// `provider/model` that makes vectors.
        model: String,
    },
}

impl Examples {
    /// Whether the dataset is named with its version: what is published never shows other samples later.
    pub fn is_pinned(&self) -> bool {
        let selector = self.dataset.split_once('@').map_or(self.dataset.as_str(), |(_, selector)| selector);
        selector.parse::<Digest>().is_ok() || (self.dataset.contains('@') && selector.parse::<i64>().is_ok())
    }
}

/// Reads the value of `examples`; none where nothing is written.
///
/// # Errors
/// What is wrong, naming the field.
pub(super) fn read(value: Option<&Value>) -> Result<Option<Examples>, String> {
    let fields = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(fields)) => Fields(fields),
        Some(_) => return Err("`examples` must be a map, such as {dataset: intake@1, count: 3}".into()),
    };
    if let Some(unknown) = fields.0.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let nearest = did_you_mean(unknown, KEYS.iter().copied());
        return Err(format!("`examples.{unknown}` is not a key{nearest} (keys: {})", KEYS.join(", ")));
    }
    let dataset =
        fields.text("dataset")?.ok_or("`examples.dataset` is missing: the dataset that samples are taken from, such as intake@1")?;
    let split = fields.text("split")?.unwrap_or(SPLIT);
    let ids = fields.ids()?;
    let choose = fields.choose(ids)?;
    let count = match (&choose, fields.number("count")?) {
        (Choose::Ids(_), Some(_)) => return Err("`examples.count` says nothing beside `ids`: all of them are shown".into()),
        (Choose::Ids(ids), None) => ids.len(),
        (_, count) => count.map_or(COUNT, |count| usize::try_from(count).unwrap_or(usize::MAX)),
    };
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(format!("`examples.count` must be 1 to {MAX_COUNT}, not {count}"));
    }
    Ok(Some(Examples { dataset: dataset.into(), split: (split != WHOLE).then(|| split.into()), count, choose }))
}

/// The keys of `examples`.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text)),
            Some(_) => Err(format!("`examples.{key}` must be a text")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.0.get(key).map(|value| value.as_u64().ok_or(format!("`examples.{key}` must be a whole number from 0"))).transpose()
    }

    fn ids(&self) -> Result<Option<Vec<String>>, String> {
        let Some(value) = self.0.get("ids") else { return Ok(None) };
        let ids = value.as_array().and_then(|ids| ids.iter().map(|id| id.as_str().map(String::from)).collect::<Option<Vec<_>>>());
        let ids = ids.filter(|ids| !ids.is_empty()).ok_or("`examples.ids` must be a list of sample ids, as texts")?;
        Ok(Some(ids))
    }

    fn choose(&self, ids: Option<Vec<String>>) -> Result<Choose, String> {
        let word = self.text("choose")?.unwrap_or("fixed");
        let only = |key: &str, of: &str| match self.0.contains_key(key) && word != of {
            true => Err(format!("`examples.{key}` is for `choose: {of}`, and here is `choose: {word}`")),
            false => Ok(()),
        };
        [("ids", "fixed"), ("seed", "random"), ("by", "nearest"), ("model", "nearest")].iter().try_for_each(|(key, of)| only(key, of))?;
        match word {
            "fixed" => Ok(ids.map_or(Choose::First, Choose::Ids)),
            "random" => Ok(Choose::Random { seed: self.number("seed")?.unwrap_or(0) }),
            "nearest" => {
                let by = self.text("by")?.ok_or("`examples.by` is missing: the variable whose text is compared")?;
                let model = self.text("model")?.unwrap_or(MODEL);
                match model.split_once('/') {
                    Some((provider, name)) if !provider.is_empty() && !name.is_empty() => {}
                    _ => return Err(format!("`examples.model` must be provider/model, such as {MODEL}, not \"{model}\"")),
                }
                Ok(Choose::Nearest { by: by.into(), model: model.into() })
            }
            other => {
                let nearest = did_you_mean(other, ["fixed", "random", "nearest"]);
                Err(format!("`examples.choose` must be fixed, random or nearest, not \"{other}\"{nearest}"))
            }
        }
    }
}

impl Prompt {
    /// A sample as the model is shown it: the prompt's own last message of the user, filled in with the sample, and the answer.
    ///
    /// # Errors
    /// As [`Prompt::render`], for a sample that lacks a variable.
    pub fn example(&self, id: &str, input: &Map<String, Value>, target: &Value) -> Result<[Message; 2], PromptError> {
        let at_sample = |what: String| Problem::Render(format!("`examples`: sample {id}: {what}")).of(&self.name);
        let rendered = self.render(&Input::of(input)).map_err(|error| at_sample(error.to_string()))?;
        let question = rendered.messages.into_iter().rfind(|message| message.role == "user");
        let question = question.ok_or_else(|| at_sample("the template has no message of the user that could be shown".into()))?;
        let answer = target.as_str().map_or_else(|| target.to_string(), String::from);
        Ok([question, Message::text("assistant", answer)])
    }

    /// Whether two inputs ask the same, as far as the template reads them.
    pub fn asks_the_same(&self, a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
        !self.variables.is_empty() && self.variables.iter().all(|variable| a.get(&variable.name) == b.get(&variable.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(value: Value) -> String {
        read(Some(&value)).expect_err("refused")
    }

    #[test]
    fn what_is_written_is_read_and_slips_name_their_field() {
        let read = |value: Value| read(Some(&value)).expect("reads").expect("examples");
        let fixed = read(json!({"dataset": "d"}));
        assert_eq!((fixed.split.as_deref(), fixed.count, &fixed.choose), (Some("train"), COUNT, &Choose::First));
        assert_eq!(read(json!({"dataset": "d@1", "ids": ["a", "b"]})).count, 2);
        assert_eq!(read(json!({"dataset": "d@1", "choose": "random", "seed": 3, "split": "all"})).split, None);
        let nearest = read(json!({"dataset": "d@1", "choose": "nearest", "by": "m", "count": 64}));
        assert_eq!(nearest.choose, Choose::Nearest { by: "m".into(), model: MODEL.into() });
        for (value, part) in [
            (json!([]), "must be a map"),
            (json!({"count": 1}), "`examples.dataset` is missing"),
            (json!({"dataset": "d", "cuont": 1}), "`examples.cuont` is not a key; did you mean \"count\"?"),
            (json!({"dataset": "d", "count": 0}), "`examples.count` must be 1 to 64"),
            (json!({"dataset": "d", "count": "2"}), "`examples.count` must be a whole number"),
            (json!({"dataset": "d", "choose": "nearst", "by": "m"}), "`examples.by` is for `choose: nearest`"),
            (json!({"dataset": "d", "choose": "nearst"}), "did you mean \"nearest\"?"),
            (json!({"dataset": "d", "choose": "nearest"}), "`examples.by` is missing"),
            (json!({"dataset": "d", "choose": "nearest", "by": "m", "model": "x"}), "`examples.model` must be provider/model"),
            (json!({"dataset": "d", "seed": 1}), "`examples.seed` is for `choose: random`"),
            (json!({"dataset": "d", "ids": []}), "`examples.ids` must be a list"),
            (json!({"dataset": "d", "ids": ["a"], "count": 1}), "`examples.count` says nothing beside `ids`"),
        ] {
            assert!(problem(value.clone()).contains(part), "{value}: {}", problem(value.clone()));
        }
    }

    #[test]
    fn a_version_is_a_number_or_a_digest() {
        let digest = Digest::of("x").to_string();
        for (dataset, pinned) in [("d", false), ("d@1", true), ("d@latest", false), (digest.as_str(), true)] {
            let examples = read(Some(&json!({"dataset": dataset}))).expect("reads").expect("examples");
            assert_eq!(examples.is_pinned(), pinned, "{dataset}");
        }
    }
}
