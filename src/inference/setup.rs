//! What the configuration says about calls, swapped as a whole when the configuration is read again: a call keeps the setup that it
//! began with.

use super::Log;
use super::cache::Cache;
use super::guard::Guards;
use super::road::Road;
use crate::config::{BreakerConfig, Config, ResilienceConfig};
use crate::monitor::cost::Prices;
use crate::providers::Providers;
use crate::store::{Fresh, Store, models};
use std::sync::{Arc, OnceLock};

/// Everything about calls that comes from the configuration.
pub struct Setup {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Places that answer model calls.
    pub providers: Arc<Providers>,
    /// Where calls are written down, and how.
    pub log: Log,
    /// What calls cost.
    pub prices: Arc<Prices>,
    /// Guardrails, compiled.
    pub(super) guards: Guards,
    /// What names in `model` stand for, as of the newest commit.
    pub(super) roads: Fresh<String, Arc<Road>>,
    /// When calls are made again, and when a target is left alone.
    pub(super) resilience: Arc<ResilienceConfig>,
    /// The same without breakers: an evaluation wants to know what each of its calls is answered.
    pub(super) unbroken: Arc<ResilienceConfig>,
    cache: OnceLock<Arc<Cache>>,
}

impl Setup {
    /// A setup over a store.
    pub fn new(store: &Store, config: Arc<Config>, providers: Arc<Providers>, log: Log) -> Self {
        let prices = Arc::new(Prices::load(&config));
        let resilience = Arc::new(config.resilience.clone());
        let breaker = BreakerConfig { enabled: false, ..resilience.breaker.clone() };
        let unbroken = Arc::new(ResilienceConfig { breaker, ..config.resilience.clone() });
        let guards = Guards::new(&config.guardrails);
        let roads = Fresh::new(store.db.clone());
        tell_of_missing_model(store, &config);
        Setup { config, providers, log, prices, guards, roads, resilience, unbroken, cache: OnceLock::new() }
    }

    /// Replies that are given again; made when a road first asks for it.
    pub(super) fn cache(&self) -> Arc<Cache> {
        self.cache.get_or_init(|| Arc::new(Cache::new(&self.config.cache))).clone()
    }
}

/// A semantic cache whose model is not here finds nothing, without a word to any caller: it is said once.
fn tell_of_missing_model(store: &Store, config: &Config) {
    let semantic = &config.cache.semantic;
    let Some(name) = semantic.model.strip_prefix("local/").filter(|_| semantic.enabled) else { return };
    if models::find(store.db.as_ref(), name).is_ok_and(|found| found.is_none()) {
        tracing::warn!("[cache.semantic] finds nothing until its model is here: refit model pull {name}");
    }
}
