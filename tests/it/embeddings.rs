//! Local embeddings: the real all-MiniLM-L6-v2 against candle-transformers' `BertModel`, over HTTP, in the semantic cache; and model folders
//! that are none.

use crate::support::{self, Refit};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use refit::engine::encoder::EncoderOptions;
use refit::engine::{Embedder, Encoder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MODEL: &str = "all-minilm-l6-v2";
const TEXTS: &[&str] = &[
    "How do I reset my password?",
    "I forgot the word that lets me in.",
    "Größe, 東京 and naïve café 🦀!",
    "a",
    "The quick brown fox jumps over the lazy dog. In 1969, three people flew to the Moon and came back with stones.",
];

macro_rules! folder_or_skip {
    ($name:literal) => {
        match support::embedder_folder() {
            Some(folder) => folder,
            None => return support::skip($name, "REFIT_TEST_EMBEDDER does not name the embedding model"),
        }
    };
}

fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let names = ["config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json", "1_Pooling/config.json"];
    names.iter().map(|name| ((*name).to_string(), folder.join(name))).collect()
}

/// Mean-pooled vectors of length one, by candle-transformers, one text at a time.
fn reference(folder: &Path, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a file")).expect("a config");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).expect("safetensors");
    let model = BertModel::load(weights, &config).expect("the reference loads");
    let vector = |tokens: &Vec<u32>| -> Vec<f32> {
        let ids = Tensor::new(&tokens[..], &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("ids");
        let kinds = ids.zeros_like().expect("kinds");
        let hidden = model.forward(&ids, &kinds, None).and_then(|hidden| hidden.mean(1)).and_then(|mean| mean.squeeze(0)).expect("hidden");
        let mean: Vec<f32> = hidden.to_vec1().expect("a vector");
        let length = mean.iter().map(|x| x * x).sum::<f32>().sqrt();
        mean.iter().map(|x| x / length).collect()
    };
    texts.iter().map(vector).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vectors_equal_those_of_an_independent_implementation() {
    let folder = folder_or_skip!("vectors_equal_those_of_an_independent_implementation");
    let model = Embedder::load(&files(folder.path())).expect("the model loads");
    assert_eq!((model.dimensions(), model.max_tokens()), (384, 256));
    let long = "lorem ipsum dolor sit amet ".repeat(20);
    let mut texts: Vec<Vec<u32>> = TEXTS.iter().chain([&long.as_str()]).map(|text| model.tokens(text).expect("tokens")).collect();
    // Known ids of bert-base-uncased.
    assert_eq!(texts[3], [101, 1037, 102]);
    texts.extend((0..60).map(|i| (0..3 + i * 4).map(|j| 1000 + ((i * 31 + j * 17) % 20_000) as u32).collect()));
    let refs: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let found = model.embed(&refs);
    let difference = largest_difference(&found, &reference(folder.path(), &texts));
    assert!(difference < 1e-5, "largest difference {difference}");
    // Alone, together, in another order: the same vector.
    let alone: Vec<Vec<f32>> = refs.iter().flat_map(|text| model.embed(&[*text])).collect();
    assert!(largest_difference(&found, &alone) < 1e-6);
    let mut backwards = model.embed(&refs.iter().rev().copied().collect::<Vec<_>>());
    backwards.reverse();
    assert!(largest_difference(&found, &backwards) < 1e-6);
}

#[test]
fn requests_that_wait_together_each_get_their_own_vectors() {
    let folder = folder_or_skip!("requests_that_wait_together_each_get_their_own_vectors");
    let model = Arc::new(Embedder::load(&files(folder.path())).expect("the model loads"));
    let encoder = Arc::new(Encoder::start(model.clone(), EncoderOptions { threads: 2, max_queue: 64 }).expect("a thread"));
    let text = |i: usize| -> Vec<u32> { (0..40).map(|j| 1000 + ((i * 131 + j * 17) % 20_000) as u32).collect() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..20usize {
            let encoder = encoder.clone();
            tasks.spawn(async move { (i, encoder.embed((0..=i).map(|j| text(100 * i + j)).collect()).await) });
        }
        // One that nobody waits for.
        drop(encoder.embed(vec![text(1); 50]));
        while let Some(done) = tasks.join_next().await {
            let (i, vectors) = done.expect("no panic");
            let vectors = vectors.expect("vectors");
            let expected: Vec<Vec<f32>> = (0..=i).flat_map(|j| model.embed(&[&text(100 * i + j)])).collect();
            assert!(largest_difference(&vectors, &expected) < 1e-6, "request {i}");
        }
        let too_long = encoder.embed(vec![text(1), vec![1000; 300]]).await.expect_err("too long").to_string();
        assert_eq!(too_long, "input 1 has 300 tokens; the model takes 256");
        assert!(encoder.embed(vec![vec![1 << 30]]).await.expect_err("unknown").to_string().contains("1073741824"));
    });
}

fn with_model(folder: &Path) -> Refit {
    let refit = Refit::new();
    refit.run(&["model", "pull", &folder.display().to_string(), "--name", MODEL]).expect(0);
    refit
}

/// The vector of an item of `data`.
fn numbers(item: &Value) -> Vec<f32> {
    item["embedding"].as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

#[test]
fn the_real_model_embeds_over_http_in_both_encodings() {
    let folder = folder_or_skip!("the_real_model_embeds_over_http_in_both_encodings");
    let refit = with_model(folder.path());
    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |body: Value| server.post("/v1/embeddings", Some(&key), &body);
    let name = format!("local/{MODEL}");
    let reply = ask(json!({"model": name, "input": TEXTS}));
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    let vectors: Vec<Vec<f32>> = answer["data"].as_array().expect("data").iter().map(numbers).collect();
    let model = Embedder::load(&files(folder.path())).expect("the model loads");
    let tokens: Vec<Vec<u32>> = TEXTS.iter().map(|text| model.tokens(text).expect("tokens")).collect();
    assert!(largest_difference(&vectors, &reference(folder.path(), &tokens)) < 1e-5);
    let counted: usize = tokens.iter().map(Vec::len).sum();
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["model"]), (&json!(counted), &json!(name)));
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(cosine(&vectors[0], &vectors[1]) > cosine(&vectors[0], &vectors[4]) + 0.2, "what means the same is nearer");
    // The same text as token ids, and in base64.
    let ids = numbers(&ask(json!({"model": name, "input": tokens[0]})).json()["data"][0]);
    assert!(largest_difference(&[ids], &vectors[..1]) < 1e-6);
    let encoded = ask(json!({"model": name, "input": TEXTS[0], "encoding_format": "base64"})).json();
    let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded["data"][0]["embedding"].as_str().expect("text"));
    let decoded: Vec<f32> = bytes.expect("base64").as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert!(largest_difference(&[decoded], &vectors[..1]) < 1e-6);
    // What does not fit is refused, or cut when that is asked for.
    let long = "word ".repeat(400);
    let refused = ask(json!({"model": name, "input": ["short", long]}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (400, &json!("context_length_exceeded")), "{refused:?}");
    assert!(
        refused.json()["error"]["message"].as_str().expect("text").contains("input 1 has 402 tokens; the model takes 256"),
        "{refused:?}"
    );
    let cut = ask(json!({"model": name, "input": long, "truncate": true})).json();
    assert_eq!(cut["usage"]["prompt_tokens"], json!(256), "{cut}");
    let wrong = ask(json!({"model": name, "input": "x", "dimensions": 100})).json();
    assert_eq!(wrong["error"]["param"], json!("dimensions"), "{wrong}");
    let chat = server.post("/v1/chat/completions", Some(&key), &json!({"model": name, "messages": [{"role": "user", "content": "hi"}]}));
    assert!(chat.status == 400 && chat.body.contains("makes embeddings; it does not chat"), "{chat:?}");
    // The log has the call, without its vectors.
    let row = refit.run(&["logs", "show", reply.header("x-request-id").expect("an id"), "--json"]).expect(0).json();
    assert_eq!((&row["provider"], &row["model"], &row["input_tokens"]), (&json!("local"), &json!(MODEL), &json!(counted)), "{row}");
}

#[test]
fn the_semantic_cache_works_with_the_model_on_this_machine() {
    let folder = folder_or_skip!("the_semantic_cache_works_with_the_model_on_this_machine");
    let refit = with_model(folder.path());
    refit.write("refit.toml", "[cache]\nenabled = true\n[cache.semantic]\nenabled = true\nthreshold = 0.9\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let ask = |content: &str| {
        let body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": content}]});
        let reply = server.post("/v1/chat/completions", Some(&key), &body);
        (reply.header("x-refit-cache").map(str::to_string), reply.json()["choices"][0]["message"]["content"].clone())
    };
    let (first, answer) = ask("How do I reset my password?");
    assert_eq!(first.as_deref(), Some("miss"));
    assert_eq!(ask("How can I reset my password?"), (Some("semantic".into()), answer));
    assert_eq!(ask("How do I close my account?").0.as_deref(), Some("miss"));
    // Longer than the model takes: asked as if there were no semantic cache.
    assert_eq!(ask(&"word ".repeat(400)).0.as_deref(), Some("miss"));
}

#[test]
fn a_semantic_cache_without_its_model_is_said_at_the_start() {
    let refit = Refit::new();
    refit.write("refit.toml", "[cache]\nenabled = true\n[cache.semantic]\nenabled = true\n");
    let (key, server) = (refit.key(), refit.serve(&[]));
    let body = json!({"model": "mock/echo", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(server.post("/v1/chat/completions", Some(&key), &body).status, 200);
    let told = server.errors();
    assert!(told.contains("refit model pull all-minilm-l6-v2"), "{told}");
}

#[test]
fn a_folder_that_is_no_model_is_refused_and_nothing_is_stored() {
    let refit = Refit::new();
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let weights = |bytes: usize| [&(header.len() as u64).to_le_bytes()[..], header, &vec![0u8; bytes][..]].concat();
    type Files = Vec<(&'static str, Vec<u8>)>;
    let cases: [(&str, Files, &str); 6] = [
        ("empty", vec![], "this one has none"),
        ("tokenless", vec![("config.json", b"{}".to_vec())], "tokenizer.json"),
        ("weightless", vec![("config.json", b"{}".to_vec()), ("tokenizer.json", b"{}".to_vec())], "no .safetensors weights"),
        (
            "pickled",
            vec![("config.json", b"{}".to_vec()), ("tokenizer.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0x80, 2])],
            "save them as safetensors",
        ),
        (
            "cut",
            vec![
                ("config.json", br#"{"model_type": "bert"}"#.to_vec()),
                ("tokenizer.json", b"{}".to_vec()),
                ("model.safetensors", weights(4)),
            ],
            "the file has",
        ),
        (
            "nameless",
            vec![("config.json", b"{}".to_vec()), ("tokenizer.json", b"{}".to_vec()), ("model.safetensors", weights(8))],
            "model_type",
        ),
    ];
    for (name, files, says) in cases {
        let folder = refit.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        for (file, bytes) in files {
            std::fs::write(folder.join(file), bytes).expect("a file");
        }
        let refused = refit.run(&["model", "pull", &folder.display().to_string()]).expect(2);
        assert!(refused.stderr.contains(says), "{name}: {}", refused.stderr);
    }
    let blobs = std::fs::read_dir(refit.data_dir().join("blobs")).expect("blobs").count();
    assert_eq!(blobs, 1, "only blobs/incoming may be there");
    let left = std::fs::read_dir(refit.data_dir().join("blobs/incoming")).expect("incoming").count();
    assert_eq!(left, 0, "no scratch stays");
}

#[test]
fn a_folder_is_shown_verified_and_removed_as_one_model() {
    let folder = folder_or_skip!("a_folder_is_shown_verified_and_removed_as_one_model");
    let refit = with_model(folder.path());
    refit.run(&["model", "pull", &folder.path().display().to_string(), "--name", "other"]).expect(0);
    let shown = refit.run(&["model", "show", MODEL, "--json"]).expect(0).json();
    assert_eq!((&shown["architecture"], &shown["licence"], &shown["stored"]), (&json!("bert"), &json!("Apache-2.0"), &json!(true)));
    assert_eq!(shown["files"].as_object().map(serde_json::Map::len), Some(5), "{shown}");
    let text = refit.run(&["model", "show", MODEL]).expect(0).stdout;
    assert!(text.contains("model.safetensors: ") && text.contains("5 files"), "{text}");
    refit.run(&["model", "verify"]).expect(0);
    // The data directory was named relative to the working directory.
    let tokenizer = refit.path().join(shown["files"]["tokenizer.json"].as_str().expect("a path"));
    // Both names use the same files: the first to go leaves them.
    refit.run(&["model", "remove", "other"]).expect(0);
    assert!(tokenizer.is_file());
    let whole = std::fs::read(&tokenizer).expect("a file");
    std::fs::write(&tokenizer, &whole[..1000]).expect("cut");
    let damaged = refit.run(&["model", "verify", MODEL]).expect(2);
    assert!(damaged.stderr.contains("does not match"), "{}", damaged.stderr);
    assert!(refit.run(&["model", "list"]).expect(0).stdout.contains("not pulled"));
    let served = refit.serve(&[]);
    let asked = served.post("/v1/embeddings", Some(&refit.key()), &json!({"model": format!("local/{MODEL}"), "input": "x"}));
    assert!(asked.status >= 500 && asked.body.contains("does not match its digest"), "{asked:?}");
    drop(served);
    refit.run(&["model", "remove", MODEL]).expect(0);
    assert!(!tokenizer.exists());
}
