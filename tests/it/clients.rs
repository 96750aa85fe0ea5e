//! async-openai's client, unchanged, before every provider: plain, streamed, with tools, structured, embeddings, responses. The
//! providers are scripted with what their public API documents say they answer; `./test interop` does the same with other SDKs.

use crate::support::{self, Refit};
use crate::upstream::{Script, reply, stream, upstream};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::chat::{ChatCompletionMessageToolCalls, CreateChatCompletionRequest, FinishReason};
use async_openai::types::embeddings::CreateEmbeddingRequest;
use async_openai::types::responses::{CreateResponse, ResponseStreamEvent};
use futures_util::StreamExt;
use serde_json::{Value, json};

const TEXT: &str = "Hi grüße 🦀";
const STRUCTURED: &str = "{\"topic\": \"hi\", \"urgent\": false}";
/// A provider, a model there, and the protocol that it speaks. `mistral` is a row of the table.
const PROVIDERS: [(&str, Speaks); 5] = [
    ("openai", Speaks::Chat),
    ("azure", Speaks::Chat),
    ("mistral", Speaks::Chat),
    ("anthropic", Speaks::Messages),
    ("gemini", Speaks::Gemini),
];

#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    Chat,
    Messages,
    Gemini,
}

/// What a provider answers with.
#[derive(Clone, Copy)]
enum Says {
    Text(&'static str),
    Calls,
}

impl Speaks {
    fn whole(self, says: Says) -> Script {
        reply("200 OK", "", &self.body(says).to_string())
    }

    fn body(self, says: Says) -> Value {
        let call = |i: usize, city: &str| match self {
            Speaks::Chat => json!({"id": format!("call_{i}"), "type": "function",
                "function": {"name": "get_weather", "arguments": json!({"city": city}).to_string()}}),
            Speaks::Messages => json!({"type": "tool_use", "id": format!("toolu_{i}"), "name": "get_weather", "input": {"city": city}}),
            Speaks::Gemini => json!({"functionCall": {"id": format!("fc-{i}"), "name": "get_weather", "args": {"city": city}}}),
        };
        let calls = || [call(0, "Ulm"), call(1, "Bonn")];
        match self {
            Speaks::Chat => {
                let (message, finish) = match says {
                    Says::Text(text) => (json!({"role": "assistant", "content": text, "refusal": null}), "stop"),
                    Says::Calls => (json!({"role": "assistant", "content": null, "refusal": null, "tool_calls": calls()}), "tool_calls"),
                };
                json!({"id": "c", "object": "chat.completion", "created": 1_760_000_000, "model": "m",
                    "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": null}],
                    "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}})
            }
            Speaks::Messages => {
                let (content, stop) = match says {
                    Says::Text(text) => (json!([{"type": "text", "text": text}]), "end_turn"),
                    Says::Calls => (json!(calls()), "tool_use"),
                };
                json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content, "stop_reason": stop,
                    "stop_sequence": null, "usage": {"input_tokens": 20, "output_tokens": 5}})
            }
            Speaks::Gemini => {
                let parts = match says {
                    Says::Text(text) => json!([{"text": text}]),
                    Says::Calls => json!(calls()),
                };
                json!({"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
                    "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 5, "totalTokenCount": 25}, "responseId": "r-1"})
            }
        }
    }

    /// The text in two pieces.
    fn streamed(self) -> Script {
        let (first, second) = TEXT.split_at(TEXT.find('ü').expect("a letter of two bytes"));
        let events: Vec<(&str, Value)> = match self {
            Speaks::Chat => {
                let chunk = |delta: Value, finish: Value| {
                    json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": null}]})
                };
                let deltas = [json!({"role": "assistant", "content": ""}), json!({"content": first}), json!({"content": second})];
                deltas.into_iter().map(|delta| ("", chunk(delta, Value::Null))).chain([("", chunk(json!({}), json!("stop")))]).collect()
            }
            Speaks::Messages => {
                let delta = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
                let mut message = self.body(Says::Text(""));
                (message["content"], message["stop_reason"]) = (json!([]), Value::Null);
                let end = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 5}});
                vec![
                    ("message_start", json!({"type": "message_start", "message": message})),
                    (
                        "content_block_start",
                        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                    ),
                    ("content_block_delta", delta(first)),
                    ("content_block_delta", delta(second)),
                    ("content_block_stop", json!({"type": "content_block_stop", "index": 0})),
                    ("message_delta", end),
                    ("message_stop", json!({"type": "message_stop"})),
                ]
            }
            Speaks::Gemini => {
                let part = |text: &str| json!({"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}]});
                vec![("", part(first)), ("", part(second)), ("", self.body(Says::Text("")))]
            }
        };
        let written = |(kind, data): (&str, Value)| {
            if kind.is_empty() { format!("data: {data}\n\n") } else { format!("event: {kind}\ndata: {data}\n\n") }
        };
        let end = if self == Speaks::Chat { "data: [DONE]\n\n" } else { "" };
        stream(&(events.into_iter().map(written).collect::<String>() + end), 7)
    }

    fn embeddings(self) -> Script {
        let body = match self {
            Speaks::Gemini => json!({"embeddings": [{"values": [0.5, -1.25]}, {"values": [2.0, 0.0]}]}),
            _ => json!({"object": "list", "model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}, "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1.25]}, {"object": "embedding", "index": 1, "embedding": [2.0, 0.0]}]}),
        };
        reply("200 OK", "", &body.to_string())
    }
}

/// The client of a fresh server before a provider that answers with these scripts, in order.
fn before<T>(provider: &str, scripts: Vec<Script>, run: impl AsyncFnOnce(&Client<OpenAIConfig>) -> T) -> T {
    let (port, _seen) = upstream(scripts);
    let refit = Refit::new().env("UP_KEY", "sk-up");
    let config = format!("[providers.{provider}]\nbase_url = \"http://127.0.0.1:{port}\"\napi_key = {{ env = \"UP_KEY\" }}\n");
    refit.write("refit.toml", config);
    with_client(&refit, run)
}

fn with_client<T>(refit: &Refit, run: impl AsyncFnOnce(&Client<OpenAIConfig>) -> T) -> T {
    let (key, server) = (refit.key(), refit.serve(&[]));
    let config = OpenAIConfig::new().with_api_base(format!("{}/v1", server.url())).with_api_key(key);
    let client = Client::with_config(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&client))
}

fn request(model: &str, fields: Value) -> CreateChatCompletionRequest {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Say hi."}]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    serde_json::from_value(body).expect("a request")
}

async fn plain(client: &Client<OpenAIConfig>, request: CreateChatCompletionRequest) -> String {
    let reply = client.chat().create(request).await.expect("an answer");
    assert!(reply.usage.is_some_and(|usage| usage.total_tokens > 0));
    reply.choices[0].message.content.clone().expect("a text")
}

async fn streamed(client: &Client<OpenAIConfig>, request: CreateChatCompletionRequest) -> String {
    let mut stream = client.chat().create_stream(request).await.expect("a stream");
    let (mut text, mut finish) = (String::new(), None);
    while let Some(chunk) = stream.next().await {
        for choice in chunk.expect("a chunk").choices {
            text.extend(choice.delta.content);
            finish = choice.finish_reason.or(finish);
        }
    }
    assert!(matches!(finish, Some(FinishReason::Stop | FinishReason::Length)), "{finish:?}");
    text
}

#[test]
fn async_openai_chats_with_every_provider_plain_and_streamed() {
    for (provider, speaks) in PROVIDERS {
        let model = format!("{provider}/m");
        before(provider, vec![speaks.whole(Says::Text(TEXT)), speaks.streamed()], async |client| {
            assert_eq!(plain(client, request(&model, json!({}))).await, TEXT, "{provider}");
            assert_eq!(streamed(client, request(&model, json!({}))).await, TEXT, "{provider}");
        });
    }
}

#[test]
fn async_openai_gets_tools_and_structure_of_every_provider() {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tools = json!({"tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]});
    let schema = json!({"type": "object", "properties": {"topic": {"type": "string"}, "urgent": {"type": "boolean"}},
        "required": ["topic", "urgent"], "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "ticket", "strict": true, "schema": schema}}});
    for (provider, speaks) in PROVIDERS {
        let model = format!("{provider}/m");
        before(provider, vec![speaks.whole(Says::Calls), speaks.whole(Says::Text(STRUCTURED))], async |client| {
            let reply = client.chat().create(request(&model, tools.clone())).await.expect("an answer");
            assert_eq!(reply.choices[0].finish_reason, Some(FinishReason::ToolCalls), "{provider}");
            let calls = reply.choices[0].message.tool_calls.clone().expect("calls");
            let cities: Vec<_> = calls
                .iter()
                .map(|call| match call {
                    ChatCompletionMessageToolCalls::Function(call) => {
                        assert_eq!(call.function.name, "get_weather");
                        serde_json::from_str::<Value>(&call.function.arguments).expect("JSON")["city"].clone()
                    }
                    other => panic!("{provider}: {other:?}"),
                })
                .collect();
            assert_eq!(cities, ["Ulm", "Bonn"], "{provider}");
            let text = plain(client, request(&model, format.clone())).await;
            assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), json!({"topic": "hi", "urgent": false}), "{provider}");
        });
    }
}

#[test]
fn async_openai_embeds_where_there_are_embeddings() {
    let request = |model: String| -> CreateEmbeddingRequest {
        serde_json::from_value(json!({"model": model, "input": ["a", "b"], "encoding_format": "float"})).expect("a request")
    };
    for (provider, speaks) in PROVIDERS {
        before(provider, vec![speaks.embeddings()], async |client| {
            let got = client.embeddings().create(request(format!("{provider}/m"))).await;
            if speaks == Speaks::Messages {
                let refused = got.expect_err("Anthropic has none").to_string();
                assert!(refused.contains("makes no embeddings"), "{refused}");
                return;
            }
            let vectors: Vec<_> = got.expect("vectors").data.into_iter().map(|item| item.embedding).collect();
            assert_eq!(vectors, [[0.5, -1.25], [2.0, 0.0]], "{provider}");
        });
    }
}

#[test]
fn async_openai_gets_responses_of_every_provider() {
    for (provider, speaks) in PROVIDERS {
        let request: CreateResponse =
            serde_json::from_value(json!({"model": format!("{provider}/m"), "input": "Say hi."})).expect("a request");
        before(provider, vec![speaks.whole(Says::Text(TEXT)), speaks.streamed()], async |client| {
            let whole = client.responses().create(request.clone()).await.expect("a response");
            assert_eq!(whole.output_text().as_deref(), Some(TEXT), "{provider}");
            let mut stream = client.responses().create_stream(request).await.expect("a stream");
            let (mut text, mut completed) = (String::new(), None);
            while let Some(event) = stream.next().await {
                match event.expect("an event") {
                    ResponseStreamEvent::ResponseOutputTextDelta(delta) => text.push_str(&delta.delta),
                    ResponseStreamEvent::ResponseCompleted(end) => completed = end.response.output_text(),
                    _ => {}
                }
            }
            assert_eq!((text.as_str(), completed.as_deref()), (TEXT, Some(TEXT)), "{provider}");
        });
    }
}

#[test]
fn async_openai_chats_with_the_real_model() {
    if !cfg!(feature = "local") {
        return;
    }
    let Some(file) = support::model_file() else {
        support::skip("async_openai_chats_with_the_real_model", "REFIT_TEST_MODEL does not name the model file");
        return;
    };
    let refit = Refit::new();
    refit.run(&["model", "pull", &file.display().to_string(), "--name", "smollm"]).expect(0);
    with_client(&refit, async |client| {
        let request = request("local/smollm", json!({"temperature": 0, "max_completion_tokens": 12}));
        let whole = plain(client, request.clone()).await;
        assert!(!whole.trim().is_empty());
        assert_eq!(streamed(client, request).await, whole);
    });
}
