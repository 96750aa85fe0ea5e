//! A reply whose head has come, whichever way it was asked for.

use super::wire;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};

/// A reply, its body still to be read. Dropping it ends the call.
pub(super) enum Received {
    /// Over `reqwest`.
    Client(reqwest::Response),
    /// In the clear.
    Wire(wire::Response),
}

impl Received {
    pub(super) fn status(&self) -> u16 {
        match self {
            Received::Client(response) => response.status().as_u16(),
            Received::Wire(response) => response.status,
        }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status())
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        match self {
            Received::Client(response) => response.headers(),
            Received::Wire(response) => &response.headers,
        }
    }

    pub(super) fn content_type(&self) -> &str {
        self.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Bytes of the body, where its length is known.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Received::Client(response) => response.content_length(),
            Received::Wire(response) => response.length(),
        }
    }

    /// The next bytes of the body; none at its end. What went wrong is told without the address.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        match self {
            Received::Client(response) => response.chunk().await.map_err(|error| super::upstream::causes(&error.without_url())),
            Received::Wire(response) => response.chunk().await.map_err(|error| error.to_string()),
        }
    }

    /// The reader needs no more: a connection whose reply is all but over is kept.
    pub(super) fn finish(&mut self) {
        if let Received::Wire(response) = self {
            response.finish();
        }
    }
}
