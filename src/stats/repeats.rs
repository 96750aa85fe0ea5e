//! Several answers to one question: the chance that one of `k` is right, and that all of `k` are.

/// Chance that at least one of `k` answers is right, estimated without bias from `n` answers of which `correct` are. None where `k` is 0
/// or more than `n`.
///
/// Source: Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), equation 1: 1 − C(n − c, k)/C(n, k).
pub fn pass_at_k(n: usize, correct: usize, k: usize) -> Option<f64> {
    let wrong = n.checked_sub(correct)?;
    Some(1.0 - all_of(n, wrong, k)?)
}

/// Chance that all of `k` answers are right (pass^k), estimated without bias from `n` answers of which `correct` are. None where `k` is
/// 0 or more than `n`.
///
/// Source: Yao et al., "τ-bench" (arXiv 2406.12045), section 4: C(c, k)/C(n, k).
pub fn pass_all_k(n: usize, correct: usize, k: usize) -> Option<f64> {
    (correct <= n).then_some(())?;
    all_of(n, correct, k)
}

/// C(m, k)/C(n, k), factor by factor: no large numbers come up.
fn all_of(n: usize, m: usize, k: usize) -> Option<f64> {
    if k == 0 || k > n {
        return None;
    }
    Some((0..k).map(|i| m.saturating_sub(i) as f64 / (n - i) as f64).product())
}

#[cfg(test)]
mod tests {
    use super::super::recorded::{self, close, count, number};
    use super::*;

    #[test]
    fn chances_are_the_ratios_of_binomials() {
        for case in recorded::of("pass_k") {
            let (n, correct, k) = (count(&case["n"]), count(&case["correct"]), count(&case["k"]));
            close(pass_at_k(n, correct, k).expect("a chance"), number(&case["any"]), 1e-12);
            close(pass_all_k(n, correct, k).expect("a chance"), number(&case["all"]), 1e-12);
        }
    }

    #[test]
    fn what_cannot_be_estimated_is_none() {
        assert_eq!((pass_at_k(5, 2, 0), pass_at_k(5, 2, 6), pass_at_k(5, 6, 1), pass_all_k(5, 6, 1)), (None, None, None, None));
        assert_eq!((pass_at_k(5, 5, 3), pass_all_k(5, 2, 3), pass_at_k(1, 1, 1)), (Some(1.0), Some(0.0), Some(1.0)));
    }
}
