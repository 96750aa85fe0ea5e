//! `json_field`: fields of the answer equal those of the target. Option `fields`: names or JSON pointers (RFC 6901), or a map from those
//! to the values that they must have. One metric per field (`json_field.intent`) and their mean per case (`json_field`).

use super::case::{parsed, same};
use super::{Case, Options, Pure, Scale, Scored, Scorer};
use serde_json::Value;

struct JsonField {
    name: String,
    fields: Vec<Field>,
}

struct Field {
    /// Metric suffix.
    suffix: String,
    pointer: String,
    /// What it must be; the target's field without it.
    wanted: Option<Value>,
}

pub(super) fn build(name: String, mut options: Options) -> Result<Box<dyn Scorer>, String> {
    let fields = options.take("fields").ok_or("fields is missing")?;
    options.finish()?;
    let fields = match fields {
        Value::Array(fields) => fields.iter().map(|field| Field::new(field, None)).collect::<Result<Vec<_>, _>>()?,
        Value::Object(fields) => {
            let field = |(name, wanted): (String, Value)| Field::new(&Value::from(name), Some(wanted));
            fields.into_iter().map(field).collect::<Result<Vec<_>, _>>()?
        }
        _ => return Err("fields must be a list of names, or a map from names to values".into()),
    };
    if fields.is_empty() {
        return Err("fields is empty".into());
    }
    Ok(Box::new(JsonField { name, fields }))
}

impl Field {
    fn new(field: &Value, wanted: Option<Value>) -> Result<Self, String> {
        let (suffix, pointer) = match field.as_str() {
            Some(pointer) if pointer.starts_with('/') => (pointer[1..].replace('/', "."), pointer.to_string()),
            Some(name) if !name.is_empty() => (name.to_string(), format!("/{}", name.replace('~', "~0").replace('/', "~1"))),
            _ => return Err(format!("fields must be names or JSON pointers, not {field}")),
        };
        Ok(Field { suffix, pointer, wanted })
    }
}

impl Pure for JsonField {
    fn metrics(&self) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        names.extend(self.fields.iter().map(|field| format!("{}.{}", self.name, field.suffix)));
        names
    }

    fn scale(&self, _metric: &str) -> Scale {
        Scale::Pass
    }

    fn look(&self, case: &Case<'_>) -> Result<Scored, String> {
        let found = parsed(case.output());
        let equal = |field: &Field| {
            let wanted = field.wanted.as_ref().or_else(|| case.target.pointer(&field.pointer));
            match (found.as_ref().and_then(|found| found.pointer(&field.pointer)), wanted) {
                (Some(found), Some(wanted)) => same(found, wanted),
                // Leaving a field out is no answer, also where the target has none.
                _ => false,
            }
        };
        let values: Vec<f64> = self.fields.iter().map(|field| f64::from(u8::from(equal(field)))).collect();
        let mut scores = vec![values.iter().sum::<f64>() / values.len() as f64];
        scores.extend(values);
        Ok(scores.into())
    }
}
