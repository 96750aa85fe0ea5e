//! What the configuration says about calls, swapped as a whole when the configuration is read again: a call keeps the setup that it
//! began with.

use super::road::Road;
use crate::config::Config;
use crate::monitor::cost::Prices;
use crate::providers::Providers;
use crate::store::{Fresh, Store};
use std::sync::Arc;

/// Everything about calls that comes from the configuration.
pub struct Setup {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// Places that answer model calls.
    pub providers: Arc<Providers>,
    /// What calls cost.
    pub prices: Arc<Prices>,
    /// What names in `model` stand for, as of the newest commit.
    pub(super) roads: Fresh<String, Arc<Road>>,
}

impl Setup {
    /// A setup over a store.
    pub fn new(store: &Store, config: Arc<Config>, providers: Arc<Providers>) -> Self {
        let prices = Arc::new(Prices::load(&config));
        Setup { config, providers, prices, roads: Fresh::new(store.db.clone()) }
    }
}
