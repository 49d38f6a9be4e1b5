//! What a node's kubelet port shows to whoever dials it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::leaf::names_of;

/// Dialling and the handshake, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate that was shown.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) names: Vec<String>,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
}

/// Why nothing was shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The port cannot be reached from here.
    #[error("cannot be reached from here: {0}")]
    Dial(String),
    /// Something listens that speaks no TLS, or another one.
    #[error("the TLS handshake fails: {0}")]
    Handshake(String),
    /// A certificate that cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
}

/// Dials and takes the certificate without judging it: it is looked at, nothing is sent.
pub(super) async fn certificate(address: SocketAddr) -> Result<Shown, PeerError> {
    let stream = match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(PeerError::Dial(error.to_string())),
        Err(_) => return Err(PeerError::Dial(format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| PeerError::Handshake(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Look(provider)))
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let handshake = connector.connect(ServerName::IpAddress(address.ip().into()), stream);
    let stream = match tokio::time::timeout(PATIENCE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(PeerError::Handshake(error.to_string())),
        Err(_) => return Err(PeerError::Handshake(format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or_else(|| PeerError::Certificate("none was sent".into()))?;
    read(leaf).map_err(PeerError::Certificate)
}

fn read(der: &[u8]) -> Result<Shown, String> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    let time = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).map_err(|e| e.to_string());
    Ok(Shown {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        names: names_of(&cert),
        not_before: time(cert.validity().not_before)?,
        not_after: time(cert.validity().not_after)?,
    })
}

/// Looks at any certificate. Nothing secret is ever sent over such a connection.
#[derive(Debug)]
struct Look(Arc<CryptoProvider>);

impl ServerCertVerifier for Look {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_times_are_read_from_a_certificate() {
        let cert =
            rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into(), "::1".into()]).unwrap();
        let shown = read(cert.cert.der()).unwrap();
        assert_eq!(shown.names, ["localhost", "127.0.0.1", "::1"]);
        assert!(shown.not_before < shown.not_after);
        assert!(read(b"nonsense").is_err());
    }
}
