//! `bleu`: overlap of runs of one to four words with the target (Papineni et al., ACL 2002), from 0 to 1, as sacreBLEU gives it (times
//! 100): tokenisation 13a, exponential smoothing (Chen & Cherry, WMT 2014, method 3), and for single cases the effective order, so that a
//! short answer is not 0. The mean is the sentence BLEU; over a run it gives `bleu.corpus`. Several targets are several references.
//! Option: `ignore_case: true`.

use super::grams::grams;
use super::seam::drawn;
use super::seam::{Long, MANY_STEPS, apart};
use super::{Aggregate, Aggregated, Case, Options, Pure, Scored, Scorer};
use crate::stats::distributions::Z_975;
use crate::stats::{Summary, jackknife_error};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

#[derive(Clone)]
struct Bleu {
    name: String,
    ignore_case: bool,
}

/// Longest run of words.
const ORDER: usize = 4;
/// Most bytes of a text: memory grows with it.
const MAX_BYTES: usize = 4_000_000;

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let ignore_case = options.flag("ignore_case")?;
    options.finish()?;
    Ok(Box::new(Bleu { name, ignore_case }))
}

impl Pure for Bleu {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        Ok(self.counts(case)?.bleu(Order::Effective).into())
    }

    fn long(&self, case: &Case<'_>) -> Option<Long> {
        let (found, wanted) = case.lengths();
        (found.saturating_add(wanted).saturating_mul(ORDER) > MANY_STEPS).then(|| apart(self, case))
    }

    fn aggregates(&self) -> Vec<String> {
        vec![format!("{}.corpus", self.name)]
    }

    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        Some(Box::new(Corpus { scorer: self.clone(), cases: Vec::new(), groups: BTreeMap::new() }))
    }
}

impl Bleu {
    fn counts(&self, case: &Case<'_>) -> Result<Counts, String> {
        let fold = |text: &str| tokens(&if self.ignore_case { text.to_lowercase() } else { text.to_string() });
        if let (length @ MAX_BYTES.., _) | (_, length @ MAX_BYTES..) = case.lengths() {
            return Err(format!("a text of {length} bytes; at most {MAX_BYTES} are compared"));
        }
        let targets: Vec<_> = case.targets()?.iter().map(|target| fold(target)).collect();
        Ok(Counts::of(&fold(case.output()), &targets))
    }
}

/// What BLEU is made of; those of a corpus are the sums of its cases'.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    found: u32,
    wanted: u32,
    /// Runs of each length that a reference has, too.
    right: [u32; ORDER],
    /// Runs of each length.
    total: [u32; ORDER],
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Always four.
    Full,
    /// As long as there is a run of that length.
    Effective,
}

impl Counts {
    fn of(found: &[String], targets: &[Vec<String>]) -> Self {
        // The reference of the nearest length; of two that are as near the shorter.
        let distance = |target: &&Vec<String>| (target.len().abs_diff(found.len()), target.len());
        let wanted = targets.iter().min_by_key(distance).map_or(0, Vec::len);
        let mut counts = Counts { found: small(found.len()), wanted: small(wanted), ..Counts::default() };
        for n in 1..=ORDER {
            let mut most = HashMap::<&[String], usize>::new();
            for (run, count) in targets.iter().flat_map(|target| grams(target, n)) {
                let known = most.entry(run).or_default();
                *known = count.max(*known);
            }
            let own = grams(found, n);
            counts.right[n - 1] = small(own.iter().map(|(run, count)| most.get(run).map_or(0, |other| *count.min(other))).sum());
            counts.total[n - 1] = small(own.values().sum());
        }
        counts
    }

    fn plus(mut self, other: &Counts) -> Self {
        (self.found, self.wanted) = (self.found + other.found, self.wanted + other.wanted);
        for n in 0..ORDER {
            self.right[n] += other.right[n];
            self.total[n] += other.total[n];
        }
        self
    }

    fn times(mut self, times: u32) -> Self {
        let each = [&mut self.found, &mut self.wanted].into_iter().chain(&mut self.right).chain(&mut self.total);
        each.for_each(|count| *count = count.saturating_mul(times));
        self
    }

    fn minus(mut self, other: &Counts) -> Self {
        (self.found, self.wanted) = (self.found - other.found, self.wanted - other.wanted);
        for n in 0..ORDER {
            self.right[n] -= other.right[n];
            self.total[n] -= other.total[n];
        }
        self
    }

    fn bleu(&self, order: Order) -> f64 {
        // Not one word in common: smoothing would make something of nothing.
        if self.right == [0; ORDER] {
            return 0.0;
        }
        let (mut logs, mut runs, mut smooth) = (0.0, 0usize, 1.0);
        for (right, total) in self.right.iter().zip(self.total) {
            if total == 0 {
                break;
            }
            runs += 1;
            let share = if *right == 0 {
                smooth *= 2.0;
                1.0 / (smooth * f64::from(total))
            } else {
                f64::from(*right) / f64::from(total)
            };
            logs += share.ln();
        }
        if runs < ORDER && order == Order::Full {
            return 0.0;
        }
        let brevity = if self.found < self.wanted { (1.0 - f64::from(self.wanted) / f64::from(self.found)).exp() } else { 1.0 };
        brevity * (logs / runs as f64).exp()
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Words and signs as mteval-v13a has them.
fn tokens(text: &str) -> Vec<String> {
    /// A sign that stands alone; a point or comma that is not between digits; a dash after a digit.
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [(r"([\{-\~\[-` -\&\(-\+:-@/])", " $1 "), (r"([^0-9])([\.,])", "$1 $2 "), (r"([\.,])([^0-9])", " $1 $2"), (r"([0-9])(-)", "$1 $2 ")]
            .map(|(pattern, change)| (Regex::new(pattern).expect("the pattern is a constant"), change))
    });
    let mut text = text.trim_end().replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (escaped, plain) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(escaped, plain);
    }
    let mut text = format!(" {text} ");
    for (pattern, change) in RULES.iter() {
        text = pattern.replace_all(&text, *change).into_owned();
    }
    text.split_whitespace().map(String::from).collect()
}

/// BLEU of a whole run.
struct Corpus {
    scorer: Bleu,
    /// 40 bytes a case: the standard error needs each.
    cases: Vec<Counts>,
    /// What each group adds up to.
    groups: BTreeMap<u32, Counts>,
}

impl Aggregate for Corpus {
    fn add(&mut self, case: &Case<'_>, _scores: &Map<String, Value>, group: u32) {
        // What has no target is an error of the case.
        let Ok(counts) = self.scorer.counts(case) else { return };
        let of_group = self.groups.entry(group).or_default();
        *of_group = of_group.plus(&counts);
        self.cases.push(counts);
    }

    fn finish(self: Box<Self>) -> Aggregated {
        if self.cases.is_empty() {
            return Aggregated::default();
        }
        let sum = self.cases.iter().fold(Counts::default(), |sum, counts| sum.plus(counts));
        let mean = sum.bleu(Order::Full);
        let (standard_error, ci95) = if self.groups.len() == self.cases.len() {
            let standard_error = jackknife_error(self.cases.iter().map(|counts| (sum.minus(counts).bleu(Order::Full), 1)));
            let reach = Z_975 * standard_error;
            (standard_error, [(mean - reach).max(0.0), (mean + reach).min(1.0)])
        } else {
            let groups: Vec<Counts> = self.groups.values().copied().collect();
            let sum_of =
                |times: &[u32]| groups.iter().zip(times).fold(Counts::default(), |sum, (counts, times)| sum.plus(&counts.times(*times)));
            drawn(groups.len(), [0.0, 1.0], |times| Some(sum_of(times).bleu(Order::Full)))
        };
        let summary = Summary { n: self.cases.len(), mean, standard_error, ci95 };
        let details = json!({"words": sum.found, "reference_words": sum.wanted, "right": sum.right, "total": sum.total});
        Aggregated { metrics: vec![(format!("{}.corpus", self.scorer.name), summary)], details }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{aggregated, look, recorded};
    use super::*;

    #[test]
    fn sentences_are_those_of_sacrebleu() {
        for case in recorded("bleu") {
            let output = case["output"].as_str().expect("a text");
            let found = look(&json!("bleu"), output, case["target"].clone()).expect("a score").values[0].expect("a value");
            let expected = case["sentence"].as_f64().expect("a number") / 100.0;
            assert!((found - expected).abs() < 1e-9, "{case}: {found}");
        }
    }

    #[test]
    fn tokens_are_those_of_13a() {
        for case in recorded("tokens_13a") {
            assert_eq!(json!(tokens(case["text"].as_str().expect("a text")).join(" ")), case["tokens"]);
        }
    }

    #[test]
    fn a_corpus_is_that_of_sacrebleu() {
        for case in recorded("bleu_corpus") {
            let outputs = case["outputs"].as_array().expect("texts").iter().map(|text| text.as_str().expect("a text").to_string());
            let cases: Vec<_> = outputs.zip(case["targets"].as_array().expect("targets").iter().cloned()).collect();
            let found = aggregated(&json!("bleu"), &cases);
            let (summary, expected) = (found.metrics[0].1, case["corpus"].as_f64().expect("a number") / 100.0);
            assert!((summary.mean - expected).abs() < 1e-9, "{} is not {expected}", summary.mean);
            assert!(summary.standard_error > 0.0 && summary.ci95[0] <= summary.mean && summary.mean <= summary.ci95[1]);
        }
    }

    #[test]
    fn case_counts_unless_it_is_ignored() {
        let value = |spec: Value| look(&spec, "The Cat sat on the Mat", json!("the cat sat on the mat")).expect("a score").values[0];
        assert!(value(json!("bleu")) < Some(0.7));
        assert_eq!(value(json!({"bleu": {"ignore_case": true}})), Some(1.0));
    }
}
