//! `[budgets]`: what is reserved of a budget before a call, and what becomes of calls whose price nobody knows.

use super::raw::{Problems, Section};

/// Settings of budgets. The budgets themselves belong to keys and projects.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetsConfig {
    /// A call of a model without a known price is let through although a budget stands over it; it costs the budget nothing.
    pub allow_unpriced: bool,
    /// Tokens of a reply that are reserved where the request names no bound.
    pub max_output_tokens: u64,
}

impl Default for BudgetsConfig {
    fn default() -> Self {
        BudgetsConfig { allow_unpriced: false, max_output_tokens: 4_096 }
    }
}

impl BudgetsConfig {
    /// As a file would say it.
    pub(super) fn shown(&self) -> toml::Table {
        let unpriced = if self.allow_unpriced { "allow" } else { "refuse" };
        let most = i64::try_from(self.max_output_tokens).unwrap_or(i64::MAX);
        toml::Table::from_iter([("unpriced".into(), unpriced.into()), ("max_output_tokens".into(), most.into())])
    }
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> BudgetsConfig {
    let default = BudgetsConfig::default();
    let span = section.take("unpriced").map(|value| value.span());
    let allow_unpriced = match (section.text("unpriced", problems).as_deref(), span) {
        (Some("allow"), _) => true,
        (Some("refuse") | None, _) => false,
        (Some(_), span) => {
            problems.add(span.unwrap_or(0..0), section.name("unpriced"), "expected \"refuse\" or \"allow\"");
            false
        }
    };
    let max_output_tokens = section.integer("max_output_tokens", 1..=1_000_000, default.max_output_tokens, problems);
    section.finish(problems);
    BudgetsConfig { allow_unpriced, max_output_tokens }
}
