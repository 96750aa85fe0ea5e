//! Decoding parameters of local models, over HTTP and on the real model.

use crate::local::{MODEL, with_model};
use crate::support::{Refit, Server};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A server with the real model and a key, and what is asked of it.
pub(crate) struct Up {
    pub(crate) server: Server,
    pub(crate) key: String,
    pub(crate) refit: Refit,
}

impl Up {
    pub(crate) fn new(test: &str, config: &str) -> Option<Self> {
        let refit = with_model(test)?;
        refit.write("refit.toml", config);
        let key = refit.key();
        Some(Up { server: refit.serve(&["--config", "refit.toml"]), key, refit })
    }

    /// The reply to a question with more fields.
    pub(crate) fn ask(&self, question: &str, more: &Value) -> Value {
        let reply = self.server.post("/v1/chat/completions", Some(&self.key), &body(question, more));
        assert_eq!(reply.status, 200, "{more}: {reply:?}");
        reply.json()
    }

    /// The refusal: status, code and parameter.
    pub(crate) fn refusal(&self, more: &Value) -> (u16, String, String, String) {
        let reply = self.server.post("/v1/chat/completions", Some(&self.key), &body("Hi.", more));
        let error = reply.json()["error"].clone();
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_string();
        (reply.status, text("code"), text("param"), text("message"))
    }

    /// The chunks of a streamed reply.
    pub(crate) fn stream(&self, question: &str, more: &Value) -> Vec<Value> {
        let mut more = more.clone();
        more["stream"] = true.into();
        let reply = self.server.post("/v1/chat/completions", Some(&self.key), &body(question, &more));
        assert_eq!(reply.status, 200, "{more}: {reply:?}");
        assert!(reply.body.trim_end().ends_with("data: [DONE]"), "{}", reply.body);
        let events = reply.body.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        events.map(|event| serde_json::from_str(event).expect("a chunk is JSON")).collect()
    }
}

pub(crate) fn body(question: &str, more: &Value) -> Value {
    let mut body =
        json!({"model": format!("local/{MODEL}"), "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

pub(crate) fn text(reply: &Value) -> String {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("no text: {reply}")).to_string()
}

/// Texts of a streamed reply, by choice.
fn texts(chunks: &[Value]) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts.resize(texts.len().max(index + 1), String::new());
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    texts
}

const COLOURS: &str = "Name three colours.";

#[test]
fn a_seed_gives_the_same_text_whatever_else_is_in_the_batch() {
    let Some(up) = Up::new("a_seed_gives_the_same_text_whatever_else_is_in_the_batch", "") else { return };
    let seeded = json!({"temperature": 1.1, "top_p": 0.95, "seed": 7, "max_tokens": 32});
    let alone = text(&up.ask(COLOURS, &seeded));
    let crowded = std::thread::scope(|scope| {
        let others: Vec<_> = (0..6)
            .map(|i| {
                let up = &up;
                scope.spawn(move || {
                    up.ask(&format!("Tell me about the number {i}."), &json!({"temperature": 1.0, "seed": i, "max_tokens": 40}))
                })
            })
            .collect();
        let crowded = text(&up.ask(COLOURS, &seeded));
        others.into_iter().for_each(|other| drop(other.join().expect("an answer")));
        crowded
    });
    assert_eq!(crowded, alone);
    assert_ne!(text(&up.ask(COLOURS, &json!({"temperature": 1.1, "top_p": 0.95, "seed": 8, "max_tokens": 32}))), alone);
}

#[test]
fn what_leaves_one_token_is_greedy_and_penalties_break_repetition() {
    let Some(up) = Up::new("what_leaves_one_token_is_greedy_and_penalties_break_repetition", "") else { return };
    let greedy = text(&up.ask(COLOURS, &json!({})));
    for one in [json!({"top_k": 1}), json!({"min_p": 1.0}), json!({"top_p": 0.0})] {
        let mut fields = json!({"temperature": 1.5, "seed": 3});
        fields.as_object_mut().expect("an object").extend(one.as_object().expect("an object").clone());
        assert_eq!(text(&up.ask(COLOURS, &fields)), greedy, "{one}");
    }
    // Greedy, the small model does so and never ends.
    let most_said = |more: Value| {
        let mut fields = json!({"max_tokens": 128});
        fields.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let said = text(&up.ask("Write 'la la la la' for a whole minute.", &fields));
        let mut counts = HashMap::new();
        said.split_whitespace().for_each(|word| *counts.entry(word.to_string()).or_insert(0) += 1);
        counts.into_values().max().unwrap_or(0)
    };
    let plain = most_said(json!({}));
    assert!(plain >= 8, "the model repeats itself {plain} times only");
    for penalty in
        [json!({"frequency_penalty": 2.0}), json!({"repetition_penalty": 1.5}), json!({"presence_penalty": 2.0, "frequency_penalty": 1.0})]
    {
        let penalised = most_said(penalty.clone());
        assert!(penalised * 2 <= plain, "{penalty}: {penalised} of {plain}");
    }
}

#[test]
fn a_bias_bans_and_forces_tokens() {
    let Some(up) = Up::new("a_bias_bans_and_forces_tokens", "") else { return };
    let first = up.ask(COLOURS, &json!({"max_tokens": 1, "logprobs": true, "top_logprobs": 2}));
    let greedy = text(&first);
    let second = first["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["token"].as_str().expect("a token").to_string();
    // SmolLM2's tokens 28 to 31 are the digits 0-9's neighbours; whatever 40 stands for, a bias of 100 says nothing else.
    let forced = text(&up.ask(COLOURS, &json!({"max_tokens": 4, "logit_bias": {"40": 100}})));
    let unit = forced.chars().next().expect("text").to_string();
    assert_eq!(forced, unit.repeat(4), "token 40 and nothing else");
    let id = token_of(&up, &greedy);
    let banned = text(&up.ask(COLOURS, &json!({"max_tokens": 1, "logit_bias": {id.to_string(): -100}})));
    assert_eq!(banned, second, "without its first choice the model says its second");
}

/// The id of the token that a text is: the one that a bias makes the reply.
fn token_of(up: &Up, text_: &str) -> u32 {
    let model = crate::engine::model().expect("the model is there");
    let ids = model.tokenizer.encode(text_).expect("tokens");
    assert_eq!(ids.len(), 1, "{text_:?} is one token: {:?}", up.key.len());
    ids[0]
}

#[test]
fn logprobs_come_in_openais_shape_whole_and_streamed() {
    let Some(up) = Up::new("logprobs_come_in_openais_shape_whole_and_streamed", "") else { return };
    // Characters of several tokens are among the words: each token is told by its bytes.
    let question = "Repeat exactly: 🦀 grüße 漢字";
    let fields = json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 32});
    let reply = up.ask(question, &fields);
    let rows = reply["choices"][0]["logprobs"]["content"].as_array().expect("rows").clone();
    let bytes = |rows: &[Value]| -> Vec<u8> {
        rows.iter()
            .flat_map(|row| row["bytes"].as_array().expect("bytes").iter().map(|byte| byte.as_u64().expect("a byte") as u8))
            .collect()
    };
    assert_eq!(String::from_utf8(bytes(&rows)).expect("whole characters"), text(&reply));
    for row in &rows {
        let top = row["top_logprobs"].as_array().expect("the likeliest");
        assert_eq!(top.len(), 3, "{row}");
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&row["token"], &row["logprob"]), "greedy takes the likeliest");
        let chances: Vec<f64> = top.iter().map(|one| one["logprob"].as_f64().expect("a number")).collect();
        assert!(chances.iter().all(|x| *x <= 0.0) && chances.is_sorted_by(|a, b| a >= b), "{chances:?}");
        assert!(chances.iter().map(|x| x.exp()).sum::<f64>() <= 1.0001, "{chances:?}");
    }
    let chunks = up.stream(question, &fields);
    let streamed: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().expect("choices"))
        .flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    // The streamed prompt came from the cache, whose last row is computed alone: the same up to rounding.
    assert_eq!(streamed.len(), rows.len());
    for (streamed, row) in streamed.iter().zip(&rows) {
        assert_eq!((&streamed["token"], &streamed["bytes"]), (&row["token"], &row["bytes"]));
        let chance = |row: &Value| row["logprob"].as_f64().expect("a number");
        assert!((chance(streamed) - chance(row)).abs() < 1e-3, "{streamed} {row}");
    }
    // Each chunk's rows are the tokens that its text begins with.
    assert_eq!(texts(&chunks), [text(&reply)]);
    let plain = up.ask(question, &json!({"logprobs": true, "max_tokens": 2}));
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    assert!(up.ask(question, &json!({"max_tokens": 2}))["choices"][0].get("logprobs").is_none_or(Value::is_null));
    let older = json!({"model": format!("local/{MODEL}"), "prompt": COLOURS, "temperature": 0, "max_tokens": 4, "logprobs": 2});
    let older = up.server.post("/v1/completions", Some(&up.key), &older).json();
    assert_eq!(older["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len), Some(4), "{older}");
}

#[test]
fn choices_share_their_prompt_and_are_what_their_seeds_say() {
    let Some(up) = Up::new("choices_share_their_prompt_and_are_what_their_seeds_say", "") else { return };
    let fields = |n: u32, seed: u64| json!({"n": n, "temperature": 1.0, "seed": seed, "max_tokens": 16});
    let three = up.ask(COLOURS, &fields(3, 5));
    let choices = three["choices"].as_array().expect("choices");
    let said: Vec<&str> = choices.iter().map(|choice| choice["message"]["content"].as_str().expect("text")).collect();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert!(said[0] != said[1] && said[1] != said[2], "{said:?}");
    let one = up.ask(COLOURS, &fields(1, 5));
    assert_eq!(text(&one), said[0], "the first choice is that of a request for one");
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"], "the prompt is read once");
    let counted = three["usage"]["completion_tokens"].as_u64().expect("a count");
    assert!((18..=48).contains(&counted), "all choices are counted: {counted}");
    let chunks = up.stream(COLOURS, &fields(3, 5));
    assert_eq!(texts(&chunks), said);
    let ends =
        chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices")).filter(|choice| !choice["finish_reason"].is_null());
    assert_eq!(ends.count(), 3);
}

#[test]
fn stop_texts_are_found_across_tokens_and_never_sent() {
    let Some(up) = Up::new("stop_texts_are_found_across_tokens_and_never_sent", "") else { return };
    let whole = text(&up.ask(COLOURS, &json!({"max_tokens": 40})));
    let characters: Vec<char> = whole.chars().collect();
    // Every stretch of 7 characters begins and ends in the middle of some word or other.
    for begin in [3, 11, 20] {
        let stop: String = characters[begin..begin + 7].iter().collect();
        let expected = &whole[..whole.find(&stop).expect("it is there")];
        let fields = json!({"max_tokens": 40, "stop": ["never said", stop], "logprobs": true});
        let reply = up.ask(COLOURS, &fields);
        assert_eq!((text(&reply).as_str(), &reply["choices"][0]["finish_reason"]), (expected, &json!("stop")), "{stop:?}");
        assert_eq!(texts(&up.stream(COLOURS, &fields)), [expected]);
        let rows = reply["choices"][0]["logprobs"]["content"].as_array().expect("rows");
        let told: String = rows.iter().map(|row| row["token"].as_str().expect("a token")).collect();
        assert!(told.starts_with(expected) && !told.contains(&stop), "rows are of what was sent: {told:?} for {expected:?}");
    }
}

#[test]
fn what_openai_refuses_is_refused_with_the_parameter_named() {
    let Some(up) = Up::new("what_openai_refuses_is_refused_with_the_parameter_named", "[local]\nmax_batch = 2\nmax_queue = 3\n") else {
        return;
    };
    for (more, code, param) in [
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 6}), "invalid_value", "n"),
        (json!({"n": 129}), "invalid_value", "n"),
        (json!({"logit_bias": {"fifty": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"999999": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "invalid_value", "logit_bias"),
        (json!({"top_logprobs": 3}), "invalid_value", "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"top_k": -5}), "invalid_value", "top_k"),
        (json!({"min_p": 2}), "invalid_value", "min_p"),
        (json!({"repetition_penalty": 0}), "invalid_value", "repetition_penalty"),
        (json!({"min_tokens": 3}), "unsupported", "min_tokens"),
        (json!({"reasoning_effort": "high"}), "unsupported", "reasoning_effort"),
        (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "not": {}}}}}),
            "invalid_value",
            "response_format",
        ),
    ] {
        let (status, found, at, message) = up.refusal(&more);
        assert_eq!((status, found.as_str(), at.as_str()), (400, code, param), "{more}: {message}");
        let mut streamed = more.clone();
        streamed["stream"] = true.into();
        assert_eq!(up.refusal(&streamed).0, 400, "{streamed}");
    }
    assert_eq!(
        up.ask("Hi.", &json!({"n": 5, "max_tokens": 2}))["choices"].as_array().map(Vec::len),
        Some(5),
        "as many as may run and wait"
    );
}
