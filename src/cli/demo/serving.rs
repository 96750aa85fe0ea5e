//! The last step: the gateway on a real socket, and the first call through the OpenAI API with `async-openai`.

use super::steps::Demo;
use crate::access::Role;
use crate::gateway::{Server, shutdown_signal};
use crate::monitor::record;
use crate::types::{Code, Failure};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::chat::{ChatCompletionRequestUserMessageArgs, CreateChatCompletionRequestArgs};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A message that is in no split.
const MESSAGE: &str = "Hi, the kettle from order NL-77120 came with a crack right through the lid. Could you send me a new one?";

/// The first call.
#[derive(Clone)]
pub struct Call {
    /// Id of its log row.
    pub request_id: String,
    /// What the model answered.
    pub answer: String,
}

/// The running gateway.
pub struct Serving {
    /// Where it listens.
    pub url: String,
    /// The first call.
    pub call: Call,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Failure>>,
}

impl Serving {
    /// Ends the gateway in good order.
    ///
    /// # Errors
    /// What the server says.
    pub async fn stop(self) -> Result<(), Failure> {
        // The server may have ended by itself; its own result tells.
        let _ = self.stop.send(());
        ended(self.task).await
    }

    /// Serves until Ctrl-C or SIGTERM.
    ///
    /// # Errors
    /// What the server says.
    pub async fn until_interrupted(self) -> Result<(), Failure> {
        shutdown_signal()?.await;
        self.stop().await
    }
}

async fn ended(task: JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    task.await.unwrap_or_else(|error| Err(Failure::new(Code::INTERNAL, format!("the gateway stopped: {error}"))))
}

/// Step 8.
pub async fn start(demo: &Demo<'_>, port: u16) -> Result<Serving, Failure> {
    let route = &demo.example.name;
    demo.story.step(8, &format!("serve: the route {route} through the OpenAI API"))?;
    let server = Server::bind(demo.app.clone(), "127.0.0.1", port).await?;
    let url = server.url();
    let (stop, stopped) = oneshot::channel();
    // A dropped sender stops the server as well.
    let stopped = async { drop(stopped.await) };
    let task = tokio::spawn(server.run(stopped, std::future::pending()));
    let key = demo.app.keys.create("demo", "default", Role::App, "refit demo")?;
    let answer = ask(&url, &key.key, route).await?;
    demo.app.recorder.flush()?;
    let row = record::newest(&demo.app.store, 20)?.into_iter().find(|row| row.api_key == key.id);
    let row = row.ok_or_else(|| Failure::new(Code::INTERNAL, "the call left no row in the request log"))?;
    demo.story.say(format!("    message: {MESSAGE}\n    answer:  {answer}"))?;
    demo.story.say(format!(
        "    log row: refit logs show {}  ({:.0} ms)\n    the same call:\n{}",
        row.id,
        row.total_ms,
        curl(&url, &key.key, route)
    ))?;
    Ok(Serving { url, call: Call { request_id: row.id, answer }, stop, task })
}

async fn ask(url: &str, key: &str, route: &str) -> Result<String, Failure> {
    let failed = |error: async_openai::error::OpenAIError| Failure::new(Code::INTERNAL, format!("the first call failed: {error}"));
    // The gateway is on this machine: a proxy from the environment must not come between.
    let direct = reqwest::Client::builder().no_proxy().build();
    let direct = direct.map_err(|error| Failure::new(Code::INTERNAL, format!("the first call failed: {error}")))?;
    let config = OpenAIConfig::new().with_api_base(format!("{url}/v1")).with_api_key(key);
    let client = Client::with_config(config).with_http_client(direct);
    let message = ChatCompletionRequestUserMessageArgs::default().content(MESSAGE).build().map_err(failed)?;
    let request = CreateChatCompletionRequestArgs::default().model(route).messages([message.into()]).build().map_err(failed)?;
    let response = client.chat().create(request).await.map_err(failed)?;
    Ok(response.choices.into_iter().next().and_then(|choice| choice.message.content).unwrap_or_default())
}

fn curl(url: &str, key: &str, route: &str) -> String {
    let body = serde_json::json!({"model": route, "messages": [{"role": "user", "content": MESSAGE}]});
    format!(
        "      curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n        -H 'Content-Type: application/json' -d '{body}'"
    )
}
