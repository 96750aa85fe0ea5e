//! `GET /openapi.json`: our own surface as an OpenAPI 3.1 document, made from the route table and from the tables that requests are
//! checked against. A route without an entry here fails a test.

use super::admin::schema as admin;
use super::body::Json;
use super::openai::check;
use super::openai::evals::schema as evals;
use super::openai::files::{EXPIRES_S, PURPOSES};
use super::openai::fine_tuning::schema as tuning;
use super::prompts::schema as prompts;
use super::routes::{Access, access_of};
use super::shapes::{is, one, pages, whole};
use crate::access::Role;
use crate::jobs::batch::ENDPOINTS;
use serde_json::{Map, Value, json};

/// One operation of the document.
pub struct Operation {
    /// Pattern in the route table.
    pub route: &'static str,
    /// `get`, `post`, `patch`, `delete`.
    method: &'static str,
    /// `operationId`.
    id: &'static str,
    summary: &'static str,
    body: Option<Body>,
    reply: fn() -> Value,
    /// Content type of the reply.
    kind: &'static str,
    /// Also answers `text/event-stream`.
    streams: bool,
    /// Role that it needs, where that is more than the route's.
    role: Option<Role>,
}

/// What a request brings.
#[derive(Clone, Copy)]
enum Body {
    Json(fn() -> Value),
    /// `multipart/form-data`.
    Form(fn() -> Value),
}

const JSON: &str = "application/json";

const fn get(route: &'static str, id: &'static str, summary: &'static str, reply: fn() -> Value) -> Operation {
    Operation { route, method: "get", id, summary, body: None, reply, kind: JSON, streams: false, role: None }
}

const fn post(route: &'static str, id: &'static str, summary: &'static str, body: fn() -> Value, reply: fn() -> Value) -> Operation {
    Operation { method: "post", body: Some(Body::Json(body)), ..get(route, id, summary, reply) }
}

const fn delete(route: &'static str, id: &'static str, summary: &'static str, reply: fn() -> Value) -> Operation {
    Operation { method: "delete", ..get(route, id, summary, reply) }
}

const fn patch(route: &'static str, id: &'static str, summary: &'static str, body: fn() -> Value, reply: fn() -> Value) -> Operation {
    Operation { method: "patch", ..post(route, id, summary, body, reply) }
}

const fn changes(operation: Operation) -> Operation {
    Operation { role: Some(Role::Developer), ..operation }
}

const fn streams(operation: Operation) -> Operation {
    Operation { streams: true, ..operation }
}

const CHAT: &str = "Answer a conversation";
const COMPLETION: &str = "Continue a text (older API)";
const EMBEDDINGS: &str = "Make vectors of texts";
const EVAL: &str = "/v1/evals/{id}";
const EVAL_RUN: &str = "/v1/evals/{id}/runs/{run}";
const EVAL_CANCEL: &str = "/v1/evals/{id}/runs/{run}/cancel";
const EVAL_ITEMS: &str = "/v1/evals/{id}/runs/{run}/output_items";
const LABEL: &str = "/v1/prompts/{name}/labels/{label}";
const ROLLBACK: &str = "/v1/prompts/{name}/labels/{label}/rollback";
const TUNING: &str = "/v1/fine_tuning/jobs";
const TUNED: &str = "/v1/fine_tuning/jobs/{id}";
const TUNED_CANCEL: &str = "/v1/fine_tuning/jobs/{id}/cancel";
const TUNED_PAUSE: &str = "/v1/fine_tuning/jobs/{id}/pause";
const TUNED_RESUME: &str = "/v1/fine_tuning/jobs/{id}/resume";
const TUNED_EVENTS: &str = "/v1/fine_tuning/jobs/{id}/events";
const CHECKPOINTS: &str = "/v1/fine_tuning/jobs/{id}/checkpoints";
const STORED: &str = "/v1/chat/completions/{id}";
const RESPONSE: &str = "Answer input items; a prompt may be called by name";

/// What stands under Azure's paths, too: in front of `/v1`, and whether a deployment can be named there, or nothing but `/openai`.
const AZURE: &[(&str, bool, bool)] = &[
    ("/v1/chat/completions", true, false),
    ("/v1/completions", true, false),
    ("/v1/embeddings", true, false),
    ("/v1/responses", true, true),
    ("/v1/models", true, true),
    ("/v1/files", false, true),
    ("/v1/batches", false, true),
    ("/v1/fine_tuning", false, true),
    ("/v1/evals", false, true),
];

/// Every operation.
pub const OPERATIONS: &[Operation] = &[
    get("/health", "health", "Whether this process answers", health),
    get("/ready", "ready", "Whether requests should be sent here", ready),
    get("/status", "status", "What is in force and what is wrong; more with a key of the role viewer", status),
    Operation { kind: "application/openmetrics-text", ..get("/metrics", "metrics", "Metrics in the OpenMetrics text format", text) },
    get("/openapi.json", "openapi", "This document", object),
    Operation {
        kind: "application/schema+json",
        ..get("/schemas/prompt.json", "promptSchema", "JSON Schema of a prompt's front matter, for editors", object)
    },
    streams(post("/v1/chat/completions", "createChatCompletion", CHAT, check::chat_schema, chat_reply)),
    get("/v1/chat/completions", "listChatCompletions", "Completions that were stored (store: true), oldest first", stored_list),
    get(STORED, "getChatCompletion", "One of them", stored_reply),
    post(STORED, "updateChatCompletion", "Give it other metadata", stored_update, stored_reply),
    delete(STORED, "deleteChatCompletion", "Store it no longer", stored_deleted),
    get("/v1/chat/completions/{id}/messages", "getChatCompletionMessages", "What was asked", stored_messages),
    streams(post("/v1/completions", "createCompletion", COMPLETION, check::completion_schema, completion_reply)),
    post("/v1/embeddings", "createEmbedding", EMBEDDINGS, check::embedding_schema, embedding_reply),
    post("/v1/moderations", "createModeration", "Ask a model what it thinks of texts", check::moderation_schema, moderation_reply),
    streams(post("/v1/responses", "createResponse", RESPONSE, response_schema, response_reply)),
    streams(post("/v1/messages", "createMessage", "Answer a conversation (Anthropic's Messages API)", message_schema, message_reply)),
    post("/v1/messages/count_tokens", "countTokens", "Count the tokens of a conversation", count_schema, count_reply),
    get("/v1/models", "listModels", "Routes with a live release, and models that can be called", list_reply),
    get("/v1/models/{*id}", "getModel", "One of them", model_reply),
    Operation { body: Some(Body::Form(upload_schema)), ..post("/v1/files", "createFile", "Upload a file", object, file_reply) },
    get("/v1/files", "listFiles", "The project's files, newest first", files_reply),
    get("/v1/files/{id}", "getFile", "One of them", file_reply),
    delete("/v1/files/{id}", "deleteFile", "Take it away", deleted_reply),
    Operation { kind: "application/octet-stream", ..get("/v1/files/{id}/content", "getFileContent", "Its bytes", text) },
    post("/v1/batches", "createBatch", "Answer the requests of a file when there is time", batch_schema, batch_reply),
    get("/v1/batches", "listBatches", "The project's batches, newest first", batches_reply),
    get("/v1/batches/{id}", "getBatch", "How far one of them is", batch_reply),
    post(TUNING, "createFineTuningJob", "Fine-tune a model: a local one here, a provider's there", tuning::new_job, tuning::job),
    get(TUNING, "listFineTuningJobs", "The project's fine-tuning jobs, newest first", tuning::jobs),
    get(TUNED, "getFineTuningJob", "How far one of them is", tuning::job),
    Operation { method: "post", ..get(TUNED_CANCEL, "cancelFineTuningJob", "Stop it", tuning::job) },
    Operation { method: "post", ..get(TUNED_PAUSE, "pauseFineTuningJob", "Stop it so that it can go on", tuning::job) },
    Operation { method: "post", ..get(TUNED_RESUME, "resumeFineTuningJob", "Go on with a paused one", tuning::job) },
    get(TUNED_EVENTS, "listFineTuningEvents", "What happened, newest first; the numbers of every step", tuning::events),
    get(CHECKPOINTS, "listFineTuningCheckpoints", "The checkpoint that its model is", tuning::checkpoints),
    post("/v1/evals", "createEval", "Say what is tested, and by which criteria", evals::new_eval, evals::eval),
    get("/v1/evals", "listEvals", "The project's evals, oldest first", evals::evals),
    get(EVAL, "getEval", "One of them", evals::eval),
    post(EVAL, "updateEval", "Another name, other labels", evals::changes, evals::eval),
    delete(EVAL, "deleteEval", "Take it away with its runs", evals::deleted),
    post("/v1/evals/{id}/runs", "createEvalRun", "Test a source of items", evals::new_run, evals::run),
    get("/v1/evals/{id}/runs", "getEvalRuns", "An eval's runs, oldest first", evals::runs),
    get(EVAL_RUN, "getEvalRun", "How far one of them is", evals::run),
    delete(EVAL_RUN, "deleteEvalRun", "Take it away with its items", evals::deleted_run),
    Operation { method: "post", ..get(EVAL_RUN, "cancelEvalRunShort", "Stop it (older clients)", evals::run) },
    Operation { method: "post", ..get(EVAL_CANCEL, "cancelEvalRun", "Stop it; what was graded stays", evals::run) },
    get(EVAL_ITEMS, "getEvalRunOutputItems", "What became of its items", evals::items),
    get("/v1/evals/{id}/runs/{run}/output_items/{item}", "getEvalRunOutputItem", "One of them", evals::item),
    post("/v1/feedback", "createFeedback", "Say what a logged request was worth", feedback_schema, feedback_reply),
    get("/v1/feedback", "listFeedback", "What was said of a request", feedbacks_reply),
    get("/v1/reviews", "listReviews", "What was proposed for datasets", reviews_reply),
    get("/v1/reviews/{id}", "getReview", "One proposal with what was said of it", review_reply),
    post("/v1/reviews/{id}", "createReview", "Accept, edit or reject it", review_schema, review_reply),
    get("/v1/reviews/agreement/{dataset}", "getAgreement", "How often two reviewers say the same", agreement_reply),
    Operation { method: "post", ..get("/v1/batches/{id}/cancel", "cancelBatch", "Stop it; what was answered stays", batch_reply) },
    get("/v1/prompts", "listPrompts", "Prompts with their newest version and labels", prompts::versions),
    changes(post("/v1/prompts", "publishPrompt", "Publish another version", prompts::new_version, prompts::version)),
    get("/v1/prompts/{name}", "getPrompt", "Versions and labels of one of them", prompts::prompt),
    get("/v1/prompts/{name}/versions/{version}", "getPromptVersion", "One version with its source", prompts::version),
    get("/v1/prompts/{name}/history", "listPromptMoves", "Every move of its labels", prompts::label_moves),
    changes(post(LABEL, "promotePrompt", "Point a label at a version", prompts::promotion, prompts::label_move)),
    changes(delete(LABEL, "removePromptLabel", "Take a label away", prompts::label_move)),
    changes(post(ROLLBACK, "rollbackPrompt", "Point a label back to where it stood", prompts::rollback, prompts::label_move)),
    post("/v1/prompts/{name}/render", "renderPrompt", "Fill in variables", prompts::call, prompts::rendered),
    streams(post("/v1/prompts/{name}/completions", "completePrompt", "Call a prompt", prompts::completion, chat_reply)),
    get("/api/public/v2/prompts", "listPromptsV2", "Prompts, for Langfuse's clients", prompts::langfuse_list),
    get("/api/public/v2/prompts/{name}", "getPromptV2", "One of them, for Langfuse's clients", prompts::langfuse),
    get("/admin/v1/keys", "listKeys", "Every key, revoked ones too; the secrets are not kept", admin::keys),
    post("/admin/v1/keys", "createKey", "Make a key; its secret is in this reply alone", admin::new_key, admin::key_with_secret),
    get("/admin/v1/keys/{id}", "getKey", "One of them", admin::key),
    patch("/admin/v1/keys/{id}", "updateKey", "Change what is named; null takes away", admin::key_changes, admin::key),
    delete("/admin/v1/keys/{id}", "revokeKey", "Revoke it; its next request is refused", admin::key),
    Operation { method: "post", ..get("/admin/v1/keys/{id}/rotate", "rotateKey", "Give it another secret", admin::key_with_secret) },
    get("/admin/v1/projects", "listProjects", "Projects with a key or a limit", admin::projects),
    get("/admin/v1/projects/{name}", "getProject", "One of them", admin::project),
    patch("/admin/v1/projects/{name}", "updateProject", "Change its limits; null takes away", admin::project_changes, admin::project),
    get("/admin/v1/usage", "readUsage", "What was used: an admin sees every project, others their own", admin::usage),
];

/// The handler.
pub async fn serve() -> Json<Value> {
    Json(document())
}

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    let mut add = |path: &str, operation: &Operation, id: String| {
        let path = path.replace("{*", "{");
        let entry = paths.entry(path.clone()).or_insert_with(|| json!({}));
        entry[operation.method] = described(operation, &path, &id);
    };
    for operation in OPERATIONS {
        add(operation.route, operation, operation.id.to_string());
    }
    for operation in OPERATIONS {
        for (prefix, name) in aliases(operation.route) {
            add(&format!("{prefix}{}", &operation.route["/v1".len()..]), operation, format!("{name}-{}", operation.id));
        }
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
                "basic": {"type": "http", "scheme": "basic", "description": "The password is the key"},
            },
            "schemas": {"Error": error_schema(), "MessagesError": messages_error_schema()},
        },
    })
}

/// Azure's prefixes of a route, each with what its operations are called.
fn aliases(route: &str) -> Vec<(&'static str, &'static str)> {
    let within = |family: &str| route.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some((family, deployments, bare)) = AZURE.iter().find(|(family, ..)| within(family)) else { return Vec::new() };
    let mut aliases = vec![("/openai/v1", "azure-v1")];
    aliases.extend((*deployments && route == *family).then_some(("/openai/deployments/{deployment}", "azure-deployment")));
    aliases.extend(bare.then_some(("/openai", "azure")));
    aliases
}

fn described(operation: &Operation, path: &str, id: &str) -> Value {
    let error = if path.starts_with("/v1/messages") { "MessagesError" } else { "Error" };
    let mut content = Map::new();
    content.insert(operation.kind.into(), json!({"schema": (operation.reply)()}));
    if operation.streams {
        content.insert("text/event-stream".into(), json!({"schema": {"type": "string"}}));
    }
    let refused = json!({"description": "Refused or failed; the body says why and what to do",
        "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{error}")}}}});
    let mut entry = json!({"operationId": id, "summary": operation.summary,
        "responses": {"200": {"description": "The answer", "content": content}, "4XX": refused, "5XX": refused}});
    match operation.body {
        Some(Body::Json(schema)) => entry["requestBody"] = json!({"required": true, "content": {JSON: {"schema": schema()}}}),
        Some(Body::Form(schema)) => {
            entry["requestBody"] = json!({"required": true, "content": {"multipart/form-data": {"schema": schema()}}})
        }
        None => {}
    }
    let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = named.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}));
    let in_query = queries(operation.id).into_iter().map(|(name, schema)| json!({"name": name, "in": "query", "schema": schema}));
    let parameters: Vec<_> = in_path.chain(in_query).collect();
    if !parameters.is_empty() {
        entry["parameters"] = parameters.into();
    }
    let access = access_of(operation.route);
    if let Some(Access::Key(role)) = access {
        entry["x-refit-role"] = operation.role.unwrap_or(role).word().into();
    }
    let public = access == Some(Access::Public);
    let keys = || json!([{"bearer": []}, {"x-api-key": []}, {"api-key": []}, {"basic": []}]);
    entry["security"] = if public { json!([]) } else { keys() };
    entry
}

/// Fields of the query strings of lists.
fn queries(id: &str) -> Vec<(&'static str, Value)> {
    let limit = |most: u32| ("limit", json!({"type": "integer", "minimum": 1, "maximum": most}));
    match id {
        "listFiles" => vec![("purpose", text()), ("after", text()), limit(10_000), ("order", json!({"enum": ["asc", "desc"]}))],
        "readUsage" => admin::usage_query(),
        "listBatches" | "listFineTuningJobs" | "listFineTuningEvents" | "listFineTuningCheckpoints" => vec![("after", text()), limit(100)],
        "removePromptLabel" => vec![("message", text()), ("force", json!({"enum": ["true", "false"]}))],
        "listPromptsV2" => vec![("name", text()), ("label", text()), ("page", json!({"type": "integer", "minimum": 1})), limit(100)],
        "getPromptV2" => vec![("version", text()), ("label", text())],
        "listFeedback" => ["request_id", "completion_id", "trace_id", "conversation_id"].map(|name| (name, text())).to_vec(),
        _ => Vec::new(),
    }
}

fn object() -> Value {
    json!({"type": "object"})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn health() -> Value {
    whole(&[("status", one("ok")), ("version", is("string"))])
}

fn ready() -> Value {
    whole(&[("status", one("ready"))])
}

fn status() -> Value {
    whole(&[("status", json!({"enum": ["ok", "failing", "draining"]})), ("version", is("string"))])
}

fn error_schema() -> Value {
    let error = whole(&[
        ("message", is("string")),
        ("type", is("string")),
        ("param", json!({"type": ["string", "null"]})),
        ("code", json!({"type": ["string", "null"]})),
    ]);
    whole(&[("error", error)])
}

fn messages_error_schema() -> Value {
    let error = whole(&[("type", is("string")), ("message", is("string"))]);
    whole(&[("type", one("error")), ("error", error)])
}

fn chat_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("chat.completion")),
        ("created", is("integer")),
        ("model", is("string")),
        ("choices", json!({"type": "array", "items": {"type": "object"}})),
    ])
}

fn stored_reply() -> Value {
    let mut schema = chat_reply();
    schema["properties"]["metadata"] = is("object");
    schema["properties"]["request_id"] = is("string");
    schema
}

fn stored_list() -> Value {
    pages(stored_reply())
}

fn stored_update() -> Value {
    let metadata = json!({"type": ["object", "null"], "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": 16});
    json!({"type": "object", "additionalProperties": false, "required": ["metadata"], "properties": {"metadata": metadata}})
}

fn stored_deleted() -> Value {
    whole(&[("id", is("string")), ("object", one("chat.completion.deleted")), ("deleted", json!({"const": true}))])
}

fn stored_messages() -> Value {
    pages(whole(&[("id", is("string")), ("role", is("string"))]))
}

fn review_schema() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["verdict"], "properties": {
        "verdict": {"enum": crate::jobs::data::review::VERDICTS},
        "sample": {"type": ["object", "null"]},
        "comment": {"type": ["string", "null"], "maxLength": 1024},
        "settles": {"type": ["boolean", "null"]},
    }})
}

fn review_reply() -> Value {
    whole(&[("id", is("string")), ("dataset", is("string")), ("sample", is("object")), ("status", is("string"))])
}

fn reviews_reply() -> Value {
    pages(review_reply())
}

fn agreement_reply() -> Value {
    whole(&[("items", is("integer")), ("agreed", is("integer")), ("kappa", json!({"type": ["number", "null"]}))])
}

fn completion_reply() -> Value {
    let mut schema = chat_reply();
    schema["properties"]["object"] = one("text_completion");
    schema
}

fn embedding_reply() -> Value {
    whole(&[("object", one("list")), ("data", is("array")), ("model", is("string")), ("usage", is("object"))])
}

fn moderation_reply() -> Value {
    whole(&[("id", is("string")), ("model", is("string")), ("results", json!({"type": "array", "items": {"type": "object"}}))])
}

fn response_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("response")),
        ("created_at", is("integer")),
        ("status", json!({"enum": ["completed", "incomplete"]})),
        ("model", is("string")),
        ("output", json!({"type": "array", "items": {"type": "object"}})),
    ])
}

fn message_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("type", one("message")),
        ("role", one("assistant")),
        ("model", is("string")),
        ("content", json!({"type": "array", "items": {"type": "object"}})),
        ("usage", is("object")),
    ])
}

fn count_reply() -> Value {
    whole(&[("input_tokens", is("integer"))])
}

fn model_reply() -> Value {
    whole(&[("id", is("string")), ("object", one("model")), ("created", is("integer")), ("owned_by", is("string"))])
}

fn list_reply() -> Value {
    pages(model_reply())
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

fn upload_schema() -> Value {
    json!({"type": "object", "required": ["purpose", "file"], "properties": {
        "purpose": {"enum": PURPOSES},
        "file": {"type": "string", "format": "binary"},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": {"type": "integer", "minimum": EXPIRES_S.start(), "maximum": EXPIRES_S.end()},
    }})
}

fn file_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("file")),
        ("bytes", is("integer")),
        ("created_at", is("integer")),
        ("filename", is("string")),
        ("purpose", is("string")),
        ("status", one("processed")),
    ])
}

fn files_reply() -> Value {
    pages(file_reply())
}

fn deleted_reply() -> Value {
    whole(&[("id", is("string")), ("object", one("file")), ("deleted", json!({"const": true}))])
}

fn batch_schema() -> Value {
    json!({"type": "object", "required": ["input_file_id", "endpoint", "completion_window"], "properties": {
        "input_file_id": {"type": "string"},
        "endpoint": {"enum": ENDPOINTS},
        "completion_window": {"const": "24h"},
        "metadata": {"type": ["object", "null"], "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}},
        "output_expires_after": {"type": ["object", "null"], "required": ["anchor", "seconds"], "properties": {
            "anchor": {"const": "created_at"},
            "seconds": {"type": "integer", "minimum": EXPIRES_S.start(), "maximum": EXPIRES_S.end()},
        }},
    }})
}

fn batch_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("batch")),
        ("endpoint", is("string")),
        ("input_file_id", is("string")),
        ("completion_window", is("string")),
        ("status", is("string")),
        ("created_at", is("integer")),
        ("request_counts", whole(&[("total", is("integer")), ("completed", is("integer")), ("failed", is("integer"))])),
    ])
}

fn batches_reply() -> Value {
    pages(batch_reply())
}

fn feedback_schema() -> Value {
    let short = |most: u32| json!({"type": ["string", "null"], "maxLength": most});
    json!({"type": "object", "required": ["target", "name", "value"], "additionalProperties": false, "properties": {
        "target": {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false, "properties": {
            "request_id": text(), "completion_id": text(), "trace_id": text(), "conversation_id": text()}},
        "name": {"type": "string", "minLength": 1, "maxLength": 64},
        "value": {"type": ["number", "boolean", "string"]},
        "comment": short(16_384), "correction": short(131_072), "source": short(64), "id": short(128),
    }})
}

fn feedback_reply() -> Value {
    whole(&[
        ("id", is("string")),
        ("object", one("feedback")),
        ("request_id", is("string")),
        ("name", is("string")),
        ("value", json!({"type": ["number", "boolean", "string"]})),
        ("created_at", is("integer")),
    ])
}

fn feedbacks_reply() -> Value {
    whole(&[("object", one("list")), ("data", json!({"type": "array", "items": feedback_reply()}))])
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
