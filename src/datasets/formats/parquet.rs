//! Parquet: columnar tables. Read row by row, one row group after the other; lists and structures become JSON.

use super::{Each, Format, Place, Record};
use crate::datasets::DatasetError;
use crate::datasets::source::Source;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::io;

pub(super) struct Parquet;

impl Format for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["parquet", "pq"]
    }

    fn read(&self, source: Source, each: Each<'_>) -> Result<(), DatasetError> {
        let failed = |error: ParquetError| DatasetError::Read { file: source.name.clone(), cause: io::Error::other(error) };
        let file = source.file().map_err(|cause| DatasetError::Read { file: source.name.clone(), cause })?;
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        let rows = reader.metadata().file_metadata().num_rows();
        for (number, row) in (1..).zip(reader.get_row_iter(None).map_err(failed)?) {
            let value = row.map_err(failed)?.to_json_value();
            source.reached(number, u64::try_from(rows).unwrap_or(0));
            let text = value.to_string();
            let fields = match value {
                Value::Object(fields) => Ok(fields),
                _ => Err("the row has no columns".to_string()),
            };
            each(Record { place: Place::Row(number), fields, text })?;
        }
        Ok(())
    }
}
