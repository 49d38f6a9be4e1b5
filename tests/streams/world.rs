//! A node with a provider whose commands are easy to reason about.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use vnode::kubelet::auth::{Auth, AuthOptions};
use vnode::kubelet::{KubeletOptions, KubeletServer, Listening, NodeBackend};
use vnode::provider::{
    Capabilities, Duplex, ExitStatus, PodObservation, PodRef, Provider, ProviderError, ResolvedPod, SessionIo,
};
use vnode::tls::ServingCerts;

type ProviderResult<T> = vnode::provider::Result<T>;

/// How long anything may take that should take a moment.
pub const MOMENT: Duration = Duration::from_secs(20);

/// Runs a few commands; counts what goes through them.
#[derive(Default)]
pub struct Commands {
    /// Bytes written by `zeros`.
    pub produced: AtomicU64,
    /// Bytes read by `swallow`.
    pub consumed: AtomicU64,
    /// Commands under way.
    pub running: Arc<AtomicUsize>,
    /// Forwarded connections under way.
    pub forwarded: Arc<AtomicUsize>,
}

/// Counts while it lives.
pub struct Count(Arc<AtomicUsize>);

impl Count {
    fn new(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::SeqCst);
        Self(of.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn broken(error: std::io::Error) -> ProviderError {
    ProviderError::unavailable(error.to_string())
}

#[async_trait]
impl Provider for Commands {
    fn capabilities(&self) -> Capabilities {
        Capabilities { exec: true, attach: true, port_forward: true, ..Default::default() }
    }
    async fn create_pod(&self, _: &ResolvedPod) -> ProviderResult<()> {
        Ok(())
    }
    async fn stop_pod(&self, _: &PodRef, _: Duration) -> ProviderResult<()> {
        Ok(())
    }
    async fn remove_pod(&self, _: &PodRef) -> ProviderResult<()> {
        Ok(())
    }
    async fn get_pod(&self, pod: &PodRef) -> ProviderResult<PodObservation> {
        Err(ProviderError::NotFound(pod.to_string()))
    }
    async fn list_pods(&self) -> ProviderResult<Vec<PodObservation>> {
        Ok(Vec::new())
    }
    async fn ping(&self) -> ProviderResult<()> {
        Ok(())
    }

    async fn exec(&self, _: &PodRef, _: &str, command: &[String], mut io: SessionIo) -> ProviderResult<ExitStatus> {
        let _count = Count::new(&self.running);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words[..] {
            ["echo", text] => io.stdout.as_mut().unwrap().write_all(text.as_bytes()).await.map_err(broken)?,
            ["err", text] => io.stderr.as_mut().unwrap().write_all(text.as_bytes()).await.map_err(broken)?,
            ["both", n] => {
                for _ in 0..n.parse::<u32>().unwrap() {
                    io.stdout.as_mut().unwrap().write_all(b"out\n").await.map_err(broken)?;
                    io.stderr.as_mut().unwrap().write_all(b"err\n").await.map_err(broken)?;
                }
            }
            ["exit", code] => return Ok(ExitStatus { code: code.parse().unwrap() }),
            ["fail"] => return Err(ProviderError::NotFound("the container".into())),
            ["panic"] => panic!("a panic on purpose"),
            ["sleep"] => std::future::pending().await,
            ["cat"] => {
                let (mut from, mut to) = (io.stdin.unwrap(), io.stdout.unwrap());
                tokio::io::copy(&mut from, &mut to).await.map_err(broken)?;
            }
            ["swallow"] => {
                let mut from = io.stdin.unwrap();
                let mut buffer = vec![0; 64 * 1024];
                let mut total: u64 = 0;
                loop {
                    match from.read(&mut buffer).await.map_err(broken)? {
                        0 => break,
                        n => total += n as u64,
                    }
                    self.consumed.fetch_add(0, Ordering::Relaxed);
                }
                self.consumed.store(total, Ordering::Relaxed);
                io.stdout.unwrap().write_all(total.to_string().as_bytes()).await.map_err(broken)?;
            }
            ["zeros", n] => {
                let mut left: u64 = n.parse().unwrap();
                let mut to = io.stdout.unwrap();
                let zeros = vec![0; 64 * 1024];
                while left > 0 {
                    let n = to.write(&zeros[..zeros.len().min(left as usize)]).await.map_err(broken)?;
                    left -= n as u64;
                    self.produced.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
            ["sizes", n] => {
                let mut to = io.stdout.unwrap();
                let mut resize = io.resize.unwrap();
                for _ in 0..n.parse::<u32>().unwrap() {
                    let Some(size) = resize.recv().await else { break };
                    to.write_all(format!("{}x{} ", size.width, size.height).as_bytes()).await.map_err(broken)?;
                    to.flush().await.map_err(broken)?;
                }
            }
            _ => return Ok(ExitStatus { code: 127 }),
        }
        Ok(ExitStatus { code: 0 })
    }

    async fn attach(&self, pod: &PodRef, container: &str, mut io: SessionIo) -> ProviderResult<ExitStatus> {
        if let Some(out) = &mut io.stdout {
            out.write_all(b"attached\n").await.map_err(broken)?;
        }
        if io.stdin.is_some() {
            self.exec(pod, container, &["cat".into()], io).await
        } else {
            Ok(ExitStatus { code: 0 })
        }
    }

    async fn port_forward(&self, _: &PodRef, port: u16) -> ProviderResult<Box<dyn Duplex>> {
        let count = Count::new(&self.forwarded);
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        match port {
            // An echo.
            7 => tokio::spawn(async move {
                let _count = count;
                let (mut from, mut to) = tokio::io::split(ours);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            }),
            // Speaks first and hangs up.
            13 => tokio::spawn(async move {
                let _count = count;
                let mut ours = ours;
                let _ = ours.write_all(b"noon\n").await;
            }),
            // Never reads.
            9 => tokio::spawn(async move {
                let _count = count;
                let mut ours = ours;
                while ours.write(b"").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }),
            _ => return Err(ProviderError::unavailable("connection refused")),
        };
        Ok(Box::new(theirs))
    }
}

pub struct Node {
    pod: Arc<Pod>,
    pub gone: Notify,
    pub provider: Arc<Commands>,
}

#[async_trait]
impl NodeBackend for Node {
    fn name(&self) -> &str {
        "node-1"
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        ((namespace, name) == ("ns", "p")).then(|| self.pod.clone())
    }
    fn provider(&self) -> Arc<dyn Provider> {
        self.provider.clone()
    }
    async fn until_gone(&self, _: &PodRef) {
        self.gone.notified().await;
    }
}

type ApiBody = UnsyncBoxBody<Bytes, Infallible>;

async fn api_server(request: Request<kube::client::Body>) -> Response<ApiBody> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = match parts.uri.path() {
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            let user = json!({"username": body["spec"]["token"], "groups": ["system:authenticated"]});
            json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "spec": {"token": ""}, "status": {"authenticated": true, "user": user}})
        }
        "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
            let (user, verb) = (&body["spec"]["user"], &body["spec"]["resourceAttributes"]["verb"]);
            let allowed =
                user == "admin" || (user == "reader" && verb == "get") || (user == "runner" && verb == "create");
            json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
                "spec": {}, "status": {"allowed": allowed}})
        }
        _ => json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}),
    };
    Response::new(Full::new(Bytes::from(answer.to_string())).boxed_unsync())
}

pub struct World {
    pub certs: Arc<ServingCerts>,
    #[allow(dead_code, reason = "only the benchmark opens more ports")]
    pub server: Arc<KubeletServer>,
    pub node: Arc<Node>,
    _listening: Listening,
    pub addr: SocketAddr,
    pub shutdown: CancellationToken,
    pub serving: tokio::task::JoinHandle<()>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(KubeletOptions { drain_timeout: Duration::from_secs(1), ..Default::default() }).await
    }

    pub async fn with(options: KubeletOptions) -> Self {
        let client = kube::Client::new(tower::service_fn(|r| api_server(r).map(Ok::<_, Infallible>)), "default");
        let auth = Auth::new(client, AuthOptions::default());
        let certs = ServingCerts::self_signed(&["127.0.0.1"]).unwrap();
        let server = KubeletServer::new(auth, certs.clone(), options);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "p", "uid": "u"}, "spec": {"containers": [{"name": "c"}]},
        }))
        .unwrap();
        let node = Arc::new(Node { pod: Arc::new(pod), gone: Notify::new(), provider: Arc::default() });
        let listening = server.listen(node.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], listening.port()));
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.clone().run(shutdown.clone()));
        Self { certs, server, node, _listening: listening, addr, shutdown, serving }
    }

    pub async fn connect(&self) -> TlsStream<TcpStream> {
        connect_to(self.addr, &self.certs).await
    }

    /// Sends a request as `admin` and reads the head of its answer, and not a byte more.
    pub async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String, TlsStream<TcpStream>) {
        self.ask_as("admin", method, path, headers).await
    }

    pub async fn ask_as(
        &self,
        user: &str,
        method: &str,
        path: &str,
        headers: &str,
    ) -> (u16, String, TlsStream<TcpStream>) {
        let mut stream = self.connect().await;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: n\r\nauthorization: Bearer {user}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        timeout(MOMENT, async {
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
        })
        .await
        .expect("an answer");
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, head, stream)
    }

    /// Waits until a count is what it should be.
    pub async fn until(&self, what: &str, mut is: impl FnMut(&Commands) -> bool) {
        timeout(MOMENT, async {
            while !is(&self.node.provider) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

/// Connects over TLS, verifying the node by its authority.
pub async fn connect_to(addr: SocketAddr, certs: &ServingCerts) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(certs.authority().unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::IpAddress(addr.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}
