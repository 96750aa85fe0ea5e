//! Answers that are given again, for suites that say so. The key holds everything that changes an answer, and which of the repeats it is:
//! a repeat is really asked. Answers are stored together with the case that got them.

use super::respond::Reply;
use crate::inference::Ready;
use crate::store::Store;
use crate::store::cases::{KeptReply, kept_reply};
use crate::types::blocking::blocking;
use crate::types::{Digest, Failure};
use serde_json::json;

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

/// The answer that was given before; none where there is none, or nobody wants it.
pub(super) async fn look_up(store: &Store, key: Option<&str>) -> Option<Result<Kept, Failure>> {
    let (key, store) = (key?.to_string(), store.clone());
    let found = match blocking(move || Ok(kept_reply(store.db.as_ref(), &key)?)).await {
        Ok(found) => found?,
        Err(failure) => return Some(Err(failure)),
    };
    // What cannot be read any more is asked anew.
    let reply = serde_json::from_str(&found).ok()?;
    Some(Ok(Kept { reply, cached: true, keep: None }))
}
