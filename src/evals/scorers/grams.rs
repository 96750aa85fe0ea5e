//! Runs of n words or characters, and how many two texts share: what ROUGE, BLEU and chrF count.

use std::collections::HashMap;

/// How often each run of `n` items occurs.
pub(super) fn grams<T: Eq + std::hash::Hash>(items: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for run in items.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// How many runs both have, each as often as the one that has it less often.
pub(super) fn shared<T: Eq + std::hash::Hash>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(run, count)| b.get(run).map_or(0, |other| *count.min(other))).sum()
}
