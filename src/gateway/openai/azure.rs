//! `/openai/deployments/{deployment}/…`: Azure's classic paths, where the deployment stands for `model`. Its name may hold slashes,
//! percent-encoded or not, because our models' names do; the operation is what the path ends with.

use super::{chat, completions, embeddings, models, responses};
use crate::gateway::Gateway;
use crate::gateway::error::ApiError;
use crate::gateway::operations;
use axum::extract::{Path, Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};

/// The deployment of a path, for [`Entry`](crate::gateway::entry::Entry).
#[derive(Debug, Clone)]
pub struct Deployment(pub String);

/// Operations under a deployment.
const OPERATIONS: [&str; 5] = ["chat/completions", "completions", "embeddings", "responses", "models"];

/// The handler of everything below `/openai/deployments/`.
pub async fn dispatch(State(gateway): State<Gateway>, Path(call): Path<String>, mut request: Request) -> Result<Response, ApiError> {
    let found = OPERATIONS.iter().find_map(|operation| {
        let deployment = call.strip_suffix(operation)?.strip_suffix('/')?;
        (!deployment.is_empty()).then_some((deployment, *operation))
    });
    let Some((deployment, operation)) = found else {
        return Err(operations::unknown_path(request.uri().clone()).await);
    };
    let wanted = if operation == "models" { Method::GET } else { Method::POST };
    if request.method() != wanted {
        return Err(operations::wrong_method(request.method().clone(), request.uri().clone()).await);
    }
    request.extensions_mut().insert(Deployment(deployment.to_string()));
    let state = State(gateway);
    match operation {
        "chat/completions" => chat::create(state, request).await,
        "completions" => completions::create(state, request).await,
        "embeddings" => embeddings::create(state, request).await,
        "responses" => responses::create(state, request).await,
        _ => Ok(models::list(state, request.headers().clone()).await.into_response()),
    }
}
