//! What of JSON Schema can be enforced while decoding. Checked before the compiler sees a schema, so that the caller is told where the
//! keyword stands that is in the way.

use serde_json::{Map, Value};

/// Keywords that only the finished value could be checked against.
const UNENFORCEABLE: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
    "x-guidance",
];
/// Formats of strings that are enforced.
const FORMATS: [&str; 10] = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Levels of schemas inside schemas.
const MAX_DEPTH: usize = 64;
/// Schemas in a schema.
const MAX_SCHEMAS: usize = 5_000;
/// Largest count of items, properties or characters: each one is a state of the grammar.
const MAX_COUNT: u64 = 10_000;
/// Largest multiple, in units of its last decimal: each remainder is a state of the grammar.
const MAX_MULTIPLE: f64 = 1_000.0;
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"];

/// Checks a schema. Returns nothing, or a JSON pointer to what is in the way and the reason.
///
/// # Errors
/// As `/properties/a/not`, "…".
pub fn check(schema: &Value) -> Result<(), (String, String)> {
    Walk { left: MAX_SCHEMAS }.schema(schema, "", 0)
}

/// Whether a multiple takes few states: `0.25` is 25 hundredths.
fn is_small_multiple(multiple: f64) -> bool {
    let units = (0..=6).map(|decimals| multiple * 10f64.powi(decimals));
    units.into_iter().find(|units| (units - units.round()).abs() < 1e-9).is_some_and(|units| (1.0..=MAX_MULTIPLE).contains(&units.round()))
}

struct Walk {
    left: usize,
}

type Checked = Result<(), (String, String)>;

impl Walk {
    fn schema(&mut self, schema: &Value, path: &str, depth: usize) -> Checked {
        let refuse = |problem: String| Err((path.to_string(), problem));
        if depth > MAX_DEPTH {
            return refuse(format!("schemas nest deeper than {MAX_DEPTH} levels"));
        }
        let Some(left) = self.left.checked_sub(1) else { return refuse(format!("there are more than {MAX_SCHEMAS} schemas")) };
        self.left = left;
        match schema {
            Value::Bool(_) => Ok(()),
            Value::Object(fields) => self.fields(fields, path, depth),
            _ => refuse("expected a schema: an object, true or false".into()),
        }
    }

    fn fields(&mut self, fields: &Map<String, Value>, path: &str, depth: usize) -> Checked {
        for (keyword, value) in fields {
            let at = || format!("{path}/{}", keyword.replace('~', "~0").replace('/', "~1"));
            let is_set = !matches!(value, Value::Null | Value::Bool(false));
            match keyword.as_str() {
                word if UNENFORCEABLE.contains(&word) && (is_set || word == "not") => {
                    return Err((at(), format!("the keyword \"{word}\" cannot be enforced while decoding")));
                }
                "$ref" if !value.as_str().is_some_and(|target| target.starts_with('#')) => {
                    return Err((at(), "only references inside the schema (\"#…\") are followed".into()));
                }
                "format" if !value.as_str().is_some_and(|name| FORMATS.contains(&name)) => {
                    return Err((at(), format!("expected one of {}", FORMATS.join(", "))));
                }
                word if COUNTS.contains(&word) && value.as_f64().is_none_or(|count| !(0.0..=MAX_COUNT as f64).contains(&count)) => {
                    return Err((at(), format!("expected a whole number from 0 to {MAX_COUNT}")));
                }
                "multipleOf" if !value.as_f64().is_some_and(is_small_multiple) => {
                    return Err((at(), format!("expected a number of at most 6 decimals, up to {MAX_MULTIPLE} in units of its last one")));
                }
                "properties" | "patternProperties" | "$defs" | "definitions" => self.named(value, &at(), depth)?,
                "items" if value.is_array() => self.listed(value, &at(), depth)?,
                "items" | "additionalProperties" | "additionalItems" => self.schema(value, &at(), depth + 1)?,
                "anyOf" | "oneOf" | "allOf" | "prefixItems" => self.listed(value, &at(), depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn named(&mut self, value: &Value, path: &str, depth: usize) -> Checked {
        let Value::Object(schemas) = value else { return Err((path.to_string(), "expected an object of schemas".into())) };
        schemas.iter().try_for_each(|(name, schema)| {
            self.schema(schema, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), depth + 1)
        })
    }

    fn listed(&mut self, value: &Value, path: &str, depth: usize) -> Checked {
        let Value::Array(schemas) = value else { return Err((path.to_string(), "expected a list of schemas".into())) };
        schemas.iter().enumerate().try_for_each(|(at, schema)| self.schema(schema, &format!("{path}/{at}"), depth + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(schema: Value) -> String {
        check(&schema).expect_err("must be refused").0
    }

    #[test]
    fn what_cannot_be_enforced_is_named_with_its_path() {
        assert_eq!(at(json!({"properties": {"a": {"not": {}}}})), "/properties/a/not");
        assert_eq!(at(json!({"items": {"anyOf": [{}, {"uniqueItems": true}]}})), "/items/anyOf/1/uniqueItems");
        assert_eq!(at(json!({"$defs": {"a/b": {"format": "colour"}}})), "/$defs/a~1b/format");
        assert_eq!(at(json!({"$ref": "https://example.com/s"})), "/$ref");
        assert_eq!(at(json!({"type": "string", "maxLength": 1e12})), "/maxLength");
        assert_eq!(at(json!({"multipleOf": 99_999_999})), "/multipleOf");
        assert_eq!(at(json!({"multipleOf": 1e-300})), "/multipleOf");
        assert_eq!(at(json!({"properties": []})), "/properties");
        assert_eq!(at(json!({"additionalProperties": 3})), "/additionalProperties");
    }

    #[test]
    fn properties_may_be_called_like_keywords() {
        let schema = json!({"type": "object", "properties": {"not": {"type": "string"}, "if": true, "format": {"type": "string"}},
            "uniqueItems": false, "items": [{"multipleOf": 0.01}, {"multipleOf": 5}], "title": "t", "x-order": 1});
        assert_eq!(check(&schema), Ok(()));
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let mut deep = json!({});
        for _ in 0..100 {
            deep = json!({"items": deep});
        }
        assert!(check(&deep).is_err_and(|(_, problem)| problem.contains("nest")));
        let many: Vec<Value> = (0..6_000).map(|_| json!({})).collect();
        assert!(check(&json!({"anyOf": many})).is_err_and(|(_, problem)| problem.contains("more than")));
    }
}
