//! What a run may cost and how long it may take: `max_cost` and `max_time` of a suite, and the flags of the same names.

use crate::types::money::MicroUsd;
use serde_json::Value;
use std::time::Duration;

/// Bounds of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Money, over all executions of the run.
    pub cost: Option<MicroUsd>,
    /// Time of one execution.
    pub time: Option<Duration>,
}

impl Bounds {
    /// These, where they say something, else the others.
    #[must_use]
    pub fn or(self, others: Bounds) -> Bounds {
        Bounds { cost: self.cost.or(others.cost), time: self.time.or(others.time) }
    }
}

/// Reads the two keys of a suite; the error has the key and what is wrong.
pub(super) fn read(cost: Option<&Value>, time: Option<&str>) -> Result<Bounds, (String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let cost =
        cost.map(|value| money(&text(value))).transpose().map_err(|problem| ("max_cost".to_string(), format!("max_cost: {problem}")))?;
    let time = time.map(duration).transpose().map_err(|problem| ("max_time".to_string(), format!("max_time: {problem}")))?;
    Ok(Bounds { cost, time })
}

/// Reads dollars such as `2.00`.
///
/// # Errors
/// What was expected.
pub fn money(text: &str) -> Result<MicroUsd, String> {
    MicroUsd::parse(text.trim_start_matches('$')).ok_or_else(|| format!("\"{text}\" is no amount; expected dollars, such as 2.50"))
}

/// Reads a time such as `90s`, `30m`, `1.5h`.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("\"{text}\" is no time; expected a number and s, m or h, such as 30m");
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3_600.0,
        _ => return Err(expected()),
    };
    let number: f64 = text[..text.len() - 1].trim().parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_amounts_are_read_and_others_refused() {
        assert_eq!((duration("90s"), duration("1.5h")), (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(5_400))));
        for text in ["", "30", "m", "-1m", "soon", "1d", "1e400h"] {
            assert!(duration(text).is_err_and(|problem| problem.contains("30m")), "{text}");
        }
        assert_eq!((money("2.00"), money("$0.5")), (Ok(MicroUsd(2_000_000)), Ok(MicroUsd(500_000))));
        assert!(money("-1").is_err() && money("much").is_err());
        assert_eq!(read(Some(&serde_json::json!(2.5)), Some("30m")).map(|bounds| bounds.cost), Ok(Some(MicroUsd(2_500_000))));
    }
}
