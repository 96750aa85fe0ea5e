//! Classifier heads: a chat with `local/<embedding model>:<head>` is answered with the label of its last user message. With `logprobs` the
//! label is one token, and `top_logprobs` are the likeliest labels.

use super::ask::Asked;
use super::format::Format;
use super::reply::{completion, entry, frame, of_choice};
use super::{Arc, Call, Digest, Failure, Local, same_model, stored};
use crate::engine::head::classified_text;
use crate::engine::{EngineError, Head};
use crate::providers::{Piece, PieceStream};
use crate::store::Store;
use crate::types::Code;
use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Delta, Message, Usage};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};

/// A head and the digest of the model it was fitted on.
pub(super) struct Classifier {
    head: Head,
    model_digest: Digest,
}

/// An answer.
pub(super) struct Labelled {
    /// The model's name, with its provider.
    name: String,
    label: String,
    logprobs: Option<Value>,
    prompt_tokens: u64,
}

impl Classifier {
    /// A stored adapter that is a head; none where it is another kind.
    fn load(store: &Store, digest: &Digest) -> Result<Option<Self>, Failure> {
        let record = stored(store, digest)?;
        if !record.is_head() {
            return Ok(None);
        }
        let weights = store.blobs.get(&record.weights)?;
        let head = Head::load(record.config.to_string().as_bytes(), &weights)?;
        Ok(Some(Classifier { head, model_digest: record.model_digest }))
    }

    fn head(classifier: &Option<Self>) -> Option<&Head> {
        classifier.as_ref().map(|classifier| &classifier.head)
    }
}

type Loaded = Arc<Option<Classifier>>;

impl Local {
    /// The answer to a call whose adapter is a head; none for any other call.
    pub(super) async fn classified(&self, call: &Call) -> Result<Option<Labelled>, Failure> {
        let Some((tokens, encoder_digest, classifier)) = self.classifiable(call).await? else { return Ok(None) };
        let Some(head) = Classifier::head(&classifier) else { return Ok(None) };
        let top = asked(call)?;
        let encoder = self.encoder(&call.model, Some(encoder_digest)).await?;
        let prompt_tokens = tokens.len() as u64;
        let vectors = encoder.embed(vec![tokens]).await.map_err(named)?;
        let logs = head.log_probabilities(vectors.first().map_or(&[][..], Vec::as_slice));
        let mut order: Vec<usize> = (0..logs.len()).collect();
        order.sort_by(|a, b| logs[*b].total_cmp(&logs[*a]));
        let best = order.first().copied().unwrap_or_default();
        let told = |label: usize| entry(&head.labels()[label], logs[label], head.labels()[label].as_bytes());
        let logprobs = top.map(|top| {
            let mut token = told(best);
            token["top_logprobs"] = order.iter().take(top).map(|label| told(*label)).collect();
            json!({"content": [token], "refusal": null})
        });
        let label = head.labels()[best].clone();
        Ok(Some(Labelled { name: format!("local/{}", call.model), label, logprobs, prompt_tokens }))
    }

    /// The tokens that a head reads, its model's digest and itself; none where the call's adapter is no head.
    pub(super) async fn classifiable(&self, call: &Call) -> Result<Option<(Vec<u32>, Digest, Loaded)>, Failure> {
        let Some(digest) = call.adapter else { return Ok(None) };
        let store = self.shared.store.clone();
        let classifier = self.shared.classifiers.get(digest, move || Classifier::load(&store, &digest)).await?;
        let Some(trained_on) = classifier.as_ref().as_ref().map(|classifier| classifier.model_digest) else { return Ok(None) };
        let model = self.digest(&call.model, call.model_digest).await?;
        same_model(trained_on, model)?;
        let text = classified_text(&call.request.messages);
        let text = text.map_err(|problem| Failure::on(Code::INVALID_VALUE, "messages", format!("{problem}: the model is a classifier")))?;
        let encoder = self.encoder(&call.model, Some(model)).await?;
        Ok(Some((encoder.model().tokens(&text)?, model, classifier)))
    }
}

/// How many of the likeliest labels are to be told; none where log probabilities were not asked for. A head has one answer, which no
/// sampling changes; what it cannot do is refused.
fn asked(call: &Call) -> Result<Option<usize>, Failure> {
    let asked = Asked::of(&call.request)?;
    let refuse = |field: &str, what: &str| {
        Err(Failure::on(Code::UNSUPPORTED, field, format!("\"{}\" is a classifier: it answers with one of its labels{what}", call.model)))
    };
    match () {
        () if !asked.tools.is_empty() => refuse("tools", " and calls nothing"),
        () if !matches!(asked.format, Format::Free) => refuse("response_format", ", in no other form"),
        () if asked.choices > 1 => refuse("n", ", and always the same one"),
        () => Ok(asked.logprobs),
    }
}

/// A text that is too long is the last message's.
fn named(error: EngineError) -> Failure {
    match error {
        EngineError::TooLong { tokens, limit, .. } => {
            Failure::on(Code::CONTEXT_LENGTH, "messages", format!("the last user message has {tokens} tokens; the model takes {limit}"))
        }
        error => error.into(),
    }
}

impl Labelled {
    fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, 1)
    }

    fn extra(&self) -> Map<String, Value> {
        self.logprobs.iter().map(|logprobs| ("logprobs".to_string(), logprobs.clone())).collect()
    }

    /// The whole completion.
    pub(super) fn whole(self) -> ChatResponse {
        let (usage, extra) = (self.usage(), self.extra());
        let message = Message::text("assistant", self.label);
        let choice = Choice { message, finish_reason: Some("stop".into()), extra, ..Choice::default() };
        completion(self.name, vec![choice], usage)
    }

    /// The same as chunks.
    pub(super) fn stream(self) -> PieceStream {
        let (usage, extra) = (self.usage(), self.extra());
        let frame = frame(self.name);
        let says = Delta { role: Some("assistant".into()), content: Some(self.label), ..Delta::default() };
        let chunks = [
            of_choice(&frame, ChunkChoice { delta: says, extra, ..ChunkChoice::default() }),
            of_choice(&frame, ChunkChoice { finish_reason: Some("stop".into()), ..ChunkChoice::default() }),
            ChatChunk { usage: Some(usage), ..frame },
        ];
        stream::iter(chunks.map(|chunk| Ok(Piece::from(chunk)))).boxed()
    }
}
