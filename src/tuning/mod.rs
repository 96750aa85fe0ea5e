//! Fine-tuning: fit a low-rank adapter on top of a local model with your own examples.
//!
//! [`recipe`] says how, [`example`] turns conversations into labelled tokens, [`trainer`] runs the loop with [`optimizer`] and
//! [`schedule`], [`checkpoint`] makes it resumable. It knows neither the store nor jobs: `jobs/tune.rs` brings the data and keeps the
//! result.

pub mod checkpoint;
pub mod error;
pub mod estimate;
pub mod example;
pub mod export;
pub mod fit;
pub mod head;
pub mod lora;
pub mod measure;
pub mod optimizer;
pub mod recipe;
pub mod schedule;
pub mod trainer;

pub use error::TuningError;
pub use estimate::{Estimate, estimate};
pub use example::Example;
pub use fit::{Conversation, Data, fit};
pub use head::{Accuracy, FittedHead, HeadObserver, HeadRecipe, fit_head};
pub use recipe::{AnyRecipe, Method, Recipe};
pub use trainer::{Observer, StepReport, Trained, Trainer};
