//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors` with keys
//! `base_model.model.<module path>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank), with DoRA `.lora_magnitude_vector` (out)
//! beside them. Never pickle.

use super::kernel::low_rank::Precision;
use super::nn::adapted::Extras;
use super::nn::dropout::Dropout;
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
const MAGNITUDE: &str = ".lora_magnitude_vector";
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

    /// The same with alpha / √r as the scale, and with DoRA's magnitudes.
    pub fn with(mut self, rslora: bool, dora: bool) -> Self {
        self.use_rslora = rslora;
        self.extra.insert("use_dora".into(), dora.into());
        self
    }

    /// Whether it has DoRA's magnitudes.
    pub fn is_dora(&self) -> bool {
        self.extra.get("use_dora") == Some(&Value::Bool(true))
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
        if let Some(task) = self.task_type.as_deref().filter(|task| *task != "CAUSAL_LM") {
            return refuse(format!("task_type is {task}; CAUSAL_LM is supported"));
        }
        // The others take a part of the base's weights away, which is in neither of the two files.
        let kept = ["gaussian", "eva", "orthogonal"];
        if let Some(how) = self.extra.get("init_lora_weights").and_then(Value::as_str).filter(|how| !kept.contains(how)) {
            return refuse(format!(
                "init_lora_weights is \"{how}\": the adapter belongs to a base with other weights; save it with path_initial_model_for_weight_conversion"
            ));
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
            "lora_bias",
            "modules_to_save",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "rank_pattern",
            "alpha_pattern",
            "fan_in_fan_out",
            "layer_replication",
            "target_parameters",
            "use_qalora",
        ];
        match unsupported.iter().find(|key| set(key)) {
            Some(key) => refuse(format!("adapter_config.json sets {key}, which is not supported yet")),
            None => Ok(()),
        }
    }
}

/// DoRA's part of a module.
#[derive(Debug, Clone)]
struct Magnitude {
    /// Length that each output's weights have, (out).
    vector: Tensor,
    /// Length that they would have without it; known where the base model is.
    norms: Option<Vec<f32>>,
}

/// Tensors by key: shape, and bytes of f32.
pub(super) type Buffers = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A loaded adapter: one low-rank pair for each adapted module path.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    loras: HashMap<String, Lora>,
    magnitudes: HashMap<String, Magnitude>,
    dropout: Option<Dropout>,
    packed: OnceLock<Arc<PackedAdapter>>,
}

impl Adapter {
    /// An adapter from pairs that exist already (training).
    pub fn new(config: AdapterConfig, loras: HashMap<String, Lora>) -> Self {
        Adapter { config, loras, magnitudes: HashMap::new(), dropout: None, packed: OnceLock::new() }
    }

    /// The same with DoRA's magnitudes (out) by module path.
    pub fn with_magnitudes(self, magnitudes: HashMap<String, Tensor>) -> Self {
        let magnitudes = magnitudes.into_iter().map(|(path, vector)| (path, Magnitude { vector, norms: None }));
        Adapter { magnitudes: magnitudes.collect(), ..self }
    }

    /// The same tensors with dropout on the adapter's inputs, for one forward pass of a training.
    pub fn with_dropout(&self, dropout: Dropout) -> Self {
        Adapter { dropout: Some(dropout), ..self.clone() }
    }

    /// Learns the length of every row of the updated weights from the base model, which serving a DoRA adapter needs.
    ///
    /// # Errors
    /// What `norms` says.
    pub(super) fn know_base(&mut self, norms: impl Fn(&str, &Lora) -> Result<Option<Vec<f32>>, EngineError>) -> Result<(), EngineError> {
        for (path, magnitude) in &mut self.magnitudes {
            if let Some(lora) = self.loras.get(path) {
                magnitude.norms = norms(path, lora)?;
            }
        }
        Ok(())
    }

    /// Reads an adapter and checks it against the modules of the base model.
    ///
    /// # Errors
    /// [`EngineError::Adapter`] naming the key or tensor that does not fit.
    pub fn load(config: &[u8], weights: &[u8], targets: &[LoraTarget]) -> Result<Self, EngineError> {
        adapter_check::files(config, weights)?;
        let config: AdapterConfig =
            serde_json::from_slice(config).map_err(|error| EngineError::Adapter(format!("adapter_config.json: {error}")))?;
        let tensors = safetensors::SafeTensors::deserialize(weights)
            .map_err(|error| EngineError::Adapter(format!("adapter_model.safetensors: {error}")))?;
        Self::from_tensors(config, tensors.tensors(), targets)
    }

    /// An adapter of a checked configuration from its tensors.
    ///
    /// # Errors
    /// As [`Adapter::load`].
    pub(super) fn from_tensors<'a>(
        config: AdapterConfig,
        tensors: impl IntoIterator<Item = (String, safetensors::tensor::TensorView<'a>)>,
        targets: &[LoraTarget],
    ) -> Result<Self, EngineError> {
        config.check()?;
        let known: HashMap<&str, &LoraTarget> = targets.iter().map(|target| (target.path.as_str(), target)).collect();
        let mut found: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
        for (key, view) in tensors {
            let (path, part) = split_key(&key)?;
            let target = known.get(path).ok_or_else(|| EngineError::Adapter(format!("tensor {key}: the model has no module {path}")))?;
            let expected = [vec![config.r, target.inputs], vec![target.outputs, config.r], vec![target.outputs]][part].clone();
            if view.shape() != expected {
                return Err(EngineError::Adapter(format!(
                    "tensor {key} has shape {:?}, this model and rank ask for {expected:?}",
                    view.shape()
                )));
            }
            found.entry(path.to_string()).or_default()[part] = Some(to_f32(&key, &view)?);
        }
        adapter_check::modules(&config, targets, &found.keys().map(String::as_str).collect())?;
        let (mut loras, mut magnitudes) = (HashMap::new(), HashMap::new());
        for (path, [a, b, magnitude]) in found {
            let (Some(a), Some(b)) = (a, b) else {
                return Err(EngineError::Adapter(format!("module {path} has only one of lora_A and lora_B")));
            };
            if magnitude.is_some() != config.is_dora() {
                let has = if magnitude.is_some() { "has a" } else { "has no" };
                return Err(EngineError::Adapter(format!("module {path} {has} lora_magnitude_vector, use_dora is {}", config.is_dora())));
            }
            magnitudes.extend(magnitude.map(|vector| (path.clone(), vector)));
            loras.insert(path, Lora { a, b, scale: config.scale() });
        }
        if loras.is_empty() {
            return Err(EngineError::Adapter("adapter_model.safetensors holds no LoRA tensors".into()));
        }
        Ok(Adapter::new(config, loras).with_magnitudes(magnitudes))
    }

    /// The same adapter for serving alone: its values packed in the given precision, and the tensors dropped.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub fn for_serving(self, targets: &[LoraTarget], precision: Precision) -> Result<Self, EngineError> {
        let packed = Arc::new(PackedAdapter::new(&self, targets, precision)?);
        Ok(Adapter { packed: OnceLock::from(packed), ..Adapter::new(self.config, HashMap::new()) })
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

    /// The same adapter with tensors that no graph is built from and without dropout, to measure a model that is being trained.
    pub fn detached(&self) -> Self {
        let detach = |lora: &Lora| Lora { a: lora.a.detach(), b: lora.b.detach(), scale: lora.scale };
        let loras = self.loras.iter().map(|(path, lora)| (path.clone(), detach(lora))).collect();
        let magnitudes = self.magnitudes.iter().map(|(path, magnitude)| (path.clone(), magnitude.vector.detach())).collect();
        Adapter::new(self.config.clone(), loras).with_magnitudes(magnitudes)
    }

    /// The pair of a module path, if it is adapted.
    pub fn lora(&self, path: &str) -> Option<&Lora> {
        self.loras.get(path)
    }

    /// Whether it has pairs alone: neither magnitudes nor dropout.
    pub fn is_plain(&self) -> bool {
        self.magnitudes.is_empty() && self.dropout.is_none()
    }

    /// What a module has beside its pair.
    pub fn extras(&self, path: &str) -> Extras<'_> {
        let magnitude = self.magnitudes.get(path).map(|magnitude| &magnitude.vector);
        Extras { dropout: self.dropout.map(|dropout| dropout.of_module(path)), magnitude }
    }

    /// DoRA's factor on every output of a module, (out); none where it has none.
    ///
    /// # Errors
    /// When the adapter was not read for a model that serves.
    pub(super) fn gains(&self, path: &str) -> candle_core::Result<Option<Vec<f32>>> {
        let Some(Magnitude { vector, norms }) = self.magnitudes.get(path) else { return Ok(None) };
        let Some(norms) = norms else {
            candle_core::bail!("the lengths of the rows of {path} are not known: no model to serve read this adapter")
        };
        let gain = |(m, norm): (f32, &f32)| m / norm.max(f32::MIN_POSITIVE);
        Ok(Some(vector.to_vec1::<f32>()?.into_iter().zip(norms).map(gain).collect()))
    }

    /// `adapter_model.safetensors`: tensors sorted by key, f32, one `metadata` entry in the header.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub fn to_safetensors(&self, metadata: Option<(&str, &str)>) -> Result<Vec<u8>, EngineError> {
        let buffers = self.buffers()?;
        let mut views = Vec::new();
        for (key, (shape, bytes)) in &buffers {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            views.push((key.as_str(), view.map_err(unwritable)?));
        }
        // A single metadata entry at most: with more, the header's bytes (and so the digest) would depend on the map's order.
        safetensors::serialize(views, metadata.map(|(key, value)| HashMap::from([(key.to_string(), value.to_string())])))
            .map_err(unwritable)
    }

    /// Every tensor by its key: its shape and its bytes, f32.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] when a tensor cannot be read.
    pub(super) fn buffers(&self) -> Result<Buffers, EngineError> {
        let halves = self
            .loras
            .iter()
            .flat_map(|(path, lora)| [(format!("{path}.lora_A.weight"), &lora.a), (format!("{path}.lora_B.weight"), &lora.b)]);
        let magnitudes = self.magnitudes.iter().map(|(path, magnitude)| (format!("{path}{MAGNITUDE}"), &magnitude.vector));
        let mut buffers = BTreeMap::new();
        for (key, tensor) in halves.chain(magnitudes) {
            let bytes: Vec<u8> = tensor.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect();
            buffers.insert(format!("{KEY_PREFIX}{key}"), (tensor.dims().to_vec(), bytes));
        }
        Ok(buffers)
    }

    /// `adapter_config.json`.
    pub fn to_config_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&self.config).expect("a configuration is strings and numbers: serialising cannot fail")
    }
}

fn unwritable(error: safetensors::SafeTensorError) -> EngineError {
    EngineError::Adapter(error.to_string())
}

/// Module path, and 0 for lora_A, 1 for lora_B or 2 for the magnitudes (which PEFT writes without `.weight`).
fn split_key(key: &str) -> Result<(&str, usize), EngineError> {
    let inner = key.strip_prefix(KEY_PREFIX);
    let parts = [(".lora_A.weight", 0), (".lora_B.weight", 1), (MAGNITUDE, 2), (".lora_magnitude_vector.weight", 2)];
    let found = parts.iter().find_map(|(end, part)| Some((inner?.strip_suffix(end)?, *part)));
    found.ok_or_else(|| EngineError::Adapter(format!("tensor {key} is not named {KEY_PREFIX}<module>.lora_A.weight or .lora_B.weight")))
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
