//! OpenAI's fine-tuning API: a file of conversations becomes a model that can be called. `local/<model>` is trained here, by a job whose worker
//! [`runner`] starts; at a provider's model the provider trains, and [`hosted`] carries files and calls there. [`request`] reads what is asked.

mod hosted;
mod request;
mod runner;

pub use hosted::{Hosted, fine_tuned};
pub use request::{Hyperparameters, NewFineTune, Number};

use crate::access::Caller;
use crate::store::fine_tunes::{self as rows, FineTuneRow, WithJob};
use crate::store::job_events::{self, JobEvent};
use crate::store::jobs::JobRecord;
use crate::store::{Db, Store, StoreError, adapters, files};
use crate::types::ids::{is_slug, new_id};
use crate::types::time::now_ms;
use crate::types::{Code, Failure};
use serde_json::{Value, json};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Purpose of files that are trained on.
pub const TRAINING_PURPOSE: &str = "fine-tune";
/// Purpose of files with the numbers of a training.
pub const RESULTS_PURPOSE: &str = "fine-tune-results";
/// Prefix of models that are trained here.
const LOCAL: &str = "local/";
/// Longest `suffix`, as at OpenAI.
pub const MAX_SUFFIX: usize = 64;

/// What trains: everything named, and checked against what is there.
pub struct Wanted<'a> {
    /// The model, without `local/`.
    pub model: &'a str,
    /// What the adapter is called.
    pub name: &'a str,
    /// File to learn from.
    pub training: &'a files::FileRow,
    /// File to measure on.
    pub validation: Option<&'a files::FileRow>,
    /// Epochs, batch, learning rate.
    pub hyperparameters: &'a Hyperparameters,
    /// Where in the request these stand.
    pub place: &'a str,
    /// Method: `supervised`, `dpo`.
    pub method: &'a str,
    /// Of the initial weights and of the order of the examples.
    pub seed: u64,
}

/// A training that can begin.
pub struct Prepared {
    /// Spec of its job.
    pub spec: Value,
    /// Hyperparameters, with numbers where "auto" was asked for and means one.
    pub hyperparameters: Value,
}

/// Checks what is wanted and makes the spec of its job.
type Prepare = fn(&Store, &Wanted<'_>) -> Result<Prepared, Failure>;

/// The registry of trainers: one line, in builds that have it.
const TRAINERS: &[Prepare] = &[
    #[cfg(feature = "local")]
    super::tune::files::prepare,
];

/// The fine-tunes of a data directory.
pub struct FineTunes {
    store: Store,
    woken: Notify,
    /// Held while a name is looked up and given away.
    naming: Mutex<()>,
    /// The worker that this process started.
    worker: Mutex<Option<(String, Child)>>,
}

impl FineTunes {
    /// Of a store. Nothing is trained before [`FineTunes::run`].
    pub fn new(store: &Store) -> Self {
        FineTunes { store: store.clone(), woken: Notify::new(), naming: Mutex::new(()), worker: Mutex::new(None) }
    }

    fn db(&self) -> &dyn Db {
        self.store.db.as_ref()
    }

    /// Makes one that trains here, and queues its job. The files are read as a whole first. Blocking.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] naming the field, [`Code::INVALID_FILE`] naming the line, [`Code::MODEL_NOT_FOUND`].
    pub fn create(&self, caller: &Caller, new: &NewFineTune) -> Result<WithJob, Failure> {
        let Some(prepare) = TRAINERS.first() else {
            let message = "this build of refit has no local engine, so that nothing can be trained here";
            return Err(
                Failure::on(Code::UNSUPPORTED, "model", message).with_hint("build with the feature `local`, which is on by default")
            );
        };
        let model = new.model.strip_prefix(LOCAL).unwrap_or(&new.model);
        let (training, validation) = self.files(caller, new)?;
        let (id, job) = (new_id("ftjob"), new_id("job"));
        let wish = wished_name(new.suffix.as_deref(), &id)?;
        let seed = new.seed.unwrap_or_else(|| u64::from(now_ms() as u32 >> 1));
        let wanted = Wanted {
            model,
            name: &wish,
            training: &training,
            validation: validation.as_ref(),
            hyperparameters: &new.hyperparameters,
            place: &new.place,
            method: &new.method,
            seed,
        };
        let mut prepared = prepare(&self.store, &wanted)?;
        // Only now, when the files are read: that may take long, and others want names meanwhile.
        let _naming = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        let name = self.free_name(model, &wish)?;
        prepared.spec["fine_tune"] = id.clone().into();
        prepared.spec["recipe"]["name"] = name.clone().into();
        let row = self.row(caller, new, (id, name), Some(job.clone()));
        let asked = json!({"seed": seed, "suffix": new.suffix, "method": new.method, "hyperparameters": prepared.hyperparameters});
        let row = FineTuneRow { asked, ..row };
        self.insert(&row, Some(&prepared.spec))?;
        let created = JobEvent::message("info", format!("Created fine-tuning job: {}", row.id));
        job_events::append(self.db(), &job, &[created])?;
        self.woken.notify_one();
        self.get(caller, &row.id)
    }

    fn row(&self, caller: &Caller, new: &NewFineTune, (id, name): (String, String), job: Option<String>) -> FineTuneRow {
        FineTuneRow {
            id,
            project: caller.project.clone(),
            api_key: caller.key_id.clone(),
            job,
            model: new.model.clone(),
            name,
            training_file: new.training_file.clone(),
            validation_file: new.validation_file.clone(),
            asked: Value::Null,
            metadata: new.metadata.clone(),
            upstream: Value::Null,
            is_paused: false,
            result_file: None,
            created_at: now_ms(),
        }
    }

    fn insert(&self, row: &FineTuneRow, spec: Option<&Value>) -> Result<(), Failure> {
        match rows::insert(self.db(), row, spec) {
            Err(StoreError::Conflict(_)) => {
                let message = "training_file: it, or the validation file, was deleted meanwhile";
                Err(Failure::on(Code::INVALID_VALUE, "training_file", message))
            }
            other => Ok(other?),
        }
    }

    /// The files, which must be the project's and uploaded to be trained on.
    fn files(&self, caller: &Caller, new: &NewFineTune) -> Result<(files::FileRow, Option<files::FileRow>), Failure> {
        let file = |field: &str, id: &str| {
            let wrong = |message: String| Failure::on(Code::INVALID_VALUE, field, message);
            let row = match files::get(self.db(), &caller.project, id) {
                Err(error @ StoreError::Unknown { .. }) => {
                    return Err(wrong(format!("{field}: {error}")).with_hint("upload it with POST /v1/files and purpose \"fine-tune\""));
                }
                other => other?,
            };
            if row.purpose != TRAINING_PURPOSE {
                let message = format!("{field}: the file {id} was uploaded for \"{}\"", row.purpose);
                return Err(wrong(message).with_hint("upload it with purpose \"fine-tune\""));
            }
            Ok(row)
        };
        let training = file("training_file", &new.training_file)?;
        Ok((training, new.validation_file.as_deref().map(|id| file("validation_file", id)).transpose()?))
    }

    /// A name that no adapter of the model has: a model that somebody calls must not become another one because a second job ended.
    fn free_name(&self, model: &str, wanted: &str) -> Result<String, Failure> {
        let full = format!("{LOCAL}{model}");
        for number in 1..10_000 {
            let name = if number == 1 { wanted.to_string() } else { format!("{wanted}-{number}") };
            let is_there = match adapters::get(self.db(), model, &name) {
                Err(StoreError::Unknown { .. }) => rows::is_taken(self.db(), &full, &name)?,
                other => other.map(|_| true)?,
            };
            if !is_there && is_slug(&name) {
                return Ok(name);
            }
        }
        Err(Failure::on(Code::CONFLICT, "suffix", format!("suffix: too many models are called \"{wanted}\"; name another")))
    }

    /// One of the caller's project. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when there is none.
    pub fn get(&self, caller: &Caller, id: &str) -> Result<WithJob, Failure> {
        Ok(rows::get(self.db(), &caller.project, id)?)
    }

    /// One page of the project's, newest first, only those with these labels, and whether more follow. Blocking.
    ///
    /// # Errors
    /// What the store says.
    pub fn list(&self, caller: &Caller, page: (Option<&str>, usize), labels: &[(String, String)]) -> Result<(Vec<WithJob>, bool), Failure> {
        Ok(rows::list(self.db(), &caller.project, page, labels)?)
    }

    /// One page of what happened, newest first, and whether more follows. Blocking.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] when `after` names no event.
    pub fn events(&self, job: &JobRecord, after: Option<&str>, limit: usize) -> Result<(Vec<JobEvent>, bool), Failure> {
        Ok(job_events::list(self.db(), &job.id, after, limit)?)
    }

    /// The numbers of the step whose weights the model has: the one with the lowest validation loss, the last where nothing was validated.
    /// None before the training succeeded. Blocking.
    ///
    /// # Errors
    /// What the store says.
    pub fn checkpoint(&self, job: &JobRecord) -> Result<Option<JobEvent>, Failure> {
        if job.status != "succeeded" {
            return Ok(None);
        }
        let curve = job_events::curve(self.db(), &job.id)?;
        let loss = |event: &&JobEvent| event.data["valid_loss"].as_f64();
        let best = curve
            .iter()
            .filter(|event| loss(event).is_some())
            .min_by(|a, b| loss(a).unwrap_or(f64::MAX).total_cmp(&loss(b).unwrap_or(f64::MAX)));
        Ok(best.or(curve.last()).cloned())
    }

    /// Stops one that trains here. Blocking.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when it has ended.
    pub fn cancel(&self, caller: &Caller, id: &str) -> Result<WithJob, Failure> {
        let (_, job) = self.running(caller, id)?;
        self.changed(caller, id, (rows::cancel(self.db(), id, &job.id), "cancelled"))?;
        self.tell(&job, "The job was asked to stop")?;
        self.get(caller, id)
    }

    /// Stops one so that it can go on: its checkpoint stays. Blocking.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when it has ended or is stopping already.
    pub fn pause(&self, caller: &Caller, id: &str) -> Result<WithJob, Failure> {
        let (_, job) = self.running(caller, id)?;
        self.changed(caller, id, (rows::pause(self.db(), id, &job.id), "paused"))?;
        self.tell(&job, "The job was asked to pause")?;
        self.get(caller, id)
    }

    /// Goes on with one that was paused, from its checkpoint. Blocking.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when it is not paused, or its worker has not stopped yet.
    pub fn resume(&self, caller: &Caller, id: &str) -> Result<WithJob, Failure> {
        let (_, job) = self.running(caller, id)?;
        match rows::resume(self.db(), id, &job.id) {
            Err(StoreError::Conflict(_)) => {
                let (row, job) = self.running(caller, id)?;
                let now = status(&row, Some(&job));
                let failure = Failure::new(Code::CONFLICT, format!("the fine-tuning job {id} is {now}; only a paused one can be resumed"));
                return Err(if now == "pausing" { failure.with_hint("wait until it is paused") } else { failure });
            }
            other => other?,
        }
        self.tell(&job, "The job was resumed")?;
        self.woken.notify_one();
        self.get(caller, id)
    }

    /// A change that was made; where the job did not allow it, what it is now.
    fn changed(&self, caller: &Caller, id: &str, (change, word): (Result<(), StoreError>, &str)) -> Result<(), Failure> {
        match change {
            Err(StoreError::Conflict(_)) => Err(ended(id, &self.running(caller, id)?.1, word)),
            other => Ok(other?),
        }
    }

    fn tell(&self, job: &JobRecord, message: &str) -> Result<(), Failure> {
        Ok(job_events::append(self.db(), &job.id, &[JobEvent::message("info", message)])?)
    }

    /// One that trains here.
    fn running(&self, caller: &Caller, id: &str) -> Result<(FineTuneRow, JobRecord), Failure> {
        match self.get(caller, id)? {
            (row, Some(job)) => Ok((row, job)),
            _ => Err(Failure::new(Code::INTERNAL, format!("the fine-tuning job {id} has no job here"))),
        }
    }
}

/// What one would be called if nobody else were.
fn wished_name(suffix: Option<&str>, id: &str) -> Result<String, Failure> {
    match suffix {
        Some(suffix) => request::slug(suffix),
        None => Ok(format!("ft-{}", &id[id.len() - 8..])),
    }
}

fn ended(id: &str, job: &JobRecord, word: &str) -> Failure {
    let now = if job.status == "running" { "stopping" } else { job.status.as_str() };
    Failure::new(Code::CONFLICT, format!("the fine-tuning job {id} is {now}; it cannot be {word} any more"))
}

/// The status of one, in OpenAI's words.
pub fn status(row: &FineTuneRow, job: Option<&JobRecord>) -> String {
    let Some(job) = job else { return row.upstream["answer"]["status"].as_str().unwrap_or("queued").to_string() };
    match (job.status.as_str(), row.is_paused) {
        ("running", true) if job.cancel_requested => "pausing",
        ("cancelled", true) => "paused",
        (status, _) => status,
    }
    .to_string()
}
