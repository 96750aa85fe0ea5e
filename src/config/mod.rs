//! Configuration: `refit.toml` ([`raw`], as the user wrote it) becomes [`Config`] (checked, as the program uses it). One file per
//! TOML section; every environment variable in [`env`]. All problems of a file are reported at once.

pub mod batches;
pub mod budgets;
pub mod cache;
pub mod env;
pub mod evals;
pub mod files;
pub mod guardrails;
pub mod live;
pub mod local;
pub mod log;
pub mod prices;
pub mod prompts;
pub mod providers;
pub mod raw;
pub mod resilience;
pub mod routes;
pub mod secret;
pub mod server;
pub mod telemetry;

pub use batches::BatchesConfig;
pub use budgets::BudgetsConfig;
pub use cache::{CacheConfig, SemanticConfig};
pub use evals::EvalsConfig;
pub use files::Files;
pub use guardrails::GuardrailsConfig;
pub use live::Live;
pub use local::LocalConfig;
pub use log::LogConfig;
pub use prices::PricesConfig;
pub use prompts::PromptsConfig;
pub use providers::ProviderConfig;
pub use raw::Problem;
pub use resilience::{BreakerConfig, ResilienceConfig};
pub use routes::RouteConfig;
pub use secret::Secret;
pub use server::ServerConfig;
pub use telemetry::TelemetryConfig;

use crate::types::{Code, Coded};
use raw::{Problems, Section};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The checked configuration.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[providers.<name>]`, by name; `local` and `mock` exist without being listed.
    pub providers: Vec<ProviderConfig>,
    /// `[local]`
    pub local: LocalConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[telemetry]`
    pub telemetry: TelemetryConfig,
    /// `[batches]`
    pub batches: BatchesConfig,
    /// `[evals]`
    pub evals: EvalsConfig,
    /// `[guardrails]`
    pub guardrails: GuardrailsConfig,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[prompts]`
    pub prompts: PromptsConfig,
    /// `[routes.<name>]`, by name.
    pub routes: Vec<RouteConfig>,
    /// `[resilience]`
    pub resilience: ResilienceConfig,
    /// `[budgets]`
    pub budgets: BudgetsConfig,
    /// `[prices]`, with the rows of its files
    pub prices: PricesConfig,
    /// The file as it was written.
    written: toml::Table,
}

impl Config {
    /// Reads and checks a file; the defaults where there is none.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of the file.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let Some(path) = path else { return Ok(Config::default()) };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
        Config::with_files(&Files::of(text, path), path)
    }

    /// Checks a file and those that it names.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of the text, or of the first file that has some.
    pub fn with_files(files: &Files, path: &Path) -> Result<Config, ConfigError> {
        Config::with_files_noting(files, path).map(|(config, _)| config)
    }

    /// As [`Config::with_files`], with what is worth knowing besides.
    ///
    /// # Errors
    /// As [`Config::with_files`].
    pub fn with_files_noting(files: &Files, path: &Path) -> Result<(Config, Vec<Problem>), ConfigError> {
        let (mut config, notes) = Config::parse_noting(&files.text, path)?;
        for file in &files.prices {
            prices::read_file_of(&mut config.prices, file)?;
        }
        Ok((config, notes))
    }

    /// Checks the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem of the text.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        Config::parse_noting(text, path).map(|(config, _)| config)
    }

    /// As [`Config::parse`], with what is worth knowing besides.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse_noting(text: &str, path: &Path) -> Result<(Config, Vec<Problem>), ConfigError> {
        let mut problems = Problems::new(text);
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            problems.add(error.span().unwrap_or(0..0), "", error.message());
        }
        let mut config = Config::default();
        // A file whose syntax is broken has its sections in doubtful places: only the syntax is reported.
        if problems.found.is_empty() {
            config = read(Section::new(tree.get_ref(), ""), &mut problems);
            config.written = text.parse().unwrap_or_default();
        }
        let Problems { found: mut problems, notes, .. } = problems;
        if problems.is_empty() {
            return Ok((config, notes));
        }
        problems.sort();
        Err(ConfigError::Invalid { path: path.to_path_buf(), problems })
    }
}

impl Config {
    /// The effective configuration as a file would say it, one table a section; secrets are names of variables.
    pub fn shown(&self) -> toml::Table {
        let section = |value: Result<toml::Value, toml::ser::Error>| value.unwrap_or_else(|_| toml::Value::Table(toml::Table::new()));
        let providers = self.providers.iter().map(|provider| (provider.name.clone(), section(toml::Value::try_from(provider)))).collect();
        // A section that is not here fails a test.
        let sections = [
            ("server", section(toml::Value::try_from(&self.server))),
            ("local", section(toml::Value::try_from(&self.local))),
            ("batches", section(toml::Value::try_from(&self.batches))),
            ("evals", section(toml::Value::try_from(&self.evals))),
            ("cache", section(toml::Value::try_from(&self.cache))),
            ("prompts", section(toml::Value::try_from(&self.prompts))),
            ("log", section(toml::Value::try_from(&self.log))),
            ("guardrails", section(toml::Value::try_from(&self.guardrails))),
            ("providers", toml::Value::Table(providers)),
            ("resilience", self.resilience.shown().into()),
            ("budgets", self.budgets.shown().into()),
        ];
        let mut shown: toml::Table = sections.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        // What has no defaults stands there as it was written.
        for section in WRITTEN {
            let written = self.written.get(section).cloned().unwrap_or_else(|| toml::Table::new().into());
            shown.insert(section.to_string(), written);
        }
        shown
    }
}

/// Sections that hold what the user made up, and nothing else.
const WRITTEN: [&str; 4] = ["routes", "guardrails", "prices", "telemetry"];

fn read(mut root: Section<'_, '_>, problems: &mut Problems<'_>) -> Config {
    let server = root.section("server", problems).map(|section| server::read(section, problems));
    let providers = root.section("providers", problems).map(|section| providers::read(&section, problems));
    let local = root.section("local", problems).map(|section| local::read(section, problems));
    let log = root.section("log", problems).map(|section| log::read(section, problems));
    let telemetry = root.section("telemetry", problems).map(|section| telemetry::read(section, problems));
    let batches = root.section("batches", problems).map(|section| batches::read(section, problems));
    let evals = root.section("evals", problems).map(|section| evals::read(section, problems));
    let known = providers.as_deref().unwrap_or_default();
    let cache = root.section("cache", problems).map(|section| cache::read(section, known, problems));
    let guardrails = root.section("guardrails", problems).map(|section| guardrails::read(section, known, problems));
    let prompts = root.section("prompts", problems).map(|section| prompts::read(section, problems));
    let sets: Vec<_> = guardrails.iter().flat_map(|guardrails| guardrails.sets.keys().map(String::as_str)).collect();
    let routes = root.section("routes", problems);
    let routes = routes.map(|section| routes::read(&section, (known, &sets), problems));
    let resilience = root.section("resilience", problems).map(|section| resilience::read(section, problems));
    let budgets = root.section("budgets", problems).map(|section| budgets::read(section, problems));
    let prices = root.section("prices", problems).map(|section| prices::read(section, known, problems));
    root.finish(problems);
    Config {
        server: server.unwrap_or_default(),
        providers: providers.unwrap_or_default(),
        local: local.unwrap_or_default(),
        log: log.unwrap_or_default(),
        telemetry: telemetry.unwrap_or_default(),
        batches: batches.unwrap_or_default(),
        evals: evals.unwrap_or_default(),
        guardrails: guardrails.unwrap_or_default(),
        cache: cache.unwrap_or_default(),
        prompts: prompts.unwrap_or_default(),
        routes: routes.unwrap_or_default(),
        resilience: resilience.unwrap_or_default(),
        budgets: budgets.unwrap_or_default(),
        prices: prices.unwrap_or_default(),
        written: toml::Table::new(),
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file says something impossible.
    #[error("{} has {}{}", path.display(), count(problems.len()), lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them, by line.
        problems: Vec<Problem>,
    },
}

fn count(n: usize) -> String {
    if n == 1 { "1 problem".to_string() } else { format!("{n} problems") }
}

fn lines(problems: &[Problem]) -> String {
    // The file is named already.
    let line = |problem: &Problem| format!("\n  {}", Problem { file: None, ..problem.clone() });
    problems.iter().map(line).collect()
}

impl Coded for ConfigError {
    fn code(&self) -> Code {
        Code::INVALID_CONFIG
    }

    fn param(&self) -> Option<String> {
        match self {
            ConfigError::Invalid { problems, .. } => problems.first().map(|problem| problem.key.clone()),
            ConfigError::Unreadable { .. } => None,
        }
    }

    fn hint(&self) -> Option<String> {
        Some("refit.toml in the repository is a commented example of every key".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<(usize, String)> {
        match Config::parse(text, Path::new("refit.toml")) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|p| (p.line, format!("{}: {}", p.key, p.message))).collect()
            }
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn reports_every_problem_with_line_and_nearest_name() {
        let found = problems(
            "[server]\nprot = 1\nport = 70000\n[log]\nbodies = 1\n[serverr]\n[providers.x]\nkind = \"grok\"\n[providers.y]\nkind = \"groq\"\napi_key = \"sk-secret\"\n",
        );
        let text = format!("{found:#?}");
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 5, 6, 8, 11], "{text}");
        assert!(
            text.contains("did you mean \\\"port\\\"?") && text.contains("did you mean \\\"server\\\"?") && text.contains("groq"),
            "{text}"
        );
        assert!(!text.contains("sk-secret"), "a key in the wrong place is not repeated: {text}");
    }

    #[test]
    fn names_the_line_of_broken_syntax() {
        assert_eq!(problems("[server]\nport = = 1\n")[0].0, 2);
    }

    #[test]
    fn the_example_in_the_repository_is_valid_and_says_the_defaults() {
        let config = Config::parse(include_str!("../../refit.toml"), Path::new("refit.toml")).expect("valid");
        assert_eq!((config.server, config.local, config.log), (ServerConfig::default(), LocalConfig::default(), LogConfig::default()));
        assert_eq!((config.budgets, config.prices), (BudgetsConfig::default(), PricesConfig::default()));
        assert_eq!((config.cache, config.prompts), (CacheConfig::default(), PromptsConfig::default()));
        assert_eq!(config.resilience, ResilienceConfig::default());
        assert_eq!((config.batches, config.guardrails), (BatchesConfig::default(), GuardrailsConfig::default()));
        assert_eq!(config.evals, EvalsConfig::default());
    }

    #[test]
    fn the_effective_configuration_has_every_section_and_is_a_file_itself() {
        let example = include_str!("../../refit.toml").parse::<toml::Table>().expect("TOML");
        let path = Path::new("refit.toml");
        let text = "[server]\ndrain_s = 7\n[providers.groq]\nmodels = [\"m\"]\nbase_url = \"http://127.0.0.1:1\"\n";
        let config = Config::parse(text, path).expect("valid");
        let shown = config.shown();
        assert!(example.keys().all(|section| shown.contains_key(section)), "{shown}");
        let again = Config::parse(&shown.to_string(), path).expect("what is shown can be read");
        assert_eq!((&again.server, &again.providers), (&config.server, &config.providers));
        assert_eq!((again.shown(), again.server.drain_s), (shown, 7));
    }
}
