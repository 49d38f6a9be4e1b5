//! From here to a node's kubelet API: logs and the node proxy, with the API server's own client certificate.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderName, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::{Answer, full, read_body};
use super::{Api, Call, not_found};
use crate::pki::{Authority, PkiError};
use crate::status::{ApiError, Result};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The order in which the API server tries a node's addresses. kube-apiserver: `--kubelet-preferred-address-types`.
const ADDRESSES: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];
const KUBELET_PORT: u64 = 10250;

/// Connects to kubelets.
pub(crate) struct Kubelets {
    connector: TlsConnector,
}

impl Kubelets {
    pub(crate) fn new(authority: &Authority) -> Result<Self, PkiError> {
        let identity = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
        let (certificate, key) = identity.der()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            // As kube-apiserver without --kubelet-certificate-authority: kubelets sign their own certificates.
            .with_custom_certificate_verifier(Arc::new(AnyKubelet(provider)))
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Sends one request to a kubelet and returns its answer as it streams in.
    async fn send(&self, host: &str, port: u64, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        let unreachable = |what: &str, error: &dyn std::fmt::Display| {
            ApiError::new(
                502,
                "BadGateway",
                format!("error trying to reach the kubelet at {host}:{port}: {what}: {error}"),
            )
        };
        let connect = async {
            let port = u16::try_from(port).map_err(|error| unreachable("port", &error))?;
            let stream = TcpStream::connect((host, port)).await.map_err(|error| unreachable("connect", &error))?;
            let name = ServerName::try_from(host.to_owned()).map_err(|error| unreachable("name", &error))?;
            let stream = self.connector.connect(name, stream).await.map_err(|error| unreachable("TLS", &error))?;
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable("HTTP", &e))
        };
        let timed_out = |what: &'static str| move |_| unreachable(what, &"timed out");
        let (mut sender, connection) =
            tokio::time::timeout(CONNECT_DEADLINE, connect).await.map_err(timed_out("connect"))??;
        // Ends with the answer's body, or when the client goes away and drops it.
        tokio::spawn(connection);
        if let Ok(value) = format!("{host}:{port}").parse() {
            request.headers_mut().insert(HOST, value);
        }
        let answer = tokio::time::timeout(ANSWER_DEADLINE, sender.send_request(request));
        let answer = answer.await.map_err(timed_out("answer"))?.map_err(|error| unreachable("answer", &error))?;
        let (mut parts, body) = answer.into_parts();
        for hop in ["connection", "keep-alive", "transfer-encoding", "upgrade"] {
            parts.headers.remove(hop);
        }
        Ok(Answer::from_parts(parts, body.map_err(std::io::Error::other).boxed_unsync()))
    }
}

/// Where a node's kubelet listens.
fn kubelet_of(node: &Value) -> Result<(String, u64)> {
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = ADDRESSES.iter().find_map(|kind| addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str());
    let name = node["metadata"]["name"].as_str().unwrap_or_default();
    let host = found.ok_or_else(|| {
        ApiError::internal(format!("no preferred addresses found for node {name:?}; known addresses: {addresses:?}"))
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().filter(|p| *p > 0);
    Ok((host.into(), port.unwrap_or(KUBELET_PORT)))
}

fn node(api: &Api, name: &str) -> Result<(String, u64)> {
    let node = api.get("", "nodes", "", name).ok_or_else(|| ApiError::not_found("nodes", "", name))?;
    kubelet_of(&node.value())
}

/// The container that a log request means.
fn log_container(pod: &Value, asked: Option<&str>) -> Result<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let names = |list: &str| -> Vec<&str> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    match asked.filter(|c| !c.is_empty()) {
        Some(container) if [&containers, &init, &ephemeral].iter().any(|list| list.contains(&container)) => {
            Ok(container.into())
        }
        Some(container) => Err(ApiError::bad_request(format!("container {container} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers[0].into()),
        None => {
            let annotation = &pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
            if let Some(default) = annotation.as_str().filter(|d| containers.contains(d)) {
                return Ok(default.into());
            }
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// `GET …/pods/{name}/log`
pub(crate) async fn log(api: &Api, call: &Call) -> Result<Answer> {
    let pod = call.resource.get(&call.key()).ok_or_else(|| not_found(&call.kind, &call.target.name))?.value();
    let container = log_container(&pod, call.options.get("container"))?;
    let host = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if host.is_empty() {
        // Not assigned yet: there is no log to show.
        return Ok(super::http::text(200, ""));
    }
    let (address, port) = node(api, host)?;
    let mut query = String::new();
    for name in ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"] {
        if let Some(value) = call.options.get(name).filter(|v| !v.is_empty()) {
            let sign = if query.is_empty() { '?' } else { '&' };
            query.push_str(&format!("{sign}{name}={}", encode(value)));
        }
    }
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let path = format!("/containerLogs/{}/{}/{}{query}", encode(namespace), encode(name), encode(&container));
    let request = Request::get(path).body(Full::default()).map_err(|error| ApiError::internal(error.to_string()))?;
    api.kubelets.send(&address, port, request).await
}

/// `…/nodes/{name}/proxy/…`; pods have no network of their own here that could be reached.
pub(crate) async fn node_or_pod(api: &Api, call: &Call, parts: Parts, body: Incoming) -> Result<Answer> {
    if !call.kind.is("", "nodes") {
        return Err(ApiError::new(501, "NotImplemented", "proxying to pods is not supported"));
    }
    // A name may carry a scheme and a port: https:name:port.
    let name = call.target.name.split(':').find(|part| !part.is_empty() && !matches!(*part, "http" | "https"));
    let name = name.unwrap_or_default();
    let (address, port) = node(api, name)?;
    let path_and_query = {
        let prefix = format!("/api/v1/nodes/{}/proxy", call.target.name);
        let path = parts.uri.path();
        let rest = path.strip_prefix(prefix.as_str()).filter(|rest| !rest.is_empty()).unwrap_or("/");
        match parts.uri.query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest.to_owned(),
        }
    };
    let uri: Uri = path_and_query.parse().map_err(|_| ApiError::bad_request("the path cannot be proxied"))?;
    let body = if parts.method == Method::GET { Bytes::new() } else { read_body(body).await? };
    let mut request = Request::builder().method(parts.method).uri(uri).body(Full::new(body));
    if let Ok(request) = &mut request {
        let private = ["authorization", "host", "connection", "upgrade", "content-length", "transfer-encoding"];
        let kept = |name: &HeaderName| !private.contains(&name.as_str()) && !name.as_str().starts_with("impersonate-");
        for (name, value) in parts.headers.iter().filter(|(name, _)| kept(name)) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let request = request.map_err(|error| ApiError::internal(error.to_string()))?;
    let answer = api.kubelets.send(&address, port, request).await?;
    Ok(if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS { answer.map(|_| full("")) } else { answer })
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Takes any certificate but checks that the peer holds its key.
#[derive(Debug)]
struct AnyKubelet(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKubelet {
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
    use serde_json::json;

    #[test]
    fn addresses_are_tried_in_the_order_of_kubernetes() {
        let node = json!({"metadata": {"name": "n"}, "status": {
            "addresses": [{"type": "ExternalIP", "address": "1.1.1.1"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 20001}}}});
        assert_eq!(kubelet_of(&node), Ok(("10.0.0.1".into(), 20001)));
        assert_eq!(kubelet_of(&json!({"status": {}})).unwrap_err().code, 500);
    }

    #[test]
    fn the_only_container_need_not_be_named() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(log_container(&one, None), Ok("a".into()));
        assert_eq!(log_container(&two, Some("b")), Ok("b".into()));
        assert_eq!(log_container(&two, None).unwrap_err().code, 400);
        assert_eq!(log_container(&one, Some("x")).unwrap_err().code, 400);
    }
}
