//! The configuration of a running server: put in force as a whole or not at all, and told on `/status`.

use crate::rig::{CHAT, Ended, Line, STREAM, chat, event, gauge, provider, says, signal, upstream, wait_for};
use crate::support::{Refit, Reply, Server};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// A key that may see everything.
fn viewer(refit: &Refit) -> String {
    let made = refit.run(&["key", "create", "dashboard", "--role", "viewer", "--json"]).expect(0).json();
    made["key"].as_str().expect("a key").to_string()
}

fn config(server: &Server, viewer: &str) -> Value {
    server.get("/status", Some(viewer)).json()["config"].clone()
}

fn text(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_string()
}

/// An upstream that answers with a word of its own.
fn saying(word: &'static str) -> crate::rig::Upstream {
    upstream(move |stream, _| says(stream, word))
}

#[test]
fn a_changed_file_is_in_force_and_a_call_keeps_what_it_began_with() {
    let (sender, go_on) = channel::<()>();
    let go_on = Mutex::new(go_on);
    let old = upstream(move |stream, body| {
        if !body.contains("\"stream\":true") {
            return says(stream, "old");
        }
        stream.write_all(format!("{STREAM}{}", event("old ")).as_bytes()).expect("sent");
        go_on.lock().expect("one").recv().expect("the test says so");
        let end = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"to the end\"},\"finish_reason\":\"stop\"}]}\n\n";
        let _ = stream.write_all(format!("{end}data: [DONE]\n\n").as_bytes());
        false
    });
    let new = saying("new");
    let refit = Refit::new();
    refit.write("refit.toml", provider(old.port));
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    assert_eq!(text(&server.post(CHAT, Some(&key), &chat("up/m", "x", json!({})))), "old");
    let before = config(&server, &viewer);
    let mut begun = Line::to(&server);
    begun.send("POST", CHAT, Some(&key), &chat("up/m", "x", json!({"stream": true})).to_string()).expect("sent");
    wait_for("the stream's call", || old.requests.load(Ordering::SeqCst) == 2);

    refit.write("refit.toml", provider(new.port));
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    assert_eq!(text(&server.post(CHAT, Some(&key), &chat("up/m", "x", json!({})))), "new");
    sender.send(()).expect("the upstream waits");
    let reply = begun.reply().expect("a whole stream");
    assert!(reply.body.contains("to the end") && reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");

    let after = config(&server, &viewer);
    assert!(after["digest"] != before["digest"] && after["digest"].as_str().is_some_and(|d| d.starts_with("sha256:")), "{after}");
    let row = refit.run(&["audit", "list", "--limit", "1", "--json"]).expect(0).json()[0].clone();
    assert_eq!((&row["action"], &row["actor"], &row["subject"]), (&json!("config.reload"), &json!("[serve]"), &json!("refit.toml")));
    assert_eq!((&row["detail"]["before"], &row["detail"]["after"]), (&before["digest"], &after["digest"]), "{row}");
    assert_eq!(row["detail"]["changed"], json!(["providers.up"]));
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn a_provider_whose_section_did_not_change_keeps_its_connections() {
    let up = saying("hi");
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    // One connection here is one event loop there, and connections to a provider belong to an event loop.
    let mut line = Line::to(&server);
    let mut ask = || {
        line.send("POST", CHAT, Some(&key), &chat("up/m", "x", json!({})).to_string()).expect("sent");
        assert_eq!(line.reply().expect("a reply").status, 200);
    };
    ask();
    refit.write("refit.toml", format!("[server]\ndrain_s = 2\n{}", provider(up.port)));
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    ask();
    assert_eq!((up.requests.load(Ordering::SeqCst), up.connections.load(Ordering::SeqCst)), (2, 1));
}

#[test]
fn a_file_with_mistakes_changes_nothing_and_status_says_why() {
    let up = saying("hi");
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    let before = config(&server, &viewer);
    assert_eq!((gauge(&server, "refit_config_reload_ok"), &before["refused"]), (1.0, &Value::Null));
    // The first half could be used; the whole is refused.
    refit.write("refit.toml", "[server]\nmax_body_bytes = 1024\nprot = 1\n[providers.gorq]\nkind = \"gorq\"\napi_key = \"sk-canary\"\n");
    wait_for("the refusal", || config(&server, &viewer)["refused"].is_object());
    let told = config(&server, &viewer);
    let lines: Vec<_> = told["refused"]["problems"].as_array().expect("problems").iter().map(|problem| problem["line"].clone()).collect();
    assert_eq!(lines, [json!(3), json!(5), json!(6)], "{told}");
    assert!(told["digest"] == before["digest"] && told["refused"]["digest"] != before["digest"] && told["reloads"] == 0, "{told}");
    assert!(!told.to_string().contains("sk-canary") && !told.to_string().contains(refit.path().to_str().expect("UTF-8")), "{told}");
    assert_eq!(gauge(&server, "refit_config_reload_ok"), 0.0);
    let large = "x".repeat(4_000);
    assert_eq!(text(&server.post(CHAT, Some(&key), &chat("up/m", &large, json!({})))), "hi", "what was in force stays");
    // Looked at many times, told once.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.errors().matches("not put in force").count(), 1, "{}", server.errors());
    assert!(!server.errors().contains("sk-canary"));
    // Taking it back is no reload.
    refit.write("refit.toml", provider(up.port));
    wait_for("the end of the refusal", || config(&server, &viewer)["refused"].is_null());
    assert_eq!((gauge(&server, "refit_config_reload_ok"), &config(&server, &viewer)["reloads"]), (1.0, &json!(0)));
}

#[test]
fn a_price_file_is_read_again_like_the_file_that_names_it() {
    let refit = Refit::new();
    let price = |output: &str| {
        let head = "provider = \"mock\"\nversion = \"1\"\nsource = \"s\"\nunit = \"USD per million tokens\"\n";
        refit.write("own.toml", format!("{head}[[rows]]\nmodel = \"echo\"\ninput = 0\noutput = {output}\n"));
    };
    price("1000000");
    refit.write("refit.toml", "[prices]\nfiles = [\"own.toml\"]\n");
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    let cost = || {
        let reply = server.post(CHAT, Some(&key), &chat("mock/echo", "x", json!({})));
        refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()["cost_micro_usd"].clone()
    };
    assert_eq!(cost(), json!(1_000_000));
    price("\"cheap\"");
    wait_for("the refusal", || config(&server, &viewer)["refused"]["problems"][0]["file"] == "own.toml");
    assert_eq!(cost(), json!(1_000_000), "what was in force stays");
    price("2000000");
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    assert_eq!((cost(), &config(&server, &viewer)["refused"]), (json!(2_000_000), &Value::Null));
}

#[test]
fn a_file_that_is_gone_is_a_refusal_and_one_that_comes_is_a_reload() {
    let refit = Refit::new();
    let (viewer, server) = (viewer(&refit), refit.serve(&[]));
    assert_eq!(config(&server, &viewer)["digest"], Value::Null, "the defaults hold");
    refit.write("refit.toml", "[server]\ndrain_s = 1\n");
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    std::fs::remove_file(refit.path().join("refit.toml")).expect("removed");
    wait_for("the refusal", || config(&server, &viewer)["refused"].is_object());
    let told = config(&server, &viewer);
    assert!(told["refused"]["message"].as_str().is_some_and(|why| why.contains("cannot be read")) && told["digest"].is_string(), "{told}");
}

#[test]
fn editors_that_rename_and_volumes_that_swap_links_are_seen() {
    let refit = Refit::new();
    // As Kubernetes mounts a ConfigMap: refit.toml -> ..data/refit.toml, ..data -> a directory of a moment.
    for (moment, drain) in [("one", 1), ("two", 2)] {
        refit.write(&format!("{moment}/refit.toml"), format!("[server]\ndrain_s = {drain}\n"));
    }
    let swap = |moment: &str| {
        std::os::unix::fs::symlink(moment, refit.path().join("..new")).expect("a link");
        std::fs::rename(refit.path().join("..new"), refit.path().join("..data")).expect("swapped");
    };
    swap("one");
    std::os::unix::fs::symlink("..data/refit.toml", refit.path().join("refit.toml")).expect("a link");
    let (viewer, server) = (viewer(&refit), refit.serve(&[]));
    let first = config(&server, &viewer)["digest"].clone();
    swap("two");
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    assert_ne!(config(&server, &viewer)["digest"], first);
    // As an editor saves: a new file in the place of the old one, of the same size and time.
    let old = std::fs::metadata(refit.path().join("refit.toml")).expect("a file");
    let saved = refit.write("refit.toml~", "[server]\ndrain_s = 3\n");
    let saved = std::fs::File::options().write(true).open(saved).expect("a file");
    saved.set_modified(old.modified().expect("a time")).expect("set");
    std::fs::rename(refit.path().join("refit.toml~"), refit.path().join("refit.toml")).expect("renamed");
    wait_for("the second reload", || config(&server, &viewer)["reloads"] == 2);
}

#[test]
fn sighup_reads_the_file_even_where_it_is_the_same() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\ndrain_s = 1\n");
    let (viewer, server) = (viewer(&refit), refit.serve(&[]));
    signal(&server, Signal::HUP);
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    let row = refit.run(&["audit", "list", "--limit", "1", "--json"]).expect(0).json()[0]["detail"].clone();
    assert_eq!((&row["by"], &row["changed"], &row["before"]), (&json!("signal"), &json!([]), &row["after"]));
    assert_eq!(server.get("/health", None).status, 200, "the signal ended nothing");
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_applies() {
    let refit = Refit::new();
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    let large = chat("mock/echo", &"x".repeat(4_000), json!({}));
    assert_eq!(server.post(CHAT, Some(&key), &large).status, 200);
    refit.write("refit.toml", "[server]\nport = 1\nmax_body_bytes = 2048\n[local]\nmax_queue = 3\n[log]\nbodies = false\n");
    wait_for("the reload", || config(&server, &viewer)["reloads"] == 1);
    assert_eq!(config(&server, &viewer)["waiting_for_restart"], json!(["server.port", "local.max_queue"]));
    assert_eq!(server.post(CHAT, Some(&key), &large).status, 413);
    let reply = server.post(CHAT, Some(&key), &chat("mock/echo", "canary", json!({})));
    let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["status"], &row["request"], &row["reply"]), (&json!(200), &Value::Null, &Value::Null));
}

#[test]
fn a_file_that_is_written_in_two_steps_is_read_once_it_is_whole() {
    let up = saying("hi");
    let refit = Refit::new();
    let whole = provider(up.port);
    refit.write("refit.toml", &whole);
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    // Half of the time this is seen half way: the first step is a file that could be used, without the provider.
    for step in 1..=3 {
        refit.write("refit.toml", format!("[server]\ndrain_s = {step}\n"));
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(70));
            let mut file = std::fs::File::options().append(true).open(refit.path().join("refit.toml")).expect("a file");
            file.write_all(b"# more\n").expect("written");
        }
        refit.write("refit.toml", format!("[server]\ndrain_s = {step}\n{whole}"));
        wait_for("the reload", || config(&server, &viewer)["reloads"] == step);
        assert_eq!(text(&server.post(CHAT, Some(&key), &chat("up/m", "x", json!({})))), "hi");
    }
}

#[test]
fn no_call_fails_while_the_configuration_changes_all_the_time() {
    let up = saying("hi");
    let refit = Refit::new();
    refit.write("refit.toml", provider(up.port));
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut line, mut answered) = (Line::to(&server), 0);
                    while !done.load(Ordering::Relaxed) {
                        line.send("POST", CHAT, Some(&key), &chat("up/m", "x", json!({})).to_string()).expect("sent");
                        assert_eq!(text(&line.reply().expect("a reply")), "hi");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        let ended = Ended(&done);
        for n in 1..=12 {
            refit.write("refit.toml", format!("[server]\ndrain_s = {n}\n{}timeout_s = {}\n", provider(up.port), n + 10));
            signal(&server, Signal::HUP);
            wait_for("the reload", || config(&server, &viewer)["reloads"].as_u64() >= Some(n));
        }
        drop(ended);
        let answered: Vec<i32> = callers.into_iter().map(|caller| caller.join().expect("no call failed")).collect();
        assert!(answered.iter().all(|answered| *answered > 10), "{answered:?}");
    });
    refit.run(&["audit", "verify"]).expect(0);
}

#[test]
fn status_tells_strangers_and_applications_nothing_more_than_health() {
    let refit = Refit::new();
    let (key, viewer, server) = (refit.key(), viewer(&refit), refit.serve(&[]));
    let short = json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(server.get("/status", None).json(), short);
    assert_eq!(server.get("/status", Some(&key)).json(), short);
    assert_eq!(server.get("/status", Some("rk_nobody")).status, 401);
    assert_eq!(server.get("/ready", None).json(), json!({"status": "ready"}));
    let told = server.get("/status", Some(&viewer)).json();
    for field in
        ["started_at", "uptime_s", "config", "providers", "log", "database", "files", "batches", "connections", "draining", "wrong"]
    {
        assert!(!told[field].is_null(), "{field}: {told}");
    }
    assert_eq!((&told["database"]["ok"], &told["wrong"], &told["log"]["dropped"]), (&json!(true), &json!([]), &json!(0)), "{told}");
    assert!(told["connections"]["open"].as_i64() >= Some(1) && told["connections"]["limit"].as_i64() > Some(1), "{told}");
    assert!(!told.to_string().contains(refit.path().to_str().expect("UTF-8")), "no path of the machine: {told}");
}

#[test]
fn what_other_projects_call_is_for_administrators_alone() {
    let refit = Refit::new();
    let key = |project: &str, role: &str| {
        let made = refit.run(&["key", "create", "k", "--project", project, "--role", role, "--json"]).expect(0).json();
        made["key"].as_str().expect("a key").to_string()
    };
    let (app, viewer, admin) = (key("one", "app"), key("two", "viewer"), key("two", "admin"));
    let server = refit.serve(&[]);
    assert_eq!(server.post(CHAT, Some(&app), &chat("mock/echo", "hi", json!({}))).status, 200);
    let targets = |key: &str| server.get("/status", Some(key)).json()["targets"].clone();
    assert_eq!(targets(&admin)[0]["target"], "mock/echo");
    assert_eq!(targets(&viewer), json!({"closed": 1, "open": 0, "half_open": 0}));
}

#[test]
fn the_file_can_be_checked_and_shown_without_a_server() {
    let refit = Refit::new().env("UP_KEY", "sk-canary-77");
    refit.run(&["config", "check"]).expect(2);
    let good = refit.write("new.toml", "[providers.up]\nkind = \"groq\"\napi_key = { env = \"UP_KEY\" }\n[providers.down]\nkind = \"groq\"\napi_key = { env = \"NOT_SET\" }\n");
    let done = refit.run(&["config", "check", good.to_str().expect("UTF-8")]).expect(0);
    assert!(done.stdout == "ok\n" && done.stderr.contains("NOT_SET is not set") && done.stderr.contains("line 6"), "{done:?}");
    let bad = refit.write("bad.toml", "[server]\nprot = 1\ndrain_s = -1\n");
    let done = refit.run(&["config", "check", bad.to_str().expect("UTF-8")]).expect(2);
    assert!(done.stdout.contains("line 2: server.prot") && done.stdout.contains("line 3: server.drain_s"), "{done:?}");
    let done = refit.run(&["config", "check", bad.to_str().expect("UTF-8"), "--json"]).expect(2).json();
    assert_eq!((&done["ok"], &done["problems"][0]["line"]), (&json!(false), &json!(2)));

    std::fs::rename(good, refit.path().join("refit.toml")).expect("renamed");
    let shown = refit.run(&["config", "show"]).expect(0);
    assert!(shown.stdout.contains("env = \"UP_KEY\"") && shown.stdout.contains("drain_s = 30"), "{shown:?}");
    assert!(!shown.stdout.contains("sk-canary-77"), "{shown:?}");
    refit.write("shown.toml", &shown.stdout);
    refit.run(&["config", "check", "shown.toml"]).expect(0);
    assert_eq!(refit.run(&["config", "show", "--json"]).expect(0).json()["server"]["drain_s"], 30);
    assert!(!refit.data_dir().exists(), "nothing is written");
}
