//! The `refit` binary. Everything is in the library; see `lib.rs` for the map.

fn main() {}
