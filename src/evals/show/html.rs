//! `html`: one file that holds everything, without a script and without anything from elsewhere. It opens from the disk, in light and in
//! dark. Whatever models and datasets say is text here and nothing else.

use super::escape::{escape as markup, is_obeyed};
use super::table::{cost, describe, scoring_cost};
use super::{Comparison, Show, Shown, case_name, cut, ks, passes_at, put, scores, verdict};
use crate::evals::Report;
use crate::evals::compare::Changed;
use crate::evals::metrics::Totals;
use crate::store::runs::CaseRecord;
use crate::types::Failure;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;

/// Cases that did not pass, and cases that did, which are listed.
const MISSED: usize = 2_000;
const PASSED: usize = 500;
/// Changed samples of a comparison.
const CHANGED: usize = 2_000;
/// Characters of an answer.
const CHARACTERS: usize = 8_000;
const HEAD: &str = include_str!("page.html");

/// One HTML page.
pub struct Html;

impl Show for Html {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        let report = shown.report;
        put(out, HEAD.replace("{title}", &escape(&report.suite)))?;
        let mut text = format!("<h1>{}</h1>\n", escape(&report.suite));
        let repeats = if report.repeats > 1 { format!(" × {} repeats", report.repeats) } else { String::new() };
        let _ = writeln!(
            text,
            "<p class=quiet>{} ({}) · {} samples{repeats} · <code>{}</code> · {} · {:.1} s</p>",
            escape(&report.dataset),
            escape(&report.split),
            report.samples,
            escape(&report.run),
            escape(&report.status),
            report.wall_seconds
        );
        gate(report, &mut text);
        for changes in report.changes.iter().filter(|changes| changes.worse + changes.better > 0) {
            let (target, against, metric) = (escape(&changes.target), escape(&changes.against), escape(&changes.metric));
            let _ = writeln!(text, "<h2>{target} against {against}: {} worse, {} better in {metric}</h2>", changes.worse, changes.better);
            changed(&changes.samples, (changes.worse, changes.better), &mut text);
        }
        numbers(report, &mut text);
        differences(report.paired.iter().map(describe), &mut text);
        put(out, text)?;
        cases(shown, out)?;
        put(out, "</main></body></html>\n")
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        let Comparison { a, b, paired, metric, worse, better, changed: samples, warnings } = comparison;
        let title = format!("{} against {}", escape(b), escape(a));
        put(out, HEAD.replace("{title}", &title))?;
        let mut text = format!("<h1>{title}</h1>\n<h2>{}: {worse} worse, {better} better</h2>\n", escape(metric));
        warnings.iter().for_each(|warning| {
            let _ = writeln!(text, "<p><strong>warning: {}</strong></p>", escape(warning));
        });
        changed(&samples[..samples.len().min(CHANGED)], (*worse, *better), &mut text);
        differences(paired.iter().map(describe), &mut text);
        put(out, text + "</main></body></html>\n")
    }
}

fn gate(report: &Report, text: &mut String) {
    let Some(gate) = &report.gate else { return };
    let word = if gate.passed { "passed" } else { "missed" };
    let _ = writeln!(text, "<section class=\"gate {word}\"><strong>gate {word}</strong><ul>");
    let thresholds = gate.verdicts.iter().map(|one| (one.verdict.passed, &one.target, &one.verdict.reason));
    for (passed, target, reason) in thresholds.chain(gate.demands.iter().map(|one| (one.passed, &one.target, &one.reason))) {
        let _ = writeln!(text, "<li>{} {}: {}</li>", if passed { "✓ ok" } else { "✗ miss" }, escape(target), escape(reason));
    }
    text.push_str("</ul></section>\n");
}

/// Samples that changed; the worse ones come first.
fn changed(samples: &[Changed], (worse, better): (usize, usize), text: &mut String) {
    let all = worse + better;
    text.push_str("<table><thead><tr><th>sample<th class=n>before<th class=n>now</thead><tbody>\n");
    for (at, one) in samples.iter().enumerate() {
        let (word, sign) = if at < worse { ("worse", "▼") } else { ("better", "▲") };
        let _ = writeln!(text, "<tr class={word}><td>{sign} {}<td class=n>{}<td class=n>{}", escape(&one.sample), one.a, one.b);
    }
    text.push_str("</tbody></table>\n");
    if all > samples.len() {
        let _ = writeln!(text, "<p class=quiet>and {} more</p>", all - samples.len());
    }
}

fn numbers(report: &Report, text: &mut String) {
    text.push_str("<h2>Numbers</h2>\n<table><thead><tr><th>");
    for target in &report.targets {
        let _ = write!(text, "<th class=n title=\"{}\">{}", escape(&target.model), escape(&target.name));
    }
    text.push_str("</thead><tbody>\n");
    let metrics: BTreeSet<&String> = report.targets.iter().flat_map(|target| target.totals.metrics.keys()).collect();
    for metric in metrics {
        let _ = write!(text, "<tr><td>{}", escape(metric));
        for target in &report.targets {
            match target.totals.metrics.get(metric) {
                Some(found) => {
                    let [low, high] = found.ci95;
                    let _ = write!(
                        text,
                        "<td class=n>{:.3} ± {:.3}<br><small>[{low:.3}, {high:.3}]</small>{}",
                        found.mean,
                        found.standard_error,
                        bar(found.mean, found.ci95)
                    );
                }
                None => text.push_str("<td class=n>-"),
            }
        }
        text.push('\n');
    }
    let mut row = |name: &str, of: &dyn Fn(&Totals) -> String| {
        let _ = write!(text, "<tr><td>{name}");
        report.targets.iter().for_each(|target| {
            let _ = write!(text, "<td class=n>{}", escape(&of(&target.totals)));
        });
        text.push('\n');
    };
    for k in ks(report) {
        row(&format!("pass@{k} / pass^{k}"), &|totals| {
            passes_at(totals, k).map_or("-".into(), |(values, intervals)| format!("{values}, 95 % intervals {intervals}"))
        });
    }
    row("cases with full marks", &|totals| match totals.judged {
        0 => "no scorer says pass or fail".into(),
        judged => format!("{} of {judged}", totals.passed),
    });
    row("errors", &|totals| totals.errors.to_string());
    row("answers given before", &|totals| totals.cached.to_string());
    row("tokens read / written", &|totals| format!("{} / {}", totals.input_tokens, totals.output_tokens));
    row("cost", &cost);
    row("cost of scoring", &scoring_cost);
    row("latency p50 / p95 ms", &|totals| format!("{:.0} / {:.0}", totals.latency_ms.p50, totals.latency_ms.p95));
    text.push_str("</tbody></table>\n");
}

/// A rate with its interval as a bar; nothing for what is no rate.
fn bar(mean: f64, [low, high]: [f64; 2]) -> String {
    if !(0.0..=1.0).contains(&mean) {
        return String::new();
    }
    let percent = |value: f64| value.clamp(0.0, 1.0) * 100.0;
    let (left, width) = (percent(low), percent(high) - percent(low));
    format!("<span class=bar><i style=\"left:{left:.1}%;width:{width:.1}%\"></i><b style=\"left:{:.1}%\"></b></span>", percent(mean))
}

fn differences(lines: impl Iterator<Item = String>, text: &mut String) {
    let lines: Vec<String> = lines.map(|line| format!("<li>{}</li>", escape(&line))).collect();
    if !lines.is_empty() {
        let _ = writeln!(text, "<h2>Differences</h2>\n<ul>{}</ul>", lines.join("\n"));
    }
}

/// Cases: those that did not pass first, read twice rather than kept.
fn cases(shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let lists: [(_, _, &[&str]); 3] = [
        ("Cases that did not pass", MISSED, &["miss", "error"]),
        ("Cases of which no scorer says pass or fail", PASSED, &["scored"]),
        ("Cases with full marks", PASSED, &["pass"]),
    ];
    for (title, most, wanted) in lists {
        let mut count = 0usize;
        shown.each_case(&mut |case| {
            let word = verdict(shown.report, &case);
            if !wanted.contains(&word) {
                return Ok(());
            }
            count += 1;
            if count == 1 {
                put(
                    out,
                    format!(
                        "<h2>{title}</h2>\n<table class=cases><thead><tr><th>target<th>sample<th><th>scores<th>answer</thead><tbody>\n"
                    ),
                )?;
            }
            if count <= most { put(out, row(shown.report, &case, word)) } else { Ok(()) }
        })?;
        if count > 0 {
            let more = if count > most {
                format!("<p class=quiet>{} more are not listed here; the run has them all.</p>\n", count - most)
            } else {
                String::new()
            };
            put(out, format!("</tbody></table>\n{more}"))?;
        }
    }
    Ok(())
}

fn row(report: &Report, case: &CaseRecord, word: &str) -> String {
    let said = case.error.as_deref().unwrap_or(&case.output);
    let calls = if case.tool_calls.is_null() { String::new() } else { format!("\n{}", case.tool_calls) };
    let notes = if case.notes.is_null() { String::new() } else { format!("\n{}", case.notes) };
    let answer = escape(&cut(&format!("{said}{calls}{notes}"), CHARACTERS));
    let sign = match word {
        "pass" => "✓",
        "miss" => "✗",
        "scored" => "·",
        _ => "!",
    };
    let (target, name, scores) = (escape(&case.target), escape(&case_name(report, case)), escape(&scores(case)));
    format!("<tr class={word}><td>{target}<td>{name}<td>{sign} {word}<td>{scores}<td><pre>{answer}</pre>\n")
}

fn escape(text: &str) -> String {
    markup(text, |c| match c {
        '\'' => Some("&#39;"),
        '\n' | '\t' => None,
        c if is_obeyed(c) => Some("\u{fffd}"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_text_is_never_markup() {
        assert_eq!(
            super::escape("</pre><script>alert('x')</script>\"&"),
            "&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"
        );
    }
}
