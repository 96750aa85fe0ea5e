//! Keys and values of running and recent sequences, one slot a sequence, in half precision: decoding reads all of them for every token,
//! and llama.cpp keeps them so, too. Slots grow with their sequence and keep their content after it ended, so that the next prompt
//! with the same beginning reuses it.

use super::kernel::append::{NewRows, append};
use super::kernel::attend::{Heads, POSITIONS};
use super::kernel::huge::Buffer;
use half::f16;

/// Positions by which a slot grows.
const STEP: usize = 128;

/// One sequence's keys and values. For each layer there is room for `capacity` positions of keys, then of values, in blocks of sixteen
/// positions as [`attend`](super::kernel::attend) reads them.
#[derive(Debug, Default)]
struct Slot {
    /// Positions that are held in all layers.
    positions: usize,
    capacity: usize,
    values: Buffer<f16>,
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
        KvCache { layers, heads, slots: (0..slots).map(|_| Slot::default()).collect() }
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

    /// Elements of the keys, or the values, of that many positions of one layer.
    fn length(&self, positions: usize) -> usize {
        positions.div_ceil(POSITIONS) * self.block()
    }

    /// Keeps the first `positions` positions of a slot.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        let slot = &mut self.slots[slot];
        slot.positions = slot.positions.min(positions);
    }

    /// Empties a slot and gives its memory back.
    pub fn free(&mut self, slot: usize) {
        self.slots[slot] = Slot::default();
    }

    /// Copies the first `positions` positions of one slot over another.
    pub fn copy(&mut self, from: usize, to: usize, positions: usize) {
        if from == to {
            return self.truncate(to, positions);
        }
        self.slots[to] = self.resized(&self.slots[from], positions, positions);
    }

    /// A slot with room for `capacity` positions that holds the first `positions` of another.
    fn resized(&self, source: &Slot, positions: usize, capacity: usize) -> Slot {
        let capacity = capacity.next_multiple_of(STEP);
        let mut values = Buffer::zeroed(2 * self.layers * self.length(capacity));
        if source.capacity > 0 {
            let parts = values.chunks_exact_mut(self.length(capacity)).zip(source.values.chunks_exact(self.length(source.capacity)));
            let length = self.length(positions);
            parts.for_each(|(to, from)| to[..length].copy_from_slice(&from[..length]));
        }
        Slot { positions, capacity, values }
    }

    /// Writes new rows to one layer of a slot, from position `new.past` on; the positions count once the last layer has them.
    pub fn append(&mut self, slot: usize, layer: usize, new: NewRows<'_>) {
        let positions = new.past + new.rows.len() / new.stride;
        if positions > self.slots[slot].capacity {
            self.slots[slot] = self.resized(&self.slots[slot], self.slots[slot].positions, positions);
        }
        let length = self.length(self.slots[slot].capacity);
        let slot = &mut self.slots[slot];
        let (keys, values) = slot.values[2 * layer * length..2 * (layer + 1) * length].split_at_mut(length);
        append(keys, values, new, self.heads);
        if layer + 1 == self.layers {
            slot.positions = positions;
        }
    }

    /// Keys and values of one layer of a slot.
    pub fn layer(&self, slot: usize, layer: usize) -> (&[f16], &[f16]) {
        let length = self.length(self.slots[slot].capacity);
        self.slots[slot].values[2 * layer * length..2 * (layer + 1) * length].split_at(length)
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
        let counted: Vec<f32> = (0..300).map(|i| i as f32).collect();
        write(&mut cache, 0, 0, &counted[..5]);
        write(&mut cache, 0, 5, &counted[5..300]);
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
