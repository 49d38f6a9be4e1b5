//! Streams into pods: exec, attach, port-forward and run.
//!
//! A request names what it wants (`query`) and how it wants to talk (`upgrade`). Once the connection has
//! changed its protocol, one task speaks SPDY ([`vnode_spdy`]) or WebSocket (`channels`) on it and gives
//! the provider plain readers and writers (`exec`, `forward`); neither side knows the other. How a
//! command ended goes back as a `Status` (`status`).
//!
//! Every pipe in between is bounded and nothing is read from a client that a process does not take, or
//! from a process that a client does not take, so a session costs the same whatever goes through it.
//!
//! | module | holds |
//! |---|---|
//! | `query` | the request's parameters |
//! | `upgrade` | the choice of protocol, and the answer that changes it |
//! | `channels`, `framing` | WebSocket messages as channels |
//! | `tunnel` | WebSocket messages as one stream of bytes, for SPDY inside |
//! | `command` | exec and attach over both protocols |
//! | `forward` | port-forward over both protocols |
//! | `run` | `/run`: a command's output as plain text |
//! | `resize` | a terminal's sizes |
//! | `status` | how a command ended |
//! | `activity` | when a connection was last used |

mod activity;
mod channels;
mod command;
mod forward;
mod framing;
mod query;
mod resize;
mod run;
mod status;
mod upgrade;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::timeout;
use vnode_spdy::tunnel::Tunnel;

use self::activity::{Activity, Watched};
use self::query::CommandOptions;
use self::upgrade::{Content, Upgrade};
use super::handler::{Answered, Refusal};
use super::route::{SessionKind, SessionRoute};
use super::{KubeletServer, NodeBackend};
use crate::provider::{PodRef, Provider};
use crate::telemetry::metrics::{StreamLabels, metrics};

/// Limits of exec, attach and port-forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// How long a client may take to open the streams that belong together.
    pub creation_timeout: Duration,
    /// How long a connection may carry nothing in either direction.
    pub idle_timeout: Duration,
    /// How long a client may take to read what is left after a command has ended, and to close.
    pub finish_timeout: Duration,
    /// How long a forwarded connection that its pod does not read may keep other ones of its session waiting; twice
    /// as long when it is the only one.
    pub stall_timeout: Duration,
    /// Streams at a time on one connection; a forwarded connection takes two.
    pub max_streams: usize,
}

impl Default for StreamOptions {
    /// Kubelet's times.
    fn default() -> Self {
        Self {
            creation_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            finish_timeout: Duration::from_secs(15 * 60),
            stall_timeout: Duration::from_secs(10),
            max_streams: 2048,
        }
    }
}

/// What goes on with a connection after its request was answered with a change of protocol.
///
/// The connection's own task runs it, so that a session counts as its connection does and ends with it.
#[derive(Clone, Default)]
pub(super) struct Takeover(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Takeover {
    fn set(&self, session: BoxFuture<'static, ()>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    pub(super) fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A container, or a whole pod, that somebody may talk to.
#[derive(Clone)]
struct Target {
    backend: Arc<dyn NodeBackend>,
    provider: Arc<dyn Provider>,
    pod: PodRef,
    container: String,
}

/// What a client wants of its target.
enum Wanted {
    Command(CommandOptions),
    /// The ports that are not named by the streams themselves.
    Ports(Vec<u16>),
}

/// How long hyper may take to hand over a connection whose answer is written.
const HANDOVER: Duration = Duration::from_secs(30);

/// Answers a request for a session and leaves in `takeover` what is to be done with the connection then.
pub(super) async fn session<B: Body>(
    server: &Arc<KubeletServer>,
    backend: &Arc<dyn NodeBackend>,
    takeover: &Takeover,
    route: &SessionRoute<'_>,
    request: &Request<B>,
    on_upgrade: OnUpgrade,
) -> Answered {
    let kind = route.kind;
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
    }
    if !request.body().is_end_stream() {
        // It would be taken for the first bytes of the new protocol, or keep a client's end from being seen.
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a request for a session has no body\n"));
    }
    let query = query::pairs(request.uri())?;
    let target = target(backend, route)?;
    let capabilities = target.provider.capabilities();
    let able = match kind {
        SessionKind::Exec | SessionKind::Run => capabilities.exec,
        SessionKind::Attach => capabilities.attach,
        SessionKind::PortForward => capabilities.port_forward,
    };
    if !able {
        let message = format!("{} is not supported by this node's provider\n", kind.name());
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, message));
    }
    if kind == SessionKind::Run {
        if *request.method() != Method::POST {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"));
        }
        let patience = server.options.streams.idle_timeout;
        return run::answer(target, query::run_command(&query)?, patience, OpenStream::new(kind)).await;
    }
    let command = match kind {
        SessionKind::PortForward => None,
        _ => Some(CommandOptions::read(&query, kind == SessionKind::Exec)?),
    };
    let upgrade = upgrade::negotiate(request.method(), request.headers(), kind)?;
    let wanted = match command {
        Some(command) => Wanted::Command(command),
        None if upgrade.names_ports() => Wanted::Ports(Vec::new()),
        None => Wanted::Ports(query::ports(&query)?),
    };
    let response = upgrade.response()?;
    let options = server.options.streams.clone();
    let open = OpenStream::new(kind);
    let session = async move {
        let _open = open;
        let node = target.backend.name().to_owned();
        let io = match timeout(HANDOVER, on_upgrade).await {
            Ok(Ok(upgraded)) => hyper_util::rt::TokioIo::new(upgraded),
            Ok(Err(error)) => return tracing::debug!(%error, node, "a connection was gone before its session began"),
            Err(_) => return tracing::debug!(node, "a connection did not change its protocol in time"),
        };
        let (transport, protocol) = upgrade.names();
        tracing::debug!(node, pod = %target.pod, transport, protocol, "a {} session begins", kind.name());
        let activity = Arc::new(Activity::new());
        let io = Watched::new(io, activity.clone());
        let (pod, gone) = (target.pod.clone(), target.backend.clone());
        tokio::select! {
            () = serve(io, upgrade, target, wanted, options.clone()) => {}
            () = activity.idle(options.idle_timeout) => {
                tracing::info!(node, %pod, "a {} session was idle for too long and is closed", kind.name());
            }
            () = gone.until_gone(&pod) => {
                tracing::debug!(node, %pod, "a {} session ends with its pod", kind.name());
            }
        }
    };
    takeover.set(session.boxed());
    Ok(response)
}

async fn serve(
    io: Watched<hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>>,
    upgrade: Upgrade,
    target: Target,
    wanted: Wanted,
    options: StreamOptions,
) {
    match (upgrade, wanted) {
        (Upgrade::Spdy(version), Wanted::Command(wanted)) => {
            command::over_spdy(io, version, target, wanted, &options).await;
        }
        (Upgrade::WebSocket(version), Wanted::Command(wanted)) => {
            let (framing, form) = version.channels();
            command::over_websocket(io, framing, form, target, wanted, &options).await;
        }
        (Upgrade::Spdy(_), Wanted::Ports(_)) => forward::over_spdy(io, target, &options).await,
        (Upgrade::WebSocket(version), Wanted::Ports(ports)) => match version.content {
            Content::Tunnel => forward::over_spdy(Tunnel::new(channels::socket(io).await), target, &options).await,
            Content::Channels(framing, _) => forward::over_websocket(io, framing, target, ports, &options).await,
        },
    }
}

/// The pod and container that a request names, which must be there.
fn target(backend: &Arc<dyn NodeBackend>, route: &SessionRoute<'_>) -> Result<Target, Refusal> {
    let missing = |what: String| Refusal::new(StatusCode::NOT_FOUND, what);
    let pod = backend
        .find(route.namespace, route.pod)
        .filter(|pod| route.uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)))
        .ok_or_else(|| missing(format!("pod {:?} does not exist\n", route.pod)))?;
    if let Some(name) = route.container
        && !has_container(&pod, name)
    {
        return Err(missing(format!("container {name:?} not found in pod {:?}\n", route.pod)));
    }
    Ok(Target {
        provider: backend.provider(),
        backend: backend.clone(),
        pod: PodRef::of(&pod),
        container: route.container.unwrap_or_default().to_owned(),
    })
}

fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|c| c.name == name)
            || spec.init_containers.iter().flatten().any(|c| c.name == name)
            || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
    })
}

/// Counts a session while it is open.
struct OpenStream(Gauge);

impl OpenStream {
    fn new(kind: SessionKind) -> Self {
        let gauge = metrics().kubelet_streams.get_or_create_owned(&StreamLabels { kind: kind.name() });
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}
