//! Embeddings: planned and logged like a completion; the vectors themselves are not kept in the log.

use super::admission::Extent;
use super::attempt::Turn;
use super::foresee::Foreseen;
use super::plan::Plan;
use super::pool::Kind;
use super::road::Road;
use super::ticket::{Asked, Ticket};
use super::{Ask, Inference};
use crate::access::Caller;
use crate::providers::EmbedCall;
use crate::types::embeddings::{EmbeddingRequest, EmbeddingResponse, Vector};
use crate::types::traits::{Embed, Vectors};
use crate::types::{Code, Failure, Told};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// Vectors with what is known about them.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// The reply.
    pub response: EmbeddingResponse,
    /// What the caller is told besides.
    pub told: Box<Told>,
}

impl Inference {
    /// Makes vectors on a route or a model, in the encoding that the request asks for.
    ///
    /// # Errors
    /// As [`Inference::chat`]; [`Code::UNSUPPORTED`] where the provider makes no embeddings.
    pub async fn embed(&self, mut ask: Ask, request: EmbeddingRequest) -> Result<Embedded, Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::whole(&request.model, &request));
        let made = self.vectors(&mut ticket, &ask, request).await;
        if made.is_err() {
            ticket.redact_large().await;
        }
        let response = made.map_err(|failure| ticket.fail(failure))?;
        let told = ticket.done(Some(response.usage.prompt_tokens));
        Ok(Embedded { response, told })
    }

    async fn vectors(&self, ticket: &mut Ticket, ask: &Ask, mut request: EmbeddingRequest) -> Result<EmbeddingResponse, Failure> {
        let setup = self.setup();
        let held = ticket.hold_body();
        let found = self.road_to(&setup, ask, &request.model).await.and_then(Road::for_vectors);
        let (road, guarded) = self.sets_out(&setup, ticket, found, held)?;
        if road.targets.iter().any(|plan| plan.manifest.as_ref().is_some_and(|manifest| manifest.prompt.is_some())) {
            let message = format!("the route \"{}\" answers a prompt; it makes no embeddings", request.model);
            return Err(Failure::on(Code::UNSUPPORTED, "model", message));
        }
        ticket.granted(self.admit(&setup, ask, &road, (Extent::of_embedding(&request), &Foreseen::default())).await?);
        if let Some(mut guarded) = guarded {
            request = self.guard_embedding(&setup, ticket, &mut guarded, request).await?;
        }
        let embedding = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<EmbeddingResponse, Failure>> {
            let (plan, request) = (plan.clone(), request.clone());
            let model_digest = plan.manifest.as_ref().and_then(|manifest| manifest.model_digest);
            Box::pin(async move { Ok(plan.provider.embed(EmbedCall { model: plan.model.clone(), model_digest, request }).await?) })
        };
        let (mut response, plan) = self.attempt(ticket, &road, Kind::Whole, &embedding).await?;
        let inputs = request.count();
        // Callers pair vectors with inputs by their place: too few would be paired wrongly.
        if response.data.len() != inputs || response.data.iter().any(|vector| vector.embedding.is_empty()) {
            let made = response.data.len();
            let message = format!("{}/{} answered {inputs} inputs with {made} vectors, or empty ones", plan.provider_name, plan.model);
            return Err(Failure::new(Code::UPSTREAM, message));
        }
        let base64 = request.wants_base64();
        response.data.iter_mut().for_each(|vector| encode(&mut vector.embedding, base64));
        Ok(response)
    }
}

/// For evaluations and checks of datasets, logged as theirs.
impl Embed for Inference {
    fn embed<'a>(&'a self, model: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
        let request = EmbeddingRequest { model: model.to_string(), input: texts.into(), ..EmbeddingRequest::default() };
        Box::pin(async move {
            let embedded = Inference::embed(self, Ask::new(&Caller::local("eval"), "eval"), request).await?;
            let unreadable = || Failure::new(Code::UPSTREAM, format!("{model} sent a vector that cannot be read"));
            let numbers = |vector: Vector| match vector {
                Vector::Floats(numbers) => Ok(numbers.into_iter().map(|x| x as f32).collect()),
                Vector::Base64(_) => Err(unreadable()),
            };
            let cost_micro_usd = embedded.told.cost.micro_usd();
            let vectors = embedded.response.data.into_iter().map(|one| numbers(one.embedding)).collect::<Result<_, _>>()?;
            Ok(Vectors { vectors, cost_micro_usd })
        })
    }
}

/// Writes a vector as it was asked for; what is not readable stays as the provider sent it.
fn encode(vector: &mut Vector, base64: bool) {
    match vector {
        Vector::Floats(numbers) if base64 => {
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
            *vector = Vector::Base64(BASE64_STANDARD.encode(bytes));
        }
        Vector::Base64(text) if !base64 => {
            if let Ok(bytes) = BASE64_STANDARD.decode(text.as_bytes()) {
                let numbers = bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                *vector = Vector::Floats(numbers.collect());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_survive_both_encodings() {
        let mut vector = Vector::Floats(vec![0.5, -1.25]);
        encode(&mut vector, true);
        assert!(matches!(&vector, Vector::Base64(text) if text == "AAAAPwAAoL8="), "{vector:?}");
        encode(&mut vector, false);
        assert!(matches!(&vector, Vector::Floats(numbers) if numbers == &[0.5, -1.25]), "{vector:?}");
    }
}
