//! Embeddings of local models.

use super::{Arc, Digest, EmbedCall, Embedder, EmbeddingResponse, Encoder, Failure, Files, Local, LocalConfig, blocking, open};
use crate::engine::EngineError;
use crate::engine::arch::is_decoder;
use crate::engine::encoder::EncoderOptions;
use crate::models::folder::describe;
use crate::types::Code;
use crate::types::embeddings::EmbeddingRequest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The architecture that makes embeddings.
const ENCODER: &str = "bert";

impl Local {
    /// The vectors of a request's inputs.
    pub(super) async fn vectors(&self, call: EmbedCall) -> Result<EmbeddingResponse, Failure> {
        let truncates = truncates(&call.request)?;
        let encoder = self.encoder(&call.model, call.model_digest).await?;
        let model = encoder.model().clone();
        check_dimensions(&call.request, &model)?;
        let base64 = call.request.wants_base64();
        let texts = blocking(move || tokens(&call.request, &model, truncates)).await?;
        let counted = texts.iter().map(|tokens| tokens.len() as u64).sum();
        let vectors = encoder.embed(texts).await?;
        let vectors = vectors.iter().map(|vector| vector.iter().map(|x| if base64 { f64::from(*x) } else { shortest(*x) }).collect());
        Ok(EmbeddingResponse::of(format!("local/{}", call.model), vectors.collect(), counted))
    }

    /// The encoder of a stored model, loading it where needed.
    pub(super) async fn encoder(&self, name: &str, pinned: Option<Digest>) -> Result<Arc<Encoder>, Failure> {
        let digest = self.digest(name, pinned).await?;
        let (shared, name) = (self.shared.clone(), name.to_string());
        let load = move || {
            let files = match open(&shared.store, &digest)? {
                Files::Folder(files) if !is_decoder(&described(&files)?) => files,
                _ => return Err(only_chats(&name)),
            };
            let LocalConfig { threads, max_queue, .. } = shared.config;
            Ok(Encoder::start(Arc::new(Embedder::load(&files)?), EncoderOptions { threads, max_queue })?)
        };
        self.shared.encoders.get(digest, load).await
    }
}

/// The architecture of a folder.
fn described(files: &BTreeMap<String, PathBuf>) -> Result<String, Failure> {
    Ok(files.get("config.json").map(|config| describe(config)).transpose()?.unwrap_or_default().architecture)
}

/// Whether a folder holds a model that makes embeddings.
pub(super) fn is_encoder(files: &BTreeMap<String, PathBuf>) -> Result<bool, Failure> {
    Ok(described(files)? == ENCODER)
}

/// A chat was asked of an embedding model.
pub(super) fn only_embeds(name: &str) -> Failure {
    Failure::on(Code::UNSUPPORTED, "model", format!("the local model \"{name}\" makes embeddings; it does not chat"))
        .with_hint("ask it at /v1/embeddings")
}

fn only_chats(name: &str) -> Failure {
    Failure::on(Code::UNSUPPORTED, "model", format!("the local model \"{name}\" chats; it makes no embeddings"))
        .with_hint("refit model pull all-minilm-l6-v2, and ask local/all-minilm-l6-v2")
}

/// Whether what is too long is cut: a field of the request that OpenAI does not have (Text Embeddings Inference has it).
fn truncates(request: &EmbeddingRequest) -> Result<bool, Failure> {
    match request.extra.get("truncate") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(cuts)) => Ok(*cuts),
        Some(other) => Err(Failure::on(Code::INVALID_VALUE, "truncate", format!("\"truncate\" must be true or false, not {other}"))),
    }
}

fn check_dimensions(request: &EmbeddingRequest, model: &Embedder) -> Result<(), Failure> {
    let has = model.dimensions();
    match request.dimensions {
        Some(wanted) if wanted as usize != has => {
            let message = format!("the model's vectors have {has} dimensions and cannot be shortened to {wanted}");
            Err(Failure::on(Code::INVALID_VALUE, "dimensions", message))
        }
        _ => Ok(()),
    }
}

/// Token ids of every input.
fn tokens(request: &EmbeddingRequest, model: &Embedder, truncates: bool) -> Result<Vec<Vec<u32>>, Failure> {
    let mut texts: Vec<Vec<u32>> = match (request.texts(), &request.input) {
        (Some(texts), _) => texts.into_iter().map(|text| model.tokens(text)).collect::<Result<_, EngineError>>()?,
        (None, Value::Array(items)) if items.iter().any(Value::is_number) => vec![ids(items)?],
        (None, Value::Array(lists)) => {
            lists.iter().map(|list| ids(list.as_array().map_or(&[][..], Vec::as_slice))).collect::<Result<_, _>>()?
        }
        (None, _) => Vec::new(),
    };
    if truncates {
        let most = model.max_tokens();
        // The last token marks the end, and stays.
        for text in texts.iter_mut().filter(|text| text.len() > most) {
            let end = text.last().copied();
            text.truncate(most - 1);
            text.extend(end);
        }
    }
    Ok(texts)
}

fn ids(items: &[Value]) -> Result<Vec<u32>, Failure> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let read: Option<Vec<u32>> = items.iter().map(id).collect();
    read.ok_or_else(|| Failure::on(Code::INVALID_VALUE, "input", "a token id is out of range"))
}

/// The number with the fewest digits that is the same f32: half the bytes in JSON.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}
