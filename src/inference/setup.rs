//! What the configuration says about calls, swapped as a whole when the configuration is read again: a call keeps the setup that it
//! began with.

use super::Log;
use super::road::Road;
use crate::config::{BreakerConfig, Config, ResilienceConfig};
use crate::providers::Providers;
use crate::store::{Fresh, Store};
use std::sync::Arc;

/// Everything about calls that comes from the configuration.
pub struct Setup {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Places that answer model calls.
    pub providers: Arc<Providers>,
    /// Where calls are written down, and how.
    pub log: Log,
    /// What names in `model` stand for, as of the newest commit.
    pub(super) roads: Fresh<String, Arc<Road>>,
    /// When calls are made again, and when a target is left alone.
    pub(super) resilience: Arc<ResilienceConfig>,
    /// The same without breakers: an evaluation wants to know what each of its calls is answered.
    pub(super) unbroken: Arc<ResilienceConfig>,
}

impl Setup {
    /// A setup over a store.
    pub fn new(store: &Store, config: Arc<Config>, providers: Arc<Providers>, log: Log) -> Self {
        let resilience = Arc::new(config.resilience.clone());
        let breaker = BreakerConfig { enabled: false, ..resilience.breaker.clone() };
        let unbroken = Arc::new(ResilienceConfig { breaker, ..config.resilience.clone() });
        Setup { config, providers, log, roads: Fresh::new(store.db.clone()), resilience, unbroken }
    }
}
