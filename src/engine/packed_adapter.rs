//! An adapter's pairs as serving uses them: packed for the groups of linear layers that are computed side by side.

use super::adapter::{Adapter, LoraTarget};
use super::kernel::huge;
use super::kernel::low_rank::{LowRank, Pair, Precision};
use std::ops::Range;

/// Adaptable linear layers of a block.
const MODULES: usize = 7;
/// Those that take the same input, by place among the seven: q k v, o, gate up, down.
const GROUPS: [Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// A packed adapter.
#[derive(Debug)]
pub struct PackedAdapter {
    /// For each block, for each group.
    layers: Vec<[Option<LowRank>; 4]>,
}

impl PackedAdapter {
    /// Packs an adapter. `targets` are the seven linear layers of each block, in forward order.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn new(adapter: &Adapter, targets: &[LoraTarget], precision: Precision) -> candle_core::Result<Self> {
        let loras = targets.iter().filter_map(|target| Some((target, adapter.lora(&target.path)?)));
        let bytes =
            loras.map(|(target, lora)| Pair::bytes(lora.b.elem_count() / target.outputs, (target.inputs, target.outputs), precision)).sum();
        let block = |block: &[LoraTarget]| -> candle_core::Result<[Option<LowRank>; 4]> {
            let mut updates = [const { None }; 4];
            for (update, group) in updates.iter_mut().zip(GROUPS) {
                *update = pack(adapter, &block[group], precision)?;
            }
            Ok(updates)
        };
        // An adapter that is thrown away gives its memory back.
        let layers = huge::together(bytes, || targets.chunks(MODULES).map(block).collect::<candle_core::Result<_>>())?;
        Ok(PackedAdapter { layers })
    }

    /// The update of a group of layers, if any of them is adapted.
    pub fn update(&self, layer: usize, group: usize) -> Option<&LowRank> {
        self.layers[layer][group].as_ref()
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().flatten().map(LowRank::bytes).sum()
    }
}

fn pack(adapter: &Adapter, targets: &[LoraTarget], precision: Precision) -> candle_core::Result<Option<LowRank>> {
    let (mut found, mut column) = (Vec::new(), 0);
    for target in targets {
        if let Some(lora) = adapter.lora(&target.path) {
            let (a, b) = (lora.a.flatten_all()?.to_vec1::<f32>()?, lora.b.flatten_all()?.to_vec1::<f32>()?);
            found.push((a, b, lora.a.dim(0)?, lora.scale, column));
        }
        column += target.outputs;
    }
    let pairs: Vec<Pair<'_>> =
        found.iter().map(|(a, b, rank, scale, column)| Pair { a, b, rank: *rank, scale: *scale, column: *column }).collect();
    Ok((!pairs.is_empty()).then(|| LowRank::new(targets[0].inputs, &pairs, precision)))
}
