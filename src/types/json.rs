//! JSON from outside, read into a [`Value`]: requests, upstream replies, events. As `serde_json` reads it, but that the number of
//! values is bounded (`[0,0,…]` grows thirtyfold in memory), that a mistake is told with the field it stands in, and that no object
//! key has a meaning of its own: `serde_json`'s `Value` parses the text under `$serde_json::private::RawValue` anew where any crate
//! of the build switches `raw_value` on, and with it the depth begins anew, until the stack is spent.

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Deserializer, Map, Number, Value};
use std::cell::{Cell, RefCell};
use std::fmt;

/// Values that a request or an event may hold, those inside lists and objects counted.
pub const MAX_VALUES: usize = 1_000_000;
/// A path longer than this is told by its first field.
const MAX_STEPS: usize = 8;
const MAX_NAME_CHARS: usize = 64;

/// What is wrong with a text that should be JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at line {line}, column {column}")]
pub struct Fault {
    /// What was expected.
    pub what: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The field that the mistake stands in (`messages[0].content`), none at the top.
    pub path: Option<String>,
    /// Nothing is wrong but the number of values.
    pub too_many: bool,
}

/// Reads a whole text of at most `max_values` values, nested at most 127 deep.
///
/// # Errors
/// [`Fault`] where it is no JSON, nested too deep, holds a number that is not finite, or too many values.
pub fn read(bytes: &[u8], max_values: usize) -> Result<Value, Fault> {
    read_noting_repeats(bytes, max_values).map(|(value, _)| value)
}

/// As [`read`]; also whether an object has a key more than once. The last value stands, as almost every reader has it, but what is
/// read is then not all that was written.
///
/// # Errors
/// As [`read`].
pub fn read_noting_repeats(bytes: &[u8], max_values: usize) -> Result<(Value, bool), Fault> {
    let reading = Reading { left: Cell::new(max_values), too_many: Cell::new(false), repeats: Cell::new(false), path: RefCell::default() };
    let mut text = Deserializer::from_slice(bytes);
    let read = Node(&reading).deserialize(&mut text).and_then(|value| text.end().map(|()| value));
    read.map(|value| (value, reading.repeats.get())).map_err(|error| {
        let told = error.to_string();
        // The place has fields of its own.
        let what = told.rsplit_once(" at line ").map_or(told.as_str(), |(what, _)| what).to_string();
        let path = named(&reading.path.borrow());
        Fault { what, line: error.line(), column: error.column(), path, too_many: reading.too_many.get() }
    })
}

enum Step {
    Field(String),
    Item(usize),
}

struct Reading {
    left: Cell<usize>,
    too_many: Cell<bool>,
    repeats: Cell<bool>,
    /// Where the reader is; after a mistake, where that was.
    path: RefCell<Vec<Step>>,
}

impl Reading {
    fn enter(&self, step: Step) {
        self.path.borrow_mut().push(step);
    }

    fn leave(&self) -> Option<Step> {
        self.path.borrow_mut().pop()
    }
}

fn named(path: &[Step]) -> Option<String> {
    // A list is no request: its places are nobody's fields.
    let (Step::Field(_), _) = path.split_first()? else { return None };
    let steps = if path.len() > MAX_STEPS { path.get(..1)? } else { path };
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Field(name) => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&name);
            }
            Step::Item(index) => text.push_str(&format!("[{index}]")),
        }
    }
    Some(text)
}

/// One value, read in place.
struct Node<'r>(&'r Reading);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.0.left.get().checked_sub(1) {
            Some(left) => self.0.left.set(left),
            None => {
                self.0.too_many.set(true);
                return Err(D::Error::custom("more values than are taken"));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        self.0.enter(Step::Item(0));
        while let Some(item) = items.next_element_seed(Node(self.0))? {
            list.push(item);
            self.0.leave();
            self.0.enter(Step::Item(list.len()));
        }
        self.0.leave();
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.0.enter(Step::Field(name));
            let value = fields.next_value_seed(Node(self.0))?;
            if let Some(Step::Field(name)) = self.0.leave()
                && map.insert(name, value).is_some()
            {
                self.0.repeats.set(true);
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The key under which `serde_json` hides a text that it parses anew.
    const RAW: &str = "$serde_json::private::RawValue";

    fn nested(times: usize) -> String {
        (0..times).fold("0".to_string(), |inner, _| format!("{}{}{}", "[".repeat(124), json!({RAW: inner}), "]".repeat(124)))
    }

    #[test]
    fn a_key_of_serde_json_is_an_ordinary_key() {
        for key in [RAW, "$serde_json::private::Number"] {
            let text = json!({key: "[1]"}).to_string();
            let value = read(text.as_bytes(), 9).expect("JSON");
            assert_eq!((&value[key], value.to_string()), (&json!("[1]"), text));
        }
        assert!(read(nested(3).as_bytes(), 999).is_ok());
        // What stays of an object is read again where types keep their unknown fields: the build must not have the feature at all.
        let request = json!({"model": "m", "messages": [], "x": {RAW: "[1]"}});
        let request: crate::types::chat::ChatRequest = serde_json::from_value(request).expect("a request");
        assert_eq!(request.extra["x"][RAW], "[1]", "a crate of this build switches serde_json's raw_value on");
    }

    #[test]
    fn a_mistake_names_its_field_and_place() {
        let told = |text: &str| read(text.as_bytes(), 99).map_err(|fault| (fault.path.unwrap_or_default(), fault.line, fault.column));
        assert_eq!(told("{\"temperature\": NaN}"), Err(("temperature".into(), 1, 17)));
        assert_eq!(told("{\"a\": 1,\n\"top_p\": 1e400}").map_err(|(path, line, _)| (path, line)), Err(("top_p".into(), 2)));
        assert_eq!(told("{\"top_p\": -Infinity}").map_err(|(path, ..)| path), Err("top_p".into()));
        assert_eq!(told("{\"a\": [{\"b\": 1}, {\"b\": tru}]}").map_err(|(path, ..)| path), Err("a[1].b".into()));
        assert_eq!(told(&format!("{{\"messages\": {}", "[".repeat(300))).map_err(|(path, ..)| path), Err("messages".into()));
        assert_eq!(told("[[}").map_err(|(path, ..)| path), Err(String::new()));
        assert_eq!(told("{\"a\": 1} x").map_err(|(path, ..)| path), Err(String::new()));
    }

    #[test]
    fn values_are_counted() {
        assert!(read(b"[0,0,0]", 4).is_ok());
        let fault = read(b"{\"input\": [0,0,0,0]}", 4).expect_err("too many");
        assert!(fault.too_many && fault.path.is_some_and(|path| path.starts_with("input")));
    }

    #[test]
    fn a_key_that_stands_twice_is_noted() {
        let noted = |text: &str| read_noting_repeats(text.as_bytes(), 99);
        assert_eq!(noted(r#"[{"a": 1, "b": {"a": 2}}, {"a": 3}]"#).map(|(_, repeats)| repeats), Ok(false));
        assert_eq!(noted(r#"[{"b": {"a": 1, "\u0061": 2}}]"#), Ok((json!([{"b": {"a": 2}}]), true)));
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((".{0,4}", inner), 0..5).prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_alike(value in values()) {
            let text = value.to_string();
            prop_assert_eq!(read(text.as_bytes(), MAX_VALUES), Ok(serde_json::from_str::<Value>(&text).expect("JSON")));
        }
    }
}
