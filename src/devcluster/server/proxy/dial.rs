//! Connections from this server to others: kubelets with its client certificate, pods without.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;

use super::HOP;
use crate::cluster::KubeletStreams;
use crate::pki::{Authority, PkiError};
use crate::server::http::{Answer, Body};
use crate::status::{ApiError, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Until a kubelet has answered the head of a request; its body may take as long as it likes.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The same for whatever is behind a proxy: profiles and long polls take minutes.
pub(super) const PROXY_DEADLINE: Duration = Duration::from_secs(600);
/// Streams joined at once.
const STREAMS: usize = 10_000;

/// What is needed to reach kubelets and pods.
pub(crate) struct Kubelets {
    /// With the API server's client certificate.
    pub(super) as_api_server: TlsConnector,
    /// Without one: pods that serve HTTPS must not be handed a cluster administrator's certificate.
    pub(super) as_nobody: TlsConnector,
    pub(super) streams: KubeletStreams,
    slots: Arc<Semaphore>,
}

impl Kubelets {
    pub(crate) fn new(authority: &Authority, streams: KubeletStreams) -> Result<Self, PkiError> {
        let identity = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
        let (certificate, key) = identity.der()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = || -> Result<_, PkiError> {
            Ok(rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .dangerous()
                // As kube-apiserver without --kubelet-certificate-authority: kubelets sign their own certificates.
                .with_custom_certificate_verifier(Arc::new(AnyServer(provider.clone()))))
        };
        Ok(Self {
            as_api_server: TlsConnector::from(Arc::new(
                config()?.with_client_auth_cert(vec![certificate], key).map_err(PkiError::from)?,
            )),
            as_nobody: TlsConnector::from(Arc::new(config()?.with_no_client_auth())),
            streams,
            slots: Arc::new(Semaphore::new(STREAMS)),
        })
    }

    /// Room for one more stream.
    pub(super) fn slot(&self) -> Result<OwnedSemaphorePermit> {
        self.slots.clone().try_acquire_owned().map_err(|_| {
            let message = format!("there are {STREAMS} streams through this server already, please try again later");
            ApiError::new(429, "TooManyRequests", message)
        })
    }
}

/// A server to reach.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Plain HTTP without it.
    pub(crate) tls: Option<TlsConnector>,
}

impl Peer {
    /// `host:port`, with brackets where they belong.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.tls.is_some() { "https" } else { "http" }, self.authority())
    }
}

/// Why a server could not be reached, worded as Kubernetes' own network library words it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("dial tcp {to}: connect: {}", worded(.source))]
    Connect { to: String, source: std::io::Error },
    #[error("tls: {0}")]
    Tls(#[source] std::io::Error),
    #[error("dial tcp {0}: i/o timeout")]
    ConnectTimeout(String),
    #[error("{0} is no host name")]
    Name(String),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("timeout awaiting response headers")]
    AnswerTimeout,
}

fn worded(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".into(),
        _ => error.to_string(),
    }
}

/// Sends one request over a connection of its own and returns the head of the answer.
pub(crate) async fn send(
    peer: &Peer,
    mut request: Request<Body>,
    deadline: Duration,
) -> Result<Response<Incoming>, DialError> {
    let mut sender = tokio::time::timeout(CONNECT_DEADLINE, connect(peer))
        .await
        .map_err(|_| DialError::ConnectTimeout(peer.authority()))??;
    if let Ok(host) = peer.authority().parse() {
        request.headers_mut().insert(HOST, host);
    }
    let answer = tokio::time::timeout(deadline, sender.send_request(request));
    Ok(answer.await.map_err(|_| DialError::AnswerTimeout)??)
}

async fn connect(peer: &Peer) -> Result<hyper::client::conn::http1::SendRequest<Body>, DialError> {
    let stream = TcpStream::connect((peer.host.as_str(), peer.port))
        .await
        .map_err(|source| DialError::Connect { to: peer.authority(), source })?;
    let _ = stream.set_nodelay(true);
    let Some(tls) = &peer.tls else { return speak(TokioIo::new(stream)).await };
    let name = ServerName::try_from(peer.host.clone()).map_err(|_| DialError::Name(peer.host.clone()))?;
    speak(TokioIo::new(tls.connect(name, stream).await.map_err(DialError::Tls)?)).await
}

async fn speak<S>(stream: S) -> Result<hyper::client::conn::http1::SendRequest<Body>, DialError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Ends with the answer's body, with the stream it becomes, or when the client goes away and drops either.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// An answer to pass on as it comes in.
pub(super) fn streamed(answer: Response<Incoming>) -> Answer {
    let (mut parts, body) = answer.into_parts();
    for hop in HOP {
        parts.headers.remove(hop);
    }
    Answer::from_parts(parts, body.map_err(std::io::Error::other).boxed_unsync())
}

/// The first bytes of an answer, for its error text.
pub(crate) async fn text(answer: Response<Incoming>, limit: usize) -> String {
    let body = http_body_util::Limited::new(answer.into_body(), limit).collect();
    let read = tokio::time::timeout(CONNECT_DEADLINE, body).await;
    let bytes = read.ok().and_then(Result::ok).map_or_else(Bytes::new, |body| body.to_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Takes any certificate but checks that the peer holds its key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
