//! `[telemetry]`: export of traces, metrics and evaluation events over OTLP. What the file leaves open is taken from OpenTelemetry's own
//! variables; without an address in either nothing is exported and nothing is prepared for it.

use super::raw::{Problems, Section};
use super::{Secret, env};
use percent_encoding::percent_decode_str;
use std::time::Duration;
use toml::de::DeValue;

/// Paths below `otlp_endpoint` (OTLP specification, "OTLP/HTTP Request").
const PATHS: [(&str, &str); 3] = [("traces", "/v1/traces"), ("metrics", "/v1/metrics"), ("logs", "/v1/logs")];

/// Settings of telemetry.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// Base URL of the collector: `http://127.0.0.1:4318`.
    pub otlp_endpoint: Option<String>,
    /// Headers of each export, in lower case.
    pub headers: Vec<(String, Secret)>,
    /// `service.name`.
    pub service_name: String,
    /// Share of the traces that begin here and are recorded, 0 to 1.
    pub sample_ratio: f64,
    /// Put messages and replies into spans.
    pub content: bool,
    /// Export metrics, too.
    pub metrics: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig {
            otlp_endpoint: None,
            headers: Vec::new(),
            service_name: "refit".into(),
            sample_ratio: 1.0,
            content: false,
            metrics: true,
        }
    }
}

/// Which names attributes and metrics have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conventions {
    /// GenAI semantic conventions 1.41, the newest that are released.
    V1_41,
    /// Those to come.
    Latest,
}

/// Where and how telemetry goes: the file and the environment together.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// Address for spans.
    pub traces: Option<String>,
    /// Address for metrics.
    pub metrics: Option<String>,
    /// Address for evaluation events, which are log records.
    pub logs: Option<String>,
    /// Headers of each export.
    pub headers: Vec<(String, Secret)>,
    /// Time for one export.
    pub timeout: Duration,
    /// How long spans are gathered.
    pub gather: Duration,
    /// Pause between exports of metrics.
    pub metric_interval: Duration,
    /// Attributes of the resource, `service.name` among them.
    pub resource: Vec<(String, String)>,
    /// Share of the traces that begin here and are recorded.
    pub sample_ratio: f64,
    /// Put messages and replies into spans.
    pub content: bool,
    /// Which names are used.
    pub conventions: Conventions,
}

impl TelemetryConfig {
    /// The export that this file and the environment ask for; none when neither names an address.
    pub fn export(&self) -> Option<Export> {
        self.export_with(&env::text)
    }

    /// As [`TelemetryConfig::export`], with the variables read by a function.
    fn export_with(&self, variable: &dyn Fn(&str) -> Option<String>) -> Option<Export> {
        if variable(env::OTEL_SDK_DISABLED).is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        let mut addresses = PATHS.map(|(signal, path)| self.address(signal, path, variable));
        if !self.metrics {
            addresses[1] = None;
        }
        if addresses.iter().all(Option::is_none) {
            return None;
        }
        let [traces, metrics, logs] = addresses;
        let millis = |name: &str, default: u64| {
            let given = variable(name).and_then(|text| text.trim().parse().ok()).filter(|ms| *ms > 0);
            Duration::from_millis(given.unwrap_or(default))
        };
        Some(Export {
            traces,
            metrics,
            logs,
            headers: self.all_headers(variable),
            timeout: millis(env::OTEL_EXPORTER_OTLP_TIMEOUT, 10_000),
            gather: millis(env::OTEL_BSP_SCHEDULE_DELAY, 5_000),
            metric_interval: millis(env::OTEL_METRIC_EXPORT_INTERVAL, 60_000),
            resource: self.resource(variable),
            sample_ratio: self.sample_ratio,
            content: self.content,
            conventions: conventions(variable),
        })
    }

    fn address(&self, signal: &str, path: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
        let of_signal = |name: &str| variable(&format!("OTEL_{name}"));
        let upper = signal.to_uppercase();
        if of_signal(&format!("{upper}_EXPORTER")).is_some_and(|exporter| exporter == "none") {
            return None;
        }
        if let Some(base) = &self.otlp_endpoint {
            return Some(format!("{}{path}", base.trim_end_matches('/')));
        }
        let own = |name: &str| of_signal(&format!("EXPORTER_OTLP_{upper}_{name}"));
        let protocol = own("PROTOCOL").or_else(|| variable(env::OTEL_EXPORTER_OTLP_PROTOCOL));
        let address = own("ENDPOINT");
        let address = address.or_else(|| {
            let base = variable(env::OTEL_EXPORTER_OTLP_ENDPOINT)?;
            Some(format!("{}{path}", base.trim_end_matches('/')))
        })?;
        if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
            tracing::warn!(signal, protocol, "telemetry is off: the environment asks for a protocol other than http/protobuf");
            return None;
        }
        if !is_http(&address) {
            tracing::warn!(signal, "telemetry is off: the environment's OTLP endpoint is not http://HOST… or https://HOST…");
            return None;
        }
        Some(address)
    }

    /// The file's headers, and those of the environment that it does not name.
    fn all_headers(&self, variable: &dyn Fn(&str) -> Option<String>) -> Vec<(String, Secret)> {
        let mut headers = self.headers.clone();
        // Meant for the environment's address: another one must not get to read them.
        let given = if self.otlp_endpoint.is_none() { variable(env::OTEL_EXPORTER_OTLP_HEADERS) } else { None };
        for (name, value) in pairs(&given.unwrap_or_default()) {
            let name = name.to_ascii_lowercase();
            if !headers.iter().any(|(known, _)| *known == name) {
                headers.push((name, Secret::new(value)));
            }
        }
        headers
    }

    fn resource(&self, variable: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
        let given = variable(env::OTEL_RESOURCE_ATTRIBUTES).unwrap_or_default();
        let mut resource = pairs(&given);
        let named = self.service_name != TelemetryConfig::default().service_name;
        let name = if named { None } else { variable(env::OTEL_SERVICE_NAME) };
        let of_resource = || resource.iter().find(|(key, _)| key == "service.name").map(|(_, value)| value.clone()).filter(|_| !named);
        let name = name.or_else(of_resource).unwrap_or_else(|| self.service_name.clone());
        resource.retain(|(key, _)| key != "service.name" && key != "service.version");
        resource.push(("service.name".into(), name));
        resource.push(("service.version".into(), env!("CARGO_PKG_VERSION").into()));
        resource
    }
}

fn conventions(variable: &dyn Fn(&str) -> Option<String>) -> Conventions {
    let given = variable(env::OTEL_SEMCONV_STABILITY_OPT_IN).unwrap_or_default();
    let latest = given.split(',').any(|word| word.trim() == "gen_ai_latest_experimental");
    if latest { Conventions::Latest } else { Conventions::V1_41 }
}

/// `name=value,name=value`, values percent-encoded (W3C Baggage, as OpenTelemetry's variables use it).
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    let decoded = pairs.map(|(name, value)| (name.trim().to_string(), percent_decode_str(value.trim()).decode_utf8_lossy().into_owned()));
    decoded.filter(|(name, _)| !name.is_empty()).collect()
}

fn is_http(address: &str) -> bool {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains([' ', '@', '#']))
}

pub(super) fn read(mut section: Section<'_, '_>, problems: &mut Problems<'_>) -> TelemetryConfig {
    let default = TelemetryConfig::default();
    let config = TelemetryConfig {
        otlp_endpoint: endpoint(&mut section, problems),
        headers: headers(&mut section, problems),
        service_name: section.text("service_name", problems).unwrap_or(default.service_name),
        sample_ratio: share("sample_ratio", default.sample_ratio, &mut section, problems),
        content: section.switch("content", default.content, problems),
        metrics: section.switch("metrics", default.metrics, problems),
    };
    section.finish(problems);
    config
}

fn endpoint(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Option<String> {
    let span = section.take("otlp_endpoint")?.span();
    let address = section.text("otlp_endpoint", problems)?;
    if !is_http(&address) || address.contains('?') {
        let message = "expected http://HOST[:PORT][/PATH] or https://…, without user, query or fragment; /v1/traces is added";
        problems.add(span, section.name("otlp_endpoint"), message);
        return None;
    }
    Some(address)
}

/// `headers = { authorization = { env = "OTLP_TOKEN" } }`.
fn headers(section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> Vec<(String, Secret)> {
    let Some(table) = section.section("headers", problems) else { return Vec::new() };
    let mut headers = Vec::new();
    for (name, span, value) in table.entries() {
        let path = table.name(name);
        let is_token = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if name.is_empty() || !is_token {
            problems.add(span, path, "the name of a header is letters, digits, '-' and '_'");
            continue;
        }
        let Some(inner) = value.get_ref().as_table() else {
            problems.add(value.span(), path, "secrets are not written here: use { env = \"NAME_OF_A_VARIABLE\" }");
            continue;
        };
        let mut inner = Section::new(inner, path.clone());
        let variable = inner.text("env", problems);
        if variable.is_none() {
            problems.add(value.span(), path, "expected { env = \"NAME_OF_A_VARIABLE\" }");
        }
        inner.finish(problems);
        headers.extend(variable.and_then(|variable| env::text(&variable)).map(|text| (name.to_ascii_lowercase(), Secret::new(text))));
    }
    headers
}

/// A number from 0 to 1.
fn share(key: &'static str, default: f64, section: &mut Section<'_, '_>, problems: &mut Problems<'_>) -> f64 {
    let Some(value) = section.take(key) else { return default };
    let number = match value.get_ref() {
        DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
        DeValue::Integer(integer) => integer.as_str().parse().ok(),
        _ => None,
    };
    number.filter(|share| (0.0..=1.0).contains(share)).unwrap_or_else(|| {
        problems.add(value.span(), section.name(key), "expected a number from 0 to 1");
        default
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigError};
    use std::path::Path;

    fn export(config: &TelemetryConfig, variables: &[(&str, &str)]) -> Option<Export> {
        config.export_with(&|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_string()))
    }

    #[test]
    fn nothing_is_exported_without_an_address() {
        assert_eq!(export(&TelemetryConfig::default(), &[("OTEL_SERVICE_NAME", "x")]), None);
    }

    #[test]
    fn the_standard_variables_fill_what_the_file_leaves_open() {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:9/in"),
            ("OTEL_LOGS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "X-Token=a%20b,tenant=t"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_SERVICE_NAME", "from-env"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other"),
            ("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup, gen_ai_latest_experimental"),
        ];
        let found = export(&TelemetryConfig::default(), &variables).expect("an export");
        assert_eq!(
            (found.traces.as_deref(), found.metrics.as_deref(), found.logs),
            (Some("http://collector:4318/v1/traces"), Some("http://metrics:9/in"), None)
        );
        assert_eq!(found.headers, [("x-token".to_string(), Secret::new("a b")), ("tenant".to_string(), Secret::new("t"))]);
        assert_eq!((found.timeout.as_millis(), found.conventions), (250, Conventions::Latest));
        assert!(found.resource.contains(&("service.name".into(), "from-env".into())), "{:?}", found.resource);
        assert!(found.resource.contains(&("deployment.environment.name".into(), "test".into())));

        let file = TelemetryConfig { otlp_endpoint: Some("http://mine".into()), service_name: "mine".into(), ..TelemetryConfig::default() };
        let found = export(&file, &variables).expect("an export");
        assert_eq!(found.traces.as_deref(), Some("http://mine/v1/traces"), "the file goes before the environment");
        assert!(found.headers.is_empty(), "headers for another address stay away: {:?}", found.headers);
        assert!(found.resource.contains(&("service.name".into(), "mine".into())));
        assert_eq!(export(&file, &[("OTEL_SDK_DISABLED", "true")]), None);
    }

    #[test]
    fn a_protocol_that_is_not_spoken_switches_the_signal_off() {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert_eq!(export(&TelemetryConfig::default(), &variables), None);
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let text =
            "[telemetry]\notlp_endpoint = \"collector:4318\"\nsample_ratio = 1.5\nheaders = { authorization = \"Bearer sk-secret\" }\n";
        let Err(ConfigError::Invalid { problems, .. }) = Config::parse(text, Path::new("refit.toml")) else { panic!("expected problems") };
        assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2, 3, 4], "{problems:?}");
        assert!(!format!("{problems:?}").contains("sk-secret"));
    }
}
