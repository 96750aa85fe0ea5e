//! Export over OTLP, against a collector on a real socket that reads protobuf with OpenTelemetry's own types.

use crate::observability::{before, counted};
use crate::support::{Refit, Reply, Server, http_with};
use crate::upstream::{Script, reply, stream};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// How long anything may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// One export as it came.
struct Taken {
    path: String,
    head: String,
    body: Vec<u8>,
}

struct Collector {
    port: u16,
    taken: Arc<Mutex<Vec<Taken>>>,
}

impl Collector {
    /// A collector that answers everything with these status lines in turn, the last again and again.
    fn answering(statuses: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let taken: Arc<Mutex<Vec<Taken>>> = Arc::default();
        let of_thread = taken.clone();
        std::thread::spawn(move || {
            let mut answered = 0;
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream: TcpStream = stream;
                let Some(export) = read(&mut stream) else { continue };
                let status = statuses[answered.min(statuses.len() - 1)];
                answered += 1;
                of_thread.lock().expect("list").push(export);
                let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Collector { port, taken }
    }

    fn new() -> Self {
        Collector::answering(&["200 OK"])
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A configuration that exports here, with more lines in its section.
    fn config(&self, more: &str) -> String {
        format!("\n[telemetry]\notlp_endpoint = \"{}\"\n{more}\n", self.endpoint())
    }

    fn each<T>(&self, path: &str, read: impl Fn(&[u8]) -> Vec<T>) -> Vec<T> {
        let taken = self.taken.lock().expect("list");
        taken.iter().filter(|export| export.path == path).flat_map(|export| read(&export.body)).collect()
    }

    fn spans(&self) -> Vec<Span> {
        self.each("/v1/traces", |body| {
            let export = ExportTraceServiceRequest::decode(body).expect("spans");
            export.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
        })
    }

    /// Waits until so many spans have come.
    fn wait(&self, count: usize) -> Vec<Span> {
        let begun = Instant::now();
        loop {
            let spans = self.spans();
            if spans.len() >= count {
                return spans;
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {count} spans came", spans.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<Taken> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let lower = head.to_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "))?.trim().parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Taken { path: head.split(' ').nth(1)?.to_string(), head: lower, body })
}

/// Attributes as JSON; an attribute that stands twice fails the test.
fn attributes(list: &[KeyValue]) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for attribute in list {
        let value = match attribute.value.as_ref().and_then(|value| value.value.as_ref()).expect("a value") {
            Any::StringValue(text) => json!(text),
            Any::IntValue(number) => json!(number),
            Any::DoubleValue(number) => json!(number),
            Any::BoolValue(yes) => json!(yes),
            Any::ArrayValue(list) => list
                .values
                .iter()
                .map(|value| match &value.value {
                    Some(Any::StringValue(text)) => json!(text),
                    other => panic!("{other:?}"),
                })
                .collect(),
            other => panic!("{other:?}"),
        };
        assert!(found.insert(attribute.key.clone(), value).is_none(), "{} stands twice", attribute.key);
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn body(fields: Value) -> Value {
    let mut body =
        json!({"model": "up/m", "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "canary-words"}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    body
}

fn quick(refit: Refit) -> Refit {
    refit.env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn ask(server: &Server, key: &str, parent: &str, request: &Value) -> Reply {
    http_with(&format!("{}{CHAT}", server.url()), Some(key), &[("traceparent", parent)], request.to_string().into_bytes())
}

fn sampled() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn stop(server: &mut Server) {
    assert!(std::process::Command::new("kill").args(["-TERM", &server.pid().to_string()]).status().expect("kill runs").success());
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_request_is_two_spans_under_the_callers_with_the_names_of_the_conventions() {
    let collector = Collector::new();
    let refit = quick(before(vec![counted("chatcmpl-7")], &collector.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let asked = body(json!({"temperature": 0.5, "top_p": 0.25, "max_tokens": 99, "seed": 7, "stop": ["END"], "presence_penalty": 1.5,
        "metadata": {"conversation_id": "talk-7"}, "response_format": {"type": "json_object"}}));
    let got = ask(&server, &key, &sampled(), &asked);
    let id = got.header("x-request-id").expect("an id");
    let spans = collector.wait(2);
    let (own, call) = (&spans[0], &spans[1]);
    assert_eq!(
        (own.name.as_str(), own.kind, call.name.as_str(), call.kind),
        ("POST /v1/chat/completions", 2, "chat m", 3),
        "server and client"
    );
    assert_eq!((hex(&own.trace_id).as_str(), hex(&own.parent_span_id).as_str(), hex(&call.trace_id).as_str()), (TRACE, PARENT, TRACE));
    assert!(call.parent_span_id == own.span_id && own.span_id.len() == 8 && call.span_id != own.span_id);
    let row = refit.run(&["logs", "show", id, "--json"]).expect(0).json();
    assert_eq!((&row["trace_id"], &row["reply_id"]), (&json!(TRACE), &json!("chatcmpl-7")));
    assert_eq!(own.start_time_unix_nano, row["at"].as_u64().expect("a time") * 1_000_000);
    let took = own.end_time_unix_nano - own.start_time_unix_nano;
    assert!((took as f64 - row["total_ms"].as_f64().expect("a time") * 1e6).abs() < 1_000.0, "{took} {row}");
    assert!(call.start_time_unix_nano >= own.start_time_unix_nano && call.end_time_unix_nano <= own.end_time_unix_nano);

    let mut of_call = attributes(&call.attributes);
    let port = of_call.remove("server.port").and_then(|port| port.as_u64()).expect("a port");
    assert!(std::fs::read_to_string(refit.path().join("refit.toml")).expect("the file").contains(&format!(":{port}/v1")));
    let expected = json!({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "compatible", "gen_ai.request.model": "m",
        "server.address": "127.0.0.1", "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.25,
        "gen_ai.request.max_tokens": 99, "gen_ai.request.seed": 7, "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.request.presence_penalty": 1.5, "gen_ai.output.type": "json", "gen_ai.conversation.id": "talk-7",
        "gen_ai.response.id": "chatcmpl-7", "gen_ai.response.finish_reasons": ["stop"], "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 12, "gen_ai.usage.cache_read.input_tokens": 20, "gen_ai.usage.reasoning.output_tokens": 5});
    assert_eq!(json!(of_call), expected);
    let of_own = attributes(&own.attributes);
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!(CHAT)),
        ("http.response.status_code", json!(200)),
        ("refit.request_id", json!(id)),
        ("refit.project", json!("default")),
    ] {
        assert_eq!(of_own.get(name), Some(&value), "{name}: {of_own:?}");
    }
    assert!(own.status.is_none() && own.events.is_empty());
    assert!(!format!("{spans:?}").contains("canary-words"), "content is not exported by default");
}

#[test]
fn a_request_that_is_sent_on_as_written_has_its_parameters_in_the_span() {
    let collector = Collector::new();
    let refit = quick(before(vec![counted("chatcmpl-8")], &collector.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({"temperature": 0.5, "max_completion_tokens": 9, "seed": 7})));
    let of_call = attributes(&collector.wait(2)[1].attributes);
    for (name, value) in
        [("gen_ai.request.temperature", json!(0.5)), ("gen_ai.request.max_tokens", json!(9)), ("gen_ai.request.seed", json!(7))]
    {
        assert_eq!(of_call.get(name), Some(&value), "{name}: {of_call:?}");
    }
}

#[test]
fn a_prompt_that_is_called_by_its_name_is_named_in_the_span() {
    let collector = Collector::new();
    let refit = quick(before(vec![counted("chatcmpl-9")], &collector.config("")));
    refit.write("greet.prompt", "Say {{what}}");
    refit.run(&["prompt", "publish", "greet.prompt"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({"prompt": {"id": "greet", "variables": {"what": "hi"}}, "messages": []})));
    let of_call = attributes(&collector.wait(2)[1].attributes);
    assert_eq!(
        (of_call.get("gen_ai.prompt.name"), of_call.get("refit.prompt.version")),
        (Some(&json!("greet")), Some(&json!(1))),
        "{of_call:?}"
    );
}

#[test]
fn resource_scope_and_headers_are_as_configured_and_the_secret_stays_secret() {
    let collector = Collector::new();
    let more = "headers = { x-token = { env = \"OTLP_TOKEN\" } }\nservice_name = \"gateway-7\"";
    let refit = quick(before(vec![counted("c")], &collector.config(more)))
        .env("OTLP_TOKEN", "canary-token")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bed");
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    collector.wait(2);
    let taken = collector.taken.lock().expect("list");
    let export = ExportTraceServiceRequest::decode(taken[0].body.as_slice()).expect("spans");
    let resource = attributes(&export.resource_spans[0].resource.as_ref().expect("a resource").attributes);
    assert_eq!(
        json!(resource),
        json!({"service.name": "gateway-7", "service.version": env!("CARGO_PKG_VERSION"), "deployment.environment.name": "test bed"})
    );
    assert_eq!(export.resource_spans[0].scope_spans[0].scope.as_ref().expect("a scope").name, "refit");
    assert!(
        taken[0].head.contains("x-token: canary-token") && taken[0].head.contains("content-type: application/x-protobuf"),
        "{}",
        taken[0].head
    );
    assert!(!server.get("/metrics", None).body.contains("canary"));
}

#[test]
fn content_is_exported_where_it_is_asked_for() {
    let collector = Collector::new();
    let refit = quick(before(vec![counted("c")], &collector.config("content = true")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    let of_call = attributes(&collector.wait(2)[1].attributes);
    let messages = |name: &str| serde_json::from_str::<Value>(of_call[name].as_str().expect("a text")).expect("JSON");
    assert_eq!(messages("gen_ai.system_instructions"), json!([{"type": "text", "content": "be kind"}]));
    assert_eq!(messages("gen_ai.input.messages"), json!([{"role": "user", "parts": [{"type": "text", "content": "canary-words"}]}]));
    let reply = json!([{"role": "assistant", "parts": [{"type": "text", "content": "hello"}], "finish_reason": "stop"}]);
    assert_eq!(messages("gen_ai.output.messages"), reply);
}

#[test]
fn the_callers_decision_is_kept_and_ours_is_the_configured_share() {
    let collector = Collector::new();
    let refit = quick(before((0..3).map(|i| counted(&format!("c{i}"))).collect(), &collector.config("sample_ratio = 0.0")));
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let unsampled = ask(&server, &key, &format!("00-{TRACE}-{PARENT}-00"), &body(json!({})));
    let without = server.post(CHAT, Some(&key), &body(json!({})));
    ask(&server, &key, &sampled(), &body(json!({})));
    stop(&mut server);
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "only the request whose caller records it: {spans:?}");
    let trace = |got: &Reply| {
        let id = got.header("x-request-id").expect("an id");
        refit.run(&["logs", "show", id, "--json"]).expect(0).json()["trace_id"].clone()
    };
    assert_eq!((trace(&unsampled), trace(&without)), (json!(TRACE), Value::Null), "the row knows the caller's trace, recorded or not");
}

#[test]
fn a_trace_begins_here_where_the_caller_has_none_and_broken_headers_are_none() {
    let collector = Collector::new();
    let refit = quick(before((0..2).map(|i| counted(&format!("c{i}"))).collect(), &collector.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    for parent in ["", "00-nonsense-01"] {
        let got = ask(&server, &key, parent, &body(json!({})));
        let id = got.header("x-request-id").expect("an id").trim_start_matches("req_");
        let begun = Instant::now();
        let own = loop {
            let found = collector.spans().into_iter().find(|span| hex(&span.trace_id) == id && span.kind == 2);
            if let Some(own) = found {
                break own;
            }
            assert!(begun.elapsed() < PATIENCE, "no span of the trace {id}");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(own.parent_span_id.is_empty(), "{own:?}");
    }
}

#[test]
fn errors_are_told_by_their_code_and_a_callers_mistake_is_none_of_ours() {
    let collector = Collector::new();
    let refit = quick(before(vec![reply("500 Oops", "", "{}"), reply("400 Bad Request", "", "{}")], &collector.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    ask(&server, &key, &sampled(), &body(json!({})));
    ask(&server, &key, &sampled(), &json!({"model": 7}));
    let spans = collector.wait(5);
    let told = |span: &Span| {
        let error = attributes(&span.attributes).get("error.type").cloned().unwrap_or_default();
        let events: Vec<_> = span.events.iter().map(|event| (event.name.clone(), attributes(&event.attributes))).collect();
        assert!(events.iter().all(|(name, of)| name == "exception" && of["exception.type"] == error) && events.len() == 1, "{events:?}");
        (span.kind, span.status.as_ref().map_or(0, |status| status.code), error)
    };
    let told: Vec<_> = spans.iter().map(told).collect();
    assert_eq!(told[0..2], [(2, 2, json!("upstream_error")), (3, 2, json!("upstream_error"))], "both failed");
    assert_eq!((told[2].0, told[2].1, told[3].0, told[3].1), (2, 0, 3, 2), "{told:?}");
    assert_eq!(told[4], (2, 0, json!("invalid_value")), "no provider was called");
}

#[test]
fn streams_are_spans_when_they_have_ended() {
    let collector = Collector::new();
    let chunk = |delta: Value, finish: Value| json!({"id": "c9", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    let usage = json!({"id": "c9", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}});
    let text = format!(
        "data: {}\n\ndata: {}\n\ndata: {usage}\n\ndata: [DONE]\n\n",
        chunk(json!({"role": "assistant", "content": "x"}), Value::Null),
        chunk(json!({}), json!("stop"))
    );
    let refit = quick(before(vec![stream(&text, 64)], &collector.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({"stream": true})));
    let of_call = attributes(&collector.wait(2)[1].attributes);
    for (name, value) in
        [("gen_ai.request.stream", json!(true)), ("gen_ai.response.id", json!("c9")), ("gen_ai.usage.output_tokens", json!(2))]
    {
        assert_eq!(of_call.get(name), Some(&value), "{name}: {of_call:?}");
    }
}

#[test]
fn what_waits_is_sent_when_the_server_ends() {
    let collector = Collector::new();
    // Gathered for much longer than this test takes.
    let refit = before(vec![counted("c")], &collector.config("")).env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    assert!(collector.spans().is_empty());
    stop(&mut server);
    assert_eq!(collector.spans().len(), 2);
}

/// A port where connections are taken and nothing is ever answered.
fn black_hole() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[test]
fn a_collector_that_is_down_or_silent_costs_the_caller_nothing() {
    let (_hole, silent) = black_hole();
    let (closed, down) = black_hole();
    drop(closed);
    for port in [silent, down] {
        let refit = quick(Refit::new());
        refit.write("refit.toml", format!("[telemetry]\notlp_endpoint = \"http://127.0.0.1:{port}\"\n"));
        let (key, mut server) = (refit.key(), refit.serve(&[]));
        let begun = Instant::now();
        for _ in 0..50 {
            let got = server.post(CHAT, Some(&key), &json!({"model": "mock/echo", "messages": [{"role": "user", "content": "x"}]}));
            assert_eq!(got.status, 200);
        }
        // Each of them waiting for one export would take ten seconds.
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let ending = Instant::now();
        stop(&mut server);
        // Five seconds are allowed for the last exports.
        assert!(ending.elapsed() < Duration::from_secs(25), "{:?}", ending.elapsed());
    }
}

#[test]
fn a_busy_collector_is_asked_again_and_one_that_refuses_is_not() {
    let busy = Collector::answering(&["503 Busy", "200 OK"]);
    let refit = quick(before(vec![counted("c")], &busy.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    let begun = Instant::now();
    while !server.get("/metrics", None).body.contains("refit_telemetry_exported_total 2") {
        assert!(begun.elapsed() < PATIENCE, "{}", server.get("/metrics", None).body);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(busy.spans().len(), 4, "the same two spans twice");

    let refusing = Collector::answering(&["400 Bad Request"]);
    let refit = quick(before(vec![counted("c")], &refusing.config("")));
    let (key, server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    let begun = Instant::now();
    while !server.get("/metrics", None).body.contains("refit_telemetry_dropped_total 2") {
        assert!(begun.elapsed() < PATIENCE, "{}", server.get("/metrics", None).body);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(refusing.spans().len(), 2, "asked once");
}

#[test]
fn metrics_have_the_names_and_buckets_of_both_conventions() {
    for (opt_in, names) in [
        ("", ["gen_ai.client.operation.duration", "gen_ai.client.token.usage", "gen_ai.client.token.usage"]),
        (
            "gen_ai_latest_experimental",
            [
                "gen_ai.client.inference.duration",
                "gen_ai.client.inference.operation.input_tokens",
                "gen_ai.client.inference.operation.output_tokens",
            ],
        ),
    ] {
        let collector = Collector::new();
        let refit = before(vec![counted("c1"), counted("c2")], &collector.config("")).env("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in);
        let (key, mut server) = (refit.key(), refit.serve(&[]));
        (0..2).for_each(|_| drop(server.post(CHAT, Some(&key), &body(json!({})))));
        stop(&mut server);
        let metrics = collector.each("/v1/metrics", |body| {
            let export = ExportMetricsServiceRequest::decode(body).expect("metrics");
            export.resource_metrics.into_iter().flat_map(|of| of.scope_metrics).flat_map(|of| of.metrics).collect()
        });
        let points = |name: &str, token_type: Option<&str>| {
            let metric = metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("{name} is not in {metrics:?}"));
            let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
            assert_eq!(histogram.aggregation_temporality, 2, "cumulative");
            let of_type = |point: &&opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint| {
                token_type.is_none_or(|word| attributes(&point.attributes).get("gen_ai.token.type") == Some(&json!(word)))
            };
            histogram.data_points.iter().filter(of_type).cloned().collect::<Vec<_>>()
        };
        let duration = &points(names[0], None)[0];
        assert_eq!((duration.count, duration.explicit_bounds.first(), duration.explicit_bounds.last()), (2, Some(&0.01), Some(&81.92)));
        let of = attributes(&duration.attributes);
        assert_eq!((&of["gen_ai.operation.name"], &of["gen_ai.request.model"]), (&json!("chat"), &json!("m")), "{of:?}");
        let types = if opt_in.is_empty() { [Some("input"), Some("output")] } else { [None, None] };
        let (input, output) = (&points(names[1], types[0])[0], &points(names[2], types[1])[0]);
        assert_eq!((input.sum, input.count, output.sum, output.count), (Some(60.0), 2, Some(24.0), 2));
        // 30 tokens fall between 16 and 64: the fourth bucket (bounds of the conventions).
        assert_eq!((input.bucket_counts[3], input.explicit_bounds[2], input.explicit_bounds[3]), (2, 16.0, 64.0));
    }
}

#[test]
fn feedback_is_an_event_in_the_trace_of_its_request() {
    let collector = Collector::new();
    let refit = quick(before(vec![counted("chatcmpl-7")], &collector.config("")));
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    ask(&server, &key, &sampled(), &body(json!({})));
    for value in [json!(true), json!("funny")] {
        let said = json!({"target": {"completion_id": "chatcmpl-7"}, "name": "thumbs", "value": value, "comment": "canary-words", "source": "user"});
        assert_eq!(server.post("/v1/feedback", Some(&key), &said).status, 200);
    }
    let own = collector.wait(2)[0].span_id.clone();
    stop(&mut server);
    let records = collector.each("/v1/logs", |body| {
        let export = ExportLogsServiceRequest::decode(body).expect("records");
        export.resource_logs.into_iter().flat_map(|of| of.scope_logs).flat_map(|of| of.log_records).collect()
    });
    assert_eq!(records.len(), 2);
    for (record, (name, value)) in
        records.iter().zip([("gen_ai.evaluation.score.value", json!(1.0)), ("gen_ai.evaluation.score.label", json!("funny"))])
    {
        assert_eq!(
            (record.event_name.as_str(), hex(&record.trace_id).as_str(), &record.span_id),
            ("gen_ai.evaluation.result", TRACE, &own)
        );
        let of = attributes(&record.attributes);
        assert_eq!((of.get("gen_ai.evaluation.name"), of.get(name)), (Some(&json!("thumbs")), Some(&value)), "{of:?}");
        assert_eq!(of.get("gen_ai.response.id"), Some(&json!("chatcmpl-7")));
        assert!(!of.contains_key("gen_ai.evaluation.explanation"), "a comment is content");
    }
}

/// One exchange of a provider that is never called.
fn nothing() -> Vec<Script> {
    Vec::new()
}

#[test]
fn without_an_address_nothing_is_exported_and_the_environments_is_used() {
    let collector = Collector::new();
    let refit = quick(before(nothing(), "")).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()).env("OTEL_SDK_DISABLED", "true");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let echo = json!({"model": "mock/echo", "messages": [{"role": "user", "content": "x"}]});
    server.post(CHAT, Some(&key), &echo);
    stop(&mut server);
    assert!(collector.taken.lock().expect("list").is_empty(), "OTEL_SDK_DISABLED switches it off");

    let refit = refit.env("OTEL_SDK_DISABLED", "false");
    let mut server = refit.serve(&[]);
    server.post(CHAT, Some(&key), &echo);
    stop(&mut server);
    assert_eq!(collector.spans().len(), 2);
}
