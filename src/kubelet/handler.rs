//! From a request to its answer: first who asks and whether they may, then anything else.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::auth::{Denied, User};
use super::connection::{AnswerBody, text};
use super::listeners::Port;
use super::nodes::Subject;
use super::route::{Area, Route};
use super::stream::{self, Takeover};
use super::{KubeletServer, NodeBackend, about, logs, pods, stats};
use crate::provider::ProviderError;
use crate::telemetry::metrics::{CONTENT_TYPE, KubeletLabels, metrics};

/// What every handler returns; the error is an answer too.
pub(super) type Answered = Result<Response<AnswerBody>, Refusal>;

/// Plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// JSON.
pub(super) const JSON: &str = "application/json";

/// An answer other than the one asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<ProviderError> for Refusal {
    fn from(error: ProviderError) -> Self {
        let status = match error {
            ProviderError::NotFound(_) => StatusCode::NOT_FOUND,
            ProviderError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            ProviderError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ProviderError::Invalid { .. } | ProviderError::Rejected { .. } => StatusCode::BAD_REQUEST,
        };
        Self::new(status, format!("{error}\n"))
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::Unauthenticated => StatusCode::UNAUTHORIZED,
            Denied::Forbidden { .. } => StatusCode::FORBIDDEN,
            Denied::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, denied.to_string())
    }
}

/// Waits for a provider as long as it may take.
pub(super) async fn within<T>(
    server: &KubeletServer,
    call: impl Future<Output = crate::provider::Result<T>>,
) -> Result<T, ProviderError> {
    timeout(server.options.provider_timeout, call)
        .await
        .unwrap_or_else(|_| Err(ProviderError::unavailable("it did not answer in time")))
}

/// Answers one request at a port.
pub(super) async fn answer<B: hyper::body::Body>(
    server: &Arc<KubeletServer>,
    port: &Port,
    mut request: Request<B>,
    certificates: &[CertificateDer<'static>],
    takeover: &Takeover,
) -> Response<AnswerBody> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let route = Route::of(request.uri().path());
    let answered = match allowed(server, port, &route, &request, certificates).await {
        Ok((user, subject)) => {
            tracing::trace!(user = %user.name, node = subject.node(), route = route.name(), "a kubelet request");
            match (&route, &subject) {
                (Route::Session(session), Subject::One(backend)) => {
                    stream::session(server, backend, takeover, session, &request, on_upgrade).await
                }
                _ => dispatch(server, port, &subject, &route, &request).await,
            }
        }
        Err(denied) => Err(denied.into()),
    };
    let response = answered.unwrap_or_else(|refusal| text(refusal.status, TEXT, refusal.message));
    let labels = KubeletLabels { route: route.name(), code: response.status().as_u16() };
    metrics().kubelet_requests.get_or_create(&labels).inc();
    response
}

/// Who asks, and what about, once it is certain that they may.
async fn allowed<B>(
    server: &KubeletServer,
    port: &Port,
    route: &Route<'_>,
    request: &Request<B>,
    certificates: &[CertificateDer<'static>],
) -> Result<(User, Subject), Denied> {
    let user = server.auth.authenticate(request.headers(), certificates).await?;
    // Only somebody known makes us look for anything.
    let subject = port.nodes.subject(route, request.uri().query());
    let verb = route.verb(request.method(), request.uri().path());
    server.auth.authorize(&user, subject.node(), verb, route.subresources()).await?;
    Ok((user, subject))
}

async fn dispatch<B>(
    server: &Arc<KubeletServer>,
    port: &Port,
    subject: &Subject,
    route: &Route<'_>,
    request: &Request<B>,
) -> Answered {
    let not_found = || Refusal::new(StatusCode::NOT_FOUND, "404 page not found\n");
    match route {
        // Kubelet's words when its log files are not to be had: they would be the host's.
        Route::Unknown(Area::Logs) => {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n"));
        }
        Route::Unknown(_) => return Err(not_found()),
        _ => {}
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
    }
    let nodes = match (route, subject) {
        (Route::ContainerLogs { namespace, pod, container }, Subject::One(backend)) => {
            let wanted = logs::Wanted { namespace, pod, container, query: request.uri() };
            return logs::container_logs(server, backend, &port.closed, &wanted).await;
        }
        (Route::ContainerLogs { pod, .. }, _) => {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist\n")));
        }
        (Route::Session(session), _) => {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("pod {:?} does not exist\n", session.pod)));
        }
        (_, Subject::One(backend)) => Of::One(backend),
        (_, Subject::All(all)) => Of::All(all),
        (_, Subject::Nothing) => return Err(Refusal::new(StatusCode::NOT_FOUND, "there is no such node here\n")),
    };
    match *route {
        Route::Healthz => Ok(text(StatusCode::OK, TEXT, "ok")),
        Route::Pods => pods::bound(nodes),
        Route::RunningPods => pods::running(server, nodes).await,
        Route::StatsSummary => stats::summary(server, nodes).await,
        Route::MetricsResource => stats::metrics(server, nodes, stats::Kind::Resource).await,
        Route::MetricsCadvisor => stats::metrics(server, nodes, stats::Kind::Cadvisor).await,
        Route::MetricsProbes => stats::probes(nodes),
        Route::Metrics => Ok(text(StatusCode::OK, CONTENT_TYPE, metrics().encode())),
        Route::Configz => about::configz(server),
        Route::Statusz => about::statusz(server),
        Route::Flagz => about::flagz(server),
        // Answered above.
        Route::ContainerLogs { .. } | Route::Session(_) | Route::Unknown(_) => Err(not_found()),
    }
}

/// Providers that are asked at a time, when many nodes share a port.
const ASKED_AT_ONCE: usize = 32;

/// Asks something of each node, in their order.
pub(super) async fn ask_each<T: Send + 'static>(
    server: &Arc<KubeletServer>,
    of: Of<'_>,
    ask: fn(Arc<KubeletServer>, Arc<dyn NodeBackend>) -> BoxFuture<'static, T>,
) -> Vec<T> {
    let asked: Vec<_> = of.nodes().iter().map(|node| ask(server.clone(), node.clone())).collect();
    futures::stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await
}

/// The node or nodes that a read is about.
#[derive(Clone, Copy)]
pub(super) enum Of<'a> {
    One(&'a Arc<dyn NodeBackend>),
    All(&'a [Arc<dyn NodeBackend>]),
}

impl<'a> Of<'a> {
    /// All of them.
    pub(super) fn nodes(self) -> &'a [Arc<dyn NodeBackend>] {
        match self {
            Self::One(node) => std::slice::from_ref(node),
            Self::All(nodes) => nodes,
        }
    }

    /// Whether it must be said which node something is of.
    pub(super) fn is_shared(self) -> bool {
        matches!(self, Self::All(_))
    }
}
