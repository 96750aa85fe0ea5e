//! `refit data export`: samples in the shape that something else takes, one after the other.

use crate::cli::{Context, output};
use crate::datasets::{DatasetError, Datasets, Sample, shapes};
use crate::types::{Code, Failure};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashSet};

/// Bytes that are written together.
const GATHERED: usize = 1 << 16;
const CSV: &str = "csv";

/// Arguments of the verb.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  refit data export support --split train --format openai-chat > train.jsonl\n  \
    refit data export support --format csv > support.csv\n\n\
    A sample that cannot be written in the shape ends the export, naming it.")]
pub struct Args {
    /// Name, name@version or digest
    dataset: String,
    /// jsonl, csv, openai-chat, prompt-completion, dpo or input-target
    #[arg(long, default_value = "jsonl")]
    format: String,
    /// Only this split
    #[arg(long)]
    split: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// What `datasets` says; a sample that has not the shape.
pub fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let datasets = Datasets::new(&context.open_store()?);
    let row = datasets.get(&args.dataset)?;
    let ids = match &args.split {
        Some(split) => {
            Some(datasets.load(row.clone())?.part(Some(split))?.into_iter().map(|sample| sample.id.clone()).collect::<HashSet<_>>())
        }
        None => None,
    };
    let is_meant = |sample: &Sample| ids.as_ref().is_none_or(|ids| ids.contains(&sample.id));
    let stream = || Ok::<_, Failure>(datasets.stream(&row)?.filter(|sample| sample.as_ref().map_or(true, is_meant)));
    if args.format == CSV {
        // The columns are known when all samples were seen.
        let mut columns = Columns::default();
        for sample in stream()? {
            columns.see(&sample?);
        }
        return write(Some(columns.heading()), stream()?, |sample| Ok(columns.line(sample)));
    }
    let Some(shape) = shapes::named(&args.format) else {
        let message = format!("--format {}: expected one of {}, {CSV}", args.format, shapes::names().join(", "));
        return Err(Failure::on(Code::INVALID_VALUE, "format", message));
    };
    write(None, stream()?, |sample| Ok(shape.write(sample).map_err(DatasetError::Shape)?.to_string()))
}

fn write(
    heading: Option<String>,
    samples: impl Iterator<Item = Result<Sample, DatasetError>>,
    line: impl Fn(&Sample) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let mut gathered = heading.map(|heading| heading + "\n").unwrap_or_default();
    for sample in samples {
        gathered += &line(&sample?)?;
        gathered.push('\n');
        if gathered.len() > GATHERED && !output::offer(std::mem::take(&mut gathered).as_bytes())? {
            return Ok(());
        }
    }
    output::bytes(gathered.as_bytes())
}

/// The columns of a table of samples: variables, target or its fields, metadata.
#[derive(Default)]
struct Columns {
    input: BTreeSet<String>,
    target: BTreeSet<String>,
    metadata: BTreeSet<String>,
    has_whole_target: bool,
}

impl Columns {
    fn see(&mut self, sample: &Sample) {
        let add = |names: &mut BTreeSet<String>, fields: &Map<String, Value>| names.extend(fields.keys().cloned());
        add(&mut self.input, &sample.input);
        add(&mut self.metadata, &sample.metadata);
        match &sample.target {
            Value::Object(fields) => add(&mut self.target, fields),
            Value::Null => {}
            _ => self.has_whole_target = true,
        }
    }

    fn heading(&self) -> String {
        let named =
            |kind: &'static str, names: &BTreeSet<String>| names.iter().map(move |name| format!("{kind}.{name}")).collect::<Vec<_>>();
        let mut all = vec!["id".to_string()];
        all.extend(named("input", &self.input));
        all.extend(self.has_whole_target.then(|| "target".to_string()));
        all.extend(named("target", &self.target));
        all.extend(named("metadata", &self.metadata));
        all.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",")
    }

    fn line(&self, sample: &Sample) -> String {
        let cell = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => quoted(text),
            Some(other) => quoted(&other.to_string()),
        };
        let mut cells = vec![quoted(&sample.id)];
        cells.extend(self.input.iter().map(|name| cell(sample.input.get(name))));
        cells.extend(self.has_whole_target.then(|| cell(Some(&sample.target).filter(|target| !target.is_object()))));
        cells.extend(self.target.iter().map(|name| cell(sample.target.as_object().and_then(|fields| fields.get(name)))));
        cells.extend(self.metadata.iter().map(|name| cell(sample.metadata.get(name))));
        cells.join(",")
    }
}

/// A cell of RFC 4180.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_string() }
}
