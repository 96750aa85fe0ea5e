//! Answers from a file of JSON lines: each line has the answers of one sample, of one target or of several, and may bring the sample
//! along. The file is read twice, line by line: once to check it and to store its samples, once to score.

use super::{Others, Scoring, compared_with, hand_over, keep_targets};
use crate::datasets::{Datasets, Sample};
use crate::evals::prepare::{Plan, PlanTarget, dataset};
use crate::evals::samples::Samples;
use crate::evals::{EvalError, Suite};
use crate::releases::Manifest;
use crate::store::cases::CaseRecord;
use crate::store::datasets::{self as rows, DatasetVersion};
use crate::store::{Store, StoreError};
use crate::types::chat::Content;
use crate::types::ids::is_slug;
use crate::types::time::now_ms;
use crate::types::{Code, Digest, Failure};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Where in a line things are, as names of fields or JSON pointers.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// Answers, by the target that gave them.
    pub outputs: Vec<(String, String)>,
    /// What the answer should be; without it the samples are those of the suite's dataset.
    pub target: Option<String>,
    /// The sample's id; its number without it.
    pub id: Option<String>,
    /// Variables of the sample, by name.
    pub inputs: Vec<(String, String)>,
    /// What else is known about the sample, by name.
    pub metadata: Vec<(String, String)>,
}

/// A file of answers.
struct Outputs {
    path: PathBuf,
    fields: Fields,
    /// The samples of the dataset, where they are not the file's.
    known: Option<Known>,
}

/// Samples by their ids and by their places.
#[derive(Default)]
struct Known {
    places: HashMap<String, usize>,
    ids: Vec<String>,
}

/// The answers of a line.
struct Answers {
    line: usize,
    position: usize,
    id: String,
    /// By target.
    outputs: Vec<(String, Said)>,
}

/// An answer: a text, or an assistant's message with a text and tool calls.
struct Said {
    text: String,
    tool_calls: Value,
}

impl Said {
    fn of(value: &Value) -> Self {
        match value.get("role").and_then(Value::as_str) {
            Some("assistant") => {
                let content = value.get("content").filter(|content| !content.is_null()).cloned();
                let content = content.and_then(|content| serde_json::from_value::<Content>(content).ok());
                let text = content.map(|content| content.plain_text()).unwrap_or_default();
                Said { text, tool_calls: value.get("tool_calls").cloned().unwrap_or_default() }
            }
            _ => Said { text: text(value), tool_calls: Value::Null },
        }
    }
}

/// One line, read.
struct Line {
    number: usize,
    value: Value,
}

/// Gets a file of answers ready to be scored by a suite's scorers.
///
/// # Errors
/// The first line that is broken, by its number; a file without lines.
pub fn outputs(store: &Store, file: &Path, fields: Fields, mut suite: Suite) -> Result<Scoring, Failure> {
    let mut outputs = Outputs { path: file.to_path_buf(), fields: fields.spelled_out(), known: None };
    let digest = Digest::of(&std::fs::read(file).map_err(|cause| outputs.unreadable(cause))?);
    let (row, assignment) = match outputs.fields.target {
        Some(_) => (outputs.store_samples(store)?, None),
        None => {
            let (row, assignment) = dataset(store, &suite)?;
            (row, suite.split.clone().zip(assignment))
        }
    };
    if assignment.is_none() {
        suite.split = None;
    }
    let samples = Samples::open(store, &row, assignment.as_ref().map(|(split, digest)| (split.as_str(), digest)), None)?;
    if outputs.fields.target.is_none() {
        let ids = samples.iter().map(|sample| Ok(sample?.id)).collect::<Result<Vec<_>, StoreError>>()?;
        outputs.known = Some(Known { places: ids.iter().cloned().zip(0..).collect(), ids });
    }
    // Only one answer of each.
    suite.repeats = 1;
    let targets: Vec<PlanTarget> = outputs.fields.outputs.iter().map(|(name, _)| target(name, digest)).collect();
    let split = suite.split.clone().unwrap_or_else(|| "all".into());
    let assignment = assignment.map(|(_, digest)| digest);
    let (dataset, dataset_digest) = (row.dataset, row.digest);
    let mut plan = Plan { suite, dataset, dataset_digest, split, assignment, limit: None, prompts: Vec::new(), samples, targets };
    keep_targets(&mut plan);
    let (cases, others) = outputs.look_through(&compared_with(&plan))?;
    let from = file.display().to_string();
    let source = Box::new(move |_: &Store, sender: &tokio::sync::mpsc::Sender<_>| {
        outputs.each(&mut |answers| {
            let Answers { position, id, outputs, .. } = answers;
            let mut cases = outputs.into_iter().map(|(target, output)| case(target, output, (position, id.clone())));
            cases.try_for_each(|case| Ok(hand_over(sender, case)?))
        })
    });
    Ok(Scoring { plan, cases, source, from, others })
}

/// A suite made of scorers alone, for answers that need no other.
///
/// # Errors
/// As [`Suite::parse`].
pub fn suite_of(name: &str, scorers: &[Value], targets: &[String]) -> Result<Suite, EvalError> {
    let target = |name: &String| json!({"name": name, "model": format!("outputs/{name}")});
    let targets: Vec<_> = targets.iter().map(target).collect();
    let source = json!({"name": name, "dataset": name, "targets": targets, "scorers": scorers});
    Suite::parse(&format!("{source:#}\n"), "--scorer", Path::new(""))
}

/// What a file is called as a dataset and a suite: its name without the ending.
///
/// # Errors
/// Where that is no name.
pub fn name_of(file: &Path) -> Result<String, Failure> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).take(64).collect();
    match is_slug(&plain) {
        true => Ok(plain),
        false => Err(Failure::on(Code::INVALID_VALUE, "--name", format!("{} has no name that can be used", file.display()))
            .with_hint("give one: --name NAME")),
    }
}

/// What a file's answers stand for. No release can be that: nothing answers under this name.
fn target(name: &str, file: Digest) -> PlanTarget {
    let manifest = Manifest {
        model: format!("outputs/{name}"),
        model_digest: Some(file),
        adapter: None,
        prompt: None,
        parameters: Map::new(),
        tools: Vec::new(),
        response_format: None,
        guardrails: Vec::new(),
    };
    PlanTarget { name: name.to_string(), release: manifest.digest(), manifest }
}

fn case(target: String, said: Said, (position, sample): (usize, String)) -> CaseRecord {
    let Said { text: output, tool_calls } = said;
    CaseRecord { target, sample, position, output, tool_calls, scores: json!({}), finished_at: now_ms(), ..CaseRecord::default() }
}

impl Fields {
    /// Names of fields as JSON pointers.
    fn spelled_out(self) -> Self {
        let pointer = |field: String| match field.starts_with('/') {
            true => field,
            false => format!("/{}", field.replace('~', "~0").replace('/', "~1")),
        };
        let each = |pairs: Vec<(String, String)>| pairs.into_iter().map(|(name, field)| (name, pointer(field))).collect();
        Fields {
            outputs: each(self.outputs),
            target: self.target.map(pointer),
            id: self.id.map(pointer),
            inputs: each(self.inputs),
            metadata: each(self.metadata),
        }
    }
}

impl Outputs {
    fn unreadable(&self, cause: std::io::Error) -> EvalError {
        EvalError::Read { file: self.path.display().to_string(), cause }
    }

    fn broken(&self, line: usize, problem: String) -> Failure {
        EvalError::Suite { file: self.path.display().to_string(), line, problem }.into()
    }

    /// Hands every line over that is not empty.
    fn lines(&self, take: &mut dyn FnMut(Line) -> Result<(), Failure>) -> Result<(), Failure> {
        let file = File::open(&self.path).map_err(|cause| self.unreadable(cause))?;
        let mut count = 0;
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let number = at + 1;
            let line = line.map_err(|cause| match cause.kind() {
                std::io::ErrorKind::InvalidData => self.broken(number, "the text is not UTF-8".into()),
                _ => self.unreadable(cause).into(),
            })?;
            let line = line.trim_start_matches('\u{feff}').trim();
            if line.is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(line).map_err(|error| self.broken(number, format!("not JSON: {error}")))?;
            count += 1;
            take(Line { number, value })?;
        }
        match count {
            0 => Err(self.broken(1, "the file has no lines".into())),
            _ => Ok(()),
        }
    }

    fn part<'l>(&self, line: &'l Line, pointer: &str) -> Result<&'l Value, Failure> {
        let found = line.value.pointer(pointer).filter(|value| !value.is_null());
        found.ok_or_else(|| {
            let has = line.value.as_object().map(|fields| fields.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
            self.broken(line.number, format!("there is no {pointer} (the line has: {})", has.unwrap_or_else(|| "no fields".into())))
        })
    }

    /// The id of a line's sample: what it says, or its place.
    fn id(&self, line: &Line, at: usize) -> Result<String, Failure> {
        match &self.fields.id {
            Some(pointer) => Ok(text(self.part(line, pointer)?)),
            None => Ok((at + 1).to_string()),
        }
    }

    /// Stores the samples that the file brings along as a version of a dataset.
    fn store_samples(&self, store: &Store) -> Result<DatasetVersion, Failure> {
        let (mut bytes, mut count, mut seen) = (Vec::new(), 0, HashMap::new());
        self.lines(&mut |line| {
            let id = self.id(&line, count)?;
            if let Some(first) = seen.insert(Digest::of(&id), line.number) {
                return Err(self.broken(line.number, format!("id \"{id}\" stands in line {first} already")));
            }
            let named = |pairs: &[(String, String)]| {
                let one = |(name, pointer): &(String, String)| Ok((name.clone(), self.part(&line, pointer)?.clone()));
                pairs.iter().map(one).collect::<Result<Map<_, _>, Failure>>()
            };
            let target = self.fields.target.as_ref().map(|pointer| self.part(&line, pointer)).transpose()?.cloned();
            let sample = Sample {
                id,
                input: named(&self.fields.inputs)?,
                target: target.unwrap_or_default(),
                metadata: named(&self.fields.metadata)?,
            };
            bytes.extend_from_slice(sample.line().as_bytes());
            bytes.push(b'\n');
            count += 1;
            Ok(())
        })?;
        let digest = store.blobs.put(&bytes)?;
        let lineage = json!({"kind": "outputs", "source": self.path.display().to_string(), "format": "jsonl"});
        let (row, _) = rows::insert(store.db.as_ref(), &name_of(&self.path)?, digest, count, &lineage)?;
        // As whoever reads datasets finds it.
        Ok(Datasets::new(store).get(&format!("{}@{}", row.dataset, row.version))?)
    }

    /// Hands the answers of each line over.
    fn each(&self, take: &mut dyn FnMut(Answers) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut at = 0;
        self.lines(&mut |line| {
            let outputs = self.fields.outputs.iter().map(|(name, pointer)| Ok((name.clone(), Said::of(self.part(&line, pointer)?))));
            let outputs = outputs.collect::<Result<Vec<_>, Failure>>()?;
            let (position, id) = self.place(&line, at)?;
            at += 1;
            take(Answers { line: line.number, position, id, outputs })
        })
    }

    /// Where a line's sample is, and its id.
    fn place(&self, line: &Line, at: usize) -> Result<(usize, String), Failure> {
        let Some(known) = &self.known else { return Ok((at, self.id(line, at)?)) };
        let found = match &self.fields.id {
            None => known.ids.get(at).map(|id| (at, id.clone())).ok_or_else(|| format!("the dataset has only {} samples", known.ids.len())),
            Some(_) => {
                let id = self.id(line, at)?;
                known.places.get(&id).map(|place| (*place, id.clone())).ok_or_else(|| format!("the dataset has no sample \"{id}\""))
            }
        };
        found.map_err(|problem| self.broken(line.number, problem))
    }

    /// Checks every line: how many answers there are, and those that others are compared with.
    fn look_through(&self, wanted: &[String]) -> Result<(usize, Others), Failure> {
        let (mut cases, mut others, mut seen) = (0, Others::new(), HashMap::new());
        self.each(&mut |answers| {
            if let Some(first) = seen.insert(answers.position, answers.line) {
                return Err(self.broken(answers.line, format!("id \"{}\" stands in line {first} already", answers.id)));
            }
            cases += answers.outputs.len();
            let kept = answers.outputs.into_iter().filter(|(target, _)| wanted.contains(target));
            let kept: Vec<_> = kept.map(|(target, said)| (target, said.text)).collect();
            if !kept.is_empty() {
                others.insert((answers.position, 0), kept);
            }
            Ok(())
        })?;
        Ok((cases, others))
    }
}

/// Texts as they are, everything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), String::from)
}
