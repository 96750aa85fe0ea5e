//! Content-addressed files: `blobs/ab/abcdef…`. A blob's name is the SHA-256 of its bytes, so no path ever comes from a client and
//! equal content is kept once. Files are written beside their place, synced and renamed: a blob exists whole or not at all.

use super::db::StoreError;
use crate::types::Digest;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The blob directory.
#[derive(Clone)]
pub struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Opens or creates the directory.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory.join("incoming")).map_err(io(directory))?;
        Ok(Blobs { directory: directory.to_path_buf() })
    }

    /// Where the blob lies, whether or not it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.directory.join(&hex[..2]).join(&hex)
    }

    /// Whether the blob is there.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A directory on the same file system for files that will be adopted, such as partial downloads.
    pub fn incoming(&self) -> PathBuf {
        self.directory.join("incoming")
    }

    /// Stores bytes and returns their digest.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk is full or not writable.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.contains(&digest) {
            let temporary = self.incoming().join(crate::types::ids::new_id("blob"));
            let written = File::create(&temporary).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
            if let Err(source) = written {
                let _ = fs::remove_file(&temporary);
                return Err(StoreError::Io { path: temporary, source });
            }
            self.settle(&temporary, &digest)?;
        }
        Ok(digest)
    }

    /// Moves a finished file (on the same file system, see [`Blobs::incoming`]) to its place; its content is digested first.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read or moved.
    pub fn adopt(&self, file: &Path) -> Result<Digest, StoreError> {
        let opened = File::open(file).map_err(io(file))?;
        let digest = Digest::of_reader(&opened).map_err(io(file))?;
        opened.sync_all().map_err(io(file))?;
        if self.contains(&digest) {
            fs::remove_file(file).map_err(io(file))?;
        } else {
            self.settle(file, &digest)?;
        }
        Ok(digest)
    }

    /// Like [`Blobs::adopt`], but only when the file has the expected digest; otherwise it stays where it is. Returns the digest it has.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read or moved.
    pub fn adopt_expecting(&self, file: &Path, expected: &Digest) -> Result<Digest, StoreError> {
        let opened = File::open(file).map_err(io(file))?;
        let digest = Digest::of_reader(&opened).map_err(io(file))?;
        if digest == *expected {
            opened.sync_all().map_err(io(file))?;
            self.settle(file, &digest)?;
        }
        Ok(digest)
    }

    /// Refuses a blob whose bytes changed, or that is not there.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] naming it.
    pub fn check(&self, digest: &Digest) -> Result<(), StoreError> {
        if self.verify(digest)? {
            Ok(())
        } else {
            Err(StoreError::Corrupt(format!("blob {digest} is missing or does not match its digest")))
        }
    }

    /// Whether the blob is there and its bytes still have its digest.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read.
    pub fn verify(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Digest::of_reader(file).map_err(io(&path))? == *digest),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Every blob.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for directory in super::files::entries(&self.directory)?.into_iter().filter(|path| path.is_dir() && *path != self.incoming()) {
            let names = super::files::entries(&directory)?.into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_string()));
            found.extend(names.filter_map(|hex| format!("sha256:{hex}").parse::<Digest>().ok()));
        }
        Ok(found)
    }

    /// Takes the blob away, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// The blob's bytes, verified against the digest.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it is not there, [`StoreError::Corrupt`] when its bytes changed.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Unknown { what: "blob", name: digest.to_string(), nearest: String::new() });
            }
            Err(source) => return Err(StoreError::Io { path, source }),
        }
        if Digest::of(&bytes) != *digest {
            return Err(StoreError::Corrupt(format!("blob {digest} does not match its digest")));
        }
        Ok(bytes)
    }

    fn settle(&self, temporary: &Path, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        let parent = path.parent().expect("a blob path has a parent: two levels are joined in path()");
        fs::create_dir_all(parent).map_err(io(parent))?;
        fs::rename(temporary, &path).map_err(io(&path))?;
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(io(parent))
    }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> StoreError + '_ {
    move |source| StoreError::Io { path: path.to_path_buf(), source }
}
