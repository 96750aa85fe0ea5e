//! What is known about the running system: the durable request log ([`record`]), its [`segment`] files, [`metrics`], and what calls [`cost`].

pub mod cost;
pub mod metrics;
pub mod record;
pub mod segment;

pub use metrics::Metrics;
pub use record::Recorder;
