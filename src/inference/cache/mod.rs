//! Replies that were given before: [`key`] (what is the same), [`entry`] (what is kept), [`flight`] (one call for requests under way at
//! once), [`semantic`] (questions that mean the same). In memory only; a setup has its own, so that a changed configuration, guardrails
//! and addresses of providers included, begins with an empty one.

mod entry;
mod flight;
mod key;
mod semantic;

pub(super) use entry::Entry;

use super::plan::Plan;
use super::road::Road;
use super::ticket::Ticket;
use super::{Ask, Begun, Inference, Setup};
use crate::access::Caller;
use crate::config::CacheConfig;
use crate::providers::Reply;
use crate::types::chat::{ChatRequest, ChatResponse};
use crate::types::embeddings::{EmbeddingRequest, Vector};
use crate::types::{Code, Failure};
use flight::{Flights, Joined, Lead, Waiting};
use key::{Asked, Key, Question};
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync};
pub(super) use semantic::Direction;
use semantic::Questions;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// How long a request waits for another that asks the same: a reader of a stream may be slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many of those that ask a request sees fail before it asks by itself.
const MAX_FAILED: u32 = 2;
/// How long a question's vector may take; a request does not wait longer for what is only to make it faster.
const VECTOR_TIME: Duration = Duration::from_secs(3);
/// Endpoint of the calls that make vectors of questions.
pub(super) const VECTORS: &str = "cache.embeddings";
/// Bytes of an average reply, for the size of tables.
const USUAL_BYTES: u64 = 4_096;
const MAX_SHARDS: u64 = 16;

/// What a caller wants of the cache, in the header `x-refit-cache`; the words are those of RFC 9111, 5.2.1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheWish {
    /// Nothing.
    #[default]
    Usual,
    /// `no-cache`: to be asked anew; the new reply is kept.
    Anew,
    /// `no-store`: the reply is not kept.
    NotKept,
    /// Both.
    Aside,
    /// Only a reply to the very same request: what is said of one text is not said of another that resembles it. No header says this.
    Exact,
    /// Something else.
    Unclear,
}

impl CacheWish {
    /// Reads the header's words, separated by commas.
    pub fn of(text: &str) -> Self {
        text.split(',').map(str::trim).fold(CacheWish::Usual, |wish, word| wish.and(word))
    }

    /// Whether the reply to a question that resembles this one will do.
    fn takes_similar(self) -> bool {
        self != CacheWish::Exact
    }

    fn and(self, word: &str) -> Self {
        let word = match word {
            _ if word.eq_ignore_ascii_case("no-cache") => CacheWish::Anew,
            _ if word.eq_ignore_ascii_case("no-store") => CacheWish::NotKept,
            _ => return CacheWish::Unclear,
        };
        match self {
            CacheWish::Usual => word,
            CacheWish::Unclear => self,
            _ if self == word => self,
            _ => CacheWish::Aside,
        }
    }
}

/// The replies of a setup.
pub(super) struct Cache {
    config: CacheConfig,
    kept: sync::Cache<Key, Arc<Entry>, Weigh>,
    flights: Arc<Flights>,
    questions: Questions,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Arc<Entry>> for Weigh {
    fn weight(&self, _key: &Key, entry: &Arc<Entry>) -> u64 {
        entry.weight()
    }
}

/// A request, as far as the cache is concerned.
#[derive(Debug)]
pub(super) struct CacheKey {
    key: Key,
    question: Option<Question>,
    wish: CacheWish,
}

/// A reply that need not be asked for.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) entry: Arc<Entry>,
    /// `hit` or `semantic`.
    how: &'static str,
}

/// What the cache says of a request.
pub(super) enum Looked {
    /// It has nothing to do with it.
    Off,
    /// It has the reply.
    Kept(Kept),
    /// It takes the reply that comes.
    Missed(Keeper),
}

/// Where a reply that is asked for goes, too. When it is dropped without one, the next of those that wait asks.
pub(super) struct Keeper {
    cache: Arc<Cache>,
    key: Key,
    lead: Option<Lead>,
    question: Option<(Key, Direction)>,
    keeps: bool,
}

impl Cache {
    pub(super) fn new(config: &CacheConfig) -> Self {
        // Each shard has its part of the bytes, which has to hold the largest reply a few times.
        let shards = (config.max_bytes / (4 * config.max_entry_bytes).max(1)).clamp(1, MAX_SHARDS);
        let shards = 1 << shards.ilog2();
        let items = usize::try_from(config.max_bytes / USUAL_BYTES).unwrap_or(usize::MAX).max(1);
        let mut options = OptionsBuilder::new();
        options.shards(shards).estimated_items_capacity(items).weight_capacity(config.max_bytes);
        let options = options.build().expect("all that has no default is set");
        Cache {
            config: config.clone(),
            kept: sync::Cache::with_options(options, Weigh, DefaultHashBuilder::default(), DefaultLifecycle::default()),
            flights: Flights::new(),
            questions: Questions::new(config.semantic.max_entries),
        }
    }

    fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let entry = self.kept.get(key)?;
        if !entry.is_older_than(self.config.ttl()) {
            return Some(entry);
        }
        // Another may have taken its place by now.
        self.kept.remove_if(key, |entry| entry.is_older_than(self.config.ttl()));
        None
    }

    /// Finds the reply, or a place for it; waits for those that ask the same, but not beyond the time that the request has.
    async fn hit_or_lead(&self, key: &CacheKey, due: Option<Instant>) -> Result<Kept, Option<Lead>> {
        let patience = Instant::now() + PATIENCE;
        let until = due.map_or(patience, |due| due.min(patience));
        let hit = || self.get(&key.key).map(|entry| Kept { entry, how: "hit" });
        if key.wish == CacheWish::Anew {
            return Err(None);
        }
        for _ in 0..MAX_FAILED {
            if let Some(kept) = hit() {
                return Ok(kept);
            }
            if key.wish == CacheWish::NotKept {
                break;
            }
            match self.flights.join(key.key) {
                // Whoever led may have landed between the two looks.
                Joined::Lead(lead) => return hit().ok_or(Some(lead)),
                Joined::Wait(waiting) => match timeout_at(until, Waiting::landed(waiting)).await {
                    Ok(Some(kept)) => return Ok(kept),
                    Ok(None) => {}
                    Err(_) => break,
                },
            }
        }
        Err(None)
    }
}

impl Keeper {
    /// Bytes of a streamed reply that are put together. Chunks repeat what a reply says once.
    pub(super) fn room(&self) -> usize {
        const REPEATED: u64 = 4;
        if self.keeps { usize::try_from(REPEATED * self.cache.config.max_entry_bytes).unwrap_or(usize::MAX) } else { 0 }
    }

    /// Keeps a reply that was given whole.
    pub(super) fn keep(self, response: &ChatResponse, native: Option<&Value>, plan: Arc<Plan>) {
        if self.keeps {
            self.take(Entry::of(response, native, plan));
        }
    }

    /// Keeps a streamed reply that was put together.
    pub(super) fn keep_stream(self, response: ChatResponse, plan: Arc<Plan>) {
        if self.keeps {
            self.take(Entry::of_stream(response, plan));
        }
    }

    fn take(self, entry: Option<Entry>) {
        let Some(entry) = entry.map(Arc::new) else { return };
        if entry.bytes() <= self.cache.config.max_entry_bytes {
            self.cache.kept.insert(self.key, entry.clone());
            if let Some((scope, direction)) = self.question {
                self.cache.questions.keep(scope, direction, self.key);
            }
        }
        // Those that wait get also what is too large to be kept.
        if let Some(lead) = self.lead {
            lead.land(Kept { entry, how: "hit" });
        }
    }
}

impl Kept {
    /// The reply, read, and what answered.
    pub(super) fn read(&self) -> Result<(Reply, Arc<Plan>), Failure> {
        let reply = Reply { native: self.entry.native()?, ..self.entry.response()?.into() };
        Ok((reply, self.plan()))
    }

    /// What answered.
    pub(super) fn plan(&self) -> Arc<Plan> {
        self.entry.plan.clone()
    }
}

impl Inference {
    /// Whether replies on a road are kept.
    pub(super) fn caches(&self, setup: &Setup, road: &Road) -> bool {
        let config = &setup.config.cache;
        if let Some(on) = road.rules.cache {
            return on;
        }
        // The commonest case costs nothing.
        if config.routes.is_empty() {
            return config.enabled;
        }
        let named = match &road.name {
            Some(name) => config.routes.get(name),
            None => road.targets.first().and_then(|plan| plan.named(&config.routes)),
        };
        named.copied().unwrap_or(config.enabled)
    }

    /// The key of a request; none where the cache is off for it.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] where the caller's wish cannot be read.
    pub(super) fn cache_key(&self, setup: &Setup, ask: &Ask, road: &Road, request: &ChatRequest) -> Result<Option<CacheKey>, Failure> {
        if !self.caches(setup, road) {
            return Ok(None);
        }
        let wish = ask.cache;
        if wish == CacheWish::Unclear {
            let failure = Failure::on(Code::INVALID_VALUE, "x-refit-cache", "the header \"x-refit-cache\" says something unknown");
            return Err(failure.with_hint("it takes \"no-cache\" (ask anew), \"no-store\" (do not keep the reply), or both"));
        }
        if wish == CacheWish::Aside || !(setup.config.cache.sampled || is_repeatable(road, request)) {
            return Ok(None);
        }
        let asked = Asked { project: &ask.caller.project, road, request, native: ask.native.as_ref() };
        let question = if setup.config.cache.semantic.enabled && wish.takes_similar() { asked.question() } else { None };
        Ok(Some(CacheKey { key: asked.key(), question, wish }))
    }

    /// Looks for the reply, and puts down what was found.
    pub(super) async fn look_up(&self, ticket: &mut Ticket, ask: &Ask, begun: &mut Begun) -> Looked {
        let Some(key) = begun.key.take() else { return Looked::Off };
        let cache = begun.setup.cache();
        let (lead, wish) = match cache.hit_or_lead(&key, ticket.due()).await {
            Ok(kept) => return found(ticket, kept),
            Err(lead) => (lead, key.wish),
        };
        let mut question = None;
        if let Some(asked) = key.question {
            question = self.direction(&cache.config, &ask.caller, asked.text).await.map(|direction| (asked.scope, direction));
        }
        if let Some((scope, direction)) = question.as_ref().filter(|_| wish != CacheWish::Anew) {
            let near = cache.questions.near(scope, direction, cache.config.semantic.threshold);
            if let Some(entry) = near.iter().find_map(|reply| cache.get(reply)) {
                let kept = Kept { entry, how: "semantic" };
                lead.into_iter().for_each(|lead| lead.land(kept.clone()));
                return found(ticket, kept);
            }
        }
        ticket.looked_up("miss");
        Looked::Missed(Keeper { cache, key: key.key, lead, question, keeps: wish != CacheWish::NotKept })
    }

    /// Where a question points. None when the model fails, whose call has a row of its own in the log: then the question is asked.
    async fn direction(&self, config: &CacheConfig, caller: &Caller, text: String) -> Option<Direction> {
        // The tenant's bill and limits, but nobody's key: the caller did not choose the model.
        let bounds = caller.bounds.as_ref().and_then(|bounds| bounds.of_project()).map(Arc::new);
        let caller = Caller { project: caller.project.clone(), bounds, ..Caller::local("cache") };
        let request = EmbeddingRequest { model: config.semantic.model.clone(), input: text.into(), ..EmbeddingRequest::default() };
        let embedded = timeout(VECTOR_TIME, self.embed(Ask::new(&caller, VECTORS), request)).await;
        match embedded.ok()?.ok()?.response.data.into_iter().next()?.embedding {
            Vector::Floats(vector) => Direction::of(&vector),
            Vector::Base64(_) => None,
        }
    }
}

fn found(ticket: &mut Ticket, kept: Kept) -> Looked {
    ticket.looked_up(kept.how);
    ticket.planned(&kept.entry.plan);
    Looked::Kept(kept)
}

/// Whether the same request would get the same reply again, as far as the parameters say: a temperature of 0, or a seed.
fn is_repeatable(road: &Road, request: &ChatRequest) -> bool {
    let of_release = |plan: &Plan, name: &str| plan.manifest.as_ref().and_then(|manifest| manifest.parameters.get(name)?.as_f64());
    let greedy = |plan: &Plan| request.temperature.or_else(|| of_release(plan, "temperature")) == Some(0.0);
    let seeded = |plan: &Plan| request.seed.is_some() || of_release(plan, "seed").is_some();
    road.targets.iter().all(|plan| greedy(plan) || seeded(plan))
}

impl Plan {
    /// What is said for the name that this stands for: a route, or `provider/model`.
    fn named<'n, T>(&self, names: &'n BTreeMap<String, T>) -> Option<&'n T> {
        match &self.route {
            Some(route) => names.get(route),
            // What names the adapter says more than what names the model.
            None => names.iter().filter(|(name, _)| self.is_called(name)).max_by_key(|(name, _)| name.len()).map(|(_, value)| value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_one_word_or_two() {
        let wishes = [
            ("no-cache", CacheWish::Anew),
            ("No-Store", CacheWish::NotKept),
            ("no-store, no-cache", CacheWish::Aside),
            ("no-store,no-store", CacheWish::NotKept),
            ("no-cach", CacheWish::Unclear),
            ("no-cache, max-age=0", CacheWish::Unclear),
            ("", CacheWish::Unclear),
        ];
        for (text, wish) in wishes {
            assert_eq!(CacheWish::of(text), wish, "{text}");
            assert!(wish.takes_similar(), "{text}");
        }
        assert!(!CacheWish::Exact.takes_similar(), "what a judge says of one answer is not said of another");
    }
}
