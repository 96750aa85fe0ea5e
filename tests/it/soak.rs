//! A long run of everything at once: what the server takes of the machine does not grow (reliability.md, Concurrency and time 33). How
//! its memory and its times went is told, and asserted in the long form only: a short one says more about the machine.

use crate::rig::{CHAT, Ended, Line, STREAM, chat, descriptors, event, full, gauge, memory_mib, provider, says, upstream, wait_for};
use crate::support::{Refit, Server};
use serde_json::json;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much more memory the last third of the run may take than the first. Allocators keep some of what they were given.
const GROWTH_MIB: u64 = 8;
/// The least that a third of the run does, however long that takes; a row of each that stayed would be more than what is let through.
const CALLS: usize = 5_000;
/// Between two calls of a caller in the long form, which would fill a disk of twenty gigabytes with its log otherwise.
const PAUSE: Duration = Duration::from_millis(5);
/// Looks in a third.
const LOOKS: usize = 10;

/// What the callers have seen.
#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    /// When a whole reply ended, and how long it took.
    took: Mutex<Vec<(Instant, Duration)>>,
    over: AtomicBool,
}

/// A caller of one kind, until the run is over: whole and streamed replies, a large prompt, a failing target, a wrong key, one who leaves.
fn caller(server: &Server, key: &str, kind: usize, seen: &Seen) {
    let large = "word ".repeat(20_000);
    let requests = [
        (chat("up/m", &"word ".repeat(200), json!({})), 200),
        (chat("up/m", "hi", json!({"stream": true})), 200),
        (chat("up/m", &large, json!({})), 200),
        // In time its breaker opens.
        (chat("down/m", "fail", json!({})), 502),
        (chat("nowhere/m", "hi", json!({})), 404),
        (chat("up/m", "hi", json!({"temperature": -1})), 400),
    ];
    let requests = requests.map(|(request, status)| (request.to_string(), status));
    let mut line = Line::to(server);
    for round in 0.. {
        if seen.over.load(Ordering::Relaxed) {
            return;
        }
        // Most are of the common kind.
        if full() {
            std::thread::sleep(PAUSE);
        }
        let (request, status) = &requests[if round % 8 == 0 { (kind + round / 8) % requests.len() } else { 0 }];
        let began = Instant::now();
        line.send("POST", CHAT, Some(key), request).expect("sent");
        if round % 97 == 0 {
            // Gone before the reply.
            line = Line::to(server);
            continue;
        }
        let reply = line.reply().expect("a reply");
        assert!(reply.status == *status || (*status == 502 && reply.status == 503), "{reply:?}");
        seen.calls.fetch_add(1, Ordering::Relaxed);
        seen.took.lock().expect("list").push((began, began.elapsed()));
    }
}

fn answers(stream: &mut std::net::TcpStream, body: &str) -> bool {
    if body.contains("\"fail\"") {
        let _ = stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}");
        return true;
    }
    if body.contains("\"stream\":true") {
        let end = json!({"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        let _ = stream.write_all(format!("{STREAM}{}{}data: {end}\n\ndata: [DONE]\n\n", event("a"), event("b")).as_bytes());
        return false;
    }
    says(stream, "words")
}

/// The 99th of 100 times, of those that began in a span.
fn p99(took: &[(Instant, Duration)], from: Instant, to: Instant) -> Duration {
    let mut of: Vec<_> = took.iter().filter(|(began, _)| (from..to).contains(began)).map(|(_, took)| *took).collect();
    of.sort_unstable();
    of.get(of.len() * 99 / 100).copied().unwrap_or_default()
}

#[test]
fn a_long_run_of_everything_takes_no_more_at_its_end_than_at_its_beginning() {
    let third = Duration::from_secs(if full() { 200 } else { 8 });
    let (up, refit) = (upstream(answers), Refit::new());
    refit.write("refit.toml", provider(up.port) + &provider(up.port).replace("providers.up", "providers.down"));
    let (key, server, seen) = (refit.key(), refit.serve(&[]), Seen::default());
    let (mut memory, mut files, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    std::thread::scope(|scope| {
        let _ended = Ended(&seen.over);
        for kind in 0..8 {
            let (server, key, seen) = (&server, &key, &seen);
            scope.spawn(move || caller(server, key, kind, seen));
        }
        // The first third is to warm up.
        for look in 1..=3 * LOOKS {
            std::thread::sleep((began + third.mul_f64(look as f64 / LOOKS as f64)).saturating_duration_since(Instant::now()));
            wait_for("enough calls", || seen.calls.load(Ordering::Relaxed) >= look * CALLS / LOOKS);
            memory.push(memory_mib(&server, "VmRSS"));
            files.push(descriptors(&server));
            ends.push(Instant::now());
        }
    });
    let least = |values: &[u64]| values.iter().copied().min().unwrap_or_default();
    let (before, after) = (least(&memory[LOOKS..2 * LOOKS]), least(&memory[2 * LOOKS..]));
    assert!(!full() || after <= before + GROWTH_MIB, "memory grew from {before} to {after} MiB: {memory:?}");
    assert!(files[3 * LOOKS - 1] <= files[LOOKS] + 20, "descriptors: {files:?}");
    let took = seen.took.into_inner().expect("list");
    let [first, second, last] = [LOOKS, 2 * LOOKS, 3 * LOOKS].map(|look| ends[look - 1]);
    let (early, late) = (p99(&took, first, second), p99(&took, second, last));
    assert!(!full() || late < 5 * early.max(Duration::from_millis(50)), "p99 rose from {early:?} to {late:?}");
    wait_for("the end of every call", || gauge(&server, "refit_requests_in_flight") == 0.0);
    wait_for("every row", || gauge(&server, "refit_log_rows_pending") == 0.0);
    assert_eq!(gauge(&server, "refit_log_rows_dropped_total"), 0.0);
    println!("{} calls, memory from {before} to {after} MiB of {memory:?}, p99 {early:?} and {late:?}", seen.calls.into_inner());
}
