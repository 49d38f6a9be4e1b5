//! A client that says exactly what it is told to, be it nonsense.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use vnode_devcluster::{DevCluster, Options};

/// No answer takes longer than this, unless a test is about that.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster without controllers, and its administrator.
pub async fn start(options: Options) -> (DevCluster, Client) {
    let cluster = DevCluster::start(Options { controllers: false, ..options }).await.unwrap();
    let client = Client::new(&cluster.admin_kubeconfig().unwrap());
    (cluster, client)
}

/// The same, where pods can be made: their service account is there.
pub async fn start_for_pods() -> (DevCluster, Client) {
    let (cluster, client) = start(Options::default()).await;
    let account = serde_json::json!({"metadata": {"name": "default"}});
    client.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
    (cluster, client)
}

/// Where a cluster is and who asks.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

/// An answer.
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub fn new(kubeconfig: &str) -> Self {
        let config: Value = serde_json::from_str(kubeconfig).unwrap();
        let pem = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem(&cluster["certificate-authority-data"])).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_slice(&pem(&user["client-certificate-data"])).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .unwrap();
        let address = cluster["server"].as_str().unwrap().strip_prefix("https://").unwrap().parse().unwrap();
        Self { address, tls: Arc::new(tls) }
    }

    pub async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.tls.clone()).connect(ServerName::from(self.address.ip()), stream).await
    }

    /// A connection for many requests.
    pub async fn open(&self) -> std::io::Result<http1::SendRequest<Full<Bytes>>> {
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http1::handshake(stream).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut sender = self.open().await?;
        let mut request = http::Request::builder().method(method).uri(path).header("host", "cluster");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Full::new(body.into()))?).await?;
        let (parts, body) = answer.into_parts();
        Ok(Answer { code: parts.status.as_u16(), headers: parts.headers, body: body.collect().await?.to_bytes() })
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let answer = tokio::time::timeout(DEADLINE, self.try_send(method, path, headers, body)).await;
        answer.expect("an answer in time").unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, media: &str, body: impl Into<Bytes>) -> Answer {
        self.send("PATCH", path, &[("content-type", media)], body).await
    }
}
