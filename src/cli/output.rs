//! What verbs print: data on stdout, notes and progress on stderr. A reader that closes the pipe ends the output, not the program.

use crate::types::traits::Progress;
use crate::types::{Code, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writes bytes to stdout.
///
/// # Errors
/// [`Code::STORAGE`] when stdout cannot be written, other than by a closed pipe.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    offer(bytes).map(drop)
}

/// As [`fn@bytes`]; whether there is still a reader. For output that has no end of its own.
///
/// # Errors
/// As [`fn@bytes`].
pub fn offer(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Code::STORAGE, format!("cannot write to stdout: {error}"))),
    }
}

/// Writes one line of data to stdout.
///
/// # Errors
/// As [`fn@bytes`].
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    bytes(format!("{}\n", text.as_ref()).as_bytes())
}

/// Writes a value as one line of JSON to stdout.
///
/// # Errors
/// As [`fn@bytes`].
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(Code::INTERNAL, format!("cannot print the result: {error}")))?;
    line(text)
}

/// Writes a note for the person at the terminal to stderr.
pub fn note(text: impl AsRef<str>) {
    // Nothing is left to do when stderr is gone.
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}

/// A table without borders, for stdout: a heading and rows, columns padded.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(heading.to_vec());
    for row in rows {
        table.add_row(row.clone());
    }
    table.lines().map(|line| line.trim().to_string()).collect::<Vec<_>>().join("\n")
}

/// Progress on stderr: a bar on a terminal, else a plain line now and then, so that a log shows that long work goes on.
pub fn watched(label: &str) -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() { Arc::new(Bar::counting(label)) } else { Arc::new(Lines::new(label)) }
}

/// How often a line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress in plain lines; work that is done before the first is due writes none.
struct Lines {
    label: String,
    began: Instant,
    /// When the last line was due, and how much had been done when the work began.
    state: Mutex<(Instant, Option<u64>)>,
}

impl Lines {
    fn new(label: &str) -> Self {
        let began = Instant::now();
        Lines { label: label.into(), began, state: Mutex::new((began, None)) }
    }
}

impl Progress for Lines {
    fn update(&self, done: u64, total: u64, words: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *state.1.get_or_insert(done);
        if state.0.elapsed() < LINE_EVERY {
            return;
        }
        state.0 = Instant::now();
        let rate = (done - first.min(done)) as f64 / self.began.elapsed().as_secs_f64();
        let left = if rate > 0.0 { format!(", {:.0} s left", total.saturating_sub(done) as f64 / rate) } else { String::new() };
        let percent = 100 * done / total.max(1);
        note(format!("{}: {done} of {total} ({percent} %), {words}{left}", self.label));
    }
}

/// A progress bar on stderr, shown only on a terminal.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar with a label, counting plain units (samples, steps).
    pub fn counting(label: &str) -> Self {
        Bar::styled(label, "{prefix:>10} [{bar:32}] {human_pos}/{human_len} {elapsed} (left {eta}) {msg}")
    }

    /// A bar with a label, counting bytes.
    pub fn bytes(label: &str) -> Self {
        Bar::styled(label, "{prefix:>10} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} (left {eta}) {msg}")
    }

    fn styled(label: &str, template: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(label.to_string());
        Bar(bar)
    }
}

impl Progress for Bar {
    fn update(&self, done: u64, total: u64, note: &str) {
        self.0.set_length(total);
        self.0.set_position(done);
        self.0.set_message(note.to_string());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn table_pads_columns_to_the_widest_cell() {
        let rows = [vec!["a".to_string(), "1".to_string()], vec!["bbbbbb".to_string(), "2".to_string()]];
        let printed = super::table(&["name", "n"], &rows);
        let columns: Vec<_> = printed.lines().map(|line| line.rfind(|c: char| !c.is_whitespace())).collect();
        assert_eq!(columns[1], columns[2], "{printed}");
    }
}
