//! The engine of the runtime loop, by the Engine API.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{CreateContainerOptions, KillContainerOptions, StartContainerOptions};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::{Mutex as AsyncMutex, broadcast};
use tokio::time::{Instant, timeout};

use super::body::{self, Around, Sharing};
use super::client::{Client, Failed, Session};
use super::connect::Target;
use super::found::{Found, FoundUsage, Summary, time};
use super::sandbox::Network;
use super::settings::Settings;
use super::volumes::{self, Able};
use super::{archive, events, images, logs, machine, names};
use crate::provider::runtime::{
    ContainerRef, ContainerSpec, ContainerState, ContainerUse, Engine, EngineEvent, EngineUsage, Image,
    ListedContainer, ListedSandbox, Listing, Mount, PullRequest, Sandbox, SandboxSpec, Signal, files,
};
use crate::provider::{
    Capabilities, Duplex, ExitStatus, LogOptions, LogStream, NetworkUsage, NodeDescription, PodFeature, PodFeatures,
    PodRef, ProviderError, Result, SessionIo, Usage, goarch,
};

/// Questions of one node that an engine is asked at a time.
pub(super) const PARALLEL: usize = 8;
/// Ends that a slow reader may lag behind before it has to look anew.
const EVENTS: usize = 256;
const DIAL: Duration = Duration::from_secs(10);

/// What of pods a container engine can do.
const OWN: PodFeatures = PodFeatures::of(&[
    PodFeature::MemoryEmptyDir,
    PodFeature::ResourceLimits,
    PodFeature::Resize,
    PodFeature::Stdin,
    PodFeature::ImagePullSecrets,
    PodFeature::HostNetwork,
    PodFeature::HostPid,
    PodFeature::HostIpc,
    PodFeature::ShareProcessNamespace,
    PodFeature::HostPorts,
    PodFeature::Hostname,
    PodFeature::HostAliases,
    PodFeature::DnsConfig,
    PodFeature::RunAsUser,
    PodFeature::Privileged,
    PodFeature::LinuxCapabilities,
    PodFeature::ReadOnlyRootFilesystem,
    PodFeature::NoPrivilegeEscalation,
    PodFeature::Seccomp,
    PodFeature::AppArmor,
    PodFeature::SeLinux,
    PodFeature::Sysctls,
]);

/// With or without hostPath volumes, and with folders mounted or copied.
pub(super) fn capabilities(host_paths: bool, copy: bool) -> Capabilities {
    // What the loop looks at is only there when folders are mounted, and the engine's own volumes belong to its root.
    const MOUNTED: PodFeatures = PodFeatures::of(&[PodFeature::EmptyDirSizeLimit, PodFeature::FsGroup]);
    let mounted = if copy { PodFeatures::NONE } else { MOUNTED };
    let more = match (host_paths, copy) {
        (true, false) => PodFeatures::of(&[PodFeature::HostPath, PodFeature::MountPropagation]),
        _ => PodFeatures::NONE,
    };
    Capabilities::serving_all(OWN.and(mounted).and(more))
}

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-way under any of these locks.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct DockerEngine(pub Arc<Inner>);

pub(super) struct Inner {
    pub settings: Settings,
    pub client: Client,
    /// Ends that were seen before the engine told of them.
    pub told: broadcast::Sender<EngineEvent>,
    /// How to reach pods, by uid.
    pub networks: Mutex<HashMap<Arc<str>, Network>>,
    /// What is being made for pods, by uid.
    making: Mutex<HashMap<Arc<str>, Weak<AsyncMutex<()>>>>,
    /// Processor time at the last look, by container id.
    samples: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Deref for DockerEngine {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Machine {
    #[serde(rename = "NCPU")]
    cpus: u32,
    mem_total: u64,
    #[serde(rename = "OSType")]
    os: String,
    architecture: String,
    server_version: String,
}

impl Inner {
    pub async fn session(&self) -> Result<Arc<Session>> {
        self.client.session().await.map_err(|e| e.asking("reaching the container engine"))
    }

    pub async fn inspect(&self, name: &str) -> Result<Found, Failed> {
        self.client.get(&format!("/containers/{name}/json")).await
    }

    /// Taken while something is made for a pod.
    fn turn(&self, pod: &PodRef) -> Arc<AsyncMutex<()>> {
        let mut making = guard(&self.making);
        if let Some(turn) = making.get(&pod.uid).and_then(Weak::upgrade) {
            return turn;
        }
        making.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::<AsyncMutex<()>>::default();
        making.insert(pod.uid.clone(), Arc::downgrade(&turn));
        turn
    }

    pub fn is_local(&self) -> bool {
        matches!(self.settings.target, Target::Unix(_))
    }
}

impl DockerEngine {
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            client: Client::new(settings.target.clone()),
            settings,
            told: broadcast::Sender::new(EVENTS),
            networks: Mutex::default(),
            making: Mutex::default(),
            samples: Mutex::default(),
        }))
    }

    /// Removes everything of this node.
    pub async fn remove_all(&self) -> Result<()> {
        self.remove_labelled(&[(names::NODE, &self.settings.node)]).await
    }

    pub(super) async fn found(&self, container: &ContainerRef) -> Result<Found> {
        let found = self.inspect(&names::container(container)).await;
        found.map_err(|e| e.asking(&container.to_string()))
    }

    /// As whom the container runs, in the engine's words, checked as kubelet does.
    async fn user(&self, spec: &ContainerSpec) -> Result<Option<String>> {
        let non_root = spec.security.run_as_non_root.or(spec.pod_security.run_as_non_root) == Some(true);
        let group = spec.run_as_group.map(|g| format!(":{g}")).unwrap_or_default();
        if let Some(user) = spec.run_as_user {
            return Ok(Some(format!("{user}{group}")));
        }
        if !non_root && group.is_empty() {
            return Ok(None);
        }
        let image = images::find(&self.client, &spec.image).await?.unwrap_or_default();
        let user = image.config.user.split(':').next().unwrap_or_default().to_owned();
        if non_root {
            let refuse =
                |message: String| Err(ProviderError::Rejected { reason: "CreateContainerConfigError".into(), message });
            match user.parse::<u32>() {
                Ok(0) => return refuse("container has runAsNonRoot and image will run as root".into()),
                Ok(_) => {}
                Err(_) if user.is_empty() => {
                    return refuse("container has runAsNonRoot and image will run as root".into());
                }
                Err(_) => {
                    return refuse(format!(
                        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is \
                         non-root"
                    ));
                }
            }
        }
        let user = if user.is_empty() { "0".to_owned() } else { user };
        Ok((!group.is_empty()).then(|| format!("{user}{group}")))
    }

    /// The container whose processes another one is to see, as it runs now.
    async fn target(&self, spec: &ContainerSpec, sharing: Sharing) -> Result<Option<String>> {
        let Some(name) = spec.target.as_deref().filter(|_| !sharing.pid && !sharing.host_pid) else { return Ok(None) };
        let uid: &str = &spec.container.pod.uid;
        let labels = [(names::NODE, &*self.settings.node), (names::UID, uid), (names::CONTAINER, name)];
        let filter = names::filter(&labels, &[("status", "running")]);
        let running: Vec<Summary> = self
            .client
            .get(&format!("/containers/json?{filter}"))
            .await
            .map_err(|e| e.asking("looking for a target"))?;
        // kubelet: `getTargetID`.
        let missing = || ProviderError::Rejected {
            reason: "CreateContainerConfigError".into(),
            message: format!("unable to find target container {name:?}"),
        };
        running.into_iter().next().map(|found| Some(found.id)).ok_or_else(missing)
    }

    /// Does something for a pod to its end, even when nobody waits for it any more: what an engine has begun to make
    /// appears sooner or later, and whoever removes the pod must find it.
    async fn to_its_end<T: Send + 'static>(
        &self,
        pod: &PodRef,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turn(pod).lock_owned().await;
        let work = tokio::spawn(async move {
            let done = work.await;
            drop(turn);
            done
        });
        // Fails only when this process ends.
        work.await.unwrap_or_else(|e| Err(ProviderError::unavailable(e.to_string())))
    }

    /// Makes a container, or finds it.
    async fn make(&self, spec: &ContainerSpec) -> Result<String> {
        let session = self.session().await?;
        let name = names::container(&spec.container);
        let sandbox = self.joined(&spec.container.pod).await?;
        let label = |key: &str| sandbox.config.labels.get(key).map(String::as_str).unwrap_or_default();
        let shared: Vec<&str> = label(names::SANDBOX).split(',').filter(|v| !v.is_empty()).collect();
        let able = Able { copy: self.settings.copy, podman: session.podman, minor: session.minor };
        let sharing = Sharing::read(label(names::SHARING));
        let mut places = volumes::places(spec, &shared, able)?;
        if !self.settings.copy {
            // Whoever the container runs as.
            use std::os::unix::fs::PermissionsExt as _;
            let open = std::fs::Permissions::from_mode(0o666);
            let opened = tokio::fs::set_permissions(&spec.termination_message_file, open).await;
            opened.map_err(|e| files::failed("opening", &spec.termination_message_file, e))?;
            if !sharing.host_network {
                let file = spec.dir.join("hosts");
                tokio::fs::write(&file, &spec.hosts).await.map_err(|e| files::failed("writing", &file, e))?;
                places.add_hosts(&file)?;
            }
        }
        let target = self.target(spec, sharing).await?;
        let around = Around {
            settings: &self.settings,
            podman: session.podman,
            sharing,
            target: target.as_deref(),
            places: &places.mounted,
            user: self.user(spec).await?,
        };
        let body = body::container(spec, &around)?;
        let options = CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
        let id = match session.docker.create_container(Some(options), body).await.map_err(Failed::from) {
            Ok(made) => made.id,
            // Another call that was given up may have made it.
            Err(error) => match self.inspect(&name).await {
                Ok(found) => found.id,
                Err(_) => return Err(error.doing("")),
            },
        };
        for (source, target) in &places.copied {
            self.upload(&session, &name, source, target).await?;
        }
        Ok(id)
    }

    async fn usage(&self, summary: Summary) -> Option<Used> {
        let container = names::container_of(&summary.labels, &summary.id);
        // The network is that of the container which holds it, whatever runs in the pod.
        let holder = body::holds_network_of(&summary.labels);
        if container.is_none() && holder.is_none() {
            return None;
        }
        let path = format!("/containers/{}/stats?stream=false&one-shot=true", summary.id);
        let found: FoundUsage = self.client.get(&path).await.ok()?;
        let (now, time) = (Instant::now(), Timestamp::now());
        if let Some(pod) = holder {
            return found.network(time).map(|network| Used::Network(pod, network));
        }
        let container = container?;
        let nanos = found.cpu_stats.cpu_usage.total_usage;
        let last = guard(&self.samples).insert(summary.id, (now, nanos));
        let cores = last
            .filter(|(at, _)| now > *at)
            .map(|(at, before)| (nanos.saturating_sub(before) as f64 / (now - at).as_secs_f64()) as u64);
        let usage = Usage {
            time,
            cpu_nanos: Some(nanos),
            cpu_nano_cores: cores,
            memory_working_set: found.memory_stats.working_set(),
        };
        Some(Used::Container(ContainerUse { container, usage, logs: None }))
    }
}

/// What one container of the engine tells of.
enum Used {
    Container(ContainerUse),
    Network(PodRef, NetworkUsage),
}

#[async_trait]
impl Engine for DockerEngine {
    fn scheme(&self) -> &'static str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.settings.host_paths, self.settings.copy)
    }

    async fn ping(&self) -> Result<()> {
        let pong = self.client.bytes("/_ping", 1024).await;
        pong.map(drop).map_err(|e| match e.asking("reaching the container engine") {
            ProviderError::NotFound(message) => ProviderError::unavailable(message),
            other => other,
        })
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        let machine: Machine = self.client.get("/info").await.map_err(|e| e.asking("asking for the machine"))?;
        let architecture = goarch(&machine.architecture);
        let mut capacity = BTreeMap::new();
        for (name, amount) in [("cpu", u64::from(machine.cpus)), ("memory", machine.mem_total)] {
            if amount > 0 {
                capacity.insert(name.to_owned(), Quantity(amount.to_string()));
            }
        }
        let named = |text: String| Some(text).filter(|t| !t.is_empty());
        let kind = if self.session().await?.podman { "podman" } else { "docker" };
        Ok(NodeDescription {
            capacity,
            operating_system: named(machine.os),
            architecture: named(architecture.to_owned()),
            version: named(machine.server_version).map(|v| format!("{kind}-{v}")),
            ..NodeDescription::default()
        })
    }

    async fn list(&self) -> Result<Listing> {
        let filter = names::filter(&[(names::NODE, &self.settings.node)], &[]);
        let all: Vec<Summary> = self
            .client
            .get(&format!("/containers/json?all=true&{filter}"))
            .await
            .map_err(|e| e.asking("listing containers"))?;
        let looks = all.into_iter().map(|summary| async move {
            match self.inspect(&summary.id).await {
                Ok(found) => Ok(Some(found)),
                // Removed since.
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error.asking("listing containers")),
            }
        });
        let all: Vec<Option<Found>> = stream::iter(looks).buffer_unordered(PARALLEL).try_collect().await?;
        let mut listing = Listing::default();
        for found in all.into_iter().flatten() {
            let labels = &found.config.labels;
            let state = found.state.of_container();
            if labels.contains_key(names::SANDBOX) {
                // One that was never started may lack files, and is made ready when it is asked for.
                if let (Some(pod), false) = (names::pod(labels), state == ContainerState::Created) {
                    let sandbox = Sandbox { ips: self.sandbox_ips(&found).await? };
                    listing.sandboxes.push(ListedSandbox { pod, sandbox, created_at: time(&found.created) });
                }
            } else if let Some(container) = names::container_of(labels, &found.id) {
                let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
                let (image, image_id) = (text(names::IMAGE), text(names::IMAGE_ID));
                listing.containers.push(ListedContainer { container, image, image_id, state });
            }
        }
        Ok(listing)
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        events::events(self.0.clone())
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        let (engine, spec) = (Self(self.0.clone()), spec.clone());
        let ips = self.to_its_end(&spec.pod.clone(), async move { engine.make_sandbox(&spec).await }).await?;
        Ok(Sandbox { ips })
    }

    async fn remove_sandbox(&self, pod: &PodRef) -> Result<()> {
        let turn = self.turn(pod);
        let _all_is_made = turn.lock().await;
        guard(&self.networks).remove(&pod.uid);
        self.remove_labelled(&[(names::NODE, &self.settings.node), (names::UID, &pod.uid)]).await
    }

    async fn image(&self, image: &str) -> Result<Option<Image>> {
        Ok(images::find(&self.client, image).await?.map(images::describe))
    }

    async fn pull(&self, request: &PullRequest) -> Result<Image> {
        images::pull(&self.client, &request.image, &request.pod).await.map(images::describe)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let (engine, spec) = (Self(self.0.clone()), spec.clone());
        self.to_its_end(&spec.container.pod.clone(), async move { engine.make(&spec).await }).await
    }

    async fn start(&self, container: &ContainerRef) -> Result<Timestamp> {
        let name = names::container(container);
        let mut found = self.found(container).await?;
        if found.state.of_container() == ContainerState::Created {
            let session = self.session().await?;
            let started = session.docker.start_container(&name, None::<StartContainerOptions>).await;
            found = match (started.map_err(Failed::from), self.found(container).await?) {
                (Ok(()), found) => found,
                (Err(error), found) if found.state.of_container() == ContainerState::Created => {
                    return Err(error.doing(""));
                }
                (Err(_), found) => found,
            };
        }
        if let (Some(event), ContainerState::Exited(_)) = (events::state_of(&found), found.state.of_container()) {
            // Fails when nobody listens; who comes later lists first.
            let _ = self.told.send(event);
        }
        Ok(time(&found.state.started_at).unwrap_or_else(Timestamp::now))
    }

    async fn signal(&self, container: &ContainerRef, signal: &Signal) -> Result<()> {
        let session = self.session().await?;
        let signal = signal.number().map_or_else(|| format!("SIG{}", signal.0), |n| n.to_string());
        let (name, options) = (names::container(container), KillContainerOptions { signal });
        let sent = session.docker.kill_container(&name, Some(options)).await;
        let Err(error) = sent.map_err(Failed::from) else { return Ok(()) };
        match self.found(container).await {
            Ok(found) if found.state.running => Err(error.asking("sending a signal")),
            Ok(_) | Err(ProviderError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn resize(&self, container: &ContainerRef, resources: &ResourceRequirements) -> Result<()> {
        let (session, name) = (self.session().await?, names::container(container));
        let changed = if session.podman {
            let body = body::changed_limits_of_podman(resources)?;
            self.client.post_to_podman(&format!("/containers/{name}/update"), &body).await
        } else {
            let body = body::changed_limits(resources)?;
            session.docker.update_container(&name, body).await.map_err(Failed::from)
        };
        changed.map_err(|e| e.doing(""))
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        guard(&self.samples).remove(&container.id);
        self.kill_and_remove(names::container(container)).await
    }

    async fn refresh(&self, container: &ContainerRef, mount: &Mount) -> Result<()> {
        if !self.settings.copy {
            return Ok(());
        }
        let session = self.session().await?;
        // The volume is the engine's and shared: what is copied through the one is seen by all.
        let name = names::sandbox(&container.pod);
        self.upload(&session, &name, &mount.source, &names::volume_path(&mount.volume)).await
    }

    async fn termination_message(&self, container: &ContainerRef, file: &std::path::Path) -> Result<Bytes> {
        if !self.settings.copy {
            return files::read_at_most(file, files::MESSAGE_LIMIT).await;
        }
        let name = names::container(container);
        let found = self.found(container).await?;
        let Some(path) = found.config.labels.get(names::MESSAGE_PATH) else { return Ok(Bytes::new()) };
        let path = format!("/containers/{name}/archive?path={}", names::encode(path));
        match self.client.bytes(&path, 1 << 20).await {
            Ok(archive) => Ok(archive::first_file(&archive, files::MESSAGE_LIMIT).unwrap_or_default()),
            Err(error) if error.is_not_found() => Ok(Bytes::new()),
            Err(error) => Err(error.asking("reading a termination message")),
        }
    }

    async fn logs(&self, container: &ContainerRef, options: &LogOptions) -> Result<LogStream> {
        let session = self.session().await?;
        Ok(logs::open(&session, &names::container(container), options))
    }

    async fn exec(&self, container: &ContainerRef, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        self.run(container, command, io).await
    }

    async fn attach(&self, container: &ContainerRef, io: SessionIo) -> Result<ExitStatus> {
        self.join(container, io).await
    }

    async fn connect(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        let network = self.network(pod).await?;
        let refused = || ProviderError::NotFound(format!("a process of the pod that listens on port {port}"));
        if self.is_local() && !network.host {
            match machine::connect(network.pid, &network.id, &network.ips, port).await {
                Some(Ok(stream)) => return Ok(Box::new(stream)),
                Some(Err(_)) => return Err(refused()),
                // Not to be entered from here, or another process has the number now.
                None => drop(guard(&self.networks).remove(&pod.uid)),
            }
        }
        let mut last = String::from("it has no address");
        let local = (self.is_local() && network.host).then_some(IpAddr::from([127, 0, 0, 1]));
        for ip in network.ips.iter().copied().chain(local) {
            match timeout(DIAL, TcpStream::connect((ip, port))).await {
                Ok(Ok(stream)) => return Ok(Box::new(stream)),
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Err(refused()),
                Ok(Err(error)) => last = format!("{ip}: {error}"),
                Err(_) => last = format!("{ip} does not answer"),
            }
        }
        Err(ProviderError::unavailable(format!(
            "the pod's network cannot be reached from the operator ({last}); pods need a network that is routed from \
             there, or hostNetwork"
        )))
    }

    async fn stats(&self) -> Result<EngineUsage> {
        let filter = names::filter(&[(names::NODE, &self.settings.node)], &[("status", "running")]);
        let running: Vec<Summary> =
            self.client.get(&format!("/containers/json?{filter}")).await.map_err(|e| e.asking("listing containers"))?;
        let looks = running.into_iter().map(|summary| self.usage(summary));
        let mut looks = stream::iter(looks).buffer_unordered(PARALLEL).filter_map(std::future::ready);
        let mut used = EngineUsage::default();
        while let Some(of) = looks.next().await {
            match of {
                Used::Container(container) => used.containers.push(container),
                Used::Network(pod, network) => used.pods.push((pod, network)),
            }
        }
        Ok(used)
    }
}
