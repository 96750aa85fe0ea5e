//! Loops that are worth wide registers: each body is compiled three times (AVX-512, AVX2 + FMA, portable) and chosen at run time, so
//! that a binary built for plain x86-64 runs at speed. The bodies are safe Rust over [`lanes`](crate::engine::kernel::lanes).
#![expect(unsafe_code, reason = "calling a function compiled for a CPU feature is unsafe unless the feature was detected")]

#[cfg(target_arch = "x86_64")]
use crate::engine::kernel::lanes::{Avx2, Avx512};
use crate::engine::kernel::lanes::{LANES, Lanes, Portable};

/// Defines a function whose body is compiled for each instruction set.
macro_rules! multiversion {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? { $body::<Avx512>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $ret)? { $body::<Avx2>($($arg),*) }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("fma") {
                    // SAFETY: every feature the function was compiled for was just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<Portable>($($arg),*)
        }
    };
}

multiversion! {
    /// `out[r * rows_w + o] = x[r] · w[o]` for every row of `x` (m, k) and of `w` (n, k), written transposed: `out` is (n, m).
    /// For few rows of `x`: the weights are read once, which is what decoding is bound by.
    pub fn products_transposed(out: &mut [f32], x: &[f32], w: &[f32], k: usize) = products_body
}
multiversion! {
    /// `out += h b`: `out` (rows, width), `h` (rows, rank), `b` (rank, width). For small ranks, where gemm kernels are poor.
    pub fn add_low_rank(out: &mut [f32], h: &[f32], b: &[f32], rank: usize) = add_low_rank_body
}
multiversion! {
    /// `out += hᵀ x`: `out` (rank, width), `h` (rows, rank), `x` (rows, width). Likewise for small ranks.
    pub fn add_outer(out: &mut [f32], h: &[f32], x: &[f32], rank: usize) = add_outer_body
}
multiversion! {
    /// Softmax of a row in place.
    pub fn softmax(row: &mut [f32]) = softmax_body
}
multiversion! {
    /// Turns logits into probabilities in place and returns `log(sum(exp(x - max)))` and `max`.
    pub fn softmax_stats(row: &mut [f32]) -> (f32, f32) = softmax_stats_body
}
multiversion! {
    /// Turns logits into `exp(x - max)` in place and returns their sum and `max`.
    pub fn exponentials(row: &mut [f32]) -> (f32, f32) = exponentials_body
}
multiversion! {
    /// `out = silu(gate) · up`
    pub fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) = swiglu_body
}
multiversion! {
    /// Gradients of [`swiglu`]: `gate` and `up` are overwritten with d gate and d up for the gradient `grad` of the output.
    pub fn swiglu_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) = swiglu_backward_body
}
multiversion! {
    /// As [`swiglu_backward`], and writes `out = silu(gate) · up` of before.
    pub fn swiglu_again(out: &mut [f32], gate: &mut [f32], up: &mut [f32], grad: &[f32]) = swiglu_again_body
}
multiversion! {
    /// `out = gelu(gate) · up`, GELU by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    pub fn geglu(out: &mut [f32], gate: &[f32], up: &[f32]) = geglu_body
}
multiversion! {
    /// Gradients of [`geglu`], as [`swiglu_backward`].
    pub fn geglu_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) = geglu_backward_body
}
multiversion! {
    /// As [`geglu_backward`], and writes `out = gelu(gate) · up` of before.
    pub fn geglu_again(out: &mut [f32], gate: &mut [f32], up: &mut [f32], grad: &[f32]) = geglu_again_body
}
multiversion! {
    /// LayerNorm (Ba et al. 2016, arXiv 1607.06450) of `x + residual`, into `x`, row by row of `weight`'s length.
    pub fn layer_norm(x: &mut [f32], residual: &[f32], norm: Affine<'_>) = layer_norm_body
}
multiversion! {
    /// Dot product.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}
multiversion! {
    /// `row = probability · (gradient - dot(probability, gradient)) · scale`, the softmax backward of one row, into `gradient`.
    pub fn softmax_backward(gradient: &mut [f32], probability: &[f32], scale: f32) = softmax_backward_body
}

multiversion! {
    /// RMSNorm of rows of `weight`'s length: `out = x / sqrt(mean(x²) + epsilon) · weight`.
    pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) = rms_norm_body
}
multiversion! {
    /// Gradient of [`rms_norm`] with respect to `x`, for the gradient `grad` of the output, added to `dx`.
    pub fn rms_norm_backward(dx: &mut [f32], x: &[f32], grad: &[f32], norm: (&[f32], f32)) = rms_norm_backward_body
}
multiversion! {
    /// A tile of attention, keys by queries, in the backward pass: `scores` become probabilities `exp(score - log_sum)`, and `grads`
    /// (the gradients of the probabilities) those of the scores, `p · (grad - inner)`. `log_sums` and `inner` have one entry a query.
    pub fn attention_tile(scores: &mut [f32], grads: &mut [f32], log_sums: &[f32], inner: &[f32]) = attention_tile_body
}

/// Scale and shift of a norm.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// Scale by element.
    pub weight: &'a [f32],
    /// Shift by element.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

#[inline(always)]
fn fma<L: Lanes>(a: f32, b: f32, c: f32) -> f32 {
    if L::FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn dot_body<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    let (pairs_a, last_a) = chunks_a.as_chunks::<2>();
    let (pairs_b, last_b) = chunks_b.as_chunks::<2>();
    let (mut even, mut odd) = (L::splat(0.0), L::splat(0.0));
    for (a, b) in pairs_a.iter().zip(pairs_b) {
        even = even.plus_product(L::load(&a[0]), L::load(&b[0]));
        odd = odd.plus_product(L::load(&a[1]), L::load(&b[1]));
    }
    for (a, b) in last_a.iter().zip(last_b) {
        even = even.plus_product(L::load(a), L::load(b));
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    odd.plus_product(even, L::splat(1.0)).sum() + rest
}

/// Rows of `w` and of `x` in a tile: sixteen accumulators, eight loads for sixteen multiply-adds.
const TILE: usize = 4;

#[inline(always)]
fn plus_products<L: Lanes>(sums: [L; TILE], x: [L; TILE], w: L) -> [L; TILE] {
    [sums[0].plus_product(x[0], w), sums[1].plus_product(x[1], w), sums[2].plus_product(x[2], w), sums[3].plus_product(x[3], w)]
}

#[inline(always)]
fn products_body<L: Lanes>(out: &mut [f32], x: &[f32], w: &[f32], k: usize) {
    let m = x.len() / k;
    for (w, out) in w.chunks(TILE * k).zip(out.chunks_mut(TILE * m)) {
        let mut r = 0;
        if w.len() == TILE * k {
            while r + TILE <= m {
                let sums = tile::<L>(&x[r * k..(r + TILE) * k], w, k);
                for (o, sums) in sums.iter().enumerate() {
                    out[o * m + r..o * m + r + TILE].copy_from_slice(sums);
                }
                r += TILE;
            }
        }
        for r in r..m {
            for (o, w) in w.chunks_exact(k).enumerate() {
                out[o * m + r] = dot_body::<L>(&x[r * k..(r + 1) * k], w);
            }
        }
    }
}

/// Four rows of `w` against four rows of `x`, all (4, k): `[w row][x row]`.
#[inline(always)]
fn tile<L: Lanes>(x: &[f32], w: &[f32], k: usize) -> [[f32; TILE]; TILE] {
    let chunks = k / LANES;
    let [x0, x1, x2, x3] = [0, 1, 2, 3].map(|i| &x[i * k..(i + 1) * k].as_chunks::<LANES>().0[..chunks]);
    let [w0, w1, w2, w3] = [0, 1, 2, 3].map(|i| &w[i * k..(i + 1) * k].as_chunks::<LANES>().0[..chunks]);
    let mut sums = [[L::splat(0.0); TILE]; TILE];
    for c in 0..chunks {
        let (x0, x1, x2, x3) = (L::load(&x0[c]), L::load(&x1[c]), L::load(&x2[c]), L::load(&x3[c]));
        let x = [x0, x1, x2, x3];
        sums = [
            plus_products(sums[0], x, L::load(&w0[c])),
            plus_products(sums[1], x, L::load(&w1[c])),
            plus_products(sums[2], x, L::load(&w2[c])),
            plus_products(sums[3], x, L::load(&w3[c])),
        ];
    }
    // Loops, not `map`: a closure passed to a library function is compiled without this function's features.
    let mut out = [[0f32; TILE]; TILE];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum.sum();
        }
    }
    for (o, out) in out.iter_mut().enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            *out += (chunks * LANES..k).map(|i| x[j * k + i] * w[o * k + i]).sum::<f32>();
        }
    }
    out
}

/// Sixteen floats of `data` from `at` on.
#[inline(always)]
fn load_at<L: Lanes>(data: &[f32], at: usize) -> L {
    L::load(data[at..at + LANES].as_array::<LANES>().expect("the range is LANES long"))
}

#[inline(always)]
fn add_low_rank_body<L: Lanes>(out: &mut [f32], h: &[f32], b: &[f32], rank: usize) {
    let width = b.len() / rank;
    let chunks = width / LANES;
    for row in 0..out.len() / width {
        let (out, h) = (&mut out[row * width..(row + 1) * width], &h[row * rank..(row + 1) * rank]);
        for i in 0..chunks {
            let mut sum: L = load_at(out, i * LANES);
            let mut r = 0;
            while r < rank {
                sum = sum.plus_product(L::splat(h[r]), load_at(b, r * width + i * LANES));
                r += 1;
            }
            sum.store(out[i * LANES..(i + 1) * LANES].as_mut_array::<LANES>().expect("the range is LANES long"));
        }
        for column in chunks * LANES..width {
            for r in 0..rank {
                out[column] += h[r] * b[r * width + column];
            }
        }
    }
}

#[inline(always)]
fn add_outer_body<L: Lanes>(out: &mut [f32], h: &[f32], x: &[f32], rank: usize) {
    /// Rows of `out` that are summed in registers together.
    const GROUP: usize = 8;
    let width = out.len() / rank;
    let (rows, chunks) = (x.len() / width, width / LANES);
    let mut first = 0;
    while first + GROUP <= rank {
        for i in 0..chunks {
            let mut sums = [L::splat(0.0); GROUP];
            let mut row = 0;
            while row < rows {
                let x: L = load_at(x, row * width + i * LANES);
                let h = h[row * rank + first..row * rank + first + GROUP].as_array::<GROUP>().expect("the range is GROUP long");
                sums = [
                    sums[0].plus_product(L::splat(h[0]), x),
                    sums[1].plus_product(L::splat(h[1]), x),
                    sums[2].plus_product(L::splat(h[2]), x),
                    sums[3].plus_product(L::splat(h[3]), x),
                    sums[4].plus_product(L::splat(h[4]), x),
                    sums[5].plus_product(L::splat(h[5]), x),
                    sums[6].plus_product(L::splat(h[6]), x),
                    sums[7].plus_product(L::splat(h[7]), x),
                ];
                row += 1;
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let at = (first + r) * width + i * LANES;
                let total = load_at::<L>(out, at).plus_product(sum, L::splat(1.0));
                total.store(out[at..at + LANES].as_mut_array::<LANES>().expect("the range is LANES long"));
            }
        }
        first += GROUP;
    }
    // Ranks that are no multiple of the group, and columns that are no multiple of the lanes.
    for row in 0..rows {
        let (x, h) = (&x[row * width..(row + 1) * width], &h[row * rank..(row + 1) * rank]);
        for r in 0..rank {
            let start = if r < first { chunks * LANES } else { 0 };
            for column in start..width {
                out[r * width + column] += h[r] * x[column];
            }
        }
    }
}

/// e^x with a relative error under 2e-7 for x in [-87, 88] (range reduction by ln 2 and a degree-6 polynomial, after Cephes `expf`).
#[inline(always)]
fn exp<L: Lanes>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction loses no bits (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = fma::<L>(x, LOG2_E, ROUND) - ROUND;
    let r = fma::<L>(n, -LN2_LOW, fma::<L>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<L>(p, r, c);
    }
    let e = fma::<L>(p * r, r, r) + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    e * scale
}

#[inline(always)]
fn sum_of(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().chain(rest).sum()
}

#[inline(always)]
fn layer_norm_body<L: Lanes>(x: &mut [f32], residual: &[f32], norm: Affine<'_>) {
    let width = norm.weight.len();
    for (row, residual) in x.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
        for (x, residual) in row.iter_mut().zip(residual) {
            *x += residual;
        }
        let mean = sum_of(row) / width as f32;
        for x in row.iter_mut() {
            *x -= mean;
        }
        let inverse = 1.0 / (dot_body::<L>(row, row) / width as f32 + norm.epsilon).sqrt();
        for ((x, weight), bias) in row.iter_mut().zip(norm.weight).zip(norm.bias) {
            *x = fma::<L>(*x * inverse, *weight, *bias);
        }
    }
}

#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

#[inline(always)]
fn exponentiate<L: Lanes>(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp::<L>(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    let mut total = L::load(&lanes).sum();
    for x in rest {
        *x = exp::<L>(*x - max);
        total += *x;
    }
    total
}

#[inline(always)]
fn softmax_body<L: Lanes>(row: &mut [f32]) {
    let max = max_of(row);
    let inverse = 1.0 / exponentiate::<L>(row, max);
    for x in row {
        *x *= inverse;
    }
}

#[inline(always)]
fn softmax_stats_body<L: Lanes>(row: &mut [f32]) -> (f32, f32) {
    let max = max_of(row);
    let total = exponentiate::<L>(row, max);
    let inverse = 1.0 / total;
    for x in row {
        *x *= inverse;
    }
    (total.ln(), max)
}

#[inline(always)]
fn exponentials_body<L: Lanes>(row: &mut [f32]) -> (f32, f32) {
    let max = max_of(row);
    (exponentiate::<L>(row, max), max)
}

#[inline(always)]
fn swiglu_body<L: Lanes>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + exp::<L>(-g)) * u;
    }
}

#[inline(always)]
fn swiglu_backward_body<L: Lanes>(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for ((g, u), d) in gate.iter_mut().zip(up.iter_mut()).zip(grad) {
        let sigmoid = 1.0 / (1.0 + exp::<L>(-*g));
        let (gate, up) = (*g, *u);
        *u = d * gate * sigmoid;
        *g = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
    }
}

#[inline(always)]
fn swiglu_again_body<L: Lanes>(out: &mut [f32], gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for (((o, g), u), d) in out.iter_mut().zip(gate).zip(up).zip(grad) {
        let sigmoid = 1.0 / (1.0 + exp::<L>(-*g));
        let (gate, up) = (*g, *u);
        let silu = gate * sigmoid;
        *o = silu * up;
        *u = d * silu;
        *g = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
    }
}

/// √(2 / π), and the factor on the cube: 0.5 · (1 + tanh(u)) is sigmoid(2 u) for u = √(2/π) · (x + 0.044715 x³).
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

#[inline(always)]
fn gelu_sigmoid<L: Lanes>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<L>(-2.0 * GELU.0 * x * (1.0 + GELU.1 * x * x)))
}

#[inline(always)]
fn geglu_body<L: Lanes>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g * gelu_sigmoid::<L>(*g) * u;
    }
}

#[inline(always)]
fn geglu_backward_body<L: Lanes>(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for ((g, u), d) in gate.iter_mut().zip(up.iter_mut()).zip(grad) {
        let sigmoid = gelu_sigmoid::<L>(*g);
        let (gate, up) = (*g, *u);
        let slope = 2.0 * GELU.0 * (1.0 + 3.0 * GELU.1 * gate * gate);
        *u = d * gate * sigmoid;
        *g = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid) * slope);
    }
}

#[inline(always)]
fn geglu_again_body<L: Lanes>(out: &mut [f32], gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for (((o, g), u), d) in out.iter_mut().zip(gate).zip(up).zip(grad) {
        let sigmoid = gelu_sigmoid::<L>(*g);
        let (gate, up) = (*g, *u);
        let (gelu, slope) = (gate * sigmoid, 2.0 * GELU.0 * (1.0 + 3.0 * GELU.1 * gate * gate));
        *o = gelu * up;
        *u = d * gelu;
        *g = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid) * slope);
    }
}

#[inline(always)]
fn softmax_backward_body<L: Lanes>(gradient: &mut [f32], probability: &[f32], scale: f32) {
    let inner = dot_body::<L>(gradient, probability);
    for (g, p) in gradient.iter_mut().zip(probability) {
        *g = p * (*g - inner) * scale;
    }
}

#[inline(always)]
fn rms_norm_body<L: Lanes>(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let inverse = 1.0 / (dot_body::<L>(x, x) / width as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * weight;
        }
    }
}

#[inline(always)]
fn rms_norm_backward_body<L: Lanes>(dx: &mut [f32], x: &[f32], grad: &[f32], (weight, epsilon): (&[f32], f32)) {
    let width = weight.len();
    for ((dx, x), grad) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width)) {
        let inverse = 1.0 / (dot_body::<L>(x, x) / width as f32 + epsilon).sqrt();
        let along = weighted_dot::<L>(grad, weight, x) * inverse * inverse * inverse / width as f32;
        for (((dx, x), grad), weight) in dx.iter_mut().zip(x).zip(grad).zip(weight) {
            *dx += grad * weight * inverse - x * along;
        }
    }
}

/// Sum of a · b · c.
#[inline(always)]
fn weighted_dot<L: Lanes>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest), (c, c_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    let mut sum = L::splat(0.0);
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        sum = sum.plus_product(L::load(a).times(L::load(b)), L::load(c));
    }
    sum.sum() + a_rest.iter().zip(b_rest).zip(c_rest).map(|((a, b), c)| a * b * c).sum::<f32>()
}

#[inline(always)]
fn attention_tile_body<L: Lanes>(scores: &mut [f32], grads: &mut [f32], log_sums: &[f32], inner: &[f32]) {
    let queries = log_sums.len();
    for (scores, grads) in scores.chunks_exact_mut(queries).zip(grads.chunks_exact_mut(queries)) {
        for (((score, grad), log_sum), inner) in scores.iter_mut().zip(grads).zip(log_sums).zip(inner) {
            *score = exp::<L>(*score - log_sum);
            *grad = *score * (*grad - inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    #[test]
    fn exp_is_exact_to_two_ulp_or_so() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (y, expected) = (exp::<Portable>(x), f64::from(x).exp());
            assert!((f64::from(y) - expected).abs() <= 3e-7 * expected, "exp({x}) = {y}, expected {expected}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_plain_product() {
        for (m, n, k) in [(1, 3, 5), (4, 2, 16), (7, 9, 33), (16, 5, 64), (3, 1, 100)] {
            let (x, w) = (wave(m * k, 0.7), wave(n * k, 0.3));
            let (mut fast, mut portable) = (vec![0.0; n * m], vec![0.0; n * m]);
            products_transposed(&mut fast, &x, &w, k);
            products_body::<Portable>(&mut portable, &x, &w, k);
            for o in 0..n {
                for r in 0..m {
                    let plain: f64 = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[o * k + i])).sum();
                    for y in [fast[o * m + r], portable[o * m + r]] {
                        assert!((f64::from(y) - plain).abs() < 1e-3, "({m}, {n}, {k}) at ({o}, {r}): {y} against {plain}");
                    }
                }
            }
        }
    }

    #[test]
    fn low_rank_products_equal_the_plain_sums() {
        for (rows, width, rank) in [(5, 35, 3), (9, 64, 8), (3, 16, 11)] {
            let (h, b, x) = (wave(rows * rank, 0.5), wave(rank * width, 0.2), wave(rows * width, 0.8));
            let (mut update, mut outer) = (x.clone(), wave(rank * width, 0.1));
            add_low_rank(&mut update, &h, &b, rank);
            add_outer(&mut outer, &h, &x, rank);
            for i in 0..rows * width {
                let expected = x[i] + (0..rank).map(|r| h[i / width * rank + r] * b[r * width + i % width]).sum::<f32>();
                assert!((update[i] - expected).abs() < 1e-3, "({rows}, {width}, {rank}) update {i}");
            }
            for i in 0..rank * width {
                let expected =
                    wave(rank * width, 0.1)[i] + (0..rows).map(|row| h[row * rank + i / width] * x[row * width + i % width]).sum::<f32>();
                assert!((outer[i] - expected).abs() < 1e-3, "({rows}, {width}, {rank}) outer {i}");
            }
        }
    }

    #[test]
    fn layer_norm_equals_the_plain_formula() {
        let (bias, x) = (wave(35, 0.4), wave(70, 0.23));
        let mut normed = x.clone();
        let (weight, residual) = (wave(35, 0.6), wave(70, 0.31));
        layer_norm(&mut normed, &residual, Affine { weight: &weight, bias: &bias, epsilon: 1e-12 });
        for (i, normed) in normed.iter().enumerate() {
            let row: Vec<f64> = (i / 35 * 35..i / 35 * 35 + 35).map(|i| f64::from(x[i] + residual[i])).collect();
            let mean = row.iter().sum::<f64>() / 35.0;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 35.0;
            let expected = (row[i % 35] - mean) / variance.sqrt() * f64::from(weight[i % 35]) + f64::from(bias[i % 35]);
            assert!((f64::from(*normed) - expected).abs() < 1e-5, "element {i}: {normed} against {expected}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_survives_large_values() {
        let mut row = wave(77, 0.9);
        row[3] = 1e4;
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5 && (row[3] - 1.0).abs() < 1e-5);
    }
}
