//! The route table: every path, who may use it, and its handler. A path that is not here is answered with 404, a path that somehow
//! has no access rule with 403.

use super::middleware::{access, envelope};
use super::{Gateway, admin, anthropic, drain, feedback, openai, openapi, operations, prompts, reviews, status};
use crate::access::Role;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody; nothing about a project is shown.
    Public,
    /// Keys of at least this role.
    Key(Role),
}

/// One line of the table.
pub struct Route {
    /// axum path pattern.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
    handler: MethodRouter<Gateway>,
}

/// The table.
pub fn table() -> Vec<Route> {
    let route = |path, access, handler| Route { path, access, handler };
    let app = Access::Key(Role::App);
    let developer = Access::Key(Role::Developer);
    let (viewer, administrator) = (Access::Key(Role::Viewer), Access::Key(Role::Admin));
    vec![
        route("/health", Access::Public, get(operations::health)),
        route("/ready", Access::Public, get(status::ready)),
        route("/status", Access::Public, get(status::status)),
        route("/metrics", Access::Public, get(operations::metrics)),
        route("/openapi.json", Access::Public, get(openapi::serve)),
        route("/schemas/prompt.json", Access::Public, get(operations::prompt_schema)),
        route("/v1/chat/completions", app, get(openai::stored::list).post(openai::chat::create)),
        route("/v1/chat/completions/{id}", app, get(openai::stored::show).post(openai::stored::update).delete(openai::stored::delete)),
        route("/v1/chat/completions/{id}/messages", app, get(openai::stored::messages)),
        route("/v1/completions", app, post(openai::completions::create)),
        route("/v1/embeddings", app, post(openai::embeddings::create)),
        route("/v1/moderations", app, post(openai::moderations::create)),
        route("/v1/responses", app, post(openai::responses::create)),
        route("/v1/messages", app, post(anthropic::create)),
        route("/v1/messages/count_tokens", app, post(anthropic::count_tokens)),
        route("/v1/files", app, get(openai::files::list).merge(unlimited(post(openai::files::create)))),
        route("/v1/files/{id}", app, get(openai::files::show).delete(openai::files::delete)),
        route("/v1/files/{id}/content", app, get(openai::files::content)),
        route("/v1/batches", app, get(openai::batches::list).post(openai::batches::create)),
        route("/v1/batches/{id}", app, get(openai::batches::show)),
        route("/v1/batches/{id}/cancel", app, post(openai::batches::cancel)),
        route("/v1/fine_tuning/jobs", app, get(openai::fine_tuning::list).post(openai::fine_tuning::create)),
        route("/v1/fine_tuning/jobs/{id}", app, get(openai::fine_tuning::show)),
        route("/v1/fine_tuning/jobs/{id}/cancel", app, post(openai::fine_tuning::cancel)),
        route("/v1/fine_tuning/jobs/{id}/pause", app, post(openai::fine_tuning::pause)),
        route("/v1/fine_tuning/jobs/{id}/resume", app, post(openai::fine_tuning::resume)),
        route("/v1/fine_tuning/jobs/{id}/events", app, get(openai::fine_tuning::events)),
        route("/v1/fine_tuning/jobs/{id}/checkpoints", app, get(openai::fine_tuning::checkpoints)),
        route("/v1/evals", app, get(openai::evals::list).post(openai::evals::create)),
        route("/v1/evals/{id}", app, get(openai::evals::show).post(openai::evals::update).delete(openai::evals::delete)),
        route("/v1/evals/{id}/runs", app, get(openai::evals::list_runs).post(openai::evals::create_run)),
        route(
            "/v1/evals/{id}/runs/{run}",
            app,
            get(openai::evals::show_run).post(openai::evals::cancel_run).delete(openai::evals::delete_run),
        ),
        route("/v1/evals/{id}/runs/{run}/cancel", app, post(openai::evals::cancel_run)),
        route("/v1/evals/{id}/runs/{run}/output_items", app, get(openai::evals::list_items)),
        route("/v1/evals/{id}/runs/{run}/output_items/{item}", app, get(openai::evals::show_item)),
        route("/v1/feedback", app, get(feedback::list).post(feedback::create)),
        route("/v1/reviews", developer, get(reviews::list)),
        route("/v1/reviews/{id}", developer, get(reviews::show).post(reviews::create)),
        route("/v1/reviews/agreement/{dataset}", developer, get(reviews::agreement)),
        route("/v1/models", app, get(openai::models::list)),
        route("/v1/models/{*id}", app, get(openai::models::show)),
        route("/v1/prompts", viewer, get(prompts::list).post(prompts::publish)),
        route("/v1/prompts/{name}", viewer, get(prompts::show)),
        route("/v1/prompts/{name}/versions/{version}", viewer, get(prompts::version)),
        route("/v1/prompts/{name}/history", viewer, get(prompts::history)),
        route("/v1/prompts/{name}/labels/{label}", viewer, post(prompts::labels::promote).delete(prompts::labels::remove)),
        route("/v1/prompts/{name}/labels/{label}/rollback", viewer, post(prompts::labels::rollback)),
        route("/v1/prompts/{name}/render", viewer, post(prompts::render::render)),
        route("/v1/prompts/{name}/completions", app, post(prompts::render::completions)),
        route("/api/public/v2/prompts", viewer, get(prompts::langfuse::list)),
        route("/api/public/v2/prompts/{name}", viewer, get(prompts::langfuse::show)),
        route("/admin/v1/keys", administrator, get(admin::keys::list).post(admin::keys::create)),
        route("/admin/v1/keys/{id}", administrator, get(admin::keys::show).patch(admin::keys::update).delete(admin::keys::revoke)),
        route("/admin/v1/keys/{id}/rotate", administrator, post(admin::keys::rotate)),
        route("/admin/v1/projects", administrator, get(admin::projects::list)),
        route("/admin/v1/projects/{name}", administrator, get(admin::projects::show).patch(admin::projects::update)),
        route("/admin/v1/usage", viewer, get(admin::usage::show)),
    ]
}

/// The rule of a route, by its pattern.
pub fn access_of(path: &str) -> Option<Access> {
    static RULES: std::sync::OnceLock<Vec<(&'static str, Access)>> = std::sync::OnceLock::new();
    let rules = RULES.get_or_init(|| table().into_iter().map(|route| (route.path, route.access)).collect());
    rules.iter().find(|(pattern, _)| *pattern == path).map(|(_, access)| *access)
}

/// A handler that bounds its body itself.
fn unlimited(handler: MethodRouter<Gateway>) -> MethodRouter<Gateway> {
    handler.layer(DefaultBodyLimit::disable())
}

/// The table as a service. Outermost first: envelope (id, panics, metrics), the end of the time to drain, access, handler.
pub fn router(gateway: Gateway) -> Router {
    handlers()
        .layer(from_fn_with_state(gateway.clone(), access::check))
        .layer(from_fn_with_state(gateway.clone(), drain::layer))
        .layer(from_fn_with_state(gateway.clone(), envelope::wrap))
        .with_state(gateway)
}

/// The table for requests that this process makes itself, with the caller put into their extensions: no key is asked for.
pub(super) fn trusted(gateway: Gateway) -> Router {
    handlers().layer(from_fn_with_state(gateway.clone(), envelope::wrap)).with_state(gateway)
}

fn handlers() -> Router<Gateway> {
    let mut router = Router::new();
    for route in table() {
        router = router.route(route.path, route.handler);
    }
    // Reaches only the routes that are there already.
    router.method_not_allowed_fallback(operations::wrong_method).fallback(operations::unknown_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_under_v1_takes_a_key_and_little_else_is_public() {
        let public: Vec<_> = table().into_iter().filter(|route| route.access == Access::Public).map(|route| route.path).collect();
        assert_eq!(public, ["/health", "/ready", "/status", "/metrics", "/openapi.json", "/schemas/prompt.json"]);
        assert!(table().iter().all(|route| access_of(route.path) == Some(route.access)));
        assert_eq!(access_of("/v1/other"), None);
    }
}
