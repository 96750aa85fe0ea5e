//! `[routes.<name>]`: a name that applications call, the targets that answer it, how one is chosen and where to go when it fails.

use super::ProviderConfig;
use super::providers::unknown_provider;
use super::raw::{Problems, Section};
use crate::types::error::did_you_mean;
use crate::types::ids::is_slug;
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeValue;

/// Targets of one route, fallbacks counted.
pub const MAX_TARGETS: usize = 32;

/// One configured route.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteConfig {
    /// What callers put in `model`.
    pub name: String,
    /// Targets among which one is chosen.
    pub targets: Vec<TargetConfig>,
    /// Targets that are asked in this order when none of the others can be.
    pub fallbacks: Vec<TargetConfig>,
    /// How a target is chosen.
    pub choose: Choose,
    /// Whose requests stay with one target.
    pub sticky: Sticky,
    /// Calls for one request, over all targets.
    pub attempts: u32,
    /// Silence after which a second target is asked beside the first.
    pub hedge_after: Option<Duration>,
    /// Time for the first piece of a streamed reply.
    pub first_byte_timeout: Option<Duration>,
    /// Time for a request in all: waiting, retries and the whole reply, streamed or not.
    pub total_timeout: Option<Duration>,
    /// A cheap model that is asked first.
    pub cascade: Option<CascadeConfig>,
    /// Names of guardrails.
    pub guardrails: Vec<String>,
    /// Whether replies are cached; none leaves it to `[cache]`.
    pub cache: Option<bool>,
}

/// One target of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// `provider/model`, `local/model:adapter`, or the name of a gated route.
    pub model: String,
    /// Its share, beside the other targets' shares.
    pub weight: u32,
    /// Calls of this route that it works on at once.
    pub max_concurrency: Option<usize>,
}

/// How a target is chosen among those that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choose {
    /// At random, by weight.
    Weighted,
    /// The first in the list.
    Ordered,
    /// The one whose first byte has come soonest of late.
    LeastLatency,
    /// The one with the fewest calls in flight for its weight.
    LeastBusy,
}

/// Whose requests stay with one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sticky {
    /// Nobody's.
    None,
    /// Those of one user.
    User,
    /// Those of one conversation.
    Conversation,
}

/// `[routes.<name>.cascade]`: a cheap model answers first, and the request goes on to the targets unless its answer is accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct CascadeConfig {
    /// The model that answers first.
    pub first: String,
    /// Time that it gets.
    pub timeout: Option<Duration>,
    /// What its answer must stand; all of it.
    pub accept: AcceptConfig,
}

/// What an answer of the first model must stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AcceptConfig {
    /// It is valid against the JSON schema that the request asks for.
    pub schema: bool,
    /// The mean log-probability of its tokens is at least this.
    pub min_logprob: Option<f64>,
    /// Another model gives it enough points.
    pub judge: Option<JudgeConfig>,
}

/// A model that judges answers.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgeConfig {
    /// The model.
    pub model: String,
    /// Points, 0 to 1, from which an answer is accepted.
    pub threshold: f64,
    /// What it is told to look at, in place of our own words.
    pub instruction: Option<String>,
}

pub(super) fn read(
    section: &Section<'_, '_>,
    (providers, guardrails): (&[ProviderConfig], &[&str]),
    problems: &mut Problems<'_>,
) -> Vec<RouteConfig> {
    let names: Vec<&str> = section.entries().map(|(name, ..)| name).collect();
    let known = Known { providers, routes: &names, guardrails };
    let mut routes = Vec::new();
    for (name, span, value) in section.entries() {
        let path = section.name(name);
        if !is_slug(name) {
            problems.add(span, path, "a route's name is 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit");
            continue;
        }
        let Some(table) = value.get_ref().as_table() else {
            problems.add(span, &path, format!("expected a table ([{path}])"));
            continue;
        };
        routes.push(read_one(name, span, Reader { section: Section::new(table, path), known: &known, problems }));
    }
    routes.sort_by(|a, b| a.name.cmp(&b.name));
    routes
}

/// Names that a target may have.
struct Known<'k> {
    providers: &'k [ProviderConfig],
    routes: &'k [&'k str],
    guardrails: &'k [&'k str],
}

/// One route being read.
struct Reader<'r, 't, 'i, 's> {
    section: Section<'t, 'i>,
    known: &'r Known<'r>,
    problems: &'r mut Problems<'s>,
}

fn read_one(name: &str, span: Range<usize>, mut reader: Reader<'_, '_, '_, '_>) -> RouteConfig {
    let mut seen = Vec::new();
    let targets = reader.targets("targets", &mut seen);
    let fallbacks = reader.targets("fallbacks", &mut seen);
    let path = reader.section.name("targets");
    match targets.len() + fallbacks.len() {
        _ if targets.is_empty() => {
            reader.problems.add(span, path, "a route needs at least one target, such as \"openai/gpt-4o-mini\"");
        }
        n if n > MAX_TARGETS => reader.problems.add(span, path, format!("{n} targets and fallbacks; a route takes {MAX_TARGETS}")),
        _ => {}
    }
    let choose = reader.choose();
    let sticky = reader.sticky(choose);
    let all = u64::try_from(targets.len() + fallbacks.len()).unwrap_or(u64::MAX).max(2);
    let attempts = reader.section.integer("attempts", 1..=100, all, reader.problems);
    let at = reader.section.take("cascade").map_or(0..0, Spanned::span);
    let cascade = reader.section.section("cascade", reader.problems).map(|section| reader.cascade(at, section));
    let route = RouteConfig {
        name: name.to_string(),
        targets,
        fallbacks,
        choose,
        sticky,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        hedge_after: reader.time("hedge_after_ms"),
        first_byte_timeout: reader.time("first_byte_timeout_ms"),
        total_timeout: reader.time("total_timeout_ms"),
        cascade: cascade.flatten(),
        guardrails: reader.guardrails(),
        cache: reader.maybe("cache"),
    };
    reader.section.finish(reader.problems);
    route
}

impl<'t, 'i> Reader<'_, 't, 'i, '_> {
    fn targets(&mut self, key: &'static str, seen: &mut Vec<String>) -> Vec<TargetConfig> {
        let Some(value) = self.section.take(key) else { return Vec::new() };
        let path = self.section.name(key);
        let Some(items) = value.get_ref().as_array() else {
            self.problems.add(value.span(), path, "expected a list of \"provider/model\" or { model = \"…\", weight = 1 }");
            return Vec::new();
        };
        let mut targets = Vec::new();
        for item in items.iter() {
            let Some(target) = self.target(item, &path) else { continue };
            if seen.contains(&target.model) {
                self.problems.add(item.span(), &path, format!("\"{}\" is a target of this route already", target.model));
            }
            self.known(&target.model, item.span(), &path);
            seen.push(target.model.clone());
            targets.push(target);
        }
        targets
    }

    fn target(&mut self, item: &'t Spanned<DeValue<'i>>, path: &str) -> Option<TargetConfig> {
        if let Some(model) = item.get_ref().as_str() {
            return Some(TargetConfig { model: model.to_string(), weight: 1, max_concurrency: None });
        }
        let Some(table) = item.get_ref().as_table() else {
            self.problems.add(item.span(), path, "expected \"provider/model\" or { model = \"…\", weight = 1 }");
            return None;
        };
        let mut section = Section::new(table, path);
        let model = section.text("model", self.problems);
        if model.is_none() {
            self.problems.add(item.span(), format!("{path}.model"), "expected a text such as \"openai/gpt-4o-mini\"");
        }
        let weight = section.integer("weight", 1..=1_000_000, 1, self.problems);
        let max = at_least_one(&mut section, ("max_concurrency", 1_000_000), self.problems);
        section.finish(self.problems);
        let max_concurrency = max.and_then(|max| usize::try_from(max).ok());
        Some(TargetConfig { model: model?, weight: u32::try_from(weight).unwrap_or(1), max_concurrency })
    }

    /// Reports a name that cannot be called. Gated routes are in the database: they are looked up when the route is called.
    fn known(&mut self, model: &str, span: Range<usize>, path: &str) {
        let Some((provider, rest)) = model.split_once('/') else {
            if self.known.routes.contains(&model) {
                let message = format!("\"{model}\" is a route of this file; routes do not nest: name its targets here");
                self.problems.add(span, path, message);
            } else if !is_slug(model) {
                self.problems.add(span, path, "expected provider/model or the name of a gated route");
            }
            return;
        };
        if rest.is_empty() {
            self.problems.add(span, path, format!("expected a model after \"{provider}/\""));
            return;
        }
        if let Some(why) = unknown_provider(provider, self.known.providers) {
            self.problems.add(span, path, why);
        }
    }

    /// Names of sets that there are.
    fn guardrails(&mut self) -> Vec<String> {
        let span = self.section.take("guardrails").map_or(0..0, Spanned::span);
        let names = self.section.texts("guardrails", self.problems);
        for name in names.iter().filter(|name| !self.known.guardrails.contains(&name.as_str())) {
            let nearest = did_you_mean(name, self.known.guardrails.iter().copied());
            let path = self.section.name("guardrails");
            self.problems.add(span.clone(), path, format!("there is no set [guardrails.{name}]{nearest}"));
        }
        names
    }

    fn choose(&mut self) -> Choose {
        const WORDS: [(&str, Choose); 4] = [
            ("weighted", Choose::Weighted),
            ("ordered", Choose::Ordered),
            ("least_latency", Choose::LeastLatency),
            ("least_busy", Choose::LeastBusy),
        ];
        self.word("choose", &WORDS, Choose::Weighted)
    }

    fn sticky(&mut self, choose: Choose) -> Sticky {
        const WORDS: [(&str, Sticky); 3] = [("none", Sticky::None), ("user", Sticky::User), ("conversation", Sticky::Conversation)];
        let sticky = self.word("sticky", &WORDS, Sticky::None);
        if sticky != Sticky::None && choose != Choose::Weighted {
            let span = self.section.take("sticky").map_or(0..0, Spanned::span);
            let message = "a sticky route chooses by weight: leave choose out, or make it \"weighted\"";
            self.problems.add(span, self.section.name("sticky"), message);
        }
        sticky
    }

    fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(span) = self.section.take(key).map(Spanned::span) else { return default };
        let Some(given) = self.section.text(key, self.problems) else { return default };
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == given) {
            return *found;
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let nearest = did_you_mean(&given, known.iter().copied());
        self.problems.add(span, self.section.name(key), format!("expected one of {}{nearest}", known.join(", ")));
        default
    }

    fn time(&mut self, key: &'static str) -> Option<Duration> {
        at_least_one(&mut self.section, (key, 86_400_000), self.problems).map(Duration::from_millis)
    }

    fn maybe(&mut self, key: &'static str) -> Option<bool> {
        self.section.take(key)?;
        Some(self.section.switch(key, false, self.problems))
    }

    fn cascade(&mut self, at: Range<usize>, mut section: Section<'t, 'i>) -> Option<CascadeConfig> {
        let first = self.model("first", at.clone(), &mut section);
        let timeout = at_least_one(&mut section, ("timeout_ms", 86_400_000), self.problems).map(Duration::from_millis);
        let span = section.take("accept").map(Spanned::span);
        let accept = section.section("accept", self.problems).map(|section| self.accept(section));
        let path = section.name("accept");
        section.finish(self.problems);
        let Some(span) = span else {
            self.problems.add(
                at,
                path,
                "a cascade needs accept = { schema = true }, { min_logprob = -0.5 } or { judge = \"provider/model\" }",
            );
            return None;
        };
        let accept = accept?;
        if accept == AcceptConfig::default() {
            self.problems.add(span, path, "nothing is checked: expected schema = true, min_logprob or judge");
        }
        Some(CascadeConfig { first: first?, timeout, accept })
    }

    fn accept(&mut self, mut section: Section<'t, 'i>) -> AcceptConfig {
        let threshold = number(&mut section, ("threshold", 0.0, 1.0), self.problems);
        let instruction = section.take("instruction").and_then(|_| section.text("instruction", self.problems));
        let judge = section.take("judge").is_some().then(|| self.model("judge", 0..0, &mut section)).flatten();
        let judge = judge.map(|model| JudgeConfig { model, threshold: threshold.unwrap_or(0.5), instruction });
        let accept = AcceptConfig {
            schema: section.switch("schema", false, self.problems),
            min_logprob: number(&mut section, ("min_logprob", -100.0, 0.0), self.problems),
            judge,
        };
        section.finish(self.problems);
        accept
    }

    /// A model that must be named, in the table at this place.
    fn model(&mut self, key: &'static str, at: Range<usize>, section: &mut Section<'t, 'i>) -> Option<String> {
        let span = section.take(key).map(Spanned::span);
        let path = section.name(key);
        let Some(span) = span else {
            self.problems.add(at, path, "expected a model, such as \"local/smollm2-135m-instruct\"");
            return None;
        };
        let model = section.text(key, self.problems)?;
        self.known(&model, span, &path);
        Some(model)
    }
}

/// A whole number from 1; none where the key is absent.
fn at_least_one(section: &mut Section<'_, '_>, (key, max): (&'static str, u64), problems: &mut Problems<'_>) -> Option<u64> {
    Some(section.integer(key, 1..=max, 0, problems)).filter(|x| *x > 0)
}

fn number(section: &mut Section<'_, '_>, (key, min, max): (&'static str, f64, f64), problems: &mut Problems<'_>) -> Option<f64> {
    let value = section.take(key)?;
    let written = match value.get_ref() {
        DeValue::Float(x) => x.as_str().replace('_', ""),
        DeValue::Integer(x) => x.as_str().replace('_', ""),
        _ => String::new(),
    };
    let number = written.parse::<f64>().ok().filter(|x| (min..=max).contains(x));
    if number.is_none() {
        problems.add(value.span(), section.name(key), format!("expected a number from {min} to {max}"));
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError};
    use std::path::Path;

    fn found(text: &str) -> Vec<(usize, String)> {
        match Config::parse(text, Path::new("refit.toml")) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.into_iter().map(|p| (p.line, format!("{}: {}", p.key, p.message))).collect()
            }
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn a_route_is_read_with_its_defaults() {
        let text = "[providers.up]\nkind = \"compatible\"\nbase_url = \"http://x\"\n[routes.chat]\n\
            targets = [\"openai/a\", { model = \"up/b\", weight = 3, max_concurrency = 8 }]\nfallbacks = [\"local/c\", \"gated\"]\n\
            [routes.chat.cascade]\nfirst = \"mock/echo\"\naccept = { judge = \"openai/a\", threshold = 0.7 }\n[routes.one]\ntargets = [\"mock/echo\"]";
        let config = Config::parse(text, Path::new("refit.toml")).expect("valid");
        let [chat, one] = &config.routes[..] else { panic!("{:?}", config.routes) };
        assert_eq!((chat.targets[1].weight, chat.targets[1].max_concurrency, chat.attempts), (3, Some(8), 4));
        assert_eq!((one.attempts, one.choose, one.sticky), (2, Choose::Weighted, Sticky::None));
        let judge = chat.cascade.as_ref().and_then(|cascade| cascade.accept.judge.clone()).expect("a judge");
        assert_eq!((judge.model.as_str(), judge.threshold), ("openai/a", 0.7));
    }

    #[test]
    fn what_cannot_be_called_is_reported_with_its_line() {
        let text = "[routes.a]\ntargets = [\"opnai/x\",\n \"openai/x\",\n \"openai/x\",\n { model = \"groq/y\", weight = 0 },\n \"b\"]\n\
            choose = \"leest_busy\"\nsticky = \"user\"\n[routes.b]\ntargets = []\n[routes.c]\ntargets = [\"c\", \"xai/\"]\nattemps = 2\n\
            [routes.d]\ntargets = [\"mock/echo\"]\nchoose = \"ordered\"\nsticky = \"user\"\n[routes.d.cascade]\nfirst = \"mock/echo\"\naccept = {}\n";
        let found = found(text);
        let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 4, 5, 6, 7, 9, 12, 12, 13, 17, 20], "{found:#?}");
        let all = format!("{found:#?}");
        for words in ["did you mean \\\"openai\\\"", "already", "from 1 to", "do not nest", "least_busy", "at least one target", "attempts"]
        {
            assert!(all.contains(words), "{words}: {all}");
        }
    }
}
