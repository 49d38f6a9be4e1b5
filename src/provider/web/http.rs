//! Requests to a service, and its answers: bounded in time and size, and told apart by what they let us conclude.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, BodyStream, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use tokio::io::AsyncBufRead;
use tokio::time::timeout;
use tokio_util::io::StreamReader;

use super::connect::{Connector, Target};
use super::settings::Settings;
use crate::provider::{ProviderError, Result};

/// A longer answer about all pods is none that makes sense.
pub(super) const LARGE: usize = 64 << 20;
/// A longer answer about one thing is none that makes sense.
pub(super) const SMALL: usize = 8 << 20;
/// What of an answer is read to say what was wrong.
const GLIMPSE: usize = 64 << 10;
/// What of it is shown.
const SHOWN: usize = 300;
/// How often a request is tried that no connection took.
const ATTEMPTS: u32 = 3;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("vnode/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The connections to one service, for all nodes that have the same credentials for it.
pub(super) struct Pool(legacy::Client<Connector, Full<Bytes>>);

impl Pool {
    /// Connects when there is something to ask.
    pub fn new(target: Target) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(32)
            .set_host(false)
            .build(Connector(target));
        Self(client)
    }
}

/// Talks to one service.
pub(super) struct Http {
    pool: Arc<Pool>,
    pub settings: Settings,
    host: HeaderValue,
}

/// A request: what goes before the body.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub method: Method,
    /// With its query, to be appended to the service's address.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    /// The media type without its parameters.
    pub kind: String,
    pub retry_after: Option<Duration>,
    pub body: Bytes,
    /// What was asked, for messages: `GET /path`.
    pub what: String,
}

impl Ask {
    /// A question.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// A request with JSON in its body.
    pub fn with(method: Method, path: impl Into<String>, body: &impl serde::Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body)
            .map_err(|e| ProviderError::Rejected { reason: "Unwritable".into(), message: e.to_string() })?;
        Ok(Self { method, path: path.into(), headers: HeaderMap::new(), body: body.into() })
    }

    /// The same with one more header, unless its value cannot be one.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// What is asked, without the query: names of pods are in it.
    pub fn what(&self) -> String {
        format!("{} {}", self.method, self.path.split('?').next().unwrap_or_default())
    }
}

impl Http {
    /// Asks over the connections of a pool.
    pub fn new(settings: Settings, pool: Arc<Pool>) -> Self {
        // A name that is none of a host could not have been parsed as one.
        let host = HeaderValue::from_str(&settings.target.authority()).unwrap_or(HeaderValue::from_static("service"));
        Self { pool, settings, host }
    }

    /// The request as it goes out, for a connection of the pool or one of its own.
    pub fn request<B>(&self, ask: &Ask, body: B) -> Result<Request<B>> {
        let uri = format!("{}{}{}", self.settings.target.origin(), self.settings.base, ask.path);
        let uri = uri.parse().map_err(|e| ProviderError::unavailable(format!("{}: {e}", ask.what())))?;
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) =
            (ask.method.clone(), uri, ask.headers.clone());
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, AGENT);
        headers.entry(ACCEPT).or_insert(JSON);
        if !ask.body.is_empty() {
            headers.insert(CONTENT_TYPE, JSON);
        }
        if let Some(value) = &self.settings.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }

    /// The beginning of an answer.
    async fn begin(&self, ask: &Ask, within: Duration) -> Result<Response<Incoming>> {
        for left in (0..ATTEMPTS).rev() {
            let request = self.request(ask, Full::new(ask.body.clone()))?;
            match timeout(within, self.pool.0.request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) if left > 0 && never_sent(&error) => {}
                Ok(Err(error)) => return Err(silence(&ask.what(), &error)),
                Err(_) => break,
            }
        }
        Err(no_answer(&ask.what(), within))
    }

    /// A complete answer, at most `limit` bytes of it.
    pub async fn ask(&self, ask: Ask, limit: usize) -> Result<Answer> {
        self.ask_within(ask, limit, self.settings.timeout).await
    }

    /// A complete answer within a time.
    pub async fn ask_within(&self, ask: Ask, limit: usize, within: Duration) -> Result<Answer> {
        let what = ask.what();
        let read = async {
            let response = self.begin(&ask, within).await?;
            let limit = if response.status().is_success() { limit } else { GLIMPSE };
            complete(response, limit, &what).await
        };
        timeout(within, read).await.unwrap_or_else(|_| Err(no_answer(&what, within)))
    }

    /// An answer that goes on: its body, or the complete answer when it is no success.
    pub async fn open(&self, ask: Ask) -> Result<std::result::Result<Body, Answer>> {
        let within = self.settings.timeout;
        let response = self.begin(&ask, within).await?;
        if response.status().is_success() {
            let kind = media_type(response.headers());
            return Ok(Ok(Body { kind, read: Box::pin(body_reader(response)) }));
        }
        let what = ask.what();
        let read = complete(response, GLIMPSE, &what);
        timeout(within, read).await.unwrap_or_else(|_| Err(no_answer(&what, within))).map(Err)
    }

    /// A connection whose protocol has been changed, with the headers of the answer; or the complete answer when the
    /// service does not change it.
    pub async fn upgrade(&self, ask: Ask) -> Result<std::result::Result<(HeaderMap, TokioIo<Upgraded>), Answer>> {
        let (what, within) = (ask.what(), self.settings.timeout);
        let read = async {
            let response = self.begin(&ask, within).await?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                let headers = response.headers().clone();
                let stream = hyper::upgrade::on(response).await.map_err(|e| silence(&what, &e))?;
                return Ok(Ok((headers, TokioIo::new(stream))));
            }
            complete(response, GLIMPSE, &what).await.map(Err)
        };
        timeout(within, read).await.unwrap_or_else(|_| Err(no_answer(&what, within)))
    }
}

/// The body of an answer that goes on.
pub(super) struct Body {
    /// Its media type.
    pub kind: String,
    /// Its bytes.
    pub read: std::pin::Pin<Box<dyn AsyncBufRead + Send>>,
}

async fn complete(response: Response<Incoming>, limit: usize, what: &str) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let retry_after = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let body = match Limited::new(body, limit).collect().await {
        Ok(body) => body.to_bytes(),
        // What comes after the first part of a refusal is of no interest.
        Err(error) if error.is::<LengthLimitError>() && !head.status.is_success() => Bytes::new(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ProviderError::unavailable(format!(
                "{what}: the answer is longer than {} MiB, and was not read any further; that is more than any \
                 node's pods need",
                limit >> 20
            )));
        }
        Err(error) => return Err(silence(what, error.as_ref())),
    };
    let retry_after = retry_after.map(|s: u32| Duration::from_secs(s.min(3600).into()));
    Ok(Answer { status: head.status, kind: media_type(&head.headers), retry_after, body, what: what.to_owned() })
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn body_reader(response: Response<Incoming>) -> impl AsyncBufRead + Send {
    let frames = BodyStream::new(response.into_body());
    let data = TryStreamExt::map_err(frames, io::Error::other)
        .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
    StreamReader::new(data.boxed())
}

fn no_answer(what: &str, within: Duration) -> ProviderError {
    ProviderError::unavailable(format!("{what}: no answer within {} s", within.as_secs_f32()))
}

/// A connection that ended before it took the request. With TLS 1.3 a certificate is refused that late, and only who is
/// in time hears why.
fn never_sent(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Nothing is known of the outcome.
pub(super) fn silence(what: &str, error: &(dyn std::error::Error + 'static)) -> ProviderError {
    ProviderError::unavailable(format!("{what}: {}", chain(error)))
}

/// An error and what it came from, with what can be done about the commonest ones.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut source) = (String::new(), Some(error));
    while let Some(error) = source {
        let more = error.to_string();
        // What the client says of itself helps nobody.
        if !more.starts_with("client error (") && !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        source = error.source();
    }
    if text.is_empty() {
        text.push_str("the connection was lost");
    }
    for (sign, hint) in [
        ("Connection refused", "is the service running, and spec.provider.web.url right?"),
        ("peer certificate: certificate expired", "the certificate of the service has expired: renew it"),
        ("invalid peer certificate: Expired", "the certificate of the service has expired: renew it"),
        ("UnknownIssuer", "put the authority that its certificate is from into ca.crt of the credentials Secret"),
        ("BadSignature", "put the authority that its certificate is from into ca.crt of the credentials Secret"),
        ("NotValidForName", "spec.provider.web.url must have a name that the service's certificate is for"),
        ("not valid for name", "spec.provider.web.url must have a name that the service's certificate is for"),
        ("CertificateRequired", "the service wants tls.crt and tls.key in the credentials Secret"),
        ("alert: UnknownCA", "the service does not know the authority that tls.crt of the credentials Secret is from"),
        ("alert: BadCertificate", "the service does not accept tls.crt of the credentials Secret"),
        ("alert: DecryptError", "the service does not accept tls.crt of the credentials Secret"),
        ("alert: CertificateExpired", "tls.crt of the credentials Secret has expired by the service's clock"),
        ("InvalidContentType", "the service does not speak TLS there: is https:// right?"),
        ("tls handshake eof", "the service ended the handshake: is https:// right?"),
        ("corrupt message", "the service does not speak TLS there: is https:// right?"),
    ] {
        if text.contains(sign) && !text.contains(hint) {
            // Writing into a String cannot fail.
            let _ = write!(text, " ({hint})");
            break;
        }
    }
    text
}

impl Answer {
    /// The JSON of a successful answer.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let why = if self.body.is_empty() {
                "the answer is empty; it must be JSON".to_owned()
            } else if self.is_html() {
                "the answer is an HTML page in place of JSON; is spec.provider.web.url right?".to_owned()
            } else if let Some(said) = self.error_inside() {
                format!("the service answers {} with an error in it: {said}", self.status.as_u16())
            } else if error.is_eof() {
                format!("the answer breaks off in the middle of its JSON, after {} bytes", self.body.len())
            } else {
                format!("the answer makes no sense: {error}: {}", self.glimpse())
            };
            ProviderError::unavailable(format!("{}: {why}", self.what))
        })
    }

    /// True for a page for people.
    pub fn is_html(&self) -> bool {
        let start = self.body.trim_ascii_start();
        self.kind == "text/html" || start.starts_with(b"<!") || start.starts_with(b"<html")
    }

    /// The words of an error that a success should not have in it.
    pub fn error_inside(&self) -> Option<String> {
        let serde_json::Value::Object(map) = serde_json::from_slice(&self.body).ok()? else { return None };
        let text = |key: &str| map.get(key).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
        let said = text("error").or_else(|| text("errors")).or_else(|| {
            let failed = map.get("status").and_then(|s| s.as_str()) == Some("Failure");
            let failed = failed || self.kind == "application/problem+json";
            failed.then(|| text("message").or_else(|| text("detail")).unwrap_or_else(|| self.glimpse()))
        })?;
        let nothing = matches!(said.as_str(), "" | "null" | "false" | "[]" | "{}");
        (!nothing).then(|| shown(&said))
    }

    /// The beginning of the body, as far as it can be shown.
    pub fn glimpse(&self) -> String {
        if self.is_html() {
            return "an HTML page".into();
        }
        shown(&String::from_utf8_lossy(&self.body[..self.body.len().min(4 * SHOWN)]))
    }

    /// Status and beginning of the body, for messages.
    pub fn story(&self) -> String {
        let body = self.glimpse();
        let hint = match self.status.as_u16() {
            401 | 403 => "; the service does not accept the operator: look at token, tls.crt and tls.key in the Secret",
            300..=399 => "; redirects are not followed: spec.provider.web.url must be the service's own address",
            _ => "",
        };
        let dash = if body.is_empty() { "" } else { ": " };
        format!("{}: {}{dash}{body}{hint}", self.what, self.status)
    }

    /// An answer that tells nothing of the pod: its story, and how long to wait.
    pub fn unavailable(&self) -> ProviderError {
        let retry_after = self.retry_after.filter(|_| matches!(self.status.as_u16(), 429 | 503));
        ProviderError::Unavailable { message: self.story(), retry_after, source: None }
    }
}

/// One line of at most so many printable characters.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

/// A value as it stands in a query or a path. RFC 3986, section 2.3.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            // Writing into a String cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: &str, body: &str) -> Answer {
        Answer {
            status: StatusCode::OK,
            kind: kind.into(),
            retry_after: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            what: "GET /getPods".into(),
        }
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_said() {
        for (kind, body, want) in [
            ("text/html", "<!DOCTYPE html><p>x", "HTML page"),
            ("", "<html>", "spec.provider.web.url"),
            ("application/json", "", "empty"),
            ("application/json", "[{\"metadata\": {", "breaks off in the middle of its JSON, after 15 bytes"),
            ("application/json", "{\"error\": \"no\\nspace\"}", "200 with an error in it: no space"),
            ("application/json", "{\"status\": \"Failure\", \"message\": \"full\"}", "with an error in it: full"),
            ("text/plain", "[", "breaks off"),
            ("application/json", "{\"a\": 1}", "makes no sense"),
        ] {
            let error = answer(kind, body).json::<Vec<serde_json::Map<String, serde_json::Value>>>().unwrap_err();
            let said = error.to_string();
            assert!(said.contains("GET /getPods: ") && said.contains(want), "{body}: {said}");
            assert!(matches!(error, ProviderError::Unavailable { .. }));
        }
        for fine in [r#"{"error": null}"#, r#"{"error": ""}"#, r#"{"status": "ok"}"#, "[]", "created"] {
            assert_eq!(answer("application/json", fine).error_inside(), None, "{fine}");
        }
    }

    #[test]
    fn values_are_encoded_and_answers_are_shown_in_one_short_line() {
        assert_eq!(encode("a b/ä&=~"), "a%20b%2F%C3%A4%26%3D~");
        let long = answer("text/plain", &format!("a\n\u{7}b {}", "x".repeat(9999)));
        assert!(long.glimpse().starts_with("a b x") && long.glimpse().chars().count() == SHOWN + 1);
    }
}
