//! L-BFGS (Liu and Nocedal 1989; Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 7.4 and 7.5) with a line search that
//! ends at the weak Wolfe conditions by bisection (Lewis and Overton 2013, algorithm 2.6).

use candle_core::Result;
use std::collections::VecDeque;

/// Pairs of steps and changes of the gradient that stand for the curvature.
const MEMORY: usize = 10;
const MAX_ITERATIONS: usize = 1_000;
const MAX_TRIALS: usize = 40;
/// Share of the promised descent that a step must bring, and of the slope that may be left (Wolfe).
const DESCENT: f64 = 1e-4;
const CURVATURE: f64 = 0.9;

/// Where a minimisation ended.
#[derive(Debug, Clone)]
pub(super) struct Minimum {
    pub(super) at: Vec<f64>,
    pub(super) value: f64,
    /// The value at the beginning.
    pub(super) first: f64,
    pub(super) iterations: usize,
    /// Whether the slopes are flat there; otherwise it is as far as numbers of this precision, or the iterations, go.
    pub(super) converged: bool,
}

/// Minimises a function with its gradient, until no slope is steeper than `flat`. `go_on` is asked after each iteration, with its number and the value; none when it said no.
///
/// # Errors
/// What the function says.
pub(super) fn minimise(
    mut at: Vec<f64>,
    flat: f64,
    mut function: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
    go_on: &mut dyn FnMut(usize, f64) -> bool,
) -> Result<Option<Minimum>> {
    let (mut value, mut gradient) = function(&at)?;
    let first = value;
    let mut pairs: VecDeque<Pair> = VecDeque::new();
    for iteration in 0..MAX_ITERATIONS {
        if steepest(&gradient) <= flat {
            return Ok(Some(Minimum { at, value, first, iterations: iteration, converged: true }));
        }
        if !go_on(iteration, value) {
            return Ok(None);
        }
        let direction = direction(&gradient, &pairs);
        // Of the first direction only the sense is known, not the length.
        let step = if pairs.is_empty() { 1.0 / norm(&gradient).max(1.0) } else { 1.0 };
        let Some(next) = search(&at, (value, &gradient), &direction, step, &mut function)? else {
            return Ok(Some(Minimum { at, value, first, iterations: iteration, converged: false }));
        };
        let change = |new: &[f64], old: &[f64]| -> Vec<f64> { new.iter().zip(old).map(|(new, old)| new - old).collect() };
        let (step, bend) = (change(&next.at, &at), change(&next.gradient, &gradient));
        let curvature = dot(&step, &bend);
        // Wolfe's second condition makes it positive, rounding aside.
        if curvature > f64::EPSILON * dot(&bend, &bend) {
            pairs.truncate(MEMORY - 1);
            pairs.push_front(Pair { inverse: 1.0 / curvature, step, bend });
        }
        (at, value, gradient) = (next.at, next.value, next.gradient);
    }
    Ok(Some(Minimum { at, value, first, iterations: MAX_ITERATIONS, converged: false }))
}

struct Pair {
    step: Vec<f64>,
    bend: Vec<f64>,
    inverse: f64,
}

struct Point {
    at: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

/// −H g, newest pair first (the two-loop recursion).
fn direction(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut shares = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let share = pair.inverse * dot(&pair.step, &direction);
        add(&mut direction, &pair.bend, -share);
        shares.push(share);
    }
    if let Some(newest) = pairs.front() {
        let scale = 1.0 / (newest.inverse * dot(&newest.bend, &newest.bend));
        direction.iter_mut().for_each(|x| *x *= scale);
    }
    for (pair, share) in pairs.iter().zip(shares).rev() {
        let back = pair.inverse * dot(&pair.bend, &direction);
        add(&mut direction, &pair.step, share - back);
    }
    direction
}

/// A point along a direction that is low and flat enough; none where there is none to be told from rounding.
fn search(
    from: &[f64],
    (value, gradient): (f64, &[f64]),
    direction: &[f64],
    mut step: f64,
    function: &mut impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>,
) -> Result<Option<Point>> {
    let slope = dot(gradient, direction);
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut lower = None;
    for _ in 0..MAX_TRIALS {
        let mut at = from.to_vec();
        add(&mut at, direction, step);
        let (found, slopes) = function(&at)?;
        let point = Point { at, value: found, gradient: slopes };
        // What is no number is not low, either.
        let falls = point.value <= value + DESCENT * step * slope;
        if !falls {
            high = step;
        } else if dot(&point.gradient, direction) < CURVATURE * slope {
            low = step;
            lower = Some(point);
        } else {
            return Ok(Some(point));
        }
        step = if high.is_finite() { f64::midpoint(low, high) } else { 2.0 * low };
    }
    Ok(lower)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn steepest(gradient: &[f64]) -> f64 {
    gradient.iter().fold(0.0, |most, slope| most.max(slope.abs()))
}

fn add(to: &mut [f64], what: &[f64], times: f64) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += times * what);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rosenbrock's valley, whose minimum is at (1, 1).
    fn valley(x: &[f64]) -> Result<(f64, Vec<f64>)> {
        let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
        Ok((a * a + 100.0 * b * b, vec![-2.0 * a - 400.0 * x[0] * b, 200.0 * b]))
    }

    #[test]
    fn it_finds_the_end_of_a_curved_valley() {
        let found = minimise(vec![-1.2, 1.0], 1e-6, valley, &mut |_, _| true).expect("runs").expect("not stopped");
        assert!(found.converged && found.iterations < 60, "{found:?}");
        assert!(found.at.iter().all(|x| (x - 1.0).abs() < 1e-4), "{found:?}");
        assert!((found.first - 24.2).abs() < 1e-9 && found.value < 1e-8);
    }

    #[test]
    fn it_stops_when_told_and_where_nothing_is_to_be_done() {
        assert!(minimise(vec![-1.2, 1.0], 1e-6, valley, &mut |iteration, _| iteration < 3).expect("runs").is_none());
        let there = minimise(vec![1.0, 1.0], 1e-6, valley, &mut |_, _| true).expect("runs").expect("not stopped");
        assert_eq!((there.iterations, there.value), (0, 0.0));
        // Falls for ever: it ends all the same.
        let endless = minimise(vec![0.0], 1e-6, |x| Ok((-x[0], vec![-1.0])), &mut |_, _| true).expect("runs").expect("not stopped");
        assert!(!endless.converged);
    }
}
