//! What the configuration says about calls, swapped as a whole when the configuration is read again: a call keeps the setup that it
//! began with.

use super::Log;
use super::cache::Cache;
use super::road::Road;
use crate::config::Config;
use crate::providers::Providers;
use crate::store::{Fresh, Store};
use std::sync::{Arc, OnceLock};

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
    cache: OnceLock<Arc<Cache>>,
}

impl Setup {
    /// A setup over a store.
    pub fn new(store: &Store, config: Arc<Config>, providers: Arc<Providers>, log: Log) -> Self {
        Setup { config, providers, log, roads: Fresh::new(store.db.clone()), cache: OnceLock::new() }
    }

    /// Replies that are given again; made when a road first asks for it.
    pub(super) fn cache(&self) -> Arc<Cache> {
        self.cache.get_or_init(|| Arc::new(Cache::new(&self.config.cache))).clone()
    }
}
