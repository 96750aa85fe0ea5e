//! An OpenAI-compatible upstream that costs as little as can be: fixed replies, streams of 20 chunks, latency by flags or by
//! `GET /control?latency_ms=50&chunk_delay_ms=2`. One thread, 127.0.0.1 only.

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const CHUNKS: usize = 20;
const WHOLE: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog."},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":11,"total_tokens":221}}"#;

static LATENCY_US: AtomicU64 = AtomicU64::new(0);
static CHUNK_DELAY_US: AtomicU64 = AtomicU64::new(0);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The events of a stream: a role, words, the end, the usage where it was asked for, `[DONE]`.
fn events(usage: bool) -> Vec<Bytes> {
    let chunk = |choices: &str, more: &str| {
        format!("data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{choices}]{more}}}\n\n")
    };
    let choice = |delta: &str, finish: &str| format!("{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}");
    let mut events = vec![chunk(&choice("{\"role\":\"assistant\",\"content\":\"\"}", "null"), "")];
    events.extend((2..CHUNKS).map(|i| chunk(&choice(&format!("{{\"content\":\" word{i:02}\"}}"), "null"), "")));
    events.push(chunk(&choice("{}", "\"stop\""), ""));
    if usage {
        events.push(chunk("", ",\"usage\":{\"prompt_tokens\":210,\"completion_tokens\":18,\"total_tokens\":228}"));
    }
    events.push("data: [DONE]\n\n".into());
    events.into_iter().map(Bytes::from).collect()
}

fn holds(body: &[u8], text: &[u8]) -> bool {
    body.windows(text.len()).any(|window| window == text)
}

fn control(query: &str) {
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let us = (value.parse::<f64>().unwrap_or(0.0) * 1000.0) as u64;
        match name {
            "latency_ms" => LATENCY_US.store(us, Relaxed),
            "chunk_delay_ms" => CHUNK_DELAY_US.store(us, Relaxed),
            _ => {}
        }
    }
}

fn reply(kind: &str, body: Body) -> Response<Body> {
    Response::builder().header("content-type", kind).body(body).expect("a reply")
}

async fn answer(request: Request<Incoming>, plain: Vec<Bytes>, counted: Vec<Bytes>) -> Result<Response<Body>, hyper::Error> {
    if request.uri().path() == "/control" {
        control(request.uri().query().unwrap_or_default());
        return Ok(reply("text/plain", Full::from("ok\n").boxed_unsync()));
    }
    let body = request.into_body().collect().await?.to_bytes();
    let latency = Duration::from_micros(LATENCY_US.load(Relaxed));
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    // What follows the messages of a long prompt is looked at alone: the upstream is not what is measured.
    let (head, tail) = (&body[..body.len().min(64)], &body[body.len().saturating_sub(256)..]);
    let streamed = [head, tail].iter().any(|part| holds(part, b"\"stream\":true"));
    if !streamed {
        return Ok(reply("application/json", Full::from(WHOLE).boxed_unsync()));
    }
    let usage = [head, tail].iter().any(|part| holds(part, b"\"include_usage\":true"));
    let events = if usage { counted } else { plain }.into_iter();
    let pace = Duration::from_micros(CHUNK_DELAY_US.load(Relaxed));
    let frames = unfold((events, true), move |(mut events, first)| async move {
        let event = events.next()?;
        if !first && !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        Some((Ok(Frame::data(event)), (events, false)))
    });
    Ok(reply("text/event-stream", StreamBody::new(frames).boxed_unsync()))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: upstream PORT");
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the port");
    let (plain, counted) = (events(false), events(true));
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let (plain, counted) = (plain.clone(), counted.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, plain.clone(), counted.clone()));
            // The client went away.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
