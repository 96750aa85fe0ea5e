//! The local engine: tokenizer, chat template, weights, decoder, adapters and the scheduler that serves them, on candle.
//!
//! It loads files that `models` stored (a path is handed to it) and knows neither the store nor HTTP. `providers/local.rs` serves
//! through it, `tuning` trains through it. Start at [`model::Model`] for one loaded model, [`scheduler::Engine`] for the worker thread;
//! [`encoder`] has the same two for models that turn texts into vectors.

pub mod adapter;
mod adapter_check;
pub mod arch;
pub mod chat_template;
pub mod classifier;
pub mod detokenizer;
pub mod encoder;
pub mod error;
pub mod folder;
pub mod gguf;
pub mod grammar;
pub mod head;
pub mod kernel;
pub mod kv_cache;
pub mod logprobs;
pub mod map;
pub mod model;
pub mod nn;
pub mod pace;
pub mod packed_adapter;
pub mod penalties;
pub mod pieces;
pub mod prefix;
pub mod queue;
pub mod sampling;
pub mod scheduler;
pub mod schema;
pub mod sequence;
pub mod tokenizer;
mod tokenizer_files;
mod tokenizer_gguf;
pub mod tools;

pub use adapter::Adapter;
pub use arch::Purpose;
pub use classifier::Classifier;
pub use encoder::{Embedder, Encoder};
pub use error::EngineError;
pub use head::Head;
pub use model::Model;
pub use scheduler::Engine;
