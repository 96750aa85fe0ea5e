//! The answers of a batch while it runs: two append-only files of JSON lines, one `write` per answer, so that what was answered
//! survives a killed process and is not asked again. In the end they become files of the project.

use super::check;
use super::line::Outcome;
use crate::store::StoreError;
use crate::store::batches::Counts;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

/// Name of the answers with status 200.
const OUTPUT: &str = "output.jsonl";
/// Name of the others.
const ERRORS: &str = "errors.jsonl";
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
        let mut reopen = |name: &str| {
            let path = directory.join(name);
            let reopened = reopen(&path, |answer| {
                if let Some(id) = answer.get("custom_id").and_then(Value::as_str)
                    && done.insert(check::key(id))
                {
                    add(&mut counts, answer);
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
        let answer = outcome.to_json();
        let (file, name) = if good(&answer) { (&mut self.output, OUTPUT) } else { (&mut self.errors, ERRORS) };
        let mut text = answer.to_string();
        text.push('\n');
        // One write to the page cache: microseconds, so that it may stand in async code.
        file.write_all(text.as_bytes()).map_err(|source| StoreError::Io { path: self.directory.join(name), source })?;
        if self.done.insert(check::key(&outcome.custom_id)) {
            add(&mut self.counts, &answer);
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

/// Opens a file for appending after `each` has seen its whole lines; what is behind them is cut off.
fn reopen(path: &Path, mut each: impl FnMut(&Value)) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let (mut reader, mut whole, mut line) = (BufReader::new(&file), 0u64, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        let answer = line.ends_with(b"\n").then(|| serde_json::from_slice::<Value>(&line).ok()).flatten();
        let Some(answer) = answer else { break };
        each(&answer);
        whole += read as u64;
    }
    file.set_len(whole)?;
    file.seek(std::io::SeekFrom::End(0))?;
    Ok(file)
}

fn good(answer: &Value) -> bool {
    answer["response"]["status_code"] == json!(GOOD)
}

fn add(counts: &mut Counts, answer: &Value) {
    if good(answer) {
        counts.completed += 1;
    } else {
        counts.failed += 1;
    }
    // Chat, embeddings and the older completions count `prompt_tokens`; responses and messages `input_tokens`.
    let usage = &answer["response"]["body"]["usage"];
    let number = |paths: &[&str]| paths.iter().find_map(|path| usage.pointer(path)?.as_u64()).unwrap_or(0);
    counts.input_tokens += number(&["/prompt_tokens", "/input_tokens"]);
    counts.cached_tokens +=
        number(&["/prompt_tokens_details/cached_tokens", "/input_tokens_details/cached_tokens", "/cache_read_input_tokens"]);
    counts.output_tokens += number(&["/completion_tokens", "/output_tokens"]);
    counts.reasoning_tokens += number(&["/completion_tokens_details/reasoning_tokens", "/output_tokens_details/reasoning_tokens"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::batch::LineReply;

    fn answered(custom_id: &str, status: u16) -> Outcome {
        let body = json!({"usage": {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}});
        let reply = LineReply { status, request_id: "req_1".into(), retry_after_s: None, body };
        Outcome::answered(custom_id.into(), reply)
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
