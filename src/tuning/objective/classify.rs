//! Learning to tell labels apart: a softmax over the last hidden state of a text, whose weights are trained with the adapter below it.

use super::{Measured, Metrics, Objective, Pass, Split, add};
use crate::engine::arch::{Batch, Mode};
use crate::engine::{Adapter, Model};
use crate::tuning::TuningError;
use crate::tuning::lora::{HeadVariables, Trainable};
use crate::types::digest::Hashing;
use candle_core::{Device, Tensor};
use serde::Serialize;

/// A text and its label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Labelled {
    /// Its tokens; what is read is the hidden state of the last one.
    pub tokens: Vec<u32>,
    /// Place of the label among all.
    pub label: usize,
}

/// Mean cross-entropy of the labels, nats.
pub struct Classify<'a> {
    /// To learn.
    pub train: &'a [Labelled],
    /// To measure; may be empty.
    pub validation: &'a [Labelled],
}

/// Hidden states (N, hidden) of the last tokens of some texts; a graph is built if the adapter's tensors are variables.
///
/// # Errors
/// When the tensor library fails.
pub fn last_hidden(model: &Model, adapter: &Adapter, texts: &[&Labelled]) -> Result<Tensor, TuningError> {
    let mut batch = Batch::default();
    texts.iter().enumerate().for_each(|(slot, text)| batch.push(&text.tokens, slot, 0));
    let hidden = model.decoder.hidden(&batch, Mode::Train(adapter))?;
    let rows: Vec<u32> = batch.segments.iter().map(|segment| segment.rows.end as u32 - 1).collect();
    Ok(hidden.index_select(&Tensor::from_vec(rows, texts.len(), &Device::Cpu)?, 0)?)
}

/// Cross-entropy of each text (N), and logits (N, labels) of h (N, hidden).
fn losses(h: &Tensor, head: &HeadVariables, texts: &[&Labelled]) -> candle_core::Result<(Tensor, Tensor)> {
    let logits = h.matmul(&head.weight.t()?)?.broadcast_add(head.bias.as_tensor())?;
    let labels = head.labels.len();
    let mut one_hot = vec![0f32; texts.len() * labels];
    texts.iter().zip(one_hot.chunks_exact_mut(labels)).for_each(|(text, row)| row[text.label] = 1.0);
    let target = (&logits * Tensor::from_vec(one_hot, (texts.len(), labels), &Device::Cpu)?)?.sum(1)?;
    let most = logits.detach().max_keepdim(1)?;
    let log_sum = (logits.broadcast_sub(&most)?.exp()?.sum(1)?.log()? + most.squeeze(1)?)?;
    Ok(((log_sum - target)?, logits))
}

fn right(logits: &Tensor, texts: &[&Labelled]) -> candle_core::Result<Metrics> {
    let best = logits.argmax(1)?.to_vec1::<u32>()?;
    let right = best.iter().zip(texts).filter(|(best, text)| **best as usize == text.label).count();
    Ok(Metrics::from([("accuracy".to_string(), right as f64)]))
}

impl Classify<'_> {
    fn of(&self, split: Split) -> &[Labelled] {
        if split == Split::Train { self.train } else { self.validation }
    }

    fn head(trainable: &Trainable) -> Result<&HeadVariables, TuningError> {
        trainable.head.as_ref().ok_or_else(|| candle_core::Error::Msg("a classifier is trained without a head".into()).into())
    }
}

impl Objective for Classify<'_> {
    fn lengths(&self, split: Split) -> Vec<usize> {
        self.of(split).iter().map(|text| text.tokens.len()).collect()
    }

    fn weight(&self, chosen: &[usize]) -> f64 {
        chosen.len() as f64
    }

    fn pass(
        &self,
        model: &Model,
        (trainable, adapter): (&Trainable, &Adapter),
        chosen: &[usize],
        normaliser: f64,
    ) -> Result<Pass, TuningError> {
        let texts: Vec<&Labelled> = chosen.iter().map(|i| &self.train[*i]).collect();
        let (losses, logits) = losses(&last_hidden(model, adapter, &texts)?, Self::head(trainable)?, &texts)?;
        let graph = (losses.sum_all()? * (1.0 / normaliser))?;
        let loss = f64::from(graph.to_scalar::<f32>()?);
        let tokens = texts.iter().map(|text| text.tokens.len()).sum();
        Ok(Pass { loss, graph, metrics: right(&logits, &texts)?, tokens })
    }

    fn measure(&self, model: &Model, trainable: &Trainable, chosen: &[usize]) -> Result<Measured, TuningError> {
        let texts: Vec<&Labelled> = chosen.iter().map(|i| &self.validation[*i]).collect();
        let (losses, logits) = losses(&last_hidden(model, &trainable.adapter.detached(), &texts)?, Self::head(trainable)?, &texts)?;
        let loss = losses.to_vec1::<f32>()?.iter().map(|loss| f64::from(*loss)).sum();
        Ok(Measured::of(loss, texts.len() as f64, right(&logits, &texts)?, texts.len()))
    }

    fn content(&self, digest: &mut Hashing) {
        add(digest, &self.train);
        add(digest, &self.validation);
    }
}
