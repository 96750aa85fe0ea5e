//! An adapter's pairs as serving uses them: packed for the groups of linear layers that are computed side by side.

use super::adapter::{Adapter, LoraTarget};
use super::kernel::low_rank::{LAYERS, LowRank, Pair, Precision, Shape};
use std::ops::Range;

/// Adaptable linear layers of a block.
const MODULES: usize = 7;
/// Those that take the same input, by place among the seven: q k v, o, gate up, down.
pub const GROUPS: [Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// A packed adapter; groups of layers are counted through all blocks.
#[derive(Debug)]
pub struct PackedAdapter {
    /// The updates of all groups; of DoRA layers they are multiplied with the gains already.
    pub updates: LowRank,
    /// DoRA's factors on the outputs of each group; of no group where the adapter has none.
    gains: Vec<Option<Vec<f32>>>,
}

impl PackedAdapter {
    /// Packs an adapter. `targets` are the seven linear layers of each block, in forward order.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn new(adapter: &Adapter, targets: &[LoraTarget], precision: Precision) -> candle_core::Result<Self> {
        let groups: Vec<&[LoraTarget]> = targets.chunks(MODULES).flat_map(|block| GROUPS.map(|group| &block[group])).collect();
        let lines = groups.iter().map(|group| shape(group).lines(ranks(adapter, group))).sum();
        let mut updates = LowRank::with_room(lines, precision);
        let mut gains = Vec::new();
        for group in groups {
            gains.push(pack(&mut updates, adapter, group)?);
        }
        if gains.iter().all(Option::is_none) {
            gains.clear();
        }
        Ok(PackedAdapter { updates, gains })
    }

    /// DoRA's factors on the outputs of the frozen weights of a group of layers, side by side, if any of them has some.
    pub fn gains(&self, group: usize) -> Option<&[f32]> {
        self.gains.get(group)?.as_deref()
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        self.updates.bytes() + self.gains.iter().flatten().map(|gains| size_of_val(&**gains)).sum::<usize>()
    }
}

fn shape(targets: &[LoraTarget]) -> Shape {
    let mut outputs = [0; LAYERS];
    outputs.iter_mut().zip(targets).for_each(|(outputs, target)| *outputs = target.outputs);
    Shape { inputs: targets[0].inputs, outputs }
}

fn ranks(adapter: &Adapter, targets: &[LoraTarget]) -> [usize; LAYERS] {
    let mut ranks = [0; LAYERS];
    for (rank, target) in ranks.iter_mut().zip(targets) {
        *rank = adapter.lora(&target.path).map_or(0, |lora| lora.a.elem_count() / target.inputs);
    }
    ranks
}

/// The values of a pair: A (rank, in) and B (out, rank).
struct Values {
    a: Vec<f32>,
    b: Vec<f32>,
    scale: f32,
}

fn pair(values: &Option<Values>) -> Option<Pair<'_>> {
    values.as_ref().map(|Values { a, b, scale }| Pair { a, b, scale: *scale })
}

/// Packs a group of layers; returns its gains if any of them has some.
fn pack(updates: &mut LowRank, adapter: &Adapter, targets: &[LoraTarget]) -> candle_core::Result<Option<Vec<f32>>> {
    let (mut gains, mut has_gains) = (Vec::new(), false);
    let mut found = [const { None }; LAYERS];
    for (found, target) in found.iter_mut().zip(targets) {
        let own = adapter.gains(&target.path)?;
        has_gains |= own.is_some();
        if let Some(lora) = adapter.lora(&target.path) {
            let (a, mut b) = (lora.a.flatten_all()?.to_vec1::<f32>()?, lora.b.flatten_all()?.to_vec1::<f32>()?);
            for (b, gain) in b.chunks_exact_mut(lora.a.dim(0)?).zip(own.iter().flatten()) {
                b.iter_mut().for_each(|b| *b *= gain);
            }
            *found = Some(Values { a, b, scale: lora.scale });
        }
        gains.extend(own.unwrap_or_else(|| vec![1.0; target.outputs]));
    }
    updates.push(shape(targets), [pair(&found[0]), pair(&found[1]), pair(&found[2])]);
    Ok(has_gains.then_some(gains))
}
