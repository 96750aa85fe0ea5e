//! The `local` provider: models of the engine behind the [`Provider`] trait. A model is loaded when it is first asked for, by digest;
//! adapters likewise. Async code hands requests to the engine's thread and reads events. [`embed`] is the part that makes vectors, [`classify`]
//! the one that answers with labels.

mod ask;
mod classify;
mod embed;
mod format;
mod loaded;
mod reply;

use self::ask::{Asked, wrong};
use self::classify::Kind;
use self::loaded::Loaded;
use self::reply::Replying;
use super::{Call, EmbedCall, ModelInfo, PieceStream, Provider, ProviderError, Reply};
use crate::config::LocalConfig;
use crate::engine::chat_template::ChatMessage;
use crate::engine::kernel::low_rank::Precision;
use crate::engine::scheduler::EngineOptions;
use crate::engine::sequence::Generate;
use crate::engine::{Adapter, Classifier, Embedder, Encoder, Engine, Model, Purpose};
use crate::models::{Files, open};
use crate::store::{Store, adapters, models};
use crate::types::blocking::blocking;
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingResponse;
use crate::types::traits::CountTokens;
use crate::types::{Code, Digest, Failure};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::mpsc::unbounded_channel;

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
    /// Adapters that answer with labels, and those that are known not to.
    kinds: Loaded<Option<Kind>>,
    /// Those of them that are on chat models.
    classifiers: Loaded<Classifier>,
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

impl Local {
    /// Local models of a store.
    pub fn open(store: Store, config: LocalConfig) -> Self {
        let (models, adapters) = (config.max_models, config.max_adapters);
        let (engines, encoders) = (Loaded::new(models), Loaded::new(models));
        let (kinds, classifiers, adapters) = (Loaded::new(adapters), Loaded::new(adapters), Loaded::new(adapters));
        Local { shared: Arc::new(Shared { store, config, engines, encoders, adapters, kinds, classifiers }) }
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
            let model = match open(&shared.store, &digest)? {
                Files::Gguf(path) => Model::load(&path, Purpose::Serve)?,
                Files::Folder(files) if embed::is_encoder(&files)? => return Err(embed::only_embeds(&name)),
                Files::Folder(files) => Model::load_folder(&files, Purpose::Serve)?,
            };
            let LocalConfig { threads, max_batch, max_context, max_queue, cache_mib, .. } = shared.config.clone();
            let options = EngineOptions { threads, max_batch, max_queue, max_context, cache_bytes: cache_mib << 20 };
            Ok(Pinned { engine: Engine::start(Arc::new(model), options)?, digest })
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
            let record = stored(&shared.store, &digest)?;
            let weights = shared.store.blobs.get(&record.weights)?;
            let precision = if shared.config.adapters_f32 { Precision::Full } else { Precision::Half };
            let adapter = loader.engine.model().serving_adapter(record.config.to_string().as_bytes(), &weights, precision)?;
            Ok(Bound { adapter: Arc::new(adapter), model_digest: record.model_digest })
        };
        let bound = self.shared.adapters.get(digest, load).await?;
        same_model(bound.model_digest, engine.digest)?;
        Ok(bound.adapter.clone())
    }

    /// Queues a call, one sequence for each choice; their events follow.
    async fn submit(&self, call: Call) -> Result<Replying, Failure> {
        let asked = Asked::of(&call.request)?;
        let engine = self.engine(&call.model, call.model_digest).await?;
        let adapter = match call.adapter {
            Some(digest) => Some(self.adapter(&engine, digest).await?),
            None => None,
        };
        blocking(move || queue(&engine.engine, adapter, call, asked)).await
    }
}

fn stored(store: &Store, digest: &Digest) -> Result<adapters::AdapterRecord, Failure> {
    let record = adapters::by_digest(store.db.as_ref(), digest)?;
    record.ok_or_else(|| Failure::on(Code::MODEL_NOT_FOUND, "model", format!("the adapter {digest} is not here")))
}

/// Refuses an adapter on another model than the one it was trained on.
fn same_model(trained_on: Digest, model: Digest) -> Result<(), Failure> {
    if trained_on == model {
        return Ok(());
    }
    let message = format!("the adapter was trained on another file of this model ({})", trained_on.short());
    Err(Failure::on(Code::INVALID_VALUE, "model", message))
}

/// Renders, compiles and queues a request. Blocking, for a bounded time.
fn queue(engine: &Engine, adapter: Option<Arc<Adapter>>, call: Call, asked: Asked) -> Result<Replying, Failure> {
    let model = engine.model();
    let room = engine.room();
    if asked.choices as usize > room {
        return Err(wrong("n", format!("expected at most {room}: so many sequences run and wait here")));
    }
    if let Some((id, _)) = asked.sampling.penalties.bias.iter().find(|(id, _)| *id as usize >= model.tokenizer.vocabulary()) {
        return Err(wrong("logit_bias", format!("{id} is not the id of a token; the vocabulary has {}", model.tokenizer.vocabulary())));
    }
    let tokens = prompt(model, &call.request, &asked)?;
    let compiled = asked.format.compile(&model.tokenizer)?;
    let (mut requests, mut receivers) = (Vec::new(), Vec::new());
    for choice in 0..u64::from(asked.choices) {
        let (events, receiver) = unbounded_channel();
        receivers.push(receiver);
        let mut sampling = asked.sampling.clone();
        // The first choice is the one that a request for one gets.
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(choice));
        requests.push(Generate {
            asker: call.asker.clone(),
            adapter: adapter.clone(),
            sampling,
            constraint: compiled.clone().and_then(|compiled| asked.format.constraint(compiled)),
            max_tokens: asked.max_tokens,
            stop: asked.stop.clone(),
            logprobs: asked.logprobs,
            ..Generate::new(tokens.clone(), events)
        });
    }
    engine.submit_all(requests)?;
    let with_logprobs = asked.logprobs.is_some();
    Ok(Replying { name: format!("local/{}", call.model), model: model.clone(), tools: asked.tools, with_logprobs, events: receivers })
}

fn prompt(model: &Model, request: &ChatRequest, asked: &Asked) -> Result<Vec<u32>, Failure> {
    let messages: Vec<ChatMessage> = request.messages.iter().map(ChatMessage::of).collect::<Result<_, _>>()?;
    let tools: Vec<_> = asked.tools.iter().map(|tool| tool.written.clone()).collect();
    Ok(model.prompt_tokens_with_tools(&messages, &tools)?)
}

impl Provider for Local {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            if let Some(label) = self.classified(&call).await.map_err(provider_error)? {
                return Ok(label.whole().into());
            }
            Ok(self.submit(call).await.map_err(provider_error)?.whole().await?.into())
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            if let Some(label) = self.classified(&call).await.map_err(provider_error)? {
                return Ok(label.stream());
            }
            Ok(self.submit(call).await.map_err(provider_error)?.stream())
        })
    }

    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        Box::pin(async move { self.vectors(call).await.map_err(provider_error) })
    }

    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        Box::pin(async move {
            if let Some(reading) = self.classifiable(&call).await.map_err(provider_error)? {
                return Ok(reading.tokens.len() as u64);
            }
            let engine = self.engine(&call.model, call.model_digest).await.map_err(provider_error)?;
            let counted = blocking(move || {
                let asked = Asked::of(&call.request)?;
                Ok(prompt(engine.engine.model(), &call.request, &asked)?.len() as u64)
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
    use crate::types::chat::Message;
    use serde_json::json;

    #[test]
    fn images_and_unknown_roles_are_refused() {
        let image: Message = serde_json::from_value(json!({"role": "user", "content": [{"type": "image_url"}]})).expect("a message");
        assert!(ChatMessage::of(&image).is_err_and(|failure| failure.to_string().contains("image_url")));
        assert!(ChatMessage::of(&Message::text("function", "x")).is_err());
        assert_eq!(ChatMessage::of(&Message::text("developer", "x")).expect("a system message").role, "system");
    }
}
