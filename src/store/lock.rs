//! Locks on a data directory: one process at a time may do a named thing, such as `serve`. The system releases a lock when its
//! process ends, however it ends.

use super::StoreError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// A held lock; released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock `<data-dir>/<name>.lock`; `does` says what its holder does, for whoever comes second.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] naming the process that holds it; [`StoreError::Io`].
    pub fn take(data_dir: &Path, name: &str, does: &str) -> Result<Self, StoreError> {
        let path = data_dir.join(format!("{name}.lock"));
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".to_string() } else { format!("process {}", holder.trim()) };
                return Err(StoreError::Conflict(format!("{holder} {does} {} already", data_dir.display())));
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The number is for the message above only.
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Lock { _file: file })
    }
}
