//! Uploaded files as conversations: what every record teaches, with the tools that it offers and calls. Errors name field and line.

use crate::datasets::shapes::{Draft, REJECTED};
use crate::datasets::{DatasetError, trainable};
use crate::store::Store;
use crate::store::files::FileRow;
use crate::tuning::{AnyRecipe, Conversation, Method, TuningError};
use crate::types::chat::Message;
use crate::types::{Code, Digest, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The method that learns preferences.
pub(super) const DPO: &str = "dpo";

/// A file by its bytes, and what its owner calls it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) name: String,
    digest: Digest,
}

impl Part {
    pub(super) fn of(row: &FileRow) -> Self {
        Part { name: row.filename.clone(), digest: row.digest }
    }
}

/// The same failure, about a field of the request.
pub(super) fn about(field: &str, failure: Failure) -> Failure {
    let named = Failure::on(failure.code(), field, failure.to_string());
    match failure.hint() {
        Some(hint) => named.with_hint(hint),
        None => named,
    }
}

/// What is learned from a record.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Learned {
    /// Every assistant's message that has weight, in its conversation.
    Talks,
    /// The same messages as labels of the user's message before each.
    Labels,
    /// Which of two answers is preferred.
    Preferences,
}

impl Learned {
    pub(super) fn by(recipe: &AnyRecipe) -> Self {
        match recipe {
            AnyRecipe::Lora(recipe) if recipe.method == Method::Dpo => Learned::Preferences,
            AnyRecipe::Lora(_) => Learned::Talks,
            AnyRecipe::Head(_) => Learned::Labels,
        }
    }
}

/// The examples of a file. Errors name the field and the line.
pub(super) fn conversations(store: &Store, (field, part): (&str, &Part), learned: Learned) -> Result<Vec<Conversation>, Failure> {
    let mut found = Vec::new();
    let read = trainable::each(&store.uploads.path(&part.digest), &part.name, &mut |place, shape, draft| {
        match (learned, shape) {
            (Learned::Preferences, DPO) => found.push(preference(&place.to_string(), draft)?),
            (Learned::Preferences, _) => {
                return Err("it holds no preference (input, preferred_output, non_preferred_output), which \"dpo\" learns from".into());
            }
            (_, DPO) => return Err("it holds a preference, which \"supervised\" does not learn from".into()),
            (Learned::Talks, _) => found.extend(talk(&place.to_string(), draft)?),
            (Learned::Labels, _) => found.extend(labelled(&place.to_string(), draft)?),
        }
        Ok(())
    });
    match read {
        Ok(_) if found.is_empty() => {
            Err(Failure::on(Code::INVALID_FILE, field, format!("{}: no message has weight: there is nothing to learn", part.name)))
        }
        Ok(_) => Ok(found),
        Err(error @ DatasetError::Store(_)) => Err(error.into()),
        Err(error) => Err(about(field, error.into()).with_hint("mend the file, upload it again and name the new one")),
    }
}

/// A record's messages, and which of them are learned: those of the assistant that have weight.
fn messages(draft: Draft) -> Result<(Vec<Message>, Vec<usize>), String> {
    let mut messages = asked(&draft)?;
    messages.push(answer(draft.target)?);
    let mut learned = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let has_weight = weight(message).map_err(|problem| format!("messages[{at}].{problem}"))?;
        if message.role != "assistant" || !has_weight {
            continue;
        }
        learnable(message).map_err(|problem| format!("messages[{at}]{problem}"))?;
        learned.push(at);
    }
    Ok((messages, learned))
}

/// Says why nothing can be learned from an answer; a call of a tool is one without a text.
fn learnable(message: &Message) -> Result<(), String> {
    match ["function_call", "refusal"].iter().find(|field| has(message, field)) {
        Some(field) => Err(format!(".{field}: local models are not trained on it")),
        None if message.plain_text().trim().is_empty() && !has(message, "tool_calls") => Err(" is empty: there is nothing to learn".into()),
        None => Ok(()),
    }
}

/// The conversation with the tools of its record, all of which must be told and called as they would be in serving.
fn with_tools(conversation: Conversation, input: &Map<String, Value>) -> Result<Conversation, String> {
    let problem = |error: TuningError| match error {
        TuningError::Example { problem, .. } => problem,
        other => other.to_string(),
    };
    let conversation = conversation.offering(input).map_err(problem)?;
    conversation.check().map_err(problem)?;
    Ok(conversation)
}

/// The example of a record: the conversation up to the last message that is learned. None where no message is.
fn talk(place: &str, draft: Draft) -> Result<Option<Conversation>, String> {
    let input = draft.input.clone();
    let (mut messages, learned) = messages(draft)?;
    let Some(last) = learned.last() else { return Ok(None) };
    messages.truncate(last + 1);
    let Some(answer) = messages.pop() else { return Ok(None) };
    with_tools(Conversation { sample: place.to_string(), prompt: messages, answer, ..Conversation::default() }, &input).map(Some)
}

/// The examples of a record whose answers are labels.
fn labelled(place: &str, draft: Draft) -> Result<Vec<Conversation>, String> {
    let tools = draft.input.get("tools").filter(|tools| !tools.is_null());
    if tools.is_some_and(|tools| tools.as_array().is_none_or(|tools| !tools.is_empty())) {
        return Err("field \"tools\": what is learned here are labels, which no tool is for".into());
    }
    let (messages, learned) = messages(draft)?;
    if let Some(at) = learned.iter().find(|at| has(&messages[**at], "tool_calls")) {
        return Err(format!("messages[{at}].tool_calls: what is learned here are labels"));
    }
    let example = |at: usize| {
        let question = messages[..at].iter().rfind(|message| message.role == "user").cloned();
        Conversation::new(place, question.into_iter().collect(), messages[at].plain_text())
    };
    Ok(learned.into_iter().map(example).collect())
}

/// The example of a record that holds two answers.
fn preference(place: &str, mut draft: Draft) -> Result<Conversation, String> {
    let prompt = asked(&draft)?;
    let rejected = answer(draft.metadata.remove(REJECTED).unwrap_or_default())?;
    let answer = answer(draft.target.take())?;
    for (field, message) in [("preferred_output", &answer), ("non_preferred_output", &rejected)] {
        learnable(message).map_err(|problem| format!("{field}{problem}"))?;
    }
    let conversation = Conversation { sample: place.to_string(), prompt, answer, rejected: Some(rejected), ..Conversation::default() };
    with_tools(conversation, &draft.input)
}

/// What stands before the answer.
fn asked(draft: &Draft) -> Result<Vec<Message>, String> {
    for (field, way) in [("functions", "; \"tools\" are what took its place"), ("response_format", "")] {
        if draft.input.contains_key(field) {
            return Err(format!("field \"{field}\": local models are not trained on it{way}"));
        }
    }
    match draft.input.get("messages") {
        Some(messages) => serde_json::from_value(messages.clone()).map_err(|error| format!("messages: {error}")),
        None => Ok(vec![Message::text("user", draft.input.get("prompt").and_then(Value::as_str).unwrap_or_default())]),
    }
}

fn answer(target: Value) -> Result<Message, String> {
    match target {
        Value::String(text) => Ok(Message::text("assistant", text)),
        other => serde_json::from_value(other).map_err(|error| format!("messages: the last one: {error}")),
    }
}

fn has(message: &Message, field: &str) -> bool {
    message.extra.get(field).is_some_and(|value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()))
}

/// Whether a message has weight.
fn weight(message: &Message) -> Result<bool, String> {
    match message.extra.get("weight") {
        None | Some(Value::Null) => Ok(true),
        Some(weight) => match weight.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            _ => Err(format!("weight is {weight}; 0 and 1 are taken")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::LossOn;
    use serde_json::json;

    fn draft(record: Value) -> Result<Draft, String> {
        let Value::Object(fields) = record else { panic!("an object") };
        crate::datasets::shapes::of(&fields)?.read(fields)
    }

    fn read(record: Value) -> Result<Vec<(usize, String)>, String> {
        Ok(labelled("line 1", draft(record)?)?.into_iter().map(|example| (example.prompt.len(), example.label())).collect())
    }

    fn said(role: &str, text: &str) -> Value {
        json!({"role": role, "content": text})
    }

    #[test]
    fn every_answer_with_weight_is_learned() {
        let mut unweighted = said("assistant", "a1");
        unweighted["weight"] = json!(0);
        let mut weighted = said("assistant", "a2");
        weighted["weight"] = json!(1);
        let record =
            |first: Value, second: Value| json!({"messages": [said("system", "s"), said("user", "q1"), first, said("user", "q2"), second]});
        let both = [(1, "a1".to_string()), (1, "a2".to_string())];
        assert_eq!(read(record(said("assistant", "a1"), weighted.clone())).expect("read"), both);
        assert_eq!(read(record(unweighted.clone(), weighted.clone())).expect("read"), both[1..]);
        assert_eq!(read(json!({"prompt": "p", "completion": "c"})).expect("read"), [(1, "c".to_string())]);
        let mut null = record(said("assistant", "a1"), weighted.clone());
        null["tools"] = Value::Null;
        assert_eq!(read(null).expect("read"), both);
        // A conversation is one example, up to the last message that is learned.
        let weights = |first: Value, second: Value| {
            let talk = talk("line 1", draft(record(first, second)).expect("a draft")).expect("read").expect("an example");
            talk.weights(LossOn::Assistant).expect("weights")
        };
        assert_eq!(weights(said("assistant", "a1"), weighted.clone()), [None, None, Some(1.0), None, Some(1.0)]);
        assert_eq!(weights(unweighted.clone(), weighted), [None, None, Some(0.0), None, Some(1.0)]);
        assert_eq!(weights(said("assistant", "a1"), unweighted.clone()), [None, None, Some(1.0)]);
        assert!(talk("line 1", draft(record(unweighted.clone(), unweighted)).expect("a draft")).expect("read").is_none());
    }

    #[test]
    fn what_is_not_learned_is_refused() {
        let mut odd = said("assistant", "a");
        odd["weight"] = json!(0.5);
        let user = said("user", "q");
        let old = json!({"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}});
        for (record, part) in [
            (json!({"messages": [user, odd]}), "messages[1].weight is 0.5"),
            (json!({"messages": [user, call("f", "{}")], "tools": [tool("f")]}), "labels"),
            (json!({"messages": [user, call("f", "{}")]}), "messages[1].tool_calls"),
            (json!({"messages": [user, said("assistant", " ")]}), "messages[1] is empty"),
        ] {
            let told = read(record).expect_err(part);
            assert!(told.contains(part), "{told}");
        }
        for (record, part) in [
            (json!({"messages": [user, old]}), "messages[1].function_call"),
            (json!({"messages": [user, said("assistant", "a")], "functions": [{"name": "f"}]}), "\"tools\" are what took its place"),
            (json!({"messages": [user, said("assistant", "a")], "tools": [{"type": "function"}]}), "names no function"),
            (json!({"messages": [user, said("assistant", "a")], "tools": {"f": 1}}), "\"tools\" must be a list"),
            (json!({"messages": [user, call("g", "{}")], "tools": [tool("f")]}), "calls \"g\""),
            (json!({"messages": [user, call("f", "{")], "tools": [tool("f")]}), "arguments"),
            (json!({"messages": [user, call("f", "{}")], "tools": [tool("f")], "parallel_tool_calls": 1}), "parallel_tool_calls"),
        ] {
            let told = talk("line 1", draft(record).expect("a draft")).expect_err(part);
            assert!(told.contains(part), "{told}");
        }
    }

    fn call(name: &str, arguments: &str) -> Value {
        let function = json!({"name": name, "arguments": arguments});
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": function}]})
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
    }

    #[test]
    fn calls_are_learned_with_the_tools_that_were_offered() {
        let record =
            json!({"messages": [said("user", "q"), call("f", "{}")], "tools": [tool("f"), tool("g")], "parallel_tool_calls": false});
        let example = talk("line 1", draft(record).expect("a draft")).expect("read").expect("an example");
        assert_eq!((example.tools, example.answer.extra["tool_calls"][0]["id"].as_str()), (vec![tool("f"), tool("g")], Some("c")));
        let pair = json!({"input": {"messages": [said("user", "q")], "tools": [tool("f")]}, "preferred_output": [call("f", "{}")],
            "non_preferred_output": [said("assistant", "no")]});
        assert_eq!(preference("line 1", draft(pair).expect("a draft")).expect("read").tools, [tool("f")]);
    }
}
