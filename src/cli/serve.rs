//! `refit serve`: the gateway.

use super::{Context, output};
use crate::app::App;
use crate::evals::keep::forgetting;
use crate::gateway::{Server, Signals, reload};
use crate::monitor::retention::{self, Rules};
use crate::types::Failure;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Example:
  refit key create my-app
  refit serve --port 4747
  curl http://127.0.0.1:4747/v1/chat/completions -H \"Authorization: Bearer $KEY\" \\
    -d '{\"model\": \"mock/echo\", \"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}'

When it is ready, it prints one line of JSON on stdout: {\"address\": \"http://127.0.0.1:4747\", \"pid\": 1234}.
SIGTERM or Ctrl-C lets running requests end (server.drain_s in refit.toml); a second one cuts them, a third ends the process at once.
Changes of refit.toml are put in force within two seconds, and by SIGHUP at once; a file with mistakes is refused as a whole, and
GET /status says why.";

/// Arguments of `refit serve`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Address to listen on [default: server.host in refit.toml, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port; 0 picks a free one [default: server.port in refit.toml, else 4747]
    #[arg(long)]
    port: Option<u16>,
}

/// Runs the verb.
///
/// # Errors
/// When the configuration, the data directory or the address cannot be used.
pub fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    let app = Arc::new(context.live_app()?);
    let host = args.host.unwrap_or_else(|| app.config().server.host.clone());
    let port = args.port.unwrap_or(app.config().server.port);
    if app.keys.list()?.iter().all(|key| key.revoked_at.is_some()) {
        output::note("note: there is no API key yet, so every call will be refused; `refit key create NAME` makes one");
    }
    let telemetry = app.telemetry.clone();
    let served = context.runtime()?.block_on(serve(app, &host, port));
    if let Some(telemetry) = telemetry {
        telemetry.end();
    }
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(app: Arc<App>, host: &str, port: u16) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let server = Server::bind(app.clone(), host, port).await?;
    output::json(&json!({"address": server.url(), "pid": std::process::id()}))?;
    let of = app.clone();
    let retention = tokio::spawn(retention::keep(app.store.clone(), move || Rules::of(&of.config().log)));
    let of = app.clone();
    let forgetting = tokio::spawn(forgetting(app.store.clone(), move || of.config().evals.replies_retention_days));
    let reloading = tokio::spawn(reload::watch(app, signals.hangups()));
    let ended = server.run(signals.stopped(1), signals.stopped(2)).await;
    retention.abort();
    forgetting.abort();
    reloading.abort();
    ended
}
