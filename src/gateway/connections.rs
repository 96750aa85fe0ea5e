//! What a connection may cost: how many there may be, how long one may be silent, and what one too many is told.

use crate::config::ServerConfig;
use crate::monitor::Serving;
use crate::types::{Code, Failure};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Descriptors for everything that is no connection: database, segments, uploads, models.
const OTHER_FILES: u64 = 128;
/// Where the system does not say how many descriptors there are.
const USUAL_FILES: u64 = 1_024;
/// Connections that are turned away at once; beyond them they are closed without a word.
const TURNED_AWAY: usize = 128;
/// Time to turn one away.
const TURN_AWAY: Duration = Duration::from_secs(1);
/// Seconds after which a caller may try again.
const RETRY_AFTER_S: u32 = 1;

/// How many connections the process can have.
pub struct Limits {
    /// What its descriptors allow.
    by_files: usize,
    turning_away: Arc<Semaphore>,
}

impl Limits {
    /// Takes as many descriptors as the system gives.
    pub fn take(serving: &Serving) -> Self {
        // A connection of a client may need one to a provider.
        let by_files = descriptors().saturating_sub(OTHER_FILES) / 2;
        let by_files = usize::try_from(by_files).unwrap_or(usize::MAX).max(1);
        serving.connections_possible.set(i64::try_from(by_files).unwrap_or(i64::MAX));
        Limits { by_files, turning_away: Arc::new(Semaphore::new(TURNED_AWAY)) }
    }

    /// Connections that may be open.
    pub fn connections(&self, config: &ServerConfig) -> usize {
        config.max_connections.min(self.by_files)
    }

    /// Tells one too many to come again.
    pub fn turn_away(&self, mut stream: TcpStream) {
        let Ok(permit) = self.turning_away.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            // Its errors are the client's business.
            let _ = tokio::time::timeout(TURN_AWAY, told(&mut stream)).await;
            drop(permit);
        });
    }
}

async fn told(stream: &mut TcpStream) -> std::io::Result<()> {
    // What was sent is read first: a connection that is closed over unread bytes is reset, and the reply with it.
    let mut sent = [0; 4_096];
    if stream.read(&mut sent).await? == 0 {
        return Ok(());
    }
    let failure = Failure::new(Code::UNAVAILABLE, "too many connections are open; server.max_connections in refit.toml sets the limit");
    let (status, body) = (failure.code().status, failure.to_json().to_string());
    let head = format!("HTTP/1.1 {status} Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let head = format!("{head}retry-after: {RETRY_AFTER_S}\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    stream.shutdown().await?;
    while stream.read(&mut sent).await? > 0 {}
    Ok(())
}

/// Sets a connection up: nothing waits to be sent together with more, and a caller that takes nothing of its reply is cut off.
pub fn tune(stream: &TcpStream, config: &ServerConfig) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    send_timeout(stream, config.send_timeout_s);
}

/// The system closes a connection whose other end acknowledges or takes nothing for so long (TCP_USER_TIMEOUT, RFC 5482).
#[cfg(target_os = "linux")]
fn send_timeout(stream: &TcpStream, seconds: u64) {
    let milliseconds = u32::try_from(seconds.saturating_mul(1_000)).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds) {
        tracing::debug!(%error, "TCP_USER_TIMEOUT");
    }
}

#[cfg(not(target_os = "linux"))]
fn send_timeout(_: &TcpStream, _: u64) {}

/// Descriptors that this process may have, after asking for all that it may ask for.
#[cfg(unix)]
fn descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without a say of the system's, some number has to do.
    let wanted = limit.maximum.unwrap_or(1 << 20);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    if raised.is_ok() { wanted } else { limit.current.unwrap_or(USUAL_FILES) }
}

#[cfg(not(unix))]
fn descriptors() -> u64 {
    USUAL_FILES
}
