//! The kubelet API through its front door: real TLS connections, a node made up for the test, and an API
//! server that answers reviews.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
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
    Capabilities, LogLine, LogOptions, LogSource, LogStream, NodeUsage, PodObservation, PodRef, ProbeCounts, Provider,
    ResolvedPod,
};
use vnode::tls::ServingCerts;

type ProviderResult<T> = vnode::provider::Result<T>;

/// A provider whose containers write as many lines as they are named for; `endless` never stops.
#[derive(Default)]
struct Writer {
    produced: Arc<AtomicUsize>,
}

#[async_trait]
impl Provider for Writer {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logs: true, stats: true, ..Default::default() }
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
        Err(vnode::provider::ProviderError::NotFound(pod.to_string()))
    }
    async fn list_pods(&self) -> ProviderResult<Vec<PodObservation>> {
        Err(vnode::provider::ProviderError::unavailable("out of reach"))
    }
    async fn ping(&self) -> ProviderResult<()> {
        Ok(())
    }
    async fn logs(&self, _: &PodRef, container: &str, options: &LogOptions) -> ProviderResult<LogStream> {
        let line = |text: String| {
            let time = Timestamp::from_second(1).unwrap();
            Ok(LogLine { time, source: LogSource::Stdout, text: Bytes::from(text) })
        };
        if container == "waiting" {
            return Err(vnode::provider::ProviderError::NotFound("container".into()));
        }
        if container == "endless" {
            let produced = self.produced.clone();
            let lines = futures::stream::repeat_with(move || {
                produced.fetch_add(1024, Ordering::Relaxed);
                line(format!("{}\n", "x".repeat(1023)))
            });
            return Ok(lines.boxed());
        }
        let lines = futures::stream::iter((1..=3).map(move |n| line(format!("line {n}\n"))));
        if options.follow { Ok(lines.chain(futures::stream::pending()).boxed()) } else { Ok(lines.boxed()) }
    }
    async fn stats(&self) -> ProviderResult<NodeUsage> {
        Ok(NodeUsage::default())
    }
    fn probes(&self) -> Vec<ProbeCounts> {
        let pod = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let (container, kind) = ("c".to_owned(), "Liveness");
        vec![ProbeCounts { pod, container, kind, failed: 3, successful: Default::default(), seconds: 0.0 }]
    }
}

struct Node {
    name: &'static str,
    pod: Mutex<Option<Arc<Pod>>>,
    gone: Notify,
    provider: Arc<Writer>,
}

impl Node {
    fn new() -> Arc<Self> {
        Self::with("node-1", "p")
    }

    fn with(name: &'static str, pod: &str) -> Arc<Self> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": pod, "uid": "u"},
            "spec": {"containers": [{"name": "c"}, {"name": "endless"}, {"name": "waiting"}]},
            "status": {"containerStatuses": [{"name": "waiting", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]},
        }))
        .unwrap();
        Arc::new(Self { name, pod: Mutex::new(Some(Arc::new(pod))), gone: Notify::new(), provider: Arc::default() })
    }
}

#[async_trait]
impl NodeBackend for Node {
    fn name(&self) -> &str {
        self.name
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pod.lock().unwrap().iter().cloned().collect()
    }
    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        if name == "panic" {
            panic!("a panic on purpose");
        }
        self.pod.lock().unwrap().clone().filter(|p| namespace == "ns" && p.metadata.name.as_deref() == Some(name))
    }
    fn provider(&self) -> Arc<dyn Provider> {
        self.provider.clone()
    }
    async fn until_gone(&self, _: &PodRef) {
        self.gone.notified().await;
    }
}

/// An authority for client certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "clients");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn client(&self, user: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, "a-group");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

#[derive(Default)]
struct ApiServer {
    client_ca: String,
    /// A new bundle, for whoever watches.
    next_ca: tokio::sync::watch::Sender<Option<String>>,
    token_reviews: AtomicUsize,
    access_reviews: Mutex<Vec<Value>>,
    down: AtomicBool,
}

type ApiBody = UnsyncBoxBody<Bytes, Infallible>;

impl ApiServer {
    async fn answer(self: Arc<Self>, request: Request<kube::client::Body>) -> Response<ApiBody> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        let answer = match parts.uri.path() {
            _ if self.down.load(Ordering::Relaxed) => {
                let status =
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "down"});
                let mut response = Response::new(Full::new(Bytes::from(status.to_string())).boxed_unsync());
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                return response;
            }
            "/api/v1/namespaces/kube-system/configmaps" => {
                assert!(query.contains("extension-apiserver-authentication"), "{query}");
                if query.contains("watch") {
                    let changes = futures::stream::unfold(self.next_ca.subscribe(), async |mut next| {
                        next.changed().await.ok()?;
                        let ca = next.borrow_and_update().clone();
                        let event = json!({"type": "MODIFIED", "object": {"apiVersion": "v1", "kind": "ConfigMap",
                            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system",
                                "resourceVersion": "2"},
                            "data": {"client-ca-file": ca}}});
                        Some((Ok(hyper::body::Frame::data(Bytes::from(format!("{event}\n")))), next))
                    });
                    return Response::new(UnsyncBoxBody::new(StreamBody::new(changes)));
                }
                json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [{
                    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
                    "data": {"client-ca-file": self.client_ca},
                }]})
            }
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                self.token_reviews.fetch_add(1, Ordering::Relaxed);
                let token = body["spec"]["token"].as_str().unwrap_or_default();
                let known = token.starts_with("good");
                let user = json!({"username": token.trim_start_matches("good-"), "groups": ["system:authenticated"]});
                json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                    "spec": {"token": ""}, "status": {"authenticated": known, "user": user}})
            }
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let spec = body["spec"].clone();
                let attributes = &spec["resourceAttributes"];
                let allowed = match spec["user"].as_str().unwrap_or_default() {
                    "admin" => true,
                    "reader" => attributes["verb"] == "get",
                    "prober" => attributes["subresource"] == "healthz",
                    "one-node" => attributes["name"] == "node-1",
                    user if user.starts_with("only-") => {
                        attributes["verb"] == "get"
                            && user == format!("only-{}", attributes["subresource"].as_str().unwrap())
                    }
                    _ => false,
                };
                self.access_reviews.lock().unwrap().push(spec);
                json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
                    "spec": {}, "status": {"allowed": allowed}})
            }
            other => panic!("unexpected request for {other}"),
        };
        Response::new(Full::new(Bytes::from(answer.to_string())).boxed_unsync())
    }
}

struct World {
    api: Arc<ApiServer>,
    authority: Authority,
    certs: Arc<ServingCerts>,
    server: Arc<KubeletServer>,
    node: Arc<Node>,
    listening: Option<Listening>,
    addr: SocketAddr,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl World {
    async fn new() -> Self {
        Self::with(KubeletOptions { drain_timeout: Duration::from_secs(2), ..Default::default() }).await
    }

    async fn with(options: KubeletOptions) -> Self {
        let authority = Authority::new();
        let api = Arc::new(ApiServer { client_ca: authority.pem.clone(), ..Default::default() });
        let service = {
            let api = api.clone();
            tower::service_fn(move |request| api.clone().answer(request).map(Ok::<_, Infallible>))
        };
        let client = kube::Client::new(service, "default");
        let auth = Auth::new(client, AuthOptions::default());
        let certs = ServingCerts::self_signed(&["127.0.0.1"]).unwrap();
        let server = KubeletServer::new(auth.clone(), certs.clone(), options);
        let node = Node::new();
        let listening = server.listen(node.clone(), LOCAL).await.unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], listening.port()));
        let shutdown = CancellationToken::new();
        tokio::spawn(auth.run(shutdown.clone()));
        let running = tokio::spawn(server.clone().run(shutdown.clone()));
        Self { api, authority, certs, server, node, listening: Some(listening), addr, shutdown, running }
    }

    async fn connect(
        &self,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> TlsStream<TcpStream> {
        self.connect_to(self.addr, identity).await
    }

    async fn connect_to(
        &self,
        addr: SocketAddr,
        identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certs.authority().unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::IpAddress(addr.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The status and the whole text of the answer to one request.
    async fn ask(&self, mut stream: TlsStream<TcpStream>, method: &str, path: &str, headers: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _end = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("an end");
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0), text)
    }

    async fn get(&self, path: &str, token: &str) -> (u16, String) {
        let stream = self.connect(None).await;
        self.ask(stream, "GET", path, &bearer(token)).await
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn only_those_who_are_known_and_permitted_get_an_answer() {
    let world = World::new().await;
    let anonymous = world.connect(None).await;
    assert_eq!(world.ask(anonymous, "GET", "/healthz", "").await.0, 401);
    assert_eq!(world.get("/healthz", "bad").await.0, 401);
    let (status, text) = world.get("/containerLogs/ns/p/c", "good-nobody").await;
    assert_eq!(status, 403);
    assert!(text.contains("Forbidden (user=nobody, verb=get, resource=nodes, subresource(s)=[proxy])"), "{text}");
    // Whether there is such a pod makes no difference to somebody without the right.
    assert_eq!(world.get("/containerLogs/ns/absent/c", "good-nobody").await.0, 403);
    assert_eq!(world.get("/nothing/here", "good-nobody").await.0, 403);
    assert_eq!(world.get("/healthz", "good-prober").await.0, 200);
    assert_eq!(world.get("/pods", "good-prober").await.0, 403);
    assert_eq!(world.get("/pods", "good-reader").await.0, 200);
    assert_eq!(world.get("/exec/ns/p/c?command=id", "good-reader").await.0, 403);
    assert_eq!(world.get("/exec/ns/p/c?command=id&output=1", "good-admin").await.0, 501);

    let stranger = Authority::new().client("admin");
    let stream = world.connect(Some(stranger)).await;
    assert_eq!(world.ask(stream, "GET", "/healthz", "").await.0, 401);
    // The authority is read in the background.
    let mut status = 0;
    for _ in 0..100 {
        let stream = world.connect(Some(world.authority.client("admin"))).await;
        status = world.ask(stream, "GET", "/healthz", "").await.0;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status, 200);
    let reviews = world.api.access_reviews.lock().unwrap();
    let of_cert = reviews.iter().find(|r| r["groups"][0] == "a-group").expect("a review for the certificate");
    assert_eq!(of_cert["resourceAttributes"]["name"], "node-1");
}

#[tokio::test]
async fn reviews_are_remembered_and_an_api_server_out_of_reach_opens_nothing() {
    let world = World::new().await;
    for _ in 0..3 {
        assert_eq!(world.get("/stats/summary", "good-reader").await.0, 200);
    }
    assert_eq!(world.api.token_reviews.load(Ordering::Relaxed), 1);
    assert_eq!(world.api.access_reviews.lock().unwrap().len(), 1);
    world.api.down.store(true, Ordering::Relaxed);
    assert_eq!(world.get("/stats/summary", "good-reader").await.0, 200);
    assert_eq!(world.get("/stats/summary", "good-admin").await.0, 401);
    assert_eq!(world.get("/metrics", "good-reader").await.0, 503);
}

#[tokio::test]
async fn reads_answer_as_a_kubelet_does() {
    let world = World::new().await;
    for (path, status, part) in [
        ("/healthz", 200, "ok"),
        ("/pods", 200, r#""kind":"PodList""#),
        ("/runningpods/", 503, "out of reach"),
        ("/stats/summary", 200, r#""nodeName":"node-1""#),
        ("/metrics/resource", 200, "resource_scrape_error 0"),
        ("/metrics", 200, "vnode_kubelet_requests_total"),
        ("/metrics/cadvisor", 200, "HTTP/1.1 200"),
        ("/metrics/probes", 200, "pod_uid=\"u\",probe_type=\"Liveness\",result=\"failed\"} 3\n"),
        ("/metrics/slis", 404, "not found"),
        ("/configz", 200, r#""streamingConnectionIdleTimeout":"14400s""#),
        ("/statusz", 200, "kubelet statusz"),
        ("/flagz", 200, "anonymous-auth=false"),
        ("/logs/", 405, "logs endpoint is disabled."),
        ("/logs/syslog", 405, "logs endpoint is disabled."),
        ("/containerLogs/ns/p/c", 200, "line 1\nline 2\nline 3\n"),
        ("/containerLogs/ns/p/c?timestamps=true", 200, "1970-01-01T00:00:01.000000000Z line 1\n"),
        ("/containerLogs/ns/p/c?limitBytes=4&timestamps=false", 200, "\r\nline\r\n"),
        ("/containerLogs/ns/p/c?tailLines=x", 400, r#"{"message": "Unable to decode query."}"#),
        ("/containerLogs/ns/p/c?tailLines=-1", 422, r#"{"message": "Invalid request."}"#),
        ("/containerLogs/ns/q/c", 404, "pod \"q\" does not exist"),
        ("/containerLogs/ns/p/d", 404, "container \"d\" not found in pod \"p\""),
        (
            "/containerLogs/ns/p/waiting",
            400,
            "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating",
        ),
    ] {
        let (got, text) = world.get(path, "good-admin").await;
        assert_eq!(got, status, "{path}: {text}");
        assert!(text.contains(part), "{path}: {text}");
    }
    let stream = world.connect(None).await;
    assert_eq!(world.ask(stream, "POST", "/pods", &bearer("good-admin")).await.0, 405);
}

#[tokio::test]
async fn a_stream_that_follows_is_flushed_by_the_line_and_ends_with_its_pod() {
    let world = World::new().await;
    let mut stream = world.connect(None).await;
    let request = format!("GET /containerLogs/ns/p/c?follow=true HTTP/1.1\r\nhost: n\r\n{}\r\n", bearer("good-admin"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("line 3") {
        let read = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0);
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    world.node.gone.notify_waiters();
    while !text.ends_with("0\r\n\r\n") {
        let read = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0);
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_provider() {
    let world = World::new().await;
    let mut stream = world.connect(None).await;
    let request = format!("GET /containerLogs/ns/p/endless HTTP/1.1\r\nhost: n\r\n{}\r\n", bearer("good-admin"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let produced = || world.node.provider.produced.load(Ordering::Relaxed);
    let mut before = 0;
    timeout(Duration::from_secs(20), async {
        while before == 0 || before != produced() {
            before = produced();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await
    .expect("the provider to be held back");
    // What the sockets of both ends hold, and little more.
    assert!(produced() < 64 << 20, "{}", produced());
    assert_eq!(world.get("/healthz", "good-admin").await.0, 200);
}

#[tokio::test]
async fn closing_frees_the_port_at_once_and_a_hundred_ports_share_the_acceptor() {
    let mut world = World::new().await;
    let mut more = Vec::new();
    for _ in 0..100 {
        more.push(world.server.listen(Node::new(), LOCAL).await.unwrap());
    }
    for listening in &more {
        let addr = SocketAddr::from(([127, 0, 0, 1], listening.port()));
        let stream = world.connect_to(addr, None).await;
        assert_eq!(world.ask(stream, "GET", "/healthz", &bearer("good-admin")).await.0, 200);
    }
    world.listening.take().unwrap().close();
    assert!(TcpStream::connect(world.addr).await.is_err());
    let again = world.server.listen(world.node.clone(), world.addr).await.unwrap();
    assert_eq!(again.port(), world.addr.port());
    assert_eq!(world.get("/healthz", "good-admin").await.0, 200);
    let taken = world.server.listen(world.node.clone(), world.addr).await;
    assert_eq!(taken.err().map(|e| e.kind()), Some(std::io::ErrorKind::AddrInUse));

    world.shutdown.cancel();
    timeout(Duration::from_secs(10), &mut world.running).await.expect("an end").unwrap();
    assert!(TcpStream::connect(world.addr).await.is_err());
}

#[tokio::test]
async fn one_bad_connection_or_request_does_not_touch_another() {
    let options = KubeletOptions { handshake_timeout: Duration::from_millis(300), ..Default::default() };
    let world = World::with(options).await;
    let mut silent = TcpStream::connect(world.addr).await.unwrap();
    let mut rubbish = TcpStream::connect(world.addr).await.unwrap();
    rubbish.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(world.get("/healthz", "good-admin").await.0, 200);
    let _ = world.get("/containerLogs/ns/panic/c", "good-admin").await;
    for bytes in [
        "\0\0\0\0\r\n\r\n",
        "GET /pods HTTP/9.9\r\n\r\n",
        "GET /pods HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /containerLogs/../../etc/passwd HTTP/1.1\r\nhost: n\r\n\r\n",
        "GET /%00%ff/%2e%2e HTTP/1.1\r\nhost: n\r\n\r\n",
        "POST /pods HTTP/1.1\r\nhost: n\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: n\r\n\r\n",
    ] {
        let mut stream = world.connect(None).await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        let read = timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("an answer").unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        assert!(read == 0 || text.starts_with("HTTP/1.1 4"), "{bytes:?}: {text}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nhost: n\r\n\r\n", "a".repeat(100_000));
    let mut stream = world.connect(None).await;
    let _refused_early = stream.write_all(long.as_bytes()).await;
    assert_eq!(world.get("/healthz", "good-admin").await.0, 200);
    let mut buffer = [0; 1];
    let read = timeout(Duration::from_secs(5), silent.read(&mut buffer)).await.expect("the handshake's deadline");
    assert_eq!(read.unwrap_or(0), 0);
}

#[tokio::test]
async fn one_client_cannot_take_all_connections() {
    let world = World::with(KubeletOptions { max_connections_per_client: 1, ..Default::default() }).await;
    let first = world.connect(None).await;
    let mut second = TcpStream::connect(world.addr).await.unwrap();
    let mut buffer = [0; 1];
    let read = timeout(Duration::from_secs(5), second.read(&mut buffer)).await.expect("to be closed");
    assert_eq!(read.unwrap_or(0), 0);
    assert_eq!(world.ask(first, "GET", "/healthz", &bearer("good-admin")).await.0, 200);
}

#[tokio::test]
async fn each_part_of_the_api_has_a_right_of_its_own_and_proxy_stands_for_the_common_ones() {
    let world = World::new().await;
    let all = ["healthz", "pods", "configz", "statusz", "flagz", "stats", "metrics", "log", "checkpoint", "proxy"];
    for (path, rights) in [
        ("/healthz", &["healthz", "proxy"][..]),
        ("/pods", &["pods", "proxy"]),
        ("/runningpods/", &["pods", "proxy"]),
        ("/configz", &["configz", "proxy"]),
        ("/statusz", &["statusz", "proxy"]),
        ("/flagz", &["flagz", "proxy"]),
        ("/stats/summary", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/metrics/cadvisor", &["metrics"]),
        ("/metrics/probes", &["metrics"]),
        ("/logs/", &["log"]),
        ("/checkpoint/ns/p/c", &["checkpoint"]),
        ("/containerLogs/ns/p/c", &["proxy"]),
        ("/unheard/of", &["proxy"]),
        // Executing needs `create`, which none of these users has.
        ("/exec/ns/p/c?command=id", &[]),
        ("/portForward/ns/p", &[]),
    ] {
        for right in all {
            let (status, text) = world.get(path, &format!("good-only-{right}")).await;
            assert_eq!(status != 403, rights.contains(&right), "{path} with nodes/{right}: {status} {text}");
        }
    }
}

#[tokio::test]
async fn nodes_that_share_a_port_are_found_by_pod_or_by_name() {
    let world = World::new().await;
    let one = world.server.share(Node::new(), LOCAL).await.unwrap();
    let two = world.server.share(Node::with("node-2", "q"), LOCAL).await.unwrap();
    assert_eq!(one.port(), two.port());
    let addr = SocketAddr::from(([127, 0, 0, 1], one.port()));
    let get = async |path: &str, token: &str| {
        let stream = world.connect_to(addr, None).await;
        world.ask(stream, "GET", path, &bearer(token)).await
    };
    for (path, user, status, part) in [
        ("/containerLogs/ns/p/c", "admin", 200, "line 3"),
        ("/containerLogs/ns/q/c", "admin", 200, "line 3"),
        ("/containerLogs/ns/r/c", "admin", 404, "pod \"r\" does not exist"),
        // Who may see one node sees its pods, and cannot tell what is on another from what is nowhere.
        ("/containerLogs/ns/p/c", "one-node", 200, "line 3"),
        ("/containerLogs/ns/q/c", "one-node", 403, "Forbidden (user=one-node, verb=get"),
        ("/containerLogs/ns/r/c", "one-node", 403, "Forbidden (user=one-node, verb=get"),
        ("/exec/ns/r/c?command=id", "one-node", 403, "Forbidden"),
        ("/exec/ns/r/c?command=id", "admin", 404, "pod \"r\" does not exist"),
        ("/pods", "one-node", 403, "Forbidden"),
        ("/pods?node=node-1", "one-node", 200, r#""name":"p""#),
        ("/pods?node=node-2", "one-node", 403, "Forbidden"),
        ("/pods?node=node-3", "one-node", 403, "Forbidden"),
        ("/pods?node=node-3", "admin", 404, "no such node"),
        ("/pods", "admin", 200, r#""name":"q""#),
        ("/healthz", "admin", 200, "ok"),
        ("/stats/summary?node=node-2", "admin", 200, r#""nodeName":"node-2""#),
        ("/stats/summary", "admin", 200, r#""nodes":[{"nodeName":"node-1"},{"nodeName":"node-2"}]"#),
        ("/metrics/resource", "admin", 200, r#"resource_scrape_error{node="node-2"} 0"#),
        ("/metrics/resource?node=node-2", "admin", 200, "resource_scrape_error 0"),
        // Neither provider can be reached, which hides nothing else.
        ("/runningpods/", "admin", 200, r#""items":[]"#),
    ] {
        let (got, text) = get(path, &format!("good-{user}")).await;
        assert_eq!(got, status, "{path} {user}: {text}");
        assert!(text.contains(part), "{path} {user}: {text}");
    }
    drop(two);
    assert_eq!(get("/containerLogs/ns/q/c", "good-admin").await.0, 404);
    assert_eq!(get("/containerLogs/ns/p/c", "good-admin").await.0, 200);
}

#[tokio::test]
async fn a_new_client_authority_counts_at_once_and_open_streams_go_on() {
    let world = World::new().await;
    let (old, new) = (world.authority.client("admin"), Authority::new());
    let ask = async |identity: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)| {
        let stream = world.connect(Some(identity)).await;
        world.ask(stream, "GET", "/healthz", "").await.0
    };
    let until = async |authority: &Authority, want: u16| {
        for _ in 0..500 {
            if ask(authority.client("admin")).await == want {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never answered with {want}");
    };
    until(&world.authority, 200).await;
    let mut stream = world.connect(Some(old)).await;
    stream.write_all(b"GET /containerLogs/ns/p/endless HTTP/1.1\r\nhost: n\r\n\r\n").await.unwrap();
    let mut buffer = vec![0; 16 * 1024];
    let read = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200"));

    world.api.next_ca.send_replace(Some(new.pem.clone()));
    until(&new, 200).await;
    until(&world.authority, 401).await;
    for _ in 0..100 {
        let read = timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "the stream that was open goes on");
    }
}
