//! What is said to an engine: `bollard` for what all engines agree on, and plain requests where they differ
//! from its schema (Podman has more words for a container's state, and another form of errors) or where a
//! connection is taken over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, BodyStream, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::connect::{Connector, Target};
use crate::provider::{ProviderError, Result};

/// How long an engine may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(60);
/// A longer answer is none of ours.
const MAX_ANSWER: usize = 64 << 20;
/// A longer line is none of ours.
const MAX_LINE: usize = 1 << 20;
/// The name that requests carry; where it is, the connector knows.
const BASE: &str = "http://engine";

type Body = Either<Full<Bytes>, StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>>;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failed {
    /// The engine refused, in its own words.
    Answer(u16, String),
    /// Nothing is known of the outcome.
    Silence(String),
}

impl Failed {
    /// For questions: only "no such thing" is an answer.
    pub fn asking(self, what: &str) -> ProviderError {
        match self {
            Self::Answer(404, message) => ProviderError::NotFound(format!("{what}: {message}")),
            Self::Answer(status, message) => ProviderError::unavailable(format!("{what}: {status} {message}")),
            Self::Silence(message) => ProviderError::unavailable(format!("{what}: {message}")),
        }
    }

    /// For steps of a container's life, which the loop tries again by its own rules: a refusal is an answer.
    pub fn doing(self, reason: &str) -> ProviderError {
        match self {
            Self::Answer(429 | 503, message) | Self::Silence(message) => ProviderError::unavailable(message),
            Self::Answer(_, message) => ProviderError::Rejected { reason: reason.into(), message },
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Answer(404, _))
    }
}

impl From<bollard::errors::Error> for Failed {
    fn from(error: bollard::errors::Error) -> Self {
        match error {
            bollard::errors::Error::DockerResponseServerError { status_code, message } => {
                Self::Answer(status_code, message)
            }
            other => Self::Silence(chain(&other)),
        }
    }
}

/// An error and what it came from: the outermost one alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// An engine that has told its version.
pub(super) struct Session {
    pub docker: Docker,
    /// The part of paths that says which version of the API is spoken: `v1.44`.
    version: String,
    /// The minor version of it.
    pub minor: usize,
    /// Podman differs in what containers can share.
    pub podman: bool,
}

/// Talks to one engine.
#[derive(Clone)]
pub(super) struct Client {
    http: legacy::Client<Connector, Body>,
    session: Arc<Mutex<Option<Arc<Session>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    api_version: String,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
}

impl Client {
    pub fn new(target: Target) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(8)
            .build(Connector(target));
        Self { http, session: Arc::default() }
    }

    /// The engine with the version of its API found out, once until [`forget`](Self::forget).
    pub async fn session(&self) -> Result<Arc<Session>, Failed> {
        let mut session = self.session.lock().await;
        if let Some(known) = &*session {
            return Ok(known.clone());
        }
        let response =
            self.send(Method::GET, "/version", HeaderMap::new(), Bytes::new(), Duration::from_secs(10)).await?;
        let version: Version = read_json(response).await?;
        let unreadable = || Failed::Silence(format!("version {:?} of its API makes no sense", version.api_version));
        let (major, minor) = version.api_version.split_once('.').ok_or_else(unreadable)?;
        let major = major.parse().map_err(|_| unreadable())?;
        let minor = minor.parse::<usize>().map_err(|_| unreadable())?.min(API_DEFAULT_VERSION.minor_version);
        let http = self.http.clone();
        let transport = move |request: bollard::BollardRequest| {
            let http = http.clone();
            async move { http.request(request).await.map_err(bollard::errors::Error::from) }
        };
        let spoken = ClientVersion { major_version: major, minor_version: minor };
        let docker = Docker::connect_with_custom_transport(transport, Some(BASE), ANSWER.as_secs(), &spoken)?;
        let podman = version.components.iter().any(|c| c.name.contains("Podman"));
        let known = Arc::new(Session { docker, version: format!("v{major}.{minor}"), minor, podman });
        *session = Some(known.clone());
        Ok(known)
    }

    /// Finds out anew what the engine is before the next request: it may have been replaced.
    pub async fn forget(&self) {
        *self.session.lock().await = None;
    }

    /// `GET`, decoded.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failed> {
        let path = format!("/{}{path}", self.session().await?.version);
        let read =
            async { read_json(self.send(Method::GET, &path, HeaderMap::new(), Bytes::new(), ANSWER).await?).await };
        timeout(ANSWER, read).await.unwrap_or_else(|_| Err(Failed::Silence("no answer in time".into())))
    }

    /// `POST` of JSON, the answer decoded.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> Result<T, Failed> {
        let path = format!("/{}{path}", self.session().await?.version);
        let body = Bytes::from(body.to_string());
        let read = async { read_json(self.send(Method::POST, &path, HeaderMap::new(), body, ANSWER).await?).await };
        timeout(ANSWER, read).await.unwrap_or_else(|_| Err(Failed::Silence("no answer in time".into())))
    }

    /// `POST` of JSON to Podman's own API.
    pub async fn post_to_podman(&self, path: &str, body: &serde_json::Value) -> Result<(), Failed> {
        // The oldest version of it that all serve which have `update`.
        let (path, body) = (format!("/v4.0.0/libpod{path}"), Bytes::from(body.to_string()));
        self.send(Method::POST, &path, HeaderMap::new(), body, ANSWER).await.map(drop)
    }

    /// The lines of an answer that goes on; `within` is the time for it to begin.
    pub async fn lines(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        within: Duration,
    ) -> Result<impl Stream<Item = io::Result<String>> + Send + use<>, Failed> {
        let path = format!("/{}{path}", self.session().await?.version);
        let response = self.send(method, &path, headers, Bytes::new(), within).await?;
        let lines = FramedRead::new(body_reader(response), LinesCodec::new_with_max_length(MAX_LINE));
        Ok(lines.map_err(io::Error::other))
    }

    /// The body of an answer as a whole, at most `limit` bytes of it.
    pub async fn bytes(&self, path: &str, limit: usize) -> Result<Bytes, Failed> {
        let path = format!("/{}{path}", self.session().await?.version);
        let read = async {
            let response = self.send(Method::GET, &path, HeaderMap::new(), Bytes::new(), ANSWER).await?;
            let body = Limited::new(response.into_body(), limit).collect().await;
            body.map(|b| b.to_bytes()).map_err(|e| Failed::Silence(e.to_string()))
        };
        timeout(ANSWER, read).await.unwrap_or_else(|_| Err(Failed::Silence("no answer in time".into())))
    }

    /// Takes over the connection of a request.
    pub async fn hijack(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static + use<>, Failed> {
        let path = format!("/{}{path}", self.session().await?.version);
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        let response = self.send(Method::POST, &path, headers, body, ANSWER).await?;
        let taken = timeout(ANSWER, hyper::upgrade::on(response)).await;
        match taken {
            Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
            Ok(Err(error)) => Err(Failed::Silence(chain(&error))),
            Err(_) => Err(Failed::Silence("the connection was not handed over in time".into())),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Response<Incoming>, Failed> {
        let uri: Uri = format!("{BASE}{path}").parse().map_err(|e| Failed::Silence(format!("{path}: {e}")))?;
        let mut request = Request::new(Either::Left(Full::new(body)));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
        request.headers_mut().insert(HOST, HeaderValue::from_static("engine"));
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = match timeout(within, self.http.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Failed::Silence(chain(&error))),
            Err(_) => return Err(Failed::Silence("no answer in time".into())),
        };
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = timeout(within, Limited::new(response.into_body(), MAX_LINE).collect()).await;
        let text = match body {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            _ => String::new(),
        };
        Err(Failed::Answer(status.as_u16(), refusal(&text)))
    }
}

/// The words of a refusal.
fn refusal(body: &str) -> String {
    match serde_json::from_str::<Refusal>(body) {
        Ok(Refusal { message, cause }) if message.is_empty() => cause,
        Ok(Refusal { message, .. }) => message,
        Err(_) => body.trim().to_owned(),
    }
}

async fn read_json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Failed> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| Failed::Silence(e.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| Failed::Silence(format!("an answer makes no sense: {e}")))
}

fn body_reader(response: Response<Incoming>) -> impl tokio::io::AsyncRead + Send + Unpin {
    let frames = BodyStream::new(response.into_body());
    let data = TryStreamExt::map_err(frames, io::Error::other)
        .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) });
    StreamReader::new(data.boxed())
}

/// A header that carries a secret, so that nothing shows it.
pub(super) fn secret_header(name: &'static str, value: &str) -> Result<HeaderMap, Failed> {
    let mut value = HeaderValue::from_str(value).map_err(|e| Failed::Silence(e.to_string()))?;
    value.set_sensitive(true);
    Ok(std::iter::once((HeaderName::from_static(name), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_refusal_are_found_in_either_form() {
        for (body, want) in [
            (r#"{"message":"No such container: x"}"#, "No such container: x"),
            (r#"{"cause":"no such container","message":"","response":404}"#, "no such container"),
            ("page not found\n", "page not found"),
            ("", ""),
        ] {
            assert_eq!(refusal(body), want);
        }
    }

    #[test]
    fn only_an_answer_lets_the_loop_conclude_something() {
        let silence = || Failed::Silence("connection refused".into());
        let refused = |status| Failed::Answer(status, "no".into());
        assert!(matches!(silence().asking("x"), ProviderError::Unavailable { .. }));
        assert!(matches!(silence().doing(""), ProviderError::Unavailable { .. }));
        assert!(matches!(refused(500).asking("x"), ProviderError::Unavailable { .. }));
        assert!(matches!(refused(503).doing(""), ProviderError::Unavailable { .. }));
        assert!(matches!(refused(404).asking("x"), ProviderError::NotFound(_)));
        assert!(matches!(refused(500).doing(""), ProviderError::Rejected { .. }));
    }
}
