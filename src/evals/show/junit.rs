//! `junit`: the XML that continuous integration reads. A suite for each target, a test for each case; a case that did not get full marks is
//! a failure where there is no gate, one without an answer an error. A gate says itself what fails the build.

use super::escape::{escape as markup, is_obeyed};
use super::{Comparison, Show, Shown, case_name, cut, put, scores, verdict};
use crate::store::runs::CaseRecord;
use crate::types::Failure;
use std::io::Write;

/// Characters of an answer.
const CHARACTERS: usize = 4_000;

/// JUnit XML.
pub struct Junit;

impl Show for Junit {
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
        let report = shown.report;
        put(out, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\">\n", escape(&report.suite)))?;
        let mut open = String::new();
        shown.each_case(&mut |case| {
            if case.target != open {
                if !open.is_empty() {
                    put(out, "</testsuite>\n")?;
                }
                open.clone_from(&case.target);
                begin(shown, &open, out)?;
            }
            test(shown, &case, out)
        })?;
        if !open.is_empty() {
            put(out, "</testsuite>\n")?;
        }
        gate(shown, out)?;
        put(out, "</testsuites>\n")
    }

    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure> {
        let Comparison { a, b, worse, changed, metric, warnings, .. } = comparison;
        let (name, count) = (format!("{b} against {a}"), changed.len());
        let head = format!("<testsuite name=\"{}\" tests=\"{count}\" failures=\"{worse}\" errors=\"0\">", escape(&name));
        put(out, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{}\">\n{head}\n", escape(&name)))?;
        if !warnings.is_empty() {
            let each: String = warnings.iter().enumerate().map(|(at, one)| property(at, one)).collect();
            put(out, format!("<properties>{each}</properties>\n"))?;
        }
        for (at, one) in changed.iter().enumerate() {
            let test = format!("<testcase classname=\"{}\" name=\"{}\"", escape(&name), escape(&one.sample));
            let message = format!("{metric} {} -> {}", one.a, one.b);
            match at < *worse {
                true => put(out, format!("{test}><failure message=\"{}\"/></testcase>\n", escape(&message)))?,
                false => put(out, format!("{test}/>\n"))?,
            }
        }
        put(out, "</testsuite>\n</testsuites>\n")
    }
}

fn property(at: usize, warning: &str) -> String {
    format!("<property name=\"warning {}\" value=\"{}\"/>", at + 1, escape(warning))
}

fn begin(shown: Shown<'_>, target: &str, out: &mut dyn Write) -> Result<(), Failure> {
    let totals = shown.report.targets.iter().find(|one| one.name == target).map(|one| &one.totals);
    let (tests, errors) = totals.map_or((0, 0), |totals| (totals.n + totals.errors, totals.errors));
    // A gate allows for cases that miss.
    let missed = totals.map_or(0, |totals| totals.judged - totals.passed.min(totals.judged));
    let failures = if shown.report.gate.is_some() { 0 } else { missed };
    let name = format!("{}/{target}", shown.report.suite);
    put(out, format!("<testsuite name=\"{}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\">\n", escape(&name)))
}

fn test(shown: Shown<'_>, case: &CaseRecord, out: &mut dyn Write) -> Result<(), Failure> {
    let class = format!("{}.{}", shown.report.suite, case.target);
    let (class, name, seconds) = (escape(&class), escape(&case_name(shown.report, case)), case.latency_ms / 1e3);
    let head = format!("<testcase classname=\"{class}\" name=\"{name}\" time=\"{seconds:.3}\"");
    let said = escape(&cut(&case.output, CHARACTERS));
    match verdict(shown.report, case) {
        "pass" => put(out, format!("{head}/>\n")),
        // There is no test without an outcome: what nobody calls a failure is none.
        "scored" => put(
            out,
            format!("{head}><system-out>no scorer says pass or fail: {}&#10;{said}</system-out></testcase>\n", escape(&scores(case))),
        ),
        "miss" if shown.report.gate.is_some() => {
            put(out, format!("{head}><system-out>missed: {}&#10;{said}</system-out></testcase>\n", escape(&scores(case))))
        }
        "miss" => put(out, format!("{head}><failure message=\"{}\">{said}</failure></testcase>\n", escape(&scores(case)))),
        _ => {
            let why = case.error.as_deref().unwrap_or_default();
            let kind = why.split(':').next().unwrap_or_default();
            put(out, format!("{head}><error type=\"{}\" message=\"{}\"/></testcase>\n", escape(kind), escape(why)))
        }
    }
}

/// The gate as tests of its own: a missed one fails the build, whatever single cases may miss.
fn gate(shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(gate) = &shown.report.gate else { return Ok(()) };
    let thresholds = gate.verdicts.iter().map(|one| (one.verdict.passed, &one.target, &one.verdict.reason));
    let all: Vec<_> = thresholds.chain(gate.demands.iter().map(|one| (one.passed, &one.target, &one.reason))).collect();
    let missed = all.iter().filter(|(passed, ..)| !passed).count();
    let name = escape(&format!("{}/gate", shown.report.suite));
    put(out, format!("<testsuite name=\"{name}\" tests=\"{}\" failures=\"{missed}\" errors=\"0\">\n", all.len()))?;
    for (passed, target, reason) in all {
        let head =
            format!("<testcase classname=\"{}.gate\" name=\"{}\"", escape(&shown.report.suite), escape(&format!("{target}: {reason}")));
        put(out, if passed { format!("{head}/>\n") } else { format!("{head}><failure message=\"{}\"/></testcase>\n", escape(reason)) })?;
    }
    put(out, "</testsuite>\n")
}

/// A text for XML 1.0, in which some characters cannot be written at all.
fn escape(text: &str) -> String {
    markup(text, |c| match c {
        '\n' => Some("&#10;"),
        '\t' => Some("&#9;"),
        c if is_obeyed(c) => Some("\u{fffd}"),
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => Some("\u{fffd}"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        assert_eq!(super::escape("a<b> \"&\" \u{1b}[0m\n"), "a&lt;b&gt; &quot;&amp;&quot; \u{fffd}[0m&#10;");
    }
}
