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
    layers: Vec<[Option<Group>; 4]>,
}

/// Layers side by side.
#[derive(Debug)]
struct Group {
    update: LowRank,
    /// DoRA's factor on every output, one where a layer has none; none where no layer has any.
    gains: Option<Vec<f32>>,
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
        let block = |block: &[LoraTarget]| -> candle_core::Result<[Option<Group>; 4]> {
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

    /// The update of a group of layers, if any of them is adapted; of DoRA layers it is multiplied with the gains already.
    pub fn update(&self, layer: usize, group: usize) -> Option<&LowRank> {
        self.layers[layer][group].as_ref().map(|group| &group.update)
    }

    /// DoRA's factors on the outputs of the frozen weights of a group of layers, side by side, if any of them has some.
    pub fn gains(&self, layer: usize, group: usize) -> Option<&[f32]> {
        self.layers[layer][group].as_ref()?.gains.as_deref()
    }

    /// Memory of the values.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().flatten().map(|group| group.update.bytes() + 4 * group.gains.as_ref().map_or(0, Vec::len)).sum()
    }
}

fn pack(adapter: &Adapter, targets: &[LoraTarget], precision: Precision) -> candle_core::Result<Option<Group>> {
    let (mut found, mut gains, mut has_gains) = (Vec::new(), Vec::new(), false);
    for target in targets {
        let column = gains.len();
        let own = adapter.gains(&target.path)?;
        has_gains |= own.is_some();
        if let Some(lora) = adapter.lora(&target.path) {
            let (a, mut b) = (lora.a.flatten_all()?.to_vec1::<f32>()?, lora.b.flatten_all()?.to_vec1::<f32>()?);
            let rank = lora.a.dim(0)?;
            for (b, gain) in b.chunks_exact_mut(rank).zip(own.iter().flatten()) {
                b.iter_mut().for_each(|b| *b *= gain);
            }
            found.push((a, b, rank, lora.scale, column));
        }
        gains.extend(own.unwrap_or_else(|| vec![1.0; target.outputs]));
    }
    let pairs: Vec<Pair<'_>> =
        found.iter().map(|(a, b, rank, scale, column)| Pair { a, b, rank: *rank, scale: *scale, column: *column }).collect();
    let group = || Group { update: LowRank::new(targets[0].inputs, &pairs, precision), gains: has_gains.then_some(gains) };
    Ok((!pairs.is_empty()).then(group))
}
