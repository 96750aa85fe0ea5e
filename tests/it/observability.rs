//! What `/metrics` and the headers of replies tell, and to whom.

use crate::support::{Refit, Server};
use crate::upstream::{Script, reply, stream, upstream};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

const CHAT: &str = "/v1/chat/completions";

fn body(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "a b"}]})
}

/// A gateway before a scripted provider named `up`.
pub fn before(scripts: Vec<Script>, more: &str) -> Refit {
    let (port, _) = upstream(scripts);
    let refit = Refit::new().env("UP_KEY", "sk-up");
    refit.write("refit.toml", format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n{more}"));
    refit
}

/// A whole reply with counts of every kind.
pub fn counted(id: &str) -> Script {
    let usage = json!({"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42,
        "prompt_tokens_details": {"cached_tokens": 20}, "completion_tokens_details": {"reasoning_tokens": 5}});
    let body = json!({"id": id, "object": "chat.completion", "created": 7, "model": "m-2026", "usage": usage,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]});
    reply("200 OK", "", &body.to_string())
}

pub fn key_of(refit: &Refit, project: &str, role: &str) -> String {
    let done = refit.run(&["key", "create", "k", "--project", project, "--role", role, "--json"]).expect(0);
    done.json()["key"].as_str().expect("a key").to_string()
}

/// One line of an exposition.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// A strict reader of the OpenMetrics text format: what it cannot read, or what breaks a rule, fails the test.
fn samples(text: &str) -> Vec<Sample> {
    let mut lines = text.lines();
    let (mut family, mut kind, mut unit) = (String::new(), String::new(), String::new());
    let (mut families, mut series, mut found) = (HashSet::new(), HashSet::new(), Vec::new());
    let mut helped = false;
    for line in lines.by_ref() {
        if line == "# EOF" {
            break;
        }
        if let Some(meta) = line.strip_prefix("# ") {
            let (word, rest) = meta.split_once(' ').expect("a word");
            let (name, text) = rest.split_once(' ').expect("a name");
            match word {
                "HELP" => {
                    assert!(families.insert(name.to_string()), "the family {name} stands twice");
                    assert!(text.len() > 5, "{name} has no help");
                    (family, helped, unit) = (name.to_string(), true, String::new());
                }
                "TYPE" => {
                    assert!(helped && name == family, "TYPE before HELP: {line}");
                    kind = text.to_string();
                }
                "UNIT" => {
                    assert!(name == family && name.ends_with(&format!("_{text}")), "a unit that is not in the name: {line}");
                    unit = text.to_string();
                }
                _ => panic!("unknown line: {line}"),
            }
            continue;
        }
        let sample = sample(line);
        let suffix = sample.name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} stands in the family {family}"));
        let fits = match kind.as_str() {
            "counter" => suffix == "_total" && sample.value >= 0.0,
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info" && sample.value == 1.0,
            "histogram" => ["_bucket", "_count", "_sum"].contains(&suffix),
            _ => false,
        };
        assert!(fits, "{line} is no line of a {kind}");
        assert!(!family.ends_with("_total") && (kind != "histogram" || !unit.is_empty()), "{family}: units of histograms are told");
        assert!(series.insert(format!("{} {:?}", sample.name, sample.labels)), "the series stands twice: {line}");
        found.push(sample);
    }
    assert_eq!(lines.next(), None, "something stands behind the end");
    assert!(text.ends_with("# EOF\n"));
    histograms_add_up(&found);
    found
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').expect("a brace")));
    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{line}");
    let mut pairs = BTreeMap::new();
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect("a label");
        let mut end = 0;
        let bytes = after.as_bytes();
        while bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        assert!(pairs.insert(label.to_string(), after[..end].to_string()).is_none(), "the label {label} stands twice: {line}");
        rest = after[end + 1..].trim_start_matches(',');
    }
    Sample { name: name.to_string(), labels: pairs, value: value.parse().unwrap_or_else(|_| panic!("no number: {line}")) }
}

fn histograms_add_up(samples: &[Sample]) {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").expect("a bound");
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a number") };
        let family = sample.name.trim_end_matches("_bucket");
        groups.entry(format!("{family}_count {labels:?}")).or_default().push((bound, sample.value));
    }
    for (group, buckets) in groups {
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{group}: {buckets:?}");
        let last = buckets.last().expect("a bucket");
        let count = samples.iter().find(|sample| format!("{} {:?}", sample.name, sample.labels) == group).expect("a count");
        assert!(last.0.is_infinite() && last.1 == count.value, "{group}: {buckets:?}");
    }
}

fn total(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let is =
        |sample: &&Sample| sample.name == name && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value));
    samples.iter().filter(is).map(|sample| sample.value).sum()
}

fn seen_by(server: &Server, key: Option<&str>) -> Vec<Sample> {
    let reply = server.get("/metrics", key);
    assert_eq!(
        (reply.status, reply.header("content-type").map(|kind| kind.starts_with("application/openmetrics-text"))),
        (200, Some(true))
    );
    samples(&reply.body)
}

#[test]
fn the_exposition_keeps_the_rules_of_its_format_in_every_view() {
    let chunk = json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [
        {"index": 0, "delta": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]});
    let streamed = stream(&format!("data: {chunk}\n\ndata: [DONE]\n\n"), 64);
    let refit = before(vec![counted("c1"), streamed, reply("500 Oops", "", "{}")], "");
    let (app, admin, viewer) = (refit.key(), key_of(&refit, "default", "admin"), key_of(&refit, "default", "viewer"));
    let server = refit.serve(&[]);
    server.post(CHAT, Some(&app), &body("up/m"));
    let mut request = body("up/m");
    request["stream"] = json!(true);
    server.post(CHAT, Some(&app), &request);
    server.post(CHAT, Some(&app), &body("up/m"));
    server.post(CHAT, Some(&app), &json!({"model": 7}));
    server.get("/nowhere", None);
    let views = [None, Some(app.as_str()), Some(viewer.as_str()), Some(admin.as_str())].map(|key| seen_by(&server, key));
    for view in &views {
        assert_eq!(total(view, "refit_requests_total", &[("provider", "up"), ("status", "2xx")]), 2.0);
        assert_eq!(total(view, "refit_errors_total", &[("provider", "up"), ("code", "upstream_error")]), 1.0);
        assert_eq!(total(view, "refit_first_token_seconds_count", &[("provider", "up")]), 1.0);
        assert_eq!(total(view, "refit_tokens_total", &[("direction", "cached")]), 20.0);
        assert_eq!(total(view, "refit_tokens_total", &[("direction", "reasoning")]), 5.0);
        assert_eq!(total(view, "refit_http_requests_total", &[("path", "unmatched"), ("status", "4xx")]), 1.0);
        assert_eq!(total(view, "refit_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    }
    let [_, _, _, admins] = &views;
    let own = [("project", "default"), ("model", "m"), ("endpoint", "chat.completions")];
    assert_eq!(total(admins, "refit_tokens_total", &[&own[..], &[("direction", "input")]].concat()), 30.0);
    assert_eq!(total(admins, "refit_request_seconds_count", &[("model", "m")]), 3.0);
}

#[test]
fn without_a_key_nothing_about_projects_and_models_is_told_and_with_one_only_its_own_project() {
    let refit = before((0..2).map(|i| counted(&format!("c{i}"))).collect(), "");
    let (ann, bob) = (key_of(&refit, "shop-ann", "app"), key_of(&refit, "shop-bob", "app"));
    let (viewer, admin) = (key_of(&refit, "shop-ann", "viewer"), key_of(&refit, "ops", "admin"));
    let server = refit.serve(&[]);
    server.post(CHAT, Some(&ann), &body("up/model-of-ann"));
    server.post(CHAT, Some(&bob), &body("up/model-of-bob"));
    for key in [None, Some(ann.as_str())] {
        let text = server.get("/metrics", key).body;
        assert!(!text.contains("shop-") && !text.contains("model-of"), "{text}");
    }
    let own = server.get("/metrics", Some(&viewer)).body;
    assert!(own.contains("shop-ann") && own.contains("model-of-ann") && !own.contains("bob"), "{own}");
    let all = server.get("/metrics", Some(&admin)).body;
    assert!(["shop-ann", "shop-bob", "model-of-ann", "model-of-bob"].iter().all(|name| all.contains(name)), "{all}");
    assert_eq!(server.get("/metrics", Some("rk_wrong")).status, 401);
}

#[test]
fn names_that_callers_make_up_are_no_labels_until_they_have_answered() {
    let refused = || reply("404 Not Found", "", &json!({"error": {"message": "no such model"}}).to_string());
    let refit = before((0..5).map(|_| refused()).chain([counted("c")]).collect(), "");
    let (key, admin) = (refit.key(), key_of(&refit, "default", "admin"));
    let server = refit.serve(&[]);
    (0..5).for_each(|i| drop(server.post(CHAT, Some(&key), &body(&format!("up/made-up-{i}")))));
    server.post(CHAT, Some(&key), &body("up/real"));
    server.post(CHAT, Some(&key), &body("no-such-route"));
    let text = server.get("/metrics", Some(&admin)).body;
    let found = samples(&text);
    assert!(!text.contains("made-up") && !text.contains("no-such-route"), "{text}");
    assert_eq!(total(&found, "refit_requests_total", &[("provider", "up"), ("model", "other"), ("status", "4xx")]), 5.0);
    assert_eq!(total(&found, "refit_requests_total", &[("provider", "up"), ("model", "real"), ("status", "2xx")]), 1.0);
    assert_eq!(total(&found, "refit_errors_total", &[("provider", "none"), ("code", "model_not_found")]), 1.0);
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_and_its_database_are_measured() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    server.post(CHAT, Some(&key), &body("mock/echo"));
    // The row's way to the database is a write.
    let begun = std::time::Instant::now();
    let found = loop {
        let found = seen_by(&server, None);
        let moved = total(&found, "refit_log_rows_pending", &[]) == 0.0;
        if (moved && total(&found, "refit_database_write_seconds_count", &[]) >= 1.0) || begun.elapsed().as_secs() > 20 {
            break found;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(total(&found, "refit_database_write_seconds_count", &[]) >= 1.0);
    let resident = total(&found, "process_resident_memory_bytes", &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory");
    let said: f64 = line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0;
    assert!(resident > said / 2.0 && resident < said * 2.0, "{resident} against {said}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64();
    let started = total(&found, "process_start_time_seconds", &[]);
    assert!((now - started).abs() < 120.0, "{started} against {now}");
    // A tick of the processor's clock is ten milliseconds: it may not have come yet.
    let has_cpu = found.iter().any(|sample| sample.name == "process_cpu_seconds_total");
    assert!(total(&found, "process_open_fds", &[]) >= 3.0 && has_cpu);
}
