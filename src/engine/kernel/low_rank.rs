//! Adapters in memory at serving: the low-rank pairs of linear layers, packed in the order in which [updates](super::updates) read them,
//! each adapter in one piece. bfloat16 halves what there is to read, which is what decoding with many adapters is bound by.

use super::bf16::Line;
use super::huge::Buffer;
use super::lanes::LANES;
use half::bf16;
use std::ops::Range;

/// Linear layers that are computed side by side, at most.
pub const LAYERS: usize = 3;

/// Inputs of a line.
pub(super) const INPUTS: usize = 2 * LANES;

/// Ranks of the down half that are computed together, at most.
pub(super) const GROUP: usize = 8;

/// How adapters are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bfloat16: half the memory.
    #[default]
    Half,
    /// f32, as trained.
    Full,
}

impl Precision {
    /// Bytes of a line of two by sixteen values.
    fn line_bytes(self) -> usize {
        match self {
            Precision::Half => size_of::<Line>(),
            Precision::Full => size_of::<[[f32; LANES]; 2]>(),
        }
    }
}

/// Widths of linear layers with the same input, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Width of the input.
    pub inputs: usize,
    /// Width of each layer's output; 0 where there are fewer layers.
    pub outputs: [usize; LAYERS],
}

impl Shape {
    pub(super) fn width(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// Sixteens of outputs of all layers; each layer begins a new one.
    pub(super) fn chunks(&self) -> usize {
        self.outputs.iter().map(|outputs| outputs.div_ceil(LANES)).sum()
    }

    /// Lines of the values of an adapter with these ranks.
    pub fn lines(&self, ranks: [usize; LAYERS]) -> usize {
        let up = |i: usize| self.outputs[i].div_ceil(LANES) * ranks[i].div_ceil(2);
        ranks.iter().sum::<usize>() * self.inputs.div_ceil(INPUTS) + (0..LAYERS).map(up).sum::<usize>()
    }
}

/// The pair of one adapted layer.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// Down projection (rank, inputs).
    pub a: &'a [f32],
    /// Up projection (outputs, rank).
    pub b: &'a [f32],
    /// Factor on the update.
    pub scale: f32,
}

/// The values of an adapter, in lines of two by sixteen.
#[derive(Debug)]
enum Values {
    Half(Buffer<Line>),
    Full(Buffer<[[f32; LANES]; 2]>),
}

/// The values of one group of layers.
#[derive(Clone, Copy)]
pub(super) enum Lines<'a> {
    Half(&'a [Line]),
    Full(&'a [[[f32; LANES]; 2]]),
}

impl Lines<'_> {
    /// Where some of the lines are in memory.
    pub(super) fn addresses(&self, lines: Range<usize>) -> Range<usize> {
        let (start, size) = match self {
            Lines::Half(all) => (all.as_ptr().addr(), Precision::Half.line_bytes()),
            Lines::Full(all) => (all.as_ptr().addr(), Precision::Full.line_bytes()),
        };
        start + lines.start * size..start + lines.end * size
    }
}

/// An adapter, packed: for each group of layers that are computed side by side (q, k and v; o; gate and up; down), in the order of use,
/// its values in the order they are read in.
#[derive(Debug)]
pub struct LowRank {
    values: Values,
    filled: usize,
    pub(super) groups: Vec<Group>,
}

/// Where the values of a group of layers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// Its first line.
    pub(super) start: usize,
    pub(super) shape: Shape,
    /// 0 where a layer is not adapted.
    pub(super) ranks: [usize; LAYERS],
}

impl Group {
    /// All ranks together.
    pub(super) fn rank(&self) -> usize {
        let mut i = 0;
        let mut rank = 0;
        while i < LAYERS {
            rank += self.ranks[i];
            i += 1;
        }
        rank
    }

    /// Lines of all down projections: for each eight ranks (or the rest in powers of two), for each 32 inputs, a line of each rank.
    pub(super) fn down(&self) -> usize {
        self.rank() * self.shape.inputs.div_ceil(INPUTS)
    }
}

/// Ranks that are computed together: eights, and the rest in powers of two.
#[inline(always)]
pub(super) fn together(rank: usize, of: usize) -> usize {
    let left = of - rank;
    if left >= GROUP { GROUP } else { 1 << left.ilog2() }
}

/// How many such groups there are.
#[inline(always)]
pub(super) fn groups(rank: usize) -> usize {
    rank / GROUP + (rank % GROUP).count_ones() as usize
}

impl LowRank {
    /// An adapter without values yet, with room for as many lines.
    pub fn with_room(lines: usize, precision: Precision) -> Self {
        let values = match precision {
            Precision::Half => Values::Half(Buffer::alone(lines)),
            Precision::Full => Values::Full(Buffer::alone(lines)),
        };
        LowRank { values, filled: 0, groups: Vec::new() }
    }

    /// Packs the next group of layers, in the order of use.
    ///
    /// # Panics
    /// When a pair is not of the shape, or there is no room: programming errors.
    pub fn push(&mut self, shape: Shape, pairs: [Option<Pair<'_>>; LAYERS]) {
        let ranks = pairs.map(|pair| pair.map_or(0, |pair| pair.a.len() / shape.inputs));
        self.groups.push(Group { start: self.filled, shape, ranks });
        let rows: Vec<&[f32]> = pairs.iter().flatten().flat_map(|pair| pair.a.chunks_exact(shape.inputs)).collect();
        let mut rank = 0;
        while rank < rows.len() {
            let together = together(rank, rows.len());
            for start in (0..shape.inputs).step_by(INPUTS) {
                for row in &rows[rank..rank + together] {
                    let mut line = [[0f32; LANES]; 2];
                    let part = &row[start..(start + INPUTS).min(shape.inputs)];
                    line.as_flattened_mut()[..part.len()].copy_from_slice(part);
                    self.put(line);
                }
            }
            rank += together;
        }
        for ((pair, rank), outputs) in pairs.iter().zip(ranks).zip(shape.outputs) {
            let Some(pair) = pair else { continue };
            assert_eq!(pair.b.len(), outputs * rank, "an up projection of {outputs} by {rank}");
            // For each sixteen outputs: two ranks in a line.
            for first in (0..outputs).step_by(LANES) {
                for r in (0..rank).step_by(2) {
                    let b =
                        |r: usize, lane: usize| if first + lane < outputs && r < rank { pair.b[(first + lane) * rank + r] } else { 0.0 };
                    self.put([0, 1].map(|i| std::array::from_fn(|lane| pair.scale * b(r + i, lane))));
                }
            }
        }
    }

    fn put(&mut self, line: [[f32; LANES]; 2]) {
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        match &mut self.values {
            Values::Half(values) => values[self.filled].0 = std::array::from_fn(|i| bits(line[0][i]) | bits(line[1][i]) << 16),
            Values::Full(values) => values[self.filled] = line,
        }
        self.filled += 1;
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Half(values) => size_of_val(&**values),
            Values::Full(values) => size_of_val(&**values),
        }
    }

    /// The lines of a group.
    #[inline(always)]
    pub(super) fn lines(&self, start: usize) -> Lines<'_> {
        match &self.values {
            Values::Half(values) => Lines::Half(&values[start..]),
            Values::Full(values) => Lines::Full(&values[start..]),
        }
    }
}
