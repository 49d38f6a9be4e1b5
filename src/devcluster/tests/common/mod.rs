//! What the tests of the running cluster share.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use vnode_devcluster::{DevCluster, Options};

pub async fn start(controllers: bool) -> (DevCluster, Client) {
    let cluster = DevCluster::start(Options { controllers, ..Options::default() }).await.unwrap();
    let client = client(&cluster.admin_kubeconfig().unwrap()).await;
    (cluster, client)
}

pub async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = serde_json::from_str(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    // The first answer is what the tests are about.
    config.default_retry = false;
    config.try_into().unwrap()
}

/// Any request with a JSON body; the code and the JSON that came back.
pub async fn request(client: &Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    request_with(client, method, path, &[], body).await
}

pub async fn request_with(
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> (u16, Value) {
    use http_body_util::BodyExt;
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let mut request = http::Request::builder().method(method).uri(path).header("content-type", kind);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let whole = async {
        let answer = client.send(request.body(kube::client::Body::from(bytes)).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        (code, answer.into_body().collect().await.unwrap().to_bytes())
    };
    let timed = tokio::time::timeout(std::time::Duration::from_secs(20), whole).await;
    let (code, bytes) = timed.unwrap_or_else(|_| panic!("{method} {path}: no answer"));
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    (code, value)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn field(kubeconfig: &Value, pointer: &str) -> Vec<u8> {
    STANDARD.decode(kubeconfig.pointer(pointer).unwrap().as_str().unwrap()).unwrap()
}

fn authority(kubeconfig: &Value) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let ca = field(kubeconfig, "/clusters/0/cluster/certificate-authority-data");
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    roots
}

/// A TLS connection to the API server with the client certificate of a kubeconfig.
pub async fn connect(kubeconfig: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let config: Value = serde_json::from_str(kubeconfig).unwrap();
    let certificate = field(&config, "/users/0/user/client-certificate-data");
    let key = field(&config, "/users/0/user/client-key-data");
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority(&config))
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&certificate).unwrap()],
            PrivateKeyDer::from_pem_slice(&key).unwrap(),
        )
        .unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap().trim_start_matches("https://");
    let stream = TcpStream::connect(server).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap()
}

/// The TLS side of a kubelet: a certificate of its own, clients only with one of the cluster's authority.
pub fn kubelet_tls(kubeconfig: &str) -> tokio_rustls::TlsAcceptor {
    let config: Value = serde_json::from_str(kubeconfig).unwrap();
    let own = rcgen::generate_simple_self_signed(vec!["node".into()]).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(authority(&config)), provider()).build();
    let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(tls))
}

/// Reads as far as the end of an HTTP head.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}
