//! The HTTP side: [`routes`] is the table, `middleware/` what every request passes, `openai/` the OpenAI-compatible API, `admin/`
//! administration, [`server`] the listening, [`drain`] the orderly end, [`reload`] the configuration that changes. A handler reads:
//! load, ask, answer.

mod admin;
mod answer;
mod anthropic;
mod body;
mod connections;
pub mod drain;
mod entry;
pub mod error;
mod feedback;
mod headers;
mod in_process;
mod lane;
mod middleware;
mod openai;
pub mod openapi;
mod operations;
mod prompts;
mod query;
pub mod reload;
mod reviews;
pub mod routes;
pub mod server;
mod shapes;
mod sse;
mod status;
mod upload;
mod workers;

pub use drain::{Signals, shutdown_signal};
pub use server::Server;

use crate::app::App;
use std::sync::Arc;
use tokio::sync::watch;

/// What handlers share.
#[derive(Clone)]
pub struct Gateway {
    /// The parts of this process.
    pub app: Arc<App>,
    /// Becomes true when the time to drain is over: streams that still run end with an error event.
    pub cut: watch::Receiver<bool>,
}
