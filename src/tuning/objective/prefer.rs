//! Learning which of two answers is preferred: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290). The reference is
//! the base model without the adapter.

use super::{Measured, Metrics, Objective, Pass, Split, add};
use crate::engine::adapter::AdapterConfig;
use crate::engine::arch::Mode;
use crate::engine::nn::cross_entropy::{Label, cross_entropy, evaluate};
use crate::engine::{Adapter, Model};
use crate::tuning::TuningError;
use crate::tuning::example::{Example, Packed};
use crate::tuning::lora::Trainable;
use crate::types::digest::Hashing;
use candle_core::Tensor;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preference {
    /// The better one.
    pub chosen: Example,
    /// The other one.
    pub rejected: Example,
}

/// Mean of −log σ(β · margin) over the pairs, nats, where the margin is how much further the adapter has moved the log probability of the
/// chosen answer than that of the rejected one.
pub struct Prefer<'a> {
    train: &'a [Preference],
    validation: &'a [Preference],
    beta: f64,
    base: Adapter,
    /// Log probabilities of both answers under the base model, once they were asked for.
    reference: RefCell<HashMap<(bool, usize), [f64; 2]>>,
}

/// Both answers of some pairs in one batch, and their log probabilities.
struct Answers {
    packed: Packed,
    hidden: Tensor,
    log_probabilities: Vec<[f64; 2]>,
}

/// A pair under the model as it is.
struct Judged {
    loss: f64,
    /// Derivative of the loss by the margin, negative.
    slope: f64,
    /// β · what the adapter has added to the log probability of each answer.
    rewards: [f64; 2],
}

impl<'a> Prefer<'a> {
    /// Pairs to learn and to measure.
    pub fn new(train: &'a [Preference], validation: &'a [Preference], beta: f64) -> Self {
        let base = Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new());
        Prefer { train, validation, beta, base, reference: RefCell::default() }
    }

    fn of(&self, split: Split) -> &[Preference] {
        if split == Split::Train { self.train } else { self.validation }
    }

    fn answers(&self, model: &Model, adapter: &Adapter, (split, chosen): (Split, &[usize])) -> Result<Answers, TuningError> {
        let pairs = chosen.iter().map(|i| &self.of(split)[*i]);
        let packed = Packed::new(pairs.flat_map(|pair| [&pair.chosen, &pair.rejected]));
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(adapter))?;
        let mut log_probabilities = vec![[0.0; 2]; chosen.len()];
        let rows = evaluate(&hidden, model.decoder.head()?, &packed.labels)?;
        let mut rows = rows.iter().peekable();
        for (answer, segment) in packed.batch.segments.iter().enumerate() {
            while let Some(row) = rows.next_if(|row| row.row < segment.rows.end) {
                log_probabilities[answer / 2][answer % 2] -= f64::from(row.weight) * row.loss;
            }
        }
        Ok(Answers { packed, hidden, log_probabilities })
    }

    /// Asks the base model about pairs that it was not asked about; returns how many tokens that took.
    fn refer(&self, model: &Model, split: Split, chosen: &[usize]) -> Result<usize, TuningError> {
        let key = |i: usize| (split == Split::Train, i);
        let unknown: Vec<usize> = chosen.iter().copied().filter(|i| !self.reference.borrow().contains_key(&key(*i))).collect();
        if unknown.is_empty() {
            return Ok(0);
        }
        let Answers { packed, log_probabilities, .. } = self.answers(model, &self.base, (split, &unknown))?;
        self.reference.borrow_mut().extend(unknown.into_iter().map(key).zip(log_probabilities));
        Ok(packed.batch.tokens.len())
    }

    fn judge(&self, split: Split, chosen: &[usize], now: &[[f64; 2]]) -> Vec<Judged> {
        let reference = self.reference.borrow();
        let judge = |(i, now): (&usize, &[f64; 2])| {
            let then = reference.get(&(split == Split::Train, *i)).copied().unwrap_or_default();
            let rewards = [0, 1].map(|answer| self.beta * (now[answer] - then[answer]));
            let margin = rewards[0] - rewards[1];
            // −log σ(m) = log(1 + e^−m) without overflow on either side.
            let loss = (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
            Judged { loss, slope: -1.0 / (1.0 + margin.exp()), rewards }
        };
        chosen.iter().zip(now).map(judge).collect()
    }
}

fn metrics(judged: &[Judged]) -> Metrics {
    let mut sums = Metrics::new();
    for Judged { rewards: [chosen, rejected], .. } in judged {
        let is_right = f64::from(u8::from(chosen > rejected));
        for (name, value) in [
            ("reward_margin", chosen - rejected),
            ("reward_accuracy", is_right),
            ("reward_chosen", *chosen),
            ("reward_rejected", *rejected),
        ] {
            *sums.entry(name.into()).or_default() += value;
        }
    }
    sums
}

impl Objective for Prefer<'_> {
    fn lengths(&self, split: Split) -> Vec<usize> {
        self.of(split).iter().map(|pair| pair.chosen.rows() + pair.rejected.rows()).collect()
    }

    fn weight(&self, chosen: &[usize]) -> f64 {
        chosen.len() as f64
    }

    fn pass(&self, model: &Model, (_, adapter): (&Trainable, &Adapter), chosen: &[usize], normaliser: f64) -> Result<Pass, TuningError> {
        let referred = self.refer(model, Split::Train, chosen)?;
        let Answers { packed, hidden, log_probabilities } = self.answers(model, adapter, (Split::Train, chosen))?;
        let judged = self.judge(Split::Train, chosen, &log_probabilities);
        // By the chain rule the gradient is that of a cross-entropy whose rows weigh what the loss changes by with theirs.
        let mut labels: Vec<Option<Label>> = packed.labels.clone();
        for (answer, segment) in packed.batch.segments.iter().enumerate() {
            let side = if answer % 2 == 0 { -1.0 } else { 1.0 };
            let weight = (side * self.beta * judged[answer / 2].slope) as f32;
            labels[segment.rows.clone()].iter_mut().flatten().for_each(|label| label.weight *= weight);
        }
        let graph = cross_entropy(&hidden, model.decoder.head()?, &labels, normaliser as f32)?;
        let loss = judged.iter().map(|pair| pair.loss).sum::<f64>() / normaliser;
        Ok(Pass { loss, graph, metrics: metrics(&judged), tokens: packed.batch.tokens.len() + referred })
    }

    fn measure(&self, model: &Model, trainable: &Trainable, chosen: &[usize]) -> Result<Measured, TuningError> {
        self.refer(model, Split::Validation, chosen)?;
        let answers = self.answers(model, &trainable.adapter.detached(), (Split::Validation, chosen))?;
        let judged = self.judge(Split::Validation, chosen, &answers.log_probabilities);
        let loss = judged.iter().map(|pair| pair.loss).sum();
        Ok(Measured::of(loss, judged.len() as f64, metrics(&judged), judged.len()))
    }

    fn content(&self, digest: &mut Hashing) {
        add(digest, &self.train);
        add(digest, &self.validation);
    }
}
