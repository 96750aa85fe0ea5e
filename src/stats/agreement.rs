//! Agreement of two raters, such as a judge and people, and what the disagreement means for a rate that the judge reports.

use super::distributions::Z_975;
use super::intervals::Interval;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Agreement beyond chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kappa {
    /// Number of things that both rated.
    pub n: usize,
    /// Share on which they agree.
    pub agreement: f64,
    /// Share on which they would agree by chance.
    pub expected: f64,
    /// Cohen's kappa: 1 is full agreement, 0 what chance gives.
    pub kappa: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Its 95 % interval, normal, cut at −1 and 1.
    pub ci95: Interval,
}

/// Cohen's kappa of two raters over the same things. None without pairs, and where both gave one and the same label to everything:
/// then chance alone explains all.
///
/// Source: Cohen, "A Coefficient of Agreement for Nominal Scales", Educ. Psychol. Meas. 20 (1960); standard error of Fleiss, Cohen &
/// Everitt, Psychol. Bull. 72 (1969), for kappa other than 0.
pub fn cohen_kappa<L: Ord>(pairs: impl IntoIterator<Item = (L, L)>) -> Option<Kappa> {
    let mut cells = BTreeMap::<(L, L), f64>::new();
    for pair in pairs {
        *cells.entry(pair).or_default() += 1.0;
    }
    let n: f64 = cells.values().sum();
    let (mut rows, mut columns) = (BTreeMap::<&L, f64>::new(), BTreeMap::<&L, f64>::new());
    for ((row, column), count) in &cells {
        *rows.entry(row).or_default() += count / n;
        *columns.entry(column).or_default() += count / n;
    }
    let share = |shares: &BTreeMap<&L, f64>, label: &L| shares.get(label).copied().unwrap_or(0.0);
    let agreement: f64 = cells.iter().filter(|((row, column), _)| row == column).map(|(_, count)| count / n).sum();
    let expected: f64 = rows.iter().map(|(label, of_row)| of_row * share(&columns, label)).sum();
    if n == 0.0 || expected >= 1.0 {
        return None;
    }
    let kappa = (agreement - expected) / (1.0 - expected);
    let off = 1.0 - kappa;
    // The three terms A, B and C of the variance.
    let (mut a, mut b) = (0.0, 0.0);
    for ((row, column), count) in &cells {
        let p = count / n;
        if row == column {
            a += p * (1.0 - (share(&rows, row) + share(&columns, row)) * off).powi(2);
        } else {
            b += p * (share(&columns, row) + share(&rows, column)).powi(2);
        }
    }
    let c = (kappa - expected * off).powi(2);
    let variance = (a + off * off * b - c) / ((1.0 - expected).powi(2) * n);
    let standard_error = variance.max(0.0).sqrt();
    let reach = Z_975 * standard_error;
    let ci95 = [(kappa - reach).max(-1.0), (kappa + reach).min(1.0)];
    Some(Kappa { n: n as usize, agreement, expected, kappa, standard_error, ci95 })
}

/// How a judge did on things whose true label is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validation {
    /// Good, and said to be good.
    pub true_positives: usize,
    /// Good, and said to be bad.
    pub false_negatives: usize,
    /// Bad, and said to be bad.
    pub true_negatives: usize,
    /// Bad, and said to be good.
    pub false_positives: usize,
}

impl Validation {
    /// Share of the good that are said to be good; none without good ones.
    pub fn sensitivity(&self) -> Option<f64> {
        share(self.true_positives, self.false_negatives)
    }

    /// Share of the bad that are said to be bad; none without bad ones.
    pub fn specificity(&self) -> Option<f64> {
        share(self.true_negatives, self.false_positives)
    }
}

fn share(part: usize, rest: usize) -> Option<f64> {
    (part + rest > 0).then(|| part as f64 / (part + rest) as f64)
}

/// A rate that is corrected for what its judge gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Corrected {
    /// The rate as the judge reports it.
    pub observed: f64,
    /// The corrected rate, cut at 0 and 1.
    pub rate: f64,
    /// Its standard error, from the interval.
    pub standard_error: f64,
    /// 95 % interval; it counts what is not known about the judge, too.
    pub ci95: Interval,
    /// The judge's sensitivity.
    pub sensitivity: f64,
    /// The judge's specificity.
    pub specificity: f64,
}

/// The rate of good things when a judge called `positives` of `n` good. None where the judge is no better than chance, or where the
/// validation has no good or no bad ones.
///
/// Source: Rogan & Gladen, "Estimating Prevalence from the Results of a Screening Test", Am. J. Epidemiol. 107 (1978); interval of Lang
/// & Reiczigel, Prev. Vet. Med. 113 (2014), which holds for few labels as well.
pub fn corrected_rate(positives: usize, n: usize, validation: &Validation) -> Option<Corrected> {
    let (sensitivity, specificity) = (validation.sensitivity()?, validation.specificity()?);
    if n == 0 || sensitivity + specificity <= 1.0 {
        return None;
    }
    let observed = positives as f64 / n as f64;
    let rate = (observed + specificity - 1.0) / (sensitivity + specificity - 1.0);
    let (middle, standard_error) = lang_reiczigel(positives, n, validation);
    let reach = Z_975 * standard_error;
    let ci95 = [(middle - reach).clamp(0.0, 1.0), (middle + reach).clamp(0.0, 1.0)];
    Some(Corrected { observed, rate: rate.clamp(0.0, 1.0), standard_error, ci95, sensitivity, specificity })
}

/// Middle of the interval, and its standard error.
fn lang_reiczigel(positives: usize, n: usize, validation: &Validation) -> (f64, f64) {
    let z = Z_975;
    let trials = n as f64 + z * z;
    let p = (positives as f64 + z * z / 2.0) / trials;
    // One more success and one more failure for the judge.
    let of = |part: usize, rest: usize| ((part + 1) as f64 / (part + rest + 2) as f64, (part + rest + 2) as f64);
    let (sensitivity, goods) = of(validation.true_positives, validation.false_negatives);
    let (specificity, bads) = of(validation.true_negatives, validation.false_positives);
    let youden = sensitivity + specificity - 1.0;
    if youden <= 0.0 {
        // With so few labels nothing is known: the interval is everything.
        return (0.5, 1.0);
    }
    let rate = (p + specificity - 1.0) / youden;
    let of_goods = sensitivity * (1.0 - sensitivity) / goods;
    let of_bads = specificity * (1.0 - specificity) / bads;
    let shift = 2.0 * z * z * (rate * of_goods - (1.0 - rate) * of_bads);
    let variance = p * (1.0 - p) / trials + rate * rate * of_goods + (1.0 - rate).powi(2) * of_bads;
    (rate + shift, variance.sqrt() / youden)
}

#[cfg(test)]
mod tests {
    use super::super::recorded::{self, close, count, number};
    use super::*;

    #[test]
    fn kappa_and_its_error_are_those_of_statsmodels() {
        for case in recorded::of("cohens_kappa") {
            let table = case["table"].as_array().expect("a table");
            let cells = table.iter().enumerate().flat_map(|(i, row)| {
                let row = row.as_array().expect("a row").iter().enumerate();
                row.flat_map(move |(j, cell)| std::iter::repeat_n((i, j), count(cell))).collect::<Vec<_>>()
            });
            let found = cohen_kappa(cells).expect("a kappa");
            close(found.kappa, number(&case["kappa"]), 1e-12);
            close(found.standard_error, number(&case["standard_error"]), 1e-12);
            close(found.ci95[0], number(&case["low"]).max(-1.0), 1e-12);
            close(found.ci95[1], number(&case["high"]).min(1.0), 1e-12);
        }
    }

    #[test]
    fn kappa_says_nothing_where_chance_explains_all() {
        assert_eq!(cohen_kappa(Vec::<(u8, u8)>::new()), None);
        assert_eq!(cohen_kappa([(1, 1), (1, 1)]), None);
        let full = cohen_kappa([(0, 0), (1, 1), (1, 1)]).expect("a kappa");
        assert_eq!((full.kappa, full.agreement), (1.0, 1.0));
        // One rater without variation: agreement is what chance gives.
        close(cohen_kappa([(0, 0), (1, 0), (0, 0), (1, 0)]).expect("a kappa").kappa, 0.0, 1e-15);
    }

    #[test]
    fn a_rate_is_corrected_as_rogan_and_gladen_say() {
        for case in recorded::of("corrected_rate") {
            let cells = case["validation"].as_array().expect("four counts");
            let validation = Validation {
                true_positives: count(&cells[0]),
                false_negatives: count(&cells[1]),
                true_negatives: count(&cells[2]),
                false_positives: count(&cells[3]),
            };
            let found = corrected_rate(count(&case["positives"]), count(&case["n"]), &validation).expect("a rate");
            close(found.rate, number(&case["rate"]), 1e-12);
            close(found.ci95[0], number(&case["low"]), 1e-9);
            close(found.ci95[1], number(&case["high"]), 1e-9);
        }
        // Sensitivity 0.9, specificity 0.8, 45 % observed: (0.45 + 0.8 − 1) / 0.7.
        let validation = Validation { true_positives: 90, false_negatives: 10, true_negatives: 80, false_positives: 20 };
        let found = corrected_rate(45, 100, &validation).expect("a rate");
        close(found.rate, 0.25 / 0.7, 1e-12);
        assert!(found.ci95[0] < found.rate && found.rate < found.ci95[1]);
        // Below what false alarms alone would give: nothing is good.
        assert_eq!(corrected_rate(5, 100, &validation).map(|found| found.rate), Some(0.0));
    }

    #[test]
    fn a_judge_without_worth_corrects_nothing() {
        let coin = Validation { true_positives: 5, false_negatives: 5, true_negatives: 5, false_positives: 5 };
        assert_eq!(corrected_rate(5, 10, &coin), None);
        let one_sided = Validation { true_positives: 5, ..Validation::default() };
        assert_eq!(corrected_rate(5, 10, &one_sided), None);
    }
}
