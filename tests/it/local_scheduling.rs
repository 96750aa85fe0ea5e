//! How local models are shared: turns, cancellation, memory, and long prompts beside short ones.

use crate::local::{MODEL, with_model};
use crate::local_sampling::{Up, body, text};
use crate::rig::{CHAT, Line};
use serde_json::json;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Sends a streamed request of so many tokens and waits for its first bytes.
fn begin(up: &Up, tokens: u32) -> Line {
    let mut line = Line::to(&up.server);
    let asked =
        body("Count from one to ten thousand.", &json!({"stream": true, "max_tokens": tokens, "logit_bias": {"2": -100, "0": -100}}));
    line.send("POST", CHAT, Some(&up.key), &asked.to_string()).expect("sent");
    line
}

#[test]
fn callers_take_turns_however_much_one_asks_for() {
    let Some(up) = Up::new("callers_take_turns_however_much_one_asks_for", "[local]\nmax_batch = 1\n") else { return };
    let other = up.refit.run(&["key", "create", "other", "--project", "two", "--json"]).expect(0).json()["key"]
        .as_str()
        .expect("a key")
        .to_string();
    // Loaded, so that all arrive when they are sent.
    up.ask("Hi.", &json!({"max_tokens": 1}));
    let order = Mutex::new(Vec::new());
    let ask = |key: &str, who: &'static str, i: usize| {
        let asked = body(&format!("Write about the number {i}."), &json!({"max_tokens": 24, "logit_bias": {"2": -100, "0": -100}}));
        let reply = up.server.post(CHAT, Some(key), &asked);
        assert_eq!(reply.status, 200, "{reply:?}");
        order.lock().expect("nobody panicked").push(who);
    };
    let ask = &ask;
    std::thread::scope(|scope| {
        let (mine, other) = (up.key.as_str(), other.as_str());
        for i in 0..12 {
            scope.spawn(move || ask(mine, "many", i));
        }
        // All of them wait or run when the other caller comes.
        std::thread::sleep(Duration::from_millis(600));
        scope.spawn(move || ask(other, "one", 99));
    });
    let order = order.into_inner().expect("nobody panicked");
    let place = order.iter().position(|who| *who == "one").expect("an answer");
    assert!(place + 4 <= order.len(), "whoever asks once does not wait for all the others: {order:?}");
}

#[test]
fn what_nobody_waits_for_costs_nothing() {
    let Some(up) = Up::new("what_nobody_waits_for_costs_nothing", "[local]\nmax_batch = 1\nmax_queue = 4\n") else { return };
    up.ask("Hi.", &json!({"max_tokens": 1}));
    // One that runs and four that wait, of 3,000 tokens each: a minute of work, and nobody stays for it.
    let began = Instant::now();
    let mut lines = vec![begin(&up, 3_000)];
    // The first has left the queue by then, and the others are in it.
    std::thread::sleep(Duration::from_secs(1));
    lines.extend((0..4).map(|_| begin(&up, 3_000)));
    std::thread::sleep(Duration::from_secs(2));
    let full = up.server.post(CHAT, Some(&up.key), &body("Hi.", &json!({"max_tokens": 1})));
    assert_eq!((full.status, full.json()["error"]["code"].clone()), (429, json!("overloaded")), "{full:?}");
    assert!(full.header("retry-after").is_some(), "{full:?}");
    drop(lines);
    loop {
        let reply = up.server.post(CHAT, Some(&up.key), &body("Hi.", &json!({"max_tokens": 4})));
        if reply.status == 200 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "still busy with what nobody waits for");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn memory_for_keys_and_values_is_bounded_and_waited_for() {
    // 23,040 bytes a position (30 layers, keys and values of 192 elements, 2 bytes each): 4 MiB hold 182.
    let Some(up) = Up::new("memory_for_keys_and_values_is_bounded_and_waited_for", "[local]\ncache_mib = 4\n") else { return };
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(400)}]});
    let (status, code, param, message) = up.refusal(&long);
    assert_eq!((status, code.as_str(), param.as_str()), (400, "context_length_exceeded", "messages"), "{message}");
    assert!(message.contains("182"), "{message}");
    // Each of these takes more than half of it: they run one after the other, and all are answered.
    let alone = text(&up.ask("Write a story about a dog.", &json!({"max_tokens": 110})));
    let texts: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..3).map(|_| scope.spawn(|| text(&up.ask("Write a story about a dog.", &json!({"max_tokens": 110}))))).collect();
        asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
    });
    assert!(texts.iter().all(|text| *text == alone), "{texts:?}");
}

#[test]
fn a_long_prompt_does_not_stall_who_is_being_answered() {
    let Some(up) = Up::new("a_long_prompt_does_not_stall_who_is_being_answered", "") else { return };
    up.ask("Hi.", &json!({"max_tokens": 1}));
    let words: String = (0..1_300).map(|i| format!("{} ", i * 7 % 97)).collect();
    let (gaps, took) = std::thread::scope(|scope| {
        let stream = scope.spawn(|| tokens_apart(&up, 400));
        std::thread::sleep(Duration::from_millis(800));
        let began = Instant::now();
        let long = up.ask(&words, &json!({"max_tokens": 1}));
        let took = began.elapsed();
        assert!(long["usage"]["prompt_tokens"].as_u64().is_some_and(|n| n > 3_500), "{}", long["usage"]);
        (stream.join().expect("a stream"), took)
    });
    let longest = gaps.iter().max().expect("tokens");
    // A step is meant to take 120 ms with rows of a prompt in it; five times that, for a machine that has other things to do.
    assert!(*longest < Duration::from_millis(600), "{longest:?} between two tokens while a prompt took {took:?}");
}

/// Times between the chunks of a stream of so many tokens.
fn tokens_apart(up: &Up, tokens: u32) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = body("Count.", &json!({"stream": true, "max_tokens": tokens, "logit_bias": {"2": -100, "0": -100}}));
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut reply =
            client.post(format!("{}{CHAT}", up.server.url())).bearer_auth(&up.key).json(&asked).send().await.expect("an answer");
        let mut gaps = Vec::new();
        let mut last = Instant::now();
        while let Some(_chunk) = reply.chunk().await.expect("a chunk") {
            gaps.push(last.elapsed());
            last = Instant::now();
        }
        // The first is the time to the first token.
        gaps.split_off(1)
    })
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let Some(refit) = with_model("an_adapter_that_is_not_there_is_named") else { return };
    let key = refit.key();
    let server = refit.serve(&[]);
    let asked = json!({"model": format!("local/{MODEL}:nothing"), "messages": [{"role": "user", "content": "Hi."}]});
    let reply = server.post(CHAT, Some(&key), &asked);
    assert_eq!(reply.status, 404, "{reply:?}");
    assert!(reply.body.contains("nothing"), "{reply:?}");
}
