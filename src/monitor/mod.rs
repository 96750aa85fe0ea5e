//! What is known about the running system: the durable request log ([`record`]), its [`segment`] files, [`metrics`], the state of [`serving`],
//! the [`health`] of the data directory, what calls [`cost`], what requests are called besides ([`names`]), whether models are
//! what they were ([`snapshots`]), what the log leaves out ([`redact`]) and for how long it keeps ([`retention`]).

pub mod cost;
mod database;
pub mod exposition;
pub mod health;
mod idler;
mod line;
pub mod metrics;
pub mod names;
mod process;
pub mod record;
pub mod redact;
pub mod retention;
pub mod rows;
pub mod segment;
pub mod series;
pub mod serving;
mod shard;
pub mod snapshots;
pub mod telemetry;

pub use health::Health;
pub use metrics::Metrics;
pub use names::Names;
pub use record::{Recorder, Written};
pub use redact::{Finding, Redactor};
pub use serving::Serving;
pub use telemetry::Telemetry;
