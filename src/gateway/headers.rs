//! The `x-refit-*` headers: what is told about a call besides its reply. Names of targets are written once for each road; the rest is
//! a few digits.

use crate::types::told::{Cost, Told};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

const TARGET: HeaderName = HeaderName::from_static("x-refit-target");
const PROVIDER: HeaderName = HeaderName::from_static("x-refit-provider");
const ROUTE: HeaderName = HeaderName::from_static("x-refit-route");
const RELEASE: HeaderName = HeaderName::from_static("x-refit-release");
const PROMPT: HeaderName = HeaderName::from_static("x-refit-prompt");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-refit-attempts");
/// What the cache had; of a request, what is wanted of it.
pub const CACHE: HeaderName = HeaderName::from_static("x-refit-cache");
const CASCADE: HeaderName = HeaderName::from_static("x-refit-cascade");
const COST: HeaderName = HeaderName::from_static("x-refit-cost-usd");
const OVERHEAD: HeaderName = HeaderName::from_static("x-refit-overhead-ms");
const QUEUE: HeaderName = HeaderName::from_static("x-refit-queue-ms");
/// What stands for a price that nobody knows.
const UNKNOWN: HeaderValue = HeaderValue::from_static("unknown");

/// As many headers as a reply of a model call has, with those of limits.
const MOST: usize = 17;

/// Writes what is told about a call into a reply's headers. What is not known has no header; a name that a header cannot carry neither.
pub fn tell(headers: &mut HeaderMap, told: &Told) {
    headers.reserve(MOST);
    if let Some(named) = &told.named {
        put(headers, TARGET, HeaderValue::from_maybe_shared(named.target.clone()).ok());
        put(headers, PROVIDER, HeaderValue::from_maybe_shared(named.provider.clone()).ok());
    }
    put(headers, ROUTE, told.route.as_deref().and_then(text));
    put(headers, RELEASE, told.release.as_deref().and_then(text));
    put(headers, PROMPT, told.prompt.as_ref().and_then(|prompt| text(&format!("{}@{}", prompt.name, prompt.version))));
    put(headers, CACHE, told.cache.as_deref().and_then(text));
    put(headers, CASCADE, told.cascade.map(HeaderValue::from_static));
    put(headers, ATTEMPTS, told.attempts.and_then(count));
    put(
        headers,
        COST,
        match told.cost {
            Cost::Open => None,
            Cost::Unknown => Some(UNKNOWN),
            Cost::MicroUsd(cost) => decimal(cost, 1_000_000),
        },
    );
    put(headers, OVERHEAD, told.overhead_ms.and_then(millis));
    put(headers, QUEUE, told.queue_ms.and_then(millis));
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

fn text(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// A whole number.
pub fn count(number: u64) -> Option<HeaderValue> {
    decimal(i64::try_from(number).unwrap_or(i64::MAX), 1)
}

/// Milliseconds with three decimals.
fn millis(ms: f64) -> Option<HeaderValue> {
    // Times are far below what an i64 of microseconds holds.
    decimal((ms * 1e3).round() as i64, 1_000)
}

/// `units` of which `one` make a whole, with as many decimals as `one` has zeros.
fn decimal(units: i64, one: u64) -> Option<HeaderValue> {
    const MOST: usize = 24;
    let mut digits = [0u8; MOST];
    let mut at = MOST;
    let (mut left, mut place) = (units.unsigned_abs(), 1);
    while left > 0 || place <= one {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        place = place.saturating_mul(10);
        if place == one {
            at -= 1;
            digits[at] = b'.';
        }
    }
    if units < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&digits[at..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::told::Named;

    #[test]
    fn amounts_are_exact_decimals() {
        let written = |units, one| decimal(units, one).expect("a value").to_str().expect("digits").to_string();
        assert_eq!(written(0, 1_000_000), "0.000000");
        assert_eq!(written(7, 1_000_000), "0.000007");
        assert_eq!(written(1_234_567, 1_000_000), "1.234567");
        assert_eq!(written(-1_500_000, 1_000_000), "-1.500000");
        assert_eq!(written(i64::MAX, 1_000_000), "9223372036854.775807");
        assert_eq!(written(i64::MIN, 1_000_000), "-9223372036854.775808");
        assert_eq!((written(41, 1_000), written(12_000, 1_000)), ("0.041".into(), "12.000".into()));
        assert_eq!((written(0, 1), written(1_090, 1)), ("0".into(), "1090".into()));
    }

    #[test]
    fn what_is_not_known_is_not_told_and_names_cannot_break_lines() {
        let mut headers = HeaderMap::new();
        tell(&mut headers, &Told { named: Some(Named::new("p", "m\r\nx-evil: 1")), ..Told::default() });
        assert_eq!(headers.len(), 1, "{headers:?}");
        assert_eq!(headers[PROVIDER], "p");
        tell(&mut headers, &Told { cost: Cost::Unknown, queue_ms: Some(1.5), ..Told::default() });
        assert_eq!((&headers[COST], &headers[QUEUE]), (&UNKNOWN, &HeaderValue::from_static("1.500")));
    }
}
