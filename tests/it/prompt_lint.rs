//! `refit prompt lint` and `refit prompt diff`: what is wrong, where, and what to do; what is different, as text and as rendered.

use crate::support::Refit;
use serde_json::json;

const GOOD: &str = "---\nmodel: mock/echo\ninput:\n  schema:\n    name: string\n    tags(array): string\n---\nHi {{name}}: {{#each tags}}{{this}} {{/each}}";

#[test]
fn a_mistake_is_told_with_line_column_and_the_way_out() {
    let refit = Refit::new();
    refit.write("prompts/good.prompt", GOOD);
    refit.write("prompts/bad.prompt", GOOD.replace("{{name}}", "{{nmae}}, {{tags}}"));
    refit.run(&["prompt", "lint", "prompts/good.prompt"]).expect(0);
    let done = refit.run(&["prompt", "lint", "prompts"]).expect(1);
    let expected = [
        "prompts/bad.prompt:8:6: error: \"nmae\" is used here, but it is not among the prompt's variables; did you mean \"name\"?",
        "prompts/bad.prompt:8:16: warning: \"tags\" is a list",
        "Write {{json tags}}",
        "prompts/bad.prompt:5:5: warning: \"name\" is among the prompt's variables, but the text below does not use it",
        "tokens for mock/echo (about, by its length; no tokenizer of this model is here)",
    ];
    for part in expected {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    let json = refit.run(&["prompt", "lint", "prompts", "--json"]).expect(1).json();
    assert_eq!((&json[0]["prompt"], &json[1]["prompt"], &json[1]["findings"]), (&json!("bad"), &json!("good"), &json!([])));
    let text = "Hi {{name}}: {{#each tags}}{{this}} {{/each}}";
    assert_eq!(json[1]["tokens"], json!([{"model": "mock/echo", "tokens": text.len().div_ceil(4), "estimate": true}]));
}

#[test]
fn changes_against_the_published_version_are_told() {
    let refit = Refit::new();
    refit.write("p.prompt", GOOD);
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    refit.write("p.prompt", GOOD.replace("    name: string\n", "    name: string\n    tone: string\n").replace("Hi", "Hi, {{tone}}"));
    let done = refit.run(&["prompt", "lint", "p.prompt"]).expect(0);
    let told = "may break callers: the variable \"tone\" is new, and must be given: calls without it fail (against version 1)";
    assert!(done.stdout.contains(told), "{}", done.stdout);
    let json = refit.run(&["prompt", "lint", "p", "--json"]).expect(0).json();
    assert_eq!((&json[0]["published"], &json[0]["changes"]), (&json!(1), &json!([])));
}

#[test]
fn two_versions_are_compared_as_text_and_as_rendered() {
    let refit = Refit::new();
    refit.write("p.prompt", "{{role \"system\"}}Be kind.\n{{role \"user\"}}Hi {{message}}");
    refit.run(&["prompt", "publish", "p.prompt"]).expect(0);
    refit.write("p.prompt", "{{role \"system\"}}Be brief.\n{{role \"user\"}}Hi {{message}}");
    let text = refit.run(&["prompt", "diff", "p@1", "p.prompt"]).expect(0).stdout;
    assert!(text.contains("--- p@1") && text.contains("+{{role \"system\"}}Be brief."), "{text}");
    let text = refit.run(&["prompt", "diff", "p@1", "p.prompt", "--var", "message=Ada"]).expect(0).stdout;
    let rendered = text.split_once("rendered on the given variables:").expect("rendered").1;
    assert!(rendered.contains("-Be kind.") && rendered.contains("+Be brief.") && rendered.contains(" Hi Ada"), "{text}");
    refit.write(
        "d.jsonl",
        (0..9)
            .map(|i| format!("{}\n", json!({"id": format!("s{i}"), "input": {"message": i.to_string()}, "target": "x"})))
            .collect::<String>(),
    );
    refit.run(&["data", "import", "d.jsonl", "--name", "d"]).expect(0);
    let json = refit.run(&["prompt", "diff", "p@1", "p.prompt", "--dataset", "d", "--limit", "2", "--json"]).expect(0).json();
    assert_eq!((json["rendered"].as_array().map(Vec::len), &json["rendered"][1]["input"]), (Some(2), &json!("sample s1")), "{json}");
    let json = refit.run(&["prompt", "diff", "p@1", "p@1", "--var", "mesage=x", "--json"]).expect(0).json();
    assert!(
        json["equal"] == true && json["rendered"][0]["error"].as_str().is_some_and(|error| error.contains("\"message\" is missing")),
        "{json}"
    );
}

#[test]
fn the_prompts_of_this_repository_have_no_errors() {
    let refit = Refit::new();
    let folder = format!("{}/prompts", env!("CARGO_MANIFEST_DIR"));
    refit.run(&["prompt", "lint", &folder]).expect(0);
}
