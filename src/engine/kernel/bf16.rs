//! Products of bfloat16 with sums in f32 (AVX-512 BF16: 32 products in an instruction), which training is made of. The right side is
//! packed: columns lie in panels of 64, two neighbours of the depth side by side, so that a panel is read from its beginning to its end.
//!
//! A sum runs over the depth in one order, whatever is computed beside it, so results do not depend on threads or blocks of rows.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "processor intrinsics; an `Isa` is the proof that they may be called, and every pointer is checked first"
    )
)]

use super::huge::Buffer;
use std::ops::Deref;

/// Columns that lie side by side in memory: one line.
const LANES: usize = 16;
/// Lines of a panel.
const LINES: usize = 4;
/// Pairs of the depth that are summed before the next panel's turn, so that a part of a panel stays in the cache.
const DEPTH: usize = 384;

/// Proof that this processor multiplies bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(());

impl Isa {
    /// The proof, where it can be had.
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
        {
            return Some(Isa(()));
        }
        None
    }
}

/// Sixteen columns, each with two neighbours of the depth: the earlier one in the lower half.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub(super) [u32; LANES]);

/// A packed matrix (depth, columns), in memory of its own kind.
#[derive(Debug, Clone)]
pub struct Panels<D> {
    lines: D,
    columns: usize,
    depth: usize,
}

/// Panels that stay as they are: weights.
pub type Frozen = Panels<Buffer<Line>>;
/// Panels that are packed again and again.
pub type Scratch = Panels<Vec<Line>>;

/// A matrix of f32 that is packed: rows lie `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance of two rows.
    pub stride: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Panels { lines: Vec::new(), columns: 0, depth: 0 }
    }
}

impl<D: Deref<Target = [Line]>> Panels<D> {
    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn pairs(&self) -> usize {
        self.depth.div_ceil(2)
    }
}

impl Frozen {
    /// Packs a weight (outputs, inputs) for both directions: for x Wᵀ and for g W.
    ///
    /// # Panics
    /// When the lengths do not fit: a programming error.
    pub fn both(isa: Isa, weight: &[f32], (outputs, inputs): (usize, usize)) -> (Self, Self) {
        let mut scratch = Scratch::default();
        scratch.pack_columns_of_rows(isa, Source { data: weight, stride: inputs }, (inputs, outputs));
        (scratch.kept(), Self::backward(isa, weight, (outputs, inputs)))
    }

    /// The second half of [`Frozen::both`]: for g W.
    ///
    /// # Panics
    /// As [`Frozen::both`].
    pub fn backward(isa: Isa, weight: &[f32], (outputs, inputs): (usize, usize)) -> Self {
        let mut scratch = Scratch::default();
        scratch.pack(isa, Source { data: weight, stride: inputs }, (outputs, inputs));
        scratch.kept()
    }
}

impl Scratch {
    /// A copy that stays.
    fn kept(&self) -> Frozen {
        Panels { lines: Buffer::keep(&self.lines), columns: self.columns, depth: self.depth }
    }

    fn resize(&mut self, (depth, columns): (usize, usize)) {
        self.columns = columns;
        self.depth = depth;
        self.lines.resize(depth.div_ceil(2) * columns.div_ceil(LANES), Line([0; LANES]));
    }

    /// Packs a matrix whose rows are the depth: source (depth, columns).
    ///
    /// # Panics
    /// When the source is too short: a programming error.
    pub fn pack(&mut self, isa: Isa, source: Source<'_>, shape: (usize, usize)) {
        self.resize(shape);
        check(source, shape);
        kernels::pack(isa, &mut self.lines, source, shape);
    }

    /// Packs a matrix whose rows are the columns: source (columns, depth), for products with its transpose.
    ///
    /// # Panics
    /// As [`Scratch::pack`].
    pub fn pack_columns_of_rows(&mut self, isa: Isa, source: Source<'_>, (depth, columns): (usize, usize)) {
        self.resize((depth, columns));
        check(source, (columns, depth));
        let pairs = depth.div_ceil(2);
        let mut row = vec![0u32; pairs];
        let lines = columns.div_ceil(LANES);
        for column in 0..lines * LANES {
            if column < columns {
                round(isa, &mut row, Source { data: &source.data[column * source.stride..][..depth], stride: depth }, (1, depth), 1.0);
            } else {
                row.fill(0);
            }
            let (line, lane) = (column / LANES, column % LANES);
            let (panel, inside) = (line / LINES, line % LINES);
            let width = LINES.min(lines - panel * LINES);
            let first = panel * LINES * pairs + inside;
            for (pair, value) in row.iter().enumerate() {
                self.lines[first + pair * width].0[lane] = *value;
            }
        }
    }
}

fn check(source: Source<'_>, (rows, columns): (usize, usize)) {
    let end = if rows == 0 { 0 } else { (rows - 1) * source.stride + columns };
    assert!(end <= source.data.len() && columns <= source.stride, "a matrix ({rows}, {columns}) reaches past its data");
}

/// Rounds rows of `width` values times `scale` to pairs, `width.div_ceil(2)` of them for each row; the last half of an odd width is 0.
///
/// # Panics
/// When the lengths do not fit: a programming error.
pub fn round(isa: Isa, pairs: &mut [u32], source: Source<'_>, (rows, width): (usize, usize), scale: f32) {
    check(source, (rows, width));
    assert!(pairs.len() == rows * width.div_ceil(2), "rounded rows do not fit");
    kernels::round(isa, pairs, source, width, scale);
}

/// The values of pairs as f32.
///
/// # Panics
/// When the lengths do not fit: a programming error.
pub fn widen(isa: Isa, out: &mut [f32], pairs: &[u32]) {
    assert!(pairs.len() == out.len().div_ceil(2), "rounded values do not fit");
    kernels::widen(isa, out, pairs);
}

/// Where a product goes: row i begins at element `i * stride`.
pub struct Target<'a> {
    /// Elements.
    pub data: &'a mut [f32],
    /// Distance of two rows.
    pub stride: usize,
    /// Whether the product is added to what is there.
    pub add: bool,
}

/// The left side: rows of pairs, `stride` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Pairs.
    pub pairs: &'a [u32],
    /// Distance of two rows, in pairs.
    pub stride: usize,
    /// Number of rows.
    pub count: usize,
}

/// Part of the right side: the first `columns` columns, and of the depth `pairs` pairs from `first` on.
#[derive(Clone, Copy)]
pub struct Part {
    /// Columns that are computed.
    pub columns: usize,
    /// First pair of the depth; the left side begins there.
    pub first: usize,
    /// Pairs of the depth.
    pub pairs: usize,
}

/// `target [+]= rows · panels`.
///
/// # Panics
/// When the shapes do not fit: a programming error.
pub fn product<D: Deref<Target = [Line]>>(isa: Isa, target: Target<'_>, rows: Rows<'_>, panels: &Panels<D>) {
    let part = Part { columns: panels.columns, first: 0, pairs: panels.pairs() };
    product_part(isa, target, rows, panels, part);
}

/// As [`product`], over a part of the panels.
///
/// # Panics
/// As [`product`].
pub fn product_part<D: Deref<Target = [Line]>>(isa: Isa, target: Target<'_>, rows: Rows<'_>, panels: &Panels<D>, part: Part) {
    if rows.count == 0 || part.columns == 0 {
        return;
    }
    let last = rows.count - 1;
    assert!(part.columns <= panels.columns && part.first + part.pairs <= panels.pairs(), "a part past the panels");
    assert!(last * rows.stride + part.pairs <= rows.pairs.len(), "a left side past its data");
    assert!(part.columns <= target.stride && last * target.stride + part.columns <= target.data.len(), "a product past its target");
    assert!(panels.lines.len() == panels.pairs() * panels.columns.div_ceil(LANES), "panels of another size");
    kernels::product(isa, target, rows, (&panels.lines, panels.columns, panels.pairs()), part);
}

#[cfg(not(target_arch = "x86_64"))]
mod kernels {
    use super::{Isa, Line, Part, Rows, Source, Target};

    const NONE: &str = "an `Isa` exists only where there are instructions";

    pub(super) fn pack(_: Isa, _: &mut [Line], _: Source<'_>, _: (usize, usize)) {
        unreachable!("{NONE}")
    }
    pub(super) fn round(_: Isa, _: &mut [u32], _: Source<'_>, _: usize, _: f32) {
        unreachable!("{NONE}")
    }
    pub(super) fn widen(_: Isa, _: &mut [f32], _: &[u32]) {
        unreachable!("{NONE}")
    }
    pub(super) fn product(_: Isa, _: Target<'_>, _: Rows<'_>, _: (&[Line], usize, usize), _: Part) {
        unreachable!("{NONE}")
    }
}

#[cfg(target_arch = "x86_64")]
mod kernels {
    use super::{DEPTH, Isa, LANES, LINES, Line, Part, Rows, Source, Target};
    use std::arch::x86_64::*;

    /// Rows of a tile: 6 × 4 sums, 4 columns' lines and one pair fill 29 of 32 registers.
    const TILE: usize = 6;

    /// Both rows' values as pairs, `a` in the lower halves.
    #[inline(always)]
    fn paired(a: __m512, b: __m512) -> __m512i {
        // SAFETY: called only from functions compiled for avx512bf16, bw and vl, after detection; likewise below.
        unsafe { _mm512_or_si512(halves(a), _mm512_slli_epi32::<16>(halves(b))) }
    }

    /// The values as bfloat16 in the lower halves of words.
    #[inline(always)]
    fn halves(x: __m512) -> __m512i {
        // SAFETY: as above; both types are 32 plain bytes.
        unsafe { _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))) }
    }

    /// The first sixteen values; zeros where there are fewer.
    #[inline(always)]
    fn first(values: &[f32]) -> __m512 {
        let mask = ((1u32 << values.len().min(LANES)) - 1) as __mmask16;
        // SAFETY: lanes outside the mask are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
    }

    pub(super) fn pack(_: Isa, lines: &mut [Line], source: Source<'_>, shape: (usize, usize)) {
        // SAFETY: an `Isa` exists only where every feature was detected.
        unsafe { pack_detected(lines, source, shape) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn pack_detected(lines: &mut [Line], source: Source<'_>, (depth, columns): (usize, usize)) {
        let (pairs, all) = (depth.div_ceil(2), columns.div_ceil(LANES));
        for pair in 0..pairs {
            let row = &source.data[2 * pair * source.stride..][..columns];
            let next = if 2 * pair + 1 < depth { &source.data[(2 * pair + 1) * source.stride..][..columns] } else { &[] };
            for line in 0..all {
                let (panel, inside) = (line / LINES, line % LINES);
                let width = LINES.min(all - panel * LINES);
                let at = panel * LINES * pairs + pair * width + inside;
                let from = line * LANES;
                let value = paired(first(&row[from..]), first(next.get(from..).unwrap_or(&[])));
                // SAFETY: a line is sixteen words.
                unsafe { _mm512_storeu_si512(lines[at].0.as_mut_ptr().cast(), value) };
            }
        }
    }

    pub(super) fn round(_: Isa, pairs: &mut [u32], source: Source<'_>, width: usize, scale: f32) {
        // SAFETY: as above.
        unsafe { round_detected(pairs, source, width, scale) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn round_detected(pairs: &mut [u32], source: Source<'_>, width: usize, scale: f32) {
        let scale = _mm512_set1_ps(scale);
        let stride = width.div_ceil(2);
        for row in 0..pairs.len() / stride {
            let (from, to) = (&source.data[row * source.stride..][..width], &mut pairs[row * stride..][..stride]);
            let mut at = 0;
            while at < stride {
                let (low, high) = (&from[2 * at..], from.get(2 * at + LANES..).unwrap_or(&[]));
                let (low, high) = (_mm512_mul_ps(first(low), scale), _mm512_mul_ps(first(high), scale));
                let mask = ((1u32 << (stride - at).min(LANES)) - 1) as __mmask16;
                // SAFETY: lanes outside the mask are not written, and both types are 64 plain bytes.
                unsafe {
                    let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    _mm512_mask_storeu_epi32(to[at..].as_mut_ptr().cast(), mask, rounded);
                }
                at += LANES;
            }
        }
    }

    pub(super) fn widen(_: Isa, out: &mut [f32], pairs: &[u32]) {
        // SAFETY: as above.
        unsafe { widen_detected(out, pairs) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn widen_detected(out: &mut [f32], pairs: &[u32]) {
        let mut at = 0;
        while at < out.len() {
            let mask = ((1u32 << (out.len() - at).min(LANES)) - 1) as __mmask16;
            let read = ((1u32 << (out.len() - at).div_ceil(2).min(LANES / 2)) - 1) as __mmask8;
            // SAFETY: lanes outside the masks are neither read nor written.
            unsafe {
                let halves = _mm256_maskz_loadu_epi32(read, pairs[at / 2..].as_ptr().cast());
                let wide = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves));
                _mm512_mask_storeu_ps(out[at..].as_mut_ptr(), mask, _mm512_castsi512_ps(wide));
            }
            at += LANES;
        }
    }

    pub(super) fn product(_: Isa, target: Target<'_>, rows: Rows<'_>, panels: (&[Line], usize, usize), part: Part) {
        // SAFETY: as above; the caller has checked that every row, column and pair of the part lies inside its slice.
        unsafe { product_detected(target, rows, panels, part) }
    }

    /// # Safety
    /// Every row, column and pair of the part lies inside its slice.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn product_detected(target: Target<'_>, rows: Rows<'_>, (lines, columns, depth): (&[Line], usize, usize), part: Part) {
        let (all, wanted) = (columns.div_ceil(LANES), part.columns.div_ceil(LANES));
        let chunks = part.pairs.div_ceil(DEPTH).max(1);
        for chunk in 0..chunks {
            let (start, end) = (part.pairs * chunk / chunks, part.pairs * (chunk + 1) / chunks);
            for panel in 0..wanted.div_ceil(LINES) {
                let width = LINES.min(all - panel * LINES);
                let count = width.min(wanted - panel * LINES);
                let rest = part.columns - (panel * LINES + count - 1) * LANES;
                let tile = Tile {
                    a: rows.pairs.as_ptr().wrapping_add(start),
                    a_stride: rows.stride,
                    b: lines.as_ptr().wrapping_add(panel * LINES * depth + (part.first + start) * width).cast(),
                    b_stride: width,
                    c: target.data.as_mut_ptr().wrapping_add(panel * LINES * LANES),
                    c_stride: target.stride,
                    pairs: end - start,
                    add: target.add || chunk > 0,
                    mask: if rest >= LANES { u16::MAX } else { (1u16 << rest) - 1 },
                };
                // SAFETY: the tile's pointers begin inside their slices, and its extents are the part's.
                unsafe {
                    match count {
                        4 => tile.rows::<4>(rows.count),
                        3 => tile.rows::<3>(rows.count),
                        2 => tile.rows::<2>(rows.count),
                        _ => tile.rows::<1>(rows.count),
                    }
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    struct Tile {
        a: *const u32,
        a_stride: usize,
        b: *const __m512i,
        b_stride: usize,
        c: *mut f32,
        c_stride: usize,
        pairs: usize,
        add: bool,
        /// Columns of the last line.
        mask: __mmask16,
    }

    impl Tile {
        /// # Safety
        /// `count` rows of a and c, `N` lines of b and the pairs lie inside their slices; the features were detected.
        #[inline(always)]
        unsafe fn rows<const N: usize>(mut self, count: usize) {
            let mut left = count;
            // SAFETY: as promised by the caller, row by row.
            unsafe {
                // With few lines, more rows, so that a sum is ready when its turn comes again.
                while N == 1 && left >= 2 * TILE {
                    self.tile::<{ 2 * TILE }, N>();
                    self = self.down(2 * TILE);
                    left -= 2 * TILE;
                }
                while left >= TILE {
                    self.tile::<TILE, N>();
                    self = self.down(TILE);
                    left -= TILE;
                }
                match left {
                    5 => self.tile::<5, N>(),
                    4 => self.tile::<4, N>(),
                    3 => self.tile::<3, N>(),
                    2 => self.tile::<2, N>(),
                    1 => self.tile::<1, N>(),
                    _ => {}
                }
            }
        }

        #[inline(always)]
        fn down(self, rows: usize) -> Self {
            Tile { a: self.a.wrapping_add(rows * self.a_stride), c: self.c.wrapping_add(rows * self.c_stride), ..self }
        }

        /// # Safety
        /// As [`Tile::rows`], for `M` rows.
        #[inline(always)]
        unsafe fn tile<const M: usize, const N: usize>(self) {
            // SAFETY: as promised by the caller; the last line is read and written only where its mask allows.
            unsafe {
                // Counted loops: iterators over arrays were seen to become calls without the features, some hundred times slower.
                let mut sums = [[_mm512_setzero_ps(); N]; M];
                let mut masks = [u16::MAX; N];
                masks[N - 1] = self.mask;
                let (mut i, mut j);
                if self.add {
                    i = 0;
                    while i < M {
                        j = 0;
                        while j < N {
                            sums[i][j] = _mm512_maskz_loadu_ps(masks[j], self.c.add(i * self.c_stride + j * LANES));
                            j += 1;
                        }
                        i += 1;
                    }
                }
                let (mut b, mut pair) = (self.b, 0);
                while pair < self.pairs {
                    let mut lines = [_mm512_setzero_si512(); N];
                    j = 0;
                    while j < N {
                        lines[j] = _mm512_loadu_si512(b.add(j));
                        j += 1;
                    }
                    i = 0;
                    while i < M {
                        let x = _mm512_set1_epi32(self.a.add(i * self.a_stride + pair).cast::<i32>().read());
                        j = 0;
                        while j < N {
                            sums[i][j] = dot(sums[i][j], x, lines[j]);
                            j += 1;
                        }
                        i += 1;
                    }
                    b = b.add(self.b_stride);
                    pair += 1;
                }
                i = 0;
                while i < M {
                    j = 0;
                    while j < N {
                        _mm512_mask_storeu_ps(self.c.add(i * self.c_stride + j * LANES), masks[j], sums[i][j]);
                        j += 1;
                    }
                    i += 1;
                }
            }
        }
    }

    /// `sum` and, for each of sixteen columns, the two products of a pair of `x` with a pair of `line`.
    #[inline(always)]
    fn dot(sum: __m512, x: __m512i, line: __m512i) -> __m512 {
        // SAFETY: as in `paired`; both types are 64 plain bytes.
        unsafe { _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(line)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 3.0).collect()
    }

    fn rounded(x: f32) -> f64 {
        f64::from(bf16::from_f32(x).to_f32())
    }

    fn rows_of(isa: Isa, x: &[f32], width: usize, scale: f32) -> Vec<u32> {
        let mut pairs = vec![0; x.len() / width * width.div_ceil(2)];
        round(isa, &mut pairs, Source { data: x, stride: width }, (x.len() / width, width), scale);
        pairs
    }

    #[test]
    fn rounding_is_to_nearest_and_widens_back() {
        let Some(isa) = Isa::detect() else { return eprintln!("skipped: no AVX-512 BF16 here") };
        for width in [1, 2, 7, 32, 33, 63] {
            let x = wave(3 * width, 0.37);
            let pairs = rows_of(isa, &x, width, 0.5);
            for (row, pairs) in pairs.chunks(width.div_ceil(2)).enumerate() {
                let mut back = vec![0f32; width];
                widen(isa, &mut back, pairs);
                for (i, back) in back.iter().enumerate() {
                    assert_eq!(f64::from(*back), rounded(x[row * width + i] * 0.5), "width {width}, row {row}, {i}");
                }
            }
        }
    }

    #[test]
    fn products_equal_the_plain_sums_of_rounded_values_in_every_shape() {
        let Some(isa) = Isa::detect() else { return eprintln!("skipped: no AVX-512 BF16 here") };
        for (m, n, k) in [(1, 1, 1), (5, 3, 2), (6, 16, 64), (7, 17, 33), (64, 64, 64), (13, 70, 801), (3, 130, 770), (11, 48, 1536)] {
            let (x, w) = (wave(m * k, 0.7), wave(n * k, 0.31));
            let (forward, backward) = Frozen::both(isa, &w, (n, k));
            let mut y = vec![1f32; m * (n + 3)];
            let rows = rows_of(isa, &x, k, 1.0);
            let left = Rows { pairs: &rows, stride: k.div_ceil(2), count: m };
            product(isa, Target { data: &mut y, stride: n + 3, add: true }, left, &forward);
            let g = wave(m * n, 0.43);
            let mut dx = vec![9f32; m * k];
            let pairs = rows_of(isa, &g, n, 1.0);
            let left = Rows { pairs: &pairs, stride: n.div_ceil(2), count: m };
            product(isa, Target { data: &mut dx, stride: k, add: false }, left, &backward);
            for i in 0..m {
                for j in 0..n {
                    let plain: f64 = 1.0 + (0..k).map(|t| rounded(x[i * k + t]) * rounded(w[j * k + t])).sum::<f64>();
                    let got = f64::from(y[i * (n + 3) + j]);
                    assert!((got - plain).abs() < 1e-5 * (100.0 + 9.0 * k as f64), "({m}, {n}, {k}) at ({i}, {j}): {got}, plain {plain}");
                }
                assert!(y[i * (n + 3) + n..(i + 1) * (n + 3)].iter().all(|y| *y == 1.0), "columns past the end are left alone");
                for t in 0..k {
                    let plain: f64 = (0..n).map(|j| rounded(g[i * n + j]) * rounded(w[j * k + t])).sum();
                    let got = f64::from(dx[i * k + t]);
                    assert!(
                        (got - plain).abs() < 1e-5 * (100.0 + 9.0 * n as f64),
                        "({m}, {n}, {k}) back at ({i}, {t}): {got}, plain {plain}"
                    );
                }
            }
        }
    }

    #[test]
    fn parts_of_the_depth_add_up_and_rows_do_not_know_their_neighbours() {
        let Some(isa) = Isa::detect() else { return eprintln!("skipped: no AVX-512 BF16 here") };
        let (m, n, k) = (9, 80, 96);
        let (x, w) = (wave(m * k, 0.7), wave(n * k, 0.31));
        let panels = Frozen::both(isa, &w, (n, k)).0;
        let rows = rows_of(isa, &x, k, 1.0);
        let stride = k / 2;
        let (mut whole, mut parts) = (vec![0f32; m * n], vec![0f32; m * n]);
        product(isa, Target { data: &mut whole, stride: n, add: false }, Rows { pairs: &rows, stride, count: m }, &panels);
        for (first, pairs) in [(0, 20), (20, 28)] {
            let left = Rows { pairs: &rows[first..], stride, count: m };
            let part = Part { columns: n, first, pairs };
            product_part(isa, Target { data: &mut parts, stride: n, add: first > 0 }, left, &panels, part);
        }
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-3));
        for row in 0..m {
            let mut alone = vec![0f32; n];
            let left = Rows { pairs: &rows[row * stride..], stride, count: 1 };
            product(isa, Target { data: &mut alone, stride: n, add: false }, left, &panels);
            assert!(alone == whole[row * n..(row + 1) * n], "row {row} depends on its neighbours");
        }
    }
}
