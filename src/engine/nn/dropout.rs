//! Dropout (Srivastava et al. 2014) on the input of an adapter: a share of the values becomes zero, the others are scaled up so that the
//! expected value stays. Which ones is a function of the seed and the place, so that the backward pass and a resumed training see the same.

use super::slices::{slice, tensor, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Values that one task works on; each has its own stream of random numbers.
const BLOCK: usize = 4096;

/// Dropout of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of the values that become zero, 0 to below 1.
    pub rate: f32,
    /// Decides which.
    pub seed: u64,
}

impl Dropout {
    /// The same for one module of the model: each has its own mask.
    pub fn of_module(self, path: &str) -> Self {
        // FNV-1a: a fixed function of the name.
        let hash = path.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Dropout { seed: mixed(self.seed ^ hash), ..self }
    }

    /// `x` with values dropped; the gradient goes through the ones that stay.
    ///
    /// # Errors
    /// When `x` is not f32 on the CPU.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self)
    }

    fn masked(self, x: &[f32]) -> Vec<f32> {
        // A 16-bit number decides over each value.
        let dropped = (f64::from(self.rate) * 65_536.0) as u64;
        let scale = 1.0 / (1.0 - self.rate);
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).enumerate().for_each(|(block, (y, x))| {
            for (i, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                let mut bits = mixed(self.seed.wrapping_add((block * BLOCK / 4 + i) as u64));
                for (y, x) in y.iter_mut().zip(x) {
                    *y = if bits & 0xffff < dropped { 0.0 } else { x * scale };
                    bits >>= 16;
                }
            }
        });
        y
    }
}

/// SplitMix64 (Steele et al. 2014): a number that looks random for each number.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.masked(slice(x, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(tensor(with_slice(grad, |grad| self.masked(grad))?, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_dropped_the_mean_stays_and_the_mask_is_a_function_of_seed_and_module() {
        let ones = vec![1f32; 100_001];
        let drop = Dropout { rate: 0.3, seed: 7 };
        let masked = drop.masked(&ones);
        let zeros = masked.iter().filter(|x| **x == 0.0).count() as f64 / ones.len() as f64;
        let mean = masked.iter().map(|x| f64::from(*x)).sum::<f64>() / ones.len() as f64;
        assert!((zeros - 0.3).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "{zeros} {mean}");
        assert_eq!(drop.masked(&ones), masked);
        let (q, k) = (drop.of_module("q_proj"), drop.of_module("k_proj"));
        let both = q.masked(&ones).iter().zip(k.masked(&ones)).filter(|(q, k)| **q == 0.0 && *k == 0.0).count() as f64 / ones.len() as f64;
        assert!((both - 0.09).abs() < 0.01, "the masks are independent: {both}");
        assert_eq!(Dropout { rate: 0.0, seed: 1 }.masked(&ones), ones);
    }
}
