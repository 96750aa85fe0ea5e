//! Few-shot examples: the samples of a dataset that a prompt asks for (`examples` of its front matter), as messages. The one place
//! where they are chosen, for applications and for evaluations. A sample that asks what the caller asks is left out: no question is
//! shown its own answer.

use super::cache::Direction;
use super::{Ask, Inference, blocking};
use crate::access::Caller;
use crate::datasets::{Datasets, Sample};
use crate::prompts::Prompt;
use crate::prompts::examples::{Choose, Examples, WHOLE};
use crate::types::chat::Message;
use crate::types::embeddings::{EmbeddingRequest, Vector};
use crate::types::{Code, Digest, Failure};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Endpoint of the calls that make vectors of samples, in the request log.
const VECTORS: &str = "prompt.examples";
/// Texts in one call for vectors.
const TEXTS: usize = 64;
/// Splits, and vectors of splits, that are kept in memory.
const KEPT: usize = 32;

/// The samples of a split that have an answer.
struct Pool {
    key: PoolKey,
    /// Dataset and split, for messages.
    name: String,
    samples: Vec<Sample>,
    /// Place of the one with most text.
    largest: usize,
    /// Places in the order of a seed.
    orders: Mutex<HashMap<u64, Arc<[usize]>>>,
}

/// What is asked of a pool.
struct Asked<'a> {
    prompt: &'a Prompt,
    variables: &'a Map<String, Value>,
    count: usize,
}

/// What a pool holds: digest of the dataset, of the split's assignment, and the split.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PoolKey(Digest, Option<Digest>, Option<String>);

/// Vectors of a pool: by the variable, of the model.
type VectorKey = (PoolKey, String, String);
type Vectors = Arc<OnceCell<Vec<Direction>>>;

/// Splits and their vectors that were read and made once.
#[derive(Default)]
pub(super) struct KeptExamples {
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    vectors: Mutex<HashMap<VectorKey, Vectors>>,
}

impl Inference {
    /// The messages of a prompt's examples for a caller's variables: a question and an answer each; nothing for a prompt without.
    ///
    /// # Errors
    /// [`Code::UNKNOWN_NAME`] for a dataset, split or sample that is not there, naming the field; what the model that makes vectors says.
    pub async fn examples(&self, prompt: &Prompt, variables: &Map<String, Value>) -> Result<Vec<Message>, Failure> {
        let Some(examples) = &prompt.front.examples else { return Ok(Vec::new()) };
        let pool = self.pool(prompt, examples).await?;
        let asked = Asked { prompt, variables, count: examples.count };
        let mut order = match &examples.choose {
            Choose::First => pool.pick(&asked, 0..pool.samples.len()),
            Choose::Ids(ids) => {
                let places: Vec<_> = ids.iter().map(|id| pool.place(prompt, id)).collect::<Result<_, _>>()?;
                pool.pick(&asked, places)
            }
            Choose::Random { seed } => pool.pick(&asked, pool.shuffled(*seed).iter().copied()),
            Choose::Nearest { by, model } => pool.pick(&asked, self.nearest(prompt, &pool, (by, model), variables).await?),
        };
        if matches!(examples.choose, Choose::Nearest { .. }) {
            // The nearest stands right before the question.
            order.reverse();
        }
        let mut messages = Vec::with_capacity(order.len() * 2);
        for at in order {
            let sample = &pool.samples[at];
            messages.extend(prompt.example(&sample.id, &sample.input, &sample.target)?);
        }
        Ok(messages)
    }

    /// The messages of a prompt's examples without a call for vectors: of those that are nearest, the largest that it may come to,
    /// as far as the length of samples tells.
    ///
    /// # Errors
    /// As [`Inference::examples`].
    pub(super) async fn most_examples(&self, prompt: &Prompt, variables: &Map<String, Value>) -> Result<Vec<Message>, Failure> {
        let Some(examples @ Examples { choose: Choose::Nearest { .. }, .. }) = &prompt.front.examples else {
            return self.examples(prompt, variables).await;
        };
        let pool = self.pool(prompt, examples).await?;
        let Some(largest) = pool.samples.get(pool.largest) else { return Ok(Vec::new()) };
        let one = prompt.example(&largest.id, &largest.input, &largest.target)?;
        let count = examples.count.min(pool.samples.len());
        Ok(std::iter::repeat_n(one, count).flatten().collect())
    }

    /// The samples that a prompt's examples are chosen from. The version is looked up at each call, its samples are read once.
    async fn pool(&self, prompt: &Prompt, examples: &Examples) -> Result<Arc<Pool>, Failure> {
        let (store, examples, name) = (self.store.clone(), examples.clone(), prompt.name.clone());
        let kept = self.shown.clone();
        blocking(move || {
            let at = |field: &str, error: crate::datasets::DatasetError| {
                let failure = Failure::from(error);
                let hint = failure.hint();
                let on =
                    Failure::on(failure.code(), format!("examples.{field}"), format!("prompt \"{name}\": examples.{field}: {failure}"));
                hint.into_iter().fold(on, Failure::with_hint)
            };
            let datasets = Datasets::new(&store);
            let row = datasets.get(&examples.dataset).map_err(|error| at("dataset", error))?;
            let assignment = row.splits["assignment"].as_str().and_then(|text| text.parse().ok());
            let key = PoolKey(row.digest, assignment, examples.split.clone());
            if let Some(pool) = kept.pools.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
                return Ok(pool.clone());
            }
            let dataset = datasets.open(&format!("{}@{}", row.dataset, row.version)).map_err(|error| at("dataset", error))?;
            let part = dataset.part(examples.split.as_deref()).map_err(|error| at("split", error))?;
            let samples: Vec<_> = part.into_iter().filter(|sample| !sample.target.is_null()).cloned().collect();
            let place = format!("{}@{} ({})", row.dataset, row.version, examples.split.as_deref().unwrap_or(WHOLE));
            if samples.is_empty() {
                let message = format!("prompt \"{name}\": examples.split: {place} has no sample with a target");
                return Err(Failure::on(Code::INVALID_VALUE, "examples.split", message));
            }
            let bytes = |at: &usize| samples[*at].line().len();
            let largest = (0..samples.len()).max_by_key(bytes).unwrap_or(0);
            let pool = Arc::new(Pool { key: key.clone(), name: place, samples, largest, orders: Mutex::default() });
            keep(&kept.pools, key, pool.clone());
            Ok(pool)
        })
        .await
    }

    /// Places of a pool's samples, those first that mean nearly the same as the caller's variable.
    async fn nearest(
        &self,
        prompt: &Prompt,
        pool: &Pool,
        (by, model): (&str, &str),
        variables: &Map<String, Value>,
    ) -> Result<Vec<usize>, Failure> {
        let value = variables.get(by).or_else(|| prompt.front.defaults.get(by)).ok_or_else(|| {
            let message = format!("prompt \"{}\": examples.by: the variable \"{by}\" is not given", prompt.name);
            Failure::on(Code::MISSING_FIELD, "examples.by", message)
        })?;
        let key = (pool.key.clone(), by.to_string(), model.to_string());
        let vectors = {
            let mut kept = self.shown.vectors.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= KEPT && !kept.contains_key(&key) {
                kept.clear();
            }
            kept.entry(key).or_default().clone()
        };
        let of_pool = vectors.get_or_try_init(|| self.vectors_of(prompt, pool, by, model)).await?;
        let question = self.directions(prompt, model, &[text(value)]).await?;
        let Some(question) = question.first() else { return Ok(Vec::new()) };
        let mut near: Vec<(f32, usize)> =
            of_pool.iter().enumerate().map(|(at, direction)| (direction.cosine(question).unwrap_or(-1.0), at)).collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(near.into_iter().map(|(_, at)| at).collect())
    }

    async fn vectors_of(&self, prompt: &Prompt, pool: &Pool, by: &str, model: &str) -> Result<Vec<Direction>, Failure> {
        let mut texts = Vec::with_capacity(pool.samples.len());
        for sample in &pool.samples {
            let value = sample.input.get(by).or_else(|| prompt.front.defaults.get(by)).ok_or_else(|| {
                let message = format!("prompt \"{}\": examples.by: sample {} of {} has no \"{by}\"", prompt.name, sample.id, pool.name);
                Failure::on(Code::INVALID_VALUE, "examples.by", message)
            })?;
            texts.push(text(value));
        }
        let mut directions = Vec::with_capacity(texts.len());
        for some in texts.chunks(TEXTS) {
            directions.extend(self.directions(prompt, model, some).await?);
        }
        Ok(directions)
    }

    /// Directions of texts, in their order.
    async fn directions(&self, prompt: &Prompt, model: &str, texts: &[String]) -> Result<Vec<Direction>, Failure> {
        let request = EmbeddingRequest { model: model.to_string(), input: texts.into(), ..EmbeddingRequest::default() };
        let asked = self.embed(Ask::new(&Caller::local("examples"), VECTORS), request);
        // Boxed: what makes vectors is large, and every call would carry its place.
        let embedded = Box::pin(asked).await.map_err(|failure| {
            let message = format!("prompt \"{}\": examples.model: {failure}", prompt.name);
            let on = Failure::on(failure.code(), "examples.model", message);
            failure.hint().into_iter().fold(on, Failure::with_hint)
        })?;
        let mut vectors = embedded.response.data;
        vectors.sort_by_key(|vector| vector.index);
        let direction = |vector: &Vector| match vector {
            Vector::Floats(numbers) => Direction::of(numbers),
            Vector::Base64(_) => None,
        };
        let found: Option<Vec<_>> = vectors.iter().map(|vector| direction(&vector.embedding)).collect();
        found.ok_or_else(|| {
            let message = format!("prompt \"{}\": examples.model: {model} made vectors that point nowhere", prompt.name);
            Failure::on(Code::UPSTREAM, "examples.model", message)
        })
    }
}

impl Pool {
    fn place(&self, prompt: &Prompt, id: &str) -> Result<usize, Failure> {
        self.samples.iter().position(|sample| sample.id == id).ok_or_else(|| {
            let message = format!("prompt \"{}\": examples.ids: {} has no sample \"{id}\" with a target", prompt.name, self.name);
            Failure::on(Code::UNKNOWN_NAME, "examples.ids", message)
        })
    }

    /// The first of these places that do not ask what is asked.
    fn pick(&self, asked: &Asked<'_>, places: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let is_other = |at: &usize| !asked.prompt.asks_the_same(&self.samples[*at].input, asked.variables);
        places.into_iter().filter(is_other).take(asked.count).collect()
    }

    /// All places in an order that content and seed decide, as with splits.
    fn shuffled(&self, seed: u64) -> Arc<[usize]> {
        if let Some(order) = self.orders.lock().unwrap_or_else(PoisonError::into_inner).get(&seed) {
            return order.clone();
        }
        let order = |at: usize| Digest::of(format!("{seed}:{}", self.samples[at].content()));
        let mut places: Vec<_> = (0..self.samples.len()).map(|at| (order(at), at)).collect();
        places.sort_unstable();
        let order: Arc<[usize]> = places.into_iter().map(|(_, at)| at).collect();
        keep(&self.orders, seed, order.clone());
        order
    }
}

fn keep<K: std::hash::Hash + Eq, V>(kept: &Mutex<HashMap<K, V>>, key: K, value: V) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(key, value);
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
