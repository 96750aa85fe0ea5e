//! A scorer's word on two texts, without a run around them: for scorers that only compute.

use super::{Calling, Case, Services, build};
use crate::datasets::Sample;
use crate::evals::Reply;
use crate::inference::{CacheWish, MostCost};
use crate::types::chat::ChatRequest;
use crate::types::traits::{Embed, Vectors};
use crate::types::{Code, Failure};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

/// What a scorer's main metric says of two texts.
///
/// # Errors
/// When there is no such scorer, it cannot score them, or it needs a model.
pub async fn of_texts(spec: &Value, found: &str, wanted: &str) -> Result<f64, String> {
    let scorer = build(spec).map_err(|(_, problem)| problem)?;
    let sample = Sample { id: String::new(), input: Map::new(), target: wanted.into(), metadata: Map::new() };
    let reply = Reply { output: found.to_string(), ..Reply::default() };
    let scored = scorer.score(&Case::new(&sample, &reply), &Nobody).await?;
    scored.values.first().copied().flatten().ok_or_else(|| "the scorer gave no value".into())
}

/// Nobody answers.
pub(super) struct Nobody;

fn refused() -> Failure {
    Failure::new(Code::UNSUPPORTED, "this scorer asks a model, which is not possible here")
}

impl Embed for Nobody {
    fn embed<'a>(&'a self, _model: &'a str, _texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(async { Err(refused()) })
    }
}

impl Services for Nobody {
    fn chat(&self, _request: ChatRequest, _cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async { Err(refused()) })
    }

    fn most_cost<'a>(&'a self, _calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
        Box::pin(async { Err(refused()) })
    }

    fn allows_commands(&self) -> bool {
        false
    }
}
