//! Ways to show a report or a comparison: a file each, a word in [`FORMATS`]. Cases are read while they are written, so that a report of a
//! long run takes no more memory than one of a short run.

mod escape;
pub mod html;
pub mod json;
pub mod jsonl;
pub mod junit;
pub mod markdown;
pub mod table;

use super::Report;
use super::compare::{Changed, Difference};
use super::estimate::Passes;
use super::metrics::Totals;
use crate::store::Store;
use crate::store::cases::each_case;
use crate::store::runs::CaseRecord;
use crate::types::error::did_you_mean;
use crate::types::{Code, Failure};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// A report with what its cases are read from.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The report.
    pub report: &'a Report,
    /// Where its cases are.
    pub store: &'a Store,
}

impl Shown<'_> {
    /// Hands over the cases, in their order.
    pub(super) fn each_case(&self, take: &mut dyn FnMut(CaseRecord) -> Result<(), Failure>) -> Result<(), Failure> {
        each_case(self.store.db.as_ref(), &self.report.run, take)
    }
}

/// Two targets, compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What is compared with: `RUN/TARGET`.
    pub a: String,
    /// What is compared.
    pub b: String,
    /// Differences, `b` minus `a`.
    pub paired: Vec<Difference>,
    /// Metric that `changed` is about.
    pub metric: String,
    /// Samples that got worse.
    pub worse: usize,
    /// Samples that got better.
    pub better: usize,
    /// Samples that changed, the worse ones first.
    pub changed: Vec<Changed>,
    /// What makes the two less than comparable: other data, other scorers, samples that only one of them has.
    pub warnings: Vec<String>,
}

/// One way to show.
pub trait Show: Sync {
    /// Writes a run.
    ///
    /// # Errors
    /// When the output or the database fails.
    fn run(&self, shown: Shown<'_>, out: &mut dyn Write) -> Result<(), Failure>;

    /// Writes a comparison.
    ///
    /// # Errors
    /// When the output fails.
    fn comparison(&self, comparison: &Comparison, out: &mut dyn Write) -> Result<(), Failure>;
}

/// A way to show by its name and the endings of files that mean it.
pub struct Format {
    /// Name, for `--format`.
    pub name: &'static str,
    endings: &'static [&'static str],
    /// How it is written.
    pub show: &'static dyn Show,
}

/// The registry of formats.
pub const FORMATS: &[Format] = &[
    Format { name: "table", endings: &["txt"], show: &table::Table },
    Format { name: "json", endings: &["json"], show: &json::Json },
    Format { name: "jsonl", endings: &["jsonl", "ndjson"], show: &jsonl::Jsonl },
    Format { name: "html", endings: &["html", "htm"], show: &html::Html },
    Format { name: "junit", endings: &["xml"], show: &junit::Junit },
    Format { name: "markdown", endings: &["md", "markdown"], show: &markdown::Markdown },
];

/// The format of a name.
///
/// # Errors
/// [`Code::UNKNOWN_NAME`] with the nearest one.
pub fn named(name: &str) -> Result<&'static Format, Failure> {
    FORMATS.iter().find(|format| format.name == name).ok_or_else(|| {
        let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        let nearest = did_you_mean(name, names.iter().copied());
        Failure::on(Code::UNKNOWN_NAME, "--format", format!("there is no format \"{name}\"{nearest} (formats: {})", names.join(", ")))
    })
}

/// The format that a file's ending means.
///
/// # Errors
/// [`Code::UNKNOWN_NAME`] with the endings there are.
pub fn of_file(file: &Path) -> Result<&'static Format, Failure> {
    let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    FORMATS.iter().find(|format| format.endings.contains(&ending.as_str())).ok_or_else(|| {
        let known: Vec<String> = FORMATS.iter().map(|format| format!(".{}", format.endings[0])).collect();
        let message = format!("the ending of {} means no format", file.display());
        Failure::on(Code::UNKNOWN_NAME, "--out", message).with_hint(format!("endings: {}", known.join(", ")))
    })
}

/// Writes a text.
fn put(out: &mut dyn Write, text: impl AsRef<str>) -> Result<(), Failure> {
    out.write_all(text.as_ref().as_bytes()).map_err(|error| Failure::new(Code::STORAGE, format!("the report cannot be written: {error}")))
}

/// A text of at most so many characters, with a sign where it was cut.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// How a case went: `pass`, `miss`, `error`, or `scored` where nobody says pass or fail.
fn verdict(report: &Report, case: &CaseRecord) -> &'static str {
    match (&case.error, report.verdict(case)) {
        (Some(_), _) => "error",
        (None, Some(true)) => "pass",
        (None, Some(false)) => "miss",
        (None, None) => "scored",
    }
}

/// pass@k and pass^k of a target, each with its standard error, and their intervals; none where they are not told.
fn passes_at(totals: &Totals, k: usize) -> Option<(String, String)> {
    let Passes { any, any_standard_error, any_ci95, all, all_standard_error, all_ci95, .. } =
        totals.passes.iter().find(|passes| passes.k == k)?;
    let interval = |[low, high]: [f64; 2]| format!("[{low:.3}, {high:.3}]");
    Some((
        format!("{any:.3} ± {any_standard_error:.3} / {all:.3} ± {all_standard_error:.3}"),
        format!("{} / {}", interval(*any_ci95), interval(*all_ci95)),
    ))
}

/// The numbers of repeats that a report tells.
fn ks(report: &Report) -> Vec<usize> {
    report.targets.first().map(|target| target.totals.passes.iter().map(|passes| passes.k).collect()).unwrap_or_default()
}

/// A case's name in lists: its sample, and which of the repeats it is where there are several.
fn case_name(report: &Report, case: &CaseRecord) -> String {
    if report.repeats > 1 { format!("{} #{}", case.sample, case.repeat + 1) } else { case.sample.clone() }
}

/// Scores on one line: `exact_match 1 · has_text 0.5`.
fn scores(case: &CaseRecord) -> String {
    let each = case.scores.as_object().into_iter().flatten();
    each.map(|(metric, value)| format!("{metric} {value}")).collect::<Vec<_>>().join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_by_name_and_by_ending() {
        for (file, name) in [("a/report.HTML", "html"), ("x.xml", "junit"), ("x.md", "markdown"), ("x.jsonl", "jsonl"), ("x.json", "json")]
        {
            assert_eq!(of_file(Path::new(file)).map(|format| format.name).expect(file), name);
        }
        assert!(of_file(Path::new("report.pdf")).is_err_and(|failure| failure.hint().is_some_and(|hint| hint.contains(".html"))));
        assert!(named("htlm").is_err_and(|failure| failure.to_string().contains("did you mean \"html\"?")));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((cut("äöü", 2), cut("äöü", 3)), ("äö…".into(), "äöü".into()));
    }
}
