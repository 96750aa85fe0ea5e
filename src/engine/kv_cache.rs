//! Keys and values of running and recent sequences, one slot a sequence, in half precision: decoding reads all of them for every token,
//! and llama.cpp keeps them so, too. Slots grow with their sequence and keep their content after it ended, so that the next prompt
//! with the same beginning reuses it.

use super::kernel::append::{NewRows, append};
use super::kernel::attend::{POSITIONS, Heads};
use half::f16;

/// One sequence's keys and values: for each layer, blocks of sixteen positions as [`attend`](super::kernel::attend) reads them.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// Positions that are held in all layers.
    positions: usize,
    keys: Vec<Vec<f16>>,
    values: Vec<Vec<f16>>,
}

/// The cache.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    heads: Heads,
    slots: Vec<Slot>,
}

impl KvCache {
    /// An empty cache of `slots` slots for a model with `layers` layers.
    pub fn new(slots: usize, layers: usize, heads: Heads) -> Self {
        let slot = Slot { positions: 0, keys: vec![Vec::new(); layers], values: vec![Vec::new(); layers] };
        KvCache { layers, heads, slots: vec![slot; slots] }
    }

    /// Positions that a slot holds.
    pub fn positions(&self, slot: usize) -> usize {
        self.slots[slot].positions
    }

    /// Bytes one position takes.
    pub fn bytes_per_position(&self) -> usize {
        self.layers * 2 * self.block() / POSITIONS * size_of::<f16>()
    }

    /// Elements of a block of keys, or values, of one layer.
    fn block(&self) -> usize {
        self.heads.keys * self.heads.padded() * POSITIONS
    }

    /// Keeps the first `positions` positions of a slot.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        let length = positions.div_ceil(POSITIONS) * self.block();
        let slot = &mut self.slots[slot];
        for blocks in slot.keys.iter_mut().chain(&mut slot.values) {
            blocks.truncate(length);
        }
        slot.positions = slot.positions.min(positions);
    }

    /// Empties a slot and gives its memory back.
    pub fn free(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        for blocks in slot.keys.iter_mut().chain(&mut slot.values) {
            *blocks = Vec::new();
        }
        slot.positions = 0;
    }

    /// Copies the first `positions` positions of one slot over another.
    pub fn copy(&mut self, from: usize, to: usize, positions: usize) {
        if from == to {
            return self.truncate(to, positions);
        }
        let length = positions.div_ceil(POSITIONS) * self.block();
        let mut target = std::mem::take(&mut self.slots[to]);
        let source = &self.slots[from];
        let pairs = target.keys.iter_mut().zip(&source.keys).chain(target.values.iter_mut().zip(&source.values));
        for (target, source) in pairs {
            // A fresh vector: the memory limit counts positions, not what a longer sequence left reserved here.
            *target = source[..length].to_vec();
        }
        target.positions = positions;
        self.slots[to] = target;
    }

    /// Writes new rows to one layer of a slot, from position `new.past` on; the positions count once the last layer has them.
    pub fn append(&mut self, slot: usize, layer: usize, new: NewRows<'_>) {
        let positions = new.past + new.rows.len() / new.stride;
        let length = positions.div_ceil(POSITIONS) * self.block();
        let slot = &mut self.slots[slot];
        for blocks in [&mut slot.keys[layer], &mut slot.values[layer]] {
            if blocks.len() < length {
                blocks.resize(length, f16::ZERO);
            }
        }
        append(&mut slot.keys[layer], &mut slot.values[layer], new, self.heads);
        if layer + 1 == self.layers {
            slot.positions = positions;
        }
    }

    /// Keys and values of one layer of a slot.
    pub fn layer(&self, slot: usize, layer: usize) -> (&[f16], &[f16]) {
        let slot = &self.slots[slot];
        (&slot.keys[layer], &slot.values[layer])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { queries: 1, keys: 1, width: 2 };

    fn write(cache: &mut KvCache, slot: usize, past: usize, values: &[f32]) {
        let rows: Vec<f32> = values.iter().flat_map(|x| [0.0, 0.0, *x, *x, *x, -*x]).collect();
        let angles: Vec<f32> = values.iter().flat_map(|_| [1.0, 0.0]).collect();
        for layer in 0..2 {
            cache.append(slot, layer, NewRows { rows: &rows, stride: 6, angles: &angles, past });
        }
    }

    fn keys(cache: &KvCache, slot: usize) -> Vec<f32> {
        let (keys, _) = cache.layer(slot, 1);
        (0..cache.positions(slot)).map(|p| keys[p / POSITIONS * 16 * POSITIONS + p % POSITIONS].to_f32()).collect()
    }

    #[test]
    fn slots_grow_are_copied_cut_and_freed() {
        let mut cache = KvCache::new(2, 2, HEADS);
        let counted: Vec<f32> = (0..40).map(|i| i as f32).collect();
        write(&mut cache, 0, 0, &counted[..5]);
        write(&mut cache, 0, 5, &counted[5..40]);
        assert_eq!(keys(&cache, 0), counted);
        cache.copy(0, 1, 18);
        write(&mut cache, 1, 18, &[100.0]);
        assert_eq!(keys(&cache, 1)[..18], counted[..18]);
        assert_eq!(keys(&cache, 1)[18..], [100.0]);
        cache.truncate(0, 3);
        assert_eq!(keys(&cache, 0), counted[..3]);
        cache.free(0);
        assert_eq!(cache.positions(0), 0);
    }
}
