//! What calls cost: in the log, in the sums, and where nobody knows.

use crate::keys::{chat, key};
use crate::support::{Refit, Reply, http};
use crate::upstream::{Script, reply, stream, upstream};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const CHAT: &str = "/v1/chat/completions";

fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

fn before(scripts: Vec<Script>, name: &str, kind: &str, more: &str) -> Refit {
    let (port, _seen) = upstream(scripts);
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let provider =
        format!("[providers.{name}]\nkind = \"{kind}\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", provider + more);
    refit
}

fn completion(usage: &Value) -> Value {
    json!({"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024-07-18", "usage": usage,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]})
}

/// 0.15, 0.075 and 0.60 dollars for a million tokens: openai.com's list prices of gpt-4o-mini.
#[test]
fn a_call_costs_what_its_kind_of_tokens_cost_whatever_the_provider_is_called() {
    let usage = json!({"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300,
        "prompt_tokens_details": {"cached_tokens": 600}, "completion_tokens_details": {"reasoning_tokens": 100}});
    let chunk = |delta: Value, finish: Value| json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    let counted = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], "usage": usage});
    let events = format!(
        "data: {}\n\ndata: {}\n\ndata: {counted}\n\ndata: [DONE]\n\n",
        chunk(json!({"role": "assistant", "content": "x"}), Value::Null),
        chunk(json!({}), json!("stop"))
    );
    let refit = before(vec![reply("200 OK", "", &completion(&usage).to_string()), stream(&events, 40)], "our-openai", "openai", "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    for streamed in [false, true] {
        let mut body = chat("our-openai/gpt-4o-mini", "hi");
        body["stream"] = streamed.into();
        let row = row(&refit, &server.post(CHAT, Some(&key), &body));
        // 400 × 0.15 + 600 × 0.075 + 300 × 0.60 micro-dollars.
        assert_eq!(row["cost_micro_usd"], json!(60 + 45 + 180), "streamed {streamed}: {row}");
        assert!(row["price"].as_str().is_some_and(|name| name.starts_with("openai@20") && name.ends_with("/gpt-4o-mini")), "{row}");
        assert_eq!((&row["cached_tokens"], &row["reasoning_tokens"]), (&json!(600), &json!(100)), "{row}");
    }
}

/// 3.00, 0.30, 3.75, 6.00 and 15.00 dollars: Anthropic's list prices of Claude Sonnet 4.5.
#[test]
fn tokens_of_anthropics_cache_have_their_own_prices() {
    let message = json!({"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "x"}],
        "usage": {"input_tokens": 100, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 300, "output_tokens": 10,
            "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100}}});
    let refit = before(vec![reply("200 OK", "", &message.to_string())], "claude", "anthropic", "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let row = row(&refit, &server.post(CHAT, Some(&key), &chat("claude/claude-sonnet-4-5", "hi")));
    assert_eq!(row["cost_micro_usd"], json!(300 + 300 + 750 + 600 + 150), "{row}");
    assert_eq!((&row["cached_tokens"], &row["cache_write_tokens"]), (&json!(1000), &json!(300)), "{row}");
}

#[test]
fn a_price_that_nobody_knows_is_unknown_and_never_zero() {
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10});
    let refit = before(vec![reply("200 OK", "", &completion(&usage).to_string())], "up", "compatible", "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let row = row(&refit, &server.post(CHAT, Some(&key), &chat("up/gpt-4o-mini", "hi")));
    assert_eq!((&row["cost_micro_usd"], &row["price"], &row["status"]), (&Value::Null, &Value::Null, &json!(200)), "{row}");
    drop(server);
    let shown = refit.run(&["usage", "--by", "model"]).expect(0).stdout;
    assert!(shown.contains("up/gpt-4o-mini") && shown.contains("unknown"), "{shown}");
    let sums = refit.run(&["usage", "--by", "model", "--json"]).expect(0).json();
    assert_eq!((&sums[0]["unpriced"], &sums[0]["cost_micro_usd"], &sums[0]["requests"]), (&json!(1), &json!(0), &json!(1)), "{sums}");
    let done = refit.run(&["price", "show", "up/gpt-4o-mini"]).expect(2);
    assert!(done.stderr.contains("not known") && done.stderr.contains("prices.rows"), "{done:?}");
}

#[test]
fn own_rows_and_own_files_win_over_what_is_known() {
    let usage = json!({"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000});
    let scripts = (0..2).map(|_| reply("200 OK", "", &completion(&usage).to_string())).collect();
    let more = "[prices]\nfiles = [\"prices/own.toml\"]\n[[prices.rows]]\nprovider = \"our-openai\"\nmodel = \"gpt-4o-mini\"\ninput = \"0.10\"\noutput = 1\n";
    let refit = before(scripts, "our-openai", "openai", more);
    let file = "provider = \"our-openai\"\nversion = \"2026-11-01\"\nsource = \"contract\"\nunit = \"USD per million tokens\"\n[[rows]]\nmodel = \"ft:*\"\ninput = \"7\"\noutput = \"9\"\n";
    refit.write("prices/own.toml", file);
    let (key, server) = (refit.key(), refit.serve(&[]));
    let cost = |model: &str| {
        let row = row(&refit, &server.post(CHAT, Some(&key), &chat(model, "hi")));
        (row["cost_micro_usd"].clone(), row["price"].clone())
    };
    assert_eq!(cost("our-openai/gpt-4o-mini"), (json!(100_000), json!("our-openai@own/gpt-4o-mini")));
    assert_eq!(cost("our-openai/ft:gpt-4o-mini:us"), (json!(7_000_000), json!("our-openai@2026-11-01/ft:*")));
    let listed = refit.run(&["price", "list", "--json"]).expect(0).json();
    assert!(listed.as_array().is_some_and(|rows| rows.len() > 40 && rows.iter().filter(|row| row["own"] == true).count() == 2));
}

#[test]
fn a_price_file_with_mistakes_is_refused_with_its_lines() {
    let refit = Refit::new();
    refit.write("refit.toml", "[prices]\nfiles = [\"own.toml\"]\n");
    let done = refit.run(&["price", "list"]).expect(2);
    assert!(done.stderr.contains("cannot read own.toml"), "{done:?}");
    refit.write(
        "own.toml",
        "provider = \"x\"\nversion = \"1\"\nsource = \"y\"\nunit = \"EUR\"\n[[rows]]\nmodel = \"m\"\ninput = \"cheap\"\n",
    );
    let done = refit.run(&["price", "list"]).expect(2);
    for part in ["own.toml has 3 problems", "USD per million tokens", "line 7: rows.input", "rows.output"] {
        assert!(done.stderr.contains(part), "{part}: {done:?}");
    }
    refit.write("refit.toml", "[budgets]\nunpriced = \"maybe\"\n[[prices.rows]]\nmodel = \"m\"\ninput = 1\noutput = 2\n");
    let done = refit.run(&["price", "list"]).expect(2);
    assert!(done.stderr.contains("line 2: budgets.unpriced") && done.stderr.contains("prices.rows.provider"), "{done:?}");
}

#[test]
fn a_price_is_shown_as_of_a_day() {
    let refit = Refit::new();
    let shown = |args: &[&str]| refit.run(&[&["price", "show", "anthropic/claude-sonnet-5-5", "--json"], args].concat()).expect(0).json();
    assert_eq!(
        (&shown(&["--at", "2026-10-06"])["cached_input"], &shown(&["--at", "2026-10-07"])["cached_input"]),
        (&json!("0.20"), &json!("0.10"))
    );
    let done = refit.run(&["price", "show", "gemini/gemini-3.8-flash", "--at", "2027-01-01"]).expect(2);
    assert!(done.stderr.contains("2027-01-01"), "{done:?}");
    refit.run(&["price", "show", "openai/gpt-4o-mini", "--at", "someday"]).expect(2);
}

/// A provider that counts nothing is believed to have counted what was seen.
#[test]
fn a_reply_without_usage_is_estimated_and_says_so() {
    let mut body = completion(&Value::Null);
    body["choices"][0]["message"]["content"] = json!("y".repeat(400));
    body.as_object_mut().expect("an object").remove("usage");
    let refit = before(vec![reply("200 OK", "", &body.to_string())], "our-openai", "openai", "");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let row = row(&refit, &server.post(CHAT, Some(&key), &chat("our-openai/gpt-4o", &"z".repeat(4_000))));
    let cost = row["cost_micro_usd"].as_i64().expect("a cost");
    // About 1,000 tokens at 2.50 and, with the frame of the reply, some 100 to 200 at 10 dollars a million.
    assert!((3_400..5_000).contains(&cost), "{row}");
    assert!(row["price"].as_str().is_some_and(|price| price.ends_with("(estimated)")) && row["input_tokens"].is_null(), "{row}");
}

#[test]
fn embeddings_cost_what_was_read() {
    let vectors = json!({"object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 50, "total_tokens": 50},
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]});
    let refit = before(vec![reply("200 OK", "", &vectors.to_string())], "our-openai", "openai", "");
    let (key, server) = (key(&refit, &["--budget", "1"]), refit.serve(&[]));
    let got = server.post("/v1/embeddings", Some(&key), &json!({"model": "our-openai/text-embedding-3-small", "input": "some words"}));
    assert_eq!((got.status, &row(&refit, &got)["cost_micro_usd"]), (200, &json!(1)), "50 × 0.02 micro-dollars: {got:?}");
}

/// Killed again and again under load, the sums are those of the rows: each counts once.
#[test]
fn sums_are_those_of_the_rows_after_kills_under_load() {
    let refit = Refit::new();
    refit.write("refit.toml", "[[prices.rows]]\nprovider = \"mock\"\nmodel = \"*\"\ninput = 0\noutput = 7\n");
    let key = refit.key();
    let acknowledged = Arc::new(Mutex::new(0u64));
    for _ in 0..4 {
        let mut server = refit.serve(&[]);
        let (stop, url) = (Arc::new(AtomicBool::new(false)), format!("{}{CHAT}", server.url()));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (stop, url, key, acknowledged) = (stop.clone(), url.clone(), key.clone(), acknowledged.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let body = chat("mock/echo", "x").to_string().into_bytes();
                        let Ok(reply) = std::panic::catch_unwind(|| http("POST", &url, Some(&key), Some(body))) else { return };
                        assert_eq!(reply.status, 200);
                        *acknowledged.lock().expect("a count") += 1;
                    }
                })
            })
            .collect();
        let before = *acknowledged.lock().expect("a count");
        while *acknowledged.lock().expect("a count") < before + 60 {
            assert!(clients.iter().any(|client| !client.is_finished()), "all clients gave up");
            std::thread::yield_now();
        }
        server.kill();
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("a client ends"));
    }
    let sums = refit.run(&["usage", "--by", "key", "--json"]).expect(0).json();
    let rows = refit.run(&["logs", "tail", "--limit", "1000000", "--json"]).expect(0).json();
    let rows = rows.as_array().expect("rows");
    let acknowledged = *acknowledged.lock().expect("a count");
    assert!(rows.len() as u64 >= acknowledged && acknowledged >= 240, "{} rows of {acknowledged}", rows.len());
    assert_eq!((&sums[0]["requests"], &sums[0]["cost_micro_usd"]), (&json!(rows.len()), &json!(7 * rows.len())), "{sums}");
    for by in ["day", "project", "model"] {
        let sums = refit.run(&["usage", "--by", by, "--json"]).expect(0).json();
        assert_eq!(sums[0]["requests"], json!(rows.len()), "{by}: {sums}");
    }
    assert_eq!(refit.run(&["usage", "--since", "2999-01-01", "--json"]).expect(0).json(), json!([]));
}
