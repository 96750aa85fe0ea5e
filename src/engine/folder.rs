//! A folder of a decoder as Hugging Face transformers writes it: `config.json`, a tokenizer, and safetensors weights in one file or in
//! shards that an index lists. The files are untrusted: sizes are checked before anything is allocated, and errors name file, key or tensor.
//! Folders of [encoders](super::encoder) have a reader of their own.

use super::gguf::Order;
use super::kernel::tiles::{Source, Weight};
use super::{EngineError, map};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a JSON file, but `tokenizer.json`.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes of `tokenizer.json`: that of a vocabulary of 262,144 has 33 million.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Weights that are in one file.
const WEIGHTS: &str = "model.safetensors";
/// The list of shards.
const INDEX: &str = "model.safetensors.index.json";

/// An opened folder; tensor bytes stay on disk.
pub struct Folder {
    files: BTreeMap<String, PathBuf>,
    config: Value,
    shards: Vec<Shard>,
    /// By name: the shard and the place in it.
    tensors: BTreeMap<String, TensorInfo>,
}

struct Shard {
    name: String,
    map: Mmap,
}

struct TensorInfo {
    shard: usize,
    dtype: Dtype,
    dims: Vec<usize>,
    range: Range<usize>,
}

impl Folder {
    /// Opens a folder, its files by name.
    ///
    /// # Errors
    /// [`EngineError::Model`] naming the file that is missing or malformed, and the tensor.
    pub fn open(files: &BTreeMap<String, PathBuf>) -> Result<Self, EngineError> {
        let mut folder = Folder { files: files.clone(), config: Value::Null, shards: Vec::new(), tensors: BTreeMap::new() };
        folder.config = folder.json("config.json")?.ok_or_else(|| fault("config.json", "is not in the model's folder"))?;
        // Of an index its shards, else the one file; others (a second copy in another layout) are not the model's.
        let listed = folder.json(INDEX)?.map(|index| index["weight_map"].clone());
        let is_shard = |name: &str| match &listed {
            Some(Value::Object(map)) => map.values().any(|shard| shard == name),
            _ => name == WEIGHTS || !files.contains_key(WEIGHTS),
        };
        for (name, path) in files.iter().filter(|(name, _)| name.ends_with(".safetensors") && is_shard(name)) {
            folder.add_shard(name, path)?;
        }
        if folder.shards.is_empty() {
            return Err(fault("model.safetensors", "is not in the model's folder"));
        }
        folder.check_index()?;
        Ok(folder)
    }

    /// The files of a directory, by name.
    ///
    /// # Errors
    /// [`EngineError::Io`] when it cannot be read.
    pub fn files(directory: &Path) -> Result<BTreeMap<String, PathBuf>, EngineError> {
        let io = |source| EngineError::Io { path: directory.to_path_buf(), source };
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            if let Ok(name) = entry.file_name().into_string() {
                files.insert(name, entry.path());
            }
        }
        Ok(files)
    }

    fn add_shard(&mut self, name: &str, path: &Path) -> Result<(), EngineError> {
        let map = map::map(path)?;
        let (length, metadata) = SafeTensors::read_metadata(&map).map_err(|error| fault(name, error.to_string()))?;
        for (tensor, info) in metadata.tensors() {
            // The library has checked that these lie inside the file and fit shape and type.
            let begin = 8 + length;
            let range = begin + info.data_offsets.0..begin + info.data_offsets.1;
            let found = TensorInfo { shard: self.shards.len(), dtype: info.dtype, dims: info.shape.clone(), range };
            if self.tensors.insert(tensor.clone(), found).is_some() {
                return Err(fault(name, format!("tensor {tensor} is in another file of the folder as well")));
            }
        }
        self.shards.push(Shard { name: name.to_string(), map });
        Ok(())
    }

    /// Every tensor that the index lists must be in the shard that it names.
    fn check_index(&self) -> Result<(), EngineError> {
        let Some(index) = self.json(INDEX)? else { return Ok(()) };
        let listed = index["weight_map"].as_object().ok_or_else(|| fault(INDEX, "has no \"weight_map\""))?;
        for (tensor, shard) in listed {
            let found = self.tensors.get(tensor).map(|info| self.shards[info.shard].name.as_str());
            if found.is_none() || found != shard.as_str() {
                let problem = match found {
                    Some(found) => format!("says that tensor {tensor} is in {shard}; it is in {found}"),
                    None => format!("names tensor {tensor} in {shard}, where it is not"),
                };
                return Err(fault(INDEX, problem));
            }
        }
        Ok(())
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A JSON file, if it is there.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is none.
    pub fn json(&self, name: &str) -> Result<Option<Value>, EngineError> {
        let bytes = self.bytes(name, MAX_JSON_BYTES)?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(|error| fault(name, format!("is not JSON: {error}")))).transpose()
    }

    /// A text file, if it is there.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, EngineError> {
        let bytes = self.bytes(name, MAX_JSON_BYTES)?;
        bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| fault(name, "is not UTF-8"))).transpose()
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is missing.
    pub fn tokenizer(&self) -> Result<Vec<u8>, EngineError> {
        self.bytes("tokenizer.json", MAX_TOKENIZER_BYTES)?.ok_or_else(|| fault("tokenizer.json", "is not in the model's folder"))
    }

    fn bytes(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, EngineError> {
        let Some(path) = self.files.get(name) else { return Ok(None) };
        let io = |source| EngineError::Io { path: path.clone(), source };
        let length = std::fs::metadata(path).map_err(io)?.len();
        if length > most {
            return Err(fault(name, format!("has {length} bytes; at most {most} are read")));
        }
        std::fs::read(path).map(Some).map_err(io)
    }

    /// Error about the folder.
    pub fn problem(&self, problem: impl Into<String>) -> EngineError {
        let name = if self.shards.len() == 1 { self.shards[0].name.as_str() } else { INDEX };
        fault(name, problem)
    }

    /// Names of all tensors, ascending.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor as f32 on the CPU.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is missing, has another shape, or a type that is not read.
    pub fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor, EngineError> {
        let (info, dtype) = self.info(name, dims)?;
        let bytes = &self.shards[info.shard].map[info.range.clone()];
        let dtype = match dtype {
            GgmlDType::F16 => DType::F16,
            GgmlDType::BF16 => DType::BF16,
            _ => DType::F32,
        };
        Ok(Tensor::from_raw_buffer(bytes, dtype, dims, &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    /// A matrix (outputs, inputs), packed for serving as the file has it; with `exact` as f32. Row i is row `order(i)` of the file.
    ///
    /// # Errors
    /// As [`Folder::tensor`].
    pub fn weight(&self, name: &str, shape: (usize, usize), order: Order<'_>, exact: bool) -> Result<Weight, EngineError> {
        let (outputs, inputs) = shape;
        let (info, dtype) = self.info(name, &[outputs, inputs])?;
        let map = &self.shards[info.shard].map;
        let row_bytes = info.range.len() / outputs;
        let packed =
            |rows: Range<usize>| map::release(map, info.range.start + rows.start * row_bytes..info.range.start + rows.end * row_bytes);
        let source = Source { bytes: &map[info.range.clone()], outputs, inputs, order, packed: &packed };
        let kept = if exact { None } else { Weight::pack(dtype, source) };
        let weight = match kept {
            Some(weight) => weight,
            None => Weight::exact(&self.tensor(name, &[outputs, inputs])?.flatten_all()?.to_vec1::<f32>()?, shape, order),
        };
        map::release(map, info.range.clone());
        Ok(weight)
    }

    fn info(&self, name: &str, dims: &[usize]) -> Result<(&TensorInfo, GgmlDType), EngineError> {
        let info = self.tensors.get(name).ok_or_else(|| self.problem(format!("tensor {name} is missing")))?;
        let file = &self.shards[info.shard].name;
        if info.dims != dims {
            return Err(fault(file, format!("tensor {name} has shape {:?}, the configuration asks for {dims:?}", info.dims)));
        }
        let dtype = match info.dtype {
            Dtype::F32 => GgmlDType::F32,
            Dtype::F16 => GgmlDType::F16,
            Dtype::BF16 => GgmlDType::BF16,
            other => return Err(fault(file, format!("tensor {name} has the type {other:?}; F32, F16 and BF16 are read"))),
        };
        Ok((info, dtype))
    }
}

fn fault(file: &str, problem: impl Into<String>) -> EngineError {
    EngineError::Model { file: file.to_string(), problem: problem.into() }
}
