//! Loops that are worth wide registers: each body is compiled three times (AVX-512, AVX2 + FMA, portable) and chosen at run time, so
//! that a binary built for plain x86-64 runs at speed. The bodies are safe, chunked Rust that the compiler vectorises.
#![expect(unsafe_code, reason = "calling a function compiled for a CPU feature is unsafe unless the feature was detected")]

const LANES: usize = 16;

/// Defines a function whose body is compiled for each instruction set.
macro_rules! multiversion {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? { $body::<true>($($arg),*) }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("fma") {
                    // SAFETY: every feature the function was compiled for was just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<false>($($arg),*)
        }
    };
}

multiversion! {
    /// `out[r * rows_w + o] = x[r] · w[o]` for every row of `x` (m, k) and of `w` (n, k), written transposed: `out` is (n, m).
    /// For few rows of `x`: the weights are read once, which is what decoding is bound by.
    pub fn products_transposed(out: &mut [f32], x: &[f32], w: &[f32], k: usize) = products_body
}
multiversion! {
    /// One query head against a cached context: softmax(q Kᵀ · scale) V. `keys` and `values` hold one row per position, `stride` apart,
    /// beginning with this head's first element; `scores` is scratch of at least `positions` elements.
    pub fn attend(out: &mut [f32], query: &[f32], context: Context<'_>, scores: &mut [f32]) = attend_body
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
    /// `out = silu(gate) · up`
    pub fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) = swiglu_body
}
multiversion! {
    /// Gradients of [`swiglu`]: `gate` and `up` are overwritten with d gate and d up for the gradient `grad` of the output.
    pub fn swiglu_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) = swiglu_backward_body
}
multiversion! {
    /// Dot product.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 = dot_body
}
multiversion! {
    /// `row = probability · (gradient - dot(probability, gradient)) · scale`, the softmax backward of one row, into `gradient`.
    pub fn softmax_backward(gradient: &mut [f32], probability: &[f32], scale: f32) = softmax_backward_body
}

/// Cached keys and values of one head.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Keys, from this head's first element on.
    pub keys: &'a [f32],
    /// Values, likewise.
    pub values: &'a [f32],
    /// Positions to attend to.
    pub positions: usize,
    /// Elements between two positions.
    pub stride: usize,
    /// Factor on the scores.
    pub scale: f32,
}

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sum(lanes) + rest
}

#[inline(always)]
fn products_body<const FMA: bool>(out: &mut [f32], x: &[f32], w: &[f32], k: usize) {
    const ROWS: usize = 4;
    let m = x.len() / k;
    for (w4, out4) in w.chunks(2 * k).zip(out.chunks_mut(2 * m)) {
        let mut r = 0;
        if w4.len() == 2 * k {
            while r + ROWS <= m {
                tile::<FMA>(out4, &x[r * k..(r + ROWS) * k], w4, (k, m, r));
                r += ROWS;
            }
        }
        for r in r..m {
            for (o, w) in w4.chunks_exact(k).enumerate() {
                out4[o * m + r] = dot_body::<FMA>(&x[r * k..(r + 1) * k], w);
            }
        }
    }
}

/// Two weight rows against four rows of x: eight accumulators, six loads for eight multiply-adds.
#[inline(always)]
fn tile<const FMA: bool>(out: &mut [f32], x: &[f32], w: &[f32], (k, m, r): (usize, usize, usize)) {
    let (x0, rest) = x.split_at(k);
    let (x1, rest) = rest.split_at(k);
    let (x2, x3) = rest.split_at(k);
    let (w0, w1) = w.split_at(k);
    let mut lanes = [[[0f32; LANES]; 4]; 2];
    let chunks = k / LANES;
    let (x0c, x1c, x2c, x3c) = (x0.as_chunks::<LANES>().0, x1.as_chunks::<LANES>().0, x2.as_chunks::<LANES>().0, x3.as_chunks::<LANES>().0);
    let (w0c, w1c) = (w0.as_chunks::<LANES>().0, w1.as_chunks::<LANES>().0);
    for c in 0..chunks {
        let xs = [&x0c[c], &x1c[c], &x2c[c], &x3c[c]];
        for (o, w) in [&w0c[c], &w1c[c]].into_iter().enumerate() {
            for (j, x) in xs.iter().enumerate() {
                for i in 0..LANES {
                    lanes[o][j][i] = fma::<FMA>(x[i], w[i], lanes[o][j][i]);
                }
            }
        }
    }
    let done = chunks * LANES;
    for (o, w) in [w0, w1].into_iter().enumerate() {
        for (j, x) in [x0, x1, x2, x3].into_iter().enumerate() {
            let rest: f32 = (done..k).map(|i| x[i] * w[i]).sum();
            out[o * m + r + j] = sum(lanes[o][j]) + rest;
        }
    }
}

#[inline(always)]
fn attend_body<const FMA: bool>(out: &mut [f32], query: &[f32], context: Context<'_>, scores: &mut [f32]) {
    let width = query.len();
    let scores = &mut scores[..context.positions];
    for (p, score) in scores.iter_mut().enumerate() {
        *score = dot_body::<FMA>(query, &context.keys[p * context.stride..][..width]) * context.scale;
    }
    softmax_body::<FMA>(scores);
    out.fill(0.0);
    for (p, score) in scores.iter().enumerate() {
        let value = &context.values[p * context.stride..][..width];
        for (o, v) in out.iter_mut().zip(value) {
            *o = fma::<FMA>(*score, *v, *o);
        }
    }
}

/// e^x with a relative error under 2e-7 for x in [-87, 88] (range reduction by ln 2 and a degree-6 polynomial, after Cephes `expf`).
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that the reduction loses no bits (Cody and Waite).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = fma::<FMA>(x, LOG2_E, ROUND) - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, r, c);
    }
    let e = fma::<FMA>(p * r, r, r) + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) << 23) as u32);
    e * scale
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
fn exponentiate<const FMA: bool>(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp::<FMA>(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    let mut total = sum(lanes);
    for x in rest {
        *x = exp::<FMA>(*x - max);
        total += *x;
    }
    total
}

#[inline(always)]
fn softmax_body<const FMA: bool>(row: &mut [f32]) {
    let max = max_of(row);
    let inverse = 1.0 / exponentiate::<FMA>(row, max);
    for x in row {
        *x *= inverse;
    }
}

#[inline(always)]
fn softmax_stats_body<const FMA: bool>(row: &mut [f32]) -> (f32, f32) {
    let max = max_of(row);
    let total = exponentiate::<FMA>(row, max);
    let inverse = 1.0 / total;
    for x in row {
        *x *= inverse;
    }
    (total.ln(), max)
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + exp::<FMA>(-g)) * u;
    }
}

#[inline(always)]
fn swiglu_backward_body<const FMA: bool>(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    for ((g, u), d) in gate.iter_mut().zip(up.iter_mut()).zip(grad) {
        let sigmoid = 1.0 / (1.0 + exp::<FMA>(-*g));
        let (gate, up) = (*g, *u);
        *u = d * gate * sigmoid;
        *g = d * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
    }
}

#[inline(always)]
fn softmax_backward_body<const FMA: bool>(gradient: &mut [f32], probability: &[f32], scale: f32) {
    let inner = dot_body::<FMA>(gradient, probability);
    for (g, p) in gradient.iter_mut().zip(probability) {
        *g = p * (*g - inner) * scale;
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
            for y in [exp::<true>(x), exp::<false>(x)] {
                let expected = f64::from(x).exp();
                assert!((f64::from(y) - expected).abs() <= 3e-7 * expected, "exp({x}) = {y}, expected {expected}");
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_plain_product() {
        for (m, n, k) in [(1, 3, 5), (4, 2, 16), (7, 9, 33), (16, 5, 64), (3, 1, 100)] {
            let (x, w) = (wave(m * k, 0.7), wave(n * k, 0.3));
            let (mut fast, mut portable) = (vec![0.0; n * m], vec![0.0; n * m]);
            products_transposed(&mut fast, &x, &w, k);
            products_body::<false>(&mut portable, &x, &w, k);
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
    fn softmax_sums_to_one_and_survives_large_values() {
        let mut row = wave(77, 0.9);
        row[3] = 1e4;
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5 && (row[3] - 1.0).abs() < 1e-5);
    }
}
