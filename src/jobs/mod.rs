//! Long work outside the request path. A job is a row with a lease: a worker process claims it, reports progress with its heartbeat
//! and ends it; one whose worker died is resumed or failed, never left running. [`worker`] starts and is the worker process, each
//! kind of work is a file and a line in [`worker::work`].

pub mod batch;
pub mod data;
pub mod error;
pub mod fine_tune;
mod heart;
pub mod openai_eval;
pub mod optimize;
mod served;
#[cfg(feature = "local")]
pub mod tune;
pub mod worker;

pub use error::JobError;
pub use worker::{Handle, Job};
