//! GGUF (version 2 and 3) files, parsed with checked arithmetic: the file is untrusted. Every length is bounded by the file's size
//! before anything is allocated. Format: ggml's `docs/gguf.md`.

use super::kernel::tiles::{Source, Weight};
use super::{EngineError, map};
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use memmap2::Mmap;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

/// Which row of the file becomes row i of a packed matrix.
pub type Order<'a> = &'a (dyn Fn(usize) -> usize + Sync);

const MAX_DIMENSIONS: usize = 4;
const MAX_ARRAY_DEPTH: usize = 2;
/// Type number of texts.
const TEXT: u32 = 8;
const MAX_ARRAY_LENGTH: usize = 1 << 22;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Array of one type, checked and left in the file: that of a vocabulary would take twenty times its bytes.
    Array(Array),
}

/// Where an array lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Type number of its elements.
    kind: u32,
    length: usize,
    /// Its first element in the file.
    at: usize,
}

struct TensorInfo {
    dtype: GgmlDType,
    /// Row-major, outermost first (GGUF stores the innermost first).
    dims: Vec<usize>,
    offset: usize,
    size: usize,
}

/// An opened GGUF file: its metadata, and tensors that are read on demand from the mapped file.
pub struct Gguf {
    name: String,
    metadata: HashMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    map: Mmap,
}

impl Gguf {
    /// Opens and checks a file; tensor bytes stay on disk.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the key or tensor that is malformed.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let map = map::map(path)?;
        let name = path.file_name().map_or_else(|| "model".to_string(), |name| name.to_string_lossy().into_owned());
        let (metadata, tensors) = parse(&map).map_err(|problem| EngineError::Model { file: name.clone(), problem })?;
        Ok(Gguf { name, metadata, tensors, map })
    }

    /// Error about this file.
    pub fn problem(&self, problem: impl Into<String>) -> EngineError {
        EngineError::Model { file: self.name.clone(), problem: problem.into() }
    }

    /// Metadata value of a key, if there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A required text.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the key is missing or no text; likewise below.
    pub fn text(&self, key: &str) -> Result<&str, EngineError> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            other => Err(self.wrong(key, "a text", other)),
        }
    }

    /// A required non-negative integer.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn integer(&self, key: &str) -> Result<usize, EngineError> {
        match self.metadata.get(key) {
            Some(Value::Unsigned(x)) => usize::try_from(*x).map_err(|_| self.problem(format!("{key} is too large"))),
            Some(Value::Signed(x)) => usize::try_from(*x).map_err(|_| self.problem(format!("{key} is negative"))),
            other => Err(self.wrong(key, "an integer", other)),
        }
    }

    /// A required number.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn number(&self, key: &str) -> Result<f64, EngineError> {
        match self.metadata.get(key) {
            Some(Value::Float(x)) if x.is_finite() => Ok(*x),
            other => Err(self.wrong(key, "a finite number", other)),
        }
    }

    /// A required array of texts.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, EngineError> {
        let (array, mut reader) = self.array(key, "an array of texts", |kind| kind == TEXT)?;
        (0..array.length).map(|_| reader.str().map_err(|problem| self.problem(format!("{key}: {problem}")))).collect()
    }

    /// A required array of integers.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, EngineError> {
        let is_integer = |kind| matches!(kind, 0..=5 | 10 | 11);
        let (array, mut reader) = self.array(key, "an array of integers", is_integer)?;
        let mut integer = || match reader.value_of(array.kind, 1) {
            Ok(Value::Signed(x)) => Ok(x),
            Ok(Value::Unsigned(x)) => i64::try_from(x).map_err(|_| self.problem(format!("{key} holds a number that is too large"))),
            _ => Err(self.wrong(key, "an array of integers", None)),
        };
        (0..array.length).map(|_| integer()).collect()
    }

    /// A required array of numbers, as f32.
    ///
    /// # Errors
    /// As [`Gguf::text`].
    pub fn numbers(&self, key: &str) -> Result<Vec<f32>, EngineError> {
        let (array, mut reader) = self.array(key, "an array of numbers", |kind| matches!(kind, 6 | 12))?;
        let mut number = || match reader.value_of(array.kind, 1) {
            Ok(Value::Float(x)) if x.is_finite() => Ok(x as f32),
            _ => Err(self.problem(format!("{key} holds something that is no finite number"))),
        };
        (0..array.length).map(|_| number()).collect()
    }

    /// An array whose elements' type `fits`, and a reader that stands before its first element.
    fn array(&self, key: &str, expected: &str, fits: impl Fn(u32) -> bool) -> Result<(&Array, Reader<'_>), EngineError> {
        match self.metadata.get(key) {
            Some(Value::Array(array)) if array.length == 0 || fits(array.kind) => Ok((array, Reader { bytes: &self.map, at: array.at })),
            other => Err(self.wrong(key, expected, other)),
        }
    }

    /// Names of all tensors, ascending.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor is in the file.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor, dequantised to f32 on the CPU.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is missing, has another shape, or its bytes end past the file.
    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, EngineError> {
        let info = self.info(name, dims)?;
        let bytes = &self.map[info.offset..info.offset + info.size];
        let quantised: QTensor = qtensor_from_ggml(info.dtype, bytes, info.dims.clone(), &Device::Cpu)?;
        Ok(quantised.dequantize(&Device::Cpu)?)
    }

    /// A tensor of one dimension, as f32.
    ///
    /// # Errors
    /// As [`Gguf::tensor`].
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.tensor(name, &[length])?.to_vec1()?)
    }

    /// A matrix (outputs, inputs) packed for serving; row i is row `order(i)` of the file. With `exact`, every value is kept as f32, so
    /// that nothing is rounded, neither weights nor activations. The file's pages are given back as soon as they have been read.
    ///
    /// # Errors
    /// As [`Gguf::tensor`].
    pub fn weight(&self, name: &str, shape: (usize, usize), order: Order<'_>, exact: bool) -> Result<Weight, EngineError> {
        let (outputs, inputs) = shape;
        let info = self.info(name, &[outputs, inputs])?;
        let range = info.offset..info.offset + info.size;
        let row_bytes = info.size / outputs;
        let packed = |rows: Range<usize>| map::release(&self.map, info.offset + rows.start * row_bytes..info.offset + rows.end * row_bytes);
        let source = Source { bytes: &self.map[range.clone()], outputs, inputs, order, packed: &packed };
        let kept = if exact { None } else { Weight::pack(info.dtype, source) };
        let weight = match kept {
            Some(weight) => weight,
            None => Weight::exact(&self.tensor(name, &[outputs, inputs])?.flatten_all()?.to_vec1::<f32>()?, shape, order),
        };
        map::release(&self.map, range);
        Ok(weight)
    }

    fn info(&self, name: &str, dims: &[usize]) -> Result<&TensorInfo, EngineError> {
        let info = self.tensors.get(name).ok_or_else(|| self.problem(format!("tensor {name} is missing")))?;
        if info.dims != dims {
            return Err(self.problem(format!("tensor {name} has shape {:?}, the metadata asks for {dims:?}", info.dims)));
        }
        Ok(info)
    }

    fn wrong(&self, key: &str, expected: &str, found: Option<&Value>) -> EngineError {
        match found {
            None => self.problem(format!("the metadata key {key} is missing")),
            Some(_) => self.problem(format!("the metadata key {key} is not {expected}")),
        }
    }
}

type Parsed = (HashMap<String, Value>, BTreeMap<String, TensorInfo>);

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("it does not begin with the GGUF magic".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} is not supported (2 and 3 are)"));
    }
    let tensor_count = reader.count("tensor", 24)?;
    let metadata_count = reader.count("metadata", 13)?;
    let mut metadata = HashMap::with_capacity(metadata_count);
    for _ in 0..metadata_count {
        let key = reader.text().map_err(|e| format!("a metadata key cannot be read: {e}"))?;
        let value = reader.value(0).map_err(|e| format!("the metadata key {key} cannot be read: {e}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("the metadata key {key} appears twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(x)) if (8..=1 << 20).contains(x) && x.is_power_of_two() => *x as usize,
        Some(_) => return Err("general.alignment is not a power of two from 8 to 2^20".into()),
    };
    let mut infos = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        infos.push(reader.tensor_info()?);
    }
    let data_start = reader.at.checked_next_multiple_of(alignment).ok_or("the header is too long")?;
    let mut tensors = BTreeMap::new();
    for (name, mut info) in infos {
        // An unaligned tensor would be read through misaligned pointers.
        if !info.offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name} begins at {}, which is no multiple of the alignment {alignment}", info.offset));
        }
        info.offset = info.offset.checked_add(data_start).ok_or_else(|| format!("tensor {name} has an impossible offset"))?;
        let end = info.offset.checked_add(info.size);
        if end.is_none_or(|end| end > bytes.len()) {
            return Err(format!("tensor {name} ends past the end of the file: the file is truncated"));
        }
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} appears twice"));
        }
    }
    Ok((metadata, tensors))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or("the file ends early: it is truncated")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take returns exactly N bytes"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that each take at least `least` bytes, so that it cannot ask for more memory than the file has bytes.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let possible = (self.bytes.len() - self.at) / least;
        usize::try_from(count).ok().filter(|n| *n <= possible).ok_or_else(|| format!("the {what} count {count} does not fit in the file"))
    }

    fn text(&mut self) -> Result<String, String> {
        self.str().map(str::to_string)
    }

    fn str(&mut self) -> Result<&'a str, String> {
        let length = self.count("text length", 1)?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "a text is not UTF-8".to_string())
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        let kind = self.u32()?;
        self.value_of(kind, depth)
    }

    fn value_of(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            TEXT => Value::Text(self.text()?),
            9 if depth < MAX_ARRAY_DEPTH => {
                let element = self.u32()?;
                let length = self.count("array length", 1)?;
                if length > MAX_ARRAY_LENGTH {
                    return Err(format!("an array of {length} values is too long"));
                }
                let array = Array { kind: element, length, at: self.at };
                for _ in 0..length {
                    match element {
                        TEXT => drop(self.str()?),
                        _ => drop(self.value_of(element, depth + 1)?),
                    }
                }
                Value::Array(array)
            }
            9 => return Err("arrays are nested too deeply".into()),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("unknown value type {other}")),
        })
    }

    fn tensor_info(&mut self) -> Result<(String, TensorInfo), String> {
        let name = self.text().map_err(|e| format!("a tensor name cannot be read: {e}"))?;
        let named = |problem: String| format!("tensor {name}: {problem}");
        let rank = self.u32()? as usize;
        if rank == 0 || rank > MAX_DIMENSIONS {
            return Err(named(format!("{rank} dimensions")));
        }
        let mut dims = Vec::with_capacity(rank);
        for _ in 0..rank {
            let dim = self.u64()?;
            dims.push(usize::try_from(dim).ok().filter(|d| *d > 0).ok_or_else(|| named(format!("dimension {dim}")))?);
        }
        let dtype = dtype(self.u32()?).map_err(named)?;
        let offset = usize::try_from(self.u64()?).map_err(|_| named("impossible offset".into()))?;
        let elements = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(|| named("its size overflows".into()))?;
        if dims[0] % dtype.block_size() != 0 {
            return Err(named(format!("rows of {} are no multiple of the block size {}", dims[0], dtype.block_size())));
        }
        let size = (elements / dtype.block_size()).checked_mul(dtype.type_size()).ok_or_else(|| named("its size overflows".into()))?;
        dims.reverse();
        Ok((name, TensorInfo { dtype, dims, offset, size }))
    }
}

fn dtype(number: u32) -> Result<GgmlDType, String> {
    Ok(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        other => return Err(format!("element type {other} is not supported")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one text key and one F32 tensor (2, 3).
    fn small() -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        let text = |file: &mut Vec<u8>, s: &str| {
            file.extend((s.len() as u64).to_le_bytes());
            file.extend(s.as_bytes());
        };
        text(&mut file, "general.architecture");
        file.extend(8u32.to_le_bytes());
        text(&mut file, "llama");
        text(&mut file, "w");
        file.extend(2u32.to_le_bytes());
        file.extend(3u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend((0..6u8).flat_map(|x| f32::from(x).to_le_bytes()));
        file
    }

    #[test]
    fn reads_metadata_and_shapes_outermost_first() {
        let (metadata, tensors) = parse(&small()).expect("a good file");
        assert_eq!(metadata["general.architecture"], Value::Text("llama".into()));
        assert_eq!(tensors["w"].dims, [2, 3]);
    }

    #[test]
    fn every_truncation_is_an_error_and_never_a_panic() {
        let file = small();
        for length in 0..file.len() {
            assert!(parse(&file[..length]).is_err(), "accepted {length} of {} bytes", file.len());
        }
    }

    #[test]
    fn any_flipped_byte_is_read_or_refused_but_never_a_panic() {
        let file = small();
        for at in 0..file.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = file.clone();
                changed[at] ^= flip;
                let _ = parse(&changed);
            }
        }
    }

    #[test]
    fn huge_counts_are_refused_before_anything_is_allocated() {
        let mut file = small();
        file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        let Err(problem) = parse(&file) else { panic!("accepted") };
        assert!(problem.contains("tensor count"), "{problem}");
    }
}
