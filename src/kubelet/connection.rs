//! One connection: handshake, limits, end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::listeners::Port;
use super::stream::Takeover;
use super::{KubeletServer, handler};
use crate::telemetry::metrics::metrics;
use crate::tls::ServingCerts;

/// An answer's body.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// Room for a request's head; the largest real ones carry a token of some kilobytes.
const MAX_HEAD: usize = 32 * 1024;
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// How often a silent peer is asked whether it is still there: nothing else ends a log stream that has
/// nothing to say to a client whose machine is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Serves one connection until it ends. The future may be dropped to cut it off.
pub(super) async fn serve(
    server: Arc<KubeletServer>,
    port: Arc<Port>,
    tls: Arc<ServerConfig>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let node = port.nodes.name();
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    if let Err(error) = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%peer, node, %error, "a kubelet connection was gone at once");
        return;
    }
    let Some(leaf) = port.nodes.leaf(&server.certs) else {
        metrics().kubelet_refused.inc();
        tracing::debug!(%peer, node, "a connection to the kubelet API found no certificate to serve with");
        return;
    };
    let tls = ServingCerts::serve_with(&tls, &leaf);
    let stream = match timeout(server.options.handshake_timeout, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            metrics().kubelet_refused.inc();
            tracing::debug!(%peer, node, %error, "a TLS handshake with the kubelet API failed");
            return;
        }
        Err(_) => {
            metrics().kubelet_refused.inc();
            tracing::debug!(%peer, node, "a TLS handshake with the kubelet API took too long");
            return;
        }
    };
    let session = stream.get_ref().1;
    let certificates: Arc<[CertificateDer<'static>]> = session.peer_certificates().unwrap_or_default().into();
    let http2 = session.alpn_protocol() == Some(b"h2");

    let options = &server.options;
    let activity = Arc::new(Activity::default());
    let takeover = Takeover::default();
    let service = {
        let (server, port, activity, takeover) = (server.clone(), port.clone(), activity.clone(), takeover.clone());
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let (server, port, certificates) = (server.clone(), port.clone(), certificates.clone());
            let takeover = takeover.clone();
            let busy = Busy::new(activity.clone());
            async move {
                let answer = handler::answer(&server, &port, request, &certificates, &takeover).await;
                Ok::<_, Infallible>(answer.map(|body| Tracked { body, _busy: busy }))
            }
        })
    };
    let builder = auto::Builder::new(TokioExecutor::new());
    // The handshake settled the version. Guessing it from the first bytes would wait for them without end.
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut idle = pin!(activity.idle(options.header_timeout, options.idle_timeout));
    let (mut closing, mut idled) = (false, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, node, %error, "a kubelet connection broke");
                }
                break;
            }
            () = port.closed.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // A graceful end first, so that a request that is already on its way gets its answer.
            () = idle.as_mut(), if !idled => {
                (closing, idled) = (true, true);
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep(options.handshake_timeout), if idled && activity.open.load(Ordering::Acquire) == 0 => return,
        }
    }
    // HTTP is over. What took its place keeps this task, and with it the client's place among the connections.
    if let Some(session) = takeover.take() {
        session.await;
    }
}

/// The requests under way on a connection.
#[derive(Default)]
struct Activity {
    open: AtomicUsize,
    changed: Notify,
}

impl Activity {
    /// Returns when no request was under way for `between`, or none came within `first`.
    async fn idle(&self, first: Duration, between: Duration) {
        let mut patience = first;
        loop {
            if self.open.load(Ordering::Acquire) > 0 {
                self.changed.notified().await;
            } else if timeout(patience, self.changed.notified()).await.is_err() {
                if self.open.load(Ordering::Acquire) == 0 {
                    return;
                }
            } else {
                patience = between;
            }
        }
    }
}

/// One request under way, until its answer's body has ended or was given up.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::AcqRel);
        activity.changed.notify_one();
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

/// A body that keeps its connection from counting as idle.
struct Tracked {
    body: AnswerBody,
    _busy: Busy,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body without anything in it.
pub(super) fn empty() -> AnswerBody {
    UnsyncBoxBody::new(http_body_util::BodyExt::map_err(http_body_util::Empty::new(), |never| match never {}))
}

/// A whole answer of text.
pub(super) fn text(
    status: http::StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<AnswerBody> {
    let body = http_body_util::Full::new(body.into());
    let mut response =
        Response::new(UnsyncBoxBody::new(http_body_util::BodyExt::map_err(body, |never| match never {})));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_while_no_request_is_under_way() {
        let activity = Arc::new(Activity::default());
        let start = tokio::time::Instant::now();
        let waiting = {
            let activity = activity.clone();
            tokio::spawn(async move { activity.idle(Duration::from_secs(5), Duration::from_secs(60)).await })
        };
        tokio::time::sleep(Duration::from_secs(4)).await;
        let busy = Busy::new(activity.clone());
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(!waiting.is_finished());
        drop(busy);
        waiting.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 1064);
    }
}
