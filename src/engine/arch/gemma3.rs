//! Gemma 3, the text models (Gemma Team 2025, arXiv 2503.19786): norms before and after each part and on the heads, GEGLU, scaled
//! embeddings, and five layers with a window and a rotary base of their own to each that sees everything.

use super::config::DecoderConfig;
use super::family::Family;
use crate::engine::kernel::rows::Gate;

/// The family.
pub const FAMILY: Family = Family {
    has_head_norms: true,
    has_output_norms: true,
    norm_offset: 1.0,
    gate: Gate::GeluTanh,
    scales_embeddings: true,
    full_every: Some(6),
    sliding_rope_base: Some(10_000.0),
    ties_embeddings: true,
    attention_scale,
    ..Family::plain(Some("gemma3"), "gemma3_text", "Gemma3ForCausalLM")
};

/// Layers of the one model, 27B, whose scores are scaled as if heads made up the hidden width; GGUF files do not say so.
const LAYERS_27B: usize = 62;

fn attention_scale(config: &DecoderConfig) -> f32 {
    let width = if config.layers == LAYERS_27B { config.hidden / config.heads.queries } else { config.heads.width };
    1.0 / (width as f32).sqrt()
}
