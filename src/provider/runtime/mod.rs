//! The container runtime loop: everything that a pod promises, for any engine that can start and stop
//! containers.
//!
//! ```text
//!  agent ──▶ Runtime (a Provider) ──▶ one task a pod ──▶ machine: pure, told the time
//!    ▲                                  │      ▲              │ actions
//!    └── observations, events ──────────┘      │              ▼
//!                       Engine ── events ──────┘◀── answers ── act ──▶ Engine, volumes, probes
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | the trait [`Engine`], and what it is told |
//! | `machine` | a pod's life as a pure state machine |
//! | `runner` | the task of a pod |
//! | `act` | doing what the machine asks for |
//! | `probe` | what probes and hooks ask: commands, HTTP, TCP, gRPC |
//! | `spec` | from a resolved pod to what an engine is told |
//! | `volumes` | volumes as folders of this machine |
//! | `limits` | requests and limits as the kernel takes them |
//! | `adopt` | finding what ran before, and following what happens |
//! | `record` | what is kept of a pod on disk, so that a restart changes nothing |
//!
//! An engine gets, without doing anything for it: init containers and sidecars in their order, restarts with
//! back-off, hooks, grace periods and deadlines, probes, termination messages, volumes with atomic updates,
//! pull policies, kubelet's events and statuses, and adoption after a restart.

mod act;
mod adopt;
mod core;
pub mod engine;
pub(crate) mod files;
pub(crate) mod limits;
pub(crate) mod machine;
mod probe;
pub(crate) mod record;
mod runner;
#[cfg(test)]
mod runner_tests;
mod spec;
pub(crate) mod volumes;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use self::core::{Core, Message, Setup, guard};
use super::{
    Capabilities, ContainerUsage, Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, NodeUsage, PodFeature,
    PodFeatures, PodObservation, PodRef, PodUsage, ProbeCounts, Provider, ProviderContext, ProviderError, ResolvedPod,
    Result, SessionIo, VolumeFiles,
};
pub use engine::{
    ContainerRef, ContainerSpec, ContainerState, ContainerUse, Engine, EngineEvent, EngineUsage, Exit, Image,
    ListedContainer, ListedSandbox, Listing, Mount, PullRequest, Sandbox, SandboxSpec, Signal,
};
use machine::Machine;
use machine::plan::Plan;
use runner::{Runner, Start};
pub(crate) use spec::host_entries;
pub(crate) use volumes::HostPaths;

/// What the loop does for every engine. An engine adds what it can do itself.
pub const LOOP_FEATURES: PodFeatures = PodFeatures::of(&[
    PodFeature::ConfigMapVolumes,
    PodFeature::SecretVolumes,
    PodFeature::DownwardApiVolumes,
    PodFeature::ProjectedVolumes,
    PodFeature::ServiceAccountTokens,
    PodFeature::ClusterTrustBundles,
    PodFeature::VolumeUpdates,
    PodFeature::EmptyDir,
    PodFeature::SubPath,
    PodFeature::InitContainers,
    PodFeature::Sidecars,
    PodFeature::MultipleContainers,
    PodFeature::ContainerRestartRules,
    PodFeature::TerminationMessage,
    PodFeature::ImagePullPolicy,
    PodFeature::EphemeralContainers,
    PodFeature::ServiceLinks,
    PodFeature::PodIpInEnvironment,
    PodFeature::StartupProbes,
    PodFeature::ReadinessProbes,
    PodFeature::LivenessProbes,
    PodFeature::ExecProbes,
    PodFeature::HttpProbes,
    PodFeature::TcpProbes,
    PodFeature::GrpcProbes,
    PodFeature::PostStart,
    PodFeature::PreStop,
    PodFeature::StopSignal,
    PodFeature::RestartPolicy,
    PodFeature::ActiveDeadline,
    PodFeature::GracePeriod,
]);

/// What an engine and the loop can do together.
pub fn capabilities(engine: Capabilities) -> Capabilities {
    Capabilities {
        notifies: true,
        events: true,
        volatile: false,
        volume_files: VolumeFiles::Live,
        starts_apart: true,
        pod: engine.pod.and(LOOP_FEATURES),
        ..engine
    }
}

/// The runtimes of one process, by node: a node whose configuration changes keeps its pods.
#[derive(Default)]
pub struct Runtimes(Mutex<HashMap<NodeKey, Weak<Runtime>>>);

/// A node's name and the uid of its VirtualNode.
type NodeKey = (Arc<str>, Arc<str>);

impl Runtimes {
    /// The node's runtime with this engine, started if there is none. Must be called within a tokio runtime.
    ///
    /// `state` is the folder under which all nodes keep their pods; `host_paths` the folders of this machine
    /// that pods may mount parts of.
    pub fn get_or_start(
        &self,
        context: &ProviderContext,
        engine: Arc<dyn Engine>,
        state: &Path,
        host_paths: &[PathBuf],
    ) -> Arc<Runtime> {
        let host_paths = match host_paths {
            [] => HostPaths::Refused,
            some => HostPaths::Below(some.to_vec()),
        };
        self.get_or_start_with(context, engine, state, host_paths)
    }

    /// As [`get_or_start`](Self::get_or_start), where the folders may be another machine's.
    pub(crate) fn get_or_start_with(
        &self,
        context: &ProviderContext,
        engine: Arc<dyn Engine>,
        state: &Path,
        host_paths: HostPaths,
    ) -> Arc<Runtime> {
        let setup = Setup { engine, notifier: context.notifier.clone(), host_paths };
        let key = (context.node.clone(), context.node_uid.clone());
        let mut nodes = guard(&self.0);
        if let Some(runtime) = nodes.get(&key).and_then(Weak::upgrade) {
            runtime.core.set_up(setup);
            return runtime;
        }
        nodes.retain(|_, runtime| runtime.strong_count() > 0);
        let dir = state.join(&*context.node_uid).join("pods");
        let core = Arc::new(Core::new(dir, context.node.clone(), setup));
        let runtime = Runtime::start(core);
        nodes.insert(key, Arc::downgrade(&runtime));
        runtime
    }
}

/// Runs the pods of one node on an [`Engine`].
///
/// When it is dropped, its tasks end and the containers keep running.
pub struct Runtime {
    core: Arc<Core>,
    _stop: DropGuard,
}

impl Runtime {
    fn start(core: Arc<Core>) -> Arc<Self> {
        let stop = core.stop.clone();
        let follow = adopt::follow(core.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(follow).await });
        Arc::new(Self { core, _stop: stop.drop_guard() })
    }
}

#[async_trait]
impl Provider for Runtime {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.core.engine().capabilities())
    }

    async fn create_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.core.ready().await?;
        let reference = pod.pod_ref();
        if let Some(entry) = self.core.find(&reference.uid) {
            return match entry.view().synthetic {
                true => entry.send(Message::Update(Box::new(pod.clone()))).await,
                false => Ok(()),
            };
        }
        // It becomes the name of a folder.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if reference.uid.is_empty() || !reference.uid.chars().all(plain) {
            return Err(ProviderError::Invalid { field: "metadata.uid".into(), message: "is not a uid".into() });
        }
        self.core.engine().check(pod)?;
        let (accepted, written) = oneshot::channel();
        let machine = Machine::new(Plan::of(&pod.pod), self.core.now());
        let pod = pod.clone();
        let start = Start { pod, machine, inputs: Vec::new(), synthetic: false, accepted: Some(accepted) };
        if !Runner::spawn(&self.core, start) {
            return Ok(());
        }
        written.await.unwrap_or_else(|_| Err(ProviderError::unavailable("the node is being let go")))
    }

    async fn update_pod(&self, pod: &ResolvedPod) -> Result<()> {
        self.core.ready().await?;
        self.core.entry(&pod.pod_ref())?.send(Message::Update(Box::new(pod.clone()))).await
    }

    async fn update_volumes(&self, pod: &ResolvedPod, changed: &[String]) -> Result<()> {
        self.core.ready().await?;
        let message = Message::Volumes(Box::new(pod.clone()), changed.to_vec());
        self.core.entry(&pod.pod_ref())?.send(message).await
    }

    async fn stop_pod(&self, pod: &PodRef, grace: Duration) -> Result<()> {
        self.core.ready().await?;
        self.core.entry(pod)?.send(Message::Stop(grace)).await
    }

    async fn remove_pod(&self, pod: &PodRef) -> Result<()> {
        self.core.ready().await?;
        let Some(entry) = self.core.find(&pod.uid) else { return Ok(()) };
        let (reply, removed) = oneshot::channel();
        if entry.send(Message::Remove(reply)).await.is_err() {
            return Ok(());
        }
        removed.await.unwrap_or_else(|_| Err(ProviderError::unavailable("the node is being let go")))
    }

    async fn get_pod(&self, pod: &PodRef) -> Result<PodObservation> {
        self.core.ready().await?;
        Ok(self.core.entry(pod)?.view().observation)
    }

    async fn list_pods(&self) -> Result<Vec<PodObservation>> {
        self.core.ready().await?;
        Ok(self.core.entries().into_iter().map(|entry| entry.view().observation).collect())
    }

    async fn ping(&self) -> Result<()> {
        self.core.engine().ping().await
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        self.core.engine().describe_node().await
    }

    async fn logs(&self, pod: &PodRef, container: &str, options: &LogOptions) -> Result<LogStream> {
        self.core.ready().await?;
        let found = self.core.entry(pod)?.container(container)?;
        let wanted = if options.previous { found.previous } else { found.current };
        let Some(wanted) = wanted else {
            let what = if options.previous { "previous terminated container" } else { "log of container" };
            return Err(ProviderError::NotFound(format!("{what} {container:?} in pod {pod}")));
        };
        let options = LogOptions { previous: false, ..options.clone() };
        self.core.engine().logs(&wanted, &options).await
    }

    async fn exec(&self, pod: &PodRef, container: &str, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        self.core.ready().await?;
        let container = self.core.entry(pod)?.running(container)?;
        self.core.engine().exec(&container, command, io).await
    }

    async fn attach(&self, pod: &PodRef, container: &str, io: SessionIo) -> Result<ExitStatus> {
        self.core.ready().await?;
        let container = self.core.entry(pod)?.running(container)?;
        self.core.engine().attach(&container, io).await
    }

    async fn port_forward(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        self.core.ready().await?;
        let entry = self.core.entry(pod)?;
        if !entry.view().containers.iter().any(|c| c.alive) {
            return Err(ProviderError::NotFound(format!("running container in pod {pod}")));
        }
        let connect = timeout(Duration::from_secs(30), self.core.engine().connect(pod, port)).await;
        connect.unwrap_or_else(|_| Err(ProviderError::unavailable(format!("no answer from port {port}"))))
    }

    async fn stats(&self) -> Result<NodeUsage> {
        self.core.ready().await?;
        let used = self.core.engine().stats().await?;
        let mut pods: HashMap<Arc<str>, PodUsage> = HashMap::new();
        for ContainerUse { container, usage, logs } in used.containers {
            let Ok(entry) = self.core.entry(&container.pod) else { continue };
            let observation = entry.view().observation;
            let statuses = observation.containers.iter().chain(&observation.init_containers);
            let status = statuses.into_iter().find(|c| *c.name == *container.name);
            let running = status.and_then(|c| c.state.as_ref()?.running.as_ref());
            let start_time = running.and_then(|r| r.started_at.as_ref()).map(|t| t.0);
            let pod = pods.entry(container.pod.uid.clone()).or_insert_with(|| PodUsage {
                pod: container.pod.clone(),
                start_time: observation.start_time,
                containers: Vec::new(),
                network: None,
            });
            pod.containers.push(ContainerUsage { name: container.name.to_string(), start_time, usage, logs });
        }
        for (pod, network) in used.pods {
            if let Some(pod) = pods.get_mut(&pod.uid) {
                pod.network = Some(network);
            }
        }
        let EngineUsage { node, network, filesystem, .. } = used;
        Ok(NodeUsage { node, network, filesystem, pods: pods.into_values().collect() })
    }

    fn probes(&self) -> Vec<ProbeCounts> {
        let of = |entry: &Arc<core::Entry>| entry.probed.counts(&entry.reference);
        self.core.entries().iter().flat_map(of).collect()
    }
}
