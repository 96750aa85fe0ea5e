//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout of Hugging Face checkpoints: element j of a
//! head turns together with element j + d/2.

/// Cosines and sines for every position and pair.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Tables for `positions` positions; `periods` is what a position is divided by to get the angle of each pair, (head width / 2).
    pub fn new(positions: usize, periods: &[f32]) -> Self {
        let half = periods.len();
        let angle = |i: usize| (i / half) as f32 / periods[i % half];
        let (cos, sin) = (0..positions * half).map(angle).map(|a| (a.cos(), a.sin())).unzip();
        Rope { cos, sin, half }
    }

    /// Positions the tables cover.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Rotates every head of a row in place.
    pub fn rotate(&self, row: &mut [f32], position: usize) {
        self.turn(row, position, 1.0);
    }

    /// Rotates back: the transpose, which is what gradients take.
    pub fn rotate_back(&self, row: &mut [f32], position: usize) {
        self.turn(row, position, -1.0);
    }

    fn turn(&self, row: &mut [f32], position: usize, direction: f32) {
        let cos = &self.cos[position * self.half..][..self.half];
        let sin = &self.sin[position * self.half..][..self.half];
        for head in row.chunks_exact_mut(2 * self.half) {
            let (low, high) = head.split_at_mut(self.half);
            for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let s = s * direction;
                (*l, *h) = (*l * c - *h * s, *h * c + *l * s);
            }
        }
    }
}
