//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors` with keys
//! `base_model.model.<module path>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank). Never pickle.

use super::kernel::low_rank::Precision;
use super::nn::linear::Lora;
use super::nn::slices::with_slice;
use super::packed_adapter::PackedAdapter;
use super::{EngineError, adapter_check};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

const KEY_PREFIX: &str = "base_model.model.";
const MAX_RANK: usize = 512;

/// A linear layer that an adapter can be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraTarget {
    /// Module path as in Hugging Face checkpoints: `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Width of its input.
    pub inputs: usize,
    /// Width of its output.
    pub outputs: usize,
}

impl LoraTarget {
    /// The last part of the path, such as `q_proj`: what `target_modules` names.
    pub fn module(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// `adapter_config.json`, the part that decides what the weights mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// Always `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The base model, as the adapter's author names it.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Scale numerator: the update is multiplied with `lora_alpha / r`.
    pub lora_alpha: f32,
    /// Dropout that was used in training.
    #[serde(default)]
    pub lora_dropout: f32,
    /// Names of the adapted modules.
    pub target_modules: Value,
    /// `none`, or the adapter is refused.
    #[serde(default = "none")]
    pub bias: String,
    /// Scale with √r instead of r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn none() -> String {
    "none".into()
}

impl AdapterConfig {
    /// The configuration of a new LoRA adapter.
    pub fn lora(base: &str, rank: usize, alpha: f32, modules: &[String]) -> Self {
        let extra = serde_json::json!({
            "revision": null, "fan_in_fan_out": false, "use_dora": false, "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {},
            "layers_to_transform": null, "layers_pattern": null, "inference_mode": true, "init_lora_weights": true,
        });
        AdapterConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r: rank,
            lora_alpha: alpha,
            lora_dropout: 0.0,
            target_modules: modules.iter().cloned().map(Value::from).collect(),
            bias: none(),
            use_rslora: false,
            extra: extra.as_object().cloned().unwrap_or_default(),
        }
    }

    /// Factor on the low-rank update.
    pub fn scale(&self) -> f32 {
        if self.use_rslora { self.lora_alpha / (self.r as f32).sqrt() } else { self.lora_alpha / self.r as f32 }
    }

    /// Refuses what the engine would otherwise ignore without a word.
    fn check(&self) -> Result<(), EngineError> {
        let refuse = |reason: String| Err(EngineError::Adapter(reason));
        if self.peft_type != "LORA" {
            return refuse(format!("peft_type \"{}\" is not supported (LORA is)", self.peft_type));
        }
        if self.r == 0 || self.r > MAX_RANK {
            return refuse(format!("r is {}; 1 to {MAX_RANK} is supported", self.r));
        }
        if !self.lora_alpha.is_finite() {
            return refuse("lora_alpha is not a finite number".into());
        }
        if self.bias != "none" {
            return refuse(format!("bias \"{}\" is not supported", self.bias));
        }
        let set = |key: &str| {
            self.extra.get(key).is_some_and(|value| match value {
                Value::Null | Value::Bool(false) => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => true,
            })
        };
        let unsupported = [
            "use_dora",
            "lora_bias",
            "modules_to_save",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "rank_pattern",
            "alpha_pattern",
            "fan_in_fan_out",
        ];
        match unsupported.iter().find(|key| set(key)) {
            Some(key) => refuse(format!("adapter_config.json sets {key}, which is not supported yet")),
            None => Ok(()),
        }
    }
}

/// A loaded adapter: one low-rank pair for each adapted module path.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    loras: HashMap<String, Lora>,
    packed: OnceLock<Arc<PackedAdapter>>,
}

impl Adapter {
    /// An adapter from pairs that exist already (training).
    pub fn new(config: AdapterConfig, loras: HashMap<String, Lora>) -> Self {
        Adapter { config, loras, packed: OnceLock::new() }
    }

    /// Reads an adapter and checks it against the modules of the base model.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] naming the key or tensor that does not fit.
    pub fn load(config: &[u8], weights: &[u8], targets: &[LoraTarget]) -> Result<Self, EngineError> {
        adapter_check::files(config, weights)?;
        let config: AdapterConfig =
            serde_json::from_slice(config).map_err(|error| EngineError::Adapter(format!("adapter_config.json: {error}")))?;
        config.check()?;
        let tensors = safetensors::SafeTensors::deserialize(weights)
            .map_err(|error| EngineError::Adapter(format!("adapter_model.safetensors: {error}")))?;
        let known: HashMap<&str, &LoraTarget> = targets.iter().map(|target| (target.path.as_str(), target)).collect();
        let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for (key, view) in tensors.tensors() {
            let (path, half) = split_key(&key)?;
            let target = known.get(path).ok_or_else(|| EngineError::Adapter(format!("tensor {key}: the model has no module {path}")))?;
            let expected = if half == 0 { [config.r, target.inputs] } else { [target.outputs, config.r] };
            if view.shape() != expected {
                return Err(EngineError::Adapter(format!(
                    "tensor {key} has shape {:?}, this model and rank ask for {expected:?}",
                    view.shape()
                )));
            }
            halves.entry(path.to_string()).or_default()[half] = Some(to_f32(&key, &view)?);
        }
        adapter_check::modules(&config, targets, &halves.keys().map(String::as_str).collect())?;
        let scale = config.scale();
        let mut loras = HashMap::new();
        for (path, [a, b]) in halves {
            let (Some(a), Some(b)) = (a, b) else {
                return Err(EngineError::Adapter(format!("module {path} has only one of lora_A and lora_B")));
            };
            loras.insert(path, Lora { a, b, scale });
        }
        if loras.is_empty() {
            return Err(EngineError::Adapter("adapter_model.safetensors holds no LoRA tensors".into()));
        }
        Ok(Adapter::new(config, loras))
    }

    /// The same adapter for serving alone: its values packed in the given precision, and the tensors dropped.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub fn for_serving(self, targets: &[LoraTarget], precision: Precision) -> Result<Self, EngineError> {
        let packed = Arc::new(PackedAdapter::new(&self, targets, precision)?);
        Ok(Adapter { config: self.config, loras: HashMap::new(), packed: OnceLock::from(packed) })
    }

    /// The packed values; made of the tensors in full precision where the adapter was not packed before.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub fn packed(&self, targets: impl FnOnce() -> Vec<LoraTarget>) -> Result<Arc<PackedAdapter>, EngineError> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let packed = Arc::new(PackedAdapter::new(self, &targets(), Precision::Full)?);
        Ok(self.packed.get_or_init(|| packed).clone())
    }

    /// The same adapter with tensors that no graph is built from, to measure a model that is being trained.
    pub fn detached(&self) -> Self {
        let detach = |lora: &Lora| Lora { a: lora.a.detach(), b: lora.b.detach(), scale: lora.scale };
        Adapter::new(self.config.clone(), self.loras.iter().map(|(path, lora)| (path.clone(), detach(lora))).collect())
    }

    /// The pair of a module path, if it is adapted.
    pub fn lora(&self, path: &str) -> Option<&Lora> {
        self.loras.get(path)
    }

    /// `adapter_model.safetensors`: tensors sorted by key, f32, one `metadata` entry in the header.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub fn to_safetensors(&self, metadata: Option<(&str, &str)>) -> Result<Vec<u8>, EngineError> {
        let mut buffers = BTreeMap::new();
        for (path, lora) in &self.loras {
            for (half, tensor) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                let bytes: Vec<u8> = tensor.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect();
                buffers.insert(format!("{KEY_PREFIX}{path}.{half}.weight"), (tensor.dims().to_vec(), bytes));
            }
        }
        let mut views = Vec::new();
        for (key, (shape, bytes)) in &buffers {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            views.push((key.as_str(), view.map_err(unwritable)?));
        }
        // A single metadata entry at most: with more, the header's bytes (and so the digest) would depend on the map's order.
        safetensors::serialize(views, metadata.map(|(key, value)| HashMap::from([(key.to_string(), value.to_string())])))
            .map_err(unwritable)
    }

    /// `adapter_config.json`.
    pub fn to_config_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.config).expect("a configuration is strings and numbers: serialising cannot fail")
    }
}

fn unwritable(error: safetensors::SafeTensorError) -> EngineError {
    EngineError::Adapter(error.to_string())
}

/// Module path, and 0 for lora_A or 1 for lora_B.
fn split_key(key: &str) -> Result<(&str, usize), EngineError> {
    let inner = key.strip_prefix(KEY_PREFIX);
    let a = inner.and_then(|key| key.strip_suffix(".lora_A.weight")).map(|path| (path, 0));
    let b = inner.and_then(|key| key.strip_suffix(".lora_B.weight")).map(|path| (path, 1));
    a.or(b).ok_or_else(|| EngineError::Adapter(format!("tensor {key} is not named {KEY_PREFIX}<module>.lora_A.weight or .lora_B.weight")))
}

fn to_f32(key: &str, view: &safetensors::tensor::TensorView<'_>) -> Result<Tensor, EngineError> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => DType::F32,
        safetensors::Dtype::F16 => DType::F16,
        safetensors::Dtype::BF16 => DType::BF16,
        other => return Err(EngineError::Adapter(format!("tensor {key} has element type {other:?}; F32, F16 and BF16 are supported"))),
    };
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?.to_dtype(DType::F32)?;
    with_slice(&tensor, |values| adapter_check::finite(key, values))??;
    Ok(tensor)
}
