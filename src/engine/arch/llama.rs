//! The llama family (Touvron et al. 2023, arXiv 2302.13971): the plain decoder. GGUF files of Mistral and SmolLM say `llama`, too.

use super::family::Family;

/// The family.
pub const FAMILY: Family = Family { is_interleaved: true, ..Family::plain(Some("llama"), "llama", "LlamaForCausalLM") };
