//! `refit data curate`: logged requests become proposals for a dataset.

use crate::cli::logs::filters::Filters;
use crate::cli::{Context, output};
use crate::jobs::data::curate::{self, Curated, Curation};
use crate::types::Failure;
use serde_json::json;

const EXAMPLES: &str = "\
What detectors take for personal data or a secret is replaced first ([email], [credit_card], …). Proposals wait for review; what is accepted becomes
a version with `refit data review publish`.

Examples:
  refit data curate support --since 7d --route support --limit 200
  refit data curate support --corrected                     answers that somebody corrected, with the correction
  refit data curate support --max-feedback helpful=0        answers that did not help
  refit data curate support --judge openai/gpt-4o-mini      answers that a model does not agree with
  refit data curate support --stored topic=returns          completions stored with these metadata";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the dataset
    dataset: String,
    #[command(flatten)]
    filters: Filters,
    /// Only requests with a correction, which becomes the target
    #[arg(long)]
    corrected: bool,
    /// Only requests whose mean feedback is at most this
    #[arg(long, value_name = "[NAME=]NUMBER", value_parser = disliked)]
    max_feedback: Option<(Option<String>, f64)>,
    /// Only completions that were stored (store: true), with these metadata where some are named
    #[arg(long, value_name = "KEY=VALUE", num_args = 0.., value_parser = pair)]
    stored: Option<Vec<(String, String)>>,
    /// Only requests whose answer this model does not agree with
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// Name of the variable that the user's last message becomes [default: all messages are the input]
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// At most so many proposals
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// How many people must look at each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    reviewers: u8,
    /// Store nothing; print the proposals as JSON lines
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "expected KEY=VALUE".to_string())?;
    Ok((key.to_string(), value.to_string()))
}

fn disliked(text: &str) -> Result<(Option<String>, f64), String> {
    let (name, number) = text.rsplit_once('=').map_or((None, text), |(name, number)| (Some(name.to_string()), number));
    let most = number.parse::<f64>().ok().filter(|number| number.is_finite());
    Ok((name, most.ok_or_else(|| "expected a number, or NAME=NUMBER".to_string())?))
}

/// Runs the verb.
///
/// # Errors
/// What `jobs::data::curate` says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let app = context.app()?;
    let curation = Curation {
        dataset: args.dataset,
        filter: args.filters.filter(),
        corrected: args.corrected,
        disliked: args.max_feedback,
        stored: args.stored,
        judge: args.judge,
        variable: args.variable,
        limit: args.limit,
        needed: args.reviewers.into(),
        log: app.config().log.clone(),
        guardrails: app.config().guardrails.clone(),
    };
    let work = curate::curate(&app.store, &app.inference, &curation, args.dry_run);
    let (curated, items) = context.runtime()?.block_on(work)?;
    if args.dry_run {
        for item in &items {
            output::json(&json!({"reason": item.reason, "project": item.project, "sample": item.sample}))?;
        }
        output::note(format!("{} would be proposed; {}", items.len(), rest(&curated)));
        return Ok(());
    }
    if args.json {
        return output::json(&curated);
    }
    output::line(format!("{} proposed for {}; {}", curated.proposed, curation.dataset, rest(&curated)))
}

fn rest(curated: &Curated) -> String {
    let Curated { looked_at, known, repeated, left_out, redacted, unjudged, .. } = curated;
    let mut parts = vec![format!("{looked_at} requests looked at")];
    for (count, what) in [
        (known, "proposed before"),
        (repeated, "the same as another one"),
        (left_out, "without a whole conversation"),
        (redacted, "with something personal taken out"),
        (unjudged, "could not be judged"),
    ] {
        if *count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}
