//! `/containerLogs`: from a provider's lines to the client, never faster than the client reads.
//!
//! The answer's body is the provider's stream itself, formatted: when the client does not read, it is not
//! polled, and nothing piles up in between. Lines that are there together go out together; a single one
//! goes out at once.

mod follow;
mod format;
mod query;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use self::format::Format;
use self::query::{LogQuery, QueryError};
use super::handler::{Answered, Refusal, TEXT, within};
use super::{KubeletServer, NodeBackend};
use crate::provider::{LogOptions, LogStream, PodRef, ProviderError};
use crate::telemetry::metrics::{StreamLabels, metrics};

/// How much is put together before it is sent.
const CHUNK: usize = 32 * 1024;
/// How many lines are looked at before others get their turn, when none of them is wanted.
const TURN: usize = 512;

/// Which container's log is asked for.
pub(super) struct Wanted<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) container: &'a str,
    /// The undecoded query.
    pub(super) query: &'a http::Uri,
}

/// Answers a log request. `closed` ends a stream that follows when the node's port is closed.
pub(super) async fn container_logs(
    server: &KubeletServer,
    backend: &Arc<dyn NodeBackend>,
    closed: &CancellationToken,
    wanted: &Wanted<'_>,
) -> Answered {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(wanted.query)
        .map_err(|_| QueryError::Undecodable)?;
    let query = LogQuery::read(&pairs, Timestamp::now())?;
    let LogQuery { follow, previous, tail, since, .. } = query;
    let options = LogOptions { follow, previous, tail, since };
    let Wanted { namespace, pod: name, container, .. } = *wanted;
    let missing = |what: String| Refusal::new(StatusCode::NOT_FOUND, what);
    let pod = backend.find(namespace, name).ok_or_else(|| missing(format!("pod {name:?} does not exist\n")))?;
    if !has_container(&pod, container) {
        return Err(missing(format!("container {container:?} not found in pod {name:?}\n")));
    }
    let pod_ref = PodRef::of(&pod);
    let provider = backend.provider();
    let lines = within(server, provider.logs(&pod_ref, container, &options))
        .await
        .map_err(|error| refused(error, &pod, container, previous))?;
    let lines = match follow && !previous {
        true => {
            let of = (pod_ref.clone(), container.to_owned());
            let restarts = follow::restarts(&pod, container);
            follow::through_runs(lines, backend.clone(), of, restarts, server.options.provider_timeout)
        }
        false => lines,
    };

    let end: BoxFuture<'static, ()> = if follow {
        let (backend, closed) = (backend.clone(), closed.clone());
        async move {
            tokio::select! {
                () = backend.until_gone(&pod_ref) => {}
                () = closed.cancelled() => {}
            }
        }
        .boxed()
    } else {
        std::future::pending().boxed()
    };
    let body =
        Lines { lines, end, format: Format::new(&query), finished: false, failed: None, _open: OpenStream::new() };
    let chunks = stream::unfold(body, async |mut body| {
        let chunk = poll_fn(|cx| body.poll_chunk(cx)).await?;
        Some((chunk.map(Frame::data), body))
    });
    let mut response = Response::new(UnsyncBoxBody::new(StreamBody::new(chunks)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Undecodable => Self::new(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#),
            QueryError::Invalid => Self::new(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#),
        }
    }
}

fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|c| c.name == name)
            || spec.init_containers.iter().flatten().any(|c| c.name == name)
            || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
    })
}

/// A container that has not begun has no log yet, which is not the same as not being there.
fn refused(error: ProviderError, pod: &Pod, container: &str, previous: bool) -> Refusal {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !error.is_not_found() {
        return error.into();
    }
    if previous {
        let message = format!("previous terminated container {container:?} in pod {name:?} not found");
        return Refusal::new(StatusCode::BAD_REQUEST, message);
    }
    let status = pod.status.as_ref();
    let of_init = status.and_then(|s| s.init_container_statuses.as_ref());
    let of_main = status.and_then(|s| s.container_statuses.as_ref());
    let found = of_init.into_iter().chain(of_main).flatten().find(|c| c.name == container);
    match found.and_then(|c| c.state.as_ref()?.waiting.as_ref()) {
        Some(waiting) => {
            let reason = waiting.reason.as_deref().unwrap_or("ContainerCreating");
            let message = format!("container {container:?} in pod {name:?} is waiting to start: {reason}");
            Refusal::new(StatusCode::BAD_REQUEST, message)
        }
        None => error.into(),
    }
}

/// The body of a log answer.
struct Lines {
    lines: LogStream,
    /// Ready when a stream that follows is to end though its container goes on.
    end: BoxFuture<'static, ()>,
    format: Format,
    finished: bool,
    failed: Option<ProviderError>,
    _open: OpenStream,
}

impl Lines {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut out = BytesMut::new();
        let mut turn = 0;
        while !self.finished && out.len() < CHUNK {
            turn += 1;
            if turn > TURN {
                if out.is_empty() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                break;
            }
            match self.lines.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(line))) => self.finished = !self.format.write(&line, &mut out),
                Poll::Ready(Some(Err(error))) => (self.finished, self.failed) = (true, Some(error)),
                Poll::Ready(None) => self.finished = true,
                // What was written before the pod went is delivered first.
                Poll::Pending if !out.is_empty() => break,
                Poll::Pending => {
                    if self.end.poll_unpin(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.finished = true;
                }
            }
        }
        if !out.is_empty() {
            return Poll::Ready(Some(Ok(out.freeze())));
        }
        // The status line is long gone: breaking the stream is what is left to tell of an error.
        Poll::Ready(self.failed.take().map(|error| Err(io::Error::other(error))))
    }
}

/// Counts a stream while it is open.
struct OpenStream(Gauge);

impl OpenStream {
    fn new() -> Self {
        let gauge = metrics().kubelet_streams.get_or_create_owned(&StreamLabels { kind: "logs" });
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}
