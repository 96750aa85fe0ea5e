//! What the model that proposes is asked, and what it may answer. It sees the current template and cases of the train split that went
//! wrong, never a case of another split.

use super::candidate::Candidate;
use super::measure::Measured;
use super::variables;
use crate::types::Digest;
use crate::types::chat::{ChatRequest, Message};
use serde_json::{Value, json};
use std::fmt::Write;

/// Cases that are shown.
const CASES: usize = 8;
/// Characters of a text of a case.
const CHARACTERS: usize = 1_500;

const SYSTEM: &str = "You improve prompts for language models. You are given a prompt template, what it is measured by, and cases in which \
the answer was wrong. You answer with one JSON object and nothing else: {\"templates\": [\"…\", …]}.";

/// The question for so many templates.
pub(super) fn question(base: &Candidate, metric: &str, train: &Measured, (wanted, seed, round): (usize, u64, usize)) -> String {
    let mut text = format!(
        "Write {wanted} other versions of the template between the lines of equals signs, each of which a model should answer better than \
         now. They are measured by \"{metric}\". Make them different from each other: clearer instructions, rules that the cases below show \
         to be missing, an order of steps, the exact form of the answer.\n\nRules:\n\
         - The template is Handlebars. Use each of these variables, and no other: {}.\n\
         - {{{{role \"system\"}}}}, {{{{role \"user\"}}}} and {{{{role \"model\"}}}} begin a message. Keep the last message the user's.\n\
         - Write whole templates, without a part between --- lines.\n\
         - Do not copy the cases into the templates; say what they have in common.\n\n",
        variables(&base.prompt).into_iter().map(|name| format!("{{{{{name}}}}}")).collect::<Vec<_>>().join(", ")
    );
    let _ = writeln!(text, "==========\n{}\n==========", base.body());
    let failing = failing(train, metric, seed, round);
    if failing.is_empty() {
        text.push_str("\nThe template answered every case right that it was tried on. Make it shorter and more robust.\n");
    } else {
        let _ = writeln!(text, "\nCases that went wrong, as JSON, one a line: the variables, the answer, and what it should have been.");
        for case in failing {
            let _ = writeln!(text, "{case}");
        }
    }
    text
}

/// Cases with less than full marks, in an order that the seed decides.
fn failing(train: &Measured, metric: &str, seed: u64, round: usize) -> Vec<Value> {
    let mut wrong: Vec<_> = train.cases.iter().filter(|case| case.error.is_none() && case.scores[metric].as_f64() < Some(1.0)).collect();
    wrong.sort_by_key(|case| Digest::of(format!("{seed}:{round}:{}", case.sample)));
    let shown = wrong.into_iter().filter_map(|case| {
        let sample = train.samples.get(&case.sample)?;
        Some(json!({"variables": cut(&json!(sample.input)), "answer": cut(&json!(case.output)), "expected": cut(&sample.target)}))
    });
    shown.take(CASES).collect()
}

/// A value whose texts have a bounded length.
fn cut(value: &Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > CHARACTERS => {
            Value::from(format!("{}…", text.chars().take(CHARACTERS).collect::<String>()))
        }
        Value::Array(items) => items.iter().map(cut).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), cut(value))).collect(),
        other => other.clone(),
    }
}

/// The call.
pub(super) fn request(model: &str, question: &str, seed: u64) -> ChatRequest {
    let messages = vec![Message::text("system", SYSTEM), Message::text("user", question)];
    ChatRequest { model: model.to_string(), messages, seed: i64::try_from(seed).ok(), ..ChatRequest::default() }
}

/// What the call is known by: the same question to the same model has the same key.
pub(super) fn key(request: &ChatRequest) -> String {
    format!("proposal {}", Digest::of_json(&json!(request)).short())
}

/// The templates of a reply: `{"templates": […]}`, also inside of other text.
///
/// # Errors
/// Why there are none.
pub(super) fn templates(reply: &str) -> Result<Vec<String>, String> {
    let end = |sign: char| reply.rfind(sign).map(|at| at + 1);
    let part = |open: char, close: char| reply.get(reply.find(open)?..end(close)?);
    let found = [Some(reply.trim()), part('{', '}'), part('[', ']')].into_iter().flatten().find_map(|text| serde_json::from_str(text).ok());
    let Some(value) = found else { return Err("the reply is not JSON".into()) };
    let list = match &value {
        Value::Array(list) => Some(list),
        Value::Object(fields) => fields.values().find_map(Value::as_array),
        _ => None,
    };
    let text = |item: &Value| item.as_str().or_else(|| item.get("template")?.as_str()).map(String::from);
    let templates: Vec<_> = list.into_iter().flatten().filter_map(text).collect();
    if templates.is_empty() { Err("the reply has no list of templates".into()) } else { Ok(templates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_found_where_models_put_them() {
        for reply in [
            "{\"templates\": [\"a {{x}}\", \"b\"]}",
            "Sure:\n```json\n{\"templates\": [\"a {{x}}\", \"b\"]}\n```\nDone.",
            "[\"a {{x}}\", \"b\"]",
            "{\"candidates\": [{\"template\": \"a {{x}}\"}, {\"template\": \"b\"}]}",
        ] {
            assert_eq!(templates(reply).expect(reply), ["a {{x}}", "b"]);
        }
        assert!(templates("no idea").is_err() && templates("{\"templates\": []}").is_err() && templates("3").is_err());
    }
}
