//! Money and time: every call of an optimisation goes through here, is counted, and is the last one when the budget is spent.

use super::Halt;
use crate::access::Caller;
use crate::evals::prepare::PlanTarget;
use crate::evals::scorers::{Calling, Services};
use crate::evals::{Reply, Respond};
use crate::inference::{Ask, CacheWish, Inference, Measured, MostCost, Priced, Ready};
use crate::types::chat::ChatRequest;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use crate::types::told::Cost;
use crate::types::traits::{Embed, Vectors};
use crate::types::{Code, Failure};
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// What an optimisation may cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Money, over all models.
    pub money: Option<MicroUsd>,
    /// Time in all.
    pub time: Option<Duration>,
}

/// Why an optimisation ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The money is spent.
    Money,
    /// The time is over.
    Time,
    /// A call had no known price, under a budget of money.
    Unpriced,
    /// A person ended it.
    Interrupted,
}

impl Ended {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Ended::Money => "the budget of money is spent",
            Ended::Time => "the time is over",
            Ended::Unpriced => "a call had no known price, so that the budget of money could not be kept",
            Ended::Interrupted => "it was interrupted",
        }
    }
}

/// Counts what calls cost.
pub(super) struct Meter {
    inference: Arc<Inference>,
    limit: Option<MicroUsd>,
    spent_micro_usd: AtomicI64,
    ended: Arc<watch::Sender<Option<Ended>>>,
}

impl Meter {
    /// A meter; the time begins now.
    pub(super) fn new(inference: Arc<Inference>, limits: Limits, interrupted: BoxFuture<'static, ()>) -> Self {
        let ended = Arc::new(watch::Sender::new(None));
        let (end, time) = (ended.clone(), limits.time);
        tokio::spawn(async move {
            let over = async {
                match time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            let why = tokio::select! {
                () = interrupted => Ended::Interrupted,
                () = over => Ended::Time,
            };
            end.send_if_modified(|ended| ended.is_none() && ended.replace(why).is_none());
        });
        Meter { inference, limit: limits.money, spent_micro_usd: AtomicI64::new(0), ended }
    }

    /// What was spent so far.
    pub(super) fn spent(&self) -> MicroUsd {
        MicroUsd(self.spent_micro_usd.load(Ordering::Relaxed))
    }

    /// Refuses a model whose provider is not there; other names are routes.
    pub(super) fn can_reach(&self, model: &str) -> Result<(), Failure> {
        if model.contains('/') {
            self.inference.setup().providers.resolve(model)?;
        }
        Ok(())
    }

    /// Refuses a budget of money over models whose price is not known.
    pub(super) fn knows_price_of(&self, models: &[&str]) -> Result<(), Failure> {
        if self.limit.is_none() {
            return Ok(());
        }
        let setup = self.inference.setup();
        for name in models {
            let Some((provider, model)) = name.split_once('/') else { continue };
            if setup.prices.of(provider, model, now_ms()).is_none() {
                let message = format!("the price of {name} is not known, so that no budget of money can be kept");
                let hint = "add a row to [[prices.rows]] of refit.toml, or bound the time with --max-minutes";
                return Err(Failure::on(Code::PRICE_UNKNOWN, "--max-usd", message).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Resolves when the work is to end.
    pub(super) async fn ended(&self) -> Ended {
        let mut changes = self.ended.subscribe();
        match changes.wait_for(Option::is_some).await.ok().and_then(|ended| *ended) {
            Some(ended) => ended,
            // Nobody is left who could end it.
            None => std::future::pending().await,
        }
    }

    /// Asks the model that proposes.
    pub(super) async fn ask(&self, request: ChatRequest) -> Result<String, Halt> {
        let asking = self.inference.answer(Ask::new(&Caller::local("optimize"), "prompt.optimize"), request);
        tokio::select! {
            biased;
            ended = self.ended() => Err(Halt::Ended(ended)),
            answer = asking => {
                let answer = answer?;
                self.pay(answer.told.cost);
                Ok(answer.response.text())
            }
        }
    }

    fn pay(&self, cost: Cost) {
        let end = |why| {
            self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(why).is_none());
        };
        match (cost, self.limit) {
            (Cost::MicroUsd(micro), limit) => {
                let spent = self.spent_micro_usd.fetch_add(micro, Ordering::Relaxed) + micro;
                if limit.is_some_and(|limit| spent >= limit.0) {
                    end(Ended::Money);
                }
            }
            (Cost::Unknown, Some(_)) => end(Ended::Unpriced),
            (Cost::Unknown | Cost::Open, _) => {}
        }
    }
}

impl Respond for Meter {
    fn write<'a>(&'a self, target: &'a PlanTarget, variables: &'a Map<String, Value>) -> BoxFuture<'a, Result<Ready, Failure>> {
        let measured = Measured { manifest: &target.manifest, release: target.release };
        Box::pin(async move { self.inference.ready(measured, variables, &Caller::local("optimize")).await })
    }

    fn ask(&self, ready: Ready) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async move {
            let answer = self.inference.ask_ready(ready, &Caller::local("optimize")).await?;
            self.pay(answer.told.cost);
            Ok(Reply::of(&answer))
        })
    }

    fn priced(&self, model: &str) -> Priced {
        self.inference.priced(model)
    }

    fn replies_days(&self) -> u64 {
        self.inference.replies_days()
    }

    fn services(&self) -> &dyn Services {
        self
    }
}

/// What scorers ask is paid for, too.
impl Services for Meter {
    fn chat(&self, request: ChatRequest, cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
        Box::pin(async move {
            let reply = Services::chat(self.inference.as_ref(), request, cache).await?;
            self.pay(reply.cost_micro_usd.map_or(Cost::Unknown, Cost::MicroUsd));
            Ok(reply)
        })
    }

    fn most_cost<'a>(&'a self, calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
        self.inference.most_cost(calling)
    }

    fn allows_commands(&self) -> bool {
        self.inference.allows_commands()
    }
}

impl Embed for Meter {
    fn embed<'a>(&'a self, model: &'a str, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(async move {
            let made = Embed::embed(self.inference.as_ref(), model, texts).await?;
            self.pay(made.cost_micro_usd.map_or(Cost::Unknown, Cost::MicroUsd));
            Ok(made)
        })
    }
}
