//! `refit data import`: files, or files that were uploaded, become a version.

use crate::cli::output::Bar;
use crate::cli::{Context, output};
use crate::datasets::Datasets;
use crate::datasets::import::{Import, Imported, Part};
use crate::datasets::shapes::Mapping;
use crate::store::{Store, files};
use crate::types::{Code, Failure};
use serde_json::json;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Formats are seen by a file's ending (jsonl, csv, tsv, parquet; .gz and .zst of them), what the fields mean by the first record:
our own samples, conversations as OpenAI's fine-tuning takes them (messages), prompt and completion, preferences (prompt, chosen, rejected,
or OpenAI's preferred_output), and common names of question and answer. Of other columns say what they mean.

Examples:
  refit data import samples.jsonl --name support
  refit data import rows.csv --input message=text --target intent=category --id row
  refit data import --name banking --split-file train=train.csv --split-file test=test.csv
  refit data import dump.jsonl.gz --keep-going --rejects broken.jsonl
  refit data import file-0197… --name uploaded";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Files, or ids of files that were uploaded; together they are one version
    #[arg(required_unless_present = "split_files")]
    files: Vec<String>,
    /// A file with the split that its samples belong to
    #[arg(long = "split-file", value_name = "SPLIT=FILE", value_parser = pair)]
    split_files: Vec<(String, String)>,
    /// Name [default: the file's own name]
    #[arg(long)]
    name: Option<String>,
    /// jsonl, csv or parquet [default: by the file's ending]
    #[arg(long)]
    format: Option<String>,
    /// jsonl, openai-chat, prompt-completion, dpo or input-target [default: by the first record]
    #[arg(long, conflicts_with_all = ["input", "target"])]
    shape: Option<String>,
    /// Column that is a variable, under its own name or another
    #[arg(long, value_name = "[VARIABLE=]COLUMN")]
    input: Vec<String>,
    /// Column that is the target, or a field of it
    #[arg(long, value_name = "[FIELD=]COLUMN", requires = "input")]
    target: Vec<String>,
    /// Column that names the sample [default: its content does]
    #[arg(long, value_name = "COLUMN", requires = "input")]
    id: Option<String>,
    /// Separator of fields [default: the most frequent of , ; tab | in the header]
    #[arg(long, value_name = "CHARACTER")]
    separator: Option<String>,
    /// Go on after a broken record; it is written to a file with its place and what is wrong
    #[arg(long)]
    keep_going: bool,
    /// Where broken records go [default: NAME.rejects.jsonl]
    #[arg(long, value_name = "FILE", requires = "keep_going")]
    rejects: Option<PathBuf>,
    /// Project whose uploaded files are meant
    #[arg(long, default_value = "default")]
    project: String,
    /// Print the version as JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (split, file) = text.split_once('=').ok_or_else(|| "expected SPLIT=FILE, such as train=train.csv".to_string())?;
    Ok((split.to_string(), file.to_string()))
}

/// Runs the verb.
///
/// # Errors
/// What `datasets` says; an argument that is none.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let store = context.open_store()?;
    let given = args.files.iter().map(|file| (None, file)).chain(args.split_files.iter().map(|(split, file)| (Some(split.clone()), file)));
    let parts = given.map(|(split, file)| part(&store, &args.project, file, split)).collect::<Result<Vec<_>, _>>()?;
    let name = match (&args.name, parts.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => stem(only),
        (None, _) => {
            let failure = Failure::on(Code::MISSING_FIELD, "name", "several files become one dataset, which needs a name");
            return Err(failure.with_hint("say --name NAME"));
        }
    };
    let bar = Bar::bytes("import");
    let import = Import {
        name: &name,
        parts,
        format: args.format.as_deref(),
        shape: args.shape.as_deref(),
        mapping: mapping(&args)?,
        separator: args.separator.as_deref().map(separator).transpose()?,
        rejects: args.keep_going.then(|| args.rejects.clone().unwrap_or_else(|| format!("{name}.rejects.jsonl").into())),
        progress: Some(&bar),
    };
    let imported = Datasets::new(&store).import_files(&import)?;
    let rejects = import.rejects;
    drop(bar);
    tell(&imported, rejects.as_deref(), args.json)
}

/// A file, or what was uploaded under that id.
fn part(store: &Store, project: &str, file: &str, split: Option<String>) -> Result<Part, Failure> {
    let path = Path::new(file);
    if !file.starts_with("file-") || path.exists() {
        return Ok(Part { path: path.to_path_buf(), name: None, split });
    }
    let row = files::get(store.db.as_ref(), project, file)?;
    store.uploads.check(&row.digest)?;
    Ok(Part { path: store.uploads.path(&row.digest), name: Some(row.filename), split })
}

/// The name of a file without its endings.
fn stem(part: &Part) -> String {
    let name = part.name.clone().unwrap_or_else(|| part.path.to_string_lossy().into_owned());
    let file = name.rsplit('/').next().unwrap_or_default();
    let file = [".gz", ".zst", ".zstd"].iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(file);
    file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_string()
}

fn mapping(args: &Args) -> Result<Mapping, Failure> {
    let named = |text: &String| match text.split_once('=') {
        Some((name, column)) => (Some(name.to_string()), column.to_string()),
        None => (None, text.clone()),
    };
    let input: Vec<_> = args.input.iter().map(named).map(|(name, column)| (name.unwrap_or_else(|| column.clone()), column)).collect();
    let target: Vec<(Option<String>, String)> = args.target.iter().map(named).collect();
    if let [_, .., (None, whole)] | [(None, whole), .., _] = target.as_slice()
        && target.iter().any(|(field, _)| field.is_some())
    {
        let message = format!("--target {whole}: beside other fields of the target it needs a name of its own, such as {whole}={whole}");
        return Err(Failure::on(Code::INVALID_VALUE, "target", message));
    }
    Ok(Mapping { input, target, id: args.id.clone() })
}

fn separator(text: &str) -> Result<u8, Failure> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() => Ok(*byte),
        b"\\t" | b"tab" => Ok(b'\t'),
        _ => Err(Failure::on(Code::INVALID_VALUE, "separator", "--separator: expected one ASCII character, or tab")),
    }
}

fn tell(imported: &Imported, rejects: Option<&Path>, json: bool) -> Result<(), Failure> {
    let row = &imported.row;
    if !imported.is_new {
        output::note(format!("{}@{} has this content already", row.dataset, row.version));
    }
    if imported.repeated > 0 {
        output::note(format!("{} samples say what another one says; refit data check {} lists them", imported.repeated, row.dataset));
    }
    if let (Some(file), true) = (rejects, imported.rejected > 0) {
        output::note(format!("{} records are broken; they are in {} with the reason", imported.rejected, file.display()));
    }
    if json {
        let mut told = json!(row);
        told["rejected"] = imported.rejected.into();
        told["repeated"] = imported.repeated.into();
        return output::json(&told);
    }
    output::line(format!("{}@{} {} ({} samples)", row.dataset, row.version, row.digest, row.samples))
}
