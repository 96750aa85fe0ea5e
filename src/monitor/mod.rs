//! What is known about the running system: the durable request log ([`record`]), its [`segment`] files, [`metrics`], the state of [`serving`], and
//! the [`health`] of the data directory.

pub mod health;
mod line;
pub mod metrics;
pub mod record;
pub mod segment;
pub mod serving;

pub use health::Health;
pub use metrics::Metrics;
pub use record::Recorder;
pub use serving::Serving;
