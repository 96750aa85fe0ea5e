//! The orderly end: what runs goes on for a while, what is new is not taken, and every row of the log is in the database.

use crate::rig::{CHAT, Line, STREAM, chat, closes_within, event, gauge, provider, rows_in, says, signal, upstream, wait_for};
use crate::support::Refit;
use rustix::process::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sends a stream of the mock provider and leaves the reply on the wire.
fn begin(line: &mut Line, key: &str, words: usize, delay_ms: u64) {
    let request = chat("mock/echo", &"word ".repeat(words), json!({"stream": true, "mock": {"chunk_delay_ms": delay_ms}}));
    line.send("POST", CHAT, Some(key), &request.to_string()).expect("sent");
}

fn statuses(refit: &Refit, status: u16) -> i64 {
    let database = rusqlite::Connection::open(refit.data_dir().join("refit.db")).expect("the database");
    database.query_row("SELECT COUNT(*) FROM requests WHERE status = ?", [status], |row| row.get(0)).expect("a count")
}

#[test]
fn five_hundred_live_streams_end_whole_or_with_an_error_event_and_none_is_lost_from_the_log() {
    const STREAMS: usize = 500;
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 12\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    // The odd ones end by themselves within the time, the even ones never would.
    let mut lines: Vec<_> = (0..STREAMS).map(|_| Line::to(&server)).collect();
    for (n, line) in lines.iter_mut().enumerate() {
        if n % 2 == 0 { begin(line, &key, 5_000, 500) } else { begin(line, &key, 40, 100) }
    }
    // A request that nobody has read yet would be an idle connection to the server, and closed.
    lines.iter_mut().for_each(Line::begun);
    let began = Instant::now();
    signal(&server, Signal::TERM);
    let readers: Vec<_> = lines
        .into_iter()
        .map(|mut line| std::thread::Builder::new().stack_size(256 << 10).spawn(move || line.reply()).expect("a thread"))
        .collect();
    let (mut whole, mut cut) = (0, 0);
    for reader in readers {
        let reply = reader.join().expect("read").expect("every stream ends in good order");
        let last = reply.body.trim_end().rsplit("data: ").next().unwrap_or_default().to_string();
        match last.as_str() {
            "[DONE]" => whole += 1,
            last if last.contains("\"unavailable\"") => cut += 1,
            other => panic!("a stream ended with {other:?}"),
        }
    }
    assert_eq!(server.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!((whole, cut), (STREAMS / 2, STREAMS / 2));
    assert_eq!(rows_in(&refit.data_dir()), (STREAMS as i64, "ok".to_string()));
    assert_eq!((statuses(&refit, 200), statuses(&refit, 503)), (STREAMS as i64 / 2, STREAMS as i64 / 2));
    assert_eq!(std::fs::read_dir(refit.data_dir().join("requests")).expect("the directory").count(), 0, "nothing waits in segments");
}

#[test]
fn ready_says_no_at_once_and_what_comes_in_the_time_of_notice_is_answered() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nnotice_s = 4\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    assert_eq!(server.get("/ready", None).status, 200);
    signal(&server, Signal::TERM);
    wait_for("the end of readiness", || server.get("/ready", None).status == 503);
    let refused = server.get("/ready", None);
    assert!(refused.body.contains("shutting down"), "{refused:?}");
    assert_eq!(server.get("/health", None).status, 200, "it is alive");
    assert_eq!(server.get("/status", None).json()["status"], "draining");
    assert_eq!(server.post(CHAT, Some(&key), &chat("mock/echo", "hi", json!({}))).status, 200);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn no_connection_is_taken_any_more_idle_ones_close_and_busy_ones_say_so() {
    let refit = Refit::new();
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let (mut idle, mut busy) = (Line::to(&server), Line::to(&server));
    idle.send("GET", "/health", None, "").expect("sent");
    assert_eq!(idle.reply().expect("a reply").status, 200);
    let request = chat("mock/echo", "hi", json!({"mock": {"delay_ms": 2_000}}));
    busy.send("POST", CHAT, Some(&key), &request.to_string()).expect("sent");
    wait_for("the call", || gauge(&server, "refit_requests_in_flight") == 1.0);
    signal(&server, Signal::TERM);
    assert!(closes_within(&mut idle.stream, Duration::from_millis(1_500)), "an idle connection stays open");
    wait_for("the end of listening", || Line::try_to(&server).is_err());
    let reply = busy.reply().expect("the running call is answered");
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{reply:?}");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_plain_call_that_outlasts_the_time_gets_a_503_and_its_row() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 1\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let mut lines = [Line::to(&server), Line::to(&server), Line::to(&server)];
    // The lane; what hyper has; and another protocol.
    let paths = [CHAT, "/v1/chat/completions?x", "/v1/messages"];
    let request = chat("mock/echo", "hi", json!({"max_tokens": 9, "mock": {"delay_ms": 600_000}})).to_string();
    for (line, path) in lines.iter_mut().zip(paths) {
        line.send("POST", path, Some(&key), &request).expect("sent");
    }
    wait_for("the calls", || gauge(&server, "refit_requests_in_flight") == 3.0);
    signal(&server, Signal::TERM);
    let replies = lines.each_mut().map(|line| line.reply().expect("a reply"));
    assert_eq!(server.wait(), Some(0));
    assert_eq!(statuses(&refit, 503), 3);
    for (reply, path) in replies.iter().zip(paths) {
        let messages = path == "/v1/messages";
        let (field, word) = if messages { ("type", "overloaded_error") } else { ("code", "unavailable") };
        assert_eq!((reply.status, &reply.json()["error"][field]), (503, &json!(word)), "{reply:?}");
        assert_eq!(reply.json()["type"] == "error", messages, "{reply:?}");
        let id = reply.header("x-request-id").unwrap_or_else(|| panic!("no id: {reply:?}"));
        assert_eq!(refit.run(&["logs", "show", id, "--json"]).expect(0).json()["error_code"], "unavailable");
    }
}

/// The upstream has not even sent a head: the call waits as it would in a queue.
#[test]
fn a_stream_that_waits_for_its_first_byte_is_told_and_the_upstream_let_go() {
    let (sender, closed) = std::sync::mpsc::channel();
    let up = upstream(move |stream: &mut TcpStream, _| {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let _ = sender.send(matches!(stream.read(&mut [0]), Ok(0)));
        false
    });
    let refit = Refit::new();
    refit.write("refit.toml", format!("[server]\ndrain_s = 1\n{}", provider(up.port)));
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let mut line = Line::to(&server);
    line.send("POST", CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": true})).to_string()).expect("sent");
    wait_for("the call", || up.requests.load(Ordering::SeqCst) == 1);
    signal(&server, Signal::TERM);
    let reply = line.reply().expect("a reply");
    assert!(reply.body.contains("unavailable"), "{reply:?}");
    assert!(closed.recv_timeout(Duration::from_secs(30)).expect("the upstream looks"), "the call upstream goes on");
    assert_eq!(server.wait(), Some(0));
    assert_eq!(rows_in(&refit.data_dir()), (1, "ok".to_string()));
}

/// The connection upstream was opened by a thread that has nothing left to serve when the stream of another one is on it.
#[test]
fn a_stream_goes_on_over_a_connection_that_an_idle_thread_opened() {
    let stopped = Arc::new(AtomicBool::new(false));
    let is_stopped = stopped.clone();
    let up = upstream(move |stream: &mut TcpStream, body| {
        if !body.contains("stream") {
            return says(stream, "first");
        }
        let _ = stream.write_all(format!("{STREAM}{}", event("a")).as_bytes());
        while !is_stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // By now an idle thread would be gone.
        std::thread::sleep(Duration::from_secs(1));
        let _ = stream.write_all(format!("{}data: [DONE]\n\n", event("b")).as_bytes());
        false
    });
    // A key outside of ASCII is for the client that encrypted connections go over, too, whose connections all threads share.
    let refit = Refit::new().env("UP_KEY", "k\u{e9}y");
    refit.write("refit.toml", format!("{}api_key = {{ env = \"UP_KEY\" }}\n", provider(up.port)));
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    // Connections are handed to the threads in turn.
    let (mut first, mut second) = (Line::to(&server), Line::to(&server));
    first.send("POST", CHAT, Some(&key), &chat("up/m", "hi", json!({})).to_string()).expect("sent");
    assert_eq!(first.reply().expect("a reply").status, 200);
    second.send("POST", CHAT, Some(&key), &chat("up/m", "hi", json!({"stream": true})).to_string()).expect("sent");
    second.begun();
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "both calls are on one connection");
    signal(&server, Signal::TERM);
    assert!(closes_within(&mut first.stream, Duration::from_secs(10)), "the first connection is idle");
    stopped.store(true, Ordering::SeqCst);
    let reply = second.reply().expect("the stream ends in good order");
    assert!(reply.body.contains("\"b\"") && reply.body.trim_end().ends_with("[DONE]"), "{reply:?}");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_second_signal_cuts_at_once() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 600\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    let mut line = Line::to(&server);
    begin(&mut line, &key, 5_000, 200);
    wait_for("the call", || gauge(&server, "refit_requests_in_flight") == 1.0);
    signal(&server, Signal::TERM);
    wait_for("the end of listening", || Line::try_to(&server).is_err());
    let began = Instant::now();
    signal(&server, Signal::INT);
    let reply = line.reply().expect("the stream ends in good order");
    assert!(reply.body.contains("unavailable"), "{reply:?}");
    assert_eq!(server.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(rows_in(&refit.data_dir()), (1, "ok".to_string()));
}

#[test]
fn a_third_signal_ends_where_it_stands_and_the_rows_wait_for_the_next_start() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 600\n");
    let (key, mut server) = (refit.key(), refit.serve(&[]));
    // A caller that takes nothing keeps its connection through the cut.
    let mut stuck = Line::to(&server);
    begin(&mut stuck, &key, 90_000, 0);
    wait_for("the call", || gauge(&server, "refit_requests_in_flight") == 1.0);
    let reply = server.post(CHAT, Some(&key), &chat("mock/echo", "hi", json!({})));
    let id = reply.header("x-request-id").expect("an id").to_string();
    for _ in 0..3 {
        signal(&server, Signal::TERM);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.wait(), Some(130));
    let next = refit.serve(&[]);
    drop(next);
    let row = refit.run(&["logs", "show", &id, "--json"]).expect(0).json();
    assert_eq!(row["status"], 200);
}

#[test]
fn a_signal_to_stop_in_the_middle_of_reloads_ends_in_good_order() {
    for round in 0..5u64 {
        let refit = Refit::new();
        refit.write("refit.toml", "[server]\ndrain_s = 1\n");
        let (key, mut server) = (refit.key(), refit.serve(&[]));
        assert_eq!(server.post(CHAT, Some(&key), &chat("mock/echo", "hi", json!({}))).status, 200);
        for n in 2..12 {
            refit.write("refit.toml", format!("[server]\ndrain_s = {n}\n"));
            signal(&server, Signal::HUP);
            std::thread::sleep(Duration::from_millis(round));
        }
        signal(&server, Signal::TERM);
        assert_eq!(server.wait(), Some(0));
        assert_eq!(rows_in(&refit.data_dir()), (1, "ok".to_string()));
        refit.run(&["audit", "verify"]).expect(0);
    }
}

/// Nothing of a stopped server is left that a second one would trip over.
#[test]
fn the_next_server_takes_over_at_once() {
    let refit = Refit::new();
    let key = refit.key();
    for n in 1..=3 {
        let mut server = refit.serve(&[]);
        let mut line = Line::to(&server);
        begin(&mut line, &key, 10, 10);
        line.reply().expect("a whole stream");
        line.stream.flush().expect("open");
        signal(&server, Signal::TERM);
        assert_eq!(server.wait(), Some(0));
        assert_eq!(rows_in(&refit.data_dir()), (n, "ok".to_string()));
    }
}
