//! From a suite to a configuration of promptfoo: targets as providers, samples as tests, scorers as assertions of each test.

use super::{Leaving, Left, providers};
use crate::datasets::Sample;
use crate::evals::prepare::Prompts;
use crate::evals::suite::Suite;
use crate::prompts::{Input, Prompt};
use crate::types::chat::Message;
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};

/// A configuration, to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The file's text.
    pub config: String,
    /// What did not carry over.
    pub left: Vec<Left>,
}

/// Writes a configuration from a suite, its samples, and the prompts of its targets by the names that the suite has for them.
///
/// # Errors
/// [`Code::INVALID_VALUE`] where no target carries over.
pub fn export(suite: &Suite, samples: &[Sample], prompts: &Prompts) -> Result<Exported, Failure> {
    let mut left = Leaving::default();
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for target in &suite.targets {
        let place = format!("targets.{}", target.name);
        let Some(id) = providers::id(&target.model) else {
            left.add(place, format!("{} is not known to promptfoo; point a provider of its at /v1 of a running Refit", target.model));
            continue;
        };
        if target.adapter.is_some() {
            left.add(place.clone(), "adapters are not known to promptfoo");
            continue;
        }
        let provider = json!({"id": id, "label": target.name, "config": target.parameters});
        ids.push(provider);
        match target.prompt.as_ref().and_then(|name| Some((name, prompts.get(name)?))) {
            None => texts.push(json!("{{messages}}")),
            Some((name, prompt)) => match text(prompt) {
                Ok(text) if texts.contains(&text) => {}
                Ok(text) => texts.push(text),
                Err(why) => left.add(format!("targets.{}.prompt {name}", target.name), why),
            },
        }
    }
    if ids.is_empty() || texts.is_empty() {
        return Err(Failure::new(Code::INVALID_VALUE, format!("no target of suite \"{}\" can be written for promptfoo", suite.name)));
    }
    if texts.len() > 1 && suite.targets.len() > 1 {
        left.add("targets", "promptfoo asks every provider with every prompt");
    }
    let specs = scorers_of(&suite.source);
    let tests: Vec<Value> = samples.iter().map(|sample| test(sample, &specs, &mut left)).collect();
    if !suite.gate.is_empty() || !suite.demands.is_empty() {
        left.add("gate", "promptfoo fails when one assertion of one test does");
    }
    let config = json!({"description": if suite.description.is_empty() { &suite.name } else { &suite.description }, "prompts": texts,
        "providers": ids, "tests": tests, "evaluateOptions": {"maxConcurrency": suite.concurrency, "repeat": suite.repeats}});
    Ok(Exported { config: serde_norway::to_string(&config).unwrap_or_default(), left: left.0 })
}

/// A prompt as a chat with `{{variables}}`: rendered with each variable's own tag as its text.
fn text(prompt: &Prompt) -> Result<Value, String> {
    let body: Map<String, Value> =
        prompt.variables.iter().map(|variable| (variable.name.clone(), format!("{{{{{}}}}}", variable.name).into())).collect();
    let render = |variables: &Map<String, Value>| {
        let input = Input { missing: crate::prompts::render::Missing::Empty, ..Input::of(variables) };
        prompt.render(&input).map(|rendered| rendered.messages)
    };
    let told = |error: crate::prompts::PromptError| error.to_string();
    let messages = render(&body).map_err(told)?;
    // A template that does more than put texts in shows it when the texts are other ones.
    let marked: Map<String, Value> = body.keys().map(|name| (name.clone(), format!("\u{1}{name}\u{2}").into())).collect();
    let plain = |messages: &[Message]| messages.iter().map(Message::plain_text).collect::<Vec<_>>().join("\u{3}");
    let back = plain(&render(&marked).map_err(told)?).replace('\u{1}', "{{").replace('\u{2}', "}}");
    if back != plain(&messages) || plain(&render(&Map::new()).map_err(told)?).len() >= back.len() && !body.is_empty() {
        return Err("conditions and loops are written otherwise there".into());
    }
    let chat: Vec<Value> = messages.iter().map(|message| json!({"role": message.role, "content": message.plain_text()})).collect();
    match chat.as_slice() {
        [only] if only["role"] == "user" => Ok(only["content"].clone()),
        _ => Ok(Value::from(serde_json::to_string_pretty(&chat).unwrap_or_default())),
    }
}

/// The scorers as the suite's file has them.
fn scorers_of(source: &str) -> Vec<Value> {
    let whole: Value = serde_norway::from_str(source).unwrap_or_default();
    whole["scorers"].as_array().cloned().unwrap_or_default()
}

fn test(sample: &Sample, specs: &[Value], left: &mut Leaving) -> Value {
    let mut asserts = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let place = format!("scorers[{i}]");
        let of_sample = spec == "checks" || spec.get("checks").is_some();
        let own = sample.metadata.get("checks").map(|checks| checks.as_array().cloned().unwrap_or_else(|| vec![checks.clone()]));
        for spec in if of_sample { own.unwrap_or_default() } else { vec![spec.clone()] } {
            match assert(&spec, &sample.target) {
                Ok(more) => asserts.extend(more),
                Err(why) => left.add(place.clone(), why),
            }
        }
    }
    let mut test = json!({"description": sample.id, "vars": sample.input, "assert": asserts});
    let metadata: Map<String, Value> =
        sample.metadata.iter().filter(|(name, _)| *name != "checks").map(|(name, value)| (name.clone(), value.clone())).collect();
    if !metadata.is_empty() {
        test["metadata"] = Value::Object(metadata);
    }
    test
}

/// The assertions of a scorer with a sample's target.
fn assert(spec: &Value, target: &Value) -> Result<Vec<Value>, String> {
    let (word, options) = match spec {
        Value::String(word) => (word.as_str(), Value::Null),
        Value::Object(map) => map.iter().next().map(|(word, options)| (word.as_str(), options.clone())).unwrap_or_default(),
        _ => ("", Value::Null),
    };
    let get = |key: &str| options.get(key).filter(|value| !value.is_null()).cloned();
    let folded = if options["ignore_case"] == true { "i" } else { "" };
    let named = |kind: &str, value: Value| Ok(vec![json!({"type": kind, "value": value})]);
    let wanted = |value: Option<Value>| match value.unwrap_or_else(|| target.clone()) {
        Value::Null => Err("a sample has no target".to_string()),
        value => Ok(value),
    };
    let unknown = || Err(format!("{word} is written otherwise there, or not at all"));
    match word {
        "exact_match" if folded.is_empty() => named("equals", wanted(None)?),
        "includes" => match (get("any"), get("all")) {
            (Some(any), _) => named(&format!("{folded}contains-any"), any),
            (_, Some(all)) => named(&format!("{folded}contains-all"), all),
            _ => named(&format!("{folded}contains"), wanted(get("value").or_else(|| options.is_string().then(|| options.clone())))?),
        },
        "regex" => named("regex", get("pattern").unwrap_or_else(|| options.clone())),
        "starts_with" if folded.is_empty() => {
            named("starts-with", wanted(get("value").or_else(|| options.is_string().then(|| options.clone())))?)
        }
        "json_schema" => {
            Ok(vec![get("schema").map_or_else(|| json!({"type": "is-json"}), |schema| json!({"type": "is-json", "value": schema}))])
        }
        "refusal" => Ok(vec![json!({"type": "is-refusal"})]),
        "latency" => get("max_ms")
            .or_else(|| options.is_number().then(|| options.clone()))
            .map_or_else(unknown, |most| Ok(vec![json!({"type": "latency", "threshold": most})])),
        "cost" => get("max_usd")
            .or_else(|| options.is_number().then(|| options.clone()))
            .map_or_else(unknown, |most| Ok(vec![json!({"type": "cost", "threshold": most})])),
        "all" => {
            let parts = get("scorers").unwrap_or_else(|| options.clone());
            let parts: Result<Vec<_>, _> = parts.as_array().into_iter().flatten().map(|part| assert(part, target)).collect();
            parts.map(|parts| parts.into_iter().flatten().collect())
        }
        "not" => {
            let mut parts = assert(&get("scorer").unwrap_or_else(|| options.clone()), target)?;
            let [only] = parts.as_mut_slice() else { return unknown() };
            only["type"] = format!("not-{}", only["type"].as_str().unwrap_or_default()).into();
            Ok(parts)
        }
        "against" => assert(&options["scorer"], &options["target"]),
        "threshold" => {
            let inner = &options["scorer"];
            let least = get("at_least");
            let (inner, target) = match inner.get("against") {
                Some(against) => (&against["scorer"], &against["target"]),
                None => (inner, target),
            };
            let word = inner.as_str().or_else(|| inner.as_object()?.keys().next().map(String::as_str)).unwrap_or_default();
            let kind = match word {
                "bleu" => "bleu",
                "similarity" => "similar",
                "rouge" if inner["rouge"]["kinds"] == json!(["rouge1"]) => "rouge-n",
                "edit_distance" if options["metric"] == "edit_distance.edits" => {
                    return Ok(vec![
                        json!({"type": "levenshtein", "value": wanted(Some(target.clone()))?, "threshold": options["at_most"]}),
                    ]);
                }
                _ => return unknown(),
            };
            least.map_or_else(unknown, |least| Ok(vec![json!({"type": kind, "value": target, "threshold": least})]))
        }
        "llm_judge" => {
            let (model, rubric) = (get("model"), get("rubric"));
            let provider = model.as_ref().and_then(Value::as_str).and_then(providers::id);
            match (provider, rubric, get("scale"), get("pairwise")) {
                (Some(provider), Some(rubric), None, None) => {
                    Ok(vec![json!({"type": "llm-rubric", "value": rubric, "provider": provider})])
                }
                _ => unknown(),
            }
        }
        _ => unknown(),
    }
}
