//! `refit data list`, `log`, `diff` and `show`: what there is, where it came from, and what is different.

use crate::cli::{Context, output};
use crate::datasets::diff::Difference;
use crate::datasets::{Datasets, Sample, SplitManifest, split};
use crate::store::datasets::DatasetVersion;
use crate::types::Failure;
use crate::types::time::rfc3339;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Characters of a sample in a line.
const SHOWN: usize = 120;

/// Arguments of `list`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  refit data list --json")]
pub struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `log`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  refit data log support --json")]
pub struct LogArgs {
    /// Name
    dataset: String,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Arguments of `diff`.
#[derive(clap::Args)]
#[command(after_help = "Samples are compared by their ids and by their content.\n\nExample:\n  refit data diff support@1 support")]
pub struct DiffArgs {
    /// Name, name@version or digest
    from: String,
    /// Name, name@version or digest
    to: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `show`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  refit data show support --split test --limit 5")]
pub struct ShowArgs {
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
}

pub(super) fn list(args: &ListArgs, context: &Context) -> Result<(), Failure> {
    let rows = Datasets::new(&context.open_store()?).list()?;
    if args.json {
        return output::json(&rows);
    }
    let shown = |row: &DatasetVersion| {
        let (number, samples) = (row.version.to_string(), row.samples.to_string());
        vec![row.dataset.clone(), number, samples, row.digest.short(), split_of(row), rfc3339(row.created_at)]
    };
    output::line(output::table(
        &["name", "version", "samples", "digest", "splits", "imported"],
        &rows.iter().map(shown).collect::<Vec<_>>(),
    ))
}

fn split_of(row: &DatasetVersion) -> String {
    let splits: Option<SplitManifest> = serde_json::from_value(row.splits.clone()).ok().flatten();
    splits.as_ref().map_or("-".into(), sizes)
}

pub(super) fn sizes(splits: &SplitManifest) -> String {
    let size = |name: &&str| splits.sizes.get(*name).map(|size| format!("{name} {size}"));
    split::NAMES.iter().filter_map(size).collect::<Vec<_>>().join(", ")
}

pub(super) fn log(args: &LogArgs, context: &Context) -> Result<(), Failure> {
    let rows = Datasets::new(&context.open_store()?).history(&args.dataset)?;
    if args.json {
        return output::json(&rows);
    }
    let number: HashMap<String, i64> = rows.iter().map(|row| (row.digest.to_string(), row.version)).collect();
    let shown = |row: &DatasetVersion| {
        let text = |name: &str| row.lineage[name].as_str().unwrap_or_default().to_string();
        let parents = row.lineage["parents"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let parents: Vec<_> =
            parents.map(|digest| number.get(digest).map_or(digest.chars().take(19).collect(), |n| format!("@{n}"))).collect();
        let made = [text("kind"), text("source")].join(" ");
        let made = if parents.is_empty() { made } else { format!("{made} (of {})", parents.join(", ")) };
        vec![
            format!("{}@{}", row.dataset, row.version),
            row.samples.to_string(),
            row.digest.short(),
            split_of(row),
            made,
            rfc3339(row.created_at),
        ]
    };
    let heading = ["version", "samples", "digest", "splits", "made by", "when"];
    output::line(output::table(&heading, &rows.iter().map(shown).collect::<Vec<_>>()))
}

pub(super) fn diff(args: &DiffArgs, context: &Context) -> Result<(), Failure> {
    let found = Datasets::new(&context.open_store()?).diff(&args.from, &args.to)?;
    if args.json { output::json(&found) } else { output::line(describe(&found)) }
}

fn describe(found: &Difference) -> String {
    let Difference { from, to, added, removed, changed, renamed, same, examples } = found;
    let named = |row: &DatasetVersion| format!("{}@{}", row.dataset, row.version);
    let heading = format!(
        "{} to {}: {added} added, {removed} removed, {changed} changed, {renamed} renamed, {same} the same",
        named(from),
        named(to)
    );
    let mut lines = vec![heading];
    lines.extend(examples.added.iter().map(|sample| format!("+ {}", shortly(sample))));
    lines.extend(examples.removed.iter().map(|sample| format!("- {}", shortly(sample))));
    for [before, after] in &examples.changed {
        lines.extend([format!("~ {}", shortly(before)), format!("  {}", shortly(after))]);
    }
    if [added, removed, changed].iter().any(|count| **count > crate::datasets::diff::SHOWN) {
        lines.push(format!("(the first {} of each)", crate::datasets::diff::SHOWN));
    }
    lines.join("\n")
}

fn shortly(sample: &Sample) -> String {
    let text = format!("{}: {} -> {}", sample.id, json!(sample.input), sample.target);
    if text.chars().count() > SHOWN { format!("{}…", text.chars().take(SHOWN).collect::<String>()) } else { text }
}

pub(super) fn show(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let datasets = Datasets::new(&context.open_store()?);
    let row = datasets.get(&args.dataset)?;
    let most = args.limit.unwrap_or(usize::MAX);
    if let Some(split) = &args.split {
        // A split has an order of its own.
        let dataset = datasets.open(&args.dataset)?;
        let samples = dataset.part(Some(split))?.into_iter().take(most);
        return printed(&row, args.json, samples.map(|sample| Ok(sample.clone())));
    }
    printed(&row, args.json, datasets.stream(&row)?.take(most).map(|sample| sample.map_err(Failure::from)))
}

fn printed(row: &DatasetVersion, json: bool, samples: impl Iterator<Item = Result<Sample, Failure>>) -> Result<(), Failure> {
    if json {
        return output::json(&json!({"dataset": row, "samples": samples.collect::<Result<Vec<_>, _>>()?}));
    }
    let mut text = String::new();
    for sample in samples {
        let sample = sample?;
        text += &serde_json::to_string(&sample).unwrap_or_default();
        text.push('\n');
        if text.len() > 1 << 16 && !output::offer(std::mem::take(&mut text).as_bytes())? {
            return Ok(());
        }
    }
    output::bytes(text.as_bytes())
}
