//! Budgets: reserved before a call, settled after it, and never spent twice.

use crate::keys::{chat, key};
use crate::limits::at_once;
use crate::places::{Act, Place, behind, completion, place, says};
use crate::support::{Refit, Reply, Server};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

/// Every word that mock/echo writes costs a dollar; what it reads costs nothing.
const DOLLAR_A_WORD: &str = "[[prices.rows]]\nprovider = \"mock\"\nmodel = \"echo\"\ninput = 0\noutput = \"1000000\"\n";

fn priced() -> Refit {
    let refit = Refit::new();
    refit.write("refit.toml", DOLLAR_A_WORD);
    refit
}

fn words(count: u32, max_tokens: u32) -> Value {
    let mut body = chat("mock/echo", &vec!["x"; count as usize].join(" "));
    body["max_tokens"] = max_tokens.into();
    body
}

fn ask(server: &Server, key: &str, body: &Value) -> Reply {
    server.post(CHAT, Some(key), body)
}

fn code(reply: &Reply) -> Value {
    reply.json()["error"]["code"].clone()
}

fn row(refit: &Refit, reply: &Reply) -> Value {
    refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json()
}

fn spent(server: &Server, admin: &str) -> i64 {
    let usage = server.get("/admin/v1/usage?by=project", Some(admin)).json();
    usage["data"].as_array().expect("lines").iter().map(|line| line["cost_micro_usd"].as_i64().expect("a sum")).sum()
}

#[test]
fn two_hundred_at_once_spend_no_more_than_the_budget() {
    let refit = priced();
    let (admin, key) = (key(&refit, &["--role", "admin"]), key(&refit, &["--budget", "10", "--budget-period", "total"]));
    let server = refit.serve(&[]);
    let mut body = words(1, 1);
    body["mock"] = json!({"delay_ms": 200});
    let replies = at_once(&server, &key, &body, 200);
    let passed = replies.iter().filter(|(status, _)| *status == 200).count();
    let refused = replies.iter().filter(|(status, body)| *status == 429 && body["error"]["code"] == "budget_exceeded").count();
    assert_eq!((passed, refused), (10, 190));
    assert_eq!(spent(&server, &admin), 10_000_000);
    let last = ask(&server, &key, &body);
    assert!(last.status == 429 && last.header("retry-after").is_none(), "{last:?}");
    for part in ["the key", "$10.00 in all", "$0.00 left", "$1.00"] {
        assert!(last.body.contains(part), "{part}: {last:?}");
    }
}

#[test]
fn what_was_reserved_and_not_used_is_there_again() {
    let refit = priced();
    let key = key(&refit, &["--budget", "10", "--budget-period", "day"]);
    let server = refit.serve(&[]);
    for _ in 0..3 {
        // Up to eight dollars are reserved each time, and one is spent.
        assert_eq!(ask(&server, &key, &words(1, 8)).status, 200);
    }
    let refused = ask(&server, &key, &words(1, 8));
    assert_eq!((refused.status, code(&refused)), (429, json!("budget_exceeded")));
    let wait: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!((1..=86_400).contains(&wait) && refused.body.contains("$7.00 left") && refused.body.contains("begins anew at"), "{refused:?}");
    assert_eq!(ask(&server, &key, &words(1, 7)).status, 200);
    let log = row(&refit, &refused);
    assert_eq!((&log["cost_micro_usd"], &log["error_code"]), (&json!(0), &json!("budget_exceeded")));
}

#[test]
fn a_call_that_fails_costs_nothing() {
    let refit = Refit::new();
    refit.write("refit.toml", DOLLAR_A_WORD.replace("echo", "*"));
    let key = key(&refit, &["--budget", "5"]);
    let server = refit.serve(&[]);
    for _ in 0..3 {
        let mut body = words(1, 5);
        body["model"] = json!("mock/fail");
        let failed = ask(&server, &key, &body);
        assert_eq!((failed.status, &row(&refit, &failed)["cost_micro_usd"]), (502, &json!(0)));
    }
    assert_eq!(ask(&server, &key, &words(5, 5)).status, 200);
    assert_eq!(ask(&server, &key, &words(1, 1)).status, 429);
}

#[test]
fn spending_survives_a_kill() {
    let refit = priced();
    let key = key(&refit, &["--budget", "5", "--budget-period", "month"]);
    let mut server = refit.serve(&[]);
    assert_eq!(ask(&server, &key, &words(3, 3)).status, 200);
    server.kill();
    let server = refit.serve(&[]);
    assert_eq!(ask(&server, &key, &words(1, 3)).status, 429);
    assert_eq!(ask(&server, &key, &words(2, 2)).status, 200);
    assert_eq!(code(&ask(&server, &key, &words(1, 1))), json!("budget_exceeded"));
    // A larger budget holds with the next request.
    refit.run(&["key", "update", "test", "--budget", "6"]).expect(0);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!([ask(&server, &key, &words(1, 1)).status, ask(&server, &key, &words(1, 1)).status], [200, 429]);
}

#[test]
fn a_budget_that_is_given_later_counts_what_was_spent_before() {
    let refit = priced();
    let key = refit.key();
    let server = refit.serve(&[]);
    assert_eq!(ask(&server, &key, &words(2, 2)).status, 200);
    refit.run(&["key", "update", "test", "--budget", "3"]).expect(0);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!([ask(&server, &key, &words(2, 2)).status, ask(&server, &key, &words(1, 1)).status], [429, 200]);
}

#[test]
fn the_budget_of_a_project_is_one_for_all_its_keys() {
    let refit = priced();
    refit.run(&["project", "set", "shop", "--budget", "5", "--budget-period", "total"]).expect(0);
    let (one, two) = (key(&refit, &["--project", "shop"]), key(&refit, &["--project", "shop", "--budget", "100"]));
    let (other, server) = (refit.key(), refit.serve(&[]));
    assert_eq!([ask(&server, &one, &words(3, 3)).status, ask(&server, &two, &words(2, 2)).status], [200, 200]);
    let refused = ask(&server, &two, &words(1, 1));
    assert!(refused.status == 429 && refused.body.contains("the project"), "{refused:?}");
    assert_eq!(ask(&server, &other, &words(9, 9)).status, 200);
    // Rows reach the sums within a moment.
    let mut shown = (0..100).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        refit.run(&["project", "show", "shop"]).expect(0).stdout
    });
    let shown = shown.find(|shown| shown.contains("spent    $5.00 in all"));
    assert!(shown.is_some_and(|shown| shown.contains("$5.00/total")), "five seconds later the sum is not five dollars");
}

#[test]
fn a_model_whose_price_nobody_knows_is_refused_under_a_budget_unless_the_configuration_says_otherwise() {
    let upstream = || {
        let body = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]});
        crate::upstream::upstream((0..2).map(|_| crate::upstream::reply("200 OK", "", &body.to_string())).collect()).0
    };
    let provider = |port: u16| format!("[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n");
    let refit = Refit::new();
    refit.write("refit.toml", provider(upstream()));
    let (bound, free) = (key(&refit, &["--budget", "5"]), refit.key());
    let server = refit.serve(&[]);
    let refused = ask(&server, &bound, &chat("up/m", "hi"));
    assert_eq!(
        (refused.status, code(&refused), &refused.json()["error"]["param"]),
        (403, json!("price_unknown"), &json!("model")),
        "{refused:?}"
    );
    assert!(refused.body.contains("prices.rows"), "{refused:?}");
    let passed = ask(&server, &free, &chat("up/m", "hi"));
    assert_eq!((passed.status, &row(&refit, &passed)["cost_micro_usd"]), (200, &Value::Null), "unknown is not nothing");
    assert_eq!(ask(&server, &bound, &chat("mock/echo", "hi")).status, 200, "what costs nothing has a price");
    drop(server);
    refit.write("refit.toml", format!("[budgets]\nunpriced = \"allow\"\n{}", provider(upstream())));
    let server = refit.serve(&[]);
    assert_eq!(ask(&server, &bound, &chat("up/m", "hi")).status, 200);
}

/// Leaves a stream when a text has come.
fn leave_after(server: &Server, key: &str, body: &Value, text: &str) -> String {
    let body = body.to_string();
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connects");
    write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let mut buffer = [0; 512];
        let n = stream.read(&mut buffer).expect("the stream begins");
        assert!(n > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..n]);
    }
    let head = String::from_utf8_lossy(&read).into_owned();
    let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("an id");
    id.trim().to_string()
}

#[test]
fn a_stream_that_its_caller_leaves_is_charged_for_what_had_come() {
    let refit = priced();
    let key = key(&refit, &["--budget", "1000", "--budget-period", "total"]);
    let server = refit.serve(&[]);
    let mut body = chat("mock/echo", &vec!["word"; 400].join(" "));
    body.as_object_mut().expect("an object").extend([
        ("stream".to_string(), json!(true)),
        ("max_tokens".to_string(), json!(400)),
        ("mock".to_string(), json!({"chunk_delay_ms": 20})),
    ]);
    let id = leave_after(&server, &key, &body, "word");
    let row = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        let done = refit.run(&["logs", "show", &id, "--json"]);
        (done.code == 0).then(|| done.json())
    });
    let row = row.expect("the row is written");
    let cost = row["cost_micro_usd"].as_i64().expect("a cost");
    // A word and its space are a little more than a token; far fewer than the four hundred had come.
    assert!(cost > 0 && cost < 200_000_000, "{row}");
    assert!(row["status"] == 499 && row["price"].as_str().is_some_and(|price| price.ends_with("(estimated)")), "{row}");
    assert_eq!(row["output_tokens"], Value::Null, "the provider has counted nothing");
    // The rest of what was reserved is there again, and what had come is not.
    let left = 1_000 - u32::try_from(cost / 1_000_000).expect("dollars");
    assert_eq!(ask(&server, &key, &words(1, left + 1)).status, 429);
    assert_eq!(ask(&server, &key, &words(1, left - 1)).status, 200);
}

#[test]
fn a_stream_that_breaks_off_is_charged_for_what_had_come() {
    let refit = priced();
    let key = key(&refit, &["--budget", "100"]);
    let server = refit.serve(&[]);
    let mut body = words(50, 50);
    body["stream"] = json!(true);
    body["mock"] = json!({"fail_after": 8});
    let broken = ask(&server, &key, &body);
    let row = row(&refit, &broken);
    assert_eq!(
        (&row["error_code"], &row["cost_micro_usd"]),
        (&json!("upstream_error"), &json!(4_000_000)),
        "sixteen bytes are four tokens: {row}"
    );
}

#[test]
fn what_a_call_may_cost_without_a_bound_is_what_the_configuration_says() {
    let refit = Refit::new();
    refit.write("refit.toml", format!("[budgets]\nmax_output_tokens = 6\n{DOLLAR_A_WORD}"));
    let key = key(&refit, &["--budget", "10"]);
    let server = refit.serve(&[]);
    let ask = || ask(&server, &key, &chat("mock/echo", "a b c d"));
    assert_eq!([ask().status, ask().status], [200, 200], "four of ten, then six of six");
    let refused = ask();
    assert!(refused.status == 429 && refused.body.contains("$6.00"), "{refused:?}");
}

#[test]
fn metrics_tell_how_much_of_a_budget_is_spent() {
    let refit = priced();
    refit.run(&["project", "set", "default", "--budget", "40"]).expect(0);
    let (viewer, key) = (key(&refit, &["--role", "viewer"]), key(&refit, &["--budget", "10"]));
    let server = refit.serve(&[]);
    let lines = || {
        let metrics = server.get("/metrics", Some(&viewer)).body;
        let of = |line: &str| line.strip_prefix("refit_budget_used_ratio{").map(str::to_string);
        metrics.lines().filter_map(of).collect::<Vec<_>>()
    };
    assert!(lines().is_empty(), "nobody has spent anything yet");
    assert_eq!(ask(&server, &key, &words(2, 5)).status, 200);
    let lines = lines();
    assert!(lines.len() == 2 && lines[0] == "project=\"default\",api_key=\"\"} 0.05", "{lines:?}");
    assert!(lines[1].starts_with("project=\"default\",api_key=\"key_") && lines[1].ends_with("\"} 0.2"), "{lines:?}");
}

/// Whole dollars a token of what these models write; what they read costs nothing. The rest have no price.
fn dollars(models: &[(&str, u32)]) -> String {
    let row = |(provider, dollars): &(&str, u32)| {
        format!("[[prices.rows]]\nprovider = \"{provider}\"\nmodel = \"*\"\ninput = 0\noutput = \"{dollars}000000\"\n")
    };
    models.iter().map(row).collect()
}

const CASCADE: &str = "[routes.r]\ntargets = [\"large/m\"]\n[routes.r.cascade]\nfirst = \"small/m\"\n";

/// Asks for two tokens at most under a budget, as often as it says; the replies, with the log row of each.
fn under_budget(places: &[(&str, &Place)], config: &str, (budget, times): (&str, usize), fields: &Value) -> Vec<(Reply, Value)> {
    let ports: Vec<_> = places.iter().map(|(name, place)| (*name, place.port)).collect();
    let refit = behind(&ports, config);
    let key = key(&refit, &["--budget", budget]);
    let server = refit.serve(&[]);
    let mut body = crate::places::body("r", json!({"max_tokens": 2}));
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let ask = |_| {
        let reply = ask(&server, &key, &body);
        let row = row(&refit, &reply);
        (reply, row)
    };
    (0..times).map(ask).collect()
}

#[test]
fn what_a_cascade_asks_first_and_its_judge_are_reserved_too() {
    let (small, large, judge) = (says("small"), says("large"), says("0.9"));
    let places = [("small", &small), ("large", &large), ("judge", &judge)];
    let route = format!("{CASCADE}accept = {{ judge = \"judge/m\" }}\n");
    let with = |prices: &[(&str, u32)]| format!("{route}{}", dollars(prices));
    // Two tokens of the first, two of the target, and the judge's 256.
    let priced = with(&[("small", 1), ("large", 3), ("judge", 1)]);
    for (budget, status) in [("263", 429), ("264", 200)] {
        let (got, _) = under_budget(&places, &priced, (budget, 1), &json!({})).remove(0);
        assert_eq!(got.status, status, "{budget}: {got:?}");
    }
    for missing in ["small", "judge"] {
        let rest: Vec<_> = [("small", 1), ("large", 1), ("judge", 1)].into_iter().filter(|(name, _)| *name != missing).collect();
        let (got, _) = under_budget(&places, &with(&rest), ("1000", 1), &json!({})).remove(0);
        assert_eq!((got.status, code(&got)), (403, json!("price_unknown")), "{missing}: {got:?}");
    }
}

#[test]
fn a_first_model_without_a_price_does_not_make_the_rest_free() {
    let (small, large) = (says("small"), says("large"));
    let config = format!("{CASCADE}accept = {{ min_logprob = -0.4 }}\n[budgets]\nunpriced = \"allow\"\n{}", dollars(&[("large", 1)]));
    let mut asked = under_budget(&[("small", &small), ("large", &large)], &config, ("3", 2), &json!({}));
    let (second, (first, row)) = (asked.remove(1).0, asked.remove(0));
    assert_eq!((first.status, &row["cost_micro_usd"]), (200, &json!(2_000_000)), "{row}");
    assert!(row["price"].as_str().is_some_and(|price| price.ends_with("(in part)")), "{row}");
    assert_eq!((second.status, code(&second)), (429, json!("budget_exceeded")), "two of three dollars are spent");
}

const MENDED: &str = "[guardrails]\ndefault = [\"fit\"]\n[guardrails.fit]\nvalidate_output = true\n\
    [routes.r]\ntargets = [\"large/m\"]\nfallbacks = [\"other/m\"]\n";

#[test]
fn a_reply_that_may_be_asked_for_again_is_reserved_twice() {
    let (large, other) = (says("{}"), says("{}"));
    let config = format!("{MENDED}{}", dollars(&[("large", 1), ("other", 1)]));
    let format = json!({"response_format": {"type": "json_object"}});
    for (budget, fields, status) in [("3", &format, 429), ("4", &format, 200), ("2", &json!({}), 200)] {
        let (got, _) = under_budget(&[("large", &large), ("other", &other)], &config, (budget, 1), fields).remove(0);
        assert_eq!(got.status, status, "{budget} {fields}: {got:?}");
    }
}

/// Three tokens are read and two are written, both times.
#[test]
fn each_reply_is_paid_for_where_it_was_asked() {
    let large = place(|n, _| match n {
        0 => Act::Json(completion("no JSON")),
        _ => Act::Refuse("500 Oops", "", json!({"error": {"message": "oops"}})),
    });
    let other = says("{}");
    let config = format!("{MENDED}{}", dollars(&[("large", 1), ("other", 10)]));
    let format = json!({"response_format": {"type": "json_object"}});
    let (got, row) = under_budget(&[("large", &large), ("other", &other)], &config, ("1000", 1), &format).remove(0);
    assert_eq!((got.status, &row["provider"], &row["output_tokens"]), (200, &json!("other"), &json!(4)), "{row}");
    assert_eq!(row["cost_micro_usd"], json!(2_000_000 + 20_000_000), "{row}");
}

#[test]
fn vectors_for_the_cache_are_on_the_budget_of_the_project() {
    let up = place(|_, body| match body.get("input") {
        Some(_) => Act::Json(json!({"object": "list", "model": "e", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}],
            "usage": {"prompt_tokens": 5, "total_tokens": 5}})),
        None => Act::Say("hi"),
    });
    let cache = "[cache]\nenabled = true\n[cache.semantic]\nenabled = true\nmodel = \"up/e\"\n";
    let prices = "[[prices.rows]]\nprovider = \"up\"\nmodel = \"m\"\ninput = 0\noutput = 0\n\
        [[prices.rows]]\nprovider = \"up\"\nmodel = \"e\"\ninput = \"1000000\"\noutput = 0\n";
    let refit = behind(&[("up", up.port)], &format!("{cache}{prices}"));
    refit.run(&["project", "set", "default", "--budget", "40", "--rpm", "3"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    // Thirty-some bytes may be as many tokens, which are a dollar each; five are counted.
    for (question, vectors) in
        [("what does it cost to send it?", 1), ("and what does it cost to bring it?", 2), ("what is it, and why is that so dear?", 2)]
    {
        let mut body = chat("up/m", question);
        body["temperature"] = json!(0);
        assert_eq!(ask(&server, &key, &body).status, 200, "{question}");
        let made = up.bodies().iter().filter(|body| body.get("input").is_some()).count();
        assert_eq!(made, vectors, "{question}");
    }
    assert_eq!(ask(&server, &key, &chat("up/m", "hi")).status, 429, "the vectors are no requests of the caller's: three were made");
}

#[test]
fn the_bound_of_a_reply_is_the_one_that_its_provider_goes_by() {
    let refit = Refit::new();
    refit.write("refit.toml", format!("[budgets]\nmax_output_tokens = 6\n{DOLLAR_A_WORD}"));
    refit.write("wordy.prompt", "---\nmodel: mock/echo\nconfig:\n  max_tokens: 20\n---\n{{role \"user\"}}a b c");
    refit.run(&["prompt", "publish", "wordy.prompt"]).expect(0);
    let key = key(&refit, &["--budget", "10"]);
    let server = refit.serve(&[]);
    let mut cases = vec![json!({"model": "wordy", "messages": [], "prompt": {"id": "wordy"}})];
    for config in [json!({"maxOutputTokens": 20}), json!({"candidateCount": 2}), json!({"max_output_tokens": 20, "candidate_count": 1})] {
        let mut body = chat("mock/echo", "a b c");
        body["generationConfig"] = config;
        cases.push(body);
    }
    for body in cases {
        let refused = ask(&server, &key, &body);
        assert_eq!((refused.status, code(&refused)), (429, json!("budget_exceeded")), "{body}: {refused:?}");
    }
    assert_eq!(ask(&server, &key, &chat("mock/echo", "a b c")).status, 200);
}

/// What is read costs a dollar a token, of which a budget must expect one a byte; what is written costs nothing.
const DOLLAR_A_BYTE: &str = "[[prices.rows]]\nprovider = \"mock\"\nmodel = \"echo\"\ninput = \"1000000\"\noutput = 0\n";

#[test]
fn what_a_prompt_makes_of_its_variables_is_reserved() {
    let refit = Refit::new();
    refit.write("refit.toml", DOLLAR_A_BYTE);
    refit.write("often.prompt", "---\nmodel: mock/echo\n---\n{{#each turns}}{{@root.text}}{{/each}}");
    let sample = |id: &str, bytes: usize| json!({"id": id, "input": {"q": "q".repeat(bytes)}, "target": "a"});
    refit.write("shown.jsonl", format!("{}\n{}\n", sample("one", 600), sample("two", 700)));
    let shows = "---\nmodel: mock/echo\nexamples: {dataset: shown@1, split: all, count: 2}\n---\n{{q}}";
    refit.write("shows.prompt", shows);
    let nearest = shows.replace("count: 2", "count: 2, choose: nearest, by: q, model: mock/echo");
    refit.write("nearest.prompt", nearest);
    refit.run(&["data", "import", "shown.jsonl"]).expect(0);
    for prompt in ["often", "shows", "nearest"] {
        refit.run(&["prompt", "publish", &format!("{prompt}.prompt")]).expect(0);
    }
    let key = key(&refit, &["--budget", "1000"]);
    let server = refit.serve(&[]);
    let call =
        |prompt: &str, variables: Value| ask(&server, &key, &json!({"messages": [], "prompt": {"id": prompt, "variables": variables}}));
    let (text, turns) = ("x".repeat(100), |n: usize| vec![1; n]);
    // Ten times a hundred bytes, and the frame of a message.
    let often = call("often", json!({"text": text, "turns": turns(10)}));
    assert_eq!((often.status, code(&often)), (429, json!("budget_exceeded")), "{often:?}");
    assert!(often.body.contains("$1008.00"), "{often:?}");
    for prompt in ["shows", "nearest"] {
        let shown = call(prompt, json!({"q": "?"}));
        assert_eq!((shown.status, code(&shown)), (429, json!("budget_exceeded")), "{prompt}: {shown:?}");
    }
    assert_eq!(call("often", json!({"text": text, "turns": turns(3)})).status, 200);
}
