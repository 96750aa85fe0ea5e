//! `refit prompt diff`: two versions (or files) as text, by what callers notice, and rendered on the same inputs.

use super::{Variables, of_file};
use crate::cli::{Context, output};
use crate::datasets::Datasets;
use crate::prompts::{Input, Library, Prompt, diff, lint};
use crate::store::Store;
use crate::types::{Digest, Failure};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// Samples that are rendered where nothing is said.
const SAMPLES: usize = 5;

/// Arguments of `refit prompt diff`.
#[derive(clap::Args)]
pub struct Args {
    /// Older version, or a .prompt file
    old: String,
    /// Newer version, or a .prompt file
    new: String,
    #[command(flatten)]
    variables: Variables,
    /// Render both on samples of this dataset: name, name@2, or digest
    #[arg(long, value_name = "NAME", conflicts_with_all = ["var", "vars"])]
    dataset: Option<String>,
    /// Samples to render
    #[arg(long, default_value_t = SAMPLES, requires = "dataset")]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Variables with a name.
type Given = (String, Map<String, Value>);

/// One side.
struct Side {
    name: String,
    source: String,
    digest: Digest,
    prompt: Arc<Prompt>,
}

/// Prints what is different.
pub fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    let store = context.open_store()?;
    let (old, new) = (side(&store, &args.old)?, side(&store, &args.new)?);
    let text = diff::text((&old.name, &old.source), (&new.name, &new.source));
    let changes = lint::changes(&old.prompt, &new.prompt);
    let inputs = inputs(args, &store)?;
    let rendered: Vec<_> = inputs.iter().map(|(name, variables)| (name, both(&old, &new, variables))).collect();
    if args.json {
        let one = |(name, text): &(&String, Result<String, String>)| match text {
            Ok(text) => json!({"input": name, "equal": text.is_empty(), "diff": text}),
            Err(error) => json!({"input": name, "error": error}),
        };
        let side = |side: &Side| json!({"name": side.name, "digest": side.digest});
        return output::json(&json!({"old": side(&old), "new": side(&new), "equal": text.is_empty(), "diff": text, "changes": changes,
            "rendered": rendered.iter().map(one).collect::<Vec<_>>()}));
    }
    if text.is_empty() {
        output::note("the two versions are equal");
    }
    output::bytes(text.as_bytes())?;
    for change in &changes {
        output::note(format!("{}: {}", if change.breaking { "may break callers" } else { "change" }, change.message));
    }
    for (name, text) in &rendered {
        match text {
            Ok(text) if text.is_empty() => output::line(format!("\nrendered on {name}: the same"))?,
            Ok(text) => output::line(format!("\nrendered on {name}:\n{}", text.trim_end()))?,
            Err(error) => output::line(format!("\nrendered on {name}: {error}"))?,
        }
    }
    Ok(())
}

fn side(store: &Store, named: &str) -> Result<Side, Failure> {
    if named.ends_with(".prompt") {
        let (name, source) = of_file(Path::new(named))?;
        let prompt = Arc::new(Prompt::parse(&name, &source)?);
        return Ok(Side { name: named.to_string(), digest: prompt.digest, source, prompt });
    }
    let library = Library::new(store);
    let version = library.get(named)?;
    let prompt = library.compile(&version)?;
    Ok(Side { name: format!("{}@{}", version.prompt, version.version), digest: version.digest, source: version.source, prompt })
}

/// What both sides are rendered with, each with a name; nothing where nothing is given.
fn inputs(args: &Args, store: &Store) -> Result<Vec<Given>, Failure> {
    let Some(dataset) = &args.dataset else {
        let given = args.variables.read()?;
        return Ok(if given.is_empty() { Vec::new() } else { vec![("the given variables".to_string(), given)] });
    };
    let dataset = Datasets::new(store).open(dataset)?;
    let samples = dataset.part(None)?;
    Ok(samples.into_iter().take(args.limit).map(|sample| (format!("sample {}", sample.id), sample.input.clone())).collect())
}

/// The difference of what both sides render; an error names the side.
fn both(old: &Side, new: &Side, variables: &Map<String, Value>) -> Result<String, String> {
    let text = |side: &Side| {
        let rendered = side.prompt.render(&Input::of(variables)).map_err(|error| format!("{} cannot be rendered: {error}", side.name))?;
        let messages = rendered.messages.iter().map(|message| format!("── {} ──\n{}\n", message.role, message.plain_text().trim_end()));
        Ok::<_, String>(messages.collect::<String>())
    };
    Ok(diff::text((&old.name, &text(old)?), (&new.name, &text(new)?)))
}
