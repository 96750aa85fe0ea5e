//! Azure's paths, and what they mean in our own table: `/openai/v1/…` and `/openai/…` are `/v1/…`, and so is
//! `/openai/deployments/{deployment}/…`, where the deployment stands for `model`. Its name may hold slashes, percent-encoded or not,
//! because our models' names do; the operation is what the path ends with. Any `api-version` is taken.

use axum::http::uri::PathAndQuery;
use axum::http::{Request, Uri};
use percent_encoding::percent_decode_str;

/// The deployment of a path, for [`Entry`](crate::gateway::entry::Entry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment(pub String);

/// Azure's prefix.
const PREFIX: &str = "/openai/";
/// What may stand behind a deployment; the longer ones first.
const OPERATIONS: [&str; 5] = ["chat/completions", "completions", "embeddings", "responses", "models"];
/// What may stand there with an id behind it: some clients put every call under a deployment.
const WITH_ID: [&str; 4] = ["files", "batches", "models", "fine_tuning/jobs"];

/// Puts our own path in place of an Azure path; any other request stays as it is.
pub fn rewrite<B>(mut request: Request<B>) -> Request<B> {
    if let Some((path, deployment)) = request.uri().path().strip_prefix(PREFIX).and_then(own)
        && let Some(uri) = with_path(request.uri(), &path)
    {
        *request.uri_mut() = uri;
        if let Some(deployment) = deployment {
            request.extensions_mut().insert(deployment);
        }
    }
    request
}

/// Our path for what stands behind the prefix, and the deployment that it names.
fn own(path: &str) -> Option<(String, Option<Deployment>)> {
    let Some(call) = path.strip_prefix("deployments/") else {
        let rest = path.strip_prefix("v1/").unwrap_or(path);
        return Some((format!("/v1/{rest}"), None));
    };
    let at = OPERATIONS.iter().find_map(|operation| call.strip_suffix(operation)?.strip_suffix('/').map(str::len));
    let at = at.or_else(|| {
        let named = WITH_ID.iter().filter_map(|name| {
            let at = call.rfind(&format!("/{name}"))?;
            matches!(call.as_bytes().get(at + 1 + name.len()), None | Some(b'/')).then_some(at)
        });
        named.max()
    })?;
    let (deployment, operation) = (&call[..at], &call[at + 1..]);
    let deployment = percent_decode_str(deployment).decode_utf8().ok().filter(|name| !name.is_empty())?;
    Some((format!("/v1/{operation}"), Some(Deployment(deployment.into_owned()))))
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path = uri.query().map_or_else(|| path.to_string(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(uri: &str) -> (String, Option<String>) {
        let request = rewrite(Request::builder().uri(uri).body(()).expect("a request"));
        (request.uri().to_string(), request.extensions().get::<Deployment>().map(|Deployment(name)| name.clone()))
    }

    #[test]
    fn azure_paths_mean_ours() {
        for (azure, own, deployment) in [
            ("/openai/v1/chat/completions", "/v1/chat/completions", None),
            ("/openai/responses?api-version=1", "/v1/responses?api-version=1", None),
            ("/openai/files/file-1/content?api-version=1", "/v1/files/file-1/content?api-version=1", None),
            ("/openai/deployments/gpt-4o/chat/completions?api-version=1", "/v1/chat/completions?api-version=1", Some("gpt-4o")),
            ("/openai/deployments/local/m:a/completions", "/v1/completions", Some("local/m:a")),
            ("/openai/deployments/dep%20one%2Fx/embeddings", "/v1/embeddings", Some("dep one/x")),
            ("/openai/deployments/a/batches/b1/cancel", "/v1/batches/b1/cancel", Some("a")),
            ("/openai/deployments/files/files", "/v1/files", Some("files")),
            ("/openai/deployments/a/models/ft:x", "/v1/models/ft:x", Some("a")),
        ] {
            assert_eq!(rewritten(azure), (own.into(), deployment.map(str::to_string)), "{azure}");
        }
    }

    #[test]
    fn other_paths_stay() {
        for path in ["/v1/models", "/openapi.json", "/openai", "/openai/deployments/x", "/openai/deployments/%FF/completions"] {
            assert_eq!(rewritten(path), (path.into(), None));
        }
    }
}
