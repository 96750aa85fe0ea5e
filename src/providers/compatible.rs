//! Services that speak OpenAI's chat API, one row each: where they are, which variable holds their key, what they do differently.
//! Base URLs are from each service's API reference.

/// One OpenAI-compatible service.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The word of the registry and default name of the provider.
    pub kind: &'static str,
    /// Base URL; `None` where the user must give one.
    pub base_url: Option<&'static str>,
    /// Variable that holds the API key; `None` where none is needed.
    pub key_variable: Option<&'static str>,
    /// What it does differently.
    pub quirks: Quirks,
}

/// Differences from OpenAI's own API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks {
    /// Does not take `stream_options`; reports usage in streams by itself, or not at all.
    pub no_stream_options: bool,
    /// Knows `max_tokens` only, not `max_completion_tokens`.
    pub old_token_limit: bool,
    /// Calls the seed `random_seed`.
    pub random_seed: bool,
    /// Takes Anthropic's `cache_control`; others refuse fields that they do not know, so that it is left out for them.
    pub cache_control: bool,
    /// What becomes of `reasoning_content` in the conversation.
    pub thoughts: Thoughts,
}

/// What becomes of `reasoning_content` in an assistant's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thoughts {
    /// Sent on where the caller wrote it: servers with templates for it read it, others skip it.
    #[default]
    AsSent,
    /// Left out: the service refuses messages that hold it.
    Refused,
    /// Wanted back with every message that calls tools (DeepSeek API reference, "Thinking mode").
    WithCalls,
}

const PLAIN: Quirks =
    Quirks { no_stream_options: false, old_token_limit: false, random_seed: false, cache_control: false, thoughts: Thoughts::AsSent };
const STRICT: Quirks = Quirks { thoughts: Thoughts::Refused, ..PLAIN };
const OLD_LIMIT: Quirks = Quirks { old_token_limit: true, ..PLAIN };
const OLD_STREAM: Quirks = Quirks { no_stream_options: true, ..OLD_LIMIT };
const MISTRAL: Quirks = Quirks { random_seed: true, thoughts: Thoughts::Refused, ..OLD_STREAM };
const DEEPSEEK: Quirks = Quirks { thoughts: Thoughts::WithCalls, ..OLD_LIMIT };
const OPENROUTER: Quirks = Quirks { cache_control: true, ..OLD_LIMIT };

/// OpenAI's own API.
pub const OPENAI: Quirks = STRICT;

const fn hosted(kind: &'static str, base_url: &'static str, key_variable: &'static str, quirks: Quirks) -> Row {
    Row { kind, base_url: Some(base_url), key_variable: Some(key_variable), quirks }
}

const fn own(kind: &'static str, base_url: &'static str) -> Row {
    Row { kind, base_url: Some(base_url), key_variable: None, quirks: OLD_LIMIT }
}

/// The rows. `compatible` is any other server, at a base URL of the configuration.
pub const ROWS: &[Row] = &[
    hosted("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", OPENAI),
    Row { kind: "compatible", base_url: None, key_variable: None, quirks: PLAIN },
    hosted("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", STRICT),
    hosted("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", MISTRAL),
    hosted("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", OLD_LIMIT),
    hosted("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", OLD_LIMIT),
    hosted("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", DEEPSEEK),
    hosted("xai", "https://api.x.ai/v1", "XAI_API_KEY", PLAIN),
    hosted("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", OPENROUTER),
    hosted("perplexity", "https://api.perplexity.ai", "PERPLEXITY_API_KEY", OLD_STREAM),
    own("ollama", "http://127.0.0.1:11434/v1"),
    own("vllm", "http://127.0.0.1:8000/v1"),
    own("llamacpp", "http://127.0.0.1:8080/v1"),
    own("lmstudio", "http://127.0.0.1:1234/v1"),
];

/// The row of a kind.
pub fn row(kind: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_knows_exactly_these_kinds() {
        let mut rows: Vec<_> = ROWS.iter().map(|row| row.kind).chain(crate::providers::registry::own_kinds()).collect();
        let mut kinds = crate::config::providers::KINDS.to_vec();
        rows.sort_unstable();
        kinds.sort_unstable();
        assert_eq!(rows, kinds);
    }
}
