//! A node whose pods are run by a gRPC service.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, timeout};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::{Code, Request, Response, Status};
use vnode_proto::{metadata, v1};

use super::connection::{Client, Connection};
use super::decode::{self, Bad, VERSIONS};
use super::settings::Settings;
use super::subscriptions::Subscription;
use super::{encode, failure, session, watch};
use crate::provider::{
    Capabilities, Duplex, ExitStatus, LogLine, LogOptions, LogStream, NodeDescription, NodeUsage, PodObservation,
    PodRef, Provider, ProviderContext, ProviderError, ResolvedPod, Result, SessionIo,
};

/// A node with more pods is none.
const MAX_PODS: usize = 20_000;
/// A longer list of pods is not read to its end.
const MAX_LISTED: usize = 128 << 20;
const CLIENT: &str = concat!("vnode/", env!("CARGO_PKG_VERSION"));

/// What the service said when it was last asked, and when that was.
struct Known {
    generation: u64,
    capabilities: Capabilities,
}

/// One node.
pub(super) struct GrpcProvider {
    connection: Arc<Connection>,
    subscription: Arc<Subscription>,
    config: BTreeMap<String, String>,
    /// What goes with every call of this node.
    marks: [(AsciiMetadataKey, AsciiMetadataValue); 3],
    /// What the node is called in messages.
    name: String,
    known: ArcSwapOption<Known>,
    handshake: tokio::sync::Mutex<()>,
}

impl Drop for GrpcProvider {
    fn drop(&mut self) {
        self.connection.unsubscribe(&self.subscription);
    }
}

impl GrpcProvider {
    pub fn new(connection: Arc<Connection>, settings: &Settings, context: &ProviderContext) -> Result<Self> {
        let mark = |key: &'static str, value: &str| match value.parse::<AsciiMetadataValue>() {
            Ok(value) => Ok((AsciiMetadataKey::from_static(key), value)),
            Err(_) => Err(ProviderError::unavailable(format!("{value:?} cannot be sent as {key}"))),
        };
        Ok(Self {
            connection,
            subscription: Arc::new(Subscription::new(context, settings.config.clone())),
            config: settings.config.clone(),
            marks: [
                mark(metadata::NODE, &context.node)?,
                mark(metadata::NODE_UID, &context.node_uid)?,
                mark(metadata::EPOCH, &context.epoch.to_string())?,
            ],
            name: format!("node {}", context.node),
            known: ArcSwapOption::empty(),
            handshake: tokio::sync::Mutex::default(),
        })
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        for (key, value) in &self.marks {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        request
    }

    /// One answer to one message, within the deadline.
    async fn answer<M, R, F>(&self, message: M, send: impl FnOnce(Client, Request<M>) -> F) -> Result<R, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = self.connection.call_timeout;
        let mut request = self.request(message);
        request.set_timeout(deadline);
        match timeout(deadline, send(self.connection.control(), request)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("")),
        }
    }

    /// Makes sure that the service and its abilities are known.
    async fn ready(&self) -> Result<Capabilities> {
        match &*self.known.load() {
            Some(known) if known.generation == self.connection.generation() => return Ok(known.capabilities),
            _ => {}
        }
        let _one = self.handshake.lock().await;
        match &*self.known.load() {
            Some(known) if known.generation == self.connection.generation() => Ok(known.capabilities),
            _ => self.shake_hands().await,
        }
    }

    async fn shake_hands(&self) -> Result<Capabilities> {
        let generation = self.connection.generation();
        let hello = v1::GetCapabilitiesRequest {
            versions: VERSIONS.to_vec(),
            client: CLIENT.to_owned(),
            config: self.config.clone(),
        };
        let answer = self.answer(hello, |mut c, r| async move { c.get_capabilities(r).await }).await;
        // No refusal of a pod can come from here.
        let answer = answer.map_err(|status| match failure::error("GetCapabilities", &self.name, &status) {
            error @ ProviderError::Unavailable { .. } => error,
            error => ProviderError::unavailable(format!("GetCapabilities of {}: {error}", self.name)),
        })?;
        let capabilities = decode::capabilities(answer).map_err(ProviderError::unavailable)?;
        self.known.store(Some(Arc::new(Known { generation, capabilities })));
        match capabilities.notifies {
            true => self.connection.subscribe(&self.subscription),
            false => self.connection.unsubscribe(&self.subscription),
        }
        Ok(capabilities)
    }

    /// A call about a pod.
    async fn call<M, R, F>(
        &self,
        name: &str,
        pod: &PodRef,
        message: M,
        send: impl FnOnce(Client, Request<M>) -> F,
    ) -> Result<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.ready().await?;
        self.answer(message, send).await.map_err(|status| failure::error(name, &about(pod), &status))
    }

    /// What can be believed of what the service said of a pod, in answer to a question asked at `asked`.
    fn believe(&self, call: &str, status: &v1::PodStatus, asked: Instant) -> Result<Option<PodObservation>> {
        match decode::observation(status, &self.subscription.node_uid) {
            Ok(said) => match self.subscription.guard.take(said, asked, None) {
                Some((holds, _)) => Ok(Some(holds)),
                None => Err(ProviderError::unavailable(format!("{call} of {}: see the pod's events", self.name))),
            },
            Err(Bad::Foreign(why)) => {
                tracing::warn!(node = %self.subscription.node, "{call}: {why}; it is ignored");
                Ok(None)
            }
            Err(Bad::Senseless(why)) => {
                watch::complain(&self.subscription, status.pod.as_ref(), why.clone());
                Err(ProviderError::unavailable(format!("{call} of {}: {why}", self.name)))
            }
        }
    }

    fn caller(&self) -> session::Caller {
        session::Caller { client: self.connection.sessions(), marks: self.request(()) }
    }

    fn able(&self, can: bool, ability: &'static str) -> Result<()> {
        if can { Ok(()) } else { Err(ProviderError::Unsupported(ability)) }
    }
}

fn about(pod: &PodRef) -> String {
    format!("pod {pod}")
}

#[async_trait]
impl Provider for GrpcProvider {
    /// What the service last said; nothing before it was reached.
    fn capabilities(&self) -> Capabilities {
        self.known.load().as_ref().map(|known| known.capabilities).unwrap_or_default()
    }

    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        let message = v1::CreatePodRequest { pod: Some(encode::pod(pod)?), config: self.config.clone() };
        self.subscription.guard.given(pod.pod_ref(), &pod.pod);
        let send = |mut c: Client, r| async move { c.create_pod(r).await };
        self.call("CreatePod", &pod.pod_ref(), message, send).await.map(drop)
    }

    async fn update_pod(&self, pod: &ResolvedPod) -> Result<()> {
        let message = v1::UpdatePodRequest { pod: Some(encode::pod(pod)?) };
        self.subscription.guard.given(pod.pod_ref(), &pod.pod);
        let send = |mut c: Client, r| async move { c.update_pod(r).await };
        self.call("UpdatePod", &pod.pod_ref(), message, send).await.map(drop)
    }

    async fn update_volumes(&self, pod: &ResolvedPod, changed: &[String]) -> Result<()> {
        let message = v1::UpdateVolumesRequest { pod: Some(encode::pod(pod)?), changed: changed.to_vec() };
        let send = |mut c: Client, r| async move { c.update_volumes(r).await };
        self.call("UpdateVolumes", &pod.pod_ref(), message, send).await.map(drop)
    }

    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        let message = v1::StopPodRequest { pod: encode::pod_ref(pod), grace_period: Some(encode::duration(grace)) };
        let send = |mut c: Client, r| async move { c.stop_pod(r).await };
        self.call("StopPod", pod, message, send).await.map(drop)?;
        self.subscription.guard.stopping(&pod.uid);
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        let message = v1::RemovePodRequest { pod: encode::pod_ref(pod) };
        let send = |mut c: Client, r| async move { c.remove_pod(r).await };
        match self.call("RemovePod", pod, message, send).await {
            // There is nothing to remove.
            Ok(_) | Err(ProviderError::NotFound(_)) => {
                self.subscription.guard.forget(&pod.uid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn restore_pod(&self, pod: &ResolvedPod) -> Result<()> {
        let message = v1::RestorePodRequest { pod: Some(encode::pod(pod)?), config: self.config.clone() };
        self.subscription.guard.given(pod.pod_ref(), &pod.pod);
        let send = |mut c: Client, r| async move { c.restore_pod(r).await };
        self.call("RestorePod", &pod.pod_ref(), message, send).await.map(drop)
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        let asked = Instant::now();
        let message = v1::GetPodRequest { pod: encode::pod_ref(pod) };
        let send = |mut c: Client, r| async move { c.get_pod(r).await };
        let answer = self.call("GetPod", pod, message, send).await.inspect_err(|error| {
            if error.is_not_found() {
                self.subscription.guard.forget(&pod.uid);
            }
        })?;
        let wrong = |what: String| ProviderError::unavailable(format!("GetPod of {}: {what}", about(pod)));
        let status = answer.pod.ok_or_else(|| wrong("the answer is empty".into()))?;
        let uid = status.pod.as_ref().map(|p| p.uid.as_str()).unwrap_or_default();
        if uid != &*pod.uid {
            return Err(wrong(format!("the service answers about uid {uid:?} when asked about {:?}", pod.uid)));
        }
        let believed = self.believe("GetPod", &status, asked)?;
        believed.ok_or_else(|| wrong("the service says that it is another node's; see the operator's log".into()))
    }

    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        self.ready().await?;
        let asked = Instant::now();
        let wrong = |status: Status| match failure::error("ListPods", &self.name, &status) {
            error @ ProviderError::Unavailable { .. } => error,
            // Not even "there is no such node" means that there are no pods.
            error => ProviderError::unavailable(format!("ListPods of {}: {error}", self.name)),
        };
        let read = async {
            let request = self.request(v1::ListPodsRequest {});
            let mut stream = self.connection.control().list_pods(request).await.map_err(wrong)?.into_inner();
            let (mut pods, mut size) = (Vec::new(), 0);
            while let Some(part) = stream.message().await.map_err(wrong)? {
                for status in part.pods {
                    size += status.json.len();
                    if pods.len() >= MAX_PODS || size > MAX_LISTED {
                        let message = format!("more than {MAX_PODS} pods or {MAX_LISTED} bytes of statuses");
                        return Err(wrong(Status::internal(message)));
                    }
                    pods.extend(self.believe("ListPods", &status, asked)?);
                }
            }
            Ok(pods)
        };
        let deadline = self.connection.call_timeout;
        let pods = timeout(deadline, read).await.unwrap_or_else(|_| Err(wrong(Status::deadline_exceeded(""))))?;
        let uids: HashSet<_> = pods.iter().map(|p| p.pod.uid.clone()).collect();
        // The agent asks for each of those that it misses.
        self.subscription.guard.take_missing(&uids, asked);
        Ok(pods)
    }

    async fn ping(&self) -> Result<()> {
        self.ready().await?;
        self.connection.check().await?;
        self.subscription.unavailable().map_or(Ok(()), |why| Err(ProviderError::unavailable(why)))
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        // Now and then, so that a service that learnt something need not be lost for it.
        {
            let _one = self.handshake.lock().await;
            self.shake_hands().await?;
        }
        let message = v1::DescribeNodeRequest { config: self.config.clone() };
        match self.answer(message, |mut c, r| async move { c.describe_node(r).await }).await {
            Ok(answer) => decode::description(answer)
                .map_err(|why| ProviderError::unavailable(format!("DescribeNode of {}: {why}", self.name))),
            Err(status) if status.code() == Code::Unimplemented => Ok(NodeDescription::default()),
            Err(status) => Err(failure::error("DescribeNode", &self.name, &status)),
        }
    }

    async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        let capabilities = self.ready().await?;
        self.able(capabilities.logs, "reading logs")?;
        let of = format!("container {container} of {}", about(pod));
        let request = self.request(encode::logs(pod, container, options));
        let open = async {
            let mut lines = self.connection.sessions().read_logs(request).await?.into_inner();
            // The first message comes at once: only then is it known that there is such a log.
            let first = lines.message().await?;
            Ok::<_, Status>((first, lines))
        };
        let opened = timeout(self.connection.call_timeout, open).await;
        let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
        let (first, rest) = opened.map_err(|status| failure::error("ReadLogs", &of, &status))?;
        let ahead: VecDeque<v1::LogLine> = first.into_iter().flat_map(|part| part.lines).collect();
        let lines = stream::unfold((ahead, Some(rest), of), |(mut ahead, mut rest, of)| async move {
            loop {
                if let Some(line) = ahead.pop_front() {
                    return Some((read_line(line), (ahead, rest, of)));
                }
                match rest.as_mut()?.message().await {
                    Ok(Some(part)) => ahead.extend(part.lines),
                    Ok(None) => return None,
                    Err(status) => {
                        let error = failure::error("ReadLogs", &of, &status);
                        return Some((Err(error), (ahead, None, of)));
                    }
                }
            }
        });
        Ok(lines.boxed())
    }

    async fn exec(&self, pod: &PodRef, container: &str, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        let capabilities = self.ready().await?;
        self.able(capabilities.exec, "exec")?;
        let start = v1::ExecStart {
            pod: encode::pod_ref(pod),
            container: container.to_owned(),
            command: command.to_vec(),
            options: Some(encode::session(&io)),
        };
        let of = format!("container {container} of {}", about(pod));
        session::exec(of, start, self.caller(), io).await
    }

    async fn attach(&self, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
        let capabilities = self.ready().await?;
        self.able(capabilities.attach, "attach")?;
        let start = v1::AttachStart {
            pod: encode::pod_ref(pod),
            container: container.to_owned(),
            options: Some(encode::session(&io)),
        };
        let of = format!("container {container} of {}", about(pod));
        session::attach(of, start, self.caller(), io).await
    }

    async fn port_forward(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        let capabilities = self.ready().await?;
        self.able(capabilities.port_forward, "port-forward")?;
        let start = v1::PortForwardStart { pod: encode::pod_ref(pod), port: port.into() };
        let of = format!("port {port} of {}", about(pod));
        session::port_forward(of, start, self.connection.call_timeout, self.caller()).await
    }

    async fn stats(&self) -> Result<NodeUsage> {
        let capabilities = self.ready().await?;
        self.able(capabilities.stats, "statistics")?;
        let answer = self.answer(v1::GetStatsRequest {}, |mut c, r| async move { c.get_stats(r).await }).await;
        let answer = answer.map_err(|status| failure::error("GetStats", &self.name, &status))?;
        decode::stats(answer).map_err(|why| ProviderError::unavailable(format!("GetStats of {}: {why}", self.name)))
    }
}

fn read_line(line: v1::LogLine) -> Result<LogLine> {
    decode::log_line(line).map_err(|why| ProviderError::unavailable(format!("ReadLogs: {why}")))
}
