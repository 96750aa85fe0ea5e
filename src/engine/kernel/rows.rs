//! What is done to rows of activations one by one: norms and gates.

use super::dots::Dots;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::pool;

/// Values that are worth a thread of their own.
const WORTHWHILE: usize = 4096;

/// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) of rows as long as `weight`: y = x / sqrt(mean(x²) + ε) · weight.
pub fn rms_norm(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let (isa, width) = (Isa::best(), weight.len());
    pool::chunks(y, width, x.len() / WORTHWHILE, |first, y| norm_rows(isa, y, &x[first * width..first * width + y.len()], weight, epsilon));
}

/// SwiGLU (Shazeer 2020, arXiv 2002.05202): rows of gate and up side by side (rows, 2 · width) become silu(gate) · up (rows, width).
pub fn swiglu(y: &mut [f32], gate_up: &[f32], width: usize) {
    let isa = Isa::best();
    let most = 4 * y.len() / WORTHWHILE;
    pool::chunks(y, width, most, |first, y| swiglu_rows(isa, y, &gate_up[2 * first * width..2 * (first * width + y.len())], width));
}

compiled! {
    fn norm_rows(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) = norm_body
}
compiled! {
    fn swiglu_rows(y: &mut [f32], gate_up: &[f32], width: usize) = swiglu_body
}

#[inline(always)]
fn norm_body<D: Dots>(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    let (weights, last_weights) = weight.as_chunks::<LANES>();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut squares = D::Floats::splat(0.0);
        for chunk in chunks {
            let x = D::Floats::load(chunk);
            squares = squares.plus_product(x, x);
        }
        let sum = squares.sum() + rest.iter().map(|x| x * x).sum::<f32>();
        let inverse = 1.0 / (sum / width as f32 + epsilon).sqrt();
        let (out, last_out) = y.as_chunks_mut::<LANES>();
        for ((out, x), w) in out.iter_mut().zip(chunks).zip(weights) {
            D::Floats::load(x).times(D::Floats::splat(inverse)).times(D::Floats::load(w)).store(out);
        }
        for ((out, x), w) in last_out.iter_mut().zip(rest).zip(last_weights) {
            *out = x * inverse * w;
        }
    }
}

#[inline(always)]
fn swiglu_body<D: Dots>(y: &mut [f32], gate_up: &[f32], width: usize) {
    for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = row.split_at(width);
        let ((gates, last_gate), (ups, last_up)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
        let (out, last_out) = y.as_chunks_mut::<LANES>();
        for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
            gated(D::Floats::load(gate), D::Floats::load(up)).store(out);
        }
        if !last_out.is_empty() {
            let (mut a, mut b, mut c) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
            a[..last_gate.len()].copy_from_slice(last_gate);
            b[..last_up.len()].copy_from_slice(last_up);
            gated(D::Floats::load(&a), D::Floats::load(&b)).store(&mut c);
            last_out.copy_from_slice(&c[..last_out.len()]);
        }
    }
}

/// silu(gate) · up
#[inline(always)]
fn gated<L: Lanes>(gate: L, up: L) -> L {
    let denominator = gate.times(L::splat(-1.0)).exp().plus(L::splat(1.0));
    gate.times(up).over(denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 9.0).collect()
    }

    #[test]
    fn norms_and_gates_equal_the_plain_formulas_on_every_instruction_set() {
        for (rows, width) in [(1, 16), (3, 40), (2, 7)] {
            let (x, weight, gate_up) = (wave(rows * width, 0.7), wave(width, 0.3), wave(2 * rows * width, 0.9));
            for isa in Isa::available() {
                let (mut norm, mut gated) = (vec![0.0; rows * width], vec![0.0; rows * width]);
                norm_rows(isa, &mut norm, &x, &weight, 1e-5);
                swiglu_rows(isa, &mut gated, &gate_up, width);
                for i in 0..rows * width {
                    let (row, column) = (i / width, i % width);
                    let mean = x[row * width..][..width].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[column]);
                    assert!((f64::from(norm[i]) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{isa:?} norm {i}");
                    let (g, u) = (f64::from(gate_up[2 * row * width + column]), f64::from(gate_up[(2 * row + 1) * width + column]));
                    let expected = g / (1.0 + (-g).exp()) * u;
                    assert!((f64::from(gated[i]) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{isa:?} gate {i}");
                }
            }
        }
    }
}
