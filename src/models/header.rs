//! The header of a GGUF file, read far enough to know what it is and that it is whole: metadata is skimmed, and the last byte of every
//! tensor must lie inside the file. Format: ggml `docs/gguf.md`. The engine reads weights with its own reader.

use super::ModelError;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// What the header says of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.license`, as the file writes it.
    pub licence: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// `<architecture>.context_length`.
    pub context_tokens: Option<u64>,
    /// Number of tensors.
    pub tensors: u64,
}

const MAX_ENTRIES: u64 = 1 << 16;
const MAX_KEPT_TEXT: u64 = 4096;

/// (elements of a block, bytes of a block) by ggml type number; from `ggml.c`'s type traits.
const BLOCKS: &[(u32, u64, u64)] = &[
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
    (24, 1, 1),
    (25, 1, 2),
    (26, 1, 4),
    (27, 1, 8),
    (28, 1, 8),
    (30, 1, 2),
];

/// Reads and checks the header of a file.
///
/// # Errors
/// [`ModelError::File`] when it cannot be opened, [`ModelError::Invalid`] when it is no GGUF file, damaged or cut off.
pub fn read(path: &Path) -> Result<Header, ModelError> {
    let fault = |source| ModelError::File { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() {
        return Err(ModelError::Invalid { file: path.display().to_string(), message: "it is not a regular file".into() });
    }
    let mut reader = Reader { length: metadata.len(), at: 0, inner: BufReader::new(file) };
    header(&mut reader).map_err(|message| ModelError::Invalid { file: path.display().to_string(), message })
}

fn header<R: Read + Seek>(reader: &mut Reader<R>) -> Result<Header, String> {
    if reader.length < 4 || reader.bytes::<4>()? != *b"GGUF" {
        return Err("it does not begin with \"GGUF\"".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}; 2 and 3 are known"));
    }
    let tensors = reader.count("tensors")?;
    let entries = reader.count("metadata entries")?;
    let mut found = Header { tensors, ..Header::default() };
    let mut alignment = 32;
    for _ in 0..entries {
        let key = reader.text()?;
        let kind = reader.u32()?;
        match (key.as_str(), reader.value(kind)?) {
            ("general.architecture", Scalar::Text(text)) => found.architecture = text,
            ("general.license", Scalar::Text(text)) => found.licence = Some(text),
            ("general.name", Scalar::Text(text)) => found.name = Some(text),
            ("general.alignment", Scalar::Number(number)) if number.is_power_of_two() => alignment = number,
            (key, Scalar::Number(number)) if key.ends_with(".context_length") => found.context_tokens = Some(number),
            _ => {}
        }
    }
    if found.architecture.is_empty() {
        return Err("the metadata has no general.architecture".into());
    }
    tensors_are_inside(reader, tensors, alignment)?;
    Ok(found)
}

/// Reads the table of tensors; each one's last byte must lie inside the file.
fn tensors_are_inside<R: Read + Seek>(reader: &mut Reader<R>, tensors: u64, alignment: u64) -> Result<(), String> {
    let mut last = (0u64, String::new());
    for _ in 0..tensors {
        let name = reader.text()?;
        let dimensions = reader.u32()?;
        if dimensions > 8 {
            return Err(format!("tensor \"{name}\" has {dimensions} dimensions"));
        }
        let mut elements = 1u64;
        for _ in 0..dimensions {
            elements = elements.checked_mul(reader.u64()?).ok_or_else(|| format!("tensor \"{name}\" is impossibly large"))?;
        }
        let kind = reader.u32()?;
        let offset = reader.u64()?;
        let size =
            BLOCKS.iter().find(|block| block.0 == kind).map_or(0, |(_, block, bytes)| elements.div_ceil(*block).saturating_mul(*bytes));
        let end = offset.saturating_add(size);
        if end >= last.0 {
            last = (end, name);
        }
    }
    let data = reader.at.next_multiple_of(alignment);
    let end = data.saturating_add(last.0);
    if end > reader.length {
        return Err(format!("it is cut off: tensor \"{}\" ends at byte {end}, the file has {} bytes", last.1, reader.length));
    }
    Ok(())
}

enum Scalar {
    Text(String),
    Number(u64),
    Other,
}

struct Reader<R> {
    inner: BufReader<R>,
    length: u64,
    at: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut buffer = [0u8; N];
        self.inner.read_exact(&mut buffer).map_err(|_| self.cut_off())?;
        self.at += N as u64;
        Ok(buffer)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str) -> Result<u64, String> {
        let number = self.u64()?;
        if number > MAX_ENTRIES { Err(format!("it claims {number} {what}")) } else { Ok(number) }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.length).ok_or_else(|| self.cut_off())?;
        let step = i64::try_from(bytes).map_err(|_| self.cut_off())?;
        self.inner.seek_relative(step).map_err(|error| error.to_string())?;
        self.at = end;
        Ok(())
    }

    /// A string; one longer than what is worth keeping is skipped and comes back empty.
    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        if length > MAX_KEPT_TEXT {
            self.skip(length)?;
            return Ok(String::new());
        }
        let mut buffer = vec![0u8; length as usize];
        self.inner.read_exact(&mut buffer).map_err(|_| self.cut_off())?;
        self.at += length;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Scalar, String> {
        match kind {
            8 => self.text().map(Scalar::Text),
            9 => self.array().map(|()| Scalar::Other),
            4 => self.u32().map(|number| Scalar::Number(number.into())),
            10 => self.u64().map(Scalar::Number),
            _ => self.skip(width(kind).ok_or_else(|| self.unknown(kind))?).map(|()| Scalar::Other),
        }
    }

    fn array(&mut self) -> Result<(), String> {
        let kind = self.u32()?;
        let length = self.u64()?;
        if kind == 8 {
            // Each string costs eight bytes of the file at least, so a false length ends with the file.
            for _ in 0..length {
                let bytes = self.u64()?;
                self.skip(bytes)?;
            }
            return Ok(());
        }
        let width = width(kind).ok_or_else(|| self.unknown(kind))?;
        self.skip(length.checked_mul(width).ok_or_else(|| self.cut_off())?)
    }

    fn cut_off(&self) -> String {
        format!("it is cut off or damaged at byte {} of {}", self.at, self.length)
    }

    fn unknown(&self, kind: u32) -> String {
        format!("unknown value type {kind} at byte {}", self.at)
    }
}

/// Bytes of a fixed-size value.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A GGUF file with one f32 tensor of `elements`, all of its bytes there.
    pub(crate) fn tiny(elements: u64) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        file.extend(3u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        text(&mut file, "general.architecture");
        file.extend(8u32.to_le_bytes());
        text(&mut file, "llama");
        text(&mut file, "tokens");
        file.extend(9u32.to_le_bytes());
        file.extend(8u32.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        text(&mut file, "a");
        text(&mut file, "b");
        text(&mut file, "token_embd.weight");
        file.extend(1u32.to_le_bytes());
        file.extend(elements.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        file.resize(file.len() + 4 * elements as usize, 1);
        file
    }

    fn parse(bytes: &[u8]) -> Result<Header, String> {
        header(&mut Reader { length: bytes.len() as u64, at: 0, inner: BufReader::new(Cursor::new(bytes)) })
    }

    #[test]
    fn whole_file_is_read_and_every_cut_is_noticed() {
        let file = tiny(64);
        assert_eq!(parse(&file).expect("whole").architecture, "llama");
        for length in 0..file.len() {
            assert!(parse(&file[..length]).is_err(), "cut at {length} was not noticed");
        }
        assert!(parse(&file[..file.len() - 1]).expect_err("cut").contains("token_embd.weight"));
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let file = tiny(8);
        for at in 0..file.len() {
            for value in [0u8, 1, 9, 127, 255] {
                let mut damaged = file.clone();
                damaged[at] = value;
                let _ = parse(&damaged);
            }
        }
    }
}
