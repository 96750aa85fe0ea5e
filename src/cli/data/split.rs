//! `refit data split`.

use super::versions::sizes;
use crate::cli::{Context, output};
use crate::datasets::import::Replace;
use crate::datasets::split::{self, Plan};
use crate::datasets::{Dataset, Datasets};
use crate::types::{Code, Failure};
use serde_json::json;

const EXAMPLES: &str = "\
The same seed and content give the same split.

Examples:
  refit data split support --by intent --train 0.6 --validation 0.15 --test 0.25
  refit data split support --group customer
  refit data split support --time created_at --train 0.8 --validation 0 --test 0.2";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name, name@version or digest
    dataset: String,
    /// Seed
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Target field that every split gets in the same shares
    #[arg(long)]
    by: Option<String>,
    /// Field of metadata, input or target: samples with the same value stand on one side
    #[arg(long, value_name = "FIELD")]
    group: Option<String>,
    /// Field with a time or a number: the newest are tested, the oldest trained on
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["by", "group"])]
    time: Option<String>,
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
}

/// Runs the verb.
///
/// # Errors
/// What `datasets` says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let Args { dataset, seed, by, group, time, train, validation, test, near, replace, json } = args;
    let plan = Plan { seed, by, sizes: [train, validation, test], near, group, time };
    let datasets = Datasets::new(&context.open_store()?);
    divided(&datasets.split(&dataset, &plan, if replace { Replace::Yes } else { Replace::No })?, json)
}

fn divided(dataset: &Dataset, json: bool) -> Result<(), Failure> {
    let Some(splits) = &dataset.splits else {
        return Err(Failure::new(Code::INTERNAL, "the split was not stored"));
    };
    if json {
        return output::json(&json!({"dataset": dataset.row.dataset, "digest": dataset.row.digest, "split": splits}));
    }
    let how = splits.method.told(splits.seed);
    output::line(format!("{}@{}: {} ({how})", dataset.row.dataset, dataset.row.version, sizes(splits)))
}
