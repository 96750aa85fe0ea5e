//! How many samples it takes to see a given difference, from what a run has measured: the spread of its samples, how far two targets go
//! together on them, and what groups of samples cost.

use super::compare::{Pairs, Side, values};
use super::estimate::{paired_means, summary};
use crate::stats::Power;
use serde::Serialize;

/// Samples that it takes, of two targets that were measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Needed {
    /// What is compared with.
    pub a: String,
    /// What is compared; none where one target was measured, and another one like it is assumed.
    pub b: Option<String>,
    /// Metric.
    pub metric: String,
    /// Samples that the numbers are from.
    pub n: usize,
    /// Standard deviation of a sample's value under each (`b`'s is `a`'s where it is assumed): of what repeats average to, and enlarged by
    /// what groups cost.
    pub deviations: [f64; 2],
    /// How far the two go together over the samples, from -1 to 1; none where one of them is the same everywhere.
    pub correlation: Option<f64>,
    /// Standard deviation of the differences.
    pub deviation: f64,
    /// Samples that both are asked, to see the difference; none where the samples show no spread to learn from.
    pub paired: Option<u64>,
    /// Samples of each, where they are not asked the same ones.
    pub unpaired: Option<u64>,
    /// The smallest difference that as many samples as were measured show.
    pub detectable: Option<f64>,
}

/// What is to be seen, and how surely.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// True difference, in the unit of the metric.
    pub difference: f64,
    /// α and power.
    pub power: Power,
    /// Correlation that is assumed where one target was measured.
    pub correlation: f64,
}

/// Samples that it takes for two targets that were measured on the same samples.
///
/// Source: Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), sections 4.2 and 5: Var(d) = σ_a² + σ_b² − 2ρσ_aσ_b, and
/// n = Var(d)·((z₁₋α⸝₂ + z_power)/δ)². A standard error that is clustered stands for σ²·deff (Kish, "Survey Sampling", 1965, section 8.2):
/// more samples are expected to come in groups of the same size.
pub fn of_pair(metric: &str, a: Side<'_>, b: Side<'_>, wanted: &Wanted) -> Needed {
    let values = values(metric, a.column, b.column, &Pairs::between(a.columns, b.columns));
    let groups = values.groups(a.columns, b.columns);
    let paired = paired_means(&values, groups.as_deref());
    let n = paired.n;
    let spread = |values: &[f64]| summary(values, groups.as_deref()).standard_error * (n as f64).sqrt();
    let (deviations, deviation) = ([spread(&values.a), spread(&values.b)], paired.standard_error * (n as f64).sqrt());
    Needed {
        a: a.name.into(),
        b: Some(b.name.into()),
        metric: metric.into(),
        n,
        deviations,
        correlation: correlation(&values.a, &values.b),
        deviation,
        paired: cases(wanted.power.cases_paired(wanted.difference, deviation), deviation),
        unpaired: cases(wanted.power.cases_unpaired(wanted.difference, deviations), deviations[0].max(deviations[1])),
        detectable: (n > 1 && deviation > 0.0).then(|| wanted.power.detectable(paired.standard_error)),
    }
}

/// The same for a target and another one like it: as much spread, and the correlation that is assumed.
pub fn of_one(metric: &str, a: Side<'_>, wanted: &Wanted) -> Needed {
    let (values, groups) = a.column.means(metric, &a.columns.groups);
    let found = summary(&values, a.columns.is_grouped.then_some(groups.as_slice()));
    let own = found.standard_error * (found.n as f64).sqrt();
    let deviation = own * (2.0 * (1.0 - wanted.correlation)).sqrt();
    Needed {
        a: a.name.into(),
        b: None,
        metric: metric.into(),
        n: found.n,
        deviations: [own, own],
        correlation: Some(wanted.correlation),
        deviation,
        paired: cases(wanted.power.cases_paired(wanted.difference, deviation), deviation),
        unpaired: cases(wanted.power.cases_unpaired(wanted.difference, [own, own]), own),
        detectable: (found.n > 1 && deviation > 0.0).then(|| wanted.power.detectable(deviation / (found.n as f64).sqrt())),
    }
}

/// None where there is no spread: that no sample differed does not mean that none would.
fn cases(cases: Option<u64>, deviation: f64) -> Option<u64> {
    cases.filter(|_| deviation > 0.0)
}

/// Pearson's correlation.
fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let product = |x: &[f64], mean_x: f64, y: &[f64], mean_y: f64| x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>();
    let spread = (product(a, mean_a, a, mean_a) * product(b, mean_b, b, mean_b)).sqrt();
    (spread > 0.0).then(|| product(a, mean_a, b, mean_b) / spread)
}

#[cfg(test)]
mod tests {
    use super::super::columns::Columns;
    use super::*;
    use crate::store::runs::CaseRecord;
    use serde_json::json;

    fn case(target: &str, position: usize, value: f64, group: Option<usize>) -> CaseRecord {
        CaseRecord {
            target: target.into(),
            sample: format!("s{position}"),
            position,
            scores: json!({"m": value}),
            group: group.map(|group| format!("g{group}")),
            ..CaseRecord::default()
        }
    }

    const WANTED: Wanted = Wanted { difference: 0.1, power: Power { alpha: 0.05, power: 0.8 }, correlation: 0.5 };

    #[test]
    fn the_numbers_are_those_of_the_closed_form() {
        // Of 100 samples both have 60 right, a alone 15, b alone 5, neither 20: d is −1, 1 or 0.
        let values = |at: usize| match at {
            0..60 => (1.0, 1.0),
            60..75 => (1.0, 0.0),
            75..80 => (0.0, 1.0),
            _ => (0.0, 0.0),
        };
        let cases: Vec<_> = (0..100).flat_map(|at| [case("a", at, values(at).0, None), case("b", at, values(at).1, None)]).collect();
        let columns = Columns::of(&cases);
        let side = |name: &'static str| Side { name, columns: &columns, column: &columns.targets[name] };
        let found = of_pair("m", side("a"), side("b"), &WANTED);
        // Var(d) = (20 − 100·0.1²)/99; (z₀.₉₇₅ + z₀.₈)² = 7.848880 (Abramowitz & Stegun, tables 26.1 and 26.5).
        let variance: f64 = 19.0 / 99.0;
        assert_eq!(found.paired, Some((variance * 7.848_880 / 0.01).ceil() as u64));
        // σ² of shares of 0.75 and 0.65, times 100/99.
        let unpaired: f64 = (0.1875 + 0.2275) * 100.0 / 99.0;
        assert_eq!(found.unpaired, Some((unpaired * 7.848_880 / 0.01).ceil() as u64));
        // cov = 0.60 − 0.75·0.65.
        assert!((found.correlation.expect("a number") - 0.1125 / (0.1875f64 * 0.2275).sqrt()).abs() < 1e-12);
        assert!((found.detectable.expect("a number") - (7.848_880 * variance / 100.0).sqrt()).abs() < 1e-6);
        // One target and another one like it, ρ = ½: Var(d) = σ².
        let one = of_one("m", side("a"), &WANTED);
        assert_eq!((one.b, one.paired), (None, Some((0.1875 * 100.0 / 99.0 * 7.848_880 / 0.01f64).ceil() as u64)));
    }

    #[test]
    fn groups_cost_samples_and_no_spread_is_no_knowledge() {
        let of = |grouped: bool| {
            let value = |at: usize| f64::from(u8::from((at / 5).is_multiple_of(2)));
            let cases: Vec<_> = (0..40)
                .flat_map(|at| [case("a", at, 0.0, grouped.then_some(at / 5)), case("b", at, value(at), grouped.then_some(at / 5))])
                .collect();
            let columns = Columns::of(&cases);
            let side = |name: &'static str| Side { name, columns: &columns, column: &columns.targets[name] };
            let same = of_pair("m", side("a"), side("a"), &WANTED);
            assert_eq!((same.paired, same.detectable), (None, None));
            of_pair("m", side("a"), side("b"), &WANTED).paired.expect("a number")
        };
        assert!(of(true) > 3 * of(false), "groups of five equal differences: {} {}", of(true), of(false));
    }
}
