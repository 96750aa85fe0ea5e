//! What scorers may call, as a run lets them: judges and vectors are paid from the run's money, count towards its concurrency and slow
//! down with their provider, as calls of targets do.

use super::Reply;
use super::calls::{Calls, Leave, cost_of_failure, is_busy};
use super::scorers::{Calling, Services};
use crate::inference::{CacheWish, MostCost};
use crate::types::chat::ChatRequest;
use crate::types::traits::{Embed, Vectors};
use crate::types::{Code, Failure};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

/// What the scorers of one case have spent, or may be spending.
#[derive(Debug, Default)]
pub(super) struct Spent {
    micro_usd: AtomicI64,
    is_unknown: AtomicBool,
}

impl Spent {
    /// Micro-dollars, with what is set aside for calls under way.
    pub(super) fn micro_usd(&self) -> i64 {
        self.micro_usd.load(Ordering::Relaxed)
    }

    /// The same; none where the price of a call is not known.
    pub(super) fn known(&self) -> Option<i64> {
        (!self.is_unknown.load(Ordering::Relaxed)).then(|| self.micro_usd())
    }
}

/// Services that are paid for.
pub(super) struct Paid<'c> {
    services: &'c dyn Services,
    calls: &'c Calls,
    spent: Arc<Spent>,
}

impl<'c> Paid<'c> {
    /// For one case.
    pub(super) fn new(services: &'c dyn Services, calls: &'c Calls) -> Self {
        Paid { services, calls, spent: Arc::default() }
    }

    /// What the case has spent; it goes on counting.
    pub(super) fn spent(&self) -> Arc<Spent> {
        self.spent.clone()
    }

    /// Waits until the call may be made, with its money set aside.
    async fn begin(&self, model: &str, calling: Calling<'_>) -> Result<(Leave<'c>, i64), Failure> {
        let most = match self.calls.purse.is_bounded() {
            true => {
                let MostCost { cost, is_bounded } = self.services.most_cost(&calling).await?;
                if cost.is_none() {
                    return Err(unpriced(model));
                }
                if !is_bounded {
                    return Err(unbounded(model));
                }
                cost
            }
            false => None,
        };
        let leave = self.calls.begin(model, most).await.ok_or_else(|| self.calls.why_not())?;
        let held = most.map_or(0, |most| most.0);
        self.spent.micro_usd.fetch_add(held, Ordering::Relaxed);
        Ok((leave, held))
    }

    /// Puts what the call cost in the place of what was set aside, and tells the provider's pace how it went.
    fn settle<T>(&self, (leave, held): (Leave<'_>, i64), answer: &Result<T, Failure>, cost: impl Fn(&T) -> Option<i64>) {
        let known = match answer {
            Ok(answer) => cost(answer),
            Err(failure) => cost_of_failure(failure),
        };
        let charged = leave.held.settle(known);
        self.spent.micro_usd.fetch_add(charged - held, Ordering::Relaxed);
        if known.is_none() && answer.is_ok() && !self.calls.purse.is_bounded() {
            self.spent.is_unknown.store(true, Ordering::Relaxed);
        }
        match answer {
            Err(failure) if is_busy(failure) => leave.permit.refused(failure.retry_after_s().map(Duration::from_secs)),
            Ok(_) => leave.permit.answered(),
            Err(_) => {}
        }
    }
}

fn unpriced(model: &str) -> Failure {
    let message = format!("the price of what {model} answers for a scorer is not known, so that max_cost cannot be kept");
    Failure::on(Code::PRICE_UNKNOWN, "max_cost", message).with_hint("add a row to [[prices.rows]] of refit.toml")
}

fn unbounded(model: &str) -> Failure {
    let message = format!("nobody knows how long the answers of {model} to a scorer are, so that max_cost cannot be kept");
    Failure::on(Code::INVALID_VALUE, "max_cost", message).with_hint("give the scorer parameters: {max_tokens: 500}")
}

impl Services for Paid<'_> {
    fn chat(&self, request: ChatRequest, cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async move {
            let begun = self.begin(&request.model, Calling::Chat(&request)).await?;
            let answer = self.services.chat(request, cache).await;
            self.settle(begun, &answer, |reply| reply.cost_micro_usd);
            answer
        })
    }

    fn most_cost<'a>(&'a self, calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
        self.services.most_cost(calling)
    }

    fn allows_commands(&self) -> bool {
        self.services.allows_commands()
    }
}

impl Embed for Paid<'_> {
    fn embed<'a>(&'a self, model: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(async move {
            let begun = self.begin(model, Calling::Vectors(model, texts)).await?;
            let made = self.services.embed(model, texts).await;
            self.settle(begun, &made, |made| made.cost_micro_usd);
            made
        })
    }
}
