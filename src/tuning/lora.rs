//! The trainable part: one pair of variables for each adapted module, A uniform and B zero as PEFT initialises them, so that training
//! begins with exactly the base model; with DoRA the magnitudes, with a classifier its head. With `method: full` the model's own weights.

use super::{Method, Recipe, TuningError};
use crate::engine::adapter::{Adapter, AdapterConfig, LoraTarget};
use crate::engine::nn::linear::Lora;
use crate::engine::{Classifier, Head, Model};
use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;

/// An adapter in training: its variables in a fixed order, and the adapter that the decoder reads them through.
pub struct Trainable {
    /// Shares its tensors with `variables`.
    pub adapter: Adapter,
    /// A, B and with DoRA the magnitudes of every adapted module, in the decoder's order; then the head's weight and bias.
    pub variables: Vec<Var>,
    /// Of a classifier.
    pub head: Option<HeadVariables>,
    /// What the variables are called, where they are the weights of the model themselves; none of an adapter.
    names: Option<Vec<String>>,
}

/// A classifier's head in training.
pub struct HeadVariables {
    /// (labels, hidden).
    pub weight: Var,
    /// (labels).
    pub bias: Var,
    /// What it tells apart, in the order of the rows.
    pub labels: Vec<String>,
}

/// A module's values.
struct Values<'a> {
    target: &'a LoraTarget,
    a: Vec<f32>,
    b: Vec<f32>,
    magnitude: Option<Vec<f32>>,
}

impl HeadVariables {
    fn new(head: &Head) -> Result<Self, TuningError> {
        let (labels, dimensions) = (head.labels().to_vec(), head.dimensions());
        let weight = Var::from_slice(head.weight(), (labels.len(), dimensions), &Device::Cpu)?;
        let bias = Var::from_slice(head.bias(), labels.len(), &Device::Cpu)?;
        Ok(HeadVariables { weight, bias, labels })
    }

    fn head(&self) -> Result<Head, TuningError> {
        let (weight, bias) = (self.weight.flatten_all()?.to_vec1()?, self.bias.to_vec1()?);
        Ok(Head::new(self.labels.clone(), weight, bias)?)
    }
}

impl Trainable {
    /// New variables for the recipe's targets.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] when the model has none of the targets.
    pub fn new(recipe: &Recipe, model: &Model) -> Result<Self, TuningError> {
        if recipe.method == Method::Full {
            let (names, variables) = model.decoder.variables()?.into_iter().unzip();
            return Ok(Trainable { adapter: none(recipe), variables, head: None, names: Some(names) });
        }
        let mut generator = StdRng::seed_from_u64(recipe.seed);
        // Kaiming-uniform with a = √5, which for a linear layer is U(-1/√in, 1/√in) (PEFT `LoraLayer.reset_lora_parameters`).
        let mut uniform = |count: usize, inputs: usize| -> Vec<f32> {
            let bound = 1.0 / (inputs as f32).sqrt();
            (0..count).map(|_| generator.random_range(-bound..bound)).collect()
        };
        let targets = model.lora_targets();
        let mut modules = Vec::new();
        for target in chosen(recipe, &targets) {
            let a = uniform(recipe.rank * target.inputs, target.inputs);
            modules.push(Values { target, a, b: vec![0f32; target.outputs * recipe.rank], magnitude: None });
        }
        if modules.is_empty() {
            return Err(TuningError::Recipe { key: "targets".into(), problem: "matches no module of the model".into() });
        }
        let mut trainable = Self::from_values(recipe, modules)?;
        if recipe.dora {
            // As long as the base's: training begins with exactly the base model.
            let adapter = &trainable.adapter;
            let length = |target: &&LoraTarget| adapter.lora(&target.path).map(|lora| model.decoder.row_norms(&target.path, lora));
            let lengths = chosen(recipe, &targets).filter_map(|target| length(&target)).collect::<Result<Vec<_>, _>>()?;
            let mut modules = Vec::new();
            for (target, magnitude) in chosen(recipe, &targets).zip(lengths) {
                modules.push(Values { magnitude, ..values(&trainable.adapter, target)? });
            }
            trainable = Self::from_values(recipe, modules)?;
        }
        Ok(trainable)
    }

    /// The same with a head on top.
    ///
    /// # Errors
    /// When its values cannot be read.
    pub fn with_head(mut self, head: &Head) -> Result<Self, TuningError> {
        let head = HeadVariables::new(head)?;
        self.variables.extend([head.weight.clone(), head.bias.clone()]);
        Ok(Trainable { head: Some(head), ..self })
    }

    /// Variables with the values of a checkpoint.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] when it adapts other modules than the recipe; [`TuningError::Engine`] when it does not fit the model.
    pub fn read(recipe: &Recipe, model: &Model, (config, weights): (&[u8], &[u8])) -> Result<Self, TuningError> {
        if recipe.method == Method::Full {
            let trainable = Self::new(recipe, model)?;
            trainable.set(weights)?;
            return Ok(trainable);
        }
        let targets = model.lora_targets();
        let (head, adapter) = match Classifier::is_one(config) {
            true => {
                let Classifier { head, adapter } = Classifier::load(config, weights, &targets)?;
                (Some(head), adapter)
            }
            false => (None, Some(Arc::new(model.adapter(config, weights)?))),
        };
        let mut modules = Vec::new();
        for target in chosen(recipe, &targets) {
            modules.push(values(adapter.as_deref().unwrap_or(&none(recipe)), target)?);
        }
        let trainable = Self::from_values(recipe, modules)?;
        match head {
            Some(head) => trainable.with_head(&head),
            None => Ok(trainable),
        }
    }

    fn from_values(recipe: &Recipe, modules: Vec<Values<'_>>) -> Result<Self, TuningError> {
        let config = config(recipe);
        let (mut variables, mut loras, mut magnitudes) = (Vec::new(), HashMap::new(), HashMap::new());
        for Values { target, a, b, magnitude } in modules {
            let a = Var::from_vec(a, (recipe.rank, target.inputs), &Device::Cpu)?;
            let b = Var::from_vec(b, (target.outputs, recipe.rank), &Device::Cpu)?;
            loras.insert(target.path.clone(), Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: config.scale() });
            variables.extend([a, b]);
            if let Some(magnitude) = magnitude {
                let magnitude = Var::from_vec(magnitude, target.outputs, &Device::Cpu)?;
                magnitudes.insert(target.path.clone(), magnitude.as_tensor().clone());
                variables.push(magnitude);
            }
        }
        Ok(Trainable { adapter: Adapter::new(config, loras).with_magnitudes(magnitudes), variables, head: None, names: None })
    }

    /// Configuration and weights as they are stored: PEFT's two files, or a classifier's.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn files(&self) -> Result<(Vec<u8>, Vec<u8>), TuningError> {
        if let Some(names) = &self.names {
            return Ok((b"{\"method\": \"full\"}".to_vec(), self.weights(names)?));
        }
        let Some(head) = &self.head else { return Ok((self.adapter.to_config_json(), self.adapter.to_safetensors(None)?)) };
        let classifier = Classifier { head: head.head()?, adapter: Some(Arc::new(self.adapter.detached())) };
        Ok((classifier.to_config_json(), classifier.to_safetensors()?))
    }

    /// The weights of the model, safetensors.
    fn weights(&self, names: &[String]) -> Result<Vec<u8>, TuningError> {
        safetensors::serialize(names.iter().zip(self.variables.iter().map(Var::as_tensor)), None)
            .map_err(|error| candle_core::Error::Msg(error.to_string()).into())
    }

    /// Gives the weights of the model the values of a checkpoint.
    fn set(&self, weights: &[u8]) -> Result<(), TuningError> {
        let wrong = |problem: String| TuningError::Recipe { key: "model".into(), problem };
        let read = safetensors::SafeTensors::deserialize(weights).map_err(|error| wrong(format!("the checkpoint: {error}")))?;
        for (name, variable) in self.names.iter().flatten().zip(&self.variables) {
            let view = read.tensor(name).map_err(|error| wrong(format!("the checkpoint: {name}: {error}")))?;
            if view.dtype() != safetensors::Dtype::F32 || view.shape() != variable.dims() {
                return Err(wrong(format!("has {name} as {:?}, the checkpoint as {:?}", variable.dims(), view.shape())));
            }
            variable.set(&Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.variables.iter().map(|variable| variable.elem_count()).sum()
    }
}

fn config(recipe: &Recipe) -> AdapterConfig {
    let mut config = AdapterConfig::lora(&recipe.model, recipe.rank, recipe.alpha, &recipe.targets).with(recipe.rslora, recipe.dora);
    config.lora_dropout = recipe.dropout;
    config
}

fn none(recipe: &Recipe) -> Adapter {
    Adapter::new(config(recipe), HashMap::new())
}

/// The model's modules that the recipe names, in the decoder's order.
fn chosen<'a>(recipe: &'a Recipe, targets: &'a [LoraTarget]) -> impl Iterator<Item = &'a LoraTarget> {
    targets.iter().filter(|target| recipe.targets.iter().any(|name| name == target.module()))
}

fn values<'a>(adapter: &Adapter, target: &'a LoraTarget) -> Result<Values<'a>, TuningError> {
    let Some(lora) = adapter.lora(&target.path) else {
        let problem = format!("names {}, the checkpoint does not have it", target.path);
        return Err(TuningError::Recipe { key: "targets".into(), problem });
    };
    let magnitude = adapter.extras(&target.path).magnitude.map(|magnitude| magnitude.to_vec1()).transpose()?;
    Ok(Values { target, a: lora.a.flatten_all()?.to_vec1()?, b: lora.b.flatten_all()?.to_vec1()?, magnitude })
}
