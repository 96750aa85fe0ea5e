//! Time as the store keeps it: whole milliseconds since the Unix epoch, UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// `2026-11-23T21:05:09Z`, for people and exports.
pub fn rfc3339(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(timestamp) => timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => ms.to_string(),
    }
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 86_400_000;

/// Days since the Unix epoch, UTC.
pub fn day_of(ms: i64) -> i64 {
    ms.div_euclid(DAY_MS)
}

/// The day of a date such as `2026-11-25`.
pub fn day_of_date(text: &str) -> Option<i64> {
    text.parse().ok().and_then(day_of_civil)
}

/// A day as `2026-11-25`.
pub fn date(day: i64) -> String {
    rfc3339(day.saturating_mul(DAY_MS)).split('T').next().unwrap_or_default().to_string()
}

/// The first days of the month that a moment is in, and of the next one, UTC.
pub fn month_of(ms: i64) -> Option<(i64, i64)> {
    let date = jiff::Timestamp::from_millisecond(ms).ok()?.to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
    Some((day_of_civil(date.first_of_month())?, day_of_civil(date.last_of_month())? + 1))
}

/// The end of a time that is given as a duration from now (`30d`, `12h`, `90m`), as a date (`2027-01-31`: its last millisecond), or as a
/// moment (`2027-01-31T12:00:00Z`). Milliseconds; none when it is none of these.
pub fn end_of(text: &str, now_ms: i64) -> Option<i64> {
    if let Some(day) = day_of_date(text) {
        return Some((day + 1) * DAY_MS - 1);
    }
    let unit = match text.bytes().last()? {
        b'd' => DAY_MS,
        b'h' => 3_600_000,
        b'm' => 60_000,
        _ => return text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond),
    };
    let count = text[..text.len() - 1].parse::<u32>().ok()?;
    now_ms.checked_add(i64::from(count).checked_mul(unit)?)
}

fn day_of_civil(date: jiff::civil::Date) -> Option<i64> {
    let midnight = date.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok()?;
    Some(day_of(midnight.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_is_printed_as_utc() {
        assert_eq!(rfc3339(1_000), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn days_and_months_are_those_of_utc() {
        let day = day_of_date("2026-02-28").expect("a date");
        assert_eq!((day_of(day * DAY_MS), day_of(day * DAY_MS - 1), date(day)), (day, day - 1, "2026-02-28".to_string()));
        let (first, next) = month_of(day * DAY_MS).expect("a month");
        assert_eq!((date(first), date(next)), ("2026-02-01".to_string(), "2026-03-01".to_string()));
        assert_eq!((day_of_date("2026-02-30"), day_of_date("x"), day_of(-1)), (None, None, -1));
    }

    #[test]
    fn an_end_is_a_duration_a_date_or_a_moment() {
        assert_eq!(end_of("2d", 5), Some(2 * DAY_MS + 5));
        assert_eq!(end_of("90m", 0), Some(5_400_000));
        assert_eq!(end_of("1970-01-01", 0), Some(DAY_MS - 1));
        assert_eq!(end_of("1970-01-01T00:00:01Z", 0), Some(1_000));
        for wrong in ["", "d", "-1d", "1w", "soon", "2026-13-01", "é"] {
            assert_eq!(end_of(wrong, 0), None, "{wrong}");
        }
    }
}
