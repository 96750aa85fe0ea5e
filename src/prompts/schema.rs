//! Schemas of inputs and outputs: Picoschema (dotprompt's short notation) turned into JSON Schema, and the check of variables.
//!
//! Source: dotprompt specification, "Picoschema" (google/dotprompt, `spec/picoschema.yaml`).

use super::Problem;
use super::parse::{NoSurroundings, Surroundings};
use crate::types::error::did_you_mean;
use serde_json::{Map, Value, json};

const SCALARS: &[&str] = &["string", "boolean", "null", "number", "integer", "any"];
const JSON_SCHEMA_TYPES: &[&str] = &["string", "boolean", "null", "number", "integer", "object", "array"];

/// JSON Schema of a front-matter schema: Picoschema is expanded, JSON Schema is passed through.
///
/// # Errors
/// [`Problem::Schema`] naming the field.
pub fn to_json_schema(schema: &Value) -> Result<Value, Problem> {
    expand(schema, &NoSurroundings)
}

/// As [`to_json_schema`], with named schemas.
///
/// # Errors
/// [`Problem::Schema`] naming the field.
pub fn expand(schema: &Value, surroundings: &dyn Surroundings) -> Result<Value, Problem> {
    if let Value::Object(map) = schema {
        if map.get("type").and_then(Value::as_str).is_some_and(|kind| JSON_SCHEMA_TYPES.contains(&kind)) {
            return Ok(schema.clone());
        }
        if map.get("properties").is_some_and(Value::is_object) {
            let mut whole = map.clone();
            whole.insert("type".into(), "object".into());
            return Ok(Value::Object(whole));
        }
    }
    Pico { surroundings }.value(schema, "schema")
}

/// The expansion of Picoschema.
struct Pico<'a> {
    surroundings: &'a dyn Surroundings,
}

impl Pico<'_> {
    fn value(&self, value: &Value, path: &str) -> Result<Value, Problem> {
        match value {
            Value::String(text) => self.scalar(text, path),
            Value::Object(fields) => self.object(fields, path),
            other => {
                Err(Problem::Schema(format!("{path}: expected a type such as \"string, the customer's name\" or fields, not {other}")))
            }
        }
    }

    fn scalar(&self, text: &str, path: &str) -> Result<Value, Problem> {
        let (kind, description) = described(text);
        let mut schema = match kind {
            "any" => Map::new(),
            kind if SCALARS.contains(&kind) => Map::from_iter([("type".to_string(), kind.into())]),
            kind => match self.surroundings.schema(kind) {
                Some(Value::Object(named)) => named,
                _ => {
                    let nearest = did_you_mean(kind, SCALARS.iter().copied());
                    return Err(Problem::Schema(format!("{path}: \"{kind}\" is not a type{nearest} (types: {})", SCALARS.join(", "))));
                }
            },
        };
        if let Some(description) = description {
            schema.insert("description".into(), description.into());
        }
        Ok(Value::Object(schema))
    }

    fn object(&self, fields: &Map<String, Value>, path: &str) -> Result<Value, Problem> {
        let (mut properties, mut required, mut additional) = (Map::new(), Vec::new(), json!(false));
        for (key, value) in fields {
            let place = format!("{path}.{key}");
            if key == "(*)" {
                additional = self.value(value, &place)?;
                continue;
            }
            let (head, bracket) = match key.split_once('(') {
                Some((head, rest)) => (head, Some(rest.strip_suffix(')').unwrap_or(rest))),
                None => (key.as_str(), None),
            };
            let (name, optional) = head.strip_suffix('?').map_or((head, false), |name| (name, true));
            if !optional {
                required.push(Value::from(name));
            }
            let property = match bracket {
                None => nullable(self.value(value, &place)?, optional),
                Some(bracket) => self.bracketed(bracket, value, &place, optional)?,
            };
            properties.insert(name.to_string(), property);
        }
        let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": additional});
        if !required.is_empty() {
            schema["required"] = Value::Array(required);
        }
        Ok(schema)
    }

    fn bracketed(&self, bracket: &str, value: &Value, place: &str, optional: bool) -> Result<Value, Problem> {
        let (kind, description) = described(bracket);
        let mut property = match kind {
            "array" => nullable(json!({"type": "array", "items": self.value(value, place)?}), optional),
            "object" => nullable(self.value(value, place)?, optional),
            "enum" => {
                let Value::Array(values) = value else {
                    return Err(Problem::Schema(format!("{place}: an enum is a list of values, such as [red, blue]")));
                };
                let mut values = values.clone();
                if optional && !values.contains(&Value::Null) {
                    values.push(Value::Null);
                }
                json!({"enum": values})
            }
            other => {
                let nearest = did_you_mean(other, ["array", "object", "enum"]);
                return Err(Problem::Schema(format!("{place}: in brackets stands array, object or enum, not \"{other}\"{nearest}")));
            }
        };
        if let Some(description) = description {
            property["description"] = description.into();
        }
        Ok(property)
    }
}

fn nullable(mut schema: Value, optional: bool) -> Value {
    if optional && let Some(kind) = schema.get("type").filter(|kind| kind.is_string()).cloned() {
        schema["type"] = json!([kind, "null"]);
    }
    schema
}

/// `type, a description` in its two parts; only the first comma separates.
fn described(text: &str) -> (&str, Option<&str>) {
    match text.split_once(',') {
        Some((kind, description)) => (kind.trim(), Some(description.trim())),
        None => (text.trim(), None),
    }
}

/// Names of the required properties of an object schema.
pub fn required(schema: &Value) -> Vec<String> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// Names of all properties of an object schema.
pub fn properties(schema: &Value) -> Vec<String> {
    schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// Names of the properties that are true or false, and nothing else.
pub fn flags(schema: &Value) -> Vec<String> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.filter(|(_, property)| kinds(property) == ["boolean"]).map(|(name, _)| name.clone()).collect()
}

/// Types that a schema names, without `null`; none for one that names no type.
pub fn kinds(schema: &Value) -> Vec<&str> {
    let all: Vec<_> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    all.into_iter().filter(|kind| *kind != "null").collect()
}

/// Checks the given variables against the types and enums of the schema's own properties; nested fields are left to the template.
///
/// # Errors
/// [`Problem::Type`] for the first one that does not fit.
pub fn check(schema: &Value, variables: &Map<String, Value>) -> Result<(), Problem> {
    for (name, value) in variables {
        let property = &schema["properties"][name];
        let kinds: Vec<&str> = match &property["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !kinds.is_empty() && !kinds.iter().any(|kind| fits(kind, value)) {
            return Err(Problem::Type { name: name.clone(), expected: kinds.join(" or "), found: kind_of(value).into() });
        }
        if let Some(values) = property["enum"].as_array()
            && !values.contains(value)
        {
            let expected = format!("one of {}", values.iter().map(Value::to_string).collect::<Vec<_>>().join(", "));
            return Err(Problem::Type { name: name.clone(), expected, found: value.to_string().chars().take(80).collect() });
        }
    }
    Ok(())
}

fn fits(kind: &str, value: &Value) -> bool {
    kind == kind_of(value) || (kind == "integer" && value.as_f64().is_some_and(|x| x.fract() == 0.0))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picoschema_expands_as_the_specification_says() {
        // dotprompt spec/picoschema.yaml: required_field, array_of_scalars, nested_object_in_array_and_out.
        let schema = to_json_schema(&json!({"req": "string, required field", "nonreq?": "boolean, optional field",
            "tags(array, list of tags)": "string, the tag", "obj?(object, a nested object)": {"nest1?": "string"}}));
        assert_eq!(
            schema.expect("expands"),
            json!({"type": "object", "additionalProperties": false, "required": ["req", "tags"], "properties": {
                "req": {"type": "string", "description": "required field"},
                "nonreq": {"type": ["boolean", "null"], "description": "optional field"},
                "tags": {"type": "array", "description": "list of tags", "items": {"type": "string", "description": "the tag"}},
                "obj": {"type": ["object", "null"], "description": "a nested object", "additionalProperties": false,
                    "properties": {"nest1": {"type": ["string", "null"]}}}}})
        );
        let Err(Problem::Schema(message)) = to_json_schema(&json!({"a": "sting"})) else { panic!("a misspelt type is refused") };
        assert!(message.contains("schema.a") && message.contains("\"string\""), "{message}");
    }

    #[test]
    fn variables_are_checked_by_type_and_enum() {
        let schema = to_json_schema(&json!({"n": "integer", "colour(enum)": ["red", "blue"], "x?": "any"})).expect("expands");
        let given = |value: Value| check(&schema, value.as_object().expect("an object"));
        assert!(given(json!({"n": 3, "colour": "red", "x": [1], "unknown": 1})).is_ok());
        assert!(matches!(given(json!({"n": "3"})), Err(Problem::Type { name, .. }) if name == "n"));
        assert!(matches!(given(json!({"colour": "green"})), Err(Problem::Type { name, .. }) if name == "colour"));
    }
}
