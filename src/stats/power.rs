//! How large a difference can be seen with so many cases, and how many cases it takes to see a given one.

use super::distributions::normal_quantile;
use serde::{Deserialize, Serialize};

/// How sure a comparison shall be. The default is the usual: α = 5 %, two-sided, and 80 % power.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// Chance of seeing a difference where there is none, two-sided.
    pub alpha: f64,
    /// Chance of seeing the difference that there is.
    pub power: f64,
}

impl Default for Power {
    fn default() -> Self {
        Power { alpha: 0.05, power: 0.8 }
    }
}

impl Power {
    /// Smallest difference that is seen when the difference has this standard error (paired or not).
    ///
    /// Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), section 5: δ = (z₁₋α⸝₂ + z_power)·SE.
    pub fn detectable(&self, standard_error: f64) -> f64 {
        self.reach() * standard_error
    }

    /// Cases that it takes to see `difference` when the paired differences have this standard deviation. None for a difference of 0.
    ///
    /// Source: as [`Power::detectable`], solved for n, with SE = σ/√n.
    pub fn cases_paired(&self, difference: f64, deviation: f64) -> Option<u64> {
        self.cases(difference, deviation * deviation)
    }

    /// Cases of each side that it takes to see `difference` between two sides that do not share their cases. None for a difference of 0.
    ///
    /// Source: as [`Power::detectable`], with SE² = (σ₁² + σ₂²)/n.
    pub fn cases_unpaired(&self, difference: f64, deviations: [f64; 2]) -> Option<u64> {
        self.cases(difference, deviations[0].powi(2) + deviations[1].powi(2))
    }

    fn cases(&self, difference: f64, variance: f64) -> Option<u64> {
        let cases = variance * (self.reach() / difference).powi(2);
        // A cast takes what is beyond the range to its end.
        cases.is_finite().then(|| cases.ceil().max(1.0) as u64)
    }

    fn reach(&self) -> f64 {
        normal_quantile(1.0 - self.alpha / 2.0) + normal_quantile(self.power)
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorded::{self, close, number};
    use super::*;

    #[test]
    fn numbers_of_cases_are_those_of_statsmodels() {
        for case in recorded::of("power") {
            let wanted = Power { alpha: number(&case["alpha"]), power: number(&case["power"]) };
            let (difference, deviation) = (number(&case["difference"]), number(&case["deviation"]));
            let paired = wanted.cases_paired(difference, deviation).expect("a number");
            close(paired as f64, number(&case["paired"]).ceil(), 0.0);
            let unpaired = wanted.cases_unpaired(difference, [deviation, deviation]).expect("a number");
            close(unpaired as f64, number(&case["unpaired"]).ceil(), 0.0);
            // With so many cases the difference is just seen.
            close(wanted.detectable(deviation / number(&case["paired"]).sqrt()), difference, 1e-9);
        }
    }

    #[test]
    fn no_difference_takes_no_number_of_cases() {
        let power = Power::default();
        assert_eq!((power.cases_paired(0.0, 0.5), power.cases_paired(0.1, f64::NAN)), (None, None));
        assert_eq!(power.cases_paired(5.0, 0.1), Some(1));
        // (1.959964 + 0.841621)² = 7.8489: the constant of textbooks.
        close(power.detectable(1.0).powi(2), 7.8489, 5e-5);
    }
}
