//! `refit eval power`: how many samples it takes to see a given difference, from what a run has measured.

use super::compare::Run;
use crate::cli::output;
use crate::evals::Suite;
use crate::evals::compare::Side;
use crate::evals::power::{Needed, Wanted, of_one, of_pair};
use crate::stats::Power;
use crate::store::Store;
use crate::store::runs;
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub(super) const EXAMPLES: &str = "\
Of a run with several targets each pair is told, of one with a single target what another one like it would take. Groups of samples
(`cluster`) and repeats are counted as the run has them.

Examples:
  refit eval power evals/support-intake.yaml --difference 0.03
  refit eval power run_0193/base --against run_0194/prompt --difference 0.02 --power 0.9";

/// Arguments of the verb.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Suite file (its newest run that ended), run id, `latest`, or RUN/TARGET
    run: String,
    /// RUN/TARGET that it is compared with
    #[arg(long, value_name = "RUN/TARGET")]
    against: Option<String>,
    /// True difference that is to be seen, in the unit of the metric
    #[arg(long, value_parser = positive)]
    difference: f64,
    /// Metric [default: the first that says pass or fail or how good]
    #[arg(long)]
    metric: Option<String>,
    /// Chance of seeing the difference
    #[arg(long, default_value_t = 0.8, value_parser = share)]
    power: f64,
    /// Chance of seeing one where there is none, two-sided
    #[arg(long, default_value_t = 0.05, value_parser = share)]
    alpha: f64,
    /// How far two targets go together over the samples, where only one was measured
    #[arg(long, default_value_t = 0.5, value_parser = correlation)]
    correlation: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite()).ok_or_else(|| "expected a number above 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| *number > 0.0 && *number < 1.0).ok_or_else(|| "expected a number between 0 and 1".into())
}

fn correlation(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| (-1.0..1.0).contains(number)).ok_or_else(|| "expected a number from -1 to less than 1".into())
}

/// Tells how many samples it takes.
pub(super) fn power(store: &Store, args: &Args) -> Result<ExitCode, Failure> {
    let a = Run::find(store, &newest(store, &args.run)?)?;
    let b = args.against.as_deref().map(|reference| Run::find(store, reference)).transpose()?;
    let power = Power { alpha: args.alpha, power: args.power };
    let wanted = Wanted { difference: args.difference, power, correlation: args.correlation };
    let all = needed(&a, b.as_ref(), args.metric.as_deref(), &wanted)?;
    if args.json {
        let Power { alpha, power } = power;
        output::json(&json!({"difference": args.difference, "alpha": alpha, "power": power, "comparisons": all}))?;
        return Ok(ExitCode::SUCCESS);
    }
    for one in &all {
        output::line(describe(one, &wanted))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A suite's newest run that ended; other references as they are.
fn newest(store: &Store, reference: &str) -> Result<String, Failure> {
    if !reference.ends_with(".yaml") && !reference.ends_with(".yml") {
        return Ok(reference.to_string());
    }
    let suite = Suite::open(Path::new(reference))?.name;
    let ended = |run: &runs::RunRecord| [runs::FINISHED, runs::PARTIAL, runs::INCOMPLETE, runs::SCORED].contains(&run.status.as_str());
    let found = runs::list(store.db.as_ref(), Some(&suite))?.into_iter().find(ended).map(|run| run.id);
    found.ok_or_else(|| {
        let failure =
            Failure::new(Code::UNKNOWN_NAME, format!("no run of suite \"{suite}\" ended yet: nobody knows how its samples spread"));
        failure.with_hint(format!("a part of the samples tells enough: refit eval run {reference} --limit 50"))
    })
}

fn needed(a: &Run, b: Option<&Run>, metric: Option<&str>, wanted: &Wanted) -> Result<Vec<Needed>, Failure> {
    let of_a = a.sides();
    let metric = match metric {
        Some(metric) => metric.to_string(),
        None => a.first_metric().ok_or_else(|| Failure::new(Code::INVALID_VALUE, "the run has no metric"))?,
    };
    let has = |side: &&Side<'_>| side.column.metrics.contains_key(&metric);
    if let Some(side) = of_a.iter().find(|side| !has(side)) {
        let known: Vec<&str> = side.column.metrics.keys().map(String::as_str).collect();
        let message = format!("{} has no metric \"{metric}\" (metrics: {})", side.name, known.join(", "));
        return Err(Failure::on(Code::UNKNOWN_NAME, "--metric", message));
    }
    let all: Vec<Needed> = match b {
        Some(b) => {
            let of_b = b.sides();
            of_a.iter().flat_map(|one| of_b.iter().map(|other| of_pair(&metric, *one, *other, wanted))).collect()
        }
        None if of_a.len() == 1 => vec![of_one(&metric, of_a[0], wanted)],
        None => {
            let pairs = (0..of_a.len()).flat_map(|later| (0..later).map(move |earlier| (earlier, later)));
            pairs.map(|(earlier, later)| of_pair(&metric, of_a[earlier], of_a[later], wanted)).collect()
        }
    };
    match all.iter().all(|one| one.n == 0) {
        true => Err(Failure::new(Code::INVALID_VALUE, "there is no sample that both have answered")),
        false => Ok(all),
    }
}

/// One line for people.
fn describe(one: &Needed, wanted: &Wanted) -> String {
    let Needed { a, b, metric, n, correlation, deviation, paired, unpaired, detectable, .. } = one;
    let who = b.as_ref().map_or_else(|| format!("{a} and another one like it"), |b| format!("{b} − {a}"));
    let samples = |cases: &Option<u64>| cases.map_or("?".to_string(), |cases| cases.to_string());
    let together = correlation.map_or("unknown".to_string(), |correlation| format!("{correlation:.2}"));
    let assumed = if b.is_none() { " (assumed)" } else { "" };
    let Power { alpha, power } = wanted.power;
    let mut text = format!(
        "{who}: {metric}: a difference of {} takes {} samples that both are asked, or {} of each if they are asked others \
         (power {power}, alpha {alpha}); from {n} samples: standard deviation of the differences {deviation:.3}, correlation {together}{assumed}",
        wanted.difference,
        samples(paired),
        samples(unpaired),
    );
    match detectable {
        Some(detectable) => text.push_str(&format!("; {n} samples show a difference of {detectable:.3}")),
        None => text.push_str("; no two samples differ in it, so that nothing is known about its spread"),
    }
    text
}
