//! Who may pass. The rule comes from the route table; a matched path without a rule is refused. One caller is resolved from
//! whichever header the key came in, before any rule is looked at; two different keys are refused. An empty value is no key: SDKs
//! send the header of a key that was not set. With Basic authentication the password is the key, whatever the name says.

use crate::access::meter::Moment;
use crate::access::{Bounds, Caller, Role};
use crate::gateway::Gateway;
use crate::gateway::error::ApiError;
use crate::gateway::headers;
use crate::gateway::routes::{Access, access_of};
use crate::types::{Code, Failure};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

const KEY_HEADERS: [HeaderName; 2] = [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];
/// Where Portkey's clients put their key; looked at where no other header has one.
const PORTKEY_HEADER: HeaderName = HeaderName::from_static("x-portkey-api-key");

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
    let caller = permitted(&gateway, &presented_key(request.headers())?, least).await?;
    let limits = Left::of(&caller);
    request.extensions_mut().insert(caller);
    Ok(limits.told(next.run(request).await))
}

/// What a caller is told of its limits.
pub struct Left(Option<Arc<Bounds>>);

impl Left {
    /// The limits of a caller.
    pub fn of(caller: &Caller) -> Self {
        Left(caller.bounds.clone().filter(|bounds| !bounds.meters.is_empty()))
    }

    /// The reply, with what is left now.
    pub fn told(self, mut response: Response) -> Response {
        if let Some(bounds) = self.0 {
            tell_left(&bounds, response.headers_mut());
        }
        response
    }
}

/// What is left of a minute's requests and tokens, in the headers that OpenAI's clients read.
fn tell_left(bounds: &Bounds, given: &mut HeaderMap) {
    let (requests, tokens) = bounds.left(Moment::now());
    for ([limit, remaining, reset], left) in [(LEFT_REQUESTS, requests), (LEFT_TOKENS, tokens)] {
        let Some(left) = left else { continue };
        let values = [headers::count(left.limit), headers::count(left.remaining), HeaderValue::from_str(&duration(left.reset_ms)).ok()];
        for (name, value) in [limit, remaining, reset].into_iter().zip(values) {
            value.map(|value| given.insert(HeaderName::from_static(name), value));
        }
    }
}

/// A time as OpenAI writes it: `59.9s`, `1m0s`, `120ms`.
fn duration(ms: u64) -> String {
    let mut text = String::with_capacity(24);
    let (minutes, left) = (ms / 60_000, ms % 60_000);
    let (seconds, thousandths) = (left / 1_000, left % 1_000);
    let written = match (minutes, thousandths) {
        _ if ms < 1_000 => return format!("{ms}ms"),
        (0, 0) => write!(text, "{seconds}"),
        (0, _) => write!(text, "{seconds}.{thousandths:03}"),
        (_, 0) => write!(text, "{minutes}m{seconds}"),
        _ => write!(text, "{minutes}m{seconds}.{thousandths:03}"),
    };
    written.expect("writing into a String cannot fail");
    if thousandths > 0 {
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push('s');
    text
}

/// The caller that the headers name, if it may do what needs the role `least`.
///
/// # Errors
/// [`Code::MISSING_KEY`], [`Code::INVALID_KEY`], [`Code::FORBIDDEN`]; [`Code::INVALID_REQUEST`] for two different keys.
pub async fn caller(gateway: &Gateway, headers: &HeaderMap, least: Role) -> Result<Caller, Failure> {
    permitted(gateway, &presented_key(headers)?, least).await
}

async fn permitted(gateway: &Gateway, key: &str, least: Role) -> Result<Caller, Failure> {
    let caller = resolve(gateway, key).await?;
    if caller.role < least {
        let message = format!("the key's role {} may not do this; {least} may", caller.role);
        return Err(Failure::new(Code::FORBIDDEN, message));
    }
    Ok(caller)
}

/// Who asks, on a route that is open to everybody but tells some more; none when no key was sent.
pub async fn known_caller(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    match presented_key(headers) {
        Ok(key) => Ok(Some(resolve(gateway, &key).await?)),
        Err(failure) if failure.code() == Code::MISSING_KEY => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

async fn resolve(gateway: &Gateway, key: &str) -> Result<Caller, Failure> {
    if let Some(caller) = gateway.app.keys.recall(key)? {
        return Ok(caller);
    }
    let (keys, key) = (gateway.app.keys.clone(), key.to_string());
    let looked_up = tokio::task::spawn_blocking(move || keys.authenticate(&key)).await;
    let looked_up = looked_up.map_err(|_| Failure::new(Code::INTERNAL, "the key could not be looked up"))?;
    Ok(looked_up?)
}

/// The one key that the headers present, in any of their forms.
fn presented_key(headers: &HeaderMap) -> Result<Cow<'_, str>, Failure> {
    let not_bearer = || Failure::on(Code::INVALID_KEY, "authorization", "the Authorization header is not \"Bearer KEY\"");
    let authorization = headers.get_all(header::AUTHORIZATION).iter().map(|value| {
        let text = value.to_str().unwrap_or("").trim();
        let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("bearer") || text.is_empty() {
            return Ok(Cow::Borrowed(key.trim()));
        }
        let password = if scheme.eq_ignore_ascii_case("basic") { basic_password(key.trim()) } else { None };
        password.map(Cow::Owned).ok_or_else(not_bearer)
    });
    // What is no text is a key that nobody has.
    let others =
        KEY_HEADERS.into_iter().flat_map(|name| headers.get_all(name)).map(|value| Ok(Cow::Borrowed(value.to_str().unwrap_or("?").trim())));
    let mut found = None;
    for key in authorization.chain(others) {
        let key: Cow<'_, str> = key?;
        if !key.is_empty() && found.replace(key.clone()).is_some_and(|before| before != key) {
            return Err(Failure::on(Code::INVALID_REQUEST, "authorization", "two different API keys were sent; send one"));
        }
    }
    let found = found.or_else(|| headers.get(PORTKEY_HEADER).and_then(|value| value.to_str().ok()).map(|key| Cow::Borrowed(key.trim())));
    match found {
        Some(key) => Ok(key),
        None if headers.contains_key(header::AUTHORIZATION) => Err(not_bearer()),
        None => {
            let failure = Failure::new(Code::MISSING_KEY, "no API key was sent");
            Err(failure.with_hint("send \"Authorization: Bearer KEY\"; `refit key create NAME` makes a key"))
        }
    }
}

/// The password of Basic authentication (RFC 7617), which is the key.
fn basic_password(encoded: &str) -> Option<String> {
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    text.split_once(':').map(|(_, password)| password.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presented(headers: &[(&'static str, &'static str)]) -> Result<String, &'static str> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a header value")));
        presented_key(&headers.collect::<HeaderMap>()).map(Cow::into_owned).map_err(|failure| failure.code().name)
    }

    #[test]
    fn one_key_in_any_header_and_never_two() {
        assert_eq!(presented(&[("authorization", "bearer  k1 ")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("x-api-key", "k1"), ("authorization", "Bearer k1")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("x-api-key", "k1"), ("authorization", "Bearer k2")]), Err("invalid_request"));
        assert_eq!(presented(&[("api-key", "k1"), ("x-api-key", "k2")]), Err("invalid_request"));
        assert_eq!(presented(&[("authorization", "Basic k1")]), Err("invalid_api_key"));
        assert_eq!(presented(&[]), Err("missing_api_key"));
        // `pk:k1`
        assert_eq!(presented(&[("authorization", "Basic cGs6azE=")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("authorization", "Basic cGs6azE="), ("x-api-key", "k2")]), Err("invalid_request"));
        assert_eq!(presented(&[("x-portkey-api-key", "k1")]).as_deref(), Ok("k1"));
    }

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let times = [0, 120, 1_000, 10_007, 59_900, 60_000, 90_500, 630_000];
        assert_eq!(times.map(duration), ["0ms", "120ms", "1s", "10.007s", "59.9s", "1m0s", "1m30.5s", "10m30s"]);
    }

    #[test]
    fn an_empty_value_is_no_key() {
        assert_eq!(presented(&[("authorization", "Bearer k1"), ("x-api-key", ""), ("api-key", " ")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("authorization", "Bearer "), ("x-api-key", "k1")]).as_deref(), Ok("k1"));
        assert_eq!(presented(&[("authorization", "Bearer ")]), Err("invalid_api_key"));
        assert_eq!(presented(&[("x-api-key", "")]), Err("missing_api_key"));
    }
}
