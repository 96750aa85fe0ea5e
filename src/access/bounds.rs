//! What stands in the way of a caller: the names that its key may call, the end of the key, and the meters of key and project. A key
//! without any of these has no [`Bounds`] at all, and costs nothing to check.

use super::AccessError;
use super::meter::{Left, Meter, Moment, Owner};
use std::sync::Arc;

/// The bounds of a key.
#[derive(Debug, Default)]
pub struct Bounds {
    /// Names that may be called; none for all.
    pub names: Option<Names>,
    /// When the key ends, milliseconds.
    pub expires_at: Option<i64>,
    /// The key's meter and its project's, as far as they have limits.
    pub meters: Vec<Arc<Meter>>,
}

impl Bounds {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        self.names.is_none() && self.expires_at.is_none() && self.meters.is_empty()
    }

    /// The project's meter alone, for what is done beside a call of one of its keys; none where it has no limits.
    pub fn of_project(&self) -> Option<Bounds> {
        let is_projects = |meter: &&Arc<Meter>| matches!(meter.owner(), Owner::Project(_));
        let meters: Vec<_> = self.meters.iter().filter(is_projects).cloned().collect();
        (!meters.is_empty()).then(|| Bounds { meters, ..Bounds::default() })
    }

    /// What is left of requests and tokens per minute, of the meter that has the least.
    pub fn left(&self, now: Moment) -> (Option<Left>, Option<Left>) {
        let least = |a: Option<Left>, b: Option<Left>| match (a, b) {
            (Some(a), Some(b)) => Some(if b.remaining < a.remaining { b } else { a }),
            (a, b) => a.or(b),
        };
        let both = self.meters.iter().map(|meter| meter.left(now));
        both.fold((None, None), |(requests, tokens), (more_requests, more_tokens)| {
            (least(requests, more_requests), least(tokens, more_tokens))
        })
    }
}

/// Names that may be called: routes and models, with `*` at the end for any rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(Vec<String>);

/// Most names of a key.
const MOST: usize = 100;

impl Names {
    /// Checks a list of names.
    ///
    /// # Errors
    /// [`AccessError::Name`] for one that cannot be, or too many.
    pub fn new(names: Vec<String>) -> Result<Self, AccessError> {
        let fits = |name: &str| {
            let name = name.strip_suffix('*').unwrap_or(name);
            name.len() <= 200 && !name.contains('*') && !name.chars().any(|c| c.is_control() || c.is_whitespace())
        };
        if let Some(wrong) = names.iter().find(|name| name.is_empty() || !fits(name)) {
            let expected = "a route or provider/model, with * at its end for any rest";
            return Err(AccessError::Name { what: "route", given: wrong.clone(), expected });
        }
        if names.is_empty() || names.len() > MOST {
            let given = names.len().to_string();
            return Err(AccessError::Name { what: "routes", given, expected: "1 to 100 names" });
        }
        Ok(Names(names))
    }

    /// Whether a name may be called.
    pub fn allow(&self, name: &str) -> bool {
        self.0.iter().any(|allowed| allowed.strip_suffix('*').map_or(allowed == name, |prefix| name.starts_with(prefix)))
    }

    /// The names.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_rest_and_nothing_else_does() {
        let names = Names::new(vec!["support".into(), "openai/*".into()]).expect("names");
        assert!(names.allow("support") && names.allow("openai/gpt-4o") && names.allow("openai/"));
        for other in ["support2", "Support", "openai", "openai-2/gpt", "local/openai/x", ""] {
            assert!(!names.allow(other), "{other}");
        }
        for wrong in ["", "a*b", "a b", "a\nb", "**"] {
            assert!(Names::new(vec![wrong.into()]).is_err(), "{wrong:?}");
        }
        assert!(Names::new(Vec::new()).is_err());
    }
}
