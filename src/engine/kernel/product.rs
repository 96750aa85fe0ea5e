//! Products with packed weights: y = x Wᵀ for rows of activations, several weights side by side (q, k and v; gate and up) in one go.
//! With few rows, threads share the tiles of sixteen outputs, so that each weight is read by one of them. A row's sums run over its blocks in order,
//! whatever other rows there are.
#![expect(unsafe_code, reason = "threads write disjoint columns of the same rows")]

use super::dots::{BLOCK, Dots};
use super::fetch::Fetch;
use super::isa::{Isa, compiled};
use super::lanes::Lanes;
use super::low_rank::{LAYERS, Shape};
use super::panel::{Panel, Panels, ROWS};
use super::pool::{self, Meeting};
use super::shared::Shared;
use super::tiles::{Layout, Line, Packed, Quantised, TILE, Weight};
use super::updates::{Share, Task, Updates};
use half::{bf16, f16};
use std::ops::Range;

/// Panels that are multiplied with a tile before the next tile: their activations stay in the second-level cache.
const GROUP: usize = 16;

/// Blocks between the one that is computed and the one that is fetched.
const AHEAD: usize = 12;
/// Panels for each thread from which on rows are shared out rather than outputs.
const MANY: usize = 4;

/// Rows of activations in both of their forms; the bytes are there if any of the weights takes them.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// (rows, inputs)
    pub floats: &'a [f32],
    /// The same, rounded.
    pub bytes: &'a Panels,
}

/// What happens to what stands in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is replaced.
    Set,
    /// The product is added.
    Add,
}

/// Writes x Wᵀ for each of the weights into `y` (rows, sum of the weights' outputs), side by side in their order.
///
/// # Panics
/// When lengths do not fit: a programming error.
pub fn product(y: &mut [f32], x: Input<'_>, weights: &[&Weight], write: Write) {
    by(Isa::best(), y, x, (weights, write), None);
}

/// As [`product`], and adds each adapter's update to its rows, after the product itself. `scratch` is kept from call to call.
///
/// # Panics
/// As [`product`], and when an adapter was packed for weights of other shapes.
pub fn product_adapted(y: &mut [f32], x: Input<'_>, (weights, write): (&[&Weight], Write), updates: Updates<'_>, scratch: &mut Vec<f32>) {
    by(Isa::best(), y, x, (weights, write), Some((updates, scratch)));
}

/// The shape of up to three weights side by side.
///
/// # Panics
/// When there are more: a programming error.
pub fn shape(weights: &[&Weight]) -> Shape {
    let mut shape = Shape { inputs: weights[0].inputs(), outputs: [0; LAYERS] };
    for (i, weight) in weights.iter().enumerate() {
        shape.outputs[i] = weight.outputs();
    }
    shape
}

type Adapters<'a> = Option<(Updates<'a>, &'a mut Vec<f32>)>;

fn by<'a>(isa: Isa, y: &'a mut [f32], x: Input<'a>, (weights, write): (&[&Weight], Write), adapters: Adapters<'a>) {
    let width: usize = weights.iter().map(|weight| weight.outputs()).sum();
    let (rows, inputs) = (y.len() / width, weights[0].inputs());
    assert!(y.len() == rows * width && x.floats.len() == rows * inputs && weights.iter().all(|w| w.inputs() == inputs));
    let tiles: usize = weights.iter().map(|weight| weight.tiles()).sum();
    let panels = rows.div_ceil(ROWS);
    let y = Shared::new(y);
    let target = Target { y, width, column: 0, first: 0, rows, write };
    let task = adapters.and_then(|(updates, scratch)| Task::new(y, shape(weights), x.floats, updates, scratch));
    // Many rows are shared out by rows: each thread then finds in its own cache what it wrote before.
    if panels >= MANY * pool::threads() {
        pool::ranges(panels, usize::MAX, |panels| {
            let (first, end) = (panels.start * ROWS, rows.min(panels.end * ROWS));
            let target = Target { first, rows: end - first, ..target };
            side_by_side(isa, x, (weights, 0..tiles), target, &mut Fetch::new());
            if let Some(task) = &task {
                task.both(isa, first..end);
            }
        });
        return;
    }
    let Some(task) = &task else {
        return pool::helped(tiles, |own| side_by_side(isa, x, (weights, own), target, &mut Fetch::new()));
    };
    let (blocks, meeting) = (inputs / BLOCK * panels, Meeting::default());
    pool::ranges(tiles, usize::MAX, |own| {
        let (share, mut fetch) = (Share { part: own.clone(), of: tiles }, Fetch::new());
        meeting.after(own.len(), || task.down(isa, &share));
        task.ask(&mut fetch, &share);
        side_by_side(isa, x, (weights, own.clone()), target, &mut fetch.over(own.len() * blocks));
        meeting.wait(tiles);
        // Tiles are the sixteens of outputs that the thread has just written.
        task.up(isa, own);
    });
}

/// The tiles of a range, counted through all weights.
fn side_by_side(isa: Isa, x: Input<'_>, (weights, range): (&[&Weight], Range<usize>), mut target: Target<'_>, fetch: &mut Fetch) {
    let mut tile = 0;
    for weight in weights {
        let own = range.start.max(tile) - tile..range.end.min(tile + weight.tiles()).max(tile) - tile;
        if !own.is_empty() {
            one(isa, x, (weight, Part { tiles: own, outputs: weight.outputs() }), target, fetch);
        }
        tile += weight.tiles();
        target.column += weight.outputs();
    }
}

fn one(isa: Isa, x: Input<'_>, (weight, part): (&Weight, Part), target: Target<'_>, fetch: &mut Fetch) {
    let inputs = weight.inputs();
    let floats = &x.floats[target.first * inputs..(target.first + target.rows) * inputs];
    match &weight.packed {
        Packed::Quantised(quantised) => {
            let blocks = inputs / BLOCK;
            assert!(x.bytes.blocks == blocks && x.bytes.rows >= target.first + target.rows, "activations of another shape");
            let panels = target.first / ROWS * blocks..(target.first + target.rows).div_ceil(ROWS) * blocks;
            bytes(isa, quantised, &x.bytes.panels[panels], part, target, fetch);
        }
        Packed::F32(values) => f32s(isa, values, floats, part, target),
        Packed::F16(values) => f16s(isa, values, floats, part, target),
        Packed::Bf16(values) => bf16s(isa, values, floats, part, target),
    }
}

/// The tiles of a weight that one thread works on.
struct Part {
    tiles: Range<usize>,
    /// Of the whole weight.
    outputs: usize,
}

/// Where the outputs of a weight go: `rows` rows of `width`, from row `first` and `column` on.
#[derive(Clone, Copy)]
struct Target<'a> {
    y: Shared<'a, f32>,
    width: usize,
    column: usize,
    first: usize,
    rows: usize,
    write: Write,
}

impl Target<'_> {
    /// Writes the outputs of a tile for one row; `outputs` is the width of the weight.
    #[inline(always)]
    fn put<L: Lanes>(&self, row: usize, tile: usize, outputs: usize, sums: L) {
        let first = tile * TILE;
        let count = TILE.min(outputs - first);
        // SAFETY: each (row, tile) of a weight is written by the one thread that has the tile, or the row.
        let out = unsafe { self.y.part((self.first + row) * self.width + self.column + first, count) };
        if let Some(out) = out.as_mut_array::<TILE>() {
            let sums = if self.write == Write::Add { L::load(out).plus(sums) } else { sums };
            sums.store(out);
            return;
        }
        let mut all = [0f32; TILE];
        sums.store(&mut all);
        for (out, sum) in out.iter_mut().zip(all) {
            *out = if self.write == Write::Add { *out + sum } else { sum };
        }
    }
}

compiled! {
    fn bytes(weight: &Quantised, panels: &[Panel], part: Part, target: Target<'_>, fetch: &mut Fetch) = bytes_body
}

#[inline(always)]
fn bytes_body<D: Dots>(weight: &Quantised, panels: &[Panel], part: Part, target: Target<'_>, fetch: &mut Fetch) {
    match weight.layout {
        Layout::Nibbles => tiles_body::<D, Nibbles>(weight, panels, part, target, fetch),
        Layout::NibblesMin => tiles_body::<D, NibblesMin>(weight, panels, part, target, fetch),
        Layout::Bytes => tiles_body::<D, Bytes<false>>(weight, panels, part, target, fetch),
        Layout::BytesMin => tiles_body::<D, Bytes<true>>(weight, panels, part, target, fetch),
    }
}

#[inline(always)]
fn tiles_body<D: Dots, K: Kind>(weight: &Quantised, panels: &[Panel], part: Part, target: Target<'_>, fetch: &mut Fetch) {
    let blocks = panels.len() / target.rows.div_ceil(ROWS);
    for (group, panels) in panels.chunks(GROUP * blocks).enumerate() {
        for tile in part.tiles.clone() {
            let tile_of = |per: usize| tile * blocks * per..(tile + 1) * blocks * per;
            let lines = &weight.lines[tile_of(K::LINES)];
            let scales = &weight.scales[tile_of(1)];
            let mins = if K::MINS { &weight.mins[tile_of(1)] } else { scales };
            for (i, panels) in panels.chunks_exact(blocks).enumerate() {
                let row = (group * GROUP + i) * ROWS;
                let to = To { target, row, tile, outputs: part.outputs };
                let weights = Row { lines, scales, mins };
                match target.rows - row {
                    1 => rows_body::<D, K, 1>(weights, panels, to, fetch),
                    2 => rows_body::<D, K, 2>(weights, panels, to, fetch),
                    3 => rows_body::<D, K, 3>(weights, panels, to, fetch),
                    4 => rows_body::<D, K, 4>(weights, panels, to, fetch),
                    5 | 6 => rows_body::<D, K, 6>(weights, panels, to, fetch),
                    _ => rows_body::<D, K, 8>(weights, panels, to, fetch),
                }
            }
        }
    }
}

/// One tile of weights: sixteen outputs, all blocks.
#[derive(Clone, Copy)]
struct Row<'a> {
    lines: &'a [Line],
    scales: &'a [[f16; TILE]],
    mins: &'a [[f16; TILE]],
}

/// Where the sums of a tile and up to eight rows go.
#[derive(Clone, Copy)]
struct To<'a> {
    target: Target<'a>,
    row: usize,
    tile: usize,
    outputs: usize,
}

/// A layout of codes, at compile time.
trait Kind {
    const LINES: usize;
    const MINS: bool;

    /// Sums of codes (less their offset) times activations of one block, for `M` rows.
    fn sums<D: Dots, const M: usize>(lines: &[Line], panel: &Panel) -> [D::Ints; M];
}

/// Four activations of a row.
#[inline(always)]
fn four(row: &[i8; BLOCK], at: usize) -> &[i8; 4] {
    &row.as_chunks::<4>().0[at]
}

#[inline(always)]
fn nibble_sums<D: Dots, const M: usize>(lines: &[Line], panel: &Panel, offset: i32) -> [D::Ints; M] {
    let mut narrow = [D::narrow(); M];
    let lines = lines.as_array::<4>().expect("a block of nibbles has four lines");
    let mut g = 0;
    while g < 4 {
        let [low, high] = D::nibbles(&lines[g].0);
        let mut r = 0;
        while r < M {
            narrow[r] = D::plus_nibbles(narrow[r], low, four(&panel.bytes[r], g));
            narrow[r] = D::plus_nibbles(narrow[r], high, four(&panel.bytes[r], g + 4));
            r += 1;
        }
        g += 1;
    }
    let mut sums = [D::ints(0); M];
    let mut r = 0;
    while r < M {
        sums[r] = D::wide(D::ints(offset * panel.sums[r]), narrow[r]);
        r += 1;
    }
    sums
}

struct Nibbles;

impl Kind for Nibbles {
    const LINES: usize = 4;
    const MINS: bool = false;
    #[inline(always)]
    fn sums<D: Dots, const M: usize>(lines: &[Line], panel: &Panel) -> [D::Ints; M] {
        nibble_sums::<D, M>(lines, panel, -8)
    }
}

struct NibblesMin;

impl Kind for NibblesMin {
    const LINES: usize = 4;
    const MINS: bool = true;
    #[inline(always)]
    fn sums<D: Dots, const M: usize>(lines: &[Line], panel: &Panel) -> [D::Ints; M] {
        nibble_sums::<D, M>(lines, panel, 0)
    }
}

struct Bytes<const WITH_MINS: bool>;

impl<const WITH_MINS: bool> Kind for Bytes<WITH_MINS> {
    const LINES: usize = 8;
    const MINS: bool = WITH_MINS;
    #[inline(always)]
    fn sums<D: Dots, const M: usize>(lines: &[Line], panel: &Panel) -> [D::Ints; M] {
        let lines = lines.as_array::<8>().expect("a block of bytes has eight lines");
        let mut sums = [D::ints(0); M];
        let mut r = 0;
        while r < M {
            sums[r] = D::ints(-D::BYTE_OFFSET * panel.sums[r]);
            r += 1;
        }
        let mut g = 0;
        while g < 8 {
            let line = D::bytes(&lines[g].0);
            let mut r = 0;
            while r < M {
                sums[r] = D::plus_bytes(sums[r], line, four(&panel.bytes[r], g));
                r += 1;
            }
            g += 1;
        }
        sums
    }
}

/// One tile with `M` rows of one panel's height.
#[inline(always)]
fn rows_body<D: Dots, K: Kind, const M: usize>(weights: Row<'_>, panels: &[Panel], to: To<'_>, fetch: &mut Fetch) {
    let mut totals = [D::Floats::splat(0.0); M];
    // By index: zipped iterators were seen to become calls without the instruction set, one a block.
    let count = panels.len();
    assert!(weights.lines.len() == count * K::LINES && weights.scales.len() == count && weights.mins.len() == count);
    let mut b = 0;
    while b < count {
        let lines = &weights.lines[b * K::LINES..(b + 1) * K::LINES];
        let (scales, mins, panel) = (&weights.scales[b], &weights.mins[b], &panels[b]);
        b += 1;
        // The weights come from memory when there are few rows, and the processor's own guesses end at every page.
        D::prefetch(lines, AHEAD * K::LINES);
        D::prefetch(std::slice::from_ref(scales), AHEAD);
        if K::MINS {
            D::prefetch(std::slice::from_ref(mins), AHEAD);
        }
        fetch.some::<D>();
        let sums = K::sums::<D, M>(lines, panel);
        let scale = D::Floats::load_f16(scales);
        let min = if K::MINS { D::Floats::load_f16(mins) } else { scale };
        let mut r = 0;
        while r < M {
            let scale = scale.times(D::Floats::splat(panel.scales[r]));
            totals[r] = totals[r].plus_product(scale, D::floats(sums[r]));
            if K::MINS {
                totals[r] = totals[r].plus_product(min, D::Floats::splat(panel.totals[r]));
            }
            r += 1;
        }
    }
    let mut r = 0;
    while r < M {
        if to.row + r < to.target.rows {
            to.target.put(to.row + r, to.tile, to.outputs, totals[r]);
        }
        r += 1;
    }
}

/// Weights that are kept as floats.
trait Float: Copy {
    fn load<L: Lanes>(x: &[Self; TILE]) -> L;
}

impl Float for f32 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[f32; TILE]) -> L {
        L::load(x)
    }
}

impl Float for f16 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[f16; TILE]) -> L {
        L::load_f16(x)
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(x: &[bf16; TILE]) -> L {
        L::load_bf16(x)
    }
}

compiled! {
    fn f32s(weight: &[[f32; TILE]], x: &[f32], part: Part, target: Target<'_>) = f32s_body
}
compiled! {
    fn f16s(weight: &[[f16; TILE]], x: &[f32], part: Part, target: Target<'_>) = f16s_body
}
compiled! {
    fn bf16s(weight: &[[bf16; TILE]], x: &[f32], part: Part, target: Target<'_>) = bf16s_body
}

#[inline(always)]
fn f32s_body<D: Dots>(weight: &[[f32; TILE]], x: &[f32], part: Part, target: Target<'_>) {
    floats_body::<D::Floats, f32>(weight, x, part, target);
}

#[inline(always)]
fn f16s_body<D: Dots>(weight: &[[f16; TILE]], x: &[f32], part: Part, target: Target<'_>) {
    floats_body::<D::Floats, f16>(weight, x, part, target);
}

#[inline(always)]
fn bf16s_body<D: Dots>(weight: &[[bf16; TILE]], x: &[f32], part: Part, target: Target<'_>) {
    floats_body::<D::Floats, bf16>(weight, x, part, target);
}

#[inline(always)]
fn floats_body<L: Lanes, T: Float>(weight: &[[T; TILE]], x: &[f32], part: Part, target: Target<'_>) {
    let inputs = x.len() / target.rows;
    for (group, x) in x.chunks(GROUP * ROWS * inputs).enumerate() {
        for tile in part.tiles.clone() {
            let weight = &weight[tile * inputs..(tile + 1) * inputs];
            for (i, x) in x.chunks(ROWS * inputs).enumerate() {
                let to = To { target, row: (group * GROUP + i) * ROWS, tile, outputs: part.outputs };
                if x.len() == ROWS * inputs {
                    float_rows::<L, T, ROWS>(weight, x, to);
                } else {
                    for (r, x) in x.chunks_exact(inputs).enumerate() {
                        float_rows::<L, T, 1>(weight, x, To { row: to.row + r, ..to });
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn float_rows<L: Lanes, T: Float, const M: usize>(weight: &[[T; TILE]], x: &[f32], to: To<'_>) {
    let inputs = weight.len();
    let mut sums = [L::splat(0.0); M];
    for (i, w) in weight.iter().enumerate() {
        let w: L = T::load(w);
        let mut r = 0;
        while r < M {
            sums[r] = sums[r].plus_product(w, L::splat(x[r * inputs + i]));
            r += 1;
        }
    }
    let mut r = 0;
    while r < M {
        to.target.put(to.row + r, to.tile, to.outputs, sums[r]);
        r += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernel::low_rank::{LowRank, Pair, Precision};
    use crate::engine::kernel::tiles::Source;
    use crate::engine::kernel::updates;
    use candle_core::quantized::GgmlDType;
    use proptest::prelude::*;

    /// Bytes of a tensor of any element type: finite scales, everything else as it comes.
    fn tensor(dtype: GgmlDType, elements: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = move || {
            // xorshift64: any fixed sequence will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let half = |x: u64| f16::from_f32((x % 2001) as f32 / 1000.0 - 1.0).to_le_bytes();
        // Bytes of a block and where its half floats are.
        let (block, halves): (usize, &[usize]) = match dtype {
            GgmlDType::Q4_0 => (18, &[0]),
            GgmlDType::Q4_1 => (20, &[0, 2]),
            GgmlDType::Q5_0 => (22, &[0]),
            GgmlDType::Q5_1 => (24, &[0, 2]),
            GgmlDType::Q8_0 => (34, &[0]),
            GgmlDType::Q2K => (84, &[80, 82]),
            GgmlDType::Q3K => (110, &[108]),
            GgmlDType::Q4K => (144, &[0, 2]),
            GgmlDType::Q5K => (176, &[0, 2]),
            GgmlDType::Q6K => (210, &[208]),
            GgmlDType::F32 => return (0..elements).flat_map(|_| ((random() % 2001) as f32 / 1000.0 - 1.0).to_le_bytes()).collect(),
            GgmlDType::F16 => return (0..elements).flat_map(|_| half(random())).collect(),
            GgmlDType::BF16 => {
                return (0..elements).flat_map(|_| bf16::from_f32((random() % 2001) as f32 / 1000.0 - 1.0).to_le_bytes()).collect();
            }
            other => panic!("{other:?} has no test data"),
        };
        let mut bytes = Vec::new();
        for _ in 0..elements / dtype.block_size() {
            let begin = bytes.len();
            bytes.extend((0..block).map(|_| random() as u8));
            for at in halves {
                bytes[begin + at..begin + at + 2].copy_from_slice(&half(random()));
            }
        }
        bytes
    }

    /// Every type that is packed, and how far a packed weight may be from the file's, in parts of its block's largest.
    const TYPES: [(GgmlDType, f32); 13] = [
        (GgmlDType::Q4_0, 0.0),
        (GgmlDType::Q4_1, 0.0),
        (GgmlDType::Q5_0, 0.0),
        (GgmlDType::Q5_1, 0.0),
        (GgmlDType::Q8_0, 0.0),
        (GgmlDType::Q2K, 0.0045),
        (GgmlDType::Q3K, 0.012),
        (GgmlDType::Q4K, 0.0008),
        (GgmlDType::Q5K, 0.0008),
        (GgmlDType::Q6K, 0.009),
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 0.0),
        (GgmlDType::BF16, 0.0),
    ];

    /// Blocks of 32 that are whole rows in every type.
    const SUPER: usize = 8;

    fn weight(dtype: GgmlDType, outputs: usize, inputs: usize) -> Weight {
        let bytes = tensor(dtype, outputs * inputs, (outputs * 31 + inputs) as u64);
        Weight::pack(dtype, Source { bytes: &bytes, outputs, inputs, order: &|row| row, packed: &|_| {} }).expect("packed")
    }

    fn activations(count: usize, seed: u64) -> Vec<f32> {
        (0..count).map(|i| ((i as u64 * 2_654_435_761 + seed * 97) % 4001) as f32 / 2000.0 - 1.0).collect()
    }

    /// What a product is made of: the floats, or the floats that the bytes stand for.
    fn seen(weight: &Weight, x: &[f32], panels: &Panels) -> Vec<f32> {
        let width = weight.inputs();
        let byte = |i: usize| {
            let (row, column) = (i / width, i % width);
            let panel = &panels.panels[row / ROWS * panels.blocks + column / BLOCK];
            panel.scales[row % ROWS] * f32::from(panel.bytes[row % ROWS][column % BLOCK])
        };
        if weight.takes_bytes() { (0..x.len()).map(byte).collect() } else { x.to_vec() }
    }

    #[test]
    fn packed_rows_are_candles_dequantised_rows() {
        for (dtype, off) in TYPES {
            let (outputs, inputs) = (21, 2 * SUPER * BLOCK);
            let bytes = tensor(dtype, outputs * inputs, (outputs * 31 + inputs) as u64);
            let candle =
                candle_core::quantized::ggml_file::qtensor_from_ggml(dtype, &bytes, vec![outputs, inputs], &candle_core::Device::Cpu);
            let plain: Vec<Vec<f32>> =
                candle.and_then(|t| t.dequantize(&candle_core::Device::Cpu)).and_then(|t| t.to_vec2()).expect("rows");
            let weight = weight(dtype, outputs, inputs);
            let mut row = vec![0.0; inputs];
            for (i, plain) in plain.iter().enumerate() {
                weight.row(i, &mut row);
                for (row, plain) in row.chunks(BLOCK).zip(plain.chunks(BLOCK)) {
                    let largest = plain.iter().fold(0f32, |a, x| a.max(x.abs()));
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()) + off * largest;
                    assert!(row.iter().zip(plain).all(near), "{dtype:?} row {i}: {row:?} for {plain:?}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn every_kernel_gives_the_plain_product(rows in 1usize..20, outputs in 1usize..50, blocks in 1usize..5, seed in 0u64..1000) {
            for (dtype, _) in TYPES {
                let inputs = blocks * dtype.block_size().max(BLOCK);
                let x = activations(rows * inputs, seed);
                let mut panels = Panels::default();
                panels.fill(&x, inputs);
                let (weight, second) = (weight(dtype, outputs, inputs), weight(dtype, 7, inputs));
                let width = outputs + 7;
                let seen = seen(&weight, &x, &panels);
                let mut row = vec![0.0; inputs];
                let (mut expected, mut largest) = (vec![0f64; rows * width], vec![0f64; width]);
                for o in 0..width {
                    if o < outputs { weight.row(o, &mut row) } else { second.row(o - outputs, &mut row) }
                    largest[o] = row.iter().fold(0.0, |a, x| f64::from(x.abs()).max(a));
                    for r in 0..rows {
                        expected[r * width + o] = (0..inputs).map(|i| f64::from(seen[r * inputs + i]) * f64::from(row[i])).sum();
                    }
                }
                for isa in Isa::available() {
                    let mut y = vec![1.0; rows * width];
                    let input = Input { floats: &x, bytes: &panels };
                    by(isa, &mut y, input, (&[&weight, &second], Write::Add), None);
                    for (i, (y, expected)) in y.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*y) - 1.0 - expected).abs();
                        // Sums of f32: the error is one of their terms, which may be large and cancel.
                        let terms: f64 = largest[i % width] * inputs as f64;
                        prop_assert!(error < 2e-4 * (1.0 + expected.abs()) + 2e-6 * terms, "{dtype:?} {isa:?} at {i}: {y} against 1 + {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others_and_with_any_number_of_threads() {
        let (rows, outputs, inputs) = (131, 40, SUPER * BLOCK);
        let x = activations(rows * inputs, 5);
        for (dtype, _) in TYPES {
            let weight = weight(dtype, outputs, inputs);
            let all = |x: &[f32]| {
                let mut panels = Panels::default();
                panels.fill(x, inputs);
                let mut y = vec![0.0; x.len() / inputs * outputs];
                product(&mut y, Input { floats: x, bytes: &panels }, &[&weight], Write::Set);
                y
            };
            let together = pool::Pool::new(3).expect("a pool").install(|| all(&x));
            for count in [1, 2, 3, 5, 8, 13] {
                for first in [0, 4, 8, 112] {
                    let part = all(&x[first * inputs..(first + count) * inputs]);
                    assert_eq!(part, together[first * outputs..(first + count) * outputs], "{dtype:?}: rows {first} and {count} more");
                }
            }
        }
    }

    #[test]
    fn a_product_with_adapters_is_the_product_and_then_their_updates() {
        let shape = Shape { inputs: SUPER * BLOCK, outputs: [40, 24, 0] };
        let made = |rank: usize, seed: u64| {
            let halves = |i: usize| (activations(rank * shape.inputs, seed), activations(shape.outputs[i] * rank, seed + 1));
            let [(a, b), (c, d)] = [halves(0), halves(1)];
            let mut packed = LowRank::with_room(shape.lines([rank, rank, 0]), Precision::Half);
            packed.push(shape, [Some(Pair { a: &a, b: &b, scale: 0.1 }), Some(Pair { a: &c, b: &d, scale: 0.2 }), None]);
            packed
        };
        let (one, other) = (made(8, 3), made(5, 8));
        for (dtype, _) in [TYPES[1], TYPES[10]] {
            let weights = [weight(dtype, 40, shape.inputs), weight(dtype, 24, shape.inputs)];
            let weights = weights.each_ref();
            for rows in [1, 2, 7, 9, 70, 131] {
                let x = activations(rows * shape.inputs, 5);
                let mut panels = Panels::default();
                panels.fill(&x, shape.inputs);
                let input = Input { floats: &x, bytes: &panels };
                let adapted = [(0..rows / 2, &one), (rows / 2..rows, &other)];
                let updates = Updates { adapted: &adapted, group: 0, first: 0 };
                let mut expected = vec![1.0; rows * 64];
                product(&mut expected, input, &weights, Write::Add);
                let plain = expected.clone();
                updates::add(&mut expected, shape, &x, updates, &mut Vec::new());
                assert!(expected.iter().zip(&plain).all(|(y, plain)| y != plain), "no update");
                for threads in [1, 2, 3] {
                    let mut y = vec![1.0; rows * 64];
                    let run = || product_adapted(&mut y, input, (&weights, Write::Add), updates, &mut Vec::new());
                    pool::Pool::new(threads).expect("a pool").install(run);
                    assert_eq!(y, expected, "{dtype:?}, {rows} rows, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn rows_are_packed_in_the_order_that_is_asked_for() {
        let values = activations(3 * 64, 9);
        let weight = Weight::exact(&values, (3, 64), &|row| 2 - row);
        let mut row = vec![0.0; 64];
        for i in 0..3 {
            weight.row(i, &mut row);
            assert_eq!(row, values[(2 - i) * 64..][..64]);
        }
    }
}
