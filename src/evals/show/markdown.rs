//! `markdown`: GitHub-flavoured, for a comment on a pull request or the summary of a workflow.

use super::escape::is_obeyed;
use super::table::{cost, describe, scoring_cost};
use super::{Comparison, Show, Shown, case_name, cut, ks, passes_at, put, scores, verdict};
use crate::evals::Report;
use crate::evals::compare::Changed;
use crate::evals::metrics::Totals;
use crate::types::Failure;
use std::fmt::Write as _;
use std::io::Write;

/// Cases that are listed.
const LISTED: usize = 20;
/// Characters of an answer.
const CHARACTERS: usize = 200;

/// GitHub-flavoured Markdown.
pub struct Markdown;

impl Show for Markdown {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        let report = shown.report;
        let mut text = String::new();
        let mark = match &report.gate {
            Some(gate) if gate.passed => "✅ gate passed",
            Some(_) => "❌ gate missed",
            None => "no gate",
        };
        let _ = writeln!(text, "### {}: {mark}\n", cell(&report.suite));
        let repeats = if report.repeats > 1 { format!(", {} repeats", report.repeats) } else { String::new() };
        let place = format!(
            "{} ({}), {} samples{repeats}, `{}` [{}]",
            cell(&report.dataset),
            cell(&report.split),
            report.samples,
            report.run,
            report.status
        );
        let _ = writeln!(text, "{place}\n");
        for changes in report.changes.iter().filter(|changes| changes.worse + changes.better > 0) {
            let (target, against) = (cell(&changes.target), cell(&changes.against));
            let _ = writeln!(
                text,
                "**{target}** against {against}, {}: {} worse, {} better\n",
                cell(&changes.metric),
                changes.worse,
                changes.better
            );
            changed(&changes.samples, changes.worse, &mut text);
        }
        numbers(report, &mut text);
        for difference in &report.paired {
            let _ = writeln!(text, "- {}", cell(&describe(difference)));
        }
        if let Some(gate) = &report.gate {
            let thresholds = gate.verdicts.iter().map(|one| (one.verdict.passed, &one.target, &one.verdict.reason));
            for (passed, target, reason) in thresholds.chain(gate.demands.iter().map(|one| (one.passed, &one.target, &one.reason))) {
                let _ = writeln!(text, "- {} {}: {}", if passed { "✅" } else { "❌" }, cell(target), cell(reason));
            }
        }
        put(out, text)?;
        missed(shown, out)
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        let Comparison { a, b, paired, metric, worse, better, changed: samples, warnings } = comparison;
        let mut text = format!("### {} against {}\n\n{}: {worse} worse, {better} better\n\n", cell(b), cell(a), cell(metric));
        warnings.iter().for_each(|warning| {
            let _ = writeln!(text, "⚠️ {}\n", cell(warning));
        });
        changed(samples, *worse, &mut text);
        for difference in paired {
            let _ = writeln!(text, "- {}", cell(&describe(difference)));
        }
        put(out, text)
    }
}

fn numbers(report: &Report, text: &mut String) {
    let names: Vec<String> = report.targets.iter().map(|target| cell(&target.name)).collect();
    let _ = writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---:|".repeat(names.len()));
    let metrics: std::collections::BTreeSet<&String> = report.targets.iter().flat_map(|target| target.totals.metrics.keys()).collect();
    for metric in metrics {
        let values = report.targets.iter().map(|target| match target.totals.metrics.get(metric) {
            Some(found) => format!("{:.3} ± {:.3} [{:.3}, {:.3}]", found.mean, found.standard_error, found.ci95[0], found.ci95[1]),
            None => "-".into(),
        });
        let _ = writeln!(text, "| {} | {} |", cell(metric), values.collect::<Vec<_>>().join(" | "));
    }
    let row = |name: &str, values: Vec<String>, text: &mut String| {
        let _ = writeln!(text, "| {name} | {} |", values.join(" | "));
    };
    let each = |of: &dyn Fn(&Totals) -> String| report.targets.iter().map(|target| of(&target.totals)).collect();
    for k in ks(report) {
        let told = |totals: &Totals| passes_at(totals, k).map_or("-".into(), |(values, intervals)| format!("{values} {intervals}"));
        row(&format!("pass@{k} / pass^{k}"), each(&told), text);
    }
    row("errors", each(&|totals| totals.errors.to_string()), text);
    row("cost", each(&cost), text);
    row("cost of scoring", each(&scoring_cost), text);
    row("latency p50 / p95 ms", each(&|totals| format!("{:.0} / {:.0}", totals.latency_ms.p50, totals.latency_ms.p95)), text);
    text.push('\n');
}

/// Samples that changed; the worse ones come first.
fn changed(samples: &[Changed], worse: usize, text: &mut String) {
    if samples.is_empty() {
        return;
    }
    text.push_str("| sample | before | now |\n|---|---:|---:|\n");
    for (at, one) in samples.iter().take(LISTED).enumerate() {
        let _ = writeln!(text, "| {} {} | {} | {} |", if at < worse { "🔻" } else { "🔺" }, cell(&one.sample), one.a, one.b);
    }
    if samples.len() > LISTED {
        let _ = writeln!(text, "| and {} more | | |", samples.len() - LISTED);
    }
    text.push('\n');
}

/// The first cases that did not pass.
fn missed(shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut text, mut count) = (String::new(), 0usize);
    shown.each_case(&mut |case| {
        let word = verdict(shown.report, &case);
        if !["miss", "error"].contains(&word) {
            return Ok(());
        }
        count += 1;
        if count <= LISTED {
            let said = case.error.as_deref().unwrap_or(&case.output);
            let (target, name) = (cell(&case.target), cell(&case_name(shown.report, &case)));
            let _ = writeln!(text, "| {word} | {target} | {name} | {} | {} |", cell(&scores(&case)), cell(&cut(said, CHARACTERS)));
        }
        Ok(())
    })?;
    if count == 0 {
        return Ok(());
    }
    let more = if count > LISTED { format!("\n{} more are not listed.\n", count - LISTED) } else { String::new() };
    put(
        out,
        format!(
            "\n<details><summary>{count} cases that did not pass</summary>\n\n| | target | sample | scores | answer |\n|---|---|---|---|---|\n{text}{more}\n</details>\n"
        ),
    )
}

/// A text that stays in its cell and means nothing to Markdown or HTML.
fn cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => escaped.push(' '),
            c if is_obeyed(c) => escaped.push('\u{fffd}'),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '#' | '~' => {
                escaped.push('\\');
                escaped.push(c);
            }
            // Nobody is called by name in somebody's pull request.
            '@' => escaped.push_str("&#64;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_leaves_its_cell() {
        assert_eq!(super::cell("a|b\n<img src=x> @me `x`"), "a\\|b &lt;img src=x&gt; &#64;me \\`x\\`");
    }
}
