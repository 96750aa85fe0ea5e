//! Listening and serving; how it ends is told in [`drain`], and by then the request log has reached the database.

use super::connections::{self, Limits};
use super::in_process::InProcess;
use super::workers::Workers;
use super::{Gateway, drain};
use crate::app::App;
use crate::store::lock::Lock;
use crate::types::{Code, Failure};
use futures_util::FutureExt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Pause after `accept` failed, which it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A gateway that is bound to its address but does not answer yet.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
    _lock: Lock,
}

impl Server {
    /// Binds the address and takes the data directory's `serve` lock.
    ///
    /// # Errors
    /// [`Code::CONFLICT`] when another `refit serve` runs on the directory; [`Code::INVALID_CONFIG`] when the address cannot be had.
    pub async fn bind(app: Arc<App>, host: &str, port: u16) -> Result<Self, Failure> {
        let lock = Lock::take(app.store.directory(), "serve", "runs `refit serve` on")?;
        let batches = app.batches.clone();
        let tidied = tokio::task::spawn_blocking(move || batches.tidy()).await;
        tidied.map_err(|error| Failure::new(Code::INTERNAL, format!("tidying up: {error}")))??;
        let failed = |error| {
            let failure = Failure::new(Code::INVALID_CONFIG, format!("cannot listen on {host}:{port}: {error}"));
            failure.with_hint("choose another with --host and --port; port 0 picks a free one")
        };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let limits = Limits::take(&app.metrics.serving);
        Ok(Server { app, listener, address, limits, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until `shutdown` is ready, then drains, until `hurry` is ready at most; returns when every reply has ended and the request
    /// log is in the database.
    ///
    /// # Errors
    /// When the request log could not be moved to the database; it is moved at the next start then.
    pub async fn run(self, shutdown: impl Future<Output = ()>, hurry: impl Future<Output = ()>) -> Result<(), Failure> {
        let Server { app, listener, limits, _lock, .. } = self;
        let (cut, receiver) = watch::channel(false);
        let gateway = Gateway { app: app.clone(), cut: receiver };
        let (stop, stopped) = watch::channel(false);
        let endpoint = Arc::new(InProcess::new(gateway.clone()));
        let batches = tokio::spawn(app.batches.clone().run(endpoint.clone(), stopped.clone()));
        let evals = tokio::spawn(app.evals.clone().run(endpoint, stopped.clone()));
        let fine_tunes = tokio::spawn(app.fine_tunes.clone().run(stopped));
        let mut workers = Workers::start(&gateway)?;
        let (serving, hurry) = (app.metrics.serving.clone(), hurry.shared());
        let leaving = async {
            shutdown.await;
            serving.drain();
            stop.send_replace(true);
            let notice = Duration::from_secs(app.config().server.notice_s);
            tokio::select! { () = tokio::time::sleep(notice) => {}, () = hurry.clone() => {} }
        };
        tokio::select! {
            () = accept(&listener, &limits, &gateway, &mut workers) => {}
            () = leaving => {}
        }
        drop(listener);
        let time = Duration::from_secs(app.config().server.drain_s);
        let served = async { tokio::join!(batches, evals, fine_tunes) };
        // A batch's lines get the same time as other requests; those that do not end in it are asked again by the next server.
        let ended = drain::drain(&mut workers, time, &cut, (&serving, hurry));
        let ((), _) = tokio::join!(ended, tokio::time::timeout(time + drain::LAST_BYTES, served));
        // Not before: lines of batches use connections that the workers' loops keep going.
        drop(workers);
        let flushed = tokio::task::spawn_blocking(move || app.recorder.flush()).await;
        flushed.map_err(|error| Failure::new(Code::INTERNAL, format!("the request log: {error}")))?.map_err(Failure::from)
    }
}

/// Takes connections until it is dropped.
async fn accept(listener: &TcpListener, limits: &Limits, gateway: &Gateway, workers: &mut Workers) {
    let serving = &gateway.app.metrics.serving;
    loop {
        let accepted = listener.accept().await.map(|(stream, _)| {
            let config = gateway.app.config();
            connections::tune(&stream, &config.server);
            (serving.connect(limits.connections(&config.server)), stream)
        });
        match accepted {
            Ok((Some(counted), stream)) => workers.serve(stream, counted),
            Ok((None, stream)) => limits.turn_away(stream),
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
