//! Training: gradients against finite differences, the loss curve pinned, accumulation, resume and cancel.

use crate::support;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Device, Tensor, Var};
use refit::engine::arch::Mode;
use refit::engine::kernel::rows::Gate;
use refit::engine::nn::adapted::{Extras, adapted};
use refit::engine::nn::add::add;
use refit::engine::nn::attention::{Heads, Scores, TrainAttention};
use refit::engine::nn::cross_entropy::{Label, cross_entropy, evaluate};
use refit::engine::nn::dropout::Dropout;
use refit::engine::nn::gated::Gated;
use refit::engine::nn::linear::{Linear, Lora};
use refit::engine::nn::norm::RmsNorm;
use refit::engine::nn::rope::Rope;
use refit::engine::nn::trained;
use refit::engine::{Head, Model, Purpose};
use refit::tuning::example::{Example, Packed};
use refit::tuning::lora::Trainable;
use refit::tuning::objective::{Classify, Labelled, Language, Objective, Prefer, Preference};
use refit::tuning::optimizer::Gradients;
use refit::tuning::{AnyRecipe, Conversation, LossOn, Observer, Recipe, StepReport, Trained, Trainer, TuningError};
use refit::types::chat::Message;
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

/// Values in (-1, 1), a fixed sequence for each seed (a linear congruential generator, Knuth's MMIX constants).
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn variable(shape: &[usize], seed: u64) -> Var {
    Var::from_vec(noise(shape.iter().product(), seed), shape, &Device::Cpu).expect("a variable")
}

/// Compares every element of every gradient of `f` (any shape; contracted with fixed weights) with central differences.
fn check_gradients(name: &str, variables: &[Var], f: impl Fn() -> Tensor) {
    let shape = f().shape().clone();
    let weights = Tensor::from_vec(noise(shape.elem_count(), 99), shape, &Device::Cpu).expect("weights");
    let value = || f().mul(&weights).and_then(|y| y.sum_all()).and_then(|y| y.to_scalar::<f32>()).expect("a value");
    let gradients = f().mul(&weights).and_then(|y| y.sum_all()).and_then(|y| y.backward()).expect("a backward pass");
    for (index, variable) in variables.iter().enumerate() {
        let gradient: Vec<f32> =
            gradients.get(variable.as_tensor()).expect("a gradient").flatten_all().and_then(|g| g.to_vec1()).expect("values");
        assert!(gradient.iter().any(|g| *g != 0.0), "{name}: variable {index} has a zero gradient");
        let original: Vec<f32> = variable.flatten_all().and_then(|v| v.to_vec1()).expect("values");
        let largest = gradient.iter().fold(0f32, |most, g| most.max(g.abs()));
        for i in 0..original.len() {
            let at = |delta: f32| {
                let mut moved = original.clone();
                moved[i] += delta;
                variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).expect("a tensor")).expect("set");
                value()
            };
            const STEP: f32 = 1e-2;
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            at(0.0);
            assert!(
                (difference - gradient[i]).abs() < 1e-2 * gradient[i].abs() + 2e-3 * largest + 5e-4,
                "{name}: d variable {index}[{i}] = {}, by differences {difference}",
                gradient[i]
            );
        }
    }
}

fn op1(x: &Var, op: impl CustomOp1 + 'static + Send + Sync) -> Tensor {
    x.as_tensor().apply_op1(op).expect("the op runs")
}

fn op2(a: &Var, b: &Var, op: impl CustomOp2 + 'static + Send + Sync) -> Tensor {
    a.as_tensor().apply_op2(b.as_tensor(), op).expect("the op runs")
}

fn op3(a: &Var, b: &Var, c: &Var, op: impl CustomOp3 + 'static + Send + Sync) -> Tensor {
    a.as_tensor().apply_op3(b.as_tensor(), c.as_tensor(), op).expect("the op runs")
}

#[test]
fn every_backward_pass_matches_finite_differences() {
    let norm = RmsNorm::new(noise(6, 1), 1e-5);
    let x = variable(&[3, 6], 2);
    check_gradients("rms-norm", std::slice::from_ref(&x), || op1(&x, norm.clone()));

    let (gate, up) = (variable(&[2, 5], 3), variable(&[2, 5], 4));
    for activation in [Gate::Silu, Gate::GeluTanh] {
        check_gradients(&format!("{activation:?}"), &[gate.clone(), up.clone()], || op2(&gate, &up, Gated(activation)));
    }

    let (a, b) = (variable(&[2, 3], 14), variable(&[2, 3], 15));
    check_gradients("residual-add", &[a.clone(), b.clone()], || add(a.as_tensor(), b.as_tensor()).expect("runs"));

    let linear = Linear::new(Tensor::from_vec(noise(20, 5), (4, 5), &Device::Cpu).expect("weight")).expect("a layer");
    let (x, a, b) = (variable(&[3, 5], 6), variable(&[2, 5], 7), variable(&[4, 2], 8));
    let lora = Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.7 };
    let pair = [x.clone(), a, b];
    check_gradients("lora-linear", &pair, || linear.train(x.as_tensor(), Some(&lora)).expect("runs"));
    let dropout = Some(Dropout { rate: 0.3, seed: 5 });
    check_gradients("dropout", std::slice::from_ref(&x), || Dropout { rate: 0.3, seed: 5 }.apply(x.as_tensor()).expect("runs"));
    check_gradients("lora-with-dropout", &pair, || {
        adapted(&linear, x.as_tensor(), &lora, Extras { dropout, magnitude: None }).expect("runs")
    });
    // The norm is a constant to the backward pass: with A and B fixed, as here, the gradients of x and m are exact.
    let magnitude = variable(&[4], 16);
    for dropout in [None, dropout] {
        check_gradients("dora", &[x.clone(), magnitude.clone()], || {
            adapted(&linear, x.as_tensor(), &lora, Extras { dropout, magnitude: Some(magnitude.as_tensor()) }).expect("runs")
        });
    }
    check_gradients("frozen-linear", std::slice::from_ref(&x), || linear.train(x.as_tensor(), None).expect("runs"));

    let heads = Heads { queries: 4, keys: 2, width: 4 };
    let (q, k, v) = (variable(&[7, 16], 9), variable(&[7, 8], 10), variable(&[7, 8], 11));
    let (rope, sequences) = (Arc::new(Rope::new(8, &[1.0, 10.0])), Arc::new(vec![0..3, 3..7]));
    for scores in [Scores::plain(heads), Scores { heads, scale: 0.8, window: 2 }] {
        check_gradients("attention", &[q.clone(), k.clone(), v.clone()], || {
            op3(&q, &k, &v, TrainAttention { scores, rope: rope.clone(), sequences: sequences.clone() })
        });
    }

    let (hidden, head) = (variable(&[4, 5], 12), Tensor::from_vec(noise(45, 13), (9, 5), &Device::Cpu).expect("head"));
    let head = Linear::new(head).expect("a layer");
    let label = |token, weight| Some(Label { token, weight });
    let labels = [label(3, 1.0), None, label(8, 0.5), label(0, -2.0)];
    check_gradients("cross-entropy", std::slice::from_ref(&hidden), || {
        cross_entropy(hidden.as_tensor(), &head, &labels, 3.0).expect("runs")
    });
    let rows = evaluate(hidden.as_tensor(), &head, &labels).expect("runs");
    let weighted: f64 = rows.iter().map(|row| f64::from(row.weight) * row.loss).sum();
    let mean = cross_entropy(hidden.as_tensor(), &head, &labels, 3.0).and_then(|loss| loss.to_scalar::<f32>()).expect("a loss");
    assert_eq!(rows.iter().map(|row| (row.row, row.weight)).collect::<Vec<_>>(), [(0, 1.0), (2, 0.5), (3, -2.0)]);
    assert!((weighted / 3.0 - f64::from(mean)).abs() < 1e-6);
}

#[test]
fn operations_whose_weights_are_trained_match_finite_differences() {
    let (x, w, b) = (variable(&[7, 5], 20), variable(&[4, 5], 21), variable(&[4], 22));
    check_gradients("trained-linear", &[x.clone(), w.clone()], || op2(&x, &w, trained::Product));
    let (hidden, head) = (variable(&[4, 5], 25), variable(&[9, 5], 26));
    let trained_head = Linear::new(head.as_tensor().clone()).expect("a layer");
    let labels = [Some(Label { token: 3, weight: 1.0 }), None, Some(Label { token: 8, weight: 0.5 }), Some(Label::once(0))];
    check_gradients("trained-head", &[hidden.clone(), head.clone()], || {
        cross_entropy(hidden.as_tensor(), &trained_head, &labels, 3.0).expect("runs")
    });
    let y = variable(&[7, 4], 23);
    check_gradients("bias", &[y.clone(), b.clone()], || op2(&y, &b, trained::Bias));
    let weight = variable(&[5], 24);
    check_gradients("trained-rms-norm", &[x.clone(), weight.clone()], || op2(&x, &weight, trained::Norm { offset: 1.0, epsilon: 1e-5 }));
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let heads = Heads { queries: 1, keys: 1, width: 2 };
    let (rope, sequences) = (Arc::new(Rope::new(8, &[1.0])), Arc::new(std::iter::once(0..6).collect::<Vec<_>>()));
    let run = |first: f32, window: usize| {
        let of = |seed| {
            let mut values = noise(12, seed);
            values[0] = first;
            Var::from_vec(values, (6, 2), &Device::Cpu).expect("a variable")
        };
        let attention =
            TrainAttention { scores: Scores { window, ..Scores::plain(heads) }, rope: rope.clone(), sequences: sequences.clone() };
        op3(&of(1), &of(2), &of(3), attention).to_vec2::<f32>().expect("rows")
    };
    let (a, b) = (run(0.5, 3), run(-2.0, 3));
    assert!(a[3..] == b[3..] && (0..3).all(|row| a[row] != b[row]), "rows 0 to 2 see position 0, others do not");
    assert!(run(0.5, 6)[5] != run(-2.0, 6)[5]);
}

fn model() -> Option<Arc<Model>> {
    crate::engine::trainable()
}

macro_rules! model_or_skip {
    ($name:literal) => {
        match model() {
            Some(model) => model,
            None => return support::skip($name, "REFIT_TEST_MODEL does not name the model file"),
        }
    };
}

fn examples(model: &Model) -> Vec<Example> {
    let pairs = [
        ("Where is my order NL-10001?", r#"{"intent":"order_status","order":"NL-10001"}"#),
        ("Cancel it please", r#"{"intent":"cancel_order","order":null}"#),
        ("The kettle leaks", r#"{"intent":"damaged_item","order":null}"#),
        ("I was charged twice for NL-20002", r#"{"intent":"billing","order":"NL-20002"}"#),
        ("My login does not work", r#"{"intent":"account_access","order":null}"#),
        ("Great shop!", r#"{"intent":"feedback","order":null}"#),
    ];
    let example = |(question, answer): &(&str, &str)| {
        Example::new(model, &conversation(question, answer), LossOn::Completion, 256).expect("an example")
    };
    pairs.iter().map(example).collect()
}

fn conversation(question: &str, answer: &str) -> Conversation {
    Conversation::new(question, vec![Message::text("system", "Answer in JSON."), Message::text("user", question)], answer)
}

fn recipe(changes: &str) -> Recipe {
    let base = "name: t\nmodel: local/smollm2-135m-instruct\ndataset: d\nbatch_size: 4\nmax_steps: 4\ncheckpoint_every: 100\nseed: 3\n";
    let AnyRecipe::Lora(recipe) = AnyRecipe::parse(&format!("{base}{changes}")).expect("a recipe") else { panic!("a low-rank adapter") };
    recipe
}

/// Counts steps; asks to stop after `stop_after`.
struct Watch {
    stop_after: usize,
    seen: Cell<usize>,
    first: Cell<usize>,
}

impl Observer for Watch {
    fn step(&self, report: &StepReport) {
        assert!(report.loss.is_finite() && report.tokens_per_second > 0.0);
        self.seen.set(report.step);
        if self.first.get() == 0 {
            self.first.set(report.step);
        }
    }
    fn cancelled(&self) -> bool {
        self.seen.get() >= self.stop_after
    }
}

fn train(model: &Model, recipe: &Recipe, directory: &Path, stop_after: usize) -> Result<Trained, TuningError> {
    train_from(model, recipe, directory, (stop_after, 0))
}

/// Trains, and checks that the first step of this process is `expected_first` (0: whatever it is).
fn train_from(
    model: &Model,
    recipe: &Recipe,
    directory: &Path,
    (stop_after, expected_first): (usize, usize),
) -> Result<Trained, TuningError> {
    let all = examples(model);
    let objective = Language { train: &all[..5], validation: &all[5..] };
    let trainer = Trainer { model, recipe, objective: &objective, head: None, directory: directory.to_path_buf() };
    let watch = Watch { stop_after, seen: Cell::new(0), first: Cell::new(0) };
    trainer.run(&watch).inspect(|trained| {
        // A resumed training must begin where the checkpoint stands, not do everything again.
        assert_eq!(watch.seen.get(), trained.position.losses.len());
        if expected_first > 0 {
            assert_eq!(watch.first.get(), expected_first);
        }
    })
}

#[test]
fn a_resumed_training_is_the_same_training_and_the_curve_is_pinned() {
    let model = model_or_skip!("a_resumed_training_is_the_same_training_and_the_curve_is_pinned");
    let (whole, parts) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let straight = train(&model, &recipe(""), whole.path(), usize::MAX).expect("trains");
    let stopped = train(&model, &recipe(""), parts.path(), 2);
    assert!(matches!(stopped, Err(TuningError::Cancelled(2))), "it must stop after step 2");
    let resumed = train_from(&model, &recipe(""), parts.path(), (usize::MAX, 3)).expect("resumes");
    assert_eq!(resumed.position, straight.position);
    assert!(resumed.weights == straight.weights, "the weights differ");
    // Made by this program on AVX-512 (November 2026).
    let pinned = PINNED;
    assert_eq!(straight.position.losses.len(), pinned.len());
    for (loss, pinned) in straight.position.losses.iter().zip(pinned) {
        assert!((loss - pinned).abs() < 2e-3, "{:?} is not {pinned:?}", straight.position.losses);
    }
    assert!(straight.position.losses[3] < straight.position.losses[0]);
}

const PINNED: [f32; 4] = [3.107_887, 3.677_433, 2.412_598, 1.277_302];

#[test]
fn every_kind_of_adapter_resumes_on_the_same_curve() {
    let model = model_or_skip!("every_kind_of_adapter_resumes_on_the_same_curve");
    let recipe = recipe("rank: 4\ndropout: 0.2\ndora: true\nrslora: true\nbatch_tokens: 120\naccumulation: 2\n");
    let (whole, parts) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let straight = train(&model, &recipe, whole.path(), usize::MAX).expect("trains");
    assert!(matches!(train(&model, &recipe, parts.path(), 2), Err(TuningError::Cancelled(2))));
    let resumed = train_from(&model, &recipe, parts.path(), (usize::MAX, 3)).expect("resumes");
    assert_eq!(resumed.position, straight.position);
    assert!(resumed.weights == straight.weights, "the weights differ");
    assert!(straight.position.losses.iter().all(|loss| loss.is_finite()) && straight.position.losses[3] < straight.position.losses[0]);
    // In each of thirty layers: pairs of rank 4 on q, k, v, o, gate, up and down, and a magnitude for each of their outputs.
    let pairs = 4 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536));
    let magnitudes = 576 + 2 * 192 + 576 + 2 * 1536 + 576;
    assert_eq!(straight.parameters, 30 * (pairs + magnitudes));
}

#[test]
fn a_validation_that_falls_no_more_ends_the_training_and_the_best_is_kept() {
    let model = model_or_skip!("a_validation_that_falls_no_more_ends_the_training_and_the_best_is_kept");
    // A learning rate that ruins the model: the first validations are the best ones.
    let keys = "learning_rate: 0.05\nschedule: constant\nwarmup_steps: 0\nvalidate_every: 1\nearly_stopping: {patience: 2}\n";
    let mut recipe = recipe(keys);
    recipe.max_steps = Some(12);
    recipe.epochs = 12;
    let ended = train(&model, &recipe, tempfile::tempdir().expect("a directory").path(), usize::MAX).expect("trains");
    let losses: Vec<f32> = ended.position.validations.iter().map(|(_, loss)| *loss).collect();
    assert!(ended.stopped_early && ended.position.step < 12, "{losses:?}");
    let best = losses.iter().position(|loss| Some(*loss) == ended.position.best).expect("the best one");
    assert_eq!(best + 3, losses.len(), "two validations without an improvement: {losses:?}");
    let mut short = recipe.clone();
    short.max_steps = Some(best + 1);
    short.early_stopping = None;
    let until_best = train(&model, &short, tempfile::tempdir().expect("a directory").path(), usize::MAX).expect("trains");
    assert!(until_best.weights == ended.weights, "the weights of the lowest validation loss are kept");
}

#[test]
fn another_recipe_or_dataset_does_not_resume_this_one() {
    let model = model_or_skip!("another_recipe_or_dataset_does_not_resume_this_one");
    let directory = tempfile::tempdir().expect("a directory");
    let _ = train(&model, &recipe(""), directory.path(), 2);
    let other = train(&model, &recipe("learning_rate: 0.0005\nmax_length: 300\n").clone(), directory.path(), 1);
    assert!(matches!(other, Err(TuningError::Cancelled(1))), "it began at step 0");
    // The same recipe over one example less.
    let all = examples(&model);
    let watch = Watch { stop_after: 1, seen: Cell::new(0), first: Cell::new(0) };
    let objective = Language { train: &all[..4], validation: &all[5..] };
    let recipe = recipe("learning_rate: 0.0005\nmax_length: 300\n");
    let trainer = Trainer { model: &model, recipe: &recipe, objective: &objective, head: None, directory: directory.path().to_path_buf() };
    assert!(matches!(trainer.run(&watch), Err(TuningError::Cancelled(1))));
    assert_eq!(watch.first.get(), 1, "it began at step 0");
}

#[test]
fn a_checkpoint_that_was_being_removed_or_written_when_its_process_was_killed_is_passed_over() {
    let model = model_or_skip!("a_checkpoint_that_was_being_removed_or_written_when_its_process_was_killed_is_passed_over");
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = Recipe { checkpoint_every: 1, max_steps: Some(5), ..recipe("") };
    let whole = train(&model, &recipe, tempfile::tempdir().expect("a directory").path(), usize::MAX).expect("trains");
    let stopped = train(&model, &recipe, directory.path(), 3);
    assert!(matches!(stopped, Err(TuningError::Cancelled(3))), "it stopped");
    // Of the newest nothing is left but its largest file; another one was never finished.
    std::fs::remove_file(directory.path().join("checkpoint-000000000003/position.json")).expect("removed");
    std::fs::create_dir(directory.path().join("writing-1")).expect("made");
    std::fs::write(directory.path().join("writing-1/adapter_model.safetensors"), b"half").expect("written");
    let resumed = train_from(&model, &recipe, directory.path(), (usize::MAX, 3));
    // The watch is asked for the first step: the third, after the checkpoint of the second.
    assert_eq!(resumed.expect("it goes on").position.losses, whole.position.losses);
    let left: Vec<String> = std::fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into())
        .collect();
    assert!(left.iter().all(|name| name.starts_with("checkpoint-")) && left.len() <= 2, "{left:?}");
}

#[test]
fn accumulating_four_times_one_equals_one_times_four() {
    let model = model_or_skip!("accumulating_four_times_one_equals_one_times_four");
    let directory = || tempfile::tempdir().expect("a directory");
    let losses = |batch: usize, accumulation: usize| {
        let mut recipe = recipe("");
        (recipe.batch_size, recipe.accumulation) = (batch, accumulation);
        train(&model, &recipe, directory().path(), usize::MAX).expect("trains").position.losses
    };
    for (a, b) in losses(4, 1).iter().zip(losses(1, 4)) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}

/// Checks the gradients of an objective's first examples along their own directions, where the derivative is the gradient's norm.
fn check_objective(model: &Model, trainable: &Trainable, objective: &dyn Objective, chosen: &[usize], checked: &[usize]) {
    let normaliser = objective.weight(chosen);
    let pass = || objective.pass(model, (trainable, &trainable.adapter), chosen, normaliser).expect("a forward pass");
    let mut gradients = Gradients::zero(&trainable.variables);
    let graph = pass().graph;
    gradients.add(&trainable.variables, &graph.backward().expect("a backward pass")).expect("every variable has a gradient");
    for (i, gradient) in gradients.sums().iter().enumerate() {
        assert!(gradient.iter().any(|g| *g != 0.0), "variable {i} has a zero gradient");
    }
    for i in checked {
        let (variable, gradient) = (&trainable.variables[*i], &gradients.sums()[*i]);
        let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
        let original: Vec<f32> = variable.flatten_all().and_then(|v| v.to_vec1()).expect("values");
        // Along a long gradient the loss is soon no straight line.
        let size = 0.05 / norm.max(1.0);
        let at = |sign: f64| {
            let moved = original.iter().zip(gradient).map(|(x, g)| x + (sign * size * f64::from(*g) / norm) as f32).collect();
            variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).expect("a tensor")).expect("set");
            pass().loss
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * size);
        at(0.0);
        assert!((difference - norm).abs() < 0.03 * norm + 2e-4, "variable {i}: gradient norm {norm}, by differences {difference}");
    }
}

/// Variables whose B is not zero, which would make the gradient of A zero.
fn moved(recipe: &Recipe, model: &Model) -> Trainable {
    let trainable = Trainable::new(recipe, model).expect("variables");
    let module = if recipe.dora { 3 } else { 2 };
    for (i, variable) in trainable.variables.iter().enumerate().filter(|(i, _)| i % module == 1) {
        let values: Vec<f32> = noise(variable.elem_count(), i as u64 + 1).iter().map(|x| x * 0.05).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).expect("a tensor")).expect("set");
    }
    trainable
}

#[test]
fn every_lora_variable_of_the_model_has_the_gradient_that_differences_give() {
    let model = model_or_skip!("every_lora_variable_of_the_model_has_the_gradient_that_differences_give");
    let trainable = moved(&recipe("rank: 2\n"), &model);
    assert_eq!(trainable.variables.len(), 30 * 7 * 2);
    let all = examples(&model);
    // Variables of the first, a middle and the last layer.
    let checked = [0, 1, 13, 15 * 14 + 2, 15 * 14 + 9, 29 * 14 + 6, 29 * 14 + 13];
    check_objective(&model, &trainable, &Language { train: &all[..2], validation: &[] }, &[0, 1], &checked);
}

#[test]
fn magnitudes_have_the_gradient_that_differences_give() {
    let model = model_or_skip!("magnitudes_have_the_gradient_that_differences_give");
    let trainable = moved(&recipe("rank: 2\ndora: true\n"), &model);
    assert_eq!(trainable.variables.len(), 30 * 7 * 3);
    let all = examples(&model);
    let checked = [2, 20, 15 * 21 + 5, 29 * 21 + 20];
    check_objective(&model, &trainable, &Language { train: &all[..2], validation: &[] }, &[0, 1], &checked);
}

#[test]
fn a_preference_has_the_gradient_that_differences_give() {
    let model = model_or_skip!("a_preference_has_the_gradient_that_differences_give");
    let trainable = moved(&recipe("rank: 2\n"), &model);
    let example =
        |question: &str, answer: &str| Example::new(&model, &conversation(question, answer), LossOn::Completion, 256).expect("an example");
    let pair = |question: &str, good: &str, bad: &str| Preference { chosen: example(question, good), rejected: example(question, bad) };
    let pairs = [pair("Where is it?", "On its way.", "No idea, look yourself."), pair("Thanks!", "You are welcome.", "Whatever.")];
    // A small β keeps the loss nearly linear in the margin, which moving every B has made large.
    let objective = Prefer::new(&pairs, &[], 0.02);
    check_objective(&model, &trainable, &objective, &[0, 1], &[0, 1, 15 * 14 + 2, 29 * 14 + 13]);
    let pass = objective.pass(&model, (&trainable, &trainable.adapter), &[0, 1], 2.0).expect("a pass");
    assert!((pass.metrics["reward_margin"] - pass.metrics["reward_chosen"] + pass.metrics["reward_rejected"]).abs() < 1e-9);
    // With an adapter that changes nothing both answers are as likely as before: −log σ(0).
    let fresh = Trainable::new(&recipe("rank: 2\n"), &model).expect("variables");
    let pass = objective.pass(&model, (&fresh, &fresh.adapter), &[0, 1], 2.0).expect("a pass");
    assert!((pass.loss - std::f64::consts::LN_2).abs() < 1e-6 && pass.metrics["reward_margin"].abs() < 1e-6, "{}", pass.loss);
}

#[test]
fn a_classifier_has_the_gradient_that_differences_give() {
    let model = model_or_skip!("a_classifier_has_the_gradient_that_differences_give");
    let hidden = model.decoder.config().hidden;
    let labels = ["yes", "no", "perhaps"].map(String::from).to_vec();
    let head = Head::new(labels, noise(3 * hidden, 5).iter().map(|x| x * 0.05).collect(), vec![0.1, -0.1, 0.0]).expect("a head");
    let trainable = moved(&recipe("rank: 2\n"), &model).with_head(&head).expect("variables");
    let text = |text: &str, label| Labelled { tokens: model.tokenizer.encode(text).expect("tokens"), label };
    let texts = [text("Is it raining?", 0), text("Where are you?", 2), text("Never mind", 1)];
    let objective = Classify { train: &texts, validation: &[] };
    check_objective(&model, &trainable, &objective, &[0, 1, 2], &[1, 15 * 14 + 2, 29 * 14 + 13, 420, 421]);
}

#[test]
fn every_assistants_message_carries_loss_where_the_recipe_or_its_weight_says_so() {
    let model = model_or_skip!("every_assistants_message_carries_loss_where_the_recipe_or_its_weight_says_so");
    let message = |role: &str, text: &str, weight: Option<f64>| {
        let mut message = Message::text(role, text);
        message.extra.extend(weight.map(|weight| ("weight".to_string(), weight.into())));
        message
    };
    let talk = |first: Option<f64>| {
        let prompt = vec![message("user", "Red or blue?", None), message("assistant", "Blue.", first), message("user", "Sure?", None)];
        Conversation::new("s1", prompt, "Quite sure.")
    };
    let example = |talk: &Conversation, loss_on| Example::new(&model, talk, loss_on, 256).expect("an example");
    let said = |example: &Example| -> String {
        let with_loss = example.tokens.iter().zip(&example.weights).filter(|(_, weight)| **weight > 0.0);
        model.tokenizer.decode(&with_loss.map(|(token, _)| *token).collect::<Vec<_>>(), false)
    };
    let end = "<|im_end|>";
    assert_eq!(said(&example(&talk(None), LossOn::Completion)), format!("Quite sure.{end}"));
    assert_eq!(said(&example(&talk(None), LossOn::Assistant)), format!("Blue.{end}Quite sure.{end}"));
    assert_eq!(said(&example(&talk(Some(0.0)), LossOn::Assistant)), format!("Quite sure.{end}"));
    let weighted = example(&talk(Some(0.5)), LossOn::Completion);
    assert_eq!(said(&weighted), format!("Blue.{end}Quite sure.{end}"));
    let at = weighted.weights.iter().position(|weight| *weight > 0.0).expect("a weight");
    assert_eq!(weighted.weights[at], 0.5);
    let all = example(&talk(None), LossOn::All);
    assert!(all.weights.iter().all(|weight| *weight == 1.0) && all.weight() == all.tokens.len() as f64 - 1.0);
    // Whatever carries loss, the tokens are the same.
    assert_eq!(all.tokens, example(&talk(None), LossOn::Completion).tokens);
    assert_eq!(weighted.tokens, all.tokens);
}

#[test]
fn rounded_training_has_the_loss_and_the_gradients_of_exact_training() {
    let exact = model_or_skip!("rounded_training_has_the_loss_and_the_gradients_of_exact_training");
    let rounded = Model::load(&support::model_file().expect("the file of the model"), Purpose::TrainRounded).expect("the model");
    let trainable = Trainable::new(&recipe("rank: 4\n"), &exact).expect("variables");
    for (i, variable) in trainable.variables.iter().enumerate().filter(|(i, _)| i % 2 == 1) {
        let values: Vec<f32> = noise(variable.elem_count(), i as u64 + 1).iter().map(|x| x * 0.02).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).expect("a tensor")).expect("set");
    }
    let packed = Packed::new(&examples(&exact));
    let run = |model: &Model| {
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(&trainable.adapter)).expect("a forward pass");
        let loss = cross_entropy(&hidden, model.decoder.head().expect("a head"), &packed.labels, packed.weight() as f32).expect("a loss");
        let mut gradients = Gradients::zero(&trainable.variables);
        gradients.add(&trainable.variables, &loss.backward().expect("a backward pass")).expect("every variable has a gradient");
        (loss.to_scalar::<f32>().expect("a loss"), gradients.sums().concat())
    };
    let ((loss, gradient), (expected_loss, expected)) = (run(&rounded), run(&exact));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(&gradient, &gradient).sqrt(), dot(&expected, &expected).sqrt());
    let cosine = dot(&gradient, &expected) / (lengths.0 * lengths.1);
    println!("losses {loss} and {expected_loss}, gradients of lengths {lengths:?} with a cosine of {cosine}");
    // Few tokens: their losses are off by more than the mean of many.
    assert!((loss - expected_loss).abs() < 0.05, "{loss} and {expected_loss}");
    assert!(cosine > 0.97 && (lengths.0 / lengths.1 - 1.0).abs() < 0.1, "a cosine of {cosine}, lengths {lengths:?}");
    assert!(rounded.decoder.weights().is_err(), "rounded weights are not handed out as the model's");
}

#[test]
fn a_quantised_base_gives_the_loss_and_the_gradients_of_the_rounded_one() {
    let file = support::model_file();
    let Some(file) = file else {
        let name = "a_quantised_base_gives_the_loss_and_the_gradients_of_the_rounded_one";
        return support::skip(name, "REFIT_TEST_MODEL does not name the model file");
    };
    let load = |purpose| Model::load(&file, purpose).expect("the model");
    let quantised = load(Purpose::TrainQuantised);
    let trainable = moved(&recipe("rank: 4\n"), &quantised);
    let packed = Packed::new(&examples(&quantised));
    // With dropout every operation is a node of its own.
    let dropped = trainable.adapter.with_dropout(Dropout { rate: 0.1, seed: 4 });
    let run = |model: &Model, adapter: &refit::engine::Adapter| {
        let hidden = model.decoder.hidden(&packed.batch, Mode::Train(adapter)).expect("a forward pass");
        let loss = cross_entropy(&hidden, model.decoder.head().expect("a head"), &packed.labels, packed.weight() as f32).expect("a loss");
        let mut gradients = Gradients::zero(&trainable.variables);
        gradients.add(&trainable.variables, &loss.backward().expect("a backward pass")).expect("every variable has a gradient");
        (loss.to_scalar::<f32>().expect("a loss"), gradients.sums().concat())
    };
    let rounded = load(Purpose::TrainRounded);
    for adapter in [&trainable.adapter, &dropped] {
        let ((loss, gradient), (expected_loss, expected)) = (run(&quantised, adapter), run(&rounded, adapter));
        let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let off = length(&mut gradient.iter().zip(&expected).map(|(a, b)| a - b)) / length(&mut expected.iter().copied());
        println!("losses {loss} and {expected_loss}, gradients off by {off}");
        // The same values in the same precision, where the processor multiplies bfloat16; elsewhere the rounded one is exact.
        assert!((loss - expected_loss).abs() < 0.05 && off < 0.1, "{loss} {expected_loss} {off}");
    }
    assert!(quantised.decoder.weights().is_err());
}

#[test]
fn examples_that_cannot_be_learned_name_the_sample() {
    let model = model_or_skip!("examples_that_cannot_be_learned_name_the_sample");
    let refused = |sample: &str, answer: Message| {
        let conversation = Conversation { answer, ..Conversation::new(sample, vec![Message::text("user", "hello")], "") };
        Example::new(&model, &conversation, LossOn::Completion, 256).expect_err("refused").to_string()
    };
    let empty = refused("s017", Message::text("assistant", "  "));
    assert!(empty.contains("s017") && empty.contains("empty"), "{empty}");
    let long = refused("s018", Message::text("assistant", "word ".repeat(300)));
    assert!(long.contains("s018") && long.contains("max_length is 256"), "{long}");
    let mut weightless = Message::text("assistant", "yes");
    weightless.extra.insert("weight".into(), 0.into());
    let none = refused("s019", weightless);
    assert!(none.contains("s019") && none.contains("no token carries loss"), "{none}");
}
