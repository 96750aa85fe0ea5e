//! Parquet: columnar tables. Read row by row, one row group after the other; lists and structures become JSON.

use super::{Each, Format, MAX_RECORD_BYTES, Place, Record, pages};
use crate::datasets::DatasetError;
use crate::datasets::source::Source;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Most bytes that a column of one row group may unpack to, as the file's end says.
const MAX_CHUNK_BYTES: i64 = 1 << 30;

pub(super) struct Parquet;

impl Format for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["parquet", "pq"]
    }

    fn read(&self, source: Source, each: Each<'_>) -> Result<(), DatasetError> {
        let failed = |cause: io::Error| DatasetError::Read { file: source.name.clone(), cause };
        let file = source.file().map_err(failed)?;
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(failed)?;
        let rows = reader.metadata().file_metadata().num_rows();
        for (group, column) in
            reader.metadata().row_groups().iter().enumerate().flat_map(|(at, group)| group.columns().iter().map(move |c| (at, c)))
        {
            let bytes = column.uncompressed_size();
            if !(0..=MAX_CHUNK_BYTES).contains(&bytes) {
                let problem = format!(
                    "column {} of row group {group} takes {bytes} bytes, more than {MAX_CHUNK_BYTES}; write smaller row groups",
                    column.column_path()
                );
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, problem)));
            }
        }
        pages::check(&source.file().map_err(failed)?, reader.metadata()).map_err(failed)?;
        let mut records = guarded(|| reader.get_row_iter(None)).map_err(failed)?;
        for number in 1.. {
            let Some(value) = guarded(|| records.next().map(|row| Ok(row?.to_json_value())).transpose()).map_err(failed)? else { break };
            source.reached(number, u64::try_from(rows).unwrap_or(0));
            let text = value.to_string();
            let fields = match value {
                _ if text.len() > MAX_RECORD_BYTES => Err(format!("longer than {MAX_RECORD_BYTES} bytes")),
                Value::Object(fields) => Ok(fields),
                _ => Err("the row has no columns".to_string()),
            };
            each(Record { place: Place::Row(number), fields, text })?;
        }
        Ok(())
    }
}

/// Calls the reader. Damaged files can make it panic; nothing of it is used after that.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_anywhere_is_an_error_or_goes_unseen() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("d.parquet");
        let whole = include_bytes!("../../../tests/fixtures/chats.parquet");
        let mut refused = 0;
        for at in 0..whole.len() {
            for flip in [0x01, 0xff] {
                let mut damaged = whole.to_vec();
                damaged[at] ^= flip;
                std::fs::write(&path, &damaged).expect("written");
                let source = Source::open(&path, "d.parquet".into(), None).expect("a file");
                refused += usize::from(Parquet.read(source, &mut |_| Ok(())).is_err());
            }
        }
        assert!(refused > 200, "{refused} were refused");
    }

    #[test]
    fn a_page_that_lies_about_its_size_is_refused_before_it_is_unpacked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("d.parquet");
        let whole = include_bytes!("../../../tests/fixtures/chats.parquet");
        let reader = SerializedFileReader::new(bytes::Bytes::from_static(whole)).expect("reads");
        let column = reader.metadata().row_group(0).column(0);
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset()) as usize;
        // Type (field 1, i32), and then the unpacked size as a zigzag varint of two bytes, which five of the same value replace.
        let mut lying = whole[..start].to_vec();
        assert_eq!((whole[start], whole[start + 2]), (0x15, 0x15), "the header begins with two numbers");
        let size_bytes = whole[start + 3..].iter().position(|byte| byte & 0x80 == 0).expect("an end") + 1;
        lying.extend(&whole[start..start + 3]);
        lying.extend(std::iter::repeat_n(0xff, size_bytes - 1).chain([0x7e]));
        lying.extend(&whole[start + 3 + size_bytes..]);
        std::fs::write(&path, &lying).expect("written");
        let source = Source::open(&path, "d.parquet".into(), None).expect("a file");
        let refused = Parquet.read(source, &mut |_| Ok(())).expect_err("it lies");
        let told = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
        assert!(told.contains("row group 0: a page"), "{refused}: {told}");
    }
}
