//! The composition root: every long-lived part of a process, built in one place, from a configuration and a data directory; and how
//! another configuration is put in force.

use crate::access::meter::Owner;
use crate::access::{Keys, audit};
use crate::config::live::{Found, Refusal, Seen};
use crate::config::{Config, Live, LocalConfig};
use crate::inference::{InForce, Inference, Log, Setup, TargetStatus};
use crate::jobs::batch::Batches;
use crate::jobs::fine_tune::FineTunes;
use crate::jobs::openai_eval::Evals;
use crate::monitor::exposition::{BudgetFigures, Sources, TargetFigures};
use crate::monitor::{Health, Metrics, Names, Recorder, Redactor, Telemetry};
use crate::providers::{Provider, Providers};
use crate::store::Store;
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Targets that metrics show at most.
const MAX_TARGETS: usize = 500;

/// The parts of a running Refit. Dropping it moves the request log to the database.
pub struct App {
    /// Database and blobs.
    pub store: Store,
    /// The configuration file, and what became of it.
    pub live: Live,
    /// The road to a completion; has the configuration in force and the providers.
    pub inference: Arc<Inference>,
    /// The request log.
    pub recorder: Arc<Recorder>,
    /// The other names of logged requests.
    pub names: Names,
    /// Metrics of this process.
    pub metrics: Arc<Metrics>,
    /// Whether the data directory can be written.
    pub health: Arc<Health>,
    /// API keys.
    pub keys: Keys,
    /// Many requests in one file.
    pub batches: Arc<Batches>,
    /// OpenAI's Evals API.
    pub evals: Arc<Evals>,
    /// OpenAI's fine-tuning API.
    pub fine_tunes: Arc<FineTunes>,
    /// Where spans and events go; none where they go nowhere.
    pub telemetry: Option<Arc<Telemetry>>,
    /// When this was opened, milliseconds.
    pub started_at: i64,
    /// One reload at a time.
    reloading: Mutex<()>,
}

/// Why the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The file changed.
    File,
    /// SIGHUP.
    Signal,
}

impl App {
    /// Opens the data directory, making it where needed, and builds every part. Models are loaded when they are first called.
    ///
    /// # Errors
    /// When the store cannot be opened or written.
    pub fn open(config: Config, data_dir: &Path) -> Result<App, Failure> {
        App::open_with(Live::of(config.clone()), config, data_dir)
    }

    /// As [`App::open`], with the file that the configuration came from.
    ///
    /// # Errors
    /// As [`App::open`].
    pub fn open_with(live: Live, config: Config, data_dir: &Path) -> Result<App, Failure> {
        let mut store = Store::open(data_dir)?;
        let metrics = Arc::new(Metrics::new());
        store.db = metrics.timed(store.db.clone());
        let telemetry = telemetry(&config, &metrics)?;
        let recorder = Arc::new(Recorder::open(&store, metrics.clone())?);
        let local = ENGINES.first().map(|open| open(store.clone(), config.local.clone()));
        let providers = Providers::open(&config.providers, local);
        let keys = Keys::open(&store)?;
        let batches = Arc::new(Batches::new(&store, &keys, &config.batches, config.server.max_body_bytes));
        let evals = Arc::new(Evals::new(&store, &keys, config.batches.concurrency));
        let fine_tunes = Arc::new(FineTunes::new(&store));
        let setup = setup(&store, config, providers, (&recorder, &metrics, &telemetry))?;
        let inference = Arc::new(Inference::new(store.clone(), setup));
        metrics.watch(Sources { targets: Some(watched(&inference)), budgets: Some(budgets(&keys)) });
        let health = Arc::new(Health::new(&store));
        let names = Names::new(&store, &recorder);
        let (started_at, reloading) = (now_ms(), Mutex::new(()));
        Ok(App {
            store,
            live,
            inference,
            recorder,
            names,
            metrics,
            health,
            keys,
            batches,
            evals,
            fine_tunes,
            telemetry,
            started_at,
            reloading,
        })
    }

    /// The configuration in force.
    pub fn config(&self) -> InForce {
        self.inference.config()
    }

    /// Places that answer model calls, by the configuration in force.
    pub fn providers(&self) -> Arc<Providers> {
        self.inference.setup().providers.clone()
    }

    /// Reads the configuration file again and puts it in force as a whole, or not at all; why not stands in [`Live::report`] and in the
    /// process's log. Calls that have begun keep what they began with. Blocking.
    pub fn reload(&self, trigger: Trigger, seen: Seen) {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = match self.live.check(seen) {
            Ok(None) => return,
            Ok(Some(found)) => self.apply(trigger, found),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = applied {
            let problems: Vec<_> = refusal.problems.iter().map(ToString::to_string).collect();
            tracing::error!(why = ?refusal.message, ?problems, "the configuration file was not put in force; what was in force stays");
            self.metrics.serving.config_refused();
            self.live.refuse(refusal);
        }
    }

    fn apply(&self, trigger: Trigger, found: Found) -> Result<(), Refusal> {
        let before = self.live.report().digest;
        if before == Some(found.digest) && trigger == Trigger::File {
            // Somebody took a bad change back.
            self.live.confirm();
            self.metrics.serving.config_loaded(self.live.report().loaded_at);
            return Ok(());
        }
        let providers = self.providers().renewed(&found.config.providers);
        let built = setup(&self.store, found.config.clone(), providers, (&self.recorder, &self.metrics, &self.telemetry));
        let built = built.map_err(|failure| Live::unfit(&found, &failure))?;
        let (changed, after) = (found.changed.clone(), found.digest);
        self.batches.take_lines_of(found.config.server.max_body_bytes);
        self.inference.replace(built);
        self.live.accept(found);
        self.metrics.serving.config_reloaded(now_ms());
        tracing::info!(?changed, digest = %after, "the configuration file was put in force");
        let report = self.live.report();
        let by = if trigger == Trigger::Signal { "signal" } else { "file" };
        let detail =
            json!({"before": before, "after": after, "changed": changed, "by": by, "waiting_for_restart": report.waiting_for_restart});
        let subject = report.source.unwrap_or_default();
        if let Err(error) = audit::append(&self.store, "[serve]", "config.reload", &subject, &detail) {
            // It is in force all the same: it may be what mends the trouble.
            tracing::error!(%error, %after, "a change of the configuration is missing in the audit chain");
        }
        Ok(())
    }
}

/// What metrics show of the targets.
fn watched(inference: &Arc<Inference>) -> Box<dyn Fn() -> Vec<TargetFigures> + Send + Sync> {
    // Metrics are a part of what they look at: they must not keep it.
    let inference = Arc::downgrade(inference);
    Box::new(move || {
        let Some(inference) = inference.upgrade() else { return Vec::new() };
        let of = |target: TargetStatus| TargetFigures {
            target: target.target,
            breaker: target.state,
            in_flight: u64::from(target.in_flight),
            queued: u64::from(target.queued),
        };
        shown(inference.targets()).into_iter().map(of).collect()
    })
}

/// Targets that metrics show: names that callers make up are no labels until they have answered, and where a server answers to any name,
/// those that answered most are.
fn shown(mut targets: Vec<TargetStatus>) -> Vec<TargetStatus> {
    targets.retain(|target| target.answered > 0);
    if targets.len() > MAX_TARGETS {
        targets.sort_by_key(|target| std::cmp::Reverse(target.answered));
        targets.truncate(MAX_TARGETS);
        targets.sort_by(|a, b| a.target.cmp(&b.target));
    }
    targets
}

/// How much of budgets is spent.
fn budgets(keys: &Keys) -> Box<dyn Fn() -> Vec<BudgetFigures> + Send + Sync> {
    let keys = keys.clone();
    let of = |(owner, used_ratio)| match owner {
        Owner::Key { id, project, .. } => BudgetFigures { project, api_key: id, used_ratio },
        Owner::Project(project) => BudgetFigures { project, api_key: String::new(), used_ratio },
    };
    Box::new(move || {
        let mut figures: Vec<_> = keys.spent_ratios().into_iter().map(of).collect();
        figures.sort_by(|a, b| (&a.project, &a.api_key).cmp(&(&b.project, &b.api_key)));
        figures
    })
}

/// Parts of the request log that outlive a configuration.
type LogParts<'a> = (&'a Arc<Recorder>, &'a Arc<Metrics>, &'a Option<Arc<Telemetry>>);

/// Begins the export that configuration and environment ask for.
fn telemetry(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<Telemetry>>, Failure> {
    let Some(export) = config.telemetry.export() else { return Ok(None) };
    let started = Telemetry::start(export, &config.providers, metrics);
    let failed = |error| Failure::new(Code::INTERNAL, format!("telemetry cannot begin: {error}"));
    started.map(|telemetry| Some(Arc::new(telemetry))).map_err(failed)
}

/// Everything about calls that comes from the configuration, built as a whole.
fn setup(store: &Store, config: Config, providers: Providers, log: LogParts<'_>) -> Result<Setup, Failure> {
    let log = Log {
        recorder: log.0.clone(),
        metrics: log.1.clone(),
        bodies: config.log.bodies,
        redactor: Redactor::of(&config.log).map(Arc::new),
        telemetry: log.2.clone(),
    };
    Ok(Setup::new(store, Arc::new(config), Arc::new(providers), log))
}

/// Opens the provider of a local engine.
type OpenEngine = fn(Store, LocalConfig) -> Arc<dyn Provider>;

/// The registry of engines: one line, in builds that have it.
const ENGINES: &[OpenEngine] = &[
    #[cfg(feature = "local")]
    |store, config| Arc::new(crate::providers::local::Local::open(store, config)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_that_answered_most_are_shown() {
        let target = |number: u64| TargetStatus {
            target: format!("up/{number:04}"),
            state: "closed",
            opens_in_ms: None,
            quiet_for_ms: None,
            in_flight: 0,
            queued: 0,
            first_byte_ms: None,
            whole_reply_ms: None,
            answered: number,
            failed: 0,
            recent_failure_share: None,
        };
        let few = shown((0..3).map(target).collect());
        assert_eq!(few.iter().map(|target| target.answered).collect::<Vec<_>>(), [1, 2]);
        let most = shown((0..2_000).map(target).collect());
        assert_eq!((most.len(), most[0].target.as_str()), (MAX_TARGETS, "up/1500"));
    }
}
