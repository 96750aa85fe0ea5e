//! The training loop: packed batches through the decoder in Train mode, loss on completions, gradients clipped, AdamW, validation,
//! checkpoints. Everything random is a function of the recipe's seed and the step, so a resumed run is the same run.

use super::checkpoint::{Checkpoint, Position};
use super::example::{Packed, epoch_order};
use super::lora::Trainable;
use super::optimizer::{AdamW, Gradients};
use super::{Example, Recipe, TuningError};
use crate::engine::Model;
use crate::engine::arch::Mode;
use crate::engine::nn::cross_entropy;
use crate::types::Digest;
use std::path::PathBuf;
use std::time::Instant;

/// What a step reports.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Mean cross-entropy of the step's labelled tokens, in nats.
    pub loss: f32,
    /// Newest validation loss.
    pub validation_loss: Option<f32>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens through the model per second, since training began or was resumed.
    pub tokens_per_second: f64,
    /// Tokens through the model so far.
    pub trained_tokens: u64,
    /// Seconds left at this speed.
    pub seconds_left: f64,
}

/// Watches a training.
pub trait Observer {
    /// After every step.
    fn step(&self, report: &StepReport);
    /// Asked before every step; `true` writes a checkpoint and ends the training with [`TuningError::Cancelled`].
    fn cancelled(&self) -> bool;
}

/// What comes out.
pub struct Trained {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`, at the lowest validation loss.
    pub weights: Vec<u8>,
    /// Losses, validations, steps and tokens.
    pub position: Position,
    /// Trained values.
    pub parameters: usize,
    /// Seconds of this process; a resumed training's earlier seconds are not in it.
    pub seconds: f64,
    /// Tokens per second in that time.
    pub tokens_per_second: f64,
}

/// A training: model, recipe and data.
pub struct Trainer<'a> {
    /// Base model.
    pub model: &'a Model,
    /// How.
    pub recipe: &'a Recipe,
    /// Examples to learn.
    pub train: &'a [Example],
    /// Examples that are only measured; may be empty.
    pub validation: &'a [Example],
    /// Where checkpoints go.
    pub directory: PathBuf,
}

impl Trainer<'_> {
    /// Trains from the newest checkpoint of this training in the directory, or from the beginning.
    ///
    /// # Errors
    /// [`TuningError`]; after [`TuningError::Cancelled`] and [`TuningError::Checkpoint`] the training can be resumed.
    pub fn run(&self, observer: &dyn Observer) -> Result<Trained, TuningError> {
        self.recipe.check()?;
        if self.train.is_empty() {
            return Err(TuningError::Recipe { key: "dataset".into(), problem: "has no sample in its train split".into() });
        }
        let mut state = self.start()?;
        let steps = self.recipe.steps(self.train.len());
        let began = Instant::now();
        let tokens_before = state.position.trained_tokens;
        while state.position.step < steps {
            if observer.cancelled() {
                self.save(&state)?;
                return Err(TuningError::Cancelled(state.position.step));
            }
            let (loss, learning_rate, gradient_norm) = self.step(&mut state, steps)?;
            self.validate_if_due(&mut state, steps)?;
            let position = &state.position;
            let seconds = began.elapsed().as_secs_f64();
            let speed = (position.trained_tokens - tokens_before) as f64 / seconds;
            let tokens_per_step = position.trained_tokens as f64 / position.step as f64;
            observer.step(&StepReport {
                step: position.step,
                steps,
                loss,
                validation_loss: position.validations.last().map(|(_, loss)| *loss),
                learning_rate,
                gradient_norm,
                tokens_per_second: speed,
                trained_tokens: position.trained_tokens,
                seconds_left: (steps - position.step) as f64 * tokens_per_step / speed,
            });
            if position.step % self.recipe.checkpoint_every == 0 && position.step < steps {
                self.save(&state)?;
            }
        }
        let weights = match state.best {
            Some(best) => best,
            None => state.trainable.adapter.to_safetensors(None)?,
        };
        Ok(Trained {
            config: state.trainable.adapter.to_config_json(),
            weights,
            parameters: state.trainable.parameters(),
            tokens_per_second: (state.position.trained_tokens - tokens_before) as f64 / began.elapsed().as_secs_f64(),
            position: state.position,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    fn start(&self) -> Result<State, TuningError> {
        let targets = self.model.lora_targets();
        let training = self.digest();
        if let Some(checkpoint) = Checkpoint::newest(&self.directory, &training)? {
            let adapter = self.model.adapter(&checkpoint.config, &checkpoint.weights)?;
            let trainable = Trainable::from_adapter(self.recipe, &targets, &adapter)?;
            let Checkpoint { position, optimizer, best, .. } = checkpoint;
            return Ok(State { trainable, optimizer, position, best });
        }
        let trainable = Trainable::new(self.recipe, &targets)?;
        let optimizer = AdamW::new(&trainable.variables);
        Ok(State { trainable, optimizer, position: Position { training, ..Position::default() }, best: None })
    }

    /// Names this training by everything that decides its curve.
    fn digest(&self) -> String {
        let tokens = |examples: &[Example]| -> Vec<Vec<u32>> { examples.iter().map(|example| example.tokens.clone()).collect() };
        let content = serde_json::json!({"recipe": self.recipe, "train": tokens(self.train), "validation": tokens(self.validation)});
        Digest::of_json(&content).to_string()
    }

    fn step(&self, state: &mut State, steps: usize) -> Result<(f32, f64, f64), TuningError> {
        let step = state.position.step;
        let per_epoch = self.recipe.steps_per_epoch(self.train.len());
        let order = epoch_order(self.train.len(), self.recipe.seed, step / per_epoch);
        let size = self.recipe.batch_size * self.recipe.accumulation;
        let chosen = order.chunks(size).nth(step % per_epoch).unwrap_or_default();
        let packed: Vec<Packed> =
            chosen.chunks(self.recipe.batch_size).map(|part| Packed::new(part.iter().map(|i| &self.train[*i]))).collect();
        // One normaliser for all passes of the step: accumulation over 4 × 1 examples is then the same mean as 1 × 4.
        let labelled: usize = packed.iter().map(Packed::labelled).sum();
        let mut gradients = Gradients::zero(&state.trainable.variables);
        let mut loss = 0.0;
        for packed in &packed {
            let hidden = self.model.decoder.hidden(&packed.batch, Mode::Train(&state.trainable.adapter))?;
            let part = cross_entropy::cross_entropy(&hidden, self.model.decoder.head()?, &packed.labels, labelled as f32)?;
            loss += part.to_scalar::<f32>()?;
            gradients.add(&state.trainable.variables, &part.backward()?)?;
            state.position.trained_tokens += packed.batch.tokens.len() as u64;
        }
        if !loss.is_finite() {
            return Err(TuningError::Diverged { step: step + 1, loss });
        }
        let rate = self.recipe.learning_rate * self.recipe.schedule.factor(step, steps, self.recipe.warmup);
        let norm =
            state.optimizer.step(&state.trainable.variables, &gradients, rate, self.recipe.weight_decay, self.recipe.max_gradient_norm)?;
        state.position.step += 1;
        state.position.losses.push(loss);
        Ok((loss, rate, norm))
    }

    fn validate_if_due(&self, state: &mut State, steps: usize) -> Result<(), TuningError> {
        let every = match self.recipe.validate_every {
            0 => self.recipe.steps_per_epoch(self.train.len()),
            every => every,
        };
        let step = state.position.step;
        if self.validation.is_empty() || (!step.is_multiple_of(every) && step < steps) {
            return Ok(());
        }
        let loss = self.validation_loss(state)?;
        state.position.validations.push((step, loss));
        if state.position.best.is_none_or(|best| loss < best) {
            state.position.best = Some(loss);
            state.best = Some(state.trainable.adapter.to_safetensors(None)?);
        }
        Ok(())
    }

    fn validation_loss(&self, state: &State) -> Result<f32, TuningError> {
        let (mut sum, mut total) = (0.0, 0.0);
        let adapter = state.trainable.adapter.detached();
        for part in self.validation.chunks(self.recipe.batch_size) {
            let packed = Packed::new(part);
            let hidden = self.model.decoder.hidden(&packed.batch, Mode::Train(&adapter))?;
            for row in cross_entropy::evaluate(&hidden, self.model.decoder.head()?, &packed.labels)? {
                sum += f64::from(row.weight) * row.loss;
                total += f64::from(row.weight);
            }
        }
        Ok((sum / total) as f32)
    }

    fn save(&self, state: &State) -> Result<(), TuningError> {
        Checkpoint::write(&self.directory, &state.position, &state.optimizer, &state.trainable.adapter, state.best.as_deref())
    }
}

struct State {
    trainable: Trainable,
    optimizer: AdamW,
    position: Position,
    best: Option<Vec<u8>>,
}
