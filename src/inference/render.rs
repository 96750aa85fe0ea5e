//! A release, or a prompt called by its name, applied to a request: the prompt becomes the messages, its parameters fill what the
//! request leaves open.

use super::media::Media;
use super::plan::Plan;
use crate::prompts::parse::Prompt;
use crate::prompts::render::Input;
use crate::releases::Manifest;
use crate::types::chat::{ChatRequest, Message};
use crate::types::{Code, Failure};
use serde_json::{Map, Value};

/// Field of the request that carries the prompt's variables: `{"prompt": {"variables": {…}}}`; `media` has those that are no texts.
const PROMPT: &str = "prompt";
/// Parameters that a prompt's own `config` may set.
const PARAMETERS: &[&str] = &[
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "reasoning_effort",
    "top_k",
];
/// The same parameters by the names that dotprompt files use.
const OTHER_NAMES: &[(&str, &str)] = &[("maxOutputTokens", "max_tokens"), ("topP", "top_p"), ("topK", "top_k"), ("stopSequences", "stop")];

/// A prompt with its variables filled in.
pub struct Filled {
    /// The conversation.
    pub messages: Vec<Message>,
    /// The parameters that the prompt sets, by their wire names.
    pub parameters: Map<String, Value>,
}

/// Fills a prompt in as a call by its name would: with values, with parts of messages by the names of their variables, and with the
/// messages of its examples ([`super::Inference::examples`]).
///
/// # Errors
/// What a call would be refused for: variables that are missing or wrong.
pub fn rendered(
    prompt: &Prompt,
    (variables, media): (Map<String, Value>, Map<String, Value>),
    messages: &[Message],
    examples: &[Message],
) -> Result<Filled, Failure> {
    let given = Given { variables: Some(variables), media, is_named: true };
    let (messages, config) = filled(prompt, given, messages, examples)?;
    Ok(Filled { messages, parameters: parameters(&config) })
}

/// The parameters that a prompt's `config` sets, by their wire names.
pub(super) fn parameters(config: &Map<String, Value>) -> Map<String, Value> {
    let own_name =
        |name: &str| OTHER_NAMES.iter().find(|(other, _)| *other == name).map_or(name.to_string(), |(_, own)| (*own).to_string());
    let named = config.iter().map(|(name, value)| (own_name(name), value.clone()));
    named.filter(|(name, value)| PARAMETERS.contains(&name.as_str()) && !value.is_null()).collect()
}

/// The variables that a caller's request gives a prompt.
pub(super) fn given(prompt: &Prompt, request: &ChatRequest) -> Result<Map<String, Value>, Failure> {
    // Only what says it is copied, not the conversation.
    let extra = request.extra.get(PROMPT).map(|said| (PROMPT.to_string(), said.clone())).into_iter().collect();
    let given = take_given(&mut ChatRequest { extra, ..ChatRequest::default() })?.unwrap_or_default();
    Ok(variables(prompt, given.variables, &request.messages)?.0)
}

/// A caller's request on a route or a model.
pub(super) fn chat(
    manifest: Option<&Manifest>,
    prompt: Option<&Prompt>,
    mut request: ChatRequest,
    examples: &[Message],
) -> Result<ChatRequest, Failure> {
    let given = take_given(&mut request)?;
    let mut config = Map::new();
    match prompt {
        Some(prompt) => (request.messages, config) = filled(prompt, given.unwrap_or_default(), &request.messages, examples)?,
        None if given.is_some() => {
            let message = format!("\"{}\" has no prompt that takes variables", request.model);
            return Err(Failure::on(Code::INVALID_VALUE, PROMPT, message).with_hint("call a route whose release has a prompt"));
        }
        None => {}
    }
    fill(manifest, config, request)
}

/// A manifest with variables, as an evaluation runs it.
pub(super) fn run(
    plan: &Plan,
    prompt: Option<&Prompt>,
    variables: &Map<String, Value>,
    examples: &[Message],
) -> Result<ChatRequest, Failure> {
    let manifest = plan.manifest.as_ref();
    let model = manifest.map(|manifest| manifest.model.clone()).unwrap_or_default();
    let (messages, config) = measured(prompt, variables, examples)?;
    fill(manifest, config, ChatRequest { model, messages, ..ChatRequest::default() })
}

fn measured(
    prompt: Option<&Prompt>,
    variables: &Map<String, Value>,
    examples: &[Message],
) -> Result<(Vec<Message>, Map<String, Value>), Failure> {
    let Some(prompt) = prompt else { return Ok((bare_messages(variables)?, Map::new())) };
    let rendered = prompt.render(&Input { history: examples, ..Input::of(variables) })?;
    Ok((rendered.messages, rendered.config))
}

/// The conversation, and the prompt's configuration.
fn filled(
    prompt: &Prompt,
    given: Given,
    messages: &[Message],
    examples: &[Message],
) -> Result<(Vec<Message>, Map<String, Value>), Failure> {
    let Given { variables, media, is_named } = given;
    // Where the last message fills the prompt, the others came before it.
    let is_given = variables.is_some() || prompt.required_variables().is_empty();
    let (mut variables, history) = self::variables(prompt, variables, messages)?;
    let media = Media::mark(media, &mut variables);
    // What is said to a prompt that is called by its name comes after it, unless the template has a place for it.
    let follows = is_named && is_given && !prompt.places_history();
    // Examples are the beginning of the conversation.
    let mut earlier = examples.to_vec();
    if !follows {
        earlier.extend_from_slice(&history);
    }
    let rendered = prompt.render(&Input { variables: Some(&variables), history: &earlier, ..Input::default() })?;
    let mut messages = rendered.messages;
    media.place(&mut messages);
    if follows {
        messages.extend(history);
    }
    Ok((messages, rendered.config))
}

/// What a caller gives a prompt.
#[derive(Default)]
struct Given {
    /// None where nothing is said of variables.
    variables: Option<Map<String, Value>>,
    /// Parts of messages by the names of their variables.
    media: Map<String, Value>,
    /// Whether the prompt was called by its name.
    is_named: bool,
}

fn take_given(request: &mut ChatRequest) -> Result<Option<Given>, Failure> {
    let Some(prompt) = request.extra.shift_remove(PROMPT) else { return Ok(None) };
    let wrong = |message: &str| Failure::on(Code::INVALID_VALUE, "prompt.variables", message);
    let Value::Object(mut prompt) = prompt else {
        return if prompt.is_null() { Ok(None) } else { Err(wrong("expected an object with \"variables\"")) };
    };
    let variables = match prompt.shift_remove("variables") {
        None | Some(Value::Null) => None,
        Some(Value::Object(variables)) => Some(variables),
        Some(_) => return Err(wrong("expected an object of variables")),
    };
    let media = match prompt.shift_remove("media") {
        Some(Value::Object(media)) => media,
        _ => Map::new(),
    };
    let is_named = prompt.contains_key("id");
    Ok((variables.is_some() || is_named).then_some(Given { variables, media, is_named }))
}

/// The variables of a render, and the messages that come before it in the conversation.
fn variables(
    prompt: &Prompt,
    given: Option<Map<String, Value>>,
    messages: &[Message],
) -> Result<(Map<String, Value>, Vec<Message>), Failure> {
    let required = prompt.required_variables();
    match (given, required.as_slice()) {
        (Some(variables), _) => Ok((variables, messages.to_vec())),
        (None, []) => Ok((Map::new(), messages.to_vec())),
        (None, [one]) => {
            let missing = || Failure::on(Code::MISSING_FIELD, "messages", "the last user message fills the prompt, and there is none");
            let last = messages.iter().rposition(|message| message.role == "user").ok_or_else(missing)?;
            let variables = Map::from_iter([(one.clone(), Value::from(messages[last].plain_text()))]);
            Ok((variables, messages[..last].to_vec()))
        }
        (None, several) => {
            let message = format!("the prompt \"{}\" needs the variables {}", prompt.name, several.join(", "));
            Err(Failure::on(Code::MISSING_FIELD, "prompt.variables", message).with_hint("send them as {\"prompt\": {\"variables\": {…}}}"))
        }
    }
}

fn bare_messages(variables: &Map<String, Value>) -> Result<Vec<Message>, Failure> {
    if let Some(messages) = variables.get("messages") {
        let wrong = |error| Failure::on(Code::INVALID_VALUE, "messages", format!("expected a list of chat messages: {error}"));
        return serde_json::from_value(messages.clone()).map_err(wrong);
    }
    let texts: Vec<_> = variables.values().filter_map(Value::as_str).collect();
    match texts.as_slice() {
        [text] if variables.len() == 1 => Ok(vec![Message::text("user", *text)]),
        _ => {
            let names: Vec<_> = variables.keys().map(String::as_str).collect();
            let message = format!("without a prompt, the input is \"messages\" or a single text; it has: {}", names.join(", "));
            Err(Failure::on(Code::MISSING_FIELD, "messages", message))
        }
    }
}

/// Fills what the request leaves open: first from the manifest, then from the prompt's own configuration.
fn fill(manifest: Option<&Manifest>, config: Map<String, Value>, request: ChatRequest) -> Result<ChatRequest, Failure> {
    let Some(manifest) = manifest else { return Ok(request) };
    let Value::Object(mut fields) = serde_json::to_value(request).expect("a request is strings, maps and finite numbers") else {
        return Err(Failure::new(Code::INTERNAL, "a request is not an object"));
    };
    let own = parameters(&config);
    let format = manifest.response_format.clone().map(|format| ("response_format".to_string(), format));
    let tools = (!manifest.tools.is_empty()).then(|| ("tools".to_string(), Value::from(manifest.tools.clone())));
    for (name, value) in manifest.parameters.clone().into_iter().chain(format).chain(tools).chain(own) {
        let limit_is_set = fields.contains_key("max_tokens") || fields.contains_key("max_completion_tokens");
        let is_limit = matches!(name.as_str(), "max_tokens" | "max_completion_tokens");
        let is_set = fields.contains_key(&name) || (is_limit && limit_is_set);
        if !is_set {
            fields.insert(name, value);
        }
    }
    let wrong = |error| Failure::new(Code::INVALID_VALUE, format!("a parameter of the release is not what the API takes: {error}"));
    serde_json::from_value(Value::Object(fields)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(body: Value) -> ChatRequest {
        serde_json::from_value(body).expect("a request")
    }

    fn manifest(parameters: Value) -> Manifest {
        serde_json::from_value(
            json!({"model": "mock/echo", "model_digest": null, "adapter": null, "prompt": null, "parameters": parameters}),
        )
        .expect("a manifest")
    }

    #[test]
    fn one_variable_is_filled_by_the_last_user_message_and_several_are_named() {
        let one = Prompt::parse("p", "Sort: {{message}}").expect("parses");
        let body = json!({"model": "r", "messages": [{"role": "user", "content": "a"}]});
        let rendered = chat(None, Some(&one), request(body.clone()), &[]).expect("renders");
        assert_eq!(rendered.messages.last().map(Message::plain_text).as_deref(), Some("Sort: a"));

        let two = Prompt::parse("p", "{{message}} {{tone}}").expect("parses");
        let refused = chat(None, Some(&two), request(body.clone()), &[]).expect_err("two variables");
        assert!(refused.code() == Code::MISSING_FIELD && refused.to_string().contains("message, tone"), "{refused}");

        let mut body = body;
        body["messages"] = json!([]);
        body["prompt"] = json!({"variables": {"message": "m", "tone": "t"}});
        let rendered = chat(None, Some(&two), request(body.clone()), &[]).expect("renders");
        assert_eq!(rendered.messages[0].plain_text(), "m t");
        assert!(chat(None, None, request(body), &[]).is_err_and(|failure| failure.code() == Code::INVALID_VALUE));
    }

    #[test]
    fn what_was_said_before_the_message_that_fills_the_prompt_stays_before_it() {
        let prompt = Prompt::parse("p", "{{role \"system\"}}Be kind.\n{{role \"user\"}}Sort: {{message}}").expect("parses");
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        let mut body =
            json!({"model": "p", "messages": [said("user", "a"), said("assistant", "A"), said("user", "b")], "prompt": {"id": "p"}});
        let texts = |body: &Value| {
            let rendered = chat(None, Some(&prompt), request(body.clone()), &[]).expect("renders");
            rendered.messages.iter().map(|message| message.plain_text().trim().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(texts(&body), ["Be kind.", "a", "A", "Sort: b"]);
        body["prompt"]["variables"] = json!({"message": "x"});
        assert_eq!(texts(&body), ["Be kind.", "Sort: x", "a", "A", "b"]);
    }

    #[test]
    fn the_request_overrides_the_release_also_under_the_other_name() {
        let manifest = manifest(json!({"temperature": 0.1, "max_tokens": 9, "seed": 1}));
        let body = json!({"model": "r", "messages": [{"role": "user", "content": "a"}], "temperature": 1.0, "max_completion_tokens": 5});
        let filled = chat(Some(&manifest), None, request(body), &[]).expect("fills");
        assert_eq!((filled.temperature, filled.token_limit(), filled.max_tokens, filled.seed), (Some(1.0), Some(5), None, Some(1)));
    }

    #[test]
    fn a_manifest_without_prompt_takes_messages_or_one_text() {
        let text = |variables: Value| {
            let variables = variables.as_object().expect("a map").clone();
            measured(None, &variables, &[]).map(|(messages, _)| messages[0].plain_text())
        };
        assert_eq!(text(json!({"message": "hi"})).expect("one text"), "hi");
        assert_eq!(text(json!({"messages": [{"role": "user", "content": "x"}], "more": 1})).expect("messages"), "x");
        assert!(text(json!({"a": "1", "b": "2"})).is_err());
    }
}
