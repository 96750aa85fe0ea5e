//! Labels that look wrong: confident learning (Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
//! JAIR 70, 2021) on probabilities that the nearest neighbours of a sample give, the sample itself left out.
//!
//! Of it are here the thresholds of each label and the count of the confident joint off its diagonal: every sample there is a suspect. It
//! does not calibrate the joint, does not prune by class or by noise rate, and trains no classifier.

use super::neighbours::Neighbour;
use serde::Serialize;
use std::collections::BTreeMap;

/// Fewest samples of a label for which anything is said.
const FEWEST: usize = 5;

/// Labels that look wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Suspects {
    /// Field of the target; `target` where it is the whole.
    pub field: String,
    /// The suspects, the surest first.
    pub samples: Vec<Suspect>,
}

/// A label that looks wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suspect {
    /// Position of the sample; its id is put beside it.
    #[serde(skip)]
    pub at: usize,
    /// Id.
    pub id: String,
    /// The label that it has.
    pub label: String,
    /// The label that its neighbours have.
    pub likely: String,
    /// Share of the neighbours that have it.
    pub share: f64,
}

/// The suspects among labelled samples; `labels` has none where a sample has none.
pub fn suspects(labels: &[Option<String>], neighbours: &[Vec<Neighbour>]) -> Vec<Suspect> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    labels.iter().flatten().for_each(|label| *counts.entry(label).or_default() += 1);
    let shares: Vec<BTreeMap<&str, f64>> = neighbours.iter().map(|near| shares(labels, near)).collect();
    // A label's threshold: how sure its own samples are of it on average (their equation 2).
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (label, shares) in labels.iter().zip(&shares) {
        let Some(label) = label else { continue };
        *sums.entry(label).or_default() += shares.get(label.as_str()).copied().unwrap_or(0.0);
    }
    let threshold = |label: &str| sums[label] / counts[label] as f64;
    let mut found = Vec::new();
    for (at, (label, shares)) in labels.iter().zip(&shares).enumerate() {
        let Some(label) = label.as_deref().filter(|label| counts[label] >= FEWEST) else { continue };
        let confident = shares.iter().filter(|(other, share)| counts[*other] >= FEWEST && **share >= threshold(other) && **share > 0.0);
        let Some((likely, share)) = confident.max_by(|a, b| a.1.total_cmp(b.1)) else { continue };
        if *likely != label && *share > shares.get(label).copied().unwrap_or(0.0) {
            found.push(Suspect { at, id: String::new(), label: label.to_string(), likely: (*likely).to_string(), share: *share });
        }
    }
    found.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.at.cmp(&b.at)));
    found
}

/// What share of a sample's neighbours has each label; nearer ones count more.
fn shares<'l>(labels: &'l [Option<String>], near: &[Neighbour]) -> BTreeMap<&'l str, f64> {
    let mut shares: BTreeMap<&str, f64> = BTreeMap::new();
    let mut total = 0.0;
    for neighbour in near {
        let Some(label) = &labels[neighbour.at] else { continue };
        let weight = f64::from(neighbour.cosine.max(0.0)) + 1e-9;
        *shares.entry(label).or_default() += weight;
        total += weight;
    }
    shares.values_mut().for_each(|share| *share /= total);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::check::neighbours;

    #[test]
    fn a_swapped_label_among_two_clouds_is_suspected_and_no_other() {
        let at = |i: usize| if i < 20 { vec![1.0, i as f32 * 0.01, 0.0] } else { vec![0.0, i as f32 * 0.01, 1.0] };
        let vectors = neighbours::unit((0..40).map(at).collect());
        let mut labels: Vec<_> = (0..40).map(|i| Some(if i < 20 { "a" } else { "b" }.to_string())).collect();
        let near = neighbours::all(&vectors, 10);
        assert_eq!(suspects(&labels, &near), []);
        labels[7] = Some("b".into());
        labels[30] = None;
        let found = suspects(&labels, &near);
        assert_eq!(found.iter().map(|suspect| (suspect.at, suspect.likely.as_str())).collect::<Vec<_>>(), [(7, "a")]);
    }
}
