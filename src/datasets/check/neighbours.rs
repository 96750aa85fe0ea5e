//! The nearest of each sample among vectors, each with each: what labels, outliers and coverage are judged by.

/// Most vectors that are compared each with each: some hundred million products of vectors.
pub const MOST: usize = 20_000;

/// A neighbour: its position, and the cosine of the angle to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Position.
    pub at: usize,
    /// Cosine.
    pub cosine: f32,
}

/// Vectors of length one, for which the cosine is the product. A vector without a direction stays as it is.
pub fn unit(mut vectors: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    for vector in &mut vectors {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 && length.is_finite() {
            vector.iter_mut().for_each(|x| *x /= length);
        }
    }
    vectors
}

/// The cosine of two unit vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, which the compiler keeps in one register.
    let mut sums = [0.0_f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The `k` nearest of `query` among vectors, the nearest first; `without` is left out.
pub fn nearest(query: &[f32], vectors: &[Vec<f32>], k: usize, without: Option<usize>) -> Vec<Neighbour> {
    let mut best: Vec<Neighbour> = Vec::with_capacity(k + 1);
    for (at, vector) in vectors.iter().enumerate().filter(|(at, _)| Some(*at) != without) {
        let cosine = cosine(query, vector);
        if best.len() < k || best.last().is_some_and(|last| cosine > last.cosine) {
            let place = best.partition_point(|other| other.cosine >= cosine);
            best.insert(place, Neighbour { at, cosine });
            best.truncate(k);
        }
    }
    best
}

/// Cosine from which two vectors are the same: vectors are sums of rounded numbers.
pub const SAME: f32 = 1.0 - 1e-5;

/// Vectors without those that stand there before.
pub fn distinct(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut distinct: Vec<Vec<f32>> = Vec::new();
    for vector in vectors {
        if !distinct.iter().any(|other| cosine(other, vector) >= SAME) {
            distinct.push(vector.clone());
        }
    }
    distinct
}

/// The `k` nearest others of every vector.
pub fn all(vectors: &[Vec<f32>], k: usize) -> Vec<Vec<Neighbour>> {
    vectors.iter().enumerate().map(|(at, vector)| nearest(vector, vectors, k, Some(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_nobody_is_its_own_neighbour() {
        let vectors = unit(vec![vec![1.0, 0.0], vec![0.9, 0.1], vec![0.0, 2.0], vec![0.0, 0.0]]);
        let found = all(&vectors, 2);
        assert_eq!(found[0].iter().map(|n| n.at).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(found[2][0].at, 1);
        let long: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert!((cosine(&long, &long) - (0..19).map(|i| (i * i) as f32).sum::<f32>()).abs() < 1e-3);
    }
}
