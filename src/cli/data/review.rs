//! `refit data review …`: people look at what was proposed for a dataset.

use crate::cli::{Context, output};
use crate::jobs::data::review::{self, Reviewed, Said};
use crate::store::Store;
use crate::store::reviews::{self, Page, ReviewItem, STATUSES};
use crate::types::error::did_you_mean;
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  refit data review list support
  refit data review accept item_0197…
  refit data review edit item_0197… --target 'Your parcel is on its way.'
  refit data review reject item_0197… --comment 'not a question'
  refit data review settle item_0197… reject         where two do not agree, a third decides
  refit data review agreement support
  refit data review publish support";
/// Characters of a sample in a table.
const SHOWN: usize = 60;

/// Arguments of `refit data review`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List proposals, those first that came first
    List {
        /// Dataset
        dataset: String,
        /// open, disputed, accepted, rejected or published
        #[arg(long, default_value = "open")]
        status: String,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Print a JSON array with the whole samples
        #[arg(long)]
        json: bool,
    },
    /// Show a proposal with what was said of it, as JSON
    Show {
        /// Item
        item: String,
    },
    /// It may become part of the dataset as it is
    Accept(Word),
    /// It may, with other content
    Edit {
        #[command(flatten)]
        word: Word,
        #[command(flatten)]
        edit: Edit,
    },
    /// It may not
    Reject(Word),
    /// Decide where the reviewers do not agree
    Settle {
        #[command(flatten)]
        word: Word,
        /// accept, edit or reject
        verdict: String,
        #[command(flatten)]
        edit: Edit,
    },
    /// How often two reviewers say the same
    Agreement {
        /// Dataset
        dataset: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a version of the dataset with what was accepted
    Publish {
        /// Dataset
        dataset: String,
        /// Project whose samples are meant [needed where several have some]
        #[arg(long)]
        project: Option<String>,
        /// Print the version as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Whose word it is, and about what.
#[derive(clap::Args)]
struct Word {
    /// Item
    item: String,
    /// Who reviews [default: the user]
    #[arg(long = "as", value_name = "NAME")]
    reviewer: Option<String>,
    /// Why
    #[arg(long)]
    comment: Option<String>,
}

/// What the sample should be.
#[derive(clap::Args, Default)]
#[group(id = "edited")]
struct Edit {
    /// The target as text
    #[arg(long, conflicts_with = "sample")]
    target: Option<String>,
    /// JSON object with the fields that are other: input, target, metadata
    #[arg(long, value_name = "JSON")]
    sample: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// What `jobs::data::review` says.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let store = context.open_store()?;
    match args.verb {
        Verb::List { dataset, status, limit, json } => {
            list(&store, &Page { dataset: Some(&dataset), status: Some(&status), limit, ..Page::default() }, json)
        }
        Verb::Show { item } => output::json(&review::show(&store, None, &item, &context.actor())?),
        Verb::Accept(word) => say(&store, said(context, word, "accept", Edit::default())?),
        Verb::Edit { word, edit } => say(&store, said(context, word, "edit", edit)?),
        Verb::Reject(word) => say(&store, said(context, word, "reject", Edit::default())?),
        Verb::Settle { word, verdict, edit } => say(&store, Said { is_final: true, ..said(context, word, &verdict, edit)? }),
        Verb::Agreement { dataset, json } => agreement(&store, &dataset, json),
        Verb::Publish { dataset, project, json } => publish(&store, project.as_deref(), &dataset, json),
    }
}

fn list(store: &Store, page: &Page<'_>, json: bool) -> Result<(), Failure> {
    if let Some(status) = page.status.filter(|status| !STATUSES.contains(status)) {
        let message = format!("--status {status}: expected one of {}{}", STATUSES.join(", "), did_you_mean(status, STATUSES));
        return Err(Failure::on(Code::INVALID_VALUE, "status", message));
    }
    let (items, more) = reviews::list(store.db.as_ref(), page)?;
    if json {
        return output::json(&items);
    }
    let shortly = |value: &Value| {
        let text = crate::datasets::sample::text_of(value).replace('\n', " ");
        if text.chars().count() > SHOWN { format!("{}…", text.chars().take(SHOWN).collect::<String>()) } else { text }
    };
    let shown =
        |item: &ReviewItem| vec![item.id.clone(), item.reason.clone(), shortly(&item.sample["input"]), shortly(&item.sample["target"])];
    output::line(output::table(&["item", "why", "input", "target"], &items.iter().map(shown).collect::<Vec<_>>()))?;
    if more {
        output::note("there are more: --limit");
    }
    Ok(())
}

fn said(context: &Context, word: Word, verdict: &str, edit: Edit) -> Result<Said, Failure> {
    let wrong = |error: serde_json::Error| Failure::on(Code::INVALID_VALUE, "sample", format!("--sample: not JSON: {error}"));
    let edited = match edit {
        Edit { target: Some(target), .. } => Some(json!({"target": target})),
        Edit { sample: Some(sample), .. } => Some(serde_json::from_str(&sample).map_err(wrong)?),
        Edit { .. } => None,
    };
    let reviewer = word.reviewer.unwrap_or_else(|| context.actor());
    Ok(Said { item: word.item, reviewer, verdict: verdict.to_string(), edited, comment: word.comment, is_final: false })
}

fn say(store: &Store, said: Said) -> Result<(), Failure> {
    let Reviewed { item, reviewed, .. } = review::say(store, None, said)?;
    output::line(format!("{} is {} after {} of {} reviews", item.id, item.status, reviewed, item.needed))
}

fn agreement(store: &Store, dataset: &str, json: bool) -> Result<(), Failure> {
    let found = review::agreement(store, None, dataset)?;
    if json {
        return output::json(&found);
    }
    output::line(found.told())
}

fn publish(store: &Store, project: Option<&str>, dataset: &str, json: bool) -> Result<(), Failure> {
    let Some(row) = review::publish(store, project, dataset)? else {
        let failure = Failure::new(Code::CONFLICT, format!("nothing was accepted for {dataset} since it was last published"));
        return Err(failure.with_hint(format!("review what waits: refit data review list {dataset}")));
    };
    if json {
        return output::json(&row);
    }
    output::line(format!("{}@{} {} ({} samples)", row.dataset, row.version, row.digest, row.samples))
}
