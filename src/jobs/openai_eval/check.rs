//! What makes an eval, checked before anything is stored: the source's kind, its schema, and each criterion.

use crate::evals::graders::Grader;
use crate::guardrails::schema::Schemas;
use crate::types::{Code, Failure};
use serde_json::{Value, json};

/// An eval to make.
#[derive(Debug, Clone)]
pub struct NewEval {
    /// Name, of any form.
    pub name: Option<String>,
    /// `data_source_config`.
    pub data_source: Value,
    /// `testing_criteria`.
    pub criteria: Value,
    /// The caller's labels: an object or null.
    pub metadata: Value,
}

const FIELD: &str = "data_source_config";

/// The `data_source_config` as it is answered, and the criteria. Blocking: a schema is compiled.
pub(super) fn eval(new: &NewEval, schemas: &Schemas) -> Result<(Value, Value), Failure> {
    let wrong = |field: &str, problem: &str| {
        let path = format!("{FIELD}{field}");
        Failure::on(Code::INVALID_VALUE, path.clone(), format!("{path}: {problem}"))
    };
    let sample = json!({"type": "object", "description": "What the model answered: output_text, output_json, output_tools, …"});
    let (config, has_sample) = match new.data_source.get("type").and_then(Value::as_str) {
        Some("custom") => {
            let item = new.data_source.get("item_schema").filter(|schema| schema.is_object());
            let item = item.ok_or_else(|| wrong(".item_schema", "expected a JSON Schema"))?;
            schemas.of(item).map_err(|why| wrong(".item_schema", &why))?;
            let has_sample = new.data_source["include_sample_schema"] == true;
            let mut schema = json!({"type": "object", "properties": {"item": item}, "required": ["item"]});
            if has_sample {
                schema["properties"]["sample"] = sample;
                schema["required"] = json!(["item", "sample"]);
            }
            (json!({"type": "custom", "schema": schema}), has_sample)
        }
        Some(kind @ ("logs" | "stored_completions")) => {
            let schema =
                json!({"type": "object", "properties": {"item": {"type": "object"}, "sample": sample}, "required": ["item", "sample"]});
            (json!({"type": kind, "metadata": new.data_source.get("metadata"), "schema": schema}), true)
        }
        _ => return Err(wrong(".type", "expected custom, logs or stored_completions")),
    };
    Grader::read_all(&new.criteria, has_sample).map_err(|(path, problem)| Failure::on(Code::INVALID_VALUE, path, problem))?;
    Ok((config, new.criteria.clone()))
}

/// The schema that items must fit; none for sources without one.
pub(super) fn item_schema(config: &Value) -> Option<&Value> {
    (config["type"] == "custom").then(|| config.pointer("/schema/properties/item")).flatten()
}
