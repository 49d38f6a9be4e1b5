//! Connections: TLS with optional client certificates, HTTP/1.1 and HTTP/2, deadlines, a bound on their number.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::faults::{Line, Network};
use super::http::failure;
use super::socket::Socket;
use crate::auth::User;
use crate::pki::{Authority, PkiError};
use crate::status::ApiError;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Between two requests on one connection, the next one's headers included.
const IDLE_DEADLINE: Duration = Duration::from_secs(300);
const PING_EVERY: Duration = Duration::from_secs(30);
/// What the headers of one HTTP/2 request may take; HTTP/1 has hyper's limits, 100 of them and 400 KiB.
const HEADERS: u32 = 128 << 10;
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 20_000;

/// The TLS side of the server.
pub(crate) fn tls(authority: &Authority, address: SocketAddr) -> Result<rustls::ServerConfig, PkiError> {
    let mut addresses = vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into(), [10, 96, 0, 1].into()];
    if !address.ip().is_unspecified() {
        addresses.push(address.ip());
    }
    let (certificate, key) = authority.serving(&addresses)?.der()?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate()?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves until `stop` is cancelled, then lets requests finish for a while.
pub(crate) async fn serve(
    api: Arc<Api>,
    mut listener: TcpListener,
    tls: rustls::ServerConfig,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let mut network = api.faults.as_ref().map(|faults| faults.network());
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            slot = slots.clone().acquire_owned() => {
                let Ok(slot) = slot else { break };
                tokio::select! {
                    () = stop.cancelled() => break,
                    accepted = listener.accept() => accepted.map(|(stream, _)| (stream, slot)),
                    () = refused(network.as_mut()) => {
                        match listen_again(listener, network.as_mut(), &stop).await {
                            Some(again) => listener = again,
                            None => return,
                        }
                        continue;
                    }
                }
            }
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection = connection(api.clone(), acceptor.clone(), stream, graceful.watcher());
                let stop = stop.clone();
                tokio::spawn(async move {
                    connection.await;
                    drop((slot, stop));
                });
            }
            Err(error) => {
                // Out of file descriptors, as a rule: give the others a moment to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::debug!("connections still open at the end of the drain time were cut");
    }
}

/// Ready when nothing should listen, which only happens on demand.
async fn refused(network: Option<&mut watch::Receiver<Network>>) {
    let refused = match network {
        Some(network) => network.wait_for(|network| *network == Network::Refuse).await.is_ok(),
        None => false,
    };
    if !refused {
        std::future::pending::<()>().await;
    }
}

/// Closes the listener, waits for the end of the outage, and listens on the same address again.
async fn listen_again(
    listener: TcpListener,
    network: Option<&mut watch::Receiver<Network>>,
    stop: &CancellationToken,
) -> Option<TcpListener> {
    let address = listener.local_addr().ok()?;
    drop(listener);
    let over = async {
        if let Some(network) = network {
            let _ = network.wait_for(|network| *network != Network::Refuse).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => return None,
        () = over => {}
    }
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(error) => tracing::warn!(%error, %address, "cannot listen again yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

/// Serves a connection until it ends, or cuts it when a request or the network's failure asks for that.
async fn connection(
    api: Arc<Api>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    graceful: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let line = Arc::new(Line::default());
    let network = api.faults.as_ref().map(|faults| faults.network());
    let stream = Socket::new(stream, line.clone(), network.clone());
    let down = async {
        match network {
            Some(mut network) => {
                let down = |network: &Network| matches!(network, Network::Reset | Network::Refuse);
                if network.wait_for(down).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = line.cut.cancelled() => {}
        () = down => line.cut.cancel(),
        () = served(api, acceptor, stream, line.clone(), graceful) => {}
    }
}

async fn served(
    api: Arc<Api>,
    acceptor: TlsAcceptor,
    stream: Socket,
    line: Arc<Line>,
    graceful: hyper_util::server::graceful::Watcher,
) {
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let user = certificates.first().and_then(|certificate| User::from_certificate(certificate)).map(Arc::new);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        if api.faults.is_some() {
            request.extensions_mut().insert(line.clone());
        }
        async move {
            // A panic in one request is one failed request.
            let answered = AssertUnwindSafe(super::handle::handle(api, user, request)).catch_unwind().await;
            let answer = answered.unwrap_or_else(|_| {
                tracing::error!("a request handler panicked");
                failure(&ApiError::internal("the request handler failed"))
            });
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE).half_close(false);
    let mut http2 = server.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(1000).keep_alive_interval(Some(PING_EVERY));
    http2.max_header_list_size(HEADERS);
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = graceful.watch(serving).await {
        tracing::debug!(error = %error, "connection ended");
    }
}
