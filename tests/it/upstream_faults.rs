//! What goes wrong on the way to a provider: reliability.md, Upstream faults 12, 13, 16 and 17, where `upstream.rs`, `faults.rs` and
//! `edges.rs` do not have it yet.

use crate::faults::{ask, before, body};
use crate::rig::{CHAT, Line, STREAM, chat, event, gauge, provider, upstream, wait_for};
use crate::support::{Refit, Reply, Server};
use crate::upstream::{Script, reply};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Planted as the provider's key.
const CANARY: &str = "sk-canary-9f1c";

/// The row of a reply.
fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

/// The error of a stream's last event.
fn last_error(reply: &Reply) -> Value {
    let last = reply.body.trim_end().rsplit("data: ").next().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("no error event ({e}): {reply:?}"));
    error["error"].clone()
}

fn pieces(pieces: &[&str]) -> Script {
    Script { pieces: pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect(), hang: false }
}

/// reliability.md, Upstream faults 12.
#[test]
fn a_stall_after_none_one_or_many_chunks_is_an_idle_timeout_and_no_second_call() {
    for chunks in [0, 1, 5] {
        let up = upstream(move |stream: &mut TcpStream, _| {
            let text: String = (0..chunks).map(|n| event(&format!("w{n} "))).collect();
            stream.write_all(format!("{STREAM}{text}").as_bytes()).expect("sent");
            let _ = stream.read(&mut [0]);
            false
        });
        let refit = Refit::new();
        refit.write("refit.toml", format!("{}idle_timeout_s = 1\n", provider(up.port)));
        let (key, server) = (refit.key(), refit.serve(&[]));
        let got = server.post(CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": true})));
        let row = row(&refit, &got);
        assert_eq!((&row["status"], &row["error_code"]), (&json!(504), &json!("upstream_timeout")), "{chunks}: {row}");
        if chunks == 0 {
            assert_eq!((got.status, &got.json()["error"]["code"]), (504, &json!("upstream_timeout")), "nothing was sent yet: {got:?}");
        } else {
            assert_eq!((got.status, &last_error(&got)["code"]), (200, &json!("upstream_timeout")), "{got:?}");
            let kept = row["reply"]["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_string();
            assert_eq!(kept.split_whitespace().count(), chunks, "what came is in the row: {row}");
        }
        assert_eq!(up.requests.load(Ordering::SeqCst), 1, "nobody is asked again");
    }
}

/// reliability.md, Upstream faults 13: a reset, in the place of an end.
#[test]
fn a_reset_in_the_middle_is_an_error_with_what_came() {
    let up = upstream(move |stream: &mut TcpStream, body| {
        if body.contains("\"stream\":true") {
            stream.write_all(format!("{STREAM}{}", event("half")).as_bytes()).expect("sent");
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{\"id\":").expect("sent");
        }
        std::thread::sleep(Duration::from_millis(200));
        rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO)).expect("a reset at the close");
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got = server.post(CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": true})));
    assert_eq!((got.status, &last_error(&got)["code"]), (200, &json!("upstream_error")), "{got:?}");
    assert_eq!(
        (&row(&refit, &got)["status"], &row(&refit, &got)["reply"]["choices"][0]["message"]["content"]),
        (&json!(502), &json!("half"))
    );
    let got = server.post(CHAT, Some(&key), &chat("up/m", "hi", json!({})));
    assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")), "{got:?}");
}

/// The upstream has said its last word, and listens on.
#[test]
fn a_half_closed_connection_is_not_waited_for() {
    let (sender, ended) = channel();
    let up = upstream(move |stream: &mut TcpStream, body| {
        let begun = if body.contains("\"stream\":true") {
            format!("{STREAM}{}", event("half"))
        } else {
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{\"id\":".to_string()
        };
        stream.write_all(begun.as_bytes()).expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let _ = sender.send(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, server) = (refit.key(), refit.serve(&[]));
    for streamed in [true, false] {
        let got = server.post(CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": streamed})));
        let error = if streamed { last_error(&got) } else { got.json()["error"].clone() };
        assert_eq!(error["code"], "upstream_error", "{got:?}");
        assert_eq!(row(&refit, &got)["status"], 502);
        assert!(ended.recv_timeout(Duration::from_secs(30)).expect("the upstream looks"), "our half is closed, too");
    }
}

/// reliability.md, Upstream faults 13: lengths that lie.
#[test]
fn replies_shorter_than_they_say_are_errors_plain_and_streamed() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let json_head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let stream_head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let (half, piece) = (event("half"), chunk(&event("half")));
    let cases = [
        (false, vec![json_head, "content-length: 900\r\n\r\n", "{\"id\": \"c1\""]),
        (false, vec![json_head, "transfer-encoding: chunked\r\n\r\n", "f\r\n{\"id\": \"c1\""]),
        (false, vec![json_head, "transfer-encoding: chunked\r\n\r\n", "zz\r\n{\"id\": \"c1\""]),
        // The last chunk is missing, in the middle of one, and between two.
        (true, vec![stream_head, &piece]),
        (true, vec![stream_head, &piece, "fff\r\ndata: {\"id\""]),
        (true, vec![stream_head, &piece, "-1\r\n"]),
        (true, vec![STREAM, &half]),
    ];
    for (n, (streamed, script)) in cases.into_iter().enumerate() {
        let (got, row, _) = ask(pieces(&script), "", &body("openai/m", json!({"stream": streamed})));
        let error = if streamed { last_error(&got) } else { got.json()["error"].clone() };
        assert_eq!((&error["code"], &row["status"]), (&json!("upstream_error"), &json!(502)), "case {n}: {got:?}");
        if streamed {
            assert_eq!(row["reply"]["choices"][0]["message"]["content"], "half", "case {n}: {row}");
        }
    }
}

/// Takes a connection and keeps what is sent on it.
fn tap(answer: &'static [u8]) -> (u16, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, taken) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(answer);
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
            let (mut bytes, mut piece) = (Vec::new(), [0; 4_096]);
            while let Ok(n) = stream.read(&mut piece)
                && n > 0
            {
                bytes.extend_from_slice(&piece[..n]);
            }
            let _ = sender.send(bytes);
        }
    });
    (port, taken)
}

/// reliability.md, Upstream faults 16.
#[test]
fn where_tls_fails_no_key_goes_over_the_wire() {
    // No TLS at all, an alert (handshake_failure), and an end.
    let answers: [&[u8]; 3] = [b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", &[0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28], b""];
    for answer in answers {
        let (port, taken) = tap(answer);
        let refit = Refit::new().env("UP_KEY", CANARY);
        let section = |name: &str| {
            format!("[providers.{name}]\nbase_url = \"https://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\ntimeout_s = 5\n")
        };
        refit.write("refit.toml", ["openai", "anthropic", "gemini"].map(section).concat());
        let (key, server) = (refit.key(), refit.serve(&[]));
        for model in ["openai/m", "anthropic/m", "gemini/m"] {
            for streamed in [false, true] {
                let got = server.post(CHAT, Some(&key), &chat(model, "a secret prompt", json!({"stream": streamed})));
                assert!(matches!(got.status, 502 | 504), "{model}: {got:?}");
                assert_eq!(row(&refit, &got)["error_code"], got.json()["error"]["code"]);
                assert!(!got.body.contains(CANARY) && !server.errors().contains(CANARY));
                let bytes = taken.recv_timeout(Duration::from_secs(30)).expect("a connection");
                let text = String::from_utf8_lossy(&bytes);
                assert!(!text.contains(CANARY) && !text.contains("secret prompt") && !text.contains("POST "), "{model}: {text}");
            }
        }
    }
}

#[test]
fn a_name_that_does_not_resolve_is_an_unreachable_upstream() {
    let refit = Refit::new().env("UP_KEY", CANARY);
    // RFC 2606: no such name will ever be.
    refit.write(
        "refit.toml",
        "[providers.openai]\nbase_url = \"http://up.invalid\"\napi_key = { env = \"UP_KEY\" }\nconnect_timeout_s = 5\n",
    );
    let (key, server) = (refit.key(), refit.serve(&[]));
    for streamed in [false, true] {
        let got = server.post(CHAT, Some(&key), &chat("openai/m", "hi", json!({"stream": streamed})));
        assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_unreachable")), "{got:?}");
        assert!(!got.body.contains(CANARY) && !server.errors().contains(CANARY), "{got:?}");
        assert_eq!(row(&refit, &got)["status"], 502);
    }
}

#[test]
fn no_redirect_carries_any_providers_key_elsewhere() {
    let (elsewhere, taken) = tap(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    for model in ["openai/m", "anthropic/m", "gemini/m", "azure/m"] {
        for streamed in [false, true] {
            let location = format!("location: http://127.0.0.1:{elsewhere}/v1/chat/completions\r\n");
            let (port, seen) = crate::upstream::upstream(vec![reply("307 Temporary Redirect", &location, "")]);
            let refit = before(port, "");
            let (key, server) = (refit.key(), refit.serve(&[]));
            let got = server.post(CHAT, Some(&key), &chat(model, "hi", json!({"stream": streamed})));
            assert_eq!((got.status, &got.json()["error"]["code"]), (502, &json!("upstream_error")), "{model}: {got:?}");
            assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").head.contains("sk-up"), "the key reached its own origin");
        }
    }
    assert!(taken.try_recv().is_err(), "somebody went elsewhere");
}

/// A connection that the upstream closes while it is idle costs no call.
#[test]
fn a_kept_connection_that_the_upstream_closed_is_not_an_error() {
    let closing = Mutex::new(0);
    let up = upstream(move |stream: &mut TcpStream, _| {
        let mut n = closing.lock().expect("a count");
        *n += 1;
        // Says nothing of it in the reply: every other time it is closed right afterwards.
        crate::rig::says(stream, "hi") && *n % 2 == 0
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, server) = (refit.key(), refit.serve(&[]));
    for n in 1..=10 {
        let got = server.post(CHAT, Some(&key), &chat("up/m", "hi", json!({})));
        assert_eq!(got.status, 200, "call {n}: {got:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(up.requests.load(Ordering::SeqCst), 10, "and none is asked twice");
}

/// An upstream that takes its connections and never answers holds up nobody else.
#[test]
fn a_hanging_provider_does_not_hold_up_the_others() {
    let hanging = upstream(|stream: &mut TcpStream, _| {
        let _ = stream.read(&mut [0]);
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", format!("{}timeout_s = 60\n", provider(hanging.port)));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let mut waiting: Vec<_> = (0..200).map(|_| Line::to(&server)).collect();
    waiting.iter_mut().for_each(|line| line.send("POST", CHAT, Some(&key), &chat("up/m", "hi", json!({})).to_string()).expect("sent"));
    wait_for("200 calls", || hanging.requests.load(Ordering::SeqCst) == 200);
    for _ in 0..20 {
        assert_eq!(server.post(CHAT, Some(&key), &chat("mock/echo", "hi", json!({}))).status, 200);
    }
    drop(waiting);
    wait_for("the end of all calls", || crate::rig::gauge(&server, "refit_requests_in_flight") == 0.0);
}

/// As servers do that refuse a request by its head: the rest of it is never read.
#[test]
fn a_refusal_that_comes_before_the_request_is_read_is_the_callers_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4_096]);
            let body = json!({"error": {"message": "slow down"}}).to_string();
            let head = format!("HTTP/1.1 429 Busy\r\nretry-after: 60\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
            // Closed over unread bytes: a reset.
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(port));
    let (key, server) = (refit.key(), refit.serve(&[]));
    let got = server.post(CHAT, Some(&key), &chat("up/m", &"x".repeat(16 << 20), json!({})));
    assert_eq!((got.status, got.header("retry-after")), (429, Some("60")), "{}: {}", got.status, got.body);
}

/// reliability.md, Upstream faults 17.
#[test]
fn a_model_that_becomes_another_one_without_a_word_is_told() {
    let answers_as = Arc::new(Mutex::new(("m-2026-01", "fp_1")));
    let named = answers_as.clone();
    let up = upstream(move |stream: &mut TcpStream, body| {
        let (model, fingerprint) = *named.lock().expect("a name");
        let mut reply = json!({"id": "c1", "created": 7, "model": model, "system_fingerprint": fingerprint});
        if body.contains("\"stream\":true") {
            reply["object"] = "chat.completion.chunk".into();
            reply["choices"] = json!([{"index": 0, "delta": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]);
            let _ = stream.write_all(format!("{STREAM}data: {reply}\n\ndata: [DONE]\n\n").as_bytes());
            return false;
        }
        reply["object"] = "chat.completion".into();
        reply["choices"] = json!([{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]);
        let text = reply.to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        stream.write_all(format!("{head}{text}").as_bytes()).is_ok()
    });
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let admin =
        refit.run(&["key", "create", "root", "--role", "admin", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string();
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let asks = |server: &Server, model, fingerprint, fields: Value| {
        *answers_as.lock().expect("a name") = (model, fingerprint);
        assert_eq!(server.post(CHAT, Some(&key), &chat("up/m", "hi", fields)).status, 200);
        // What was seen reaches the database behind the row.
        wait_for("the row's move", || gauge(server, "refit_log_rows_pending") == 0.0);
    };
    let changes = |server: &Server| gauge(server, "refit_model_snapshot_changes_total");
    let told = |server: &Server| {
        let told = server.get("/status", Some(&admin)).json()["models_changed"].clone();
        told.as_array()
            .expect("a list")
            .iter()
            .map(|change| format!("{} {} {}", change["kind"], change["before"], change["now"]))
            .collect::<Vec<_>>()
    };
    asks(&server, "m-2026-01", "fp_1", json!({}));
    asks(&server, "m-2026-01", "fp_1", json!({"stream": true}));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((changes(&server), told(&server)), (0.0, vec![]), "what it has always been is no change");

    asks(&server, "m-2026-02", "fp_1", json!({"stream": true}));
    wait_for("a stream's change", || changes(&server) == 1.0);
    assert_eq!(told(&server), [r#""model" "m-2026-01" "m-2026-02""#]);
    assert!(
        server.errors().contains("up/m answers with model \\\"m-2026-02\\\"")
            || server.errors().contains("up/m answers with model \"m-2026-02\""),
        "{}",
        server.errors()
    );
    asks(&server, "m-2026-01", "fp_2", json!({}));
    wait_for("a fingerprint's change", || changes(&server) == 2.0);
    assert_eq!(server.get("/status", Some(&key)).json().get("models_changed"), None, "nobody else learns what is called");

    // Between two starts, too; and a start alone changes nothing.
    server.kill();
    let server = refit.serve(&[]);
    asks(&server, "m-2026-02", "fp_2", json!({}));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(changes(&server), 0.0);
    asks(&server, "m-2026-03", "fp_2", json!({}));
    wait_for("a change since the last start", || changes(&server) == 1.0);
    let doctor = refit.run(&["doctor", "--json"]).expect(0).json();
    let check =
        doctor["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "hosted models").expect("a check").clone();
    let found = check["found"].as_str().expect("a text");
    assert!(check["state"] == "missing" && found.contains("m-2026-03") && found.contains("fp_2"), "{check}");
}
