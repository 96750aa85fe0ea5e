//! Roles, from least to most: what a key may do. Ordered, so that a route names the least role it takes.

use super::AccessError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a key may do. Each role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Call models and list them: what an application needs.
    App,
    /// Also read logs, runs and releases.
    Viewer,
    /// Also change prompts, datasets and runs.
    Developer,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role with its word.
    pub const ALL: [(Role, &'static str); 4] =
        [(Role::App, "app"), (Role::Viewer, "viewer"), (Role::Developer, "developer"), (Role::Admin, "admin")];

    /// The role's word.
    pub fn word(self) -> &'static str {
        match self {
            Role::App => "app",
            Role::Viewer => "viewer",
            Role::Developer => "developer",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = AccessError;
    fn from_str(word: &str) -> Result<Self, AccessError> {
        let found = Role::ALL.iter().find(|(_, known)| *known == word);
        let refused = || AccessError::Name { what: "role", given: word.to_string(), expected: "one of app, viewer, developer, admin" };
        found.map(|(role, _)| *role).ok_or_else(refused)
    }
}
