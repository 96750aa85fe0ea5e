//! The score interval of a difference of two shares over the same samples.

use super::intervals::Interval;

/// Halvings of the search: more than an `f64` has digits for.
const STEPS: usize = 80;

/// Interval of (wins − losses)/n at the two-sided level that `z` stands for; `[-1, 1]` without pairs. Counts may be parts of one, as an
/// effective number of samples is. Unlike one by Student's t it has width where no pair differs: ± z²/(n + z²).
///
/// Source: Tango, "Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample Design", Stat. Med. 17
/// (1998), 891–908.
pub fn tango([wins, losses]: [f64; 2], n: f64, z: f64) -> Interval {
    if n <= 0.0 {
        return [-1.0, 1.0];
    }
    let middle = (wins - losses) / n;
    // The score falls from the one end to the other and is 0 in the middle.
    let end = |sign: f64| {
        let (mut inside, mut outside) = (middle, sign);
        for _ in 0..STEPS {
            let at = f64::midpoint(inside, outside);
            *(if score([wins, losses], n, at).abs() < z { &mut inside } else { &mut outside }) = at;
        }
        f64::midpoint(inside, outside)
    };
    [end(-1.0), end(1.0)]
}

/// The score statistic of the hypothesis that the difference is `delta`.
fn score([wins, losses]: [f64; 2], n: f64, delta: f64) -> f64 {
    // The share of losses that is the likeliest under the hypothesis.
    let (a, b) = (2.0 * n, (2.0 * n - wins + losses) * delta - wins - losses);
    let c = -losses * delta * (1.0 - delta);
    let share = ((b * b - 4.0 * a * c).max(0.0).sqrt() - b) / (2.0 * a);
    let variance = n * (2.0 * share + delta * (1.0 - delta));
    let off = wins - losses - n * delta;
    if off == 0.0 { 0.0 } else { off / variance.max(0.0).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::super::distributions::Z_975;
    use super::super::recorded::close;
    use super::*;

    #[test]
    fn the_interval_is_the_published_one() {
        // Fagerland, Lydersen & Laake, Stat. Med. 33 (2014), airway hyper-responsiveness before and after transplantation: one of 21
        // children got better and seven got worse; Tango's interval is −0.517 to −0.026.
        let [low, high] = tango([1.0, 7.0], 21.0, Z_975);
        close(low, -0.517, 5e-4);
        close(high, -0.026, 5e-4);
        assert_eq!(tango([7.0, 1.0], 21.0, Z_975).map(|end| (end * 1e9).round()), [-high, -low].map(|end| (end * 1e9).round()));
    }

    #[test]
    fn the_ends_are_the_closed_forms() {
        let z2 = Z_975 * Z_975;
        for n in [1.0, 2.0, 10.0, 1_000.0] {
            // No pair differs: n δ² = z² δ (1 − δ).
            close(tango([0.0, 0.0], n, Z_975)[0], -z2 / (n + z2), 1e-12);
            close(tango([0.0, 0.0], n, Z_975)[1], z2 / (n + z2), 1e-12);
            // All are wins: n (1 − δ) = z² (1 + δ).
            close(tango([n, 0.0], n, Z_975)[0], (n - z2) / (n + z2), 1e-12);
            close(tango([n, 0.0], n, Z_975)[1], 1.0, 1e-12);
        }
        assert_eq!(tango([0.0, 0.0], 0.0, Z_975), [-1.0, 1.0]);
    }
}
