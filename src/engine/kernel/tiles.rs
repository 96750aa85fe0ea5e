//! Weights for serving, repacked once from the bytes of a model file: tiles of sixteen rows (outputs), so that one register holds the same
//! four inputs of sixteen outputs. Along a row the weights lie in blocks of 32 that share a scale, in file order.
//!
//! | layout | weight | from |
//! |---|---|---|
//! | nibbles | scale · (code − 8) | Q4_0 |
//! | nibbles with minima | scale · code + min | Q4_1, Q4_K |
//! | bytes | scale · (code − 128) | Q5_0, Q8_0; Q2_K, Q3_K and Q6_K after rounding ([`formats`](super::formats) says how far off) |
//! | bytes with minima | scale · (code − 128) + min | Q5_1, Q5_K |
//! | floats | as in the file | F32, F16, BF16 |

use super::dots::BLOCK;
use super::formats::{self, Block, Format};
use super::huge::{Buffer, Plain};
use super::lanes::{LANES, widened};
use super::pool;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use std::ops::Range;

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
    /// 8 bits, from −128, with a minimum for each block.
    BytesMin,
}

impl Layout {
    /// Lines of a tile's block.
    pub(super) fn lines(self) -> usize {
        if self.is_bytes() { 8 } else { 4 }
    }

    fn is_bytes(self) -> bool {
        matches!(self, Layout::Bytes | Layout::BytesMin)
    }

    fn has_mins(self) -> bool {
        matches!(self, Layout::NibblesMin | Layout::BytesMin)
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
    /// Told from time to time which rows have been packed, so that a large matrix is not in memory twice.
    pub packed: &'a (dyn Fn(Range<usize>) + Sync),
}

/// Tiles that a thread fills before it says so.
const TOLD_TILES: usize = 128;

/// Packs one element type.
pub(super) type Packer = fn(Source<'_>) -> Quantised;

impl Weight {
    /// Packs a tensor of an element type whose rows are whole blocks of it; `None` where the type is not known.
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
        let row = |row: usize| &values[order(row) * inputs..][..inputs];
        Weight { outputs, inputs, packed: Packed::F32(rows_of(row, (outputs, inputs), |x| x, &|_| {})) }
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
                Layout::Bytes | Layout::BytesMin => scale * (f32::from(byte(i)) - 128.0) + min,
                layout => {
                    let code = if i < 16 { byte(i) & 15 } else { byte(i - 16) >> 4 };
                    if layout == Layout::Nibbles { scale * (f32::from(code) - 8.0) } else { scale * f32::from(code) + min }
                }
            };
        }
    }
}

/// Packs an element type.
pub(super) fn pack<F: Format>(source: Source<'_>) -> Quantised {
    let blocks = source.inputs / BLOCK;
    let at = |row: usize, b: usize| {
        let place = (source.order)(row) * (blocks / F::PARTS) + b / F::PARTS;
        F::read(&source.bytes[place * F::BYTES..][..F::BYTES], b % F::PARTS)
    };
    fill(F::LAYOUT, (source.outputs, blocks), at, source.packed)
}

/// Some tiles that one thread fills.
struct Part<'a> {
    /// The first one.
    tile: usize,
    lines: &'a mut [Line],
    scales: &'a mut [[f16; TILE]],
    /// Empty where the layout has none.
    mins: &'a mut [[f16; TILE]],
}

/// Tiles of the blocks that `at` gives for (row, block), by the threads of the current pool.
fn fill(
    layout: Layout,
    (outputs, blocks): (usize, usize),
    at: impl Fn(usize, usize) -> Block + Sync,
    packed: &(dyn Fn(Range<usize>) + Sync),
) -> Quantised {
    let (tiles, per) = (outputs.div_ceil(TILE), layout.lines());
    let mut lines = Buffer::shared(tiles * blocks * per);
    let mut scales = Buffer::shared(tiles * blocks);
    let mut mins = Buffer::shared(if layout.has_mins() { tiles * blocks } else { 0 });
    let mut all_mins = mins.chunks_mut(TOLD_TILES * blocks);
    let both = lines.chunks_mut(TOLD_TILES * blocks * per).zip(scales.chunks_mut(TOLD_TILES * blocks));
    let part = |(i, (lines, scales))| Part { tile: i * TOLD_TILES, lines, scales, mins: all_mins.next().unwrap_or_default() };
    let mut parts: Vec<Part<'_>> = both.enumerate().map(part).collect();
    pool::chunks(&mut parts, 1, usize::MAX, |_, parts| {
        for part in parts {
            fill_part(layout, (outputs, blocks), part, &at);
            packed(part.tile * TILE..outputs.min((part.tile + TOLD_TILES) * TILE));
        }
    });
    drop(parts);
    Quantised { layout, lines, scales, mins }
}

fn fill_part(layout: Layout, (outputs, blocks): (usize, usize), part: &mut Part<'_>, at: &impl Fn(usize, usize) -> Block) {
    let per = layout.lines();
    // Zero in each layout, for the rows past the last one; their scales are zero as well.
    let empty = Line([if layout.is_bytes() { 128 } else { 0 }; 64]);
    for (i, (codes, scale)) in part.lines.chunks_exact_mut(per).zip(part.scales.iter_mut()).enumerate() {
        let first = (part.tile + i / blocks) * TILE;
        let mut min = [f16::ZERO; TILE];
        codes.fill(empty);
        for lane in 0..TILE.min(outputs - first) {
            let block = at(first + lane, i % blocks);
            for (line, four) in codes.iter_mut().zip(block.codes.as_chunks::<4>().0) {
                line.0[lane * 4..lane * 4 + 4].copy_from_slice(four);
            }
            (scale[lane], min[lane]) = (block.scale, block.min);
        }
        if let Some(mins) = part.mins.get_mut(i) {
            *mins = min;
        }
    }
}

/// Tiles of the floats of a file.
fn floats<T: Copy + Default, const N: usize>(source: Source<'_>, read: impl Fn([u8; N]) -> T) -> Buffer<[T; TILE]>
where
    [T; TILE]: Plain,
{
    let (values, _) = source.bytes.as_chunks::<N>();
    let row = |row: usize| &values[(source.order)(row) * source.inputs..][..source.inputs];
    rows_of(row, (source.outputs, source.inputs), read, source.packed)
}

/// Tiles of floats: for each tile and input, sixteen rows.
fn rows_of<'a, S: Copy + 'a, T: Copy + Default>(
    row_of: impl Fn(usize) -> &'a [S],
    (outputs, inputs): (usize, usize),
    read: impl Fn(S) -> T,
    done: &(dyn Fn(Range<usize>) + Sync),
) -> Buffer<[T; TILE]>
where
    [T; TILE]: Plain,
{
    let mut packed = Buffer::<[T; TILE]>::shared(outputs.div_ceil(TILE) * inputs);
    for (tile, values) in packed.chunks_exact_mut(inputs).enumerate() {
        for row in tile * TILE..outputs.min((tile + 1) * TILE) {
            for (packed, value) in values.iter_mut().zip(row_of(row)) {
                packed[row % TILE] = read(*value);
            }
        }
        if (tile + 1) % TOLD_TILES == 0 {
            done((tile + 1 - TOLD_TILES) * TILE..(tile + 1) * TILE);
        }
    }
    packed
}
