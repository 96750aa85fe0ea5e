//! Import: files are read sample by sample into a blob of canonical lines, in bounded memory. A broken record leaves nothing behind,
//! unless broken records are put aside. Samples without a name are called by their content; of equal ones the second gets `-2`.

use super::formats::{self, Format, Place, Record};
pub use super::library::Replace;
use super::library::{Assignment, Datasets, json};
use super::manifest::{Lineage, SplitManifest};
use super::shapes::{self, Draft, Mapping, Shape};
use super::source::Source;
use super::split::Method;
use super::unique::{Ids, MOST_IN_MEMORY, Repeat};
use super::{DatasetError, Sample, split, unknown_word};
use crate::store::StoreError;
use crate::store::datasets::{self as rows, DatasetVersion};
use crate::types::traits::{Progress, Silent};
use crate::types::{Digest, ids};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Records between two reports of progress.
const REPORTED: u64 = 1_000;
/// Most samples of an import whose files are splits: their ids are kept in memory.
const MOST_OF_SPLITS: u64 = 10_000_000;
/// A file's number stands above its places in one number.
const FILE_SHIFT: u32 = 48;

/// A file to import.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is called, where that is not its path.
    pub name: Option<String>,
    /// Split that its samples belong to.
    pub split: Option<String>,
}

/// What to import, and how.
#[derive(Default)]
pub struct Import<'a> {
    /// Name of the dataset.
    pub name: &'a str,
    /// Files, which become one version.
    pub parts: Vec<Part>,
    /// Format; without it each file's ending decides.
    pub format: Option<&'a str>,
    /// Shape; without it each file's first record decides.
    pub shape: Option<&'a str>,
    /// What columns mean.
    pub mapping: Mapping,
    /// Separator of fields.
    pub separator: Option<u8>,
    /// Where broken records go; without it the first one ends the import.
    pub rejects: Option<PathBuf>,
    /// Who watches.
    pub progress: Option<&'a dyn Progress>,
}

/// What became of an import.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The version.
    pub row: DatasetVersion,
    /// Whether its content is new.
    pub is_new: bool,
    /// Records that were put aside.
    pub rejected: u64,
    /// Samples that were renamed because another one says the same.
    pub repeated: u64,
}

impl Datasets {
    /// Imports a file under a name; the format is the one named, or the one its ending means. The second value says whether the
    /// content is new.
    ///
    /// # Errors
    /// As [`Datasets::import_files`].
    pub fn import(&self, name: &str, file: &Path, format: Option<&str>) -> Result<(DatasetVersion, bool), DatasetError> {
        let part = Part { path: file.to_path_buf(), ..Part::default() };
        let imported = self.import_files(&Import { name, parts: vec![part], format, ..Import::default() })?;
        Ok((imported.row, imported.is_new))
    }

    /// Imports files as one version.
    ///
    /// # Errors
    /// [`DatasetError`]; nothing is stored then.
    pub fn import_files(&self, import: &Import<'_>) -> Result<Imported, DatasetError> {
        if !ids::is_slug(import.name) {
            return Err(DatasetError::Name(import.name.to_string()));
        }
        let plan = plan(import)?;
        let directory = self.store.blobs.incoming();
        let mut intake = Intake::begin(import, directory)?;
        for (at, (part, format, source)) in plan.into_iter().enumerate() {
            intake.read(at, part, format, source)?;
        }
        let done = intake.finish()?;
        let digest = self.store.blobs.adopt(&done.samples.path)?;
        let lineage = Lineage {
            kind: "import".into(),
            source: done.sources.join(", "),
            format: done.formats.join(", "),
            shape: done.shapes.join(", "),
            parents: Vec::new(),
            detail: if done.rejected > 0 { json!({"rejected": done.rejected}) } else { Value::Null },
        };
        let (mut row, is_new) = rows::insert(self.store.db.as_ref(), import.name, digest, done.count, &json(&lineage))?;
        if !done.assignment.is_empty() {
            self.give_splits(&mut row, &done.assignment)?;
        }
        if let Some(rejects) = done.rejects {
            rejects.finish()?;
        }
        Ok(Imported { row, is_new, rejected: done.rejected, repeated: done.repeated })
    }

    /// Stores which samples stand where, as the files say.
    ///
    /// # Errors
    /// [`DatasetError::AlreadySplit`] when another split of the version is stored.
    pub(super) fn give_splits(&self, row: &mut DatasetVersion, assignment: &Assignment) -> Result<(), DatasetError> {
        let bytes = serde_json::to_vec(assignment).expect("a map of texts serialises");
        if let (Some(stored), _) = self.assignment(row)? {
            return match stored.assignment == Digest::of(&bytes) {
                true => Ok(()),
                false => Err(DatasetError::AlreadySplit { name: row.dataset.clone(), how: stored.method.told(stored.seed) }),
            };
        }
        let manifest = SplitManifest {
            method: Method::Given,
            seed: 0,
            by: None,
            group: None,
            time: None,
            near: 0.0,
            sizes: assignment.iter().map(|(name, ids)| (name.clone(), ids.len())).collect(),
            assignment: self.store.blobs.put(&bytes)?,
        };
        row.splits = json(&manifest);
        Ok(rows::set_splits(self.store.db.as_ref(), &row.dataset, row.version, &row.splits)?)
    }
}

type Planned<'a> = (&'a Part, &'static dyn Format, Source);

/// Finds every file and its format before anything is read.
fn plan<'a>(import: &'a Import<'_>) -> Result<Vec<Planned<'a>>, DatasetError> {
    if let Some(name) = import.shape
        && shapes::named(name).is_none()
    {
        return Err(unknown_word("shape", name, &shapes::names()));
    }
    let opened = |part: &'a Part| {
        if let Some(split) = part.split.as_deref().filter(|split| !split::NAMES.contains(split)) {
            return Err(unknown_word("split", split, &split::NAMES));
        }
        let name = part.name.clone().unwrap_or_else(|| part.path.display().to_string());
        let format = formats::of(&name, import.format)?;
        let source = Source::open(&part.path, name.clone(), import.separator).map_err(|cause| DatasetError::Read { file: name, cause })?;
        Ok((part, format, source))
    };
    import.parts.iter().map(opened).collect()
}

/// An import under way.
struct Intake<'a> {
    import: &'a Import<'a>,
    directory: PathBuf,
    partial: Partial,
    writer: BufWriter<File>,
    ids: Ids,
    rejects: Option<Rejects>,
    count: u64,
    sources: Vec<String>,
    formats: Vec<String>,
    shapes: Vec<String>,
    /// Samples up to the end of each file, with its split.
    ends: Vec<(u64, Option<String>)>,
    /// How the places of each file are told.
    kinds: Vec<Kind>,
    /// Names of the files' own that are like those that are given to samples without one.
    taken: HashSet<String>,
}

/// What was read, in files.
struct Done {
    rejects: Option<Rejects>,
    samples: Partial,
    count: usize,
    rejected: u64,
    repeated: u64,
    assignment: Assignment,
    sources: Vec<String>,
    formats: Vec<String>,
    shapes: Vec<String>,
}

impl<'a> Intake<'a> {
    fn begin(import: &'a Import<'a>, directory: PathBuf) -> Result<Self, DatasetError> {
        let (partial, file) = Partial::create(&directory)?;
        let rejects = import.rejects.as_deref().map(|path| Rejects::create(path, &import.parts)).transpose()?;
        Ok(Intake {
            import,
            ids: Ids::new(&directory, MOST_IN_MEMORY),
            directory,
            partial,
            writer: BufWriter::with_capacity(1 << 18, file),
            rejects,
            count: 0,
            sources: Vec::new(),
            formats: Vec::new(),
            shapes: Vec::new(),
            ends: Vec::new(),
            kinds: Vec::new(),
            taken: HashSet::new(),
        })
    }

    /// Reads one file.
    fn read(&mut self, at: usize, part: &Part, format: &dyn Format, source: Source) -> Result<(), DatasetError> {
        let (name, size, counter) = (source.name.clone(), source.size(), source.counter());
        let progress = self.import.progress.unwrap_or(&Silent);
        let mut shape: Option<&dyn Shape> = None;
        let mut kind: Kind = Place::Line;
        let (mut seen, before) = (0u64, self.count);
        let import = self.import;
        if let Some(name) = import.shape {
            shape = shapes::named(name);
        } else if import.mapping.fits(&serde_json::Map::new()) {
            shape = Some(&import.mapping);
        }
        format.read(source, &mut |record| {
            seen += 1;
            if seen % REPORTED == 0 {
                progress.update(counter.load(Ordering::Relaxed), size, &format!("{seen} records"));
            }
            let Record { place, fields, text } = record;
            kind = kind_of(place);
            let read = fields.and_then(|fields| {
                let shape = match shape {
                    Some(shape) => shape,
                    None => *shape.insert(shapes::of(&fields)?),
                };
                shape.read(fields)
            });
            match read {
                Ok(draft) => self.take(at, place, draft),
                Err(problem) => self.reject(&name, place, problem, &text),
            }
        })?;
        progress.update(size, size, &format!("{seen} records"));
        if self.count == before {
            return Err(DatasetError::Empty(name));
        }
        self.ends.push((self.count, part.split.clone()));
        self.kinds.push(kind);
        self.sources.push(name);
        add_once(&mut self.formats, format.name());
        add_once(&mut self.shapes, shape.map_or("", |shape| shape.name()));
        Ok(())
    }

    fn take(&mut self, file: usize, place: Place, draft: Draft) -> Result<(), DatasetError> {
        let is_given = draft.id.is_some();
        let sample = draft.named();
        let failed = |source| StoreError::Io { path: self.partial.path.clone(), source };
        let at = (file as u64) << FILE_SHIFT | number(place);
        self.ids.add(&sample.id, at, is_given).map_err(failed)?;
        if is_given && is_like_renamed(&sample.id) {
            self.taken.insert(sample.id.clone());
        }
        self.count += 1;
        if self.count > MOST_OF_SPLITS && self.import.parts.iter().any(|part| part.split.is_some()) {
            let problem = format!(
                "files that are splits may have {MOST_OF_SPLITS} samples together, and there are more; import them as one and split it"
            );
            return Err(DatasetError::Argument(problem));
        }
        writeln!(self.writer, "{}", sample.line()).map_err(failed)?;
        Ok(())
    }

    fn reject(&mut self, file: &str, place: Place, problem: String, text: &str) -> Result<(), DatasetError> {
        match &mut self.rejects {
            Some(rejects) => rejects.add(file, place, &problem, text),
            None => Err(DatasetError::Broken { file: file.to_string(), place, problem }),
        }
    }

    /// What is stored: the lines as they were written where every name stands once, or else gone through once more.
    fn finish(mut self) -> Result<Done, DatasetError> {
        let failed = |source| StoreError::Io { path: self.partial.path.clone(), source };
        self.writer.flush().map_err(failed)?;
        let repeats = std::mem::replace(&mut self.ids, Ids::new(&self.directory, 1)).repeats().map_err(failed)?;
        let is_split = self.ends.iter().any(|(_, split)| split.is_some());
        let (mut repeated, mut assignment) = (0, Assignment::new());
        if let Some(clash) = repeats.iter().find(|repeat| repeat.is_given && self.rejects.is_none()) {
            let (file, place) = self.place(clash.place);
            let id = self.id_at(clash.order).unwrap_or_default();
            return Err(DatasetError::Broken { file, place, problem: self.told(clash, &id) });
        }
        if !repeats.is_empty() || is_split {
            (repeated, assignment) = self.rewrite(&repeats)?;
        }
        let rejected = self.rejects.as_ref().map_or(0, |rejects| rejects.count);
        Ok(Done {
            rejects: self.rejects,
            samples: self.partial,
            count: usize::try_from(self.count).unwrap_or(usize::MAX),
            rejected,
            repeated,
            assignment,
            sources: self.sources,
            formats: self.formats,
            shapes: self.shapes,
        })
    }

    /// Gives repeated names another one, or puts those aside that the file gave; and writes down which sample stands in which split.
    fn rewrite(&mut self, repeats: &[Repeat]) -> Result<(u64, Assignment), DatasetError> {
        let (partial, file) = Partial::create(&self.directory)?;
        let failed = |source| StoreError::Io { path: partial.path.clone(), source };
        let mut writer = BufWriter::with_capacity(1 << 18, file);
        let mut reader = BufReader::with_capacity(1 << 18, File::open(&self.partial.path).map_err(failed)?);
        let (mut repeats, mut ends) = (repeats.iter().peekable(), self.ends.clone().into_iter().peekable());
        let (mut line, mut renamed, mut left_out) = (String::new(), 0, 0);
        let mut assignment: Assignment = Assignment::new();
        for order in 0..self.count {
            line.clear();
            reader.read_line(&mut line).map_err(failed)?;
            while ends.peek().is_some_and(|(end, _)| order >= *end) {
                ends.next();
            }
            if let Some(repeat) = repeats.next_if(|repeat| repeat.order == order) {
                if repeat.is_given {
                    let (file, place) = self.place(repeat.place);
                    let Named { id } = serde_json::from_str(&line).map_err(super::library::corrupt)?;
                    let told = self.told(repeat, &id);
                    self.reject(&file, place, told, line.trim_end())?;
                    left_out += 1;
                    continue;
                }
                let mut sample: Sample = serde_json::from_str(&line).map_err(super::library::corrupt)?;
                sample.id = self.renamed(&sample.id, repeat.nth);
                line = format!("{}\n", sample.line());
                renamed += 1;
            }
            writer.write_all(line.as_bytes()).map_err(failed)?;
            if let Some((_, Some(split))) = ends.peek() {
                let Named { id } = serde_json::from_str(&line).map_err(super::library::corrupt)?;
                assignment.entry(split.clone()).or_default().push(id);
            }
        }
        writer.flush().map_err(failed)?;
        self.count -= left_out;
        self.partial = partial;
        Ok((renamed, assignment))
    }

    /// File and place of a number that [`Intake::take`] made.
    fn place(&self, at: u64) -> (String, Place) {
        let file = usize::try_from(at >> FILE_SHIFT).unwrap_or(0);
        let number = at & ((1 << FILE_SHIFT) - 1);
        let kind = self.kinds.get(file).copied().unwrap_or(Place::Line);
        (self.sources.get(file).cloned().unwrap_or_default(), kind(number))
    }

    /// Another name for the how-manieth of its name, which no sample of the files has.
    fn renamed(&self, id: &str, nth: u64) -> String {
        let name = format!("{id}-{nth}");
        if !self.taken.contains(&name) {
            return name;
        }
        let names = (2u64..).map(|next| format!("{name}-{next}"));
        names.into_iter().find(|name| !self.taken.contains(name)).unwrap_or(name)
    }

    fn told(&self, repeat: &Repeat, id: &str) -> String {
        let ((file, _), (first_file, first)) = (self.place(repeat.place), self.place(repeat.first));
        let where_else = if file == first_file { String::new() } else { format!(" of {first_file}") };
        format!("id \"{id}\" stands in {first}{where_else} already")
    }

    /// The id of the how-manieth sample.
    fn id_at(&self, order: u64) -> Option<String> {
        let file = BufReader::new(File::open(&self.partial.path).ok()?);
        let line = file.lines().nth(usize::try_from(order).ok()?)?.ok()?;
        serde_json::from_str(&line).ok().map(|Named { id }| id)
    }
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Whether a name may be one that [`Intake::renamed`] makes: what a content is called by, and numbers.
fn is_like_renamed(id: &str) -> bool {
    let mut parts = id.split('-');
    let is_content = parts.next().is_some_and(|part| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mut numbers = parts.peekable();
    is_content && numbers.peek().is_some() && numbers.all(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn add_once(list: &mut Vec<String>, word: &str) {
    if !list.iter().any(|known| known == word) {
        list.push(word.to_string());
    }
}

fn number(place: Place) -> u64 {
    match place {
        Place::Line(number) | Place::Row(number) | Place::Record(_, number) => number,
    }
}

/// How the places of a file are told.
type Kind = fn(u64) -> Place;

fn kind_of(place: Place) -> Kind {
    match place {
        // Of a record the line is what editors find.
        Place::Line(_) | Place::Record(..) => Place::Line,
        Place::Row(_) => Place::Row,
    }
}

/// The file that broken records go to. It is written beside its place, and takes it at the end.
struct Rejects {
    path: PathBuf,
    partial: Partial,
    writer: BufWriter<File>,
    count: u64,
}

impl Rejects {
    /// # Errors
    /// [`DatasetError::Argument`] when one of the files that are read lies there.
    fn create(path: &Path, parts: &[Part]) -> Result<Self, DatasetError> {
        let real = |path: &Path| path.canonicalize().ok();
        if real(path).is_some_and(|there| parts.iter().any(|part| real(&part.path).as_ref() == Some(&there))) {
            let problem =
                format!("{} is an input, so that broken records cannot go there; name another file with --rejects", path.display());
            return Err(DatasetError::Argument(problem));
        }
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (partial, file) = Partial::create(directory)?;
        Ok(Rejects { path: path.to_path_buf(), partial, writer: BufWriter::new(file), count: 0 })
    }

    fn add(&mut self, file: &str, place: Place, reason: &str, text: &str) -> Result<(), DatasetError> {
        self.count += 1;
        let line = number(place);
        let told = json!({"file": file, "line": line, "place": place.to_string(), "reason": reason, "text": text});
        writeln!(self.writer, "{told}").map_err(|source| StoreError::Io { path: self.path.clone(), source }.into())
    }

    fn finish(mut self) -> Result<(), DatasetError> {
        let failed = |source| StoreError::Io { path: self.path.clone(), source };
        self.writer.flush().map_err(failed)?;
        Ok(std::fs::rename(&self.partial.path, &self.path).map_err(failed)?)
    }
}

/// A file that goes away unless it is adopted.
pub(super) struct Partial {
    pub(super) path: PathBuf,
}

impl Partial {
    pub(super) fn create(directory: &Path) -> Result<(Self, File), StoreError> {
        let path = directory.join(ids::new_id("import"));
        let file = File::create(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        Ok((Partial { path }, file))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Adopted files are gone from here already.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn read(text: &str) -> Result<Vec<Sample>, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let datasets = Datasets::new(&Store::open(&directory.path().join("data")).expect("a store"));
        let file = directory.path().join("f.jsonl");
        std::fs::write(&file, text).expect("written");
        let (row, _) = datasets.import("d", &file, None).map_err(|error| error.to_string())?;
        let samples: Result<Vec<_>, _> = datasets.stream(&row).expect("stored").collect();
        Ok(samples.expect("whole"))
    }

    #[test]
    fn broken_lines_are_named_with_their_field() {
        let good = "{\"id\":\"a\",\"input\":{\"m\":\"x\"},\"target\":1}\n";
        assert_eq!(read(&format!("\u{feff}{good}\n{{\"input\":{{\"m\":\"y\"}}}}")).expect("reads").len(), 2);
        for (line, part) in [
            ("{\"input\":", "not JSON"),
            ("{\"target\":1}", "\"input\" is missing"),
            ("{\"input\":\"x\"}", "\"input\" must be an object"),
            ("{\"input\":{\"m\":1},\"traget\":1}", "did you mean \"target\""),
            ("{\"id\":7,\"input\":{\"m\":1}}", "\"id\""),
            ("[1]", "expected an object"),
        ] {
            let error = read(&format!("{good}{line}")).expect_err(line);
            assert!(error.contains("f.jsonl, line 2") && error.contains(part), "{error}");
        }
    }
}
