//! The composition root: every long-lived part of a process, built in one place, from a configuration and a data directory.

use crate::access::Keys;
use crate::config::{Config, LocalConfig};
use crate::inference::{Inference, Log, Setup};
use crate::jobs::batch::Batches;
use crate::monitor::{Metrics, Recorder};
use crate::providers::{Provider, Providers};
use crate::store::Store;
use crate::types::Failure;
use std::path::Path;
use std::sync::Arc;

/// The parts of a running Refit. Dropping it moves the request log to the database.
pub struct App {
    /// Database and blobs.
    pub store: Store,
    /// The checked configuration.
    pub config: Config,
    /// Places that answer model calls.
    pub providers: Arc<Providers>,
    /// The road to a completion.
    pub inference: Arc<Inference>,
    /// The request log.
    pub recorder: Arc<Recorder>,
    /// Metrics of this process.
    pub metrics: Arc<Metrics>,
    /// API keys.
    pub keys: Keys,
    /// Many requests in one file.
    pub batches: Arc<Batches>,
}

impl App {
    /// Opens the data directory, making it where needed, and builds every part. Models are loaded when they are first called.
    ///
    /// # Errors
    /// When the store cannot be opened or written.
    pub fn open(config: Config, data_dir: &Path) -> Result<App, Failure> {
        let store = Store::open(data_dir)?;
        let metrics = Arc::new(Metrics::new());
        let recorder = Arc::new(Recorder::open(&store, metrics.clone())?);
        let local = ENGINES.first().map(|open| open(store.clone(), config.local.clone()));
        let providers = Arc::new(Providers::open(&config.providers, local));
        let log = Log { recorder: recorder.clone(), metrics: metrics.clone(), bodies: config.log.bodies };
        let setup = Setup::new(&store, Arc::new(config.clone()), providers.clone());
        let inference = Arc::new(Inference::new(store.clone(), setup, log));
        let keys = Keys::open(&store)?;
        let batches = Arc::new(Batches::new(&store, &keys, &config.batches, config.server.max_body_bytes));
        Ok(App { store, config, providers, inference, recorder, metrics, keys, batches })
    }
}

/// Opens the provider of a local engine.
type OpenEngine = fn(Store, LocalConfig) -> Arc<dyn Provider>;

/// The registry of engines: one line, in builds that have it.
const ENGINES: &[OpenEngine] = &[
    #[cfg(feature = "local")]
    |store, config| Arc::new(crate::providers::local::Local::open(store, config)),
];
