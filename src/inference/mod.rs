//! The only road to a completion: [`plan`] (what will answer), [`render`] (the release's prompt), the call, and the log row
//! ([`ticket`]) that stands before the reply ends. The gateway, evaluations and the demo all go this way.

mod assemble;
mod embed;
pub mod plan;
mod render;
mod stream;
mod ticket;

pub use embed::Embedded;
pub use plan::Listed;
pub use stream::AnswerStream;

use crate::access::Caller;
use crate::monitor::{Metrics, Recorder};
use crate::prompts::Library;
use crate::providers::{Body, Call, Native, Providers, Reply};
use crate::releases::Manifest;
use crate::store::{Fresh, Store};
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::ids::new_id;
use crate::types::{Code, Digest, Failure};
use bytes::Bytes;
use futures_util::StreamExt;
use plan::Plan;
use serde_json::{Map, Value};
use std::sync::Arc;
use ticket::{Asked, Ticket};

/// Everything that answers model calls.
pub struct Inference {
    store: Store,
    providers: Arc<Providers>,
    prompts: Library,
    log: Log,
    /// What names in `model` stand for, as of the newest commit.
    plans: Arc<Fresh<String, Plan>>,
}

/// Where calls are written down.
#[derive(Clone)]
pub struct Log {
    /// The request log.
    pub recorder: Arc<Recorder>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether bodies are kept.
    pub bodies: bool,
}

/// Who asks, and under which request id.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The caller.
    pub caller: Caller,
    /// Id of the log row; `x-request-id` over HTTP.
    pub request_id: String,
    /// `chat.completions`, `eval`: for the log and metrics.
    pub endpoint: &'static str,
    /// The body as the caller wrote it, where that was in another protocol than chat completions.
    pub native: Option<Native>,
    /// The text of the body, for the log; without it the request is written anew.
    pub text: Option<Bytes>,
}

impl Ask {
    /// A new request of a caller.
    pub fn new(caller: &Caller, endpoint: &'static str) -> Self {
        Ask { caller: caller.clone(), request_id: new_id("req"), endpoint, native: None, text: None }
    }
}

/// A whole reply with what is known about it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Id of the log row.
    pub request_id: String,
    /// The reply.
    pub response: ChatResponse,
    /// The reply as the provider sent it, where that is the protocol of [`Ask::native`].
    pub native: Option<Value>,
    /// Provider that answered.
    pub provider: String,
    /// The provider's model.
    pub model: String,
    /// Adapter that was applied.
    pub adapter: Option<Digest>,
    /// Release that answered, when a route or a manifest was called.
    pub release: Option<Digest>,
    /// Milliseconds in all.
    pub latency_ms: f64,
    /// Milliseconds to the first token, where the provider says.
    pub first_token_ms: Option<f64>,
}

/// What a caller that takes bytes gets.
#[derive(Debug)]
pub enum Passed {
    /// A reply that was read.
    Answer(Box<Answer>),
    /// A chat completion as the provider sent it.
    Bytes {
        /// The body.
        body: Bytes,
        /// Provider that answered.
        provider: String,
        /// Release that answered, when a route was called.
        release: Option<Digest>,
    },
}

impl Inference {
    /// The road over these parts.
    pub fn new(store: Store, providers: Arc<Providers>, log: Log) -> Self {
        let (prompts, plans) = (Library::new(&store), Arc::new(Fresh::new(store.db.clone())));
        Inference { store, providers, prompts, log, plans }
    }

    /// Answers a chat request on a route or a model.
    ///
    /// # Errors
    /// [`Code::MODEL_NOT_FOUND`] with the nearest name, [`Code::MISSING_FIELD`] for a prompt's variables, or the provider's error.
    pub async fn chat(&self, caller: &Caller, request: ChatRequest) -> Result<Answer, Failure> {
        self.answer(Ask::new(caller, "chat.completions"), request).await
    }

    /// As [`Inference::chat`], streamed.
    ///
    /// # Errors
    /// As [`Inference::chat`], up to the first chunk; later ones come out of the stream.
    pub async fn chat_stream(&self, caller: &Caller, request: ChatRequest) -> Result<AnswerStream, Failure> {
        self.answer_stream(Ask::new(caller, "chat.completions"), request).await
    }

    /// As [`Inference::chat`], under a request id that the caller knows already.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn answer(&self, ask: Ask, request: ChatRequest) -> Result<Answer, Failure> {
        let native = ask.native.clone();
        let ticket = Ticket::open(&self.log, ask, &Asked::chat(&request));
        let planned = self.plan_chat(request, native).await;
        self.call(ticket, planned).await
    }

    /// As [`Inference::answer`], for a caller of chat completions: what needs no change is not read.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn pass(&self, ask: Ask, request: ChatRequest) -> Result<Passed, Failure> {
        let ticket = Ticket::open(&self.log, ask, &Asked::chat(&request));
        let planned = self.plan_chat(request, None).await;
        self.send(ticket, planned.map(|(plan, call)| (plan, Call { takes_bytes: true, ..call }))).await
    }

    /// As [`Inference::chat_stream`], under a request id that the caller knows already.
    ///
    /// # Errors
    /// As [`Inference::chat_stream`].
    pub async fn answer_stream(&self, ask: Ask, request: ChatRequest) -> Result<AnswerStream, Failure> {
        let native = ask.native.clone();
        let mut ticket = Ticket::open(&self.log, ask, &Asked::chat(&request));
        let (plan, call) = match self.plan_chat(request, native).await {
            Ok(planned) => planned,
            Err(failure) => return Err(ticket.fail(failure)),
        };
        ticket.planned(&plan);
        let opened = plan.provider.chat_stream(call).await;
        let mut pieces = match opened {
            Ok(pieces) => pieces,
            Err(error) => return Err(ticket.fail(error.into())),
        };
        // The first chunk decides whether this is a stream or an error with its own status.
        match pieces.next().await {
            Some(Ok(first)) => Ok(AnswerStream::new(ticket, plan, first, pieces)),
            Some(Err(error)) => Err(ticket.fail(error.into())),
            None => Err(ticket.fail(Failure::new(Code::UPSTREAM, format!("{}/{} sent an empty stream", plan.provider_name, plan.model)))),
        }
    }

    /// Counts the tokens of a request's prompt, as the model that would answer counts them.
    ///
    /// # Errors
    /// As [`Inference::chat`]; [`Code::UNSUPPORTED`] where the provider does not count.
    pub async fn count_tokens(&self, ask: Ask, request: ChatRequest) -> Result<u64, Failure> {
        let native = ask.native.clone();
        let mut ticket = Ticket::open(&self.log, ask, &Asked::chat(&request));
        let (plan, call) = self.plan_chat(request, native).await.map_err(|failure| ticket.fail(failure))?;
        ticket.planned(&plan);
        let count = plan.provider.count_tokens(call).await.map_err(|error| ticket.fail(error.into()))?;
        ticket.done(None);
        Ok(count)
    }

    /// Answers with a given manifest instead of a route's: the same road, for evaluations. Without a prompt in the manifest, the
    /// variables are `messages` (a list of chat messages) or one text, which becomes the user's message.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn run(&self, manifest: &Manifest, variables: &Map<String, Value>, caller: &Caller) -> Result<Answer, Failure> {
        let planned = self.plan_run(manifest.clone(), variables.clone()).await;
        let asked = match &planned {
            Ok((_, call)) => call.request.clone(),
            Err(_) => ChatRequest { model: manifest.model.clone(), ..ChatRequest::default() },
        };
        let ticket = Ticket::open(&self.log, Ask::new(caller, "eval"), &Asked::chat(&asked));
        self.call(ticket, planned).await
    }

    /// Writes down a request that was refused before it became one (malformed body, wrong field).
    pub fn refused(&self, ask: Ask, failure: Failure) -> Failure {
        Ticket::open(&self.log, ask, &Asked::chat(&ChatRequest::default())).fail(failure)
    }

    /// What may be named in `model`: routes with a live release, models, and adapters of local models. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn models(&self) -> Result<Vec<Listed>, Failure> {
        plan::listed(&self.store, &self.providers)
    }

    async fn call(&self, ticket: Ticket, planned: Result<(Plan, Call), Failure>) -> Result<Answer, Failure> {
        match self.send(ticket, planned).await? {
            Passed::Answer(answer) => Ok(*answer),
            Passed::Bytes { .. } => Err(Failure::new(Code::INTERNAL, "a provider answered with bytes that nobody asked for")),
        }
    }

    async fn send(&self, mut ticket: Ticket, planned: Result<(Plan, Call), Failure>) -> Result<Passed, Failure> {
        let (plan, call) = planned.map_err(|failure| ticket.fail(failure))?;
        ticket.planned(&plan);
        let Reply { body, native } = plan.provider.chat(call).await.map_err(|error| ticket.fail(error.into()))?;
        let Plan { provider_name: provider, model, adapter, release, .. } = plan;
        match body {
            Body::Bytes(body, glance) => {
                ticket.passed(&body, glance);
                Ok(Passed::Bytes { body, provider, release })
            }
            Body::Read(response) => {
                let request_id = ticket.request_id().to_string();
                let latency_ms = ticket.succeed(&response);
                let answer = Answer { request_id, response, native, provider, model, adapter, release, latency_ms, first_token_ms: None };
                Ok(Passed::Answer(Box::new(answer)))
            }
        }
    }

    async fn plan_chat(&self, request: ChatRequest, native: Option<Native>) -> Result<(Plan, Call), Failure> {
        if !request.extra.contains_key("prompt") {
            let plan = self.plan_of(&request.model).await?;
            if plan.manifest.as_ref().is_none_or(|manifest| manifest.prompt.is_none()) {
                return written(plan, &self.prompts, request, native);
            }
            // A template may take its time.
            let prompts = self.prompts.clone();
            return blocking(move || written(plan, &prompts, request, native)).await;
        }
        let (store, providers, prompts) = (self.store.clone(), self.providers.clone(), self.prompts.clone());
        blocking(move || written(plan::for_request(&store, &providers, &prompts, &request)?, &prompts, request, native)).await
    }

    /// The plan of a name, looked up once until anybody commits.
    async fn plan_of(&self, name: &str) -> Result<Plan, Failure> {
        let generation = self.plans.generation()?;
        if let Some(plan) = self.plans.get(generation, name) {
            return Ok(plan);
        }
        let (store, providers, prompts, model) = (self.store.clone(), self.providers.clone(), self.prompts.clone(), name.to_string());
        let planned = blocking(move || {
            let plan = plan::for_model(&store, &providers, &model)?;
            // Compiled here, so that whoever finds the plan finds the prompt in memory.
            plan.prompt(&prompts)?;
            Ok(plan)
        });
        let plan = planned.await?;
        self.plans.keep(generation, name.to_string(), plan.clone());
        Ok(plan)
    }

    async fn plan_run(&self, manifest: Manifest, variables: Map<String, Value>) -> Result<(Plan, Call), Failure> {
        let (store, providers, prompts) = (self.store.clone(), self.providers.clone(), self.prompts.clone());
        blocking(move || {
            let request = ChatRequest { model: manifest.model.clone(), ..ChatRequest::default() };
            let plan = plan::for_manifest(&store, &providers, manifest)?;
            let prompt = plan.prompt(&prompts)?;
            let request = render::run(plan.manifest.as_ref(), prompt.as_deref(), request, &variables)?;
            let call = plan.call(request);
            Ok((plan, call))
        })
        .await
    }
}

/// The call of a plan: the release's prompt and parameters written into the request.
fn written(plan: Plan, prompts: &Library, request: ChatRequest, native: Option<Native>) -> Result<(Plan, Call), Failure> {
    let prompt = plan.prompt(prompts)?;
    let request = render::chat(plan.manifest.as_ref(), prompt.as_deref(), request)?;
    // A release that adds to the request has to be written into it, which the caller's own body does not know.
    let native = native.filter(|_| plan.manifest.as_ref().is_none_or(Manifest::adds_nothing));
    let call = Call { native, ..plan.call(request) };
    Ok((plan, call))
}

impl Plan {
    fn call(&self, request: ChatRequest) -> Call {
        let model_digest = self.manifest.as_ref().and_then(|manifest| manifest.model_digest);
        Call { model: self.model.clone(), model_digest, adapter: self.adapter, request, native: None, takes_bytes: false }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Failure::new(Code::INTERNAL, format!("planning the call failed: {error}"))))
}
