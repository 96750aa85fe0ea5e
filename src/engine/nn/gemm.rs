//! Matrix products over slices: the `gemm` crate's kernels (AVX-512 where the processor has it) behind bounds-checked views.
#![expect(unsafe_code, reason = "the gemm crate takes raw pointers; the views below check every bound first")]

use gemm::Parallelism;

/// A read-only matrix view: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix (rows, columns).
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows lie `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Matrix { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// Columns from `first` on of a row-major matrix whose rows are `width` long.
    pub fn part(data: &'a [f32], (rows, columns): (usize, usize), first: usize, width: usize) -> Self {
        Self::strided(&data[first..], rows, columns, width)
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Matrix { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn check(&self) {
        let last = (self.rows.max(1) - 1) * self.row_stride + (self.columns.max(1) - 1) * self.column_stride;
        assert!(self.rows == 0 || self.columns == 0 || last < self.data.len(), "a matrix view reaches past its data");
    }
}

/// How a product is written to its destination.
#[derive(Clone, Copy, PartialEq)]
pub enum Write {
    /// `c = alpha · a b`
    Set,
    /// `c = c + alpha · a b`
    Add,
}

/// `c (m, n) = [c +] alpha · a (m, k) · b (k, n)`, `c` row-major and contiguous; `parallel` spreads the work over the current rayon pool.
///
/// # Panics
/// When the shapes do not fit: a programming error.
pub fn gemm(c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, (write, alpha): (Write, f32), parallel: bool) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && c.len() == m * n, "gemm shapes ({m}, {k}) x ({}, {n}) into {}", b.rows, c.len());
    a.check();
    b.check();
    let parallelism = if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None };
    let stride = |x: usize| isize::try_from(x).expect("a stride is at most the length of a slice");
    // SAFETY: `check` asserts that the last element of each view is inside its slice, `c` holds exactly m × n elements and is
    // exclusively borrowed, so it cannot overlap a or b.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride(n),
            write == Write::Add,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_transposes_and_strides_equal_the_triple_loop() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f32> = (0..m * 9).map(|x| (x as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..n * k).map(|x| (x as f32 * 0.11).cos()).collect();
        let mut c = vec![1.0f32; m * n];
        gemm(&mut c, Matrix::strided(&a, m, k, 9), Matrix::new(&b, n, k).t(), (Write::Add, 0.5), false);
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|x| a[i * 9 + x] * b[j * k + x]).sum();
                assert!((c[i * n + j] - (1.0 + 0.5 * sum)).abs() < 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "past its data")]
    fn a_view_past_its_data_is_refused() {
        gemm(&mut [0.0; 4], Matrix::strided(&[0.0; 4], 2, 2, 3), Matrix::new(&[0.0; 4], 2, 2), (Write::Set, 1.0), false);
    }
}
