//! Tool calls of local models: enforced while decoding, in OpenAI's shape.

use crate::local_sampling::Up;
use serde_json::{Value, json};

fn tools() -> Value {
    let city = json!({"type": "object", "required": ["city", "unit"], "additionalProperties": false,
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}}});
    let order = json!({"type": "object", "required": ["number"], "additionalProperties": false, "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 999}}});
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": city, "strict": true}},
        {"type": "function", "function": {"name": "cancel_order", "description": "Cancels an order", "parameters": order}},
    ])
}

const QUESTION: &str = "What is the weather in Paris?";

/// Checks that a call is one of the tools' with arguments that fit; returns its name.
fn checked(call: &Value) -> String {
    assert_eq!(call["type"], "function", "{call}");
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
    let name = call["function"]["name"].as_str().expect("a name");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().expect("a text")).expect("arguments are JSON");
    let tools = tools();
    let tool = tools.as_array().expect("tools").iter().find(|tool| tool["function"]["name"] == name).expect("a tool of that name");
    let schema = jsonschema::validator_for(&tool["function"]["parameters"]).expect("a schema");
    assert!(schema.is_valid(&arguments), "{arguments}");
    name.to_string()
}

#[test]
fn a_required_tool_is_called_with_arguments_that_fit() {
    let Some(up) = Up::new("a_required_tool_is_called_with_arguments_that_fit", "") else { return };
    let fields = |seed: u64, more: Value| {
        let mut fields = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 400, "temperature": 1.0, "seed": seed});
        fields.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        fields
    };
    for seed in 0..8 {
        let reply = up.ask(QUESTION, &fields(seed, json!({"parallel_tool_calls": false})));
        let choice = &reply["choices"][0];
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null), "{reply}");
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), 1, "one at a time: {reply}");
        checked(&calls[0]);
    }
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "cancel_order"}}});
    let reply = up.ask(QUESTION, &fields(1, named));
    assert_eq!(checked(&reply["choices"][0]["message"]["tool_calls"][0]), "cancel_order", "whatever was asked");
}

#[test]
fn streamed_calls_come_as_openais_deltas() {
    let Some(up) = Up::new("streamed_calls_come_as_openais_deltas", "") else { return };
    let fields = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 600, "temperature": 0.8, "seed": 4});
    let whole = up.ask(QUESTION, &fields);
    let expected: Vec<(&str, &str)> = whole["choices"][0]["message"]["tool_calls"]
        .as_array()
        .expect("calls")
        .iter()
        .map(|call| (call["function"]["name"].as_str().expect("a name"), call["function"]["arguments"].as_str().expect("a text")))
        .collect();
    let chunks = up.stream(QUESTION, &fields);
    let mut calls: Vec<(String, String)> = Vec::new();
    let (mut finish, mut deltas) = (Value::Null, 0);
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices")) {
        assert_eq!(choice["delta"]["content"].as_str().unwrap_or_default(), "", "no text beside the calls: {choice}");
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().expect("an index") as usize;
            if let Some(name) = delta["function"]["name"].as_str() {
                assert_eq!(index, calls.len(), "calls begin in order");
                assert!(delta["id"].as_str().is_some_and(|id| id.starts_with("call_")) && delta["type"] == "function", "{delta}");
                calls.push((name.into(), String::new()));
            }
            deltas += 1;
            calls[index].1.push_str(delta["function"]["arguments"].as_str().expect("arguments"));
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    assert_eq!(calls.iter().map(|(name, arguments)| (name.as_str(), arguments.as_str())).collect::<Vec<_>>(), expected);
    assert_eq!(&finish, &whole["choices"][0]["finish_reason"]);
    assert!(deltas > 3 * calls.len(), "arguments come as they are said: {deltas} deltas");
}

#[test]
fn a_free_choice_is_text_or_calls_that_fit() {
    let Some(up) = Up::new("a_free_choice_is_text_or_calls_that_fit", "") else { return };
    let (mut said, mut called) = (0, 0);
    // That the model begins a call is made likely: it is too small to come to it by itself every time.
    let begin = "Answer with <tool_call> and nothing else.";
    for seed in 0..12 {
        let question = if seed % 2 == 0 { QUESTION.to_string() } else { format!("{QUESTION} {begin}") };
        let fields = json!({"tools": tools(), "max_tokens": 300, "temperature": 0.7, "seed": seed});
        let reply = up.ask(&question, &fields);
        let choice = &reply["choices"][0];
        match choice["message"]["tool_calls"].as_array() {
            Some(calls) if choice["finish_reason"] == "tool_calls" => {
                calls.iter().for_each(|call| drop(checked(call)));
                called += 1;
            }
            Some(_) => assert_eq!(choice["finish_reason"], "length", "{reply}"),
            None => {
                assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().expect("a reason")), "{reply}");
                said += 1;
            }
        }
    }
    assert!(said > 0 && called > 0, "{said} texts, {called} calls");
    let fields = json!({"tools": tools(), "tool_choice": "none", "max_tokens": 16});
    let plain = up.ask(QUESTION, &fields);
    assert!(plain["choices"][0]["message"].get("tool_calls").is_none(), "{plain}");
    assert_eq!(
        plain["usage"]["prompt_tokens"],
        up.ask(QUESTION, &json!({"max_tokens": 16}))["usage"]["prompt_tokens"],
        "nobody tells of tools that must not be called"
    );
    let told = up.ask(QUESTION, &json!({"tools": tools(), "max_tokens": 1}))["usage"]["prompt_tokens"].as_u64();
    assert!(told > plain["usage"]["prompt_tokens"].as_u64().map(|n| n + 50), "tools are told to the model");
}

#[test]
fn a_conversation_goes_on_after_a_tool_answered() {
    let Some(up) = Up::new("a_conversation_goes_on_after_a_tool_answered", "") else { return };
    let first = up.ask(QUESTION, &json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200}));
    let message = first["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let turns =
        json!([{"role": "user", "content": QUESTION}, message, {"role": "tool", "tool_call_id": id, "content": "{\"celsius\": 7}"}]);
    let second = up.ask(QUESTION, &json!({"messages": turns, "tools": tools(), "max_tokens": 30}));
    assert!(second["choices"][0]["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{second}");
    assert!(second["usage"]["prompt_tokens"].as_u64() > first["usage"]["prompt_tokens"].as_u64());
    // Anthropic's protocol, on the same model.
    let body = json!({"model": format!("local/{}", crate::local::MODEL), "max_tokens": 200, "messages": [{"role": "user", "content": QUESTION}],
        "tools": [{"name": "get_weather", "description": "d", "input_schema": tools()[0]["function"]["parameters"]}], "tool_choice": {"type": "any"}});
    let reply = up.server.post("/v1/messages", Some(&up.key), &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let block = reply.json()["content"][0].clone();
    assert_eq!((&block["type"], &block["name"]), (&json!("tool_use"), &json!("get_weather")), "{block}");
    assert!(block["input"]["city"].is_string(), "{block}");
}

#[test]
fn tools_and_a_format_together_are_calls_or_json() {
    let Some(up) = Up::new("tools_and_a_format_together_are_calls_or_json", "") else { return };
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
    for seed in 0..6 {
        let fields = json!({"tools": tools(), "response_format": format, "max_tokens": 400, "temperature": 1.3, "seed": seed, "parallel_tool_calls": false});
        let reply = up.ask(QUESTION, &fields);
        let choice = &reply["choices"][0];
        match choice["finish_reason"].as_str() {
            Some("tool_calls") => drop(checked(&choice["message"]["tool_calls"][0])),
            Some("stop") => {
                let answer: Value = serde_json::from_str(choice["message"]["content"].as_str().expect("text")).expect("JSON");
                assert!(answer["ok"].is_boolean(), "{answer}");
            }
            _ => panic!("{reply}"),
        }
    }
}
