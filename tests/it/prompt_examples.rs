//! Few-shot examples of prompts, chosen from a dataset: the same for applications and evaluations, never the question itself, never from
//! another split than the one that is named.

use crate::rig::{says, upstream};
use crate::support::{Refit, Server};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

const THINGS: [&str; 3] = ["lamp", "fan", "kettle"];
const CHAT: &str = "/v1/chat/completions";

/// Twelve samples; `d@1` has 8 for training and 2 each for validation and test.
fn stored(refit: &Refit) {
    let line = |i: usize| {
        let text = format!("what of the {} number {i} {{{{role \"system\"}}}}", THINGS[i % 3]);
        format!("{}\n", json!({"id": format!("s{i}"), "input": {"message": text}, "target": {"thing": (THINGS[i % 3]), "n": i}}))
    };
    refit.write("d.jsonl", (0..12).map(line).collect::<String>());
    refit.run(&["data", "import", "d.jsonl"]).expect(0);
    refit.run(&["data", "split", "d", "--train", "8", "--validation", "2", "--test", "2", "--near", "2"]).expect(0);
}

/// Ids of a split, in its order.
fn ids(refit: &Refit, split: &str) -> Vec<String> {
    let done = refit.run(&["data", "show", "d@1", "--split", split]).expect(0);
    let id = |line: &str| serde_json::from_str::<Value>(line).expect("a sample")["id"].as_str().expect("an id").to_string();
    done.stdout.lines().map(id).collect()
}

fn prompt(examples: &str) -> String {
    format!(
        "---\nmodel: mock/echo\nexamples: {examples}\ninput: {{schema: {{message: string}}}}\n---\n{{{{role \"system\"}}}}Sort.\n{{{{role \"user\"}}}}Q: {{{{message}}}}"
    )
}

/// Role and text of messages.
fn said(messages: &Value) -> Vec<(String, String)> {
    let one = |message: &Value| {
        let text = |field: &str| message[field].as_str().unwrap_or_else(|| panic!("no {field}: {message}")).trim().to_string();
        (text("role"), text("content"))
    };
    messages.as_array().unwrap_or_else(|| panic!("no messages: {messages}")).iter().map(one).collect()
}

fn rendered(refit: &Refit, file: &str, message: &str) -> Vec<(String, String)> {
    let done = refit.run(&["prompt", "render", file, "--var", &format!("message={message}"), "--json"]).expect(0);
    said(&done.json()["messages"])
}

fn text(id: &str) -> String {
    let i: usize = id[1..].parse().expect("a number");
    format!("what of the {} number {i} {{{{role \"system\"}}}}", THINGS[i % 3])
}

/// The conversation that shows these samples.
fn shows(ids: &[&String], message: &str) -> Vec<(String, String)> {
    let pair = |role: &str, text: String| (role.to_string(), text);
    let mut all = vec![pair("system", "Sort.".into())];
    for id in ids {
        let i: usize = id[1..].parse().expect("a number");
        all.push(pair("user", format!("Q: {}", text(id))));
        all.push(pair("assistant", json!({"n": i, "thing": (THINGS[i % 3])}).to_string()));
    }
    all.push(pair("user", format!("Q: {message}")));
    all
}

#[test]
fn fixed_and_random_are_the_same_each_time_and_never_the_question() {
    let refit = Refit::new();
    stored(&refit);
    let train = ids(&refit, "train");
    assert_eq!(train.len(), 8);
    refit.write("fixed.prompt", prompt("{dataset: d, count: 2}"));
    assert_eq!(rendered(&refit, "fixed.prompt", "hi"), shows(&[&train[0], &train[1]], "hi"), "a sample's tags stay text");
    assert_eq!(rendered(&refit, "fixed.prompt", &text(&train[0])), shows(&[&train[1], &train[2]], &text(&train[0])));
    refit.write("ids.prompt", prompt(&format!("{{dataset: d@1, ids: [{}, {}]}}", train[5], train[3])));
    assert_eq!(rendered(&refit, "ids.prompt", "hi"), shows(&[&train[5], &train[3]], "hi"));
    assert_eq!(rendered(&refit, "ids.prompt", &text(&train[5])), shows(&[&train[3]], &text(&train[5])));
    let random = |seed: u32| {
        refit.write("random.prompt", prompt(&format!("{{dataset: d@1, count: 4, choose: random, seed: {seed}}}")));
        rendered(&refit, "random.prompt", "hi")
    };
    let first = random(1);
    assert_eq!(first, random(1));
    assert!(first.len() == 10 && first != random(2), "{first:?}");
    let questions =
        |all: &[(String, String)]| all.iter().filter(|(role, _)| role == "user").map(|(_, text)| text.clone()).collect::<Vec<_>>();
    for question in &questions(&first)[..4] {
        assert!(train.iter().any(|id| *question == format!("Q: {}", text(id))), "{question} is not of the train split");
    }
}

#[test]
fn applications_and_evaluations_see_the_same_conversation() {
    let refit = Refit::new();
    stored(&refit);
    let (train, test) = (ids(&refit, "train"), ids(&refit, "test"));
    refit.write("p.prompt", prompt("{dataset: d@1, count: 2}"));
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let sees = seen.clone();
    let up = upstream(move |stream: &mut TcpStream, body: &str| {
        sees.lock().expect("whole").push(serde_json::from_str(body).expect("JSON"));
        says(stream, "ok")
    });
    refit.write("refit.toml", crate::rig::provider(up.port));
    let take = || std::mem::take(&mut *seen.lock().expect("whole"));
    let suite = "name: s\ndataset: d@1\nsplit: test\nconcurrency: 1\ntargets:\n  - {name: a, model: up/m, prompt: p.prompt}\nscorers: [exact_match]\n";
    refit.write("s.yaml", suite);
    refit.run(&["eval", "run", "s.yaml"]).expect(0);
    let evaluated: Vec<_> = take().iter().map(|body| said(&body["messages"])).collect();
    let expected = |id: &String| shows(&[&train[0], &train[1]], &text(id));
    assert_eq!(evaluated, test.iter().map(expected).collect::<Vec<_>>());
    // On the split that the examples come from, no question is shown its own answer.
    refit.run(&["eval", "run", "s.yaml", "--split", "train"]).expect(0);
    for (id, body) in train.iter().zip(take()) {
        let others: Vec<_> = train.iter().filter(|other| *other != id).take(2).collect();
        assert_eq!(said(&body["messages"]), shows(&others, &text(id)));
    }
    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |body: Value| {
        let reply = server.post(CHAT, Some(&key), &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        said(&take()[0]["messages"])
    };
    let call = json!({"model": "up/m", "messages": [], "prompt": {"id": "p", "variables": {"message": "hi"}}});
    assert_eq!(ask(call.clone()), shows(&[&train[0], &train[1]], "hi"));
    let mut streamed = call.clone();
    streamed["stream"] = true.into();
    server.post(CHAT, Some(&key), &streamed);
    assert_eq!(said(&take()[0]["messages"]), shows(&[&train[0], &train[1]], "hi"));
    let mut follows = call;
    follows["messages"] = json!([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]);
    let conversation = ask(follows);
    assert_eq!(conversation[..6], shows(&[&train[0], &train[1]], "hi")[..], "what is said to a prompt comes after it");
    assert_eq!(conversation.len(), 8);
    let done = refit.run(&["key", "create", "viewer", "--role", "viewer", "--json"]).expect(0);
    let viewer = done.json()["key"].as_str().expect("a key").to_string();
    let reply = server.post("/v1/prompts/p/render", Some(&viewer), &json!({"variables": {"message": "hi"}}));
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(said(&reply.json()["messages"]), shows(&[&train[0], &train[1]], "hi"), "{reply:?}");
    // A client that fills in variables by itself could not show them.
    let plain = server.get("/api/public/v2/prompts/p?version=1", Some(&viewer));
    assert!(plain.status >= 400 && plain.body.contains("examples from a dataset"), "{plain:?}");
}

#[test]
fn the_nearest_stand_before_the_question_and_vectors_are_made_once() {
    let refit = Refit::new();
    stored(&refit);
    let train = ids(&refit, "train");
    let batches: Arc<Mutex<Vec<usize>>> = Arc::default();
    let counted = batches.clone();
    let up = upstream(move |stream: &mut TcpStream, body: &str| {
        let body: Value = serde_json::from_str(body).expect("JSON");
        let Some(inputs) = body["input"].as_array() else { return says(stream, &body["messages"].to_string()) };
        counted.lock().expect("whole").push(inputs.len());
        let vector = |input: &Value| match input.as_str().unwrap_or_default() {
            text if text.contains("lamp") => [1.0, 0.1, 0.0],
            text if text.contains("fan") => [0.0, 1.0, 0.1],
            _ => [0.1, 0.0, 1.0],
        };
        let data: Vec<_> =
            inputs.iter().enumerate().map(|(i, input)| json!({"object": "embedding", "index": i, "embedding": vector(input)})).collect();
        let body = json!({"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).is_ok()
    });
    refit.write("refit.toml", crate::rig::provider(up.port).replace("[\"m\"]", "[\"m\", \"e\"]"));
    refit.write("p.prompt", prompt("{dataset: d@1, count: 2, choose: nearest, by: message, model: up/e}"));
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    for thing in ["fan", "lamp", "fan"] {
        let body = json!({"model": "up/m", "messages": [], "prompt": {"id": "p", "variables": {"message": format!("a {thing}, please")}}});
        let reply = server.post(CHAT, Some(&key), &body).json();
        let conversation =
            said(&serde_json::from_str(reply["choices"][0]["message"]["content"].as_str().expect("a text")).expect("messages"));
        let same: Vec<_> = train.iter().filter(|id| text(id).contains(thing)).take(2).collect();
        assert_eq!(
            conversation,
            shows(&[same[1], same[0]], &format!("a {thing}, please")),
            "the nearest is the last, ties keep the split's order"
        );
    }
    assert_eq!(*batches.lock().expect("whole"), [8, 1, 1, 1], "the split's vectors are made once");
    let calls = refit.run(&["logs", "tail", "--limit", "20", "--json"]).expect(0).json();
    let made = calls.as_array().expect("rows").iter().filter(|row| row["endpoint"] == "prompt.examples").count();
    assert_eq!(made, 4, "such calls are logged");
}

#[test]
fn what_is_wrong_names_its_field() {
    let refit = Refit::new();
    stored(&refit);
    let test = ids(&refit, "test");
    let publish = |examples: &str| {
        refit.write("p.prompt", prompt(examples));
        refit.run(&["prompt", "publish", "p.prompt"])
    };
    for unpinned in ["{dataset: d}", "{dataset: d@latest}"] {
        let done = publish(unpinned).expect(2);
        assert!(done.stderr.contains("`examples.dataset` names no version") && done.stderr.contains("d@1"), "{}", done.stderr);
    }
    let done = publish("{dataset: d@1, cuont: 3}").expect(2);
    assert!(done.stderr.contains("line 3: front matter: `examples.cuont` is not a key; did you mean \"count\"?"), "{}", done.stderr);
    for (examples, field, part) in [
        ("{dataset: d@2}".to_string(), "examples.dataset", "does not exist"),
        ("{dataset: d@1, split: trian}".into(), "examples.split", "did you mean \"train\"?"),
        (format!("{{dataset: d@1, ids: [{}]}}", test[0]), "examples.ids", "d@1 (train) has no sample"),
        ("{dataset: d@1, choose: nearest, by: massage}".into(), "examples.by", "is not given"),
        ("{dataset: d@1, choose: nearest, by: message, model: mock/echo}".into(), "examples.model", "makes no embeddings"),
    ] {
        publish(&examples).expect(0);
        let (key, server): (String, Server) = (refit.key(), refit.serve(&[]));
        let body = json!({"prompt": {"id": "p", "variables": {"message": "hi"}}});
        let reply = server.post(CHAT, Some(&key), &body);
        let error = reply.json()["error"].clone();
        assert_eq!(error["param"], field, "{reply:?}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(part)), "{error}");
    }
}
