//! Multinomial logistic regression with an L2 penalty, minimised by L-BFGS. The objective is convex: where it begins does not matter.

use super::minimise::{Minimum, minimise};
use candle_core::{DType, Device, Result, Tensor};

/// Vectors and what they are labelled with.
pub(super) struct Rows {
    /// (rows, dimensions).
    x: Tensor,
    /// Index of each row's label.
    labels: Vec<usize>,
    dimensions: usize,
}

impl Rows {
    /// Products with the vectors are computed in `precision`, f32 or f64.
    pub(super) fn new(vectors: &[&[f32]], labels: Vec<usize>, precision: DType) -> Result<Self> {
        let dimensions = vectors.first().map_or(0, |vector| vector.len());
        let values: Vec<f32> = vectors.iter().flat_map(|vector| vector.iter().copied()).collect();
        let x = Tensor::from_vec(values, (vectors.len(), dimensions), &Device::Cpu)?.to_dtype(precision)?;
        Ok(Rows { x, labels, dimensions })
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }
}

/// Weight (classes, dimensions) and, behind it, bias (classes).
#[derive(Debug, Clone)]
pub(super) struct Weights {
    pub(super) values: Vec<f64>,
    pub(super) classes: usize,
}

impl Weights {
    pub(super) fn zero(classes: usize, dimensions: usize) -> Self {
        Weights { values: vec![0.0; classes * (dimensions + 1)], classes }
    }

    /// Logits (rows, classes).
    fn logits(&self, rows: &Rows) -> Result<Tensor> {
        let (weight, bias) = self.values.split_at(self.classes * rows.dimensions);
        let weight = Tensor::from_slice(weight, (self.classes, rows.dimensions), &Device::Cpu)?.to_dtype(rows.x.dtype())?;
        let bias = Tensor::from_slice(bias, self.classes, &Device::Cpu)?;
        rows.x.matmul(&weight.t()?)?.to_dtype(DType::F64)?.broadcast_add(&bias)
    }

    /// Log-probabilities of every class for every row.
    pub(super) fn log_probabilities(&self, rows: &Rows) -> Result<Vec<Vec<f64>>> {
        let logits = self.logits(rows)?.to_vec2::<f64>()?;
        Ok(logits.into_iter().map(|row| normalised(&row)).collect())
    }
}

fn normalised(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln() + most;
    logits.iter().map(|logit| logit - total).collect()
}

/// Minimises the mean cross-entropy plus ‖W‖² / (2 C rows), the objective of scikit-learn's `LogisticRegression(C=C)` divided by C and
/// the number of rows; the bias is not penalised. None when `go_on` said no.
pub(super) fn fit(
    rows: &Rows,
    from: Weights,
    (c, flat): (f64, f64),
    go_on: &mut dyn FnMut(usize, f64) -> bool,
) -> Result<Option<(Weights, Minimum)>> {
    let classes = from.classes;
    let objective = |values: &[f64]| value_and_gradient(rows, &Weights { values: values.to_vec(), classes }, c);
    let minimum = minimise(from.values, flat, objective, go_on)?;
    Ok(minimum.map(|minimum| (Weights { values: minimum.at.clone(), classes }, minimum)))
}

/// The objective and its gradient, in the order of the weights.
fn value_and_gradient(rows: &Rows, weights: &Weights, c: f64) -> Result<(f64, Vec<f64>)> {
    let (n, classes) = (rows.len() as f64, weights.classes);
    let mut loss = 0.0;
    // Logits become dL/dlogits = (p - y) / n in their place.
    let mut slopes = weights.logits(rows)?.flatten_all()?.to_vec1::<f64>()?;
    let mut bias_gradient = vec![0.0; classes];
    for (row, label) in slopes.chunks_exact_mut(classes).zip(&rows.labels) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let logit = row[*label] - most;
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let total: f64 = row.iter().sum();
        loss += (total.ln() - logit) / n;
        row.iter_mut().for_each(|x| *x /= total * n);
        row[*label] -= 1.0 / n;
        bias_gradient.iter_mut().zip(row).for_each(|(sum, slope)| *sum += *slope);
    }
    let slopes = Tensor::from_vec(slopes, (rows.len(), classes), &Device::Cpu)?.to_dtype(rows.x.dtype())?;
    let mut gradient = slopes.t()?.matmul(&rows.x)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let penalised = &weights.values[..classes * rows.dimensions];
    gradient.iter_mut().zip(penalised).for_each(|(slope, w)| *slope += w / (c * n));
    gradient.extend(bias_gradient);
    Ok((loss + penalised.iter().map(|w| w * w).sum::<f64>() / (2.0 * c * n), gradient))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twelve points of three classes in the plane.
    fn points() -> (Vec<[f32; 2]>, Vec<usize>) {
        let points = vec![
            [0.5, 1.0],
            [1.5, 0.25],
            [1.0, 1.25],
            [-0.25, 0.75],
            [2.0, -1.0],
            [2.5, -0.5],
            [1.75, -1.5],
            [0.25, -0.5],
            [-1.0, -1.0],
            [-1.5, 0.5],
            [-0.5, -1.25],
            [0.75, -0.75],
        ];
        (points, vec![0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    }

    fn rows() -> Rows {
        let (points, labels) = points();
        Rows::new(&points.iter().map(|point| &point[..]).collect::<Vec<_>>(), labels, DType::F64).expect("rows")
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_objective() {
        let rows = rows();
        let mut weights = Weights::zero(3, 2);
        weights.values = vec![0.3, -0.2, 0.7, 0.1, -0.4, 0.5, 0.05, -0.15, 0.25];
        let (_, gradient) = value_and_gradient(&rows, &weights, 0.5).expect("a gradient");
        for (i, slope) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = weights.clone();
                moved.values[i] += step;
                value_and_gradient(&rows, &moved, 0.5).expect("a value").0
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((difference - slope).abs() < 1e-8, "{i}: {difference} against {slope}");
        }
    }

    /// Against `sklearn.linear_model.LogisticRegression(C=C, tol=1e-12, max_iter=100000)` 1.9.1.
    #[test]
    fn the_minimum_is_that_of_scikit_learn() {
        for (c, expected) in REFERENCE {
            let (weights, minimum) = fit(&rows(), Weights::zero(3, 2), (c, 1e-9), &mut |_, _| true).expect("fits").expect("not stopped");
            assert!(minimum.converged);
            for (found, expected) in weights.values.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "C = {c}: {:?}", weights.values);
            }
        }
    }

    const REFERENCE: [(f64, [f64; 9]); 2] = [
        (1.0, [0.221486, 1.187467, 0.67542, -0.62351, -0.896906, -0.563957, 0.161503, -0.545999, 0.384495]),
        (30.0, [1.135347, 4.008805, 0.714759, -1.611235, -1.850105, -2.39757, -0.468183, -0.168759, 0.636942]),
    ];
}
