//! What a call costs: [`Prices`] finds the row of a model at a time, [`Price::cost`] turns tokens into micro-dollars, exactly and rounded
//! once. The rows are in `prices/*.toml`, one file a provider; rows of the configuration win over them. A model without a row has no
//! price, which is something else than costing nothing.

use crate::config::prices::{self, PriceRow, Rates};
use crate::config::{Config, providers::KINDS};
use crate::types::chat::Usage;
pub use crate::types::money::MicroUsd;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// The price files: a new provider is a new line.
const FILES: &[(&str, &str)] = &[
    ("prices/openai.toml", include_str!("prices/openai.toml")),
    ("prices/anthropic.toml", include_str!("prices/anthropic.toml")),
    ("prices/gemini.toml", include_str!("prices/gemini.toml")),
    ("prices/free.toml", include_str!("prices/free.toml")),
];

/// Millionths of a micro-dollar in one.
const PARTS: u128 = 1_000_000;

/// The price of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    row: PriceRow,
    /// Whether the configuration brought it.
    pub own: bool,
}

/// All prices of a configuration.
#[derive(Debug, Default)]
pub struct Prices {
    all: Vec<Price>,
    /// Where the rows of a provider's name are looked for, in this order.
    providers: HashMap<String, Vec<Layer>>,
}

/// Places in the list of all prices.
#[derive(Debug, Default, Clone)]
struct Layer {
    exact: HashMap<String, Vec<usize>>,
    /// Beginnings of names; the longest first.
    prefixes: Vec<(String, usize)>,
}

impl Prices {
    /// The prices that come with Refit, with the configuration's own before them.
    pub fn load(config: &Config) -> Self {
        let own = config.prices.rows.iter().map(|row| Price { row: row.clone(), own: true });
        let mut all: Vec<_> = own.collect();
        for (name, text) in FILES {
            let file = prices::parse(text, Path::new(name)).expect("the price files of this program are valid: a test reads them");
            for provider in &file.providers {
                all.extend(file.rows.iter().map(|row| Price { row: PriceRow { provider: provider.clone(), ..row.clone() }, own: false }));
            }
        }
        let kinds = KINDS.iter().map(|kind| (*kind, *kind)).chain([("local", "local"), ("mock", "mock")]);
        let named = config.providers.iter().map(|provider| (provider.name.as_str(), provider.kind.as_str()));
        let mut providers = HashMap::new();
        for (name, kind) in kinds.chain(named) {
            let layers = [(name, true), (kind, true), (kind, false)].map(|(provider, own)| layer(&all, provider, own));
            providers.insert(name.to_string(), layers.into_iter().filter(|layer| !layer.is_empty()).collect());
        }
        Prices { all, providers }
    }

    /// The price of a provider's model at a time; none where it is not known. `provider` is its name in the configuration.
    pub fn of(&self, provider: &str, model: &str, at_ms: i64) -> Option<&Price> {
        let holds = |price: &&Price| (price.row.from_ms..price.row.until_ms).contains(&at_ms);
        // Of several that hold the one that began last.
        let newest = |places: &[usize]| places.iter().map(|at| &self.all[*at]).filter(holds).max_by_key(|price| price.row.from_ms);
        self.providers.get(provider)?.iter().find_map(|layer| {
            let exact = layer.exact.get(model).and_then(|places| newest(places));
            exact.or_else(|| {
                let fits = |(prefix, _): &&(String, usize)| model.starts_with(prefix.as_str());
                let longest = layer.prefixes.iter().filter(fits).find(|(_, at)| holds(&&self.all[*at]))?.0.len();
                let places: Vec<_> =
                    layer.prefixes.iter().filter(fits).filter(|(prefix, _)| prefix.len() == longest).map(|(_, at)| *at).collect();
                newest(&places)
            })
        })
    }

    /// Every row, the configuration's own first.
    pub fn all(&self) -> &[Price] {
        &self.all
    }
}

impl Layer {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }
}

fn layer(all: &[Price], provider: &str, own: bool) -> Layer {
    let mut layer = Layer::default();
    for (at, price) in all.iter().enumerate().filter(|(_, price)| price.own == own && price.row.provider == provider) {
        match price.row.model.strip_suffix('*') {
            Some(prefix) => layer.prefixes.push((prefix.to_string(), at)),
            None => layer.exact.entry(price.row.model.clone()).or_default().push(at),
        }
    }
    layer.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    layer
}

impl Price {
    /// The row.
    pub fn row(&self) -> &PriceRow {
        &self.row
    }

    /// `provider@version/model`: what the request log calls it.
    pub fn name(&self) -> &str {
        &self.row.name
    }

    /// What these tokens cost.
    pub fn cost(&self, usage: &Usage) -> MicroUsd {
        let tokens = Tokens::of(usage);
        let rates = match &self.row.long {
            Some((above, rates)) if tokens.prompt() > *above => rates,
            _ => &self.row.rates,
        };
        let write = rates.cache_write.unwrap_or(rates.input);
        let parts = [
            (tokens.fresh, rates.input),
            (tokens.cached, rates.cached_input.unwrap_or(rates.input)),
            (tokens.written, write),
            (tokens.written_1h, rates.cache_write_1h.unwrap_or(write)),
            (tokens.output, rates.output),
            (tokens.reasoning, rates.reasoning.unwrap_or(rates.output)),
        ];
        let sum: u128 = parts.iter().map(|(count, rate)| u128::from(*count) * u128::from(*rate)).sum();
        rounded(sum + u128::from(self.row.per_request), PARTS / 2)
    }

    /// The most that so many tokens can cost, whatever becomes of them.
    pub fn most(&self, input: u64, output: u64) -> MicroUsd {
        let most = |rates: &Rates| {
            let read = [Some(rates.input), rates.cached_input, rates.cache_write, rates.cache_write_1h].into_iter().flatten().max();
            let written = rates.output.max(rates.reasoning.unwrap_or(0));
            u128::from(input) * u128::from(read.unwrap_or(0)) + u128::from(output) * u128::from(written)
        };
        let long = self.row.long.iter().filter(|(above, _)| input > *above).map(|(_, rates)| most(rates)).max();
        rounded(most(&self.row.rates).max(long.unwrap_or(0)) + u128::from(self.row.per_request), PARTS - 1)
    }
}

fn rounded(parts: u128, up: u128) -> MicroUsd {
    MicroUsd(i64::try_from((parts + up) / PARTS).unwrap_or(i64::MAX))
}

/// The tokens of a call, each counted once.
struct Tokens {
    fresh: u64,
    cached: u64,
    written: u64,
    written_1h: u64,
    output: u64,
    reasoning: u64,
}

impl Tokens {
    fn of(usage: &Usage) -> Self {
        let prompt = usage.prompt_tokens;
        let cached = cached(usage).unwrap_or(0).min(prompt);
        let written = cache_written(usage).unwrap_or(0).min(prompt - cached);
        let for_an_hour = usage.detail("cache_creation", "ephemeral_1h_input_tokens").unwrap_or(0).min(written);
        let reasoning = usage.reasoning_tokens().unwrap_or(0);
        // Some services count reasoning beside the completion, as their sum shows.
        let beside = reasoning > 0 && usage.total_tokens == prompt.saturating_add(usage.completion_tokens).saturating_add(reasoning);
        let output = if beside { usage.completion_tokens } else { usage.completion_tokens.saturating_sub(reasoning) };
        let reasoning = if beside { reasoning } else { reasoning.min(usage.completion_tokens) };
        Tokens { fresh: prompt - cached - written, cached, written: written - for_an_hour, written_1h: for_an_hour, output, reasoning }
    }

    fn prompt(&self) -> u64 {
        self.fresh + self.cached + self.written + self.written_1h
    }
}

/// Tokens that the provider had in its cache, whatever it calls them.
pub fn cached(usage: &Usage) -> Option<u64> {
    usage.cached_tokens().or_else(|| usage.extra.get("prompt_cache_hit_tokens").and_then(Value::as_u64))
}

/// Tokens that the provider wrote to its cache.
pub fn cache_written(usage: &Usage) -> Option<u64> {
    usage.detail("prompt_tokens_details", "cache_creation_tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::{DAY_MS, day_of_date};
    use serde_json::json;

    fn at(date: &str) -> i64 {
        day_of_date(date).expect("a date") * DAY_MS
    }

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("refit.toml")).expect("valid")
    }

    fn usage(value: Value) -> Usage {
        serde_json::from_value(value).expect("usage")
    }

    #[test]
    fn the_files_of_this_program_are_valid_and_say_each_thing_once() {
        let prices = Prices::load(&Config::default());
        for price in prices.all() {
            let row = price.row();
            let same = |other: &&Price| {
                let other = other.row();
                (&other.provider, &other.model) == (&row.provider, &row.model)
                    && other.from_ms < row.until_ms
                    && row.from_ms < other.until_ms
            };
            assert_eq!(prices.all().iter().filter(same).count(), 1, "{}: two rows for one time", row.name);
        }
        assert!(prices.of("openai", "gpt-4o-mini", at("2026-11-25")).is_some());
        assert_eq!(prices.of("openai", "gpt-4o-ultra", at("2026-11-25")), None, "names that nobody priced are not guessed");
    }

    #[test]
    fn every_kind_of_token_has_its_own_price_and_the_sum_is_rounded_once() {
        let rows = "[[prices.rows]]\nprovider = \"openai\"\nmodel = \"m\"\ninput = \"1.5\"\noutput = \"6\"\ncached_input = \"0.15\"\n\
            cache_write = \"2\"\ncache_write_1h = \"3\"\nreasoning = \"8\"\nper_request = \"0.00001\"\n";
        let prices = Prices::load(&config(rows));
        let price = prices.of("openai", "m", 0).expect("a price");
        let counted = usage(json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 40, "cache_creation_tokens": 30}, "cache_creation": {"ephemeral_1h_input_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 20}}));
        // 30 × 1.5 + 40 × 0.15 + 20 × 2 + 10 × 3 + 30 × 6 + 20 × 8 + 10 micro-dollars.
        assert_eq!(price.cost(&counted), MicroUsd(45 + 6 + 40 + 30 + 180 + 160 + 10));
        assert_eq!(price.cost(&Usage::new(1, 0)), MicroUsd(12), "11.5 is rounded up");
        assert!(price.most(100, 50) >= price.cost(&counted));
        // Reasoning that is counted beside the completion.
        let beside = usage(
            json!({"prompt_tokens": 0, "completion_tokens": 10, "total_tokens": 15, "completion_tokens_details": {"reasoning_tokens": 5}}),
        );
        assert_eq!(price.cost(&beside), MicroUsd(60 + 40 + 10));
        // Counts that cannot be are no reason to overflow.
        let absurd =
            usage(json!({"prompt_tokens": 5, "completion_tokens": u64::MAX / 4, "prompt_tokens_details": {"cached_tokens": u64::MAX}}));
        assert!(price.cost(&absurd).0 > 0);
    }

    #[test]
    fn a_long_prompt_has_the_price_of_long_prompts() {
        let prices = Prices::load(&Config::default());
        let price = prices.of("gemini", "gemini-2.5-pro", at("2026-11-01")).expect("a price");
        assert_eq!(price.cost(&Usage::new(200_000, 0)), MicroUsd(250_000));
        assert_eq!(price.cost(&Usage::new(200_001, 0)), MicroUsd(500_003));
        assert!(price.most(300_000, 10) >= price.cost(&Usage::new(300_000, 10)));
    }

    #[test]
    fn the_row_of_the_time_counts() {
        let prices = Prices::load(&Config::default());
        let cached = usage(json!({"prompt_tokens": 1_000_000, "prompt_tokens_details": {"cached_tokens": 1_000_000}}));
        let cost = |date: &str| prices.of("anthropic", "claude-sonnet-5-5", at(date)).map(|price| price.cost(&cached));
        assert_eq!((cost("2026-10-06"), cost("2026-10-07")), (Some(MicroUsd(200_000)), Some(MicroUsd(100_000))));
        let flash = |date: &str| prices.of("gemini", "gemini-3.8-flash", at(date));
        assert!(flash("2026-12-31").is_some() && flash("2027-01-01").is_none(), "a price that has ended is not known any more");
    }

    #[test]
    fn own_rows_win_and_names_have_the_prices_of_their_kind() {
        let text = "[providers.our-openai]\nkind = \"openai\"\n[providers.up]\nkind = \"compatible\"\nbase_url = \"http://x\"\n\
            [[prices.rows]]\nprovider = \"our-openai\"\nmodel = \"gpt-4o*\"\ninput = 1\noutput = 1\n\
            [[prices.rows]]\nprovider = \"openai\"\nmodel = \"gpt-4.1\"\ninput = 3\noutput = 1\n\
            [[prices.rows]]\nprovider = \"openai\"\nmodel = \"gpt-4o\"\nuntil = 2020-01-01\ninput = 9\noutput = 1\n";
        let prices = Prices::load(&config(text));
        let input =
            |provider: &str, model: &str| prices.of(provider, model, at("2026-11-25")).map(|price| price.cost(&Usage::new(1_000_000, 0)).0);
        assert_eq!(input("our-openai", "gpt-4o-mini"), Some(1_000_000), "even a prefix of our own goes before");
        assert_eq!(input("our-openai", "gpt-4.1-mini"), Some(400_000));
        assert_eq!((input("our-openai", "gpt-4.1"), input("openai", "gpt-4.1")), (Some(3_000_000), Some(3_000_000)));
        assert_eq!(input("openai", "gpt-4o"), Some(2_500_000), "an own row that has ended does not hide the known one");
        assert_eq!((input("up", "gpt-4o"), input("nobody", "x")), (None, None));
        assert_eq!((input("mock", "echo"), input("local", "m:a"), input("azure", "gpt-4o-mini")), (Some(0), Some(0), Some(150_000)));
    }
}
