//! `tool_call`: the answer calls the tools that it should. What it should call is the option `calls`, or the target: a call or a list of
//! calls, `{"name": …, "arguments": {…}}` or in OpenAI's shape. An empty list means that no tool may be called. Options:
//! - `arguments`: `equal` (the default), `subset` (the wanted ones are there, others may be) or `ignore`;
//! - `order`: `any` (the default) or `exact`;
//! - `extra: true` allows more calls than the wanted ones.

use super::case::{holds, parsed, same};
use super::{Case, Options, Pure, Scale, Scored, Scorer};
use serde_json::Value;

struct ToolCall {
    name: String,
    calls: Option<Vec<Call>>,
    arguments: &'static str,
    in_order: bool,
    extra: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Call {
    name: String,
    /// `null` where only the name counts.
    arguments: Value,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let calls = options.take("calls").map(|calls| read(&calls)).transpose()?;
    let arguments = options.choice("arguments", &["equal", "subset", "ignore"])?;
    let in_order = options.choice("order", &["any", "exact"])? == "exact";
    let extra = options.flag("extra")?;
    options.finish()?;
    Ok(Box::new(ToolCall { name, calls, arguments, in_order, extra }))
}

/// Calls of a suite, a target or an answer.
fn read(value: &Value) -> Result<Vec<Call>, String> {
    match value {
        Value::Array(items) => items.iter().map(call).collect(),
        // A target that is JSON text means its content.
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => read(&parsed(text).ok_or("calls are not JSON")?),
        one => Ok(vec![call(one)?]),
    }
}

fn call(value: &Value) -> Result<Call, String> {
    if let Some(name) = value.as_str() {
        return Ok(Call { name: name.into(), arguments: Value::Null });
    }
    let function = value.get("function").unwrap_or(value);
    let name = function.get("name").and_then(Value::as_str).ok_or_else(|| format!("a call needs a name: {value}"))?;
    let arguments = match function.get("arguments") {
        // OpenAI sends them as a text. One that is no JSON equals no wanted arguments.
        Some(Value::String(text)) => parsed(text).unwrap_or_else(|| Value::String(text.clone())),
        Some(arguments) => arguments.clone(),
        None => Value::Null,
    };
    Ok(Call { name: name.into(), arguments })
}

impl Pure for ToolCall {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let wanted = match &self.calls {
            Some(calls) => calls.clone(),
            None if case.target.is_null() => return Err("the sample has no target, and the scorer has no calls".into()),
            None => read(case.target).map_err(|problem| format!("target: {problem}"))?,
        };
        let made = case.reply.tool_calls.as_array().map(Vec::as_slice).unwrap_or_default();
        let made = made.iter().map(call).collect::<Result<Vec<_>, _>>()?;
        Ok(match self.mismatch(&made, &wanted) {
            None => true.into(),
            Some(why) => Scored::from(false).because(why),
        })
    }
}

impl ToolCall {
    /// Why the calls are not the wanted ones; none when they are.
    fn mismatch(&self, made: &[Call], wanted: &[Call]) -> Option<String> {
        let mut open: Vec<&Call> = made.iter().collect();
        let mut from = 0;
        for call in wanted {
            let fits = |other: &&Call| other.name == call.name && self.fits(&other.arguments, &call.arguments);
            let Some(at) = open.iter().skip(from).position(fits) else {
                let named: Vec<_> = made.iter().filter(|other| other.name == call.name).collect();
                return Some(match (named.first(), made.is_empty()) {
                    (_, true) => format!("no tool was called; expected {}", call.name),
                    (Some(other), _) => format!("{} was called with {}, expected {}", call.name, other.arguments, call.arguments),
                    (None, _) => format!("{} was not called", call.name),
                });
            };
            let at = from + at;
            if self.in_order {
                if at > from && !self.extra {
                    return Some(format!("{} was called before {}", open[from].name, call.name));
                }
                from = at + 1;
            } else {
                open.remove(at);
            }
        }
        let surplus = if self.in_order { &open[from.min(open.len())..] } else { &open[..] };
        surplus.first().filter(|_| !self.extra).map(|call| format!("{} was called, which was not expected", call.name))
    }

    fn fits(&self, made: &Value, wanted: &Value) -> bool {
        match self.arguments {
            _ if wanted.is_null() => true,
            "ignore" => true,
            "subset" => holds(made, wanted),
            _ => same(made, wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{looked, refused};
    use super::*;
    use crate::evals::Reply;
    use serde_json::json;

    fn why(options: Value, calls: &[(&str, Value)], target: Value) -> Option<String> {
        let openai = |(name, arguments): &(&str, Value)| json!({"id": "c", "type": "function", "function": {"name": name, "arguments": arguments.to_string()}});
        let reply = Reply { tool_calls: calls.iter().map(openai).collect::<Value>(), ..Reply::default() };
        let scored = looked(&json!({"tool_call": options}), &reply, target).expect("a score");
        assert_eq!(scored.values, [Some(f64::from(u8::from(scored.explanation.is_none())))]);
        scored.explanation
    }

    #[test]
    fn calls_are_compared_by_name_and_arguments() {
        let weather = [("weather", json!({"city": "Oslo", "days": 2}))];
        let wanted = json!({"name": "weather", "arguments": {"days": 2.0, "city": "Oslo"}});
        assert_eq!(why(json!({}), &weather, wanted.clone()), None);
        assert_eq!(why(json!({}), &weather, json!(wanted.to_string())), None);
        assert_eq!(why(json!({}), &[], wanted.clone()).as_deref(), Some("no tool was called; expected weather"));
        let city = json!([{"name": "weather", "arguments": {"city": "Oslo"}}]);
        assert!(why(json!({}), &weather, city.clone()).is_some_and(|why| why.contains("was called with")));
        assert_eq!(why(json!({"arguments": "subset"}), &weather, city), None);
        assert_eq!(why(json!({"arguments": "ignore"}), &weather, json!({"name": "weather", "arguments": {}})), None);
        assert_eq!(why(json!({"calls": ["weather"]}), &weather, json!(null)), None);
        assert_eq!(why(json!({"calls": []}), &weather, json!(null)).as_deref(), Some("weather was called, which was not expected"));
    }

    #[test]
    fn several_calls_come_in_any_order_or_in_theirs() {
        let (a, b) = (("a", json!({})), ("b", json!({})));
        let (ab, ba) = ([a.clone(), b.clone()], [b, a.clone()]);
        let wanted = json!(["a", "b"]);
        assert_eq!(why(json!({}), &ba, wanted.clone()), None);
        assert_eq!(why(json!({"order": "exact"}), &ab, wanted.clone()), None);
        assert_eq!(why(json!({"order": "exact"}), &ba, wanted.clone()).as_deref(), Some("b was called before a"));
        let aba = [a.clone(), ("b", json!({})), a.clone()];
        assert_eq!(why(json!({}), &aba, wanted.clone()).as_deref(), Some("a was called, which was not expected"));
        assert_eq!(why(json!({"extra": true}), &aba, wanted.clone()), None);
        assert_eq!(why(json!({"order": "exact", "extra": true}), &[("x", json!({})), a, ("b", json!({}))], wanted), None);
        assert!(why(json!({}), &ab, json!(["a", "a"])).is_some(), "one call does not count twice");
    }

    #[test]
    fn what_is_no_call_is_refused() {
        assert!(refused(json!({"tool_call": {"calls": [{"arguments": {}}]}})).contains("a call needs a name"));
        let reply = Reply::default();
        assert!(looked(&json!("tool_call"), &reply, json!(null)).is_err_and(|problem| problem.contains("no target")));
        assert!(looked(&json!("tool_call"), &reply, json!("{broken")).is_err_and(|problem| problem.contains("not JSON")));
    }
}
