//! `refit price …`: what models cost, as far as it is known.

use super::{Context, output};
use crate::config::prices::Rates;
use crate::monitor::cost::{Price, Prices};
use crate::types::time::{DAY_MS, date, day_of, day_of_date, now_ms};
use crate::types::{Code, Failure};
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Prices are dollars per million tokens. Those that come with refit bear the day of the copy of the provider's page that they were taken from;
[prices] in refit.toml adds others, which win.

Examples:
  refit price list
  refit price show openai/gpt-4o-mini
  refit price show anthropic/claude-sonnet-5-5 --at 2026-10-01 --json";

/// Arguments of `refit price`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List every known price
    #[command(after_help = "Example:\n  refit price list --json")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show the price that a call of a model goes by
    #[command(after_help = "Exit code 2 when it is not known.\n\nExample:\n  refit price show openai/gpt-4o-mini")]
    Show {
        /// provider/model
        model: String,
        /// On which day (UTC) [default: today]
        #[arg(long, value_name = "DATE")]
        at: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
///
/// # Errors
/// [`Code::PRICE_UNKNOWN`] where there is none; otherwise what the configuration says.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let prices = Prices::load(&context.config()?);
    match args.verb {
        Verb::List { json } => {
            if json {
                output::json(&prices.all().iter().map(value).collect::<Vec<_>>())?
            } else {
                output::line(table(prices.all()))?
            }
        }
        Verb::Show { model, at, json } => {
            let wrong = |text: &str| Failure::on(Code::INVALID_VALUE, "at", format!("--at {text:?}: expected a date such as 2026-11-01"));
            let at = at.map(|text| day_of_date(&text).ok_or_else(|| wrong(&text))).transpose()?.map_or(now_ms(), |day| day * DAY_MS);
            let unknown = || {
                let failure = Failure::new(Code::PRICE_UNKNOWN, format!("the price of {model:?} is not known on {}", date(day_of(at))));
                failure.with_hint("add a row under [[prices.rows]] in refit.toml; `refit price list` shows the known ones")
            };
            let price = model.split_once('/').and_then(|(provider, name)| prices.of(provider, name, at)).ok_or_else(unknown)?;
            if json { output::json(&value(price))? } else { output::line(table(std::slice::from_ref(price)))? }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Dollars per million tokens of a rate, digit by digit.
fn dollars(rate: u64) -> String {
    crate::types::money::MicroUsd(i64::try_from(rate).unwrap_or(i64::MAX)).to_string().trim_start_matches('$').to_string()
}

fn table(prices: &[Price]) -> String {
    let or_dash = |rate: Option<u64>| rate.map_or("-".to_string(), dollars);
    let day = |ms: i64| if ms == i64::MIN || ms == i64::MAX { "-".to_string() } else { date(day_of(ms)) };
    let cells = |price: &Price| {
        let row = price.row();
        let rates = &row.rates;
        let long = row
            .long
            .map_or("-".to_string(), |(above, rates)| format!("above {above}: {} / {}", dollars(rates.input), dollars(rates.output)));
        vec![
            format!("{}/{}", row.provider, row.model),
            dollars(rates.input),
            or_dash(rates.cached_input),
            or_dash(rates.cache_write),
            dollars(rates.output),
            long,
            day(row.from_ms),
            day(row.until_ms.saturating_sub(i64::from(row.until_ms != i64::MAX))),
            row.name.clone(),
        ]
    };
    let heading = ["model", "input", "cached", "cache write", "output", "long prompts", "from", "until", "row"];
    output::table(&heading, &prices.iter().map(cells).collect::<Vec<_>>())
}

fn value(price: &Price) -> Value {
    let row = price.row();
    let rates = |rates: &Rates| {
        json!({"input": dollars(rates.input), "output": dollars(rates.output), "cached_input": rates.cached_input.map(dollars),
            "cache_write": rates.cache_write.map(dollars), "cache_write_1h": rates.cache_write_1h.map(dollars),
            "reasoning": rates.reasoning.map(dollars)})
    };
    let day = |ms: i64, none: i64| (ms != none).then(|| date(day_of(ms)));
    let mut value = rates(&row.rates);
    value["provider"] = row.provider.clone().into();
    value["model"] = row.model.clone().into();
    value["row"] = row.name.clone().into();
    value["own"] = price.own.into();
    value["from"] = day(row.from_ms, i64::MIN).into();
    value["until"] = day(row.until_ms.saturating_sub(i64::from(row.until_ms != i64::MAX)), i64::MAX).into();
    value["long"] = row.long.as_ref().map(|(above, of)| json!({"above": above, "rates": rates(of)})).into();
    value
}
