//! What the configuration says about calls, swapped as a whole when the configuration is read again: a call keeps the setup that it
//! began with.

use super::Log;
use super::guard::Guards;
use super::road::Road;
use crate::config::Config;
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
    /// Guardrails, compiled.
    pub(super) guards: Guards,
    /// What names in `model` stand for, as of the newest commit.
    pub(super) roads: Fresh<String, Arc<Road>>,
}

impl Setup {
    /// A setup over a store.
    pub fn new(store: &Store, config: Arc<Config>, providers: Arc<Providers>, log: Log) -> Self {
        let guards = Guards::new(&config.guardrails);
        Setup { config, providers, log, guards, roads: Fresh::new(store.db.clone()) }
    }
}
