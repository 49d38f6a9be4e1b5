//! Whether the process is alive and ready, over plain HTTP together with its metrics.
//!
//! Other modules register a named check in [`Readiness`] and switch it; nothing is asked when a probe
//! comes, so a probe is answered at once whatever hangs elsewhere.
//!
//! The fleet page and `/debug` are served at the same port. Who may see them is decided as for the kubelet API, unless
//! the server is [opened](HealthServer::open_on_loopback) to this machine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics::metrics;
use super::view::{FleetView, Wish};

/// Probes and scrapes come from few clients; more than this is a mistake or an attack.
const MAX_CONNECTIONS: usize = 128;
/// A connection is closed after this time, whatever it does.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// Pages that follow the fleet at a time. Each costs a look at all nodes every second.
const MAX_STREAMS: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The named checks of `/readyz`: the process is ready when all of them are. And the fleet that it has to show.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>, Arc<OnceLock<Arc<dyn FleetView>>>);

impl Readiness {
    /// Without checks, which counts as ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check that is not ready yet.
    pub fn register(&self, name: &'static str) -> Check {
        let check = Check { name, of: self.clone() };
        check.not_ready("starting");
        check
    }

    /// Lets the fleet be seen. The first one stays.
    pub fn show(&self, view: Arc<dyn FleetView>) {
        let _shown = self.1.set(view);
    }

    /// Whether everything is ready, and a line for each check.
    pub fn report(&self) -> (bool, String) {
        let checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, state) in checks.iter() {
            // Writing to a String cannot fail.
            let _ = match state {
                Ok(()) => writeln!(text, "[+]{name} ok"),
                Err(why) => writeln!(text, "[-]{name} failed: {why}"),
            };
        }
        let ready = checks.values().all(Result::is_ok);
        text.push_str(if ready { "readyz check passed\n" } else { "readyz check failed\n" });
        (ready, text)
    }

    fn set(&self, name: &'static str, state: Result<(), String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, state);
    }
}

/// One named check. Cloned handles switch the same check.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    of: Readiness,
}

impl Check {
    /// The check passes from now on.
    pub fn ready(&self) {
        self.of.set(self.name, Ok(()));
    }

    /// The check fails from now on; `why` is shown to whoever asks, so it must hold no secret.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.of.set(self.name, Err(why.into()));
    }
}

/// The open port of the health server.
pub struct HealthServer {
    listener: TcpListener,
    served: Served,
}

/// What every handler has.
#[derive(Clone)]
pub(super) struct Served {
    readiness: Readiness,
    /// Places for open pages.
    pub(super) streams: Arc<Semaphore>,
    /// Whoever reaches the port may see everything: it is on loopback, and said to be so.
    open: bool,
}

impl Served {
    /// The fleet, for somebody who may look at it; otherwise the answer to give.
    pub(super) async fn allow(&self, headers: &HeaderMap, wish: Wish) -> Result<Arc<dyn FleetView>, Response> {
        let Some(view) = self.readiness.1.get() else {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "the fleet is starting\n").into_response());
        };
        if self.open {
            // A page of somebody else's whose name was made to lead here is not this machine's user.
            return match is_local(headers) {
                true => Ok(view.clone()),
                false => Err((StatusCode::FORBIDDEN, "this is served to localhost only\n").into_response()),
            };
        }
        match view.may(headers, wish).await {
            Ok(()) => Ok(view.clone()),
            Err((status, why)) => Err((status, format!("{why}\n")).into_response()),
        }
    }
}

/// Whether the request was sent to this machine by name, and not by a page of another origin.
fn is_local(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let local = |host: &str| {
        let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
        matches!(name, "localhost" | "127.0.0.1" | "[::1]")
    };
    let origin = text(header::ORIGIN).map(|o| o.strip_prefix("http://").unwrap_or(o));
    text(header::HOST).is_some_and(local) && origin.is_none_or(local)
}

impl HealthServer {
    /// Opens the port.
    pub async fn bind(addr: SocketAddr, readiness: Readiness) -> io::Result<Self> {
        let served = Served { readiness, streams: Arc::new(Semaphore::new(MAX_STREAMS)), open: false };
        Ok(Self { listener: TcpListener::bind(addr).await?, served })
    }

    /// Shows the fleet to everybody on this machine, without asking the cluster. Changes nothing when the port can be
    /// reached from elsewhere.
    pub fn open_on_loopback(mut self) -> Self {
        self.served.open = self.listener.local_addr().is_ok_and(|a| a.ip().is_loopback());
        self
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers `/livez`, `/healthz`, `/readyz`, `/metrics`, `/fleet` and `/debug` until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let app = router(self.served);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the health port cannot accept a connection");
                    // Out of file descriptors: the error would repeat at once.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
            let (app, shutdown) = (app.clone(), shutdown.clone());
            tokio::spawn(async move {
                let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
                builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(16 * 1024);
                let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
                tokio::select! {
                    _closed = connection => {}
                    () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
                    () = shutdown.cancelled() => {}
                }
                drop(permit);
            });
        }
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .merge(super::page::routes())
        .merge(super::debug::routes())
        .with_state(served)
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    let (ready, text) = served.readiness.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn scrape(State(served): State<Served>) -> impl IntoResponse {
    if let Some(view) = served.readiness.1.get() {
        metrics().set_fleet(&view.nodes());
    }
    ([(header::CONTENT_TYPE, super::metrics::CONTENT_TYPE)], metrics().encode())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn one_failing_check_makes_the_process_not_ready_and_is_named() {
        let readiness = Readiness::new();
        assert!(readiness.report().0);
        let caches = readiness.register("caches");
        readiness.register("kubelet").ready();
        let (ready, text) = readiness.report();
        assert!(!ready);
        assert_eq!(text, "[-]caches failed: starting\n[+]kubelet ok\nreadyz check failed\n");
        caches.ready();
        assert!(readiness.report().0);
    }

    #[test]
    fn only_requests_to_this_machine_by_its_own_names_are_local() {
        for (host, origin, want) in [
            ("localhost:8080", None, true),
            ("127.0.0.1", Some("http://127.0.0.1:8080"), true),
            ("[::1]:8080", None, true),
            ("rebound.example.com", None, false),
            ("localhost:8080", Some("https://evil.example.com"), false),
            ("localhost.example.com:80", None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_local(&headers), want, "{host} {origin:?}");
        }
    }

    #[tokio::test]
    async fn probes_and_scrapes_are_answered_over_plain_http() {
        let readiness = Readiness::new();
        let check = readiness.register("caches");
        let server = HealthServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), readiness).await.unwrap();
        let addr = server.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.run(shutdown.clone()));
        let get = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        check.ready();
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/metrics").await.contains("vnode_lease_renew_seconds"));
        assert!(get("/other").await.starts_with("HTTP/1.1 404"));
        shutdown.cancel();
        running.await.unwrap();
    }

    struct Closed;

    #[async_trait::async_trait]
    impl FleetView for Closed {
        fn nodes(&self) -> Vec<super::super::view::NodeRow> {
            Vec::new()
        }
        fn node(&self, _: &str) -> Option<serde_json::Value> {
            Some(serde_json::json!("secret"))
        }
        fn internals(&self) -> serde_json::Value {
            serde_json::json!("secret")
        }
        async fn may(&self, headers: &HeaderMap, wish: Wish) -> Result<(), (StatusCode, String)> {
            match headers.get("authorization").and_then(|v| v.to_str().ok()) {
                Some("Bearer reader") if wish == Wish::SeeFleet => Ok(()),
                Some(_) => Err((StatusCode::FORBIDDEN, "Forbidden".into())),
                None => Err((StatusCode::UNAUTHORIZED, "Unauthorized".into())),
            }
        }
    }

    #[tokio::test]
    async fn the_fleet_and_the_process_are_shown_only_to_those_who_may_see_them() {
        use tower::ServiceExt as _;
        let readiness = Readiness::new();
        let served = Served { readiness: readiness.clone(), streams: Arc::new(Semaphore::new(1)), open: false };
        let ask = async |served: &Served, method: &str, path: &str, token: Option<&str>| {
            let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(axum::body::Body::empty()).unwrap();
            router(served.clone()).oneshot(request).await.unwrap().status().as_u16()
        };
        assert_eq!(ask(&served, "GET", "/debug", None).await, 503, "nothing to show yet");
        readiness.show(Arc::new(Closed));
        for (method, path, token, want) in [
            ("GET", "/fleet", None, 200),
            ("GET", "/fleet/page.js", None, 200),
            ("GET", "/fleet/stream", None, 401),
            ("GET", "/fleet/nodes/a", None, 401),
            ("GET", "/fleet/nodes/a", Some("other"), 403),
            ("GET", "/fleet/nodes/a", Some("reader"), 200),
            ("GET", "/debug", None, 401),
            ("GET", "/debug", Some("reader"), 403),
            ("PUT", "/debug/flags/v", Some("reader"), 403),
        ] {
            assert_eq!(ask(&served, method, path, token).await, want, "{method} {path} {token:?}");
        }
        let open = Served { open: true, ..served };
        assert_eq!(ask(&open, "GET", "/debug", None).await, 200);
    }
}
