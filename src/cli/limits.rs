//! Options that several verbs share: limits of keys and projects, and how they are shown.

use crate::access::limits::LimitChanges;
use crate::store::keys::LimitsRow;
use crate::types::money::MicroUsd;
use crate::types::{Code, Failure};

/// What a key or a project may use.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct LimitArgs {
    /// Requests in any minute; "none" for no limit
    #[arg(long, value_name = "N")]
    rpm: Option<String>,
    /// Tokens in any minute, read and written; "none" for no limit
    #[arg(long, value_name = "N")]
    tpm: Option<String>,
    /// Dollars in a period, such as 25.00; "none" for no limit
    #[arg(long, value_name = "USD")]
    budget: Option<String>,
    /// What the budget is for: day, month (from midnight UTC) or total [default: month]
    #[arg(long, value_name = "PERIOD")]
    budget_period: Option<String>,
}

/// What takes a thing away.
pub const NONE: &str = "none";

impl LimitArgs {
    /// As changes.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] naming the option.
    pub fn changes(&self) -> Result<LimitChanges, Failure> {
        Ok(LimitChanges {
            requests_per_minute: count("rpm", self.rpm.as_deref())?,
            tokens_per_minute: count("tpm", self.tpm.as_deref())?,
            budget: or_none("budget", self.budget.as_deref(), MicroUsd::parse, "dollars such as 25.00, with at most six places")?,
            period: self.budget_period.as_deref().map(str::parse).transpose()?,
        })
    }
}

fn count(option: &str, given: Option<&str>) -> Result<Option<Option<u64>>, Failure> {
    or_none(option, given, |text| text.parse().ok(), "a whole number")
}

/// A value, or the word for none.
///
/// # Errors
/// [`Code::INVALID_VALUE`] naming the option.
pub fn or_none<T>(
    option: &str,
    given: Option<&str>,
    read: impl Fn(&str) -> Option<T>,
    expected: &str,
) -> Result<Option<Option<T>>, Failure> {
    match given {
        None => Ok(None),
        Some(NONE) => Ok(Some(None)),
        Some(text) => {
            let wrong = || Failure::on(Code::INVALID_VALUE, option, format!("--{option} {text:?}: expected {expected}, or none"));
            read(text).map(|value| Some(Some(value))).ok_or_else(wrong)
        }
    }
}

/// Limits in a cell of a table.
pub fn cell(limits: &LimitsRow) -> String {
    let LimitsRow { requests_per_minute, tokens_per_minute, budget_micro_usd, budget_period } = limits;
    let budget = budget_micro_usd.map(|micro| format!("{}/{}", MicroUsd(micro), budget_period.as_deref().unwrap_or("month")));
    let parts = [requests_per_minute.map(|n| format!("{n} rpm")), tokens_per_minute.map(|n| format!("{n} tpm")), budget];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_string() } else { parts.join(", ") }
}
