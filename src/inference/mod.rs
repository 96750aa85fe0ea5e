//! The only road to a completion.
