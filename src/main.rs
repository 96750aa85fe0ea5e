//! The `refit` binary. Everything is in the library; see `lib.rs` for the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    refit::cli::main()
}
