//! Classifiers on a chat model: head and adapter are trained together, the head from zero; without an adapter a head is fitted on the hidden
//! states of the model as it is. A head that is fitted first and trained on from there (Kumar et al. 2022, arXiv 2202.10054) is right on the few
//! examples before the adapter has learned anything from them, and nothing is left to learn.

use super::checkpoint::Position;
use super::conversation::{Conversation, Data};
use super::fit::longest;
use super::head::{self, FittedHead, HeadObserver, Vectors, fit_vectors};
use super::objective::{Classify, Labelled, Metrics, last_hidden};
use super::plan::Plan;
use super::{HeadRecipe, Method, Observer, Recipe, Trained, Trainer, TuningError};
use crate::engine::adapter::AdapterConfig;
use crate::engine::head::classified_text;
use crate::engine::{Adapter, Classifier, Head, Model};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

/// Trains a classifier; without targets its head alone.
pub(super) fn fit(
    model: &Model,
    recipe: &Recipe,
    data: &Data<'_>,
    directory: PathBuf,
    observer: &dyn Observer,
) -> Result<Trained, TuningError> {
    let labels = head::labels(data)?;
    let texts = |conversations: &[Conversation]| -> Result<Vec<Labelled>, TuningError> {
        conversations.iter().map(|conversation| labelled(model, recipe, conversation, &labels)).collect()
    };
    let (train, validation) = (texts(data.train)?, texts(data.validation)?);
    if recipe.targets.is_empty() {
        let began = Instant::now();
        let (fitted, tokens) = Probe { model, recipe, labels, observer }.fit(&train, &validation)?;
        return alone(fitted, tokens, began);
    }
    let (count, hidden) = (labels.len(), model.decoder.config().hidden);
    let head = Head::new(labels, vec![0.0; count * hidden], vec![0.0; count])?;
    let objective = Classify { train: &train, validation: &validation };
    Trainer { model, recipe, objective: &objective, head: Some(&head), directory }.run(observer)
}

/// A text and the place of its label among these.
///
/// # Errors
/// [`TuningError::Example`] naming the sample that is too long, holds no text, or has a label that is none of these.
pub(super) fn labelled(model: &Model, recipe: &Recipe, conversation: &Conversation, labels: &[String]) -> Result<Labelled, TuningError> {
    let text = classified_text(&conversation.prompt).map_err(|problem| conversation.wrong(problem.into()))?;
    let tokens = Classifier::tokens(&model.tokenizer, &text)?;
    let most = longest(model, recipe);
    if tokens.len() > most {
        return Err(conversation.wrong(format!("it has {} tokens, max_length is {most}", tokens.len())));
    }
    let label = conversation.label();
    let unknown = |_| conversation.wrong(format!("its label \"{label}\" was never learned"));
    Ok(Labelled { tokens, label: labels.binary_search(&label).map_err(unknown)? })
}

/// A head on the model as it is.
struct Probe<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    labels: Vec<String>,
    observer: &'a dyn Observer,
}

impl HeadObserver for Probe<'_> {
    fn embedded(&self, _done: usize, _total: usize) {}

    fn cancelled(&self) -> bool {
        self.observer.cancelled()
    }
}

impl Probe<'_> {
    /// The head, and how many tokens went through the model.
    fn fit(&self, train: &[Labelled], validation: &[Labelled]) -> Result<(FittedHead, u64), TuningError> {
        let all: Vec<&Labelled> = train.iter().chain(validation).collect();
        let lengths: Vec<usize> = all.iter().map(|text| text.tokens.len()).collect();
        let base = Adapter::new(AdapterConfig::lora("", 1, 1.0, &[]), HashMap::new());
        let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(all.len());
        for chosen in Plan::measured(self.recipe, &lengths) {
            if self.observer.cancelled() {
                return Err(TuningError::Cancelled(0));
            }
            let texts: Vec<&Labelled> = chosen.iter().map(|i| all[*i]).collect();
            vectors.extend(last_hidden(self.model, &base, &texts)?.to_vec2::<f32>()?);
        }
        let (mean, factor) = standardise(&mut vectors, train.len());
        let targets: Vec<usize> = all.iter().map(|text| text.label).collect();
        let rows = Vectors { vectors: &vectors, targets: &targets, learned: train.len() };
        let fitted = fit_vectors(self.labels.clone(), &rows, &self.head_recipe(), self)?;
        // W f (h − mean) + b, told of h itself.
        let weight: Vec<f32> = fitted.head.weight().iter().map(|x| x * factor).collect();
        let moved = weight.chunks_exact(mean.len()).map(|row| row.iter().zip(&mean).map(|(w, x)| w * x).sum::<f32>());
        let bias = fitted.head.bias().iter().zip(moved).map(|(bias, moved)| bias - moved).collect();
        let head = Head::new(self.labels.clone(), weight, bias)?;
        Ok((FittedHead { head, ..fitted }, lengths.iter().map(|length| *length as u64).sum()))
    }

    fn head_recipe(&self) -> HeadRecipe {
        let Recipe { name, model, dataset, seed, .. } = self.recipe.clone();
        HeadRecipe { method: Method::Head, name, model, dataset, prompt: None, c: None, folds: 5, seed }
    }
}

/// Takes the mean of the first `learned` vectors away from all, and makes them one long in the mean, which is what the strengths that a
/// head tries are meant for. Hidden states have a large part in common. Returns the mean and the factor.
fn standardise(vectors: &mut [Vec<f32>], learned: usize) -> (Vec<f32>, f32) {
    let mut mean = vec![0f32; vectors.first().map_or(0, Vec::len)];
    for vector in &vectors[..learned] {
        mean.iter_mut().zip(vector).for_each(|(mean, x)| *mean += x / learned as f32);
    }
    vectors.iter_mut().for_each(|vector| vector.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean));
    let squares: f64 = vectors.iter().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let factor = (vectors.len() as f64 / squares.max(f64::MIN_POSITIVE)).sqrt() as f32;
    vectors.iter_mut().flatten().for_each(|x| *x *= factor);
    (mean, factor)
}

/// A head without an adapter as what a training gives.
fn alone(fitted: FittedHead, trained_tokens: u64, began: Instant) -> Result<Trained, TuningError> {
    let FittedHead { head, iterations, first_and_last_loss, validation, .. } = fitted;
    let measured = |share| Metrics::from([("accuracy".to_string(), share)]);
    let position = Position {
        step: iterations,
        trained_tokens,
        losses: first_and_last_loss.map(|loss| loss as f32).to_vec(),
        validations: validation.iter().map(|accuracy| (iterations, accuracy.loss as f32)).collect(),
        validation_metrics: validation.iter().map(|accuracy| measured(accuracy.share)).collect(),
        best: validation.map(|accuracy| accuracy.loss as f32),
        ..Position::default()
    };
    let (parameters, classifier) = (head.parameters(), Classifier { head, adapter: None });
    let seconds = began.elapsed().as_secs_f64();
    Ok(Trained {
        config: classifier.to_config_json(),
        weights: classifier.to_safetensors()?,
        position,
        stopped_early: false,
        parameters,
        seconds,
        tokens_per_second: trained_tokens as f64 / seconds.max(1e-9),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_lose_what_they_have_in_common_and_become_one_long_in_the_mean() {
        let mut vectors = vec![vec![101.0, 7.0], vec![99.0, 7.0], vec![100.0, 9.0]];
        let before = vectors.clone();
        let (mean, factor) = standardise(&mut vectors, 2);
        assert_eq!(mean, [100.0, 7.0], "of what is learned alone");
        let squares: f32 = vectors.iter().flatten().map(|x| x * x).sum();
        assert!((squares / 3.0 - 1.0).abs() < 1e-6);
        for (vector, before) in vectors.iter().flatten().zip(before.iter().flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean)))
        {
            assert!((vector - factor * before).abs() < 1e-6);
        }
    }
}
