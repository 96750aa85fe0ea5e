//! From production to a dataset: logged requests become proposals that people review. What may be personal is taken out first, whatever
//! the log's own rules are.

use super::judge;
use crate::config::guardrails::Detector;
use crate::datasets::{Sample, shapes};
use crate::guardrails::detect;
use crate::inference::Inference;
use crate::monitor::rows;
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

/// Endpoint whose requests become samples.
const CHAT: &str = "chat.completions";

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
    let (mut curated, candidates) = candidates(store, curation)?;
    let mut items = Vec::new();
    for mut candidate in candidates {
        if items.len() >= curation.limit {
            break;
        }
        if let Some(model) = &curation.judge {
            match judge::disagrees(inference, model, &candidate.sample).await {
                Ok(Some(why)) => candidate.reasons.push(format!("{model} disagrees: {why}")),
                Ok(None) => continue,
                // A model that is not there will not be there for the next one.
                Err(failure) if failure.code() == Code::MODEL_NOT_FOUND || failure.code() == Code::INVALID_CONFIG => return Err(failure),
                Err(_) => {
                    curated.unjudged += 1;
                    continue;
                }
            }
        }
        items.push(item(candidate, curation));
    }
    if !dry_run {
        curated.proposed = reviews::add(store.db.as_ref(), &items)?;
        curated.known = items.len() - curated.proposed;
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

fn candidates(store: &Store, curation: &Curation) -> Result<(Curated, Vec<Candidate>), StoreError> {
    let (mut curated, mut found, mut seen) = (Curated::default(), Vec::new(), HashSet::new());
    // With a judge it is not known yet which of them stay.
    let most = if curation.judge.is_some() { usize::MAX } else { curation.limit };
    rows::each::<StoreError>(store, &curation.filter, |row| {
        if row.endpoint != CHAT || row.error_code.is_some() {
            return Ok(true);
        }
        let given = feedback::of_request(store.db.as_ref(), &row.id, None)?;
        let Some(reasons) = reasons(curation, &row, &given) else { return Ok(true) };
        curated.looked_at += 1;
        let row = rows::with_bodies(store, row)?;
        let project = row.project.clone();
        let Some(mut sample) = sample(&row, &given, curation.variable.as_deref()) else {
            curated.left_out += 1;
            return Ok(true);
        };
        if !seen.insert(sample.content().prefix()) {
            curated.repeated += 1;
            return Ok(true);
        }
        curated.redacted += usize::from(redact(&mut sample));
        found.push(Candidate { sample, project, reasons });
        Ok(found.len() < most)
    })?;
    Ok((curated, found))
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
    let choice = reply.get("choices")?.get(0)?;
    if reply.get("refit").is_some_and(|refit| refit.get("cut").is_some()) || choice["finish_reason"] == "length" {
        return None;
    }
    let mut said = Map::from_iter([("role".to_string(), json!("assistant"))]);
    for name in ["content", "tool_calls"] {
        let value = choice.get("message")?.get(name).filter(|value| !value.is_null());
        said.extend(value.map(|value| (name.to_string(), value.clone())));
    }
    (said.len() > 1).then(|| said.into())
}

/// Puts a word in the place of everything that detectors find; whether there was anything.
fn redact(sample: &mut Sample) -> bool {
    let mut any = false;
    for value in sample.input.values_mut().chain([&mut sample.target]) {
        any |= redact_value(value);
    }
    any
}

fn redact_value(value: &mut Value) -> bool {
    match value {
        Value::String(text) => match redacted(text) {
            Some(new) => {
                *text = new;
                true
            }
            None => false,
        },
        Value::Array(items) => items.iter_mut().fold(false, |any, item| redact_value(item) | any),
        Value::Object(fields) => fields.values_mut().fold(false, |any, item| redact_value(item) | any),
        _ => false,
    }
}

fn redacted(text: &str) -> Option<String> {
    let mut places = Vec::new();
    for detector in Detector::ALL {
        let mut found = Vec::new();
        detect::find(detector, text, &mut found);
        places.extend(found.into_iter().map(|place| (place, detector.name())));
    }
    places.sort_by_key(|(place, _)| (place.start, std::cmp::Reverse(place.end)));
    let (mut written, mut end) = (String::new(), 0);
    for (place, name) in &places {
        if place.start < end {
            continue;
        }
        written.push_str(&text[end..place.start]);
        written.push_str(&format!("[{name}]"));
        end = place.end;
    }
    written.push_str(&text[end..]);
    (!places.is_empty()).then_some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_detectors_find_is_taken_out_once() {
        assert_eq!(redacted("write to ann@example.com from 10.0.0.1"), Some("write to [email] from [ip_address]".into()));
        assert_eq!(redacted("nothing here"), None);
    }
}
