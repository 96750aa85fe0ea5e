//! The page about tuning: its files are written, its commands run in order on the real models, and they print what stands there.

use crate::support::{self, Refit, skip};
use regex::Regex;
use std::path::Path;
use std::process::Command;

#[test]
fn the_commands_of_the_page_print_what_stands_there() {
    let name = "tune_docs::the_commands_of_the_page_print_what_stands_there";
    let Some(file) = support::model_file() else { return skip(name, "REFIT_TEST_MODEL does not name the model file") };
    let Some(folder) = support::embedder_folder() else { return skip(name, "REFIT_TEST_EMBEDDER does not name the embedding model") };
    let refit = Refit::new();
    refit.run(&["model", "pull", &file.display().to_string(), "--name", "smollm2-135m-instruct"]).expect(0);
    refit.run(&["model", "pull", &folder.path().display().to_string(), "--name", "all-minilm-l6-v2"]).expect(0);
    let programs = Path::new(env!("CARGO_BIN_EXE_refit")).parent().expect("a folder");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut count = 0;
    for (info, text) in crate::datasets_docs::blocks(include_str!("../../src/docs/tuning.md")) {
        match info.split_once(' ') {
            Some((_, file)) => drop(refit.write(file, &text)),
            None if info == "console" => {
                for (command, code, expected) in crate::datasets_docs::commands(&text) {
                    let mut shell = Command::new("bash");
                    shell.current_dir(refit.path()).args(["-o", "pipefail", "-c", &command]).env("PATH", &path);
                    let output = shell.env_remove("REFIT_DATA_DIR").env_remove("REFIT_CONFIG").output().expect("a shell");
                    let printed = String::from_utf8(output.stdout).expect("UTF-8");
                    assert_eq!(output.status.code(), Some(code), "{command}: {}", String::from_utf8_lossy(&output.stderr));
                    let pattern = regex::escape(&expected).replace('…', "[^\\n]*?");
                    let pattern = Regex::new(&format!("^{pattern}$")).expect("a pattern");
                    assert!(pattern.is_match(&printed), "{command}\n{printed}\nis not\n{expected}");
                    count += 1;
                }
            }
            // Python stands for the SDK's tests.
            None => assert_eq!(info, "python", "a block has no name"),
        }
    }
    assert!(count >= 10, "only {count} commands were found");
}
