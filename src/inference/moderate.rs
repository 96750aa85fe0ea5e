//! Models that judge texts: asked for guardrails, and by callers of `/v1/moderations` themselves.

use super::admission::Extent;
use super::attempt::Turn;
use super::foresee::Foreseen;
use super::guard::Guarded;
use super::plan::Plan;
use super::pool::Kind;
use super::ticket::{Asked, Ticket};
use super::{Ask, Inference, Setup};
use crate::config::guardrails::{ModerationConfig, OnError, Side};
use crate::guardrails::{Finding, Guard};
use crate::providers::ModerateCall;
use crate::types::{Code, Failure, Told};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Texts that a model is asked about at once.
const MAX_INPUTS: usize = 32;
const MAX_CATEGORIES: usize = 16;
const MAX_NAME_BYTES: usize = 64;

/// A moderation that a caller asked for.
#[derive(Debug, Clone)]
pub struct Moderated {
    /// The reply as the provider sent it.
    pub response: Value,
    /// What the caller is told besides.
    pub told: Box<Told>,
}

impl Inference {
    /// Asks a model what it thinks of texts. `request` is a body of `/v1/moderations`.
    ///
    /// # Errors
    /// As [`Inference::chat`]; [`Code::UNSUPPORTED`] where the provider judges no texts.
    pub async fn moderate(&self, mut ask: Ask, request: Map<String, Value>) -> Result<Moderated, Failure> {
        let model = request.get("model").and_then(Value::as_str).unwrap_or_default().to_string();
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::whole(&model, &request));
        let response = self.judged(&mut ticket, &ask, &model, request).await.map_err(|failure| ticket.fail(failure))?;
        Ok(Moderated { response, told: ticket.done(None) })
    }

    async fn judged(&self, ticket: &mut Ticket, ask: &Ask, model: &str, mut request: Map<String, Value>) -> Result<Value, Failure> {
        let setup = self.setup();
        let held = ticket.hold_body();
        let found = self.road_to(&setup, ask, model).await;
        let (road, guarded) = self.sets_out(&setup, ticket, found, held)?;
        ticket.granted(self.admit(&setup, ask, &road, (Extent::of_values(request.values()), &Foreseen::default())).await?);
        if let Some(mut guarded) = guarded {
            self.guard_moderation(ticket, &mut guarded, &mut request)?;
        }
        let asking = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Value, Failure>> {
            let (plan, request) = (plan.clone(), request.clone());
            Box::pin(async move { Ok(plan.provider.moderate(ModerateCall { model: plan.model.clone(), request }).await?) })
        };
        let (response, plan) = self.attempt(ticket, &road, Kind::Other, &asking).await?;
        if verdicts(&response).is_none() {
            let message = format!("{}/{} answered with something that is no moderation", plan.provider_name, plan.model);
            return Err(Failure::new(Code::UPSTREAM, message));
        }
        Ok(response)
    }

    /// Whether a model is to be asked about texts that go this way.
    pub(super) fn asks_models(&self, guarded: &Guarded, side: Side) -> bool {
        guarded.sets.iter().any(|guard| moderation_of(guard, side).is_some())
    }

    /// Asks the models of all sets about texts, given with their places.
    ///
    /// # Errors
    /// [`Code::CONTENT_FILTER`] with the categories; [`Code::UPSTREAM`] when a model cannot be asked and its set says `refuse`.
    pub(super) async fn moderated(
        &self,
        setup: &Arc<Setup>,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        (side, texts): (Side, Vec<(String, String)>),
    ) -> Result<(), Failure> {
        let texts: Vec<_> = texts.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        for guard in guarded.sets.clone() {
            let Some(moderation) = moderation_of(&guard, side) else { continue };
            for texts in texts.chunks(MAX_INPUTS) {
                let finding = |place: &str, action, detail| Finding {
                    set: guard.set.name.clone(),
                    detector: "moderation".into(),
                    on: side,
                    action,
                    count: 1,
                    place: place.to_string(),
                    detail: Some(detail),
                };
                match judge(setup, moderation, texts).await {
                    Ok(None) => {}
                    Ok(Some((place, categories))) => {
                        guarded.note(ticket, vec![finding(&place, "refuse", categories.clone())]);
                        let message = format!("the guardrail \"{}\" refuses {place}: {categories}", guard.set.name);
                        return Err(Failure::on(Code::CONTENT_FILTER, place, message));
                    }
                    Err(why) if moderation.on_error == OnError::Allow => {
                        guarded.note(ticket, vec![finding("", "allow", format!("not judged: {}", why.name))]);
                    }
                    Err(why) => {
                        guarded.note(ticket, vec![finding("", "refuse", format!("not judged: {}", why.name))]);
                        let message = format!("the guardrail \"{}\" could not ask {}: {}", guard.set.name, moderation.model, why.name);
                        return Err(Failure::new(Code::UPSTREAM, message));
                    }
                }
            }
        }
        Ok(())
    }
}

fn moderation_of(guard: &Guard, side: Side) -> Option<&ModerationConfig> {
    guard.set.moderation.as_ref().filter(|moderation| moderation.on.contains(&side))
}

/// The first text that may not pass, and why. What is in an error of the provider is not told: it may repeat the text.
async fn judge(setup: &Setup, moderation: &ModerationConfig, texts: &[(String, String)]) -> Result<Option<(String, String)>, Code> {
    let (provider, _, model) = setup.providers.resolve(&moderation.model).map_err(|error| error.code)?;
    let input: Vec<Value> = texts.iter().map(|(_, text)| text.as_str().into()).collect();
    let request = Map::from_iter([("input".to_string(), Value::Array(input))]);
    let response = provider.moderate(ModerateCall { model: model.to_string(), request }).await.map_err(|error| error.code)?;
    let verdicts = verdicts(&response).filter(|verdicts| verdicts.len() == texts.len()).ok_or(Code::UPSTREAM)?;
    let flagged = texts.iter().zip(verdicts).find_map(|((place, _), verdict)| Some((place.clone(), flagged(verdict, moderation)?)));
    Ok(flagged)
}

/// The results of a moderation; none where it is not one.
fn verdicts(response: &Value) -> Option<&Vec<Value>> {
    let results = response.get("results")?.as_array()?;
    results.iter().all(|result| result.get("flagged").is_some_and(Value::is_boolean)).then_some(results)
}

/// The categories for which a text may not pass.
fn flagged(verdict: &Value, moderation: &ModerationConfig) -> Option<String> {
    let counts = |name: &str| moderation.categories.is_empty() || moderation.categories.iter().any(|category| category == name);
    let empty = Map::new();
    let of = |field: &str| verdict.get(field).and_then(Value::as_object).unwrap_or(&empty);
    let is_safe = |name: &&str| name.len() <= MAX_NAME_BYTES && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_- ".contains(&b));
    let named: Vec<&str> = match moderation.threshold {
        Some(threshold) => {
            let above = |score: &Value| score.as_f64().is_some_and(|score| score >= threshold);
            of("category_scores").iter().filter(|(name, score)| counts(name) && above(score)).map(|(name, _)| name.as_str()).collect()
        }
        None if verdict["flagged"] != true => return None,
        None => of("categories").iter().filter(|(name, is)| counts(name) && **is == true).map(|(name, _)| name.as_str()).collect(),
    };
    let is_bare = moderation.threshold.is_none() && moderation.categories.is_empty();
    match named.is_empty() {
        // A verdict without its reasons is one all the same.
        true => is_bare.then(|| "flagged".to_string()),
        false => Some(named.into_iter().filter(is_safe).take(MAX_CATEGORIES).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn says(verdict: Value, threshold: Option<f64>, categories: &[&str]) -> Option<String> {
        let categories = categories.iter().map(ToString::to_string).collect();
        let moderation = ModerationConfig { model: "p/m".into(), on: Vec::new(), threshold, categories, on_error: OnError::Refuse };
        flagged(&verdict, &moderation)
    }

    #[test]
    fn verdicts_count_by_flag_threshold_and_category() {
        let verdict =
            json!({"flagged": true, "categories": {"hate": true, "violence": false}, "category_scores": {"hate": 0.9, "violence": 0.5}});
        assert_eq!(says(verdict.clone(), None, &[]).as_deref(), Some("hate"));
        assert_eq!(says(verdict.clone(), None, &["violence"]), None);
        assert_eq!(says(verdict.clone(), Some(0.5), &[]).as_deref(), Some("hate, violence"));
        assert_eq!(says(verdict.clone(), Some(0.5), &["violence"]).as_deref(), Some("violence"));
        assert_eq!(says(verdict, Some(0.95), &[]), None);
        assert_eq!(says(json!({"flagged": true}), None, &[]).as_deref(), Some("flagged"));
        assert_eq!(says(json!({"flagged": false, "categories": {"hate": true}}), None, &[]), None);
    }
}
