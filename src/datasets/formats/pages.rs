//! The headers of a Parquet file's pages, before anything is unpacked: what a page says that it unpacks to is what the reader takes memory
//! for, and what it really unpacks to is nobody's word at all. So headers are read first, and packed pages are unpacked once into nothing.
//!
//! Source: Apache Parquet, "Data Pages" and `parquet.thrift` (PageHeader); Apache Thrift, "Thrift Compact protocol".

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};

/// Bytes that the pages of a row group may take that are in memory at the same time: the largest page of each column, and its dictionary.
const MAX_HELD_BYTES: u64 = 1 << 30;
/// Largest header: it may hold the smallest and the largest value.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Structures in each other.
const MAX_DEPTH: usize = 16;
/// Bytes that an entry of a dictionary has at least.
const ENTRY_BYTES: u64 = 1;

/// What of a page's header counts.
#[derive(Debug, Default)]
struct Header {
    is_dictionary: bool,
    unpacked: i64,
    packed: i64,
    values: i64,
    /// Bytes of levels before what is packed, in pages of the second version.
    levels: i64,
    /// Whether it is packed at all.
    is_plain: bool,
}

/// Checks that no page takes more memory than there is for it, nor more than it says.
///
/// # Errors
/// [`ErrorKind::InvalidData`] with the column, the row group and the sizes.
pub(super) fn check(file: &File, metadata: &ParquetMetaData) -> io::Result<()> {
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let mut held = 0u64;
        for column in group.columns() {
            let at = |problem: String| wrong(format!("column {} of row group {number}: {problem}", column.column_path()));
            held = held.saturating_add(pages(file, column).map_err(|error| at(error.to_string()))?);
            if held > MAX_HELD_BYTES {
                return Err(at(format!(
                    "the pages up to here take {held} bytes of memory at the same time, more than {MAX_HELD_BYTES}; write smaller pages or row groups"
                )));
            }
        }
    }
    Ok(())
}

fn wrong(problem: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, problem)
}

/// Goes through the pages of a column: bytes of the largest one and of the dictionary.
fn pages(file: &File, column: &ColumnChunkMetaData) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let dictionary = column.dictionary_page_offset().filter(|offset| *offset > 0);
    let start = dictionary.map_or(column.data_page_offset(), |offset| offset.min(column.data_page_offset()));
    let (start, length) = (u64::try_from(start).unwrap_or(u64::MAX), u64::try_from(column.compressed_size()).unwrap_or(u64::MAX));
    if start.checked_add(length).is_none_or(|end| end > size) {
        return Err(wrong("its pages lie outside of the file".into()));
    }
    let mut input = BufReader::new(file);
    let (mut at, end, mut largest, mut dictionary) = (start, start + length, 0u64, 0u64);
    while at < end {
        input.seek(SeekFrom::Start(at))?;
        let mut compact = Compact { input: (&mut input).take(MAX_HEADER_BYTES), read: 0 };
        let header = compact.header()?;
        at += compact.read;
        let unpacked = header.check(end.checked_sub(at).ok_or_else(broken)?)?;
        unpack(&mut input, &header, column.compression())?;
        at += header.packed as u64;
        *(if header.is_dictionary { &mut dictionary } else { &mut largest }) =
            unpacked.max(if header.is_dictionary { dictionary } else { largest });
    }
    Ok(largest.saturating_add(dictionary))
}

impl Header {
    /// The bytes that it says it unpacks to.
    fn check(&self, left: u64) -> io::Result<u64> {
        let Header { unpacked, packed, values, levels, .. } = *self;
        if packed < 0 || packed as u64 > left {
            return Err(wrong(format!("a page says that it has {packed} bytes, and {left} are left of the column")));
        }
        if unpacked < 0 || unpacked as u64 > MAX_HELD_BYTES {
            return Err(wrong(format!("a page says that it unpacks to {unpacked} bytes; at most {MAX_HELD_BYTES} are taken")));
        }
        if levels < 0 || levels > packed.min(unpacked) {
            return Err(wrong(format!("a page says that its levels have {levels} bytes, of {packed}")));
        }
        if values < 0 || (self.is_dictionary && values as u64 * ENTRY_BYTES > unpacked as u64) {
            return Err(wrong(format!("a page of {unpacked} bytes says that it has {values} values")));
        }
        Ok(unpacked as u64)
    }
}

/// Unpacks a page into nothing, where the reader would unpack all that comes: it must be as much as the header says.
fn unpack(input: &mut impl Read, header: &Header, compression: Compression) -> io::Result<()> {
    let levels = header.levels as u64;
    io::copy(&mut input.take(levels), &mut io::sink())?;
    let packed = input.take(header.packed as u64 - levels);
    let expected = header.unpacked as u64 - levels;
    let unpacked: Box<dyn Read> = match compression {
        _ if header.is_plain || expected == 0 => return Ok(()),
        Compression::GZIP(_) => Box::new(MultiGzDecoder::new(packed)),
        Compression::ZSTD(_) => Box::new(zstd::stream::read::Decoder::new(packed)?),
        // Others take the size that the header says, which was checked.
        _ => return Ok(()),
    };
    let found = io::copy(&mut unpacked.take(expected + 1), &mut io::sink())?;
    match found == expected {
        true => Ok(()),
        false => Err(wrong(format!(
            "a page says that it unpacks to {expected} bytes, and unpacks to {} of them",
            if found > expected { "more" } else { "less" }
        ))),
    }
}

/// Reads Thrift's compact protocol.
struct Compact<R> {
    input: R,
    read: u64,
}

/// What a field is, in the compact protocol.
mod kind {
    pub(super) const STOP: u8 = 0;
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const STRUCT: u8 = 12;
}

/// `type` of a dictionary page.
const DICTIONARY: i64 = 2;
/// Fields of `PageHeader` that are structures: data page, dictionary page, data page of the second version.
const DATA_V1: i16 = 5;
const DATA_V2: i16 = 8;

impl<R: Read> Compact<R> {
    fn header(&mut self) -> io::Result<Header> {
        let (mut header, mut last) = (Header::default(), 0);
        while let Some((id, of)) = self.field(&mut last)? {
            match (id, of) {
                (1, kind::I16..=kind::I64) => header.is_dictionary = self.number()? == DICTIONARY,
                (2, kind::I16..=kind::I64) => header.unpacked = self.number()?,
                (3, kind::I16..=kind::I64) => header.packed = self.number()?,
                (DATA_V1..=DATA_V2, kind::STRUCT) => self.page(id, &mut header)?,
                (_, of) => self.skip(of, 0)?,
            }
        }
        Ok(header)
    }

    /// The header of a kind of page.
    fn page(&mut self, outer: i16, header: &mut Header) -> io::Result<()> {
        let (mut last, is_v2) = (0, outer == DATA_V2);
        while let Some((id, of)) = self.field(&mut last)? {
            match (id, of) {
                (1, kind::I16..=kind::I64) => header.values = self.number()?,
                (5 | 6, kind::I16..=kind::I64) if is_v2 => header.levels = header.levels.saturating_add(self.number()?),
                (7, kind::FALSE) if is_v2 => header.is_plain = true,
                (_, of) => self.skip(of, 0)?,
            }
        }
        Ok(())
    }

    /// The next field's number and kind; none at the end of a structure.
    fn field(&mut self, last: &mut i16) -> io::Result<Option<(i16, u8)>> {
        let byte = self.byte()?;
        let (delta, of) = (byte >> 4, byte & 0x0f);
        if of == kind::STOP {
            return Ok(None);
        }
        *last = match delta {
            0 => i16::try_from(self.number()?).map_err(|_| broken())?,
            delta => last.checked_add(i16::from(delta)).ok_or_else(broken)?,
        };
        Ok(Some((*last, of)))
    }

    fn skip(&mut self, of: u8, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(broken());
        }
        match of {
            kind::TRUE | kind::FALSE => Ok(()),
            kind::BYTE => self.byte().map(drop),
            kind::I16..=kind::I64 => self.number().map(drop),
            kind::DOUBLE => self.bytes(8),
            kind::BINARY => {
                let length = self.varint()?;
                self.bytes(length)
            }
            kind::LIST | kind::SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 0x0f { self.varint()? } else { u64::from(head >> 4) };
                // A bool of a list has a byte of its own.
                let item = if head & 0x0f <= kind::FALSE { kind::BYTE } else { head & 0x0f };
                (0..count).try_for_each(|_| self.skip(item, depth + 1))
            }
            kind::STRUCT => {
                let mut last = 0;
                while let Some((_, of)) = self.field(&mut last)? {
                    self.skip(of, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(broken()),
        }
    }

    fn bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        self.read += skipped;
        if skipped == count { Ok(()) } else { Err(broken()) }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|_| broken())?;
        self.read += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(broken())
    }

    /// A signed number: zigzag.
    fn number(&mut self) -> io::Result<i64> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }
}

fn broken() -> io::Error {
    wrong("the header of a page is damaged".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> io::Result<Header> {
        Compact { input: bytes, read: 0 }.header()
    }

    /// A data page's header by hand: type 0, sizes as zigzag varints, {values: 3, encoding 0, levels 3, 3}.
    fn written(unpacked: u32, packed: u32) -> Vec<u8> {
        let varint = |number: u32| {
            let (mut bytes, mut left) = (Vec::new(), u64::from(number) << 1);
            while left >= 0x80 {
                bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            bytes.push(left as u8);
            bytes
        };
        [&[0x15, 0][..], &[0x15], &varint(unpacked), &[0x15], &varint(packed), &[0x2c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0]].concat()
    }

    #[test]
    fn headers_are_read_and_their_lies_refused() {
        let read = header(&written(1_000, 20)).expect("a header");
        assert_eq!((read.unpacked, read.packed, read.values, read.is_dictionary), (1_000, 20, 3, false));
        assert_eq!(read.check(20).expect("fits"), 1_000);
        assert!(read.check(19).is_err_and(|error| error.to_string().contains("20 bytes, and 19 are left")));
        let huge = header(&written(2_000_000_000, 20)).expect("a header");
        assert!(huge.check(20).is_err_and(|error| error.to_string().contains("unpacks to 2000000000 bytes")));
        let many = Header { is_dictionary: true, unpacked: 100, values: 101, ..Header::default() };
        assert!(many.check(0).is_err_and(|error| error.to_string().contains("101 values")));
    }

    #[test]
    fn a_page_is_as_long_as_it_says_or_refused() {
        let packed = zstd::bulk::compress(&vec![b'x'; 50_000_000], 3).expect("packs");
        assert!(packed.len() < 10_000);
        let of = |unpacked| Header { unpacked, packed: packed.len() as i64, ..Header::default() };
        let zstd = || Compression::ZSTD(parquet::basic::ZstdLevel::default());
        assert!(unpack(&mut packed.as_slice(), &of(50_000_000), zstd()).is_ok());
        assert!(unpack(&mut packed.as_slice(), &of(1_000), zstd()).is_err_and(|error| error.to_string().contains("unpacks to more")));
        assert!(unpack(&mut packed.as_slice(), &of(60_000_000), zstd()).is_err_and(|error| error.to_string().contains("unpacks to less")));
    }

    #[test]
    fn no_bytes_make_it_run_away() {
        for seed in 0u32..2_000 {
            let bytes: Vec<u8> =
                (0..40u32).map(|at| (seed.wrapping_mul(2_654_435_761).wrapping_add(at * 40_503) >> (at % 13)) as u8).collect();
            let _ = header(&bytes);
        }
    }
}
