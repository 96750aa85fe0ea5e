//! The front matter: variables that nothing uses, defaults that do not fit, parameters that no model knows.

use super::template::Use;
use super::{Finding, Place, Severity, finding};
use crate::prompts::parse::Prompt;
use crate::prompts::{Problem, schema, walk};
use crate::types::error::did_you_mean;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Parameters that models know, and the range of those that have one.
const PARAMETERS: &[(&str, Option<(f64, f64)>)] = &[
    ("temperature", Some((0.0, 2.0))),
    ("top_p", Some((0.0, 1.0))),
    ("topP", Some((0.0, 1.0))),
    ("top_k", Some((1.0, 1e9))),
    ("topK", Some((1.0, 1e9))),
    ("max_tokens", Some((1.0, 1e9))),
    ("max_completion_tokens", Some((1.0, 1e9))),
    ("maxOutputTokens", Some((1.0, 1e9))),
    ("presence_penalty", Some((-2.0, 2.0))),
    ("frequency_penalty", Some((-2.0, 2.0))),
    ("stop", None),
    ("stopSequences", None),
    ("seed", None),
    ("response_format", None),
    ("reasoning_effort", None),
];

/// Everything about the front matter.
pub(super) fn check(prompt: &Prompt, source: &str, uses: &[Use], findings: &mut Vec<Finding>) {
    let lines = Lines(walk::halves(source).0.lines().collect());
    let used: BTreeSet<&str> = uses.iter().map(|one| one.path[0].as_str()).collect();
    match &prompt.front.input_schema {
        Some(schema) => unused(&lines, &schema::properties(schema), &used, findings),
        None if used.is_empty() => {}
        None => {
            let names: Vec<_> = used.iter().copied().collect();
            let message =
                format!("the prompt does not say what its variables are ({}), so each of them must always be given", names.join(", "));
            let way_out = "List them at the top of the file under input: schema:, such as  name: string, the customer's name";
            findings.push(finding((1, 1), Severity::Note, "no-schema", (message, way_out)));
        }
    }
    defaults(prompt, &lines, &used, findings);
    if let Some(examples) = prompt.front.examples.as_ref().filter(|examples| !examples.is_pinned()) {
        let message =
            format!("`examples` names no version of the dataset \"{}\", so that the prompt cannot be published", examples.dataset);
        let way_out = "Write the version behind the name, such as  dataset: intake@1  (`refit data list` shows them).";
        findings.push(finding(lines.key("dataset", "examples"), Severity::Warning, "unpinned-dataset", (message, way_out)));
    }
    parameters(&lines, &prompt.front.config, findings);
    if prompt.front.model.is_none() {
        let message = "the prompt names no model, so that every call has to".to_string();
        findings.push(finding(
            (1, 1),
            Severity::Note,
            "no-model",
            (message, "Add a line such as  model: openai/gpt-4o-mini  at the top of the file."),
        ));
    }
}

fn unused(lines: &Lines<'_>, declared: &[String], used: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    for name in declared.iter().filter(|name| !used.contains(name.as_str())) {
        let message = format!("\"{name}\" is among the prompt's variables, but the text below does not use it");
        let way_out = format!("Use it with {{{{{name}}}}}, or take it out of the schema.");
        findings.push(finding(lines.key(name, "schema"), Severity::Warning, "unused-variable", (message, &way_out)));
    }
}

fn defaults(prompt: &Prompt, lines: &Lines<'_>, used: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let declared = prompt.front.input_schema.as_ref().map(schema::properties).unwrap_or_default();
    for (name, value) in &prompt.front.defaults {
        let place = || lines.key(name, "default");
        if !declared.contains(name) && !used.contains(name.as_str()) {
            let nearest = did_you_mean(name, declared.iter().map(String::as_str));
            let message = format!("\"{name}\" has a default, but is no variable of the prompt{nearest}");
            findings.push(finding(place(), Severity::Warning, "unused-default", (message, "Correct the name, or take the default out.")));
        }
        let one = Map::from_iter([(name.clone(), value.clone())]);
        if let Some(Err(Problem::Type { expected, found, .. })) =
            prompt.front.input_schema.as_ref().map(|schema| schema::check(schema, &one))
        {
            let message = format!("the default of \"{name}\" must be {expected}, and is {found}");
            findings.push(finding(place(), Severity::Error, "default-type", (message, "Change the default, or the type in the schema.")));
        }
    }
}

fn parameters(lines: &Lines<'_>, config: &Map<String, Value>, findings: &mut Vec<Finding>) {
    for (name, value) in config {
        let place = || lines.key(name, "config");
        let Some((_, range)) = PARAMETERS.iter().find(|(known, _)| known == name) else {
            let nearest = did_you_mean(name, PARAMETERS.iter().map(|(known, _)| *known));
            let message = format!("\"{name}\" is no parameter that models know{nearest}; calls go without it");
            findings.push(finding(
                place(),
                Severity::Warning,
                "unknown-parameter",
                (message, "Correct the name, or take it out of config."),
            ));
            continue;
        };
        let Some((least, most)) = range else { continue };
        if !value.as_f64().is_some_and(|number| (*least..=*most).contains(&number)) {
            let message = if *most < 1e9 {
                format!("\"{name}\" must be a number from {least} to {most}")
            } else {
                format!("\"{name}\" must be a number of {least} or more")
            };
            findings.push(finding(place(), Severity::Error, "parameter-range", (message, "Change the number in config.")));
        }
    }
}

/// The lines of a front matter, to find where something stands.
struct Lines<'s>(Vec<&'s str>);

impl Lines<'_> {
    /// The place of a key behind another; of that one, or of the beginning, where it is not found.
    fn key(&self, name: &str, behind: &str) -> Place {
        let first = self.find(behind, (1, 0));
        let found = self.find(name, first.unwrap_or((1, 0)));
        found.or(first).unwrap_or((1, 1))
    }

    /// The first key of a name behind a place: `name:`, `name?:`, `name(array):`, also inside of braces.
    fn find(&self, name: &str, (after, column): Place) -> Option<Place> {
        self.0.iter().enumerate().skip(after - 1).find_map(|(number, line)| {
            let is_behind = |at: &usize| number + 1 > after || line[..*at].chars().count() + 1 > column;
            let mut starts = line.match_indices(name).map(|(at, _)| at).filter(is_behind);
            let is_key = |at: &usize| {
                let (before, rest) = (&line[..*at], &line[at + name.len()..]);
                let is_start = before.chars().next_back().is_none_or(|c| " {,\"'".contains(c));
                let rest = rest.trim_start_matches(['?', '"', '\'']);
                is_start && (rest.starts_with(':') || (rest.starts_with('(') && rest.contains("):")))
            };
            let at = starts.find(is_key)?;
            Some((number + 1, line[..at].chars().count() + 1))
        })
    }
}
