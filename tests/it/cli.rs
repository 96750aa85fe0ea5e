//! The command line as a whole: help, unknown verbs, completions.

use crate::support::Refit;

#[test]
fn help_names_the_global_options_and_verbs() {
    let done = Refit::new().run(&["--help"]);
    assert_eq!(done.code, 0, "{done:?}");
    for word in ["--data-dir", "--config", "completions", "Start here"] {
        assert!(done.stdout.contains(word), "{word} is missing: {}", done.stdout);
    }
}

#[test]
fn unknown_verb_fails_with_2_and_names_it() {
    let done = Refit::new().run(&["completion"]);
    assert_eq!(done.code, 2);
    assert!(done.stdout.is_empty());
    assert!(done.stderr.contains("'completion'") && done.stderr.contains("'completions'"), "{}", done.stderr);
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = Refit::new().run(&["completions", shell]);
        assert_eq!(done.code, 0);
        assert!(done.stdout.contains("--data-dir") || done.stdout.contains("data-dir"), "{shell}");
    }
}
