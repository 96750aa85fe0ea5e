//! Weights for serving, repacked once from the bytes of a model file: tiles of sixteen rows (outputs), so that one register holds the same
//! four inputs of sixteen outputs. Along a row the weights lie in blocks of 32 that share a scale, in file order.
//!
//! | layout | weight | from |
//! |---|---|---|
//! | nibbles | scale · (code − 8) | Q4_0 |
//! | nibbles with minima | scale · code + min | Q4_1 |
//! | bytes | scale · (code − 128) | Q8_0, and all other quantised types after rounding |
//! | floats | as in the file | F32, F16, BF16 |

use super::dots::BLOCK;
use super::formats::{self, Block, Format};
use super::huge::{Buffer, Plain};
use super::lanes::{LANES, widened};
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

/// Rows of a tile.
pub const TILE: usize = LANES;

/// How the codes of a tile are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 4 bits, from −8.
    Nibbles,
    /// 4 bits, with a minimum for each block.
    NibblesMin,
    /// 8 bits, from −128.
    Bytes,
}

impl Layout {
    /// Lines of a tile's block.
    pub(super) fn lines(self) -> usize {
        if self == Layout::Bytes { 8 } else { 4 }
    }
}

/// 64 bytes on a boundary of 64: codes of sixteen rows. In byte layouts line g holds inputs 4g to 4g + 3 of each row; in 4-bit layouts
/// its low halves hold those and its high halves inputs 16 + 4g to 16 + 4g + 3.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(in crate::engine) struct Line(pub(super) [u8; 64]);

/// A weight matrix (outputs, inputs), packed.
#[derive(Debug)]
pub struct Weight {
    outputs: usize,
    inputs: usize,
    pub(super) packed: Packed,
}

/// The packed values, tile by tile; rows past the last output are zero.
#[derive(Debug)]
pub(super) enum Packed {
    Quantised(Quantised),
    /// For each tile, for each input: sixteen rows.
    F32(Buffer<[f32; TILE]>),
    F16(Buffer<[f16; TILE]>),
    Bf16(Buffer<[bf16; TILE]>),
}

/// For each tile, for each block: lines, scales and, in some layouts, minima.
#[derive(Debug)]
pub(super) struct Quantised {
    pub(super) layout: Layout,
    pub(super) lines: Buffer<Line>,
    pub(super) scales: Buffer<[f16; TILE]>,
    pub(super) mins: Buffer<[f16; TILE]>,
}

/// Bytes of a tensor and how they are to be read.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Row-major, as in the file.
    pub bytes: &'a [u8],
    /// Rows.
    pub outputs: usize,
    /// Columns.
    pub inputs: usize,
    /// Which row of the file becomes row i.
    pub order: &'a (dyn Fn(usize) -> usize + Sync),
}

/// Packs one element type.
pub(super) type Packer = fn(Source<'_>) -> Quantised;

impl Weight {
    /// Packs a tensor of an element type whose rows are whole blocks of 32; `None` where the type is not read as it is and
    /// must be [rounded](Weight::rounded).
    pub fn pack(dtype: GgmlDType, source: Source<'_>) -> Option<Self> {
        let packed = match dtype {
            GgmlDType::F32 => Packed::F32(floats(source, |b: [u8; 4]| f32::from_le_bytes(b))),
            GgmlDType::F16 => Packed::F16(floats(source, |b: [u8; 2]| f16::from_le_bytes(b))),
            GgmlDType::BF16 => Packed::Bf16(floats(source, |b: [u8; 2]| bf16::from_le_bytes(b))),
            other => Packed::Quantised(formats::packer(other)?(source)),
        };
        Some(Weight { outputs: source.outputs, inputs: source.inputs, packed })
    }

    /// Packs f32 values (outputs, inputs) exactly.
    ///
    /// # Panics
    /// When the length does not fit: a programming error.
    pub fn exact(values: &[f32], (outputs, inputs): (usize, usize), order: &(dyn Fn(usize) -> usize + Sync)) -> Self {
        assert_eq!(values.len(), outputs * inputs, "a weight of {outputs} by {inputs}");
        Weight { outputs, inputs, packed: Packed::F32(rows_of(|row| &values[order(row) * inputs..][..inputs], (outputs, inputs), |x| x)) }
    }

    /// Rounds f32 values (outputs, inputs) to 8 bits for each block of 32, as Q8_0 does. `inputs` is a multiple of 32.
    pub fn rounded(values: &[f32], (outputs, inputs): (usize, usize), order: &(dyn Fn(usize) -> usize + Sync)) -> Self {
        let block = |values: &[f32]| {
            let largest = values.iter().fold(0f32, |a, x| a.max(x.abs()));
            let scale = f16::from_f32(largest / 127.0);
            let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
            let mut codes = [0; BLOCK];
            for (code, x) in codes.iter_mut().zip(values) {
                *code = ((x * inverse).round().clamp(-127.0, 127.0) as i8 as u8) ^ 0x80;
            }
            Block { codes, scale, min: f16::ZERO }
        };
        let at = |row: usize, b: usize| block(&values[order(row) * inputs + b * BLOCK..][..BLOCK]);
        Weight { outputs, inputs, packed: Packed::Quantised(fill(Layout::Bytes, (outputs, inputs / BLOCK), at)) }
    }

    /// Rows of the matrix: width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix: width of the input.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether products take the input as bytes ([`panel`](super::panel)) rather than floats.
    pub fn takes_bytes(&self) -> bool {
        matches!(self.packed, Packed::Quantised(_))
    }

    /// Tiles of sixteen outputs; the last may be partly empty.
    pub(super) fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    /// One row as f32: an embedding, or what tests compare with.
    ///
    /// # Panics
    /// When there is no such row or `out` is not `inputs` long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.outputs && out.len() == self.inputs, "row {index} of {} by {}", self.outputs, self.inputs);
        let (tile, lane) = (index / TILE, index % TILE);
        let column = tile * self.inputs..(tile + 1) * self.inputs;
        match &self.packed {
            Packed::F32(values) => out.iter_mut().zip(&values[column]).for_each(|(out, x)| *out = x[lane]),
            Packed::F16(values) => out.iter_mut().zip(&values[column]).for_each(|(out, x)| *out = x[lane].to_f32()),
            Packed::Bf16(values) => out.iter_mut().zip(&values[column]).for_each(|(out, x)| *out = x[lane].to_f32()),
            Packed::Quantised(quantised) => {
                let blocks = self.inputs / BLOCK;
                for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    quantised.block(tile * blocks + b, lane, out);
                }
            }
        }
    }
}

impl Quantised {
    fn block(&self, at: usize, lane: usize, out: &mut [f32]) {
        let lines = &self.lines[at * self.layout.lines()..][..self.layout.lines()];
        let scale = widened(self.scales[at][lane]);
        let min = self.mins.get(at).map_or(0.0, |mins| widened(mins[lane]));
        for (i, out) in out.iter_mut().enumerate() {
            let byte = |i: usize| lines[i / 4].0[lane * 4 + i % 4];
            *out = match self.layout {
                Layout::Bytes => scale * (f32::from(byte(i)) - 128.0),
                layout => {
                    let code = if i < 16 { byte(i) & 15 } else { byte(i - 16) >> 4 };
                    if layout == Layout::Nibbles { scale * (f32::from(code) - 8.0) } else { scale * f32::from(code) + min }
                }
            };
        }
    }
}

/// Packs a format that is kept as it is.
pub(super) fn pack<F: Format>(source: Source<'_>) -> Quantised {
    let blocks = source.inputs / BLOCK;
    let at = |row: usize, b: usize| F::read(&source.bytes[((source.order)(row) * blocks + b) * F::BYTES..][..F::BYTES]);
    fill(F::LAYOUT, (source.outputs, blocks), at)
}

/// Tiles of the blocks that `at` gives for (row, block).
fn fill(layout: Layout, (outputs, blocks): (usize, usize), at: impl Fn(usize, usize) -> Block) -> Quantised {
    let (tiles, per) = (outputs.div_ceil(TILE), layout.lines());
    let mut lines = Vec::with_capacity(tiles * blocks * per);
    let mut scales = Vec::with_capacity(tiles * blocks);
    let mut mins = Vec::with_capacity(if layout == Layout::NibblesMin { tiles * blocks } else { 0 });
    for tile in 0..tiles {
        for b in 0..blocks {
            let mut codes = [Line([if layout == Layout::Bytes { 128 } else { 0 }; 64]); 8];
            let (mut scale, mut min) = ([f16::ZERO; TILE], [f16::ZERO; TILE]);
            for lane in 0..TILE.min(outputs - tile * TILE) {
                let block = at(tile * TILE + lane, b);
                for (line, four) in codes[..per].iter_mut().zip(block.codes.as_chunks::<4>().0) {
                    line.0[lane * 4..lane * 4 + 4].copy_from_slice(four);
                }
                (scale[lane], min[lane]) = (block.scale, block.min);
            }
            lines.extend_from_slice(&codes[..per]);
            scales.push(scale);
            if layout == Layout::NibblesMin {
                mins.push(min);
            }
        }
    }
    Quantised { layout, lines: Buffer::keep(&lines), scales: Buffer::keep(&scales), mins: Buffer::keep(&mins) }
}

/// Tiles of the floats of a file.
fn floats<T: Copy + Default, const N: usize>(source: Source<'_>, read: impl Fn([u8; N]) -> T) -> Buffer<[T; TILE]>
where
    [T; TILE]: Plain,
{
    let (values, _) = source.bytes.as_chunks::<N>();
    let row = |row: usize| &values[(source.order)(row) * source.inputs..][..source.inputs];
    rows_of(row, (source.outputs, source.inputs), read)
}

/// Tiles of floats: for each tile and input, sixteen rows.
fn rows_of<'a, S: Copy + 'a, T: Copy + Default>(
    row_of: impl Fn(usize) -> &'a [S],
    (outputs, inputs): (usize, usize),
    read: impl Fn(S) -> T,
) -> Buffer<[T; TILE]>
where
    [T; TILE]: Plain,
{
    let mut packed = vec![[T::default(); TILE]; outputs.div_ceil(TILE) * inputs];
    for row in 0..outputs {
        for (packed, value) in packed[row / TILE * inputs..].iter_mut().zip(row_of(row)) {
            packed[row % TILE] = read(*value);
        }
    }
    Buffer::keep(&packed)
}
