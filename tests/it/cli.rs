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

#[test]
fn doctor_says_what_is_missing_and_changes_nothing() {
    let refit = Refit::new();
    let report = refit.run(&["doctor", "--json"]).expect(0).json();
    let state =
        |name: &str| report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == name).cloned().expect("the check");
    assert_eq!((&report["broken"], &state("model")["state"]), (&false.into(), &"missing".into()));
    assert_eq!(state("model")["fix"], "refit model pull smollm2-135m-instruct");
    assert_eq!(state("data directory")["state"], "ok");
    assert!(!refit.data_dir().exists(), "doctor makes nothing");
    let text = refit.run(&["doctor"]).expect(0).stdout;
    assert!(text.contains("missing model") && text.contains("-> refit model pull"), "{text}");
}

#[test]
fn doctor_finds_a_damaged_database() {
    let refit = Refit::new();
    refit.run(&["model", "list"]).expect(0);
    refit.run(&["doctor"]).expect(0);
    refit.write(".refit/refit.db", "this is no database, and long enough to be looked at as one ".repeat(40));
    let broken = refit.run(&["doctor", "--json"]).expect(2).json();
    let database = broken["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "database").cloned();
    assert!(database.is_some_and(|check| check["state"] == "broken" && check["fix"].is_string()), "{broken}");
}

#[test]
fn every_error_is_printed_once_with_its_hint() {
    let failed = Refit::new().run(&["model", "show", "smollm2-135m-instruct"]).expect(2);
    assert!(failed.stdout.is_empty());
    let expected = "error: model \"smollm2-135m-instruct\" is not stored in this data directory\nhint: get it with: refit model pull smollm2-135m-instruct\n";
    assert_eq!(failed.stderr, expected);
}

#[test]
fn data_directory_comes_from_the_option_before_the_environment() {
    let refit = Refit::new();
    let refit = refit.env("REFIT_DATA_DIR", "from-env");
    refit.run(&["model", "list"]).expect(0);
    refit.run(&["model", "list", "--data-dir", "from-option"]).expect(0);
    assert!(refit.path().join("from-env/refit.db").is_file() && refit.path().join("from-option/refit.db").is_file());
    assert!(!refit.data_dir().exists());
}

#[test]
fn many_processes_may_begin_on_one_new_directory() {
    for _ in 0..8 {
        let refit = Refit::new();
        let begun: Vec<_> =
            (0..16).map(|_| refit.command(&["key", "list"]).stderr(std::process::Stdio::piped()).spawn().expect("starts")).collect();
        for child in begun {
            let done = child.wait_with_output().expect("ends");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
    }
}
