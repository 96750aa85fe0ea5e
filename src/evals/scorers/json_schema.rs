//! `json_schema`: the answer is valid JSON and, with the option `schema` (JSON Schema or Picoschema), valid against it.

use super::{Case, Options, Scorer, parsed, value};
use crate::prompts::schema::to_json_schema;

struct JsonSchema {
    name: String,
    schema: Option<jsonschema::Validator>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let schema = options.take("schema");
    options.finish()?;
    let schema = match schema {
        None => None,
        Some(schema) => {
            let schema = to_json_schema(&schema).map_err(|problem| problem.to_string())?;
            Some(jsonschema::validator_for(&schema).map_err(|error| format!("schema: {error}"))?)
        }
    };
    Ok(Box::new(JsonSchema { name, schema }))
}

impl Scorer for JsonSchema {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn score(&self, case: Case<'_>) -> Vec<f64> {
        let valid = parsed(case.output).is_some_and(|found| self.schema.as_ref().is_none_or(|schema| schema.is_valid(&found)));
        vec![value(valid)]
    }
}
