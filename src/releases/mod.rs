//! Releases: the immutable unit that serves traffic, the gate it must pass, and the routes it moves along.

pub mod conditions;
pub mod manifest;

pub use conditions::{Condition, Measure, Verdict};
pub use manifest::Manifest;
