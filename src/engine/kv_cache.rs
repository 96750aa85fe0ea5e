//! Keys and values of running and recent sequences, one slot a sequence. Slots grow with their sequence and keep their content after
//! it ended, so that the next prompt with the same beginning reuses it.

/// One sequence's keys and values, all layers.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// Per layer: (positions, key width).
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// The cache.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    width: usize,
    slots: Vec<Slot>,
}

impl KvCache {
    /// An empty cache of `slots` slots for a model with `layers` layers and keys of `width` elements.
    pub fn new(slots: usize, layers: usize, width: usize) -> Self {
        let slot = Slot { keys: vec![Vec::new(); layers], values: vec![Vec::new(); layers] };
        KvCache { layers, width, slots: vec![slot; slots] }
    }

    /// Positions that a slot holds.
    pub fn positions(&self, slot: usize) -> usize {
        self.slots[slot].keys.first().map_or(0, |keys| keys.len() / self.width)
    }

    /// Bytes one position takes.
    pub fn bytes_per_position(&self) -> usize {
        2 * self.layers * self.width * size_of::<f32>()
    }

    /// Keeps the first `positions` positions of a slot.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        let slot = &mut self.slots[slot];
        for rows in slot.keys.iter_mut().chain(&mut slot.values) {
            rows.truncate(positions * self.width);
        }
    }

    /// Empties a slot and gives its memory back.
    pub fn free(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        for rows in slot.keys.iter_mut().chain(&mut slot.values) {
            *rows = Vec::new();
        }
    }

    /// Copies the first `positions` positions of one slot over another.
    pub fn copy(&mut self, from: usize, to: usize, positions: usize) {
        if from == to {
            return self.truncate(to, positions);
        }
        let length = positions * self.width;
        let mut target = std::mem::take(&mut self.slots[to]);
        let source = &self.slots[from];
        let pairs = target.keys.iter_mut().zip(&source.keys).chain(target.values.iter_mut().zip(&source.values));
        for (target, source) in pairs {
            // A fresh vector: the memory limit counts positions, not what a longer sequence left reserved here.
            *target = source[..length].to_vec();
        }
        self.slots[to] = target;
    }

    /// Appends rows of keys and values to one layer of a slot.
    pub fn append(&mut self, slot: usize, layer: usize, keys: &[f32], values: &[f32]) {
        let slot = &mut self.slots[slot];
        slot.keys[layer].extend_from_slice(keys);
        slot.values[layer].extend_from_slice(values);
    }

    /// Keys and values of one layer of a slot: (positions, key width) each.
    pub fn layer(&self, slot: usize, layer: usize) -> (&[f32], &[f32]) {
        let slot = &self.slots[slot];
        (&slot.keys[layer], &slot.values[layer])
    }
}
