//! Routes: which target answers, who stays with which, what comes after a failure, and what a route's name may be.

use crate::places::{Act, CHAT, Place, Up, behind, body, broken, completion, nobody, place, says, up, words};
use crate::releases::measured;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn two(more: &str) -> (Place, Place, Up) {
    let (a, b) = (says("a"), says("b"));
    let refit = behind(&[("a", a.port), ("b", b.port)], more);
    (a, b, up(refit))
}

#[test]
fn weights_hold_over_two_thousand_calls() {
    let (a, b, up) = two("[routes.r]\ntargets = [\"a/m\", { model = \"b/m\", weight = 3 }]\n");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut line = up.line();
                (0..500).for_each(|_| assert_eq!(line.ask(&body("r", json!({}))).0, 200));
            });
        }
    });
    assert_eq!(a.calls() + b.calls(), 2_000, "each is asked once");
    // Binomial with p = 3/4: mean 1,500, standard deviation 19.4; five of them.
    assert!(b.calls().abs_diff(1_500) < 97, "{} of 2000", b.calls());
}

#[test]
fn targets_are_asked_in_order_and_fallbacks_last() {
    let (a, b, c) = (broken(), broken(), says("c"));
    let route = "[routes.r]\ntargets = [\"a/m\", \"b/m\"]\nchoose = \"ordered\"\nfallbacks = [\"c/m\"]\n";
    let up = up(behind(&[("a", a.port), ("b", b.port), ("c", c.port)], route));
    let got = up.ask("r");
    assert_eq!((got.status, words(&got).as_str(), got.header("x-refit-provider")), (200, "c", Some("c")), "{got:?}");
    assert_eq!((a.calls(), b.calls(), c.calls()), (1, 1, 1));
    let row = up.row(&got);
    assert_eq!((&row["attempts"], &row["provider"], &row["route"]), (&json!(3), &json!("c"), &json!("r")), "{row}");
    let attempted: Value = match &row["attempted"] {
        Value::String(text) => serde_json::from_str(text).expect("JSON"),
        list => list.clone(),
    };
    let failed: Vec<_> = attempted.as_array().expect("a list").iter().map(|call| (call["target"].clone(), call["code"].clone())).collect();
    assert_eq!(failed, [(json!("a/m"), json!("upstream_error")), (json!("b/m"), json!("upstream_error"))]);
}

#[test]
fn an_unreachable_target_and_one_that_closes_are_gone_past() {
    let closing = place(|_, _| Act::Close);
    let good = says("good");
    let route = "[routes.r]\ntargets = [\"gone/m\"]\nfallbacks = [\"closing/m\", \"good/m\"]\n";
    let up = up(behind(&[("gone", nobody()), ("closing", closing.port), ("good", good.port)], route));
    for streamed in [false, true] {
        let got = up.ask_with("r", json!({"stream": streamed}));
        // A plain reply where a stream was asked for is an error, too; only the whole one is good here.
        assert_eq!(got.status, if streamed { 502 } else { 200 }, "{got:?}");
    }
    assert_eq!((closing.calls(), good.calls()), (2, 2));
}

/// Which target answers each of sixty users.
fn homes(up: &Up, field: &str) -> BTreeMap<String, String> {
    let mut line = up.line();
    let users = (0..60).map(|n| format!("user-{n}"));
    let home = |user: String| {
        let (status, text) = line.ask(&body("r", json!({field: user})));
        assert_eq!(status, 200, "{text}");
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        (user, reply["choices"][0]["message"]["content"].as_str().expect("words").to_string())
    };
    users.map(home).collect()
}

#[test]
fn a_user_stays_with_a_target_also_after_a_restart_and_when_another_is_added() {
    let places = [says("a"), says("b"), says("c")];
    let ports = [("a", places[0].port), ("b", places[1].port), ("c", places[2].port)];
    let gateway = |targets: &str| up(behind(&ports, &format!("[routes.r]\ntargets = [{targets}]\nsticky = \"user\"\n")));
    let first = gateway("\"a/m\", \"b/m\"");
    let before = homes(&first, "user");
    assert_eq!(before, homes(&first, "user"), "the same again");
    assert!(["a", "b"].iter().all(|home| before.values().filter(|found| found == home).count() >= 12), "both are used: {before:?}");
    assert_eq!(before, homes(&first, "safety_identifier"), "whichever field names the user");
    let after = homes(&gateway("\"b/m\", \"c/m\", \"a/m\""), "user");
    let moved: Vec<_> = before.iter().filter(|(user, home)| after[*user] != **home).map(|(user, _)| after[user].as_str()).collect();
    assert!(moved.iter().all(|home| *home == "c"), "who moved, moved to the new one: {moved:?}");
    assert!((6..=36).contains(&moved.len()), "about a third moves: {}", moved.len());
}

#[test]
fn the_users_of_a_target_that_is_out_go_elsewhere_and_the_others_stay() {
    let (a, b, c) = (says("a"), says("b"), says("c"));
    let out = place(|_, _| Act::Refuse("503 Busy", "", json!({})));
    let route = "[routes.r]\ntargets = [\"a/m\", \"b/m\", \"c/m\"]\nsticky = \"user\"\n";
    let gateway = |a: &Place| up(behind(&[("a", a.port), ("b", b.port), ("c", c.port)], route));
    let before = homes(&gateway(&a), "user");
    let after = homes(&gateway(&out), "user");
    let (left, stayed): (Vec<_>, Vec<_>) = before.iter().partition(|(_, home)| *home == "a");
    assert!(stayed.iter().all(|(user, home)| after[*user] == **home), "{before:?} {after:?}");
    assert!(["b", "c"].iter().all(|home| left.iter().any(|(user, _)| after[*user] == *home)), "they spread: {left:?} {after:?}");
    assert!(out.calls() < 10, "its breaker opens: {} calls", out.calls());
}

#[test]
fn a_conversation_stays_by_its_id_or_by_how_it_began() {
    let (_a, _b, up) = two("[routes.r]\ntargets = [\"a/m\", \"b/m\"]\nsticky = \"conversation\"\n");
    let mut line = up.line();
    let mut home = |fields: Value| line.ask(&body("r", fields)).1.contains("\"content\":\"a\"");
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..20 {
        let begins = json!({"messages": [{"role": "user", "content": format!("topic {n}")}]});
        let goes_on = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": format!("topic {n}")},
            {"role": "assistant", "content": "x"}, {"role": "user", "content": "more"}]});
        let first = home(begins);
        seen.insert(first);
        assert_eq!(home(goes_on), first, "topic {n}");
        let named = home(json!({"metadata": {"conversation_id": format!("c{n}")}}));
        let other_words = json!({"messages": [{"role": "user", "content": "other"}], "prompt_cache_key": format!("c{n}")});
        assert_eq!(home(other_words), named, "conversation {n}");
    }
    assert_eq!(seen.len(), 2, "not all are in one place");
}

#[test]
fn least_latency_goes_where_answers_come_soonest() {
    let slow = place(|_, _| Act::After(80, Box::new(Act::Say("slow"))));
    let fast = says("fast");
    let route = "[routes.r]\ntargets = [\"slow/m\", \"fast/m\"]\nchoose = \"least_latency\"\n";
    let up = up(behind(&[("slow", slow.port), ("fast", fast.port)], route));
    let mut line = up.line();
    (0..40).for_each(|_| assert_eq!(line.ask(&body("r", json!({}))).0, 200));
    assert!(slow.calls() >= 1 && fast.calls() >= 34, "{} slow, {} fast", slow.calls(), fast.calls());
}

#[test]
fn least_busy_spreads_calls_that_are_under_way() {
    let (a, b) = (place(|_, _| Act::After(700, Box::new(Act::Say("a")))), place(|_, _| Act::After(700, Box::new(Act::Say("b")))));
    let route = "[routes.r]\ntargets = [\"a/m\", { model = \"b/m\", weight = 2 }]\nchoose = \"least_busy\"\n";
    let up = up(behind(&[("a", a.port), ("b", b.port)], route));
    let mut lines: Vec<_> = (0..9).map(|_| up.line()).collect();
    for (n, line) in lines.iter_mut().enumerate() {
        line.send(&body("r", json!({})));
        crate::places::wait_until(|| a.calls() + b.calls() > n, "the call");
    }
    assert_eq!((a.calls(), b.calls()), (3, 6), "by weight");
}

#[test]
fn a_name_called_directly_is_asked_once_unless_the_configuration_says_more() {
    for (resilience, calls) in [("", 1), ("[resilience]\nattempts = 3\nbackoff_ms = 1\n", 3)] {
        let a = broken();
        let up = up(behind(&[("a", a.port)], resilience));
        let got = up.ask("a/m");
        assert_eq!((got.status, a.calls()), (502, calls), "{got:?}");
        let row = up.row(&got);
        assert_eq!((&row["attempts"], &row["error_code"]), (&json!(calls), &json!("upstream_error")));
    }
}

#[test]
fn what_the_caller_did_wrong_is_told_and_nobody_else_is_asked() {
    let error = |code: &str| json!({"error": {"message": "no", "code": code}});
    let cases = [
        ("400 Bad", error("invalid"), "invalid_request"),
        ("400 Bad", error("context_length_exceeded"), "context_length_exceeded"),
        ("400 Bad", error("content_filter"), "content_filter"),
        ("413 Large", error("x"), "request_too_large"),
    ];
    for (status, refusal, code) in cases {
        let a = place(move |_, _| Act::Refuse(status, "", refusal.clone()));
        let b = says("b");
        let up = up(behind(&[("a", a.port), ("b", b.port)], "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n"));
        for _ in 0..8 {
            let got = up.ask("r");
            assert_eq!(got.json()["error"]["code"], code, "{got:?}");
        }
        assert_eq!((a.calls(), b.calls()), (8, 0), "{code}: nor does it open the breaker");
    }
}

#[test]
fn an_empty_account_and_a_retired_model_are_gone_past_but_not_asked_again() {
    for refusal in [("402 Pay", json!({"error": {"message": "no credit"}})), ("404 Gone", json!({"error": {"code": "model_not_found"}}))] {
        let a = place(move |_, _| Act::Refuse(refusal.0, "", refusal.1.clone()));
        let b = says("b");
        let routes = "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n[routes.alone]\ntargets = [\"a/m\"]\nattempts = 5\n";
        let up = up(behind(&[("a", a.port), ("b", b.port)], routes));
        assert_eq!(words(&up.ask("r")), "b");
        assert_ne!(up.ask("alone").status, 200);
        assert_eq!((a.calls(), b.calls()), (2, 1));
    }
}

#[test]
fn configured_routes_are_listed_and_unknown_names_point_to_them() {
    let (_a, _b, up) = two("[routes.support]\ntargets = [\"a/m\"]\n");
    let listed = up.server.get("/v1/models", Some(&up.key)).json();
    assert!(listed["data"].as_array().expect("a list").iter().any(|model| model["id"] == "support"), "{listed}");
    assert_eq!(up.server.get("/v1/models/support", Some(&up.key)).status, 200);
    let got = up.ask("suport");
    assert!(got.status == 404 && got.body.contains("did you mean \\\"support\\\""), "{got:?}");
}

/// A gated route `answers` whose live release is `mock/echo`.
fn gated(more: &str) -> Up {
    let refit = behind(&[], more);
    refit.run(&["route", "create", "answers", "--suite", "intake", "--require", "exact_match>=0.5"]).expect(0);
    let release = refit.run(&["release", "create", "--model", "mock/echo", "-P", "seed=1"]).expect(0).stdout.trim().to_string();
    measured(&refit, "run_1", &release, ("intake", "test"), (0.9, 0.8));
    refit.run(&["release", "promote", &release, "--route", "answers"]).expect(0);
    up(refit)
}

#[test]
fn a_gated_route_answers_as_the_target_of_a_configured_one() {
    let up = gated("[routes.front]\ntargets = [\"mock/fail\"]\nfallbacks = [\"answers\"]\n");
    let got = up.ask("front");
    assert_eq!((got.status, words(&got).as_str()), (200, "hi"), "{got:?}");
    assert!(got.header("x-refit-release").is_some_and(|release| release.starts_with("sha256:")), "{got:?}");
    let row = up.row(&got);
    assert_eq!((&row["route"], &row["provider"], &row["attempts"]), (&json!("front"), &json!("mock"), &json!(2)), "{row}");
}

#[test]
fn a_target_that_cannot_be_called_does_not_take_the_others_with_it() {
    let (a, _b, up) =
        two("[routes.r]\ntargets = [\"no-such-gated-route\"]\nfallbacks = [\"a/m\"]\n[routes.none]\ntargets = [\"no-such-gated-route\"]\n");
    assert_eq!((up.ask("r").status, a.calls()), (200, 1));
    let got = up.ask("none");
    assert!(got.status == 404 && got.body.contains("no-such-gated-route"), "{got:?}");
}

#[test]
fn a_name_that_is_two_things_is_refused_and_both_are_named() {
    let up = gated("[routes.answers]\ntargets = [\"mock/echo\"]\n");
    let got = up.ask("answers");
    assert_eq!((got.status, &got.json()["error"]["code"]), (409, &json!("conflict")), "{got:?}");
    assert!(got.body.contains("[routes.answers]") && got.body.contains("gated route") && got.body.contains("rename"), "{got:?}");
}

#[test]
fn a_route_that_cannot_be_is_refused_at_the_start_with_its_line() {
    let refit = behind(&[], "[routes.r]\ntargets = [\"opnai/gpt\"]\nhedge_after_ms = 0\n");
    let done = refit.run(&["serve", "--port", "0"]).expect(2);
    assert!(done.stderr.contains("line 2: routes.r.targets: unknown provider \"opnai\"; did you mean \"openai\"?"), "{}", done.stderr);
    assert!(done.stderr.contains("line 3: routes.r.hedge_after_ms"), "{}", done.stderr);
}

#[test]
fn vectors_come_only_from_targets_with_the_same_model() {
    let vectors = json!({"object": "list", "model": "e", "data": [{"index": 0, "object": "embedding", "embedding": [1.0]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1}});
    let (a, b, c) = (broken(), place(move |_, _| Act::Json(vectors.clone())), says("c"));
    let route = "[routes.r]\ntargets = [\"a/e\"]\nfallbacks = [\"c/other\", \"b/e\"]\n";
    let up = up(behind(&[("a", a.port), ("b", b.port), ("c", c.port)], route));
    let got = up.server.post("/v1/embeddings", Some(&up.key), &json!({"model": "r", "input": "x"}));
    assert_eq!((got.status, a.calls(), b.calls(), c.calls()), (200, 1, 1, 0), "{got:?}");
}

#[test]
fn vectors_of_another_model_do_not_stand_in_for_a_first_target_that_cannot_be_called() {
    let c = says("c");
    let up = up(behind(&[("c", c.port)], "[routes.r]\ntargets = [\"not-there\"]\nfallbacks = [\"c/other\"]\n"));
    let got = up.server.post("/v1/embeddings", Some(&up.key), &json!({"model": "r", "input": "x"}));
    assert!(got.status == 404 && got.body.contains("not-there") && c.calls() == 0, "{got:?}");
}

#[test]
fn callers_of_every_protocol_fall_over() {
    let (a, b) = (broken(), place(|_, body| if body["stream"] == true { Act::Stream(2) } else { Act::Say("b") }));
    let up = up(behind(
        &[("a", a.port), ("b", b.port)],
        "[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n[resilience.breaker]\nenabled = false\n",
    ));
    let messages = json!({"model": "r", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let cases = [
        ("/v1/messages", messages),
        ("/v1/responses", json!({"model": "r", "input": "hi"})),
        ("/v1/completions", json!({"model": "r", "prompt": "hi"})),
    ];
    for (n, (path, body)) in cases.into_iter().enumerate() {
        for streamed in [false, true] {
            let mut body = body.clone();
            body["stream"] = json!(streamed);
            let got = up.server.post(path, Some(&up.key), &body);
            assert_eq!((got.status, got.header("x-refit-provider")), (200, Some("b")), "{path}: {got:?}");
            assert!(got.body.contains(if streamed { "word1" } else { "b" }), "{path}: {got:?}");
        }
        assert_eq!((a.calls(), b.calls()), (2 * n + 2, 2 * n + 2));
    }
}

#[test]
fn a_prompt_of_the_library_goes_to_a_configured_route_like_any_request() {
    let (a, b, up) = two("[routes.r]\ntargets = [\"a/m\"]\nfallbacks = [\"b/m\"]\n");
    up.refit.write("p.prompt", "{{role \"system\"}}Rhyme.{{role \"user\"}}Say {{what}}");
    up.refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let prompt = json!({"prompt": {"id": "p", "variables": {"what": "hi"}}, "messages": []});
    let got = up.server.post(CHAT, Some(&up.key), &body("r", prompt));
    assert_eq!((got.status, got.header("x-refit-route"), got.header("x-refit-prompt")), (200, Some("r"), Some("p@1")), "{got:?}");
    assert_eq!(a.calls() + b.calls(), 1);
    let got = up.server.post(CHAT, Some(&up.key), &body("r", json!({"prompt": {"id": "q"}})));
    assert_eq!((got.status, &got.json()["error"]["param"]), (404, &json!("prompt.id")), "{got:?}");
}

#[test]
fn the_time_of_a_call_is_split_into_queue_target_and_ours() {
    let slow = place(|_, _| Act::After(200, Box::new(Act::Json(completion("x")))));
    let up = up(behind(&[("slow", slow.port)], ""));
    let row = up.row(&up.ask("slow/m"));
    let ms = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
    assert!(ms("upstream_ms") >= 200.0 && ms("overhead_ms") < ms("upstream_ms"), "{row}");
    assert!((ms("upstream_ms") + ms("overhead_ms") - ms("total_ms")).abs() < 0.01 && row["queue_ms"].is_null(), "{row}");
}
