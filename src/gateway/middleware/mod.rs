//! What every request passes: the [`envelope`] (request id, panics, metrics) and the [`access`] check.

pub mod access;
pub mod envelope;

pub use envelope::RequestId;
