//! The tables `routes`, `route_stages` and `route_decisions`, and the stored runs that prove a release. Moving a stage is one
//! transaction with a compare-and-swap on the release that was there before.

use super::db::{Db, Row, Statement, StoreError, Value};
use crate::types::Digest;
use crate::types::error::did_you_mean;
use serde::Serialize;

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteRecord {
    /// What applications put in `model`.
    pub name: String,
    /// Suite whose runs prove a release.
    pub suite: String,
    /// The gate, as JSON.
    pub gate: serde_json::Value,
    /// When it was made.
    pub created_at: i64,
}

/// The release in one stage of a route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageRecord {
    /// Route.
    pub route: String,
    /// `shadow`, `canary` or `live`.
    pub stage: String,
    /// The release.
    pub release: Digest,
    /// Share of requests, 0 to 1; 1 for `live`.
    pub weight: f64,
    /// Run that proved it.
    pub run: String,
    /// Since when.
    pub since: i64,
}

/// A decision about a route, also a refused one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecisionRecord {
    /// `decision_…`.
    pub id: String,
    /// Route.
    pub route: String,
    /// Stage it was about.
    pub stage: String,
    /// Release it was about.
    pub release: Digest,
    /// Release that was in the stage before.
    pub previous: Option<Digest>,
    /// `promoted`, `refused` or `rolled_back`.
    pub decision: String,
    /// Run whose numbers were used.
    pub run: Option<String>,
    /// The numbers used.
    pub detail: serde_json::Value,
    /// Who decided.
    pub actor: String,
    /// When.
    pub decided_at: i64,
}

/// A finished run that measured a release.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proof {
    /// Run.
    pub run: String,
    /// Target's name in the run.
    pub target: String,
    /// Suite.
    pub suite: String,
    /// Digest of the suite as it was.
    pub suite_digest: String,
    /// Digest of its scorers; none in runs from before they were written down.
    pub scorers_digest: Option<Digest>,
    /// Dataset.
    pub dataset: String,
    /// Digest of the dataset version.
    pub dataset_digest: String,
    /// Split it was measured on.
    pub split: String,
    /// Metrics of the target.
    pub metrics: serde_json::Value,
    /// When the run began.
    pub began_at: i64,
    /// When it ended.
    pub finished_at: i64,
}

/// The statement that makes a route; a second one of the name is a conflict.
pub fn insert(route: &RouteRecord) -> Statement {
    let RouteRecord { name, suite, gate, created_at } = route;
    let params: [Value; 4] = [name.into(), suite.into(), gate.into(), (*created_at).into()];
    Statement::new("INSERT INTO routes (name, suite, gate, created_at) VALUES (?, ?, ?, ?)", params)
}

/// The route of that name, if there is one.
///
/// # Errors
/// What the database says.
pub fn find(db: &dyn Db, name: &str) -> Result<Option<RouteRecord>, StoreError> {
    db.query("SELECT name, suite, gate, created_at FROM routes WHERE name = ?", &[name.into()])?.first().map(route).transpose()
}

/// The route of that name.
///
/// # Errors
/// [`StoreError::Unknown`] with the nearest name.
pub fn get(db: &dyn Db, name: &str) -> Result<RouteRecord, StoreError> {
    if let Some(route) = find(db, name)? {
        return Ok(route);
    }
    let names: Vec<_> = list(db)?.into_iter().map(|route| route.name).collect();
    Err(StoreError::Unknown { what: "route", name: name.to_string(), nearest: did_you_mean(name, names.iter().map(String::as_str)) })
}

/// All routes, by name.
///
/// # Errors
/// What the database says.
pub fn list(db: &dyn Db) -> Result<Vec<RouteRecord>, StoreError> {
    db.query("SELECT name, suite, gate, created_at FROM routes ORDER BY name", &[])?.iter().map(route).collect()
}

/// Stages of a route that hold a release.
///
/// # Errors
/// What the database says.
pub fn stages(db: &dyn Db, name: &str) -> Result<Vec<StageRecord>, StoreError> {
    let sql = "SELECT route, stage, release, weight, run, since FROM route_stages WHERE route = ? ORDER BY stage DESC";
    db.query(sql, &[name.into()])?.iter().map(stage).collect()
}

/// Every stage of every route that holds a release.
///
/// # Errors
/// What the database says.
pub fn all_stages(db: &dyn Db) -> Result<Vec<StageRecord>, StoreError> {
    let sql = "SELECT route, stage, release, weight, run, since FROM route_stages ORDER BY route, stage DESC";
    db.query(sql, &[])?.iter().map(stage).collect()
}

/// Statements that put a release into a stage if `previous` is what the stage holds now, and take it out of the route's other stages.
/// In one batch they fail with [`StoreError::Conflict`] when somebody moved the stage meanwhile.
pub fn move_stage(to: &StageRecord, previous: Option<&Digest>) -> Vec<Statement> {
    let StageRecord { route, stage, release, weight, run, since } = to;
    let moved = match previous {
        None => Statement::new(
            "INSERT INTO route_stages (route, stage, release, weight, run, since) VALUES (?, ?, ?, ?, ?, ?)",
            [route.into(), stage.into(), (*release).into(), (*weight).into(), run.into(), (*since).into()],
        ),
        Some(previous) => Statement::new(
            "UPDATE route_stages SET release = ?, weight = ?, run = ?, since = ? WHERE route = ? AND stage = ? AND release = ?",
            [(*release).into(), (*weight).into(), run.into(), (*since).into(), route.into(), stage.into(), (*previous).into()],
        )
        .expecting(1),
    };
    let leave = "DELETE FROM route_stages WHERE route = ? AND release = ? AND stage <> ?";
    vec![moved, Statement::new(leave, [route.into(), (*release).into(), stage.into()])]
}

/// The statement that records a decision.
pub fn insert_decision(decision: &DecisionRecord) -> Statement {
    let DecisionRecord { id, route, stage, release, previous, decision, run, detail, actor, decided_at } = decision;
    let params: [Value; 10] = [
        id.into(),
        route.into(),
        stage.into(),
        (*release).into(),
        (*previous).into(),
        decision.into(),
        run.as_ref().into(),
        detail.into(),
        actor.into(),
        (*decided_at).into(),
    ];
    let sql = "INSERT INTO route_decisions (id, route, stage, release, previous, decision, run, detail, actor, decided_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    Statement::new(sql, params)
}

/// Decisions about a route, oldest first.
///
/// # Errors
/// What the database says.
pub fn decisions(db: &dyn Db, name: &str) -> Result<Vec<DecisionRecord>, StoreError> {
    let sql = "SELECT id, route, stage, release, previous, decision, run, detail, actor, decided_at FROM route_decisions
        WHERE route = ? ORDER BY decided_at, id";
    db.query(sql, &[name.into()])?.iter().map(decision).collect()
}

/// Finished runs that measured exactly this release, newest first; with a suite, only its runs.
///
/// # Errors
/// What the database says.
pub fn proofs(db: &dyn Db, suite: Option<&str>, release: &Digest) -> Result<Vec<Proof>, StoreError> {
    let sql = "SELECT runs.id, run_targets.target, runs.suite, runs.suite_digest, runs.dataset, runs.dataset_digest, runs.split,
        run_targets.metrics, runs.finished_at, runs.scorers_digest, runs.created_at FROM run_targets JOIN runs ON runs.id = run_targets.run
        WHERE run_targets.release = ? AND runs.status = 'finished' ORDER BY runs.finished_at DESC, runs.id DESC";
    let mut found = db.query(sql, &[(*release).into()])?.iter().map(proof).collect::<Result<Vec<_>, _>>()?;
    found.retain(|proof| suite.is_none_or(|suite| suite == proof.suite));
    Ok(found)
}

fn route(row: &Row) -> Result<RouteRecord, StoreError> {
    Ok(RouteRecord { name: row.text(0), suite: row.text(1), gate: row.json(2)?, created_at: row.int(3) })
}

fn stage(row: &Row) -> Result<StageRecord, StoreError> {
    Ok(StageRecord {
        route: row.text(0),
        stage: row.text(1),
        release: row.digest(2)?,
        weight: row.real_or_null(3).unwrap_or(0.0),
        run: row.text(4),
        since: row.int(5),
    })
}

fn decision(row: &Row) -> Result<DecisionRecord, StoreError> {
    Ok(DecisionRecord {
        id: row.text(0),
        route: row.text(1),
        stage: row.text(2),
        release: row.digest(3)?,
        previous: row.text_or_null(4).map(|_| row.digest(4)).transpose()?,
        decision: row.text(5),
        run: row.text_or_null(6),
        detail: row.json(7)?,
        actor: row.text(8),
        decided_at: row.int(9),
    })
}

fn proof(row: &Row) -> Result<Proof, StoreError> {
    Ok(Proof {
        run: row.text(0),
        target: row.text(1),
        suite: row.text(2),
        suite_digest: row.text(3),
        dataset: row.text(4),
        dataset_digest: row.text(5),
        split: row.text(6),
        metrics: row.json(7)?,
        began_at: row.int(10),
        finished_at: row.int(8),
        scorers_digest: row.text_or_null(9).map(|_| row.digest(9)).transpose()?,
    })
}
