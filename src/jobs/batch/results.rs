//! The answers of a batch while it runs: two append-only files of JSON lines, one `write` per answer, so that what was answered
//! survives a killed process and is not asked again. In the end they become files of the project.

use super::check;
use super::line::Outcome;
use crate::store::StoreError;
use crate::store::batches::Counts;
use serde::Deserialize;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

/// Name of the answers with status 200.
const OUTPUT: &str = "output.jsonl";
/// Name of the others.
const ERRORS: &str = "errors.jsonl";
/// A file that is written and removed.
const PROBE: &str = "probe";
const PROBE_BYTES: usize = 256 << 10;
/// What a batch's reply is when it is good; providers' other statuses are errors.
const GOOD: u16 = 200;

/// The answers so far.
pub(super) struct Results {
    directory: PathBuf,
    output: File,
    errors: File,
    /// Lines that have an answer.
    done: HashSet<(u64, u64)>,
    /// How many, and what they cost.
    pub(super) counts: Counts,
}

impl Results {
    /// Opens the answers of a batch, new or left by a worker that died; half a line at the end is cut off.
    pub(super) fn open(directory: &Path, total: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(directory).map_err(|source| StoreError::Io { path: directory.to_path_buf(), source })?;
        let (mut done, mut counts) = (HashSet::new(), Counts { total, ..Counts::default() });
        probe(&directory.join(PROBE))?;
        let mut reopen = |name: &str| {
            let path = directory.join(name);
            let reopened = reopen(&path, |answer| {
                if done.insert(check::key(&answer.custom_id)) {
                    answer.count_into(&mut counts);
                }
            });
            reopened.map_err(|source| StoreError::Io { path, source })
        };
        let (output, errors) = (reopen(OUTPUT)?, reopen(ERRORS)?);
        Ok(Results { directory: directory.to_path_buf(), output, errors, done, counts })
    }

    /// Whether the line has an answer.
    pub(super) fn has(&self, custom_id: &str) -> bool {
        self.done.contains(&check::key(custom_id))
    }

    /// The keys of the lines that have an answer.
    pub(super) fn done(&self) -> HashSet<(u64, u64)> {
        self.done.clone()
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, outcome: &Outcome) -> Result<(), StoreError> {
        let mut text = outcome.to_json().to_string();
        let kept = Kept::of(text.as_bytes());
        let (file, name) =
            if kept.as_ref().is_some_and(|kept| kept.is_good) { (&mut self.output, OUTPUT) } else { (&mut self.errors, ERRORS) };
        text.push('\n');
        // One write to the page cache: microseconds, so that it may stand in async code.
        file.write_all(text.as_bytes()).map_err(|source| StoreError::Io { path: self.directory.join(name), source })?;
        if let Some(kept) = kept.filter(|_| self.done.insert(check::key(&outcome.custom_id))) {
            kept.count_into(&mut self.counts);
        }
        Ok(())
    }

    /// The finished files: good answers, the others; none where there are no lines.
    pub(super) fn finish(self) -> Result<[Option<PathBuf>; 2], StoreError> {
        let filled = |file: &File, name: &str| {
            let path = self.directory.join(name);
            let size = file.metadata().map_err(|source| StoreError::Io { path: path.clone(), source })?.len();
            Ok::<_, StoreError>((size > 0).then_some(path))
        };
        Ok([filled(&self.output, OUTPUT)?, filled(&self.errors, ERRORS)?])
    }
}

/// Finds out whether there is room for some answers, before anything is spent on them.
fn probe(path: &Path) -> Result<(), StoreError> {
    let written = fs::write(path, vec![b' '; PROBE_BYTES]).and_then(|()| fs::remove_file(path));
    written.map_err(|source| StoreError::Io { path: path.to_path_buf(), source })
}

/// Opens a file for appending after `each` has seen its whole lines; what is behind the last line feed is cut off.
fn reopen(path: &Path, mut each: impl FnMut(&Kept)) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let (mut reader, mut whole, mut line) = (BufReader::new(&file), 0u64, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            break;
        }
        if let Some(kept) = Kept::of(&line) {
            each(&kept);
        }
        whole += read as u64;
    }
    file.set_len(whole)?;
    file.seek(std::io::SeekFrom::End(0))?;
    Ok(file)
}

/// What is read of an answer. Fields that are not named here are skipped at any depth: a reply may be nested as deep as a request.
struct Kept {
    custom_id: String,
    is_good: bool,
    usage: Usage,
}

/// Chat, embeddings and the older completions count `prompt_tokens`; responses and messages `input_tokens`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
    completion_tokens_details: Option<Details>,
    output_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}

impl Kept {
    fn of(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            custom_id: String,
            response: Option<Response>,
        }
        #[derive(Deserialize)]
        struct Response {
            status_code: u16,
        }
        let Answer { custom_id, response } = serde_json::from_slice(line).ok()?;
        Some(Kept { custom_id, is_good: response.is_some_and(|response| response.status_code == GOOD), usage: usage(line) })
    }

    fn count_into(&self, counts: &mut Counts) {
        if self.is_good {
            counts.completed += 1;
        } else {
            counts.failed += 1;
        }
        let usage = &self.usage;
        let detail = |groups: [&Option<Details>; 2], of: fn(&Details) -> Option<u64>| groups.into_iter().flatten().find_map(of);
        let cached = detail([&usage.prompt_tokens_details, &usage.input_tokens_details], |details| details.cached_tokens);
        let reasoning = detail([&usage.completion_tokens_details, &usage.output_tokens_details], |details| details.reasoning_tokens);
        counts.input_tokens += usage.prompt_tokens.or(usage.input_tokens).unwrap_or(0);
        counts.cached_tokens += cached.or(usage.cache_read_input_tokens).unwrap_or(0);
        counts.output_tokens += usage.completion_tokens.or(usage.output_tokens).unwrap_or(0);
        counts.reasoning_tokens += reasoning.unwrap_or(0);
    }
}

/// The counts of an answer; none where it has no such thing, or in a shape of its own.
fn usage(line: &[u8]) -> Usage {
    #[derive(Deserialize)]
    struct Answer {
        response: Response,
    }
    #[derive(Deserialize)]
    struct Response {
        body: Body,
    }
    #[derive(Deserialize)]
    struct Body {
        usage: Usage,
    }
    serde_json::from_slice::<Answer>(line).map(|answer| answer.response.body.usage).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::batch::LineReply;
    use serde_json::{Value, json};

    fn answered(custom_id: &str, status: u16) -> Outcome {
        let body = json!({"usage": {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}});
        let reply = LineReply { status, request_id: "req_1".into(), retry_after_s: None, body };
        Outcome::answered(custom_id.into(), reply)
    }

    #[test]
    fn an_answer_of_any_depth_is_found_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut results = Results::open(directory.path(), 2).expect("opened");
        let deep = (0..126).fold(json!({"usage": {"input_tokens": 7}}), |inner, _| json!({"x": inner, "usage": {"input_tokens": 7}}));
        let reply = LineReply { status: 200, request_id: "req_1".into(), retry_after_s: None, body: deep };
        results.keep(&Outcome::answered("deep".into(), reply)).and_then(|()| results.keep(&answered("b", 200))).expect("kept");
        let counts = results.counts;
        drop(results);
        let again = Results::open(directory.path(), 2).expect("opened again");
        assert!(again.has("deep") && again.has("b"));
        assert_eq!((again.counts, counts.completed, counts.input_tokens), (counts, 2, 10));
    }

    #[test]
    fn answers_outlive_a_worker_and_half_a_line_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut results = Results::open(directory.path(), 4).expect("opened");
        results.keep(&answered("a", 200)).and_then(|()| results.keep(&answered("b", 400))).expect("kept");
        let counts = results.counts;
        assert_eq!((counts.completed, counts.failed, counts.input_tokens, counts.reasoning_tokens), (1, 1, 6, 2));
        drop(results);
        let output = directory.path().join(OUTPUT);
        let whole = fs::read(&output).expect("read");
        fs::write(&output, [whole.as_slice(), b"{\"custom_id\": \"c\", \"resp"].concat()).expect("half a line");
        let mut again = Results::open(directory.path(), 4).expect("opened again");
        assert_eq!(again.counts, counts);
        assert!(again.has("a") && again.has("b") && !again.has("c"));
        again.keep(&answered("c", 200)).expect("kept");
        let files = again.finish().expect("finished");
        let text = fs::read_to_string(files[0].as_ref().expect("good answers")).expect("read");
        let ids: Vec<_> = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["custom_id"].clone()).collect();
        assert_eq!(ids, ["a", "c"]);
    }
}
