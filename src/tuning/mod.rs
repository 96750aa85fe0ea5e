//! Fine-tuning: fit a low-rank adapter or a classifier on top of a local model with your own examples, or train the model itself.
//!
//! [`recipe`] says how, [`conversation`] what from, [`example`] turns conversations into labelled tokens, [`plan`] says which of them each
//! step sees, an [`objective`] makes a loss of them, [`trainer`] runs the loop with [`optimizer`] and [`schedule`], [`checkpoint`] makes it
//! resumable; [`fit`](fn@fit) is the door. It knows neither the store nor jobs: `jobs/tune` brings the data and keeps the result.

pub mod auto;
mod base;
pub mod checkpoint;
mod classify;
pub mod conversation;
pub mod error;
pub mod estimate;
pub mod example;
pub mod export;
pub mod fit;
mod floats;
pub mod head;
mod lengths;
pub mod lora;
pub mod measure;
pub mod objective;
pub mod optimizer;
pub mod plan;
pub mod recipe;
pub mod schedule;
pub mod trainer;
pub mod whole;

pub use conversation::{Conversation, Data};
pub use error::TuningError;
pub use estimate::{Estimate, estimate};
pub use example::Example;
pub use fit::fit;
pub use head::{Accuracy, FittedHead, HeadObserver, HeadRecipe, fit_head};
pub use recipe::{AnyRecipe, EarlyStopping, LossOn, Method, Recipe};
pub use trainer::{Observer, StepReport, Trained, Trainer};
