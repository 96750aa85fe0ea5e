//! Prompts filled in and called over HTTP. What a render answers is read by our own callers (`messages`, `config`, …) and by Portkey's
//! (`success`, `data`: the body of a chat completion).

use super::{Name, library, name_of};
use crate::gateway::Gateway;
use crate::gateway::admin::{Fields, blocking, wrong};
use crate::gateway::body::Json;
use crate::gateway::entry::Entry;
use crate::gateway::error::ApiError;
use crate::gateway::openai::{chat, check, prompt};
use crate::types::Failure;
use crate::types::told::NamedPrompt;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

/// `POST /v1/prompts/{name}/render`: `{"version" or "label": …, "variables": {…}}`. The name may carry the version: `greet@production`.
/// Other fields override the prompt's own in `data`.
pub async fn render(State(gateway): State<Gateway>, name: Name, request: Request) -> Result<Json<Value>, ApiError> {
    let name = name_of(name)?;
    let mut fields = as_chat(&name, Fields::of(&gateway, request).await?.rest())?;
    prompt::read(&mut fields)?;
    Ok(Json(blocking(move || rendered(&gateway, fields)).await?))
}

/// `POST /v1/prompts/{name}/completions` (Portkey's): a chat completion of the prompt; other fields than `variables` are those of a
/// chat completion.
pub async fn completions(State(gateway): State<Gateway>, name: Name, request: Request) -> Result<Response, ApiError> {
    let name = name_of(name)?;
    let entry = Entry::of(&gateway, request, "prompts.completions")?;
    let (gateway, ask, request) = entry.read(|fields, _| check::chat(as_chat(&name, fields)?)).await?;
    chat::called(&gateway, ask, request).await
}

/// A body of these paths as one of chat completions.
fn as_chat(name: &str, mut fields: Map<String, Value>) -> Result<Map<String, Value>, Failure> {
    fields.retain(|_, value| !value.is_null());
    let (id, selector) = name.split_once('@').map_or((name, None), |(id, selector)| (id, Some(selector)));
    let taken = ["version", "label", "variables"].iter().filter_map(|name| Some(((*name).to_string(), fields.shift_remove(*name)?)));
    let mut call: Map<_, _> = taken.collect();
    if let Some(selector) = selector {
        if call.contains_key("version") || call.contains_key("label") {
            return Err(wrong("version", "one version, in the path or in the body"));
        }
        call.insert("version".into(), selector.into());
    }
    call.insert("id".into(), id.into());
    fields.insert("prompt".into(), call.into());
    Ok(fields)
}

/// Fills in what a body of the one shape asks for. Blocking.
fn rendered(gateway: &Gateway, mut fields: Map<String, Value>) -> Result<Value, Failure> {
    let Some(Value::Object(mut call)) = fields.shift_remove("prompt") else { return Err(wrong("variables", "an object")) };
    let word = |name: &str| call.get(name).and_then(Value::as_str).map(str::to_string);
    let id = word("id").unwrap_or_default();
    let reference = word("version").or_else(|| word("label")).map_or(id.clone(), |selector| format!("{id}@{selector}"));
    let library = library(gateway);
    let version = library.get(&reference)?;
    let compiled = library.compile(&version)?;
    let messages = fields.shift_remove("messages").unwrap_or_default();
    let messages: Vec<_> = serde_json::from_value(messages).map_err(|_| wrong("messages", "a list of chat messages"))?;
    let mut object = |name: &str| call.shift_remove(name).and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let (variables, media) = (object("variables"), object("media"));
    let examples = Handle::current().block_on(gateway.app.inference.examples(&compiled, &variables))?;
    let filled = crate::inference::rendered(&compiled, (variables, media), &messages, &examples)?;
    // Without a model the name of the prompt stands there.
    let model = fields.shift_remove("model").filter(|model| *model != id).unwrap_or_else(|| json!(compiled.front.model));
    let named = NamedPrompt { name: version.prompt, version: version.version, digest: version.digest };
    let mut data = Map::from_iter([("model".to_string(), model), ("messages".to_string(), json!(filled.messages))]);
    data.extend(filled.parameters);
    data.extend(fields);
    Ok(json!({"success": true, "data": data, "messages": filled.messages, "config": compiled.front.config,
        "model": compiled.front.model, "output_schema": compiled.front.output_schema, "prompt": prompt::named(&named)}))
}
