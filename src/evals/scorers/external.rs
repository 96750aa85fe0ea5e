//! What scorers outside of Refit are told and say: `command` and `wasm` share it. In goes one JSON object: `sample`, `input`, `output`,
//! `target`, `metadata`, `tool_calls`, `latency_ms`, `cost_usd`, `input_tokens` and `output_tokens`. Out comes a number, `true`, `false`,
//! or an object: `score`, and if it likes `explanation` and `metrics` (numbers by the names that the suite gives), or `error`.

use super::{Case, Options, Scored};
use serde_json::{Value, json};

/// Most bytes that are read of what comes out.
pub(super) const MAX_OUTPUT: usize = 1 << 20;

/// Names of the metrics beside the main one.
pub(super) fn more(options: &mut Options) -> Result<Vec<String>, String> {
    Ok(options.texts("metrics")?.unwrap_or_default())
}

pub(super) fn names(name: &str, more: &[String]) -> Vec<String> {
    std::iter::once(name.to_string()).chain(more.iter().map(|metric| format!("{name}.{metric}"))).collect()
}

/// What goes in.
pub(super) fn told(case: &Case<'_>) -> String {
    let reply = case.reply;
    json!({
        "sample": case.sample,
        "input": case.input,
        "output": reply.output,
        "target": case.target,
        "metadata": case.metadata,
        "tool_calls": reply.tool_calls,
        "latency_ms": reply.latency_ms,
        "cost_usd": reply.cost_micro_usd.map(|cost| cost as f64 / 1e6),
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
    })
    .to_string()
}

/// What came out.
pub(super) fn said(output: &str, more: &[String]) -> Result<Scored, String> {
    let said: Value =
        serde_json::from_str(output.trim()).map_err(|_| format!("it did not answer with JSON but with: {}", beginning(output)))?;
    if let Some(error) = said.get("error").filter(|error| !error.is_null()) {
        return Err(error.as_str().map_or_else(|| error.to_string(), str::to_string));
    }
    let main = said.get("score").unwrap_or(&said);
    let mut values = vec![Some(share(main).ok_or_else(|| format!("its score is not a number from 0 to 1: {}", beginning(output)))?)];
    for metric in more {
        let found = said.get("metrics").and_then(|metrics| metrics.get(metric)).filter(|value| !value.is_null());
        values
            .push(found.map(|value| share(value).ok_or_else(|| format!("its {metric} is not a number from 0 to 1: {value}"))).transpose()?);
    }
    Ok(Scored { values, explanation: said.get("explanation").and_then(Value::as_str).map(str::to_string) })
}

fn share(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(passed) => Some(f64::from(u8::from(*passed))),
        value => value.as_f64().filter(|number| (0.0..=1.0).contains(number)),
    }
}

/// The beginning of a text, for errors.
pub(super) fn beginning(text: &str) -> String {
    let line: String = text.trim().chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.is_empty() { "nothing".into() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_read_strictly() {
        let values = |output: &str| said(output, &["a".into()]).map(|scored| scored.values);
        assert_eq!(values("true\n"), Ok(vec![Some(1.0), None]));
        assert_eq!(values("0.25"), Ok(vec![Some(0.25), None]));
        let whole = said("{\"score\": 1, \"metrics\": {\"a\": false, \"b\": 9}, \"explanation\": \"so\"}", &["a".into()]).expect("a score");
        assert_eq!((whole.values, whole.explanation.as_deref()), (vec![Some(1.0), Some(0.0)], Some("so")));
        for (output, problem) in [
            ("", "did not answer with JSON but with: nothing"),
            ("Traceback", "but with: Traceback"),
            ("7", "not a number from 0 to 1: 7"),
            ("{\"score\": null}", "not a number from 0 to 1"),
            ("{\"score\": 1, \"metrics\": {\"a\": \"x\"}}", "its a is not a number"),
            ("{\"error\": \"no dictionary\"}", "no dictionary"),
        ] {
            assert!(values(output).is_err_and(|found| found.contains(problem)), "{output}");
        }
    }
}
