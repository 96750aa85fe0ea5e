//! A secret that cannot be printed: `Debug` and `Display` show `***`, and a configuration that is shown only the variable it came from.

use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;
use std::sync::Arc;

/// A redacting string.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: Arc<str>,
    variable: Option<Arc<str>>,
}

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Secret { text: text.into(), variable: None }
    }

    /// A secret that an environment variable holds.
    pub fn of_variable(name: &str, text: impl Into<Arc<str>>) -> Self {
        Secret { text: text.into(), variable: Some(name.into()) }
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// `{ env = "NAME" }`, as it is written in the file.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("env", self.variable.as_deref().unwrap_or("***"))?;
        map.end()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
