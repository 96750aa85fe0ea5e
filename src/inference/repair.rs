//! Replies that must fit the format that was asked for: one that does not is asked for once more, with what was wrong.

use super::attempt::Turn;
use super::guard::{Answered, Guarded};
use super::plan::Plan;
use super::pool::Kind;
use super::ticket::Ticket;
use super::{Inference, blocking, whole};
use crate::config::guardrails::Side;
use crate::guardrails::schema::{Fault, Format, faults};
use crate::guardrails::{Finding, Names, scan};
use crate::providers::{Call, Reply};
use crate::types::chat::{ChatResponse, Choice, Message, Usage};
use crate::types::{Code, Failure};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A choice that does not fit.
struct Misfit {
    /// Its place in the list.
    at: usize,
    /// What the model said.
    said: String,
    faults: Vec<Fault>,
}

impl Inference {
    /// The reply, or the one that was given when asked once more.
    ///
    /// # Errors
    /// [`Code::INVALID_OUTPUT`] with the path at fault when that does not fit either.
    pub(super) async fn fitting(
        &self,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        answered: &Answered<'_>,
        response: ChatResponse,
    ) -> Result<ChatResponse, Failure> {
        // As it was asked: the format may be the release's or its prompt's.
        let call = (answered.write)(answered.plan).await?;
        let Some(asked) = call.request.extra.get("response_format") else { return Ok(response) };
        let unusable = |why| Failure::new(Code::INVALID_OUTPUT, format!("the reply cannot be checked against its schema: {why}"));
        let (setup, asked) = (answered.setup.clone(), asked.clone());
        let format = blocking(move || Ok(setup.guards.schemas.format(&asked))).await?.map_err(unusable)?;
        let Some(format) = format else { return Ok(response) };
        let Some(wrong) = misfit(&response, &format, &guarded.names).await? else { return Ok(response) };
        note(guarded, ticket, &wrong, "repair");

        let asking = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Reply, Failure>> {
            let (provider, call) = (plan.provider.clone(), (answered.write)(plan));
            let complaint = complaint(&wrong);
            Box::pin(async move { Ok(provider.chat(again(call.await?, complaint)).await?) })
        };
        ticket.mends(answered.plan);
        let (reply, _) = self.attempt(ticket, answered.road, Kind::Whole, &asking).await?;
        let second = whole(reply.body)?;
        ticket.bills(&second);
        let response = joined(response, second, wrong.at);
        ticket.spent(response.usage.as_ref());
        let Some(wrong) = misfit(&response, &format, &guarded.names).await? else { return Ok(response) };
        note(guarded, ticket, &wrong, "refuse");
        let place = place(&wrong.faults);
        let place = scan::told(&guarded.sets, place, &mut guarded.names);
        let index = response.choices.get(wrong.at).map_or(0, |choice| choice.index);
        let message = format!("choices[{index}] does not fit the response_format, also when asked again; at fault: {place}");
        Err(Failure::on(Code::INVALID_OUTPUT, "response_format", message))
    }
}

/// The first choice that does not fit. One that calls tools or refuses is no answer to check.
async fn misfit(response: &ChatResponse, format: &Format, names: &Names) -> Result<Option<Misfit>, Failure> {
    let is_set = |choice: &Choice, field: &str| match choice.message.extra.get(field) {
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        _ => false,
    };
    let answers = response.choices.iter().enumerate().filter(|(_, choice)| !is_set(choice, "tool_calls") && !is_set(choice, "refusal"));
    let said = answers.map(|(at, choice)| {
        let said = choice.message.plain_text();
        // What the caller will read.
        let read = names.restore(&said).unwrap_or_else(|| said.clone());
        (at, said, read)
    });
    let (said, format) = (said.collect::<Vec<_>>(), format.clone());
    blocking(move || {
        let misfit = said.into_iter().find_map(|(at, said, read)| {
            let found = faults(&read, &format);
            (!found.is_empty()).then_some(Misfit { at, said, faults: found })
        });
        Ok(misfit)
    })
    .await
}

fn note(guarded: &mut Guarded, ticket: &mut Ticket, wrong: &Misfit, action: &'static str) {
    let set = guarded.sets.iter().find(|guard| guard.set.validate_output).map(|guard| guard.set.name.clone());
    let detail = scan::told(&guarded.sets, place(&wrong.faults), &mut guarded.names);
    let finding = Finding {
        set: set.unwrap_or_default(),
        detector: "schema".into(),
        on: Side::Output,
        action,
        count: wrong.faults.len() as u64,
        place: format!("choices[{}].message.content", wrong.at),
        detail: Some(detail),
    };
    guarded.note(ticket, vec![finding]);
}

/// The first path at fault, as a JSON pointer.
fn place(faults: &[Fault]) -> String {
    faults.first().map(|fault| fault.path.as_str()).filter(|path| !path.is_empty()).unwrap_or("the whole").to_string()
}

/// What the model said, and what is wrong with it.
fn complaint(wrong: &Misfit) -> [Message; 2] {
    let line = |fault: &Fault| format!("- {}: {}", if fault.path.is_empty() { "the whole" } else { &fault.path }, fault.message);
    let lines: Vec<_> = wrong.faults.iter().map(line).collect();
    let text = format!(
        "Your answer does not fit the JSON schema that was asked for:\n{}\nAnswer again with nothing but JSON that fits it.",
        lines.join("\n")
    );
    [Message::text("assistant", wrong.said.clone()), Message::text("user", text)]
}

/// The same call with the complaint, for one choice.
fn again(mut call: Call, complaint: [Message; 2]) -> Call {
    call.request.messages.extend(complaint);
    call.request.n = None;
    call.native = None;
    call.takes_bytes = false;
    call
}

/// The second reply in the place of the choice that did not fit, with the tokens of both.
fn joined(mut first: ChatResponse, mut second: ChatResponse, at: usize) -> ChatResponse {
    let usage = match (first.usage.take(), second.usage.take()) {
        (Some(first), Some(second)) => Some(sum(first, &second)),
        (one, other) => one.or(other),
    };
    let Some(mut choice) = second.choices.drain(..).next() else { return ChatResponse { usage, ..first } };
    if first.choices.len() == 1 {
        choice.index = first.choices[0].index;
        return ChatResponse { choices: vec![choice], usage, ..second };
    }
    if let Some(old) = first.choices.get_mut(at) {
        choice.index = old.index;
        *old = choice;
    }
    ChatResponse { usage, ..first }
}

fn sum(mut first: Usage, second: &Usage) -> Usage {
    first.prompt_tokens += second.prompt_tokens;
    first.completion_tokens += second.completion_tokens;
    first.total_tokens += second.total_tokens;
    add(&mut first.extra, &second.extra);
    first
}

/// Adds counts, also those one level down.
fn add(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (name, value) in from {
        match (into.get_mut(name), value) {
            (Some(Value::Object(into)), Value::Object(from)) => add(into, from),
            (Some(known), value) => {
                if let (Some(a), Some(b)) = (known.as_u64(), value.as_u64()) {
                    *known = (a + b).into();
                }
            }
            (None, value) => drop(into.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_of_both_calls_count_also_one_level_down() {
        let usage = |value: Value| serde_json::from_value::<Usage>(value).expect("usage");
        let first =
            usage(json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}));
        let second = usage(json!({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 7}}));
        let both = sum(first, &second);
        assert_eq!((both.prompt_tokens, both.completion_tokens, both.total_tokens), (11, 22, 33));
        assert_eq!((both.cached_tokens(), both.reasoning_tokens()), (Some(5), Some(7)));
    }
}
