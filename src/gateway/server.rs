//! Listening, serving, and the orderly end: on a signal no new connection is taken, running requests get `drain_s`, streams that
//! still run then end with an error event, and the request log reaches the database.

use super::Gateway;
use super::in_process::InProcess;
use super::workers::Workers;
use crate::app::App;
use crate::store::lock::Lock;
use crate::types::{Code, Failure};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Time for the last bytes after streams were cut.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// Pause after `accept` failed, which it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A gateway that is bound to its address but does not answer yet.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    _lock: Lock,
}

impl Server {
    /// Binds the address and takes the data directory's `serve` lock.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when another `refit serve` runs on the directory; [`Code::INVALID_CONFIG`] when the address cannot be had.
    pub async fn bind(app: Arc<App>, host: &str, port: u16) -> Result<Self, Failure> {
        let lock = Lock::take(app.store.directory(), "serve")?;
        let batches = app.batches.clone();
        let tidied = tokio::task::spawn_blocking(move || batches.tidy()).await;
        tidied.map_err(|error| Failure::new(Code::INTERNAL, format!("tidying up: {error}")))??;
        let failed = |error| {
            let failure = Failure::new(Code::INVALID_CONFIG, format!("cannot listen on {host}:{port}: {error}"));
            failure.with_hint("choose another with --host and --port; port 0 picks a free one")
        };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server { app, listener, address, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until `shutdown` is ready, then drains; returns when every reply has ended and the request log is in the database.
    ///
    /// # Errors
    /// When the request log could not be moved to the database; it is moved at the next start then.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Failure> {
        let Server { app, listener, _lock, .. } = self;
        let (cut, receiver) = watch::channel(false);
        let gateway = Gateway { app: app.clone(), cut: receiver };
        let mut workers = Workers::start(&gateway)?;
        let (stop, stopped) = watch::channel(false);
        let batches = tokio::spawn(app.batches.clone().run(Arc::new(InProcess::new(gateway)), stopped));
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted.and_then(|(stream, _)| prepared(stream)) {
                    Ok(stream) => workers.serve(stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                () = &mut shutdown => break,
            }
        }
        drop(listener);
        stop.send_replace(true);
        let time = Duration::from_secs(app.config.server.drain_s);
        // A batch's lines get the same time as other requests; those that do not end in it are asked again by the next server.
        let ((), _) = tokio::join!(drain(workers, time, &cut), tokio::time::timeout(time + LAST_BYTES, batches));
        let flushed = tokio::task::spawn_blocking(move || app.recorder.flush()).await;
        flushed.map_err(|error| Failure::new(Code::INTERNAL, format!("the request log: {error}")))?.map_err(Failure::from)
    }
}

/// A connection on its way to another event loop.
fn prepared(stream: TcpStream) -> std::io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.into_std()
}

async fn drain(mut workers: Workers, time: Duration, cut: &watch::Sender<bool>) {
    workers.stop();
    if workers.ended(time).await {
        return;
    }
    tracing::warn!(seconds = time.as_secs(), "requests still run after the time to drain; their streams are cut");
    cut.send_replace(true);
    workers.ended(LAST_BYTES).await;
}

/// Ready at the first SIGINT or SIGTERM (Ctrl-C elsewhere). From the call on, the signals no longer end the process by themselves.
///
/// # Errors
/// [`Code::INTERNAL`] when the system gives no signal handlers.
pub fn shutdown_signal() -> Result<impl Future<Output = ()>, Failure> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let refused = |error| Failure::new(Code::INTERNAL, format!("cannot listen for signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        // Without a handler there is nothing to wait for: the process ends the hard way.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
