//! What happens when a target fails, stalls, is full or is too slow: retries, breakers, time limits, queues and hedges, counted at
//! the upstreams.

use crate::places::{Act, Place, Up, behind, behind_with, body, broken, place, says, up, wait_until, words};
use crate::support::Reply;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn code(reply: &Reply) -> String {
    reply.json()["error"]["code"].as_str().unwrap_or_default().to_string()
}

fn busy(retry_after: &'static str) -> Act {
    Act::Refuse("429 Too Many Requests", retry_after, json!({"error": {"message": "slow down"}}))
}

fn oops() -> Act {
    Act::Refuse("500 Oops", "", json!({"error": {"message": "oops"}}))
}

const STREAM: fn() -> Value = || json!({"stream": true});

#[test]
fn a_failed_call_is_made_again_at_the_same_target_after_a_pause() {
    let a = place(|n, _| if n < 2 { oops() } else { Act::Say("third time") });
    let route = "[routes.r]\ntargets = [\"a/m\"]\nattempts = 3\n[resilience]\nbackoff_ms = 5\n";
    let up = up(behind(&[("a", a.port)], route));
    assert_eq!((words(&up.ask("r")).as_str(), a.calls()), ("third time", 3));
}

#[test]
fn a_target_is_not_asked_again_before_the_time_it_named() {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = times.clone();
    let a = place(move |n, _| {
        noted.lock().expect("nobody panicked").push(Instant::now());
        if n == 0 { busy("retry-after: 1\r\n") } else { Act::Say("now") }
    });
    let up = up(behind(&[("a", a.port)], "[routes.r]\ntargets = [\"a/m\"]\n[resilience]\nbackoff_ms = 1\n"));
    assert_eq!(words(&up.ask("r")), "now");
    let times = times.lock().expect("nobody panicked").clone();
    assert!(times.len() == 2 && times[1] - times[0] >= Duration::from_secs(1), "{times:?}");
}

#[test]
fn a_wait_that_is_too_long_is_handed_to_the_caller() {
    let a = place(|_, _| busy("retry-after: 60\r\n"));
    let up = up(behind(&[("a", a.port)], "[routes.r]\ntargets = [\"a/m\"]\nattempts = 5\n"));
    let got = up.ask("r");
    assert_eq!((got.status, code(&got).as_str(), got.header("retry-after")), (429, "rate_limit_exceeded", Some("60")), "{got:?}");
    // Nobody else asks before that time, either.
    let again = up.ask("r");
    let left: u64 = again.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert!(again.status == 429 && (1..=60).contains(&left) && a.calls() == 1, "{again:?}");
}

#[test]
fn a_target_that_asked_for_quiet_is_not_chosen_by_others() {
    let (a, b) = (place(|_, _| busy("retry-after: 30\r\n")), says("b"));
    let up = up(behind(&[("a", a.port), ("b", b.port)], "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n"));
    (0..5).for_each(|_| assert_eq!(words(&up.ask("r")), "b"));
    assert_eq!((a.calls(), b.calls()), (1, 5));
    // A caller that names the target itself decides itself.
    assert_eq!((up.ask("a/m").status, a.calls()), (429, 2));
}

#[test]
fn overloaded_inside_a_success_falls_over_streamed_and_whole() {
    let error = json!({"error": {"type": "overloaded_error", "message": "busy"}});
    let event = format!("data: {error}\n\n");
    for streamed in [false, true] {
        let (error, event) = (error.clone(), event.clone());
        let a = place(move |n, _| if streamed && n == 0 { Act::Events(event.clone()) } else { Act::Json(error.clone()) });
        let b = place(move |_, _| if streamed { Act::Stream(2) } else { Act::Say("b") });
        let up = up(behind(&[("a", a.port), ("b", b.port)], "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n"));
        for call in 1..=2 {
            let got = up.ask_with("r", json!({"stream": streamed}));
            assert!(got.status == 200 && got.header("x-refit-provider") == Some("b"), "{got:?}");
            assert_eq!((a.calls(), b.calls()), (call, call));
        }
    }
}

#[test]
fn a_stream_that_stalls_before_its_first_piece_falls_over_and_is_closed() {
    let (a, b) = (place(|_, _| Act::Stall(0)), place(|_, _| Act::Stream(3)));
    let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\nfirst_byte_timeout_ms = 200\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], route));
    let got = up.ask_with("r", STREAM());
    assert!(got.status == 200 && got.body.contains("word2") && got.body.contains("[DONE]"), "{got:?}");
    a.wait_for_closed(1);
    let row = up.row(&got);
    assert!(row["attempted"].to_string().contains("upstream_timeout") && row["upstream_ms"].as_f64() >= Some(200.0), "{row}");
}

#[test]
fn a_stream_that_stalls_later_ends_with_an_error_and_nobody_else_is_asked() {
    for sent in [1, 4] {
        let (a, b) = (place(move |_, _| Act::Stall(sent)), place(|_, _| Act::Stream(3)));
        let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n";
        let up = up(behind_with(&[("a", a.port), ("b", b.port)], "idle_timeout_s = 1", route));
        let got = up.ask_with("r", STREAM());
        assert_eq!(got.status, 200);
        assert!(got.body.contains(&format!("word{}", sent - 1)) && got.body.contains("upstream_timeout"), "{got:?}");
        assert!(!got.body.contains("[DONE]"), "{got:?}");
        assert_eq!((a.calls(), b.calls()), (1, 0));
        let row = up.row(&got);
        assert_eq!((&row["status"], &row["attempts"]), (&json!(504), &json!(1)), "{row}");
        a.wait_for_closed(1);
    }
}

/// A gateway whose breakers open after three failures, for this long.
fn breaking(a: &Place, open_ms: u64) -> Up {
    let breaker = format!("[resilience.breaker]\nconsecutive_failures = 3\nopen_ms = {open_ms}\n");
    up(behind(&[("a", a.port)], &breaker))
}

#[test]
fn a_breaker_opens_after_failures_and_answers_at_once() {
    let a = broken();
    let up = breaking(&a, 60_000);
    (0..3).for_each(|_| assert_eq!(up.ask("a/m").status, 502));
    for _ in 0..5 {
        let got = up.ask("a/m");
        assert_eq!((got.status, code(&got).as_str()), (503, "unavailable"), "{got:?}");
        let seconds: u64 = got.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("seconds");
        assert!((1..=60).contains(&seconds), "{got:?}");
        assert!(up.row(&got)["attempts"].is_null());
    }
    assert_eq!(a.calls(), 3);
}

/// The breaker opens at the first failure.
const AT_ONCE: &str = "[resilience.breaker]\nconsecutive_failures = 1\nopen_ms = 60000\n";

#[test]
fn a_target_is_not_blamed_for_time_that_others_used_up() {
    let a = place(|_, _| Act::After(600, Box::new(oops())));
    let b = place(|n, _| if n == 0 { Act::After(1_600, Box::new(Act::Say("late"))) } else { Act::Say("b") });
    let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\ntotal_timeout_ms = 1500\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], &format!("{route}{AT_ONCE}")));
    assert_eq!((code(&up.ask("r")).as_str(), b.calls()), ("upstream_timeout", 1));
    assert_eq!(words(&up.ask("b/m")), "b");
    // All the time there is, on the other hand, is what it may take.
    let slow = place(|_, _| Act::Hang);
    let up = crate::places::up(behind(&[("a", slow.port)], &format!("[routes.r]\ntargets = [\"a/m\"]\ntotal_timeout_ms = 300\n{AT_ONCE}")));
    assert_eq!((code(&up.ask("r")).as_str(), code(&up.ask("r")).as_str()), ("upstream_timeout", "unavailable"));
}

#[test]
fn a_stream_that_delivers_is_not_blamed_for_its_length() {
    let a = place(|_, _| Act::Stall(3));
    let up = up(behind(&[("a", a.port)], &format!("[routes.r]\ntargets = [\"a/m\"]\ntotal_timeout_ms = 300\n{AT_ONCE}")));
    for calls in 1..=2 {
        let got = up.ask_with("r", STREAM());
        assert!(got.body.contains("word2") && got.body.contains("upstream_timeout"), "{got:?}");
        assert_eq!(a.calls(), calls);
    }
}

#[test]
fn one_probe_goes_when_the_breakers_time_is_over_and_its_success_closes_it() {
    let healed = Arc::new(AtomicBool::new(false));
    let heals = healed.clone();
    let a = place(move |_, _| if heals.load(SeqCst) { Act::After(600, Box::new(Act::Say("well"))) } else { oops() });
    let up = breaking(&a, 300);
    (0..3).for_each(|_| assert_eq!(up.ask("a/m").status, 502));
    healed.store(true, SeqCst);
    std::thread::sleep(Duration::from_millis(350));
    let replies = up.at_once(8, "a/m");
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{replies:?}");
    assert_eq!(a.calls(), 4, "one probe");
    assert!(up.at_once(8, "a/m").iter().all(|reply| reply.status == 200), "closed");
}

#[test]
fn a_probe_that_fails_opens_the_breaker_for_longer() {
    let a = broken();
    let up = breaking(&a, 200);
    (0..3).for_each(|_| assert_eq!(up.ask("a/m").status, 502));
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!((up.ask("a/m").status, a.calls()), (502, 4));
    std::thread::sleep(Duration::from_millis(220));
    assert_eq!((up.ask("a/m").status, a.calls()), (503, 4), "twice as long now");
}

#[test]
fn callers_that_leave_do_not_open_a_breaker() {
    let a = place(|n, _| if n < 6 { Act::Hang } else { Act::Say("well") });
    let up = breaking(&a, 60_000);
    for n in 1..=6 {
        up.leave("a/m", json!({}), || a.wait_for_calls(n));
        a.wait_for_closed(n);
    }
    assert_eq!(words(&up.ask("a/m")), "well");
}

#[test]
fn a_caller_that_leaves_its_probe_makes_room_for_another() {
    let a = place(|n, _| match n {
        0..=2 => oops(),
        3 => Act::Hang,
        _ => Act::Say("well"),
    });
    let up = breaking(&a, 200);
    (0..3).for_each(|_| assert_eq!(up.ask("a/m").status, 502));
    std::thread::sleep(Duration::from_millis(250));
    up.leave("a/m", json!({}), || a.wait_for_calls(4));
    a.wait_for_closed(1);
    wait_until(|| up.ask("a/m").status == 200, "another probe");
}

#[test]
fn streams_that_break_after_their_first_piece_count_for_the_breaker() {
    let a = place(|_, _| Act::Events("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n".into()));
    let breaker = "[resilience.breaker]\nconsecutive_failures = 100\nmin_calls = 6\nopen_ms = 60000\n";
    let up = up(behind(&[("a", a.port)], breaker));
    let broken = (0..20).take_while(|_| up.ask_with("a/m", STREAM()).status == 200).count();
    assert!((3..=6).contains(&broken) && a.calls() == broken, "{broken} of {}", a.calls());
}

#[test]
fn the_retry_budget_bounds_what_an_outage_adds() {
    let a = broken();
    let route = "[routes.r]\ntargets = [\"a/m\"]\nattempts = 4\n[resilience]\nbackoff_ms = 0\n[resilience.breaker]\nenabled = false\n";
    let up = up(behind(&[("a", a.port)], route));
    let mut line = up.line();
    (0..100).for_each(|_| assert_eq!(line.ask(&body("r", json!({}))).0, 502));
    // 100 requests, 20 % of them, and the least of 10 in each ten seconds that the loop may take.
    assert!((110..=150).contains(&a.calls()), "{} calls", a.calls());
}

#[test]
fn a_dead_target_costs_a_route_a_few_calls_and_no_request() {
    let (a, b) = (broken(), says("b"));
    let up = up(behind(&[("a", a.port), ("b", b.port)], "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n"));
    let mut line = up.line();
    (0..100).for_each(|_| assert_eq!(line.ask(&body("r", json!({}))).0, 200));
    // The breaker opens after five, and lets a probe through after two seconds, then four.
    assert!(b.calls() == 100 && a.calls() <= 10, "{} and {} calls", a.calls(), b.calls());
}

#[test]
fn when_every_target_rests_the_answer_comes_at_once_with_the_time() {
    let (a, b) = (broken(), broken());
    let rules = "[routes.r]\ntargets = [\"a/m\", \"b/m\"]\n[resilience.breaker]\nconsecutive_failures = 1\nopen_ms = 50000\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], rules));
    assert_eq!(up.ask("r").status, 502);
    let got = up.ask("r");
    assert_eq!((got.status, a.calls(), b.calls()), (503, 1, 1), "{got:?}");
    assert!(got.header("retry-after").is_some() && got.body.contains("r: no target is asked"), "{got:?}");
}

#[test]
fn a_request_has_an_end_whole_and_streamed_by_route_and_by_provider() {
    let cases = [("", "[routes.r]\ntargets = [\"a/m\"]\ntotal_timeout_ms = 700\nattempts = 1\n", "r"), ("total_timeout_s = 1", "", "a/m")];
    for (each, more, model) in cases {
        let a = place(|_, body| if body["stream"] == true { Act::Stall(2) } else { Act::Hang });
        let up = up(behind_with(&[("a", a.port)], each, more));
        let got = up.ask(model);
        assert_eq!((got.status, code(&got).as_str()), (504, "upstream_timeout"), "{got:?}");
        a.wait_for_closed(1);
        let got = up.ask_with(model, STREAM());
        assert!(got.status == 200 && got.body.contains("word1") && got.body.contains("upstream_timeout"), "{got:?}");
        assert_eq!(up.row(&got)["status"], 504);
        a.wait_for_closed(2);
    }
}

#[test]
fn a_first_byte_may_have_less_time_than_a_whole_reply() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000\r\n\r\n{";
    let (port, seen) = crate::upstream::upstream(vec![crate::faults::hanging(""), crate::faults::hanging(head)]);
    let up = up(behind_with(&[("a", port)], "first_byte_timeout_s = 1\ntimeout_s = 3", ""));
    for least_ms in [1_000, 3_000] {
        let began = Instant::now();
        assert_eq!(up.ask("a/m").status, 504);
        assert!(began.elapsed() >= Duration::from_millis(least_ms), "{:?}", began.elapsed());
        assert!(seen.recv_timeout(Duration::from_secs(30)).expect("called").closed);
    }
}

#[test]
fn a_caller_that_leaves_ends_the_call_and_the_retries() {
    // In the second call of a request that has failed once.
    let a = place(|n, _| if n == 0 { oops() } else { Act::Hang });
    let b = says("b");
    let route = "[routes.r]\ntargets = [\"a/m\"]\nattempts = 9\n[resilience]\nbackoff_ms = 1\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], route));
    for (n, streamed) in [false, true].into_iter().enumerate() {
        up.leave("r", json!({"stream": streamed}), || a.wait_for_calls(n + 2));
        a.wait_for_closed(n + 1);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(a.calls(), 3, "nobody goes on for a caller that left");
    let rows = up.refit.run(&["logs", "tail", "--json"]).expect(0).stdout;
    assert!(rows.contains("cancelled"), "{rows}");
}

#[test]
fn no_more_calls_are_under_way_than_a_provider_takes_and_the_wait_is_logged() {
    let a = place(|_, _| Act::After(150, Box::new(Act::Say("a"))));
    let up = up(behind_with(&[("a", a.port)], "max_concurrency = 2", ""));
    let replies = up.at_once(8, "a/m");
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!((a.calls(), a.busiest()), (8, 2));
    let waits: Vec<_> = replies.iter().filter_map(|reply| up.row(reply)["queue_ms"].as_f64()).collect();
    assert!(waits.len() >= 6 && waits.iter().any(|ms| *ms >= 300.0), "{waits:?}");
}

#[test]
fn a_full_queue_is_refused_and_one_that_is_too_slow() {
    let none = "max_queue = 0\nqueue_timeout_ms = 600000";
    for (queue, model) in [(none, "a/m"), ("max_queue = 1\nqueue_timeout_ms = 100", "a/m"), (none, "r")] {
        let a = place(|_, _| Act::Hang);
        let routes = "[routes.r]\ntargets = [\"a/m\"]\n";
        let up = up(behind_with(&[("a", a.port)], &format!("max_concurrency = 1\n{queue}"), routes));
        let mut first = up.line();
        first.send(&body("a/m", json!({})));
        a.wait_for_calls(1);
        let got = up.ask(model);
        assert_eq!((got.status, code(&got).as_str()), (429, "overloaded"), "{queue}: {got:?}");
        assert!(got.header("retry-after").is_some() && a.calls() == 1, "{got:?}");
        drop(first);
    }
}

#[test]
fn what_finds_its_target_full_goes_to_another() {
    let (a, b) = (place(|_, _| Act::Hang), says("b"));
    let route = "[routes.r]\ntargets = [{ model = \"a/m\", max_concurrency = 1 }]\nfallbacks = [\"b/m\"]\n";
    let up = up(behind_with(&[("a", a.port), ("b", b.port)], "max_queue = 0", route));
    let mut first = up.line();
    first.send(&body("r", json!({})));
    a.wait_for_calls(1);
    let got = up.ask("r");
    assert_eq!((words(&got).as_str(), a.calls(), b.calls()), ("b", 1, 1), "{got:?}");
    assert_eq!(up.row(&got)["attempts"], 1, "a call that was not made is none");
}

#[test]
fn a_stream_holds_its_place_until_it_ends_or_its_caller_leaves() {
    let a = place(|n, _| if n == 0 { Act::Stall(1) } else { Act::Stream(1) });
    let up = up(behind_with(&[("a", a.port)], "max_concurrency = 1\nmax_queue = 0", ""));
    let mut first = up.line();
    first.send(&body("a/m", STREAM()));
    first.read_to("word0");
    assert_eq!(up.ask_with("a/m", STREAM()).status, 429);
    drop(first);
    wait_until(|| up.ask_with("a/m", STREAM()).status == 200, "the place to be free");
    assert_eq!(up.ask_with("a/m", STREAM()).status, 200, "one that ended gives it back");
}

#[test]
fn who_waits_in_a_queue_and_leaves_is_not_called_for() {
    let a = place(|n, _| if n == 0 { Act::After(600, Box::new(Act::Say("first"))) } else { Act::Say("later") });
    let up = up(behind_with(&[("a", a.port)], "max_concurrency = 1\nmax_queue = 1", ""));
    let mut first = up.line();
    first.send(&body("a/m", json!({})));
    a.wait_for_calls(1);
    up.leave("a/m", json!({}), || std::thread::sleep(Duration::from_millis(200)));
    first.read_to("HTTP/1.1 200");
    assert_eq!(words(&up.ask("a/m")), "later");
    assert_eq!(a.calls(), 2, "the one that left was never asked for");
}

#[test]
fn a_hedge_answers_for_a_silent_target_which_is_cancelled() {
    for streamed in [false, true] {
        let a = place(|_, _| Act::Hang);
        let b = place(move |_, _| if streamed { Act::Stream(1) } else { Act::Say("b") });
        let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\nhedge_after_ms = 100\n";
        let up = up(behind(&[("a", a.port), ("b", b.port)], route));
        let got = up.ask_with("r", json!({"stream": streamed}));
        assert_eq!((got.status, got.header("x-refit-provider")), (200, Some("b")), "{got:?}");
        a.wait_for_closed(1);
        assert_eq!((a.calls(), b.calls()), (1, 1));
        assert_eq!((&up.row(&got)["attempts"], &up.row(&got)["provider"]), (&json!(2), &json!("b")));
    }
}

#[test]
fn no_hedge_is_made_for_a_target_that_answers_or_when_nothing_pays_for_it() {
    let (a, b) = (place(|n, _| Act::After(if n < 10 { 1 } else { 400 }, Box::new(Act::Say("a")))), says("b"));
    let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\nhedge_after_ms = 200\n";
    let budget = "[resilience]\nretry_budget_min = 0\nretry_budget_percent = 0\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], &format!("{route}{budget}")));
    (0..12).for_each(|_| assert_eq!(words(&up.ask("r")), "a"));
    assert_eq!((a.calls(), b.calls()), (12, 0));
}

#[test]
fn a_hedge_that_fails_does_not_take_the_first_call_with_it() {
    let (a, b) = (place(|_, _| Act::After(500, Box::new(Act::Say("a")))), broken());
    let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\nhedge_after_ms = 50\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], route));
    let got = up.ask("r");
    assert_eq!((words(&got).as_str(), a.calls(), b.calls()), ("a", 1, 1), "{got:?}");
    let row = up.row(&got);
    assert_eq!((&row["provider"], &row["attempts"]), (&json!("a"), &json!(2)), "{row}");
}

#[test]
fn a_caller_that_leaves_takes_both_hedged_calls_along() {
    let (a, b) = (place(|_, _| Act::Hang), place(|_, _| Act::Hang));
    let route = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\nhedge_after_ms = 50\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], route));
    up.leave("r", json!({}), || b.wait_for_calls(1));
    a.wait_for_closed(1);
    b.wait_for_closed(1);
}

#[test]
fn a_flapping_target_loses_no_request_and_nothing_is_asked_twice() {
    let failed = Arc::new(AtomicUsize::new(0));
    let counted = failed.clone();
    let a = place(move |n, _| {
        if n % 3 == 0 {
            counted.fetch_add(1, SeqCst);
            return oops();
        }
        Act::Say("a")
    });
    let b = says("b");
    let up = up(behind(&[("a", a.port), ("b", b.port)], "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n"));
    let mut line = up.line();
    (0..60).for_each(|_| assert_eq!(line.ask(&body("r", json!({}))).0, 200));
    assert_eq!((a.calls(), b.calls()), (60, failed.load(SeqCst)), "each failure is made good once, by the fallback");
}

#[test]
fn who_came_first_is_served_first() {
    let a = place(|n, _| if n == 0 { Act::After(1_500, Box::new(Act::Say("first"))) } else { Act::Say("a") });
    let up = up(behind_with(&[("a", a.port)], "max_concurrency = 1", ""));
    let mut lines: Vec<_> = (0..5).map(|_| up.line()).collect();
    for (n, line) in lines.iter_mut().enumerate() {
        line.send(&body("a/m", json!({"seed": n})));
        a.wait_for_calls(1);
        // In the queue before the next one comes; all are, while the first call lasts.
        std::thread::sleep(Duration::from_millis(200));
    }
    lines.iter_mut().for_each(|line| line.read_to("HTTP/1.1 200"));
    let order: Vec<_> = a.bodies().iter().map(|body| body["seed"].as_u64()).collect();
    assert_eq!(order, (0..5).map(Some).collect::<Vec<_>>());
}
