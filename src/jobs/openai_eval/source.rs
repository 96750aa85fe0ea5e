//! Where a run's items come from (`data_source`), and which model is asked about them.

use crate::evals::graders::{messages, template};
use crate::store::completions::{self, Page};
use crate::store::openai_evals::EvalRunRow;
use crate::store::{Db, Store, StoreError, files};
use crate::types::json::{MAX_VALUES, read as read_json};
use crate::types::{Code, Failure};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};

const FIELD: &str = "data_source";
/// Purposes of files that items may stand in.
const PURPOSES: [&str; 2] = ["evals", "fine-tune"];
/// Stored completions that one run is about at most, and that are looked up at once.
const MAX_STORED: usize = 10_000;
const MAX_PAGE: usize = 500;
/// Largest line of a file.
const MAX_LINE_BYTES: u64 = 32 << 20;
/// What `sampling_params` may hold.
const SAMPLING: [&str; 7] = ["temperature", "top_p", "seed", "max_completion_tokens", "reasoning_effort", "response_format", "tools"];
/// Another spelling of the fourth, which older clients send.
const OLD_LIMIT: &str = "max_completions_tokens";

/// A run's source, read.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    items: Items,
    asking: Option<Asking>,
}

#[derive(Debug, Clone)]
enum Items {
    Content(Vec<Value>),
    File(String),
    /// Completions that were asked to be stored.
    Stored(Filter),
}

/// Which stored completions.
#[derive(Debug, Clone, Default)]
struct Filter {
    metadata: Vec<(String, String)>,
    model: Option<String>,
    /// Milliseconds.
    after: Option<i64>,
    before: Option<i64>,
    limit: usize,
}

/// What is asked about each item.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    model: String,
    messages: Messages,
    sampling: Map<String, Value>,
}

#[derive(Debug, Clone)]
enum Messages {
    Template(Vec<Value>),
    /// Path of an item's field with messages.
    Item(String),
}

/// One item, and what was answered about it where the source has that.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) item: Value,
    pub(super) sample: Option<Value>,
}

fn wrong(field: &str, problem: impl std::fmt::Display) -> Failure {
    let path = format!("{FIELD}.{field}");
    Failure::on(Code::INVALID_VALUE, path.clone(), format!("{path}: {problem}"))
}

impl Plan {
    pub(super) fn read(source: &Value) -> Result<Self, Failure> {
        let kind = source.get("type").and_then(Value::as_str).unwrap_or_default();
        let items = Items::read(source.get("source").unwrap_or(&Value::Null))?;
        let is_stored = matches!(items, Items::Stored(_));
        let asks = match kind {
            "jsonl" if is_stored => return Err(wrong("type", "stored completions are a source of type completions")),
            "jsonl" => false,
            // Without a model they are graded as they were answered.
            "completions" if is_stored => source.get("model").is_some_and(|model| !model.is_null()),
            "completions" | "responses" => true,
            _ => return Err(wrong("type", "expected jsonl, completions or responses")),
        };
        let asking = asks.then(|| Asking::read(source)).transpose()?;
        Ok(Plan { items, asking })
    }

    /// Whether what it names is there.
    pub(super) fn check(&self, db: &dyn Db, project: &str) -> Result<(), Failure> {
        let Items::File(id) = &self.items else { return Ok(()) };
        let file = match files::get(db, project, id) {
            Err(error @ StoreError::Unknown { .. }) => {
                return Err(wrong("source.id", error).with_hint("upload it with POST /v1/files and purpose \"evals\""));
            }
            other => other?,
        };
        if !PURPOSES.contains(&file.purpose.as_str()) {
            let failure = wrong("source.id", format!("the file {id} was uploaded for \"{}\"", file.purpose));
            return Err(failure.with_hint("upload it with purpose \"evals\""));
        }
        Ok(())
    }

    pub(super) fn model(&self) -> Option<&str> {
        self.asking.as_ref().map(|asking| asking.model.as_str())
    }

    pub(super) fn asking(&self) -> Option<&Asking> {
        self.asking.as_ref()
    }

    /// Ids of the stored completions that a run is about, oldest first, chosen once: which ones they are must not change while it goes
    /// on. Null for other sources.
    pub(super) fn chosen(&self, db: &dyn Db, project: &str) -> Result<Value, Failure> {
        let Items::Stored(filter) = &self.items else { return Ok(Value::Null) };
        let mut ids: Vec<String> = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = Page {
                project,
                model: filter.model.as_deref(),
                metadata: &filter.metadata,
                after: after.as_deref(),
                limit: MAX_PAGE.min(filter.limit),
                ascending: true,
                between: (filter.after, filter.before),
            };
            let (rows, more) = completions::list(db, &page)?;
            after = rows.last().and_then(|row| row.reply_id.clone());
            ids.extend(rows.into_iter().filter_map(|row| row.reply_id));
            if !more || ids.len() >= filter.limit {
                break;
            }
        }
        ids.truncate(filter.limit);
        if ids.is_empty() {
            return Err(
                wrong("source", "no stored completion fits").with_hint("send \"store\": true with chat completions to have them stored")
            );
        }
        Ok(ids.into())
    }

    /// All items, in order; of a file as they are read, of stored completions those that were chosen. Blocking. An item that cannot be
    /// read says why, with its line.
    pub(super) fn items(self, store: &Store, run: &EvalRunRow) -> Result<Box<dyn Iterator<Item = Result<Item, Failure>> + Send>, Failure> {
        let project = &run.project;
        match self.items {
            Items::Stored(_) => {
                let ids: Vec<String> = serde_json::from_value(run.chosen.clone()).unwrap_or_default();
                let (db, project) = (store.db.clone(), project.clone());
                Ok(Box::new(ids.into_iter().map(move |id| stored(db.as_ref(), &project, &id))))
            }
            Items::Content(list) => Ok(Box::new(
                list.into_iter()
                    .enumerate()
                    .map(|(i, value)| Item::read(value).map_err(|problem| wrong(&format!("source.content[{i}]"), problem))),
            )),
            Items::File(id) => {
                // It may have expired since it was named.
                let row = files::get_any(store.db.as_ref(), project.as_str(), &id)?;
                let gone = |error| Failure::new(Code::CORRUPT, format!("the bytes of {id} cannot be read: {error}"));
                let reader = BufReader::new(File::open(store.uploads.path(&row.digest)).map_err(gone)?);
                Ok(Box::new(lines(reader, row.filename)))
            }
        }
    }
}

impl Items {
    fn read(source: &Value) -> Result<Self, Failure> {
        match source.get("type").and_then(Value::as_str) {
            Some("file_content") => {
                let list = source.get("content").and_then(Value::as_array).filter(|list| !list.is_empty());
                let list = list.ok_or_else(|| wrong("source.content", "expected a list of at least one {\"item\": …}"))?;
                for (i, value) in list.iter().enumerate() {
                    Item::read(value.clone()).map_err(|problem| wrong(&format!("source.content[{i}]"), problem))?;
                }
                Ok(Items::Content(list.clone()))
            }
            Some("file_id") => {
                let id = source.get("id").and_then(Value::as_str);
                id.map(|id| Items::File(id.into())).ok_or_else(|| wrong("source.id", "expected the id of a file"))
            }
            Some("stored_completions") => Filter::read(source).map(Items::Stored),
            Some("responses") => {
                Err(wrong("source.type", "responses are not kept; send the items as file_content or file_id, or take stored_completions"))
            }
            _ => Err(wrong("source.type", "expected file_content, file_id or stored_completions")),
        }
    }
}

impl Filter {
    fn read(source: &Value) -> Result<Self, Failure> {
        let get = |name: &str| source.get(name).filter(|value| !value.is_null());
        let second = |name: &str| match get(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(seconds) => Ok(Some(seconds.saturating_mul(1000))),
                None => Err(wrong(&format!("source.{name}"), "expected seconds since 1970, a whole number")),
            },
        };
        let metadata = match get("metadata") {
            None => Vec::new(),
            Some(Value::Object(labels)) => {
                labels.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string()))).collect()
            }
            Some(_) => return Err(wrong("source.metadata", "expected an object of texts")),
        };
        let model = get("model").and_then(Value::as_str).map(String::from);
        let limit = match get("limit") {
            None => MAX_STORED,
            Some(value) => {
                let limit = value.as_u64().and_then(|limit| usize::try_from(limit).ok()).filter(|limit| (1..=MAX_STORED).contains(limit));
                limit.ok_or_else(|| wrong("source.limit", format!("expected a whole number from 1 to {MAX_STORED}")))?
            }
        };
        Ok(Filter { metadata, model, after: second("created_after")?, before: second("created_before")?, limit })
    }
}

/// A stored completion as an item: what was asked is its `input`, what was answered its sample.
fn stored(db: &dyn Db, project: &str, id: &str) -> Result<Item, Failure> {
    let row = match completions::get(db, project, id) {
        // It went with the log's own rules, or somebody deleted it.
        Err(StoreError::Unknown { .. }) => return Ok(Item { item: json!({"id": id}), sample: None }),
        other => other?,
    };
    let body = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()).unwrap_or_default();
    let (request, reply) = (body(&row.request), body(&row.reply));
    let item = json!({"id": id, "input": request["messages"], "model": request["model"]});
    Ok(Item { item, sample: reply.is_object().then_some(reply) })
}

impl Asking {
    fn read(source: &Value) -> Result<Self, Failure> {
        let model = source.get("model").and_then(Value::as_str).filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| wrong("model", "expected a route or provider/model"))?;
        let given = source.get("input_messages").unwrap_or(&Value::Null);
        let messages = match given.get("type").and_then(Value::as_str) {
            Some("template") => {
                let list = given.get("template").and_then(Value::as_array).filter(|list| !list.is_empty());
                let list = list.ok_or_else(|| wrong("input_messages.template", "expected a list of messages"))?;
                let at = |(place, problem): (String, String)| wrong(&format!("input_messages.template{place}"), problem);
                messages::check(list, false).map_err(at)?;
                Messages::Template(list.clone())
            }
            Some("item_reference") => {
                let path =
                    given.get("item_reference").and_then(Value::as_str).filter(|path| path.trim_matches(['{', ' ']).starts_with("item"));
                let path = path.ok_or_else(|| wrong("input_messages.item_reference", "expected a path such as item.messages"))?;
                Messages::Item(path.to_string())
            }
            _ => return Err(wrong("input_messages.type", "expected template or item_reference")),
        };
        let mut sampling = Map::new();
        for (name, value) in source.get("sampling_params").and_then(Value::as_object).into_iter().flatten() {
            let name = if name == OLD_LIMIT { "max_completion_tokens" } else { name.as_str() };
            if !SAMPLING.contains(&name) {
                return Err(wrong(&format!("sampling_params.{name}"), format!("is not known ({})", SAMPLING.join(", "))));
            }
            if !value.is_null() {
                sampling.insert(name.to_string(), value.clone());
            }
        }
        Ok(Asking { model: model.to_string(), messages, sampling })
    }

    /// The chat request about an item.
    pub(super) fn request(&self, space: &Value) -> Result<Value, String> {
        let messages = match &self.messages {
            Messages::Template(list) => messages::render(list, space)?,
            Messages::Item(path) => {
                let list = template::value(path, space)?;
                let list = list.as_array().filter(|list| !list.is_empty()).ok_or_else(|| format!("{path}: expected a list of messages"))?;
                list.clone()
            }
        };
        let mut request = json!({"model": self.model, "messages": messages});
        request.as_object_mut().into_iter().for_each(|fields| fields.extend(self.sampling.clone()));
        Ok(request)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn sampling(&self, name: &str) -> Option<&Value> {
        self.sampling.get(name)
    }
}

impl Item {
    fn read(value: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = value else { return Err("expected an object with \"item\"".into()) };
        let item = fields.shift_remove("item").filter(Value::is_object).ok_or("expected an object with \"item\", an object")?;
        match fields.shift_remove("sample") {
            None | Some(Value::Null) => Ok(Item { item, sample: None }),
            Some(sample @ Value::Object(_)) => Ok(Item { item, sample: Some(sample) }),
            Some(_) => Err("sample: expected an object".into()),
        }
    }
}

fn lines(mut reader: BufReader<File>, name: String) -> impl Iterator<Item = Result<Item, Failure>> + Send {
    let mut number = 0usize;
    std::iter::from_fn(move || {
        loop {
            let mut line = Vec::new();
            let wrong = |problem: String| Failure::new(Code::INVALID_FILE, format!("{name}, line {}: {problem}", number + 1));
            match std::io::Read::take(&mut reader, MAX_LINE_BYTES + 1).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(read) if read as u64 > MAX_LINE_BYTES => return Some(Err(wrong(format!("is longer than {MAX_LINE_BYTES} bytes")))),
                Ok(_) => {}
                Err(error) => return Some(Err(Failure::new(Code::STORAGE, format!("{name} cannot be read: {error}")))),
            }
            if line.trim_ascii().is_empty() {
                number += 1;
                continue;
            }
            let read = read_json(&line, MAX_VALUES).map_err(|fault| format!("is not JSON (column {})", fault.column));
            let item = read.and_then(Item::read).map_err(wrong);
            number += 1;
            return Some(item);
        }
    })
}
