//! `matrix:` of a suite: every prompt with every model, adapter and set of parameters, but for what is excluded. Targets get their names
//! from the parts that vary.

use super::suite::Target;
use super::variants::{free, slug, word};
use crate::types::error::did_you_mean;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Targets that a suite may have.
pub const MAX_TARGETS: usize = 100;
/// The word for no adapter.
const NONE: &str = "none";

/// A matrix, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Models, as `provider/model`.
    models: Vec<String>,
    /// Prompts, as a target names them.
    #[serde(default)]
    prompts: Vec<String>,
    /// Adapters of local models; `none` for the bare model.
    #[serde(default)]
    adapters: Vec<String>,
    /// Sets of decoding parameters.
    #[serde(default)]
    parameters: Vec<Map<String, Value>>,
    /// Combinations that are left out: those that have all of the parts that one of these names.
    #[serde(default)]
    exclude: Vec<Exclude>,
}

/// What is left out.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exclude {
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    adapter: Option<String>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

/// One combination.
struct Combination<'m> {
    prompt: Option<&'m String>,
    model: &'m String,
    adapter: Option<&'m String>,
    parameters: Option<&'m Map<String, Value>>,
}

impl Matrix {
    /// The targets of the matrix: prompts vary slowest, then models, adapters, parameters. `taken` are names of other targets.
    ///
    /// # Errors
    /// The word at fault and what is wrong: no models, too many combinations, an exclusion that names what is not there.
    pub(super) fn targets(&self, taken: &[Target]) -> Result<Vec<Target>, (String, String)> {
        let fault = |needle: &str, problem: String| Err((needle.to_string(), format!("matrix.{problem}")));
        if self.models.is_empty() {
            return fault("models", "models is empty; name at least one `provider/model`".into());
        }
        self.check_exclusions()?;
        let axes = [self.prompts.len(), self.models.len(), self.adapters.len(), self.parameters.len()];
        let all = axes.iter().map(|axis| (*axis).max(1)).try_fold(1usize, usize::checked_mul);
        let combinations: Vec<_> = match all {
            // What is far too large is not even listed.
            Some(all) if all <= 100 * MAX_TARGETS => self.combinations().filter(|one| !self.leaves_out(one)).collect(),
            _ => Vec::new(),
        };
        let count = if combinations.is_empty() { all.unwrap_or(usize::MAX) } else { combinations.len() };
        if count.saturating_add(taken.len()) > MAX_TARGETS {
            let [prompts, models, adapters, parameters] = axes.map(|axis| axis.max(1));
            let problem = format!(
                "models: {prompts} prompts × {models} models × {adapters} adapters × {parameters} sets of parameters make {count} targets, more \
                 than {MAX_TARGETS}; leave some out under `exclude`, or make several suites"
            );
            return fault("matrix", problem);
        }
        if combinations.is_empty() {
            return fault("exclude", "exclude leaves no combination".into());
        }
        let mut names: HashSet<String> = taken.iter().map(|target| target.name.clone()).collect();
        Ok(combinations.iter().map(|one| self.target(one, &mut names)).collect())
    }

    fn combinations(&self) -> impl Iterator<Item = Combination<'_>> {
        axis(&self.prompts).flat_map(move |prompt| {
            self.models.iter().flat_map(move |model| {
                axis(&self.adapters).flat_map(move |adapter| {
                    axis(&self.parameters).map(move |parameters| Combination { prompt, model, adapter, parameters })
                })
            })
        })
    }

    fn leaves_out(&self, one: &Combination<'_>) -> bool {
        let fits = |wanted: &Option<String>, part: Option<&String>| wanted.as_ref().is_none_or(|wanted| part == Some(wanted));
        self.exclude.iter().any(|left_out| {
            fits(&left_out.prompt, one.prompt)
                && fits(&left_out.model, Some(one.model))
                && fits(&left_out.adapter, one.adapter)
                && left_out.parameters.as_ref().is_none_or(|wanted| one.parameters == Some(wanted))
        })
    }

    /// An exclusion that nothing can fit is a mistake of writing.
    fn check_exclusions(&self) -> Result<(), (String, String)> {
        for left_out in &self.exclude {
            let parts = [
                ("prompt", &left_out.prompt, &self.prompts),
                ("model", &left_out.model, &self.models),
                ("adapter", &left_out.adapter, &self.adapters),
            ];
            for (part, wanted, known) in parts {
                let Some(wanted) = wanted.as_ref().filter(|wanted| !known.contains(wanted)) else { continue };
                let nearest = did_you_mean(wanted, known.iter().map(String::as_str));
                return Err((wanted.clone(), format!("matrix.exclude: the matrix has no {part} \"{wanted}\"{nearest}")));
            }
            if let Some(wanted) = left_out.parameters.as_ref().filter(|wanted| !self.parameters.contains(wanted)) {
                let problem = format!("matrix.exclude: the matrix has no parameters {}", Value::from(wanted.clone()));
                return Err(("exclude".into(), problem));
            }
        }
        Ok(())
    }

    fn target(&self, one: &Combination<'_>, names: &mut HashSet<String>) -> Target {
        let mut words = Vec::new();
        if let Some(prompt) = one.prompt.filter(|_| self.prompts.len() > 1) {
            words.push(word(prompt));
        }
        if self.models.len() > 1 {
            words.push(self.model_word(one.model));
        }
        if let Some(adapter) = one.adapter.filter(|_| self.adapters.len() > 1) {
            words.push(if adapter == NONE { "bare".into() } else { slug(adapter) });
        }
        if let Some(parameters) = one.parameters.filter(|_| self.parameters.len() > 1) {
            words.push(self.parameters_word(parameters));
        }
        words.retain(|word| !word.is_empty());
        let wanted = if words.is_empty() { self.model_word(one.model) } else { words.join("-") };
        Target {
            name: free(&wanted, names),
            model: one.model.clone(),
            adapter: one.adapter.filter(|adapter| *adapter != NONE).cloned(),
            prompt: one.prompt.cloned(),
            parameters: one.parameters.cloned().unwrap_or_default(),
        }
    }

    /// The last part of a model's name, or all of it where another model ends in the same.
    fn model_word(&self, model: &str) -> String {
        let last = |model: &str| model.rsplit('/').next().unwrap_or_default().to_string();
        let is_alone = self.models.iter().filter(|other| last(other) == last(model)).count() == 1;
        slug(if is_alone { &model[model.len() - last(model).len()..] } else { model })
    }

    /// The parameters that differ between the sets: `temperature-0.7`.
    fn parameters_word(&self, parameters: &Map<String, Value>) -> String {
        let varies = |name: &str| self.parameters.iter().any(|other| other.get(name) != parameters.get(name));
        let varying = parameters.iter().filter(|(name, _)| varies(name));
        let words: Vec<_> = varying.map(|(name, value)| slug(&format!("{name}-{}", value.to_string().replace('"', "")))).collect();
        if words.is_empty() { "default".into() } else { words.join("-") }
    }
}

/// The values of an axis, or its absence once.
fn axis<T>(values: &[T]) -> impl Iterator<Item = Option<&T>> {
    let absent = values.is_empty().then_some(None);
    values.iter().map(Some).chain(absent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn targets(matrix: Value) -> Result<Vec<Target>, String> {
        let matrix: Matrix = serde_json::from_value(matrix).expect("a matrix");
        matrix.targets(&[]).map_err(|(_, problem)| problem)
    }

    #[test]
    fn names_say_what_varies_and_nothing_else() {
        let made = targets(json!({
            "prompts": ["short.prompt", "long@2"], "models": ["mock/echo", "up/echo", "up/m"],
            "parameters": [{"temperature": 0, "seed": 1}, {"temperature": 0.7, "seed": 1}],
            "exclude": [{"model": "up/m", "prompt": "long@2"}, {"model": "up/echo"}]
        }));
        let made = made.expect("targets");
        let names: Vec<_> = made.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "short-mock-echo-temperature-0",
                "short-mock-echo-temperature-0.7",
                "short-m-temperature-0",
                "short-m-temperature-0.7",
                "long-2-mock-echo-temperature-0",
                "long-2-mock-echo-temperature-0.7",
            ]
        );
        assert_eq!((made[3].parameters["temperature"].as_f64(), made[3].prompt.as_deref()), (Some(0.7), Some("short.prompt")));
        let one = targets(json!({"models": ["local/m"], "adapters": ["none", "ann"]})).expect("targets");
        assert_eq!(
            one.iter().map(|target| (target.name.as_str(), target.adapter.as_deref())).collect::<Vec<_>>(),
            [("bare", None), ("ann", Some("ann"))]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let many: Vec<_> = (0..11).map(|i| format!("up/m{i}")).collect();
        let prompts: Vec<_> = (0..10).map(|i| format!("p{i}.prompt")).collect();
        let refused = targets(json!({"models": many, "prompts": prompts})).expect_err("too many");
        assert!(refused.contains("make 110 targets, more than 100"), "{refused}");
        let refused = targets(json!({"models": ["up/m"], "exclude": [{"model": "up/n"}]})).expect_err("not there");
        assert!(refused.contains("no model \"up/n\"; did you mean \"up/m\"?"), "{refused}");
        assert!(
            targets(json!({"models": ["up/m"], "exclude": [{"model": "up/m"}]})).is_err_and(|problem| problem.contains("no combination"))
        );
    }
}
