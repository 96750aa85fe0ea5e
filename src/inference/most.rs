//! The most that a call of an evaluation may cost, before it is made: whoever keeps a bound of money over a run sets so much aside.

use super::admission::Extent;
use super::foresee::Foreseen;
use super::road::Road;
use super::{Ask, Inference, Ready, Setup};
use crate::access::Caller;
use crate::types::Failure;
use crate::types::chat::ChatRequest;
use crate::types::embeddings::EmbeddingRequest;
use crate::types::money::MicroUsd;
use crate::types::time::now_ms;
use std::sync::Arc;

/// The most that a call may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MostCost {
    /// Micro-dollars, with the usual number of tokens where the reply has no bound; none where a price is not known.
    pub cost: Option<MicroUsd>,
    /// Whether the reply cannot cost more than that: it has a bound of tokens, or its tokens cost nothing.
    pub is_bounded: bool,
}

/// What is known of the price of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priced {
    /// Nothing.
    Unknown,
    /// Whatever it writes costs nothing.
    Freely,
    /// The more it writes the dearer it is.
    ByToken,
}

impl Inference {
    /// What is known now of the price of a `provider/model`.
    pub fn priced(&self, model: &str) -> Priced {
        let setup = self.setup();
        let Some((provider, model)) = model.split_once('/') else { return Priced::Unknown };
        match setup.prices.of(provider, model, now_ms()) {
            None => Priced::Unknown,
            Some(price) if price.most(0, u64::from(u32::MAX)) == price.most(0, 0) => Priced::Freely,
            Some(_) => Priced::ByToken,
        }
    }

    /// The most that a chat call of a route or a model may cost, with everything that its releases add.
    ///
    /// # Errors
    /// Where the name leads nowhere.
    pub async fn most_of_chat(&self, request: &ChatRequest) -> Result<MostCost, Failure> {
        let setup = self.setup();
        let road = self.road_to(&setup, &Ask::new(&Caller::local("eval"), "eval"), &request.model).await?;
        let foreseen = self.sizes(&road, request).await;
        self.most_cost(&setup, &road, (Extent::of_chat(request), &foreseen))
    }

    /// The most that a call for vectors may cost.
    ///
    /// # Errors
    /// Where the name leads nowhere.
    pub async fn most_of_vectors(&self, request: &EmbeddingRequest) -> Result<MostCost, Failure> {
        let setup = self.setup();
        let road = self.road_to(&setup, &Ask::new(&Caller::local("eval"), "eval"), &request.model).await?;
        self.most_cost(&setup, road.for_vectors()?.as_ref(), (Extent::of_embedding(request), &Foreseen::default()))
    }

    fn most_cost(&self, setup: &Arc<Setup>, road: &Road, (extent, foreseen): (Extent, &Foreseen)) -> Result<MostCost, Failure> {
        let priced = |target: &super::plan::Plan| self.priced(&format!("{}/{}", target.provider_name, target.model));
        let first = road.cascade.iter().flat_map(|cascade| &cascade.first.targets);
        let judge = road.cascade.iter().filter_map(|cascade| cascade.judge.as_ref()).flat_map(|judge| &judge.targets);
        let (mut is_known, mut is_bounded) = (true, true);
        for plan in road.targets.iter().chain(first).chain(judge) {
            is_known &= priced(plan) != Priced::Unknown;
            is_bounded &= priced(plan) == Priced::Freely || self.has_bound(plan, extent, foreseen)?;
        }
        // Without a price nothing is set aside in other places either, where the configuration lets such calls pass.
        let cost = self.most_of(setup, road, (extent, foreseen))?.filter(|_| is_known);
        Ok(MostCost { cost, is_bounded })
    }
}

impl Ready {
    /// The most that the call may cost.
    pub fn most_cost(&self) -> MostCost {
        let (extent, plan) = (Extent::of_chat(&self.call.request), self.plan());
        MostCost { cost: extent.most_cost(&self.setup, plan), is_bounded: extent.is_bounded() }
    }
}
