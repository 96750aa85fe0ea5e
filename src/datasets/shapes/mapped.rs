//! Columns whose meaning the user says: which are variables, which the target, which the name. What is not named is metadata.

use super::{Draft, Shape};
use crate::datasets::Sample;
use crate::types::error::did_you_mean;
use crate::types::ids::is_safe_name;
use serde_json::{Map, Value};

/// Which column means what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Variable and its column.
    pub input: Vec<(String, String)>,
    /// Field of the target and its column; one without a field is the whole target.
    pub target: Vec<(Option<String>, String)>,
    /// Column of the names.
    pub id: Option<String>,
}

impl Mapping {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Mapping::default()
    }
}

impl Shape for Mapping {
    fn name(&self) -> &'static str {
        "columns"
    }

    fn fits(&self, _: &Map<String, Value>) -> bool {
        !self.input.is_empty()
    }

    fn read(&self, mut fields: Map<String, Value>) -> Result<Draft, String> {
        let mut input = Map::new();
        for (variable, column) in &self.input {
            input.insert(variable.clone(), value(&fields, column)?);
        }
        let mut target = Map::new();
        let mut whole = Value::Null;
        for (field, column) in &self.target {
            let found = value(&fields, column)?;
            match field {
                Some(field) => drop(target.insert(field.clone(), found)),
                None if self.target.len() > 1 => drop(target.insert(column.clone(), found)),
                None => whole = found,
            }
        }
        let id = match &self.id {
            Some(column) => Some(name(&value(&fields, column)?, column)?),
            None => None,
        };
        let used = self.input.iter().map(|(_, column)| column).chain(self.target.iter().map(|(_, column)| column)).chain(&self.id);
        used.for_each(|column| drop(fields.shift_remove(column)));
        fields.retain(|_, value| !value.is_null());
        let target = if target.is_empty() { whole } else { target.into() };
        Ok(Draft { id, input, target, metadata: fields })
    }

    fn write(&self, sample: &Sample) -> Result<Value, String> {
        Err(format!("sample {} cannot be written by columns", sample.id))
    }
}

fn value(fields: &Map<String, Value>, column: &str) -> Result<Value, String> {
    let missing = || {
        let has: Vec<&str> = fields.keys().map(String::as_str).collect();
        format!("there is no column \"{column}\"{} (columns: {})", did_you_mean(column, has.iter().copied()), has.join(", "))
    };
    fields.get(column).cloned().ok_or_else(missing)
}

fn name(value: &Value, column: &str) -> Result<String, String> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    if is_safe_name(&text) {
        Ok(text)
    } else {
        Err(format!("column \"{column}\" must hold 1 to 128 letters, digits and . _ : @ / -, not \"{text}\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_mean_what_is_said() {
        let mut mapping = Mapping { input: vec![("message".into(), "text".into())], target: vec![(None, "category".into())], id: None };
        let row = || json!({"text": "x", "category": "c", "lang": "en"}).as_object().cloned().expect("an object");
        let draft = mapping.read(row()).expect("reads");
        assert_eq!((json!(draft.input), draft.target, json!(draft.metadata)), (json!({"message": "x"}), json!("c"), json!({"lang": "en"})));
        mapping.target = vec![(Some("intent".into()), "category".into())];
        mapping.id = Some("lang".into());
        let draft = mapping.read(row()).expect("reads");
        assert_eq!((draft.id.as_deref(), draft.target), (Some("en"), json!({"intent": "c"})));
        mapping.input = vec![("m".into(), "txt".into())];
        let told = mapping.read(row()).expect_err("no such column");
        assert!(told.contains("no column \"txt\"; did you mean \"text\"?"), "{told}");
    }
}
