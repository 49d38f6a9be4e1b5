//! Services to connect to, in every state of health.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Result, Status, Streaming};
use vnode::api::{GrpcConfig, ProviderSpec};
use vnode::provider::grpc::GrpcFactory;
use vnode::provider::registry::Factory as _;
use vnode::provider::{
    Credentials, PodEvent, PodNotifier, PodObservation, PodRef, Provider, ProviderContext, ResolvedContainer,
    ResolvedPod,
};
use vnode_example_grpc::Service;
use vnode_proto::v1;
use vnode_proto::v1::provider_service_server::{ProviderService, ProviderServiceServer};

type Mend = Arc<dyn Fn(v1::PodStatus) -> v1::PodStatus + Send + Sync>;

/// The example, doing wrong what it is told to.
#[derive(Clone, Default)]
pub struct Twisted(pub Arc<Twist>);

#[derive(Default)]
pub struct Twist {
    inner: Service,
    /// Calls that are never answered.
    pub hangs: Mutex<HashSet<&'static str>>,
    /// Calls that are refused.
    pub refuses: Mutex<HashMap<&'static str, Status>>,
    /// What becomes of each status.
    pub statuses: Mutex<Option<Mend>>,
    /// The version of the protocol that it claims to speak, unless 0.
    pub version: AtomicU32,
    /// Whether a command's first output comes together with the answer's headers, as many libraries do it.
    pub speaks_late: AtomicBool,
    /// How often each call was made.
    pub calls: Mutex<HashMap<&'static str, usize>>,
}

impl Twist {
    async fn before(&self, call: &'static str) -> Result<()> {
        *self.calls.lock().unwrap().entry(call).or_default() += 1;
        if self.hangs.lock().unwrap().contains(call) {
            std::future::pending::<()>().await;
        }
        self.refuses.lock().unwrap().get(call).map_or(Ok(()), |status| Err(status.clone()))
    }

    fn mend(&self, status: v1::PodStatus) -> v1::PodStatus {
        let mend = self.statuses.lock().unwrap().clone();
        mend.map_or_else(|| status.clone(), |mend| mend(status.clone()))
    }

    pub fn say(&self, mend: impl Fn(v1::PodStatus) -> v1::PodStatus + Send + Sync + 'static) {
        *self.statuses.lock().unwrap() = Some(Arc::new(mend));
    }
}

macro_rules! pass {
    ($($method:ident $name:literal $request:ident $response:ident;)+) => {
        #[tonic::async_trait]
        impl ProviderService for Twisted {
            $(async fn $method(&self, request: Request<v1::$request>) -> Result<Response<v1::$response>> {
                self.0.before($name).await?;
                self.0.inner.$method(request).await
            })+

            async fn get_capabilities(
                &self,
                request: Request<v1::GetCapabilitiesRequest>,
            ) -> Result<Response<v1::GetCapabilitiesResponse>> {
                self.0.before("GetCapabilities").await?;
                let mut answer = self.0.inner.get_capabilities(request).await?;
                match self.0.version.load(Ordering::Relaxed) {
                    0 => {}
                    version => answer.get_mut().version = version,
                }
                Ok(answer)
            }

            async fn get_pod(&self, request: Request<v1::GetPodRequest>) -> Result<Response<v1::GetPodResponse>> {
                self.0.before("GetPod").await?;
                let mut answer = self.0.inner.get_pod(request).await?;
                let status = answer.get_mut().pod.take();
                answer.get_mut().pod = status.map(|status| self.0.mend(status));
                Ok(answer)
            }

            type ListPodsStream = BoxStream<'static, Result<v1::ListPodsResponse>>;
            async fn list_pods(&self, request: Request<v1::ListPodsRequest>) -> Result<Response<Self::ListPodsStream>> {
                self.0.before("ListPods").await?;
                let twist = self.0.clone();
                let answer = self.0.inner.list_pods(request).await?.into_inner();
                Ok(Response::new(answer.map(move |part| part.map(|part| v1::ListPodsResponse {
                    pods: part.pods.into_iter().map(|status| twist.mend(status)).collect(),
                })).boxed()))
            }

            type WatchStream = BoxStream<'static, Result<v1::WatchResponse>>;
            async fn watch(&self, request: Request<Streaming<v1::WatchRequest>>) -> Result<Response<Self::WatchStream>> {
                use v1::watch_response::Change;
                self.0.before("Watch").await?;
                let twist = self.0.clone();
                let answer = self.0.inner.watch(request).await?.into_inner();
                Ok(Response::new(answer.map(move |message| message.map(|mut message| {
                    message.change = message.change.map(|change| match change {
                        Change::Pod(status) => Change::Pod(twist.mend(status)),
                        other => other,
                    });
                    message
                })).boxed()))
            }

            type ReadLogsStream = <Service as ProviderService>::ReadLogsStream;
            async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>> {
                self.0.before("ReadLogs").await?;
                self.0.inner.read_logs(request).await
            }

            type ExecStream = BoxStream<'static, Result<v1::ExecResponse>>;
            async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>> {
                self.0.before("Exec").await?;
                let mut answer = self.0.inner.exec(request).await?.into_inner().peekable();
                if self.0.speaks_late.load(Ordering::Relaxed) {
                    Pin::new(&mut answer).peek().await;
                }
                Ok(Response::new(answer.boxed()))
            }

            type AttachStream = <Service as ProviderService>::AttachStream;
            async fn attach(&self, request: Request<Streaming<v1::AttachRequest>>) -> Result<Response<Self::AttachStream>> {
                self.0.inner.attach(request).await
            }

            type PortForwardStream = <Service as ProviderService>::PortForwardStream;
            async fn port_forward(&self, request: Request<Streaming<v1::PortForwardRequest>>) -> Result<Response<Self::PortForwardStream>> {
                self.0.inner.port_forward(request).await
            }
        }
    };
}

pass! {
    describe_node "DescribeNode" DescribeNodeRequest DescribeNodeResponse;
    create_pod "CreatePod" CreatePodRequest CreatePodResponse;
    update_pod "UpdatePod" UpdatePodRequest UpdatePodResponse;
    update_volumes "UpdateVolumes" UpdateVolumesRequest UpdateVolumesResponse;
    stop_pod "StopPod" StopPodRequest StopPodResponse;
    remove_pod "RemovePod" RemovePodRequest RemovePodResponse;
    restore_pod "RestorePod" RestorePodRequest RestorePodResponse;
    get_stats "GetStats" GetStatsRequest GetStatsResponse;
}

impl Twisted {
    /// Listens without TLS.
    pub async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health_of().await;
        // Keeps what it reported.
        std::mem::forget(reporter);
        let router = Server::builder().add_service(health).add_service(ProviderServiceServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

async fn tonic_health_of() -> (
    tonic_health::server::HealthReporter,
    tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<ProviderServiceServer<Twisted>>().await;
    (reporter, health)
}

/// The way to a server, which can be cut.
pub struct Way {
    pub address: SocketAddr,
    /// How many connections were made.
    pub made: Arc<AtomicUsize>,
    open: Arc<AtomicBool>,
    cut: watch::Sender<()>,
    server: Arc<Mutex<SocketAddr>>,
}

impl Way {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (made, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let cut = watch::Sender::new(());
        let (counted, may, cutting) = (made.clone(), open.clone(), cut.clone());
        let server = Arc::new(Mutex::new(server));
        let leads_to = server.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if !may.load(Ordering::Relaxed) {
                    continue;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                let mut cut = cutting.subscribe();
                let server = *leads_to.lock().unwrap();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, made, open, cut, server }
    }

    /// Ends all connections and lets none through.
    pub fn cut(&self) {
        self.open.store(false, Ordering::Relaxed);
        self.cut.send_replace(());
    }

    /// From now on it leads to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    pub fn mend(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}

/// What a provider told.
#[derive(Default)]
pub struct Ear {
    pub changes: Mutex<Vec<PodObservation>>,
    pub events: Mutex<Vec<PodEvent>>,
    pub missing: Mutex<Vec<PodRef>>,
}

impl PodNotifier for Ear {
    fn changed(&self, observation: PodObservation) {
        self.changes.lock().unwrap().push(observation);
    }
    fn missing(&self, pod: &PodRef) {
        self.missing.lock().unwrap().push(pod.clone());
    }
    fn event(&self, event: PodEvent) {
        self.events.lock().unwrap().push(event);
    }
}

impl Ear {
    pub fn last(&self, pod: &PodRef) -> Option<PodObservation> {
        self.changes.lock().unwrap().iter().rev().find(|o| o.pod == *pod).cloned()
    }

    pub fn told(&self, reason: &str) -> Option<String> {
        self.events.lock().unwrap().iter().find(|e| e.reason == reason).map(|e| e.message.clone())
    }
}

/// A node to be.
pub struct Node {
    pub name: String,
    pub epoch: i64,
    pub ear: Arc<Ear>,
    pub endpoint: String,
    pub credentials: Option<Arc<Credentials>>,
}

impl Node {
    pub fn new(name: &str, address: SocketAddr) -> Self {
        let endpoint = format!("http://{address}");
        Self { name: name.into(), epoch: 0, ear: Arc::default(), endpoint, credentials: None }
    }

    pub fn build(&self, factory: &GrpcFactory) -> Arc<dyn Provider> {
        let spec = ProviderSpec::grpc(GrpcConfig {
            endpoint: self.endpoint.clone(),
            call_timeout_seconds: Some(2),
            ..GrpcConfig::default()
        });
        let context = ProviderContext {
            node: self.name.as_str().into(),
            node_uid: format!("uid-of-{}", self.name).into(),
            epoch: self.epoch,
            notifier: self.ear.clone(),
            credentials: self.credentials.clone(),
        };
        factory.build(&spec, context).unwrap()
    }
}

/// A pod that runs a script.
pub fn pod(name: &str, script: &str, restart: &str) -> ResolvedPod {
    let command: Vec<String> = ["sh", "-c", script].map(str::to_owned).into();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "ns", "name": name, "uid": format!("uid-{name}")},
        "spec": {"restartPolicy": restart, "containers": [{"name": "main", "image": "any", "command": command}]},
    }))
    .unwrap();
    let container = ResolvedContainer { command, ..ResolvedContainer::default() };
    ResolvedPod { pod: Arc::new(pod), containers: [("main".to_owned(), container)].into(), ..ResolvedPod::default() }
}

pub fn runs(o: &PodObservation) -> bool {
    o.containers.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}

/// Waits for what must come.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain until {what}");
}
