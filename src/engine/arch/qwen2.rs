//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): queries, keys and values have biases.

use super::family::Family;

/// The family.
pub const FAMILY: Family = Family { has_biases: true, ..Family::plain(Some("qwen2"), "qwen2", "Qwen2ForCausalLM") };
