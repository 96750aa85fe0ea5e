//! Values as JavaScript sees them: looked up, printed, compared. Nothing of a variable is copied on the way.

use super::space::is_space;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// A value of a render.
#[derive(Debug, Clone)]
pub enum Val<'a> {
    /// Not there.
    Undefined,
    /// Part of a variable or of the template.
    Json(&'a Value),
    /// An object by its fields.
    Fields(&'a Map<String, Value>),
    /// A key of an object.
    Key(&'a str),
    /// A text that a helper made.
    Made(Arc<str>),
    /// A number that a helper or the template made.
    Number(Num),
    /// An answer of a helper.
    Bool(bool),
    /// An object with fields laid over another value: what a partial with parameters sees.
    Merged(Arc<Merged<'a>>),
}

/// See [`Val::Merged`].
#[derive(Debug)]
pub struct Merged<'a> {
    /// What lies below.
    pub base: Val<'a>,
    /// What lies above.
    pub over: Over<'a>,
    /// Fields that a look into it may pass.
    cost: usize,
    /// Fields at most, those that are hidden counted twice.
    size: usize,
    /// The sizes of all layers together.
    work: usize,
}

/// Fields that hide those below.
#[derive(Debug)]
pub enum Over<'a> {
    /// All of an object.
    Fields(&'a Map<String, Value>),
    /// A few.
    Pairs(Vec<(String, Val<'a>)>),
}

/// A value by its JavaScript type.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'v, 'a> {
    /// `undefined`.
    Undefined,
    /// `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Num),
    /// A text.
    Text(&'v str),
    /// An array.
    List(&'a [Value]),
    /// An object.
    Fields(&'a Map<String, Value>),
    /// An object of two layers.
    Merged(&'v Arc<Merged<'a>>),
}

/// A number; whole ones stay exact.
#[derive(Debug, Clone, Copy)]
pub enum Num {
    /// Whole.
    Whole(i128),
    /// Any other.
    Float(f64),
}

impl<'a> Val<'a> {
    /// A position or a length.
    pub fn count(count: usize) -> Self {
        Val::Number(Num::Whole(count as i128))
    }

    /// A value that stands in a template.
    pub fn literal(value: &Value) -> Self {
        match value {
            Value::Bool(value) => Val::Bool(*value),
            Value::Number(number) => Val::Number(Num::of(number)),
            Value::String(text) => Val::Made(text.as_str().into()),
            _ => Val::Json(&Value::Null),
        }
    }

    /// The value by type.
    pub fn kind(&self) -> Kind<'_, 'a> {
        match self {
            Val::Undefined => Kind::Undefined,
            Val::Json(value) => match value {
                Value::Null => Kind::Null,
                Value::Bool(value) => Kind::Bool(*value),
                Value::Number(number) => Kind::Number(Num::of(number)),
                Value::String(text) => Kind::Text(text),
                Value::Array(items) => Kind::List(items),
                Value::Object(fields) => Kind::Fields(fields),
            },
            Val::Fields(fields) => Kind::Fields(fields),
            Val::Key(text) => Kind::Text(text),
            Val::Made(text) => Kind::Text(text),
            Val::Number(number) => Kind::Number(*number),
            Val::Bool(value) => Kind::Bool(*value),
            Val::Merged(merged) => Kind::Merged(merged),
        }
    }

    /// A property of the value: a field, a position, a length.
    pub fn get(&self, key: &str) -> Val<'a> {
        match self.kind() {
            Kind::Null => self.clone(),
            Kind::List(items) if key == "length" => Val::count(items.len()),
            Kind::List(items) => position(key).and_then(|i| items.get(i)).map_or(Val::Undefined, Val::Json),
            Kind::Fields(fields) => fields.get(key).map_or(Val::Undefined, Val::Json),
            Kind::Merged(merged) => merged.get(key),
            Kind::Text(text) if key == "length" => Val::count(length(text)),
            Kind::Text(text) => match position(key).and_then(|i| text.encode_utf16().nth(i)) {
                Some(unit) => Val::Made(String::from_utf16_lossy(&[unit]).into()),
                None => Val::Undefined,
            },
            Kind::Undefined | Kind::Bool(_) | Kind::Number(_) => Val::Undefined,
        }
    }

    /// What `if` makes of it: an empty list counts as no, an empty object as yes.
    pub fn is_truthy(&self) -> bool {
        match self.kind() {
            Kind::Undefined | Kind::Null => false,
            Kind::Bool(value) => value,
            Kind::Number(number) => number.float() != 0.0 && !number.float().is_nan(),
            Kind::Text(text) => !text.is_empty(),
            Kind::List(items) => !items.is_empty(),
            Kind::Fields(_) | Kind::Merged(_) => true,
        }
    }

    /// Whether it is there: neither `undefined` nor `null`.
    pub fn is_some(&self) -> bool {
        !matches!(self.kind(), Kind::Undefined | Kind::Null)
    }

    /// `===`: of lists and objects only one and the same is equal.
    pub fn is_same(&self, other: &Val<'_>) -> bool {
        match (self.kind(), other.kind()) {
            (Kind::Undefined, Kind::Undefined) | (Kind::Null, Kind::Null) => true,
            (Kind::Bool(a), Kind::Bool(b)) => a == b,
            (Kind::Number(a), Kind::Number(b)) => a.compare(b) == Some(std::cmp::Ordering::Equal),
            (Kind::Text(a), Kind::Text(b)) => std::ptr::eq(a, b) || a == b,
            (Kind::List(a), Kind::List(b)) => std::ptr::eq(a.as_ptr(), b.as_ptr()) && a.len() == b.len(),
            (Kind::Fields(a), Kind::Fields(b)) => std::ptr::eq(a, b),
            (Kind::Merged(a), Kind::Merged(b)) => std::ptr::eq(Arc::as_ptr(a).cast::<u8>(), Arc::as_ptr(b).cast::<u8>()),
            _ => false,
        }
    }

    /// Bytes that comparing or measuring it may read.
    pub fn weight(&self) -> usize {
        if let Kind::Text(text) = self.kind() { text.len() } else { 0 }
    }

    /// Fields that a look into it may pass, one by one.
    pub fn cost(&self) -> usize {
        if let Val::Merged(merged) = self { merged.cost } else { 0 }
    }

    /// A text as it is, a number or truth value as printed; nothing for anything else.
    pub fn scalar(&self) -> Option<Cow<'_, str>> {
        match self.kind() {
            Kind::Text(text) => Some(text.into()),
            Kind::Number(number) => Some(number.to_string().into()),
            Kind::Bool(value) => Some(value.to_string().into()),
            _ => None,
        }
    }
}

impl<'a> Merged<'a> {
    /// Lays fields over a value.
    pub fn new(base: Val<'a>, over: Over<'a>) -> Self {
        let (own, fields) = match &over {
            Over::Pairs(pairs) => (pairs.len(), pairs.len()),
            Over::Fields(fields) => (1, fields.len()),
        };
        let (below, work) = match base.kind() {
            Kind::Fields(fields) => (fields.len(), 0),
            Kind::Merged(merged) => (merged.size, merged.work),
            Kind::List(items) => (items.len(), 0),
            _ => (0, 0),
        };
        let size = below.saturating_add(fields);
        Merged { cost: base.cost() + own, size, work: work.saturating_add(size), base, over }
    }

    fn get(&self, key: &str) -> Val<'a> {
        let over = match &self.over {
            Over::Fields(fields) => fields.get(key).map(Val::Json),
            Over::Pairs(pairs) => pairs.iter().rev().find(|(name, _)| *name == key).map(|(_, value)| value.clone()),
        };
        over.unwrap_or_else(|| if self.base.is_some() { self.base.get(key) } else { Val::Undefined })
    }

    /// All fields in JavaScript's order: those below first, in their places also when hidden.
    pub fn entries(&self) -> Vec<(Cow<'a, str>, Val<'a>)> {
        let mut entries: Vec<(Cow<'a, str>, Val<'a>)> = match self.base.kind() {
            Kind::Fields(fields) => fields.iter().map(|(key, value)| (key.into(), Val::Json(value))).collect(),
            Kind::Merged(merged) => merged.entries(),
            Kind::List(items) => items.iter().enumerate().map(|(i, item)| (i.to_string().into(), Val::Json(item))).collect(),
            _ => Vec::new(),
        };
        let below: std::collections::HashMap<String, usize> =
            entries.iter().enumerate().map(|(i, (key, _))| (key.to_string(), i)).collect();
        let mut put = |key: Cow<'a, str>, value: Val<'a>| match below.get(key.as_ref()) {
            Some(&i) => entries[i].1 = value,
            None => entries.push((key, value)),
        };
        match &self.over {
            Over::Fields(fields) => fields.iter().for_each(|(key, value)| put(key.into(), Val::Json(value))),
            Over::Pairs(pairs) => pairs.iter().for_each(|(key, value)| put(key.clone().into(), value.clone())),
        }
        entries
    }

    /// Fields that making the [entries](Merged::entries) passes, those of every layer below again.
    pub fn work(&self) -> usize {
        self.work
    }
}

impl Num {
    fn of(number: &Number) -> Num {
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        whole.map_or_else(|| Num::Float(number.as_f64().unwrap_or(f64::NAN)), Num::Whole)
    }

    /// As a floating-point number.
    pub fn float(self) -> f64 {
        match self {
            Num::Whole(whole) => whole as f64,
            Num::Float(float) => float,
        }
    }

    /// Order; none with NaN.
    pub fn compare(self, other: Num) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Num::Whole(a), Num::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        }
    }
}

/// As JavaScript prints it; whole numbers exactly.
///
/// Source: ECMA-262, `Number::toString`.
impl std::fmt::Display for Num {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let float = match self {
            Num::Whole(whole) => return write!(f, "{whole}"),
            Num::Float(float) if *float == 0.0 => return f.write_str("0"),
            Num::Float(float) => *float,
        };
        let shortest = format!("{:e}", float.abs());
        let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
        let digits = mantissa.replace('.', "");
        let (count, point) = (digits.len() as i32, exponent.parse::<i32>().unwrap_or(0) + 1);
        if float < 0.0 {
            f.write_str("-")?;
        }
        match point {
            22.. | ..=-6 => {
                let fraction = if count > 1 { format!(".{}", &digits[1..]) } else { String::new() };
                write!(f, "{}{fraction}e{}{}", &digits[..1], if point > 0 { "+" } else { "-" }, (point - 1).abs())
            }
            ..=0 => write!(f, "0.{}{digits}", "0".repeat(-point as usize)),
            _ if count <= point => write!(f, "{digits}{}", "0".repeat((point - count) as usize)),
            _ => write!(f, "{}.{}", &digits[..point as usize], &digits[point as usize..]),
        }
    }
}

/// JavaScript's length of a text, in UTF-16 units.
pub fn length(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

fn position(key: &str) -> Option<usize> {
    let is_canonical = key == "0" || !key.starts_with(['0', '+', '-']);
    key.parse().ok().filter(|_| is_canonical)
}

/// Text without the white space that JavaScript's `trim` takes.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_print_as_in_javascript() {
        // What node 20 prints for the same literals.
        for (number, printed) in [
            (1.0, "1"),
            (0.5, "0.5"),
            (-1.25, "-1.25"),
            (1e20, "100000000000000000000"),
            (1.5e21, "1.5e+21"),
            (1e21, "1e+21"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-9, "1.5e-9"),
            (123_456_789.125, "123456789.125"),
        ] {
            assert_eq!(Num::Float(number).to_string(), printed);
        }
    }

    #[test]
    fn layers_hide_and_keep_places() {
        let (below, above) = (json!({"a": 1, "b": 2}), json!({"b": 3, "c": 4}));
        let merged = Merged::new(Val::Json(&below), Over::Fields(above.as_object().expect("an object")));
        let entries: Vec<String> =
            merged.entries().iter().map(|(key, value)| format!("{key}={}", value.scalar().expect("a number"))).collect();
        assert_eq!(entries, ["a=1", "b=3", "c=4"]);
        assert!(matches!(Val::Json(&below).get("a").get("x").kind(), Kind::Undefined));
        assert!(matches!(Val::Json(&json!([1, 2])).get("length").kind(), Kind::Number(Num::Whole(2))));
        assert!(matches!(Val::Json(&json!([1])).get("00").kind(), Kind::Undefined));
    }
}
