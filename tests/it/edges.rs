//! What each fault at the edges of the wire must come to: a status, a row, and no more than that.

use crate::faults::{CHAT, ask, before, body, hanging};
use crate::support::{Refit, Reply, Server, http_with};
use crate::upstream::{reply, stream, upstream};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn chunk(index: u32, delta: &Value, finish: &Value) -> String {
    let choice = json!({"index": index, "delta": delta, "finish_reason": finish});
    format!("data: {}\n\n", json!({"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}))
}

/// Environment of a developer's machine: a proxy for plain HTTP would read the key.
#[test]
fn a_key_does_not_go_to_a_proxy_in_the_clear() {
    let (proxy, at_proxy) = upstream(vec![reply("500 Oops", "", "{}")]);
    let (port, seen) = upstream(vec![reply("500 Oops", "", "{}")]);
    let through = format!("http://127.0.0.1:{proxy}");
    let refit = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].iter().fold(Refit::new(), |refit, name| refit.env(name, &through));
    let refit = refit.env("NO_PROXY", "").env("no_proxy", "").env("UP_KEY", "sk-canary-5f3a");
    refit.write("refit.toml", format!("[providers.openai]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\n"));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got =
        server.post("/v1/chat/completions", Some(&key), &json!({"model": "openai/m", "messages": [{"role": "user", "content": "hi"}]}));
    assert!(at_proxy.try_recv().is_err(), "the proxy was called: {got:?}");
    assert!(seen.recv_timeout(Duration::from_secs(5)).expect("the service was called").head.contains("sk-canary-5f3a"));
}

/// The status has come, its explanation does not: the caller gets the status in time.
#[test]
fn an_errors_body_that_stalls_is_not_waited_for() {
    for streamed in [false, true] {
        let head = "HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{\"error\":";
        let began = Instant::now();
        let (got, row, seen) = ask(hanging(head), "timeout_s = 1\nidle_timeout_s = 1", &body("openai/m", json!({"stream": streamed})));
        assert!(matches!(got.status, 502 | 504), "{got:?}");
        assert!(began.elapsed() < Duration::from_secs(20) && row["status"] == got.status, "{row}");
        assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed);
    }
}

#[test]
fn a_stream_that_is_cut_after_one_of_two_choices_is_not_whole() {
    let events = [
        chunk(0, &json!({"role": "assistant", "content": "a"}), &Value::Null),
        chunk(1, &json!({"role": "assistant", "content": "b"}), &Value::Null),
        chunk(0, &json!({}), &json!("stop")),
    ];
    let (got, row, _) = ask(stream(&events.concat(), 50), "", &body("openai/m", json!({"stream": true, "n": 2})));
    assert!(got.body.contains("upstream_error") && !got.body.contains("[DONE]"), "{got:?}");
    assert_eq!(row["status"], 502, "{row}");
}

#[test]
fn odd_names_of_models_are_refused_in_the_callers_protocol() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for path in ["/v1/models/%FF", "/v1/models/mock%2F%C3%28", "/v1/models/%00", "/v1/models/mock%2Fecho%0Ax"] {
        let reply = server.get(path, Some(&key));
        assert!((400..500).contains(&reply.status), "{reply:?}");
        assert!(reply.json()["error"]["message"].is_string() && reply.header("x-request-id").is_some(), "{path}: {reply:?}");
    }
}

fn get_with(server: &Server, path: &str, key: Option<&str>, headers: &[(&str, &str)]) -> Reply {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{key}{headers}\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, headers: Vec::new(), body: body.to_string() }
}

#[test]
fn errors_of_models_have_anthropics_shape_where_its_header_is_sent() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let version = [("anthropic-version", "2023-06-01")];
    let cases =
        [("/v1/models/mock%2Fother", Some(key.as_str()), 404, "not_found_error"), ("/v1/models", None, 401, "authentication_error")];
    for (path, key, status, kind) in cases {
        let reply = get_with(&server, path, key, &version);
        let error = reply.json();
        assert_eq!((reply.status, &error["type"], &error["error"]["type"]), (status, &json!("error"), &json!(kind)), "{path}: {error}");
    }
}

#[test]
fn embeddings_that_are_not_one_for_each_text_are_no_answer() {
    let vector = |index: u32| json!({"object": "embedding", "index": index, "embedding": [0.5]});
    for data in [json!([vector(0)]), json!([]), json!([vector(0), vector(1), vector(2)])] {
        let answer = json!({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}});
        let (port, _seen) = upstream(vec![reply("200 OK", "", &answer.to_string())]);
        let refit = before(port, "");
        let (key, server) = (refit.key(), refit.serve(&[]));
        let got = server.post("/v1/embeddings", Some(&key), &json!({"model": "openai/m", "input": ["a", "b"]}));
        assert_eq!(got.status, 502, "{data}: {got:?}");
    }
}

/// A key by which `serde_json` marks its own values; as a caller's it must mean nothing.
#[test]
fn private_keys_of_the_json_library_do_no_harm() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for private in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
        // A value of one word, of no word, and one that is a message.
        for value in [json!("["), json!(7), json!("{\"role\":\"user\",\"content\":\"x\"}")] {
            let mut odd = serde_json::Map::new();
            odd.insert(private.into(), value);
            let odd = Value::Object(odd);
            let messages = json!([{"role": "user", "content": "x"}]);
            let refused = [
                (CHAT, json!({"model": "mock/echo", "messages": [odd]})),
                (CHAT, json!({"model": "mock/echo", "messages": odd})),
                ("/v1/messages", json!({"model": "mock/echo", "max_tokens": 5, "messages": [odd]})),
                ("/v1/messages", json!({"model": "mock/echo", "max_tokens": 5, "messages": messages, "tools": [odd]})),
                ("/v1/responses", json!({"model": "mock/echo", "input": [odd]})),
                ("/v1/embeddings", json!({"model": "mock/echo", "input": odd})),
                ("/v1/completions", json!({"model": "mock/echo", "prompt": odd})),
                (CHAT, odd.clone()),
            ];
            for (path, body) in refused {
                let reply = server.post(path, Some(&key), &body);
                assert!((400..500).contains(&reply.status), "{path} {body}: {reply:?}");
            }
            // Where nobody reads the value, it may pass; it may not break anything.
            for fields in [json!({"tools": [odd]}), json!({"metadata": {"a": odd}}), json!({"made_up": [odd]})] {
                let reply = server.post(CHAT, Some(&key), &body("mock/echo", fields.clone()));
                assert!(reply.status < 500, "{fields}: {reply:?}");
            }
        }
    }
    assert_eq!(server.get("/health", None).status, 200);
}

#[test]
fn what_json_cannot_hold_is_refused_by_the_name_of_its_field() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    let deep = "[".repeat(3_000);
    let cases = [
        (r#"{"model": "mock/echo", "temperature": NaN, "messages": []}"#.to_string(), "temperature"),
        (r#"{"model": "mock/echo", "messages": [], "temperature": 1e400}"#.to_string(), "temperature"),
        (r#"{"model": "mock/echo", "messages": [], "top_p": -Infinity}"#.to_string(), "top_p"),
        (format!(r#"{{"model": "mock/echo", "messages": {deep}"#), "messages"),
        (format!(r#"{{"model": "mock/echo", "messages": [], "metadata": {deep}"#), "metadata"),
    ];
    for (body, named) in cases {
        for path in [CHAT, "/v1/messages"] {
            let reply = server.post_bytes(path, Some(&key), body.as_bytes());
            let error = reply.json();
            let says = error["error"]["param"] == named || error["error"]["message"].as_str().is_some_and(|text| text.contains(named));
            assert!(reply.status == 400 && says, "{path}: {named} is not named: {error}");
        }
    }
}

/// A model's name is part of a path upstream; it must not lead out of it.
#[test]
fn a_models_name_does_not_leave_its_segment_upstream() {
    for provider in ["azure", "gemini"] {
        for name in [".", "..", "a/../../b", "%2e%2e", "..%2F..", "a?b#c"] {
            let (port, seen) = upstream(vec![reply("500 Oops", "", "{}")]);
            let refit = before(port, "");
            let config = std::fs::read_to_string(refit.path().join("refit.toml")).expect("the file");
            refit.write("refit.toml", config + "api_version = \"2024-10-21\"\n");
            let (key, server) = (refit.key(), refit.serve(&[]));
            let got = server.post(CHAT, Some(&key), &body(&format!("{provider}/{name}"), json!({})));
            match seen.recv_timeout(Duration::from_millis(if got.status < 500 { 100 } else { 10_000 })) {
                Err(_) => assert!((400..500).contains(&got.status), "{provider}/{name}: {got:?}"),
                Ok(seen) => {
                    let path = seen.target.split('?').next().unwrap_or_default();
                    let (begin, end, slashes) = match provider {
                        "azure" => ("/openai/deployments/", "/chat/completions", 5),
                        _ => ("/models/", ":generateContent", 2),
                    };
                    let whole = path.starts_with(begin) && path.ends_with(end) && path.matches('/').count() == slashes;
                    assert!(whole && path.len() > begin.len() + end.len(), "{provider}/{name}: {}", seen.target);
                }
            }
        }
    }
}

#[test]
fn a_models_name_cannot_forge_a_line_of_the_log() {
    let (port, _seen) = upstream(vec![reply("500 Oops", "", "{}")]);
    let refit = before(port, "");
    let key = refit.key();
    let log = refit.path().join("stderr.txt");
    let file = std::fs::File::create(&log).expect("a file");
    let mut child = refit
        .command(&["serve", "--port", "0"])
        .env("REFIT_LOG", "trace")
        .stdout(std::process::Stdio::piped())
        .stderr(file)
        .spawn()
        .expect("refit serve starts");
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().expect("stdout is piped"));
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("a line");
    let ready: Value = serde_json::from_str(&line).expect("JSON");
    let address = ready["url"].as_str().or(ready["address"].as_str()).expect("an address").trim_end_matches('/');
    let url = format!("http://{}", address.trim_start_matches("http://"));
    for model in ["openai/a\nFORGED level=error", "FORGED\r\nFORGED", "openai/\u{1b}[2J\u{2028}FORGED\n\nFORGED"] {
        let reply = http_with(&format!("{url}{CHAT}"), Some(&key), &[], body(model, json!({})).to_string().into_bytes());
        assert!(reply.status >= 400, "{reply:?}");
    }
    let _ = child.kill();
    let _ = child.wait();
    let text = std::fs::read_to_string(&log).expect("the log");
    let forged: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with("FORGED")).collect();
    assert!(forged.is_empty() && !text.contains('\u{1b}'), "{forged:?}");
}
