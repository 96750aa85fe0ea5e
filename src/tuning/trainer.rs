//! The training loop: batches through the decoder in Train mode, an [objective](super::objective) that makes them a loss, gradients
//! clipped, AdamW, validation, checkpoints. Everything random is a function of the recipe's seed and the step, so a resumed run is the
//! same run.

use super::checkpoint::{self, Checkpoint, Position};
use super::lora::Trainable;
use super::objective::{Measured, Metrics, Objective, Split, add};
use super::optimizer::{AdamW, Gradients, Pace};
use super::plan::Plan;
use super::{Recipe, TuningError};
use crate::engine::nn::dropout::Dropout;
use crate::engine::{Head, Model};
use crate::types::digest::Hashing;
use std::path::PathBuf;
use std::time::Instant;

/// What a step reports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Loss of the step, nats: for a language model the mean cross-entropy of the tokens that carry loss.
    pub loss: f32,
    /// What is told beside it: accuracies and, of preferences, rewards.
    pub metrics: Metrics,
    /// Newest validation loss.
    pub validation_loss: Option<f32>,
    /// Step after which that was measured.
    pub validated_at: Option<usize>,
    /// Share of the tokens of the validation split that were the likeliest then; of texts alone.
    pub validation_accuracy: Option<f64>,
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
    /// Configuration: `adapter_config.json`, or a classifier's.
    pub config: Vec<u8>,
    /// Weights at the lowest validation loss; without validation those of the last step.
    pub weights: Vec<u8>,
    /// Losses, validations, steps and tokens.
    pub position: Position,
    /// Whether the validation loss ended it before its last step.
    pub stopped_early: bool,
    /// Trained values.
    pub parameters: usize,
    /// Seconds of this process; a resumed training's earlier seconds are not in it.
    pub seconds: f64,
    /// Tokens per second in that time.
    pub tokens_per_second: f64,
}

/// A training: model, recipe and what it pursues.
pub struct Trainer<'a> {
    /// Base model.
    pub model: &'a Model,
    /// How.
    pub recipe: &'a Recipe,
    /// What for.
    pub objective: &'a dyn Objective,
    /// What a classifier's head begins with.
    pub head: Option<&'a Head>,
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
        let wrong = |key: &str, problem: &str| TuningError::Recipe { key: key.into(), problem: problem.into() };
        let plan = Plan::new(self.recipe, self.objective.lengths(Split::Train));
        if plan.steps() == 0 {
            return Err(wrong("dataset", "has no sample in its train split"));
        }
        if self.recipe.early_stopping.is_some() && self.objective.lengths(Split::Validation).is_empty() {
            return Err(wrong("early_stopping", "needs a validation split; the dataset has none"));
        }
        let mut state = self.start()?;
        let mut speed = Speed::new(&state.position);
        while state.position.step < plan.steps() && !self.is_enough(&state.position) {
            if observer.cancelled() {
                self.save(&state)?;
                return Err(TuningError::Cancelled(state.position.step));
            }
            let report = self.step(&mut state, &plan)?;
            self.validate_if_due(&mut state, &plan)?;
            observer.step(&speed.tell(report, &state.position));
            let step = state.position.step;
            if step.is_multiple_of(self.recipe.checkpoint_every) && step < plan.steps() {
                self.save(&state)?;
            }
        }
        let stopped_early = state.position.step < plan.steps();
        let (config, weights) = state.trainable.files()?;
        let (seconds, tokens_per_second) = speed.since(&state.position);
        Ok(Trained {
            config,
            weights: state.best.unwrap_or(weights),
            stopped_early,
            parameters: state.trainable.parameters(),
            tokens_per_second,
            position: state.position,
            seconds,
        })
    }

    fn start(&self) -> Result<State, TuningError> {
        let training = self.digest();
        checkpoint::sweep(&self.directory);
        if let Some(checkpoint) = Checkpoint::newest(&self.directory, &training)? {
            let Checkpoint { position, optimizer, best, config, weights } = checkpoint;
            let trainable = Trainable::read(self.recipe, self.model, (&config, &weights))?;
            return Ok(State { trainable, optimizer, position, best });
        }
        let mut trainable = Trainable::new(self.recipe, self.model)?;
        if let Some(head) = self.head {
            trainable = trainable.with_head(head)?;
        }
        let optimizer = AdamW::new(&trainable.variables);
        Ok(State { trainable, optimizer, position: Position { training, ..Position::default() }, best: None })
    }

    /// Names this training by everything that decides its curve.
    fn digest(&self) -> String {
        let mut digest = Hashing::new();
        add(&mut digest, self.recipe);
        self.objective.content(&mut digest);
        digest.digest().to_string()
    }

    /// One step; its report lacks what the speed tells.
    fn step(&self, state: &mut State, plan: &Plan) -> Result<StepReport, TuningError> {
        let (step, steps) = (state.position.step, plan.steps());
        let passes = plan.step(step);
        // One normaliser for all passes of the step: accumulation over 4 × 1 examples is then the same mean as 1 × 4.
        let normaliser: f64 = passes.iter().map(|pass| self.objective.weight(pass)).sum();
        let examples = passes.iter().map(Vec::len).sum::<usize>() as f64;
        let mut gradients = Gradients::zero(&state.trainable.variables);
        let (mut loss, mut metrics) = (0.0, Metrics::new());
        for (index, chosen) in passes.iter().enumerate() {
            let dropped = self.dropout(step, index).map(|dropout| state.trainable.adapter.with_dropout(dropout));
            let adapter = dropped.as_ref().unwrap_or(&state.trainable.adapter);
            let pass = self.objective.pass(self.model, (&state.trainable, adapter), chosen, normaliser)?;
            loss += pass.loss;
            if !loss.is_finite() {
                return Err(TuningError::Diverged { step: step + 1, loss: loss as f32 });
            }
            gradients.add(&state.trainable.variables, &pass.graph.backward()?)?;
            pass.metrics.into_iter().for_each(|(name, sum)| *metrics.entry(name).or_default() += sum / examples);
            state.position.trained_tokens += pass.tokens as u64;
        }
        let pace = self.pace(&state.trainable, (step, steps));
        let gradient_norm = state.optimizer.step_at(&state.trainable.variables, &gradients, &pace)?;
        if !gradient_norm.is_finite() {
            return Err(TuningError::Diverged { step: step + 1, loss: loss as f32 });
        }
        state.position.step += 1;
        state.position.losses.push(loss as f32);
        if !metrics.is_empty() {
            state.position.metrics.push(metrics.clone());
        }
        let learning_rate = pace.rate;
        Ok(StepReport { step: step + 1, steps, loss: loss as f32, metrics, learning_rate, gradient_norm, ..StepReport::default() })
    }

    fn pace(&self, trainable: &Trainable, (step, steps): (usize, usize)) -> Pace {
        let Recipe { learning_rate, weight_decay: decay, max_gradient_norm: max_norm, .. } = *self.recipe;
        let factor = self.recipe.schedule.factor(step, steps, self.recipe.warmup_of(steps));
        // Weight and bias.
        let last = if trainable.head.is_some() { 2 } else { 0 };
        Pace { rate: learning_rate * factor, last, last_rate: self.recipe.head_rate() * factor, decay, max_norm }
    }

    /// Dropout of one forward pass: a function of seed, step and pass.
    fn dropout(&self, step: usize, pass: usize) -> Option<Dropout> {
        let seed = self.recipe.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(((step as u64) << 16) + pass as u64);
        (self.recipe.dropout > 0.0).then_some(Dropout { rate: self.recipe.dropout, seed })
    }

    fn validate_if_due(&self, state: &mut State, plan: &Plan) -> Result<(), TuningError> {
        let step = state.position.step;
        let is_due = match self.recipe.validate_every {
            0 => plan.ends_epoch(step),
            every => step.is_multiple_of(every),
        };
        let lengths = self.objective.lengths(Split::Validation);
        if lengths.is_empty() || !(is_due || step == plan.steps()) {
            return Ok(());
        }
        let mut all = Measured::default();
        for chosen in Plan::measured(self.recipe, &lengths) {
            all.add(self.objective.measure(self.model, &state.trainable, &chosen)?);
        }
        let loss = all.loss() as f32;
        if !loss.is_finite() {
            return Err(TuningError::Diverged { step, loss });
        }
        state.position.validations.push((step, loss));
        if !all.metrics.is_empty() {
            state.position.validation_metrics.push(all.means());
        }
        if state.position.best.is_none_or(|best| loss < best) {
            state.position.best = Some(loss);
            state.best = Some(state.trainable.files()?.1);
        }
        Ok(())
    }

    fn is_enough(&self, position: &Position) -> bool {
        let losses = position.validations.iter().map(|(_, loss)| *loss);
        self.recipe.early_stopping.is_some_and(|stop| stop.is_due(losses))
    }

    fn save(&self, state: &State) -> Result<(), TuningError> {
        let (config, weights) = state.trainable.files()?;
        Checkpoint::write(&self.directory, &state.position, &state.optimizer, (&config, &weights), state.best.as_deref())
    }
}

struct State {
    trainable: Trainable,
    optimizer: AdamW,
    position: Position,
    best: Option<Vec<u8>>,
}

/// How fast this process trains.
struct Speed {
    began: Instant,
    tokens_before: u64,
}

impl Speed {
    fn new(position: &Position) -> Self {
        Speed { began: Instant::now(), tokens_before: position.trained_tokens }
    }

    /// Seconds so far and tokens per second.
    fn since(&self, position: &Position) -> (f64, f64) {
        let seconds = self.began.elapsed().as_secs_f64();
        (seconds, (position.trained_tokens - self.tokens_before) as f64 / seconds.max(1e-9))
    }

    fn tell(&mut self, report: StepReport, position: &Position) -> StepReport {
        let (_, tokens_per_second) = self.since(position);
        let tokens_per_step = position.trained_tokens as f64 / position.step.max(1) as f64;
        StepReport {
            validation_loss: position.validations.last().map(|(_, loss)| *loss),
            validated_at: position.validations.last().map(|(step, _)| *step),
            validation_accuracy: position.validation_metrics.last().and_then(|metrics| metrics.get("token_accuracy").copied()),
            tokens_per_second,
            trained_tokens: position.trained_tokens,
            seconds_left: (report.steps - report.step) as f64 * tokens_per_step / tokens_per_second,
            ..report
        }
    }
}
