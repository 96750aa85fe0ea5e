//! A key leaves for the service that it belongs to, and for nowhere else.

use crate::support::Refit;
use crate::upstream::{Seen, reply, upstream};
use serde_json::json;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// Every kind with the variable that holds its key, as `src/docs/api.md` has them, and the header in which the key travels.
const KINDS: [(&str, &str, &str); 11] = [
    ("openai", "OPENAI_API_KEY", "authorization"),
    ("anthropic", "ANTHROPIC_API_KEY", "x-api-key"),
    ("gemini", "GEMINI_API_KEY", "x-goog-api-key"),
    ("groq", "GROQ_API_KEY", "authorization"),
    ("mistral", "MISTRAL_API_KEY", "authorization"),
    ("together", "TOGETHER_API_KEY", "authorization"),
    ("fireworks", "FIREWORKS_API_KEY", "authorization"),
    ("deepseek", "DEEPSEEK_API_KEY", "authorization"),
    ("xai", "XAI_API_KEY", "authorization"),
    ("openrouter", "OPENROUTER_API_KEY", "authorization"),
    ("perplexity", "PERPLEXITY_API_KEY", "authorization"),
];

/// Told apart in a head that is read in lower case.
fn canary(variable: &str) -> String {
    format!("sk-{}-5f3a", variable.to_lowercase().replace('_', "-"))
}

/// Calls every kind once, each at a port of its own, with every variable set; what each saw.
fn called(with_key: bool) -> Vec<(&'static str, &'static str, &'static str, Seen)> {
    let opened: Vec<(u16, Receiver<Seen>)> = KINDS.iter().map(|_| upstream(vec![reply("500 Oops", "", "{}")])).collect();
    let refit = KINDS.iter().fold(Refit::new(), |refit, (_, variable, _)| refit.env(variable, canary(variable)));
    let section = |((kind, variable, _), (port, _)): (&(&str, &str, &str), &(u16, Receiver<Seen>))| {
        let key = if with_key { format!("api_key = {{ env = \"{variable}\" }}\n") } else { String::new() };
        format!("[providers.{kind}]\nbase_url = \"http://127.0.0.1:{port}\"\n{key}")
    };
    refit.write("refit.toml", KINDS.iter().zip(&opened).map(section).collect::<String>());
    let (key, server) = (refit.key(), refit.serve(&[]));
    let call = |((kind, variable, header), (_, seen)): (&(&'static str, &'static str, &'static str), (u16, Receiver<Seen>))| {
        let body = json!({"model": format!("{kind}/m"), "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
        let got = server.post("/v1/chat/completions", Some(&key), &body);
        let seen = seen.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{kind} was not called: {got:?}"));
        (*kind, *variable, *header, seen)
    };
    KINDS.iter().zip(opened).map(call).collect()
}

#[test]
fn each_kinds_key_reaches_its_own_origin_and_no_other() {
    for (kind, variable, header, seen) in called(true) {
        let prefix = if header == "authorization" { "bearer " } else { "" };
        assert!(seen.head.contains(&format!("\r\n{header}: {prefix}{}\r\n", canary(variable))), "{kind}: {}", seen.head);
        let others = KINDS.iter().filter(|(_, other, _)| *other != variable);
        for (_, other, _) in others {
            assert!(!seen.head.contains(&canary(other)), "{kind} got the key of {other}: {}", seen.head);
        }
    }
}

/// The variable belongs to the service's own address: whoever gives another names the key as well.
#[test]
fn no_variables_key_goes_to_another_address_by_itself() {
    for (kind, _, _, seen) in called(false) {
        assert!(!seen.head.contains("5f3a"), "{kind} got a key: {}", seen.head);
    }
}
