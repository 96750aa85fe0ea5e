//! What it takes to check a reply against a schema: how often parts of the schema are visited, once for each way that leads to them, of
//! which references make very many with few words; and how deep such a way goes. Here it is only counted, each pair of a part and a
//! value once.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Keywords whose schema, or list of schemas, is for the same value.
const SAME: [&str; 7] = ["allOf", "anyOf", "oneOf", "not", "if", "then", "else"];
/// Those whose schemas, by name, are for the same value.
const SAME_NAMED: [&str; 2] = ["dependentSchemas", "dependencies"];
/// Those whose schema, or list of schemas, is for the values within, or for their names.
const WITHIN: [&str; 8] = [
    "items",
    "prefixItems",
    "additionalItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords that make a reference mean another place.
const ELSEWHERE: [&str; 6] = ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef", "$recursiveAnchor"];
/// Longest way: the check goes it by recursion.
const MAX_HEIGHT: u32 = 400;
/// Pairs that are looked at.
const MAX_PAIRS: usize = 500_000;

/// What a check takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Visits of parts, if all that is wrong is looked for.
    pub(super) visits: u64,
    height: u32,
}

/// Why references of a schema cannot be followed, if that is so: they may lead nowhere but into the schema itself.
pub(super) fn strays(schema: &Value) -> Option<String> {
    let draft_4 = schema.get("$schema").and_then(Value::as_str).is_some_and(|draft| draft.contains("draft-04"));
    let within = match schema {
        // The name of the whole changes nothing.
        Value::Object(keywords) => keywords.iter().filter(|(name, _)| !matches!(name.as_str(), "$id" | "id")).collect(),
        _ => Vec::new(),
    };
    let stray = |keyword: &str, given: &Value| match (keyword, given) {
        ("$ref", Value::String(to)) if target(schema, to).is_none() => Some(format!("\"$ref\" leads out of it, or nowhere: {to:?}")),
        ("id", Value::String(_)) if draft_4 => Some("\"id\" stands in a part of it".to_string()),
        (_, Value::String(_) | Value::Bool(true)) if ELSEWHERE.contains(&keyword) => Some(format!("{keyword:?} is not supported")),
        _ => None,
    };
    let mut left: Vec<(&str, &Value)> = within.into_iter().map(|(name, given)| (name.as_str(), given)).collect();
    while let Some((keyword, given)) = left.pop() {
        if let Some(why) = stray(keyword, given) {
            return Some(why);
        }
        match given {
            // What is listed here are values.
            _ if matches!(keyword, "enum" | "const" | "default" | "examples") => {}
            Value::Object(fields) => left.extend(fields.iter().map(|(name, given)| (name.as_str(), given))),
            Value::Array(items) => left.extend(items.iter().map(|item| ("", item))),
            _ => {}
        }
    }
    None
}

/// Where a reference leads, in the same schema.
fn target<'s>(root: &'s Value, to: &str) -> Option<&'s Value> {
    let pointer = percent_decode_str(to.strip_prefix('#')?).decode_utf8().ok()?;
    root.pointer(&pointer)
}

/// What it takes to check `value` against `schema`.
///
/// # Errors
/// Why it cannot be checked, as a sentence about the value.
pub(super) fn extent(schema: &Value, value: &Value) -> Result<Extent, &'static str> {
    Count { root: schema, known: HashMap::new() }.of(schema, value, 0)
}

struct Count<'s> {
    root: &'s Value,
    /// By the places of part and value; none while it is being counted.
    known: HashMap<(*const Value, *const Value), Option<Extent>>,
}

impl<'s> Count<'s> {
    fn of(&mut self, schema: &'s Value, value: &Value, depth: u32) -> Result<Extent, &'static str> {
        let too_deep = Err("it is nested too deeply to be checked against the schema");
        let Value::Object(keywords) = schema else { return Ok(Extent { visits: 1, height: 1 }) };
        let pair = (std::ptr::from_ref(schema), std::ptr::from_ref(value));
        match self.known.get(&pair) {
            Some(None) => return Err("the schema refers to itself without end"),
            Some(Some(known)) if depth + known.height > MAX_HEIGHT => return too_deep,
            Some(Some(known)) => return Ok(*known),
            None if depth >= MAX_HEIGHT => return too_deep,
            None if self.known.len() >= MAX_PAIRS => return Err("it is too large to be checked against the schema"),
            None => {}
        }
        self.known.insert(pair, None);
        let mut sum = Extent { visits: 1, height: 0 };
        for (keyword, given) in keywords {
            self.keyword((keyword, given), value, depth + 1, &mut sum)?;
        }
        sum.height += 1;
        self.known.insert(pair, Some(sum));
        Ok(sum)
    }

    fn keyword(&mut self, (keyword, given): (&'s str, &'s Value), value: &Value, depth: u32, sum: &mut Extent) -> Result<(), &'static str> {
        let root = self.root;
        let mut add = |part: &'s Value, value: &Value| -> Result<(), &'static str> {
            let part = self.of(part, value, depth)?;
            *sum = Extent { visits: sum.visits.saturating_add(part.visits), height: sum.height.max(part.height) };
            Ok(())
        };
        match (keyword, given) {
            ("$ref", Value::String(to)) => target(root, to).map_or(Ok(()), |part| add(part, value)),
            ("properties", Value::Object(named)) => {
                let mut held = named.iter().filter_map(|(name, part)| Some((part, value.get(name)?)));
                held.try_for_each(|(part, value)| add(part, value))
            }
            ("patternProperties", Value::Object(named)) => {
                values(value).try_for_each(|item| named.values().try_for_each(|part| add(part, item)))
            }
            (keyword, Value::Object(named)) if SAME_NAMED.contains(&keyword) => named.values().try_for_each(|part| add(part, value)),
            (keyword, given) if SAME.contains(&keyword) => listed(given).try_for_each(|part| add(part, value)),
            (keyword, given) if WITHIN.contains(&keyword) => {
                values(value).try_for_each(|item| listed(given).try_for_each(|part| add(part, item)))
            }
            _ => {
                sum.visits = sum.visits.saturating_add(1);
                Ok(())
            }
        }
    }
}

/// What a value holds. Names stand for their values: what a schema says of them is seldom more than a pattern.
fn values(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(Map::values(fields)),
        _ => Box::new(std::iter::empty()),
    }
}

/// A schema, or the schemas of a list.
fn listed(given: &Value) -> std::slice::Iter<'_, Value> {
    match given {
        Value::Array(parts) => parts.iter(),
        one => std::slice::from_ref(one).iter(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_that_leads_to_a_part_counts() {
        let schema = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/%62"}]}, "b": {"type": "string"}},
            "properties": {"x": {"$ref": "#/$defs/a"}, "unused": {"$ref": "#/$defs/a"}}, "items": {"type": "integer"}});
        let of = |value: Value| extent(&schema, &value).map(|extent| (extent.visits, extent.height));
        // `a`: itself, and twice a reference and `b` with its one keyword.
        let of_a = 1 + 2 * (1 + 2);
        assert_eq!(of(json!({"y": 1})), Ok((1 + 1 + 2, 2)));
        assert_eq!(of(json!({"x": 1})), Ok((1 + 1 + (1 + of_a) + 2, 5)));
        assert_eq!(of(json!([1, 2, 3])), Ok((1 + 1 + 3 * 2, 2)));
    }

    #[test]
    fn what_has_no_end_is_told() {
        for schema in [json!({"$ref": "#"}), json!({"anyOf": [{"$ref": "#/anyOf/0"}]})] {
            assert!(extent(&schema, &json!(1)).is_err_and(|why| why.contains("without end")), "{schema}");
        }
        let list = json!({"properties": {"next": {"$ref": "#"}}});
        assert!(extent(&list, &json!({"next": {"next": {}}})).is_ok_and(|extent| extent.visits < 10));
    }

    #[test]
    fn a_reference_leads_into_the_schema_or_is_told() {
        for (schema, word) in [
            (json!({"$ref": "http://example.com/x.json"}), "leads out"),
            (json!({"items": {"$ref": "#/$defs/none"}}), "nowhere"),
            (json!({"items": {"$ref": "#name"}}), "nowhere"),
            (json!({"items": {"$id": "x"}}), "$id"),
            (json!({"items": {"$dynamicRef": "#x"}}), "$dynamicRef"),
            (json!({"$schema": "http://json-schema.org/draft-04/schema#", "items": {"id": "x"}}), "id"),
        ] {
            assert!(strays(&schema).is_some_and(|why| why.contains(word)), "{schema}");
        }
        for schema in [
            json!({"$id": "http://example.com/x.json", "$ref": "#/$defs/a%20b", "$defs": {"a b": {}}}),
            json!({"properties": {"id": {"type": "string"}, "$ref": {"type": "string"}}, "enum": [{"$ref": "x", "$id": "y"}], "items": {"id": "x"}}),
        ] {
            assert_eq!(strays(&schema), None, "{schema}");
        }
    }
}
