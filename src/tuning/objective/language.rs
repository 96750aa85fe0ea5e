//! Learning to say what the examples say: the cross-entropy of their next tokens, weighted.

use super::{Measured, Metrics, Objective, Pass, Split, add};
use crate::engine::arch::Mode;
use crate::engine::nn::cross_entropy::{cross_entropy, evaluate};
use crate::engine::{Adapter, Model};
use crate::tuning::TuningError;
use crate::tuning::example::{Example, Packed};
use crate::tuning::lora::Trainable;
use crate::types::digest::Hashing;

/// Mean cross-entropy of the tokens that carry loss, nats.
pub struct Language<'a> {
    /// To learn.
    pub train: &'a [Example],
    /// To measure; may be empty.
    pub validation: &'a [Example],
}

impl Language<'_> {
    fn of(&self, split: Split) -> &[Example] {
        if split == Split::Train { self.train } else { self.validation }
    }
}

impl Objective for Language<'_> {
    fn lengths(&self, split: Split) -> Vec<usize> {
        self.of(split).iter().map(Example::rows).collect()
    }

    fn weight(&self, chosen: &[usize]) -> f64 {
        chosen.iter().map(|i| self.train[*i].weight()).sum()
    }

    fn pass(&self, model: &Model, (_, adapter): (&Trainable, &Adapter), chosen: &[usize], normaliser: f64) -> Result<Pass, TuningError> {
        let packed = Packed::new(chosen.iter().map(|i| &self.train[*i]));
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(adapter))?;
        let graph = cross_entropy(&hidden, model.decoder.head()?, &packed.labels, normaliser as f32)?;
        let loss = f64::from(graph.to_scalar::<f32>()?);
        Ok(Pass { loss, graph, metrics: Metrics::new(), tokens: packed.batch.tokens.len() })
    }

    fn measure(&self, model: &Model, trainable: &Trainable, chosen: &[usize]) -> Result<Measured, TuningError> {
        let packed = Packed::new(chosen.iter().map(|i| &self.validation[*i]));
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(&trainable.adapter.detached()))?;
        let rows = evaluate(&hidden, model.decoder.head()?, &packed.labels)?;
        let loss = rows.iter().map(|row| f64::from(row.weight) * row.loss).sum();
        let hits = rows.iter().filter(|row| row.is_hit).count();
        let metrics = Metrics::from([("token_accuracy".to_string(), hits as f64)]);
        Ok(Measured::of(loss, packed.weight(), metrics, rows.len()))
    }

    fn content(&self, digest: &mut Hashing) {
        add(digest, &self.train);
        add(digest, &self.validation);
    }
}
