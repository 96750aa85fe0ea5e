//! Where reports go: to stdout in a format, and to files whose endings say which.

use crate::evals::show::{self, Comparison, Format, Shown};
use crate::types::{Code, Failure};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

/// Options of every verb that shows a report.
#[derive(clap::Args)]
pub(super) struct Output {
    /// Also write it to this file, in the format that its ending means (.html, .xml for JUnit, .jsonl, .md, .json); may be repeated
    #[arg(long, value_name = "FILE")]
    out: Vec<PathBuf>,
    /// Format of what is printed: table, json, jsonl, html, junit or markdown
    #[arg(long, value_name = "FORMAT", default_value = "table", conflicts_with = "json")]
    format: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Whether JSON is to be printed.
    pub(super) fn is_json(&self) -> bool {
        self.json || self.format == "json"
    }

    /// Refuses what could not be written, before anything is paid for.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.format()?;
        self.out.iter().try_for_each(|file| show::of_file(file).map(drop))
    }

    /// Shows a run.
    pub(super) fn run(&self, shown: Shown<'_>) -> Result<(), Failure> {
        self.each(&|format, out| format.show.run(shown, out))
    }

    /// Shows comparisons: one, or several one after the other where the format has a place for them.
    pub(super) fn comparisons(&self, comparisons: &[Comparison]) -> Result<(), Failure> {
        self.each(&|format, out| {
            if comparisons.len() > 1 && matches!(format.name, "html" | "junit") {
                let names: Vec<_> = comparisons.iter().map(|one| format!("{} {}", one.a, one.b)).collect();
                let failure =
                    Failure::new(Code::INVALID_VALUE, format!("{} shows one comparison, and there are {}", format.name, comparisons.len()));
                return Err(failure.with_hint(format!("name the targets, such as: refit eval compare {}", names[0])));
            }
            comparisons.iter().try_for_each(|one| format.show.comparison(one, out))
        })
    }

    fn format(&self) -> Result<&'static Format, Failure> {
        show::named(if self.json { "json" } else { &self.format })
    }

    fn each(&self, write: &dyn Fn(&Format, &mut dyn Write) -> Result<(), Failure>) -> Result<(), Failure> {
        self.check()?;
        for file in &self.out {
            let unwritable = |error| Failure::on(Code::STORAGE, "--out", format!("cannot write {}: {error}", file.display()));
            let mut out = BufWriter::new(File::create(file).map_err(unwritable)?);
            write(show::of_file(file)?, &mut out)?;
            out.flush().map_err(unwritable)?;
        }
        let mut out = Stdout(BufWriter::new(std::io::stdout().lock()));
        write(self.format()?, &mut out)?;
        out.flush().map_err(|error| Failure::new(Code::STORAGE, format!("cannot write to stdout: {error}")))
    }
}

/// Stdout; a reader that closes the pipe ends the output, not the program.
struct Stdout<W: Write>(W);

impl<W: Write> Stdout<W> {
    fn unless_gone<T>(result: std::io::Result<T>, gone: T) -> std::io::Result<T> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(gone),
            other => other,
        }
    }
}

impl<W: Write> Write for Stdout<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Self::unless_gone(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Self::unless_gone(self.0.flush(), ())
    }
}
