//! What changed against a published version, as far as callers notice: variables, model, parameters, the reply's format.

use crate::prompts::parse::Prompt;
use crate::prompts::schema;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Something that is different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What, in words.
    pub message: String,
    /// Whether a call that worked may fail now.
    pub breaking: bool,
}

/// What is different, as seen by callers.
pub fn changes(old: &Prompt, new: &Prompt) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut say = |breaking: bool, message: String| changes.push(Change { message, breaking });
    let (before, after) = (variables(old), variables(new));
    let required = |prompt: &Prompt| prompt.required_variables().into_iter().collect::<BTreeSet<_>>();
    let (was, is) = (required(old), required(new));
    for name in after.difference(&before) {
        let must = is.contains(name);
        say(
            must,
            format!(
                "the variable \"{name}\" is new{}",
                if must { ", and must be given: calls without it fail" } else { ", and may be left out" }
            ),
        );
    }
    for name in before.difference(&after) {
        say(false, format!("the variable \"{name}\" is gone: what callers give for it is not used"));
    }
    for name in before.intersection(&after) {
        match (was.contains(name), is.contains(name)) {
            (false, true) => say(true, format!("the variable \"{name}\" must be given now: calls without it fail")),
            (true, false) => say(false, format!("the variable \"{name}\" may be left out now")),
            _ => {}
        }
        let kind =
            |prompt: &Prompt| prompt.front.input_schema.as_ref().map(|schema| schema["properties"][name].clone()).unwrap_or_default();
        let (old_kind, new_kind) = (typed(&kind(old)), typed(&kind(new)));
        if old_kind != new_kind {
            say(true, format!("the variable \"{name}\" was {old_kind} and is {new_kind}"));
        }
    }
    if old.front.model != new.front.model {
        let shown = |model: &Option<String>| model.clone().unwrap_or_else(|| "none".into());
        say(new.front.model.is_none(), format!("the model was {} and is {}", shown(&old.front.model), shown(&new.front.model)));
    }
    let names: BTreeSet<_> = old.front.config.keys().chain(new.front.config.keys()).collect();
    for name in names {
        let (a, b) = (old.front.config.get(name), new.front.config.get(name));
        if a != b {
            let shown = |value: Option<&Value>| value.map_or("not set".to_string(), Value::to_string);
            say(false, format!("the parameter \"{name}\" was {} and is {}", shown(a), shown(b)));
        }
    }
    if old.front.output_schema != new.front.output_schema || old.front.output_format != new.front.output_format {
        say(true, "the format of the reply changed: whoever reads replies must know".into());
    }
    changes
}

fn variables(prompt: &Prompt) -> BTreeSet<String> {
    let declared = prompt.front.input_schema.as_ref().map(schema::properties).unwrap_or_default();
    declared.into_iter().chain(prompt.variables.iter().map(|variable| variable.name.clone())).collect()
}

/// A type in words.
fn typed(schema: &Value) -> String {
    match (&schema["type"], &schema["enum"]) {
        (_, Value::Array(values)) => format!("one of {}", values.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        (Value::String(kind), _) => kind.clone(),
        (Value::Array(kinds), _) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect::<Vec<_>>().join(" or "),
        _ => "anything".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_what_breaks_them() {
        let prompt =
            |fields: &str, more: &str| Prompt::parse("p", &format!("---\n{more}input: {{schema: {{{fields}}}}}\n---\nx")).expect("parses");
        let old = prompt("a: string, b?: string, c: integer, gone: string", "model: m/one\nconfig: {temperature: 0}\n");
        let new = prompt("a: string, b: string, c: string, new: string, free?: string", "model: m/two\n");
        let told = changes(&old, &new);
        let breaking: Vec<_> =
            told.iter().filter(|change| change.breaking).map(|change| change.message.split('"').nth(1).unwrap_or_default()).collect();
        assert_eq!(breaking, ["new", "b", "c"], "{told:?}");
        let all = told.iter().map(|change| change.message.as_str()).collect::<Vec<_>>().join("\n");
        assert!(
            all.contains("\"gone\" is gone") && all.contains("was m/one and is m/two") && all.contains("was 0 and is not set"),
            "{all}"
        );
        assert_eq!(changes(&old, &old), []);
    }
}
