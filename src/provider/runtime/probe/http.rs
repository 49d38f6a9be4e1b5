//! GET, with redirects and TLS that proves nothing: a probe asks whether it answers, not who it is.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::{SHOWN, Target};
use crate::provider::Duplex;

const MAX_REDIRECTS: usize = 10;

/// Succeeds for 200 to 399.
pub(super) async fn get(target: &Target, get: &HTTPGetAction, agent: &str) -> Result<(), String> {
    let (mut tls, host, mut port, mut path) = target.http_parts(get)?;
    for _ in 0..=MAX_REDIRECTS {
        let stream = target.connect(get.host.as_deref(), port).await?;
        let stream: Box<dyn Duplex> = if tls { Box::new(secured(stream, &host).await?) } else { stream };
        let request = request(get, agent, tls, &host, port, &path)?;
        let (status, location) = ask(stream, request).await?;
        if !status.is_redirection() {
            return match status.is_success() {
                true => Ok(()),
                // The body may hold anything, so it is not shown.
                false => Err(format!("HTTP probe failed with statuscode: {}", status.as_u16())),
            };
        }
        // A redirect to another host is an answer as good as any: nobody else is to be probed.
        let Some(next) = location.and_then(|l| follow(&l, tls, &host, port, &path)) else { return Ok(()) };
        (tls, port, path) = next;
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

fn request(
    get: &HTTPGetAction,
    agent: &str,
    tls: bool,
    host: &str,
    port: u16,
    path: &str,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse::<Uri>().map_err(|e| format!("invalid path {path:?}: {e}"))?;
    let headers = request.headers_mut();
    for header in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name).map_err(|e| format!("invalid header {:?}: {e}", header.name))?;
        let value = HeaderValue::from_str(&header.value).map_err(|e| format!("invalid header {name}: {e}"))?;
        headers.append(name, value);
    }
    let usual = port == if tls { 443 } else { 80 };
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let authority = if usual { bracketed } else { format!("{bracketed}:{port}") };
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| format!("invalid host {text:?}: {e}"));
    headers.entry(HOST).or_insert(value(&authority)?);
    headers.entry(USER_AGENT).or_insert(value(&format!("{agent}/1.34"))?);
    headers.entry(http::header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn ask(stream: Box<dyn Duplex>, request: Request<Empty<Bytes>>) -> Result<(StatusCode, Option<String>), String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("Get {:?}: {e}", request.uri()))?;
    let work = async move {
        let uri = request.uri().clone();
        let response = sender.send_request(request).await.map_err(|e| format!("Get {uri:?}: {e}"))?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        // The body is read so far as kubelet does; what is too long is not an error.
        let _ = Limited::new(response.into_body(), SHOWN).collect().await;
        Ok((status, location))
    };
    let (mut work, connection) = (std::pin::pin!(work), std::pin::pin!(connection));
    tokio::select! {
        biased;
        done = &mut work => done,
        _ = connection => work.await,
    }
}

/// Scheme, port and path of a redirect to the same host.
fn follow(location: &str, tls: bool, host: &str, port: u16, path: &str) -> Option<(bool, u16, String)> {
    if let Some(rest) = location.strip_prefix('/').filter(|rest| !rest.starts_with('/')) {
        return Some((tls, port, format!("/{rest}")));
    }
    // `//host/path`: the same scheme, another host most likely.
    let location = match location.strip_prefix("//") {
        Some(rest) => &format!("{}://{rest}", if tls { "https" } else { "http" }),
        None => location,
    };
    let uri: Uri = location.parse().ok()?;
    match (uri.scheme_str(), uri.host()) {
        (Some(scheme @ ("http" | "https")), Some(to)) => {
            if to.trim_matches(['[', ']']) != host {
                return None;
            }
            let tls = scheme == "https";
            let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
            Some((tls, port, uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)))
        }
        (None, _) => {
            let folder = path.split('?').next().unwrap_or("/").rsplit_once('/').map_or("", |(folder, _)| folder);
            Some((tls, port, format!("{folder}/{location}")))
        }
        _ => None,
    }
}

async fn secured(
    stream: Box<dyn Duplex>,
    host: &str,
) -> Result<tokio_rustls::client::TlsStream<Box<dyn Duplex>>, String> {
    static CONFIG: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(schemes)));
        Some(Arc::new(config.with_no_client_auth()))
    });
    let config = CONFIG.clone().ok_or("TLS is not available")?;
    let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("invalid host {host:?}: {e}"))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|e| format!("tls: {e}"))
}

/// Believes every certificate, as kubelet does for probes.
#[derive(Debug)]
struct Anyone(Vec<SignatureScheme>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::follow;

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        for (location, want) in [
            ("/b?c=d", Some((false, 8080, "/b?c=d"))),
            ("b", Some((false, 8080, "/x/b"))),
            ("http://10.0.0.1/z", Some((false, 80, "/z"))),
            ("https://10.0.0.1:8443/z", Some((true, 8443, "/z"))),
            ("http://example.com/", None),
            ("//example.com/", None),
            ("ftp://10.0.0.1/", None),
        ] {
            let got = follow(location, false, "10.0.0.1", 8080, "/x/a?q=/");
            assert_eq!(got, want.map(|(tls, port, path)| (tls, port, path.to_owned())), "{location}");
        }
    }
}
