//! The request log: a row for every call, before the reply ends, also when the process is killed.

use crate::support::{Refit, http};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const CHAT: &str = "/v1/chat/completions";

fn body(text: &str) -> Value {
    json!({"model": "mock/echo", "messages": [{"role": "user", "content": text}]})
}

fn ids(refit: &Refit) -> Vec<String> {
    let rows = refit.run(&["logs", "tail", "--limit", "1000000", "--json"]).expect(0).json();
    rows.as_array().expect("rows").iter().filter_map(|row| row["id"].as_str().map(str::to_string)).collect()
}

#[test]
fn the_row_stands_when_the_reply_has_ended() {
    let refit = Refit::new();
    let (key, server) = (refit.key(), refit.serve(&[]));
    for fields in [json!({}), json!({"stream": true})] {
        let mut request = body("my words");
        request.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let reply = server.post(CHAT, Some(&key), &request);
        let id = reply.header("x-request-id").expect("an id");
        let row = refit.run(&["logs", "show", id, "--json"]).expect(0).json();
        assert_eq!(
            (&row["status"], &row["provider"], &row["model"], &row["project"]),
            (&json!(200), &json!("mock"), &json!("echo"), &json!("default"))
        );
        assert_eq!((&row["input_tokens"], &row["output_tokens"], &row["finish_reason"]), (&json!(2), &json!(2), &json!("stop")));
        assert_eq!(row["request"]["messages"][0]["content"], "my words");
        assert_eq!(row["reply"]["choices"][0]["message"]["content"], "my words");
        assert_eq!(row["streamed"], fields.get("stream").is_some());
        assert!(!row.to_string().contains(&key), "keys are not logged");
    }
    let refused = server.post(CHAT, Some(&key), &json!({"model": 7}));
    let row = refit.run(&["logs", "show", refused.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["status"], &row["error_code"]), (&json!(400), &json!("invalid_value")));
    let done = refit.run(&["logs", "show", "req_unknown"]).expect(2);
    assert!(done.stderr.contains("req_unknown") && done.stderr.contains("hint:"), "{done:?}");
}

#[test]
fn bodies_stay_out_of_the_log_where_the_configuration_says_so() {
    let refit = Refit::new();
    refit.write("refit.toml", "[log]\nbodies = false\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let reply = server.post(CHAT, Some(&key), &body("canary-words"));
    let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["request"], &row["reply"], &row["output_tokens"]), (&Value::Null, &Value::Null, &json!(1)));
}

#[test]
fn a_kill_under_load_loses_no_acknowledged_row_and_doubles_none() {
    let refit = Refit::new();
    let key = refit.key();
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let mut server = refit.serve(&[]);
        let (stop, url) = (Arc::new(AtomicBool::new(false)), format!("{}{CHAT}", server.url()));
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (stop, url, key, acknowledged) = (stop.clone(), url.clone(), key.clone(), acknowledged.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let mut request = body("a few words that are echoed");
                        request["stream"] = json!(client % 2 == 0);
                        let answered = std::panic::catch_unwind(|| http("POST", &url, Some(&key), Some(request.to_string().into_bytes())));
                        // A request that the kill cut off was not acknowledged.
                        let Ok(reply) = answered else { return };
                        if client % 2 == 0 && !reply.body.ends_with("data: [DONE]\n\n") {
                            return;
                        }
                        acknowledged.lock().expect("list").push(reply.header("x-request-id").expect("an id").to_string());
                    }
                })
            })
            .collect();
        let before = acknowledged.lock().expect("list").len();
        while acknowledged.lock().expect("list").len() < before + 60 {
            assert!(clients.iter().any(|client| !client.is_finished()), "all clients gave up");
            std::thread::yield_now();
        }
        server.kill();
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("a client ends"));
    }
    let acknowledged: HashSet<_> = acknowledged.lock().expect("list").iter().cloned().collect();
    let standing: HashSet<_> = ids(&refit).into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&standing).collect();
    assert!(acknowledged.len() >= 180 && lost.is_empty(), "lost {lost:?} of {}", acknowledged.len());

    // The next start moves what the killed ones left to the database; each row is there once.
    let server = refit.serve(&[]);
    drop(server);
    let moved = ids(&refit);
    assert_eq!(moved.len(), moved.iter().collect::<HashSet<_>>().len());
    assert!(acknowledged.iter().all(|id| moved.contains(id)));
    let segments = std::fs::read_dir(refit.data_dir().join("requests")).expect("the directory").count();
    assert_eq!(segments, 0, "no segment is left");
}
