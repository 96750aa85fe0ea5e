//! Learning-rate schedules: a linear warm-up, then constant, linear or cosine decay to zero (Loshchilov and Hutter 2017, arXiv 1608.03983).

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line.
    Linear,
    /// Falls along half a cosine.
    #[default]
    Cosine,
}

impl Schedule {
    /// Factor on the peak learning rate for `step` (0-based) of `steps`, the first `warmup` of which it rises in.
    pub fn factor(self, step: usize, steps: usize, warmup: usize) -> f64 {
        let (step, warmup_steps) = (step as f64, warmup as f64);
        if step < warmup_steps {
            return (step + 1.0) / (warmup_steps + 1.0);
        }
        let progress = (step - warmup_steps) / (steps as f64 - warmup_steps).max(1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_towards_zero() {
        let factors: Vec<f64> = (0..100).map(|step| Schedule::Cosine.factor(step, 100, 10)).collect();
        assert!(factors[..10].windows(2).all(|w| w[0] < w[1]) && factors[0] > 0.0);
        assert_eq!(factors[10], 1.0);
        assert!(factors[10..].windows(2).all(|w| w[0] > w[1]) && factors[99] < 0.001);
        // Half way down, half a cosine is at one half.
        assert!((Schedule::Cosine.factor(55, 100, 10) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Linear.factor(55, 100, 10), 0.5);
    }
}
