//! `refit data …`: import, check, split, list and show datasets.

use super::{Context, output};
use crate::datasets::check::{self, Balance, Match, Report};
use crate::datasets::import::Replace;
use crate::datasets::split::{self, Plan};
use crate::datasets::{Dataset, Datasets, SplitManifest};
use crate::store::datasets::DatasetVersion;
use crate::types::time::rfc3339;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
A dataset is a file of samples, one JSON object per line: {\"id\": …, \"input\": {…}, \"target\": …, \"metadata\": {…}}.
A version is named by its content; importing the same file again changes nothing.

Examples:
  refit data import evals/data/support-intake.jsonl
  refit data split support-intake --by intent --train 260 --validation 60 --test 130
  refit data check support-intake";

/// Arguments of `refit data`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Read a file into the store; a broken line is named and nothing is stored
    #[command(after_help = "Example:\n  refit data import samples.jsonl --name support")]
    Import {
        /// File
        file: PathBuf,
        /// Name [default: the file's own name]
        #[arg(long)]
        name: Option<String>,
        /// Format [default: by the file's ending]
        #[arg(long)]
        format: Option<String>,
        /// Print the version as JSON
        #[arg(long)]
        json: bool,
    },
    /// Report duplicates, near-duplicates, leakage between splits, balance and lengths
    #[command(
        after_help = "Exit code 1 when duplicates, contradictions or leakage were found.\n\nExample:\n  refit data check support --json"
    )]
    Check {
        /// Name, name@version or digest
        dataset: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Divide into train, validation and test
    #[command(after_help = "The same seed and content give the same split.\n\nExample:\n  \
        refit data split support --by intent --train 0.6 --validation 0.15 --test 0.25")]
    Split {
        /// Name, name@version or digest
        dataset: String,
        /// Seed
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// Target field that every split gets in the same shares
        #[arg(long)]
        by: Option<String>,
        /// Share (up to 1) or count
        #[arg(long, default_value_t = 0.6)]
        train: f64,
        /// Share (up to 1) or count
        #[arg(long, default_value_t = 0.15)]
        validation: f64,
        /// Share (up to 1) or count
        #[arg(long, default_value_t = 0.25)]
        test: f64,
        /// Similarity (0 to 1) from which samples are kept on one side; above 1 none are
        #[arg(long, default_value_t = split::NEAR)]
        near: f64,
        /// Put a stored split with another plan aside
        #[arg(long)]
        replace: bool,
        /// Print the split as JSON
        #[arg(long)]
        json: bool,
    },
    /// List datasets
    #[command(after_help = "Example:\n  refit data list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print samples as JSON lines
    #[command(after_help = "Example:\n  refit data show support --split test --limit 5")]
    Show {
        /// Name, name@version or digest
        dataset: String,
        /// Only this split
        #[arg(long)]
        split: Option<String>,
        /// At most this many
        #[arg(long)]
        limit: Option<usize>,
        /// Print the version's record and the samples as one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// What `datasets` says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let datasets = Datasets::new(&context.open_store()?);
    match args.verb {
        Verb::Import { file, name, format, json } => {
            let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let (row, is_new) = datasets.import(&name.unwrap_or_else(stem), &file, format.as_deref())?;
            imported(&row, is_new, json)?;
        }
        Verb::Check { dataset, json } => return checked(&datasets.open(&dataset)?, json),
        Verb::Split { dataset, seed, by, train, validation, test, near, replace, json } => {
            let plan = Plan { seed, by, sizes: [train, validation, test], near };
            let dataset = datasets.split(&dataset, &plan, if replace { Replace::Yes } else { Replace::No })?;
            divided(&dataset, json)?;
        }
        Verb::List { json } => list(&datasets, json)?,
        Verb::Show { dataset, split, limit, json } => show(&datasets.open(&dataset)?, split.as_deref(), limit, json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn imported(row: &DatasetVersion, is_new: bool, json: bool) -> Result<(), Failure> {
    if !is_new {
        output::note(format!("{}@{} has this content already", row.dataset, row.version));
    }
    if json {
        return output::json(row);
    }
    output::line(format!("{}@{} {} ({} samples)", row.dataset, row.version, row.digest, row.samples))
}

fn divided(dataset: &Dataset, json: bool) -> Result<(), Failure> {
    let Some(splits) = &dataset.splits else {
        return Err(Failure::new(Code::INTERNAL, "the split was not stored"));
    };
    if json {
        return output::json(&json!({"dataset": dataset.row.dataset, "digest": dataset.row.digest, "split": splits}));
    }
    output::line(format!("{}@{}: {} (seed {})", dataset.row.dataset, dataset.row.version, sizes(splits), splits.seed))
}

fn sizes(splits: &SplitManifest) -> String {
    let size = |name: &&str| splits.sizes.get(*name).map(|size| format!("{name} {size}"));
    split::NAMES.iter().filter_map(size).collect::<Vec<_>>().join(", ")
}

fn list(datasets: &Datasets, json: bool) -> Result<(), Failure> {
    let rows = datasets.list()?;
    if json {
        return output::json(&rows);
    }
    let shown = |row: &DatasetVersion| {
        let splits: Option<SplitManifest> = serde_json::from_value(row.splits.clone()).ok().flatten();
        let (number, samples) = (row.version.to_string(), row.samples.to_string());
        let splits = splits.as_ref().map_or("-".into(), sizes);
        vec![row.dataset.clone(), number, samples, row.digest.short(), splits, rfc3339(row.created_at)]
    };
    output::line(output::table(
        &["name", "version", "samples", "digest", "splits", "imported"],
        &rows.iter().map(shown).collect::<Vec<_>>(),
    ))
}

fn show(dataset: &Dataset, split: Option<&str>, limit: Option<usize>, json: bool) -> Result<(), Failure> {
    let samples = dataset.part(split)?;
    let samples = &samples[..limit.unwrap_or(samples.len()).min(samples.len())];
    if json {
        return output::json(&json!({"dataset": dataset.row, "samples": samples}));
    }
    let mut text = String::new();
    for sample in samples {
        text += &serde_json::to_string(sample).unwrap_or_default();
        text.push('\n');
    }
    output::bytes(text.as_bytes())
}

fn checked(dataset: &Dataset, json: bool) -> Result<ExitCode, Failure> {
    let report = check::check(dataset, None);
    if json {
        output::json(&report)?;
    } else {
        output::line(describe(&report))?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(super::GATE_MISSED) })
}

fn describe(report: &Report) -> String {
    let length = &report.length;
    let mut lines = vec![format!(
        "{} samples, {} without target; {}: {} to {}, median {}, 95th percentile {}",
        report.samples, report.without_target, length.unit, length.min, length.max, length.p50, length.p95
    )];
    for (name, found) in [
        ("duplicates", &report.duplicates),
        ("duplicates but for case and punctuation", &report.normalised_duplicates),
        ("near-duplicates", &report.near_duplicates),
        ("contradictions (alike, other target)", &report.contradictions),
        ("leakage between splits", &report.leakage),
    ] {
        lines.push(format!("{name}: {}", found.len()));
        lines.extend(found.iter().take(10).map(pair));
        if found.len() > 10 {
            lines.push(format!("  and {} more (--json lists all)", found.len() - 10));
        }
    }
    lines.extend(report.balance.iter().map(|(field, balance)| values(field, balance)));
    lines.join("\n")
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
