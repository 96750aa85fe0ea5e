//! The orderly end. The first SIGINT or SIGTERM stops what is new: `/ready` says 503, the listener closes, connections that wait for a
//! next request close, running requests go on for `server.drain_s`. Then whatever still runs is cut: streams end with an error event,
//! other requests with a 503. The second signal cuts at once; the third ends the process where it stands.

use super::Gateway;
use super::error::ApiError;
use super::workers::Workers;
use crate::monitor::Serving;
use crate::types::{Code, Failure};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// Time for the last bytes after requests were cut.
pub const LAST_BYTES: Duration = Duration::from_secs(2);

/// The signals of this process. From [`Signals::listen`] on they no longer end it by themselves.
pub struct Signals {
    stops: watch::Receiver<u32>,
    hangups: watch::Receiver<u32>,
}

impl Signals {
    /// Begins to count SIGINT and SIGTERM (Ctrl-C elsewhere), and SIGHUP.
    ///
    /// # Errors
    /// [`Code::INTERNAL`] when the system gives no signal handlers.
    pub fn listen() -> Result<Self, Failure> {
        let ((stop, stops), (hangup, hangups)) = (watch::channel(0), watch::channel(0));
        listen(stop, hangup)?;
        Ok(Signals { stops, hangups })
    }

    /// Ready once so many signals to stop have come.
    pub fn stopped(&self, times: u32) -> impl Future<Output = ()> + Send + use<> {
        let mut stops = self.stops.clone();
        async move {
            if stops.wait_for(|count| *count >= times).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Counts SIGHUP.
    pub fn hangups(&self) -> watch::Receiver<u32> {
        self.hangups.clone()
    }
}

/// How many signals to stop end the process where it stands.
#[cfg(unix)]
const AT_ONCE: u32 = 3;

#[cfg(unix)]
fn listen(stop: watch::Sender<u32>, hangup: watch::Sender<u32>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let refused = |error| Failure::new(Code::INTERNAL, format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(refused)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => stop.send_modify(|count| *count += 1),
                _ = terminate.recv() => stop.send_modify(|count| *count += 1),
                _ = hang_up.recv() => hangup.send_modify(|count| *count += 1),
            }
            if *stop.borrow() >= AT_ONCE {
                // As a process that SIGINT ended. Log rows on disk are moved at the next start.
                std::process::exit(130);
            }
        }
    });
    Ok(())
}

#[cfg(not(unix))]
fn listen(stop: watch::Sender<u32>, hangup: watch::Sender<u32>) -> Result<(), Failure> {
    tokio::spawn(async move {
        // Held, so that nobody waits for a sender that is gone.
        let _hangup = hangup;
        while tokio::signal::ctrl_c().await.is_ok() {
            stop.send_modify(|count| *count += 1);
        }
        // Without a handler there is nothing to wait for: the process ends the hard way.
        std::future::pending::<()>().await;
    });
    Ok(())
}

/// Ready at the first SIGINT or SIGTERM (Ctrl-C elsewhere).
///
/// # Errors
/// [`Code::INTERNAL`] when the system gives no signal handlers.
pub fn shutdown_signal() -> Result<impl Future<Output = ()>, Failure> {
    let signals = Signals::listen()?;
    Ok(async move { signals.stopped(1).await })
}

/// An answer; a 503 once the time to drain is over. [`Workers`] has every connection looked at again then, so that a request costs nothing
/// but the look.
pub async fn unless_cut(mut answering: Pin<&mut impl Future<Output = Response>>, serving: &Serving) -> Response {
    std::future::poll_fn(|context| match answering.as_mut().poll(context) {
        Poll::Pending if serving.is_cut() => Poll::Ready(ApiError(shutting_down()).into_response()),
        polled => polled,
    })
    .await
}

/// As [`unless_cut`], of what hyper serves. It stands inside of the envelope, so that the 503 has an id and is counted.
pub async fn layer(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let answering = pin!(next.run(request));
    unless_cut(answering, &gateway.app.metrics.serving).await
}

/// What one is told whose request was cut.
pub fn shutting_down() -> Failure {
    Failure::new(Code::UNAVAILABLE, "the server is shutting down; the request had not been answered")
}

/// Waits until every connection has ended, for `time` at most or until there is a `hurry`; then cuts what still runs.
pub async fn drain(workers: &mut Workers, time: Duration, cut: &watch::Sender<bool>, (serving, hurry): (&Serving, impl Future)) {
    workers.stop();
    tokio::select! {
        () = workers.ended() => return,
        () = tokio::time::sleep(time) => {}
        _ = hurry => {}
    }
    tracing::warn!(seconds = time.as_secs(), "requests still run after the time to drain; they are cut");
    serving.cut();
    cut.send_replace(true);
    if tokio::time::timeout(LAST_BYTES, workers.ended()).await.is_err() {
        tracing::warn!(connections = serving.connections.get(), "callers did not take their last bytes; their connections are closed");
    }
}
