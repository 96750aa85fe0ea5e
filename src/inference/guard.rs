//! Guardrails around a call: what comes in is checked before anything is asked, what goes out before anybody reads it.

use super::road::Road;
use super::ticket::Ticket;
use super::{Inference, Setup};
use crate::types::Failure;
use crate::types::chat::{ChatRequest, ChatResponse};
use std::sync::Arc;

impl Inference {
    /// Whether replies on this road must be read whole before they are passed on.
    pub(super) fn guards_output(&self, _setup: &Setup, _road: &Road) -> bool {
        false
    }

    /// The request as it may be asked.
    ///
    /// # Errors
    /// [`Code::CONTENT_FILTER`](crate::types::Code::CONTENT_FILTER) for what is refused.
    pub(super) async fn guard_input(
        &self,
        _setup: &Arc<Setup>,
        _ticket: &mut Ticket,
        _road: &Road,
        request: ChatRequest,
    ) -> Result<ChatRequest, Failure> {
        Ok(request)
    }

    /// The reply as it may be told.
    ///
    /// # Errors
    /// As [`Inference::guard_input`].
    pub(super) async fn guard_output(
        &self,
        _setup: &Arc<Setup>,
        _ticket: &mut Ticket,
        _road: &Road,
        response: ChatResponse,
    ) -> Result<ChatResponse, Failure> {
        Ok(response)
    }
}
