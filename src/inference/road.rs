//! Where a call may go: the targets of the name that was called, and the rules by which one is chosen and another tried.

use super::called;
use super::plan::{self, Plan};
use super::pool::{Budget, Gate, NoPlace, Permit, Pool, Target};
use super::verdict::Refusal;
use super::{Ask, Inference, Setup, blocking};
use crate::config::routes::{AcceptConfig, Choose, Sticky, TargetConfig};
use crate::config::{ResilienceConfig, RouteConfig};
use crate::store::{Store, routes};
use crate::types::chat::ChatRequest;
use crate::types::{Code, Failure};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The targets of a name.
#[derive(Clone)]
pub struct Road {
    /// Name of the configured route, when one was called.
    pub name: Option<String>,
    /// Targets in the order of the configuration, fallbacks last; never empty.
    pub targets: Vec<Arc<Plan>>,
    /// What is known of each target, in the same order.
    pub(super) lanes: Vec<Lane>,
    pub(super) rules: Rules,
    /// A model that is asked first.
    pub(super) cascade: Option<Cascade>,
}

/// The way to one target.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) target: Arc<Target>,
    pub(super) weight: u32,
    /// Bound of this route's calls of the target.
    own_gate: Option<Arc<Gate>>,
    /// Bound of all calls of the provider.
    provider_gate: Option<Arc<Gate>>,
    /// Time for a call in all.
    pub(super) total_timeout: Option<Duration>,
}

/// Places at the gates of a lane.
#[derive(Debug)]
pub(super) struct Permits {
    _own: Option<Permit>,
    _provider: Option<Permit>,
}

impl Lane {
    /// Whether a call would go in without waiting.
    pub(super) fn has_room(&self) -> bool {
        [&self.own_gate, &self.provider_gate].into_iter().flatten().all(|gate| gate.has_room())
    }

    /// Goes in, if there is room now.
    pub(super) fn try_enter(&self) -> Option<Permits> {
        let enter = |gate: &Option<Arc<Gate>>| match gate {
            Some(gate) => gate.try_enter().map(Some),
            None => Some(None),
        };
        Some(Permits { _own: enter(&self.own_gate)?, _provider: enter(&self.provider_gate)? })
    }

    /// Goes in, waiting where it must.
    pub(super) async fn enter(&self, deadline: Option<Instant>) -> Result<Permits, NoPlace> {
        let own = match &self.own_gate {
            Some(gate) => Some(gate.enter(deadline).await?),
            None => None,
        };
        let provider = match &self.provider_gate {
            Some(gate) => Some(gate.enter(deadline).await?),
            None => None,
        };
        Ok(Permits { _own: own, _provider: provider })
    }
}

/// How a target is chosen and another tried.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) choose: Choose,
    pub(super) sticky: Sticky,
    /// Sets of guardrails that the route names.
    pub(super) guardrails: Vec<String>,
    /// How many of the targets are no fallbacks.
    pub(super) primary: usize,
    /// The model of the first target in the configuration, where that cannot be called and is not among them.
    first_model: Option<String>,
    /// Calls for one request.
    pub(super) attempts: u32,
    pub(super) hedge_after: Option<Duration>,
    pub(super) first_byte_timeout: Option<Duration>,
    /// Time for a request in all.
    pub(super) total_timeout: Option<Duration>,
    /// Calls that are made again are paid for; where none ever are, nothing is kept.
    pub(super) budget: Option<Arc<Budget>>,
    pub(super) resilience: Arc<ResilienceConfig>,
    /// Whether replies are kept, where the route says it.
    pub(super) cache: Option<bool>,
}

/// A cheap model that is asked first.
#[derive(Clone)]
pub(super) struct Cascade {
    /// The road to it: one target.
    pub(super) first: Arc<Road>,
    pub(super) accept: AcceptConfig,
    /// The road to the model that judges.
    pub(super) judge: Option<Arc<Road>>,
}

impl Road {
    /// Whether a target may be kept waiting for another, and chosen among: the road of a configured route.
    pub(super) fn is_route(&self) -> bool {
        self.name.is_some()
    }

    /// What was called, for messages.
    pub(super) fn called(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.lanes[0].target.name().to_string())
    }

    /// The road for vectors: those of another model do not fit the ones that the caller has, so that only targets with the model of
    /// the first are asked.
    pub(super) fn for_vectors(self: Arc<Self>) -> Result<Arc<Self>, Failure> {
        let model = self.rules.first_model.as_ref().unwrap_or(&self.targets[0].model);
        let same = |plan: &Plan| plan.model == *model && plan.adapter == self.targets[0].adapter;
        if self.targets.iter().all(|plan| same(plan)) {
            return Ok(self);
        }
        let kept: Vec<usize> = (0..self.targets.len()).filter(|at| same(&self.targets[*at])).collect();
        if kept.is_empty() {
            let message = format!("no target of the route \"{}\" that has its first model, {model}, can be called now", self.called());
            return Err(Failure::on(Code::MODEL_NOT_FOUND, "model", message));
        }
        let primary = kept.iter().filter(|at| **at < self.rules.primary).count();
        Ok(Arc::new(Road {
            name: self.name.clone(),
            targets: kept.iter().map(|at| self.targets[*at].clone()).collect(),
            lanes: kept.iter().map(|at| self.lanes[*at].clone()).collect(),
            rules: Rules { primary, ..self.rules.clone() },
            cascade: None,
        }))
    }
}

/// What roads are made of.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) setup: Arc<Setup>,
    pub(super) pool: Arc<Pool>,
}

impl Parts {
    /// The road to one target that was called directly.
    pub(super) fn direct(&self, plan: Plan) -> Road {
        self.direct_by(plan, self.setup.resilience.clone())
    }

    /// The same for an evaluation.
    pub(super) fn measured(&self, plan: Plan) -> Road {
        self.direct_by(plan, self.setup.unbroken.clone())
    }

    fn direct_by(&self, plan: Plan, resilience: Arc<ResilienceConfig>) -> Road {
        let attempts = resilience.attempts;
        let rules = Rules {
            choose: Choose::Ordered,
            sticky: Sticky::None,
            guardrails: Vec::new(),
            primary: 1,
            first_model: None,
            attempts,
            hedge_after: None,
            first_byte_timeout: None,
            total_timeout: None,
            budget: (attempts > 1).then(|| self.pool.budget("")),
            resilience,
            cache: None,
        };
        Road { name: None, lanes: vec![self.lane(&plan, None)], targets: vec![Arc::new(plan)], rules, cascade: None }
    }

    /// The road of a name.
    fn look_up(&self, name: &str) -> Result<Road, Failure> {
        match self.setup.config.routes.iter().find(|route| route.name == name) {
            Some(route) => self.configured(route),
            None => Ok(self.direct(plan::for_model(&self.store, &self.setup, name)?)),
        }
    }

    pub(super) fn configured(&self, route: &RouteConfig) -> Result<Road, Failure> {
        if routes::find(self.store.db.as_ref(), &route.name)?.is_some() {
            return Err(Refusal::TwoMeanings { name: route.name.clone() }.into());
        }
        let (mut targets, mut lanes, mut primary) = (Vec::new(), Vec::new(), 0);
        let (mut failure, mut first_model) = (None, None);
        for (at, target) in route.targets.iter().chain(&route.fallbacks).enumerate() {
            match plan::for_model(&self.store, &self.setup, &target.model) {
                Ok(plan) => {
                    self.pool.works(&target.model);
                    lanes.push(self.lane(&plan, Some((route, target))));
                    targets.push(Arc::new(plan));
                    primary += usize::from(at < route.targets.len());
                }
                Err(error) => {
                    self.report(route, target, &error);
                    if at == 0 {
                        first_model = Some(target.model.split_once('/').map_or(target.model.as_str(), |(_, model)| model).to_string());
                    }
                    failure = failure.or(Some(error));
                }
            }
        }
        if let (true, Some(failure)) = (targets.is_empty(), failure) {
            return Err(failure);
        }
        let rules = Rules {
            choose: route.choose,
            sticky: route.sticky,
            guardrails: route.guardrails.clone(),
            primary,
            first_model,
            attempts: route.attempts,
            hedge_after: route.hedge_after,
            first_byte_timeout: route.first_byte_timeout,
            total_timeout: route.total_timeout,
            budget: (route.attempts > 1).then(|| self.pool.budget(&route.name)),
            resilience: self.setup.resilience.clone(),
            cache: route.cache,
        };
        Ok(Road { name: Some(route.name.clone()), targets, lanes, rules, cascade: self.cascade(route)? })
    }

    /// One target that cannot be called does not take the others with it; it is told once until it can.
    fn report(&self, route: &RouteConfig, target: &TargetConfig, failure: &Failure) {
        if self.pool.reports(&target.model) {
            let failure = failure.to_string();
            tracing::warn!(
                route = route.name,
                target_name = target.model,
                ?failure,
                "the route goes without a target that cannot be called"
            );
        }
    }

    fn cascade(&self, route: &RouteConfig) -> Result<Option<Cascade>, Failure> {
        let Some(cascade) = &route.cascade else { return Ok(None) };
        let road = |model: &str| plan::for_model(&self.store, &self.setup, model).map(|plan| self.direct(plan));
        let mut first = match road(&cascade.first) {
            Ok(first) => first,
            Err(failure) => {
                let target = TargetConfig { model: cascade.first.clone(), weight: 1, max_concurrency: None };
                self.report(route, &target, &failure);
                return Ok(None);
            }
        };
        // Whatever happens to it, the targets come next.
        first.rules = Rules { attempts: 1, total_timeout: cascade.timeout, ..first.rules };
        let judge = cascade.accept.judge.as_ref().map(|judge| road(&judge.model).map(Arc::new)).transpose()?;
        Ok(Some(Cascade { first: Arc::new(first), accept: cascade.accept.clone(), judge }))
    }

    fn lane(&self, plan: &Plan, of: Option<(&RouteConfig, &TargetConfig)>) -> Lane {
        let mut name = format!("{}/{}", plan.provider_name, plan.model);
        if let Some(adapter) = &plan.adapter {
            name.push_str(&format!(":{}", adapter.short()));
        }
        let provider = self.setup.config.providers.iter().find(|provider| provider.name == plan.provider_name);
        Lane {
            target: self.pool.target(&name),
            weight: of.map_or(1, |(_, target)| target.weight),
            own_gate: of.and_then(|(route, target)| self.pool.target_gate(&route.name, &target.model)),
            provider_gate: self.pool.provider_gate(&plan.provider_name),
            total_timeout: provider.and_then(|provider| provider.total_timeout_s).map(Duration::from_secs),
        }
    }
}

impl Inference {
    pub(super) fn parts(&self, setup: &Arc<Setup>) -> Parts {
        Parts { store: self.store.clone(), setup: setup.clone(), pool: self.pool.clone() }
    }

    /// The road of a chat request: of the name in `model`, or of the prompt of the library that it names.
    pub(super) async fn road(&self, setup: &Arc<Setup>, request: &ChatRequest) -> Result<Arc<Road>, Failure> {
        let Some(call) = request.extra.get("prompt").and_then(|prompt| called::Call::of(&request.model, prompt)) else {
            return self.road_of(setup, &request.model).await;
        };
        let (parts, prompts) = (self.parts(setup), self.prompts.clone());
        blocking(move || Ok(Arc::new(parts.of_prompt(&prompts, &call)?))).await
    }

    /// The road of a name for a caller: as far as the key may call it, and told no more than it may know.
    pub(super) async fn road_to(&self, setup: &Arc<Setup>, ask: &Ask, name: &str) -> Result<Arc<Road>, Failure> {
        self.may_name(ask, name, None)?;
        self.road_of(setup, name).await.map_err(|failure| self.told_to(ask, failure))
    }

    /// The road of a name, looked up once until anybody commits.
    pub(super) async fn road_of(&self, setup: &Arc<Setup>, name: &str) -> Result<Arc<Road>, Failure> {
        let generation = setup.roads.generation()?;
        if let Some(road) = setup.roads.get(generation, name) {
            return Ok(road);
        }
        let (parts, prompts, model) = (self.parts(setup), self.prompts.clone(), name.to_string());
        let road = blocking(move || {
            let road = parts.look_up(&model)?;
            for plan in &road.targets {
                // Compiled here, so that whoever finds the road finds the prompts in memory.
                plan.prompt(&prompts)?;
            }
            Ok(Arc::new(road))
        });
        let road = road.await?;
        setup.roads.keep(generation, name.to_string(), road.clone());
        Ok(road)
    }
}
