//! Which requests are meant: the options that `tail` and `export` share.

use crate::store::log::{Ended, Filter, Liked};
use crate::types::time::now_ms;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// The options.
#[derive(clap::Args, Clone, Default)]
pub struct Filters {
    /// Came in at or after: 30m, 2h, 7d ago, a date, or a time (UTC) such as 2026-11-23T21:05:00Z
    #[arg(long, value_name = "TIME", value_parser = instant)]
    since: Option<i64>,
    /// Came in before
    #[arg(long, value_name = "TIME", value_parser = instant)]
    until: Option<i64>,
    /// Called this route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Answered by this model: provider/model, or the model alone
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Ended so: ok, failed, 429, 4xx
    #[arg(long, value_name = "STATUS", value_parser = ended)]
    status: Option<Ended>,
    /// Mean of the feedback's numbers, at least; helpful=0.5 takes only that named helpful, true counts as 1
    #[arg(long, value_name = "[NAME=]NUMBER", value_parser = liked)]
    min_feedback: Option<Liked>,
}

impl Filters {
    /// What they mean.
    pub fn filter(self) -> Filter {
        let Filters { since, until, route, model, project, status, min_feedback: feedback } = self;
        Filter { since, until, route, model, project, status, feedback }
    }
}

/// A time in milliseconds: so long ago, a date, or a time.
fn instant(text: &str) -> Result<i64, String> {
    const UNITS: [(char, i64); 5] = [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000), ('w', 604_800_000)];
    let ago = |(unit, ms): &(char, i64)| text.strip_suffix(*unit)?.parse::<u32>().ok().map(|count| i64::from(count) * ms);
    if let Some(ms) = UNITS.iter().find_map(ago) {
        return Ok(now_ms() - ms);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let date = text.parse::<DateTime>().ok().and_then(|date| TimeZone::UTC.to_timestamp(date).ok());
    let expected = || "expected 30m, 2h, 7d, a date such as 2026-11-23, or a time such as 2026-11-23T21:05:00Z".to_string();
    date.map(jiff::Timestamp::as_millisecond).ok_or_else(expected)
}

fn ended(text: &str) -> Result<Ended, String> {
    let class = text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok()).filter(|class| (1..=5).contains(class));
    match (text, class, text.parse::<u16>()) {
        ("ok", ..) => Ok(Ended::Well),
        ("failed", ..) => Ok(Ended::Badly),
        (_, Some(class), _) => Ok(Ended::Status(class * 100, class * 100 + 99)),
        (_, _, Ok(status)) if (100..=599).contains(&status) => Ok(Ended::Status(status, status)),
        _ => Err("expected ok, failed, a status such as 429, or a class such as 4xx".to_string()),
    }
}

fn liked(text: &str) -> Result<Liked, String> {
    let (name, number) = text.rsplit_once('=').map_or((None, text), |(name, number)| (Some(name.to_string()), number));
    let least = number.parse::<f64>().ok().filter(|number| number.is_finite());
    let least = least.ok_or_else(|| "expected a number, or NAME=NUMBER".to_string())?;
    Ok(Liked { name, least })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        // Seconds since the epoch by `date -u -d 2026-11-23T21:05:00Z +%s`.
        assert_eq!(instant("2026-11-23T21:05:00Z"), Ok(1_795_467_900_000));
        assert_eq!(instant("2026-11-23T23:05:00+02:00"), Ok(1_795_467_900_000));
        assert_eq!(instant("2026-11-23T21:05"), Ok(1_795_467_900_000));
        assert_eq!(instant("2026-11-23"), Ok(1_795_392_000_000));
        let hour_ago = instant("1h").expect("a time");
        assert!((now_ms() - 3_600_000 - hour_ago).abs() < 10_000);
        assert!(instant("yesterday").is_err() && instant("h").is_err());
    }

    #[test]
    fn statuses_and_feedback_are_words_or_numbers() {
        assert_eq!((ended("4xx"), ended("429")), (Ok(Ended::Status(400, 499)), Ok(Ended::Status(429, 429))));
        assert_eq!((ended("ok"), ended("failed")), (Ok(Ended::Well), Ok(Ended::Badly)));
        assert!(ended("9xx").is_err() && ended("1").is_err());
        assert_eq!(liked("helpful=0.5"), Ok(Liked { name: Some("helpful".into()), least: 0.5 }));
        assert!(liked("0.5").is_ok() && liked("a=b").is_err() && liked("NaN").is_err());
    }
}
