//! Qwen3, the dense ones (Yang et al. 2025, arXiv 2505.09388): norms on the heads of queries and keys, no biases.

use super::family::Family;

/// The family.
pub const FAMILY: Family = Family { has_head_norms: true, ..Family::plain(Some("qwen3"), "qwen3", "Qwen3ForCausalLM") };
