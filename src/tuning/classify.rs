//! Classifiers on a chat model: first a head is fitted on the hidden states of the model as it is, then head and adapter are trained
//! together from there (linear probing then fine-tuning, Kumar et al. 2022, arXiv 2202.10054).

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
    let began = Instant::now();
    let probe = Probe { model, recipe, labels, observer };
    let (fitted, tokens) = probe.fit(&train, &validation)?;
    if recipe.targets.is_empty() {
        return alone(fitted, tokens, began);
    }
    let objective = Classify { train: &train, validation: &validation };
    Trainer { model, recipe, objective: &objective, head: Some(&fitted.head), directory }.run(observer)
}

fn labelled(model: &Model, recipe: &Recipe, conversation: &Conversation, labels: &[String]) -> Result<Labelled, TuningError> {
    let text = classified_text(&conversation.prompt).map_err(|problem| conversation.wrong(problem.into()))?;
    let tokens = Classifier::tokens(&model.tokenizer, &text)?;
    let most = longest(model, recipe);
    if tokens.len() > most {
        return Err(conversation.wrong(format!("it has {} tokens, max_length is {most}", tokens.len())));
    }
    Ok(Labelled { tokens, label: labels.binary_search(&conversation.label()).unwrap_or_default() })
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
        // The strengths that are tried are meant for vectors of length one.
        let squares: f64 = vectors.iter().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let factor = (vectors.len() as f64 / squares.max(f64::MIN_POSITIVE)).sqrt() as f32;
        vectors.iter_mut().flatten().for_each(|x| *x *= factor);
        let targets: Vec<usize> = all.iter().map(|text| text.label).collect();
        let rows = Vectors { vectors: &vectors, targets: &targets, learned: train.len() };
        let fitted = fit_vectors(self.labels.clone(), &rows, &self.head_recipe(), self)?;
        let weight = fitted.head.weight().iter().map(|x| x * factor).collect();
        let head = Head::new(self.labels.clone(), weight, fitted.head.bias().to_vec())?;
        Ok((FittedHead { head, ..fitted }, lengths.iter().map(|length| *length as u64).sum()))
    }

    fn head_recipe(&self) -> HeadRecipe {
        let Recipe { name, model, dataset, seed, .. } = self.recipe.clone();
        HeadRecipe { method: Method::Head, name, model, dataset, prompt: None, c: None, folds: 5, seed }
    }
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
