//! Several tests at once: the more are made, the more look good by luck.

/// P-values adjusted so that one below α is wrong with a chance of at most α over all of them; in the order given, at most 1.
///
/// Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6 (1979); adjusted values as in Wright,
/// Biometrics 48 (1992).
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let (mut adjusted, mut largest) = (vec![0.0; p_values.len()], 0.0f64);
    for (rank, place) in order.into_iter().enumerate() {
        // A larger p-value may not end up below a smaller one.
        largest = largest.max(p_values[place] * (p_values.len() - rank) as f64);
        adjusted[place] = largest.min(1.0);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::super::recorded::{self, close, numbers};
    use super::*;

    #[test]
    fn adjusted_values_are_those_of_statsmodels() {
        for case in recorded::of("holm") {
            let (found, expected) = (holm(&numbers(&case["p"])), numbers(&case["adjusted"]));
            assert_eq!(found.len(), expected.len());
            found.iter().zip(expected).for_each(|(found, expected)| close(*found, expected, 1e-14));
        }
        assert!(holm(&[]).is_empty());
        assert_eq!(holm(&[0.02]), [0.02]);
    }
}
