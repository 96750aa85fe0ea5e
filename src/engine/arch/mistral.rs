//! Mistral (Jiang et al. 2023, arXiv 2310.06825): the llama family, in early models with a window on every layer. In GGUF files it is
//! [`llama`](super::llama).

use super::family::Family;

/// The family.
pub const FAMILY: Family = Family::plain(None, "mistral", "MistralForCausalLM");
