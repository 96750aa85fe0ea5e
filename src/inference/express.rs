//! The short way for plain chat requests, which are sent on as they were written: the same road, limits, attempts and log row, but
//! nothing is read that nothing needs. Where anything does (a prompt, parameters or guardrails of a release, the cache), the request is
//! read as a whole and goes the common way.

use super::admission::Extent;
use super::attempt::Turn;
use super::foresee::Foreseen;
use super::plan::Plan;
use super::pool::Kind;
use super::road::Road;
use super::ticket::{Asked, Ticket};
use super::{AnswerStream, Ask, Inference, Opened, Passed, Setup, first_piece, told};
use crate::config::routes::Sticky;
use crate::providers::{Call, Reply};
use crate::types::chat::ChatRequest;
use crate::types::plain::PlainChat;
use crate::types::{Code, Failure};
use futures_util::future::BoxFuture;
use std::sync::Arc;

impl Inference {
    /// Answers a plain request.
    ///
    /// # Errors
    /// As [`Inference::pass`].
    pub async fn pass_plain(&self, mut ask: Ask, plain: PlainChat) -> Result<Passed, Failure> {
        let Some((road, mut ticket)) = self.begin_plain(&mut ask, &plain).await? else {
            return Box::pin(self.pass(ask, read(&plain)?)).await;
        };
        let asking = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Reply, Failure>> {
            let (provider, call) = (plan.provider.clone(), call(plan, &plain));
            Box::pin(async move { Ok(provider.chat(call).await?) })
        };
        let answered = self.attempt(&mut ticket, &road, Kind::Whole, &asking).await;
        // Its text is the log's now.
        drop(plain);
        let (reply, plan) = answered.map_err(|failure| ticket.fail(failure))?;
        if ticket.redacts() {
            Box::pin(ticket.redact_reply(&reply.body)).await;
        }
        Ok(told(ticket, reply, plan).await)
    }

    /// Opens a stream for a plain request.
    ///
    /// # Errors
    /// As [`Inference::answer_stream`].
    pub async fn stream_plain(&self, mut ask: Ask, plain: PlainChat) -> Result<AnswerStream, Failure> {
        let Some((road, mut ticket)) = self.begin_plain(&mut ask, &plain).await? else {
            return Box::pin(self.answer_stream(ask, read(&plain)?)).await;
        };
        let opening = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Opened, Failure>> {
            let (plan, call) = (plan.clone(), call(plan, &plain));
            Box::pin(async move { first_piece(plan.provider.chat_stream(call).await?, &plan).await })
        };
        match self.attempt(&mut ticket, &road, Kind::Stream, &opening).await {
            Ok(((first, pieces), plan)) => Ok(AnswerStream::new(ticket, plan, first, pieces)),
            Err(failure) => Err(ticket.fail(failure)),
        }
    }

    /// Whether nothing on a road has to read the request or the reply.
    fn takes_plain(&self, setup: &Setup, road: &Road) -> bool {
        let plain = |plan: &Arc<Plan>| {
            let adds_nothing = plan.manifest.as_ref().is_none_or(|manifest| manifest.adds_nothing() && manifest.guardrails.is_empty());
            adds_nothing && plan.adapter.is_none() && plan.provider.takes_plain()
        };
        // Who stays with a target is told by the request.
        let reads = road.cascade.is_some() || road.rules.sticky != Sticky::None || self.caches(setup, road);
        !reads && road.targets.iter().all(plain) && !setup.guards.are_on(road)
    }

    /// The road and the ticket of a request that nothing on the road has to read. None for any other: that, and whatever is wrong, is
    /// the common way's to tell.
    async fn begin_plain(&self, ask: &mut Ask, plain: &PlainChat) -> Result<Option<(Arc<Road>, Ticket)>, Failure> {
        let setup = self.setup();
        ask.text = Some(plain.text.clone());
        if self.may_name(ask, &plain.model, None).is_err() {
            return Ok(None);
        }
        let Ok(road) = self.road_of(&setup, &plain.model).await else { return Ok(None) };
        if !self.takes_plain(&setup, &road) {
            return Ok(None);
        }
        let mut ticket = Ticket::open(&setup.log, ask, &Asked::plain(plain));
        ticket.routed(&road);
        ticket.priced(&setup);
        match self.admit(&setup, ask, &road, (Extent::of_plain(plain), &Foreseen::default())).await {
            Ok(grant) => ticket.granted(grant),
            Err(failure) => {
                Box::pin(ticket.redact_large()).await;
                return Err(ticket.fail(failure));
            }
        }
        Ok(Some((road, ticket)))
    }
}

fn read(plain: &PlainChat) -> Result<ChatRequest, Failure> {
    plain.read().map_err(|error| Failure::new(Code::INVALID_REQUEST, format!("the body does not fit: {error}")))
}

fn call(plan: &Plan, plain: &PlainChat) -> Call {
    Call { plain: Some(plain.clone()), takes_bytes: true, ..plan.call(ChatRequest::default()) }
}
