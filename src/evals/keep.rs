//! Answers that are given again, for suites that say so. The key holds everything that changes an answer, and which of the repeats it is:
//! a repeat is really asked. Answers are stored together with the case that got them.

use super::respond::Reply;
use crate::inference::Ready;
use crate::store::cases::{KeptReply, delete_replies_before, kept_reply};
use crate::store::snapshots::{self, MODEL};
use crate::store::{Store, StoreError};
use crate::types::blocking::blocking;
use crate::types::time::now_ms;
use crate::types::{Digest, Failure};
use serde_json::json;
use std::time::Duration;

const DAY_MS: i64 = 86_400_000;
/// Answers that go in one transaction, and the pause after it.
const BATCH: usize = 500;
const PAUSE: Duration = Duration::from_millis(5);
/// How often `refit serve` looks for old ones.
const EVERY: Duration = Duration::from_secs(3_600);

/// An answer, and how it came.
pub(super) struct Kept {
    /// The answer.
    pub(super) reply: Reply,
    /// Whether it was given before.
    pub(super) cached: bool,
    /// What is to be stored, where it may be given again.
    pub(super) keep: Option<KeptReply>,
}

impl Kept {
    /// An answer that was just given.
    pub(super) fn new(reply: Reply, key: Option<String>) -> Self {
        let keep = key.map(|key| KeptReply { key, reply: json!(reply).to_string() });
        Kept { reply, cached: false, keep }
    }
}

/// The key of a repeat of what is about to be asked.
pub(super) fn key(ready: &Ready, repeat: usize) -> String {
    Digest::of(format!("{}:{repeat}", ready.fingerprint())).to_string()
}

/// The answer that was given before, in the last so many days (0: ever); none where there is none, nobody wants it, or another model
/// answers under the target's name since: provider and model.
pub(super) async fn look_up(store: &Store, (key, target): (Option<&str>, (&str, &str)), days: u64) -> Option<Result<Kept, Failure>> {
    let (key, store) = (key?.to_string(), store.clone());
    let (provider, model) = (target.0.to_string(), target.1.to_string());
    let looking = move || {
        let Some(found) = kept_reply(store.db.as_ref(), &key, oldest(days))? else { return Ok(None) };
        // What cannot be read any more is asked anew.
        let Some(reply) = serde_json::from_str::<Reply>(&found).ok() else { return Ok(None) };
        let known = snapshots::of(store.db.as_ref(), (&provider, &model), MODEL)?;
        let is_of_today = match known.as_slice() {
            [.., _, now] => reply.answered_as.as_ref() == Some(&now.name),
            _ => true,
        };
        Ok(Some(reply).filter(|_| is_of_today))
    };
    match blocking(looking).await {
        Ok(reply) => Some(Ok(Kept { reply: reply?, cached: true, keep: None })),
        Err(failure) => Some(Err(failure)),
    }
}

/// The time before which nothing is given again.
fn oldest(days: u64) -> i64 {
    match days {
        0 => i64::MIN,
        days => now_ms().saturating_sub(i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(DAY_MS)),
    }
}

/// Deletes answers that are older than so many days (0: none), in short transactions with pauses between them. Blocking.
///
/// # Errors
/// When the database fails; what went is gone.
pub fn forget(store: &Store, days: u64) -> Result<usize, StoreError> {
    let (before, mut gone) = (oldest(days), 0);
    loop {
        let went = delete_replies_before(store.db.as_ref(), before, BATCH)?;
        gone += went;
        if went < BATCH {
            return Ok(gone);
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`forget`], at once and every hour, as long as it is waited for.
pub async fn forgetting(store: Store, days: impl Fn() -> u64) {
    loop {
        let (of, days) = (store.clone(), days());
        match blocking(move || Ok(forget(&of, days)?)).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "old answers of evaluations were deleted"),
            Err(failure) => tracing::error!(%failure, "old answers of evaluations could not be deleted; it is tried again"),
        }
        tokio::time::sleep(EVERY).await;
    }
}
