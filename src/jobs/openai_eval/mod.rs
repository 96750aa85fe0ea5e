//! OpenAI's Evals API: an eval says what is tested and by which criteria, a run tests one source of items. [`runner`] finds runs inside
//! `refit serve`, [`work`] asks and grades under a lease that `jobs::heart` keeps, each item stored as it ends, so that a kill costs
//! at most the items on their way; [`source`] reads items, [`ask`] asks models the road of a request over HTTP.

mod ask;
mod check;
mod item;
mod runner;
mod source;
mod work;

pub use check::NewEval;

use crate::access::{Caller, Keys};
use crate::guardrails::schema::Schemas;
use crate::store::openai_evals::{self as rows, EvalRow, EvalRunRow, Status};
use crate::store::{Store, StoreError};
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, Semaphore};

/// A run to make.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Name, of any form; one is made where none is given.
    pub name: Option<String>,
    /// Where items come from, and which model is asked.
    pub data_source: Value,
    /// The caller's labels: an object or null.
    pub metadata: Value,
}

/// The evals of a data directory.
pub struct Evals {
    store: Store,
    keys: Keys,
    /// Calls at once, over all runs.
    slots: Arc<Semaphore>,
    concurrency: usize,
    schemas: Arc<Schemas>,
    woken: Notify,
    running: AtomicUsize,
}

impl Evals {
    /// Runs make `concurrency` calls at once, all together.
    pub fn new(store: &Store, keys: &Keys, concurrency: usize) -> Self {
        Evals {
            store: store.clone(),
            keys: keys.clone(),
            slots: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            schemas: Arc::default(),
            woken: Notify::new(),
            running: AtomicUsize::new(0),
        }
    }

    /// Runs that are being worked on.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Makes an eval. Blocking.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] naming the field.
    pub fn create(&self, caller: &Caller, new: NewEval) -> Result<EvalRow, Failure> {
        let (data_source, criteria) = check::eval(&new, &self.schemas)?;
        let now = now_ms();
        let id = new_id("eval");
        let eval = EvalRow {
            name: new.name.unwrap_or_else(|| id.clone()),
            id,
            project: caller.project.clone(),
            data_source,
            criteria,
            metadata: new.metadata,
            created_by: caller.key_id.clone(),
            created_at: now,
            updated_at: now,
        };
        rows::insert(self.store.db.as_ref(), &eval)?;
        Ok(eval)
    }

    /// Makes a run of an eval and queues it. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] for an eval or a file that is not there, [`Code::INVALID_VALUE`] naming the field.
    pub fn create_run(&self, caller: &Caller, eval: &str, new: NewRun) -> Result<EvalRunRow, Failure> {
        let db = self.store.db.as_ref();
        let eval = rows::get(db, &caller.project, eval)?;
        let plan = source::Plan::read(&new.data_source)?;
        plan.check(db, &caller.project)?;
        let id = new_id("evalrun");
        let run = EvalRunRow {
            name: new.name.unwrap_or_else(|| id.clone()),
            id,
            eval: eval.id,
            project: caller.project.clone(),
            api_key: caller.key_id.clone(),
            job: new_id("job"),
            model: plan.model().unwrap_or_default().to_string(),
            data_source: new.data_source,
            metadata: new.metadata,
            criteria: eval.criteria,
            chosen: plan.chosen(db, &caller.project)?,
            status: Status::Queued,
            error: Value::Null,
            usage: json!([]),
            per_criteria: json!([]),
            created_at: now_ms(),
            finished_at: None,
        };
        match rows::insert_run(db, &run) {
            Err(StoreError::Conflict(_)) => {
                return Err(Failure::new(Code::UNKNOWN_NAME, format!("the eval {} was deleted meanwhile", run.eval)));
            }
            other => other?,
        }
        self.woken.notify_one();
        Ok(run)
    }

    /// Asks a run to stop: items on their way are finished, the others are not asked. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when there is none, [`Code::CONFLICT`] when it has ended.
    pub fn cancel(&self, caller: &Caller, eval: &str, id: &str) -> Result<EvalRunRow, Failure> {
        let db = self.store.db.as_ref();
        let run = rows::get_run(db, &caller.project, eval, id)?;
        let ended = |status: Status| Failure::new(Code::CONFLICT, format!("run {id} is {}; it cannot be canceled any more", status.word()));
        if run.status.is_end() {
            return Err(ended(run.status));
        }
        match rows::request_cancel(db, &run) {
            Err(StoreError::Conflict(_)) => Err(ended(rows::get_run(db, &caller.project, eval, id)?.status)),
            other => {
                other?;
                Ok(rows::get_run(db, &caller.project, eval, id)?)
            }
        }
    }
}
