//! From a request to its answer: first who asks and whether they may, then anything else.

use std::future::Future;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::auth::{Denied, User};
use super::connection::{AnswerBody, text};
use super::listeners::Port;
use super::route::Route;
use super::stream::{self, Takeover};
use super::{KubeletServer, NodeBackend, logs, pods, stats};
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

/// Answers one request at a node's port.
pub(super) async fn answer<B: hyper::body::Body>(
    server: &Arc<KubeletServer>,
    port: &Port,
    mut request: Request<B>,
    certificates: &[CertificateDer<'static>],
    takeover: &Takeover,
) -> Response<AnswerBody> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let route = Route::of(request.uri().path());
    let answered = match allowed(server, &*port.backend, &route, &request, certificates).await {
        Ok(user) => {
            tracing::trace!(user = %user.name, node = port.backend.name(), route = route.name(), "a kubelet request");
            match &route {
                Route::Session(session) => stream::session(server, port, takeover, session, &request, on_upgrade).await,
                _ => dispatch(server, port, &route, &request).await,
            }
        }
        Err(denied) => Err(denied.into()),
    };
    let response = answered.unwrap_or_else(|refusal| text(refusal.status, TEXT, refusal.message));
    let labels = KubeletLabels { route: route.name(), code: response.status().as_u16() };
    metrics().kubelet_requests.get_or_create(&labels).inc();
    response
}

/// Who asks, once it is certain that they may.
async fn allowed<B>(
    server: &KubeletServer,
    backend: &dyn NodeBackend,
    route: &Route<'_>,
    request: &Request<B>,
    certificates: &[CertificateDer<'static>],
) -> Result<User, Denied> {
    let user = server.auth.authenticate(request.headers(), certificates).await?;
    let verb = route.verb(request.method(), request.uri().path());
    server.auth.authorize(&user, backend.name(), verb, route.subresources()).await?;
    Ok(user)
}

async fn dispatch<B>(server: &Arc<KubeletServer>, port: &Port, route: &Route<'_>, request: &Request<B>) -> Answered {
    let backend = &port.backend;
    if let Route::Unknown(_) = route {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
    }
    match *route {
        Route::Healthz => Ok(text(StatusCode::OK, TEXT, "ok")),
        Route::Pods => pods::bound(&**backend),
        Route::RunningPods => pods::running(server, &**backend).await,
        Route::StatsSummary => stats::summary(server, &**backend).await,
        Route::MetricsResource => stats::resource_metrics(server, &**backend).await,
        Route::Metrics => Ok(text(StatusCode::OK, CONTENT_TYPE, metrics().encode())),
        Route::ContainerLogs { namespace, pod, container } => {
            let wanted = logs::Wanted { namespace, pod, container, query: request.uri() };
            logs::container_logs(server, backend, &port.closed, &wanted).await
        }
        // Answered above.
        Route::Session(_) | Route::Unknown(_) => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}
