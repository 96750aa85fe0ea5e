//! promptfoo's configuration files, read into a suite with its dataset and prompts ([`import`]), and written from one ([`export`]).
//! What does not carry over is listed with its place and the reason, and never dropped in silence. What is read is data: no code of a
//! configuration runs, nothing is fetched.

mod asserts;
mod cases;
mod export;
mod files;
mod import;
mod prompts;
mod providers;

pub use export::{Exported, export};
pub use import::{Imported, Wish, import};

use serde::Serialize;
use serde_json::Value;

/// Something that did not carry over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Where it stands: `tests[4].assert[1]`.
    pub place: String,
    /// What it is, and why it stayed behind.
    pub why: String,
}

/// What stays behind.
#[derive(Default)]
struct Leaving(Vec<Left>);

impl Leaving {
    fn add(&mut self, place: impl Into<String>, why: impl Into<String>) {
        let left = Left { place: place.into(), why: why.into() };
        if !self.0.contains(&left) {
            self.0.push(left);
        }
    }
}

/// A text in which `{{name}}` stands for a variable of the test; none where it needs more of a template than that.
fn filled(text: &str, vars: &serde_json::Map<String, Value>) -> Option<String> {
    let (mut done, mut rest) = (String::new(), text);
    while let Some(open) = rest.find("{{") {
        let close = rest[open..].find("}}")? + open;
        let value = vars.get(rest[open + 2..close].trim())?;
        done.push_str(&rest[..open]);
        done.push_str(&value.as_str().map_or_else(|| value.to_string(), String::from));
        rest = &rest[close + 2..];
    }
    if rest.contains("{%") || done.contains("{%") {
        return None;
    }
    done.push_str(rest);
    Some(done)
}
