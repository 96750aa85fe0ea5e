//! Which ids stand twice, in bounded memory: 16 bytes of each id's digest, sorted in memory, and beyond a million of them in files that
//! are merged at the end (an external sort: Knuth, The Art of Computer Programming, volume 3, 5.4).

use crate::types::Digest;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Ids in memory: 32 MiB.
pub const MOST_IN_MEMORY: usize = 1 << 20;
const ENTRY_BYTES: usize = 33;
/// Most ids that may stand again: they are kept in memory, 48 bytes each.
pub const MOST_REPEATS: usize = 5_000_000;

/// One id: its digest, the how-manieth it is, where it stands, and whether the file gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: u128,
    order: u64,
    place: u64,
    is_given: bool,
}

/// An id that stood before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// The how-manieth id it is, from 0.
    pub order: u64,
    /// Where it stands, as it was added.
    pub place: u64,
    /// Where the first of its kind stands.
    pub first: u64,
    /// The how-manieth of its kind, from 1.
    pub nth: u64,
    /// Whether the file gave it.
    pub is_given: bool,
}

/// The ids of a file, as they come.
pub struct Ids {
    entries: Vec<Entry>,
    most: usize,
    count: u64,
    runs: Vec<Run>,
    directory: PathBuf,
}

impl Ids {
    /// No ids; what does not fit into memory goes to files in the directory, which go away again.
    pub fn new(directory: &Path, most: usize) -> Self {
        Ids { entries: Vec::new(), most, count: 0, runs: Vec::new(), directory: directory.to_path_buf() }
    }

    /// Adds the next id.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn add(&mut self, id: &str, place: u64, is_given: bool) -> io::Result<()> {
        self.entries.push(Entry { key: Digest::of(id).prefix(), order: self.count, place, is_given });
        self.count += 1;
        if self.entries.len() >= self.most { self.spill() } else { Ok(()) }
    }

    /// The ids that stood before, in their order.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn repeats(mut self) -> io::Result<Vec<Repeat>> {
        let mut found = Repeats::default();
        if self.runs.is_empty() {
            self.entries.sort_unstable();
            self.entries.iter().for_each(|entry| found.next(*entry));
        } else {
            self.spill()?;
            let mut readers = self.runs.iter().map(Run::read).collect::<io::Result<Vec<_>>>()?;
            let mut heads = BinaryHeap::new();
            for (at, reader) in readers.iter_mut().enumerate() {
                heads.extend(next(reader)?.map(|entry| Reverse((entry, at))));
            }
            while let Some(Reverse((entry, at))) = heads.pop() {
                found.next(entry);
                heads.extend(next(&mut readers[at])?.map(|entry| Reverse((entry, at))));
            }
        }
        if found.list.len() > MOST_REPEATS {
            let problem =
                format!("more than {MOST_REPEATS} samples repeat another one; take the copies out first, or name each sample (--id)");
            return Err(io::Error::other(problem));
        }
        found.list.sort_unstable_by_key(|repeat| repeat.order);
        Ok(found.list)
    }

    fn spill(&mut self) -> io::Result<()> {
        self.entries.sort_unstable();
        let run = Run { path: self.directory.join(crate::types::ids::new_id("ids")) };
        let mut file = BufWriter::new(File::create(&run.path)?);
        self.runs.push(run);
        for entry in self.entries.drain(..) {
            file.write_all(&entry.key.to_be_bytes())?;
            file.write_all(&entry.order.to_be_bytes())?;
            file.write_all(&entry.place.to_be_bytes())?;
            file.write_all(&[u8::from(entry.is_given)])?;
        }
        file.flush()
    }
}

/// Finds equal keys in a sorted sequence.
#[derive(Default)]
struct Repeats {
    last: Option<(u128, u64, u64)>,
    list: Vec<Repeat>,
}

impl Repeats {
    fn next(&mut self, entry: Entry) {
        match &mut self.last {
            Some((key, first, nth)) if *key == entry.key => {
                *nth += 1;
                // One more than is taken says that there are too many.
                if self.list.len() > MOST_REPEATS {
                    return;
                }
                self.list.push(Repeat { order: entry.order, place: entry.place, first: *first, nth: *nth, is_given: entry.is_given });
            }
            last => *last = Some((entry.key, entry.place, 1)),
        }
    }
}

/// A sorted file, gone when it is dropped.
struct Run {
    path: PathBuf,
}

impl Run {
    fn read(&self) -> io::Result<BufReader<File>> {
        File::open(&self.path).map(BufReader::new)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // What cannot be removed goes with the next start: nothing names it.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn next(reader: &mut impl Read) -> io::Result<Option<Entry>> {
    let mut bytes = [0; ENTRY_BYTES];
    match reader.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
    let key = u128::from_be_bytes(std::array::from_fn(|i| bytes[i]));
    Ok(Some(Entry { key, order: number(16), place: number(24), is_given: bytes[32] != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_find_what_memory_finds() {
        let directory = tempfile::tempdir().expect("a directory");
        let repeats = |most: usize| {
            let mut ids = Ids::new(directory.path(), most);
            for (place, i) in (0..1_000_u64).enumerate() {
                ids.add(&format!("id{}", i % 997), place as u64 + 1, i.is_multiple_of(2)).expect("added");
            }
            ids.repeats().expect("found")
        };
        let expected = |order: u64| Repeat { order, place: order + 1, first: order - 996, nth: 2, is_given: order.is_multiple_of(2) };
        assert_eq!(repeats(MOST_IN_MEMORY), [expected(997), expected(998), expected(999)]);
        assert_eq!(repeats(64), repeats(MOST_IN_MEMORY));
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0, "no file is left");
    }
}
