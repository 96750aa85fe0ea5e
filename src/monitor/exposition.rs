//! What `/metrics` shows of the [`series`](super::series): to everybody by endpoint and provider, to whoever has a key also by project,
//! route, release and model.

use super::metrics::Read;
use super::series::{AllSeries, Figures, Labels, TIMES};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How much a reader may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// Totals by endpoint and provider.
    Totals,
    /// Everything about one project.
    Project(String),
    /// Everything.
    All,
}

/// A target, as far as metrics are concerned; whoever knows of targets hands them over when metrics are read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TargetFigures {
    /// `provider/model`.
    pub target: String,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// Calls under way.
    pub in_flight: u64,
    /// Calls that wait for their turn.
    pub queued: u64,
}

/// A budget, likewise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BudgetFigures {
    /// Project that it belongs to.
    pub project: String,
    /// Id of the key; empty for the project's own.
    pub api_key: String,
    /// The part of it that is spent, 0 to 1 and beyond.
    pub used_ratio: f64,
}

/// What is read when metrics are.
#[derive(Default)]
pub struct Sources {
    /// The targets that were called.
    pub targets: Option<Box<dyn Fn() -> Vec<TargetFigures> + Send + Sync>>,
    /// The budgets that are kept.
    pub budgets: Option<Box<dyn Fn() -> Vec<BudgetFigures> + Send + Sync>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("targets", &self.targets.is_some()).field("budgets", &self.budgets.is_some()).finish()
    }
}

/// One reading.
#[derive(Debug)]
pub(super) struct Exposition {
    pub(super) view: View,
    pub(super) series: Arc<AllSeries>,
    pub(super) targets: Vec<TargetFigures>,
    pub(super) budgets: Vec<BudgetFigures>,
}

type Pairs = Vec<(&'static str, String)>;
type Groups = BTreeMap<Pairs, Figures>;

impl Exposition {
    /// The series that may be seen, added up by some of their labels.
    fn grouped(&self, by: fn(&Labels) -> Pairs) -> Groups {
        let mut groups = Groups::new();
        for series in self.series.all() {
            if let View::Project(project) = &self.view
                && *project != series.labels.project
            {
                continue;
            }
            groups.entry(by(&series.labels)).or_default().add(&series.read());
        }
        groups
    }
}

fn everything(labels: &Labels) -> Pairs {
    let Labels { endpoint, project, route, release, provider, model } = labels.clone();
    vec![("endpoint", endpoint), ("project", project), ("route", route), ("release", release), ("provider", provider), ("model", model)]
}

/// Without project and release: a histogram is many lines.
fn for_times(labels: &Labels) -> Pairs {
    let Labels { endpoint, route, provider, model, .. } = labels.clone();
    vec![("endpoint", endpoint), ("route", route), ("provider", provider), ("model", model)]
}

fn totals(labels: &Labels) -> Pairs {
    vec![("endpoint", labels.endpoint.clone()), ("provider", labels.provider.clone())]
}

fn by_provider(labels: &Labels) -> Pairs {
    vec![("provider", labels.provider.clone())]
}

/// Writes families: a name, a help, lines.
struct Writer<'d>(DescriptorEncoder<'d>);

impl Writer<'_> {
    fn counters(&mut self, name: &'static str, help: &'static str, lines: Vec<(Pairs, u64)>) -> fmt::Result {
        let lines = lines.into_iter().filter(|(_, value)| *value > 0).map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.lines((name, help, None), MetricType::Counter, lines.collect())
    }

    fn gauges(&mut self, name: &'static str, help: &'static str, lines: Vec<(Pairs, f64)>) -> fmt::Result {
        let lines = lines.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.lines((name, help, None), MetricType::Gauge, lines.collect())
    }

    fn lines<M: EncodeMetric>(&mut self, what: (&str, &str, Option<&Unit>), kind: MetricType, lines: Vec<(Pairs, M)>) -> fmt::Result {
        if lines.is_empty() {
            return Ok(());
        }
        let (name, help, unit) = what;
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        if let [(labels, metric)] = lines.as_slice()
            && labels.is_empty()
        {
            return metric.encode(family);
        }
        for (labels, metric) in lines {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The lines of a family: for each group, what `of` finds in it, with one more label.
fn spread<V>(groups: &Groups, label: &'static str, of: impl Fn(&Figures) -> Vec<(String, V)>) -> Vec<(Pairs, V)> {
    let mut lines = Vec::new();
    for (pairs, figures) in groups {
        for (word, value) in of(figures) {
            lines.push((pairs.iter().cloned().chain([(label, word)]).collect(), value));
        }
    }
    lines
}

/// The same without a label.
fn plain(groups: &Groups, of: impl Fn(&Figures) -> u64) -> Vec<(Pairs, u64)> {
    groups.iter().map(|(pairs, figures)| (pairs.clone(), of(figures))).collect()
}

fn words<V>(pairs: impl IntoIterator<Item = (&'static str, V)>) -> Vec<(String, V)> {
    pairs.into_iter().map(|(word, value)| (word.to_string(), value)).collect()
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer(encoder);
        let told: [fn(&Labels) -> Pairs; 3] = match self.view {
            View::Totals => [totals, totals, by_provider],
            View::Project(_) | View::All => [everything, for_times, everything],
        };
        let [groups, times, tokens] = told.map(|by| self.grouped(by));
        requests(&groups, &mut out)?;
        token_counts(&tokens, &mut out)?;
        if self.view != View::Totals {
            money(&groups, &mut out)?;
            self.budgets(&mut out)?;
        }
        if self.view == View::All || self.view == View::Totals {
            self.targets(&mut out)?;
        }
        durations(&times, &mut out)
    }
}

fn requests(groups: &Groups, out: &mut Writer<'_>) -> fmt::Result {
    const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let statuses = spread(groups, "status", |of| words(CLASSES.into_iter().zip(of.statuses)));
    out.counters("requests", "Model calls by status class", statuses)?;
    let errors = spread(groups, "code", |of| of.errors.clone().into_iter().collect());
    out.counters("errors", "Failed model calls by code; without a provider they were refused here (limits, budgets)", errors)?;
    out.counters("upstream_calls", "Calls of providers, all tries", plain(groups, |of| of.counts.attempts))?;
    let again = spread(groups, "kind", |of| words([("retry", of.counts.retries), ("fallback", of.counts.fallbacks)]));
    out.counters("upstream_calls_repeated", "Failed calls that were repeated: at the same target, at another", again)?;
    let cache = spread(groups, "result", |of| {
        words([("hit", of.counts.cache_hits), ("semantic", of.counts.cache_similar), ("miss", of.counts.cache_misses)])
    });
    out.counters("cache_lookups", "Model calls that the cache was asked for, by what it had", cache)?;
    let mut findings = Vec::new();
    for (pairs, figures) in groups {
        for ((detector, action), count) in &figures.findings {
            let more = [("detector", detector.clone()), ("action", action.clone())];
            findings.push((pairs.iter().cloned().chain(more).collect(), *count));
        }
    }
    out.counters("guardrail_findings", "What guardrails found, by requests", findings)
}

fn token_counts(groups: &Groups, out: &mut Writer<'_>) -> fmt::Result {
    let tokens = spread(groups, "direction", |of| {
        let counts = &of.counts;
        words([
            ("input", counts.input_tokens),
            ("output", counts.output_tokens),
            ("cached", counts.cached_tokens),
            ("cache_write", counts.cache_write_tokens),
            ("reasoning", counts.reasoning_tokens),
        ])
    });
    out.counters("tokens", "Tokens, as providers report them; cached and cache_write are of input, reasoning is of output", tokens)
}

fn money(groups: &Groups, out: &mut Writer<'_>) -> fmt::Result {
    out.counters("cost_micro_usd", "Cost of calls whose price is known, in micro-dollars", plain(groups, |of| of.counts.cost_micro_usd))?;
    out.counters("unpriced_requests", "Answered calls whose price is not known", plain(groups, |of| of.counts.unpriced))?;
    let saved = groups.iter().filter(|(_, of)| of.saved_micro_usd != 0).map(|(pairs, of)| (pairs.clone(), of.saved_micro_usd as f64));
    out.gauges("saved_micro_usd", "What cache and cascades saved since the start, in micro-dollars", saved.collect())
}

fn durations(groups: &Groups, out: &mut Writer<'_>) -> fmt::Result {
    const HELPS: [&str; TIMES.len()] = [
        "Time of a model call to the last byte",
        "Time of a streamed call to its first chunk",
        "Time that providers took, over all tries",
        "Time in queues",
        "Time that Refit itself took: all but queues and providers",
    ];
    for (at, (name, help)) in TIMES.into_iter().zip(HELPS).enumerate() {
        let lines = groups.iter().map(|(pairs, figures)| (pairs.clone(), Read(&figures.times[at])));
        out.lines((name, help, Some(&Unit::Seconds)), MetricType::Histogram, lines.filter(|(_, read)| read.0.count() > 0).collect())?;
    }
    Ok(())
}

impl Exposition {
    fn targets(&self, out: &mut Writer<'_>) -> fmt::Result {
        const STATES: [&str; 3] = ["closed", "half_open", "open"];
        // The name of a target holds a model, which not everybody is told.
        let told = self.view == View::All;
        let of = |target: &TargetFigures| vec![("target", target.target.clone())];
        let total = |of: fn(&TargetFigures) -> u64| self.targets.iter().map(of).sum::<u64>() as f64;
        if self.targets.is_empty() {
            return Ok(());
        }
        if !told {
            out.gauges("queue_depth", "Calls that wait for their turn at a target", vec![(Vec::new(), total(|target| target.queued))])?;
            let open = total(|target| u64::from(target.breaker == "open"));
            return out.gauges("breakers_open", "Targets whose circuit breaker is open", vec![(Vec::new(), open)]);
        }
        let lines = |value: fn(&TargetFigures) -> u64| self.targets.iter().map(|target| (of(target), value(target) as f64)).collect();
        out.gauges("queue_depth", "Calls that wait for their turn at a target", lines(|target| target.queued))?;
        out.gauges("target_calls_in_flight", "Calls under way at a target", lines(|target| target.in_flight))?;
        let mut states = Vec::new();
        for target in &self.targets {
            for state in STATES {
                let labels = of(target).into_iter().chain([("state", state.to_string())]).collect();
                states.push((labels, f64::from(u8::from(target.breaker == state))));
            }
        }
        out.gauges("breaker_state", "1 for the state that a target's circuit breaker is in", states)
    }

    fn budgets(&self, out: &mut Writer<'_>) -> fmt::Result {
        let seen = self.budgets.iter().filter(|budget| match &self.view {
            View::Totals => false,
            View::Project(project) => *project == budget.project,
            View::All => true,
        });
        let lines = seen.map(|budget| (vec![("project", budget.project.clone()), ("api_key", budget.api_key.clone())], budget.used_ratio));
        out.gauges("budget_used_ratio", "The part of a budget that is spent", lines.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Metrics;
    use crate::store::requests::RequestRow;

    /// What the documentation names is there, once anything has happened.
    #[test]
    fn every_metric_of_the_documentation_exists() {
        let metrics = Metrics::new();
        let text = |text: &str| Some(text.to_string());
        metrics.finish(&RequestRow {
            provider: "up".into(),
            model: "m".into(),
            status: 200,
            error_code: text("cancelled"),
            queue_ms: Some(1.0),
            first_token_ms: Some(1.0),
            upstream_ms: Some(1.0),
            overhead_ms: Some(1.0),
            input_tokens: Some(1),
            cost_micro_usd: Some(1),
            saved_micro_usd: Some(1),
            cache: text("miss"),
            attempts: Some(2),
            attempted: text(r#"[{"target": "up/m"}]"#),
            guardrails: text(r#"[{"detector": "x", "action": "y"}]"#),
            ..RequestRow::default()
        });
        metrics.finish(&RequestRow { provider: "up".into(), model: "m".into(), status: 200, ..RequestRow::default() });
        metrics.http("/x", 200);
        let target = || TargetFigures { target: "up/m".into(), breaker: "open", ..TargetFigures::default() };
        metrics
            .watch(Sources { targets: Some(Box::new(move || vec![target()])), budgets: Some(Box::new(|| vec![BudgetFigures::default()])) });
        let shown = metrics.render(View::All) + &metrics.render(View::Totals);
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let words = include_str!("../docs/metrics.md").split(|c| !is_name(c));
        let named: Vec<_> = words.filter(|word| word.starts_with("refit_") || word.starts_with("process_")).collect();
        assert!(named.len() > 40, "{named:?}");
        for name in named.into_iter().filter(|name| cfg!(target_os = "linux") || name.starts_with("refit_")) {
            assert!(shown.contains(&format!("\n{name}")), "{name} is not in\n{shown}");
        }
    }

    #[test]
    fn targets_and_budgets_are_read_when_metrics_are_and_told_to_whom_they_concern() {
        let metrics = Metrics::new();
        let target = |name: &str, breaker, queued| TargetFigures { target: name.into(), breaker, in_flight: 1, queued };
        let budget = |project: &str| BudgetFigures { project: project.into(), api_key: "key_1".into(), used_ratio: 0.75 };
        metrics.watch(Sources {
            targets: Some(Box::new(move || vec![target("up/m", "open", 3), target("b/m", "closed", 2)])),
            budgets: Some(Box::new(move || vec![budget("p"), budget("q")])),
        });
        let all = metrics.render(View::All);
        for line in [
            "refit_breaker_state{target=\"up/m\",state=\"open\"} 1.0",
            "refit_breaker_state{target=\"up/m\",state=\"closed\"} 0.0",
            "refit_queue_depth{target=\"up/m\"} 3.0",
            "refit_target_calls_in_flight{target=\"b/m\"} 1.0",
            "refit_budget_used_ratio{project=\"q\",api_key=\"key_1\"} 0.75",
        ] {
            assert!(all.contains(line), "{line} is not in\n{all}");
        }
        let totals = metrics.render(View::Totals);
        assert!(totals.contains("refit_queue_depth 5.0") && totals.contains("refit_breakers_open 1.0"), "{totals}");
        assert!(!totals.contains("up/m") && !totals.contains("budget_used"), "{totals}");
        let own = metrics.render(View::Project("p".into()));
        assert!(own.contains("project=\"p\"") && !own.contains("project=\"q\"") && !own.contains("up/m"), "{own}");
    }
}
