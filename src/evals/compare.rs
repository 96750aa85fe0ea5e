//! The paired difference between two targets over the samples that both answered, and the samples that changed.

use super::columns::{Column, Columns};
use super::estimate::{self, paired_means};
use crate::stats::{Paired, unpaired};
use crate::store::runs::CaseRecord;
use serde::{Deserialize, Serialize};

/// `b` minus `a` in one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Metric.
    pub metric: String,
    /// What is compared with.
    pub a: String,
    /// What is compared.
    pub b: String,
    /// Numbers.
    #[serde(flatten)]
    pub paired: Paired,
    /// What the standard error would be if the two had been asked about different samples: what pairing is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpaired_standard_error: Option<f64>,
    /// Whether less of the metric is better (milliseconds, dollars): then a win is a loss.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub less_is_better: bool,
    /// The p-value after Holm's correction, where several differences are told together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_holm: Option<f64>,
    /// Smallest true difference that so many pairs show in four of five runs (power 80 %, two-sided 5 %).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable: Option<f64>,
    /// Pairs that it takes to show a difference as large as this one in four of five runs; none for no difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<usize>,
}

/// A sample that changed, for people who want to look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// Sample.
    pub sample: String,
    /// Value under `a`.
    pub a: f64,
    /// Value under `b`.
    pub b: f64,
}

/// What changed between two targets in one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// What is compared with: a target, or a run.
    pub against: String,
    /// What is compared.
    pub target: String,
    /// Metric.
    pub metric: String,
    /// Samples that got worse.
    pub worse: usize,
    /// Samples that got better.
    pub better: usize,
    /// The first of them, the worse ones before the better ones.
    pub samples: Vec<Changed>,
}

/// Which samples of two runs are the same: places in the one and in the other.
pub struct Pairs(Vec<(usize, usize)>);

impl Pairs {
    /// Every sample of a run with itself.
    pub fn same(columns: &Columns) -> Self {
        Pairs((0..columns.samples.len()).map(|at| (at, at)).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The samples of two runs with the same id, in the order of the first.
    pub fn between(a: &Columns, b: &Columns) -> Self {
        let theirs = b.positions();
        let named = a.samples.iter().map(AsRef::as_ref).enumerate().filter(|(_, id): &(usize, &str)| !id.is_empty());
        Pairs(named.filter_map(|(at, id)| theirs.get(id).map(|other| (at, *other))).collect())
    }
}

/// Values of the samples that both have, and where these stand in the first.
#[derive(Debug, Default)]
pub struct PairedValues {
    /// Under `a`.
    pub a: Vec<f64>,
    /// Under `b`.
    pub b: Vec<f64>,
    /// Places in `a`.
    pub places: Vec<usize>,
    /// Places in `b`.
    pub others: Vec<usize>,
}

impl PairedValues {
    /// The group of each pair: by the first run, or by the second where only that has groups; none where neither has.
    pub fn groups(&self, a: &Columns, b: &Columns) -> Option<Vec<u32>> {
        let of = |columns: &Columns, places: &[usize]| places.iter().map(|at| columns.groups.get(*at).copied().unwrap_or(0)).collect();
        match (a.is_grouped, b.is_grouped) {
            (true, _) => Some(of(a, &self.places)),
            (false, true) => Some(of(b, &self.others)),
            (false, false) => None,
        }
    }
}

/// The values of a metric under both, over the samples that both have an answer for.
pub fn values(metric: &str, a: &Column, b: &Column, pairs: &Pairs) -> PairedValues {
    let mut values = PairedValues::default();
    for (left, right) in &pairs.0 {
        if let Some((of_a, of_b)) = a.mean(metric, *left).zip(b.mean(metric, *right)) {
            values.a.push(of_a);
            values.b.push(of_b);
            values.places.push(*left);
            values.others.push(*right);
        }
    }
    values
}

/// A target, as comparisons see it.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// What it is called.
    pub name: &'a str,
    /// The run it is of.
    pub columns: &'a Columns,
    /// Its cases.
    pub column: &'a Column,
}

/// Compares `b` with `a` in a metric.
pub fn compared(metric: &str, a: Side<'_>, b: Side<'_>, pairs: &Pairs) -> Difference {
    let values = values(metric, a.column, b.column, pairs);
    let paired = paired_means(&values, values.groups(a.columns, b.columns).as_deref());
    let (detectable, needed) = estimate::power(&paired);
    Difference {
        metric: metric.into(),
        a: a.name.into(),
        b: b.name.into(),
        unpaired_standard_error: (paired.n > 1).then(|| unpaired(&values.a, &values.b).standard_error),
        paired,
        less_is_better: false,
        p_holm: None,
        detectable,
        needed,
    }
}

/// The samples that changed in a metric, the worse ones first; at most `most` of them are named.
pub fn changes(metric: &str, a: Side<'_>, b: Side<'_>, (pairs, most): (&Pairs, usize)) -> Changes {
    let values = values(metric, a.column, b.column, pairs);
    let each = values.a.iter().zip(&values.b).zip(&values.places);
    let moved: Vec<_> = each.filter(|((a, b), _)| a != b).map(|((a, b), at)| (*b - *a, *at, *a, *b)).collect();
    let worse = moved.iter().filter(|(delta, ..)| *delta < 0.0).count();
    let better = moved.len() - worse;
    let mut named = moved;
    named.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
    let samples =
        named.into_iter().take(most).map(|(_, at, of_a, of_b)| Changed { sample: a.columns.samples[at].to_string(), a: of_a, b: of_b });
    Changes { against: a.name.into(), target: b.name.into(), metric: metric.into(), worse, better, samples: samples.collect() }
}

impl Changes {
    /// The same of a metric of which less is better.
    #[must_use]
    pub fn turned(mut self) -> Self {
        std::mem::swap(&mut self.worse, &mut self.better);
        self.samples.reverse();
        self
    }
}

/// Corrects the p-values of differences that are told together.
pub fn correct(differences: &mut [Difference]) {
    if differences.len() < 2 {
        return;
    }
    let raw: Vec<f64> = differences.iter().map(|one| one.paired.p).collect();
    for (one, p) in differences.iter_mut().zip(estimate::corrected(&raw)) {
        one.p_holm = Some(p);
    }
}

/// Compares the cases of `b` with those of `a` in a metric; samples that one of them has no answer for are left out.
pub fn difference(metric: &str, a: (&str, &[&CaseRecord]), b: (&str, &[&CaseRecord])) -> Difference {
    let (left, right) = (Columns::of(a.1.iter().copied()), Columns::of(b.1.iter().copied()));
    let nothing = Column::default();
    let column = |columns: &Columns, cases: &[&CaseRecord]| {
        cases.first().map(|case| case.target.clone()).filter(|name| columns.targets.contains_key(name))
    };
    let (of_a, of_b) = (column(&left, a.1), column(&right, b.1));
    let of_a = of_a.and_then(|name| left.targets.get(&name)).unwrap_or(&nothing);
    let of_b = of_b.and_then(|name| right.targets.get(&name)).unwrap_or(&nothing);
    let pairs = Pairs::between(&left, &right);
    compared(metric, Side { name: a.0, columns: &left, column: of_a }, Side { name: b.0, columns: &right, column: of_b }, &pairs)
}
