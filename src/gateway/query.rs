//! Query strings of lists: `after`, `limit`, `order`, and a word or two more.

use crate::types::ids::is_safe_name;
use crate::types::{Code, Failure};
use axum::http::Uri;
use percent_encoding::percent_decode_str;
use std::collections::HashMap;

/// The fields of a query string; of one that stands twice the last counts, unknown ones are kept and ignored.
pub struct Query(HashMap<String, String>);

impl Query {
    /// Reads what stands behind the `?`.
    pub fn of(uri: &Uri) -> Self {
        let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (decoded(name), decoded(value))).collect())
    }

    /// A field that is not empty.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// The fields `name[key]=value`, sorted by key.
    pub fn pairs(&self, name: &str) -> Vec<(String, String)> {
        let key = |field: &str| Some(field.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_string());
        let mut pairs: Vec<_> = self.0.iter().filter_map(|(field, value)| Some((key(field)?, value.clone()))).collect();
        pairs.sort_unstable();
        pairs
    }

    /// The id that a page begins behind.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] when it cannot be an id.
    pub fn after(&self) -> Result<Option<&str>, Failure> {
        match self.text("after") {
            Some(id) if !is_safe_name(id) => {
                Err(Failure::on(Code::INVALID_VALUE, "after", "after: expected the id of an item of the list"))
            }
            after => Ok(after),
        }
    }

    /// How many items a page holds.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] when it is no whole number from 1 to `most`.
    pub fn limit(&self, default: usize, most: usize) -> Result<usize, Failure> {
        let Some(text) = self.text("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
        limit.ok_or_else(|| Failure::on(Code::INVALID_VALUE, "limit", format!("limit: expected a whole number from 1 to {most}")))
    }

    /// Whether the oldest come first; the newest do by default.
    ///
    /// # Errors
    /// [`Code::INVALID_VALUE`] when it is neither `asc` nor `desc`.
    pub fn ascending(&self) -> Result<bool, Failure> {
        match self.text("order") {
            None | Some("desc") => Ok(false),
            Some("asc") => Ok(true),
            Some(_) => Err(Failure::on(Code::INVALID_VALUE, "order", "order: expected asc or desc")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_decoded_and_checked() {
        let query = |text: &str| Query::of(&format!("/x?{text}").parse().expect("a URI"));
        assert_eq!(query("a=1+2%2F&b&a=3").text("a"), Some("3"));
        assert_eq!(query("m[a%20b]=1&mx[c]=2&m[d=3").pairs("m"), [("a b".to_string(), "1".to_string())]);
        assert_eq!(query("").limit(20, 100).expect("the default"), 20);
        assert_eq!(query("limit=7&after=file-1").after().expect("an id"), Some("file-1"));
        let refused = |result: Result<(), Failure>| result.expect_err("refused").param().unwrap_or_default();
        assert_eq!(refused(query("limit=0").limit(20, 100).map(drop)), "limit");
        assert_eq!(refused(query("limit=-1").limit(20, 100).map(drop)), "limit");
        assert_eq!(refused(query("after=..%2Fx").after().map(drop)), "after");
        assert_eq!(refused(query("order=up").ascending().map(drop)), "order");
    }
}
