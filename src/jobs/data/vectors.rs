//! Vectors of texts, made by a model on the road that every call takes.

use crate::access::Caller;
use crate::datasets::check::neighbours;
use crate::inference::{Ask, Inference};
use crate::types::embeddings::{EmbeddingRequest, Vector};
use crate::types::traits::Progress;
use crate::types::{Code, Failure};

/// Endpoint of the calls, in the request log.
const ENDPOINT: &str = "data.check";
/// Texts in one call.
const TEXTS: usize = 64;
/// What of a text is embedded, characters: models read no more than some hundred tokens.
const CHARACTERS: usize = 4_000;

/// Unit vectors of texts, in their order. The texts are not logged: they are samples, or come out of the log.
pub(super) async fn of(inference: &Inference, model: &str, texts: &[String], progress: &dyn Progress) -> Result<Vec<Vec<f32>>, Failure> {
    let mut vectors = Vec::with_capacity(texts.len());
    for some in texts.chunks(TEXTS) {
        let some: Vec<String> = some.iter().map(|text| readable(text)).collect();
        let request = EmbeddingRequest { model: model.to_string(), input: some.into(), ..EmbeddingRequest::default() };
        let mut made =
            Box::pin(inference.embed(Ask { is_private: true, ..Ask::new(&Caller::local("data"), ENDPOINT) }, request)).await?.response.data;
        made.sort_by_key(|vector| vector.index);
        for vector in made {
            match vector.embedding {
                Vector::Floats(numbers) => vectors.push(numbers.into_iter().map(|x| x as f32).collect()),
                Vector::Base64(_) => return Err(Failure::new(Code::UPSTREAM, format!("{model} made vectors that cannot be read"))),
            }
        }
        progress.update(vectors.len() as u64, texts.len() as u64, "vectors");
    }
    let length = vectors.first().map_or(0, Vec::len);
    if vectors.iter().any(|vector: &Vec<f32>| vector.len() != length) {
        return Err(Failure::new(Code::UPSTREAM, format!("{model} made vectors of different lengths")));
    }
    Ok(neighbours::unit(vectors))
}

/// What may be embedded of a text: models refuse empty ones.
fn readable(text: &str) -> String {
    let text: String = text.chars().take(CHARACTERS).collect();
    if text.trim().is_empty() { "-".into() } else { text }
}
