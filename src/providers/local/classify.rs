//! Classifiers: a chat with `local/<embedding model>:<head>` or `local/<chat model>:<classifier>` is answered with the label of its last user
//! message. With `logprobs` the label is one token, and `top_logprobs` are the likeliest labels.

use super::ask::Asked;
use super::format::Format;
use super::reply::{completion, entry, frame, of_choice};
use super::{Arc, Call, Digest, Failure, Local, Pinned, same_model, stored};
use crate::engine::head::classified_text;
use crate::engine::kernel::low_rank::Precision;
use crate::engine::sequence::{Event, Generate};
use crate::engine::{Classifier, Encoder, EngineError, Head};
use crate::providers::{Piece, PieceStream};
use crate::store::Store;
use crate::types::Code;
use crate::types::asker::Asker;
use crate::types::chat::{ChatChunk, ChatResponse, Choice, ChunkChoice, Delta, Message, Usage};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::unbounded_channel;

/// What a stored adapter is, where it answers with labels.
pub(super) struct Kind {
    /// The head, where its model makes embeddings; a classifier on a chat model is read where that is loaded.
    head: Option<Head>,
    model_digest: Digest,
}

/// A text on its way to a head.
pub(super) struct Reading {
    /// What is read.
    pub(super) tokens: Vec<u32>,
    through: Through,
}

/// What makes the vector that the head reads.
enum Through {
    Encoder(Arc<Encoder>, Arc<Option<Kind>>),
    Decoder(Arc<Pinned>, Arc<Classifier>),
}

/// An answer.
pub(super) struct Labelled {
    /// The model's name, with its provider.
    name: String,
    label: String,
    logprobs: Option<Value>,
    prompt_tokens: u64,
}

impl Kind {
    /// What a stored adapter is; none where it writes text.
    fn load(store: &Store, digest: &Digest) -> Result<Option<Self>, Failure> {
        let record = stored(store, digest)?;
        if !record.is_head() {
            return Ok(None);
        }
        let config = record.config.to_string();
        let head = match Classifier::is_one(config.as_bytes()) {
            true => None,
            false => Some(Head::load(config.as_bytes(), &store.blobs.get(&record.weights)?)?),
        };
        Ok(Some(Kind { head, model_digest: record.model_digest }))
    }
}

impl Through {
    fn head(&self) -> Option<&Head> {
        match self {
            Through::Encoder(_, kind) => kind.as_ref().as_ref()?.head.as_ref(),
            Through::Decoder(_, classifier) => Some(&classifier.head),
        }
    }

    async fn vector(&self, tokens: Vec<u32>, asker: Asker) -> Result<Vec<f32>, EngineError> {
        match self {
            Through::Encoder(encoder, _) => Ok(encoder.embed(vec![tokens]).await?.into_iter().next().unwrap_or_default()),
            Through::Decoder(engine, classifier) => {
                let (events, mut receiver) = unbounded_channel();
                let adapter = classifier.adapter.clone();
                engine.engine.submit(Generate { asker, adapter, max_tokens: 1, reads_only: true, ..Generate::new(tokens, events) })?;
                match receiver.recv().await {
                    Some(Event::Hidden(vector)) => Ok(vector),
                    Some(Event::Failed(error)) => Err(error),
                    _ => Err(EngineError::Stopped),
                }
            }
        }
    }
}

impl Local {
    /// The answer to a call whose adapter answers with labels; none for any other call.
    pub(super) async fn classified(&self, call: &Call) -> Result<Option<Labelled>, Failure> {
        let Some(Reading { tokens, through }) = self.classifiable(call).await? else { return Ok(None) };
        let Some(head) = through.head() else { return Ok(None) };
        let top = asked(call)?;
        let prompt_tokens = tokens.len() as u64;
        let logs = head.log_probabilities(&through.vector(tokens, call.asker.clone()).await.map_err(named)?);
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

    /// What a head reads of a call and by which model; none where the call's adapter answers with text.
    pub(super) async fn classifiable(&self, call: &Call) -> Result<Option<Reading>, Failure> {
        let Some(digest) = call.adapter else { return Ok(None) };
        let store = self.shared.store.clone();
        let kind = self.shared.kinds.get(digest, move || Kind::load(&store, &digest)).await?;
        let Some(Kind { head, model_digest }) = kind.as_ref() else { return Ok(None) };
        let model = self.digest(&call.model, call.model_digest).await?;
        same_model(*model_digest, model)?;
        let text = classified_text(&call.request.messages);
        let text = text.map_err(|problem| Failure::on(Code::INVALID_VALUE, "messages", format!("{problem}: the model is a classifier")))?;
        if head.is_none() {
            let engine = self.engine(&call.model, Some(model)).await?;
            let classifier = self.classifier(&engine, digest).await?;
            let tokens = Classifier::tokens(&engine.engine.model().tokenizer, &text)?;
            return Ok(Some(Reading { tokens, through: Through::Decoder(engine, classifier) }));
        }
        let encoder = self.encoder(&call.model, Some(model)).await?;
        Ok(Some(Reading { tokens: encoder.model().tokens(&text)?, through: Through::Encoder(encoder, kind) }))
    }

    /// A classifier on a chat model, loading it where needed.
    async fn classifier(&self, engine: &Arc<Pinned>, digest: Digest) -> Result<Arc<Classifier>, Failure> {
        let (shared, loader) = (self.shared.clone(), engine.clone());
        let load = move || {
            let record = stored(&shared.store, &digest)?;
            let weights = shared.store.blobs.get(&record.weights)?;
            let precision = if shared.config.adapters_f32 { Precision::Full } else { Precision::Half };
            Ok(loader.engine.model().serving_classifier(record.config.to_string().as_bytes(), &weights, precision)?)
        };
        self.shared.classifiers.get(digest, load).await
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
        EngineError::ContextLength { prompt, context } => {
            Failure::on(Code::CONTEXT_LENGTH, "messages", format!("the last user message has {prompt} tokens; the model takes {context}"))
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
