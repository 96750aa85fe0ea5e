//! Work on datasets that spans rooms: [`check`] with models, detectors and the request log; samples that are proposed from production
//! ([`curate`]) and looked at by people ([`review`]).

pub mod check;
mod coverage;
pub mod curate;
mod judge;
mod operators;
mod redaction;
pub mod review;
mod vectors;

pub use check::Wishes;
pub use coverage::Coverage;

/// Endpoints whose requests are conversations: the log has all of them in the form of chat completions.
const CONVERSATIONS: [&str; 4] = ["chat.completions", "responses", "messages", "completions"];
