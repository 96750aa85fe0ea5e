//! Releases: the immutable unit that serves traffic, the gate it must pass, and the routes it moves along.

pub mod manifest;

pub use manifest::Manifest;
