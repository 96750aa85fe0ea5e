//! Whether a reply fits the format that was asked for: JSON, and valid against its schema. Patterns in schemas run on the linear
//! engine, schemas are compiled once, and what they refer to is never fetched.

use super::visits::{extent, strays};
use crate::types::{Digest, json};
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Schemas that are kept compiled.
const MAX_KEPT: usize = 256;
/// Bytes that a pattern of a schema may take, compiled.
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Visits that looking for the mistakes of one reply may take.
const MAX_VISITS: u64 = 200_000;
/// Mistakes that are told.
const MAX_FAULTS: usize = 5;

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON pointer into the reply; empty for the whole.
    pub path: String,
    /// What was expected, without what was found.
    pub message: String,
}

/// Compiled schemas by their digest.
#[derive(Default)]
pub struct Schemas {
    kept: Mutex<HashMap<Digest, Arc<Schema>>>,
}

/// What a `response_format` asks for.
#[derive(Clone)]
pub enum Format {
    /// An object of JSON.
    Object,
    /// JSON that fits a schema.
    Schema(Arc<Schema>),
}

/// A schema, as it was sent and compiled.
pub struct Schema {
    text: Value,
    validator: Validator,
}

impl Schemas {
    /// The format that a `response_format` asks for; none where any text will do. Blocking: a schema is compiled.
    ///
    /// # Errors
    /// Why its schema cannot be used.
    pub fn format(&self, response_format: &Value) -> Result<Option<Format>, String> {
        match response_format.get("type").and_then(Value::as_str) {
            Some("json_object") => Ok(Some(Format::Object)),
            Some("json_schema") => match response_format.pointer("/json_schema/schema") {
                None | Some(Value::Null) => Ok(Some(Format::Object)),
                Some(schema) => self.of(schema).map(Some),
            },
            _ => Ok(None),
        }
    }

    /// The format that a schema asks for. Blocking.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn of(&self, schema: &Value) -> Result<Format, String> {
        self.compiled(schema).map(Format::Schema)
    }

    fn compiled(&self, schema: &Value) -> Result<Arc<Schema>, String> {
        let digest = Digest::of_json(schema);
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = lock().get(&digest) {
            return Ok(kept.clone());
        }
        if let Some(why) = strays(schema) {
            return Err(why);
        }
        let patterns = PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let built = jsonschema::options().with_pattern_options(patterns).build(schema);
        let validator = built.map_err(|error| error.masked().to_string())?;
        let compiled = Arc::new(Schema { text: schema.clone(), validator });
        let mut kept = lock();
        if kept.len() >= MAX_KEPT {
            // Schemas of an application are few; whoever sends a new one with each call has them compiled anew.
            kept.clear();
        }
        kept.insert(digest, compiled.clone());
        Ok(compiled)
    }
}

/// What of a text does not fit a format, most important first; empty when it fits. Blocking: a schema of the caller's may take its time.
pub fn faults(text: &str, format: &Format) -> Vec<Fault> {
    let whole = |message: String| vec![Fault { path: String::new(), message }];
    let value = match json::read(text.as_bytes(), json::MAX_VALUES) {
        Ok(value) => value,
        Err(fault) => return whole(format!("it is not JSON (line {}, column {})", fault.line, fault.column)),
    };
    match format {
        Format::Object if value.is_object() => Vec::new(),
        Format::Object => whole("expected an object".into()),
        Format::Schema(schema) => schema.faults(&value),
    }
}

impl Schema {
    fn faults(&self, value: &Value) -> Vec<Fault> {
        let whole = |why: &str| vec![Fault { path: String::new(), message: why.to_string() }];
        let extent = match extent(&self.text, value) {
            Ok(extent) => extent,
            Err(why) => return whole(why),
        };
        // Whether it fits is found without going a way twice; what is wrong is not.
        match self.validator.is_valid(value) {
            true => Vec::new(),
            false if extent.visits > MAX_VISITS => whole("it does not fit the schema"),
            false => {
                let errors = self.validator.iter_errors(value).take(MAX_FAULTS);
                errors.map(|error| Fault { path: error.instance_path().to_string(), message: error.masked().to_string() }).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn format(schema: Value) -> Format {
        let asked = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        Schemas::default().format(&asked).expect("a schema").expect("a format")
    }

    #[test]
    fn faults_name_the_path_and_not_the_value() {
        let format = format(
            json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": false}),
        );
        assert_eq!(faults("{\"age\": 3}", &format), []);
        let found = faults("{\"age\": \"secret\"}", &format);
        assert!(found.len() == 1 && found[0].path == "/age" && !found[0].message.contains("secret"), "{found:?}");
        assert!(faults("{}", &format)[0].message.contains("age"));
        assert!(faults("age: 3", &format)[0].message.contains("not JSON"));
        assert!(faults("[1]", &Format::Object)[0].message.contains("object") && faults("{}", &Format::Object).is_empty());
        assert!(Schemas::default().format(&json!({"type": "text"})).is_ok_and(|format| format.is_none()));
    }

    #[test]
    fn schemas_are_kept_within_bounds_and_bad_ones_are_told() {
        let schemas = Schemas::default();
        for n in 0..MAX_KEPT + 10 {
            schemas.compiled(&json!({"const": n})).expect("compiles");
        }
        assert!(schemas.kept.lock().expect("nobody panicked").len() <= MAX_KEPT);
        assert!(schemas.compiled(&json!({"type": "no such type"})).is_err());
        assert!(schemas.compiled(&json!({"$ref": "http://example.com/schema.json"})).is_err(), "nothing is fetched");
        assert!(schemas.compiled(&json!({"pattern": "(a+)+$(?=x)"})).is_err(), "only linear patterns");
    }

    #[test]
    fn references_made_to_be_slow_are_not() {
        let twice = |name: String| json!({"allOf": [{"$ref": name}, {"$ref": name}]});
        let mut chain: serde_json::Map<String, Value> = (0..40).map(|n| (format!("a{n}"), twice(format!("#/$defs/a{}", n + 1)))).collect();
        chain.insert("a40".into(), json!({"type": "string"}));
        // Each of its definitions is every other one, too.
        let all: Vec<_> = (0..14).map(|n| json!({"$ref": format!("#/$defs/b{n}")})).collect();
        let web: serde_json::Map<String, Value> = (0..14).map(|n| (format!("b{n}"), json!({"anyOf": all, "type": "string"}))).collect();
        // Each step into the reply doubles.
        let steps = json!({"properties": {"x": {"$ref": "#"}}, "allOf": [{"properties": {"x": {"$ref": "#"}}}], "type": "object"});
        let long: serde_json::Map<String, Value> = (0..20_000)
            .map(|n| (format!("c{n}"), json!({"$ref": format!("#/$defs/c{}", (n + 1).min(19_999)), "type": "string"})))
            .collect();
        let deep = format!("{}1{}", "{\"x\":".repeat(60), "}".repeat(60));
        for (schema, reply) in [
            (json!({"$defs": chain, "$ref": "#/$defs/a0"}), "1"),
            (json!({"$defs": web, "$ref": "#/$defs/b0"}), "1"),
            (steps, deep.as_str()),
            (json!({"$defs": long, "$ref": "#/$defs/c0"}), "1"),
        ] {
            let format = format(schema);
            let found = faults(reply, &format);
            assert_eq!(found.len(), 1, "{found:?}");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let format = format(json!({"type": "string", "pattern": "^(a+)+$"}));
        let began = std::time::Instant::now();
        assert_eq!(faults(&format!("\"{}b\"", "a".repeat(50_000)), &format).len(), 1);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
