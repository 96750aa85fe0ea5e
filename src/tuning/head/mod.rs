//! Classifier heads on frozen embeddings: the cheapest thing that learns a classification, and the one to try first. Texts become vectors
//! once, then [`softmax`] fits a head on them in a moment.

mod minimise;
mod recipe;
mod softmax;

pub use recipe::HeadRecipe;

use super::{Conversation, Data, TuningError};
use crate::engine::head::classified_text;
use crate::engine::{Embedder, Head};
use crate::stats::wilson;
use candle_core::DType;
use minimise::Minimum;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use recipe::STRENGTHS;
use serde::{Deserialize, Serialize};
use softmax::{Rows, Weights};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Texts that become vectors between two looks at the watcher.
const CHUNK: usize = 128;

/// Slopes, in nats, at which a minimum is one; and where only strengths are compared.
const FLAT: f64 = 1e-6;
const FLAT_ENOUGH: f64 = 1e-4;

/// Watches a fitting.
pub trait HeadObserver {
    /// `done` of `total` texts have become vectors.
    fn embedded(&self, done: usize, total: usize);
    /// Asked often; `true` ends the work with [`TuningError::Cancelled`].
    fn cancelled(&self) -> bool;
}

/// A fitted head and how that went.
pub struct FittedHead {
    /// The head.
    pub head: Head,
    /// Inverse strength of the penalty that was used.
    pub c: f64,
    /// What every strength that was tried came to: mean cross-entropy in nats of texts it was not fitted on.
    pub tried: Vec<(f64, f64)>,
    /// Steps of the minimiser, and whether it ended at a minimum rather than at their bound.
    pub iterations: usize,
    /// See there.
    pub converged: bool,
    /// Objective before the first and after the last of them, nats.
    pub first_and_last_loss: [f64; 2],
    /// On the validation split; none where it is empty.
    pub validation: Option<Accuracy>,
    /// Tokens that went through the embedding model.
    pub tokens: u64,
    /// Seconds until the texts were vectors, and of the fitting.
    pub seconds: [f64; 2],
}

/// A share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Right ones among `of`.
    pub right: usize,
    /// Answers in all.
    pub of: usize,
    /// The share.
    pub share: f64,
    /// Wilson's 95 % interval of it.
    pub interval: [f64; 2],
    /// Mean cross-entropy, nats.
    pub loss: f64,
}

/// Fits a head on the vectors that a model folder's embedder makes of the conversations' last user messages.
///
/// # Errors
/// [`TuningError`] naming the sample or the recipe's key at fault; [`TuningError::Cancelled`] when the watcher says so.
pub fn fit_head(
    files: &BTreeMap<String, PathBuf>,
    recipe: &HeadRecipe,
    data: &Data<'_>,
    observer: &dyn HeadObserver,
) -> Result<FittedHead, TuningError> {
    recipe.check()?;
    let labels = labels(data)?;
    let began = Instant::now();
    let model = Embedder::load(files)?;
    let tokens = [data.train, data.validation].map(|part| part.iter().map(|sample| tokens(&model, sample)).collect::<Result<Vec<_>, _>>());
    let [train, validation] = tokens;
    let (train, validation) = (train?, validation?);
    let all: Vec<&[u32]> = train.iter().chain(&validation).map(Vec::as_slice).collect();
    let vectors = embed(&model, &all, observer)?;
    let embedded = began.elapsed().as_secs_f64();
    let index = |sample: &Conversation| labels.binary_search(&sample.label()).unwrap_or_default();
    let targets: Vec<usize> = data.train.iter().chain(data.validation).map(index).collect();
    let rows = Vectors { vectors: &vectors, targets: &targets, learned: data.train.len() };
    let fitted = fit_vectors(labels, &rows, recipe, observer)?;
    let tokens = all.iter().map(|text| text.len() as u64).sum();
    Ok(FittedHead { tokens, seconds: [embedded, began.elapsed().as_secs_f64() - embedded], ..fitted })
}

/// Vectors and the places of their labels; the first `learned` are fitted on, the others measured.
pub(super) struct Vectors<'a> {
    pub(super) vectors: &'a [Vec<f32>],
    pub(super) targets: &'a [usize],
    pub(super) learned: usize,
}

/// Fits a head on vectors; what it says about tokens and seconds is 0.
pub(super) fn fit_vectors(
    labels: Vec<String>,
    rows: &Vectors<'_>,
    recipe: &HeadRecipe,
    observer: &dyn HeadObserver,
) -> Result<FittedHead, TuningError> {
    let stop = AtomicBool::new(false);
    let set = Set { vectors: rows.vectors, targets: rows.targets, classes: labels.len(), stop: &stop };
    watched(observer, &stop, || set.head(labels, recipe, rows.learned))
}

/// Does the work on a thread of its own, with an eye on the watcher: what is asked for there stops it.
fn watched<R: Send>(observer: &dyn HeadObserver, stop: &AtomicBool, work: impl FnOnce() -> R + Send) -> R {
    const LOOK: Duration = Duration::from_millis(50);
    let here = std::thread::current();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || {
            let done = work();
            here.unpark();
            done
        });
        while !working.is_finished() {
            std::thread::park_timeout(LOOK);
            stop.fetch_or(observer.cancelled(), Ordering::Relaxed);
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The labels of the train split, in order. A validation row with another one can never be right.
///
/// # Errors
/// [`TuningError`] naming the sample without a label, or saying that there is nothing to tell apart.
pub fn labels(data: &Data<'_>) -> Result<Vec<String>, TuningError> {
    if let Some(sample) = data.train.iter().chain(data.validation).find(|sample| sample.label().trim().is_empty()) {
        return Err(TuningError::Example {
            sample: sample.sample.clone(),
            problem: "its target is empty: there is no label to learn".into(),
        });
    }
    let labels: BTreeSet<String> = data.train.iter().map(Conversation::label).collect();
    if labels.len() < 2 {
        let found = labels.first().map_or_else(|| "none".to_string(), |label| format!("one, {label:?}"));
        return Err(super::recipe::wrong("dataset", format!("has fewer than two labels in its train split: {found}")));
    }
    if let Some(sample) = data.validation.iter().find(|sample| !labels.contains(&sample.label())) {
        let problem = format!("its target {:?} is the target of no sample in the train split", sample.label());
        return Err(TuningError::Example { sample: sample.sample.clone(), problem });
    }
    Ok(labels.into_iter().collect())
}

fn tokens(model: &Embedder, sample: &Conversation) -> Result<Vec<u32>, TuningError> {
    let wrong = |problem: String| TuningError::Example { sample: sample.sample.clone(), problem };
    let text = classified_text(&sample.prompt).map_err(|problem| wrong(problem.into()))?;
    let tokens = model.tokens(&text)?;
    let most = model.max_tokens();
    if tokens.len() > most { Err(wrong(format!("it has {} tokens, the model takes {most}", tokens.len()))) } else { Ok(tokens) }
}

fn embed(model: &Embedder, texts: &[&[u32]], observer: &dyn HeadObserver) -> Result<Vec<Vec<f32>>, TuningError> {
    // Texts of one length together waste nothing.
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|row| texts[*row].len());
    let mut vectors = vec![Vec::new(); texts.len()];
    for (part, rows) in order.chunks(CHUNK).enumerate() {
        if observer.cancelled() {
            return Err(TuningError::Cancelled(0));
        }
        let made = model.embed(&rows.iter().map(|row| texts[*row]).collect::<Vec<_>>());
        rows.iter().zip(made).for_each(|(row, vector)| vectors[*row] = vector);
        observer.embedded(part * CHUNK + rows.len(), texts.len());
    }
    Ok(vectors)
}

/// All rows of both splits.
struct Set<'a> {
    vectors: &'a [Vec<f32>],
    targets: &'a [usize],
    classes: usize,
    stop: &'a AtomicBool,
}

impl Set<'_> {
    /// The head, fitted on the first `learned` rows; what it says about tokens and seconds is 0.
    fn head(&self, labels: Vec<String>, recipe: &HeadRecipe, learned: usize) -> Result<FittedHead, TuningError> {
        let (learned, measured): (Vec<usize>, Vec<usize>) = (0..self.targets.len()).partition(|row| *row < learned);
        let (c, tried) = match recipe.c {
            Some(c) => (c, Vec::new()),
            None => self.strongest(recipe, &learned, &measured)?,
        };
        // Half the precision brings it near the minimum in half the time.
        let (near, coarse) = self.fit(&self.rows(&learned, DType::F32)?, self.start(), (c, FLAT_ENOUGH))?;
        let (weights, fine) = self.fit(&self.rows(&learned, DType::F64)?, near, (c, FLAT))?;
        let validation = if measured.is_empty() { None } else { Some(self.measure(&weights, &measured)?) };
        let (weight, bias) = weights.values.split_at(weights.values.len() - labels.len());
        let narrow = |values: &[f64]| values.iter().map(|value| *value as f32).collect();
        Ok(FittedHead {
            head: Head::new(labels, narrow(weight), narrow(bias))?,
            c,
            tried,
            iterations: coarse.iterations + fine.iterations,
            converged: fine.converged,
            first_and_last_loss: [coarse.first, fine.value],
            validation,
            tokens: 0,
            seconds: [0.0; 2],
        })
    }

    fn rows(&self, which: &[usize], precision: DType) -> Result<Rows, TuningError> {
        let vectors: Vec<&[f32]> = which.iter().map(|row| self.vectors[*row].as_slice()).collect();
        Ok(Rows::new(&vectors, which.iter().map(|row| self.targets[*row]).collect(), precision)?)
    }

    fn start(&self) -> Weights {
        Weights::zero(self.classes, self.vectors.first().map_or(0, Vec::len))
    }

    fn fit(&self, rows: &Rows, from: Weights, how: (f64, f64)) -> Result<(Weights, Minimum), TuningError> {
        let fitted = softmax::fit(rows, from, how, &mut |_, _| !self.stop.load(Ordering::Relaxed))?;
        fitted.ok_or(TuningError::Cancelled(0))
    }

    fn measure(&self, weights: &Weights, which: &[usize]) -> Result<Accuracy, TuningError> {
        let (mut right, mut loss) = (0, 0.0);
        for (logs, row) in weights.log_probabilities(&self.rows(which, DType::F32)?)?.iter().zip(which) {
            let best = logs.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class);
            right += usize::from(best == Some(self.targets[*row]));
            loss -= logs[self.targets[*row]] / which.len() as f64;
        }
        let interval = wilson(right, which.len());
        Ok(Accuracy { right, of: which.len(), share: right as f64 / which.len() as f64, interval, loss })
    }

    /// The strength with the lowest loss on rows that it was not fitted on, and what each came to.
    fn strongest(&self, recipe: &HeadRecipe, learned: &[usize], measured: &[usize]) -> Result<(f64, Vec<(f64, f64)>), TuningError> {
        let parts = if measured.is_empty() { self.folds(recipe, learned) } else { vec![(learned.to_vec(), measured.to_vec())] };
        let mut tried = STRENGTHS.map(|c| (c, 0.0)).to_vec();
        let all: usize = parts.iter().map(|(_, measured)| measured.len()).sum();
        // Parts beside each other: each is a row of small products, which threads cannot share out well.
        let losses = |(learned, measured): &(Vec<usize>, Vec<usize>)| {
            // Half the precision is enough to compare by.
            let (rows, mut weights) = (self.rows(learned, DType::F32)?, self.start());
            let mut losses = [0.0; STRENGTHS.len()];
            for (loss, c) in losses.iter_mut().zip(STRENGTHS) {
                // From the minimum of the stronger penalty it is not far.
                weights = self.fit(&rows, weights, (c, FLAT_ENOUGH))?.0;
                *loss = self.measure(&weights, measured)?.loss * measured.len() as f64 / all as f64;
            }
            Ok(losses)
        };
        for losses in parts.par_iter().map(losses).collect::<Result<Vec<_>, TuningError>>()? {
            tried.iter_mut().zip(losses).for_each(|((_, total), loss)| *total += loss);
        }
        let best = tried.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(STRENGTHS[0], |(c, _)| *c);
        Ok((best, tried))
    }

    /// Cross-validation in parts that have the labels in equal shares: what is fitted on, and what is measured.
    fn folds(&self, recipe: &HeadRecipe, rows: &[usize]) -> Vec<(Vec<usize>, Vec<usize>)> {
        let mut order = rows.to_vec();
        order.shuffle(&mut StdRng::seed_from_u64(recipe.seed));
        order.sort_by_key(|row| self.targets[*row]);
        let folds = recipe.folds.min(rows.len());
        let is_measured = |at: usize, fold: usize| at % folds == fold;
        let part = |fold: usize, measured: bool| {
            order.iter().enumerate().filter(|(at, _)| is_measured(*at, fold) == measured).map(|(_, row)| *row).collect()
        };
        (0..folds).map(|fold| (part(fold, false), part(fold, true))).collect()
    }
}
