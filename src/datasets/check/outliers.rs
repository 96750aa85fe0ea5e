//! Samples that are like no other: the mean distance to the nearest neighbours (Ramaswamy, Rastogi & Shim, "Efficient algorithms for mining
//! outliers from large data sets", 2000), judged by Tukey's outer fence (Exploratory Data Analysis, 1977): three interquartile ranges
//! above the third quartile.

use super::neighbours::Neighbour;
use crate::stats::percentile;
use serde::Serialize;

/// Ranges above the third quartile.
const RANGES: f64 = 3.0;

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
    let distance = |near: &Vec<Neighbour>| 1.0 - near.iter().map(|n| f64::from(n.cosine)).sum::<f64>() / near.len().max(1) as f64;
    let distances: Vec<f64> = neighbours.iter().map(distance).collect();
    if distances.is_empty() {
        return Outliers::default();
    }
    let (q1, q3) = (percentile(&distances, 0.25), percentile(&distances, 0.75));
    let fence = q3 + RANGES * (q3 - q1);
    let far = distances.iter().enumerate().filter(|(_, distance)| **distance > fence);
    let mut samples: Vec<_> = far.map(|(at, distance)| Outlier { at, id: String::new(), distance: *distance }).collect();
    samples.sort_by(|a, b| b.distance.total_cmp(&a.distance).then(a.at.cmp(&b.at)));
    Outliers { fence, samples }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::check::neighbours;

    #[test]
    fn what_is_far_from_a_cloud_is_found() {
        let mut vectors: Vec<Vec<f32>> = (0..50).map(|i| vec![1.0, (i % 10) as f32 * 0.05, (i % 7) as f32 * 0.05]).collect();
        vectors[13] = vec![-1.0, 0.2, 0.0];
        let found = outliers(&neighbours::all(&neighbours::unit(vectors), 10));
        assert_eq!(found.samples.iter().map(|outlier| outlier.at).collect::<Vec<_>>(), [13]);
    }
}
