//! Prompt optimisation: a model proposes other templates for a prompt, each is measured on the validation split of a suite, and the best
//! is kept only if it is better than the current one beyond chance. The test split is asked once, at the end, for the two of them.
//!
//! [`propose`] asks for templates, [`candidate`] throws away what is none, [`measure`] makes or finds the runs, [`judge`] decides, [`meter`]
//! counts money and time. Whatever was measured is a stored run, and every candidate a version of `NAME.candidates`, so that the same
//! command with the same seed goes on where another one ended. Nothing is published under the prompt's own name here.

mod candidate;
mod judge;
mod measure;
mod meter;
mod propose;
mod report;

pub use meter::{Ended, Limits};
pub use report::{Optimized, ThrownAway, Tried, Winner};

use crate::inference::Inference;
use crate::prompts::Prompt;
use crate::store::Store;
use crate::types::Failure;
use crate::types::traits::Progress;
use candidate::{Candidate, Nursery};
use futures_util::future::BoxFuture;
use measure::{Bench, Measured};
use meter::Meter;
use std::path::PathBuf;
use std::sync::Arc;

/// Split that proposals are made from.
const TRAIN: &str = "train";
/// Split that decides.
const VALIDATION: &str = "validation";
/// Split that is asked once, at the end.
const TEST: &str = "test";
/// Samples of the train split that the best prompt so far is tried on, to see where it fails.
const TRAIN_SAMPLES: usize = 40;

/// What to optimise, and how.
pub struct Request {
    /// Name of the prompt.
    pub name: String,
    /// Its source.
    pub source: String,
    /// Suite file.
    pub suite: PathBuf,
    /// Target of the suite whose model answers; the one that has the prompt, or else the first, without it.
    pub target: Option<String>,
    /// Metric that decides; the first of the suite without it.
    pub metric: Option<String>,
    /// Model that proposes: what may stand in `model` of a chat request.
    pub with: String,
    /// Candidates in all.
    pub candidates: usize,
    /// Rounds that they are made in; each begins at the best one so far.
    pub rounds: usize,
    /// Examples from the train split that one candidate of a round shows; 0 for none.
    pub examples: usize,
    /// Seed of proposals and examples.
    pub seed: u64,
    /// Money and time.
    pub limits: Limits,
    /// Who asks, for what is stored.
    pub author: String,
}

/// What the work needs beside the request.
pub struct Surroundings {
    /// Where runs and candidates go.
    pub store: Store,
    /// What answers.
    pub inference: Arc<Inference>,
    /// Who watches a run.
    pub progress: Arc<dyn Progress>,
    /// Hears what has been done, in lines.
    pub tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// Resolves when a person wants an end.
    pub interrupted: BoxFuture<'static, ()>,
}

/// Why the work does not go on.
enum Halt {
    Ended(Ended),
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Failed(error.into())
    }
}

/// Optimises a prompt. A budget that ends is an outcome, not an error.
///
/// # Errors
/// What is wrong with the suite, the prompt or the models; a current prompt that cannot be measured.
pub async fn optimize(request: Request, around: Surroundings) -> Result<Optimized, Failure> {
    let Surroundings { store, inference, progress, tell, interrupted } = around;
    let meter = Arc::new(Meter::new(inference, request.limits, interrupted));
    let bench = Bench::open(&request, store.clone(), meter.clone(), progress)?;
    meter.can_reach(&request.with)?;
    meter.knows_price_of(&[&request.with, bench.model()])?;
    let nursery = Nursery::new(&store, &request)?;
    let mut work = Work { report: Optimized::new(&request, &bench), request, bench, nursery, meter, tell, standings: Vec::new() };
    match work.run().await {
        Ok(()) => {}
        Err(Halt::Ended(ended)) => {
            work.report.ended = Some(ended);
            // What was measured is told; without the test split nothing is kept.
            judge::decide(&work.standings, &work.bench.metric, &mut work.report);
        }
        Err(Halt::Failed(failure)) => return Err(failure),
    }
    work.report.spent_usd = work.meter.spent().to_string().trim_start_matches('$').to_string();
    Ok(work.report)
}

struct Work {
    request: Request,
    bench: Bench,
    nursery: Nursery,
    meter: Arc<Meter>,
    report: Optimized,
    tell: Arc<dyn Fn(&str) + Send + Sync>,
    /// What was measured on the validation split, the current prompt first.
    standings: Vec<Standing>,
}

/// A candidate with what it reached on the validation split.
struct Standing {
    candidate: Candidate,
    measured: Measured,
}

impl Work {
    async fn run(&mut self) -> Result<(), Halt> {
        let current = self.nursery.current(&self.request)?;
        let measured = self.bench.measure(&current.reference, VALIDATION, None).await?;
        measured.complete(&current.name)?;
        self.say(&current.name, &measured);
        self.report.current = Some(Tried::of(&current, &measured));
        self.report.runs.push(measured.run.clone());
        self.standings.push(Standing { candidate: current, measured });
        for round in 0..self.request.rounds {
            let count = share(self.request.candidates, self.request.rounds, round);
            if count > 0 {
                self.round(round, count).await?;
            }
        }
        let Some(best) = judge::decide(&self.standings, &self.bench.metric, &mut self.report) else { return Ok(()) };
        let (current, best) = (&self.standings[0].candidate, &self.standings[best].candidate);
        (self.tell)(&format!("{} is better on the validation split; both are asked the test split once", best.name));
        let before = self.bench.measure(&current.reference, TEST, None).await?;
        let after = self.bench.measure(&best.reference, TEST, None).await?;
        self.report.runs.extend([before.run.clone(), after.run.clone()]);
        self.report.test = Some(before.difference(&self.bench.metric, (&current.name, &best.name), &after));
        self.report.winner = Some(Winner::of(best));
        Ok(())
    }

    /// One round: candidates made from the best prompt so far, each measured on the validation split.
    async fn round(&mut self, round: usize, count: usize) -> Result<(), Halt> {
        let base = self.standings[judge::best(&self.standings)].candidate.clone();
        let train = self.bench.measure(&base.reference, TRAIN, Some(TRAIN_SAMPLES)).await?;
        let mut candidates = Vec::new();
        if self.request.examples > 0 && base.prompt.front.examples.is_none() {
            let dataset = self.bench.dataset_version()?;
            let made = self.nursery.with_examples(&base, &dataset, (self.request.examples, self.request.seed + round as u64));
            self.take(format!("round {}, examples", round + 1), made, &mut candidates)?;
        }
        let wanted = count.saturating_sub(candidates.len());
        if wanted > 0 {
            self.propose(round, wanted, (&base, &train), &mut candidates).await?;
        }
        for candidate in candidates {
            let measured = self.bench.measure(&candidate.reference, VALIDATION, None).await?;
            self.report.runs.push(measured.run.clone());
            if measured.errors > 0 {
                let reason = format!("{} of its cases ended in an error (run {})", measured.errors, measured.run);
                self.throw_away(&candidate.name, reason, candidate.body());
                continue;
            }
            self.say(&candidate.name, &measured);
            self.standings.push(Standing { candidate, measured });
        }
        Ok(())
    }

    /// Candidates that the model proposes; those of an earlier call with the same question are taken again.
    async fn propose(
        &mut self,
        round: usize,
        wanted: usize,
        (base, train): (&Candidate, &Measured),
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), Halt> {
        let question = propose::question(base, &self.bench.metric, train, (wanted, self.request.seed, round));
        let asked = propose::request(&self.request.with, &question, self.request.seed.wrapping_add(round as u64));
        let key = propose::key(&asked);
        let known = self.nursery.proposed(&key)?;
        if !known.is_empty() {
            (self.tell)(&format!("round {}: {} candidates were proposed before", round + 1, known.len()));
            candidates.extend(known);
            return Ok(());
        }
        let reply = self.meter.ask(asked).await?;
        let templates = match propose::templates(&reply) {
            Ok(templates) => templates,
            Err(reason) => {
                self.throw_away(&format!("round {}, reply", round + 1), reason, &reply);
                return Ok(());
            }
        };
        for (at, template) in templates.into_iter().take(wanted).enumerate() {
            let made = self.nursery.with_body(base, &template, &format!("{key} {} of {wanted}", at + 1));
            self.take(format!("round {}, proposal {}", round + 1, at + 1), made.map_err(|reason| (reason, template)), candidates)?;
        }
        Ok(())
    }

    /// A candidate, or why it is none.
    fn take(
        &mut self,
        place: String,
        made: Result<Result<Candidate, Failure>, (String, String)>,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), Halt> {
        match made {
            Ok(candidate) => candidates.push(candidate?),
            Err((reason, template)) => self.throw_away(&place, reason, &template),
        }
        Ok(())
    }

    fn throw_away(&mut self, place: &str, reason: String, template: &str) {
        (self.tell)(&format!("{place} is thrown away: {reason}"));
        self.report.thrown_away.push(ThrownAway { place: place.to_string(), reason, template: template.to_string() });
    }

    fn say(&self, name: &str, measured: &Measured) {
        (self.tell)(&format!("{name}: {} {:.3} on {} validation samples", self.bench.metric, measured.mean, measured.n));
    }
}

/// How many of `all` fall to a part.
fn share(all: usize, parts: usize, part: usize) -> usize {
    all / parts + usize::from(part < all % parts)
}

/// The variables that a prompt reads, by name.
fn variables(prompt: &Prompt) -> std::collections::BTreeSet<&str> {
    prompt.variables.iter().map(|variable| variable.name.as_str()).collect()
}
