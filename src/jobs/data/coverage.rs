//! Which kinds of live request a dataset lacks: requests of the log that are nearer to nothing in it than its own samples are to each
//! other, gathered around the first of each kind (leader clustering: Hartigan, Clustering Algorithms, 1975).

use crate::datasets::Sample;
use crate::datasets::check::neighbours;
use crate::monitor::{Redactor, rows};
use crate::stats::percentile;
use crate::store::log::Filter;
use crate::store::{Store, StoreError};
use serde::Serialize;
use serde_json::{Map, Value};

/// Requests that are looked at: evenly over those that are meant.
const MOST_REQUESTS: usize = 2_000;
/// Quantile of the samples' own nearest cosines under which a request counts as not covered.
const QUANTILE: f64 = 0.05;
/// Cosine from which an uncovered request belongs to a kind.
const SAME_KIND: f32 = 0.6;
/// Kinds that are told.
const KINDS: usize = 20;
/// Characters of an example.
const SHOWN: usize = 160;

/// How much of the traffic a dataset covers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// Requests looked at.
    pub requests: usize,
    /// Requests with something like them in the dataset.
    pub covered: usize,
    /// Cosine from which something counts as like it.
    pub threshold: f64,
    /// What is lacking, the most frequent kind first.
    pub lacking: Vec<Lacking>,
}

/// A kind of request that the dataset lacks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lacking {
    /// Requests of this kind.
    pub requests: usize,
    /// The first of them.
    pub request_id: String,
    /// What it asks.
    pub example: String,
    /// Cosine to the nearest sample.
    pub nearest: f64,
}

/// A live request: its id, and what it asks.
pub(super) struct Live {
    pub(super) id: String,
    pub(super) text: String,
}

/// Requests of the log that ended well and whose bodies were kept, without what may be personal.
pub(super) fn live(store: &Store, filter: &Filter, redactor: &Redactor) -> Result<Vec<Live>, StoreError> {
    let mut found = Vec::new();
    rows::each::<StoreError>(store, filter, |row| {
        if row.error_code.is_none() && super::CONVERSATIONS.contains(&row.endpoint.as_str()) {
            let row = rows::with_bodies(store, row)?;
            let request = row.request.map(|request| redactor.body(request));
            found.extend(request.as_deref().and_then(said).map(|text| Live { id: row.id, text }));
        }
        Ok(true)
    })?;
    let step = found.len().div_ceil(MOST_REQUESTS).max(1);
    Ok(found.into_iter().step_by(step).collect())
}

/// All that the user said: samples are compared by the same.
fn said(request: &str) -> Option<String> {
    let request: Value = serde_json::from_str(request).ok()?;
    let messages = request.get("messages").filter(|messages| messages.is_array())?.clone();
    let input = Map::from_iter([("messages".to_string(), messages)]);
    let text = Sample { id: String::new(), input, target: Value::Null, metadata: Map::new() }.asked();
    (!text.trim().is_empty()).then_some(text)
}

/// What the user said last.
pub(super) fn asked(request: &str) -> Option<String> {
    let request: Value = serde_json::from_str(request).ok()?;
    let messages = request.get("messages")?.as_array()?;
    let last = messages.iter().rev().find(|message| message["role"] == "user")?;
    let text = crate::datasets::sample::text_of(last.get("content")?);
    (!text.trim().is_empty()).then_some(text)
}

/// How much of the requests a dataset covers, by the vectors of both.
pub(super) fn coverage(live: &[Live], of_live: &[Vec<f32>], samples: &[Vec<f32>]) -> Coverage {
    // What stands there twice says nothing about how near to each other the others are.
    let distinct = neighbours::distinct(samples);
    let nearest = |(at, vector): (usize, &Vec<f32>)| neighbours::nearest(vector, &distinct, 1, Some(at)).first().map(|near| near.cosine);
    let own: Vec<f64> = distinct.iter().enumerate().filter_map(nearest).map(f64::from).collect();
    let threshold = if own.is_empty() { 1.0 } else { percentile(&own, QUANTILE) };
    let (mut covered, mut kinds): (usize, Vec<(usize, Lacking)>) = (0, Vec::new());
    for (at, (request, vector)) in live.iter().zip(of_live).enumerate() {
        let nearest = neighbours::nearest(vector, samples, 1, None).first().map_or(-1.0, |near| near.cosine);
        // Vectors are sums of rounded numbers: what is the same may be a hair apart.
        if f64::from(nearest) + 1e-6 >= threshold {
            covered += 1;
            continue;
        }
        match kinds.iter_mut().find(|(leader, _)| neighbours::cosine(&of_live[*leader], vector) >= SAME_KIND) {
            Some((_, kind)) => kind.requests += 1,
            None => {
                let example: String = request.text.chars().take(SHOWN).collect();
                kinds.push((at, Lacking { requests: 1, request_id: request.id.clone(), example, nearest: f64::from(nearest) }));
            }
        }
    }
    let mut lacking: Vec<_> = kinds.into_iter().map(|(_, kind)| kind).collect();
    lacking.sort_by_key(|kind| std::cmp::Reverse(kind.requests));
    lacking.truncate(KINDS);
    Coverage { requests: live.len(), covered, threshold, lacking }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_samples_do_not_raise_the_threshold() {
        let cloud = |i: usize| vec![1.0, (i % 6) as f32 * 0.1, 0.0];
        let samples = neighbours::unit((0..60).map(cloud).collect());
        let of_live = neighbours::unit(vec![vec![1.0, 0.25, 0.0]]);
        let found = coverage(&[Live { id: "r".into(), text: "t".into() }], &of_live, &samples);
        assert_eq!((found.covered, found.threshold < 0.9999), (1, true));
    }

    #[test]
    fn what_is_far_from_every_sample_is_lacking_by_its_kind() {
        let cloud = |x: f32, y: f32, i: usize| vec![x, y, (i % 5) as f32 * 0.05];
        let samples = neighbours::unit((0..30).map(|i| cloud(1.0, 0.0, i)).collect());
        let of_live = neighbours::unit(
            (0..10).map(|i| cloud(1.0, 0.0, i)).chain((0..4).map(|i| cloud(0.0, 1.0, i))).chain([vec![0.0, 0.0, -1.0]]).collect(),
        );
        let live: Vec<_> = (0..of_live.len()).map(|i| Live { id: format!("r{i}"), text: format!("text {i}") }).collect();
        let found = coverage(&live, &of_live, &samples);
        assert_eq!((found.requests, found.covered), (15, 10));
        assert_eq!(
            found.lacking.iter().map(|kind| (kind.requests, kind.request_id.as_str())).collect::<Vec<_>>(),
            [(4, "r10"), (1, "r14")]
        );
    }
}
