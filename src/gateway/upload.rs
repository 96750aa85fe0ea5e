//! A multipart upload, written to a temporary file as it comes: nothing of it is held in memory, and nothing of a refused one stays.

use crate::types::ids::new_id;
use crate::types::{Code, Failure};
use axum::BoxError;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use futures_util::{Stream, StreamExt};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Silence that a client may keep while it sends.
const SILENCE: Duration = Duration::from_secs(30);
/// How long what is left of a refused upload is still read, so that the client reads the reply instead of a reset.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Largest field that is no file.
const MAX_TEXT_BYTES: usize = 4_096;
const MAX_FIELDS: usize = 16;
const MAX_NAME_CHARS: usize = 255;
/// Bytes that may come before a part's content begins; a piece from the network is as large as some hundred KiB.
const HEAD_BYTES: u64 = 2 << 20;

/// What was sent.
pub struct Upload {
    /// The fields that are texts.
    pub texts: HashMap<String, String>,
    /// The field `file`.
    pub file: Option<Received>,
}

/// A file that lies in a temporary place until somebody takes it.
pub struct Received {
    /// What the client calls it; no path.
    pub name: String,
    temporary: Temporary,
}

impl Received {
    /// The temporary file, which goes away with this.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }

    /// The temporary file; it is the caller's from now on.
    pub fn take(mut self) -> PathBuf {
        std::mem::take(&mut self.temporary.0)
    }
}

/// Removed on drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // It may not have been made yet.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Reads an upload whose file has at most `limit` bytes into the directory `incoming`.
///
/// # Errors
/// [`Code::TOO_LARGE`]; [`Code::INVALID_REQUEST`] when it is not multipart or breaks off; [`Code::STORAGE`].
pub async fn receive(request: Request, incoming: &Path, limit: u64) -> Result<Upload, Failure> {
    let meter = Arc::new(Meter { left: AtomicU64::new(HEAD_BYTES), discards: AtomicBool::new(false) });
    let (head, body) = request.into_parts();
    let metered = Body::from_stream(metered(body.into_data_stream(), meter.clone()));
    let opened = Multipart::from_request(Request::from_parts(head, metered), &()).await;
    let form = || Failure::new(Code::INVALID_REQUEST, "expected multipart/form-data with the fields purpose and file");
    let mut parts = opened.map_err(|_| form())?;
    let received = read(&mut parts, &meter, incoming, limit).await;
    if received.is_err() {
        meter.discards.store(true, Ordering::Relaxed);
        // The rest is read, so that the client reads the reply instead of a reset. Past this time it gets its reset.
        let _ = tokio::time::timeout(DRAIN_TIME, parts.next_field()).await;
    }
    received
}

/// What may still be read before a part's content begins. The reader of parts holds preamble and heads in memory.
struct Meter {
    left: AtomicU64,
    /// What comes is thrown away.
    discards: AtomicBool,
}

fn metered(body: BodyDataStream, meter: Arc<Meter>) -> impl Stream<Item = Result<Bytes, BoxError>> {
    body.filter_map(move |piece| {
        let meter = meter.clone();
        async move {
            match piece {
                Ok(_) if meter.discards.load(Ordering::Relaxed) => None,
                Ok(piece) => {
                    let size = piece.len() as u64;
                    let taken = meter.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size));
                    Some(taken.map(|_| piece).map_err(|_| BoxError::from("a part begins with too long a head")))
                }
                Err(error) => Some(Err(error.into())),
            }
        }
    })
}

async fn read(parts: &mut Multipart, meter: &Meter, incoming: &Path, limit: u64) -> Result<Upload, Failure> {
    let mut upload = Upload { texts: HashMap::new(), file: None };
    for _ in 0..=MAX_FIELDS {
        meter.left.store(HEAD_BYTES, Ordering::Relaxed);
        let next = patient(parts.next_field()).await?;
        let Some(field) = next else { return Ok(upload) };
        // Its content is bounded where it is read.
        meter.left.store(u64::MAX, Ordering::Relaxed);
        let name = field.name().unwrap_or_default().to_string();
        if name == "file" {
            if upload.file.is_some() {
                return Err(Failure::on(Code::INVALID_REQUEST, "file", "file: one file an upload is taken"));
            }
            upload.file = Some(file(field, incoming, limit).await?);
        } else {
            let text = text(field, &name).await?;
            upload.texts.insert(name, text);
        }
    }
    Err(Failure::new(Code::INVALID_REQUEST, format!("at most {MAX_FIELDS} fields an upload are taken")))
}

async fn file(mut field: Field<'_>, incoming: &Path, limit: u64) -> Result<Received, Failure> {
    let name = plain_name(field.file_name().unwrap_or_default());
    let temporary = Temporary(incoming.join(new_id("upload")));
    let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("the upload could not be written: {error}"));
    let mut file = File::create(&temporary.0).await.map_err(failed)?;
    let mut size = 0u64;
    while let Some(piece) = patient(field.chunk()).await? {
        size += piece.len() as u64;
        if size > limit {
            let failure = Failure::on(Code::TOO_LARGE, "file", format!("the file is larger than {limit} bytes"));
            return Err(failure.with_hint("server.max_file_bytes in refit.toml sets the limit"));
        }
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    Ok(Received { name, temporary })
}

async fn text(mut field: Field<'_>, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    while let Some(piece) = patient(field.chunk()).await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_TEXT_BYTES {
            return Err(Failure::on(Code::INVALID_VALUE, name, format!("{name}: at most {MAX_TEXT_BYTES} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|_| Failure::on(Code::INVALID_VALUE, name, format!("{name}: not UTF-8")))
}

async fn patient<T>(next: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Failure> {
    match tokio::time::timeout(SILENCE, next).await {
        Ok(Ok(next)) => Ok(next),
        Ok(Err(error)) => Err(Failure::new(Code::INVALID_REQUEST, format!("the upload cannot be read: {}", error.body_text()))),
        Err(_) => Err(Failure::new(Code::INVALID_REQUEST, format!("the upload stopped for {} s", SILENCE.as_secs()))),
    }
}

/// The last part of a name, without control characters: it is shown, never opened.
fn plain_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain: String = last.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
    if plain.trim().is_empty() { "upload".into() } else { plain }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_no_paths() {
        for (given, wanted) in
            [("a.jsonl", "a.jsonl"), ("../../etc/passwd", "passwd"), ("C:\\x\\y.csv", "y.csv"), ("a\r\nb", "ab"), ("..//", "upload")]
        {
            assert_eq!(super::plain_name(given), wanted);
        }
    }
}
