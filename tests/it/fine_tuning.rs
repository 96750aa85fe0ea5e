//! OpenAI's fine-tuning API over HTTP: local models trained on uploaded files, paused, resumed, killed and called; models of a provider fine-tuned
//! there; and what is refused.

use crate::keys::key;
use crate::support::{Refit, Reply, Server, http, send};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const JOBS: &str = "/v1/fine_tuning/jobs";

/// Uploads bytes to be trained on.
pub fn upload(server: &Server, key: &str, name: &str, purpose: &str, bytes: &str) -> Reply {
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{bytes}\r\n--x--\r\n"
    );
    let url = format!("{}/v1/files", server.url());
    send("POST", &url, Some(key), &[("content-type", "multipart/form-data; boundary=x")], Some(form.into_bytes()))
}

pub fn file(server: &Server, key: &str, bytes: &str) -> String {
    let made = upload(server, key, "train.jsonl", "fine-tune", bytes);
    assert_eq!(made.status, 200, "{made:?}");
    made.json()["id"].as_str().expect("an id").to_string()
}

/// Lines of conversations.
pub fn talks(pairs: &[(&str, &str)]) -> String {
    let line = |(question, answer): &(&str, &str)| {
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}).to_string() + "\n"
    };
    pairs.iter().map(line).collect()
}

fn id(value: &Value) -> &str {
    value["id"].as_str().expect("an id")
}

/// A provider that takes files and trains: what it was asked, and its port.
struct Vendor {
    port: u16,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

fn vendor() -> Vendor {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kept = kept.clone();
            std::thread::spawn(move || serve(stream, &kept));
        }
    });
    Vendor { port, asked }
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<(String, String)>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let line = head.lines().next().expect("a request line").trim_end_matches(" HTTP/1.1").to_string();
        let answer = answer(&line);
        asked.lock().expect("nobody panicked").push((line, String::from_utf8_lossy(&body).into_owned()));
        let (status, body) = answer;
        let reply = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(reply.as_bytes()).expect("sent");
    }
}

fn answer(line: &str) -> (&'static str, String) {
    let job = |status: &str, model: Value| {
        json!({"id": "ftjob-abc", "object": "fine_tuning.job", "status": status, "model": "gpt-x", "fine_tuned_model": model, "created_at": 7,
            "finished_at": null, "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 2.0}, "seed": 5,
            "trained_tokens": 99, "error": {}, "method": {"type": "supervised"}, "training_file": "file-there", "result_files": []})
    };
    let list = |item: Value| json!({"object": "list", "data": [item], "has_more": false});
    let body = match line {
        "POST /v1/files" => json!({"id": "file-there", "object": "file"}),
        "POST /v1/fine_tuning/jobs" => job("validating_files", Value::Null),
        "GET /v1/fine_tuning/jobs/ftjob-abc" => job("succeeded", json!("ft:gpt-x:me::1")),
        "POST /v1/fine_tuning/jobs/ftjob-abc/cancel" => job("cancelled", Value::Null),
        "POST /v1/fine_tuning/jobs/ftjob-abc/pause" => {
            return ("400 Bad Request", json!({"error": {"message": "not now", "type": "invalid_request_error"}}).to_string());
        }
        line if line.contains("/events?") => list(json!({"id": "ftevent-1", "object": "fine_tuning.job.event", "message": "m"})),
        line if line.contains("/checkpoints?") => list(json!({"id": "ftckpt-1", "fine_tuning_job_id": "ftjob-abc",
            "fine_tuned_model_checkpoint": "ft:gpt-x:me::1:ckpt-step-2", "step_number": 2})),
        _ => return ("404 Not Found", json!({"error": {"message": "no such path"}}).to_string()),
    };
    ("200 OK", body.to_string())
}

#[test]
fn a_providers_model_is_fine_tuned_there_with_the_files_from_here() {
    let vendor = vendor();
    let refit = Refit::new();
    refit.write(
        "refit.toml",
        format!(
            "[providers.up]\nkind = \"compatible\"\nbase_url = \"http://127.0.0.1:{}/v1\"\n[routes.work]\ntargets = [\"up/gpt-x\"]\n",
            vendor.port
        ),
    );
    let (mine, other) = (key(&refit, &[]), key(&refit, &["--project", "two"]));
    let poor = key(&refit, &["--budget", "5", "--budget-period", "month"]);
    let server = refit.serve(&[]);
    let training = file(&server, &mine, &talks(&[("q", "a \"quoted\" answer")]));
    let body = json!({"model": "work", "training_file": training, "suffix": "mine", "seed": 5, "metadata": {"team": "a"},
        "integrations": [{"type": "wandb", "wandb": {"project": "p"}}], "method": {"type": "supervised"}});
    let made = server.post(JOBS, Some(&mine), &body);
    assert_eq!(made.status, 200, "{made:?}");
    let job = made.json();
    assert!(id(&job).starts_with("ftjob_") && job["status"] == "validating_files" && job["training_file"] == json!(training), "{job}");
    let asked = vendor.asked.lock().expect("nobody panicked").clone();
    let [(_, upload), (_, create)] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(upload.contains("name=\"purpose\"\r\n\r\nfine-tune") && upload.contains("a \\\"quoted\\\" answer"), "{upload}");
    let create: Value = serde_json::from_str(create).expect("JSON");
    let mut wanted = body.clone();
    (wanted["model"], wanted["training_file"]) = (json!("gpt-x"), json!("file-there"));
    assert_eq!(create, wanted, "everything else goes on as it was written");

    let path = format!("{JOBS}/{}", id(&job));
    let shown = server.get(&path, Some(&mine)).json();
    assert_eq!((&shown["status"], &shown["fine_tuned_model"]), (&json!("succeeded"), &json!("up/ft:gpt-x:me::1")), "{shown}");
    assert_eq!((&shown["error"], &shown["trained_tokens"], &shown["metadata"]["team"]), (&Value::Null, &json!(99), &json!("a")), "{shown}");
    let listed = server.get(&format!("{JOBS}?metadata[team]=a"), Some(&mine)).json();
    assert_eq!((&listed["data"][0]["id"], &listed["data"][0]["status"]), (&job["id"], &json!("succeeded")), "what it said last");
    assert_eq!(server.get(&format!("{JOBS}?metadata[team]=b"), Some(&mine)).json()["data"], json!([]));
    assert_eq!(server.get(&format!("{path}/events"), Some(&mine)).json()["data"][0]["id"], "ftevent-1");
    let checkpoint = server.get(&format!("{path}/checkpoints"), Some(&mine)).json()["data"][0].clone();
    assert_eq!(
        (&checkpoint["fine_tuning_job_id"], &checkpoint["fine_tuned_model_checkpoint"]),
        (&job["id"], &json!("up/ft:gpt-x:me::1:ckpt-step-2"))
    );
    let refused = server.post(&format!("{path}/pause"), Some(&mine), &Value::Null);
    assert!(refused.status == 400 && refused.body.contains("not now"), "{refused:?}");
    let cancelled = http("POST", &format!("{}{path}/cancel", server.url()), Some(&mine), Some(Vec::new()));
    assert_eq!(cancelled.json()["status"], "cancelled", "{cancelled:?}");

    for verb in ["", "/events", "/checkpoints"] {
        assert_eq!(server.get(&format!("{path}{verb}"), Some(&other)).status, 404);
    }
    assert_eq!(server.post(&format!("{path}/cancel"), Some(&other), &json!({})).status, 404);
    let calls = vendor.asked.lock().expect("nobody panicked").len();
    let unpriced = server.post(JOBS, Some(&poor), &body);
    assert_eq!((unpriced.status, &unpriced.json()["error"]["code"]), (403, &json!("price_unknown")), "{unpriced:?}");
    assert_eq!(vendor.asked.lock().expect("nobody panicked").len(), calls, "nothing was sent for it");
}

#[test]
fn what_cannot_be_fine_tuned_is_refused_by_its_field() {
    let refit = Refit::new();
    refit.write("refit.toml", "[routes.two]\ntargets = [\"mock/echo\", \"mock/other\"]\n");
    let (mine, other) = (key(&refit, &[]), key(&refit, &["--project", "two"]));
    let bounded = key(&refit, &["--route", "mock/echo"]);
    let server = refit.serve(&[]);
    let training = file(&server, &mine, &talks(&[("q", "a")]));
    let theirs = file(&server, &other, &talks(&[("q", "a")]));
    let batch = upload(&server, &mine, "b.jsonl", "batch", "{}").json()["id"].as_str().expect("an id").to_string();
    let refused = |key: &str, change: Value| {
        let mut body = json!({"model": "mock/echo", "training_file": training});
        body.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        let reply = server.post(JOBS, Some(key), &body);
        assert!((400..500).contains(&reply.status), "{reply:?}");
        let error = reply.json()["error"].clone();
        (error["param"].as_str().unwrap_or_default().to_string(), error["message"].as_str().unwrap_or_default().to_string())
    };
    for (change, param, part) in [
        (json!({}), "model", "trains nothing"),
        (json!({"model": "nobody/x"}), "model", "does not exist"),
        (json!({"model": "two"}), "model", "has 2 targets"),
        (json!({"model": "local/m:desk"}), "model", "fine-tuned already"),
        (json!({"training_file": null}), "training_file", "missing"),
        (json!({"training_file": "file-x"}), "training_file", "does not exist"),
        (json!({"training_file": theirs}), "training_file", "does not exist"),
        (json!({"training_file": batch}), "training_file", "was uploaded for \"batch\""),
        (json!({"validation_file": batch}), "validation_file", "was uploaded for \"batch\""),
        (json!({"metadata": {"a": 1}}), "metadata", ""),
        (json!({"hyperparameters": {"n_epochs": 1.5}}), "hyperparameters.n_epochs", "whole number"),
        (json!({"model": "local/m", "integrations": [{"type": "wandb"}]}), "integrations", "nothing is sent"),
        (json!({"model": "local/m", "method": {"type": "reinforcement"}}), "method.type", "graders"),
        (json!({"model": "local/m", "hyperparameters": {"n_epoch": 3}}), "hyperparameters.n_epoch", "did you mean \"n_epochs\"?"),
        (json!({"model": "local/m", "hyperparameters": {"beta": 0.1}}), "hyperparameters.beta", "dpo"),
    ] {
        let (found, message) = refused(&mine, change.clone());
        assert!(found.starts_with(param) && message.contains(part), "{change}: {found}: {message}");
    }
    assert_eq!(refused(&bounded, json!({"model": "local/m"})).0, "model");
    assert_eq!(server.get(&format!("{JOBS}/ftjob_x"), Some(&mine)).status, 404);
}
