//! Tensors as contiguous f32 slices on the CPU, for the operations with hand-written forward and backward passes.

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor};

/// The contiguous slice behind a storage and its layout.
///
/// # Errors
/// When the layout is strided or the elements are not f32.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("a contiguous tensor was expected".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` with a tensor's elements; a strided tensor is copied first.
///
/// # Errors
/// When the tensor is not f32 on the CPU.
pub fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => candle_core::bail!("a CPU tensor was expected"),
    }
}

/// A CPU tensor of the given shape.
///
/// # Errors
/// When the length does not match the shape.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
