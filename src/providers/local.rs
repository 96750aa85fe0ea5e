//! The `local` provider: models of the engine behind the [`Provider`] trait. A model is loaded when it is first asked for, by digest;
//! adapters likewise. Async code hands requests to the engine's thread and reads events. [`embed`] is the part that makes vectors.

mod embed;

use super::{Call, EmbedCall, ModelInfo, Piece, PieceStream, Provider, ProviderError, Reply};
use crate::config::LocalConfig;
use crate::engine::chat_template::ChatMessage;
use crate::engine::kernel::low_rank::Precision;
use crate::engine::sampling::Sampling;
use crate::engine::scheduler::EngineOptions;
use crate::engine::sequence::{Event, Finish, Generate};
use crate::engine::{Adapter, Embedder, Encoder, Engine, EngineError, Model, Purpose};
use crate::models::{Files, open};
use crate::store::{Store, adapters, models};
use crate::types::blocking::blocking;
use crate::types::chat::{ChatChunk, ChatRequest, ChatResponse, Choice, ChunkChoice, Delta, Message, Usage};
use crate::types::embeddings::EmbeddingResponse;
use crate::types::ids::new_id;
use crate::types::time::now_ms;
use crate::types::traits::CountTokens;
use crate::types::{Code, Digest, Failure};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Local models, loaded on demand.
#[derive(Clone)]
pub struct Local {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    config: LocalConfig,
    engines: Loaded<Pinned>,
    encoders: Loaded<Encoder>,
    adapters: Loaded<Bound>,
}

/// An engine and the digest of the file it runs.
struct Pinned {
    engine: Engine,
    digest: Digest,
}

/// An adapter and the digest of the model file it was trained on.
struct Bound {
    adapter: Arc<Adapter>,
    model_digest: Digest,
}

/// Things loaded once each, by digest; callers that come meanwhile wait for the one load.
struct Loaded<T>(Mutex<HashMap<Digest, Arc<OnceCell<Arc<T>>>>>);

impl<T: Send + Sync + 'static> Loaded<T> {
    fn new() -> Self {
        Loaded(Mutex::new(HashMap::new()))
    }

    async fn get(&self, digest: Digest, load: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<Arc<T>, Failure> {
        let cell = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(digest).or_default().clone();
        let loaded = cell.get_or_try_init(|| async { blocking(load).await.map(Arc::new) }).await?;
        Ok(loaded.clone())
    }
}

impl Local {
    /// Local models of a store.
    pub fn open(store: Store, config: LocalConfig) -> Self {
        Local { shared: Arc::new(Shared { store, config, engines: Loaded::new(), encoders: Loaded::new(), adapters: Loaded::new() }) }
    }

    /// What the name of a model stands for: the pinned file, or the one that has the name now.
    async fn digest(&self, name: &str, pinned: Option<Digest>) -> Result<Digest, Failure> {
        if let Some(digest) = pinned {
            return Ok(digest);
        }
        let (shared, wanted) = (self.shared.clone(), name.to_string());
        let record = blocking(move || Ok(models::find(shared.store.db.as_ref(), &wanted)?)).await?;
        record.map_or_else(|| Err(self.unknown_model(name)), |record| Ok(record.digest))
    }

    /// The engine of a stored model, loading it where needed.
    async fn engine(&self, name: &str, pinned: Option<Digest>) -> Result<Arc<Pinned>, Failure> {
        let digest = self.digest(name, pinned).await?;
        let (shared, name) = (self.shared.clone(), name.to_string());
        let load = move || {
            let Files::Gguf(path) = open(&shared.store, &digest)? else { return Err(embed::only_embeds(&name)) };
            let LocalConfig { threads, max_batch, max_context, max_queue, .. } = shared.config.clone();
            let options = EngineOptions { threads, max_batch, max_queue, max_context };
            Ok(Pinned { engine: Engine::start(Arc::new(Model::load(&path, Purpose::Serve)?), options)?, digest })
        };
        self.shared.engines.get(digest, load).await
    }

    fn unknown_model(&self, name: &str) -> Failure {
        let known = models::list(self.shared.store.db.as_ref()).unwrap_or_default();
        let nearest = crate::types::error::did_you_mean(name, known.iter().map(|model| model.name.as_str()));
        Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the local model \"{name}\" is not here{nearest}"))
            .with_hint(format!("refit model pull {name}"))
    }

    async fn adapter(&self, engine: &Arc<Pinned>, digest: Digest) -> Result<Arc<Adapter>, Failure> {
        let (shared, loader) = (self.shared.clone(), engine.clone());
        let load = move || {
            let record = adapters::by_digest(shared.store.db.as_ref(), &digest)?;
            let record = record.ok_or_else(|| Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the adapter {digest} is not here")))?;
            let weights = shared.store.blobs.get(&record.weights)?;
            let precision = if shared.config.adapters_f32 { Precision::Full } else { Precision::Half };
            let adapter = loader.engine.model().serving_adapter(record.config.to_string().as_bytes(), &weights, precision)?;
            Ok(Bound { adapter: Arc::new(adapter), model_digest: record.model_digest })
        };
        let bound = self.shared.adapters.get(digest, load).await?;
        if bound.model_digest != engine.digest {
            let message = format!("the adapter was trained on another file of this model ({})", bound.model_digest.short());
            return Err(Failure::on(Code::INVALID_VALUE, "model", message));
        }
        Ok(bound.adapter.clone())
    }

    /// Queues a call; its events follow.
    async fn submit(&self, call: Call) -> Result<UnboundedReceiver<Event>, Failure> {
        refuse_unsupported(&call.request)?;
        let engine = self.engine(&call.model, call.model_digest).await?;
        let adapter = match call.adapter {
            Some(digest) => Some(self.adapter(&engine, digest).await?),
            None => None,
        };
        blocking(move || {
            let messages: Vec<ChatMessage> = call.request.messages.iter().map(ChatMessage::of).collect::<Result<_, _>>()?;
            let engine = &engine.engine;
            let tokens = engine.model().prompt_tokens(&messages)?;
            let request = &call.request;
            let (events, receiver) = unbounded_channel();
            let max_tokens = request.token_limit().map_or(usize::MAX, |limit| limit as usize);
            let stop =
                request.stop.as_ref().map(|stop| stop.texts()).unwrap_or_default().into_iter().filter(|text| !text.is_empty()).collect();
            engine.submit(Generate { tokens, adapter, sampling: sampling(request), max_tokens, stop, events })?;
            Ok(receiver)
        })
        .await
    }
}

impl Provider for Local {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let model = full_name(&call);
            let mut events = self.submit(call).await.map_err(provider_error)?;
            let mut text = String::new();
            loop {
                match events.recv().await {
                    Some(Event::Text(more)) => text.push_str(&more),
                    Some(Event::Done(finish)) => return Ok(response(model, text, &finish).into()),
                    Some(Event::Failed(error)) => return Err(provider_error(error.into())),
                    None => return Err(provider_error(EngineError::Stopped.into())),
                }
            }
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let model = full_name(&call);
            let events = self.submit(call).await.map_err(provider_error)?;
            Ok(chunks(model, events))
        })
    }

    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        Box::pin(async move { self.vectors(call).await.map_err(provider_error) })
    }

    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        Box::pin(async move {
            let engine = self.engine(&call.model, call.model_digest).await.map_err(provider_error)?;
            let counted = blocking(move || {
                let messages: Vec<ChatMessage> = call.request.messages.iter().map(ChatMessage::of).collect::<Result<_, _>>()?;
                Ok(engine.engine.model().prompt_tokens(&messages)?.len() as u64)
            });
            counted.await.map_err(provider_error)
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        let db = self.shared.store.db.as_ref();
        let base = models::list(db).unwrap_or_default().into_iter().map(|model| model.name);
        let adapted = adapters::list(db).unwrap_or_default().into_iter().map(|adapter| format!("{}:{}", adapter.model, adapter.name));
        let mut names: Vec<String> = base.chain(adapted).collect();
        names.sort();
        names.dedup();
        names.into_iter().map(|name| ModelInfo { name, owner: "local".into() }).collect()
    }

    fn counter(&self, model: &str) -> BoxFuture<'_, Result<Arc<dyn CountTokens>, ProviderError>> {
        let model = model.to_string();
        Box::pin(async move {
            let engine = self.engine(&model, None).await.map_err(provider_error)?;
            let counter: Arc<dyn CountTokens> = Arc::new(Counter(engine.engine.model().clone()));
            Ok(counter)
        })
    }
}

/// Counts with a loaded model's tokenizer.
struct Counter(Arc<Model>);

impl CountTokens for Counter {
    fn count(&self, text: &str) -> usize {
        self.0.tokenizer.count(text)
    }
}

fn full_name(call: &Call) -> String {
    format!("local/{}", call.model)
}

/// Fields that would change the answer and that the engine does not honour yet: refused, never dropped.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), Failure> {
    let set = |field: &str| request.extra.get(field).filter(|value| !value.is_null());
    let refuse = |field: &str| Failure::on(Code::UNSUPPORTED, field, format!("local models do not support \"{field}\" yet"));
    if request.n.is_some_and(|n| n > 1) {
        return Err(refuse("n"));
    }
    for field in ["tools", "functions", "logit_bias", "audio", "prediction", "reasoning_effort"] {
        if set(field).is_some_and(|value| {
            !matches!(value, Value::Array(items) if items.is_empty()) && !matches!(value, Value::Object(map) if map.is_empty())
        }) {
            return Err(refuse(field));
        }
    }
    for field in ["logprobs", "frequency_penalty", "presence_penalty"] {
        if set(field).is_some_and(|value| !matches!(value, Value::Bool(false)) && value.as_f64() != Some(0.0)) {
            return Err(refuse(field));
        }
    }
    for (field, neutral) in [("repetition_penalty", 1.0), ("min_p", 0.0)] {
        if set(field).is_some_and(|value| value.as_f64() != Some(neutral)) {
            return Err(refuse(field));
        }
    }
    match set("response_format").and_then(|format| format.get("type")).and_then(Value::as_str) {
        None | Some("text") => Ok(()),
        Some(_) => Err(refuse("response_format")),
    }
}

fn sampling(request: &ChatRequest) -> Sampling {
    let top_k = request.extra.get("top_k").and_then(Value::as_u64).and_then(|k| usize::try_from(k).ok()).unwrap_or(0);
    let temperature = request.temperature.unwrap_or(1.0) as f32;
    Sampling { temperature, top_p: request.top_p.unwrap_or(1.0) as f32, top_k, seed: request.seed.map(|seed| seed as u64) }
}

fn usage(finish: &Finish) -> Usage {
    Usage::new(finish.prompt_tokens as u64, finish.completion_tokens as u64)
}

fn completion_id() -> String {
    new_id("chatcmpl").replace('_', "-")
}

fn response(model: String, text: String, finish: &Finish) -> ChatResponse {
    let choice = Choice { message: Message::text("assistant", text), finish_reason: Some(finish.reason.into()), ..Choice::default() };
    ChatResponse {
        id: completion_id(),
        object: "chat.completion".into(),
        created: now_ms() / 1000,
        model,
        choices: vec![choice],
        usage: Some(usage(finish)),
        ..ChatResponse::default()
    }
}

/// Role, text, finish and usage chunks of the engine's events. Dropping the stream closes the channel, which cancels the request.
fn chunks(model: String, events: UnboundedReceiver<Event>) -> PieceStream {
    let frame =
        ChatChunk { id: completion_id(), object: "chat.completion.chunk".into(), created: now_ms() / 1000, model, ..ChatChunk::default() };
    let with = move |delta: Delta, finish: Option<&str>| {
        let choice = ChunkChoice { delta, finish_reason: finish.map(str::to_string), ..ChunkChoice::default() };
        ChatChunk { choices: vec![choice], ..frame.clone() }
    };
    let role = with(Delta { role: Some("assistant".into()), content: Some(String::new()), ..Delta::default() }, None);
    let following = stream::unfold(Some(events), move |events| {
        let with = with.clone();
        async move {
            let mut events = events?;
            Some(match events.recv().await {
                Some(Event::Text(text)) => (vec![Ok(with(Delta { content: Some(text), ..Delta::default() }, None))], Some(events)),
                Some(Event::Done(finish)) => {
                    let last = with(Delta::default(), Some(finish.reason));
                    let totals = ChatChunk { choices: Vec::new(), usage: Some(usage(&finish)), ..last.clone() };
                    (vec![Ok(last), Ok(totals)], None)
                }
                Some(Event::Failed(error)) => (vec![Err(provider_error(error.into()))], None),
                None => (vec![Err(provider_error(EngineError::Stopped.into()))], None),
            })
        }
    });
    stream::iter([Ok(role)]).chain(following.flat_map(stream::iter)).map(|chunk| chunk.map(Piece::from)).boxed()
}

fn provider_error(failure: Failure) -> ProviderError {
    ProviderError {
        code: failure.code(),
        message: failure.to_string(),
        param: failure.param(),
        hint: failure.hint(),
        retry_after_s: failure.retry_after_s().and_then(|seconds| u32::try_from(seconds).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(body: Value) -> Option<String> {
        let mut base = json!({"model": "local/m", "messages": []});
        base.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        let request = serde_json::from_value(base).expect("a request");
        refuse_unsupported(&request).err().and_then(|failure| failure.param())
    }

    #[test]
    fn what_would_be_ignored_is_refused_by_name() {
        for (body, field) in [
            (json!({"tools": [{}]}), "tools"),
            (json!({"n": 2}), "n"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"presence_penalty": 0.5}), "presence_penalty"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        ] {
            assert_eq!(refused(body).as_deref(), Some(field));
        }
        let harmless =
            json!({"tools": [], "n": 1, "logprobs": false, "presence_penalty": 0, "user": "u", "response_format": {"type": "text"}});
        assert_eq!(refused(harmless), None);
    }

    #[test]
    fn images_and_tool_messages_are_refused() {
        let image: Message = serde_json::from_value(json!({"role": "user", "content": [{"type": "image_url"}]})).expect("a message");
        assert!(ChatMessage::of(&image).is_err_and(|failure| failure.to_string().contains("image_url")));
        assert!(ChatMessage::of(&Message::text("tool", "x")).is_err());
        assert_eq!(ChatMessage::of(&Message::text("developer", "x")).expect("a system message").role, "system");
    }
}
