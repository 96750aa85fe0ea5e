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

/// x += RMSNorm(y), as [`rms_norm`]: what a layer adds to the residual stream, where the family has norms there.
pub fn add_rms_norm(x: &mut [f32], y: &[f32], weight: &[f32], epsilon: f32) {
    let (isa, width) = (Isa::best(), weight.len());
    pool::chunks(x, width, y.len() / WORTHWHILE, |first, x| {
        add_norm_rows(isa, x, &y[first * width..first * width + x.len()], weight, epsilon);
    });
}

/// Norms of the heads at the beginning of rows (query-key norm: Henry et al. 2020, arXiv 2010.04245; here RMSNorm with a learned weight).
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Elements between two rows.
    pub stride: usize,
    /// Heads that a weight as long as a head is for: queries, then keys.
    pub parts: [(usize, &'a [f32]); 2],
    /// ε
    pub epsilon: f32,
}

/// Puts the heads of each row through their norm, in place.
pub fn norm_heads(rows: &mut [f32], norms: HeadNorms<'_>) {
    let isa = Isa::best();
    let most = rows.len() / WORTHWHILE;
    pool::chunks(rows, norms.stride, most, |_, rows| norm_head_rows(isa, rows, norms));
}

/// What a gate is put through before it is multiplied with what it lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x · sigmoid(x): SwiGLU (Shazeer 2020, arXiv 2002.05202).
    Silu,
    /// GELU by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415): GEGLU.
    GeluTanh,
}

/// Rows of gate and up side by side (rows, 2 · width) become gate'(gate) · up (rows, width).
pub fn gate(y: &mut [f32], gate_up: &[f32], width: usize, gate: Gate) {
    let isa = Isa::best();
    let most = 4 * y.len() / WORTHWHILE;
    pool::chunks(y, width, most, |first, y| gate_rows(isa, y, &gate_up[2 * first * width..2 * (first * width + y.len())], width, gate));
}

compiled! {
    fn norm_rows(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) = norm_body
}
compiled! {
    fn add_norm_rows(x: &mut [f32], y: &[f32], weight: &[f32], epsilon: f32) = add_norm_body
}
compiled! {
    fn norm_head_rows(rows: &mut [f32], norms: HeadNorms<'_>) = norm_heads_body
}
compiled! {
    fn gate_rows(y: &mut [f32], gate_up: &[f32], width: usize, gate: Gate) = gate_body
}

/// 1 / sqrt(mean(x²) + ε)
#[inline(always)]
fn inverse_rms<L: Lanes>(x: &[f32], epsilon: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut squares = L::splat(0.0);
    for chunk in chunks {
        let x = L::load(chunk);
        squares = squares.plus_product(x, x);
    }
    let mut sum = squares.sum();
    for x in rest {
        sum += x * x;
    }
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

#[inline(always)]
fn norm_body<D: Dots>(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    let (weights, last_weights) = weight.as_chunks::<LANES>();
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let inverse = inverse_rms::<D::Floats>(x, epsilon);
        let ((chunks, rest), (out, last_out)) = (x.as_chunks::<LANES>(), y.as_chunks_mut::<LANES>());
        for ((out, x), w) in out.iter_mut().zip(chunks).zip(weights) {
            D::Floats::load(x).times(D::Floats::splat(inverse)).times(D::Floats::load(w)).store(out);
        }
        for ((out, x), w) in last_out.iter_mut().zip(rest).zip(last_weights) {
            *out = x * inverse * w;
        }
    }
}

#[inline(always)]
fn add_norm_body<D: Dots>(x: &mut [f32], y: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    let (weights, last_weights) = weight.as_chunks::<LANES>();
    for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
        let inverse = inverse_rms::<D::Floats>(y, epsilon);
        let ((chunks, rest), (out, last_out)) = (y.as_chunks::<LANES>(), x.as_chunks_mut::<LANES>());
        for ((out, y), w) in out.iter_mut().zip(chunks).zip(weights) {
            let scaled = D::Floats::load(y).times(D::Floats::splat(inverse));
            D::Floats::load(out).plus_product(scaled, D::Floats::load(w)).store(out);
        }
        for ((out, y), w) in last_out.iter_mut().zip(rest).zip(last_weights) {
            *out += y * inverse * w;
        }
    }
}

#[inline(always)]
fn norm_heads_body<D: Dots>(rows: &mut [f32], norms: HeadNorms<'_>) {
    for row in rows.chunks_exact_mut(norms.stride) {
        let mut rest = row;
        for (heads, weight) in norms.parts {
            let (own, after) = rest.split_at_mut(heads * weight.len());
            rest = after;
            let (weights, last_weights) = weight.as_chunks::<LANES>();
            for head in own.chunks_exact_mut(weight.len()) {
                let inverse = inverse_rms::<D::Floats>(head, norms.epsilon);
                let (chunks, last) = head.as_chunks_mut::<LANES>();
                for (x, w) in chunks.iter_mut().zip(weights) {
                    D::Floats::load(x).times(D::Floats::splat(inverse)).times(D::Floats::load(w)).store(x);
                }
                for (x, w) in last.iter_mut().zip(last_weights) {
                    *x *= inverse * w;
                }
            }
        }
    }
}

#[inline(always)]
fn gate_body<D: Dots>(y: &mut [f32], gate_up: &[f32], width: usize, gate: Gate) {
    match gate {
        Gate::Silu => gated_body::<D::Floats, false>(y, gate_up, width),
        Gate::GeluTanh => gated_body::<D::Floats, true>(y, gate_up, width),
    }
}

#[inline(always)]
fn gated_body<L: Lanes, const GELU: bool>(y: &mut [f32], gate_up: &[f32], width: usize) {
    for (y, row) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
        let (gate, up) = row.split_at(width);
        let ((gates, last_gate), (ups, last_up)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
        let (out, last_out) = y.as_chunks_mut::<LANES>();
        // By index: zipped iterators were seen to become calls without the instruction set.
        let mut i = 0;
        while i < out.len() {
            gated::<L, GELU>(L::load(&gates[i]), L::load(&ups[i])).store(&mut out[i]);
            i += 1;
        }
        if !last_out.is_empty() {
            let (mut a, mut b, mut c) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
            a[..last_gate.len()].copy_from_slice(last_gate);
            b[..last_up.len()].copy_from_slice(last_up);
            gated::<L, GELU>(L::load(&a), L::load(&b)).store(&mut c);
            last_out.copy_from_slice(&c[..last_out.len()]);
        }
    }
}

/// gate · sigmoid(gate) · up; with `GELU` the sigmoid of √(8/π) · (gate + 0.044715 · gate³), which is (1 + tanh) / 2 of half of that.
#[inline(always)]
fn gated<L: Lanes, const GELU: bool>(gate: L, up: L) -> L {
    let mut inner = gate;
    if GELU {
        let cube = gate.times(gate).times(gate);
        inner = gate.plus_product(cube, L::splat(0.044_715)).times(L::splat(1.595_769_2));
    }
    let denominator = inner.times(L::splat(-1.0)).exp().plus(L::splat(1.0));
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
                let (mut norm, mut added, mut silu, mut gelu) =
                    (vec![0.0; rows * width], x.clone(), vec![0.0; rows * width], vec![0.0; rows * width]);
                norm_rows(isa, &mut norm, &x, &weight, 1e-5);
                add_norm_rows(isa, &mut added, &x, &weight, 1e-5);
                gate_rows(isa, &mut silu, &gate_up, width, Gate::Silu);
                gate_rows(isa, &mut gelu, &gate_up, width, Gate::GeluTanh);
                let close = |found: f32, expected: f64, what: &str| {
                    assert!((f64::from(found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{isa:?} {what}: {found} for {expected}");
                };
                for i in 0..rows * width {
                    let (row, column) = (i / width, i % width);
                    let mean = x[row * width..][..width].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[column]);
                    close(norm[i], expected, "norm");
                    close(added[i], f64::from(x[i]) + expected, "added norm");
                    let (g, u) = (f64::from(gate_up[2 * row * width + column]), f64::from(gate_up[(2 * row + 1) * width + column]));
                    close(silu[i], g / (1.0 + (-g).exp()) * u, "silu");
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
                    close(gelu[i], 0.5 * g * (1.0 + inner.tanh()) * u, "gelu");
                }
            }
        }
    }

    #[test]
    fn heads_go_through_their_own_norm_and_what_follows_them_stays() {
        // Two query heads and one key head of width 20, then a value head.
        let (width, stride) = (20, 80);
        let (rows, queries, keys) = (wave(3 * stride, 0.7), wave(width, 0.3), wave(width, 0.4));
        for isa in Isa::available() {
            let mut found = rows.clone();
            norm_head_rows(isa, &mut found, HeadNorms { stride, parts: [(2, &queries), (1, &keys)], epsilon: 1e-6 });
            for (i, found) in found.iter().enumerate() {
                let head = i % stride / width;
                let weight = [Some(&queries), Some(&queries), Some(&keys), None][head];
                let own = &rows[i / width * width..][..width];
                let mean = own.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                let expected = weight.map_or(f64::from(rows[i]), |w| f64::from(rows[i]) / (mean + 1e-6).sqrt() * f64::from(w[i % width]));
                assert!((f64::from(*found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{isa:?} element {i}");
            }
        }
    }
}
