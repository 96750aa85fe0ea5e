//! `json_schema`: the answer is valid JSON and, with the option `schema` (JSON Schema or Picoschema), valid against it.

use super::case::parsed;
use super::{Case, Options, Pure, Scale, Scored, Scorer};
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

impl Pure for JsonSchema {
    fn metrics(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let Some(found) = parsed(case.output()) else { return Ok(Scored::from(false).because("not JSON")) };
        let fault = self.schema.as_ref().and_then(|schema| schema.validate(&found).err());
        Ok(match fault {
            None => true.into(),
            // The place is enough: the message would repeat the answer.
            Some(fault) => Scored::from(false).because(format!("does not fit the schema at \"{}\"", fault.instance_path())),
        })
    }
}
