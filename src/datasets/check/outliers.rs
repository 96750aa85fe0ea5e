//! Samples that are like no other: the mean distance to the nearest neighbours (Ramaswamy, Rastogi & Shim, "Efficient algorithms for mining
//! outliers from large data sets", 2000), judged by Tukey's outer fence (Exploratory Data Analysis, 1977): three interquartile ranges
//! above the third quartile. Copies of a sample say nothing about how far it is from the others: they are left out.

use super::neighbours::{Neighbour, SAME};
use crate::stats::percentile;
use serde::Serialize;

/// Ranges above the third quartile.
const RANGES: f64 = 3.0;
/// Least distance from the third quartile to the fence: where all are equally far, rounding makes no outlier.
const LEAST: f64 = 0.01;

/// What is far from everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outliers {
    /// Distance from which a sample is one.
    pub fence: f64,
    /// The outliers, the farthest first.
    pub samples: Vec<Outlier>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outlier {
    /// Position of the sample; its id is put beside it.
    #[serde(skip)]
    pub at: usize,
    /// Id.
    pub id: String,
    /// One minus the mean cosine to its neighbours.
    pub distance: f64,
}

/// The outliers among samples, by their neighbours.
pub fn outliers(neighbours: &[Vec<Neighbour>]) -> Outliers {
    let distance = |(at, near): (usize, &Vec<Neighbour>)| {
        let cosines: Vec<f64> = near.iter().filter(|n| n.cosine < SAME).map(|n| f64::from(n.cosine)).collect();
        (!cosines.is_empty()).then(|| (at, 1.0 - cosines.iter().sum::<f64>() / cosines.len() as f64))
    };
    let placed: Vec<(usize, f64)> = neighbours.iter().enumerate().filter_map(distance).collect();
    let distances: Vec<f64> = placed.iter().map(|(_, distance)| *distance).collect();
    if distances.is_empty() {
        return Outliers::default();
    }
    let (q1, q3) = (percentile(&distances, 0.25), percentile(&distances, 0.75));
    let fence = q3 + (RANGES * (q3 - q1)).max(LEAST);
    let far = placed.into_iter().filter(|(_, distance)| *distance > fence);
    let mut samples: Vec<_> = far.map(|(at, distance)| Outlier { at, id: String::new(), distance }).collect();
    samples.sort_by(|a, b| b.distance.total_cmp(&a.distance).then(a.at.cmp(&b.at)));
    Outliers { fence, samples }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::check::neighbours;

    #[test]
    fn copies_make_nothing_an_outlier() {
        let mut vectors: Vec<Vec<f32>> = (0..40).map(|i| vec![1.0, (i % 2) as f32 * 0.1, 0.0]).collect();
        vectors.push(vec![1.0, 0.05, 0.0]);
        let found = outliers(&neighbours::all(&neighbours::unit(vectors), 10));
        assert_eq!(found.samples, []);
    }

    #[test]
    fn what_is_far_from_a_cloud_is_found() {
        let mut vectors: Vec<Vec<f32>> = (0..50).map(|i| vec![1.0, (i % 10) as f32 * 0.05, (i % 7) as f32 * 0.05]).collect();
        vectors[13] = vec![-1.0, 0.2, 0.0];
        let found = outliers(&neighbours::all(&neighbours::unit(vectors), 10));
        assert_eq!(found.samples.iter().map(|outlier| outlier.at).collect::<Vec<_>>(), [13]);
    }
}
