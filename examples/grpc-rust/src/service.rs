//! The calls of the protocol.

use std::collections::{BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::stream::{BoxStream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Result, Status, Streaming};
use vnode_proto::v1::provider_service_server::ProviderService;
use vnode_proto::{metadata, v1};

use crate::pods::{Container, Pods, command, exit_code};

type Answers<T> = BoxStream<'static, Result<T>>;

/// Runs pods as processes.
#[derive(Clone, Default)]
pub struct Service {
    pods: Arc<Pods>,
    /// The greatest epoch seen of each node.
    epochs: Arc<Mutex<HashMap<String, i64>>>,
}

impl Service {
    /// Has no pods.
    pub fn new() -> Self {
        Self::default()
    }

    /// The uid of the node that a call is for, if it comes from the node's newest owner.
    fn node(&self, metadata: &MetadataMap) -> Result<String> {
        let word = |key| metadata.get(key).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let uid = word(metadata::NODE_UID);
        if uid.is_empty() {
            return Err(Status::invalid_argument(format!("metadata {} is missing", metadata::NODE_UID)));
        }
        self.admit(uid, word(metadata::EPOCH).parse().unwrap_or_default())?;
        Ok(uid.to_owned())
    }

    fn admit(&self, node_uid: &str, epoch: i64) -> Result<()> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = epochs.entry(node_uid.to_owned()).or_insert(epoch);
        if epoch < *newest {
            return Err(Status::aborted(format!("epoch {epoch} is older than {newest}")));
        }
        *newest = epoch;
        Ok(())
    }

    fn container<T>(
        &self,
        node_uid: &str,
        pod: Option<&v1::PodRef>,
        name: &str,
        get: impl FnOnce(&mut Container) -> T,
    ) -> Result<T> {
        let found = self.pods.with(node_uid, pod, |p| p.containers.iter_mut().find(|c| c.name == name).map(get))?;
        found.ok_or_else(|| Status::not_found(format!("there is no container {name:?}")))
    }
}

#[tonic::async_trait]
impl ProviderService for Service {
    async fn get_capabilities(
        &self,
        request: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>> {
        self.node(request.metadata())?;
        let capabilities = v1::Capabilities {
            logs: true,
            exec: true,
            port_forward: true,
            stats: true,
            watch: true,
            pod_features: ["multipleContainers", "restartPolicy", "gracePeriod", "hostNetwork"].map(Into::into).into(),
            ..v1::Capabilities::default()
        };
        let server = concat!("vnode-example-grpc/", env!("CARGO_PKG_VERSION")).to_owned();
        Ok(Response::new(v1::GetCapabilitiesResponse { version: 1, server, capabilities: Some(capabilities) }))
    }

    async fn describe_node(
        &self,
        request: Request<v1::DescribeNodeRequest>,
    ) -> Result<Response<v1::DescribeNodeResponse>> {
        self.node(request.metadata())?;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        Ok(Response::new(v1::DescribeNodeResponse {
            capacity: [("cpu", cpus.as_str()), ("memory", "1Gi"), ("pods", "110")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            operating_system: std::env::consts::OS.into(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..v1::DescribeNodeResponse::default()
        }))
    }

    async fn create_pod(&self, request: Request<v1::CreatePodRequest>) -> Result<Response<v1::CreatePodResponse>> {
        let node = self.node(request.metadata())?;
        self.pods.create(&node, &request.into_inner().pod.unwrap_or_default())?;
        Ok(Response::new(v1::CreatePodResponse {}))
    }

    async fn update_pod(&self, request: Request<v1::UpdatePodRequest>) -> Result<Response<v1::UpdatePodResponse>> {
        // Labels, annotations and tolerations mean nothing to a process.
        self.node(request.metadata())?;
        Ok(Response::new(v1::UpdatePodResponse {}))
    }

    async fn update_volumes(
        &self,
        _: Request<v1::UpdateVolumesRequest>,
    ) -> Result<Response<v1::UpdateVolumesResponse>> {
        Err(Status::unimplemented("there are no volumes"))
    }

    async fn stop_pod(&self, request: Request<v1::StopPodRequest>) -> Result<Response<v1::StopPodResponse>> {
        let node = self.node(request.metadata())?;
        let request = request.into_inner();
        let grace = request.grace_period.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default();
        self.pods.stop(&node, request.pod.as_ref(), grace)?;
        Ok(Response::new(v1::StopPodResponse {}))
    }

    async fn remove_pod(&self, request: Request<v1::RemovePodRequest>) -> Result<Response<v1::RemovePodResponse>> {
        let node = self.node(request.metadata())?;
        self.pods.remove(&node, request.get_ref().pod.as_ref());
        Ok(Response::new(v1::RemovePodResponse {}))
    }

    async fn restore_pod(&self, _: Request<v1::RestorePodRequest>) -> Result<Response<v1::RestorePodResponse>> {
        Err(Status::unimplemented("pods outlive the operator"))
    }

    async fn get_pod(&self, request: Request<v1::GetPodRequest>) -> Result<Response<v1::GetPodResponse>> {
        let node = self.node(request.metadata())?;
        let status = self.pods.with(&node, request.get_ref().pod.as_ref(), |pod| pod.status())?;
        Ok(Response::new(v1::GetPodResponse { pod: Some(status) }))
    }

    type ListPodsStream = Answers<v1::ListPodsResponse>;

    async fn list_pods(&self, request: Request<v1::ListPodsRequest>) -> Result<Response<Self::ListPodsStream>> {
        let node = self.node(request.metadata())?;
        let parts: Vec<_> = self.pods.of_node(&node).chunks(100).map(<[_]>::to_vec).collect();
        let parts = parts.into_iter().map(|pods| Ok(v1::ListPodsResponse { pods }));
        Ok(Response::new(futures::stream::iter(parts).boxed()))
    }

    type WatchStream = Answers<v1::WatchResponse>;

    async fn watch(&self, request: Request<Streaming<v1::WatchRequest>>) -> Result<Response<Self::WatchStream>> {
        let mut requests = request.into_inner();
        let (send, answers) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            let mut changes = service.pods.changes();
            let mut nodes = BTreeSet::new();
            // It ends when either side goes away.
            loop {
                let sent = tokio::select! {
                    request = requests.message() => match request.ok().flatten().and_then(|r| r.action) {
                        Some(v1::watch_request::Action::Subscribe(node)) => {
                            let sent = service.tell_all(&send, &node.node_uid, Some(node.epoch)).await;
                            nodes.insert(node.node_uid);
                            sent
                        }
                        Some(v1::watch_request::Action::Unsubscribe(uid)) => {
                            nodes.remove(&uid);
                            Some(())
                        }
                        None => None,
                    },
                    change = changes.recv() => match change {
                        Ok(change) if nodes.contains(&change.node_uid) => {
                            let message = v1::watch_response::Change::Pod(change.status);
                            tell(&send, &change.node_uid, message).await
                        }
                        Ok(_) => Some(()),
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            for node in &nodes {
                                service.tell_all(&send, node, None).await;
                            }
                            Some(())
                        }
                        Err(broadcast::error::RecvError::Closed) => None,
                    },
                };
                if sent.is_none() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    type ReadLogsStream = Answers<v1::ReadLogsResponse>;

    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>> {
        let node = self.node(request.metadata())?;
        let request = request.into_inner();
        let log = self.container(&node, request.pod.as_ref(), &request.container, |c| {
            if request.previous { c.previous.clone() } else { Some(c.log.clone()) }
        })?;
        let log = log.ok_or_else(|| Status::not_found("it was not started before"))?;
        Ok(Response::new(log.follow(&request).map(Ok).boxed()))
    }

    type ExecStream = Answers<v1::ExecResponse>;

    async fn exec(&self, request: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>> {
        let node = self.node(request.metadata())?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|r| r.message);
        let Some(v1::exec_request::Message::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message must be start"));
        };
        if start.options.is_some_and(|o| o.tty) {
            return Err(Status::unimplemented("there are no terminals"));
        }
        let in_it = |c: &mut Container| command(&start.command, c.folder.as_deref(), c.env.clone());
        let mut command = self.container(&node, start.pod.as_ref(), &start.container, in_it)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Status::invalid_argument(format!("{:?}: {e}", start.command)))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let wanted = start.options.is_some_and(|o| o.stdin);
        let (send, answers) = mpsc::channel(16);
        tokio::spawn(async move {
            let input = async {
                let Some(mut stdin) = stdin.filter(|_| wanted) else { return };
                while let Ok(Some(message)) = requests.message().await {
                    let Some(v1::exec_request::Message::Input(input)) = message.message else { continue };
                    match input.input {
                        Some(v1::session_input::Input::Stdin(bytes)) if stdin.write_all(&bytes).await.is_ok() => {}
                        Some(v1::session_input::Input::Resize(_)) | None => {}
                        _ => return,
                    }
                }
            };
            let output = async {
                use v1::session_output::Output;
                tokio::join!(pass(stdout, &send, Output::Stdout), pass(stderr, &send, Output::Stderr));
                let code = child.wait().await.map_or(255, |status| exit_code(&status));
                let _ = send.send(Ok(answer(Output::ExitCode(code)))).await;
            };
            tokio::select! {
                () = async { tokio::join!(input, output); } => {}
                // Dropping the child kills it.
                () = send.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    type AttachStream = Answers<v1::AttachResponse>;

    async fn attach(&self, _: Request<Streaming<v1::AttachRequest>>) -> Result<Response<Self::AttachStream>> {
        Err(Status::unimplemented("there is no attaching to a process whose output is a log"))
    }

    type PortForwardStream = Answers<v1::PortForwardResponse>;

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>> {
        use v1::port_forward_request::Message as Input;
        use v1::port_forward_response::Message as Output;
        let node = self.node(request.metadata())?;
        let mut requests = request.into_inner();
        let Some(Input::Start(start)) = requests.message().await?.and_then(|r| r.message) else {
            return Err(Status::invalid_argument("the first message must be start"));
        };
        self.pods.with(&node, start.pod.as_ref(), |_| ())?;
        let port = u16::try_from(start.port).map_err(|_| Status::invalid_argument("that is no port"))?;
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let (mut read, mut write) = stream.map_err(|e| Status::unavailable(format!("port {port}: {e}")))?.into_split();
        let (send, answers) = mpsc::channel(16);
        tokio::spawn(async move {
            let input = async {
                while let Ok(Some(message)) = requests.message().await {
                    let Some(Input::Data(bytes)) = message.message else { continue };
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
                std::future::pending::<()>().await;
            };
            let output = async {
                let answer = |message| Ok(v1::PortForwardResponse { message: Some(message) });
                let mut sent = send.send(answer(Output::Connected(v1::Connected {}))).await.is_ok();
                let mut buffer = vec![0; 32 << 10];
                while sent {
                    let read = read.read(&mut buffer).await.unwrap_or_default();
                    let data = Output::Data(buffer[..read].to_vec().into());
                    sent = read > 0 && send.send(answer(data)).await.is_ok();
                }
            };
            tokio::select! {
                () = input => {}
                () = output => {}
                () = send.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answers).boxed()))
    }

    async fn get_stats(&self, request: Request<v1::GetStatsRequest>) -> Result<Response<v1::GetStatsResponse>> {
        let node = self.node(request.metadata())?;
        let pods = self.pods.lock();
        let pods = pods.values().filter(|pod| pod.node_uid == node);
        let pods = pods.map(|pod| v1::PodUsage {
            pod: Some(pod.reference.clone()),
            start_time: Some(SystemTime::from(pod.start_time).into()),
            containers: pod.containers.iter().filter_map(usage).collect(),
            ..v1::PodUsage::default()
        });
        Ok(Response::new(v1::GetStatsResponse { pods: pods.collect(), ..v1::GetStatsResponse::default() }))
    }
}

impl Service {
    /// Tells of every pod of a node, or that its owner is an older one.
    async fn tell_all(
        &self,
        send: &mpsc::Sender<Result<v1::WatchResponse>>,
        node_uid: &str,
        epoch: Option<i64>,
    ) -> Option<()> {
        use v1::watch_response::Change;
        if let Some(Err(refused)) = epoch.map(|epoch| self.admit(node_uid, epoch)) {
            let gone = v1::NodeAvailability { available: false, message: refused.message().to_owned() };
            return tell(send, node_uid, Change::Availability(gone)).await;
        }
        for status in self.pods.of_node(node_uid) {
            tell(send, node_uid, Change::Pod(status)).await?;
        }
        tell(send, node_uid, Change::Synced(v1::Synced {})).await
    }
}

async fn tell(
    send: &mpsc::Sender<Result<v1::WatchResponse>>,
    node_uid: &str,
    change: v1::watch_response::Change,
) -> Option<()> {
    send.send(Ok(v1::WatchResponse { node_uid: node_uid.to_owned(), change: Some(change) })).await.ok()
}

fn answer(output: v1::session_output::Output) -> v1::ExecResponse {
    v1::ExecResponse { output: Some(v1::SessionOutput { output: Some(output) }) }
}

async fn pass<T: From<Vec<u8>>>(
    from: Option<impl AsyncRead + Unpin>,
    send: &mpsc::Sender<Result<v1::ExecResponse>>,
    wrap: fn(T) -> v1::session_output::Output,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if send.send(Ok(answer(wrap(T::from(buffer[..read].to_vec()))))).await.is_err() {
            return;
        }
    }
}

/// What a container uses. proc(5): times in ticks of 10 ms, memory in pages of 4 KiB.
fn usage(container: &Container) -> Option<v1::ContainerUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid?.as_raw_nonzero())).ok()?;
    let fields: Vec<u64> = stat.rsplit(')').next()?.split_whitespace().map(|f| f.parse().unwrap_or_default()).collect();
    let (user, system, pages) = (fields.get(11)?, fields.get(12)?, fields.get(21)?);
    let now = Some(SystemTime::now().into());
    let usage = v1::Usage {
        time: now,
        cpu_nanos: Some((user + system) * 10_000_000),
        cpu_nano_cores: None,
        memory_working_set: Some(pages * 4096),
    };
    Some(v1::ContainerUsage { name: container.name.clone(), usage: Some(usage), ..v1::ContainerUsage::default() })
}
