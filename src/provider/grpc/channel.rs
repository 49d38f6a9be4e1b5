//! What goes with every request to a service, and what becomes of those that get no answer.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::Status;
use tonic::body::Body;

use super::connect::{Connector, Target, hint};

/// How long a connection may be silent after it was asked whether it still is one.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(10);
/// What one call may have under way that nobody has read.
const STREAM_WINDOW: u32 = 256 << 10;
/// What all calls together may: so much that a few whose readers are slow do not hold up the others.
const CONNECTION_WINDOW: u32 = 32 << 20;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("vnode/", env!("CARGO_PKG_VERSION")));

/// One HTTP/2 connection to a service, made when it is needed and made again when it is lost.
#[derive(Clone)]
pub(super) struct Channel {
    http: legacy::Client<Connector, Body>,
    connector: Connector,
    authorization: Option<HeaderValue>,
}

impl Channel {
    pub fn new(target: Target, authorization: Option<HeaderValue>, keep_alive: Duration) -> Self {
        let connector = Connector::new(target);
        let http = legacy::Client::builder(TokioExecutor::new())
            .http2_only(true)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(None)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            // Only when nothing has come for so long: servers close connections that ask without need.
            .http2_keep_alive_interval(keep_alive)
            .http2_keep_alive_timeout(KEEP_ALIVE_ANSWER)
            .build(connector.clone());
        Self { http, connector, authorization }
    }

    /// Waits until the service answers again after it did not. For one at a time.
    pub async fn revived(&self) {
        self.connector.revived().await;
    }
}

/// An error and what it came from. What hyper says of itself helps nobody.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut source) = (String::new(), Some(error));
    while let Some(error) = source {
        let more = match hint(error) {
            Some(hint) => format!("{hint} ({error})"),
            None => error.to_string(),
        };
        if !more.starts_with("client error (") && !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        source = error.source();
    }
    if text.is_empty() { "the connection was lost".into() } else { text }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, AGENT);
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let connector = self.connector.clone();
        let answer = self.http.request(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => {
                    connector.worked();
                    Ok(response)
                }
                Err(error) => {
                    let text = chain(&error);
                    // An error of the attempt itself is known already.
                    if !error.is_connect() {
                        connector.failed(&text);
                    }
                    Err(Status::unavailable(text))
                }
            }
        })
    }
}
