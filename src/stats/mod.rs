//! Statistics: pure functions that evaluations, gates and monitoring share. Each says where its formula comes from. Their tests compare
//! them with closed forms and with numbers that SciPy, statsmodels and scikit-learn gave (`tests/fixtures/stats.py` recorded them).

pub mod agreement;
pub mod clusters;
pub mod distributions;
pub mod intervals;
pub mod multiple;
pub mod paired;
pub mod plot;
pub mod power;
pub mod repeats;
pub mod resample;
pub mod tango;
pub mod unpaired;

pub use agreement::{Corrected, Kappa, Validation, cohen_kappa, corrected_rate};
pub use clusters::{Clustered, clustered, clustered_pairs, clustered_shares};
pub use intervals::{Interval, Summary, percentile, summarise, t_interval, wilson};
pub use multiple::holm;
pub use paired::{Paired, mcnemar_exact, paired};
pub use power::Power;
pub use repeats::{pass_all_k, pass_at_k};
pub use resample::{Bootstrap, bootstrap_groups, jackknife_error};
pub use tango::tango;
pub use unpaired::{Unpaired, unpaired};

#[cfg(test)]
mod recorded {
    //! Numbers of the reference implementations.

    use serde_json::Value;

    /// What was recorded for a function.
    pub(super) fn of(function: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../tests/fixtures/stats.json")).expect("the fixture is JSON");
        all[function].as_array().unwrap_or_else(|| panic!("{function} was recorded")).clone()
    }

    pub(super) fn number(value: &Value) -> f64 {
        value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
    }

    pub(super) fn numbers(value: &Value) -> Vec<f64> {
        value.as_array().unwrap_or_else(|| panic!("{value} is a list")).iter().map(number).collect()
    }

    pub(super) fn count(value: &Value) -> usize {
        usize::try_from(value.as_u64().unwrap_or_else(|| panic!("{value} is a count"))).expect("a small count")
    }

    pub(super) fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }
}
