//! Calls of a provider's own administration, such as files and fine-tuning jobs: JSON in both directions, and files going up.

use super::ProviderError;
use super::http::Http;
use crate::types::Code;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{iter, unfold};
use serde_json::Value;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// Parts of a file that goes up.
const PIECE_BYTES: usize = 64 << 10;

/// What is asked at a path below the base URL.
#[derive(Debug, Clone)]
pub enum Manage {
    /// GET.
    Get,
    /// POST of JSON; null sends an empty body, as OpenAI's clients do.
    Post(Value),
    /// POST of a file as `multipart/form-data`.
    Upload {
        /// What it is called there.
        filename: String,
        /// What it is for.
        purpose: String,
        /// Where its bytes lie.
        path: PathBuf,
    },
}

impl Http {
    /// Asks for it; the whole reply.
    ///
    /// # Errors
    /// [`Code::UNSUPPORTED`] without a key, [`Code::STORAGE`] when the file cannot be read, and everything that a reply may refuse.
    pub(super) async fn manage(&self, path: &str, call: Manage) -> Result<Value, ProviderError> {
        let source = self.source("files and fine-tuning");
        let request = match call {
            Manage::Get => self.request(reqwest::Method::GET, path, &source)?,
            Manage::Post(Value::Null) => self.request(reqwest::Method::POST, path, &source)?.header("content-length", "0"),
            Manage::Post(body) => self.request(reqwest::Method::POST, path, &source)?.json(&body),
            Manage::Upload { filename, purpose, path: file } => {
                let unreadable = |error| source.error(Code::STORAGE, format!("the file cannot be read: {error}"));
                let opened = tokio::fs::File::open(&file).await.map_err(unreadable)?;
                let size = opened.metadata().await.map_err(unreadable)?.len();
                let boundary = format!("refit-{}", uuid::Uuid::now_v7().simple());
                let (before, after) = around(&boundary, &filename, &purpose);
                let length = before.len() as u64 + size + after.len() as u64;
                let whole = iter([Ok(Bytes::from(before))]).chain(pieces(opened)).chain(iter([Ok(Bytes::from(after))]));
                self.request(reqwest::Method::POST, path, &source)?
                    .header("content-type", format!("multipart/form-data; boundary={boundary}"))
                    .header("content-length", length)
                    .body(reqwest::Body::wrap_stream(whole))
            }
        };
        let whole = self.whole(request, &source).await?;
        // A job tells of its own error in a success.
        serde_json::from_slice(&whole).map_err(|error| source.error(Code::UPSTREAM, format!("the reply is not JSON: {error}")))
    }
}

/// What stands before and behind the bytes of a file.
fn around(boundary: &str, filename: &str, purpose: &str) -> (String, String) {
    // A quote or a line break would end the name.
    let name: String = filename.chars().map(|c| if c == '"' || c == '\\' || c.is_control() { '_' } else { c }).collect();
    let field = format!("--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n");
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\ncontent-type: application/octet-stream\r\n\r\n"
    );
    (field + &head, format!("\r\n--{boundary}--\r\n"))
}

/// The bytes of a file, piece by piece.
fn pieces(file: tokio::fs::File) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_end_its_field() {
        let (before, after) = around("b", "a\"\r\nx: y", "fine-tune");
        assert!(before.contains("filename=\"a___x: y\"\r\n") && before.contains("\r\n\r\nfine-tune\r\n"), "{before}");
        assert_eq!(after, "\r\n--b--\r\n");
    }
}
