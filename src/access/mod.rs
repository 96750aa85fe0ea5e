//! Who may do what: API keys, roles, projects, and the hash-chained audit log.
