//! Long prose, kept as Markdown beside this file and shown by rustdoc. No code.

#[doc = include_str!("api.md")]
pub mod api {}

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("control.md")]
pub mod control {}

#[doc = include_str!("cache.md")]
pub mod cache {}

#[doc = include_str!("datasets.md")]
pub mod datasets {}

#[doc = include_str!("decisions.md")]
pub mod decisions {}

#[doc = include_str!("evals.md")]
pub mod evals {}

#[doc = include_str!("local.md")]
pub mod local {}

#[doc = include_str!("observability.md")]
pub mod observability {}

#[doc = include_str!("registry.md")]
pub mod registry {}

#[doc = include_str!("prompts.md")]
pub mod prompts {}

#[doc = include_str!("optimize.md")]
pub mod optimize {}

#[doc = include_str!("guardrails.md")]
pub mod guardrails {}

#[doc = include_str!("routing.md")]
pub mod routing {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("scorers.md")]
pub mod scorers {}

#[doc = include_str!("tuning.md")]
pub mod tuning {}
