//! The only road to a completion: [`road`] (where it may go), [`admission`] (may it, now), [`guard`], [`cache`], [`attempt`] (the call,
//! again or elsewhere where that helps), [`render`] (the release's prompt), and the log row ([`ticket`]) that stands before the reply
//! ends. The gateway, evaluations and the demo all go this way.

mod admission;
mod assemble;
mod attempt;
mod cache;
mod embed;
mod express;
mod guard;
mod moderate;
pub mod plan;
mod render;
mod repair;
mod road;
mod setup;
mod stream;
mod ticket;

pub use embed::Embedded;
pub use moderate::Moderated;
pub use plan::Listed;
pub use setup::Setup;
pub use stream::AnswerStream;

use crate::access::Caller;
use crate::config::Config;
use crate::monitor::{Metrics, Recorder};
use crate::prompts::Library;
use crate::providers::{Body, Call, Native, Piece, PieceStream, Reply};
use crate::releases::Manifest;
use crate::store::Store;
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::ids::new_id;
use crate::types::{Code, Digest, Failure};
use arc_swap::ArcSwap;
use bytes::Bytes;
use cache::CacheKey;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use guard::{Answered, Guarded, Run, Variables};
use plan::Plan;
use road::Road;
use serde_json::{Map, Value};
use std::sync::Arc;
use ticket::{Asked, Ticket};

/// Everything that answers model calls.
pub struct Inference {
    store: Store,
    prompts: Library,
    setup: ArcSwap<Setup>,
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

/// A call that was let in.
struct Begun {
    setup: Arc<Setup>,
    road: Arc<Road>,
    request: ChatRequest,
    native: Option<Native>,
    key: Option<CacheKey>,
    guarded: Option<Box<Guarded>>,
}

/// What an opened stream begins with.
type Opened = (Piece, PieceStream);

impl Inference {
    /// The road over these parts.
    pub fn new(store: Store, setup: Setup) -> Self {
        let prompts = Library::new(&store);
        Inference { store, prompts, setup: ArcSwap::from_pointee(setup) }
    }

    /// What the configuration says now.
    pub fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// The configuration in force; not to be held for long.
    pub fn config(&self) -> Arc<Config> {
        self.setup.load().config.clone()
    }

    /// Calls that begin from now on go by another setup.
    pub fn replace(&self, setup: Setup) {
        self.setup.store(Arc::new(setup));
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
        read(self.send(ask, request, false).await?)
    }

    /// As [`Inference::answer`], for a caller of chat completions: what needs no change is not read.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn pass(&self, ask: Ask, request: ChatRequest) -> Result<Passed, Failure> {
        self.send(ask, request, true).await
    }

    /// As [`Inference::chat_stream`], under a request id that the caller knows already.
    ///
    /// # Errors
    /// As [`Inference::chat_stream`].
    pub async fn answer_stream(&self, mut ask: Ask, request: ChatRequest) -> Result<AnswerStream, Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&request));
        let begun = match self.begin(&mut ticket, &ask, request).await {
            Ok(begun) => begun,
            Err(failure) => return Err(ticket.fail(failure)),
        };
        if let Some(kept) = self.kept(&mut ticket, &begun) {
            return Ok(AnswerStream::whole(ticket, begun.road.targets[0].clone(), kept));
        }
        if begun.reads_output() {
            return match self.ask_whole(&mut ticket, begun).await {
                Ok((response, plan)) => Ok(AnswerStream::whole(ticket, plan, response)),
                Err(failure) => Err(ticket.fail(failure)),
            };
        }
        let opened = self.attempt(&begun.setup, &mut ticket, &begun.road, &|plan| self.open(plan, &begun)).await;
        match opened {
            Ok(((first, pieces), plan)) => Ok(AnswerStream::new(ticket, plan, first, pieces)),
            Err(failure) => Err(ticket.fail(failure)),
        }
    }

    /// Counts the tokens of a request's prompt, as the model that would answer counts them.
    ///
    /// # Errors
    /// As [`Inference::chat`]; [`Code::UNSUPPORTED`] where the provider does not count.
    pub async fn count_tokens(&self, mut ask: Ask, request: ChatRequest) -> Result<u64, Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&request));
        let begun = self.begin(&mut ticket, &ask, request).await.map_err(|failure| ticket.fail(failure))?;
        let counting = |plan: &Plan| -> BoxFuture<'_, Result<u64, Failure>> {
            let plan = plan.clone();
            let begun = &begun;
            Box::pin(async move {
                let call = self.written(&plan, begun).await?;
                Ok(plan.provider.count_tokens(call).await?)
            })
        };
        let counted = self.attempt(&begun.setup, &mut ticket, &begun.road, &counting).await;
        let (count, _) = counted.map_err(|failure| ticket.fail(failure))?;
        ticket.done(None);
        Ok(count)
    }

    /// Answers with a given manifest instead of a route's: the same road, for evaluations. Without a prompt in the manifest, the
    /// variables are `messages` (a list of chat messages) or one text, which becomes the user's message.
    ///
    /// # Errors
    /// As [`Inference::chat`].
    pub async fn run(&self, manifest: &Manifest, variables: &Map<String, Value>, caller: &Caller) -> Result<Answer, Failure> {
        let setup = self.setup();
        let Variables { variables, guarded, refused } = self.guard_variables(&setup, manifest, variables.clone())?;
        let planned = self.plan_run(&setup, manifest.clone(), variables).await;
        let asked = match &planned {
            Ok((_, call)) => call.request.clone(),
            Err(_) => ChatRequest { model: manifest.model.clone(), ..ChatRequest::default() },
        };
        let mut ask = Ask::new(caller, "eval");
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&asked));
        let (plan, call) = planned.map_err(|failure| ticket.fail(failure))?;
        let road = Road::one(plan);
        if let Some(guarded) = guarded {
            let run = Run { setup: &setup, road: &road, call: &call, refused };
            let answered = self.run_guarded(&mut ticket, guarded, run).await;
            let (response, plan) = answered.map_err(|failure| ticket.fail(failure))?;
            return read(told(ticket, response.into(), plan));
        }
        let calling = |plan: &Plan| -> BoxFuture<'_, Result<Reply, Failure>> {
            let (plan, call) = (plan.clone(), call.clone());
            Box::pin(async move { Ok(plan.provider.chat(call).await?) })
        };
        let answered = self.attempt(&setup, &mut ticket, &road, &calling).await;
        let (reply, plan) = answered.map_err(|failure| ticket.fail(failure))?;
        read(told(ticket, reply, plan))
    }

    /// Writes down a request that was refused before it became one (malformed body, wrong field).
    pub fn refused(&self, mut ask: Ask, failure: Failure) -> Failure {
        if !self.setup.load().guards.is_empty() {
            // No guardrail has seen it.
            ask.text = None;
        }
        Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&ChatRequest::default())).fail(failure)
    }

    /// What may be named in `model`: routes with a live release, models, and adapters of local models. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn models(&self) -> Result<Vec<Listed>, Failure> {
        plan::listed(&self.store, &self.setup().providers)
    }

    async fn send(&self, mut ask: Ask, request: ChatRequest, takes_bytes: bool) -> Result<Passed, Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&request));
        let begun = self.begin(&mut ticket, &ask, request).await.map_err(|failure| ticket.fail(failure))?;
        if let Some(kept) = self.kept(&mut ticket, &begun) {
            return Ok(told(ticket, kept.into(), begun.road.targets[0].clone()));
        }
        if begun.key.is_some() || begun.reads_output() {
            let (response, plan) = self.ask_whole(&mut ticket, begun).await.map_err(|failure| ticket.fail(failure))?;
            return Ok(told(ticket, response.into(), plan));
        }
        let asking = |plan: &Plan| self.ask_one(plan, &begun, takes_bytes);
        let answered = self.attempt(&begun.setup, &mut ticket, &begun.road, &asking).await;
        let (reply, plan) = answered.map_err(|failure| ticket.fail(failure))?;
        Ok(told(ticket, reply, plan))
    }

    /// What comes before any call: the road, the caller's limits, the guardrails on what came in.
    async fn begin(&self, ticket: &mut Ticket, ask: &Ask, request: ChatRequest) -> Result<Begun, Failure> {
        let setup = self.setup();
        let held = ticket.hold_body();
        let road = match self.road(&setup, &request).await {
            Ok(road) => road,
            Err(failure) => {
                ticket.show_body(held.filter(|_| setup.guards.is_empty()));
                return Err(failure);
            }
        };
        ticket.routed(&road);
        let mut guarded = self.guards(&setup, ticket, &road, held)?;
        ticket.granted(self.admit(&setup, ask, &road, &request)?);
        let mut request = request;
        if let Some(guarded) = &mut guarded {
            request = self.guard_input(&setup, ticket, guarded, request).await?;
        }
        // What guardrails have changed must not travel as the caller wrote it, nor must what they could not read.
        let native = ask.native.clone().filter(|_| guarded.is_none());
        let may_be_kept = guarded.as_ref().is_none_or(|guarded| guarded.may_be_kept());
        let key = if may_be_kept { self.cache_key(&setup, ask, &road, &request) } else { None };
        Ok(Begun { setup, road, request, native, key, guarded })
    }

    /// The reply that the cache has.
    fn kept(&self, ticket: &mut Ticket, begun: &Begun) -> Option<ChatResponse> {
        let kept = self.recall(begun.key.as_ref()?);
        ticket.looked_up(kept.is_some());
        kept
    }

    /// A whole reply that passed the guardrails, kept in the cache.
    async fn ask_whole(&self, ticket: &mut Ticket, mut begun: Begun) -> Result<(ChatResponse, Plan), Failure> {
        let guarded = begun.guarded.take();
        let asking = |plan: &Plan| self.ask_one(plan, &begun, false);
        let (reply, plan) = self.attempt(&begun.setup, ticket, &begun.road, &asking).await?;
        let mut response = read_reply(reply)?;
        if let Some(mut guarded) = guarded {
            let write = |plan: &Plan| -> BoxFuture<'_, Result<Call, Failure>> {
                let plan = plan.clone();
                let begun = &begun;
                Box::pin(async move { self.written(&plan, begun).await })
            };
            let answered = Answered { setup: &begun.setup, road: &begun.road, plan: &plan, write: &write };
            response = self.guard_output(ticket, &mut guarded, &answered, response).await?;
        }
        if let Some(key) = begun.key {
            self.remember(&begun.setup, key, &response);
        }
        Ok((response, plan))
    }

    fn ask_one<'a>(&'a self, plan: &Plan, begun: &'a Begun, takes_bytes: bool) -> BoxFuture<'a, Result<Reply, Failure>> {
        let plan = plan.clone();
        Box::pin(async move {
            let call = Call { takes_bytes, ..self.written(&plan, begun).await? };
            Ok(plan.provider.chat(call).await?)
        })
    }

    /// Opens a stream and waits for its first piece, which decides whether this is a stream or an error with its own status.
    fn open<'a>(&'a self, plan: &Plan, begun: &'a Begun) -> BoxFuture<'a, Result<Opened, Failure>> {
        let plan = plan.clone();
        Box::pin(async move {
            let call = self.written(&plan, begun).await?;
            first_piece(plan.provider.chat_stream(call).await?, &plan).await
        })
    }

    /// The call of a target: the release's prompt and parameters written into the request.
    async fn written(&self, plan: &Plan, begun: &Begun) -> Result<Call, Failure> {
        let (plan, request, native) = (plan.clone(), begun.request.clone(), begun.native.clone());
        if plan.manifest.as_ref().is_none_or(|manifest| manifest.prompt.is_none()) {
            return written(&plan, &self.prompts, request, native);
        }
        // A template may take its time.
        let prompts = self.prompts.clone();
        blocking(move || written(&plan, &prompts, request, native)).await
    }

    async fn plan_run(&self, setup: &Arc<Setup>, manifest: Manifest, variables: Map<String, Value>) -> Result<(Plan, Call), Failure> {
        let (store, setup, prompts) = (self.store.clone(), setup.clone(), self.prompts.clone());
        blocking(move || {
            let request = ChatRequest { model: manifest.model.clone(), ..ChatRequest::default() };
            let plan = plan::for_manifest(&store, &setup.providers, manifest)?;
            let prompt = plan.prompt(&prompts)?;
            let request = render::run(plan.manifest.as_ref(), prompt.as_deref(), request, &variables)?;
            let call = plan.call(request);
            Ok((plan, call))
        })
        .await
    }
}

/// A reply on its way to the caller: its log row is written.
fn told(ticket: Ticket, reply: Reply, plan: Plan) -> Passed {
    let Reply { body, native } = reply;
    let Plan { provider_name: provider, model, adapter, release, .. } = plan;
    match body {
        Body::Bytes(body, glance) => {
            ticket.passed(&body, glance);
            Passed::Bytes { body, provider, release }
        }
        Body::Read(response) => {
            let request_id = ticket.request_id().to_string();
            let latency_ms = ticket.succeed(&response);
            let answer = Answer { request_id, response, native, provider, model, adapter, release, latency_ms, first_token_ms: None };
            Passed::Answer(Box::new(answer))
        }
    }
}

async fn first_piece(mut pieces: PieceStream, plan: &Plan) -> Result<Opened, Failure> {
    match pieces.next().await {
        Some(first) => Ok((first?, pieces)),
        None => Err(Failure::new(Code::UPSTREAM, format!("{}/{} sent an empty stream", plan.provider_name, plan.model))),
    }
}

fn read_reply(reply: Reply) -> Result<ChatResponse, Failure> {
    match reply.body {
        Body::Read(response) => Ok(response),
        Body::Bytes(..) => Err(Failure::new(Code::INTERNAL, "a provider answered with bytes that nobody asked for")),
    }
}

impl Begun {
    /// Whether the reply must be read whole before it is passed on.
    fn reads_output(&self) -> bool {
        self.guarded.as_ref().is_some_and(|guarded| guarded.reads_output())
    }
}

fn read(passed: Passed) -> Result<Answer, Failure> {
    match passed {
        Passed::Answer(answer) => Ok(*answer),
        Passed::Bytes { .. } => Err(Failure::new(Code::INTERNAL, "a provider answered with bytes that nobody asked for")),
    }
}

fn written(plan: &Plan, prompts: &Library, request: ChatRequest, native: Option<Native>) -> Result<Call, Failure> {
    let prompt = plan.prompt(prompts)?;
    let request = render::chat(plan.manifest.as_ref(), prompt.as_deref(), request)?;
    // A release that adds to the request has to be written into it, which the caller's own body does not know.
    let native = native.filter(|_| plan.manifest.as_ref().is_none_or(Manifest::adds_nothing));
    Ok(Call { native, ..plan.call(request) })
}

impl Plan {
    fn call(&self, request: ChatRequest) -> Call {
        let model_digest = self.manifest.as_ref().and_then(|manifest| manifest.model_digest);
        Call { model: self.model.clone(), model_digest, adapter: self.adapter, request, native: None, takes_bytes: false, plain: None }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Failure::new(Code::INTERNAL, format!("planning the call failed: {error}"))))
}
