//! Kernels over plain slices. Of inference: quantised [weights](weight) in tiles, [activations](panel) as bytes, their
//! [products](product), what [adapters](low_rank) [add](updates) to them, [attention](attend) to a half-precision cache, and the [pool]
//! of threads that shares the work. Of training: products of [bfloat16](bf16), and of gradients as bytes with frozen weights,
//! [transposed].
//!
//! Every row's arithmetic is the same whatever else is computed with it: a kernel walks the inputs of a row in one fixed order, and
//! blocking and threads only decide which rows and outputs are worked on together. So what a sequence says does not depend on the batch.

pub mod append;
pub mod attend;
pub(in crate::engine) mod bf16;
pub mod dense;
mod dots;
mod fetch;
mod formats;
pub(in crate::engine) mod huge;
pub mod isa;
pub(in crate::engine) mod lanes;
pub mod low_rank;
pub mod panel;
pub mod pool;
pub mod product;
pub mod rows;
mod shared;
pub mod tiles;
pub(in crate::engine) mod transposed;
pub mod updates;
