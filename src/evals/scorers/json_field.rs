//! `json_field`: fields of the answer equal those of the target. Option `fields`: names or JSON pointers (RFC 6901). One metric per
//! field (`json_field.intent`) and their mean per case (`json_field`).

use super::{Case, Options, Scorer, parsed, same, value};
use serde_json::Value;

struct JsonField {
    name: String,
    /// Metric suffix and pointer.
    fields: Vec<(String, String)>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let fields = options.take("fields").ok_or("fields is missing")?;
    options.finish()?;
    let Value::Array(fields) = fields else { return Err("fields must be a list of names".into()) };
    let field = |field: &Value| match field.as_str() {
        Some(pointer) if pointer.starts_with('/') => Ok((pointer[1..].replace('/', "."), pointer.to_string())),
        Some(name) if !name.is_empty() => Ok((name.to_string(), format!("/{}", name.replace('~', "~0").replace('/', "~1")))),
        _ => Err(format!("fields must be names or JSON pointers, not {field}")),
    };
    let fields = fields.iter().map(field).collect::<Result<Vec<_>, _>>()?;
    if fields.is_empty() {
        return Err("fields is empty".into());
    }
    Ok(Box::new(JsonField { name, fields }))
}

impl Scorer for JsonField {
    fn metrics(&self) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        names.extend(self.fields.iter().map(|(field, _)| format!("{}.{field}", self.name)));
        names
    }

    fn score(&self, case: Case<'_>) -> Vec<f64> {
        let found = parsed(case.output);
        let equal = |pointer: &str| match (found.as_ref().and_then(|found| found.pointer(pointer)), case.target.pointer(pointer)) {
            (Some(found), Some(wanted)) => same(found, wanted),
            // Leaving a field out is no answer, also where the target has none.
            _ => false,
        };
        let values: Vec<f64> = self.fields.iter().map(|(_, pointer)| value(equal(pointer))).collect();
        let mut scores = vec![values.iter().sum::<f64>() / values.len() as f64];
        scores.extend(values);
        scores
    }
}
