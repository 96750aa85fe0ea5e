//! From production to a dataset: logged requests become proposals that people review. What may be personal is taken out first, whatever
//! the log's own rules are.

use super::{CONVERSATIONS, judge, redaction};
use crate::config::{GuardrailsConfig, LogConfig};
use crate::datasets::{Sample, shapes};
use crate::inference::Inference;
use crate::monitor::{Redactor, rows};
use crate::store::feedback::{self, FeedbackRow};
use crate::store::log::Filter;
use crate::store::requests::RequestRow;
use crate::store::reviews::{self, OPEN, ReviewItem};
use crate::store::{Store, StoreError};
use crate::types::time::{now_ms, rfc3339};
use crate::types::{Code, Failure, ids};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What to propose.
#[derive(Debug, Clone, Default)]
pub struct Curation {
    /// Dataset that it is meant for.
    pub dataset: String,
    /// Requests of the log.
    pub filter: Filter,
    /// Only those that somebody corrected.
    pub corrected: bool,
    /// Only those whose mean feedback is at most this; of that name where one is given.
    pub disliked: Option<(Option<String>, f64)>,
    /// Only those that were stored for reading, with these metadata.
    pub stored: Option<Vec<(String, String)>>,
    /// Only those whose answer this model does not agree with.
    pub judge: Option<String>,
    /// The last thing that the user said becomes this variable; without it the messages are the input.
    pub variable: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// How many people must look at each.
    pub needed: i64,
    /// What the operator wants to be taken out of logged requests.
    pub log: LogConfig,
    /// What the operator looks for in requests.
    pub guardrails: GuardrailsConfig,
}

/// What was proposed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Curated {
    /// Requests that the filter meant.
    pub looked_at: usize,
    /// Proposals that are new.
    pub proposed: usize,
    /// Proposals that were made before.
    pub known: usize,
    /// Requests that ask and answer what another one does.
    pub repeated: usize,
    /// Requests without a whole conversation.
    pub left_out: usize,
    /// Proposals from which something personal was taken.
    pub redacted: usize,
    /// Judgements that could not be had.
    pub unjudged: usize,
}

/// Proposes samples for review. With `dry_run` nothing is stored; what would be is given back.
///
/// # Errors
/// When the log cannot be read, or the judge cannot be asked at all.
pub async fn curate(
    store: &Store,
    inference: &Arc<Inference>,
    curation: &Curation,
    dry_run: bool,
) -> Result<(Curated, Vec<ReviewItem>), Failure> {
    if !ids::is_slug(&curation.dataset) {
        return Err(crate::datasets::DatasetError::Name(curation.dataset.clone()).into());
    }
    let (sender, mut receiver) = mpsc::channel(1);
    let (log, wanted) = (store.clone(), curation.clone());
    let reader = tokio::task::spawn_blocking(move || candidates(&log, &wanted, &sender));
    let (mut items, mut unjudged, mut so_far) = (Vec::new(), 0, None);
    while items.len() < curation.limit {
        let Some((counts, mut candidate)) = receiver.recv().await else { break };
        so_far = Some(counts);
        if let Some(model) = &curation.judge {
            match judge::disagrees(inference, model, &candidate.sample).await {
                Ok(Some(why)) => candidate.reasons.push(format!("{model} disagrees: {why}")),
                Ok(None) => continue,
                // A model that is not there will not be there for the next one.
                Err(failure) if failure.code() == Code::MODEL_NOT_FOUND || failure.code() == Code::INVALID_CONFIG => return Err(failure),
                Err(_) => {
                    unjudged += 1;
                    continue;
                }
            }
        }
        items.push(item(candidate, curation));
    }
    drop(receiver);
    let whole = reader.await.map_err(|error| Failure::new(Code::INTERNAL, format!("the log could not be read: {error}")))??;
    // What was read ahead of the limit does not count.
    let mut curated = if items.len() < curation.limit { whole } else { so_far.unwrap_or(whole) };
    curated.unjudged = unjudged;
    if !dry_run {
        curated.proposed = reviews::add(store.db.as_ref(), &items)?;
        // Somebody may have proposed some of them meanwhile.
        curated.known += items.len() - curated.proposed;
    }
    Ok((curated, items))
}

/// A request that may become a sample.
struct Candidate {
    sample: Sample,
    project: String,
    reasons: Vec<String>,
}

fn item(candidate: Candidate, curation: &Curation) -> ReviewItem {
    let Candidate { sample, project, reasons } = candidate;
    ReviewItem {
        id: ids::new_id("item"),
        project,
        dataset: curation.dataset.clone(),
        source: sample.id.clone(),
        reason: if reasons.is_empty() { "filter".into() } else { reasons.join("; ") },
        sample: json!(sample),
        status: OPEN.into(),
        outcome: None,
        needed: curation.needed,
        created_at: now_ms(),
        closed_at: None,
    }
}

/// Gives what may be proposed to whoever takes it, one after the other with the counts so far, until nobody does any more.
fn candidates(store: &Store, curation: &Curation, sender: &mpsc::Sender<(Curated, Candidate)>) -> Result<Curated, StoreError> {
    let (mut curated, mut seen) = (Curated::default(), HashSet::new());
    let redactor = redaction::redactor(&curation.log, &curation.guardrails);
    rows::each::<StoreError>(store, &curation.filter, |row| {
        if !CONVERSATIONS.contains(&row.endpoint.as_str()) || row.error_code.is_some() {
            return Ok(true);
        }
        let given = feedback::of_request(store.db.as_ref(), &row.id, None)?;
        let Some(reasons) = reasons(curation, &row, &given) else { return Ok(true) };
        curated.looked_at += 1;
        let row = rows::with_bodies(store, row)?;
        let Some(sample) = sample(&row, &given, curation.variable.as_deref()) else {
            curated.left_out += 1;
            return Ok(true);
        };
        let content = sample.content();
        if !seen.insert(content.prefix()) {
            curated.repeated += 1;
            return Ok(true);
        }
        if reviews::is_known(store.db.as_ref(), &row.project, &curation.dataset, &row.id)? {
            curated.known += 1;
            return Ok(true);
        }
        let Some(sample) = redacted(&redactor, &row, &given, curation.variable.as_deref()) else {
            curated.left_out += 1;
            return Ok(true);
        };
        curated.redacted += usize::from(sample.content() != content);
        let candidate = Candidate { sample, project: row.project, reasons };
        Ok(sender.blocking_send((curated.clone(), candidate)).is_ok())
    })?;
    Ok(curated)
}

/// The sample of a request without what may be personal: first by the places of its body, then what is left in the sample.
fn redacted(redactor: &Redactor, row: &RequestRow, given: &[FeedbackRow], variable: Option<&str>) -> Option<Sample> {
    let mut row = row.clone();
    for body in [&mut row.request, &mut row.reply].into_iter().flatten() {
        *body = redactor.body(std::mem::take(body));
    }
    let mut sample = sample(&row, given, variable)?;
    for value in sample.input.values_mut().chain([&mut sample.target]) {
        redactor.value(value);
    }
    Some(sample)
}

/// Why a request is chosen; none where it is not.
fn reasons(curation: &Curation, row: &RequestRow, given: &[FeedbackRow]) -> Option<Vec<String>> {
    let mut reasons = Vec::new();
    if curation.corrected {
        given.iter().find(|feedback| feedback.correction.is_some())?;
        reasons.push("corrected".into());
    }
    if let Some((name, most)) = &curation.disliked {
        let numbers = given.iter().filter(|feedback| name.as_ref().is_none_or(|name| feedback.name == *name));
        let numbers: Vec<f64> = numbers.filter_map(|feedback| feedback.number).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        if numbers.is_empty() || mean > *most {
            return None;
        }
        reasons.push(format!("feedback {mean:.2}"));
    }
    if let Some(wanted) = &curation.stored {
        let metadata: Value = serde_json::from_str(row.stored.as_deref()?).unwrap_or_default();
        let has = |(key, value): &(String, String)| metadata.get(key).and_then(Value::as_str) == Some(value);
        if !wanted.iter().all(has) {
            return None;
        }
        reasons.push("stored".into());
    }
    Some(reasons)
}

/// The conversation of a request as a sample, with its answer or what somebody says that it should have been.
fn sample(row: &RequestRow, given: &[FeedbackRow], variable: Option<&str>) -> Option<Sample> {
    let request: Map<String, Value> = serde_json::from_str(row.request.as_deref()?).ok()?;
    let mut messages = request.get("messages")?.as_array()?.clone();
    let corrected = given.iter().rev().find_map(|feedback| feedback.correction.as_ref());
    messages.push(match corrected {
        Some(correction) => json!({"role": "assistant", "content": correction}),
        None => answer(row.reply.as_deref()?)?,
    });
    let mut record = Map::from_iter([("messages".to_string(), Value::from(messages))]);
    for name in ["tools", "parallel_tool_calls"] {
        record.extend(request.get(name).map(|value| (name.to_string(), value.clone())));
    }
    let mut draft = shapes::named("openai-chat")?.read(record).ok()?;
    if let Some(variable) = variable {
        let asked = super::coverage::asked(row.request.as_deref()?)?;
        draft.input = Map::from_iter([(variable.to_string(), asked.into())]);
    }
    let mut metadata = Map::new();
    metadata.insert("request".into(), row.id.clone().into());
    metadata.insert("at".into(), rfc3339(row.at).into());
    metadata.insert("model".into(), format!("{}/{}", row.provider, row.model).into());
    metadata.extend(row.route.clone().map(|route| ("route".to_string(), route.into())));
    if corrected.is_some() {
        metadata.insert("corrected".into(), true.into());
    }
    draft.metadata = metadata;
    draft.id = Some(row.id.clone());
    Some(draft.named())
}

/// What the model said; none where the log or a limit has cut it.
fn answer(reply: &str) -> Option<Value> {
    let reply: Value = serde_json::from_str(reply).ok()?;
    if reply.get("refit").is_some_and(|refit| refit.get("cut").is_some()) {
        return None;
    }
    let Some(choice) = reply.get("choices").and_then(|choices| choices.get(0)) else { return as_sent(&reply) };
    if choice["finish_reason"] == "length" {
        return None;
    }
    let mut said = Map::from_iter([("role".to_string(), json!("assistant"))]);
    for name in ["content", "tool_calls"] {
        let value = choice.get("message")?.get(name).filter(|value| !value.is_null());
        said.extend(value.map(|value| (name.to_string(), value.clone())));
    }
    (said.len() > 1).then(|| said.into())
}

/// The text of a reply that was logged as its provider sent it: `content` of `/v1/messages`, `output` of `/v1/responses`. None where it
/// ended early, or holds anything but text.
fn as_sent(reply: &Value) -> Option<Value> {
    let has_ended = reply["stop_reason"] == "end_turn" || reply["stop_reason"] == "stop_sequence" || reply["status"] == "completed";
    let parts: Vec<&Value> = match (reply["content"].as_array(), reply["output"].as_array()) {
        (Some(parts), _) => parts.iter().collect(),
        (None, Some(items)) => {
            let spoken = items.iter().filter(|item| item["type"] != "reasoning");
            spoken.map(|item| item["content"].as_array()).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect()
        }
        (None, None) => return None,
    };
    let texts: Option<Vec<&str>> = parts.iter().filter(|part| part["type"] != "thinking").map(|part| part["text"].as_str()).collect();
    let text = texts?.concat();
    (has_ended && !text.is_empty()).then(|| json!({"role": "assistant", "content": text}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_in_every_protocol_and_only_whole() {
        let said = |reply: Value| answer(&reply.to_string()).map(|said| said["content"].clone());
        let of_messages = |stop: &str| json!({"type": "message", "stop_reason": stop, "content": [{"type": "thinking", "thinking": "?"}, {"type": "text", "text": "Hi"}]});
        assert_eq!((said(of_messages("end_turn")), said(of_messages("max_tokens"))), (Some(json!("Hi")), None));
        let item = json!({"type": "message", "content": [{"type": "output_text", "text": "Hi"}]});
        let of_responses = |status: &str, items: Value| json!({"object": "response", "status": status, "output": items});
        assert_eq!(said(of_responses("completed", json!([{"type": "reasoning", "summary": []}, item]))), Some(json!("Hi")));
        assert_eq!(said(of_responses("incomplete", json!([item]))), None);
        // A call of a tool is no text.
        assert_eq!(said(of_responses("completed", json!([{"type": "function_call", "name": "f"}]))), None);
        assert_eq!(said(json!({"choices": [{"finish_reason": "stop", "message": {"content": "Hi"}}]})), Some(json!("Hi")));
    }
}
