//! Money: whole micro-dollars, and decimals as people write them, read without floating point.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A millionth of a dollar.
pub const PLACES: u32 = 6;

/// An amount of money in micro-dollars (10⁻⁶ USD).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MicroUsd(pub i64);

impl MicroUsd {
    /// Reads dollars such as `25`, `25.00` or `0.000001`; none for anything else, negative amounts included.
    pub fn parse(text: &str) -> Option<Self> {
        decimal(text, PLACES).and_then(|micro| i64::try_from(micro).ok()).map(MicroUsd)
    }
}

impl fmt::Display for MicroUsd {
    /// `$0.15`, `$0.000075`: two places, more where they are needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, rest) = (self.0.unsigned_abs() / 1_000_000, self.0.unsigned_abs() % 1_000_000);
        let digits = format!("{rest:06}");
        let kept = digits.trim_end_matches('0').len().max(2);
        write!(f, "{}${dollars}.{}", if self.0 < 0 { "-" } else { "" }, &digits[..kept])
    }
}

/// A decimal number times 10^`places`, exactly; none when it has more places, is negative or is no number.
pub fn decimal(text: &str, places: u32) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) || text.ends_with('.') {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let missing = places.checked_sub(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let whole = whole.parse::<u64>().ok()?.checked_mul(10u64.checked_pow(places)?)?;
    whole.checked_add(fraction.checked_mul(10u64.checked_pow(missing)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly_or_not_at_all() {
        assert_eq!(decimal("0.15", 6), Some(150_000));
        assert_eq!(decimal("0.0750", 6), Some(75_000));
        assert_eq!(decimal("0.000001", 6), Some(1));
        assert_eq!(decimal("25", 6), Some(25_000_000));
        for wrong in ["", ".", ".5", "5.", "-1", "+1", "1e3", "1,5", "0.0000001", "99999999999999999999", "1.2.3", " 1"] {
            assert_eq!(decimal(wrong, 6), None, "{wrong}");
        }
    }

    #[test]
    fn amounts_show_as_many_places_as_they_need() {
        let shown = |micro| MicroUsd(micro).to_string();
        assert_eq!((shown(150_000), shown(75), shown(0)), ("$0.15".into(), "$0.000075".into(), "$0.00".into()));
        assert_eq!((shown(25_000_000), shown(-1_500_000)), ("$25.00".into(), "-$1.50".into()));
    }
}
