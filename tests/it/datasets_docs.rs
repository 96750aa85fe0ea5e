//! The page about datasets: its files are written, its commands run in order, and they print what stands there.

use crate::support::Refit;
use regex::Regex;
use std::path::Path;
use std::process::Command;

/// Blocks of a page: info string and text.
pub fn blocks(page: &str) -> Vec<(String, String)> {
    let (mut blocks, mut open): (Vec<(String, String)>, bool) = (Vec::new(), false);
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(info) => {
                open = !open;
                if open {
                    blocks.push((info.to_string(), String::new()));
                }
            }
            None if open => blocks.last_mut().expect("an open block").1 += &format!("{line}\n"),
            None => {}
        }
    }
    blocks
}

/// Commands of a block with their exit codes and what they print.
pub fn commands(text: &str) -> Vec<(String, i32, String)> {
    let mut commands: Vec<(String, i32, String)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => {
                let (command, code) = command.split_once("    # exit ").unwrap_or((command, "0"));
                commands.push((command.to_string(), code.parse().expect("an exit code"), String::new()));
            }
            None => commands.last_mut().expect("a command").2 += &format!("{line}\n"),
        }
    }
    commands
}

#[test]
fn the_commands_of_the_page_print_what_stands_there() {
    let refit = Refit::new();
    let folder = Path::new(env!("CARGO_BIN_EXE_refit")).parent().expect("a folder");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut count = 0;
    for (info, text) in blocks(include_str!("../../src/docs/datasets.md")) {
        match info.split_once(' ') {
            Some((_, file)) => drop(refit.write(file, &text)),
            None if info == "console" => {
                for (command, code, expected) in commands(&text) {
                    let mut shell = Command::new("sh");
                    shell.current_dir(refit.path()).args(["-c", &command]).env("PATH", &path).env_remove("REFIT_DATA_DIR");
                    let output = shell.env_remove("REFIT_CONFIG").output().expect("a shell");
                    let printed = String::from_utf8(output.stdout).expect("UTF-8");
                    assert_eq!(output.status.code(), Some(code), "{command}: {}", String::from_utf8_lossy(&output.stderr));
                    let pattern = regex::escape(&expected).replace('…', "[^\\n]*?");
                    assert!(
                        Regex::new(&format!("^{pattern}$")).expect("a pattern").is_match(&printed),
                        "{command}\n{printed}\nis not\n{expected}"
                    );
                    count += 1;
                }
            }
            None => panic!("a block of {info} has no name"),
        }
    }
    assert!(count >= 15, "only {count} commands were found");
}
