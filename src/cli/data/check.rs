//! `refit data check`: every check in one report, and with `--fix` a version without what may go.

use crate::cli::logs::filters::Filters;
use crate::cli::output::Bar;
use crate::cli::{Context, GATE_MISSED, output};
use crate::datasets::check::fix::{self, Fix};
use crate::datasets::check::{self as checks, Balance, Match, Report};
use crate::datasets::{Dataset, Datasets};
use crate::jobs::data::check::{Around, Whole};
use crate::jobs::data::{self, Coverage, Wishes};
use crate::types::Failure;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Findings of one kind that are printed.
const SHOWN: usize = 10;

const EXAMPLES: &str = "\
Exit code 1 when duplicates, contradictions or leakage were found; with --fix when the new version still has some.

Examples:
  refit data check support --json
  refit data check support --tokens local/smollm2-135m-instruct
  refit data check support --fix                      a version without samples that another one repeats
  refit data check support --coverage --since 7d      what live requests ask that the dataset lacks";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name, name@version or digest
    dataset: String,
    /// Model whose tokens are counted
    #[arg(long = "tokens", value_name = "PROVIDER/MODEL")]
    models: Vec<String>,
    /// Model that makes vectors, for outliers, labels and coverage [default: local/all-minilm-l6-v2, where it is stored]
    #[arg(long, value_name = "MODEL")]
    embedder: Option<String>,
    /// Compare with the requests of the log; the filters say which
    #[arg(long)]
    coverage: bool,
    #[command(flatten)]
    filters: Filters,
    /// Store a version without the samples that repeat another one, question and answer
    #[arg(long)]
    fix: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// What the store says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let app = context.app()?;
    let datasets = Datasets::new(&app.store);
    let dataset = datasets.open(&args.dataset)?;
    let bar = Bar::counting("check");
    let wishes = Wishes { models: args.models, embedder: args.embedder, traffic: args.coverage.then(|| args.filters.filter()) };
    let config = app.config();
    let around = Around { store: &app.store, inference: &app.inference, log: &config.log, guardrails: &config.guardrails, progress: &bar };
    let whole = context.runtime()?.block_on(data::check::check(&dataset, &wishes, &around))?;
    drop(bar);
    let (fixed, is_clean) = match args.fix {
        true => fixed(&datasets, &dataset, &whole.report).map(|(fixed, is_clean)| (Some(fixed), is_clean))?,
        false => (None, whole.report.is_clean()),
    };
    if args.json {
        let mut told = json!(whole);
        if let Some(fixed) = &fixed {
            told["fixed"] = fixed.clone();
        }
        output::json(&told)?;
    } else {
        output::line(describe(&whole))?;
        if let Some(fixed) = &fixed {
            output::line(tell_fixed(fixed))?;
        }
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::from(GATE_MISSED) })
}

/// Stores what is left when the safe ones are gone; whether nothing is to be found in it any more.
fn fixed(datasets: &Datasets, dataset: &Dataset, report: &Report) -> Result<(Value, bool), Failure> {
    let fix = fix::fix(dataset);
    if fix.removed.is_empty() {
        return Ok((json!({"removed": 0, "version": null}), report.is_clean()));
    }
    let row = datasets.without(dataset, &fix)?;
    let version = format!("{}@{}", row.dataset, row.version);
    let is_clean = checks::check(&datasets.open(&version)?, None).is_clean();
    let Fix { removed, leaks } = fix;
    let told = json!({"removed": removed.len(), "leaks": leaks, "version": version, "digest": row.digest, "samples": row.samples});
    Ok((told, is_clean))
}

fn tell_fixed(fixed: &Value) -> String {
    match fixed["version"].as_str() {
        Some(version) => format!(
            "{version} has {} samples: {} that repeat another one are gone, {} of them across splits",
            fixed["samples"], fixed["removed"], fixed["leaks"]
        ),
        None => "nothing may go without a person's look".into(),
    }
}

fn describe(whole: &Whole) -> String {
    let report = &whole.report;
    let length = &report.length;
    let mut lines = vec![format!(
        "{} samples, {} without target; {}: {} to {}, median {}, 95th percentile {}",
        report.samples,
        report.without_target,
        length.unit,
        length.min,
        length.max,
        tenth(length.p50),
        tenth(length.p95)
    )];
    for tokens in &report.tokens {
        let length = &tokens.length;
        lines.push(format!(
            "tokens of {}: {} in all, {} to {} each, median {}, 95th percentile {}",
            tokens.model,
            tokens.total,
            length.min,
            length.max,
            tenth(length.p50),
            tenth(length.p95)
        ));
    }
    let counts = &report.counts;
    for (name, found, count) in [
        ("duplicates", &report.duplicates, counts.duplicates),
        ("duplicates but for case and punctuation", &report.normalised_duplicates, counts.normalised_duplicates),
        ("near-duplicates", &report.near_duplicates, counts.near_duplicates),
        ("contradictions (alike, other target)", &report.contradictions, counts.contradictions),
        ("leakage between splits", &report.leakage, counts.leakage),
    ] {
        add_some(&mut lines, name, found.iter().map(pair), count);
    }
    lines.extend(report.balance.iter().map(|(field, balance)| values(field, balance)));
    lines.push(languages(report));
    if let Some(personal) = &report.personal {
        let counts: Vec<_> = personal.counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let name =
            format!("personal data or secrets{}", if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) });
        add(&mut lines, &name, personal.samples.iter().map(|sample| format!("  {}: {}", sample.id, sample.kinds.join(", "))));
    }
    if let Some(suspects) = &report.label_errors {
        let name = format!("labels that look wrong ({})", suspects.field);
        let shown = |suspect: &crate::datasets::check::labels::Suspect| {
            format!("  {}: {}, but {:.0} % of its neighbours are {}", suspect.id, suspect.label, suspect.share * 100.0, suspect.likely)
        };
        add(&mut lines, &name, suspects.samples.iter().map(shown));
    }
    if let Some(outliers) = &report.outliers {
        add(
            &mut lines,
            "outliers",
            outliers.samples.iter().map(|outlier| format!("  {}  {:.2} from its neighbours", outlier.id, outlier.distance)),
        );
    }
    if let Some(coverage) = &whole.coverage {
        covered(&mut lines, coverage);
    }
    lines.extend(report.skipped.iter().map(|skipped| format!("not checked: {} ({})", skipped.check, skipped.reason)));
    lines.join("\n")
}

/// A number with at most one decimal.
fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// A heading with its count, and the first of the findings.
fn add(lines: &mut Vec<String>, name: &str, found: impl ExactSizeIterator<Item = String>) {
    let count = found.len();
    add_some(lines, name, found, count);
}

/// The same where not all of the findings are there.
fn add_some(lines: &mut Vec<String>, name: &str, found: impl Iterator<Item = String>, count: usize) {
    lines.push(format!("{name}: {count}"));
    lines.extend(found.take(SHOWN));
    if count > SHOWN {
        lines.push(format!("  and {} more (--json lists more)", count - SHOWN));
    }
}

fn covered(lines: &mut Vec<String>, coverage: &Coverage) {
    let share = 100.0 * coverage.covered as f64 / coverage.requests.max(1) as f64;
    lines.push(format!(
        "live requests: {} of {} ({share:.0} %) have something like them in the dataset",
        coverage.covered, coverage.requests
    ));
    for kind in coverage.lacking.iter().take(SHOWN) {
        lines.push(format!("  lacking: {} like {}: {}", kind.requests, kind.request_id, kind.example.replace('\n', " ")));
    }
}

fn languages(report: &Report) -> String {
    let mix = &report.languages;
    let mut counts: Vec<_> = mix.counts.iter().collect();
    counts.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let mut shown: Vec<_> = counts.iter().take(SHOWN).map(|(language, count)| format!("{language} {count}")).collect();
    shown.push(format!("not sure {}", mix.unknown));
    format!("languages: {}", shown.join(", "))
}

fn pair(found: &Match) -> String {
    let side = |i: usize| found.splits[i].as_ref().map_or(found.ids[i].clone(), |split| format!("{} ({split})", found.ids[i]));
    format!("  {} ~ {}  {:.2}", side(0), side(1), found.similarity)
}

fn values(field: &str, balance: &Balance) -> String {
    let shown = |(value, count): &(Value, usize)| format!("{} {count}", value.as_str().map_or(value.to_string(), String::from));
    let counts = balance.counts.iter().map(shown).collect::<Vec<_>>().join(", ");
    let counts = if counts.is_empty() { format!("{} null", balance.nulls) } else { counts };
    format!("{field}: {} values: {counts}", balance.distinct)
}
