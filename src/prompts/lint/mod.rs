//! What is worth saying about a prompt before it is used: errors that a call would meet, and what is probably not meant. Each finding
//! has its line and column, and the way out in plain words. [`template`] reads the body, [`front`] the front matter, [`changes`]
//! compares with a published version.

mod changes;
mod front;
mod template;

pub use changes::{Change, changes};

use super::parse::Prompt;
use super::{Problem, PromptError};
use crate::types::Coded;
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A call fails, or says something else than what is written.
    Error,
    /// Probably not what is meant.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// The severity's word.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// Something about a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Line of the file, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// How bad it is.
    pub severity: Severity,
    /// Short name, the same for all findings of a kind.
    pub rule: &'static str,
    /// What there is.
    pub message: String,
    /// What to do.
    pub way_out: String,
}

/// A place in a file.
type Place = (usize, usize);

/// Findings about a source, by place. One that cannot be read has one: why.
pub fn lint(name: &str, source: &str) -> Vec<Finding> {
    let prompt = match Prompt::parse(name, source) {
        Ok(prompt) => prompt,
        Err(error) => return vec![unreadable(source, &error)],
    };
    let mut findings = Vec::new();
    let uses = template::uses(&prompt);
    front::check(&prompt, source, &uses, &mut findings);
    template::check(&prompt, &uses, &mut findings);
    findings.sort_by_key(|one| (one.line, one.column, one.severity));
    findings.dedup();
    findings
}

fn finding((line, column): Place, severity: Severity, rule: &'static str, (message, way_out): (String, &str)) -> Finding {
    Finding { line, column, severity, rule, message, way_out: way_out.to_string() }
}

fn unreadable(source: &str, error: &PromptError) -> Finding {
    let (line, column, problem) = match error {
        PromptError::At { line, column, problem, .. } => (*line, *column, Some(problem)),
        PromptError::Whole { problem, .. } => (1, None, Some(problem)),
        _ => (1, None, None),
    };
    let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let column = column.map_or(text.len() - text.trim_start().len() + 1, |column| column as usize);
    let way_out = match problem {
        Some(Problem::FrontMatter(_)) => {
            "Correct the part between the two --- lines. Indentation counts, and a text with a colon needs quotes."
        }
        Some(Problem::Schema(_)) => {
            "Write a type (string, number, integer, boolean, any) after the name, such as: name: string, the customer's name"
        }
        Some(Problem::TooNested(_) | Problem::SourceTooLarge(_)) => "Make the prompt smaller, or split it into two.",
        Some(Problem::Recursive(_)) => "Take the inclusion out, or use {{#each list}} … {{/each}} to repeat something.",
        Some(Problem::Unsupported(_)) => "Write it with {{#if}}, {{#each}} or a plain partial instead.",
        _ => "Look at the braces of this line: each {{#if x}} needs its {{/if}}, and each {{ its }}.",
    };
    let message = problem.map_or_else(|| error.to_string(), ToString::to_string);
    let way_out = error.hint().unwrap_or_else(|| way_out.to_string());
    Finding { line, column, severity: Severity::Error, rule: "unreadable", message, way_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule and place of each finding.
    fn found(source: &str) -> Vec<(&'static str, usize, usize)> {
        lint("p", source).iter().filter(|one| one.severity != Severity::Note).map(|one| (one.rule, one.line, one.column)).collect()
    }

    const FRONT: &str =
        "---\nmodel: mock/echo\ninput:\n  schema:\n    name: string\n    tags(array): string\n    address?:\n      city: string\n";

    #[test]
    fn variables_are_held_against_the_schema() {
        let body = |body: &str| found(&format!("{FRONT}---\n  {body}"));
        let all = "{{name}}{{#each tags}}{{this}}{{/each}}{{#if address}}{{address.city}}{{/if}}";
        assert_eq!(body(all), []);
        assert_eq!(body(&format!("{all} {{{{nam}}}}")), [("undefined-variable", 10, 83)]);
        assert_eq!(body("{{name}} {{address.city}}"), [("unused-variable", 6, 5)]);
        assert_eq!(body(&format!("{all}\n{{{{tags}}}}")), [("printed-value", 11, 3)]);
        assert_eq!(body(&format!("{all}\n{{{{json tags}}}} {{{{address.town}}}}")), [("unknown-field", 11, 17)]);
        assert_eq!(body(&format!("{all}\n{{{{#each name}}}}x{{{{/each}}}}")), [("not-a-list", 11, 9)]);
        assert_eq!(body(&format!("{all}\n{{{{name.first}}}}")), [("unknown-field", 11, 3)]);
        assert_eq!(body(&format!("{all}{{{{#each tags as |tag|}}}}{{{{tag}}}}{{{{/each}}}}")), []);
    }

    #[test]
    fn partials_read_what_the_place_of_their_inclusion_has() {
        let body = |body: &str| {
            found(&format!(
                "---\nmodel: mock/echo\ninput: {{schema: {{items(array): {{name: string}}, title: string, vip: boolean}}}}\n---\n{body}"
            ))
        };
        let card = "{{#*inline \"card\"}}{{name}}, {{title.x}}{{/inline}}";
        // In a loop `name` and `title` are those of the item; at the top they are the prompt's own.
        assert_eq!(body(&format!("{card}{{{{#each items}}}}{{{{> card}}}}{{{{/each}}}}{{{{title}}}}{{{{#if vip}}}}!{{{{/if}}}}")), []);
        let top = body(&format!("{card}{{{{#each items}}}}{{{{> card}}}}{{{{/each}}}}{{{{> card}}}}{{{{#if vip}}}}!{{{{/if}}}}"));
        assert_eq!(top, [("undefined-variable", 5, 22), ("unknown-field", 5, 32)]);
        assert_eq!(body(&format!("{card}{{{{> card name=1 title=title}}}}{{{{json items}}}}{{{{vip}}}}")), []);
        // What a partial reads of @root is read wherever it is included; what nothing includes reads nothing.
        let root = "{{#*inline \"p\"}}{{@root.title}}{{/inline}}{{#each items}}{{> p}}{{/each}}{{vip}}";
        assert_eq!(body(root), []);
        assert_eq!(body(&root.replace("{{> p}}", "")), [("unused-variable", 3, 48), ("unused-partial", 5, 1)]);
        // A flag's section leaves `this` as it is.
        assert_eq!(body("{{#vip}}{{title}}{{titel}}{{/vip}}{{json items}}"), [("undefined-variable", 5, 20)]);
    }

    #[test]
    fn many_inclusions_of_many_partials_take_no_time() {
        let nest = |i: usize| {
            format!(
                "{{{{#*inline \"p{i}\"}}}}{{{{#*inline \"q{i}\"}}}}{{{{/inline}}}}{}{{{{v{i}}}}}{{{{/inline}}}}",
                format!("{{{{> p{}}}}}", i + 1).repeat(4)
            )
        };
        let source: String = (0..60).map(nest).collect::<String>() + "{{#*inline \"p60\"}}{{/inline}}{{> p0}}";
        assert_eq!(found(&source).iter().filter(|(rule, ..)| *rule == "unused-partial").count(), 60);
    }

    #[test]
    fn defaults_partials_and_parameters_are_checked() {
        let defaults = "---\nmodel: m/m\ninput:\n  default:\n    n: three\n    x: 1\n  schema:\n    n: integer\n---\n{{n}}";
        assert_eq!(found(defaults), [("default-type", 5, 5), ("unused-default", 6, 5)]);
        let partials = "{{#*inline \"a\"}}{{> b}}{{/inline}}\n{{#*inline \"b\"}}x{{/inline}}\n{{#*inline \"c\"}}y{{/inline}}{{> c}}";
        assert_eq!(found(partials), [("unused-partial", 1, 1), ("unused-partial", 2, 1)]);
        let unpinned = "---\nmodel: m/m\nexamples:\n  dataset: d\n---\nx";
        assert_eq!(found(unpinned), [("unpinned-dataset", 4, 3)]);
        assert_eq!(found(&unpinned.replace("d\n---", "d@1\n---")), []);
        let config = "---\nmodel: m/m\nconfig:\n  temprature: 1\n  temperature: 3\n  maxOutputTokens: 9\n---\nx";
        assert_eq!(found(config), [("unknown-parameter", 4, 3), ("parameter-range", 5, 3)]);
    }

    #[test]
    fn what_cannot_be_read_has_its_place_and_a_way_out() {
        let one = &lint("p", "one\n  {{#if a}}never closed")[0];
        assert_eq!((one.rule, one.line, one.column, one.severity), ("unreadable", 2, 3, Severity::Error));
        assert!(one.way_out.contains("{{/if}}"), "{one:?}");
        assert_eq!(lint("p", "---\nmodel: [\n---\nx")[0].rule, "unreadable");
    }
}
