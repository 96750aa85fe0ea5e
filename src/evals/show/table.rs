//! `table`: for a terminal. What changed comes first, then the numbers, then what the gate said.

use super::escape::visible;
use super::{Comparison, Show, Shown, ks, passes_at, put};
use crate::evals::Report;
use crate::evals::compare::{Changed, Changes, Difference};
use crate::evals::metrics::Totals;
use crate::types::Failure;
use crate::types::money::MicroUsd;
use std::fmt::Write as _;
use std::io::Write;

/// Changed samples that are shown for each target.
const SHOWN: usize = 10;
/// Changed samples that a comparison shows.
const COMPARED: usize = 20;

/// A table for a terminal.
pub struct Table;

impl Show for Table {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        put(out, run(shown.report) + "\n")
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        let mut text = String::new();
        let Comparison { paired, metric, worse, better, changed, warnings, .. } = comparison;
        warnings.iter().for_each(|warning| {
            let _ = writeln!(text, "warning: {}", visible(warning));
        });
        let _ = writeln!(text, "{}", moved(metric, (*worse, *better)));
        changed.iter().take(COMPARED).enumerate().for_each(|(at, one)| change(one, at < *worse, &mut text));
        more(worse + better, changed.len().min(COMPARED), &mut text);
        for one in paired {
            let _ = writeln!(text, "{}", describe(one));
        }
        put(out, text)
    }
}

/// A run as a table.
pub fn run(report: &Report) -> String {
    let mut text = String::new();
    let repeats = if report.repeats > 1 { format!(" × {} repeats", report.repeats) } else { String::new() };
    let samples = samples(report);
    let _ = writeln!(
        text,
        "{} on {} ({}), {samples} samples{repeats}, {} [{}]",
        report.suite,
        visible(&report.dataset),
        visible(&report.split),
        report.run,
        report.status
    );
    report.changes.iter().filter(|changes| changes.worse + changes.better > 0).for_each(|one| changes(one, &mut text));
    let _ = writeln!(text, "{}", numbers(report));
    for difference in &report.paired {
        let _ = writeln!(text, "{}", describe(difference));
    }
    if let Some(gate) = &report.gate {
        let _ = writeln!(text, "gate {}", if gate.passed { "passed" } else { "missed" });
        let thresholds = gate.verdicts.iter().map(|one| (one.verdict.passed, &one.target, &one.verdict.reason));
        for (passed, target, reason) in thresholds.chain(gate.demands.iter().map(|one| (one.passed, &one.target, &one.reason))) {
            let _ = writeln!(text, "  {} {target}: {}", if passed { "ok  " } else { "miss" }, visible(reason));
        }
    }
    text.trim_end().to_string()
}

/// Samples of a report; older ones do not say.
fn samples(report: &Report) -> usize {
    match report.samples {
        0 => report.targets.first().map_or(0, |target| target.totals.n + target.totals.errors),
        samples => samples,
    }
}

fn numbers(report: &Report) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(std::iter::once("").chain(report.targets.iter().map(|target| target.name.as_str())));
    let row = |name: &str, cell: &dyn Fn(&Totals) -> String| -> Vec<String> {
        std::iter::once(name.to_string()).chain(report.targets.iter().map(|target| cell(&target.totals))).collect()
    };
    let metrics = report.targets.iter().flat_map(|target| target.totals.metrics.keys());
    let mut seen = std::collections::BTreeSet::new();
    for metric in metrics.filter(|metric| seen.insert(metric.as_str())) {
        table.add_row(row(&visible(metric), &|totals| {
            totals.metrics.get(metric).map_or("-".into(), |found| format!("{:.3} ± {:.3}", found.mean, found.standard_error))
        }));
        table.add_row(row("  95 % interval", &|totals| {
            totals.metrics.get(metric).map_or("-".into(), |found| format!("[{:.3}, {:.3}]", found.ci95[0], found.ci95[1]))
        }));
    }
    for k in ks(report) {
        table.add_row(row(&format!("pass@{k} / pass^{k}"), &|totals| passes_at(totals, k).map_or("-".into(), |(values, _)| values)));
        table.add_row(row("  95 % interval", &|totals| passes_at(totals, k).map_or("-".into(), |(_, intervals)| intervals)));
    }
    table.add_row(row("errors", &|totals| totals.errors.to_string()));
    if report.targets.iter().any(|target| target.totals.cached > 0) {
        table.add_row(row("answers given before", &|totals| totals.cached.to_string()));
    }
    table.add_row(row("tokens read / written", &|totals| format!("{} / {}", totals.input_tokens, totals.output_tokens)));
    if report.targets.iter().any(|target| target.totals.cost_micro_usd > 0 || target.totals.unpriced > 0) {
        table.add_row(row("cost", &cost));
    }
    if report.targets.iter().any(|target| target.totals.scoring_cost_micro_usd > 0 || target.totals.scoring_unpriced > 0) {
        table.add_row(row("cost of scoring", &scoring_cost));
    }
    table.add_row(row("latency p50 / p95 ms", &|totals| format!("{:.0} / {:.0}", totals.latency_ms.p50, totals.latency_ms.p95)));
    table
}

/// What calls cost; unknown prices are said, not left out.
pub(super) fn cost(totals: &Totals) -> String {
    money(totals.cost_micro_usd, totals.unpriced, "calls")
}

/// What the scorers' own calls cost.
pub(super) fn scoring_cost(totals: &Totals) -> String {
    money(totals.scoring_cost_micro_usd, totals.scoring_unpriced, "cases")
}

fn money(cost: i64, unpriced: usize, what: &str) -> String {
    match (unpriced, cost) {
        (0, cost) => MicroUsd(cost).to_string(),
        (_, 0) => "unknown".into(),
        (unpriced, cost) => format!("{} and {unpriced} {what} without a known price", MicroUsd(cost)),
    }
}

fn changes(changes: &Changes, text: &mut String) {
    let Changes { against, target, metric, worse, better, samples } = changes;
    let _ = writeln!(text, "{target} against {against}, {}", moved(metric, (*worse, *better)));
    samples.iter().take(SHOWN).enumerate().for_each(|(at, one)| change(one, at < *worse, text));
    more(worse + better, samples.len().min(SHOWN), text);
}

fn moved(metric: &str, (worse, better): (usize, usize)) -> String {
    format!("{}: {worse} worse, {better} better", visible(metric))
}

/// A sample that changed; the worse ones come first.
fn change(one: &Changed, is_worse: bool, text: &mut String) {
    let word = if is_worse { "worse " } else { "better" };
    let _ = writeln!(text, "  {word} {}: {} -> {}", visible(&one.sample), one.a, one.b);
}

fn more(all: usize, shown: usize, text: &mut String) {
    if all > shown && shown > 0 {
        let _ = writeln!(text, "  and {} more", all - shown);
    }
}

/// One line for people: `prompt − base: exact_match +0.050, 95 % interval [-0.010, 0.110], p = 0.125 (4 better, 1 worse of 60), standard error
/// 0.0300 (0.0421 unpaired)`.
pub fn describe(difference: &Difference) -> String {
    let Difference { metric, a, b, paired, unpaired_standard_error, less_is_better, p_holm, detectable, needed } = difference;
    let (wins, losses) = if *less_is_better { (paired.losses, paired.wins) } else { (paired.wins, paired.losses) };
    let mut text = format!(
        "{b} − {a}: {} {:+.3}, 95 % interval [{:.3}, {:.3}], p {}",
        visible(metric),
        paired.delta,
        paired.ci95[0],
        paired.ci95[1],
        p_value(paired.p)
    );
    if let Some(p) = p_holm {
        let _ = write!(text, ", corrected {}", p_value(*p));
    }
    let _ = write!(text, " ({wins} better, {losses} worse of {})", paired.n);
    if let Some(unpaired) = unpaired_standard_error {
        let _ = write!(text, ", standard error {:.4} ({unpaired:.4} unpaired)", paired.standard_error);
    }
    // Whoever sees no difference wants to know which one could have been seen.
    if p_holm.unwrap_or(paired.p) >= 0.05 {
        if let Some(detectable) = detectable {
            let _ = write!(text, "; so many pairs show a difference of {detectable:.3}");
        }
        if let Some(needed) = needed {
            let _ = write!(text, ", this one takes {needed}");
        }
    }
    text
}

/// No p-value is 0.
fn p_value(p: f64) -> String {
    if p < 0.0005 { "< 0.001".into() } else { format!("= {p:.3}") }
}
