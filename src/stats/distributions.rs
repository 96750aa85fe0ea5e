//! The distribution functions that the intervals need: log gamma, incomplete beta, Student's t, the normal.

/// Natural logarithm of Γ(x) for x > 0, to about 15 digits.
///
/// Source: Lanczos, "A Precision Approximation of the Gamma Function" (1964), coefficients g = 7, n = 9 of Godfrey (2001).
pub fn ln_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // Reflection formula.
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let t = x + 7.5;
    let series = COEFFICIENTS.iter().enumerate().skip(1).fold(COEFFICIENTS[0], |sum, (i, c)| sum + c / (x + i as f64));
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + series.ln()
}

/// Regularised incomplete beta function I_x(a, b), for a, b > 0 and x in [0, 1].
///
/// Source: continued fraction DLMF 8.17.22, evaluated by the modified Lentz method (Press et al., Numerical Recipes, 6.4).
pub fn beta_inc(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    if x < (a + 1.0) / (a + b + 2.0) { front * fraction(a, b, x) / a } else { 1.0 - front * fraction(b, a, 1.0 - x) / b }
}

fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut result = d;
    for m in 1..500 {
        let m = f64::from(m);
        for numerator in
            [m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)), -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))]
        {
            d = 1.0 / away(1.0 + numerator * d);
            c = away(1.0 + numerator / c);
            result *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    result
}

/// P(T ≤ t) for Student's t with `df` degrees of freedom.
///
/// Source: DLMF 8.17 with x = df / (df + t²) (Abramowitz & Stegun 26.7.1).
pub fn t_cdf(t: f64, df: f64) -> f64 {
    let tail = 0.5 * beta_inc(df / 2.0, 0.5, df / (df + t * t));
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// The t with P(T ≤ t) = p, by bisection of [`t_cdf`]; p in (0, 1).
pub fn t_quantile(p: f64, df: f64) -> f64 {
    if p < 0.5 {
        return -t_quantile(1.0 - p, df);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while t_cdf(high, df) < p && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if t_cdf(middle, df) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// P(Z ≤ z) for the standard normal distribution, to about 15 digits after the point.
///
/// Source: Marsaglia, "Evaluating the Normal Distribution", J. Stat. Software 11 (2004): ½ + φ(z)·(z + z³/3 + z⁵/(3·5) + …).
pub fn normal_cdf(z: f64) -> f64 {
    if z.abs() > 9.0 {
        return f64::from(u8::from(z > 0.0));
    }
    let (mut term, mut sum, mut odd) = (z, z, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= z * z / odd;
        sum += term;
    }
    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (0.5 + density * sum).clamp(0.0, 1.0)
}

/// The z with P(Z ≤ z) = p, by bisection of [`normal_cdf`]; p in (0, 1).
pub fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if normal_cdf(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The 0.975 quantile of the standard normal distribution (Abramowitz & Stegun, table 26.5).
pub const Z_975: f64 = 1.959_963_984_540_054;

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn gamma_has_its_closed_forms() {
        close(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln(), 1e-13);
        close(ln_gamma(11.0), 3_628_800f64.ln(), 1e-12); // 10!
    }

    #[test]
    fn incomplete_beta_has_its_closed_forms() {
        close(beta_inc(1.0, 1.0, 0.3), 0.3, 1e-14); // uniform
        close(beta_inc(2.0, 1.0, 0.3), 0.09, 1e-14); // x²
        close(beta_inc(1.0, 3.0, 0.3), 1.0 - 0.7f64.powi(3), 1e-14);
    }

    #[test]
    fn the_normal_is_that_of_scipy() {
        for case in super::super::recorded::of("normal") {
            let [z, p] = ["z", "p"].map(|field| case[field].as_f64().expect("a number"));
            close(normal_cdf(z), p, 2e-15);
            close(normal_quantile(p), z, 1e-7);
        }
        close(normal_quantile(0.975), Z_975, 1e-13);
        assert_eq!((normal_cdf(0.0), normal_cdf(-40.0), normal_cdf(40.0)), (0.5, 0.0, 1.0));
    }

    #[test]
    fn t_quantiles_are_the_tabled_ones() {
        // NIST/SEMATECH e-Handbook 1.3.6.7.2, upper 0.975: df 1, 10, 30, 100.
        for (df, expected) in [(1.0, 12.706), (10.0, 2.228), (30.0, 2.042), (100.0, 1.984)] {
            close(t_quantile(0.975, df), expected, 5e-4);
        }
        // df 2 in closed form: t = (2p − 1) / √(2p(1 − p)).
        close(t_quantile(0.975, 2.0), 0.95 / (2.0f64 * 0.975 * 0.025).sqrt(), 1e-9);
        // The limit of many degrees of freedom is the normal quantile.
        close(t_quantile(0.975, 1e7), Z_975, 1e-6);
    }
}
