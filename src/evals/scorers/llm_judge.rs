//! `llm_judge`: a model says how good the answer is. Options:
//! - `model` and `rubric` (with `pairwise` it has a default);
//! - `scale: [1, 5]`: a whole number from the one to the other, reported from 0 to 1; pass or fail without it;
//! - `votes`: how often it is asked (odd for pass or fail): the mean of the numbers, the majority of the verdicts;
//! - `pairwise`: `reference`, or the name of another target: which of two answers is better, asked in both orders;
//! - `labels`: where a sample carries a person's label (`/metadata/human`): agreement over the run; `pass_at` says which value is good;
//! - `reference: false` keeps the target from the judge; `parameters`: decoding parameters (temperature 0 without it).

use super::{Aggregate, Asks, Case, Options, Scale, Scored, Scorer, Services};
use crate::evals::judge::{Agreement, Judge, Question};
use crate::inference::CacheWish;
use crate::types::chat::has_token_limit;
use futures_util::future::{BoxFuture, try_join_all};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

struct LlmJudge {
    name: String,
    judge: Judge,
    instruction: String,
    form: Form,
    votes: usize,
    reference: bool,
    labels: Option<(String, f64)>,
}

/// What a verdict is.
enum Form {
    PassOrFail,
    Scale([i64; 2]),
    /// Which of two is better; the other one is the target, or another target's answer.
    Pair(Option<String>),
}

const MAX_VOTES: u64 = 25;
const BETTER: &str = "Which of the two answers to the same input is better: more correct, more helpful, and no longer than it has to be?";

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let model = options.text("model")?.ok_or("model is missing")?;
    let rubric = options.text("rubric")?;
    let (scale, pairwise) = (scale(options.take("scale"))?, options.text("pairwise")?);
    let votes = options.count("votes", 1..=MAX_VOTES)?.unwrap_or(1);
    let labels = options.text("labels")?;
    let pass_at = options.number("pass_at", 0.0)?;
    let reference = options.take("reference").is_none_or(|given| given != Value::Bool(false));
    let parameters = match options.take("parameters") {
        None => Map::from_iter([("temperature".to_string(), 0.into())]),
        Some(Value::Object(parameters)) => parameters,
        Some(other) => return Err(format!("parameters must be a map, not {other}")),
    };
    options.finish()?;
    let form = match (scale, pairwise) {
        (None, None) if votes % 2 == 0 => return Err("votes must be odd for pass or fail, or give a scale".into()),
        (None, None) => Form::PassOrFail,
        (Some(scale), None) => Form::Scale(scale),
        (None, Some(other)) => Form::Pair(Some(other).filter(|other| other != "reference")),
        (Some(_), Some(_)) => return Err("give one of scale and pairwise".into()),
    };
    let is_pair = matches!(form, Form::Pair(_));
    if is_pair && labels.is_some() {
        return Err("labels go with pass or fail and with a scale, not with pairwise".into());
    }
    let rubric = rubric.or_else(|| is_pair.then(|| BETTER.into())).ok_or("rubric is missing")?;
    let labels = labels.map(|pointer| (pointer, pass_at.unwrap_or(0.5)));
    let judge = Judge::new(model, parameters, form.schema())?;
    Ok(Box::new(LlmJudge { instruction: form.instruction(&rubric), name, judge, form, votes: votes as usize, reference, labels }))
}

fn scale(given: Option<Value>) -> Result<Option<[i64; 2]>, String> {
    let Some(given) = given else { return Ok(None) };
    match serde_json::from_value::<[i64; 2]>(given.clone()) {
        Ok([lowest, highest]) if lowest < highest && highest - lowest <= 1000 => Ok(Some([lowest, highest])),
        _ => Err(format!("scale must be two whole numbers, the lower one first, such as [1, 5], not {given}")),
    }
}

impl Form {
    /// Reasons come first: a verdict that is written before them is only defended by them.
    fn schema(&self) -> Value {
        let (key, verdict) = match self {
            Form::PassOrFail => ("verdict", json!({"type": "string", "enum": ["pass", "fail"]})),
            Form::Scale([lowest, highest]) => ("score", json!({"type": "integer", "minimum": lowest, "maximum": highest})),
            Form::Pair(_) => ("better", json!({"type": "string", "enum": ["first", "second", "equal"]})),
        };
        json!({"type": "object", "additionalProperties": false, "required": ["reasons", key],
            "properties": {"reasons": {"type": "string"}, key: verdict}})
    }

    fn instruction(&self, rubric: &str) -> String {
        match self {
            Form::PassOrFail => format!("You judge an answer to an input. Say whether it passes.\n\nRubric:\n{rubric}"),
            Form::Scale([lowest, highest]) => {
                format!(
                    "You judge an answer to an input. Give it a whole number from {lowest} (worst) to {highest} (best).\n\nRubric:\n{rubric}"
                )
            }
            Form::Pair(_) => format!(
                "You compare two answers to an input. Say whether the first or the second is better, or that they are equal. Which of \
                 them stands first means nothing.\n\nRubric:\n{rubric}"
            ),
        }
    }
}

impl Scorer for LlmJudge {
    fn metrics(&self) -> Vec<String> {
        let more: &[&str] = match self.form {
            Form::Pair(_) => &["flips", "first"],
            _ if self.votes > 1 => &["agreement"],
            _ => &[],
        };
        std::iter::once(self.name.clone()).chain(more.iter().map(|more| format!("{}.{more}", self.name))).collect()
    }

    fn scale(&self, metric: &str) -> Scale {
        match metric.rsplit_once('.') {
            Some((_, "flips")) if metric != self.name => Scale::Less("share"),
            Some((_, "first")) if metric != self.name => Scale::Plain("share"),
            _ if metric == self.name && matches!(self.form, Form::PassOrFail) => Scale::Pass,
            _ => Scale::Share,
        }
    }

    fn score<'a>(&'a self, case: &'a Case<'a>, services: &'a dyn Services) -> BoxFuture<'a, Result<Scored, String>> {
        Box::pin(async move {
            match &self.form {
                Form::PassOrFail => Ok(self.majority(&self.ask(case, services).await?)),
                Form::Scale(bounds) => Ok(self.mean(&self.ask(case, services).await?, *bounds)),
                Form::Pair(Some(other)) if other == case.answered_by => {
                    let values = vec![None; 3];
                    Ok(Scored { values, explanation: Some("it is what the others are compared with".into()) })
                }
                Form::Pair(other) => {
                    let other = other_answer(case, other.as_deref())?;
                    self.compare(case, &other, services).await
                }
            }
        })
    }

    fn compares_with(&self) -> Vec<String> {
        match &self.form {
            Form::Pair(Some(other)) => vec![other.clone()],
            _ => Vec::new(),
        }
    }

    fn asks(&self) -> Vec<Asks> {
        vec![Asks { model: self.judge.model.clone(), has_limit: has_token_limit(&self.judge.parameters) }]
    }

    fn aggregates(&self) -> Vec<String> {
        self.labels.as_ref().map(|_| Agreement::names(&self.name)).unwrap_or_default()
    }

    fn aggregate(&self) -> Option<Box<dyn Aggregate>> {
        let (pointer, pass_at) = self.labels.clone()?;
        let bounds = match self.form {
            Form::Scale([lowest, highest]) => [lowest as f64, highest as f64],
            _ => [0.0, 1.0],
        };
        Some(Box::new(Agreement::new(self.name.clone(), pointer, pass_at, bounds)))
    }
}

/// What the answer is compared with.
fn other_answer(case: &Case<'_>, other: Option<&str>) -> Result<String, String> {
    let Some(name) = other else { return Ok(case.targets()?.swap_remove(0)) };
    let found = case.others.iter().find(|(known, _)| known == name).map(|(_, output)| output.clone());
    found.ok_or_else(|| {
        format!("there is no answer of target \"{name}\" to compare with; answers of two targets are compared once they are stored: refit eval score RUN")
    })
}

impl LlmJudge {
    /// Votes that may not be one and the same answer given again.
    fn wish(&self) -> CacheWish {
        if self.votes > 1 { CacheWish::Aside } else { CacheWish::Exact }
    }

    async fn verdict(&self, material: &Value, services: &dyn Services) -> Result<Value, String> {
        let question = Question { instruction: &self.instruction, material, cache: self.wish() };
        self.judge.verdict(services, question).await
    }

    async fn ask(&self, case: &Case<'_>, services: &dyn Services) -> Result<Vec<Value>, String> {
        let mut material = json!({"input": case.input, "answer": case.output()});
        if self.reference && !case.target.is_null() {
            material["reference"] = case.target.clone();
        }
        try_join_all((0..self.votes).map(|_| self.verdict(&material, services))).await
    }

    /// The verdict of most votes, and their share.
    fn majority(&self, verdicts: &[Value]) -> Scored {
        let passed = verdicts.iter().filter(|verdict| verdict["verdict"] == "pass").count();
        let is_pass = 2 * passed > verdicts.len();
        let most = passed.max(verdicts.len() - passed);
        let said = verdicts.iter().find(|verdict| (verdict["verdict"] == "pass") == is_pass);
        self.told(f64::from(u8::from(is_pass)), most, verdicts, said)
    }

    /// The mean of the numbers, and the share of the one that was given most often.
    fn mean(&self, verdicts: &[Value], [lowest, highest]: [i64; 2]) -> Scored {
        let numbers: Vec<i64> = verdicts.iter().filter_map(|verdict| verdict["score"].as_i64()).collect();
        let mean = numbers.iter().sum::<i64>() as f64 / numbers.len().max(1) as f64;
        let mut counts = BTreeMap::<i64, usize>::new();
        numbers.iter().for_each(|number| *counts.entry(*number).or_default() += 1);
        let most = counts.values().max().copied().unwrap_or(0);
        let near = |verdict: &&Value| (verdict["score"].as_f64().unwrap_or(f64::MAX) - mean).abs();
        let said = verdicts.iter().min_by(|a, b| near(a).total_cmp(&near(b)));
        self.told((mean - lowest as f64) / (highest - lowest) as f64, most, verdicts, said)
    }

    fn told(&self, value: f64, most: usize, verdicts: &[Value], said: Option<&Value>) -> Scored {
        let mut values = vec![value];
        if self.votes > 1 {
            values.push(most as f64 / verdicts.len().max(1) as f64);
        }
        let explanation = said.and_then(reasons);
        Scored { explanation, ..values.into() }
    }

    /// Both orders of each vote: 1 where the answer is better, 0 where the other is, ½ where they are equal; whether the order changed
    /// the verdict; and how often the first one won.
    async fn compare(&self, case: &Case<'_>, other: &str, services: &dyn Services) -> Result<Scored, String> {
        let pair = |first: &str, second: &str| json!({"input": case.input, "first": first, "second": second});
        let (ahead, behind) = (pair(case.output(), other), pair(other, case.output()));
        let asked = (0..self.votes).flat_map(|_| [&ahead, &behind]);
        let verdicts = try_join_all(asked.map(|material| self.verdict(material, services))).await?;
        let first = |verdict: &Value| match verdict["better"].as_str() {
            Some("first") => 1.0,
            Some("second") => 0.0,
            _ => 0.5,
        };
        let (mut wins, mut flips, mut firsts) = (0.0, 0.0, 0.0);
        for orders in verdicts.chunks_exact(2) {
            let (ahead, behind) = (first(&orders[0]), first(&orders[1]));
            wins += (ahead + 1.0 - behind) / 2.0;
            flips += f64::from(u8::from(ahead != 1.0 - behind));
            firsts += (ahead + behind) / 2.0;
        }
        let votes = self.votes as f64;
        let explanation = verdicts.first().and_then(reasons);
        Ok(Scored { explanation, ..vec![wins / votes, flips / votes, firsts / votes].into() })
    }
}

/// Why, where the judge says so.
fn reasons(verdict: &Value) -> Option<String> {
    verdict["reasons"].as_str().filter(|reasons| !reasons.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::super::build as build_scorer;
    use super::super::tests::{aggregated_with, refused, scored_with};
    use crate::datasets::Sample;
    use crate::evals::Reply;
    use crate::evals::scorers::Calling;
    use crate::evals::scorers::Services;
    use crate::inference::{CacheWish, MostCost};
    use crate::types::chat::ChatRequest;
    use crate::types::traits::{Embed, Vectors};
    use crate::types::{Code, Failure};
    use futures_util::future::BoxFuture;
    use serde_json::{Value, json};
    use std::sync::Mutex;

    /// A judge that answers from a list and keeps what it was asked.
    struct Scripted {
        answers: Mutex<Vec<String>>,
        asked: Mutex<Vec<(ChatRequest, CacheWish)>>,
    }

    impl Scripted {
        fn new(answers: &[Value]) -> Self {
            let text = |answer: &Value| answer.as_str().map_or_else(|| answer.to_string(), str::to_string);
            Scripted { answers: Mutex::new(answers.iter().rev().map(text).collect()), asked: Mutex::default() }
        }

        fn asked(&self) -> Vec<(ChatRequest, CacheWish)> {
            std::mem::take(&mut *self.asked.lock().expect("whole"))
        }
    }

    impl Embed for Scripted {
        fn embed<'a>(&'a self, _model: &'a str, _texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
            Box::pin(async { Err(Failure::new(Code::UNSUPPORTED, "no vectors")) })
        }
    }

    impl Services for Scripted {
        fn chat(&self, request: ChatRequest, cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
            self.asked.lock().expect("whole").push((request, cache));
            let answer = self.answers.lock().expect("whole").pop();
            Box::pin(async move {
                let output = answer.ok_or_else(|| Failure::new(Code::UPSTREAM, "nothing more to say"))?;
                Ok(Reply { output, ..Reply::default() })
            })
        }

        fn most_cost<'a>(&'a self, _calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
            Box::pin(async { Err(Failure::new(Code::UNSUPPORTED, "nobody sets money aside")) })
        }

        fn allows_commands(&self) -> bool {
            false
        }
    }

    fn sample() -> Sample {
        serde_json::from_value(json!({"id": "s", "input": {"question": "2 + 2?"}, "target": "4", "metadata": {}})).expect("a sample")
    }

    fn judged(options: Value, answers: &[Value]) -> (Result<super::Scored, String>, Vec<(ChatRequest, CacheWish)>) {
        let mut spec = json!({"llm_judge": {"model": "up/judge", "rubric": "Is it right?"}});
        spec["llm_judge"].as_object_mut().expect("options").extend(options.as_object().expect("options").clone());
        let services = Scripted::new(answers);
        (scored_with(&spec, &sample(), "it is 4", &services), services.asked())
    }

    fn pass(reasons: &str) -> Value {
        json!({"reasons": reasons, "verdict": "pass"})
    }

    #[test]
    fn a_verdict_is_asked_for_by_schema_and_explained() {
        let (scored, asked) = judged(json!({}), &[pass("It is four.")]);
        let scored = scored.expect("a score");
        assert_eq!((scored.values, scored.explanation.as_deref()), (vec![Some(1.0)], Some("It is four.")));
        let [(request, cache)] = &asked[..] else { panic!("asked {} times", asked.len()) };
        assert_eq!((request.model.as_str(), request.temperature, *cache), ("up/judge", Some(0.0), CacheWish::Exact));
        assert_eq!(request.extra["response_format"]["json_schema"]["strict"], true);
        assert!(request.messages[0].plain_text().contains("Is it right?"));
        let material: Value = serde_json::from_str(&request.messages[1].plain_text()).expect("JSON");
        assert_eq!(material, json!({"input": {"question": "2 + 2?"}, "answer": "it is 4", "reference": "4"}));
        let (_, asked) = judged(json!({"reference": false, "parameters": {"seed": 7}}), &[pass("")]);
        assert!(!asked[0].0.messages[1].plain_text().contains("reference"));
        assert_eq!((asked[0].0.seed, asked[0].0.temperature), (Some(7), None));
    }

    #[test]
    fn what_does_not_fit_is_asked_for_once_more() {
        let (scored, asked) =
            judged(json!({}), &[json!("I think it passes."), json!("```json\n{\"reasons\": \"\", \"verdict\": \"fail\"}\n```")]);
        assert_eq!(scored.expect("a score").values, [Some(0.0)]);
        assert!(asked[1].0.messages[3].plain_text().contains("That does not fit: it is not JSON"));
        let bad = json!({"reasons": "", "score": 9});
        let (scored, asked) = judged(json!({"scale": [1, 5]}), &[bad.clone(), bad, json!({"reasons": "", "score": 5})]);
        assert!(scored.is_err_and(|problem| problem.contains("also when asked again") && problem.contains("/score")));
        assert_eq!(asked.len(), 2);
        let (scored, _) = judged(json!({}), &[]);
        assert_eq!(scored, Err("upstream_error: nothing more to say".into()));
    }

    #[test]
    fn votes_are_counted() {
        let fail = json!({"reasons": "no", "verdict": "fail"});
        let (scored, asked) = judged(json!({"votes": 3}), &[fail.clone(), pass("yes"), pass("yes")]);
        let scored = scored.expect("a score");
        assert_eq!((scored.values, scored.explanation.as_deref()), (vec![Some(1.0), Some(2.0 / 3.0)], Some("yes")));
        assert!(asked.len() == 3 && asked.iter().all(|(_, cache)| *cache == CacheWish::Aside), "no vote is another one given again");
        let number = |score: u8| json!({"reasons": score.to_string(), "score": score});
        let (scored, _) = judged(json!({"scale": [1, 5], "votes": 4}), &[number(5), number(3), number(3), number(4)]);
        let scored = scored.expect("a score");
        assert_eq!(scored.values, [Some((3.75 - 1.0) / 4.0), Some(0.5)]);
        assert_eq!(scored.explanation.as_deref(), Some("4"), "the reasons of the vote next to the mean");
    }

    #[test]
    fn pairs_are_asked_in_both_orders() {
        let better = |which: &str| json!({"reasons": "", "better": which});
        let pairwise = |answers: &[Value]| judged(json!({"pairwise": "reference"}), answers);
        let values = |answers: &[Value]| pairwise(answers).0.expect("a score").values.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(values(&[better("first"), better("second")]), [1.0, 0.0, 0.5]);
        assert_eq!(values(&[better("second"), better("first")]), [0.0, 0.0, 0.5]);
        // Always the first: the order decides, and so nothing is known.
        assert_eq!(values(&[better("first"), better("first")]), [0.5, 1.0, 1.0]);
        assert_eq!(values(&[better("equal"), better("equal")]), [0.5, 0.0, 0.5]);
        assert_eq!(values(&[better("first"), better("equal")]), [0.75, 1.0, 0.75]);
        let asked = pairwise(&[better("first"), better("second")]).1;
        let shown = |at: usize| serde_json::from_str::<Value>(&asked[at].0.messages[1].plain_text()).expect("JSON");
        assert_eq!((shown(0)["first"].clone(), shown(0)["second"].clone()), (json!("it is 4"), json!("4")));
        assert_eq!((shown(1)["first"].clone(), shown(1)["second"].clone()), (json!("4"), json!("it is 4")));
        let (scored, _) = judged(json!({"pairwise": "base"}), &[]);
        assert!(scored.is_err_and(|problem| problem.contains("no answer of target \"base\"") && problem.contains("refit eval score")));
    }

    #[test]
    fn agreement_with_people_is_added_up() {
        let spec = json!({"llm_judge": {"model": "m", "rubric": "r", "labels": "/metadata/human"}});
        let scorer = build_scorer(&spec).map_err(|(_, problem)| problem).expect("built");
        assert_eq!(scorer.aggregates(), ["llm_judge.kappa", "llm_judge.corrected"]);
        // 20 both good, 5 good that the judge fails, 10 bad that it passes, 15 both bad: the table of the fixture, transposed.
        let of = |human: Value, value: f64, times: usize| std::iter::repeat_n((human, value), times);
        let labelled =
            of(json!("pass"), 1.0, 20).chain(of(json!(true), 0.0, 5)).chain(of(json!("FAIL"), 1.0, 10)).chain(of(json!(0), 0.0, 15));
        let cases: Vec<_> = labelled.chain(of(Value::Null, 1.0, 50)).chain(of(json!("perhaps"), 0.0, 2)).collect();
        let found = aggregated_with(scorer.as_ref(), "llm_judge", &cases);
        let kappa = found.metrics[0].1;
        assert_eq!((kappa.n, found.metrics.len()), (50, 2));
        assert!((kappa.mean - 0.4).abs() < 1e-12, "{kappa:?}");
        assert_eq!((&found.details["labelled"], &found.details["unreadable_labels"]), (&json!(50), &json!(2)));
        assert_eq!((&found.details["sensitivity"], &found.details["specificity"]), (&json!(0.8), &json!(0.6)));
        // 80 of 102 were passed: (80/102 + 0.6 − 1) / 0.4.
        let corrected = found.metrics[1].1;
        assert!((corrected.mean - (80.0 / 102.0 - 0.4) / 0.4).abs() < 1e-12 && corrected.n == 102, "{corrected:?}");
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let why = |options: Value| {
            let mut spec = json!({"llm_judge": {"model": "m", "rubric": "r"}});
            spec["llm_judge"].as_object_mut().expect("options").extend(options.as_object().expect("options").clone());
            refused(spec)
        };
        assert!(why(json!({"votes": 2})).contains("votes must be odd"));
        assert!(why(json!({"scale": [5, 1]})).contains("the lower one first"));
        assert!(why(json!({"scale": [1, 5], "pairwise": "reference"})).contains("one of scale and pairwise"));
        assert!(why(json!({"pairwise": "reference", "labels": "/metadata/h"})).contains("not with pairwise"));
        assert!(refused(json!({"llm_judge": {"model": "m"}})).contains("rubric is missing"));
        assert!(refused(json!({"llm_judge": {"rubric": "r"}})).contains("model is missing"));
    }
}
