//! Where records come from: a file, its compression seen by its first bytes, and how far it has been read.

use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BUFFER_BYTES: usize = 256 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A text, decompressed.
pub type Text = Box<dyn BufRead>;

/// A file to be read.
pub struct Source {
    /// What it is called in messages and lineage.
    pub name: String,
    /// Separator of fields, where it is named.
    pub separator: Option<u8>,
    path: PathBuf,
    size: u64,
    read: Arc<AtomicU64>,
}

impl Source {
    /// A file under the name that messages give it.
    ///
    /// # Errors
    /// When it cannot be opened, or is no file.
    pub fn open(path: &Path, name: String, separator: Option<u8>) -> io::Result<Self> {
        let size = File::open(path)?.metadata()?.len();
        Ok(Source { name, separator, path: path.to_path_buf(), size, read: Arc::default() })
    }

    /// Bytes of the file, compressed as it is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Counts the bytes that have been read of the file.
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.read.clone()
    }

    /// Whether it is packed (gzip, zstd), so that its content may be far more than its bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_compressed(&self) -> io::Result<bool> {
        let mut start = Vec::with_capacity(ZSTD.len());
        self.file()?.take(ZSTD.len() as u64).read_to_end(&mut start)?;
        Ok(start.starts_with(&GZIP) || start.starts_with(&ZSTD))
    }

    /// The file itself, for formats that read here and there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn file(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// So much of the file's content has been read: for formats that do not read it in order.
    pub fn reached(&self, done: u64, total: u64) {
        self.read.store(self.size / total.max(1) * done.min(total), Ordering::Relaxed);
    }

    /// The file's text, without the compression and without a byte-order mark.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn text(&self) -> io::Result<Text> {
        let counted = Counted { file: self.file()?, read: self.read.clone() };
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, counted);
        let start = raw.fill_buf()?;
        let mut text: Text = if start.starts_with(&GZIP) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw)))
        } else if start.starts_with(&ZSTD) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::Decoder::with_buffer(raw)?))
        } else {
            Box::new(raw)
        };
        if text.fill_buf()?.starts_with(&BYTE_ORDER_MARK) {
            text.consume(BYTE_ORDER_MARK.len());
        }
        Ok(text)
    }
}

struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
