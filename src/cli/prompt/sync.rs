//! `refit prompt sync`: files in a folder and the library, each brought to where the other is ahead; nothing is written over that
//! somebody changed.

use crate::access::audit;
use crate::cli::{Context, GATE_MISSED, output};
use crate::prompts::library::By;
use crate::prompts::sync::{Folder, Item, State};
use crate::types::Failure;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// What was done where it went wrong.
const FAILED: &str = "failed";

/// Arguments of `refit prompt sync`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with .prompt files
    folder: PathBuf,
    /// Only look; exit code 1 where anything differs
    #[arg(long)]
    check: bool,
    /// Only publish files
    #[arg(long, conflicts_with = "pull")]
    push: bool,
    /// Only write files
    #[arg(long)]
    pull: bool,
    /// Also write files for prompts that have none
    #[arg(long)]
    all: bool,
    /// Why, for what is published
    #[arg(long, short, default_value = "")]
    message: String,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Compares, and brings over what only one side changed.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode, Failure> {
    let store = context.open_store()?;
    let folder = Folder::open(&store, &args.folder)?;
    let (author, commit) = (context.actor(), audit::commit(&store));
    let by = By { author: &author, message: &args.message, commit: &commit };
    let mut items = folder.look()?;
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for item in &mut items {
        let brought = if args.check { Ok("") } else { bring(args, &folder, item, by) };
        // One that fails does not keep the others.
        done.push(brought.unwrap_or_else(|failure| {
            item.note = failure.to_string();
            failures.push((item.prompt.clone(), failure));
            FAILED
        }));
    }
    let rows: Vec<_> = items.iter().zip(done).collect();
    let missing = |item: &Item| item.state == State::LibraryOnly && args.all;
    let differs = |item: &Item| missing(item) || !matches!(item.state, State::Same | State::LibraryOnly);
    let left = rows.iter().filter(|(item, done)| differs(item) && done.is_empty()).count();
    print(args, &rows)?;
    let conflicts = rows.iter().filter(|(item, _)| item.state == State::BothChanged).collect::<Vec<_>>();
    for (item, _) in &conflicts {
        let (name, file) = (&item.prompt, item.file.display());
        let version = item.version.unwrap_or_default();
        output::note(format!(
            "{name}: both the file and the library changed. Look: refit prompt diff {file} {name}. Keep the file: refit prompt publish {file} \
             --parent {version}. Keep the library: refit prompt show {name} > {file}"
        ));
    }
    for (prompt, failure) in &failures {
        let hint = failure.hint().map_or(String::new(), |hint| format!(" ({hint})"));
        output::note(format!("{prompt}: {failure}{hint}"));
    }
    Ok(if left > 0 || !failures.is_empty() { ExitCode::from(GATE_MISSED) } else { ExitCode::SUCCESS })
}

/// Brings one side to where the other is; returns what was done.
fn bring(args: &Args, folder: &Folder<'_>, item: &Item, by: By<'_>) -> Result<&'static str, Failure> {
    match item.state {
        State::FileNew | State::FileNewer if !args.pull => {
            folder.push(item, by)?;
            Ok("published")
        }
        State::LibraryNewer if !args.push => {
            folder.pull(item)?;
            Ok("file written")
        }
        State::LibraryOnly if args.all && !args.push => {
            folder.pull(item)?;
            Ok("file written")
        }
        State::Same => {
            folder.agree(item)?;
            Ok("")
        }
        _ => Ok(""),
    }
}

fn print(args: &Args, rows: &[(&Item, &'static str)]) -> Result<(), Failure> {
    if args.json {
        let one = |(item, done): &(&Item, &'static str)| {
            let mut value = json!(item);
            value["done"] = (*done).into();
            value
        };
        return output::json(&rows.iter().map(one).collect::<Vec<_>>());
    }
    let row = |(item, done): &(&Item, &'static str)| {
        let version = item.version.map_or("-".into(), |version| version.to_string());
        vec![item.prompt.clone(), item.state.words().into(), version, (*done).into(), item.note.clone()]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    output::line(output::table(&["prompt", "state", "newest", "done", "note"], &rows))
}
