//! Which method is enough for a dataset: a prompt on the model as it is, a head on embeddings, a low-rank adapter. Each is fitted and measured on
//! the same samples within a time budget, from the cheapest to the dearest, and the cheapest to call that is not measurably worse is recommended.

use super::estimate::of_recipe;
use super::{TuneResult, enqueue};
use crate::datasets::{Dataset, Datasets, Sample};
use crate::evals::compare::difference;
use crate::evals::{Report, Suite};
use crate::stats::{Paired, wilson};
use crate::store::jobs::JobRecord;
use crate::store::{Store, cases, runs};
use crate::tuning::AnyRecipe;
use crate::types::{Code, Failure};
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Labels from which a task is no classification any more.
const MAX_LABELS: usize = 200;
/// Examples that a prompt shows where there are no labels to name.
const SHOWN: usize = 4;
/// What the suites are called in errors.
const SHOWN_AS: &str = "refit tune advise";
/// Samples that tell how long the others will take.
const PILOT: usize = 8;
/// Share of what is left of the budget that the first method may spend on its answers: the others give as many.
const FIRST_SHARE: f64 = 1.0 / 3.0;
/// Samples from which an interval is narrow enough to choose by.
const ENOUGH: usize = 50;
/// The metric of the table.
const METRIC: &str = "exact_match";
/// p from which a difference is none that was measured.
const MEASURABLE: f64 = 0.05;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Question {
    /// A split dataset.
    pub dataset: String,
    /// Prompt of all three methods; without one the only text of the input is asked about.
    pub prompt: Option<String>,
    /// Model that is prompted and adapted: `provider/model`; hosted ones are prompted alone.
    pub base: String,
    /// Model that heads are fitted on, `local/<model>`; none where none is here.
    pub embedder: Option<String>,
    /// Split that is measured on.
    pub split: String,
    /// Samples of it, at most.
    pub samples: usize,
    /// Seconds for everything.
    pub budget_s: f64,
}

/// What the work is done with.
pub struct Hands<'a> {
    /// Data, models, adapters.
    pub store: &'a Store,
    /// Runs a suite on the first so many samples of a split.
    pub measure: &'a dyn Fn(Suite, &str, usize) -> Result<Report, Failure>,
    /// Runs a queued job for so many seconds at most: one that would take longer is cancelled.
    pub train: &'a dyn Fn(&JobRecord, f64) -> Result<JobRecord, Failure>,
    /// Tells what is being done.
    pub tell: &'a dyn Fn(&str),
}

/// What came of a method.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    /// `prompt`, `head` or `lora`.
    pub method: &'static str,
    /// What is called: `provider/model`, `local/<model>:<adapter>`.
    pub target: String,
    /// Right ones, all, the share and its 95 % interval (Wilson); none where it was not measured.
    pub accuracy: Option<Accuracy>,
    /// Difference of the best one from this, over the same samples; none for the best.
    pub best_minus_this: Option<Paired>,
    /// Seconds of fitting.
    pub training_s: f64,
    /// Seconds for 1,000 calls, one after the other.
    pub seconds_per_1000: Option<f64>,
    /// Dollars for 1,000 calls at the provider's prices; 0 for models that run here; none where nobody knows.
    pub usd_per_1000: Option<f64>,
    /// The run with its cases.
    pub run: Option<String>,
    /// Why it was not tried.
    pub note: Option<String>,
}

/// A share of right answers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Accuracy {
    /// Right ones.
    pub right: usize,
    /// All.
    pub of: usize,
    /// The share.
    pub share: f64,
    /// Wilson's 95 % interval.
    pub ci95: [f64; 2],
}

/// The table and what follows from it.
#[derive(Debug, Clone, Serialize)]
pub struct Advice {
    /// The methods, in the order in which they were tried.
    pub candidates: Vec<Candidate>,
    /// The method that is enough; none where nothing could be measured.
    pub recommended: Option<&'static str>,
    /// Why.
    pub because: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Tries the methods.
///
/// # Errors
/// Unknown datasets, splits and models by name; what measuring says. A method that cannot be fitted is told in its row.
pub fn advise(question: &Question, hands: &Hands<'_>) -> Result<Advice, Failure> {
    let began = Instant::now();
    let dataset = Datasets::new(hands.store).open(&question.dataset)?;
    let task = Task::of(&dataset, question)?;
    let folder = Folder::make(hands.store)?;
    let name = dataset.row.dataset.chars().take(48).collect();
    let bench = Bench { question, hands, task: &task, folder: &folder.0, name, began, measured: Cell::new(None) };
    (hands.tell)("the model as it is, with a prompt");
    let mut candidates = vec![bench.prompted()?];
    (hands.tell)("a head on embeddings");
    candidates.push(bench.head(bench.left_to_fit())?);
    (hands.tell)("a low-rank adapter");
    candidates.push(bench.lora(bench.left_to_fit())?);
    let (recommended, because) = choose(hands.store, &mut candidates)?;
    Ok(Advice { candidates, recommended, because, seconds: began.elapsed().as_secs_f64() })
}

/// A folder for the prompts of the methods, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn make(store: &Store) -> Result<Self, Failure> {
        let place = store.directory().join("jobs").join(format!("advise-{}", std::process::id()));
        std::fs::create_dir_all(&place).map_err(|error| Failure::new(Code::STORAGE, format!("{}: {error}", place.display())))?;
        Ok(Folder(place))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is two small files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the dataset asks.
struct Task {
    /// The labels, where there are few and every target is one.
    labels: Vec<String>,
    /// The only text of the input, where the question names no prompt.
    field: Option<String>,
    /// Some samples to show.
    shown: Vec<(String, String)>,
    /// Characters of the longest answer.
    longest: usize,
    /// Whether answers are JSON.
    is_json: bool,
    /// Samples of the split that is measured on.
    measurable: usize,
}

impl Task {
    fn of(dataset: &Dataset, question: &Question) -> Result<Self, Failure> {
        let train = dataset.part(Some("train"))?;
        let measurable = dataset.part(Some(&question.split))?.len();
        let target = |sample: &Sample| match &sample.target {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let labels: BTreeSet<String> = train.iter().map(|sample| target(sample)).collect();
        // Labels come again; texts do not.
        let is_sorted =
            train.iter().all(|sample| sample.target.is_string()) && labels.len() <= MAX_LABELS && 2 * labels.len() <= train.len();
        let only = |sample: &&&Sample| sample.input.len() == 1 && sample.input.values().all(Value::is_string);
        let field = train.first().filter(only).and_then(|sample| sample.input.keys().next().cloned());
        if field.is_none() && question.prompt.is_none() {
            let failure = Failure::on(Code::MISSING_FIELD, "prompt", "the input has more than one text: nothing says what is asked");
            return Err(failure.with_hint("name a prompt of the library with --prompt"));
        }
        let text = |sample: &Sample| field.as_ref().and_then(|field| sample.input[field].as_str()).unwrap_or_default().to_string();
        let shown = train.iter().take(SHOWN).map(|sample| (text(sample), target(sample))).collect();
        let longest = train.iter().map(|sample| target(sample).chars().count()).max().unwrap_or(0);
        let is_json = train.iter().all(|sample| sample.target.is_object());
        let labels = if is_sorted { labels.into_iter().collect() } else { Vec::new() };
        Ok(Task { labels, field, shown, longest, is_json, measurable })
    }

    /// The prompt of the model as it is: the labels, or a few examples.
    fn instruction(&self, field: &str) -> String {
        let told = if self.labels.is_empty() {
            let examples = self.shown.iter().map(|(text, answer)| format!("Input: {text}\nAnswer: {answer}\n"));
            format!("Answer as in these examples, with the answer and nothing else.\n{}", examples.collect::<String>())
        } else {
            format!("Sort the message. Answer with one of these labels and nothing else: {}", self.labels.join(", "))
        };
        // Nothing of the data is a template.
        let told = told.replace("{{", "{ {").replace("}}", "} }");
        format!("---\n---\n{{{{role \"system\"}}}}{told}{{{{role \"user\"}}}}{{{{{field}}}}}\n")
    }
}

/// Measures and fits.
struct Bench<'a> {
    question: &'a Question,
    hands: &'a Hands<'a>,
    task: &'a Task,
    folder: &'a Path,
    /// The dataset's.
    name: String,
    began: Instant,
    /// How many samples are measured, and the seconds that they took, once the first method has told.
    measured: Cell<Option<(usize, f64)>>,
}

impl Bench<'_> {
    /// Seconds of the budget that are left.
    fn left(&self) -> f64 {
        (self.question.budget_s - self.began.elapsed().as_secs_f64()).max(0.0)
    }

    /// Those of them that are not needed to measure what was fitted.
    fn left_to_fit(&self) -> f64 {
        let (_, measuring) = self.measured.get().unwrap_or_default();
        (self.left() - measuring).max(0.0)
    }

    fn prompted(&self) -> Result<Candidate, Failure> {
        let prompt = match (&self.question.prompt, &self.task.field) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(field)) => self.write("instruction.prompt", &self.task.instruction(field))?,
            (None, None) => String::new(),
        };
        self.measured("prompt", (&self.question.base, None), &prompt, 0.0)
    }

    fn head(&self, seconds: f64) -> Result<Candidate, Failure> {
        let Some(embedder) = &self.question.embedder else {
            return Ok(untried("head", "no model that makes embeddings is here (refit model pull all-minilm-l6-v2)"));
        };
        if self.task.labels.is_empty() {
            return Ok(untried("head", "the targets are no labels: a head can only sort"));
        }
        let recipe = json!({"method": "head", "name": self.name("head"), "model": embedder, "dataset": self.question.dataset,
            "prompt": self.question.prompt});
        self.fitted("head", &recipe, seconds)
    }

    fn lora(&self, seconds: f64) -> Result<Candidate, Failure> {
        if !self.question.base.starts_with("local/") {
            return Ok(untried("lora", "the model runs elsewhere: its provider fine-tunes it (POST /v1/fine_tuning/jobs)"));
        }
        let recipe = json!({"name": self.name("lora"), "model": self.question.base, "dataset": self.question.dataset,
            "prompt": self.question.prompt, "epochs": 4});
        let forecast = match of_recipe(self.hands.store, parsed(&recipe)?) {
            Ok(forecast) => forecast,
            Err(failure) => return Ok(untried("lora", failure.to_string())),
        };
        if let Some(foreseen) = forecast.and_then(|forecast| forecast.seconds)
            && foreseen > seconds
        {
            return Ok(untried("lora", format!("it would train for about {foreseen:.0} s, and {seconds:.0} s of the budget are left")));
        }
        self.fitted("lora", &recipe, seconds)
    }

    fn name(&self, method: &str) -> String {
        format!("{}-{method}", self.name)
    }

    /// Fits by a recipe and measures what comes out.
    fn fitted(&self, method: &'static str, recipe: &Value, seconds: f64) -> Result<Candidate, Failure> {
        if seconds <= 0.0 {
            return Ok(untried(method, "the budget is spent"));
        }
        let job = match enqueue(self.hands.store, parsed(recipe)?) {
            Ok(job) => job,
            Err(failure) => return Ok(untried(method, failure.to_string())),
        };
        let ended = (self.hands.train)(&job, seconds)?;
        let Some(result) = serde_json::from_value::<Option<TuneResult>>(ended.result.clone()).ok().flatten() else {
            let why = match (&ended.error, ended.status.as_str()) {
                (Some(error), _) => error.clone(),
                (None, "cancelled") => format!(
                    "its training did not end within the {seconds:.0} s of the budget that were left (refit tune resume {})",
                    job.id
                ),
                (None, status) => format!("its training is {status}"),
            };
            return Ok(untried(method, why));
        };
        let (model, adapter) = result.adapter.rsplit_once(':').unwrap_or((&result.adapter, ""));
        let prompt = match (&self.question.prompt, &self.task.field) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(field)) => self.write("plain.prompt", &format!("---\n---\n{{{{{field}}}}}\n"))?,
            (None, None) => String::new(),
        };
        self.measured(method, (model, Some(adapter)), &prompt, result.seconds)
    }

    fn measured(
        &self,
        method: &'static str,
        (model, adapter): (&str, Option<&str>),
        prompt: &str,
        training_s: f64,
    ) -> Result<Candidate, Failure> {
        let scorer = if self.task.is_json { json!({METRIC: {"json": true}}) } else { json!(METRIC) };
        let most = (self.task.longest / 2 + 8).min(512);
        let mut target = json!({"name": method, "model": model, "prompt": prompt, "parameters": {"temperature": 0, "max_tokens": most}});
        if let Some(adapter) = adapter {
            target["adapter"] = adapter.into();
        }
        let suite = json!({"name": self.name("advice"), "dataset": self.question.dataset, "split": self.question.split,
            "targets": [target], "scorers": [scorer]});
        let source = suite.to_string();
        let measure = |samples| (self.hands.measure)(Suite::parse(&source, SHOWN_AS, self.folder)?, &self.question.split, samples);
        // A model is loaded by its first call, which says nothing of the others.
        measure(1)?;
        let (wanted, is_first) = match self.measured.get() {
            Some((samples, _)) => (samples, false),
            None => (self.question.samples.min(self.task.measurable), true),
        };
        let pilot = PILOT.min(wanted);
        let mut report = measure(pilot)?;
        let foreseen = report.wall_seconds / pilot.max(1) as f64 * wanted as f64;
        let spare = if is_first { FIRST_SHARE } else { 1.0 } * self.left();
        // What was fitted is measured in any case: on fewer samples where the time is short.
        let samples = pilot.max((wanted as f64 * (spare / foreseen).min(1.0)) as usize);
        if samples > pilot {
            report = measure(samples)?;
        }
        if is_first {
            self.measured.set(Some((samples, report.wall_seconds)));
        }
        let all = runs::cases(self.hands.store.db.as_ref(), &report.run)?;
        let answered: Vec<_> = all.iter().filter(|case| case.error.is_none()).collect();
        let right = answered.iter().filter(|case| case.scores[METRIC].as_f64() == Some(1.0)).count();
        let count = answered.len();
        let seconds = answered.iter().map(|case| case.latency_ms).sum::<f64>() / 1e3;
        let cost = answered.iter().map(|case| case.cost_micro_usd).sum::<Option<i64>>();
        let is_local = model.starts_with("local/");
        let per_1000 = |sum: f64| sum / count.max(1) as f64 * 1_000.0;
        let note = (count < all.len()).then(|| format!("{} of {} calls failed", all.len() - count, all.len()));
        Ok(Candidate {
            method,
            target: adapter.map_or_else(|| model.to_string(), |adapter| format!("{model}:{adapter}")),
            // A call that failed gave no right answer.
            accuracy: (count > 0).then(|| Accuracy {
                right,
                of: all.len(),
                share: right as f64 / all.len() as f64,
                ci95: wilson(right, all.len()),
            }),
            best_minus_this: None,
            training_s,
            // Calls were made beside one another: the run's own time says what a call costs.
            seconds_per_1000: (count > 0).then(|| per_1000(report.wall_seconds.min(seconds))),
            usd_per_1000: if is_local { Some(0.0) } else { cost.map(|cost| per_1000(cost as f64 / 1e6)) },
            run: Some(report.run),
            note,
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<String, Failure> {
        let failed = |error: std::io::Error| Failure::new(Code::STORAGE, format!("{name} cannot be written: {error}"));
        std::fs::write(self.folder.join(name), text).map_err(failed)?;
        Ok(name.to_string())
    }
}

fn parsed(recipe: &Value) -> Result<AnyRecipe, Failure> {
    Ok(AnyRecipe::parse(&recipe.to_string())?)
}

fn untried(method: &'static str, note: impl Into<String>) -> Candidate {
    Candidate {
        method,
        target: String::new(),
        accuracy: None,
        best_minus_this: None,
        training_s: 0.0,
        seconds_per_1000: None,
        usd_per_1000: None,
        run: None,
        note: Some(note.into()),
    }
}

/// The cheapest to call of those that the best one is not measurably better than, over the same samples.
fn choose(store: &Store, candidates: &mut [Candidate]) -> Result<(Option<&'static str>, String), Failure> {
    let share = |candidate: &Candidate| candidate.accuracy.map_or(-1.0, |accuracy| accuracy.share);
    // Where one was measured on enough samples, those that had time for a few are not compared with it.
    let of = |candidate: &Candidate| candidate.accuracy.map_or(0, |accuracy| accuracy.of);
    let least = ENOUGH.min(candidates.iter().map(of).max().unwrap_or(0)).max(1);
    for few in candidates.iter_mut().filter(|candidate| (1..least).contains(&of(candidate))) {
        few.note.get_or_insert(format!("the budget was too short to measure it on more than {} samples: it is not compared", of(few)));
    }
    let compared = |candidate: &Candidate| of(candidate) >= least;
    let at_all: Vec<usize> = (0..candidates.len()).filter(|at| compared(&candidates[*at])).collect();
    let Some(best) = at_all.iter().copied().max_by(|a, b| share(&candidates[*a]).total_cmp(&share(&candidates[*b])).then(b.cmp(a))) else {
        return Ok((None, "nothing could be measured".into()));
    };
    let cases_of = |at: usize| -> Result<Vec<cases::CaseRecord>, Failure> {
        Ok(runs::cases(store.db.as_ref(), candidates[at].run.as_deref().unwrap_or_default())?)
    };
    let of_best = cases_of(best)?;
    let mut differences = Vec::new();
    for at in at_all.into_iter().filter(|at| *at != best) {
        let own = cases_of(at)?;
        let (own_refs, best_refs): (Vec<_>, Vec<_>) = (own.iter().collect(), of_best.iter().collect());
        differences.push((at, difference(METRIC, ("this", &own_refs), ("best", &best_refs)).paired));
    }
    for (at, paired) in differences {
        candidates[at].best_minus_this = Some(paired);
    }
    let is_as_good = |candidate: &Candidate| candidate.best_minus_this.as_ref().is_none_or(|paired| paired.p >= MEASURABLE);
    let price = |candidate: &Candidate| (candidate.usd_per_1000.unwrap_or(f64::MAX), candidate.seconds_per_1000.unwrap_or(f64::MAX));
    let good = candidates.iter().filter(|candidate| compared(candidate) && is_as_good(candidate));
    let chosen = good.min_by(|a, b| price(a).partial_cmp(&price(b)).unwrap_or(std::cmp::Ordering::Equal));
    Ok(match chosen {
        None => (None, "nothing could be measured".into()),
        Some(chosen) => {
            let count = of(chosen).min(of(&candidates[best]));
            let few = if count < ENOUGH { format!("; {count} samples show only large differences") } else { String::new() };
            (Some(chosen.method), told(chosen, &candidates[best]) + &few)
        }
    })
}

fn told(chosen: &Candidate, best: &Candidate) -> String {
    let percent = |candidate: &Candidate| candidate.accuracy.map_or(0.0, |accuracy| 100.0 * accuracy.share);
    let word = match chosen.method {
        "head" => "the head is enough",
        "prompt" => "the prompt is enough",
        _ => "the adapter is worth it",
    };
    if chosen.method == best.method {
        return format!("{word}: no other is measurably as good and cheaper to call ({:.1} % right)", percent(chosen));
    }
    let p = chosen.best_minus_this.as_ref().map_or(1.0, |paired| paired.p);
    format!(
        "{word}: {:.1} % right, and the {} with {:.1} % is not measurably better (p = {p:.2})",
        percent(chosen),
        best.method,
        percent(best)
    )
}
