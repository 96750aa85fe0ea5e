//! Prompts called by their name, in every shape that clients send; each goes the common road and is logged with the version it used.

use crate::support::{Refit, Reply, Server, http};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const GREET: &str = "---\nmodel: mock/echo\nconfig: {temperature: 0.25, maxOutputTokens: 9}\ninput: {schema: {name: string}}\n---\n\
                     {{role \"system\"}}Be kind.\n{{role \"user\"}}Hi {{name}}";

/// A server with `greet` in two versions: 1 is in production, 2 says Hello.
fn greeting(more: &[(&str, &str)]) -> (Refit, String, Server) {
    let refit = Refit::new();
    for (file, text) in more {
        refit.write(file, text);
    }
    publish(&refit, "greet", GREET);
    publish(&refit, "greet", &GREET.replace("Hi", "Hello"));
    refit.run(&["prompt", "promote", "greet@1", "production"]).expect(0);
    let (key, server) = (refit.key(), refit.serve(&[]));
    (refit, key, server)
}

fn publish(refit: &Refit, name: &str, source: &str) {
    let file = format!("{name}.prompt");
    refit.write(&file, source);
    refit.run(&["prompt", "publish", &file]).expect(0);
}

fn said(reply: &Reply) -> String {
    let body = reply.json();
    let text = body.pointer("/choices/0/message/content").or_else(|| body.pointer("/output/0/content/0/text"));
    text.and_then(Value::as_str).unwrap_or_else(|| panic!("no text: {reply:?}")).to_string()
}

fn refused(reply: &Reply) -> (u16, String, Option<String>) {
    let error = reply.json()["error"].clone();
    (reply.status, error["code"].as_str().unwrap_or_default().to_string(), error["param"].as_str().map(str::to_string))
}

/// The newest log row.
fn logged(refit: &Refit) -> Value {
    refit.run(&["logs", "tail", "--limit", "1", "--json"]).expect(0).json()[0].clone()
}

#[test]
fn every_shape_calls_the_same_prompt() {
    let (_refit, key, server) = greeting(&[]);
    let ask = |path: &str, body: Value| server.post(path, Some(&key), &body);
    let variables = json!({"name": "Ada"});
    for (path, body, expected) in [
        (CHAT, json!({"prompt": {"id": "greet", "variables": variables}}), "Hello Ada"),
        (CHAT, json!({"model": "greet", "messages": [], "prompt": {"id": "greet", "version": "1", "variables": variables}}), "Hi Ada"),
        (CHAT, json!({"prompt": {"id": "greet", "version": 1, "variables": variables}}), "Hi Ada"),
        (CHAT, json!({"prompt": {"id": "greet", "label": "production", "variables": variables}}), "Hi Ada"),
        (CHAT, json!({"prompt_id": "greet", "prompt_version": 1, "prompt_variables": variables}), "Hi Ada"),
        (CHAT, json!({"prompt_id": "greet", "prompt_label": "production", "prompt_variables": variables}), "Hi Ada"),
        ("/v1/responses", json!({"prompt": {"id": "greet", "variables": variables}}), "Hello Ada"),
        ("/v1/responses", json!({"prompt": {"id": "greet", "label": "production", "variables": variables}}), "Hi Ada"),
        ("/v1/prompts/greet/completions", json!({"variables": variables}), "Hello Ada"),
        ("/v1/prompts/greet@production/completions", json!({"variables": variables}), "Hi Ada"),
        ("/v1/prompts/greet/completions", json!({"variables": variables, "version": 1}), "Hi Ada"),
    ] {
        let reply = ask(path, body.clone());
        assert_eq!((reply.status, said(&reply).as_str()), (200, expected), "{path} {body}: {reply:?}");
        let version = if expected.starts_with("Hi") { "1" } else { "2" };
        assert_eq!(reply.header("x-refit-prompt"), Some(format!("greet@{version}").as_str()));
        let echoed = reply.json()["prompt"].clone();
        assert_eq!((&echoed["id"], &echoed["version"]), (&json!("greet"), &json!(version)), "{reply:?}");
    }
    let streamed = ask(CHAT, json!({"prompt": {"id": "greet", "variables": variables}, "stream": true}));
    assert!(streamed.body.contains("Hello") && streamed.body.contains("[DONE]"), "{streamed:?}");
    assert_eq!(streamed.header("x-refit-prompt"), Some("greet@2"));
    let streamed = ask("/v1/responses", json!({"prompt": {"id": "greet", "label": "production", "variables": variables}, "stream": true}));
    let last = streamed.body.split("\n\n").filter(|event| event.contains("response.completed")).last().unwrap_or_default().to_string();
    let completed: Value = serde_json::from_str(last.split_once("data: ").expect("an event").1).expect("JSON");
    assert_eq!(completed["response"]["prompt"]["version"], "1", "{completed}");
}

#[test]
fn what_the_request_says_wins_and_the_row_names_the_version() {
    let (refit, key, server) = greeting(&[]);
    let variables = json!({"name": "Ada"});
    let render = |body: Value| server.post("/v1/prompts/greet/render", Some(&admin(&refit)), &body).json();
    let rendered = render(json!({"variables": variables, "temperature": 1, "label": "production"}));
    let messages = json!([{"role": "system", "content": "Be kind.\n"}, {"role": "user", "content": "Hi Ada"}]);
    assert_eq!((&rendered["messages"], &rendered["success"]), (&messages, &json!(true)));
    assert_eq!(rendered["data"], json!({"model": "mock/echo", "messages": messages, "temperature": 1, "max_tokens": 9}));
    assert_eq!((&rendered["prompt"]["version"], &rendered["config"]["temperature"]), (&json!(1), &json!(0.25)));
    let body = json!({"model": "mock/fixed", "mock": {"reply": "mine"}, "prompt": {"id": "greet", "variables": variables}});
    assert_eq!(said(&server.post(CHAT, Some(&key), &body)), "mine");
    let row = logged(&refit);
    assert_eq!((&row["prompt"], &row["prompt_version"], &row["model"]), (&json!("greet"), &json!(2), &json!("fixed")), "{row}");
    server.post(CHAT, Some(&key), &json!({"model": "mock/echo", "messages": [{"role": "user", "content": "x"}]}));
    assert_eq!(logged(&refit)["prompt"], Value::Null);
}

#[test]
fn messages_follow_the_prompt_or_stand_where_it_says() {
    let (refit, key, server) = greeting(&[]);
    publish(&refit, "placed", "---\nmodel: mock/echo\n---\n{{role \"system\"}}S{{history}}{{role \"user\"}}{{q}}");
    let messages = json!([{"role": "user", "content": "more"}]);
    let rendered = |name: &str, variables: Value| {
        let path = format!("/v1/prompts/{name}/render");
        let reply = server.post(&path, Some(&admin(&refit)), &json!({"variables": variables, "messages": messages})).json();
        let texts =
            reply["messages"].as_array().map(|messages| messages.iter().map(|m| m["content"].as_str().unwrap_or("").to_string()).collect());
        texts.unwrap_or_else(Vec::<String>::new)
    };
    assert_eq!(rendered("greet", json!({"name": "Ada"})), ["Be kind.\n", "Hello Ada", "more"]);
    assert_eq!(rendered("placed", json!({"q": "why?"})), ["S", "more", "why?"]);
    let body = json!({"prompt": {"id": "greet", "variables": {"name": "Ada"}}, "messages": messages});
    assert_eq!(said(&server.post(CHAT, Some(&key), &body)), "more");
    let body = json!({"prompt": {"id": "greet", "variables": {"name": "Ada"}}, "input": "and then?"});
    assert_eq!(said(&server.post("/v1/responses", Some(&key), &body)), "and then?");
}

#[test]
fn an_unknown_name_is_an_error_at_once_and_never_an_older_version() {
    let (refit, key, server) = greeting(&[("refit.toml", "[cache]\nenabled = true\n")]);
    let ask = |prompt: Value| server.post(CHAT, Some(&key), &json!({ "prompt": prompt }));
    let of = |label: &str| ask(json!({"id": "greet", "label": label, "variables": {"name": "Ada"}}));
    assert_eq!(said(&of("production")), "Hi Ada");
    refit.run(&["prompt", "promote", "greet@2", "production"]).expect(0);
    assert_eq!(said(&of("production")), "Hello Ada", "the label moved, and with it the cached reply");
    refit.run(&["prompt", "unlabel", "greet", "production", "-m", "not yet"]).expect(0);
    let gone = of("production");
    assert_eq!(refused(&gone), (404, "unknown_name".into(), Some("prompt.label".into())), "{gone:?}");
    assert!(gone.body.contains("versions up to 2"), "{gone:?}");
    assert_eq!(refused(&ask(json!({"id": "greet", "version": "3"}))).2.as_deref(), Some("prompt.version"));
    let near = ask(json!({"id": "great"}));
    assert!(refused(&near).2.as_deref() == Some("prompt.id") && near.body.contains("did you mean \\\"greet\\\""), "{near:?}");
    assert_eq!(refused(&ask(json!({"id": "greet", "lable": "production"}))).2.as_deref(), Some("prompt.lable"));
    let litellm = server.post(CHAT, Some(&key), &json!({"prompt_id": "great"}));
    assert_eq!(refused(&litellm), (404, "unknown_name".into(), Some("prompt_id".into())), "in the caller's own names");
    let missing = ask(json!({"id": "greet", "variables": {"nam": "Ada"}}));
    assert!(missing.status == 400 && missing.body.contains("\\\"name\\\" is missing"), "{missing:?}");
    assert_eq!(logged(&refit)["status"], 400);
}

#[test]
fn images_and_files_become_parts_where_the_template_puts_them() {
    let (refit, key, server) = greeting(&[]);
    publish(&refit, "look", "---\nmodel: mock/echo\n---\nCompare {{media url=picture}} with {{doc}}.");
    let picture = json!({"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"});
    let doc = json!({"type": "input_file", "file_data": "data:application/pdf;base64,AAAA", "filename": "x.pdf"});
    let variables = json!({"picture": picture, "doc": doc});
    let reply = server.post("/v1/prompts/look/render", Some(&admin(&refit)), &json!({"variables": variables}));
    let parts = json!([
        {"type": "text", "text": "Compare "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "text", "text": " with "},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "x.pdf"}},
        {"type": "text", "text": "."},
    ]);
    assert_eq!(reply.json()["messages"][0]["content"], parts, "{reply:?}");
    let reply = server.post("/v1/responses", Some(&key), &json!({"prompt": {"id": "look", "variables": variables}}));
    assert_eq!(said(&reply), "Compare  with .", "the echo repeats texts");
}

#[test]
fn a_prompt_names_a_route_and_gets_its_fallbacks_and_guardrails() {
    let routes = "[routes.support]\ntargets = [\"mock/fail\"]\nfallbacks = [\"mock/echo\"]\n\
                  [guardrails.pii]\ndetectors = [\"email\"]\nroutes = [\"support\"]\n";
    let (refit, key, server) = greeting(&[("refit.toml", routes)]);
    publish(&refit, "ask", "---\nmodel: support\n---\nDear {{who}}");
    let reply = server.post(CHAT, Some(&key), &json!({"prompt": {"id": "ask", "variables": {"who": "ada@example.com"}}}));
    assert_eq!((reply.status, said(&reply).as_str()), (200, "Dear [EMAIL_1]"), "{reply:?}");
    assert_eq!((reply.header("x-refit-route"), reply.header("x-refit-prompt")), (Some("support"), Some("ask@1")));
}

#[test]
fn langfuse_clients_find_their_prompts() {
    let (refit, _, server) = greeting(&[]);
    publish(&refit, "branchy", "{{#if a}}x{{/if}}");
    let key = admin(&refit);
    let basic = {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("pk-lf-any:{key}")))
    };
    let get = |path: &str| {
        crate::support::send("GET", &format!("{}/api/public/v2/prompts{path}", server.url()), None, &[("authorization", &basic)], None)
    };
    let found = get("/greet").json();
    assert_eq!((&found["type"], &found["version"], &found["labels"]), (&json!("chat"), &json!(1), &json!(["production"])));
    assert_eq!(found["prompt"][1], json!({"type": "chatmessage", "role": "user", "content": "Hi {{name}}"}));
    assert_eq!((&found["config"]["model"], &found["config"]["temperature"]), (&json!("mock/echo"), &json!(0.25)));
    assert_eq!(get("/greet?version=2").json()["labels"], json!(["latest"]));
    assert_eq!(get("/greet?label=latest").json()["version"], 2);
    assert_eq!(refused(&get("/greet?label=staging")).0, 404);
    let branchy = get("/branchy?label=latest");
    assert_eq!((branchy.status, branchy.body.contains("/render")), (400, true), "{branchy:?}");
    let all = get("?limit=1").json();
    assert_eq!((&all["data"][0]["name"], &all["meta"]["totalItems"]), (&json!("branchy"), &json!(2)));
    assert_eq!(http("GET", &format!("{}/api/public/v2/prompts", server.url()), None, None).status, 401);
}

/// The secret of a key that may read and change everything.
fn admin(refit: &Refit) -> String {
    refit.run(&["key", "create", "admin", "--role", "admin", "--json"]).expect(0).json()["key"].as_str().expect("a key").to_string()
}
