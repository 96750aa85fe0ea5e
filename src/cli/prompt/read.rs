//! `refit prompt list`, `show`, `render`, `history`: what is there.

use super::{Variables, of_file};
use crate::cli::{Context, output};
use crate::prompts::{Input, Library, Problem, Prompt};
use crate::store::prompts::{LabelMove, PromptVersion};
use crate::types::Failure;
use crate::types::time::rfc3339;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Prints every prompt.
pub fn list(library: &Library, json: bool) -> Result<(), Failure> {
    let entries = library.list()?;
    if json {
        return output::json(&entries);
    }
    let rows: Vec<_> = entries.iter().map(|entry| row(&entry.newest, &entry.labels)).collect();
    output::line(output::table(&["name", "version", "digest", "labels", "published", "by", "message"], &rows))
}

fn row(version: &PromptVersion, labels: &[(String, i64)]) -> Vec<String> {
    let labels: Vec<String> = labels.iter().map(|(label, at)| format!("{label}={at}")).collect();
    let (published, digest) = (rfc3339(version.created_at), version.digest.short());
    let number = version.version.to_string();
    vec![version.prompt.clone(), number, digest, labels.join(" "), published, version.author.clone(), version.message.clone()]
}

/// Prints a version.
pub fn show(library: &Library, reference: &str, json: bool) -> Result<(), Failure> {
    let version = library.get(reference)?;
    if !json {
        return output::bytes(version.source.as_bytes());
    }
    let prompt = library.open(reference)?;
    let mut whole = serde_json::to_value(&version).unwrap_or_default();
    whole["source"] = version.source.into();
    whole["required_variables"] = prompt.required_variables().into();
    whole["config"] = Value::Object(prompt.front.config.clone());
    whole["input_schema"] = prompt.front.input_schema.clone().unwrap_or_default();
    whole["output_schema"] = prompt.front.output_schema.clone().unwrap_or_default();
    output::json(&whole)
}

/// Fills in variables and prints the messages.
pub fn render(context: &Context, prompt: &str, variables: &Variables, json: bool) -> Result<(), Failure> {
    let prompt = if prompt.ends_with(".prompt") {
        let (name, source) = of_file(Path::new(prompt))?;
        Arc::new(Prompt::parse(&name, &source)?)
    } else {
        Library::new(&context.open_store()?).open(prompt)?
    };
    let variables = variables.read()?;
    let examples = match &prompt.front.examples {
        Some(_) => context.runtime()?.block_on(context.app()?.inference.examples(&prompt, &variables))?,
        None => Vec::new(),
    };
    let rendered = prompt.render(&Input { history: &examples, ..Input::of(&variables) }).map_err(|error| {
        let wrong_type = match error.problem() {
            Some(Problem::Type { name, .. }) => Some(name.clone()),
            _ => None,
        };
        let hint =
            |name: String| format!("what is no text is written as JSON behind := such as --var {name}:=true or --var '{name}:=[1,2]'");
        wrong_type.map(hint).into_iter().fold(Failure::from(error), Failure::with_hint)
    })?;
    if json {
        return output::json(&json!({"messages": rendered.messages, "config": rendered.config, "output_schema": rendered.output_schema}));
    }
    for message in &rendered.messages {
        output::line(format!("── {} ──\n{}", message.role, message.plain_text().trim_end()))?;
    }
    Ok(())
}

/// Prints versions and moves of labels.
pub fn history(library: &Library, name: &str, json: bool) -> Result<(), Failure> {
    let (versions, labels) = library.versions(name)?;
    let moves = library.history(name)?;
    if json {
        return output::json(&json!({"versions": versions, "labels": labels, "moves": moves}));
    }
    let at = |version: i64| labels.iter().filter(|(_, to)| *to == version).cloned().collect::<Vec<_>>();
    let rows: Vec<_> = versions.iter().map(|version| row(version, &at(version.version))).collect();
    output::line(output::table(&["name", "version", "digest", "labels", "published", "by", "message"], &rows))?;
    if moves.is_empty() {
        return Ok(());
    }
    let step = |step: &LabelMove| {
        let number = |version: Option<i64>| version.filter(|version| *version > 0).map_or("-".into(), |version| version.to_string());
        let (from, to) = (number(step.from_version), number(Some(step.to_version)));
        let forced = if step.detail["forced"] == true { " (the gate was set aside)" } else { "" };
        vec![
            rfc3339(step.moved_at),
            step.kind.word().into(),
            step.label.clone(),
            from,
            to,
            step.actor.clone(),
            format!("{}{forced}", step.reason),
        ]
    };
    let rows: Vec<_> = moves.iter().map(step).collect();
    output::line(format!("\n{}", output::table(&["moved", "how", "label", "from", "to", "by", "why"], &rows)))
}
