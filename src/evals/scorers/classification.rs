//! `classification`: the answer is the label of the target. The mean is the accuracy; over a run it gives `classification.macro_f1` and a
//! confusion matrix. Options:
//! - `labels`: the labels (those of the targets without it);
//! - `field`: a JSON pointer or name; then answer and target are JSON, and the label is that field;
//! - `find: true`: an answer that is no label by itself has the one label that stands in it as a word of its own;
//! - `case_sensitive: true`: otherwise case, white space and punctuation around a label do not count.

use super::case::{parsed, text_of};
use super::seam::drawn;
use super::{Aggregate, Aggregated, Case, Options, Pure, Scale, Scored, Scorer};
use crate::stats::distributions::Z_975;
use crate::stats::{Summary, jackknife_error};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone)]
struct Classification {
    name: String,
    labels: Vec<String>,
    pointer: Option<String>,
    find: bool,
    case_sensitive: bool,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let labels = options.texts("labels")?.unwrap_or_default();
    let pointer = options.text("field")?.map(|field| match field.starts_with('/') {
        true => field,
        false => format!("/{}", field.replace('~', "~0").replace('/', "~1")),
    });
    let (find, case_sensitive) = (options.flag("find")?, options.flag("case_sensitive")?);
    options.finish()?;
    if find && labels.is_empty() {
        return Err("find needs labels".into());
    }
    let scorer = Classification { name, labels, pointer, find, case_sensitive };
    let mut seen = BTreeSet::new();
    match scorer.labels.iter().find(|label| !seen.insert(scorer.fold(label))) {
        Some(twice) => Err(format!("labels: \"{twice}\" is there twice, but for case or punctuation")),
        None => Ok(Box::new(scorer)),
    }
}

impl Pure for Classification {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let wanted = self.wanted(case)?;
        let found = self.found(case.output());
        let passed = found.as_ref() == Some(&wanted);
        let shown = found.unwrap_or_else(|| NONE.into());
        Ok(Scored::from(passed).because(if passed { shown } else { format!("{shown}, expected {wanted}") }))
    }

    fn aggregates(&self) -> Vec<String> {
        vec![self.f1()]
    }

    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        Some(Box::new(Confusion { scorer: self.clone(), cells: BTreeMap::new(), groups: BTreeMap::new() }))
    }
}

/// What an answer without a label is called.
const NONE: &str = "(none)";

impl Classification {
    fn f1(&self) -> String {
        format!("{}.macro_f1", self.name)
    }

    /// The target's label.
    fn wanted(&self, case: &Case<'_>) -> Result<String, String> {
        let target = match &self.pointer {
            None => case.target,
            Some(pointer) => case.target.pointer(pointer).ok_or_else(|| format!("the target has no field {pointer}"))?,
        };
        if target.is_null() {
            return Err("the sample has no target".into());
        }
        let label = self.named(&text_of(target));
        match self.labels.is_empty() || self.labels.contains(&label) {
            true => Ok(label),
            false => Err(format!("the target \"{label}\" is none of the labels")),
        }
    }

    /// The answer's label; none where it has none.
    fn found(&self, output: &str) -> Option<String> {
        let text = match &self.pointer {
            None => output.to_string(),
            Some(pointer) => text_of(parsed(output)?.pointer(pointer)?),
        };
        let label = self.named(&text);
        if self.labels.is_empty() || self.labels.contains(&label) {
            return Some(label).filter(|label| !label.is_empty());
        }
        let mut inside = self.labels.iter().filter(|label| self.find && self.stands_in(&text, label));
        inside.next().filter(|_| inside.next().is_none()).cloned()
    }

    /// The label that a text is, as it is written in `labels`; the folded text where it is none.
    fn named(&self, text: &str) -> String {
        let folded = self.fold(text);
        self.labels.iter().find(|label| self.fold(label) == folded).cloned().unwrap_or(folded)
    }

    fn fold(&self, text: &str) -> String {
        if self.case_sensitive {
            return text.trim().to_string();
        }
        text.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
    }

    fn stands_in(&self, text: &str, label: &str) -> bool {
        let (text, label) = if self.case_sensitive { (text.into(), label.into()) } else { (text.to_lowercase(), label.to_lowercase()) };
        let is_free = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        text.match_indices(label.as_str())
            .any(|(at, _)| is_free(text[..at].chars().next_back()) && is_free(text[at + label.len()..].chars().next()))
    }
}

/// How often which label was found where which one was wanted.
struct Confusion {
    scorer: Classification,
    /// Wanted and found; none where the answer had no label.
    cells: BTreeMap<Cell, usize>,
    /// The same of each group.
    groups: BTreeMap<u32, BTreeMap<Cell, u32>>,
}

/// A label that was wanted, and the one that was found.
type Cell = (String, Option<String>);

impl Aggregate for Confusion {
    fn add(&mut self, case: &Case<'_>, _scores: &Map<String, Value>, group: u32) {
        // What has no label in its target is an error of the case.
        if let Ok(wanted) = self.scorer.wanted(case) {
            let cell = (wanted, self.scorer.found(case.output()));
            *self.groups.entry(group).or_default().entry(cell.clone()).or_default() += 1;
            *self.cells.entry(cell).or_default() += 1;
        }
    }

    fn finish(self: Box<Self>) -> Aggregated {
        let labels = self.labels();
        let n: usize = self.cells.values().sum();
        if n == 0 {
            return Aggregated::default();
        }
        let counts = Counts::of(&labels, &self.cells);
        let mean = counts.macro_f1(None);
        let (standard_error, ci95) = if self.groups.len() == n { self.one_by_one(&counts) } else { self.by_groups(&labels) };
        Aggregated { metrics: vec![(self.scorer.f1(), Summary { n, mean, standard_error, ci95 })], details: self.details(&labels, &counts) }
    }
}

impl Confusion {
    /// Standard error and interval of the macro F1 where every case is a group of its own.
    fn one_by_one(&self, counts: &Counts<'_>) -> (f64, [f64; 2]) {
        let without = self.cells.iter().map(|(cell, count)| (counts.macro_f1(Some(cell)), *count)).collect::<Vec<_>>();
        let (mean, standard_error) = (counts.macro_f1(None), jackknife_error(without.iter().copied()));
        let reach = Z_975 * standard_error;
        (standard_error, [(mean - reach).max(0.0), (mean + reach).min(1.0)])
    }

    /// The same where cases of a group go together.
    fn by_groups(&self, labels: &[String]) -> (f64, [f64; 2]) {
        let place: BTreeMap<&str, usize> = labels.iter().map(String::as_str).zip(0..).collect();
        let at = |(wanted, found): &Cell| {
            Some((*place.get(wanted.as_str())?, found.as_ref().and_then(|found| place.get(found.as_str()).copied())))
        };
        let of_group = |cells: &BTreeMap<Cell, u32>| cells.iter().filter_map(|(cell, count)| Some((at(cell)?, *count))).collect::<Vec<_>>();
        let groups: Vec<Vec<_>> = self.groups.values().map(of_group).collect();
        let mut sums = vec![[0u32; 3]; labels.len()];
        drawn(groups.len(), [0.0, 1.0], |times| {
            sums.fill([0; 3]);
            for (cells, times) in groups.iter().zip(times).filter(|(_, times)| **times > 0) {
                for ((wanted, found), count) in cells {
                    sums[*wanted][1] += count * times;
                    let Some(found) = found else { continue };
                    sums[*found][2] += count * times;
                    sums[*found][0] += if found == wanted { count * times } else { 0 };
                }
            }
            // As `Counts::of_label` has it: 2·right/(wanted + found), 0 where there is none.
            let f1 = |[right, wanted, found]: &[u32; 3]| 2.0 * f64::from(*right) / f64::from((wanted + found).max(1));
            Some(sums.iter().map(f1).sum::<f64>() / labels.len().max(1) as f64)
        })
    }

    /// Labels in their order: those of the suite, else all that came up.
    fn labels(&self) -> Vec<String> {
        if !self.scorer.labels.is_empty() {
            return self.scorer.labels.clone();
        }
        let all = self.cells.keys().flat_map(|(wanted, found)| std::iter::once(wanted).chain(found));
        all.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// The matrix, a row a wanted label, a column a found one and a last one for none; and each label's numbers.
    fn details(&self, labels: &[String], counts: &Counts<'_>) -> Value {
        let cell = |wanted: &String, found: Option<&String>| self.cells.get(&(wanted.clone(), found.cloned())).copied().unwrap_or(0);
        let row = |wanted: &String| labels.iter().map(Some).chain([None]).map(|found| cell(wanted, found)).collect::<Vec<_>>();
        let of = |label: &String| {
            let [precision, recall, f1] = counts.of_label(label, None);
            let support = counts.wanted.get(label.as_str()).copied().unwrap_or(0);
            (label.clone(), json!({"precision": precision, "recall": recall, "f1": f1, "support": support}))
        };
        json!({
            "labels": labels,
            "matrix": labels.iter().map(row).collect::<Vec<_>>(),
            "by_label": labels.iter().map(of).collect::<Map<_, _>>(),
        })
    }
}

/// Sums of a confusion matrix.
struct Counts<'l> {
    labels: &'l [String],
    right: BTreeMap<&'l str, usize>,
    wanted: BTreeMap<&'l str, usize>,
    found: BTreeMap<&'l str, usize>,
}

impl<'l> Counts<'l> {
    fn of(labels: &'l [String], cells: &'l BTreeMap<Cell, usize>) -> Self {
        let (mut right, mut wanted, mut found) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for ((of_target, of_answer), count) in cells {
            *wanted.entry(of_target.as_str()).or_default() += count;
            if let Some(label) = of_answer {
                *found.entry(label.as_str()).or_default() += count;
                *right.entry(label.as_str()).or_default() += if label == of_target { *count } else { 0 };
            }
        }
        Counts { labels, right, wanted, found }
    }

    /// Mean of the labels' F1, without one case of a cell where one is named. A label that nothing has counts 0.
    ///
    /// Source: Opitz & Burst, "Macro F1 and Macro F1" (arXiv 1911.03347), the averaged F1; as scikit-learn has it.
    fn macro_f1(&self, without: Option<&Cell>) -> f64 {
        self.labels.iter().map(|label| self.of_label(label, without)[2]).sum::<f64>() / self.labels.len().max(1) as f64
    }

    /// Precision, recall and F1 of a label; 0 where they have no cases.
    fn of_label(&self, label: &str, without: Option<&Cell>) -> [f64; 3] {
        let count = |counts: &BTreeMap<&str, usize>| counts.get(label).copied().unwrap_or(0) as f64;
        let (mut right, mut wanted, mut found) = (count(&self.right), count(&self.wanted), count(&self.found));
        if let Some((of_target, of_answer)) = without {
            let (is_wanted, is_found) = (of_target == label, of_answer.as_deref() == Some(label));
            wanted -= f64::from(u8::from(is_wanted));
            found -= f64::from(u8::from(is_found));
            right -= f64::from(u8::from(is_wanted && is_found));
        }
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        [share(right, found), share(right, wanted), share(2.0 * right, wanted + found)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{aggregated, aggregated_repeats, look, recorded, refused};
    use super::*;

    fn label(options: Value, output: &str, target: Value) -> (f64, String) {
        let scored = look(&json!({"classification": options}), output, target).expect("a score");
        (scored.values[0].expect("a value"), scored.explanation.expect("the label"))
    }

    #[test]
    fn labels_are_found_in_answers() {
        let labels = json!({"labels": ["Refund", "late delivery"]});
        assert_eq!(label(labels.clone(), " refund.\n", json!("Refund")), (1.0, "Refund".into()));
        assert_eq!(label(labels.clone(), "**Late delivery**", json!("refund")), (0.0, "late delivery, expected Refund".into()));
        assert_eq!(label(labels, "It is a refund", json!("Refund")), (0.0, "(none), expected Refund".into()));
        let find = json!({"labels": ["refund", "fund"], "find": true});
        assert_eq!(label(find.clone(), "It is a refund, I think", json!("refund")).0, 1.0);
        assert_eq!(label(find, "refund or fund", json!("refund")).1, "(none), expected refund");
        assert_eq!(label(json!({}), "Paris", json!("paris")).0, 1.0);
        assert_eq!(label(json!({"case_sensitive": true}), "Paris", json!("paris")).0, 0.0);
        assert_eq!(label(json!({"field": "intent"}), "{\"intent\": \"A\"}", json!({"intent": "a"})).0, 1.0);
        assert_eq!(label(json!({"field": "/x/y"}), "no JSON", json!({"x": {"y": 1}})).1, "(none), expected 1");
    }

    #[test]
    fn targets_that_are_no_labels_are_errors() {
        let spec = json!({"classification": {"labels": ["a", "b"]}});
        assert!(look(&spec, "a", json!("c")).is_err_and(|problem| problem.contains("\"c\" is none of the labels")));
        assert!(look(&spec, "a", json!(null)).is_err());
        assert!(refused(json!({"classification": {"labels": ["A", "a"]}})).contains("twice"));
        assert!(refused(json!({"classification": {"find": true}})).contains("find needs labels"));
    }

    #[test]
    fn macro_f1_and_the_matrix_are_those_of_scikit_learn() {
        for case in recorded("classification") {
            let texts = |field: &str| case[field].as_array().expect("labels").iter().map(text_of).collect::<Vec<_>>();
            let cases: Vec<_> = texts("found").into_iter().zip(texts("wanted").into_iter().map(Value::from)).collect();
            let found = aggregated(&json!({"classification": {"labels": case["labels"]}}), &cases);
            let (name, summary) = &found.metrics[0];
            assert_eq!((name.as_str(), summary.n), ("classification.macro_f1", cases.len()));
            let expected = case["macro_f1"].as_f64().expect("a number");
            assert!((summary.mean - expected).abs() < 1e-12, "{} is not {expected}", summary.mean);
            let expected = case["jackknife"].as_f64().expect("a number");
            assert!((summary.standard_error - expected).abs() < 1e-12, "{} is not {expected}", summary.standard_error);
            assert_eq!(found.details["matrix"], case["matrix"]);
        }
        assert_eq!(aggregated(&json!("classification"), &[]), Aggregated::default());
    }

    #[test]
    fn repeats_of_a_sample_do_not_pass_for_samples() {
        let spec = json!({"classification": ["a", "b"]});
        let cases: Vec<_> =
            (0..60).map(|i| (if i % 3 == 0 { "b" } else { "a" }.to_string(), json!(if i % 2 == 0 { "a" } else { "b" }))).collect();
        let of = |found: super::super::Aggregated| found.metrics[0].1;
        let (once, ten) = (of(aggregated_repeats(&spec, &cases, 1)), of(aggregated_repeats(&spec, &cases, 10)));
        assert_eq!((once.mean, once.n, ten.n), (ten.mean, 60, 600));
        // Equal repeats say nothing new: the error is that of the 60, by another way.
        assert!((ten.standard_error / once.standard_error - 1.0).abs() < 0.15, "{once:?} {ten:?}");
        let pair = of(aggregated_repeats(&spec, &cases[..1], 5));
        assert_eq!(pair.ci95, [0.0, 1.0], "one sample says nothing of others");
    }
}
