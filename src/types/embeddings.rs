//! The embeddings wire types (OpenAI API, `/v1/embeddings`), with every unknown field kept in `extra`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An embeddings request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EmbeddingRequest {
    /// Route or `provider/model`.
    pub model: String,
    /// A text, a list of texts, a list of token ids, or a list of such lists.
    pub input: Value,
    /// `float` or `base64` (little-endian 32-bit floats).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<String>,
    /// Wanted length of the vectors, for models that can shorten them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Every other field, as sent.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl EmbeddingRequest {
    /// The texts to embed; none when the input is token ids.
    pub fn texts(&self) -> Option<Vec<&str>> {
        match &self.input {
            Value::String(text) => Some(vec![text]),
            Value::Array(items) => items.iter().map(Value::as_str).collect(),
            _ => None,
        }
    }

    /// How many vectors are asked for: a list of token ids is one input.
    pub fn count(&self) -> usize {
        match &self.input {
            Value::Array(items) if !items.iter().any(Value::is_number) => items.len(),
            _ => 1,
        }
    }

    /// Whether the caller asked for base64.
    pub fn wants_base64(&self) -> bool {
        self.encoding_format.as_deref() == Some("base64")
    }
}

/// An embeddings reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: String,
    /// One vector an input, in the order of the inputs.
    pub data: Vec<Embedding>,
    /// The model that answered.
    pub model: String,
    /// Token counts.
    pub usage: EmbeddingUsage,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One vector.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// Position of the input.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A vector as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Floats(Vec<f64>),
    /// Little-endian 32-bit floats in base64.
    Base64(String),
}

impl Vector {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        match self {
            Vector::Floats(numbers) => numbers.is_empty(),
            Vector::Base64(text) => text.is_empty(),
        }
    }
}

impl Default for Vector {
    fn default() -> Self {
        Vector::Floats(Vec::new())
    }
}

/// Token counts of an embeddings reply.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingUsage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// The same again, as the API has it.
    pub total_tokens: u64,
    /// Every other count.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl EmbeddingResponse {
    /// A reply of these vectors.
    pub fn of(model: String, vectors: Vec<Vec<f64>>, tokens: u64) -> Self {
        let embedding = |(index, vector)| Embedding {
            object: "embedding".into(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            embedding: Vector::Floats(vector),
            extra: Map::new(),
        };
        EmbeddingResponse {
            object: "list".into(),
            data: vectors.into_iter().enumerate().map(embedding).collect(),
            model,
            usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens, extra: Map::new() },
            extra: Map::new(),
        }
    }
}
