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
fn a_check_looks_into_the_files_that_are_named() {
    let refit = Refit::new();
    refit.write("refit.toml", "[prices]\nfiles = [\"own.toml\"]\n");
    let done = refit.run(&["config", "check"]).expect(2);
    assert!(done.stderr.contains("cannot read own.toml"), "{done:?}");
    let head = "provider = \"mock\"\nversion = \"1\"\nsource = \"y\"\nunit = \"USD per million tokens\"\n";
    let row = |input: &str| format!("{head}[[rows]]\nmodel = \"m\"\ninput = {input}\noutput = 1\n");
    refit.write("own.toml", row("\"cheap\""));
    let done = refit.run(&["config", "check"]).expect(2);
    assert!(done.stdout.starts_with("own.toml, line 7: rows.input: expected dollars"), "{done:?}");
    let told = refit.run(&["config", "check", "--json"]).expect(2).json();
    assert_eq!((&told["problems"][0]["file"], &told["problems"][0]["line"]), (&"own.toml".into(), &7.into()), "{told}");
    refit.write("own.toml", row("1"));
    assert_eq!(refit.run(&["config", "check"]).expect(0).stdout, "ok\n");
}

#[test]
fn names_that_nobody_has_are_told_wherever_they_stand() {
    let refit = Refit::new();
    let wrong = [
        "[guardrails.a]\ndetectors = [\"email\"]\nroutes = [\"opnai/x\"]\nmoderation = { model = \"opnai/m\" }\n",
        "[cache.routes]\n\"opnai/x\" = true\n",
        "[[prices.rows]]\nprovider = \"opnai\"\nmodel = \"m\"\ninput = 1\noutput = 1\n",
    ];
    refit.write("refit.toml", wrong.concat());
    let done = refit.run(&["config", "check"]).expect(2);
    for key in ["guardrails.a.routes", "guardrails.a.moderation.model", "cache.routes.opnai/x", "prices.rows.provider"] {
        let told = format!("{key}: unknown provider \"opnai\"; did you mean \"openai\"?");
        assert!(done.stdout.contains(&told), "{key}: {done:?}");
    }
}

#[test]
fn the_example_file_works() {
    let refit = Refit::new();
    refit.write("refit.toml", include_str!("../../refit.toml"));
    let server = refit.serve(&[]);
    assert_eq!(server.get("/health", None).status, 200);
}
