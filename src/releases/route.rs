//! Routes: the names applications call, and the stages a release passes on them. A promotion needs the gate; it moves the stage, records
//! the decision and the audit row in one transaction, with a compare-and-swap on the release that was there before.

use super::gate::{self, Gate, Report};
use super::{Change, Commit, ReleaseError};
use crate::store::releases;
use crate::store::routes::{self, DecisionRecord, RouteRecord, StageRecord};
use crate::store::{Statement, Store, StoreError};
use crate::types::Digest;
use crate::types::ids::{is_slug, new_id};
use crate::types::time::now_ms;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;

/// Where a release stands on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Gets copies of requests; its answers are only recorded.
    Shadow,
    /// Answers a share of the requests.
    Canary,
    /// Answers.
    Live,
}

/// What the caller believes the stage holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it holds when the promotion begins.
    Current,
    /// Nothing.
    Empty,
    /// This release.
    Release(Digest),
}

/// A release to be moved.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// Route.
    pub route: String,
    /// Release; it must be stored.
    pub release: Digest,
    /// Where to.
    pub stage: Stage,
    /// Share of requests for `canary`, above 0 and below 1; other stages take no weight.
    pub weight: Option<f64>,
    /// What the stage should hold now.
    pub expected: Expected,
    /// Who decides.
    pub actor: String,
}

/// A decision and, for promotions, what the gate said.
#[derive(Debug, Clone, Serialize)]
pub struct Decided {
    /// The row.
    #[serde(flatten)]
    pub decision: DecisionRecord,
    /// The gate's report; `null` for a rollback, whose release passed it when it was promoted.
    pub gate: Option<Report>,
}

/// Makes a route.
///
/// # Errors
/// [`ReleaseError::Invalid`] for a bad name or an empty gate, [`StoreError::Conflict`] when the name is taken.
pub fn create(store: &Store, name: &str, suite: &str, gate: Gate, by: (&str, Commit<'_>)) -> Result<RouteRecord, ReleaseError> {
    for (field, text) in [("name", name), ("suite", suite)] {
        if !is_slug(text) {
            let message = format!("{field} \"{text}\": use a-z, 0-9, dot, dash and underscore, at most 64");
            return Err(ReleaseError::Invalid { field, message });
        }
    }
    let gate = gate.checked()?;
    if routes::find(store.db.as_ref(), name)?.is_some() {
        return Err(StoreError::Conflict(format!("route \"{name}\" exists")).into());
    }
    let route = RouteRecord { name: name.into(), suite: suite.into(), gate: json!(gate), created_at: now_ms() };
    let (actor, commit) = by;
    commit(&Change {
        actor: actor.into(),
        action: "route.create".into(),
        subject: name.into(),
        detail: json!({"suite": suite, "gate": route.gate}),
        statements: vec![routes::insert(&route)],
    })?;
    Ok(route)
}

/// Moves a release to a stage if the route's gate passes. A refusal is recorded too.
///
/// # Errors
/// [`ReleaseError::Refused`] with the gate's reasons; [`ReleaseError::Moved`] when the stage does not hold what was expected, or somebody
/// moved it meanwhile: of parallel promotions that saw the same stage, one wins.
pub fn promote(store: &Store, promotion: &Promotion, commit: Commit<'_>) -> Result<Decided, ReleaseError> {
    let db = store.db.as_ref();
    let route = routes::get(db, &promotion.route)?;
    let release = releases::get(db, &promotion.release.to_string())?.digest;
    let weight = weight(promotion)?;
    let current = current(store, &route.name, promotion.stage)?;
    let previous = current.as_ref().map(|stage| stage.release);
    check_expected(promotion, previous)?;
    let is_live = || Ok::<_, StoreError>(self::current(store, &route.name, Stage::Live)?.is_some_and(|live| live.release == release));
    if promotion.stage != Stage::Live && is_live()? {
        let message = format!("{release} is live on route \"{}\"; promote another release to live before moving it elsewhere", route.name);
        return Err(ReleaseError::Invalid { field: "stage", message });
    }
    let report = gate::evaluate(db, &route, &release)?;
    let run = report.run.clone();
    let word = if report.passed { "promoted" } else { "refused" };
    let decision = DecisionRecord {
        id: new_id("decision"),
        route: route.name.clone(),
        stage: promotion.stage.to_string(),
        release,
        previous,
        decision: word.into(),
        run: run.clone(),
        detail: json!(report),
        actor: promotion.actor.clone(),
        decided_at: now_ms(),
    };
    let mut statements = Vec::new();
    if report.passed {
        let stage = StageRecord {
            route: route.name.clone(),
            stage: promotion.stage.to_string(),
            release,
            weight,
            run: run.unwrap_or_default(),
            since: decision.decided_at,
        };
        statements = routes::move_stage(&stage, previous.as_ref());
    }
    record(&decision, statements, commit)?;
    if !report.passed {
        return Err(ReleaseError::Refused { route: route.name, release, suite: route.suite, reasons: report.reasons });
    }
    Ok(Decided { decision, gate: Some(report) })
}

/// Puts the live release back that was live before the current one. Its gate is not asked again: it passed when it was promoted.
///
/// # Errors
/// [`ReleaseError::NoEarlier`] when the current live release was the first, [`ReleaseError::Moved`] when somebody moved it meanwhile.
pub fn rollback(store: &Store, name: &str, actor: &str, commit: Commit<'_>) -> Result<Decided, ReleaseError> {
    let route = routes::get(store.db.as_ref(), name)?;
    let decisions = routes::decisions(store.db.as_ref(), name)?;
    let held = live_history(&decisions);
    let [.., earlier, latest] = held.as_slice() else {
        return Err(ReleaseError::NoEarlier { route: route.name });
    };
    let decision = DecisionRecord {
        id: new_id("decision"),
        route: route.name.clone(),
        stage: Stage::Live.to_string(),
        release: earlier.release,
        previous: Some(latest.release),
        decision: "rolled_back".into(),
        run: earlier.run.clone(),
        detail: json!({"proven_by": earlier.id}),
        actor: actor.into(),
        decided_at: now_ms(),
    };
    let stage = StageRecord {
        route: route.name,
        stage: decision.stage.clone(),
        release: earlier.release,
        weight: 1.0,
        run: earlier.run.clone().unwrap_or_default(),
        since: decision.decided_at,
    };
    record(&decision, routes::move_stage(&stage, Some(&latest.release)), commit)?;
    Ok(Decided { decision, gate: None })
}

/// Promotions to `live` that were not rolled back, oldest first: a stack, whose top is live now.
fn live_history(decisions: &[DecisionRecord]) -> Vec<&DecisionRecord> {
    let mut held = Vec::new();
    for decision in decisions.iter().filter(|decision| decision.stage == "live") {
        match decision.decision.as_str() {
            "promoted" => held.push(decision),
            "rolled_back" => drop(held.pop()),
            _ => {}
        }
    }
    held
}

/// Applies the statements with the decision's row and its audit row; a lost race becomes [`ReleaseError::Moved`].
fn record(decision: &DecisionRecord, mut statements: Vec<Statement>, commit: Commit<'_>) -> Result<(), ReleaseError> {
    statements.push(routes::insert_decision(decision));
    let verb = match decision.decision.as_str() {
        "promoted" => "promote",
        "rolled_back" => "rollback",
        _ => "refuse",
    };
    let change = Change {
        actor: decision.actor.clone(),
        action: format!("release.{verb}"),
        subject: format!("{}/{}", decision.route, decision.stage),
        detail: json!({"decision": decision.id, "release": decision.release, "previous": decision.previous, "run": decision.run,
            "numbers": decision.detail}),
        statements,
    };
    commit(&change).map_err(|error| match error {
        StoreError::Conflict(_) => ReleaseError::Moved {
            route: decision.route.clone(),
            stage: decision.stage.clone(),
            found: "another release since a moment ago".into(),
            expected: shown(decision.previous),
        },
        other => other.into(),
    })
}

fn current(store: &Store, route: &str, stage: Stage) -> Result<Option<StageRecord>, StoreError> {
    Ok(routes::stages(store.db.as_ref(), route)?.into_iter().find(|held| held.stage == stage.to_string()))
}

fn check_expected(promotion: &Promotion, found: Option<Digest>) -> Result<(), ReleaseError> {
    let moved = |expected: String| ReleaseError::Moved {
        route: promotion.route.clone(),
        stage: promotion.stage.to_string(),
        found: shown(found),
        expected,
    };
    match promotion.expected {
        Expected::Empty if found.is_some() => Err(moved("nothing".into())),
        Expected::Release(digest) if found != Some(digest) => Err(moved(digest.to_string())),
        _ if found == Some(promotion.release) && promotion.stage != Stage::Canary => Err(moved("another release".into())),
        _ => Ok(()),
    }
}

fn weight(promotion: &Promotion) -> Result<f64, ReleaseError> {
    let fault = |message: String| Err(ReleaseError::Invalid { field: "weight", message });
    match (promotion.stage, promotion.weight) {
        (Stage::Canary, Some(weight)) if weight > 0.0 && weight < 1.0 => Ok(weight),
        (Stage::Canary, Some(weight)) => fault(format!("a canary's weight lies between 0 and 1, not at {weight}")),
        (Stage::Canary, None) => Ok(0.1),
        (_, None) => Ok(1.0),
        (stage, Some(_)) => fault(format!("{stage} takes no weight")),
    }
}

fn shown(release: Option<Digest>) -> String {
    release.map_or_else(|| "nothing".into(), |digest| digest.to_string())
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Shadow => "shadow",
            Stage::Canary => "canary",
            Stage::Live => "live",
        })
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shadow" => Ok(Stage::Shadow),
            "canary" => Ok(Stage::Canary),
            "live" => Ok(Stage::Live),
            other => Err(format!("\"{other}\" is none of shadow, canary and live")),
        }
    }
}

impl FromStr for Expected {
    type Err = String;

    /// `none` or a whole digest.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Expected::Empty),
            digest => {
                digest.parse().map(Expected::Release).map_err(|_| format!("\"{digest}\" is neither none nor sha256: and 64 hex digits"))
            }
        }
    }
}

/// Everything about a route, for people and `--json`.
///
/// # Errors
/// [`StoreError::Unknown`] when there is no such route.
pub fn describe(store: &Store, name: &str) -> Result<Value, ReleaseError> {
    let db = store.db.as_ref();
    let route = routes::get(db, name)?;
    let mut value = json!(route);
    value["stages"] = json!(routes::stages(db, name)?);
    value["decisions"] = json!(routes::decisions(db, name)?);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_stack_of_promotions() {
        let decide = |id: &str, decision: &str, stage: &str| DecisionRecord {
            id: id.into(),
            route: "r".into(),
            stage: stage.into(),
            release: Digest::of(id),
            previous: None,
            decision: decision.into(),
            run: None,
            detail: json!({}),
            actor: "a".into(),
            decided_at: 0,
        };
        let decisions = [
            decide("a", "promoted", "live"),
            decide("x", "promoted", "canary"),
            decide("b", "promoted", "live"),
            decide("n", "refused", "live"),
            decide("a", "rolled_back", "live"),
            decide("c", "promoted", "live"),
        ];
        let ids: Vec<_> = live_history(&decisions).iter().map(|decision| decision.id.as_str()).collect();
        assert_eq!(ids, ["a", "c"]);
    }
}
