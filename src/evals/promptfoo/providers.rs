//! Providers of a configuration as targets of a suite.

use super::Leaving;
use serde_json::{Map, Value};

/// A model with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    pub(super) label: Option<String>,
    pub(super) model: String,
    pub(super) parameters: Map<String, Value>,
}

/// What carries over of a provider's `config`.
const PARAMETERS: [&str; 10] = [
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "reasoning_effort",
    "response_format",
];

/// promptfoo's word for a provider, the words that may follow it, and ours.
const PROVIDERS: [(&str, &[&str], &str); 16] = [
    ("openai", &["chat", "responses"], "openai"),
    ("anthropic", &["messages"], "anthropic"),
    ("azure", &["chat", "responses"], "azure"),
    ("azureopenai", &["chat"], "azure"),
    ("google", &[], "gemini"),
    ("ollama", &["chat"], "ollama"),
    ("groq", &[], "groq"),
    ("mistral", &[], "mistral"),
    ("deepseek", &[], "deepseek"),
    ("openrouter", &[], "openrouter"),
    ("togetherai", &[], "together"),
    ("together", &[], "together"),
    ("xai", &[], "xai"),
    ("fireworks", &[], "fireworks"),
    ("cerebras", &[], "cerebras"),
    ("perplexity", &[], "perplexity"),
];

/// The models of `providers` (or `targets`).
pub(super) fn read(providers: &Value, left: &mut Leaving) -> Vec<Model> {
    let list = match providers {
        Value::Array(list) => list.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let mut models = Vec::new();
    for (i, provider) in list.iter().enumerate() {
        let place = format!("providers[{i}]");
        let (id, rest) = match provider {
            Value::String(id) => (id.clone(), Map::new()),
            Value::Object(fields) if fields.contains_key("id") => (fields["id"].as_str().unwrap_or_default().to_string(), fields.clone()),
            // {"openai:gpt-4o": {config: …}}
            Value::Object(fields) if fields.len() == 1 => {
                let (id, rest) = fields.iter().next().map(|(id, rest)| (id.clone(), rest.clone())).unwrap_or_default();
                (id, rest.as_object().cloned().unwrap_or_default())
            }
            _ => (String::new(), Map::new()),
        };
        let Some(model) = model(&id) else {
            left.add(place, format!("provider {id:?} has no counterpart here: add a target with a model of yours"));
            continue;
        };
        let mut parameters = Map::new();
        for (name, value) in rest.get("config").and_then(Value::as_object).into_iter().flatten() {
            if PARAMETERS.contains(&name.as_str()) {
                parameters.insert(name.clone(), value.clone());
            } else {
                left.add(format!("{place}.config.{name}"), "is no parameter of a call; addresses and keys stand in refit.toml");
            }
        }
        for name in rest.keys().filter(|name| !["id", "label", "config"].contains(&name.as_str())) {
            left.add(format!("{place}.{name}"), "is not known");
        }
        models.push(Model { label: rest.get("label").and_then(Value::as_str).map(String::from), model, parameters });
    }
    models
}

/// `openai:chat:gpt-4o` as `openai/gpt-4o`.
pub(super) fn model(id: &str) -> Option<String> {
    if id == "echo" {
        return Some("mock/echo".into());
    }
    let (word, rest) = id.split_once(':')?;
    let (_, kinds, ours) = PROVIDERS.iter().find(|(known, ..)| *known == word)?;
    let model = match rest.split_once(':') {
        Some((kind, model)) if kinds.contains(&kind) => model,
        // Another API of that provider, such as completions or images; models of ollama have colons of their own.
        Some((kind, _))
            if ["completion", "embedding", "embeddings", "image", "realtime", "assistant", "moderation", "audio"].contains(&kind) =>
        {
            return None;
        }
        _ => rest,
    };
    (!model.is_empty()).then(|| format!("{ours}/{model}"))
}

/// The name that promptfoo has for one of our models; none where it has none.
pub(super) fn id(model: &str) -> Option<String> {
    if model == "mock/echo" {
        return Some("echo".into());
    }
    let (provider, name) = model.split_once('/')?;
    let (word, kinds, _) = PROVIDERS.iter().find(|(_, _, ours)| *ours == provider)?;
    Some(match kinds.first() {
        Some(kind) => format!("{word}:{kind}:{name}"),
        None => format!("{word}:{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn providers_become_models_there_and_back() {
        for (theirs, ours) in [
            ("openai:gpt-4o-mini", Some("openai/gpt-4o-mini")),
            ("openai:chat:gpt-4o", Some("openai/gpt-4o")),
            ("anthropic:messages:claude-haiku-4-5", Some("anthropic/claude-haiku-4-5")),
            ("ollama:chat:llama3.2:1b", Some("ollama/llama3.2:1b")),
            ("ollama:llama3.2:1b", Some("ollama/llama3.2:1b")),
            ("google:gemini-2.5-flash", Some("gemini/gemini-2.5-flash")),
            ("echo", Some("mock/echo")),
            ("openai:embedding:x", None),
            ("python:provider.py", None),
            ("https://example.com", None),
        ] {
            assert_eq!(model(theirs).as_deref(), ours, "{theirs}");
            if let Some(ours) = ours {
                assert_eq!(id(ours).as_deref().and_then(model).as_deref(), Some(ours));
            }
        }
        let mut left = Leaving::default();
        let models =
            read(&json!([{"id": "openai:gpt-4o", "label": "big", "config": {"temperature": 0, "apiKey": "x"}}, "exec:a"]), &mut left);
        assert_eq!((models.len(), models[0].parameters["temperature"].clone()), (1, json!(0)));
        let places: Vec<_> = left.0.iter().map(|left| left.place.as_str()).collect();
        assert_eq!(places, ["providers[0].config.apiKey", "providers[1]"]);
    }
}
