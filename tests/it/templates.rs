//! Templates are user input: whatever one asks for, the built program ends with an error, quickly and in bounded memory.

use crate::support::{Refit, skip};
use serde_json::{Value, json};

/// Milliseconds that a refusal may take, five times over: the promise is 50.
const LIMIT_MS: f64 = 250.0;
/// Most memory of the whole process, in MiB.
const LIMIT_MIB: f64 = 128.0;

/// Runs a command and prints its exit code, milliseconds and peak memory.
const MEASURE: &str = "import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True, text=True)
took = 1000 * (time.perf_counter() - began)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps({'code': done.returncode, 'ms': took, 'mib': peak, 'stderr': done.stderr}))";

struct Bomb {
    name: &'static str,
    template: String,
    variables: Value,
    /// What the refusal says.
    reason: &'static str,
}

fn bomb(name: &'static str, template: impl Into<String>, variables: Value, reason: &'static str) -> Bomb {
    Bomb { name, template: template.into(), variables, reason }
}

/// Two hundred partials, each of which lays sixty fields over what it was given, and a loop in the last one.
fn layers() -> String {
    let fields: String = (0..60).map(|i| format!(" a{i}=0")).collect();
    let partials = (1..60).map(|i| format!("{{{{#*inline \"p{i}\"}}}}{{{{> p{}{fields}}}}}{{{{/inline}}}}", i - 1));
    format!(
        "{{{{#*inline \"p0\"}}}}{{{{#each @root.l}}}}{{{{#if ../nothing}}}}{{{{/if}}}}{{{{/each}}}}{{{{/inline}}}}{}{{{{> p59}}}}",
        partials.collect::<String>()
    )
}

/// A partial that reads many variables, included many times.
fn inclusions() -> String {
    let reads: String = (0..4000).map(|i| format!("{{{{a{i}}}}}")).collect();
    format!("{{{{#*inline \"p\"}}}}{reads}{{{{/inline}}}}{}", "{{> p}}".repeat(3500))
}

/// Partials that include one another from deep inside of blocks, and a prompt that includes none of them.
fn uncalled() -> String {
    let one = |i: usize| {
        let (open, close) = ("{{#x}}".repeat(62), "{{/x}}".repeat(62));
        format!("{{{{#*inline \"p{i}\"}}}}{open}{{{{>p{}}}}}{close}{{{{/inline}}}}", i + 1)
    };
    (0..80).map(one).collect::<String>() + "{{#*inline \"p80\"}}{{/inline}}"
}

/// A value of many layers over many fields, whose fields are counted a thousand times.
fn recounted() -> String {
    let fields: String = (0..4000).map(|i| format!("    a{i}: 0\n")).collect();
    let partials = (1..200).map(|i| format!("{{{{#*inline \"p{i}\"}}}}{{{{>p{} x=1}}}}{{{{/inline}}}}", i - 1));
    let last = format!("{{{{#*inline \"p0\"}}}}{}{{{{/inline}}}}", "{{len this}}".repeat(300));
    format!("---\ninput:\n  default:\n{fields}---\n{last}{}{{{{>p199}}}}", partials.collect::<String>())
}

fn bombs() -> Vec<Bomb> {
    let none = || json!({});
    let list = || json!({"l": (0..100_000).collect::<Vec<u32>>()});
    let chain: String = (1..1500).map(|i| format!("{{{{#*inline \"p{i}\"}}}}{{{{> p{}}}}}{{{{/inline}}}}", i - 1)).collect();
    let doubling: String =
        (1..60).map(|i| format!("{{{{#*inline \"p{i}\"}}}}{{{{> p{0}}}}}{{{{> p{0}}}}}{{{{/inline}}}}", i - 1)).collect();
    let aliases: String =
        (1..9).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
    vec![
        bomb("a partial in itself", "{{#*inline \"a\"}}{{> a}}{{/inline}}{{> a}}", none(), "includes itself"),
        bomb(
            "partials in a circle",
            "{{#*inline \"a\"}}{{> b}}{{/inline}}{{#*inline \"b\"}}{{> a}}{{/inline}}{{> a}}",
            none(),
            "includes itself",
        ),
        bomb("1300 blocks in one another", "{{#if a}}".repeat(1300) + &"{{/if}}".repeat(1300), none(), "nested deeper than 64"),
        bomb("4000 blocks never closed", "{{#each a}}".repeat(4000), none(), "nested deeper than 64"),
        bomb("1000 branches", format!("{{{{#if a}}}}{}{{{{/if}}}}", "{{else if b}}".repeat(1000)), none(), "nested deeper than 256"),
        bomb("parentheses", format!("{{{{json {}a{}}}}}", "(not ".repeat(6000), ")".repeat(6000)), none(), "nested deeper than 32"),
        bomb("a chain of partials", format!("{{{{#*inline \"p0\"}}}}x{{{{/inline}}}}{chain}{{{{> p1499}}}}"), none(), "deep"),
        bomb("partials that double", format!("{{{{#*inline \"p0\"}}}}x{{{{/inline}}}}{doubling}{{{{> p59}}}}"), none(), "steps"),
        bomb("loops in loops", "{{#each l}}{{#each ../l}}{{#each ../../l}}x{{/each}}{{/each}}{{/each}}", list(), "steps"),
        bomb("empty loops in loops", "{{#each l}}{{#each ../l}}{{/each}}{{/each}}", list(), "steps"),
        bomb("a loop over a long list", "{{#each l}}{{this}}{{/each}}", list(), "steps"),
        bomb(
            "a partial with all of the input",
            "{{#*inline \"p\"}}{{json this}}{{/inline}}{{#each l}}{{> p @root x=1}}{{/each}}",
            list(),
            "larger than",
        ),
        bomb("long texts repeated", "{{#each l}}{{@root.t}}{{/each}}", json!({"l": [1, 2, 3], "t": "x".repeat(700_000)}), "larger than"),
        bomb("a long list printed", "{{l}}{{l}}", list(), "steps"),
        bomb("a large source", "x".repeat(70_000), none(), "70000 bytes"),
        bomb(
            "aliases with a colon",
            format!("---\na: &a [{}]\nb:\n{}---\nx", "1,".repeat(15_000), "- *a: 1\n".repeat(4_000)),
            none(),
            "aliases",
        ),
        bomb("a line of anchors", format!("---\nx: \"{}\"\n---\n{{{{y}}}}", "&".repeat(60_000)), none(), "missing"),
        bomb("a deep chain that nobody includes", uncalled(), none(), "deep"),
        bomb("layers counted again and again", recounted(), none(), "steps"),
        bomb("aliases that multiply", format!("---\na0: &a0 [x, x, x, x, x, x, x, x]\n{aliases}---\nx"), none(), "aliases"),
        bomb("deep YAML", format!("---\na: {}\n---\nx", "[".repeat(20_000)), none(), "brackets"),
        bomb("deep YAML in dashes", format!("---\na:\n{}x\n---\nx", "- ".repeat(20_000)), none(), "front matter"),
        bomb("many tags in one line", "{{a}}{{!-- --}}".repeat(4000) + "{{#if a}}", none(), "missing"),
        bomb("names with many parts", format!("{{{{#each l}}}}{{{{a{}}}}}{{{{/each}}}}", ".b".repeat(20_000)), list(), "parts"),
        bomb(
            "looks into a long text",
            "{{#each l}}{{lookup @root.t 600000}}{{@root.t.length}}{{lookup @root @root.t}}{{/each}}",
            json!({"l": vec![0; 5000], "t": "x".repeat(700_000)}),
            "steps",
        ),
        bomb(
            "long names",
            format!("{{{{#each l}}}}{{{{../o.{}}}}}{{{{/each}}}}", "n".repeat(60_000)),
            json!({"l": vec![0; 20_000], "o": {"a": 1, "b": 2}}),
            "steps",
        ),
        bomb(
            "long texts compared",
            format!("{{{{#each l}}}}{{{{#if (eq 1 \"{}\")}}}}{{{{/if}}}}{{{{/each}}}}", "t".repeat(60_000)),
            json!({"l": vec![0; 20_000]}),
            "steps",
        ),
        bomb(
            "long names of partials",
            format!("{{{{#each l}}}}{{{{#*inline \"{}\"}}}}{{{{/inline}}}}{{{{/each}}}}", "p".repeat(60_000)),
            json!({"l": vec![0; 20_000]}),
            "steps",
        ),
        bomb(
            "long names of items",
            format!("{{{{#each l as |{0}|}}}}{{{{{0}}}}}{{{{/each}}}}", "i".repeat(30_000)),
            json!({"l": vec![0; 20_000]}),
            "steps",
        ),
        bomb("layers over layers", layers(), json!({"l": vec![0; 5000]}), "steps"),
        bomb("inclusions without end", inclusions(), none(), "included very often"),
    ]
}

#[test]
fn every_bomb_ends_quickly_in_bounded_memory() {
    if cfg!(not(target_os = "linux")) {
        return skip("templates::every_bomb_ends_quickly_in_bounded_memory", "peak memory is measured on Linux only");
    }
    let refit = Refit::new();
    let mut report = Vec::new();
    for bomb in bombs() {
        refit.write("bomb.prompt", &bomb.template);
        refit.write("variables.json", bomb.variables.to_string());
        let command = refit.command(&["prompt", "render", "bomb.prompt", "--vars", "variables.json"]);
        let done = std::process::Command::new("python3")
            .args(["-c", MEASURE])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(refit.path())
            .output()
            .expect("python3 runs");
        let measured: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{}: {error}: {done:?}", bomb.name));
        let stderr = measured["stderr"].as_str().expect("text");
        assert_eq!(measured["code"], 2, "{}: {stderr}", bomb.name);
        assert!(stderr.contains(bomb.reason), "{}: {stderr}", bomb.name);
        report.push((bomb.name, measured["ms"].as_f64().expect("ms"), measured["mib"].as_f64().expect("MiB")));
    }
    for (name, ms, mib) in &report {
        println!("{name}: {ms:.1} ms, {mib:.1} MiB");
    }
    let late: Vec<_> = report.iter().filter(|(_, ms, mib)| *ms > LIMIT_MS || *mib > LIMIT_MIB).collect();
    assert!(late.is_empty(), "{late:?}");
}
