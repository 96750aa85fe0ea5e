//! The trainable part: one pair of variables for each adapted module, A uniform and B zero as PEFT initialises them, so that training
//! begins with exactly the base model.

use super::{Recipe, TuningError};
use crate::engine::adapter::{Adapter, AdapterConfig, LoraTarget};
use crate::engine::nn::linear::Lora;
use candle_core::{Device, Var};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;

/// An adapter in training: its variables in a fixed order, and the adapter that the decoder reads them through.
pub struct Trainable {
    /// Shares its tensors with `variables`.
    pub adapter: Adapter,
    /// A and B of every adapted module, in the decoder's order.
    pub variables: Vec<Var>,
}

impl Trainable {
    /// New variables for the recipe's targets.
    ///
    /// # Errors
    /// [`TuningError::Recipe`] when the model has none of the targets.
    pub fn new(recipe: &Recipe, targets: &[LoraTarget]) -> Result<Self, TuningError> {
        let mut generator = StdRng::seed_from_u64(recipe.seed);
        // Kaiming-uniform with a = √5, which for a linear layer is U(-1/√in, 1/√in) (PEFT `LoraLayer.reset_lora_parameters`).
        let mut uniform = |count: usize, inputs: usize| -> Vec<f32> {
            let bound = 1.0 / (inputs as f32).sqrt();
            (0..count).map(|_| generator.random_range(-bound..bound)).collect()
        };
        let halves = targets.iter().filter(|target| recipe.targets.iter().any(|name| name == target.module()));
        let halves: Vec<_> = halves.map(|t| (t, uniform(recipe.rank * t.inputs, t.inputs), vec![0f32; t.outputs * recipe.rank])).collect();
        if halves.is_empty() {
            return Err(TuningError::Recipe { key: "targets".into(), problem: "matches no module of the model".into() });
        }
        Self::from_values(recipe, halves)
    }

    /// Variables with the values of an adapter (a checkpoint).
    ///
    /// # Errors
    /// [`TuningError::Recipe`] when it adapts other modules than the recipe.
    pub fn from_adapter(recipe: &Recipe, targets: &[LoraTarget], adapter: &Adapter) -> Result<Self, TuningError> {
        let mut halves = Vec::new();
        for target in targets.iter().filter(|target| recipe.targets.iter().any(|name| name == target.module())) {
            let Some(lora) = adapter.lora(&target.path) else {
                return Err(TuningError::Recipe {
                    key: "targets".into(),
                    problem: format!("names {}, the checkpoint does not have it", target.path),
                });
            };
            halves.push((target, lora.a.flatten_all()?.to_vec1()?, lora.b.flatten_all()?.to_vec1()?));
        }
        Self::from_values(recipe, halves)
    }

    fn from_values(recipe: &Recipe, halves: Vec<(&LoraTarget, Vec<f32>, Vec<f32>)>) -> Result<Self, TuningError> {
        let config = AdapterConfig::lora(&recipe.model, recipe.rank, recipe.alpha, &recipe.targets);
        let (mut variables, mut loras) = (Vec::new(), HashMap::new());
        for (target, a, b) in halves {
            let a = Var::from_vec(a, (recipe.rank, target.inputs), &Device::Cpu)?;
            let b = Var::from_vec(b, (target.outputs, recipe.rank), &Device::Cpu)?;
            loras.insert(target.path.clone(), Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: config.scale() });
            variables.extend([a, b]);
        }
        Ok(Trainable { adapter: Adapter::new(config, loras), variables })
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.variables.iter().map(|variable| variable.elem_count()).sum()
    }
}
