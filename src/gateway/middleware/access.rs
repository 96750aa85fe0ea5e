//! Who may pass. The rule comes from the route table; a matched path without a rule is refused. One caller is resolved from
//! whichever header the key came in, before any rule is looked at; two different keys are refused. An empty value is no key: SDKs
//! send the header of a key that was not set.

use crate::access::meter::Moment;
use crate::access::{Bounds, Caller, Role};
use crate::gateway::Gateway;
use crate::gateway::error::ApiError;
use crate::gateway::routes::{Access, access_of};
use crate::types::{Code, Failure};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

const KEY_HEADERS: [HeaderName; 2] = [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

const LEFT_REQUESTS: [&str; 3] = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const LEFT_TOKENS: [&str; 3] = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// See the file.
pub async fn check(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        // No route: the 404 tells nothing about anybody.
        return Ok(next.run(request).await);
    };
    let least = match access_of(path.as_str()) {
        Some(Access::Public) => return Ok(next.run(request).await),
        Some(Access::Key(role)) => role,
        None => return Err(Failure::new(Code::FORBIDDEN, "this path has no access rule").into()),
    };
    let headers = request.headers().clone();
    let answered = with_caller(&gateway, &headers, least, async |caller| {
        request.extensions_mut().insert(caller);
        next.run(request).await
    });
    Ok(answered.await?)
}

/// The answer to a caller of the role `least` or above, with what is left of its limits.
pub async fn with_caller(
    gateway: &Gateway,
    headers: &HeaderMap,
    least: Role,
    answer: impl AsyncFnOnce(Caller) -> Response,
) -> Result<Response, Failure> {
    let caller = caller(gateway, headers, least).await?;
    let bounds = caller.bounds.clone().filter(|bounds| !bounds.meters.is_empty());
    let mut response = answer(caller).await;
    if let Some(bounds) = bounds {
        tell_left(&bounds, response.headers_mut());
    }
    Ok(response)
}

/// What is left of a minute's requests and tokens, in the headers that OpenAI's clients read.
fn tell_left(bounds: &Bounds, headers: &mut HeaderMap) {
    let (requests, tokens) = bounds.left(Moment::now());
    for ([limit, remaining, reset], left) in [(LEFT_REQUESTS, requests), (LEFT_TOKENS, tokens)] {
        let Some(left) = left else { continue };
        headers.insert(HeaderName::from_static(limit), HeaderValue::from(left.limit));
        headers.insert(HeaderName::from_static(remaining), HeaderValue::from(left.remaining));
        if let Ok(value) = HeaderValue::from_str(&duration(left.reset_ms)) {
            headers.insert(HeaderName::from_static(reset), value);
        }
    }
}

/// A time as OpenAI writes it: `59.9s`, `1m0s`, `120ms`.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}s", ms as f64 / 1e3),
        _ => format!("{}m{}s", ms / 60_000, (ms % 60_000) as f64 / 1e3),
    }
}

/// The caller that the headers name, if it may do what needs the role `least`.
///
/// # Errors
/// [`Code::MISSING_KEY`], [`Code::INVALID_KEY`], [`Code::FORBIDDEN`]; [`Code::INVALID_REQUEST`] for two different keys.
pub async fn caller(gateway: &Gateway, headers: &HeaderMap, least: Role) -> Result<Caller, Failure> {
    let caller = resolve(gateway, presented_key(headers)?).await?;
    if caller.role < least {
        let message = format!("the key's role {} may not do this; {least} may", caller.role);
        return Err(Failure::new(Code::FORBIDDEN, message));
    }
    Ok(caller)
}

/// Who asks, on a route that is open to everybody but tells some more; none when no key was sent.
pub async fn known_caller(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    match presented_key(headers) {
        Ok(key) => Ok(Some(resolve(gateway, key).await?)),
        Err(failure) if failure.code() == Code::MISSING_KEY => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

async fn resolve(gateway: &Gateway, key: String) -> Result<Caller, Failure> {
    if let Some(caller) = gateway.app.keys.recall(&key)? {
        return Ok(caller);
    }
    let keys = gateway.app.keys.clone();
    let looked_up = tokio::task::spawn_blocking(move || keys.authenticate(&key)).await;
    let looked_up = looked_up.map_err(|_| Failure::new(Code::INTERNAL, "the key could not be looked up"))?;
    Ok(looked_up?)
}

/// The one key that the headers present, in any of their forms.
fn presented_key(headers: &HeaderMap) -> Result<String, Failure> {
    let not_bearer = || Failure::on(Code::INVALID_KEY, "authorization", "the Authorization header is not \"Bearer KEY\"");
    let mut keys = Vec::new();
    for value in headers.get_all(header::AUTHORIZATION) {
        let text = value.to_str().unwrap_or("").trim();
        let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("bearer") && !text.is_empty() {
            return Err(not_bearer());
        }
        keys.push(key.trim().to_string());
    }
    for value in KEY_HEADERS.iter().flat_map(|name| headers.get_all(name)) {
        // What is no text is a key that nobody has.
        keys.push(value.to_str().unwrap_or("?").trim().to_string());
    }
    keys.retain(|key| !key.is_empty());
    keys.dedup();
    match keys.as_slice() {
        [] if headers.contains_key(header::AUTHORIZATION) => Err(not_bearer()),
        [] => {
            let failure = Failure::new(Code::MISSING_KEY, "no API key was sent");
            Err(failure.with_hint("send \"Authorization: Bearer KEY\"; `refit key create NAME` makes a key"))
        }
        [_] => Ok(keys.remove(0)),
        _ => Err(Failure::on(Code::INVALID_REQUEST, "authorization", "two different API keys were sent; send one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(headers: &[(&'static str, &'static str)]) -> Result<String, &'static str> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a header value")));
        presented_key(&headers.collect::<HeaderMap>()).map_err(|failure| failure.code().name)
    }

    #[test]
    fn one_key_in_any_header_and_never_two() {
        assert_eq!(presented(&[("authorization", "bearer  k1 ")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("x-api-key", "k1"), ("authorization", "Bearer k1")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("x-api-key", "k1"), ("authorization", "Bearer k2")]), Err("invalid_request"));
        assert_eq!(presented(&[("api-key", "k1"), ("x-api-key", "k2")]), Err("invalid_request"));
        assert_eq!(presented(&[("authorization", "Basic k1")]), Err("invalid_api_key"));
        assert_eq!(presented(&[]), Err("missing_api_key"));
    }

    #[test]
    fn times_are_written_as_openai_writes_them() {
        assert_eq!([0, 120, 59_900, 60_000, 90_500].map(duration), ["0ms", "120ms", "59.9s", "1m0s", "1m30.5s"]);
    }

    #[test]
    fn an_empty_value_is_no_key() {
        assert_eq!(presented(&[("authorization", "Bearer k1"), ("x-api-key", ""), ("api-key", " ")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("authorization", "Bearer "), ("x-api-key", "k1")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("authorization", "Bearer ")]), Err("invalid_api_key"));
        assert_eq!(presented(&[("x-api-key", "")]), Err("missing_api_key"));
    }
}
