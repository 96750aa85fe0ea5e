//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with its state in plain vectors, so that it can be saved and resumed, and
//! gradients that add up over several forward passes.

use super::TuningError;
use crate::engine::nn::slices::with_slice;
use candle_core::Var;
use candle_core::backprop::GradStore;
use rayon::prelude::*;

/// Values that one task works on. Sums are taken chunk by chunk in their order, so that the number of threads changes nothing.
const CHUNK: usize = 1 << 14;
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// Sums of gradients, one vector a variable.
pub struct Gradients {
    sums: Vec<Vec<f32>>,
}

impl Gradients {
    /// Zero for every variable.
    pub fn zero(variables: &[Var]) -> Self {
        Gradients { sums: variables.iter().map(|variable| vec![0.0; variable.elem_count()]).collect() }
    }

    /// Adds the gradients of one backward pass.
    ///
    /// # Errors
    /// When a variable received no gradient: an op cut the graph.
    pub fn add(&mut self, variables: &[Var], gradients: &GradStore) -> Result<(), TuningError> {
        self.sums.par_iter_mut().zip(variables).enumerate().try_for_each(|(index, (sum, variable))| {
            let Some(gradient) = gradients.get(variable.as_tensor()) else {
                return Err(candle_core::Error::Msg(format!("variable {index} received no gradient")).into());
            };
            with_slice(gradient, |gradient| {
                let chunks = sum.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
                chunks.for_each(|(sum, gradient)| sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x));
            })?;
            Ok(())
        })
    }

    /// Global L2 norm.
    pub fn norm(&self) -> f64 {
        let chunks: Vec<&[f32]> = self.sums.iter().flat_map(|sum| sum.chunks(CHUNK)).collect();
        let squares = chunks.par_iter().map(|chunk| chunk.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>());
        squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
    }

    /// The sums, for tests.
    pub fn sums(&self) -> &[Vec<f32>] {
        &self.sums
    }
}

/// How far a step goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Learning rate.
    pub rate: f64,
    /// Variables at the end, a classifier's head, that have a rate of their own.
    pub last: usize,
    /// That rate.
    pub last_rate: f64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_norm: f64,
}

/// AdamW's moments and step count.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moments, one vector a variable.
    pub first: Vec<Vec<f32>>,
    /// Second moments.
    pub second: Vec<Vec<f32>>,
    /// Steps taken.
    pub steps: usize,
}

impl AdamW {
    /// Fresh state.
    pub fn new(variables: &[Var]) -> Self {
        let zero: Vec<Vec<f32>> = variables.iter().map(|variable| vec![0.0; variable.elem_count()]).collect();
        AdamW { first: zero.clone(), second: zero, steps: 0 }
    }

    /// One step of all variables at one rate; gradients are scaled down to `max_norm` first. Returns the norm before scaling.
    ///
    /// # Errors
    /// When a variable cannot be written.
    pub fn step(&mut self, variables: &[Var], gradients: &Gradients, rate: f64, decay: f64, max_norm: f64) -> Result<f64, TuningError> {
        self.step_at(variables, gradients, &Pace { rate, last: 0, last_rate: rate, decay, max_norm })
    }

    /// As [`AdamW::step`], at that pace.
    ///
    /// # Errors
    /// When a variable cannot be written.
    pub fn step_at(&mut self, variables: &[Var], gradients: &Gradients, pace: &Pace) -> Result<f64, TuningError> {
        self.steps += 1;
        let norm = gradients.norm();
        let clip = if norm > pace.max_norm { (pace.max_norm / norm) as f32 } else { 1.0 };
        let correction1 = 1.0 - f64::from(BETA1).powi(self.steps as i32);
        let correction2 = 1.0 - f64::from(BETA2).powi(self.steps as i32);
        let root2 = correction2.sqrt() as f32;
        let state = self.first.par_iter_mut().zip(&mut self.second).zip(&gradients.sums);
        variables.par_iter().zip(state).enumerate().try_for_each(|(index, (variable, ((first, second), gradient)))| {
            let rate = if variables.len() - index <= pace.last { pace.last_rate } else { pace.rate };
            let (rate1, keep) = ((rate / correction1) as f32, (1.0 - rate * pace.decay) as f32);
            let mut values: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
            let chunks = values.par_chunks_mut(CHUNK).zip(moments).zip(gradient.par_chunks(CHUNK));
            chunks.for_each(|((values, (first, second)), gradient)| {
                for (((value, m), v), g) in values.iter_mut().zip(first).zip(second).zip(gradient) {
                    let g = g * clip;
                    *m = BETA1 * *m + (1.0 - BETA1) * g;
                    *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                    *value = *value * keep - rate1 * *m / (v.sqrt() / root2 + EPSILON);
                }
            });
            variable.set(&candle_core::Tensor::from_vec(values, variable.shape(), variable.device())?)
        })?;
        Ok(norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn follows_pytorchs_adamw() {
        // Reference: the update rule of arXiv 1711.05101, algorithm 2, computed by hand in f64 for the loss x² / 2 (gradient x).
        let variable = Var::from_vec(vec![1.0f32, -2.0], 2, &Device::Cpu).expect("variable");
        let mut optimizer = AdamW::new(std::slice::from_ref(&variable));
        let (mut expected, mut m, mut v) = ([1.0f64, -2.0], [0.0f64; 2], [0.0f64; 2]);
        for step in 1..=20 {
            let tensor = variable.as_tensor();
            let loss = (tensor * tensor).and_then(|x| x.sum_all()).and_then(|x| x * 0.5).expect("loss");
            let mut gradients = Gradients::zero(std::slice::from_ref(&variable));
            gradients.add(std::slice::from_ref(&variable), &loss.backward().expect("backward")).expect("gradients");
            optimizer.step(std::slice::from_ref(&variable), &gradients, 0.1, 0.01, 1e9).expect("a step");
            for i in 0..2 {
                let g = expected[i];
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
                expected[i] = expected[i] * (1.0 - 0.1 * 0.01) - 0.1 * mh / (vh.sqrt() + 1e-8);
            }
        }
        let values: Vec<f32> = variable.to_vec1().expect("values");
        assert!(
            (f64::from(values[0]) - expected[0]).abs() < 1e-5 && (f64::from(values[1]) - expected[1]).abs() < 1e-5,
            "{values:?} {expected:?}"
        );
    }

    #[test]
    fn long_gradients_are_scaled_down() {
        let variable = Var::from_tensor(&Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).expect("zeros")).expect("variable");
        let variables = [variable];
        let mut small = AdamW::new(&variables);
        let gradients = Gradients { sums: vec![vec![100.0]] };
        let norm = small.step(&variables, &gradients, 0.1, 0.0, 1.0).expect("a step");
        assert_eq!((norm, small.first[0][0]), (100.0, 1.0 - BETA1));
    }

    #[test]
    fn the_last_variables_have_their_own_rate() {
        let zero = || Var::zeros(1, candle_core::DType::F32, &Device::Cpu).expect("a variable");
        let variables = [zero(), zero(), zero()];
        let gradients = Gradients { sums: vec![vec![0.5]; 3] };
        let pace = Pace { rate: 0.1, last: 2, last_rate: 0.3, decay: 0.0, max_norm: 1.0 };
        AdamW::new(&variables).step_at(&variables, &gradients, &pace).expect("a step");
        let values = variables.map(|variable| variable.to_vec1::<f32>().expect("values")[0]);
        // Adam's first step is as long as the rate, whatever the gradient is.
        for (value, expected) in values.iter().zip([-0.1, -0.3, -0.3]) {
            assert!((value - expected).abs() < 1e-6, "{values:?}");
        }
    }
}
