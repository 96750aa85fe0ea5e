//! Fine-tuning at a provider: the files are uploaded there, calls are made there, and answers come back with our own ids. What the provider said
//! last is kept, so that lists need no call.

use super::{FineTunes, NewFineTune, TRAINING_PURPOSE};
use crate::access::Caller;
use crate::providers::{Manage, Provider, Providers};
use crate::store::files::FileRow;
use crate::store::fine_tunes::{self as rows, FineTuneRow, WithJob};
use crate::types::blocking::blocking;
use crate::types::ids::new_id;
use crate::types::{Code, Failure};
use serde_json::{Value, json};
use std::sync::Arc;

const JOBS: &str = "/fine_tuning/jobs";

/// Fine-tunes at providers.
pub struct Hosted {
    desk: Arc<FineTunes>,
    providers: Arc<Providers>,
}

impl Hosted {
    /// Over the providers in force.
    pub fn new(desk: &Arc<FineTunes>, providers: &Arc<Providers>) -> Self {
        Hosted { desk: desk.clone(), providers: providers.clone() }
    }

    /// Uploads the files to the model's provider and makes the job there.
    ///
    /// # Errors
    /// [`Code::MODEL_NOT_FOUND`], [`Code::UNSUPPORTED`] where the provider trains nothing, and what the provider says.
    pub async fn create(&self, caller: &Caller, new: NewFineTune) -> Result<WithJob, Failure> {
        let (provider, provider_name, model) = self.providers.resolve(&new.model)?;
        let (desk, of, asked) = (self.desk.clone(), caller.clone(), new.clone());
        let (training, validation) = blocking(move || desk.files(&of, &asked)).await?;
        let mut files = json!({"training": self.upload(&provider, &training).await?});
        let mut body = new.body.clone();
        body.insert("model".into(), model.into());
        body.insert("training_file".into(), files["training"].clone());
        if let Some(validation) = &validation {
            files["validation"] = self.upload(&provider, validation).await?.into();
            body.insert("validation_file".into(), files["validation"].clone());
        }
        let answer = provider.manage(JOBS, Manage::Post(Value::Object(body))).await?;
        let upstream = json!({"provider": provider_name, "files": files, "answer": answer});
        id_of(&upstream)?;
        let (desk, caller) = (self.desk.clone(), caller.clone());
        blocking(move || {
            let id = new_id("ftjob");
            let row = FineTuneRow { upstream, ..desk.row(&caller, &new, (id.clone(), id), None) };
            desk.insert(&row, None)?;
            desk.get(&caller, &row.id)
        })
        .await
    }

    /// The id that a file has at the provider.
    async fn upload(&self, provider: &Arc<dyn Provider>, file: &FileRow) -> Result<String, Failure> {
        let path = self.desk.store.uploads.path(&file.digest);
        let call = Manage::Upload { filename: file.filename.clone(), purpose: TRAINING_PURPOSE.into(), path };
        let answer = provider.manage("/files", call).await?;
        let id = answer["id"].as_str().map(String::from);
        id.ok_or_else(|| Failure::new(Code::UPSTREAM, format!("the provider gave the file {} no id", file.id)))
    }

    /// Asks how one is, and keeps the answer.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn refresh(&self, row: FineTuneRow) -> Result<FineTuneRow, Failure> {
        self.answered(row, "", Manage::Get).await
    }

    /// Does `cancel`, `pause` or `resume` there.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn act(&self, row: FineTuneRow, verb: &str) -> Result<FineTuneRow, Failure> {
        self.answered(row, &format!("/{verb}"), Manage::Post(Value::Null)).await
    }

    async fn answered(&self, row: FineTuneRow, below: &str, call: Manage) -> Result<FineTuneRow, Failure> {
        let provider = self.provider(&row)?;
        let answer = provider.manage(&format!("{JOBS}/{}{below}", id_of(&row.upstream)?), call).await?;
        // An answer without an id would lose the only one that there is.
        id_of(&json!({"answer": answer}))?;
        let mut row = row;
        row.upstream["answer"] = answer;
        let (desk, kept) = (self.desk.clone(), row.clone());
        blocking(move || Ok(rows::answered(desk.db(), &kept.id, &kept.upstream)?)).await?;
        Ok(row)
    }

    /// A page of `events` or `checkpoints`, as the provider gives it, under our id.
    ///
    /// # Errors
    /// What the provider says.
    pub async fn page(&self, row: &FineTuneRow, what: &str, (after, limit): (Option<&str>, usize)) -> Result<Value, Failure> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let path = format!("{JOBS}/{}/{what}?limit={limit}{after}", id_of(&row.upstream)?);
        let mut answer = self.provider(row)?.manage(&path, Manage::Get).await?;
        for item in answer["data"].as_array_mut().into_iter().flatten().filter(|item| item.get("fine_tuning_job_id").is_some()) {
            item["fine_tuning_job_id"] = row.id.clone().into();
            if let Some(model) = item["fine_tuned_model_checkpoint"].as_str() {
                item["fine_tuned_model_checkpoint"] = named(row, model).into();
            }
        }
        Ok(answer)
    }

    fn provider(&self, row: &FineTuneRow) -> Result<Arc<dyn Provider>, Failure> {
        let name = row.upstream["provider"].as_str().unwrap_or_default();
        let gone = || Failure::new(Code::UNAVAILABLE, format!("the provider \"{name}\", where this job is, is not configured any more"));
        self.providers.get(name).ok_or_else(gone)
    }
}

/// The job's id at the provider; nothing in it leads to another path.
fn id_of(upstream: &Value) -> Result<&str, Failure> {
    let is_plain = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let id = upstream["answer"]["id"].as_str().filter(is_plain);
    id.ok_or_else(|| Failure::new(Code::UPSTREAM, "the provider gave the fine-tuning job no usable id"))
}

/// How a provider's model is called here.
pub(super) fn named(row: &FineTuneRow, model: &str) -> String {
    format!("{}/{model}", row.upstream["provider"].as_str().unwrap_or_default())
}

/// The model that came out, as it is called here; none before it is there.
pub fn fine_tuned(row: &FineTuneRow) -> Option<String> {
    row.upstream["answer"]["fine_tuned_model"].as_str().map(|model| named(row, model))
}
