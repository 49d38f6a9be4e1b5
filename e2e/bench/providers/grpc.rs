//! The simulator behind a gRPC server on loopback.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use vnode::api::{GrpcConfig, ProviderSpec};
use vnode::provider::registry::Registry;
use vnode::provider::{PodObservation, PodRef, Provider, ResolvedContainer, ResolvedPod};
use vnode_proto::v1;
use vnode_proto::v1::provider_service_server::{ProviderService, ProviderServiceServer};

use super::{Deaf, Result, Simulators, Subject, context, status};

pub async fn subject() -> Result<Subject> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let service = ProviderServiceServer::new(Bench::default());
    let router = tonic::transport::Server::builder().add_service(service);
    // Without it each answer waits 40 ms for the client's acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(router.serve_with_incoming(incoming));
    let registry = Registry::default();
    let node = move |n| {
        let spec = ProviderSpec::grpc(GrpcConfig { endpoint: endpoint.clone(), ..GrpcConfig::default() });
        registry.build(&spec, context(&format!("node-{n}"), Arc::new(Deaf)))
    };
    Ok(Subject { node: Box::new(node), ..Subject::new("grpc") })
}

type Answer<T> = std::result::Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, std::result::Result<T, Status>>;

/// The simulators behind the service.
#[derive(Default)]
struct Bench(Simulators);

impl Bench {
    fn of<T>(&self, request: &Request<T>) -> std::result::Result<(String, Arc<dyn Provider>), Status> {
        let uid = request.metadata().get(vnode_proto::metadata::NODE_UID).and_then(|v| v.to_str().ok());
        let uid = uid.ok_or_else(|| Status::invalid_argument("no node"))?.to_owned();
        let node = self.0.of(&uid).map_err(failed)?;
        Ok((uid, node))
    }
}

fn failed(error: vnode::provider::ProviderError) -> Status {
    if error.is_not_found() { Status::not_found(error.to_string()) } else { Status::unavailable(error.to_string()) }
}

fn reference(pod: Option<v1::PodRef>) -> PodRef {
    let v1::PodRef { namespace, name, uid } = pod.unwrap_or_default();
    PodRef { namespace: namespace.into(), name: name.into(), uid: uid.into() }
}

fn said(node_uid: &str, o: PodObservation) -> v1::PodStatus {
    let PodRef { namespace, name, uid } = o.pod.clone();
    v1::PodStatus {
        pod: Some(v1::PodRef { namespace: namespace.to_string(), name: name.to_string(), uid: uid.to_string() }),
        node_uid: node_uid.to_owned(),
        json: serde_json::to_vec(&status(o)).unwrap_or_default().into(),
    }
}

macro_rules! unused {
    ($($method:ident $request:ty => $response:ty;)+) => {
        #[tonic::async_trait]
        impl ProviderService for Bench {
            async fn get_capabilities(
                &self,
                _: Request<v1::GetCapabilitiesRequest>,
            ) -> Answer<v1::GetCapabilitiesResponse> {
                let capabilities = Some(v1::Capabilities::default());
                Ok(Response::new(v1::GetCapabilitiesResponse { version: 1, server: "bench".into(), capabilities }))
            }

            async fn create_pod(&self, request: Request<v1::CreatePodRequest>) -> Answer<v1::CreatePodResponse> {
                let (_, node) = self.of(&request)?;
                let pod = request.into_inner().pod.unwrap_or_default();
                let json = serde_json::from_slice(&pod.json).map_err(|e| Status::invalid_argument(e.to_string()))?;
                let containers = pod.containers.into_keys().map(|name| (name, ResolvedContainer::default())).collect();
                let pod = ResolvedPod { pod: Arc::new(json), containers, ..ResolvedPod::default() };
                node.create_pod(&pod).await.map_err(failed)?;
                Ok(Response::new(v1::CreatePodResponse {}))
            }

            async fn remove_pod(&self, request: Request<v1::RemovePodRequest>) -> Answer<v1::RemovePodResponse> {
                let (_, node) = self.of(&request)?;
                node.remove_pod(&reference(request.into_inner().pod)).await.map_err(failed)?;
                Ok(Response::new(v1::RemovePodResponse {}))
            }

            async fn get_pod(&self, request: Request<v1::GetPodRequest>) -> Answer<v1::GetPodResponse> {
                let (uid, node) = self.of(&request)?;
                let found = node.get_pod(&reference(request.into_inner().pod)).await.map_err(failed)?;
                Ok(Response::new(v1::GetPodResponse { pod: Some(said(&uid, found)) }))
            }

            type ListPodsStream = Answers<v1::ListPodsResponse>;
            async fn list_pods(&self, request: Request<v1::ListPodsRequest>) -> Answer<Self::ListPodsStream> {
                let (uid, node) = self.of(&request)?;
                let found = node.list_pods().await.map_err(failed)?;
                let pods = found.into_iter().map(|o| said(&uid, o)).collect();
                Ok(Response::new(stream::iter([Ok(v1::ListPodsResponse { pods })]).boxed()))
            }

            type WatchStream = Answers<v1::WatchResponse>;
            type ReadLogsStream = Answers<v1::ReadLogsResponse>;
            type ExecStream = Answers<v1::ExecResponse>;
            type AttachStream = Answers<v1::AttachResponse>;
            type PortForwardStream = Answers<v1::PortForwardResponse>;

            $(async fn $method(&self, _: Request<$request>) -> Answer<$response> {
                Err(Status::unimplemented("not part of the benchmark"))
            })+
        }
    };
}

unused! {
    describe_node v1::DescribeNodeRequest => v1::DescribeNodeResponse;
    update_pod v1::UpdatePodRequest => v1::UpdatePodResponse;
    update_volumes v1::UpdateVolumesRequest => v1::UpdateVolumesResponse;
    stop_pod v1::StopPodRequest => v1::StopPodResponse;
    restore_pod v1::RestorePodRequest => v1::RestorePodResponse;
    get_stats v1::GetStatsRequest => v1::GetStatsResponse;
    watch Streaming<v1::WatchRequest> => Self::WatchStream;
    read_logs v1::ReadLogsRequest => Self::ReadLogsStream;
    exec Streaming<v1::ExecRequest> => Self::ExecStream;
    attach Streaming<v1::AttachRequest> => Self::AttachStream;
    port_forward Streaming<v1::PortForwardRequest> => Self::PortForwardStream;
}
