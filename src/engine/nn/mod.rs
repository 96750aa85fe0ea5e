//! Operations of training, and of the [encoders](encoder); decoders that serve use the [kernels](super::kernel). Everything that training
//! needs carries its own backward pass (candle's fused ops cut gradients silently: `apply_op*_no_bwd`).

pub mod adapted;
pub mod add;
pub mod attention;
pub mod block;
pub mod cross_entropy;
pub mod dora;
pub mod dropout;
pub mod encoder;
pub mod gated;
pub mod gemm;
pub mod heads;
pub mod linear;
pub mod norm;
mod pair;
mod quantised;
pub mod rope;
pub mod simd;
pub mod slices;
pub mod stack;
mod tiles;
pub mod trained;
