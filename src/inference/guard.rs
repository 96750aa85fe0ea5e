//! Guardrails around a call: what comes in is checked before anything is asked, what goes out before anybody reads it. Which sets a
//! call goes through is decided here; what they find is the room `guardrails`'s business, [`moderate`](super::moderate) asks models,
//! [`repair`](super::repair) asks again for a reply that does not fit its format.

use super::attempt::Turn;
use super::plan::Plan;
use super::pool::Kind;
use super::road::Road;
use super::ticket::Ticket;
use super::{Inference, Setup, whole};
use crate::config::GuardrailsConfig;
use crate::config::guardrails::{Action, Side, inline};
use crate::guardrails::scan::{self, Scanned};
use crate::guardrails::schema::Schemas;
use crate::guardrails::{Finding, Guard, Names, Refused, texts};
use crate::providers::{Call, Reply};
use crate::releases::Manifest;
use crate::types::blocking::{self, blocking};
use crate::types::chat::{ChatRequest, ChatResponse, Content, Message};
use crate::types::embeddings::EmbeddingRequest;
use crate::types::{Code, Digest, Failure};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Releases whose sets are kept compiled.
const MAX_RELEASES: usize = 256;

/// The sets of a configuration, compiled, and those of the releases that were called.
#[derive(Default)]
pub(super) struct Guards {
    sets: BTreeMap<String, Arc<Guard>>,
    default: Vec<String>,
    of_releases: Mutex<HashMap<Digest, Vec<Arc<Guard>>>>,
    pub(super) schemas: Schemas,
}

/// From so many bytes on a request is scanned off the threads that answer.
const LARGE_BYTES: usize = blocking::LARGE_BYTES;

type Scan<T> = fn(&[Arc<Guard>], &mut T, &mut Names) -> Scanned;

/// What one call goes through, and what was found so far.
pub(super) struct Guarded {
    pub(super) sets: Vec<Arc<Guard>>,
    pub(super) names: Names,
    findings: Vec<Finding>,
}

/// How a call is written for a target, for a second one.
pub(super) type Write<'a> = dyn Fn(&Arc<Plan>) -> BoxFuture<'a, Result<Call, Failure>> + Send + Sync + 'a;

/// A call that was answered.
pub(super) struct Answered<'a> {
    pub(super) setup: &'a Arc<Setup>,
    pub(super) road: &'a Road,
    pub(super) plan: &'a Arc<Plan>,
    pub(super) write: &'a Write<'a>,
}

impl Guards {
    /// The sets of a configuration.
    pub(super) fn new(config: &GuardrailsConfig) -> Self {
        let sets = config.sets.iter().map(|(name, set)| (name.clone(), Arc::new(Guard::new(set.clone())))).collect();
        Guards { sets, default: config.default.clone(), ..Guards::default() }
    }

    /// Whether the configuration has none.
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Whether calls on a road go through any set.
    pub(super) fn are_on(&self, road: &Road) -> bool {
        let of_release = |plan: &Plan| plan.manifest.as_ref().is_some_and(|manifest| !manifest.guardrails.is_empty());
        plans(road).any(of_release)
            || (!self.sets.is_empty() && (!self.default.is_empty() || self.sets.values().any(|guard| is_for(guard, road))))
    }

    /// What a call on a road goes through; none where that is nothing.
    ///
    /// # Errors
    /// [`Code::INTERNAL`] for a set that a release names and nobody has: nothing passes unguarded.
    fn of(&self, road: &Road) -> Result<Option<Box<Guarded>>, Failure> {
        if !self.are_on(road) {
            return Ok(None);
        }
        let named = self.sets.values().filter(|guard| is_for(guard, road)).cloned();
        let held = |plan: &Plan| plan.manifest.as_ref().is_some_and(|manifest| !manifest.guardrails.is_empty());
        let releases = plans(road).filter(|plan| held(plan));
        let of_releases =
            releases.filter_map(|plan| Some(self.held_by(plan.release, plan.manifest.as_ref()?))).collect::<Result<Vec<_>, _>>()?;
        Ok(self.gathered(named.chain(of_releases.into_iter().flatten())))
    }

    /// What a release goes through that no route holds.
    fn of_release(&self, manifest: &Manifest) -> Result<Option<Box<Guarded>>, Failure> {
        // A set that is for a local model is for its adapters, too.
        let model = manifest.model.split_once(':').filter(|(model, _)| model.starts_with("local/")).map(|(model, _)| model);
        let means = |name: &String| *name == manifest.model || model == Some(name);
        let named = self.sets.values().filter(|guard| guard.set.routes.iter().any(means)).cloned();
        let of_release = if manifest.guardrails.is_empty() { Vec::new() } else { self.held_by(None, manifest)? };
        Ok(self.gathered(named.chain(of_release)))
    }

    /// The default sets and these, each once, those that refuse first.
    fn gathered(&self, more: impl Iterator<Item = Arc<Guard>>) -> Option<Box<Guarded>> {
        let default = self.default.iter().filter_map(|name| self.sets.get(name).cloned());
        let mut sets: Vec<Arc<Guard>> = Vec::new();
        for guard in default.chain(more) {
            if !sets.iter().any(|other| Arc::ptr_eq(other, &guard)) {
                sets.push(guard);
            }
        }
        // What is refused must not have been redacted by another set before.
        sets.sort_by_key(|guard| guard.set.action != Action::Refuse);
        (!sets.is_empty()).then(|| Box::new(Guarded { sets, names: Names::default(), findings: Vec::new() }))
    }

    /// The sets of a release: its own, and those that it names. Its digest is computed where nobody knows it.
    fn held_by(&self, release: Option<Digest>, manifest: &Manifest) -> Result<Vec<Arc<Guard>>, Failure> {
        let digest = release.unwrap_or_else(|| manifest.digest());
        let lock = || self.of_releases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sets) = lock().get(&digest) {
            return Ok(sets.clone());
        }
        let one = |value: &Value| match value.as_str() {
            Some(name) => self.sets.get(name).cloned().ok_or_else(|| format!("there is no set \"{name}\" in refit.toml")),
            None => inline(value).map(|set| Arc::new(Guard::new(set))),
        };
        let sets = manifest.guardrails.iter().map(one).collect::<Result<Vec<_>, _>>().map_err(|why| {
            let failure = Failure::new(Code::INTERNAL, format!("the guardrails of the release cannot be applied: {why}"));
            failure.with_hint("add the set to [guardrails], or release with the set in the manifest itself")
        })?;
        let mut kept = lock();
        if kept.len() >= MAX_RELEASES {
            kept.clear();
        }
        kept.insert(digest, sets.clone());
        Ok(sets)
    }
}

/// Every plan that a call on a road may come to, a cascade's among them.
fn plans(road: &Road) -> impl Iterator<Item = &Plan> {
    let beside = road.cascade.iter().flat_map(|cascade| std::iter::once(&cascade.first).chain(&cascade.judge));
    road.targets.iter().chain(beside.flat_map(|road| &road.targets)).map(AsRef::as_ref)
}

/// Whether a set says that it is for the name that was called, or for a target of it.
fn is_for(guard: &Guard, road: &Road) -> bool {
    let named = |name: &String| {
        let target = |plan: &Plan| plan.route.as_ref() == Some(name) || plan.is_called(name);
        road.name.as_ref() == Some(name) || plans(road).any(target)
    };
    guard.set.routes.iter().any(named) || road.rules.guardrails.contains(&guard.set.name)
}

impl Guarded {
    /// Whether the reply must be read whole before it is passed on.
    pub(super) fn reads_output(&self) -> bool {
        self.names.restores() || self.sets.iter().any(|guard| guard.set.looks_at(Side::Output))
    }

    /// Whether a reply that does not fit its format is asked for once more.
    pub(super) fn repairs(&self) -> bool {
        self.sets.iter().any(|guard| guard.set.validate_output)
    }

    /// Whether the reply may be given to somebody else who asks the same.
    pub(super) fn may_be_kept(&self) -> bool {
        !self.names.restores()
    }

    /// Scans a value; a large one on a thread where it holds nobody up. `bytes` are what it has at least.
    async fn scanned<T: Send + 'static>(&mut self, mut value: T, scan: Scan<T>, bytes: usize) -> Result<(T, Scanned), Failure> {
        if bytes < LARGE_BYTES {
            let scanned = scan(&self.sets, &mut value, &mut self.names);
            return Ok((value, scanned));
        }
        let (sets, mut names) = (self.sets.clone(), std::mem::take(&mut self.names));
        let done = blocking(move || {
            let scanned = scan(&sets, &mut value, &mut names);
            Ok((value, scanned, names))
        });
        let (value, scanned, names) = done.await?;
        self.names = names;
        Ok((value, scanned))
    }

    /// Adds to what the log row says.
    pub(super) fn note(&mut self, ticket: &mut Ticket, findings: Vec<Finding>) {
        if !findings.is_empty() {
            self.findings.extend(findings);
            ticket.found(&self.findings);
        }
    }
}

/// A refusal, which says what was found where and not what it was.
fn refusal(refused: &Refused) -> Failure {
    let Refused { set, what, place } = refused;
    Failure::on(Code::CONTENT_FILTER, place.clone(), format!("the guardrail \"{set}\" {what} in {place}"))
}

impl Inference {
    /// What a call begins with once its road is looked up: the row gets the road, its prices and, where no guardrail stands before
    /// it, its body (`held`, taken out until then). A call without a road might have met any of the sets.
    ///
    /// # Errors
    /// What `found` has; as [`Guards::of`].
    pub(super) fn sets_out(
        &self,
        setup: &Setup,
        ticket: &mut Ticket,
        found: Result<Arc<Road>, Failure>,
        held: Option<String>,
    ) -> Result<(Arc<Road>, Option<Box<Guarded>>), Failure> {
        let road = match found {
            Ok(road) => road,
            Err(failure) => {
                ticket.show_body(held.filter(|_| setup.guards.is_empty()));
                return Err(failure);
            }
        };
        ticket.routed(&road);
        ticket.priced(setup);
        let guarded = setup.guards.of(&road)?;
        if guarded.is_none() {
            ticket.show_body(held);
        }
        Ok((road, guarded))
    }

    /// The request as it may be asked.
    ///
    /// # Errors
    /// [`Code::CONTENT_FILTER`] for what is refused, [`Code::INVALID_VALUE`] for a schema that replies cannot be checked against.
    pub(super) async fn guard_input(
        &self,
        setup: &Arc<Setup>,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        request: ChatRequest,
    ) -> Result<ChatRequest, Failure> {
        let bytes = size_of(request.messages.iter());
        let (mut request, scanned) = guarded.scanned(request, scan::request, bytes).await?;
        ticket.show(&request);
        guarded.note(ticket, scanned.findings);
        if let Some(refused) = scanned.refused {
            return Err(refusal(&refused));
        }
        if let Some(asked) = request.extra.get("response_format").filter(|_| guarded.repairs()) {
            let (setup, asked) = (setup.clone(), asked.clone());
            let compiled = blocking(move || Ok(setup.guards.schemas.format(&asked).map(drop))).await?;
            compiled.map_err(|why| {
                let message = format!("replies cannot be checked against this schema: {why}");
                Failure::on(Code::INVALID_VALUE, "response_format.json_schema.schema", message)
            })?;
        }
        if self.asks_models(guarded, Side::Input) {
            let messages = request.messages.iter_mut().enumerate().map(|(at, message)| {
                let place = format!("messages[{at}]");
                let text = gathered(|each| texts::of_message(&place, message, each));
                (place, text)
            });
            let mut asked: Vec<_> = messages.collect();
            let unknown = texts::unknown(&mut request.extra);
            asked.extend(unknown.map(|(name, value)| (name.to_string(), gathered(|each| texts::of_variables("", value, each)))));
            if let Some(variables) = request.extra.get_mut("prompt").and_then(|prompt| prompt.get_mut("variables")) {
                asked.push(("prompt.variables".into(), gathered(|each| texts::of_variables("", variables, each))));
            }
            self.moderated(setup, ticket, guarded, (Side::Input, asked)).await?;
        }
        Ok(request)
    }

    /// As [`Inference::guard_input`], of texts to embed.
    ///
    /// # Errors
    /// As [`Inference::guard_input`].
    pub(super) async fn guard_embedding(
        &self,
        setup: &Arc<Setup>,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        mut request: EmbeddingRequest,
    ) -> Result<EmbeddingRequest, Failure> {
        let scanned = scan::embedding(&guarded.sets, &mut request, &mut guarded.names);
        guarded.note(ticket, scanned.findings);
        ticket.show(&request);
        if let Some(refused) = scanned.refused {
            return Err(refusal(&refused));
        }
        if request.texts().is_some() && self.asks_models(guarded, Side::Input) {
            let text = gathered(|each| texts::of_variables("", &mut request.input, each));
            self.moderated(setup, ticket, guarded, (Side::Input, vec![("input".into(), text)])).await?;
        }
        Ok(request)
    }

    /// Applies the rules of sets to what is to be judged.
    ///
    /// # Errors
    /// As [`Inference::guard_input`].
    pub(super) fn guard_moderation(
        &self,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        request: &mut Map<String, Value>,
    ) -> Result<(), Failure> {
        let scanned = scan::moderation(&guarded.sets, request, &mut guarded.names);
        ticket.show(request);
        guarded.note(ticket, scanned.findings);
        scanned.refused.map_or(Ok(()), |refused| Err(refusal(&refused)))
    }

    /// Applies a release's sets to the variables that an evaluation fills its prompt with. Returns them with why they may not pass.
    pub(super) fn guard_variables(&self, setup: &Setup, manifest: &Manifest, variables: Map<String, Value>) -> Result<Variables, Failure> {
        let mut variables = Value::Object(variables);
        let mut guarded = setup.guards.of_release(manifest)?;
        let mut refused = None;
        if let Some(guarded) = &mut guarded {
            let scanned = scan::values(&guarded.sets, "variables", &mut variables, &mut guarded.names);
            guarded.findings.extend(scanned.findings);
            refused = scanned.refused.as_ref().map(refusal);
        }
        let Value::Object(variables) = variables else {
            return Err(Failure::new(Code::INTERNAL, "variables are not an object"));
        };
        Ok(Variables { variables, guarded, refused })
    }

    /// The reply as it may be told: fit for its format, checked, and with placeholders restored; the log keeps them.
    ///
    /// # Errors
    /// [`Code::CONTENT_FILTER`] for what is refused, [`Code::INVALID_OUTPUT`] for a reply that does not fit its format.
    pub(super) async fn guard_output(
        &self,
        ticket: &mut Ticket,
        guarded: &mut Guarded,
        answered: &Answered<'_>,
        mut response: ChatResponse,
    ) -> Result<ChatResponse, Failure> {
        ticket.spent(response.usage.as_ref());
        if guarded.repairs() {
            response = self.fitting(ticket, guarded, answered, response).await?;
        }
        let bytes = size_of(response.choices.iter().map(|choice| &choice.message));
        let (mut response, scanned) = guarded.scanned(response, scan::reply, bytes).await?;
        ticket.answered(&response);
        guarded.note(ticket, scanned.findings);
        if let Some(refused) = scanned.refused {
            return Err(refusal(&refused));
        }
        if self.asks_models(guarded, Side::Output) {
            let choices = response.choices.iter_mut().map(|choice| {
                let place = format!("choices[{}].message", choice.index);
                let text = gathered(|each| texts::of_message(&place, &mut choice.message, each));
                (place, text)
            });
            let asked = choices.collect();
            self.moderated(answered.setup, ticket, guarded, (Side::Output, asked)).await?;
        }
        if guarded.names.restores() {
            ticket.keep_reply();
            scan::restore(&mut response, &guarded.names);
        }
        Ok(response)
    }
}

/// Variables of an evaluation that its release's sets have seen.
pub(super) struct Variables {
    pub(super) variables: Map<String, Value>,
    pub(super) guarded: Option<Box<Guarded>>,
    pub(super) refused: Option<Failure>,
}

/// A run of a release for an evaluation.
pub(super) struct Run<'a> {
    pub(super) setup: &'a Arc<Setup>,
    pub(super) road: &'a Road,
    pub(super) call: &'a Call,
    /// Why its variables may not pass.
    pub(super) refused: Option<Failure>,
}

impl Inference {
    /// Answers a run whose variables the sets have seen.
    ///
    /// # Errors
    /// As [`Inference::guard_input`] and [`Inference::guard_output`].
    pub(super) async fn run_guarded(
        &self,
        ticket: &mut Ticket,
        mut guarded: Box<Guarded>,
        run: Run<'_>,
    ) -> Result<(ChatResponse, Arc<Plan>), Failure> {
        ticket.found(&guarded.findings);
        if let Some(refused) = run.refused {
            return Err(refused);
        }
        if self.asks_models(&guarded, Side::Input) {
            let mut messages = run.call.request.messages.clone();
            let text =
                |(at, message): (usize, &mut Message)| (format!("messages[{at}]"), gathered(|each| texts::of_message("", message, each)));
            let asked = messages.iter_mut().enumerate().map(text).collect();
            self.moderated(run.setup, ticket, &mut guarded, (Side::Input, asked)).await?;
        }
        let write = |_: &Arc<Plan>| -> BoxFuture<'_, Result<Call, Failure>> {
            let call = run.call.clone();
            Box::pin(async move { Ok(call) })
        };
        let calling = |plan: &Arc<Plan>, _: Turn| -> BoxFuture<'_, Result<Reply, Failure>> {
            let (provider, call) = (plan.provider.clone(), run.call.clone());
            Box::pin(async move { Ok(provider.chat(call).await?) })
        };
        let (reply, plan) = self.attempt(ticket, run.road, Kind::Whole, &calling).await?;
        let answered = Answered { setup: run.setup, road: run.road, plan: &plan, write: &write };
        let response = self.guard_output(ticket, &mut guarded, &answered, whole(reply.body)?).await?;
        Ok((response, plan))
    }
}

/// Bytes of texts, roughly.
fn size_of<'m>(messages: impl Iterator<Item = &'m Message>) -> usize {
    let content = |message: &Message| match &message.content {
        Some(Content::Text(text)) => text.len(),
        Some(Content::Parts(parts)) => parts.iter().filter_map(|part| part.get("text")?.as_str()).map(str::len).sum(),
        None => 0,
    };
    messages.map(content).sum()
}

/// The texts that a walk visits, a line each.
fn gathered(walk: impl FnOnce(&mut texts::Each<'_>) -> bool) -> String {
    let mut all = String::new();
    walk(&mut |_, text| {
        if !text.is_empty() {
            all.push_str(text);
            all.push('\n');
        }
        false
    });
    all.truncate(all.trim_end().len());
    all
}
