//! `[prices]`, and the format of price files: rows of (provider, model, time) with dollars per million tokens, read as exact decimals.
//! Which row counts for a call is `monitor::cost`'s business.

use super::files::NamedFile;
use super::providers::{KINDS, unknown_provider};
use super::raw::{Problems, Section};
use super::{ConfigError, ProviderConfig};
use crate::types::money::decimal;
use crate::types::time::{DAY_MS, day_of_date};
use std::ops::Range;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Prices of the configuration's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PricesConfig {
    /// Price files, relative to the configuration file.
    pub files: Vec<String>,
    /// Rows of `[[prices.rows]]`, then those of the files.
    pub rows: Vec<PriceRow>,
}

/// What a token costs, in millionths of a micro-dollar: a price of `0.15` dollars for a million tokens is 150,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Read.
    pub input: u64,
    /// Written.
    pub output: u64,
    /// Read from the provider's cache; as `input` where none.
    pub cached_input: Option<u64>,
    /// Written to the provider's cache; as `input` where none.
    pub cache_write: Option<u64>,
    /// Written to the provider's cache for an hour; as `cache_write` where none.
    pub cache_write_1h: Option<u64>,
    /// Written while reasoning; as `output` where none.
    pub reasoning: Option<u64>,
}

/// One price of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceRow {
    /// Provider's name or kind.
    pub provider: String,
    /// Model's name at the provider; `*` at its end stands for any rest.
    pub model: String,
    /// `provider@version/model`: what the request log calls it.
    pub name: String,
    /// First millisecond that it holds.
    pub from_ms: i64,
    /// First millisecond that it holds no more.
    pub until_ms: i64,
    /// Prices of tokens.
    pub rates: Rates,
    /// Prices of all tokens of a request whose prompt is longer than this.
    pub long: Option<(u64, Rates)>,
    /// Price of the call itself, in millionths of a micro-dollar.
    pub per_request: u64,
}

/// A price file: its rows, and the providers that they hold for.
#[derive(Debug, Clone, Default)]
pub struct PriceFile {
    /// Provider of the rows, and others with the same prices.
    pub providers: Vec<String>,
    /// Version: a day, by which the request log tells the file from others.
    pub version: String,
    /// Its rows.
    pub rows: Vec<PriceRow>,
}

/// Version of rows that stand in the configuration.
const OWN: &str = "own";
/// Places of a price per million tokens, and of a price per request.
const TOKEN_PLACES: u32 = 6;
const REQUEST_PLACES: u32 = 12;

pub(super) fn read(mut section: Section<'_, '_>, providers: &[ProviderConfig], problems: &mut Problems<'_>) -> PricesConfig {
    let files = section.texts("files", problems);
    let head = Head { provider: None, version: OWN.into(), providers: Some(providers) };
    let rows = rows(&mut section, &head, problems);
    section.finish(problems);
    PricesConfig { files, rows }
}

/// Adds the rows of a file that the configuration names.
pub(super) fn read_file_of(config: &mut PricesConfig, named: &NamedFile) -> Result<(), ConfigError> {
    let file = parse(named.text()?, &named.path).map_err(|error| match error {
        ConfigError::Invalid { path, mut problems } => {
            problems.iter_mut().for_each(|problem| problem.file = Some(named.name.clone()));
            ConfigError::Invalid { path, problems }
        }
        other => other,
    })?;
    for provider in &file.providers {
        config.rows.extend(file.rows.iter().map(|row| PriceRow { provider: provider.clone(), ..row.clone() }));
    }
    Ok(())
}

/// Reads a price file; `path` is for messages.
///
/// # Errors
/// [`ConfigError::Invalid`] with every problem of the text.
pub fn parse(text: &str, path: &Path) -> Result<PriceFile, ConfigError> {
    let mut problems = Problems::new(text);
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        problems.add(error.span().unwrap_or(0..0), "", error.message());
    }
    let mut file = PriceFile::default();
    if problems.found.is_empty() {
        file = read_file(Section::new(tree.get_ref(), ""), &mut problems);
    }
    let mut problems = problems.found;
    if problems.is_empty() {
        return Ok(file);
    }
    problems.sort();
    Err(ConfigError::Invalid { path: path.to_path_buf(), problems })
}

fn read_file(mut root: Section<'_, '_>, problems: &mut Problems<'_>) -> PriceFile {
    let needed = |key: &'static str, root: &mut Section<'_, '_>, problems: &mut Problems<'_>| {
        let text = root.text(key, problems);
        if text.is_none() {
            problems.add(0..0, key, "is missing");
        }
        text.unwrap_or_default()
    };
    let (provider, version) = (needed("provider", &mut root, problems), needed("version", &mut root, problems));
    // Said for the reader; another currency would be another program.
    let (_, unit) = (needed("source", &mut root, problems), needed("unit", &mut root, problems));
    if unit != UNIT {
        problems.add(0..0, "unit", format!("expected \"{UNIT}\""));
    }
    let mut providers = vec![provider.clone()];
    providers.extend(root.texts("also", problems));
    let rows = rows(&mut root, &Head { provider: Some(provider), version: version.clone(), providers: None }, problems);
    root.finish(problems);
    PriceFile { providers, version, rows }
}

const UNIT: &str = "USD per million tokens";

/// What a file says about all its rows.
struct Head<'c> {
    provider: Option<String>,
    version: String,
    /// What a row's provider may be, where that is known.
    providers: Option<&'c [ProviderConfig]>,
}

fn rows(section: &mut Section<'_, '_>, head: &Head<'_>, problems: &mut Problems<'_>) -> Vec<PriceRow> {
    let Some(value) = section.take("rows") else { return Vec::new() };
    let name = section.name("rows");
    let Some(items) = value.get_ref().as_array() else {
        problems.add(value.span(), &name, format!("expected a list of tables ([[{name}]])"));
        return Vec::new();
    };
    let mut rows: Vec<PriceRow> = Vec::new();
    for item in items {
        match item.get_ref().as_table() {
            Some(table) => {
                for row in row(item.span(), Section::new(table, name.clone()), head, problems) {
                    // Of rows that hold at one time the one that began last counts: of two that begin together, nobody could tell.
                    let is_twin =
                        |other: &PriceRow| (&other.provider, &other.model, other.from_ms) == (&row.provider, &row.model, row.from_ms);
                    if rows.iter().any(is_twin) {
                        let message = format!("a second row for \"{}\" from the same day on; give one of them another `from`", row.model);
                        problems.add(item.span(), &name, message);
                    }
                    rows.push(row);
                }
            }
            None => problems.add(item.span(), &name, format!("expected a table ([[{name}]])")),
        }
    }
    rows
}

fn row(span: Range<usize>, mut section: Section<'_, '_>, head: &Head<'_>, problems: &mut Problems<'_>) -> Vec<PriceRow> {
    let at = section.take("provider").map_or_else(|| span.clone(), |value| value.span());
    let provider = section.text("provider", problems).or_else(|| head.provider.clone());
    let is_kind = |name: &String| KINDS.contains(&name.as_str());
    if let (Some(name), Some(providers)) = (provider.as_ref().filter(|name| !is_kind(name)), head.providers)
        && let Some(why) = unknown_provider(name, providers)
    {
        problems.add(at, section.name("provider"), why);
    }
    let models = models(&span, &mut section, problems);
    if provider.is_none() {
        problems.add(span.clone(), section.name("provider"), "is missing: the name or kind of a provider");
    }
    let (from, until) = (day("from", &mut section, problems), day("until", &mut section, problems));
    if from.zip(until).is_some_and(|(from, until)| from > until) {
        problems.add(span.clone(), section.name("until"), "the last day is before the first");
    }
    let rates = rates(&span, &mut section, problems);
    let long = section.section("long", problems).map(|mut long| {
        let above = long.integer("above", 1..=100_000_000, 1, problems);
        let rates = self::rates(&span, &mut long, problems);
        long.finish(problems);
        (above, rates)
    });
    let per_request = price("per_request", REQUEST_PLACES, &mut section, problems).unwrap_or(0);
    section.finish(problems);
    let provider = provider.unwrap_or_default();
    let one = |model: String| PriceRow {
        name: format!("{}@{}/{model}", head.provider.as_ref().unwrap_or(&provider), head.version),
        provider: provider.clone(),
        model,
        from_ms: from.map_or(i64::MIN, |day| day * DAY_MS),
        // `until` names the last day.
        until_ms: until.map_or(i64::MAX, |day| (day + 1) * DAY_MS),
        rates,
        long,
        per_request,
    };
    models.into_iter().map(one).collect()
}

/// `model`: a name or several.
fn models(span: &Range<usize>, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<String> {
    let models = match section.take("model").map(|value| value.get_ref()) {
        Some(DeValue::Array(_)) => section.texts("model", problems),
        _ => section.text("model", problems).into_iter().collect(),
    };
    let misplaced = |model: &String| model.is_empty() || model.trim_end_matches('*').contains('*');
    if models.is_empty() || models.iter().any(misplaced) {
        problems.add(span.clone(), section.name("model"), "expected the name of a model, or several; a * may stand at the end");
    }
    models
}

fn rates(span: &Range<usize>, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Rates {
    let mut of = |key, problems: &mut Problems<'_>| price(key, TOKEN_PLACES, section, problems);
    let (input, output) = (of("input", problems), of("output", problems));
    let rates = Rates {
        input: input.unwrap_or(0),
        output: output.unwrap_or(0),
        cached_input: of("cached_input", problems),
        cache_write: of("cache_write", problems),
        cache_write_1h: of("cache_write_1h", problems),
        reasoning: of("reasoning", problems),
    };
    for (key, given) in [("input", input), ("output", output)] {
        if given.is_none() {
            problems.add(span.clone(), section.name(key), "is missing: dollars per million tokens, such as \"0.15\"; \"0\" for nothing");
        }
    }
    rates
}

/// A price as a text or a number, whose digits are taken as they stand.
fn price(key: &'static str, places: u32, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<u64> {
    let value = section.take(key)?;
    let digits = match value.get_ref() {
        DeValue::String(text) => text.as_ref(),
        DeValue::Float(number) => number.as_str(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        _ => "",
    };
    let price = decimal(digits, places);
    if price.is_none() {
        problems.add(value.span(), section.name(key), format!("expected dollars such as \"0.15\", with at most {places} places"));
        // It is there, if wrong: one problem is enough.
        return Some(0);
    }
    price
}

/// A day, as a text or as TOML's own date.
fn day(key: &'static str, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<i64> {
    let value = section.take(key)?;
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        _ => String::new(),
    };
    let day = day_of_date(&text);
    if day.is_none() {
        problems.add(value.span(), section.name(key), "expected a date such as \"2026-11-25\"");
    }
    day
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "provider = \"p\"\nversion = \"2026-11-01\"\nsource = \"s\"\nunit = \"USD per million tokens\"\n";

    #[test]
    fn a_row_is_read_digit_by_digit() {
        let text = format!(
            "{HEAD}also = [\"q\"]\n[[rows]]\nmodel = [\"m\", \"m-2*\"]\nfrom = 2026-01-01\nuntil = \"2026-01-31\"\ninput = 0.15\noutput = \"0.6\"\n\
             cached_input = 0.075\nper_request = \"0.000001\"\nlong = {{ above = 200000, input = 1, output = 2 }}\n"
        );
        let file = parse(&text, Path::new("p.toml")).expect("valid");
        assert_eq!((file.providers.len(), file.rows.len()), (2, 2));
        let row = &file.rows[1];
        assert_eq!((row.name.as_str(), row.rates.input, row.rates.cached_input), ("p@2026-11-01/m-2*", 150_000, Some(75_000)));
        assert_eq!((row.long.map(|(above, rates)| (above, rates.output)), row.per_request), (Some((200_000, 2_000_000)), 1_000_000));
        assert_eq!((row.until_ms - row.from_ms) / DAY_MS, 31);
    }

    #[test]
    fn rows_that_could_never_hold_are_named() {
        let row = |provider: &str, more: &str| {
            format!("[[prices.rows]]\nprovider = \"{provider}\"\nmodel = \"m\"\ninput = 1\noutput = 1\n{more}\n")
        };
        let text = [
            "[providers.ours]\nkind = \"openai\"\n".to_string(),
            row("ours", "from = \"2026-01-01\"\nuntil = \"2026-01-31\""),
            row("ours", "from = \"2026-02-01\""),
            row("azure", ""),
            row("opnai", ""),
            row("mock", "from = \"2026-02-01\"\nuntil = \"2026-01-31\""),
            row("openai", "from = \"2026-02-01\""),
            row("openai", "from = \"2026-02-01\"\nuntil = \"2026-03-01\""),
        ];
        let told = crate::config::Config::parse(&text.concat(), Path::new("refit.toml")).expect_err("refused").to_string();
        for part in ["3 problems", "did you mean \"openai\"?", "the last day is before the first", "a second row for \"m\""] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn wrong_prices_are_all_named() {
        let text =
            format!("{HEAD}[[rows]]\nmodel = \"a*b\"\ninput = -1\noutput = 0.0000001\ncached = 1\nfrom = \"soon\"\n[[rows]]\ninput = 1\n");
        let told = parse(&text, Path::new("p.toml")).expect_err("refused").to_string();
        for part in ["rows.model", "rows.input", "rows.output", "at most 6 places", "unknown key", "did you mean", "rows.from", "line 11"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
