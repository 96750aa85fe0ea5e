//! Trying targets until one answers.

use super::plan::Plan;
use super::road::Road;
use super::ticket::Ticket;
use super::{Inference, Setup};
use crate::types::Failure;
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// One call of one target; made anew for each try.
pub(super) type Try<'a, T> = dyn Fn(&Plan) -> BoxFuture<'a, Result<T, Failure>> + Send + Sync + 'a;

impl Inference {
    /// Calls the road's targets until one answers. Returns the answer and the target that gave it.
    pub(super) async fn attempt<'a, T>(
        &self,
        _setup: &Arc<Setup>,
        ticket: &mut Ticket,
        road: &Road,
        call: &Try<'a, T>,
    ) -> Result<(T, Plan), Failure> {
        let plan = road.targets[0].clone();
        ticket.calls(&plan);
        let answered = call(&plan).await;
        ticket.came();
        Ok((answered?, plan))
    }
}
