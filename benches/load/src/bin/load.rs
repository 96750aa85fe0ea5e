//! Sends chat requests to one address on loopback and prints one JSON object: rate, latencies, time to the first body bytes.
//!
//! `load PORT KEY MODEL CONNECTIONS SECONDS [stream] [bytes=N] [rate=N]`: closed loop over so many connections, each request after
//! the reply before it; with `rate` an open loop of so many requests a second, timed from when each was due. A reply counts when it
//! is a 200 that holds `"choices"`, or a stream that ends in `[DONE]`.

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::{LocalSet, spawn_local};

#[derive(Clone)]
struct Plan {
    port: u16,
    key: String,
    body: Bytes,
    streamed: bool,
}

struct Seen {
    total: Histogram<u64>,
    first: Histogram<u64>,
    good: u64,
    bad: u64,
    problem: Option<String>,
    counts: bool,
}

type Connection = SendRequest<Full<Bytes>>;

impl Plan {
    async fn connect(&self) -> Result<Connection, String> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        spawn_local(connection);
        Ok(sender)
    }

    /// Microseconds to the first body bytes and to the end, from `due`.
    async fn ask(&self, connection: &mut Connection, due: Instant) -> Result<(u64, u64), String> {
        let text = |error: hyper::Error| error.to_string();
        connection.ready().await.map_err(text)?;
        let request = Request::post("/v1/chat/completions")
            .header("host", "127.0.0.1")
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json");
        let request = request.body(Full::new(self.body.clone())).expect("a request");
        let response = connection.send_request(request).await.map_err(text)?;
        let status = response.status();
        let mut body = response.into_body();
        let (mut first, mut last, mut whole) = (None, Bytes::new(), false);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(text)?.into_data() else { continue };
            first.get_or_insert_with(|| due.elapsed());
            whole |= !self.streamed && data.windows(9).any(|window| window == b"\"choices\"");
            last = data;
        }
        let ended = if self.streamed { last.trim_ascii_end().ends_with(b"[DONE]") } else { whole };
        if status != 200 || !ended {
            return Err(format!("status {status}, {:?}", String::from_utf8_lossy(&last[..last.len().min(200)])));
        }
        let us = |time: Duration| time.as_micros() as u64;
        Ok((us(first.unwrap_or_default()), us(due.elapsed())))
    }
}

impl Seen {
    fn add(&mut self, result: Result<(u64, u64), String>) {
        if !self.counts {
            return;
        }
        match result {
            Ok((first, total)) => {
                self.good += 1;
                self.first.saturating_record(first.max(1));
                self.total.saturating_record(total.max(1));
            }
            Err(problem) => {
                self.bad += 1;
                self.problem.get_or_insert(problem);
            }
        }
    }
}

async fn closed(plan: Plan, seen: Rc<RefCell<Seen>>, connections: usize) {
    for _ in 0..connections {
        let (plan, seen) = (plan.clone(), seen.clone());
        spawn_local(async move {
            let mut connection = None;
            loop {
                let result = match &mut connection {
                    Some(open) => plan.ask(open, Instant::now()).await,
                    None => match plan.connect().await {
                        Ok(open) => {
                            connection = Some(open);
                            continue;
                        }
                        Err(error) => Err(error),
                    },
                };
                if result.is_err() {
                    connection = None;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                seen.borrow_mut().add(result);
            }
        });
    }
}

async fn open(plan: Plan, seen: Rc<RefCell<Seen>>, rate: f64) {
    let idle: Rc<RefCell<Vec<Connection>>> = Rc::default();
    spawn_local(async move {
        let begun = Instant::now();
        for n in 0u64.. {
            let due = begun + Duration::from_secs_f64(n as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            let (plan, seen, idle) = (plan.clone(), seen.clone(), idle.clone());
            spawn_local(async move {
                let known = idle.borrow_mut().pop();
                let connection = match known {
                    Some(connection) => Ok(connection),
                    None => plan.connect().await,
                };
                let result = match connection {
                    Ok(mut connection) => {
                        let result = plan.ask(&mut connection, due).await;
                        if result.is_ok() {
                            idle.borrow_mut().push(connection);
                        }
                        result
                    }
                    Err(error) => Err(error),
                };
                seen.borrow_mut().add(result);
            });
        }
    });
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [port, key, model, connections, seconds, more @ ..] = arguments.as_slice() else {
        eprintln!("usage: load PORT KEY MODEL CONNECTIONS SECONDS [stream] [bytes=N] [rate=N]");
        std::process::exit(2);
    };
    let option = |name: &str| more.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<f64>().ok());
    let streamed = more.iter().any(|word| word == "stream");
    let text = "word ".repeat(option("bytes").unwrap_or(1024.0) as usize / 5);
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 64});
    if streamed {
        body["stream"] = true.into();
    }
    let plan = Plan { port: port.parse().expect("a port"), key: key.clone(), body: body.to_string().into(), streamed };
    let (connections, seconds): (usize, f64) = (connections.parse().expect("a count"), seconds.parse().expect("seconds"));
    let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
    let seen = Seen { total: histogram(), first: histogram(), good: 0, bad: 0, problem: None, counts: false };
    let seen = Rc::new(RefCell::new(seen));
    let local = LocalSet::new();
    let measured = local.run_until(async {
        match option("rate") {
            Some(rate) => open(plan, seen.clone(), rate).await,
            None => closed(plan, seen.clone(), connections).await,
        }
        // A quarter of the time to warm up.
        tokio::time::sleep(Duration::from_secs_f64(seconds / 4.0)).await;
        seen.borrow_mut().counts = true;
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        begun.elapsed().as_secs_f64()
    });
    let measured = measured.await;
    let seen = seen.borrow();
    let ms = |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{}",
        json!({"good": seen.good, "bad": seen.bad, "problem": seen.problem, "per_second": seen.good as f64 / measured,
            "p50_ms": ms(&seen.total, 0.5), "p99_ms": ms(&seen.total, 0.99), "first_p50_ms": ms(&seen.first, 0.5), "first_p99_ms": ms(&seen.first, 0.99)})
    );
    // Connections that still wait for a reply are nobody's any more.
    std::process::exit(0);
}
