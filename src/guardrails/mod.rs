//! Rank 2: guardrails. Pure functions: what [`detect`]ors and patterns find in the [`texts`] of a request or a reply, what is put in
//! its place ([`scan`]), and whether a reply fits its schema ([`schema`]). When they are applied, and the model that judges texts, is
//! the business of `inference`.

pub mod detect;
pub mod scan;
pub mod schema;
pub mod texts;
mod visits;

pub use scan::{Finding, Guard, Names, Refused};
