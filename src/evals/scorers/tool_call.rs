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
        let made = match made.iter().map(call).collect::<Result<Vec<_>, _>>() {
            Ok(made) => made,
            // What the model made of it is wrong, whatever it meant.
            Err(problem) => return Ok(Scored::from(false).because(problem)),
        };
        Ok(match self.mismatch(&made, &wanted) {
            None => true.into(),
            Some(why) => Scored::from(false).because(why),
        })
    }
}

impl ToolCall {
    /// Why the calls are not the wanted ones; none when they are.
    fn mismatch(&self, made: &[Call], wanted: &[Call]) -> Option<String> {
        if self.in_order { self.out_of_order(made, wanted) } else { self.unmatched(made, wanted) }
    }

    /// The same where calls come in their order: each wanted call is the first one behind the one before it that fits.
    fn out_of_order(&self, made: &[Call], wanted: &[Call]) -> Option<String> {
        let mut from = 0;
        for call in wanted {
            let Some(behind) = made[from..].iter().position(|other| self.is(other, call)) else { return Some(missing(made, call)) };
            if behind > 0 && !self.extra {
                return Some(format!("{} was called before {}", made[from].name, call.name));
            }
            from += behind + 1;
        }
        made.get(from).filter(|_| !self.extra).map(|call| format!("{} was called, which was not expected", call.name))
    }

    /// The same where the order does not matter: each wanted call has a call of its own, if there is any way to give it one.
    ///
    /// Source: augmenting paths (Kuhn, "The Hungarian Method for the Assignment Problem", Naval Res. Logist. Quart. 2, 1955).
    fn unmatched(&self, made: &[Call], wanted: &[Call]) -> Option<String> {
        let mut taken: Vec<Option<usize>> = vec![None; made.len()];
        for (at, call) in wanted.iter().enumerate() {
            if !self.find(at, (made, wanted), &mut taken, &mut vec![false; made.len()]) {
                return Some(missing(made, call));
            }
        }
        let surplus = made.iter().zip(&taken).find(|(_, taken)| taken.is_none());
        surplus.filter(|_| !self.extra).map(|(call, _)| format!("{} was called, which was not expected", call.name))
    }

    /// Gives a wanted call one that was made; who has it already may take another.
    fn find(&self, at: usize, calls: (&[Call], &[Call]), taken: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        let (made, wanted) = calls;
        for place in 0..made.len() {
            if seen[place] || !self.is(&made[place], &wanted[at]) {
                continue;
            }
            seen[place] = true;
            if taken[place].is_none_or(|holder| self.find(holder, calls, taken, seen)) {
                taken[place] = Some(at);
                return true;
            }
        }
        false
    }

    fn is(&self, made: &Call, wanted: &Call) -> bool {
        made.name == wanted.name && self.fits(&made.arguments, &wanted.arguments)
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

/// How a wanted call is missing.
fn missing(made: &[Call], call: &Call) -> String {
    match (made.iter().find(|other| other.name == call.name), made.is_empty()) {
        (_, true) => format!("no tool was called; expected {}", call.name),
        (Some(other), _) => format!("{} was called with {}, expected {}", call.name, other.arguments, call.arguments),
        (None, _) => format!("{} was not called", call.name),
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
    fn each_wanted_call_gets_one_of_its_own_if_there_is_a_way() {
        // The wider wanted call must not take what only the narrower one fits.
        let made = [("f", json!({"a": 1, "b": 2})), ("f", json!({"a": 1}))];
        let wanted = json!([{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1, "b": 2}}]);
        assert_eq!(why(json!({"arguments": "subset"}), &made, wanted.clone()), None);
        let twice = [("f", json!({"a": 1})), ("f", json!({"a": 1}))];
        assert!(why(json!({"arguments": "subset"}), &twice, wanted).is_some_and(|why| why.contains("expected")));
        let reply = Reply { tool_calls: json!([{"function": {"arguments": "{}"}}]), ..Reply::default() };
        let scored = looked(&json!("tool_call"), &reply, json!(["f"])).expect("a model's broken call is wrong, and no error");
        assert_eq!(scored.values, [Some(0.0)]);
        assert!(scored.explanation.is_some_and(|why| why.contains("a call needs a name")));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        assert!(refused(json!({"tool_call": {"calls": [{"arguments": {}}]}})).contains("a call needs a name"));
        let reply = Reply::default();
        assert!(looked(&json!("tool_call"), &reply, json!(null)).is_err_and(|problem| problem.contains("no target")));
        assert!(looked(&json!("tool_call"), &reply, json!("{broken")).is_err_and(|problem| problem.contains("not JSON")));
    }
}
