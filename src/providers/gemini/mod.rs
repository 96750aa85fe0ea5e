//! Google's Gemini API (`generateContent`, `streamGenerateContent`, `batchEmbedContents`). [`request`] writes chat completions as
//! contents, [`reply`] reads answers and stream events back. (Gemini API reference, v1beta.)

mod reply;
mod request;

use super::http::{Auth, Http, Service, segment};
use super::sse::Event;
use super::upstream::{self, Decode, Source};
use super::{Call, EmbedCall, ModelInfo, Piece, PieceStream, Provider, ProviderError, Reply};
use crate::config::{ProviderConfig, Secret};
use crate::types::Code;
use crate::types::embeddings::EmbeddingResponse;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// Variable that holds the key where the configuration names none.
pub const KEY_VARIABLE: &str = "GEMINI_API_KEY";
/// Where the service is.
pub const BASE_URL: &str = "https://generativelanguage.googleapis.com/v1beta";

/// Inputs that one `batchEmbedContents` takes.
const MAX_BATCH: usize = 100;

/// The provider.
pub struct Gemini {
    http: Http,
    models: Vec<String>,
}

/// A provider; nothing is connected yet.
pub fn open(config: &ProviderConfig, key: Option<Secret>) -> Gemini {
    let base_url = config.base_url.clone().unwrap_or_else(|| BASE_URL.into());
    let needed = config.base_url.is_none().then_some(KEY_VARIABLE);
    let service = Service { base_url, key, key_variable: needed, auth: Auth::Header("x-goog-api-key") };
    Gemini { http: Http::new(config, service), models: config.models.clone() }
}

fn path(model: &str, operation: &str) -> String {
    format!("/models/{}:{operation}", segment(model.strip_prefix("models/").unwrap_or(model)))
}

impl Provider for Gemini {
    fn chat(&self, call: Call) -> BoxFuture<'_, Result<Reply, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let body = Value::Object(request::of_chat(call.request, &call.model, &source)?);
            let answer: Value = self.http.post_json(&path(&call.model, "generateContent"), &HeaderMap::new(), &body, &source).await?;
            let response = reply::to_chat(&answer, &call.model).map_err(|what| source.broken(what))?;
            Ok(response.into())
        })
    }

    fn chat_stream(&self, call: Call) -> BoxFuture<'_, Result<PieceStream, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let body = Value::Object(request::of_chat(call.request, &call.model, &source)?);
            let response = self.http.post(&path(&call.model, "streamGenerateContent?alt=sse"), &HeaderMap::new(), &body, &source).await?;
            upstream::read_stream(response, source, self.http.idle_timeout(), Events { reader: reply::Reader::new(&call.model) }).await
        })
    }

    fn count_tokens(&self, call: Call) -> BoxFuture<'_, Result<u64, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let mut request = request::of_chat(call.request, &call.model, &source)?;
            request.insert("model".into(), format!("models/{}", call.model.strip_prefix("models/").unwrap_or(&call.model)).into());
            let body = json!({"generateContentRequest": request});
            let counted: Value = self.http.post_json(&path(&call.model, "countTokens"), &HeaderMap::new(), &body, &source).await?;
            counted.get("totalTokens").and_then(Value::as_u64).ok_or_else(|| source.broken("the reply holds no totalTokens"))
        })
    }

    fn embed(&self, call: EmbedCall) -> BoxFuture<'_, Result<EmbeddingResponse, ProviderError>> {
        Box::pin(async move {
            let source = self.http.source(&call.model);
            let Some(texts) = call.request.texts() else {
                let mut error = source.error(Code::UNSUPPORTED, "Gemini embeds texts, not token ids");
                error.param = Some("input".into());
                return Err(error);
            };
            let frame = request::embedding(&call.request, &call.model);
            let (mut vectors, mut tokens) = (Vec::with_capacity(texts.len()), 0);
            for batch in texts.chunks(MAX_BATCH) {
                let one = |text: &&str| {
                    let mut request = frame.clone();
                    request.insert("content".into(), json!({"parts": [{"text": text}]}));
                    Value::Object(request)
                };
                let body = json!({"requests": batch.iter().map(one).collect::<Vec<_>>()});
                let answer: Value =
                    self.http.post_json(&path(&call.model, "batchEmbedContents"), &HeaderMap::new(), &body, &source).await?;
                let found = answer.get("embeddings").and_then(Value::as_array).into_iter().flatten();
                let found: Option<Vec<Vec<f64>>> =
                    found.map(|vector| vector.get("values")?.as_array()?.iter().map(Value::as_f64).collect()).collect();
                let found = found.filter(|found| found.len() == batch.len());
                vectors.extend(found.ok_or_else(|| source.broken("the reply does not hold one vector an input"))?);
                // The service counts no tokens here in most versions; nothing is made up.
                tokens += answer.pointer("/usageMetadata/promptTokenCount").and_then(Value::as_u64).unwrap_or(0);
            }
            Ok(EmbeddingResponse::of(call.model, vectors, tokens))
        })
    }

    fn list_models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move {
            if !self.models.is_empty() {
                return Ok(self.models());
            }
            let list = self.http.get_json("/models?pageSize=1000", &HeaderMap::new()).await?;
            let strip = |info: ModelInfo| ModelInfo { name: info.name.trim_start_matches("models/").to_string(), ..info };
            Ok(self.http.named(&list, "/models", "name").into_iter().map(strip).collect())
        })
    }

    fn models(&self) -> Vec<ModelInfo> {
        self.models.iter().map(|name| ModelInfo { name: name.clone(), owner: self.http.name().to_string() }).collect()
    }
}

struct Events {
    reader: reply::Reader,
}

impl Decode for Events {
    fn event(&mut self, event: Event, source: &Source) -> Result<Vec<Piece>, ProviderError> {
        let value = upstream::read_event(&event.data, source)?;
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return Err(upstream::from_body(502, &value, source));
        }
        let chunks = self.reader.event(&value).map_err(|what| source.broken(what))?;
        Ok(chunks.into_iter().map(Piece::from).collect())
    }

    /// The stream has no last event; it ends.
    fn is_over(&self) -> bool {
        false
    }

    fn is_whole(&self) -> bool {
        self.reader.is_whole()
    }
}
