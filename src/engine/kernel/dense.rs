//! Products of rows of floats with matrices of floats that are used again and again (the weights of an encoder, the keys of a text): the
//! matrix is packed once into panels of up to 64 outputs, whose sums stay in registers for six rows at a time. What becomes of a sum
//! (a factor, a bias, a bias and GELU) happens before it leaves them.
#![expect(unsafe_code, reason = "threads write disjoint columns of the same rows")]

use super::dots::Dots;
use super::huge::Buffer;
use super::isa::{Isa, compiled};
use super::lanes::{LANES, Lanes};
use super::shared::Shared;
use rayon::prelude::*;
use std::ops::Range;

/// Registers of a panel, at most.
const WIDTH: usize = 4;
/// Rows that are computed together.
const ROWS: usize = 6;

/// Rows of floats, `stride` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// From the first element of the first row to the last of the last.
    pub values: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// How many.
    pub count: usize,
}

/// What becomes of a sum.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    /// Times a factor.
    Scale(f32),
    /// Plus its output's bias.
    Bias(&'a [f32]),
    /// gelu(sum + bias), with the error function (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    Gelu(&'a [f32]),
}

/// Widths of a matrix (inputs, outputs) in panels: one behind the other, for each input the registers of its outputs, zeros where the
/// last panel has none.
#[derive(Clone, Copy, Default)]
struct Shape {
    inputs: usize,
    outputs: usize,
    /// Registers of a panel: 1, 2 or 4.
    width: usize,
}

impl Shape {
    fn new(inputs: usize, outputs: usize) -> Self {
        let width = outputs.div_ceil(LANES).next_power_of_two().min(WIDTH);
        Shape { inputs, outputs, width }
    }

    fn panels(self) -> usize {
        self.outputs.div_ceil(self.width * LANES)
    }

    fn registers(self) -> usize {
        self.panels() * self.inputs * self.width
    }

    /// Register of an input and the sixteen outputs around `output`.
    fn register(self, input: usize, output: usize) -> usize {
        let (panel, inside) = (output / (self.width * LANES), output / LANES % self.width);
        (panel * self.inputs + input) * self.width + inside
    }
}

/// A matrix in panels, packed anew for each use, in memory that stays.
#[derive(Default)]
pub struct Packed {
    values: Vec<[f32; LANES]>,
    shape: Shape,
}

impl Packed {
    /// Packs the matrix whose columns are the first `inputs` elements of the rows.
    pub fn columns(&mut self, columns: Rows<'_>, inputs: usize) {
        self.clear(Shape::new(inputs, columns.count));
        for output in 0..columns.count {
            let first = self.shape.register(0, output);
            let column = &columns.values[output * columns.stride..][..inputs];
            let places = self.values[first..].iter_mut().step_by(self.shape.width);
            places.zip(column).for_each(|(place, x)| place[output % LANES] = *x);
        }
    }

    /// Packs the matrix whose rows are the first `outputs` elements of the rows.
    pub fn rows(&mut self, rows: Rows<'_>, outputs: usize) {
        self.clear(Shape::new(rows.count, outputs));
        for input in 0..rows.count {
            for (i, part) in rows.values[input * rows.stride..][..outputs].chunks(LANES).enumerate() {
                self.values[self.shape.register(input, i * LANES)][..part.len()].copy_from_slice(part);
            }
        }
    }

    fn clear(&mut self, shape: Shape) {
        self.values.clear();
        self.values.resize(shape.registers(), [0.0; LANES]);
        self.shape = shape;
    }

    /// `y = finish(x · matrix)`, for rows of `y` that are `stride` apart.
    pub fn product(&self, y: &mut [f32], stride: usize, x: Rows<'_>, finish: Finish<'_>) {
        let matrix = Matrix { values: &self.values, shape: self.shape };
        multiply(Isa::best(), Target { values: Shared::new(y), stride }, x, matrix, (0..self.shape.panels(), finish));
    }
}

/// Weights that stay.
pub struct Weights {
    values: Buffer<[f32; LANES]>,
    shape: Shape,
}

impl Weights {
    /// Packs a weight (outputs, inputs).
    pub fn new(weight: &[f32], inputs: usize) -> Self {
        let mut packed = Packed::default();
        packed.columns(Rows { values: weight, stride: inputs, count: weight.len() / inputs }, inputs);
        Weights { values: Buffer::keep(&packed.values), shape: packed.shape }
    }

    /// finish(x Wᵀ): (rows, inputs) → (rows, outputs); `parallel` shares the outputs out among the threads of the current rayon pool.
    pub fn product(&self, x: &[f32], finish: Finish<'_>, parallel: bool) -> Vec<f32> {
        let (shape, matrix) = (self.shape, Matrix { values: &self.values, shape: self.shape });
        let x = Rows { values: x, stride: shape.inputs, count: x.len() / shape.inputs };
        let mut y = vec![0f32; x.count * shape.outputs];
        let target = Target { values: Shared::new(&mut y), stride: shape.outputs };
        let panels = shape.panels();
        let threads = if parallel { rayon::current_num_threads().min(panels) } else { 1 };
        let share = |thread: usize| {
            let own = panels * thread / threads..panels * (thread + 1) / threads;
            multiply(Isa::best(), target, x, matrix, (own, finish));
        };
        if threads > 1 {
            (0..threads).into_par_iter().for_each(share)
        } else {
            share(0)
        }
        y
    }
}

#[derive(Clone, Copy)]
struct Matrix<'a> {
    values: &'a [[f32; LANES]],
    shape: Shape,
}

#[derive(Clone, Copy)]
struct Target<'a> {
    values: Shared<'a, f32>,
    stride: usize,
}

/// The panels to be computed, and what becomes of the sums.
type Share<'a> = (Range<usize>, Finish<'a>);

compiled! {
    fn multiply(y: Target<'_>, x: Rows<'_>, matrix: Matrix<'_>, share: Share<'_>) = multiply_body
}

#[inline(always)]
fn multiply_body<D: Dots>(y: Target<'_>, x: Rows<'_>, matrix: Matrix<'_>, share: Share<'_>) {
    match matrix.shape.width {
        1 => panels::<D::Floats, 1>(y, x, matrix, share),
        2 => panels::<D::Floats, 2>(y, x, matrix, share),
        _ => panels::<D::Floats, 4>(y, x, matrix, share),
    }
}

#[inline(always)]
fn panels<L: Lanes, const W: usize>(y: Target<'_>, x: Rows<'_>, matrix: Matrix<'_>, (own, finish): Share<'_>) {
    let registers = matrix.values.as_chunks::<W>().0;
    for panel in own {
        let weights = &registers[panel * matrix.shape.inputs..][..matrix.shape.inputs];
        let mut row = 0;
        while row + ROWS <= x.count {
            rows::<L, W, ROWS>(y, x, weights, (panel, row), (matrix.shape.outputs, finish));
            row += ROWS;
        }
        while row + 2 <= x.count {
            rows::<L, W, 2>(y, x, weights, (panel, row), (matrix.shape.outputs, finish));
            row += 2;
        }
        if row < x.count {
            rows::<L, W, 1>(y, x, weights, (panel, row), (matrix.shape.outputs, finish));
        }
    }
}

/// `R` rows of one panel: all its registers at once where there are enough of them, else one after the other.
#[inline(always)]
fn rows<L: Lanes, const W: usize, const R: usize>(
    y: Target<'_>,
    x: Rows<'_>,
    weights: &[[[f32; LANES]; W]],
    (panel, row): (usize, usize),
    (outputs, finish): (usize, Finish<'_>),
) {
    let mut left = [x.values; R];
    let mut r = 0;
    while r < R {
        left[r] = &x.values[(row + r) * x.stride..][..weights.len()];
        r += 1;
    }
    let mut register = 0;
    while register < W {
        let mut sums = [[L::splat(0.0); W]; R];
        let together = if L::WIDE {
            sums = products::<L, W, R, W>(left, weights, 0);
            W
        } else {
            let one = products::<L, W, R, 1>(left, weights, register);
            let mut r = 0;
            while r < R {
                sums[r][0] = one[r][0];
                r += 1;
            }
            1
        };
        let mut r = 0;
        while r < R {
            let mut j = 0;
            while j < together {
                let column = (panel * W + register + j) * LANES;
                if column < outputs {
                    let count = LANES.min(outputs - column);
                    // SAFETY: threads have different panels, and so different columns.
                    let place = unsafe { y.values.part((row + r) * y.stride + column, count) };
                    write(finished(sums[r][j], column, finish), place);
                }
                j += 1;
            }
            r += 1;
        }
        register += together;
    }
}

/// `J` registers of outputs of `R` rows; each output is summed in the order of the inputs.
#[inline(always)]
fn products<L: Lanes, const W: usize, const R: usize, const J: usize>(
    x: [&[f32]; R],
    weights: &[[[f32; LANES]; W]],
    first: usize,
) -> [[L; J]; R] {
    let mut sums = [[L::splat(0.0); J]; R];
    for (k, weights) in weights.iter().enumerate() {
        let mut loaded = [L::splat(0.0); J];
        let mut j = 0;
        while j < J {
            loaded[j] = L::load(&weights[first + j]);
            j += 1;
        }
        let mut r = 0;
        while r < R {
            let x = L::splat(x[r][k]);
            let mut j = 0;
            while j < J {
                sums[r][j] = sums[r][j].plus_product(x, loaded[j]);
                j += 1;
            }
            r += 1;
        }
    }
    sums
}

#[inline(always)]
fn finished<L: Lanes>(sum: L, column: usize, finish: Finish<'_>) -> L {
    match finish {
        Finish::Scale(factor) => sum.times(L::splat(factor)),
        Finish::Bias(bias) => sum.plus(read(&bias[column..])),
        Finish::Gelu(bias) => gelu(sum.plus(read(&bias[column..]))),
    }
}

/// The first sixteen values, or as many as there are.
#[inline(always)]
fn read<L: Lanes>(values: &[f32]) -> L {
    if let Some(whole) = values.first_chunk::<LANES>() {
        return L::load(whole);
    }
    let mut part = [0f32; LANES];
    part[..values.len()].copy_from_slice(values);
    L::load(&part)
}

#[inline(always)]
fn write<L: Lanes>(value: L, place: &mut [f32]) {
    if let Some(whole) = place.first_chunk_mut::<LANES>() {
        return value.store(whole);
    }
    let mut all = [0f32; LANES];
    value.store(&mut all);
    let count = place.len();
    place.copy_from_slice(&all[..count]);
}

/// x · Φ(x) with an absolute error under 2e-7 · |x| (erf: Abramowitz and Stegun 1964, 7.1.26).
#[inline(always)]
fn gelu<L: Lanes>(x: L) -> L {
    let magnitude = x.abs();
    let z = magnitude.times(L::splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = L::splat(1.0).over(L::splat(1.0).plus_product(z, L::splat(0.327_591_1)));
    let mut p = L::splat(1.061_405_4);
    p = L::splat(-1.453_152_1).plus_product(p, t);
    p = L::splat(1.421_413_8).plus_product(p, t);
    p = L::splat(-0.284_496_74).plus_product(p, t);
    p = L::splat(0.254_829_6).plus_product(p, t);
    let tail = p.times(t).times(z.times(z).times(L::splat(-1.0)).exp());
    let erf = L::splat(1.0).plus_product(tail, L::splat(-1.0));
    // x · erf(x) has no sign to keep: 0.5 · (x + |x| · erf(|x|)).
    x.plus_product(magnitude, erf).times(L::splat(0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// erf by its Maclaurin series, exact for the arguments here.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn every_instruction_set_gives_the_plain_product() {
        for (count, inputs, outputs) in [(1, 3, 5), (2, 16, 16), (7, 33, 40), (15, 20, 70), (13, 40, 128)] {
            let (x, w, bias) = (wave(count * (inputs + 2), 0.7), wave(outputs * inputs, 0.3), wave(outputs, 0.9));
            let x = Rows { values: &x, stride: inputs + 2, count };
            let mut packed = Packed::default();
            packed.columns(Rows { values: &w, stride: inputs, count: outputs }, inputs);
            let matrix = Matrix { values: &packed.values, shape: packed.shape };
            for (which, finish) in [Finish::Scale(0.5), Finish::Bias(&bias), Finish::Gelu(&bias)].into_iter().enumerate() {
                for isa in Isa::available() {
                    let mut y = vec![7f32; count * (outputs + 3)];
                    let target = Target { values: Shared::new(&mut y), stride: outputs + 3 };
                    multiply(isa, target, x, matrix, (0..packed.shape.panels(), finish));
                    for (i, found) in y.iter().enumerate() {
                        let (row, o) = (i / (outputs + 3), i % (outputs + 3));
                        if o >= outputs {
                            assert_eq!(*found, 7.0, "{isa:?} wrote past the outputs");
                            continue;
                        }
                        let sum: f64 = (0..inputs).map(|k| f64::from(x.values[row * x.stride + k]) * f64::from(w[o * inputs + k])).sum();
                        let shifted = sum + f64::from(bias[o]);
                        let expected = [sum * 0.5, shifted, 0.5 * shifted * (1.0 + erf(shifted / 2f64.sqrt()))][which];
                        assert!(
                            (f64::from(*found) - expected).abs() < 3e-6 * (1.0 + expected.abs()),
                            "{isa:?} {which} ({row}, {o}): {found}, {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn rows_and_columns_pack_the_same_matrix() {
        let (inputs, outputs) = (21, 37);
        let by_rows = wave(inputs * outputs, 0.37);
        let by_columns: Vec<f32> = (0..inputs * outputs).map(|i| by_rows[i % inputs * outputs + i / inputs]).collect();
        let (mut a, mut b) = (Packed::default(), Packed::default());
        a.rows(Rows { values: &by_rows, stride: outputs, count: inputs }, outputs);
        b.columns(Rows { values: &by_columns, stride: inputs, count: outputs }, inputs);
        assert_eq!(a.values, b.values);
    }

    #[test]
    fn a_rows_result_does_not_depend_on_its_neighbours_or_threads() {
        let (x, w, bias) = (wave(9 * 30, 0.7), wave(150 * 30, 0.3), wave(150, 0.9));
        let weights = Weights::new(&w, 30);
        let all = weights.product(&x, Finish::Gelu(&bias), true);
        for row in 0..9 {
            assert_eq!(weights.product(&x[row * 30..][..30], Finish::Gelu(&bias), false), all[row * 150..][..150]);
        }
    }
}
