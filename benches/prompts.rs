//! What reading and rendering a prompt costs: a template of 2 KB with ten variables, as a support desk might have it.
//! `./bench prompts` runs it and prints the figures.

use criterion::{Criterion, criterion_group, criterion_main};
use refit::prompts::{Input, Prompt};
use serde_json::{Value, json};
use std::hint::black_box;

const HEAD: &str = "---
model: mock/echo
config: {temperature: 0, max_tokens: 256}
input:
  schema:
    company: string
    agent: string
    tone: string
    language: string
    customer(object): {name: string, city: string}
    products(array): string
    rules(array): string
    order?: any
    urgent: boolean
    message: string, what the customer wrote
---
{{role \"system\"}}
You are {{agent}}, who answers for {{company}} in {{language}}. Your tone is {{tone}}.
{{#if urgent}}
This one is urgent: answer in three sentences at most.
{{else}}
Take the room that you need.
{{/if}}
{{#each rules}}
{{@index}}. {{this}}
{{/each}}
The shop sells {{#each products}}{{this}}{{#unless @last}}, {{/unless}}{{/each}}.
";
const TAIL: &str = "{{role \"user\"}}
{{#with customer}}{{name}} from {{city}} writes to {{../company}}:{{/with}}
{{message}}
{{#if order}}Order: {{json order}}{{/if}}
";

fn source() -> String {
    let filler = "Say what happens next and when. Promise nothing that the rules above do not allow, and never name a price.\n";
    let mut source = HEAD.to_string();
    while source.len() + TAIL.len() < 2048 {
        source += filler;
    }
    source + TAIL
}

fn variables() -> Value {
    json!({
        "company": "Nordlight Home", "agent": "Mara", "tone": "friendly", "language": "English",
        "customer": {"name": "Ada Lovelace", "city": "Ulm"},
        "products": ["kettle", "toaster", "blender", "fan", "heater", "lamp"],
        "rules": ["Refunds take five days.", "Repairs are free for two years.", "Gift cards cannot be returned.", "Callbacks are on weekdays."],
        "order": {"number": "NL-20418", "items": [{"name": "kettle", "count": 1}]},
        "urgent": true,
        "message": "my kettle arrived with a crack in the handle, what can you do?"
    })
}

fn prompts(criterion: &mut Criterion) {
    let (source, variables) = (source(), variables());
    let prompt = Prompt::parse("desk", &source).expect("parses");
    let input = Input::of(variables.as_object().expect("an object"));
    assert!(source.len() >= 2048 && prompt.variables.len() == 10, "{} bytes, {} variables", source.len(), prompt.variables.len());
    assert_eq!(prompt.render(&input).expect("renders").messages.len(), 2);
    criterion.bench_function("render", |bench| bench.iter(|| prompt.render(black_box(&input)).expect("renders")));
    criterion.bench_function("parse", |bench| bench.iter(|| Prompt::parse("desk", black_box(&source)).expect("parses")));
}

criterion_group!(benches, prompts);
criterion_main!(benches);
