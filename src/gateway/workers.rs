//! The threads that serve connections: one for each core, each with an event loop of its own, so that a request is answered by the
//! thread that read it and nothing has to be woken elsewhere. Connections are handed out in turn.

use super::Gateway;
use super::lane::{self, Doing, Lane};
use super::routes;
use crate::monitor::serving::Connection;
use crate::types::{Code, Failure};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};

/// A connection on its way to the thread that serves it, counted until it ends.
type Taken = (std::net::TcpStream, Connection);

/// Threads that serve connections. They last as long as this: also one that has none left keeps its event loop going.
pub struct Workers {
    queues: Vec<mpsc::UnboundedSender<Taken>>,
    next: usize,
    stop: watch::Sender<bool>,
    /// Closes when the last thread has served its last connection.
    served: mpsc::Receiver<()>,
    /// Dropped with this: the threads end then.
    _over: watch::Sender<()>,
}

impl Workers {
    /// Starts a thread for each core.
    ///
    /// # Errors
    /// [`Code::INTERNAL`] when the system gives no threads.
    pub fn start(gateway: &Gateway) -> Result<Self, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (stop, stopped) = watch::channel(false);
        let (serving, served) = mpsc::channel(1);
        let (over, is_over) = watch::channel(());
        let lane = Lane { gateway: gateway.clone(), router: routes::router(gateway.clone()), stopped };
        let mut queues = Vec::with_capacity(cores);
        for number in 0..cores {
            let (queue, connections) = mpsc::unbounded_channel();
            let refused = |error| Failure::new(Code::INTERNAL, format!("cannot start a thread for connections: {error}"));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
            let (lane, serving, mut is_over) = (lane.clone(), serving.clone(), is_over.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            let work = move || {
                runtime.block_on(async {
                    work(connections, lane).await;
                    drop(serving);
                    // Connections to providers that were opened here live on this loop, and calls of other threads may be on them.
                    while is_over.changed().await.is_ok() {}
                });
                // What blocks still (a call to a local model) is not waited for.
                runtime.shutdown_background();
            };
            thread.spawn(work).map_err(refused)?;
            queues.push(queue);
        }
        Ok(Workers { queues, next: 0, stop, served, _over: over })
    }

    /// Has a connection served.
    pub fn serve(&mut self, stream: TcpStream, counted: Connection) {
        self.next = (self.next + 1) % self.queues.len();
        match stream.into_std() {
            // A thread that is gone has panicked, which closes the connection.
            Ok(stream) => drop(self.queues[self.next].send((stream, counted))),
            Err(error) => tracing::warn!(%error, "cannot serve a connection"),
        }
    }

    /// No further request is taken.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Ready when every connection has ended.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the channel closes when the last thread is done.
        let _ = self.served.recv().await;
    }
}

/// How often an idle loop looks up. Nearly all of its timers are for later, so that setting one never changes when it has to wake next,
/// which would take two system calls each time.
const TICK: Duration = Duration::from_secs(1);

async fn work(mut connections: mpsc::UnboundedReceiver<Taken>, lane: Lane) {
    let mut serving = JoinSet::new();
    let mut doing: HashMap<Id, Arc<Doing>> = HashMap::new();
    let begin = |serving: &mut JoinSet<()>, (stream, counted): Taken| {
        let does = Arc::new(Doing::default());
        let handle = serving.spawn(serve(stream, lane.clone(), does.clone(), counted));
        (handle.id(), does)
    };
    let mut stopped = lane.stopped.clone();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            stream = connections.recv() => match stream {
                Some(taken) => doing.extend([begin(&mut serving, taken)]),
                None => break,
            },
            Some(ended) = serving.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                doing.remove(&id);
            }
            _ = stopped.wait_for(|stopped| *stopped) => break,
            _ = tick.tick() => {}
        }
    }
    connections.close();
    // Those that were taken just before have a request on its way, as a rule.
    while let Ok(taken) = connections.try_recv() {
        doing.extend([begin(&mut serving, taken)]);
    }
    doing.values().for_each(|does| does.stop());
    let mut cut = lane.gateway.cut.clone();
    tokio::select! {
        () = async { while serving.join_next().await.is_some() {} } => return,
        _ = cut.wait_for(|cut| *cut) => doing.values().for_each(|does| does.wake()),
    }
    while serving.join_next().await.is_some() {}
}

async fn serve(stream: std::net::TcpStream, lane: Lane, doing: Arc<Doing>, _counted: Connection) {
    let served = async {
        let mut serving = pin!(lane::serve(TcpStream::from_std(stream)?, lane, &doing));
        poll_fn(|context| {
            doing.register(context.waker());
            serving.as_mut().poll(context)
        })
        .await
    };
    if let Err(error) = served.await {
        // The client went away or spoke no HTTP: its business.
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::App;
    use crate::config::Config;
    use std::io::{Read, Write};

    /// Connections that are handed over, with a request sent on each, and the stop at once.
    #[tokio::test]
    async fn what_was_sent_before_the_stop_is_answered() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let app = Arc::new(App::open(Config::default(), directory.path()).expect("an app"));
        let (_cut, cut) = watch::channel(false);
        let mut workers = Workers::start(&Gateway { app: app.clone(), cut }).expect("threads");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests =
            ["GET /health HTTP/1.1\r\nhost: x\r\n\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"];
        let mut clients = Vec::new();
        for n in 0..20 {
            let mut client = std::net::TcpStream::connect(address).expect("connects");
            client.write_all(requests[n % 2].as_bytes()).expect("sent");
            let (stream, _) = listener.accept().await.expect("a connection");
            clients.push((client, stream));
        }
        let (clients, streams): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
        for stream in streams {
            workers.serve(stream, app.metrics.serving.connect(usize::MAX).expect("room"));
        }
        workers.stop();
        tokio::time::timeout(Duration::from_secs(20), workers.ended()).await.expect("it ends");
        for (n, mut client) in clients.into_iter().enumerate() {
            let mut reply = String::new();
            client.read_to_string(&mut reply).expect("a reply");
            assert!(reply.starts_with(["HTTP/1.1 200 ", "HTTP/1.1 401 "][n % 2]), "{n}: {reply:?}");
        }
    }
}
