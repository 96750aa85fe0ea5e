//! The steps of the demo, each through the same functions as the verbs.

use super::Story;
use super::example::Example;
use crate::access::audit::commit;
use crate::app::App;
use crate::cli::{Context, output, tune};
use crate::datasets::{Datasets, Plan, check};
use crate::evals::compare::{Difference, difference};
use crate::evals::prepare::Selection;
use crate::evals::report::describe;
use crate::evals::{Report, Runner, Suite, prepare};
use crate::jobs::tune::{TuneResult, enqueue};
use crate::models::pull::{Wanted, pull};
use crate::prompts::Library;
use crate::prompts::library::By;
use crate::releases::create::{self, Authorship};
use crate::releases::route::{self, Expected, Promotion, Stage};
use crate::releases::{Gate, Manifest, ReleaseError};
use crate::store::runs;
use crate::tuning::AnyRecipe;
use crate::types::{Code, Digest, Failure};
use serde_json::{Value, json};
use std::sync::Arc;

const MODEL: &str = "smollm2-135m-instruct";
/// Name in the numbers, and name of the target in the suite.
pub const TEST_TARGETS: [(&str, &str); 3] = [("base", "base-naive"), ("prompt", "base-prompt"), ("adapter", "adapter")];

/// Everything the steps share.
pub struct Demo<'a> {
    context: &'a Context,
    /// The parts of this process.
    pub app: Arc<App>,
    /// The example on disk.
    pub example: Example,
    /// Where the story is told.
    pub story: Story,
}

/// The model that was pulled.
pub struct Pulled {
    /// `local/<name>`
    pub name: String,
    /// Digest of its file.
    pub digest: Digest,
}

/// The test run.
pub struct Tested {
    /// Its report.
    pub report: Report,
    /// Exact match, adapter against best prompt, case by case.
    pub adapter_minus_prompt: Difference,
}

/// The two releases.
pub struct Package {
    /// Live on the route; none when the gate refused it.
    pub release: Option<Digest>,
    /// Refused by the gate.
    pub refused: Digest,
}

impl<'a> Demo<'a> {
    /// Opens the store and the engine.
    ///
    /// # Errors
    /// What [`App::open`] says.
    pub fn open(context: &'a Context, example: Example, story: Story) -> Result<Self, Failure> {
        Ok(Demo { context, app: Arc::new(context.app()?), example, story })
    }

    /// Step 1.
    pub fn pull(&self) -> Result<Pulled, Failure> {
        self.story.step(1, "pull: the prebuilt model")?;
        let bar = output::Bar::bytes("pull");
        let pulled = self.context.runtime()?.block_on(pull(&self.app.store, &Wanted::Known(MODEL.into()), &bar))?;
        drop(bar);
        let record = pulled.record;
        let megabytes = record.size_bytes as f64 / 1e6;
        self.story.say(format!(
            "    local/{} · {megabytes:.0} MB · {} · {} · from {}",
            record.name,
            record.licence,
            record.digest.short(),
            record.source
        ))?;
        Ok(Pulled { name: format!("local/{}", record.name), digest: record.digest })
    }

    /// Step 2.
    pub fn data(&self) -> Result<Value, Failure> {
        self.story.step(2, "data: import, check, split")?;
        let datasets = Datasets::new(&self.app.store);
        let (row, _) = datasets.import(&self.example.name, &self.example.dataset, None)?;
        let suite = Suite::open(&self.example.suite)?;
        let plan: Plan = suite.splits.unwrap_or_default();
        let dataset = datasets.split(&format!("{}@{}", row.dataset, row.version), &plan, crate::datasets::import::Replace::No)?;
        let counter = self.context.runtime()?.block_on(self.app.providers().counter(&format!("local/{MODEL}")))?;
        let report = check::check(&dataset, Some(counter.as_ref()));
        self.story.say(format!(
            "    {} messages · {} duplicates · {} near-duplicates · {} leaks between splits · {:.0} to {:.0} {} each",
            report.samples,
            report.counts.duplicates + report.counts.normalised_duplicates,
            report.counts.near_duplicates,
            report.counts.leakage,
            report.length.min,
            report.length.max,
            report.length.unit
        ))?;
        for (field, balance) in &report.balance {
            self.story.say(format!("    {field}: {} values, {} null", balance.distinct, balance.nulls))?;
        }
        let size = |name: &str| dataset.assignment.get(name).map_or(0, Vec::len);
        let (train, validation, test) = (size("train"), size("validation"), size("test"));
        self.story.say(format!(
            "    split with seed {}: {train} train, {validation} validation, {test} test (used once, in step 6)",
            plan.seed
        ))?;
        Ok(json!({"train": train, "validation": validation, "test": test}))
    }

    /// Step 3.
    pub fn validate(&self) -> Result<Report, Failure> {
        self.story.step(3, "validate: the prebuilt model with a plain prompt, validation split")?;
        self.publish_prompts()?;
        let report = self.measure(Suite::open(&self.example.suite)?, &["base-naive"], None)?;
        self.scores(&report)?;
        Ok(report)
    }

    /// Step 4.
    pub fn engineer(&self, naive: &Report) -> Result<(), Failure> {
        self.story.step(4, "engineer the prompt: all labels, their meaning and four examples, same split")?;
        let report = self.measure(Suite::open(&self.example.suite)?, &["base-prompt"], None)?;
        self.scores(&report)?;
        for metric in ["exact_match", "json_field"] {
            let difference = self.between(metric, (naive, "base-naive"), (&report, "base-prompt"))?;
            self.story.say(format!("    {}", describe(&difference)))?;
        }
        Ok(())
    }

    /// Step 5.
    pub fn train(&self) -> Result<TuneResult, Failure> {
        self.story.step(5, "train: a LoRA adapter on the train split, in a process of its own")?;
        let recipe = AnyRecipe::parse(&self.example.recipe)?;
        let job = enqueue(&self.app.store, recipe)?;
        let result = tune::result(&tune::follow(self.context, &self.app.store, &job.id)?)?;
        let [first, last] = result.first_and_last_loss;
        let validation = result.validation_loss.map(|loss| format!(" · validation loss {loss:.3}")).unwrap_or_default();
        self.story.say(format!(
            "    {} steps · {} tokens in {:.0} s ({:.0} tok/s) · loss {first:.3} to {last:.3}{validation}",
            result.steps, result.trained_tokens, result.seconds, result.tokens_per_second
        ))?;
        self.story.say(format!("    {} · {} · {} trained values", result.adapter, result.digest.short(), result.parameters))?;
        Ok(result)
    }

    /// Step 6.
    pub fn test(&self, trained: &TuneResult) -> Result<Tested, Failure> {
        self.story.step(6, "test: plain prompt, engineered prompt, and adapter with its short prompt, on the test split")?;
        let adapter = trained.adapter.rsplit(':').next().unwrap_or_default();
        let source = self.example.test_suite(adapter)?;
        let folder = self.example.suite.parent().unwrap_or(std::path::Path::new("."));
        let mut suite = Suite::parse(&source, &self.example.suite.display().to_string(), folder)?;
        // The route's gate is asked in the next step, release by release.
        suite.gate.clear();
        let report = self.measure(suite, &[], None)?;
        self.story.say(report.table())?;
        let adapter_minus_prompt = self.between("exact_match", (&report, "base-prompt"), (&report, "adapter"))?;
        Ok(Tested { report, adapter_minus_prompt })
    }

    /// Step 7.
    pub fn package(&self, test: &Tested) -> Result<Package, Failure> {
        let route = &self.example.name;
        self.story.step(7, &format!("package: releases, and the gate of the route {route}"))?;
        self.make_route(route)?;
        let (release, decided) = self.offer(test, "adapter")?;
        let promoted = match decided {
            Ok(()) => true,
            Err(reasons) => {
                self.story.say(format!("    {} model + adapter + prompt + parameters: refused ({reasons})", release.short()))?;
                false
            }
        };
        let (refused, decided) = self.offer(test, "base-naive")?;
        let Err(reasons) = decided else {
            return Err(Failure::new(Code::INTERNAL, "the gate let the bare model pass").with_hint("raise the gate in the suite"));
        };
        if promoted {
            self.story.say(format!("    {} model + adapter + prompt + parameters: the gate passed, live on {route}", release.short()))?;
        }
        self.story.say(format!("    {} the bare model: refused ({reasons})", refused.short()))?;
        self.story.say(format!("    proof: {} · who changed what: refit audit list · refit route show {route}", test.report.run))?;
        Ok(Package { release: promoted.then_some(release), refused })
    }

    fn publish_prompts(&self) -> Result<(), Failure> {
        let library = Library::new(&self.app.store);
        for (name, path) in &self.example.prompts {
            let source = std::fs::read_to_string(path)
                .map_err(|error| Failure::new(Code::INVALID_FILE, format!("cannot read {}: {error}", path.display())))?;
            let by = By { author: &self.context.actor(), message: "refit demo", commit: &commit(&self.app.store) };
            // What somebody made of them since stays the newest.
            if library.holding(name, &Digest::of(&source))?.is_none() {
                library.publish(name, &source, by)?;
            }
        }
        Ok(())
    }

    /// Runs targets of a suite (all when none is named) on a split.
    fn measure(&self, suite: Suite, targets: &[&str], split: Option<&str>) -> Result<Report, Failure> {
        let targets = targets.iter().map(ToString::to_string).collect();
        let selection = Selection { split: split.map(str::to_string), targets, ..Selection::default() };
        let plan = prepare(&self.app.store, suite, &selection, &self.context.actor())?;
        let progress = Arc::new(output::Bar::counting("eval"));
        let runner = Runner { store: self.app.store.clone(), respond: self.app.inference.clone(), progress };
        let report = self.context.runtime()?.block_on(runner.run(plan, crate::cli::eval::interruptions()))?;
        if report.status == runs::CANCELLED {
            return Err(Failure::new(Code::CANCELLED, "the demo was stopped").with_hint("run it again: what was pulled stays"));
        }
        if report.errors() > 0 {
            let message = format!("{} cases of run {} ended in an error", report.errors(), report.run);
            return Err(Failure::new(Code::INTERNAL, message).with_hint(format!("refit eval show {} --cases --missed", report.run)));
        }
        Ok(report)
    }

    fn scores(&self, report: &Report) -> Result<(), Failure> {
        for target in &report.targets {
            for (metric, label) in [("exact_match", "exact match"), ("json_field", "fields right"), ("json_schema", "valid JSON")] {
                if let Some(found) = target.totals.metrics.get(metric) {
                    self.story.say(format!(
                        "    {label}: {:.1} % ± {:.1} (n = {})",
                        found.mean * 100.0,
                        found.standard_error * 100.0,
                        found.n
                    ))?;
                }
            }
        }
        Ok(())
    }

    /// The paired difference of two targets, b − a, over the same cases.
    fn between(&self, metric: &str, a: (&Report, &str), b: (&Report, &str)) -> Result<Difference, Failure> {
        let cases = |(report, _): (&Report, &str)| runs::cases(self.app.store.db.as_ref(), &report.run);
        let (all_a, all_b) = (cases(a)?, cases(b)?);
        let of = |target: &str, all: &'_ [runs::CaseRecord]| all.iter().filter(|case| case.target == target).cloned().collect::<Vec<_>>();
        let (of_a, of_b) = (of(a.1, &all_a), of(b.1, &all_b));
        let (refs_a, refs_b) = (of_a.iter().collect::<Vec<_>>(), of_b.iter().collect::<Vec<_>>());
        Ok(difference(metric, (a.1, &refs_a), (b.1, &refs_b)))
    }

    /// The route with the suite's gate, unless it is there already.
    fn make_route(&self, name: &str) -> Result<(), Failure> {
        let store = &self.app.store;
        if crate::store::routes::find(store.db.as_ref(), name)?.is_some() {
            return Ok(());
        }
        let suite = Suite::open(&self.example.suite)?;
        let scorers_digest = suite.scorers_digest;
        let conditions = suite.gate.into_iter().map(|gate| gate.condition).collect();
        let dataset_digest = Some(Datasets::new(store).get(&self.example.name)?.digest);
        let gate = Gate { conditions, split: Some("test".into()), dataset_digest, scorers_digest };
        route::create(store, name, &suite.name, gate, (&self.context.actor(), &commit(store)))?;
        Ok(())
    }

    /// Makes a release of a measured target and asks for its promotion; the inner result is the gate's answer.
    fn offer(&self, test: &Tested, target: &str) -> Result<(Digest, Result<(), String>), Failure> {
        let (store, actor) = (&self.app.store, self.context.actor());
        let manifest: Manifest = create::of_run(store, &test.report.run, target)?;
        let by = Authorship { author: actor.clone(), message: format!("refit demo, {target}") };
        let release = create::create(store, &manifest, &by, &commit(store))?.digest;
        let route = self.example.name.clone();
        let stages = crate::store::routes::stages(store.db.as_ref(), &route)?;
        if stages.iter().any(|stage| stage.stage == Stage::Live.to_string() && stage.release == release) {
            // An earlier demo in this directory made the same content: the same seed trains the same adapter.
            return Ok((release, Ok(())));
        }
        let promotion = Promotion { route, release, stage: Stage::Live, weight: None, expected: Expected::Current, actor };
        match route::promote(store, &promotion, &commit(store)) {
            Ok(_) => Ok((release, Ok(()))),
            Err(ReleaseError::Refused { reasons, .. }) => Ok((release, Err(reasons.join("; ")))),
            Err(error) => Err(error.into()),
        }
    }
}
