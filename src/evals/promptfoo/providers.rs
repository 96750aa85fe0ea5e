//! Providers as models: `openai:chat:gpt-4o-mini` is `openai/gpt-4o-mini`.

use super::Import;
use crate::config::providers::KINDS;
use crate::evals::variants::slug;
use serde_json::{Map, Value};

/// A model with its parameters.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) model: String,
    pub(super) parameters: Map<String, Value>,
}

/// Parameters that have the same name here.
const PARAMETERS: [&str; 10] = [
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "top_p",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "reasoning_effort",
];
/// Words between provider and model.
const KINDS_OF_CALL: [&str; 4] = ["chat", "messages", "completion", "responses"];

impl Import<'_> {
    /// The models of `providers`.
    pub(super) fn models(&mut self, providers: &Value) -> Vec<Model> {
        let list = match providers {
            Value::Array(list) => list.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        let mut models: Vec<Model> = Vec::new();
        for (i, provider) in list.iter().enumerate() {
            let place = format!("providers[{i}]");
            let (id, config, label) = match provider {
                Value::String(id) => (id.clone(), Map::new(), None),
                Value::Object(map) if map.contains_key("id") => {
                    self.left.unknown(&place, map, &["id", "config", "label"]);
                    let config = map.get("config").and_then(Value::as_object).cloned().unwrap_or_default();
                    (map["id"].as_str().unwrap_or_default().to_string(), config, map.get("label").and_then(Value::as_str))
                }
                Value::Object(map) => match map.iter().next() {
                    Some((id, options)) => {
                        (id.clone(), options.get("config").and_then(Value::as_object).cloned().unwrap_or_default(), None)
                    }
                    None => continue,
                },
                other => {
                    self.left.out(&place, format!("{other} is no provider"));
                    continue;
                }
            };
            let Some(model) = model_of(&id) else {
                self.left.out(&place, format!("the provider \"{id}\" is none of those that can be called here"));
                continue;
            };
            self.left.unknown(&format!("{place}.config"), &config, &PARAMETERS);
            let parameters = config.into_iter().filter(|(key, _)| PARAMETERS.contains(&key.as_str())).collect();
            let wanted = slug(label.unwrap_or_else(|| model.rsplit('/').next().unwrap_or_default()));
            let taken = models.iter().filter(|other| other.name == wanted || other.name.starts_with(&format!("{wanted}-"))).count();
            let name = if taken == 0 { wanted } else { format!("{wanted}-{}", taken + 1) };
            models.push(Model { name: name.trim_start_matches(['-', '.', '_']).to_string(), model, parameters });
        }
        models
    }
}

/// `provider/model` of a provider's id, where there is one.
pub(super) fn model_of(id: &str) -> Option<String> {
    if id == "echo" {
        return Some("mock/echo".into());
    }
    let (provider, rest) = id.split_once(':')?;
    let provider = match provider {
        "google" | "palm" => "gemini",
        "togetherai" => "together",
        other => other,
    };
    let model = match rest.split_once(':') {
        Some((kind, model)) if KINDS_OF_CALL.contains(&kind) => model,
        _ => rest,
    };
    (KINDS.contains(&provider) && !model.is_empty() && !KINDS_OF_CALL.contains(&model)).then(|| format!("{provider}/{model}"))
}

#[cfg(test)]
mod tests {
    use super::model_of;

    #[test]
    fn ids_become_names() {
        for (id, model) in [
            ("openai:gpt-4o-mini", Some("openai/gpt-4o-mini")),
            ("openai:chat:gpt-4o-mini", Some("openai/gpt-4o-mini")),
            ("anthropic:messages:claude-haiku-4-5", Some("anthropic/claude-haiku-4-5")),
            ("google:gemini-2.5-flash", Some("gemini/gemini-2.5-flash")),
            ("ollama:chat:llama3.2:1b", Some("ollama/llama3.2:1b")),
            ("echo", Some("mock/echo")),
            ("openai:chat", None),
            ("python:provider.py", None),
            ("https://example.org/api", None),
        ] {
            assert_eq!(model_of(id).as_deref(), model, "{id}");
        }
    }
}
