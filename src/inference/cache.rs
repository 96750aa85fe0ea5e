//! Replies that were given before: by tenant, release and canonical request.

use super::road::Road;
use super::{Ask, Inference, Setup};
use crate::types::chat::{ChatRequest, ChatResponse};

/// Where a reply is kept; none where it is not to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheKey(String);

impl Inference {
    /// The key of a request; none where the cache is off for it.
    pub(super) fn cache_key(&self, _setup: &Setup, _ask: &Ask, _road: &Road, _request: &ChatRequest) -> Option<CacheKey> {
        None
    }

    /// The reply that is kept under a key.
    pub(super) fn recall(&self, _key: &CacheKey) -> Option<ChatResponse> {
        None
    }

    /// Keeps a reply that was given whole.
    pub(super) fn remember(&self, _setup: &Setup, _key: CacheKey, _response: &ChatResponse) {}
}
