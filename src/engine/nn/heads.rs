//! Attention over blocks of rows in training: takes the heads of a sequence together from the blocks it lies in, rotates them, and hands
//! the results back. In bfloat16 it works in [tiles](super::tiles), otherwise in f32 as [`TrainAttention`](super::attention).

use super::attention::{Heads, Scores, attend, attend_backward};
use super::block::{Grads, Kept};
use super::rope::Rope;
use super::simd;
use super::tiles::{self, KeysValues, Queries, TILE};
use crate::engine::kernel::bf16::Isa;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// How rows are shared out, and what belongs together.
pub(super) struct Rows {
    /// Rows of a block.
    pub(super) size: usize,
    /// Rows in all.
    pub(super) count: usize,
    /// Rows of each sequence.
    pub(super) sequences: Arc<Vec<Range<usize>>>,
    /// Sequence and position of each row.
    places: Vec<(usize, usize)>,
}

impl Rows {
    /// `None` when the sequences are not the rows, one behind the other.
    pub(super) fn new(size: usize, count: usize, sequences: Arc<Vec<Range<usize>>>) -> Option<Self> {
        let mut places = Vec::with_capacity(count);
        for (s, rows) in sequences.iter().enumerate() {
            if rows.start != places.len() {
                return None;
            }
            places.extend((0..rows.len()).map(|position| (s, position)));
        }
        (places.len() == count).then_some(Rows { size, count, sequences, places })
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.count.div_ceil(self.size)
    }

    /// Rows of a block.
    pub(super) fn of(&self, block: usize) -> Range<usize> {
        block * self.size..self.count.min((block + 1) * self.size)
    }
}

/// One key head of one sequence: what its query heads got, and gradients. All are (length, width), query heads one behind the other.
#[derive(Default)]
pub(super) struct Part {
    out: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// What the attention of a block sees, and how.
#[derive(Clone)]
pub struct Sight {
    /// What is multiplied with what.
    pub scores: Scores,
    /// Rotary tables.
    pub rope: Arc<Rope>,
}

impl Sight {
    /// Rotates gradients back, from position `first` on, times `scale`.
    fn turn_back(&self, grads: &mut [f32], first: usize, scale: f32) {
        for (position, row) in grads.chunks_exact_mut(self.scores.heads.width).enumerate() {
            self.rope.rotate_back(row, first + position);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// The operation; all blocks share the counts of heads.
pub(super) struct Attention {
    pub(super) isa: Option<Isa>,
    pub(super) heads: Heads,
    pub(super) rows: Rows,
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    outs: Vec<f32>,
    grad: Vec<f32>,
    inner: Vec<f32>,
    forward: tiles::Forward,
    backward: tiles::Backward,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Which head of which rows is taken, and its factor where it is to be rotated.
struct Head<'a> {
    index: usize,
    count: usize,
    rows: Range<usize>,
    rotated: Option<(&'a Rope, f32)>,
}

impl Attention {
    /// Key heads of all sequences.
    pub(super) fn tasks(&self) -> usize {
        self.rows.sequences.len() * self.heads.keys
    }

    fn task(&self, task: usize) -> (Range<usize>, usize) {
        (self.rows.sequences[task / self.heads.keys].clone(), task % self.heads.keys)
    }

    /// Factor on the queries that are rounded; f32 scales later.
    fn scale(&self, sight: &Sight) -> f32 {
        if self.isa.is_some() { sight.scores.scale } else { 1.0 }
    }

    fn gather<'a>(&self, out: &mut Vec<f32>, head: &Head<'_>, of: impl Fn(usize) -> &'a [f32]) {
        let width = self.heads.width;
        out.clear();
        for (i, row) in head.rows.clone().enumerate() {
            let inside = row % self.rows.size;
            out.extend_from_slice(&of(row / self.rows.size)[(inside * head.count + head.index) * width..][..width]);
            if let Some((rope, scale)) = head.rotated {
                let turned = &mut out[i * width..];
                rope.rotate(turned, self.rows.places[row].1);
                turned.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    fn keys_values(&self, kept: &[Kept], (rows, head): (&Range<usize>, usize), rope: &Rope, scratch: &mut Scratch) {
        let head = |rotated| Head { index: head, count: self.heads.keys, rows: rows.clone(), rotated };
        self.gather(&mut scratch.keys, &head(Some((rope, 1.0))), |block| &kept[block].qkv[1]);
        self.gather(&mut scratch.values, &head(None), |block| &kept[block].qkv[2]);
    }

    /// Query head `g` of the group of a key head, for some rows.
    fn query<'a>(&self, rows: Range<usize>, (key, g): (usize, usize), rotated: Option<(&'a Rope, f32)>) -> Head<'a> {
        Head { index: key * self.heads.group() + g, count: self.heads.queries, rows, rotated }
    }

    /// The output of a task, and the logarithm of each query's sum.
    pub(super) fn forward(&self, (task, sight): (usize, &Sight), kept: &[Kept], part: &mut Part, log_sums: &mut Vec<f32>) {
        let ((rows, key), group, width) = (self.task(task), self.heads.group(), self.heads.width);
        let (length, rotated) = (rows.len(), Some((&*sight.rope, self.scale(sight))));
        part.out.resize(group * length * width, 0.0);
        log_sums.resize(group * length, 0.0);
        SCRATCH.with_borrow_mut(|scratch| {
            self.keys_values(kept, (&rows, key), &sight.rope, scratch);
            let Scratch { keys, values, queries, forward, .. } = scratch;
            if let Some(isa) = self.isa {
                forward.begin(isa, KeysValues { keys, values, width, window: sight.scores.window });
            }
            let outs = part.out.chunks_exact_mut((length * width).max(1)).zip(log_sums.chunks_exact_mut(length.max(1)));
            for (g, (out, log_sums)) in outs.enumerate() {
                let Some(isa) = self.isa else {
                    self.gather(queries, &self.query(rows.clone(), (key, g), rotated), |block| &kept[block].qkv[0]);
                    attend(sight.scores, [queries, keys, values], out);
                    continue;
                };
                for ((first, out), log_sums) in (0..length).step_by(TILE).zip(out.chunks_mut(TILE * width)).zip(log_sums.chunks_mut(TILE)) {
                    let range = rows.start + first..rows.start + first + log_sums.len();
                    self.gather(queries, &self.query(range, (key, g), rotated), |block| &kept[block].qkv[0]);
                    forward.tile(isa, Queries { values: queries, first }, out, log_sums);
                }
            }
        });
    }

    /// The gradients of a task.
    pub(super) fn backward(&self, (task, sight): (usize, &Sight), (kept, grads): (&[Kept], &[Grads]), part: &mut Part, log_sums: &[f32]) {
        let ((rows, key), group, width) = (self.task(task), self.heads.group(), self.heads.width);
        let (length, rotated) = (rows.len(), Some((&*sight.rope, self.scale(sight))));
        part.dq.resize(group * length * width, 0.0);
        SCRATCH.with_borrow_mut(|scratch| {
            self.keys_values(kept, (&rows, key), &sight.rope, scratch);
            let Scratch { keys, values, queries, outs, grad, inner, backward, .. } = scratch;
            match self.isa {
                Some(isa) => backward.begin(isa, KeysValues { keys, values, width, window: sight.scores.window }),
                None => {
                    for sum in [&mut backward.dk, &mut backward.dv] {
                        sum.clear();
                        sum.resize(length * width, 0.0);
                    }
                }
            }
            let size = if self.isa.is_some() { TILE } else { length.max(1) };
            for g in 0..group {
                for first in (0..length).step_by(size) {
                    let count = size.min(length - first);
                    let range = rows.start + first..rows.start + first + count;
                    let at = (g * length + first) * width..(g * length + first + count) * width;
                    self.gather(queries, &self.query(range.clone(), (key, g), rotated), |block| &kept[block].qkv[0]);
                    self.gather(grad, &self.query(range.clone(), (key, g), None), |block| &grads[block].attended);
                    let dq = &mut part.dq[at.clone()];
                    match self.isa {
                        Some(isa) => {
                            self.gather(outs, &self.query(range, (key, g), None), |block| &kept[block].attended);
                            inner.clear();
                            inner.extend(outs.chunks_exact(width).zip(grad.chunks_exact(width)).map(|(out, grad)| simd::dot(out, grad)));
                            let log_sums = &log_sums[g * length + first..][..count];
                            backward.tile(isa, Queries { values: queries, first }, tiles::Attended { log_sums, inner, grad }, dq);
                        }
                        None => {
                            attend_backward(sight.scores, [queries, keys, values], grad, [dq, &mut backward.dk, &mut backward.dv]);
                        }
                    }
                    sight.turn_back(dq, first, self.scale(sight));
                }
            }
            sight.turn_back(&mut backward.dk, 0, 1.0);
            part.dk.clone_from(&backward.dk);
            part.dv.clone_from(&backward.dv);
        });
    }

    /// Copies what the tasks got to a block of rows.
    pub(super) fn collect(&self, block: usize, parts: &[Part], attended: &mut Vec<f32>) {
        self.collect_heads(block, attended, self.heads.queries, |s, head| {
            (&parts[s * self.heads.keys + head / self.heads.group()].out, head % self.heads.group())
        });
    }

    /// Copies the gradients of q, k and v to a block of rows.
    pub(super) fn collect_grads(&self, block: usize, parts: &[Part], [q, k, v]: &mut [Vec<f32>; 3]) {
        let (keys, group) = (self.heads.keys, self.heads.group());
        self.collect_heads(block, q, self.heads.queries, |s, head| (&parts[s * keys + head / group].dq, head % group));
        self.collect_heads(block, k, keys, |s, head| (&parts[s * keys + head].dk, 0));
        self.collect_heads(block, v, keys, |s, head| (&parts[s * keys + head].dv, 0));
    }

    fn collect_heads<'a>(&self, block: usize, out: &mut Vec<f32>, heads: usize, of: impl Fn(usize, usize) -> (&'a Vec<f32>, usize)) {
        let width = self.heads.width;
        let rows = self.rows.of(block);
        out.resize(rows.len() * heads * width, 0.0);
        for (row, out) in rows.zip(out.chunks_exact_mut(heads * width)) {
            let (s, position) = self.rows.places[row];
            let length = self.rows.sequences[s].len();
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                let (part, g) = of(s, head);
                out.copy_from_slice(&part[(g * length + position) * width..][..width]);
            }
        }
    }
}
