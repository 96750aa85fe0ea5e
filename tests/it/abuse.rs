//! Callers that mean no good or do not know better: slow, silent, many, gone in the middle, or with numbers that no field can hold.
//! Others are served all the while, and what one costs has a bound.

use crate::places::{Act, behind, place, up};
use crate::rig::{CHAT, Line, STREAM, chat, closes_within, descriptors, event, full, gauge, memory_mib, provider, upstream, wait_for};
use crate::support::{Refit, Server, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Time of the slowest of some calls on a connection of their own.
fn slowest(server: &Server, key: &str, calls: usize) -> Duration {
    let request = chat("mock/echo", "hi", json!({})).to_string();
    let mut slowest = Duration::ZERO;
    for _ in 0..calls {
        let began = Instant::now();
        let mut line = Line::to(server);
        line.send("POST", CHAT, Some(key), &request).expect("sent");
        assert_eq!(line.reply().expect("a reply").status, 200);
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

/// Others are served as before: within five times the slowest call of a quiet server, or what a busy machine takes by itself.
fn others_are_served(server: &Server, key: &str, quiet: Duration) {
    let busy = slowest(server, key, 50);
    assert!(busy < (5 * quiet).max(Duration::from_millis(500)), "{busy:?} instead of {quiet:?}");
}

/// The test itself holds one end of each connection.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("the limit is raised");
}

#[test]
fn heads_that_drip_do_not_hold_up_others_and_have_an_end() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nhead_timeout_s = 2\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let quiet = slowest(&server, &key, 20);
    let mut slow: Vec<_> = (0..300).map(|_| Line::to(&server)).collect();
    for line in &mut slow {
        line.stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ").expect("sent");
    }
    let began = Instant::now();
    others_are_served(&server, &key, quiet);
    // A byte now and then keeps no connection alive.
    let mut open = slow.len();
    while open > 0 && began.elapsed() < Duration::from_secs(20) {
        slow.retain_mut(|line| line.stream.write_all(b"x").is_ok() && !line.is_closed());
        open = slow.len();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(open, 0, "{open} of 300 slow heads are still waited for after {:?}", began.elapsed());
}

#[test]
fn bodies_that_drip_do_not_hold_up_others() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let quiet = slowest(&server, &key, 20);
    let mut slow: Vec<_> = (0..300).map(|_| Line::to(&server)).collect();
    for line in &mut slow {
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 30000000\r\n\r\n{{\"a\": \"");
        line.stream.write_all(head.as_bytes()).expect("sent");
    }
    let before = memory_mib(&server, "VmRSS");
    for _ in 0..5 {
        slow.iter_mut().for_each(|line| line.stream.write_all(b"x").expect("sent"));
        others_are_served(&server, &key, quiet);
    }
    assert!(memory_mib(&server, "VmRSS") < before + 300, "what is announced is not set aside");
    drop(slow);
    wait_for("the end of the slow ones", || gauge(&server, "refit_connections") < 10.0);
}

#[test]
fn two_thousand_idle_connections_leave_others_served_and_descriptors_bounded() {
    raise_descriptors();
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let quiet = slowest(&server, &key, 20);
    let before = descriptors(&server);
    let idle: Vec<_> = (0..2_000).map(|_| Line::to(&server)).collect();
    wait_for("2,000 connections", || gauge(&server, "refit_connections") >= 2_000.0);
    others_are_served(&server, &key, quiet);
    assert!(descriptors(&server) < before + 2_100, "{} descriptors", descriptors(&server));
    assert!(memory_mib(&server, "VmRSS") < 200, "{} MiB", memory_mib(&server, "VmRSS"));
    drop(idle);
    wait_for("the end of the idle ones", || gauge(&server, "refit_connections") < 10.0);
    assert!(descriptors(&server) < before + 50, "{} descriptors instead of {before}", descriptors(&server));
}

#[test]
fn one_connection_too_many_is_told_so_and_the_next_is_served_once_there_is_room() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nmax_connections = 20\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut held: Vec<_> = (0..20).map(|_| Line::to(&server)).collect();
    // They are counted once they are taken.
    for line in &mut held {
        line.send("GET", "/health", None, "").expect("sent");
        assert_eq!(line.reply().expect("a reply").status, 200);
    }
    for _ in 0..5 {
        let mut line = Line::to(&server);
        line.send("POST", CHAT, Some(&key), &chat("mock/echo", "hi", json!({})).to_string()).expect("sent");
        let reply = line.reply().expect("a reply");
        assert_eq!((reply.status, reply.header("retry-after"), reply.header("connection")), (503, Some("1"), Some("close")), "{reply:?}");
        assert!(reply.json()["error"]["message"].as_str().is_some_and(|message| message.contains("max_connections")), "{reply:?}");
    }
    let mut inside = held.pop().expect("one of those that are in");
    inside.send("POST", CHAT, Some(&key), &chat("mock/echo", "hi", json!({})).to_string()).expect("sent");
    assert_eq!(inside.reply().expect("a reply").status, 200, "those that are in are served");
    let figure = |text: &str| text.lines().find_map(|line| line.strip_prefix("refit_connections_refused_total ")).map(str::to_string);
    inside.send("GET", "/metrics", None, "").expect("sent");
    assert_eq!(figure(&inside.reply().expect("a reply").body).as_deref(), Some("5"));
    drop(held);
    wait_for("room", || {
        let mut line = Line::to(&server);
        line.send("GET", "/health", None, "").is_ok() && line.reply().is_some_and(|reply| reply.status == 200)
    });
}

/// The caller takes nothing: neither is the stream gathered in memory, nor is its caller waited for without end.
#[test]
fn a_caller_that_does_not_read_costs_little_and_is_cut_off() {
    let sent = std::sync::Arc::new(AtomicUsize::new(0));
    let (counted, (sender, closed)) = (sent.clone(), channel());
    let up = upstream(move |stream, _| {
        stream.write_all(STREAM.as_bytes()).expect("sent");
        let piece = event(&"x".repeat(64 << 10));
        while stream.write_all(piece.as_bytes()).is_ok() {
            counted.fetch_add(piece.len(), Ordering::Relaxed);
        }
        let _ = sender.send(());
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", format!("[server]\nsend_timeout_s = 3\n[log]\nbodies = false\n{}", provider(up.port)));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let before = memory_mib(&server, "VmRSS");
    let mut line = Line::to(&server);
    line.send("POST", CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": true})).to_string()).expect("sent");
    wait_for("a stream", || sent.load(Ordering::Relaxed) > 0);
    std::thread::sleep(Duration::from_secs(2));
    let (taken, memory) = (sent.load(Ordering::Relaxed) >> 20, memory_mib(&server, "VmRSS"));
    assert!(taken < 64 && memory < before + 64, "{taken} MiB were taken of the upstream, {memory} MiB are used");
    closed.recv_timeout(Duration::from_secs(15)).expect("the call upstream ends: three seconds, fivefold");
    wait_for("the end of the call", || gauge(&server, "refit_requests_in_flight") == 0.0);
    let row = refit.run(&["logs", "tail", "--limit", "1", "--json"]).expect(0).json()[0].clone();
    assert_eq!((&row["status"], &row["error_code"]), (&json!(499), &json!("cancelled")), "{row}");
}

/// reliability.md, Client abuse 19.
#[test]
fn callers_that_leave_in_the_middle_end_their_calls_and_leave_nothing_behind() {
    let leavers = if full() { 1_000 } else { 200 };
    let closed = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = closed.clone();
    let up = upstream(move |stream, _| {
        let part = format!("{STREAM}{}", event("half"));
        if stream.write_all(part.as_bytes()).is_ok() {
            let gone = closes_within(stream, Duration::from_secs(60));
            seen.lock().expect("list").push((gone, Instant::now()));
        }
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, server) = (refit.key(), refit.serve(&[]));
    assert_eq!(server.get("/health", None).status, 200);
    let before = descriptors(&server);
    let request = chat("up/m", "hi", json!({"stream": true})).to_string();
    let mut slowest = Duration::ZERO;
    for round in 0..leavers / 50 {
        let mut lines: Vec<_> = (0..50).map(|_| Line::to(&server)).collect();
        lines.iter_mut().for_each(|line| line.send("POST", CHAT, Some(&key), &request).expect("sent"));
        for line in &mut lines {
            let mut text = String::new();
            while !text.contains("half") {
                let mut piece = [0; 4_096];
                let n = line.stream.read(&mut piece).expect("a piece");
                assert!(n > 0, "{text}");
                text.push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        }
        let left = Instant::now();
        drop(lines);
        wait_for("the end of the calls upstream", || closed.lock().expect("list").len() == (round + 1) * 50);
        let ends = closed.lock().expect("list");
        assert!(ends.iter().all(|(gone, _)| *gone));
        slowest = slowest.max(ends.iter().map(|(_, at)| at.saturating_duration_since(left)).max().unwrap_or_default());
    }
    assert!(slowest < Duration::from_secs(5), "one second, fivefold: {slowest:?}");
    wait_for("the end of every call", || gauge(&server, "refit_requests_in_flight") == 0.0 && gauge(&server, "refit_connections") < 5.0);
    assert!(descriptors(&server) < before + 20, "{} descriptors instead of {before}", descriptors(&server));
    wait_for("every row", || gauge(&server, "refit_log_rows_pending") == 0.0);
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    let partial = "SELECT COUNT(*) FROM requests WHERE status = 499 AND error_code = 'cancelled' AND reply LIKE '%half%'";
    let count: u32 = database.query_row(partial, [], |row| row.get(0)).expect("a count");
    assert_eq!(count as usize, leavers, "each is logged as cancelled, with what it was sent");
}

#[test]
fn what_is_no_http_is_let_go_and_others_are_served() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nhead_timeout_s = 2\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let quiet = slowest(&server, &key, 20);
    let hello: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    let long = [b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat();
    let heads = (0..400).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{heads}\r\n");
    let both = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n";
    for bytes in [hello, b"GET /he", b"\0\0\0\0\r\n\r\n", &long, many.as_bytes(), both.as_bytes(), b"GET / HTTP/9.9\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
        // A server that has heard enough may close before it has read all.
        let _ = stream.write_all(bytes);
        assert!(closes_within(&mut stream, Duration::from_secs(30)), "{:?}…", &bytes[..bytes.len().min(20)]);
    }
    others_are_served(&server, &key, quiet);
    wait_for("their end", || gauge(&server, "refit_connections") < 5.0);
}

/// What a schema says about the numbers of a field.
struct Number {
    path: String,
    field: String,
    whole: bool,
    least: Option<f64>,
    most: Option<f64>,
}

/// Fields of a body that hold numbers.
fn numbers(path: &str, schema: &Value) -> Vec<Number> {
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let number = |(field, schema): (String, Value)| {
        let kinds = [schema["type"].clone()];
        let kinds = schema["type"].as_array().map_or(&kinds[..], Vec::as_slice).to_vec();
        let is = |kind: &str| kinds.iter().any(|known| known == kind);
        let is_number = is("integer") || is("number");
        let bound = |name: &str| schema[name].as_f64();
        is_number.then(|| Number { path: path.into(), field, whole: !is("number"), least: bound("minimum"), most: bound("maximum") })
    };
    fields.into_iter().filter_map(number).collect()
}

/// Texts of numbers that such a field cannot hold.
fn impossible(number: &Number) -> Vec<String> {
    let mut texts = vec!["1e400".to_string(), "-1e400".into()];
    if number.whole {
        texts.extend(
            ["18446744073709551616", "-9223372036854775809", "340282366920938463463374607431768211456", "0.5", "1e30"].map(String::from),
        );
    }
    if let Some(least) = number.least {
        let below = [(least - 1.0).to_string(), "-9223372036854775808".into(), "-1e308".into()];
        texts.extend(below.into_iter().filter(|text| text.parse().is_ok_and(|x: f64| x < least)));
    }
    if let Some(most) = number.most {
        let above = [(most + 1.0).to_string(), "9223372036854775807".into(), "1e308".into()];
        texts.extend(above.into_iter().filter(|text| text.parse().is_ok_and(|x: f64| x > most)));
    }
    texts
}

/// A body that would be answered, for each path that takes JSON.
fn good(path: &str) -> Option<Value> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    Some(match path {
        "/v1/chat/completions" => json!({"model": "mock/echo", "messages": messages}),
        "/v1/completions" => json!({"model": "mock/echo", "prompt": "hi"}),
        "/v1/embeddings" => json!({"model": "mock/echo", "input": "hi"}),
        "/v1/responses" => json!({"model": "mock/echo", "input": "hi"}),
        "/v1/messages" => json!({"model": "mock/echo", "max_tokens": 5, "messages": messages}),
        "/v1/messages/count_tokens" => json!({"model": "mock/echo", "messages": messages}),
        "/v1/batches" => json!({"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}),
        "/v1/fine_tuning/jobs" => json!({"model": "mock/echo", "training_file": "file-x"}),
        "/v1/feedback" => json!({"target": {"request_id": "req_none"}, "name": "n", "value": 1}),
        "/admin/v1/keys" => json!({"name": "n"}),
        "/v1/prompts" => json!({"name": "q", "source": "x"}),
        "/v1/prompts/{name}/labels/{label}" => json!({"version": 1}),
        "/v1/prompts/{name}/render" | "/v1/prompts/{name}/completions" => json!({"variables": {}}),
        _ => return None,
    })
}

/// reliability.md, Client abuse 20, made from the document that the server itself hands out.
#[test]
fn numbers_that_no_field_can_hold_are_refused_by_the_fields_name_everywhere() {
    let refit = Refit::new();
    let key = refit.run(&["key", "create", "a", "--role", "admin"]).expect(0).stdout.trim().to_string();
    refit.write("p.prompt", "---\nmodel: mock/echo\n---\nx");
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let server = refit.serve(&[]);
    let document = server.get("/openapi.json", None).json();
    let (mut tried, mut fields) = (0, Vec::new());
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        let Some(good) = good(path) else {
            // Azure's paths are the same handlers.
            let untried = if path.starts_with("/openai") { Vec::new() } else { numbers(path, schema) };
            assert!(untried.is_empty(), "{path} takes numbers; tell this test what a good body is");
            continue;
        };
        for number in numbers(path, schema) {
            fields.push(format!("{path} {}", number.field));
            for text in impossible(&number) {
                // By hand: no JSON library writes such numbers.
                let mut body = good.clone();
                body[&number.field] = json!("@");
                let body = body.to_string().replace("\"@\"", &text);
                let filled = number.path.replace("{name}", "p").replace("{label}", "l");
                let reply = server.post_bytes(&filled, Some(&key), body.as_bytes());
                let case = format!("{path} {}: {text}: {reply:?}", number.field);
                assert!((400..500).contains(&reply.status), "{case}");
                let error = &reply.json()["error"];
                let named = error["param"].as_str().is_some_and(|param| param.contains(&number.field));
                let told = error["message"].as_str().is_some_and(|message| message.contains(&number.field));
                assert!(named || (path.starts_with("/v1/messages") && told), "{case}");
                tried += 1;
            }
        }
    }
    assert!(fields.len() >= 10 && tried >= 60, "{tried} numbers in {fields:?}");
    assert_eq!(gauge(&server, "refit_requests_in_flight"), 0.0);
}

#[test]
fn numbers_that_no_query_can_hold_are_refused_by_the_fields_name() {
    let refit = Refit::new();
    let key = refit.run(&["key", "create", "v", "--role", "viewer"]).expect(0).stdout.trim().to_string();
    let server = refit.serve(&[]);
    let document = server.get("/openapi.json", None).json();
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let parameters = methods["get"]["parameters"].as_array().cloned().unwrap_or_default();
        for parameter in parameters.iter().filter(|parameter| parameter["in"] == "query" && parameter["schema"]["type"] == "integer") {
            let name = parameter["name"].as_str().expect("a name");
            for text in ["-1", "0", "0.5", "1e3", "18446744073709551616", "99999999999999999999999999", "NaN"] {
                let reply = send("GET", &format!("{}{path}?{name}={text}", server.url()), Some(&key), &[], None);
                assert!((400..500).contains(&reply.status), "{path} {name}={text}: {reply:?}");
                assert_eq!(reply.json()["error"]["param"], name, "{path} {name}={text}: {reply:?}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 14, "{tried}");
}

/// A body of 32 MiB is announced: it is neither waited for nor given room.
#[test]
fn strangers_are_told_before_their_bodies_are_read() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let head = |key: &str, length: usize| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n")
    };
    for key in ["", "rk_nobody"] {
        let mut line = Line::to(&server);
        line.stream.write_all(head(key, 32 << 20).as_bytes()).expect("sent");
        line.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let reply = line.reply().expect("a reply");
        assert_eq!((reply.status, reply.header("connection")), (401, Some("close")), "{reply:?}");
        assert!(reply.header("x-request-id").is_some(), "{reply:?}");
    }
    // Who sends it all the same reads the reply, not a reset.
    let mut line = Line::to(&server);
    line.stream.write_all(head("rk_nobody", 4 << 20).as_bytes()).expect("sent");
    line.stream.write_all(&vec![b' '; 4 << 20]).expect("sent");
    assert_eq!(line.reply().expect("a reply").status, 401);
    // One who may ask is answered on a connection that lives on.
    let request = chat("mock/echo", &"x".repeat(1 << 20), json!({})).to_string();
    let mut line = Line::to(&server);
    for _ in 0..2 {
        line.stream.write_all(head(&key, request.len()).as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_millis(50));
        line.stream.write_all(request.as_bytes()).expect("sent");
        assert_eq!(line.reply().expect("a reply").status, 200);
    }
}

#[test]
fn a_body_that_breaks_off_is_told_and_has_its_row() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut line = Line::to(&server);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 100\r\n\r\n{{\"model\"");
    line.stream.write_all(head.as_bytes()).expect("sent");
    line.stream.shutdown(std::net::Shutdown::Write).expect("shut down");
    let reply = line.reply().expect("a reply");
    assert!(reply.status == 400 && reply.body.contains("broke off"), "{reply:?}");
    let id = reply.header("x-request-id").expect("an id");
    assert_eq!(refit.run(&["logs", "show", id, "--json"]).expect(0).json()["status"], 400);
}

#[test]
fn one_who_sent_far_ahead_and_leaves_ends_his_call() {
    let a = place(|_, _| Act::Hang);
    let up = up(behind(&[("a", a.port)], ""));
    let mut line = Line::to(&up.server);
    line.send("POST", CHAT, Some(&up.key), &chat("a/m", "hi", json!({})).to_string()).expect("sent");
    a.wait_for_calls(1);
    line.stream.write_all(&vec![b' '; 100 << 10]).expect("sent");
    std::thread::sleep(Duration::from_millis(300));
    drop(line);
    a.wait_for_closed(1);
}
