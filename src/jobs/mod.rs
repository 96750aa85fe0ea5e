//! Long work outside the request path: claimed, leased, resumable.
