//! The registry of scorers: a file each, a word here. [`seam`] says what a scorer is, [`case`] what it sees.

mod affix;
mod against;
mod bleu;
pub mod case;
mod checks;
mod chrf;
mod classification;
mod combine;
mod command;
mod cost;
mod edit_distance;
mod exact_match;
mod external;
pub mod files;
pub(in crate::evals) mod grams;
mod includes;
mod json_field;
mod json_schema;
mod language;
mod latency;
mod llm_judge;
mod numeric;
mod options;
mod refusal;
mod regex;
mod rouge;
pub mod seam;
mod similarity;
mod texts;
mod tokens;
mod tool_call;
mod wasm;

pub use case::Case;
pub use files::ScorerFiles;
pub use options::{Author, Options};
pub use seam::{Aggregate, Aggregated, Asks, Calling, Pure, Scale, Scored, Scorer, Services, Verdict, score};
pub use similarity::cosine;
pub use texts::of_texts;

use crate::types::error::did_you_mean;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Makes a scorer from its options; `name` is what its main metric is called.
type Build = fn(name: String, options: Options) -> Result<Box<dyn Scorer>, String>;

/// Word, builder, and the option that a value which is no map of options stands for: `regex: ^a` is `regex: {pattern: ^a}`.
const SCORERS: &[(&str, Build, Option<&str>)] = &[
    ("exact_match", exact_match::build, None),
    ("includes", includes::build, Some("value")),
    ("regex", regex::build, Some("pattern")),
    ("starts_with", affix::starts_with, Some("value")),
    ("ends_with", affix::ends_with, Some("value")),
    ("numeric", numeric::build, None),
    ("json_schema", json_schema::build, None),
    ("json_field", json_field::build, Some("fields")),
    ("tool_call", tool_call::build, Some("calls")),
    ("classification", classification::build, Some("labels")),
    ("rouge", rouge::build, Some("kinds")),
    ("bleu", bleu::build, None),
    ("chrf", chrf::build, None),
    ("edit_distance", edit_distance::build, None),
    ("similarity", similarity::build, Some("model")),
    ("latency", latency::build, Some("max_ms")),
    ("cost", cost::build, Some("max_usd")),
    ("tokens", tokens::build, Some("max")),
    ("refusal", refusal::build, Some("patterns")),
    ("language", language::build, Some("is")),
    ("llm_judge", llm_judge::build, Some("rubric")),
    ("command", command::build, Some("run")),
    ("wasm", wasm::build, Some("file")),
    ("checks", checks::build, Some("at")),
    ("against", against::build, None),
    ("all", combine::all, Some("scorers")),
    ("any", combine::any, Some("scorers")),
    ("weighted", combine::weighted, Some("scorers")),
    ("not", combine::not, Some("scorer")),
    ("threshold", combine::threshold, None),
];

/// Combinations nest: deeper than this nobody means it.
const MAX_DEPTH: usize = 16;

/// A scorer from its place in a suite: `exact_match` or `exact_match: {json: true}`; `files` is where those are that it is made of. The
/// error carries the word to look for.
///
/// # Errors
/// The scorer's name or option at fault, and what is wrong.
pub fn build_with(spec: &Value, files: &Arc<ScorerFiles>) -> Result<Box<dyn Scorer>, (String, String)> {
    build_for(spec, Author::Suite(files.clone()))
}

/// As [`build_with`], for scorers that are made of no files.
///
/// # Errors
/// As [`build_with`].
pub fn build(spec: &Value) -> Result<Box<dyn Scorer>, (String, String)> {
    build_with(spec, &Arc::new(ScorerFiles::kept(files::Kept::new())))
}

/// As [`build`], for a spec of somebody else than the suite's author.
fn build_for(spec: &Value, author: Author) -> Result<Box<dyn Scorer>, (String, String)> {
    let (word, value) = match spec {
        Value::String(word) => (word.clone(), Value::Null),
        Value::Object(map) if map.len() == 1 => match map.iter().next() {
            Some((word, value)) => (word.clone(), value.clone()),
            None => return Err(("scorers".into(), "empty".into())),
        },
        other => return Err(("scorers".into(), format!("expected a scorer's name or `name: {{options}}`, not {other}"))),
    };
    let Some((_, build, short)) = SCORERS.iter().find(|(known, ..)| *known == word) else {
        let known: Vec<&str> = SCORERS.iter().map(|(known, ..)| *known).collect();
        let nearest = did_you_mean(&word, known.iter().copied());
        return Err((word.clone(), format!("there is no scorer \"{word}\"{nearest} (scorers: {})", known.join(", "))));
    };
    let at = |problem: String| (word.clone(), format!("{word}: {problem}"));
    if depth(&value) > MAX_DEPTH {
        return Err(at(format!("nested deeper than {MAX_DEPTH} levels")));
    }
    let mut options = Options::new(options_of(&word, value, *short).map_err(|problem| (word.clone(), problem))?, author);
    let name = options.text("name").map_err(at)?;
    build(name.unwrap_or_else(|| word.clone()), options).map_err(at)
}

/// The options that stand behind a scorer's word.
fn options_of(word: &str, value: Value, short: Option<&str>) -> Result<Map<String, Value>, String> {
    match (value, short) {
        (Value::Null, _) => Ok(Map::new()),
        // A scorer stands here: `not: {includes: {value: x}}`.
        (Value::Object(map), Some("scorer")) if !map.contains_key("scorer") => Ok(Map::from_iter([("scorer".into(), map.into())])),
        (Value::Object(map), _) => Ok(map),
        (value, Some(key)) => Ok(Map::from_iter([(key.to_string(), value)])),
        (_, None) => Err(format!("the options of {word} must be a map")),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A measured number as it is, or whether it is within a limit.
fn limit(value: Option<f64>, max: Option<f64>, unknown: &str) -> Result<Scored, String> {
    match (value, max) {
        (Some(value), Some(max)) => Ok(Scored::from(value <= max).because(value.to_string())),
        (None, Some(_)) => Err(unknown.into()),
        (value, None) => Ok(Scored { values: vec![value], explanation: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::Sample;
    use crate::evals::Reply;
    use crate::inference::{CacheWish, MostCost};
    use crate::types::chat::ChatRequest;
    use crate::types::traits::{Embed, Vectors};
    use crate::types::{Code, Failure};
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use serde_json::json;

    /// Nobody answers.
    pub(super) struct Alone;

    impl Embed for Alone {
        fn embed<'a>(&'a self, _model: &'a str, _texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vectors, Failure>> {
            Box::pin(async { Err(Failure::new(Code::UNSUPPORTED, "nobody answers")) })
        }
    }

    impl Services for Alone {
        fn chat(&self, _request: ChatRequest, _cache: CacheWish) -> BoxFuture<'_, Result<Reply, Failure>> {
            Box::pin(async { Err(Failure::new(Code::UNSUPPORTED, "nobody answers")) })
        }

        fn most_cost<'a>(&'a self, _calling: &'a Calling<'a>) -> BoxFuture<'a, Result<MostCost, Failure>> {
            Box::pin(async { Err(Failure::new(Code::UNSUPPORTED, "nobody answers")) })
        }

        fn allows_commands(&self) -> bool {
            false
        }
    }

    fn sample(target: Value) -> Sample {
        Sample { id: "s".into(), input: Map::new(), target, metadata: Map::new() }
    }

    /// What a scorer that only computes says of an answer.
    pub(super) fn looked(spec: &Value, reply: &Reply, target: Value) -> Result<Scored, String> {
        let scorer = build(spec).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        let sample = sample(target);
        scorer.score(&Case::new(&sample, reply), &Alone).now_or_never().expect("it waits for nothing")
    }

    pub(super) fn look(spec: &Value, output: &str, target: Value) -> Result<Scored, String> {
        looked(spec, &Reply { output: output.into(), ..Reply::default() }, target)
    }

    /// What a scorer that asks says of an answer.
    pub(super) fn scored_with(spec: &Value, sample: &Sample, output: &str, services: &dyn Services) -> Result<Scored, String> {
        let scorer = build(spec).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        let reply = Reply { output: output.into(), ..Reply::default() };
        scorer.score(&Case::new(sample, &reply), services).now_or_never().expect("it waits for nothing")
    }

    /// What people's labels (`metadata.human`) and a metric's values add up to.
    pub(super) fn aggregated_with(scorer: &dyn Scorer, metric: &str, cases: &[(Value, f64)]) -> Aggregated {
        let mut aggregate = scorer.aggregate().expect("it adds up");
        for (group, (human, value)) in (0..).zip(cases) {
            let metadata = Map::from_iter([("human".to_string(), human.clone())]);
            let (sample, reply) = (Sample { metadata, ..sample(Value::Null) }, Reply::default());
            aggregate.add(&Case::new(&sample, &reply), &Map::from_iter([(metric.to_string(), (*value).into())]), group);
        }
        aggregate.finish()
    }

    /// What all answers and their targets add up to.
    pub(super) fn aggregated(spec: &Value, cases: &[(String, Value)]) -> Aggregated {
        let scorer = build(spec).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        let mut aggregate = scorer.aggregate().expect("it adds up");
        for (group, (output, target)) in (0..).zip(cases) {
            let (sample, reply) = (sample(target.clone()), Reply { output: output.clone(), ..Reply::default() });
            aggregate.add(&Case::new(&sample, &reply), &Map::new(), group);
        }
        aggregate.finish()
    }

    /// As [`aggregated`], each case so often, as repeats of one sample.
    pub(super) fn aggregated_repeats(spec: &Value, cases: &[(String, Value)], times: usize) -> Aggregated {
        let scorer = build(spec).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        let mut aggregate = scorer.aggregate().expect("it adds up");
        for (group, (output, target)) in (0..).zip(cases) {
            let (sample, reply) = (sample(target.clone()), Reply { output: output.clone(), ..Reply::default() });
            (0..times).for_each(|_| aggregate.add(&Case::new(&sample, &reply), &Map::new(), group));
        }
        aggregate.finish()
    }

    /// Why a scorer cannot be built.
    pub(super) fn refused(spec: Value) -> String {
        match build(&spec) {
            Ok(_) => panic!("built: {spec}"),
            Err((_, problem)) => problem,
        }
    }

    /// Numbers of the reference implementations (`tests/fixtures/scorers.py`).
    pub(super) fn recorded(of: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../../tests/fixtures/scorers.json")).expect("the fixture is JSON");
        all[of].as_array().unwrap_or_else(|| panic!("{of} was recorded")).clone()
    }

    fn values(spec: Value, output: &str, target: Value) -> Vec<f64> {
        look(&spec, output, target).expect("a score").values.into_iter().flatten().collect()
    }

    #[test]
    fn exact_match_compares_text_or_parsed_json() {
        assert_eq!(values(json!("exact_match"), " Paris\n", json!("Paris")), [1.0]);
        assert_eq!(values(json!("exact_match"), "paris", json!("Paris")), [0.0]);
        assert_eq!(values(json!({"exact_match": {"ignore_case": true}}), "paris", json!("Paris")), [1.0]);
        assert_eq!(values(json!("exact_match"), "4", json!(["four", "4"])), [1.0]);
        let by_json = json!({"exact_match": {"json": true}});
        assert_eq!(values(by_json.clone(), "{\"b\": null, \"a\": 1.0}\n", json!({"a": 1, "b": null})), [1.0]);
        for wrong in ["{\"a\":1}", "{\"a\":1,\"b\":null} and more", "```json\n{\"a\":1,\"b\":null}\n```", ""] {
            assert_eq!(values(by_json.clone(), wrong, json!({"a": 1, "b": null})), [0.0], "{wrong}");
        }
    }

    #[test]
    fn includes_and_regex_look_inside() {
        assert_eq!(values(json!("includes"), "it is Paris.", json!("Paris")), [1.0]);
        assert_eq!(values(json!({"includes": {"value": "PARIS", "ignore_case": true}}), "it is Paris.", json!(null)), [1.0]);
        assert_eq!(values(json!({"includes": {"value": ""}}), "x", json!(null)), [1.0]);
        assert_eq!(values(json!({"includes": {"any": ["x", "Par"]}}), "Paris", json!(null)), [1.0]);
        let all = look(&json!({"includes": {"all": ["Par", "x"]}}), "Paris", json!(null)).expect("a score");
        assert_eq!((all.values, all.explanation.as_deref()), (vec![Some(0.0)], Some("\"x\" is missing")));
        assert!(refused(json!({"includes": {"any": ["x"], "all": ["y"]}})).contains("give one of"));
        assert_eq!(values(json!({"regex": "^NL-\\d{5}$"}), "NL-12345", json!(null)), [1.0]);
        assert_eq!(values(json!({"regex": {"pattern": "^NL-\\d{5}$"}}), "NL-123456", json!(null)), [0.0]);
        assert!(build(&json!("regex")).is_err() && build(&json!({"regex": {"pattern": "("}})).is_err());
    }

    #[tokio::test]
    async fn long_texts_are_compared_beside_and_not_in_the_way() {
        let (output, target) = ("ab ".repeat(1_500), "ba ".repeat(1_500));
        for word in ["edit_distance", "rouge", "chrf", "bleu"] {
            // chrF and BLEU take time with the length, the others with its square.
            let times = if ["chrf", "bleu"].contains(&word) { 200 } else { 1 };
            let reply = Reply { output: output.repeat(times), ..Reply::default() };
            let (sample, scorer) = (sample(json!(target.repeat(times))), build(&json!(word)).map_err(|(_, why)| why).expect("built"));
            let case = Case::new(&sample, &reply);
            let mut scored = scorer.score(&case, &Alone);
            assert!(futures_util::poll!(&mut scored).is_pending(), "{word}: it was computed where it stands");
            assert!(scored.await.expect("a score").values[0].is_some());
            // A short one is done at once.
            let reply = Reply { output: "ab".into(), ..Reply::default() };
            assert!(scorer.score(&Case::new(&sample, &reply), &Alone).now_or_never().is_some() || times > 1, "{word}");
        }
        let reply = Reply { output: "a".repeat(40_000), ..Reply::default() };
        let (sample, scorer) = (
            sample(json!(["b".repeat(40_000), "c".repeat(40_000)])),
            build(&json!("edit_distance")).map_err(|(_, why)| why).expect("built"),
        );
        let refused = scorer.score(&Case::new(&sample, &reply), &Alone).await;
        assert!(refused.is_err_and(|why| why.contains("over all targets")));
    }

    #[test]
    fn beginnings_and_ends() {
        assert_eq!(values(json!({"starts_with": "Dear"}), "\nDear Ada", json!(null)), [1.0]);
        assert_eq!(values(json!({"starts_with": {"value": ["hi", "dear"], "ignore_case": true}}), "Dear Ada", json!(null)), [1.0]);
        assert_eq!(values(json!("ends_with"), "Yours, Ada ", json!("Ada")), [1.0]);
        assert_eq!(values(json!("ends_with"), "Ada, yours", json!("Ada")), [0.0]);
        assert!(look(&json!("ends_with"), "x", json!(null)).is_err());
    }

    #[test]
    fn json_schema_wants_valid_json_and_then_the_schema() {
        assert_eq!(values(json!("json_schema"), "[1]", json!(null)), [1.0]);
        assert_eq!(values(json!("json_schema"), "[1", json!(null)), [0.0]);
        let typed = json!({"json_schema": {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", null]}}}}});
        assert_eq!(values(typed.clone(), "{\"a\":null}", json!(null)), [1.0]);
        let misfit = look(&typed, "{\"a\":\"y\"}", json!(null)).expect("a score");
        assert_eq!((misfit.values, misfit.explanation.as_deref()), (vec![Some(0.0)], Some("does not fit the schema at \"/a\"")));
        assert_eq!(values(typed, "{}", json!(null)), [0.0]);
        assert!(build(&json!({"json_schema": {"schema": {"type": "objekt"}}})).is_err());
    }

    #[test]
    fn json_field_scores_each_field_and_their_mean() {
        let spec = json!({"json_field": {"fields": ["a", "/b/c"]}});
        assert_eq!(build(&spec).map(|scorer| scorer.metrics()).unwrap_or_default(), ["json_field", "json_field.a", "json_field.b.c"]);
        assert_eq!(values(spec.clone(), "{\"a\":1,\"b\":{\"c\":3}}", json!({"a": 1, "b": {"c": 2}})), [0.5, 1.0, 0.0]);
        // A field that is null in the target must be there and null: leaving it out is no answer.
        assert_eq!(values(spec.clone(), "{\"a\":null}", json!({"a": null})), [0.5, 1.0, 0.0]);
        assert_eq!(values(spec, "no json", json!({"a": null})), [0.0, 0.0, 0.0]);
        let given = json!({"json_field": {"fields": {"a": 1, "/b/c": "x"}}});
        assert_eq!(values(given, "{\"a\":1.0,\"b\":{\"c\":\"y\"}}", json!(null)), [0.5, 1.0, 0.0]);
    }

    #[test]
    fn what_was_measured_is_a_number_or_within_a_limit() {
        let reply = Reply { latency_ms: 120.0, cost_micro_usd: Some(35), input_tokens: 10, output_tokens: 4, ..Reply::default() };
        let value = |spec: Value, reply: &Reply| looked(&spec, reply, json!(null)).map(|scored| scored.values[0]);
        assert_eq!(value(json!("latency"), &reply), Ok(Some(120.0)));
        assert_eq!(value(json!({"latency": 100}), &reply), Ok(Some(0.0)));
        assert_eq!(value(json!("cost"), &reply), Ok(Some(35.0)));
        assert_eq!(value(json!({"cost": {"max_usd": 0.00004}}), &reply), Ok(Some(1.0)));
        assert_eq!(value(json!({"tokens": {"of": "total"}}), &reply), Ok(Some(14.0)));
        assert_eq!(value(json!({"tokens": 3}), &reply), Ok(Some(0.0)));
        // What nobody knows is no number, and within no limit.
        let unknown = Reply::default();
        assert_eq!((value(json!("latency"), &unknown), value(json!("cost"), &unknown)), (Ok(None), Ok(None)));
        assert!(value(json!({"cost": 1}), &unknown).is_err() && value(json!({"latency": 1}), &unknown).is_err());
        assert!(value(json!({"tokens": 1}), &unknown).is_err());
    }

    #[test]
    fn a_failing_scorer_is_an_error_and_the_others_score() {
        let scorers: Vec<_> = [json!("numeric"), json!("cost"), json!("exact_match"), json!("similarity")]
            .iter()
            .map(|spec| build(spec).map_err(|(_, problem)| problem).expect("built"))
            .collect();
        let (sample, reply) = (sample(json!("x")), Reply { output: "x".into(), ..Reply::default() });
        let verdict = score(&scorers, &Case::new(&sample, &reply), &Alone).now_or_never().expect("it waits for nothing");
        assert_eq!(Value::Object(verdict.scores), json!({"exact_match": 1.0}));
        assert_eq!(verdict.error.as_deref(), Some("scorer_error: numeric: the target has no number"));
    }

    #[test]
    fn specs_are_read_strictly() {
        assert!(refused(json!({"exact_match": 3})).contains("options of exact_match must be a map"));
        assert!(refused(json!({"exact_match": {"jsno": true}})).contains("did you mean \"json\"?"));
        assert!(refused(json!("exact")).contains("there is no scorer \"exact\""));
        let mut deep = json!("exact_match");
        for _ in 0..20 {
            deep = json!({"not": deep});
        }
        assert!(refused(deep).contains("nested deeper"));
    }
}
