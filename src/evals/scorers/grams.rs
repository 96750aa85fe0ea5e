//! Runs of n words or characters, and what two texts share: what ROUGE, BLEU, GLEU, chrF and fuzzy matches count.

use std::collections::HashMap;

/// How often each run of `n` items occurs.
pub(in crate::evals) fn grams<T: Eq + std::hash::Hash>(items: &[T], n: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for run in items.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// How many runs both have, each as often as the one that has it less often.
pub(in crate::evals) fn shared<T: Eq + std::hash::Hash>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(run, count)| b.get(run).map_or(0, |other| *count.min(other))).sum()
}

/// Length of the longest common subsequence.
pub(in crate::evals) fn common<T: Eq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for item in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if item == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
}
