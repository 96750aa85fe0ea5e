//! The one table of names that OpenTelemetry gives things (GenAI semantic conventions 1.41, and those to come), and of what it calls our
//! endpoints and providers. A name stands nowhere else.

use crate::config::telemetry::Conventions;

/// A name in both conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    released: &'static str,
    latest: &'static str,
}

impl Name {
    /// The name in one of them.
    pub fn of(self, conventions: Conventions) -> &'static str {
        match conventions {
            Conventions::V1_41 => self.released,
            Conventions::Latest => self.latest,
        }
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $ident:ident = $released:literal $(, $latest:literal)?;)*) => {
        $($(#[$doc])* pub const $ident: Name = names!(@one $released $(, $latest)?);)*
        /// Every name, for documentation and tests.
        pub const ALL: &[Name] = &[$($ident),*];
    };
    (@one $released:literal) => { Name { released: $released, latest: $released } };
    (@one $released:literal, $latest:literal) => { Name { released: $released, latest: $latest } };
}

names! {
    /// `chat`, `embeddings`.
    OPERATION = "gen_ai.operation.name";
    /// What [`provider`] says.
    PROVIDER = "gen_ai.provider.name";
    /// The model that was asked for.
    REQUEST_MODEL = "gen_ai.request.model";
    /// Bound of the reply's tokens.
    MAX_TOKENS = "gen_ai.request.max_tokens";
    /// Sampling temperature.
    TEMPERATURE = "gen_ai.request.temperature";
    /// Nucleus sampling.
    TOP_P = "gen_ai.request.top_p";
    /// Sampling among so many.
    TOP_K = "gen_ai.request.top_k";
    /// Seed.
    SEED = "gen_ai.request.seed";
    /// Texts that end the reply.
    STOP_SEQUENCES = "gen_ai.request.stop_sequences";
    /// Penalty.
    FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty";
    /// Penalty.
    PRESENCE_PENALTY = "gen_ai.request.presence_penalty";
    /// Number of replies, where it is not one.
    CHOICE_COUNT = "gen_ai.request.choice.count";
    /// Whether the reply was streamed.
    STREAM = "gen_ai.request.stream";
    /// `text`, `json`.
    OUTPUT_TYPE = "gen_ai.output.type";
    /// Id of the reply.
    RESPONSE_ID = "gen_ai.response.id";
    /// Why the reply ended.
    FINISH_REASONS = "gen_ai.response.finish_reasons";
    /// Tokens read.
    INPUT_TOKENS = "gen_ai.usage.input_tokens";
    /// Tokens written.
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens";
    /// Of those read, from the provider's cache.
    CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens";
    /// Of those read, put into the provider's cache.
    CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens";
    /// Of those written, of reasoning.
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens";
    /// Conversation.
    CONVERSATION = "gen_ai.conversation.id";
    /// Prompt that was rendered.
    PROMPT = "gen_ai.prompt.name";
    /// Number of its version.
    PROMPT_VERSION = "refit.prompt.version";
    /// Messages, where content is exported.
    INPUT_MESSAGES = "gen_ai.input.messages";
    /// Replies, where content is exported.
    OUTPUT_MESSAGES = "gen_ai.output.messages";
    /// System messages, where content is exported.
    SYSTEM_INSTRUCTIONS = "gen_ai.system_instructions";
    /// `input` or `output`.
    TOKEN_TYPE = "gen_ai.token.type";
    /// Host of the provider.
    SERVER_ADDRESS = "server.address";
    /// Its port.
    SERVER_PORT = "server.port";
    /// Code of an error.
    ERROR_TYPE = "error.type";
    /// Method of a request.
    HTTP_METHOD = "http.request.method";
    /// Path of the route table.
    HTTP_ROUTE = "http.route";
    /// Status of the reply.
    HTTP_STATUS = "http.response.status_code";
    /// Event of an error.
    EXCEPTION = "exception";
    /// Its kind.
    EXCEPTION_TYPE = "exception.type";
    /// Event of a judgement.
    EVALUATION_RESULT = "gen_ai.evaluation.result";
    /// What was judged.
    EVALUATION_NAME = "gen_ai.evaluation.name";
    /// As a number.
    EVALUATION_SCORE = "gen_ai.evaluation.score.value";
    /// As a word.
    EVALUATION_LABEL = "gen_ai.evaluation.score.label";
    /// Why.
    EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation";
    /// Metric: time of a call.
    DURATION = "gen_ai.client.operation.duration", "gen_ai.client.inference.duration";
    /// Metric: time to the first chunk.
    FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk", "gen_ai.client.inference.time_to_first_chunk";
    /// Metric: tokens read by a call. Released: one metric for both, told apart by [`TOKEN_TYPE`].
    CALL_INPUT_TOKENS = "gen_ai.client.token.usage", "gen_ai.client.inference.operation.input_tokens";
    /// Metric: tokens written by a call.
    CALL_OUTPUT_TOKENS = "gen_ai.client.token.usage", "gen_ai.client.inference.operation.output_tokens";
    /// Our own.
    PROJECT = "refit.project";
    /// Our own.
    ROUTE = "refit.route";
    /// Our own.
    RELEASE = "refit.release";
    /// Our own.
    REQUEST_ID = "refit.request_id";
    /// Our own: `hit`, `semantic`, `miss`.
    CACHE = "refit.cache";
    /// Our own: calls of providers.
    ATTEMPTS = "refit.attempts";
    /// Our own: micro-dollars.
    COST = "refit.cost_micro_usd";
    /// Our own: milliseconds in queues.
    QUEUE_MS = "refit.queue_ms";
    /// Our own: milliseconds that were neither a queue's nor a provider's.
    OVERHEAD_MS = "refit.overhead_ms";
    /// Our own: who judged.
    SOURCE = "refit.feedback.source";
    /// Our own metric: requests.
    REQUESTS = "refit.requests";
    /// Our own metric: micro-dollars.
    COST_SUM = "refit.cost";
}

/// What an endpoint is called: its path, where it has one, and the operation.
pub struct Endpoint {
    /// `/v1/chat/completions`.
    pub path: Option<&'static str>,
    /// `chat`.
    pub operation: &'static str,
}

/// Our word for an endpoint, as the conventions have it.
pub fn endpoint(word: &str) -> Endpoint {
    let (path, operation) = match word {
        "chat.completions" => (Some("/v1/chat/completions"), "chat"),
        "responses" => (Some("/v1/responses"), "chat"),
        "messages" => (Some("/v1/messages"), "chat"),
        "messages.count_tokens" => (Some("/v1/messages/count_tokens"), "count_tokens"),
        "completions" => (Some("/v1/completions"), "text_completion"),
        "embeddings" => (Some("/v1/embeddings"), "embeddings"),
        "prompts.completions" => (Some("/v1/prompts/{name}/completions"), "chat"),
        _ => (None, "chat"),
    };
    Endpoint { path, operation }
}

/// A kind of provider, as the conventions name it; kinds that they do not know keep their own word.
pub fn provider(kind: &str) -> &str {
    match kind {
        "azure" => "azure.ai.openai",
        "gemini" => "gcp.gemini",
        "mistral" => "mistral_ai",
        "xai" => "x_ai",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conventions_differ_where_they_do() {
        let latest = |name: Name| name.of(Conventions::Latest);
        assert_eq!((INPUT_TOKENS.of(Conventions::V1_41), latest(INPUT_TOKENS)), ("gen_ai.usage.input_tokens", "gen_ai.usage.input_tokens"));
        assert_eq!(
            (DURATION.of(Conventions::V1_41), latest(DURATION)),
            ("gen_ai.client.operation.duration", "gen_ai.client.inference.duration")
        );
        let changed: Vec<_> = ALL.iter().filter(|name| latest(**name) != name.of(Conventions::V1_41)).collect();
        assert_eq!(changed.len(), 5, "{changed:?}");
    }
}
