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
use tokio::task::{AbortHandle, Id, JoinSet};

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
    let mut doing: HashMap<Id, (AbortHandle, Arc<Doing>)> = HashMap::new();
    let mut stopped = lane.stopped.clone();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            stream = connections.recv() => match stream {
                Some((stream, counted)) => {
                    let does = Arc::new(Doing::default());
                    let handle = serving.spawn(serve(stream, lane.clone(), does.clone(), counted));
                    doing.insert(handle.id(), (handle, does));
                }
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
    for (handle, does) in doing.values() {
        if does.stop() {
            handle.abort();
        }
    }
    let mut cut = lane.gateway.cut.clone();
    tokio::select! {
        () = async { while serving.join_next().await.is_some() {} } => return,
        _ = cut.wait_for(|cut| *cut) => doing.values().for_each(|(_, does)| does.wake()),
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
