//! What a key or a project may use: requests and tokens in any minute, money in a period. These are the definitions; what has been used
//! is in [`meter`](super::meter).

use super::AccessError;
use crate::store::keys::LimitsRow;
use crate::types::money::MicroUsd;
use crate::types::time::{DAY_MS, day_of, month_of};
use std::fmt;
use std::str::FromStr;

/// Bounds of a key or a project; none of a kind is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in any minute, read and written.
    pub tokens_per_minute: Option<u64>,
    /// Money in a period.
    pub budget: Option<Budget>,
}

/// An amount of money for a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How much.
    pub amount: MicroUsd,
    /// For how long.
    pub period: Period,
}

/// What a budget is for. Days and months begin at midnight UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Period {
    /// A calendar day.
    Day,
    /// A calendar month.
    #[default]
    Month,
    /// All time.
    Total,
}

/// Changes of limits: none leaves one as it is, `Some(None)` takes it away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// Requests in any minute.
    pub requests_per_minute: Option<Option<u64>>,
    /// Tokens in any minute.
    pub tokens_per_minute: Option<Option<u64>>,
    /// Money in the period.
    pub budget: Option<Option<MicroUsd>>,
    /// The period of the budget.
    pub period: Option<Period>,
}

/// Largest limits: a window of a minute counts in 64 bits, and nobody means more.
const MOST_PER_MINUTE: u64 = 1_000_000_000;

impl Period {
    /// Every period with its word.
    pub const ALL: [(Period, &'static str); 3] = [(Period::Day, "day"), (Period::Month, "month"), (Period::Total, "total")];

    /// The first day of the period that a moment is in, and the millisecond when the next one begins.
    pub fn around(self, now_ms: i64) -> (i64, i64) {
        match self {
            Period::Day => (day_of(now_ms), (day_of(now_ms) + 1) * DAY_MS),
            Period::Month => {
                let (first, next) = month_of(now_ms).unwrap_or((day_of(now_ms), day_of(now_ms) + 1));
                (first, next * DAY_MS)
            }
            Period::Total => (0, i64::MAX),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Period::ALL.iter().find(|(period, _)| period == self).map_or("", |(_, word)| word))
    }
}

impl FromStr for Period {
    type Err = AccessError;
    fn from_str(word: &str) -> Result<Self, AccessError> {
        let found = Period::ALL.iter().find(|(_, known)| *known == word);
        let refused = || AccessError::Name { what: "budget_period", given: word.to_string(), expected: "one of day, month, total" };
        found.map(|(period, _)| *period).ok_or_else(refused)
    }
}

impl Limits {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// As they are stored.
    ///
    /// # Errors
    /// [`AccessError::Name`] for a period that this program does not know.
    pub fn of(row: &LimitsRow) -> Result<Self, AccessError> {
        let natural = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let period = row.budget_period.as_deref().map_or(Ok(Period::default()), str::parse)?;
        Ok(Limits {
            requests_per_minute: natural(row.requests_per_minute),
            tokens_per_minute: natural(row.tokens_per_minute),
            budget: row.budget_micro_usd.map(|amount| Budget { amount: MicroUsd(amount), period }),
        })
    }

    /// For the store.
    pub fn to_row(&self) -> LimitsRow {
        let stored = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
        LimitsRow {
            requests_per_minute: stored(self.requests_per_minute),
            tokens_per_minute: stored(self.tokens_per_minute),
            budget_micro_usd: self.budget.map(|budget| budget.amount.0),
            budget_period: self.budget.map(|budget| budget.period.to_string()),
        }
    }

    /// These limits with changes.
    ///
    /// # Errors
    /// [`AccessError::Name`] for a limit out of its range, or a period without a budget.
    pub fn with(&self, changes: &LimitChanges) -> Result<Self, AccessError> {
        let amount = changes.budget.unwrap_or(self.budget.map(|budget| budget.amount));
        let period = changes.period.or(self.budget.map(|budget| budget.period)).unwrap_or_default();
        if changes.period.is_some() && amount.is_none() {
            let (what, given) = ("budget_period", period.to_string());
            return Err(AccessError::Name { what, given, expected: "a budget beside it" });
        }
        let limits = Limits {
            requests_per_minute: changes.requests_per_minute.unwrap_or(self.requests_per_minute),
            tokens_per_minute: changes.tokens_per_minute.unwrap_or(self.tokens_per_minute),
            budget: amount.map(|amount| Budget { amount, period }),
        };
        for (what, limit) in [("requests_per_minute", limits.requests_per_minute), ("tokens_per_minute", limits.tokens_per_minute)] {
            if let Some(limit) = limit.filter(|limit| !(1..=MOST_PER_MINUTE).contains(limit)) {
                return Err(AccessError::Name { what, given: limit.to_string(), expected: "a whole number from 1 to 1000000000" });
            }
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_those_of_the_calendar() {
        let at = 1_795_600_000_000; // 2026-11-25T10:26:40Z
        let (day, ends) = Period::Day.around(at);
        assert_eq!((day * DAY_MS..ends).contains(&at).then_some(ends - day * DAY_MS), Some(DAY_MS));
        let (first, ends) = Period::Month.around(at);
        assert_eq!((ends - first * DAY_MS) / DAY_MS, 30);
        assert_eq!(Period::Total.around(at), (0, i64::MAX));
    }

    #[test]
    fn changes_leave_the_rest_and_impossible_ones_are_named() {
        let budget = LimitChanges { budget: Some(Some(MicroUsd(5))), period: Some(Period::Day), ..LimitChanges::default() };
        let made = Limits::default().with(&budget).expect("possible");
        let kept = made.with(&LimitChanges { requests_per_minute: Some(Some(7)), ..LimitChanges::default() }).expect("possible");
        assert_eq!((kept.budget, kept.requests_per_minute), (Some(Budget { amount: MicroUsd(5), period: Period::Day }), Some(7)));
        assert_eq!(Limits::of(&kept.to_row()).expect("stored"), kept);
        let gone = kept.with(&LimitChanges { budget: Some(None), ..LimitChanges::default() }).expect("possible");
        assert_eq!(gone.budget, None);
        for (changes, named) in [
            (LimitChanges { requests_per_minute: Some(Some(0)), ..LimitChanges::default() }, "requests_per_minute"),
            (LimitChanges { tokens_per_minute: Some(Some(u64::MAX)), ..LimitChanges::default() }, "tokens_per_minute"),
            (LimitChanges { period: Some(Period::Day), ..LimitChanges::default() }, "budget_period"),
        ] {
            assert!(Limits::default().with(&changes).is_err_and(|error| error.to_string().contains(named)), "{named}");
        }
    }
}
