//! The only road to a completion: [`road`] (where it may go), [`admission`] (may it, now), [`guard`], [`cache`], [`attempt`] (the call,
//! again or elsewhere where that helps), [`render`] (the release's prompt), and the log row ([`ticket`]) that stands before the reply
//! ends. The gateway, evaluations and the demo all go this way.

mod admission;
mod assemble;
mod attempt;
mod cache;
mod called;
mod cascade;
mod choice;
mod embed;
mod examples;
mod express;
mod foresee;
mod guard;
mod measured;
mod media;
mod moderate;
mod most;
pub mod plan;
mod pool;
mod render;
mod repair;
mod road;
mod said;
mod setup;
mod size;
mod stream;
mod ticket;
mod verdict;

pub use cache::CacheWish;
pub use embed::Embedded;
pub use measured::{Measured, Ready};
pub use moderate::Moderated;
pub use most::{MostCost, Priced};
pub use plan::Listed;
pub use pool::TargetStatus;
pub use render::{Filled, rendered};
pub use setup::Setup;
pub use stream::AnswerStream;

use crate::access::Caller;
use crate::config::Config;
use crate::monitor::{Metrics, Recorder, Redactor, Telemetry};
use crate::prompts::{Library, Prompt};
use crate::providers::{Body, Call, Native, Piece, PieceStream, Reply};
use crate::releases::Manifest;
use crate::store::Store;
use crate::types::asker::Asker;
use crate::types::blocking::blocking;
use crate::types::chat::{ChatRequest, ChatResponse, Message};
use crate::types::glance::Glance;
use crate::types::ids::new_id;
use crate::types::told::NamedPrompt;
use crate::types::trace::TraceParent;
use crate::types::{Code, Digest, Failure, Told};
use admission::Extent;
use arc_swap::ArcSwap;
use attempt::Turn;
use bytes::Bytes;
use cache::{CacheKey, Keeper, Kept, Looked};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use guard::{Answered, Guarded};
use plan::Plan;
use pool::{Kind, Pool};
use road::Road;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use ticket::{Asked, Ticket};

/// Everything that answers model calls.
pub struct Inference {
    store: Store,
    prompts: Library,
    setup: ArcSwap<Setup>,
    /// What is known of the targets, whatever the configuration says.
    pool: Arc<Pool>,
    /// Samples that prompts show, and what they mean.
    shown: Arc<examples::KeptExamples>,
    /// Held by whoever reads what was spent under a budget.
    reading: tokio::sync::Mutex<()>,
}

/// The configuration in force at a moment, looked at without a shared count: every request does.
pub struct InForce(arc_swap::Guard<Arc<Setup>>);

impl std::ops::Deref for InForce {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0.config
    }
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
    /// What is taken out of them first; none where nothing is.
    pub redactor: Option<Arc<Redactor>>,
    /// Where spans go; none where they go nowhere.
    pub telemetry: Option<Arc<Telemetry>>,
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
    /// What the caller wants of the cache.
    pub cache: CacheWish,
    /// The trace that the caller is in.
    pub trace: Option<TraceParent>,
    /// What is asked and answered is not logged, whatever the log's rules are: it comes out of the log.
    pub is_private: bool,
}

impl Ask {
    /// A new request of a caller.
    pub fn new(caller: &Caller, endpoint: &'static str) -> Self {
        Ask {
            caller: caller.clone(),
            request_id: new_id("req"),
            endpoint,
            native: None,
            text: None,
            cache: CacheWish::Usual,
            trace: None,
            is_private: false,
        }
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
    /// Prompt that was rendered.
    pub prompt: Option<Arc<NamedPrompt>>,
    /// Milliseconds in all.
    pub latency_ms: f64,
    /// Milliseconds to the first token, where the provider says.
    pub first_token_ms: Option<f64>,
    /// What the caller is told besides.
    pub told: Box<Told>,
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
        /// What the caller is told besides.
        told: Box<Told>,
    },
}

/// A call that was let in.
struct Begun {
    setup: Arc<Setup>,
    road: Arc<Road>,
    what: Mutex<What>,
    key: Option<CacheKey>,
    guarded: Option<Box<Guarded>>,
}

/// What is asked.
#[derive(Clone, Default)]
struct What {
    request: ChatRequest,
    native: Option<Native>,
    asker: Asker,
}

impl Begun {
    /// What is asked, for one call; the last call takes it along.
    fn what(&self, turn: Turn) -> What {
        let mut what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        if turn == Turn::Last { std::mem::take(&mut *what) } else { what.clone() }
    }
}

/// A whole reply, also as the provider sent it, and what answered.
type Whole = (ChatResponse, Option<Value>, Arc<Plan>);

/// What an opened stream begins with.
type Opened = (Piece, PieceStream);

impl Inference {
    /// The road over these parts.
    pub fn new(store: Store, setup: Setup) -> Self {
        let prompts = Library::new(&store);
        let pool = Arc::new(Pool::default());
        pool.apply(&setup.config);
        Inference {
            store,
            prompts,
            setup: ArcSwap::from_pointee(setup),
            pool,
            shown: Arc::default(),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// The targets that were called, with the state of their breakers, by name.
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.pool.status(&self.setup().resilience)
    }

    /// The prompts; what is compiled of them is shared with the calls.
    pub fn library(&self) -> &Library {
        &self.prompts
    }

    /// What the configuration says now.
    pub fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// The configuration in force; not to be held for long.
    pub fn config(&self) -> InForce {
        InForce(self.setup.load())
    }

    /// Calls that begin from now on go by another setup.
    pub fn replace(&self, setup: Setup) {
        self.pool.apply(&setup.config);
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
        let mut begun = match self.begin(&mut ticket, &mut ask, request).await {
            Ok(begun) => begun,
            Err(failure) => return Err(ticket.fail(failure)),
        };
        let keeper = match self.look_up(&mut ticket, &ask, &mut begun).await {
            Looked::Kept(kept) => {
                let response = kept.entry.response().map_err(|failure| ticket.fail(failure))?;
                return Ok(AnswerStream::whole(ticket, kept.plan(), response));
            }
            Looked::Missed(keeper) => Some(keeper),
            Looked::Off => None,
        };
        if begun.reads_output() {
            return match self.ask_whole(&mut ticket, begun, keeper).await {
                Ok((response, _, plan)) => Ok(AnswerStream::whole(ticket, plan, response)),
                Err(failure) => Err(ticket.fail(failure)),
            };
        }
        if let Some((reply, plan)) = self.first_stage(&mut ticket, &begun).await {
            if let Some(keeper) = keeper {
                keeper.keep(&reply, None, plan.clone());
            }
            return Ok(AnswerStream::whole(ticket, plan, reply));
        }
        let opened = self.attempt(&mut ticket, &begun.road, Kind::Stream, &|plan, turn| self.open(plan, &begun, turn)).await;
        match opened {
            Ok(((first, pieces), plan)) => {
                let keeper = keeper.map(|keeper| (keeper, plan.clone()));
                Ok(AnswerStream::new(ticket, plan, first, pieces).keeping(keeper))
            }
            Err(failure) => Err(ticket.fail(failure)),
        }
    }

    /// Counts the tokens of a request's prompt, as the model that would answer counts them. Returns what the caller is told besides, too.
    ///
    /// # Errors
    /// As [`Inference::chat`]; [`Code::UNSUPPORTED`] where the provider does not count.
    pub async fn count_tokens(&self, mut ask: Ask, request: ChatRequest) -> Result<(u64, Box<Told>), Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&request));
        let begun = self.begin(&mut ticket, &mut ask, request).await.map_err(|failure| ticket.fail(failure))?;
        let counting = |plan: &Arc<Plan>, turn| -> BoxFuture<'_, Result<u64, Failure>> {
            let (plan, what) = (plan.clone(), begun.what(turn));
            Box::pin(async move {
                let call = self.written(&plan, what).await?;
                Ok(plan.provider.count_tokens(call).await?)
            })
        };
        let counted = self.attempt(&mut ticket, &begun.road, Kind::Other, &counting).await;
        let (count, _) = counted.map_err(|failure| ticket.fail(failure))?;
        Ok((count, ticket.done(None)))
    }

    /// Writes down a request that was refused before it became one (malformed body, wrong field).
    pub async fn refused(&self, mut ask: Ask, failure: Failure) -> Failure {
        let setup = self.setup();
        if !setup.guards.is_empty() {
            // No guardrail has seen it.
            ask.text = None;
        }
        let mut ticket = Ticket::open(&setup.log, &mut ask, &Asked::chat(&ChatRequest::default()));
        ticket.redact_large().await;
        ticket.fail(failure)
    }

    /// What may be named in `model`: routes with a live release, models, and adapters of local models. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn models(&self) -> Result<Vec<Listed>, Failure> {
        plan::listed(&self.store, &self.setup())
    }

    async fn send(&self, mut ask: Ask, request: ChatRequest, takes_bytes: bool) -> Result<Passed, Failure> {
        let mut ticket = Ticket::open(&self.setup.load().log, &mut ask, &Asked::chat(&request));
        let mut begun = self.begin(&mut ticket, &mut ask, request).await.map_err(|failure| ticket.fail(failure))?;
        let keeper = match self.look_up(&mut ticket, &ask, &mut begun).await {
            Looked::Kept(kept) => return Box::pin(told_again(ticket, &kept, takes_bytes)).await,
            Looked::Missed(keeper) => Some(keeper),
            Looked::Off => None,
        };
        if keeper.is_some() || begun.reads_output() {
            let (response, native, plan) = self.ask_whole(&mut ticket, begun, keeper).await.map_err(|failure| ticket.fail(failure))?;
            let reply = Reply { native, ..response.into() };
            if ticket.redacts() {
                Box::pin(ticket.redact_reply(&reply.body)).await;
            }
            return Ok(told(ticket, reply, plan).await);
        }
        if let Some((response, plan)) = self.first_stage(&mut ticket, &begun).await {
            return Ok(told(ticket, response.into(), plan).await);
        }
        let asking = |plan: &Arc<Plan>, turn| self.ask_one(plan, begun.what(turn), takes_bytes);
        let answered = self.attempt(&mut ticket, &begun.road, Kind::Whole, &asking).await;
        let (reply, plan) = answered.map_err(|failure| ticket.fail(failure))?;
        if ticket.redacts() {
            Box::pin(ticket.redact_reply(&reply.body)).await;
        }
        Ok(told(ticket, reply, plan).await)
    }

    /// What comes before any call: the road, the caller's limits, the guardrails on what came in.
    async fn begin(&self, ticket: &mut Ticket, ask: &mut Ask, request: ChatRequest) -> Result<Begun, Failure> {
        let begun = self.let_in(ticket, ask, request).await;
        if begun.is_err() {
            ticket.redact_large().await;
        }
        begun
    }

    async fn let_in(&self, ticket: &mut Ticket, ask: &mut Ask, request: ChatRequest) -> Result<Begun, Failure> {
        let setup = self.setup();
        let held = ticket.hold_body();
        let found = match self.may_name(ask, &request.model, request.extra.get("prompt")) {
            Ok(()) => self.road(&setup, &request).await.map_err(|failure| self.told_to(ask, failure)),
            Err(failure) => Err(failure),
        };
        let (road, mut guarded) = self.sets_out(&setup, ticket, found, held)?;
        let repairs = guarded.as_ref().is_some_and(|guarded| guarded.repairs()) && may_have_format(&road, &request);
        let foreseen = self.foresee(ask, &road, &request).await;
        let extent = Extent::of_chat(&request).repairing(repairs);
        ticket.granted(self.admit(&setup, ask, &road, (extent, &foreseen)).await?);
        // By what the caller said: placeholders would make one of all users.
        ticket.sticks(choice::stays_with(road.rules.sticky, &ask.caller.project, &request));
        let mut request = request;
        if let Some(guarded) = &mut guarded {
            request = self.guard_input(&setup, ticket, guarded, request).await?;
            // What guardrails have changed must not travel as the caller wrote it, nor must what they could not read.
            ask.native = None;
        }
        let may_be_kept = guarded.as_ref().is_none_or(|guarded| guarded.may_be_kept());
        let key = if may_be_kept { self.cache_key(&setup, ask, &road, &request)? } else { None };
        let asker = Asker { project: ask.caller.project.clone(), key: ask.caller.key_id.clone() };
        let what = Mutex::new(What { request, native: ask.native.take(), asker });
        Ok(Begun { setup, road, what, key, guarded })
    }

    /// A whole reply that passed the guardrails, kept in the cache; also as the provider sent it, where no guardrail looks at replies.
    async fn ask_whole(&self, ticket: &mut Ticket, mut begun: Begun, keeper: Option<Keeper>) -> Result<Whole, Failure> {
        let guarded = begun.guarded.take();
        let (reply, plan) = match self.first_stage(ticket, &begun).await {
            Some((response, plan)) => (response.into(), plan),
            None => {
                // What is asked stays here: a reply that is not fit may be asked for once more.
                let asking = |plan: &Arc<Plan>, _: Turn| self.ask_one(plan, begun.what(Turn::MayRepeat), false);
                self.attempt(ticket, &begun.road, Kind::Whole, &asking).await?
            }
        };
        let Reply { body, mut native } = reply;
        let mut response = whole(body)?;
        ticket.owes(&response);
        if let Some(mut guarded) = guarded {
            native = None;
            let write = |plan: &Arc<Plan>| -> BoxFuture<'_, Result<Call, Failure>> {
                let (plan, what) = (plan.clone(), begun.what(Turn::MayRepeat));
                Box::pin(async move { self.written(&plan, what).await })
            };
            let answered = Answered { setup: &begun.setup, road: &begun.road, plan: &plan, write: &write };
            response = self.guard_output(ticket, &mut guarded, &answered, response).await?;
        }
        if let Some(keeper) = keeper {
            keeper.keep(&response, native.as_ref(), plan.clone());
        }
        Ok((response, native, plan))
    }

    fn ask_one<'a>(&'a self, plan: &Arc<Plan>, what: What, takes_bytes: bool) -> BoxFuture<'a, Result<Reply, Failure>> {
        let plan = plan.clone();
        Box::pin(async move {
            let call = Call { takes_bytes, ..self.written(&plan, what).await? };
            Ok(plan.provider.chat(call).await?)
        })
    }

    /// Opens a stream and waits for its first piece, which decides whether this is a stream or an error with its own status.
    fn open<'a>(&'a self, plan: &Arc<Plan>, begun: &'a Begun, turn: Turn) -> BoxFuture<'a, Result<Opened, Failure>> {
        let (plan, what) = (plan.clone(), begun.what(turn));
        Box::pin(async move {
            let call = self.written(&plan, what).await?;
            first_piece(plan.provider.chat_stream(call).await?, &plan).await
        })
    }

    /// The call of a target: the release's prompt and parameters written into the request.
    async fn written(&self, plan: &Arc<Plan>, what: What) -> Result<Call, Failure> {
        if plan.manifest.as_ref().is_none_or(|manifest| manifest.prompt.is_none()) {
            return written(plan, None, what, &[]);
        }
        // A template may take its time.
        let (shared, prompts) = (plan.clone(), self.prompts.clone());
        let first = blocking(move || {
            let prompt = shared.prompt(&prompts)?;
            match prompt {
                Some(prompt) if prompt.front.examples.is_some() => Ok(Written::Lacks(prompt, what)),
                prompt => written(&shared, prompt.as_deref(), what, &[]).map(Written::Whole),
            }
        });
        let (prompt, what) = match first.await? {
            Written::Whole(call) => return Ok(call),
            Written::Lacks(prompt, what) => (prompt, what),
        };
        let examples = self.examples(&prompt, &render::given(&prompt, &what.request)?).await?;
        let plan = plan.clone();
        blocking(move || written(&plan, Some(&prompt), what, &examples)).await
    }
}

/// A reply on its way to the caller: its log row is written.
async fn told(ticket: Ticket, reply: Reply, plan: Arc<Plan>) -> Passed {
    let Reply { body, native } = reply;
    match body {
        Body::Bytes(body, glance) => {
            let (told, written) = ticket.passed(&body, glance);
            if let Some(written) = written {
                written.await;
            }
            Passed::Bytes { body, told }
        }
        Body::Read(response) => {
            let request_id = ticket.request_id().to_string();
            let (latency_ms, told) = ticket.succeed(&response);
            let (provider, adapter, release, prompt) = (plan.provider_name.clone(), plan.adapter, plan.release, plan.prompt.clone());
            let (model, first_token_ms) = (plan.model.clone(), None);
            let answer =
                Answer { request_id, response, native, provider, model, adapter, release, prompt, latency_ms, first_token_ms, told };
            Passed::Answer(Box::new(answer))
        }
    }
}

/// A kept reply on its way to the caller.
async fn told_again(mut ticket: Ticket, kept: &Kept, takes_bytes: bool) -> Result<Passed, Failure> {
    if let Some(glance) = Glance::of(&kept.entry.body).filter(|_| takes_bytes) {
        let reply = Reply { body: Body::Bytes(kept.entry.body.clone(), glance), native: None };
        return Ok(told(ticket, reply, kept.plan()).await);
    }
    let (reply, plan) = kept.read().map_err(|failure| ticket.fail(failure))?;
    Ok(told(ticket, reply, plan).await)
}

async fn first_piece(mut pieces: PieceStream, plan: &Plan) -> Result<Opened, Failure> {
    match pieces.next().await {
        Some(first) => Ok((first?, pieces)),
        None => Err(Failure::new(Code::UPSTREAM, format!("{}/{} sent an empty stream", plan.provider_name, plan.model))),
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
        Passed::Bytes { .. } => Err(unasked_bytes()),
    }
}

fn whole(body: Body) -> Result<ChatResponse, Failure> {
    match body {
        Body::Read(response) => Ok(response),
        Body::Bytes(..) => Err(unasked_bytes()),
    }
}

/// Whether a reply may have to be in a format: the request's, or that of a release or its prompt.
fn may_have_format(road: &Road, request: &ChatRequest) -> bool {
    request.extra.contains_key("response_format") || road.targets.iter().any(|plan| plan.manifest.is_some())
}

fn unasked_bytes() -> Failure {
    Failure::new(Code::INTERNAL, "a provider answered with bytes that nobody asked for")
}

/// A call, or what is needed for one whose prompt shows examples.
enum Written {
    Whole(Call),
    Lacks(Arc<Prompt>, What),
}

fn written(plan: &Plan, prompt: Option<&Prompt>, what: What, examples: &[Message]) -> Result<Call, Failure> {
    let What { request, native, asker } = what;
    let request = render::chat(plan.manifest.as_ref(), prompt, request, examples)?;
    // A release that adds to the request has to be written into it, which the caller's own body does not know.
    let native = native.filter(|_| plan.manifest.as_ref().is_none_or(Manifest::adds_nothing));
    Ok(Call { native, asker, ..plan.call(request) })
}

impl Plan {
    fn call(&self, request: ChatRequest) -> Call {
        let model_digest = self.manifest.as_ref().and_then(|manifest| manifest.model_digest);
        let asker = Asker::default();
        Call {
            model: self.model.clone(),
            model_digest,
            adapter: self.adapter,
            asker,
            request,
            native: None,
            takes_bytes: false,
            plain: None,
        }
    }
}
