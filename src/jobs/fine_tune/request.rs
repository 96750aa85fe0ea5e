//! What a body of `POST /v1/fine_tuning/jobs` asks for. Fields that cannot be honoured are refused by their name.

use super::MAX_SUFFIX;
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use crate::types::{Code, Failure};
use serde_json::{Map, Value};

/// Methods that OpenAI's API names.
const METHODS: [&str; 3] = ["supervised", "dpo", "reinforcement"];
/// Hyperparameters, and whether they are whole numbers.
const HYPERPARAMETERS: [(&str, bool); 4] = [("n_epochs", true), ("batch_size", true), ("learning_rate_multiplier", false), ("beta", false)];

/// A number, or the word that leaves it to the trainer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// `"auto"`, or nothing.
    Auto,
    /// This one.
    Is(f64),
}

impl Number {
    /// The number, or what stands for "auto".
    pub fn or(self, auto: f64) -> f64 {
        match self {
            Number::Auto => auto,
            Number::Is(number) => number,
        }
    }
}

/// Epochs, batch and learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyperparameters {
    /// Passes over the training file.
    pub n_epochs: Number,
    /// Examples of a step.
    pub batch_size: Number,
    /// Factor on the learning rate that the trainer takes by itself.
    pub learning_rate_multiplier: Number,
    /// Weight of the reference model in DPO.
    pub beta: Number,
}

/// A fine-tune to make.
#[derive(Debug, Clone)]
pub struct NewFineTune {
    /// As the caller wrote it.
    pub model: String,
    /// File to learn from.
    pub training_file: String,
    /// File to measure on.
    pub validation_file: Option<String>,
    /// Part of the name of the model that comes out.
    pub suffix: Option<String>,
    /// Seed.
    pub seed: Option<u64>,
    /// `supervised`, `dpo`, `reinforcement`.
    pub method: String,
    /// Epochs, batch and learning rate.
    pub hyperparameters: Hyperparameters,
    /// Where in the body these stand.
    pub place: String,
    /// One of them that nobody here knows; a provider may.
    unknown: Option<String>,
    /// The caller's labels: an object or null.
    pub metadata: Value,
    /// The whole body, for providers.
    pub body: Map<String, Value>,
}

impl NewFineTune {
    /// Reads a body. Metadata was checked before.
    ///
    /// # Errors
    /// [`Code::MISSING_FIELD`] and [`Code::INVALID_VALUE`] naming the field.
    pub fn read(body: Map<String, Value>) -> Result<Self, Failure> {
        let needed = |name: &str| text(&body, name)?.ok_or_else(|| Failure::on(Code::MISSING_FIELD, name, format!("{name} is missing")));
        let (model, training_file) = (needed("model")?, needed("training_file")?);
        let suffix = text(&body, "suffix")?;
        if suffix.as_ref().is_some_and(|suffix| suffix.chars().count() > MAX_SUFFIX) {
            return Err(wrong("suffix", format!("expected at most {MAX_SUFFIX} characters")));
        }
        let seed = match body.get("seed") {
            None | Some(Value::Null) => None,
            Some(seed) => Some(
                seed.as_u64()
                    .filter(|seed| *seed <= 2_147_483_647)
                    .ok_or_else(|| wrong("seed", "expected a whole number from 0 to 2147483647"))?,
            ),
        };
        let (method, place, given) = method(&body)?;
        let hyperparameters = hyperparameters(&place, given)?;
        let is_known = |name: &&String| HYPERPARAMETERS.iter().any(|(known, _)| known == name);
        let unknown = given.and_then(Value::as_object).and_then(|fields| fields.keys().find(|name| !is_known(name)).cloned());
        Ok(NewFineTune {
            model,
            training_file,
            validation_file: text(&body, "validation_file")?,
            suffix,
            seed,
            method,
            hyperparameters,
            place,
            unknown,
            metadata: body.get("metadata").cloned().unwrap_or_default(),
            body,
        })
    }

    /// Refuses what nobody can do here.
    ///
    /// # Errors
    /// [`Code::UNSUPPORTED`] and [`Code::INVALID_VALUE`] naming the field.
    pub fn check_local(&self) -> Result<(), Failure> {
        let unsupported = |field: &str, message: &str| Err(Failure::on(Code::UNSUPPORTED, field, format!("{field}: {message}")));
        if self.body.get("integrations").is_some_and(|value| value.as_array().is_none_or(|all| !all.is_empty()) && !value.is_null()) {
            return unsupported("integrations", "nothing is sent to other services; the job's events and its result file have the numbers");
        }
        if !matches!(self.method.as_str(), "supervised" | "dpo") {
            let message = "local models are not trained by graders; \"supervised\" and \"dpo\" are supported";
            return unsupported("method.type", message);
        }
        if let Some(name) = &self.unknown {
            let known: Vec<&str> = HYPERPARAMETERS.iter().map(|(name, _)| *name).collect();
            let nearest = did_you_mean(name, known.iter().copied());
            let field = format!("{}.{name}", self.place);
            return Err(wrong(&field, format!("there is no such hyperparameter{nearest}; known are {}", known.join(", "))));
        }
        match (self.method.as_str(), self.hyperparameters.beta) {
            ("supervised", Number::Is(_)) => {
                let field = format!("{}.beta", self.place);
                Err(wrong(&field, "it belongs to the method \"dpo\""))
            }
            _ => Ok(()),
        }
    }
}

/// The method's name, where its hyperparameters stand, and those.
fn method(body: &Map<String, Value>) -> Result<(String, String, Option<&Value>), Failure> {
    // The older place, which clients still write.
    let older = || ("supervised".to_string(), "hyperparameters".to_string(), body.get("hyperparameters"));
    let method = match body.get("method") {
        None | Some(Value::Null) => return Ok(older()),
        Some(Value::Object(method)) => method,
        Some(_) => return Err(wrong("method", "expected an object")),
    };
    let kind = method.get("type").and_then(Value::as_str).unwrap_or_default();
    if !METHODS.contains(&kind) {
        return Err(wrong("method.type", format!("expected one of {}", METHODS.join(", "))));
    }
    let given = method.get(kind).and_then(|own| own.get("hyperparameters"));
    match given {
        Some(_) => Ok((kind.to_string(), format!("method.{kind}.hyperparameters"), given)),
        None => Ok((kind.to_string(), older().1, older().2)),
    }
}

fn hyperparameters(place: &str, given: Option<&Value>) -> Result<Hyperparameters, Failure> {
    let none = Map::new();
    let fields = match given {
        None | Some(Value::Null) => &none,
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(wrong(place, "expected an object")),
    };
    let number = |at: usize| -> Result<Number, Failure> {
        let (name, is_whole) = HYPERPARAMETERS[at];
        match fields.get(name) {
            None | Some(Value::Null) => Ok(Number::Auto),
            Some(Value::String(word)) if word == "auto" => Ok(Number::Auto),
            Some(value) => {
                let found = value.as_f64().filter(|n| n.is_finite() && *n > 0.0 && (!is_whole || n.fract() == 0.0));
                let expected =
                    if is_whole { "expected \"auto\" or a whole number above 0" } else { "expected \"auto\" or a number above 0" };
                found.map(Number::Is).ok_or_else(|| wrong(&format!("{place}.{name}"), expected))
            }
        }
    };
    Ok(Hyperparameters { n_epochs: number(0)?, batch_size: number(1)?, learning_rate_multiplier: number(2)?, beta: number(3)? })
}

fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(wrong(name, "expected a text")),
    }
}

fn wrong(field: &str, message: impl std::fmt::Display) -> Failure {
    Failure::on(Code::INVALID_VALUE, field, format!("{field}: {message}"))
}

/// A suffix as a part of a name: letters in lower case, what no name may hold as a hyphen.
pub(super) fn slug(suffix: &str) -> Result<String, Failure> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = suffix.trim().chars().map(|c| if usable(c) { c.to_ascii_lowercase() } else { '-' }).collect();
    let name = name.trim_matches(['-', '.', '_']).replace("..", ".");
    // A number may come behind it.
    let name: String = name.chars().take(MAX_SUFFIX - 5).collect();
    if is_slug(&name) { Ok(name) } else { Err(wrong("suffix", "expected at least one letter or digit")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(more: Value) -> Result<NewFineTune, Failure> {
        let mut body = json!({"model": "local/m", "training_file": "file-1"});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        NewFineTune::read(body.as_object().expect("an object").clone())
    }

    #[test]
    fn both_places_of_hyperparameters_are_read() {
        let older = read(json!({"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}})).expect("read");
        let newer = read(json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}})).expect("read");
        assert_eq!((older.hyperparameters, older.method.as_str()), (newer.hyperparameters, "supervised"));
        assert_eq!((newer.hyperparameters.n_epochs, newer.hyperparameters.batch_size.or(8.0)), (Number::Is(2.0), 8.0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |more: Value| read(more).expect_err("refused").param().unwrap_or_default();
        assert_eq!(field(json!({"model": null})), "model");
        assert_eq!(field(json!({"training_file": 7})), "training_file");
        assert_eq!(field(json!({"seed": -1})), "seed");
        assert_eq!(field(json!({"suffix": "x".repeat(65)})), "suffix");
        assert_eq!(field(json!({"method": {"type": "magic"}})), "method.type");
        assert_eq!(field(json!({"hyperparameters": {"n_epochs": 0}})), "hyperparameters.n_epochs");
        let nested = json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "x"}}}});
        assert_eq!(field(nested), "method.dpo.hyperparameters.beta");
        let local = |more: Value| read(more).expect("read").check_local().expect_err("refused").param().unwrap_or_default();
        assert_eq!(local(json!({"integrations": [{"type": "wandb"}]})), "integrations");
        assert_eq!(local(json!({"method": {"type": "reinforcement"}})), "method.type");
        assert_eq!(local(json!({"hyperparameters": {"beta": 0.1}})), "hyperparameters.beta");
        assert_eq!(local(json!({"hyperparameters": {"n_epoch": 3}})), "hyperparameters.n_epoch");
        assert!(read(json!({"integrations": [], "method": null})).expect("read").check_local().is_ok());
    }

    #[test]
    fn a_suffix_becomes_a_name() {
        for (suffix, name) in [("Support Intake!", "support-intake"), ("v1.2", "v1.2"), ("über", "ber"), ("a..b", "a.b")] {
            assert_eq!(slug(suffix).expect(suffix), name);
        }
        assert!(slug("!!!").is_err() && slug(" ").is_err());
    }
}
