//! Whether a bound of money can be kept over everything that a run asks: better to know before the first call than after it.

use super::prepare::PlanTarget;
use super::respond::Respond;
use super::suite::Suite;
use crate::inference::Priced;
use crate::types::chat::has_token_limit;
use crate::types::{Code, Failure};

/// Refuses a bound of money over models whose price is not known, and over answers of any length.
///
/// # Errors
/// [`Code::PRICE_UNKNOWN`] and [`Code::INVALID_VALUE`], on `max_cost`, with the target or the scorer.
pub(super) fn affordable(respond: &dyn Respond, suite: &Suite, targets: &[PlanTarget]) -> Result<(), Failure> {
    if suite.bounds.cost.is_none() {
        return Ok(());
    }
    for target in targets {
        let has_limit = has_token_limit(&target.manifest.parameters);
        let who = format!("target \"{}\"", target.name);
        check(respond, (&target.manifest.model, has_limit), (&who, "give the target, or its prompt's config,"))?;
    }
    for scorer in &suite.scorers {
        // What a route leads to, and what a sample's own checks ask, is looked at when it is called.
        for asks in scorer.asks().iter().filter(|asks| asks.model.contains('/')) {
            let who = format!("scorer \"{}\"", scorer.metrics().first().map_or("", String::as_str));
            check(respond, (&asks.model, asks.has_limit), (&who, "give the scorer"))?;
        }
    }
    Ok(())
}

fn check(respond: &dyn Respond, (model, has_limit): (&str, bool), (who, give): (&str, &str)) -> Result<(), Failure> {
    let refused = |code, message: String, hint: &str| Err(Failure::on(code, "max_cost", message).with_hint(hint));
    match respond.priced(model) {
        Priced::Unknown => {
            let message = format!("the price of {model} ({who}) is not known, so that max_cost cannot be kept");
            refused(Code::PRICE_UNKNOWN, message, "add a row to [[prices.rows]] of refit.toml, or bound the time with max_time")
        }
        Priced::ByToken if !has_limit => {
            let message = format!("answers of {model} ({who}) have no max_tokens, so that max_cost cannot be kept");
            refused(Code::INVALID_VALUE, message, &format!("{give} parameters: {{max_tokens: 500}}, or bound the time with max_time"))
        }
        _ => Ok(()),
    }
}
