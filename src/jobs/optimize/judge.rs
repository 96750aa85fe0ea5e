//! Whether the best candidate is better than the current prompt beyond chance. Pure.
//!
//! Of several candidates the best one looks good by luck alone, the more the more were tried. So its interval is that of 95 % over all
//! comparisons (Bonferroni), and the paired test must say so too.

use super::Standing;
use super::report::{Optimized, Tried};

/// Chance of keeping a candidate that is no better, over all of them.
const ALPHA: f64 = 0.05;
/// Fewer pairs prove nothing, whatever the formulas say.
const MIN_PAIRS: usize = 6;

/// The place of the highest mean, the first of equal ones.
pub(super) fn best(standings: &[Standing]) -> usize {
    let mut best = 0;
    for (at, standing) in standings.iter().enumerate() {
        if standing.measured.mean > standings[best].measured.mean {
            best = at;
        }
    }
    best
}

/// Writes down how each candidate compares with the current prompt, which stands first; the place of the best one, if it is better.
pub(super) fn decide(standings: &[Standing], metric: &str, report: &mut Optimized) -> Option<usize> {
    let (current, candidates) = standings.split_first()?;
    let compared = candidates.len();
    report.compared = compared;
    report.candidates.clear();
    report.level = level(compared);
    for standing in candidates {
        let names = (current.candidate.name.as_str(), standing.candidate.name.as_str());
        let difference = current.measured.difference(metric, names, &standing.measured);
        let interval = difference.paired.interval(report.level);
        let is_better = is_better(&difference.paired, interval, compared);
        report.candidates.push(Tried {
            difference: Some(difference),
            interval: Some(interval),
            is_better,
            ..Tried::of(&standing.candidate, &standing.measured)
        });
    }
    let best = best(standings);
    let is_kept = best > 0 && report.candidates[best - 1].is_better;
    report.best = (best > 0).then(|| standings[best].candidate.name.clone());
    is_kept.then_some(best)
}

fn level(compared: usize) -> f64 {
    1.0 - ALPHA / compared.max(1) as f64
}

fn is_better(paired: &crate::stats::Paired, interval: [f64; 2], compared: usize) -> bool {
    paired.n >= MIN_PAIRS && interval[0] > 0.0 && paired.p * (compared as f64) < ALPHA
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::paired;

    /// Whether so many wins over so many samples count, among so many candidates.
    fn counts(wins: usize, losses: usize, n: usize, compared: usize) -> bool {
        let a: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i < losses))).collect();
        let b: Vec<f64> = (0..n).map(|i| f64::from(u8::from((losses..losses + wins).contains(&i)))).collect();
        let found = paired(&a, &b);
        is_better(&found, found.interval(level(compared)), compared)
    }

    #[test]
    fn the_more_are_tried_the_more_it_takes() {
        // 6 of 6 discordant: p = 2/2⁶ = 0.031.
        assert!(counts(6, 0, 40, 1) && !counts(6, 0, 40, 2));
        // 9 of 9: p = 2/2⁹ = 0.0039, times 8 = 0.031, times 16 = 0.0625.
        assert!(counts(9, 0, 40, 8) && !counts(9, 0, 40, 16));
        assert!(!counts(6, 3, 40, 1), "noise");
        assert!(!counts(3, 0, 3, 1), "too few");
        let twice = paired(&[0.1, 0.2, 0.3], &[0.6, 0.7, 0.8]);
        assert!(!is_better(&twice, twice.interval(0.95), 1), "three pairs without spread");
    }
}
