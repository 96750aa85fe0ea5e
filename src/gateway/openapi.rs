//! `GET /openapi.json`: our own surface as an OpenAPI 3.1 document, made from the route table and from the tables that requests are
//! checked against. A route without an entry here fails a test.

use super::body::Json;
use super::openai::check;
use super::routes::{Access, access_of};
use serde_json::{Map, Value, json};

/// One operation of the document.
pub struct Operation {
    /// Pattern in the route table.
    pub route: &'static str,
    /// Path in the document, where that is another.
    path: Option<&'static str>,
    /// `get`, `post`, `delete`.
    method: &'static str,
    /// `operationId`; that of an alias is followed by its path.
    id: &'static str,
    summary: &'static str,
    body: Option<fn() -> Value>,
    reply: fn() -> Value,
    /// Also answers `text/event-stream`.
    streams: bool,
}

const fn get(route: &'static str, id: &'static str, summary: &'static str, reply: fn() -> Value) -> Operation {
    Operation { route, path: None, method: "get", id, summary, body: None, reply, streams: false }
}

const fn post(route: &'static str, id: &'static str, summary: &'static str, body: fn() -> Value, reply: fn() -> Value) -> Operation {
    Operation { route, path: None, method: "post", id, summary, body: Some(body), reply, streams: false }
}

const fn streams(operation: Operation) -> Operation {
    Operation { streams: true, ..operation }
}

const fn at(path: &'static str, operation: Operation) -> Operation {
    Operation { path: Some(path), ..operation }
}

const CHAT: &str = "Answer a conversation";
const COMPLETION: &str = "Continue a text (older API)";
const EMBEDDINGS: &str = "Make vectors of texts";
const RESPONSE: &str = "Answer input items; a prompt may be called by name";
const DEPLOYMENTS: &str = "/openai/deployments/{*call}";

/// Every operation.
pub const OPERATIONS: &[Operation] = &[
    get("/health", "health", "Whether this process answers", health),
    Operation { reply: text, ..get("/metrics", "metrics", "Metrics in the OpenMetrics text format", text) },
    get("/openapi.json", "openapi", "This document", object),
    streams(post("/v1/chat/completions", "createChatCompletion", CHAT, check::chat_schema, chat_reply)),
    streams(post("/v1/completions", "createCompletion", COMPLETION, check::completion_schema, completion_reply)),
    post("/v1/embeddings", "createEmbedding", EMBEDDINGS, check::embedding_schema, embedding_reply),
    streams(post("/v1/responses", "createResponse", RESPONSE, response_schema, response_reply)),
    streams(post("/v1/messages", "createMessage", "Answer a conversation (Anthropic's Messages API)", message_schema, message_reply)),
    post("/v1/messages/count_tokens", "countTokens", "Count the tokens of a conversation", count_schema, count_reply),
    get("/v1/models", "listModels", "Routes with a live release, and models that can be called", list_reply),
    get("/v1/models/{*id}", "getModel", "One of them", model_reply),
    streams(at(
        "/openai/deployments/{deployment}/chat/completions",
        post(DEPLOYMENTS, "azureChatCompletion", CHAT, check::chat_schema, chat_reply),
    )),
    streams(at(
        "/openai/deployments/{deployment}/completions",
        post(DEPLOYMENTS, "azureCompletion", COMPLETION, check::completion_schema, completion_reply),
    )),
    at(
        "/openai/deployments/{deployment}/embeddings",
        post(DEPLOYMENTS, "azureEmbedding", EMBEDDINGS, check::embedding_schema, embedding_reply),
    ),
    streams(at(
        "/openai/deployments/{deployment}/responses",
        post(DEPLOYMENTS, "azureDeploymentResponse", RESPONSE, response_schema, response_reply),
    )),
    at("/openai/deployments/{deployment}/models", get(DEPLOYMENTS, "azureModels", "Models", list_reply)),
    streams(post("/openai/responses", "azureResponse", RESPONSE, response_schema, response_reply)),
    streams(post("/openai/v1/responses", "azureV1Response", RESPONSE, response_schema, response_reply)),
    streams(post("/openai/v1/chat/completions", "azureV1ChatCompletion", CHAT, check::chat_schema, chat_reply)),
    streams(post("/openai/v1/completions", "azureV1Completion", COMPLETION, check::completion_schema, completion_reply)),
    post("/openai/v1/embeddings", "azureV1Embedding", EMBEDDINGS, check::embedding_schema, embedding_reply),
    get("/openai/v1/models", "azureV1Models", "Models", list_reply),
    get("/openai/v1/models/{*id}", "azureV1Model", "One of them", model_reply),
];

/// The handler.
pub async fn serve() -> Json<Value> {
    Json(document())
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = operation.path.unwrap_or(operation.route).replace("{*", "{");
        let entry = paths.entry(path.clone()).or_insert_with(|| json!({}));
        entry[operation.method] = described(operation, &path);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Refit",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "One address for every model: OpenAI's and Anthropic's APIs in front of any provider, local models included.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "schemas": {"Error": error_schema(), "MessagesError": messages_error_schema()},
        },
    })
}

fn described(operation: &Operation, path: &str) -> Value {
    let (reply, error) = ((operation.reply)(), if path.starts_with("/v1/messages") { "MessagesError" } else { "Error" });
    let mut content = Map::new();
    let kind = if operation.id == "metrics" { "application/openmetrics-text" } else { "application/json" };
    content.insert(kind.into(), json!({"schema": reply}));
    if operation.streams {
        content.insert("text/event-stream".into(), json!({"schema": {"type": "string"}}));
    }
    let refused = json!({"description": "Refused or failed; the body says why and what to do",
        "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{error}")}}}});
    let mut entry = json!({"operationId": operation.id, "summary": operation.summary,
        "responses": {"200": {"description": "The answer", "content": content}, "4XX": refused, "5XX": refused}});
    if let Some(body) = operation.body {
        entry["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": body()}}});
    }
    let parameters: Vec<_> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
    if !parameters.is_empty() {
        let one = |name: &&str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
        entry["parameters"] = parameters.iter().map(one).collect::<Vec<_>>().into();
    }
    let public = access_of(operation.route) == Some(Access::Public);
    entry["security"] = if public { json!([]) } else { json!([{"bearer": []}, {"x-api-key": []}, {"api-key": []}]) };
    entry
}

fn object() -> Value {
    json!({"type": "object"})
}

fn text() -> Value {
    json!({"type": "string"})
}

/// An object with these fields, all of them required; each is `(name, type)`.
fn with(fields: &[(&str, Value)]) -> Value {
    let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<_, _> = fields.iter().map(|(name, schema)| ((*name).to_string(), schema.clone())).collect();
    json!({"type": "object", "required": names, "properties": properties})
}

fn is(kind: &str) -> Value {
    json!({"type": kind})
}

fn one(word: &str) -> Value {
    json!({"const": word})
}

fn health() -> Value {
    with(&[("status", one("ok")), ("version", is("string"))])
}

fn error_schema() -> Value {
    let error = with(&[
        ("message", is("string")),
        ("type", is("string")),
        ("param", json!({"type": ["string", "null"]})),
        ("code", json!({"type": ["string", "null"]})),
    ]);
    with(&[("error", error)])
}

fn messages_error_schema() -> Value {
    let error = with(&[("type", is("string")), ("message", is("string"))]);
    with(&[("type", one("error")), ("error", error)])
}

fn chat_reply() -> Value {
    with(&[
        ("id", is("string")),
        ("object", one("chat.completion")),
        ("created", is("integer")),
        ("model", is("string")),
        ("choices", json!({"type": "array", "items": {"type": "object"}})),
    ])
}

fn completion_reply() -> Value {
    let mut schema = chat_reply();
    schema["properties"]["object"] = one("text_completion");
    schema
}

fn embedding_reply() -> Value {
    with(&[("object", one("list")), ("data", is("array")), ("model", is("string")), ("usage", is("object"))])
}

fn response_reply() -> Value {
    with(&[
        ("id", is("string")),
        ("object", one("response")),
        ("created_at", is("integer")),
        ("status", json!({"enum": ["completed", "incomplete"]})),
        ("model", is("string")),
        ("output", json!({"type": "array", "items": {"type": "object"}})),
    ])
}

fn message_reply() -> Value {
    with(&[
        ("id", is("string")),
        ("type", one("message")),
        ("role", one("assistant")),
        ("model", is("string")),
        ("content", json!({"type": "array", "items": {"type": "object"}})),
        ("usage", is("object")),
    ])
}

fn count_reply() -> Value {
    with(&[("input_tokens", is("integer"))])
}

fn model_reply() -> Value {
    with(&[("id", is("string")), ("object", one("model")), ("created", is("integer")), ("owned_by", is("string"))])
}

fn list_reply() -> Value {
    with(&[("object", one("list")), ("data", json!({"type": "array", "items": model_reply()})), ("has_more", is("boolean"))])
}

fn response_schema() -> Value {
    json!({"type": "object", "properties": {
        "model": check::model_schema(),
        "input": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
        "prompt": {"type": ["object", "null"], "required": ["id"], "properties": {"id": {"type": "string"}, "version": {"type": ["string", "null"]},
            "variables": {"type": ["object", "null"]}}},
        "reasoning": {"type": ["object", "null"]},
        "stream": {"type": ["boolean", "null"]},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "text": {"type": ["object", "null"]},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_choice": {"type": ["string", "object", "null"]},
        "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    }})
}

fn message_schema() -> Value {
    let block = json!({"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}});
    let content = json!({"oneOf": [{"type": "string"}, {"type": "array", "items": block}]});
    json!({"type": "object", "required": ["model", "messages", "max_tokens"], "properties": {
        "model": check::model_schema(),
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role", "content"],
            "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": content}}},
        "max_tokens": {"type": "integer", "minimum": 1},
        "system": {"oneOf": [{"type": "string"}, {"type": "array", "items": block}]},
        "stop_sequences": {"type": "array", "items": {"type": "string"}},
        "stream": {"type": "boolean"},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        "tools": {"type": "array", "items": {"type": "object"}},
        "tool_choice": {"type": "object"},
        "thinking": {"type": "object"},
        "output_config": {"type": "object"},
    }})
}

fn count_schema() -> Value {
    let mut schema = message_schema();
    schema["required"] = json!(["model", "messages"]);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routes::table;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let routes: BTreeSet<_> = table().iter().map(|route| route.path).collect();
        let described: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.route).collect();
        assert_eq!(routes, described);
        let ids: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(ids.len(), OPERATIONS.len(), "operation ids are unique");
    }
}
