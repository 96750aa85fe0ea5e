//! The figures of model calls as OTLP metrics: the GenAI conventions' histograms by operation, provider and model, and sums of our own.
//! All of them count from the start of the process (cumulative temporality).

use super::Settings;
use super::names::{self, Name};
use super::spans::{Attributes, pair};
use crate::config::telemetry::Conventions;
use crate::monitor::series::{Distribution, GenAi, Labels, Series};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum};
use std::collections::BTreeMap;
use std::sync::Arc;

/// From when to when metrics count, nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) since: u64,
    pub(super) until: u64,
}

type Histograms = BTreeMap<Key, Distribution>;
/// Operation, provider as configured, model.
type Key = (&'static str, String, String);

/// Every metric that has counted anything.
pub(super) fn of(all: &[Arc<Series>], settings: &Settings, span: Span) -> Vec<Metric> {
    let writer = Writer { settings, span };
    let histogram = |of: fn(&GenAi) -> Distribution| grouped(all, of);
    let input = histogram(|gen_ai| gen_ai.input_tokens.read());
    let output = histogram(|gen_ai| gen_ai.output_tokens.read());
    let mut metrics = vec![
        writer.histogram((names::DURATION, "s"), vec![(None, histogram(|gen_ai| gen_ai.duration.read()))]),
        writer.histogram((names::FIRST_CHUNK, "s"), vec![(None, histogram(|gen_ai| gen_ai.first_chunk.read()))]),
    ];
    match settings.export.conventions {
        Conventions::V1_41 => {
            let both = vec![(Some("input"), input), (Some("output"), output)];
            metrics.push(writer.histogram((names::CALL_INPUT_TOKENS, "{token}"), both));
        }
        Conventions::Latest => {
            metrics.push(writer.histogram((names::CALL_INPUT_TOKENS, "{token}"), vec![(None, input)]));
            metrics.push(writer.histogram((names::CALL_OUTPUT_TOKENS, "{token}"), vec![(None, output)]));
        }
    }
    metrics.extend(writer.sums(all));
    metrics.into_iter().flatten().collect()
}

fn grouped(all: &[Arc<Series>], of: fn(&GenAi) -> Distribution) -> Histograms {
    let mut groups = Histograms::new();
    for series in all {
        let Some(gen_ai) = &series.gen_ai else { continue };
        let Labels { endpoint, provider, model, .. } = &series.labels;
        let key = (names::endpoint(endpoint).operation, provider.clone(), model.clone());
        groups.entry(key).or_default().add(&of(gen_ai));
    }
    groups.retain(|_, distribution| distribution.count() > 0);
    groups
}

struct Writer<'s> {
    settings: &'s Settings,
    span: Span,
}

impl Writer<'_> {
    fn histogram(&self, (name, unit): (Name, &str), groups: Vec<(Option<&str>, Histograms)>) -> Option<Metric> {
        let mut points = Vec::new();
        for (token_type, group) in groups {
            for (key, distribution) in group {
                let mut attributes = self.attributes(&key);
                if let Some(token_type) = token_type {
                    attributes.push(pair(names::TOKEN_TYPE.of(self.settings.export.conventions), Any::StringValue(token_type.into())));
                }
                points.push(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano: self.span.since,
                    time_unix_nano: self.span.until,
                    count: distribution.count(),
                    sum: Some(distribution.sum),
                    bucket_counts: distribution.buckets,
                    explicit_bounds: distribution.bounds.to_vec(),
                    ..HistogramDataPoint::default()
                });
            }
        }
        let temporality = AggregationTemporality::Cumulative.into();
        let data = Data::Histogram(Histogram { data_points: points, aggregation_temporality: temporality });
        self.metric(name, unit, data)
    }

    /// Requests by endpoint, project, route and status class; cost likewise.
    fn sums(&self, all: &[Arc<Series>]) -> Vec<Option<Metric>> {
        let (mut requests, mut costs) = (Vec::new(), Vec::new());
        for series in all {
            let figures = series.read();
            let own = self.own_attributes(&series.labels);
            for (class, count) in figures.statuses.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                let status = pair(names::HTTP_STATUS.of(self.settings.export.conventions), Any::StringValue(format!("{class}xx")));
                requests.push(self.number(own.iter().cloned().chain([status]).collect(), count));
            }
            if figures.counts.cost_micro_usd > 0 {
                costs.push(self.number(own, figures.counts.cost_micro_usd));
            }
        }
        let sum = |name, unit, data_points: Vec<NumberDataPoint>| {
            let sum = Sum { data_points, aggregation_temporality: AggregationTemporality::Cumulative.into(), is_monotonic: true };
            self.metric(name, unit, Data::Sum(sum))
        };
        vec![sum(names::REQUESTS, "{request}", requests), sum(names::COST_SUM, "{micro_usd}", costs)]
    }

    fn number(&self, attributes: Vec<KeyValue>, value: u64) -> NumberDataPoint {
        let value = Some(Number::AsInt(i64::try_from(value).unwrap_or(i64::MAX)));
        NumberDataPoint {
            attributes,
            start_time_unix_nano: self.span.since,
            time_unix_nano: self.span.until,
            value,
            ..NumberDataPoint::default()
        }
    }

    fn metric(&self, name: Name, unit: &str, data: Data) -> Option<Metric> {
        let empty = match &data {
            Data::Histogram(histogram) => histogram.data_points.is_empty(),
            Data::Sum(sum) => sum.data_points.is_empty(),
            _ => false,
        };
        let name = name.of(self.settings.export.conventions).to_string();
        (!empty).then(|| Metric { name, unit: unit.to_string(), data: Some(data), ..Metric::default() })
    }

    fn attributes(&self, (operation, provider, model): &Key) -> Vec<KeyValue> {
        let known = self.settings.providers.get(provider);
        let mut attributes = Attributes::new(self.settings.export.conventions);
        attributes.text(names::OPERATION, Some(operation));
        attributes.text(names::PROVIDER, Some(known.map_or(names::provider(provider), |place| place.name.as_str())));
        attributes.text(names::REQUEST_MODEL, Some(model));
        if let Some((host, port)) = known.and_then(|place| place.address.as_ref()) {
            attributes.text(names::SERVER_ADDRESS, Some(host));
            attributes.whole(names::SERVER_PORT, Some((*port).into()));
        }
        attributes.list
    }

    fn own_attributes(&self, labels: &Labels) -> Vec<KeyValue> {
        let mut attributes = Attributes::new(self.settings.export.conventions);
        attributes.text(names::HTTP_ROUTE, names::endpoint(&labels.endpoint).path.or(Some(&labels.endpoint)));
        attributes.text(names::PROJECT, Some(&labels.project));
        attributes.text(names::ROUTE, Some(&labels.route));
        attributes.text(names::RELEASE, Some(&labels.release));
        attributes.text(names::PROVIDER, Some(&labels.provider));
        attributes.text(names::REQUEST_MODEL, Some(&labels.model));
        attributes.list
    }
}
