//! Replies that are given again: what is the same, for whom, for how long, and how often the upstream is called for it. The upstream
//! numbers its replies, so that a kept one is told from a new one.

use crate::releases::measured;
use crate::support::{Refit, Reply, Server, http_with};
use crate::upstream::read_request;
use serde_json::{Value, json};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// How the upstream answers a call: its number, what is asked.
type Answer = dyn Fn(usize, &Value) -> Told + Send + Sync;

enum Told {
    Json(&'static str, Value),
    Events(String),
}

/// An upstream that answers any number of calls at once.
struct Upstream {
    port: u16,
    calls: Arc<AtomicUsize>,
    embedded: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn embedded(&self) -> Vec<String> {
        self.embedded.lock().expect("nobody panicked").clone()
    }
}

fn upstream(answer: impl Fn(usize, &Value) -> Told + Send + Sync + 'static) -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (calls, embedded, answer) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default(), Arc::new(answer));
    let (counted, noted) = (calls.clone(), embedded.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (counted, noted, answer) = (counted.clone(), noted.clone(), answer.clone());
            std::thread::spawn(move || serve(stream, &counted, &noted, answer.as_ref()));
        }
    });
    Upstream { port, calls, embedded }
}

fn serve(mut stream: TcpStream, calls: &AtomicUsize, embedded: &Mutex<Vec<String>>, answer: &Answer) {
    let (head, body) = read_request(&mut stream);
    let told = if head.contains("/embeddings") {
        let text = body["input"].as_str().unwrap_or_default().to_string();
        let vector = vector(&text);
        embedded.lock().expect("nobody panicked").push(text);
        let data = json!([{"object": "embedding", "index": 0, "embedding": vector}]);
        Told::Json("200 OK", json!({"object": "list", "model": "e", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}))
    } else {
        answer(calls.fetch_add(1, Ordering::SeqCst) + 1, &body)
    };
    let text = match told {
        Told::Json(status, body) => {
            let body = body.to_string();
            let length = body.len();
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        }
        Told::Events(events) => format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}"),
    };
    let _ = stream.write_all(text.as_bytes());
}

/// Meanings: questions about the price point one way, about the colour another; "nearly" is a little off.
fn vector(text: &str) -> [f64; 3] {
    let off = if text.contains("nearly") { 0.5 } else { 0.0 };
    if text.contains("cost") || text.contains("price") { [1.0, 0.0, off] } else { [0.0, 1.0, off] }
}

fn whole(text: &str) -> Value {
    json!({"id": "c1", "object": "chat.completion", "created": 7, "model": "m-1", "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
}

fn chunk(delta: Value, finish: Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
    format!("data: {}\n\n", json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-1", "choices": [choice]}))
}

fn streamed(text: &str) -> String {
    let usage = json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m-1", "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}});
    let (first, second) = text.split_at(text.len() / 2);
    chunk(json!({"role": "assistant", "content": first}), Value::Null)
        + &chunk(json!({"content": second}), Value::Null)
        + &chunk(json!({}), json!("stop"))
        + &format!("data: {usage}\n\ndata: [DONE]\n\n")
}

/// The number of the call, in the way that was asked for.
fn numbered(call: usize, body: &Value) -> Told {
    let text = format!("answer {call}");
    if body["stream"] == true { Told::Events(streamed(&text)) } else { Told::Json("200 OK", whole(&text)) }
}

/// A gateway before an upstream, with these lines of configuration.
fn before(upstream: &Upstream, config: &str) -> Refit {
    let refit = Refit::new().env("UP_KEY", "sk-up");
    before_again(upstream, &refit, config);
    refit
}

fn before_again(upstream: &Upstream, refit: &Refit, config: &str) {
    let port = upstream.port;
    let provider = format!("kind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", format!("{config}\n[providers.up]\n{provider}[providers.other]\n{provider}"));
}

const ON: &str = "[cache]\nenabled = true";

fn ask(content: &str, fields: Value) -> Value {
    let mut body = json!({"model": "up/m", "messages": [{"role": "user", "content": content}]});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

/// What was answered, and what the cache had to do with it.
fn seen(reply: &Reply) -> (String, Option<&str>) {
    assert_eq!(reply.status, 200, "{reply:?}");
    (text(reply), reply.header("x-refit-cache"))
}

/// The text of a reply, streamed or whole, of any protocol.
fn text(reply: &Reply) -> String {
    let data: Vec<Value> = reply.body.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let of_chunk = |chunk: &Value| {
        let text = chunk["choices"][0]["delta"]["content"].as_str().or(chunk["delta"]["text"].as_str());
        text.unwrap_or_default().to_string()
    };
    if !data.is_empty() {
        return data.iter().map(of_chunk).collect();
    }
    let body = reply.json();
    body["choices"][0]["message"]["content"].as_str().or(body["content"][0]["text"].as_str()).unwrap_or_default().to_string()
}

fn with_wish(server: &Server, key: &str, wish: &str, body: &Value) -> Reply {
    http_with(&format!("{}{CHAT}", server.url()), Some(key), &[("x-refit-cache", wish)], body.to_string().into_bytes())
}

fn key_of(refit: &Refit, name: &str, project: &str, role: &str) -> String {
    let done = refit.run(&["key", "create", name, "--project", project, "--role", role, "--json"]).expect(0);
    done.json()["key"].as_str().expect("a key").to_string()
}

fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

#[test]
fn the_same_request_is_answered_once_and_off_means_every_time() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |body: &Value| server.post(CHAT, Some(&key), body);
    let first = post(&ask("a", json!({"temperature": 0.5, "x": {"b": 1, "a": 2}})));
    assert_eq!(seen(&first), ("answer 1".into(), Some("miss")));
    // In another order, and with what says nothing about the answer.
    let beside =
        json!({"x": {"a": 2, "b": 1}, "user": "u", "metadata": {"k": "v"}, "store": false, "safety_identifier": "s", "temperature": 0.5});
    let again = post(&ask("a", beside));
    assert_eq!(seen(&again), ("answer 1".into(), Some("hit")));
    assert_eq!(first.json(), again.json(), "the very same reply, unknown fields and usage included");
    for (n, other) in [
        json!({"temperature": 0.6, "x": {"b": 1, "a": 2}}),
        json!({"x": {"b": 2, "a": 1}}),
        json!({"seed": 1}),
        json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(seen(&post(&ask("a", other.clone()))), (format!("answer {}", n + 2), Some("miss")), "{other}");
    }
    assert_eq!(seen(&post(&ask("b", json!({})))).1, Some("miss"));
    assert_eq!(up.calls(), 6);

    let refit = before(&up, "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for _ in 0..2 {
        let reply = with_wish(&server, &key, "no-cache", &ask("a", json!({})));
        assert_eq!((reply.status, reply.header("x-refit-cache")), (200, None), "off is off: {reply:?}");
    }
    assert_eq!(up.calls(), 8);
}

#[test]
fn a_hit_costs_nothing_and_its_row_says_what_was_answered() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let (first, again) = (server.post(CHAT, Some(&key), &ask("a", json!({}))), server.post(CHAT, Some(&key), &ask("a", json!({}))));
    let metrics = server.get("/metrics", None).body;
    let (first, again) = (row(&refit, &first), row(&refit, &again));
    assert_eq!((&first["cache"], &again["cache"], &again["cost_micro_usd"]), (&json!("miss"), &json!("hit"), &json!(0)));
    for field in ["provider", "model", "input_tokens", "output_tokens", "finish_reason", "status", "reply"] {
        assert_eq!(first[field], again[field], "{field}: {again}");
    }
    let hits = "refit_cache_lookups_total{endpoint=\"chat.completions\",provider=\"up\",result=\"hit\"} 1";
    assert!(metrics.contains(hits), "{metrics}");
    // Five tokens were read once.
    assert!(metrics.contains("refit_tokens_total{provider=\"up\",direction=\"input\"} 5"), "{metrics}");
}

/// 5 tokens read at 2 dollars for a million and 3 written at 10: 40 micro-dollars.
#[test]
fn a_hit_saves_what_its_tokens_cost_and_takes_nothing_of_a_budget() {
    let up = upstream(numbered);
    let prices = "[[prices.rows]]\nprovider = \"up\"\nmodel = \"m\"\nfrom = \"2026-01-01\"\ninput = 2.0\noutput = 10.0";
    let refit = before(&up, &format!("{ON}\n{prices}"));
    let done = refit.run(&["key", "create", "poor", "--budget", "0.001", "--budget-period", "total", "--json"]).expect(0);
    let key = done.json()["key"].as_str().expect("a key").to_string();
    let server = refit.serve(&[]);
    let post = |streaming: bool| server.post(CHAT, Some(&key), &ask("a", json!({"stream": streaming, "max_tokens": 9})));
    let figures = |reply: &Reply| {
        let row = row(&refit, reply);
        (row["cost_micro_usd"].clone(), row["saved_micro_usd"].clone())
    };
    assert_eq!(figures(&post(false)), (json!(40), Value::Null));
    // 40 calls at 40 micro-dollars would be more than the 1,000 that the key may spend.
    for n in 0..40 {
        let reply = post(n % 2 == 0);
        assert_eq!((reply.status, reply.header("x-refit-cache")), (200, Some("hit")), "{reply:?}");
    }
    for streaming in [false, true] {
        assert_eq!(figures(&post(streaming)), (json!(0), json!(40)));
    }
}

#[test]
fn no_tenant_gets_the_reply_of_another_and_roles_of_one_share() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let [mine, admin, theirs] = [("a", "shop", "app"), ("b", "shop", "admin"), ("c", "bank", "admin")]
        .map(|(name, project, role)| key_of(&refit, name, project, role));
    let server = refit.serve(&[]);
    let body = ask("what is our secret", json!({}));
    assert_eq!(seen(&server.post(CHAT, Some(&mine), &body)).1, Some("miss"));
    assert_eq!(seen(&server.post(CHAT, Some(&theirs), &body)), ("answer 2".into(), Some("miss")), "another tenant, whatever its role");
    assert_eq!(seen(&server.post(CHAT, Some(&admin), &body)), ("answer 1".into(), Some("hit")));
    assert_eq!(seen(&server.post(CHAT, Some(&theirs), &body)), ("answer 2".into(), Some("hit")));
    refit.run(&["key", "revoke", "a"]).expect(0);
    // What was looked up of a key is believed for a millisecond.
    std::thread::sleep(Duration::from_millis(50));
    let refused = server.post(CHAT, Some(&mine), &body);
    assert_eq!((refused.status, refused.body.contains("answer")), (401, false), "what is kept is for valid keys: {refused:?}");
    assert_eq!(server.post(CHAT, None, &body).status, 401);
}

#[test]
fn models_and_providers_do_not_share() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    for (n, model) in ["up/m", "up/m2", "other/m"].iter().enumerate() {
        assert_eq!(
            seen(&server.post(CHAT, Some(&key), &ask("a", json!({"model": model})))),
            (format!("answer {}", n + 1), Some("miss")),
            "{model}"
        );
    }
}

#[test]
fn streamed_and_whole_requests_share_what_is_kept() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |content: &str, fields: Value| server.post(CHAT, Some(&key), &ask(content, fields));
    let usage = |reply: &Reply| reply.body.contains("\"total_tokens\":8");
    let streaming = json!({"stream": true});
    let with_usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    // A stream first.
    assert_eq!(seen(&post("a", streaming.clone())), ("answer 1".into(), Some("miss")));
    let kept = post("a", json!({}));
    assert_eq!(seen(&kept), ("answer 1".into(), Some("hit")));
    let body = kept.json();
    let message = json!({"role": "assistant", "content": "answer 1"});
    assert_eq!(
        (&body["object"], &body["choices"][0]["message"], &body["choices"][0]["finish_reason"]),
        (&json!("chat.completion"), &message, &json!("stop"))
    );
    assert_eq!((&body["usage"]["total_tokens"], &body["id"]), (&json!(8), &json!("c1")));
    let again = post("a", streaming.clone());
    assert_eq!((seen(&again), usage(&again)), (("answer 1".into(), Some("hit")), false), "{again:?}");
    assert!(again.body.ends_with("data: [DONE]\n\n") && again.body.contains("chat.completion.chunk"), "{again:?}");
    let told = post("a", with_usage.clone());
    assert_eq!((seen(&told), usage(&told)), (("answer 1".into(), Some("hit")), true), "{told:?}");
    // A whole reply first.
    assert_eq!(seen(&post("b", json!({}))), ("answer 2".into(), Some("miss")));
    let told = post("b", with_usage);
    assert_eq!((seen(&told), usage(&told)), (("answer 2".into(), Some("hit")), true));
    let row = row(&refit, &told);
    assert_eq!((&row["streamed"], &row["cache"], &row["output_tokens"]), (&json!(true), &json!("hit"), &json!(3)));
    assert_eq!(up.calls(), 2);
}

#[test]
fn tool_calls_and_logprobs_of_a_stream_are_kept_as_a_whole_reply_has_them() {
    let up = upstream(|_, _| {
        let call = |index: u64, name: &str| json!({"tool_calls": [{"index": index, "id": format!("call_{index}"), "type": "function", "function": {"name": name, "arguments": "{\"a\""}}]});
        let more = |index: u64| json!({"tool_calls": [{"index": index, "function": {"arguments": ":1}"}}]});
        let mut odds: Value =
            serde_json::from_str(chunk(json!({"content": "x"}), Value::Null).trim_start_matches("data: ")).expect("a chunk");
        let mut events = String::new();
        for token in ["x", "y"] {
            odds["choices"][0]["logprobs"] =
                json!({"content": [{"token": token, "logprob": -0.5, "bytes": null, "top_logprobs": []}], "refusal": null});
            events += &format!("data: {odds}\n\n");
        }
        let deltas = [call(0, "f"), more(0), call(1, "g"), more(1)];
        events += &deltas.into_iter().map(|delta| chunk(delta, Value::Null)).collect::<String>();
        Told::Events(events + &chunk(json!({}), json!("tool_calls")) + "data: [DONE]\n\n")
    });
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |fields: Value| server.post(CHAT, Some(&key), &ask("a", fields));
    post(json!({"stream": true, "logprobs": true}));
    let whole = post(json!({"logprobs": true}));
    assert_eq!(whole.header("x-refit-cache"), Some("hit"), "{whole:?}");
    let choice = &whole.json()["choices"][0];
    let call =
        |n: u64, name: &str| json!({"id": format!("call_{n}"), "type": "function", "function": {"name": name, "arguments": "{\"a\":1}"}});
    assert_eq!(choice["message"]["tool_calls"], json!([call(0, "f"), call(1, "g")]), "{choice}");
    let tokens: Vec<_> = choice["logprobs"]["content"].as_array().expect("tokens").iter().map(|token| token["token"].clone()).collect();
    assert_eq!(tokens, [json!("x"), json!("y")], "{choice}");
    let again = post(json!({"stream": true, "logprobs": true}));
    assert!(again.body.contains("\"index\":1") && again.body.contains("call_1"), "in a stream calls have their places: {again:?}");
    assert_eq!(up.calls(), 1);
}

#[test]
fn many_that_ask_the_same_at_once_make_one_call() {
    for streaming in [false, true] {
        let up = upstream(|call, body| {
            std::thread::sleep(Duration::from_millis(700));
            numbered(call, body)
        });
        let refit = before(&up, ON);
        let (ours, theirs) = (key_of(&refit, "a", "shop", "app"), key_of(&refit, "b", "bank", "app"));
        let server = refit.serve(&[]);
        let body = ask("a", json!({"stream": streaming}));
        let replies: Vec<Reply> = std::thread::scope(|scope| {
            let asking = |n: usize| {
                let other = n < 2;
                let (server, body, key) = (&server, &body, if other { &theirs } else { &ours });
                scope.spawn(move || (other, server.post(CHAT, Some(key), body)))
            };
            let asked: Vec<_> = (0..50).map(asking).collect();
            let replies: Vec<_> = asked.into_iter().map(|thread| thread.join().expect("answered")).collect();
            // Within a tenant all are alike, and tenants differ.
            let of =
                |other: bool| replies.iter().filter(move |(theirs, _)| *theirs == other).map(|(_, reply)| text(reply)).collect::<Vec<_>>();
            let (ours, theirs) = (of(false), of(true));
            assert!(ours.iter().all(|text| text == &ours[0] && text != &theirs[0] && text.starts_with("answer")), "{ours:?} {theirs:?}");
            replies.into_iter().map(|(_, reply)| reply).collect()
        });
        assert_eq!(up.calls(), 2, "one for each tenant");
        let misses = replies.iter().filter(|reply| reply.header("x-refit-cache") == Some("miss")).count();
        assert_eq!((misses, replies.iter().all(|reply| reply.status == 200)), (2, true));
    }
}

#[test]
fn when_the_one_that_asks_fails_the_next_asks() {
    let up = upstream(|call, body| {
        std::thread::sleep(Duration::from_millis(400));
        if call == 1 {
            Told::Json("400 Bad Request", json!({"error": {"message": "no", "type": "invalid_request_error"}}))
        } else {
            numbered(call, body)
        }
    });
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| server.post(CHAT, Some(&key), &ask("a", json!({}))))).collect();
        asked.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    let failed = replies.iter().filter(|reply| reply.status == 400).count();
    assert_eq!((failed, up.calls()), (1, 2), "{replies:?}");
    assert!(replies.iter().filter(|reply| reply.status == 200).all(|reply| text(reply) == "answer 2"), "{replies:?}");
}

#[test]
fn a_caller_that_leaves_takes_nobody_with_it() {
    let up = upstream(|call, body| {
        std::thread::sleep(Duration::from_millis(if call == 1 { 2_000 } else { 0 }));
        numbered(call, body)
    });
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = ask("a", json!({})).to_string();
    let mut leaving = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    let length = body.len();
    write!(leaving, "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("sent");
    while up.calls() == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post(CHAT, Some(&key), &ask("a", json!({}))));
        std::thread::sleep(Duration::from_millis(300));
        drop(leaving);
        let reply = waiting.join().expect("answered");
        assert_eq!(seen(&reply), ("answer 2".into(), Some("miss")));
    });
}

#[test]
fn errors_and_broken_streams_are_not_kept() {
    let up = upstream(|call, body| match call {
        1 => Told::Json("400 Bad Request", json!({"error": {"message": "no", "type": "invalid_request_error"}})),
        // Without an end.
        2 => Told::Events(chunk(json!({"role": "assistant", "content": "half"}), Value::Null)),
        3 => Told::Events(chunk(json!({"content": "half"}), Value::Null) + "data: {\"error\": {\"message\": \"overloaded\"}}\n\n"),
        4 => Told::Events(chunk(json!({"content": "filtered"}), json!("content_filter")) + "data: [DONE]\n\n"),
        // Every choice has ended, and then something goes wrong.
        5 => Told::Events(chunk(json!({"content": "late"}), json!("stop")) + "data: {\"error\": {\"message\": \"overloaded\"}}\n\n"),
        _ => numbered(call, body),
    });
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |streaming: bool| server.post(CHAT, Some(&key), &ask("a", json!({"stream": streaming})));
    assert_eq!(post(false).status, 400);
    for part in ["half", "half", "filtered", "late"] {
        assert!(post(true).body.contains(part));
    }
    assert_eq!(seen(&post(true)), ("answer 6".into(), Some("miss")));
    assert_eq!(seen(&post(false)), ("answer 6".into(), Some("hit")));
}

#[test]
fn a_reply_cut_by_its_bound_is_the_answer_to_that_bound() {
    let up = upstream(|call, _| {
        let mut reply = whole(&format!("answer {call}"));
        reply["choices"][0]["finish_reason"] = json!("length");
        Told::Json("200 OK", reply)
    });
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |bound: u64| server.post(CHAT, Some(&key), &ask("a", json!({"max_tokens": bound})));
    assert_eq!((seen(&post(3)).1, seen(&post(3)).1, seen(&post(4)).1), (Some("miss"), Some("hit"), Some("miss")));
}

#[test]
fn a_caller_can_ask_anew_and_leave_nothing() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = ask("a", json!({}));
    let wish = |wish: &str| with_wish(&server, &key, wish, &body);
    assert_eq!(seen(&wish("no-store")), ("answer 1".into(), Some("miss")));
    assert_eq!(seen(&server.post(CHAT, Some(&key), &body)), ("answer 2".into(), Some("miss")), "nothing was kept");
    assert_eq!(seen(&wish("no-store")), ("answer 2".into(), Some("hit")), "what is kept may be given");
    assert_eq!(seen(&wish("no-cache")), ("answer 3".into(), Some("miss")));
    assert_eq!(seen(&server.post(CHAT, Some(&key), &body)), ("answer 3".into(), Some("hit")), "the new reply took its place");
    assert_eq!(seen(&wish("No-Cache, no-store")), ("answer 4".into(), None));
    assert_eq!(seen(&server.post(CHAT, Some(&key), &body)).0, "answer 3");
    let refused = wish("no-cash");
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!("x-refit-cache")), "{refused:?}");
    // Not the fast lane's request: an unknown method of framing goes the long way, with the same header.
    let long = http_with(
        &format!("{}/v1/responses", server.url()),
        Some(&key),
        &[("x-refit-cache", "no-cache")],
        json!({"model": "up/m", "input": "a"}).to_string().into_bytes(),
    );
    assert_eq!(long.header("x-refit-cache"), Some("miss"), "{long:?}");
}

#[test]
fn what_is_kept_grows_old() {
    let up = upstream(numbered);
    let refit = before(&up, "[cache]\nenabled = true\nttl_s = 1");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = || server.post(CHAT, Some(&key), &ask("a", json!({})));
    assert_eq!(seen(&post()), ("answer 1".into(), Some("miss")));
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(seen(&post()), ("answer 2".into(), Some("miss")));
}

#[test]
fn what_is_kept_has_a_bound_and_large_replies_are_not_kept() {
    // 64 replies of 8 KiB into 128 KiB.
    let up = upstream(|call, body| {
        let size = if body["messages"][0]["content"] == "large" { 80_000 } else { 8_000 };
        let text = format!("answer {call} {}", "x".repeat(size));
        if body["stream"] == true { Told::Events(streamed(&text)) } else { Told::Json("200 OK", whole(&text)) }
    });
    let refit = before(&up, "[cache]\nenabled = true\nmax_bytes = 131072");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |content: &str, streaming: bool| server.post(CHAT, Some(&key), &ask(content, json!({"stream": streaming})));
    for n in 0..64 {
        assert_eq!(seen(&post(&n.to_string(), false)).1, Some("miss"));
    }
    let hits = (0..64).filter(|n| post_hit(&post(&n.to_string(), false))).count();
    assert!((1..=14).contains(&hits), "131072 bytes hold 14 replies of 9 KiB with what they take besides, not {hits}");
    for streaming in [false, true, false] {
        assert_eq!(seen(&post("large", streaming)).1, Some("miss"), "a reply above a quarter of all");
    }
}

#[test]
fn of_a_stream_too_long_to_be_kept_no_part_is_kept() {
    let up = upstream(|call, _| Told::Events(streamed(&format!("answer {call} {}", "x".repeat(400_000)))));
    let refit = before(&up, "[log]\nbodies = false\n[cache]\nenabled = true\nmax_bytes = 131072");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for _ in 0..2 {
        let reply = server.post(CHAT, Some(&key), &ask("a", json!({"stream": true})));
        assert_eq!((text(&reply).len() > 400_000, reply.header("x-refit-cache")), (true, Some("miss")));
    }
}

fn post_hit(reply: &Reply) -> bool {
    reply.header("x-refit-cache") == Some("hit")
}

#[test]
fn only_replies_without_chance_are_kept_where_that_is_asked_for() {
    let up = upstream(numbered);
    let refit = before(&up, "[cache]\nenabled = true\nsampled = false");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let twice = |fields: Value| {
        let post = || server.post(CHAT, Some(&key), &ask("a", fields.clone()));
        let (first, second) = (post(), post());
        (first.header("x-refit-cache").map(str::to_string), second.header("x-refit-cache").map(str::to_string))
    };
    assert_eq!((twice(json!({})), twice(json!({"temperature": 0.7}))), ((None, None), (None, None)));
    for fields in [json!({"temperature": 0}), json!({"temperature": 0.7, "seed": 7})] {
        assert_eq!(twice(fields), (Some("miss".into()), Some("hit".into())));
    }
}

#[test]
fn one_name_is_switched_apart_from_the_others() {
    let up = upstream(numbered);
    for (config, m, m2) in [
        ("[cache.routes]\n\"up/m\" = true", Some("hit"), None),
        ("[cache]\nenabled = true\n[cache.routes]\n\"up/m\" = false", None, Some("hit")),
    ] {
        let refit = before(&up, config);
        let (key, server) = (refit.key(), refit.serve(&[]));
        for (model, how) in [("up/m", m), ("up/m2", m2)] {
            let post = || server.post(CHAT, Some(&key), &ask("a", json!({"model": model})));
            post();
            assert_eq!(post().header("x-refit-cache"), how, "{config}: {model}");
        }
    }
}

#[test]
fn every_protocol_gets_kept_replies_in_its_own_words() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let message =
        |streaming: bool| json!({"model": "up/m", "max_tokens": 9, "stream": streaming, "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(seen(&server.post("/v1/messages", Some(&key), &message(false))), ("answer 1".into(), Some("miss")));
    let again = server.post("/v1/messages", Some(&key), &message(false));
    assert_eq!((seen(&again), &again.json()["usage"]["output_tokens"]), (("answer 1".into(), Some("hit")), &json!(3)));
    let streamed = server.post("/v1/messages", Some(&key), &message(true));
    assert_eq!(seen(&streamed), ("answer 1".into(), Some("hit")));
    assert!(streamed.body.contains("event: message_stop"), "{streamed:?}");
    let response = json!({"model": "up/m", "input": "b"});
    server.post("/v1/responses", Some(&key), &response);
    let again = server.post("/v1/responses", Some(&key), &response);
    assert_eq!(
        (again.header("x-refit-cache"), again.json()["output"][0]["content"][0]["text"].as_str()),
        (Some("hit"), Some("answer 2")),
        "{again:?}"
    );
    let counted = json!({"model": "up/m", "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(server.post("/v1/messages/count_tokens", Some(&key), &counted).header("x-refit-cache"), None);
    assert_eq!(up.calls(), 2);
}

#[test]
fn a_message_is_given_again_as_its_provider_sent_it() {
    let up = upstream(|call, _| {
        let content =
            json!([{"type": "thinking", "thinking": "hm", "signature": "sig"}, {"type": "text", "text": format!("answer {call}")}]);
        Told::Json(
            "200 OK",
            json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "c", "content": content, "stop_reason": "end_turn",
            "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 2}, "made_up": [1]}),
        )
    });
    let refit = Refit::new().env("UP_KEY", "sk-up");
    refit.write(
        "refit.toml",
        format!("{ON}\n[providers.anthropic]\nbase_url = \"http://127.0.0.1:{}\"\napi_key = {{ env = \"UP_KEY\" }}\n", up.port),
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = |system: &str, user: &str| json!({"model": "anthropic/c", "max_tokens": 9, "system": system, "metadata": {"user_id": user}, "messages": [{"role": "user", "content": "a"}]});
    let post = |system: &str, user: &str| server.post("/v1/messages", Some(&key), &body(system, user));
    let (first, again) = (post("s", "u"), post("s", "v"));
    assert_eq!((first.json(), again.header("x-refit-cache")), (again.json(), Some("hit")));
    assert_eq!((&again.json()["made_up"], &again.json()["content"][0]["signature"]), (&json!([1]), &json!("sig")), "{again:?}");
    assert_eq!(post("another", "u").header("x-refit-cache"), Some("miss"));
    assert_eq!(up.calls(), 2);
}

/// What was made of a route is given again by the same release only, whatever it is called by.
#[test]
fn no_release_answers_with_the_reply_of_another() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    refit.run(&["route", "create", "answers", "--suite", "intake", "--require", "exact_match:ci_low>=0.5", "--split", "test"]).expect(0);
    let release = |seed: &str| refit.run(&["release", "create", "--model", "up/m", "-P", seed]).expect(0).stdout.trim().to_string();
    let (old, new) = (release("seed=1"), release("seed=2"));
    for (run, release) in [("run_1", &old), ("run_2", &new)] {
        measured(&refit, run, release, ("intake", "test"), (0.9, 0.8));
    }
    let promote = |release: &str| refit.run(&["release", "promote", release, "--route", "answers"]).expect(0);
    promote(&old);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |streaming: bool| server.post(CHAT, Some(&key), &ask("a", json!({"model": "answers", "stream": streaming})));
    let tells = |reply: &Reply| reply.header("x-refit-release").expect("a release").to_string();
    assert_eq!(seen(&post(false)), ("answer 1".into(), Some("miss")));
    let again = post(false);
    assert_eq!((seen(&again), tells(&again)), (("answer 1".into(), Some("hit")), old.clone()));
    promote(&new);
    std::thread::sleep(Duration::from_millis(50));
    let other = post(true);
    assert_eq!((seen(&other), tells(&other)), (("answer 2".into(), Some("miss")), new.clone()));
    refit.run(&["release", "rollback", "answers"]).expect(0);
    std::thread::sleep(Duration::from_millis(50));
    let back = post(true);
    assert_eq!((seen(&back), tells(&back)), (("answer 1".into(), Some("hit")), old.clone()));
    let row = row(&refit, &back);
    assert_eq!((&row["route"], &row["release"], &row["cache"]), (&json!("answers"), &json!(old), &json!("hit")));
    assert_eq!(seen(&server.post(CHAT, Some(&key), &ask("a", json!({"seed": 1})))).1, Some("miss"), "the model itself is no release");
}

#[test]
fn a_configured_route_says_for_itself_and_names_what_answered() {
    let up = upstream(numbered);
    let routes = "[routes.kept]\ntargets = [\"up/m\"]\ncache = true\n[routes.asked]\ntargets = [\"other/m\"]\n";
    let refit = before(&up, routes);
    let (key, server) = (refit.key(), refit.serve(&[]));
    for (name, provider, how) in [("kept", "up", Some("hit")), ("asked", "other", None)] {
        let post = || server.post(CHAT, Some(&key), &ask("a", json!({"model": name})));
        post();
        let again = post();
        assert_eq!((seen(&again).1, again.header("x-refit-provider")), (how, Some(provider)), "{again:?}");
        let row = row(&refit, &again);
        assert_eq!(
            (&row["route"], &row["provider"], &row["attempts"]),
            (&json!(name), &json!(provider), &if how.is_some() { Value::Null } else { json!(1) })
        );
    }
}

#[test]
fn a_changed_configuration_begins_with_nothing() {
    let up = upstream(numbered);
    let refit = before(&up, ON);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = || server.post(CHAT, Some(&key), &ask("a", json!({})));
    assert_eq!((seen(&post()).0, seen(&post()).1), ("answer 1".into(), Some("hit")));
    before_again(&up, &refit, "[cache]\nenabled = true\nttl_s = 77");
    let begun = std::time::Instant::now();
    while seen(&post()).0 == "answer 1" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the reload does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(seen(&post()), ("answer 2".into(), Some("hit")));
}

const SEMANTIC: &str = "[cache]\nenabled = true\n[cache.semantic]\nenabled = true\nmodel = \"up/e\"\nthreshold = 0.95";

#[test]
fn a_question_that_means_the_same_gets_the_same_reply_within_its_scope() {
    let up = upstream(numbered);
    let refit = before(&up, SEMANTIC);
    let (ours, theirs) = (key_of(&refit, "a", "shop", "app"), key_of(&refit, "b", "bank", "app"));
    let server = refit.serve(&[]);
    let post = |content: &str, fields: Value| server.post(CHAT, Some(&ours), &ask(content, fields));
    assert_eq!(seen(&post("what does it cost?", json!({}))), ("answer 1".into(), Some("miss")));
    let near = post("what is the price?", json!({}));
    assert_eq!(seen(&near), ("answer 1".into(), Some("semantic")));
    assert_eq!(seen(&post("which price is it?", json!({"stream": true}))), ("answer 1".into(), Some("semantic")), "streams, too");
    assert_eq!(seen(&post("what does it cost?", json!({}))), ("answer 1".into(), Some("hit")), "the very same is no matter of meaning");
    // cos(1,0,0.5 / 1,0,0) = 0.894.
    assert_eq!(seen(&post("what does it nearly cost?", json!({}))).1, Some("miss"));
    assert_eq!(seen(&post("which colour is it?", json!({}))).1, Some("miss"));
    // Everything around the question has to be the same.
    for other in [
        json!({"temperature": 0.5}),
        json!({"model": "up/m2"}),
        json!({"model": "other/m"}),
        json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ] {
        assert_eq!(seen(&post("so what is the price?", other.clone())).1, Some("miss"), "{other}");
    }
    let history = |said: &str| json!({"messages": [{"role": "system", "content": said}, {"role": "user", "content": "the price, please"}]});
    assert_eq!(seen(&post("", history("short"))).1, Some("miss"));
    assert_eq!(seen(&post("", history("long"))).1, Some("miss"));
    let stranger = server.post(CHAT, Some(&theirs), &ask("what is the price?", json!({})));
    assert_eq!(seen(&stranger).1, Some("miss"), "no other tenant");
    assert_eq!(with_wish(&server, &ours, "no-cache", &ask("the price?", json!({}))).header("x-refit-cache"), Some("miss"));
    let row = row(&refit, &near);
    assert_eq!((&row["cache"], &row["cost_micro_usd"], &row["provider"]), (&json!("semantic"), &json!(0), &json!("up")));
    assert!(up.embedded().iter().all(|text| !text.contains("short")), "only the question is embedded: {:?}", up.embedded());
    let rows = refit.run(&["logs", "tail", "--limit", "100", "--json"]).expect(0).json();
    let made: Vec<_> = rows.as_array().expect("rows").iter().filter(|row| row["endpoint"] == "cache.embeddings").collect();
    assert!(made.len() > 5 && made.iter().all(|row| row["api_key"] == "[cache]" && row["model"] == "e"), "{rows}");
    assert_eq!(made.iter().filter(|row| row["project"] == "bank").count(), 1, "each tenant pays for its own: {rows}");
}

#[test]
fn what_stands_around_a_question_is_read_in_the_callers_own_protocol() {
    let up = upstream(numbered);
    let refit = before(&up, SEMANTIC);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |content: Value, fields: Value| {
        let mut body = json!({"model": "up/m", "max_tokens": 9, "system": "s", "messages": [{"role": "user", "content": content}]});
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        seen(&server.post("/v1/messages", Some(&key), &body)).1.map(str::to_string)
    };
    let (miss, semantic) = (Some("miss".to_string()), Some("semantic".to_string()));
    assert_eq!(post(json!("what does it cost?"), json!({})), miss);
    assert_eq!(post(json!("what is the price?"), json!({})), semantic);
    assert_eq!(post(json!([{"type": "text", "text": "which price?"}]), json!({})), semantic);
    for other in [json!({"system": "t"}), json!({"max_tokens": 8}), json!({"thinking": {"type": "disabled"}})] {
        assert_eq!(post(json!("and the price?"), other.clone()), miss, "{other}");
    }
    let marked = json!([{"type": "text", "text": "some price?", "cache_control": {"type": "ephemeral"}}]);
    assert_eq!(post(marked, json!({})), miss, "a question with more than text");
    let earlier = |said: &str| json!({"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "the price?"}]});
    assert_eq!((post(json!(""), earlier("x")), post(json!(""), earlier("y"))), (miss.clone(), miss));
}

#[test]
fn pictures_are_no_question_and_a_model_of_vectors_that_fails_stops_nobody() {
    let up = upstream(numbered);
    let refit = before(&up, SEMANTIC);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let picture = |url: &str| {
        let parts = json!([{"type": "text", "text": "what does it cost?"}, {"type": "image_url", "image_url": {"url": url}}]);
        json!({"messages": [{"role": "user", "content": parts}]})
    };
    for (n, url) in ["https://x/1.png", "https://x/2.png"].iter().enumerate() {
        let reply = server.post(CHAT, Some(&key), &ask("", picture(url)));
        assert_eq!(seen(&reply), (format!("answer {}", n + 1), Some("miss")));
    }
    assert!(up.embedded().is_empty());

    let refit = before(&up, &SEMANTIC.replace("up/e", "mock/echo"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    for content in ["what does it cost?", "what is the price?"] {
        assert_eq!(seen(&server.post(CHAT, Some(&key), &ask(content, json!({})))).1, Some("miss"));
    }
    assert_eq!(seen(&server.post(CHAT, Some(&key), &ask("what does it cost?", json!({})))).1, Some("hit"), "the same is found as ever");
}

#[test]
fn the_questions_have_a_bound() {
    let up = upstream(numbered);
    let refit = before(&up, &format!("{SEMANTIC}\nmax_entries = 1"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let post = |content: &str| seen(&server.post(CHAT, Some(&key), &ask(content, json!({})))).1.map(str::to_string);
    post("what does it cost?");
    post("which colour is it?");
    assert_eq!(post("what colour is it?").as_deref(), Some("semantic"));
    assert_eq!(post("what is the price?").as_deref(), Some("miss"), "the older question is gone");
}
