//! Whether the process is alive and ready, over plain HTTP together with its metrics.
//!
//! Other modules register a named check in [`Readiness`] and switch it; nothing is asked when a probe
//! comes, so a probe is answered at once whatever hangs elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics::metrics;

/// Probes and scrapes come from few clients; more than this is a mistake or an attack.
const MAX_CONNECTIONS: usize = 128;
/// A connection is closed after this time, whatever it does.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The named checks of `/readyz`: the process is ready when all of them are.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

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
    readiness: Readiness,
}

impl HealthServer {
    /// Opens the port.
    pub async fn bind(addr: SocketAddr, readiness: Readiness) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(addr).await?, readiness })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers `/livez`, `/healthz`, `/readyz` and `/metrics` until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let app = router(self.readiness);
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

fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(readiness)
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (ready, text) = readiness.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn scrape() -> impl IntoResponse {
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
}
