//! A file of the Hugging Face hub over plain HTTPS: range requests into a partial file, so that an interrupted download goes on where
//! it stopped. The caller verifies the digest.

use super::ModelError;
use crate::types::traits::Progress;
use futures_util::StreamExt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

/// Where the hub is when `$REFIT_HUB_URL` does not say otherwise.
pub const DEFAULT_URL: &str = "https://huggingface.co";
/// Where there is no network, pulling should reach the next source soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Interrupted bodies are resumed this often before the next source is tried.
const RESUMES: usize = 4;

/// What to fetch.
pub struct Download<'a> {
    /// The whole address.
    pub url: String,
    /// Bytes the file must have.
    pub size_bytes: u64,
    /// Told after every block.
    pub progress: &'a dyn Progress,
}

/// Address of a file: `<hub>/<repository>/resolve/<revision>/<file>`.
pub fn url(hub: &str, repository: &str, revision: &str, file: &str) -> String {
    format!("{}/{repository}/resolve/{revision}/{file}", hub.trim_end_matches('/'))
}

/// Downloads into `partial`, beginning after the bytes it already has.
///
/// # Errors
/// [`ModelError::Source`] when the hub cannot be reached, refuses, or sends more or fewer bytes than expected. What arrived stays.
pub async fn download(wanted: &Download<'_>, partial: &mut File) -> Result<(), ModelError> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| fault(&wanted.url, error.to_string()))?;
    let mut left = RESUMES;
    loop {
        match attempt(&client, wanted, partial).await {
            Ok(()) => return Ok(()),
            Err(Stopped::Interrupted(_)) if left > 0 => left -= 1,
            Err(Stopped::Interrupted(message) | Stopped::Refused(message)) => return Err(fault(&wanted.url, message)),
        }
    }
}

enum Stopped {
    /// The body broke off after bytes had arrived: worth going on.
    Interrupted(String),
    /// Anything else.
    Refused(String),
}

async fn attempt(client: &reqwest::Client, wanted: &Download<'_>, partial: &mut File) -> Result<(), Stopped> {
    let refused = |message: String| Stopped::Refused(message);
    let disk = |error: std::io::Error| Stopped::Refused(format!("cannot write the partial file: {error}"));
    let mut have = partial.seek(SeekFrom::End(0)).map_err(disk)?;
    if have == wanted.size_bytes {
        return Ok(());
    }
    if have > wanted.size_bytes {
        have = restart(partial).map_err(disk)?;
    }
    let mut request = client.get(&wanted.url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let reply = request.send().await.map_err(|error| refused(describe(&error)))?;
    let status = reply.status().as_u16();
    let continues = status == 206 && range_start(&reply) == Some(have);
    if status != 200 && !continues {
        return Err(refused(format!("answered with status {status}")));
    }
    if !continues {
        have = restart(partial).map_err(disk)?;
    }
    let began_at = have;
    let mut body = reply.bytes_stream();
    while let Some(block) = body.next().await {
        let block = block.map_err(|error| interrupted(have > began_at, describe(&error)))?;
        have += block.len() as u64;
        if have > wanted.size_bytes {
            restart(partial).map_err(disk)?;
            return Err(refused(format!("sent more than the expected {} bytes", wanted.size_bytes)));
        }
        partial.write_all(&block).map_err(disk)?;
        wanted.progress.update(have, wanted.size_bytes, "");
    }
    if have < wanted.size_bytes {
        return Err(interrupted(have > began_at, format!("sent {have} of {} bytes", wanted.size_bytes)));
    }
    Ok(())
}

fn interrupted(progressed: bool, message: String) -> Stopped {
    if progressed { Stopped::Interrupted(message) } else { Stopped::Refused(message) }
}

fn restart(partial: &mut File) -> std::io::Result<u64> {
    partial.set_len(0)?;
    partial.seek(SeekFrom::Start(0))
}

/// First byte of a 206 reply, from `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
fn range_start(reply: &reqwest::Response) -> Option<u64> {
    let header = reply.headers().get("content-range")?.to_str().ok()?;
    header.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// The innermost cause: `error sending request` alone helps nobody.
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_timeout() { format!("timed out ({cause})") } else { cause.to_string() }
}

fn fault(url: &str, message: String) -> ModelError {
    ModelError::Source { place: url.to_string(), message }
}
