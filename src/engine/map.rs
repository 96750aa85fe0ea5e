//! Read-only memory maps of model files.
#![expect(unsafe_code, reason = "mapping a file is unsafe in memmap2: the file could be changed underneath")]

use super::EngineError;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
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

/// Lets the system take back the memory of a part that has been read; reading it again would read the file again.
pub fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the mapping is read-only and shared with the file, so that dropping pages loses nothing.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}
