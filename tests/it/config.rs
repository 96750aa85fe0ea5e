//! `refit.toml` as a user meets it.

use crate::support::Refit;

#[test]
fn all_problems_are_reported_at_once_with_their_lines() {
    let refit = Refit::new();
    refit.write("refit.toml", "[server]\nprot = 1\nport = 99999\n\n[providers.gorq]\nkind = \"gorq\"\napi_key = \"sk-canary\"\n");
    let done = refit.run(&["serve", "--port", "0"]).expect(2);
    for expected in [
        "line 2: server.prot",
        "did you mean \"port\"?",
        "line 3: server.port",
        "0 to 65535",
        "line 6:",
        "did you mean \"groq\"?",
        "line 7:",
        "hint: ",
    ] {
        assert!(done.stderr.contains(expected), "{expected}: {}", done.stderr);
    }
    assert!(done.stdout.is_empty() && !done.stderr.contains("sk-canary"), "{done:?}");
    assert!(!refit.data_dir().exists(), "nothing is written");
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let refit = Refit::new();
    let done = refit.run(&["serve", "--config", "nowhere.toml"]).expect(2);
    assert!(done.stderr.contains("nowhere.toml"), "{done:?}");
}

#[test]
fn the_example_file_works() {
    let refit = Refit::new();
    refit.write("refit.toml", include_str!("../../refit.toml"));
    let server = refit.serve(&[]);
    assert_eq!(server.get("/health", None).status, 200);
}
