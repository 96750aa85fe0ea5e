//! Read-only memory maps of model files.
#![expect(unsafe_code, reason = "mapping a file is unsafe in memmap2: the file could be changed underneath")]

use super::EngineError;
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a file for reading.
///
/// # Errors
/// [`EngineError::Io`] when it cannot be opened or mapped.
pub fn map(path: &Path) -> Result<Mmap, EngineError> {
    let io = |source| EngineError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: model files are content-addressed blobs that nothing rewrites in place; a file that is truncated by somebody else while
    // mapped would fault the process, which is why a user's own path is imported into the blob store before it is loaded.
    unsafe { Mmap::map(&file) }.map_err(io)
}
