//! Calls of evaluations. A call is written first ([`Inference::ready`]), so that it is known what will be asked and what it may cost, and
//! then made on the same road as an application's.

use super::attempt::Turn;
use super::guard::{Guarded, Run, Variables};
use super::plan::{self, Plan};
use super::pool::Kind;
use super::road::Road;
use super::ticket::{Asked, Ticket};
use super::{Answer, Ask, Inference, Setup, read, render, told};
use crate::access::Caller;
use crate::providers::{Call, Reply};
use crate::releases::Manifest;
use crate::types::blocking::blocking;
use crate::types::chat::ChatRequest;
use crate::types::{Digest, Failure};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// Everything that decides what is answered.
    pub manifest: &'a Manifest,
    /// Its digest.
    pub release: Digest,
}

/// A call of an evaluation that is written and not yet made.
pub struct Ready {
    pub(super) setup: Arc<Setup>,
    road: Arc<Road>,
    pub(super) call: Call,
    guarded: Option<Box<Guarded>>,
    /// Why its variables may not pass.
    refused: Option<Failure>,
}

impl Ready {
    /// A digest of everything that changes the answer: where it is asked, model and file, adapter, release (and with it the prompt), all
    /// messages, parameters and tools, and the guardrails around it.
    pub fn fingerprint(&self) -> Digest {
        let plan = self.plan();
        let config = &self.setup.config;
        let provider = config.providers.iter().find(|provider| provider.name == plan.provider_name);
        let guardrails = self.guarded.as_ref().map(|_| format!("{:?}", config.guardrails));
        Digest::of_json(&json!({
            "provider": plan.provider_name,
            "kind": provider.map(|provider| &provider.kind),
            "base_url": provider.map(|provider| &provider.base_url),
            "api_version": provider.map(|provider| &provider.api_version),
            "model": self.call.model,
            "file": self.call.model_digest.or(plan.file),
            "adapter": self.call.adapter,
            "release": plan.release,
            "prompt": plan.prompt.as_ref().map(|prompt| prompt.digest),
            "request": self.call.request,
            "guardrails": guardrails,
        }))
    }

    /// Provider and model that it goes to.
    pub fn target(&self) -> (&str, &str) {
        (&self.plan().provider_name, &self.plan().model)
    }

    pub(super) fn plan(&self) -> &Plan {
        // A measured road has one target.
        &self.road.targets[0]
    }
}

impl Inference {
    /// Answers with a given manifest instead of a route's: the same road, for evaluations. Without a prompt in the manifest, the
    /// variables are `messages` (a list of chat messages) or one text, which becomes the user's message.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn run(&self, manifest: &Manifest, variables: &Map<String, Value>, caller: &Caller) -> Result<Answer, Failure> {
        let measured = Measured { manifest, release: manifest.digest() };
        let ready = self.ready(measured, variables, caller).await?;
        self.ask_ready(ready, caller).await
    }

    /// Writes a call, without making it. What cannot be written has a row in the log, as any call that fails.
    ///
    /// # Errors
    /// As [`Inference::chat`], up to the call.
    pub async fn ready(&self, measured: Measured<'_>, variables: &Map<String, Value>, caller: &Caller) -> Result<Ready, Failure> {
        let setup = self.setup();
        let Variables { variables, guarded, refused } = self.guard_variables(&setup, measured.manifest, variables.clone())?;
        match self.write_measured(&setup, measured, variables).await {
            Ok((road, call)) => Ok(Ready { setup, road, call, guarded, refused }),
            Err(failure) => {
                let asked = ChatRequest { model: measured.manifest.model.clone(), ..ChatRequest::default() };
                let mut ticket = Ticket::open(&setup.log, &mut Ask::new(caller, "eval"), &Asked::chat(&asked));
                ticket.priced(&setup);
                Err(ticket.fail(failure))
            }
        }
    }

    /// Makes a call that is written.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn ask_ready(&self, ready: Ready, caller: &Caller) -> Result<Answer, Failure> {
        let Ready { setup, road, call, guarded, refused } = ready;
        let mut ticket = Ticket::open(&setup.log, &mut Ask::new(caller, "eval"), &Asked::measured(&call.request));
        ticket.priced(&setup);
        if let Some(guarded) = guarded {
            let run = Run { setup: &setup, road: &road, call: &call, refused };
            let answered = self.run_guarded(&mut ticket, guarded, run).await;
            let (response, plan) = answered.map_err(|failure| ticket.fail(failure))?;
            return read(told(ticket, response.into(), plan).await);
        }
        let calling = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Reply, Failure>> {
            let (plan, call) = (plan.clone(), call.clone());
            Box::pin(async move { Ok(plan.provider.chat(call).await?) })
        };
        let answered = self.attempt(&mut ticket, &road, Kind::Whole, &calling).await;
        let (reply, plan) = answered.map_err(|failure| ticket.fail(failure))?;
        read(told(ticket, reply, plan).await)
    }

    async fn write_measured(
        &self,
        setup: &Arc<Setup>,
        measured: Measured<'_>,
        variables: Map<String, Value>,
    ) -> Result<(Arc<Road>, Call), Failure> {
        let road = self.road_measured(setup, measured).await?;
        let plan = road.targets[0].clone();
        // Compiled when the road was looked up.
        let request = match plan.prompt(&self.prompts)? {
            None => render::run(&plan, None, &variables, &[])?,
            Some(prompt) => {
                let examples = match prompt.front.examples.is_some() {
                    true => self.examples(&prompt, &variables).await?,
                    false => Vec::new(),
                };
                let plan = plan.clone();
                // A template may take its time.
                blocking(move || render::run(&plan, Some(&prompt), &variables, &examples)).await?
            }
        };
        let call = plan.call(request);
        Ok((road, call))
    }

    /// The road of a manifest, looked up once until anybody commits.
    async fn road_measured(&self, setup: &Arc<Setup>, measured: Measured<'_>) -> Result<Arc<Road>, Failure> {
        // No name that can be called has a space in it.
        let key = format!("measured {}", measured.release);
        let generation = setup.roads.generation()?;
        if let Some(road) = setup.roads.get(generation, &key) {
            return Ok(road);
        }
        let (parts, prompts, manifest, of) = (self.parts(setup), self.prompts.clone(), measured.manifest.clone(), setup.clone());
        let road = blocking(move || {
            let plan = plan::for_manifest(&parts.store, &of, manifest)?;
            plan.prompt(&prompts)?;
            Ok(Arc::new(parts.measured(plan)))
        });
        let road = road.await?;
        setup.roads.keep(generation, key, road.clone());
        Ok(road)
    }
}
