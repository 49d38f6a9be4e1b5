//! The engine: a folder and a supervisor for each container.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceRequirements;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cgroup::Cgroups;
use super::client;
use super::files::{self, guard, unavailable};
use super::layout::{self, EXIT, RUN, RUNNING, Run, Running, SANDBOX, SandboxFile};
use super::users::Users;
use super::wire::{Reply, Request};
use super::{logs, proc};
use crate::provider::runtime::limits::Limits;
use crate::provider::runtime::{
    ContainerRef, ContainerSpec, ContainerState, ContainerUse, Engine, EngineEvent, EngineUsage, Exit, Image,
    ListedContainer, ListedSandbox, Listing, PullRequest, Sandbox, SandboxSpec, Signal,
};
use crate::provider::{
    Capabilities, Duplex, ExitStatus, LogOptions, LogStream, NodeDescription, PodFeature, PodFeatures, PodRef,
    ProviderError, Result, SessionIo, Usage,
};

/// How long a supervisor may take to start what it is for.
const START: Duration = Duration::from_secs(30);
/// How long a killed container may take to be gone.
const KILL: Duration = Duration::from_secs(10);
/// How much of a container's id names its group.
const GROUP: usize = 32;
/// Events that a slow reader may lag behind before it has to look anew.
const EVENTS: usize = 1024;

/// What one node's configuration comes to.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The folder of the node's pods.
    pub dir: PathBuf,
    /// What to start supervisors with: this program.
    pub program: PathBuf,
    pub users: Users,
    pub rootfs: BTreeMap<String, PathBuf>,
    pub host_paths: bool,
    pub pod_ip: Option<IpAddr>,
    pub log_bytes: u64,
    pub log_files: u32,
}

pub(super) struct ProcessEngine {
    settings: Settings,
    shared: Arc<Shared>,
    watches: mpsc::Sender<(ContainerRef, client::Connection)>,
    _stop: DropGuard,
}

struct Shared {
    dir: PathBuf,
    events: broadcast::Sender<EngineEvent>,
    /// Containers whose supervisor we hold a connection to.
    watched: Mutex<HashMap<Key, Watched>>,
}

struct Watched {
    container: ContainerRef,
    running: Running,
    /// Processor time at the last look.
    sample: Option<(Instant, u64)>,
}

/// A pod's uid, a container's name, an attempt.
type Key = (Arc<str>, Arc<str>, u32);

fn key(container: &ContainerRef) -> Key {
    (container.pod.uid.clone(), container.name.clone(), container.attempt)
}

fn id(container: &ContainerRef) -> String {
    let name = format!("{}/{}/{}", container.pod.uid, container.name, container.attempt);
    Sha256::digest(name.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

impl Shared {
    fn home(&self, container: &ContainerRef) -> PathBuf {
        let name = container.attempt.to_string();
        self.dir.join(&*container.pod.uid).join("containers").join(&*container.name).join(name)
    }

    /// How a container ended, once its supervisor is gone.
    fn exit(&self, container: &ContainerRef) -> Exit {
        let home = self.home(container);
        let written = layout::read::<Exit>(&home.join(EXIT)).ok().flatten();
        written.unwrap_or_else(|| layout::lost(layout::read(&home.join(RUNNING)).ok().flatten()))
    }
}

/// One task for all containers of a node: tells when a supervisor's connection ends.
async fn watch(shared: Arc<Shared>, mut new: mpsc::Receiver<(ContainerRef, client::Connection)>) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            added = new.recv() => match added {
                Some((container, connection)) => open.push(async move {
                    client::ended(connection).await;
                    container
                }),
                None => return,
            },
            Some(container) = open.next(), if !open.is_empty() => {
                guard(&shared.watched).remove(&key(&container));
                let state = ContainerState::Exited(shared.exit(&container));
                // Fails when nobody listens; who comes later lists first.
                let _ = shared.events.send(EngineEvent::Container { container, state });
            }
        }
    }
}

impl ProcessEngine {
    /// An engine with this configuration. Must be called within a tokio runtime.
    pub fn new(settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            dir: settings.dir.clone(),
            events: broadcast::Sender::new(EVENTS),
            watched: Mutex::default(),
        });
        let (watches, new) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let (task, stopped) = (watch(shared.clone(), new), stop.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(task).await });
        Self { settings, shared, watches, _stop: stop.drop_guard() }
    }

    /// True while the container's supervisor answers; from then on its end is told.
    async fn attend(&self, container: &ContainerRef) -> Result<Option<Running>> {
        let home = self.shared.home(container);
        let known = guard(&self.shared.watched).get(&key(container)).map(|w| w.running);
        if known.is_some() {
            return Ok(known);
        }
        let asked = client::ask(&home, &Request::Watch).await;
        let Some(connection) = asked.map_err(|e| unavailable("asking a supervisor", e))? else { return Ok(None) };
        let running = layout::read::<Running>(&home.join(RUNNING)).map_err(|e| unavailable("reading", e))?;
        let Some(running) = running else {
            return Err(ProviderError::unavailable(format!("{container} is just being started")));
        };
        let watched = Watched { container: container.clone(), running, sample: None };
        let new = guard(&self.shared.watched).insert(key(container), watched).is_none();
        if new && self.watches.send((container.clone(), connection)).await.is_err() {
            return Err(ProviderError::unavailable("the node is being let go"));
        }
        Ok(Some(running))
    }

    async fn kill(&self, container: &ContainerRef) -> Result<()> {
        kill_in(&self.shared.home(container)).await
    }

    fn pids(&self, pod: &PodRef) -> Vec<i32> {
        let watched = guard(&self.shared.watched);
        watched.values().filter(|w| w.container.pod.uid == pod.uid).map(|w| w.running.supervisor.0).collect()
    }

    /// The image's folder, if it is one of ours.
    fn root(&self, image: &str) -> Option<&PathBuf> {
        self.settings.rootfs.get(image)
    }
}

/// What the engine can do, with or without hostPath volumes, and where the kernel may or may not be told of limits.
pub(super) fn capabilities(host_paths: bool, limits: bool) -> Capabilities {
    const OWN: PodFeatures = PodFeatures::of(&[
        PodFeature::Stdin,
        PodFeature::RunAsUser,
        PodFeature::HostNetwork,
        PodFeature::HostPid,
        PodFeature::HostIpc,
        PodFeature::HostPorts,
        PodFeature::FsGroup,
        PodFeature::Hostname,
        PodFeature::HostAliases,
        PodFeature::MemoryEmptyDir,
        PodFeature::EmptyDirSizeLimit,
    ]);
    const LIMITS: [PodFeature; 2] = [PodFeature::ResourceLimits, PodFeature::Resize];
    let host_paths = if host_paths { &[PodFeature::HostPath][..] } else { &[] };
    let limits = if limits { &LIMITS[..] } else { &[] };
    Capabilities::serving_all(OWN.and(PodFeatures::of(host_paths)).and(PodFeatures::of(limits)))
}

/// Kills what runs in a container's folder and waits until it has ended.
pub(super) async fn kill_in(home: &Path) -> Result<()> {
    kill_supervised(home).await?;
    // Its supervisor has removed it, unless that was killed.
    if let Some(group) = layout::read::<Run>(&home.join(RUN)).ok().flatten().and_then(|run| run.group) {
        let _ = tokio::task::spawn_blocking(move || group.remove()).await;
    }
    Ok(())
}

async fn kill_supervised(home: &Path) -> Result<()> {
    let failed = |e| unavailable("killing a container", e);
    if client::ask(home, &Request::Signal(Signal::KILL.into())).await.map_err(failed)?.is_none() {
        return Ok(());
    }
    if let Some(connection) = client::ask(home, &Request::Watch).await.map_err(failed)?
        && timeout(KILL, client::ended(connection)).await.is_err()
    {
        return Err(ProviderError::unavailable("a killed container has not ended yet"));
    }
    Ok(())
}

#[async_trait]
impl Engine for ProcessEngine {
    fn scheme(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.settings.host_paths, Cgroups::of_machine().is_some())
    }

    async fn ping(&self) -> Result<()> {
        let made = tokio::fs::create_dir_all(&self.settings.dir).await;
        made.map_err(|e| unavailable("making the folder of the pods", e))
    }

    async fn describe_node(&self) -> Result<NodeDescription> {
        Ok(files::describe_machine())
    }

    async fn list(&self) -> Result<Listing> {
        let dir = self.settings.dir.clone();
        let found = tokio::task::spawn_blocking(move || files::scan(&dir)).await;
        let found = found.unwrap_or_else(|e| Err(io::Error::other(e)));
        let (sandboxes, runs) = found.map_err(|e| unavailable("looking for pods", e))?;
        let ip = self.address();
        let sandbox = |s: SandboxFile| ListedSandbox {
            pod: s.pod,
            sandbox: Sandbox { ips: vec![ip] },
            created_at: Some(s.created_at),
        };
        let mut listing = Listing { sandboxes: sandboxes.into_iter().map(sandbox).collect(), containers: Vec::new() };
        for (home, run) in runs {
            let mut container = run.container;
            container.id = id(&container);
            let read = |e| unavailable("reading a container's folder", e);
            let state = match layout::read::<Exit>(&home.join(EXIT)).map_err(read)? {
                Some(exit) => ContainerState::Exited(exit),
                None => match self.attend(&container).await? {
                    Some(running) => ContainerState::Running { started_at: running.started_at },
                    None if home.join(RUNNING).exists() => ContainerState::Exited(self.shared.exit(&container)),
                    None => ContainerState::Created,
                },
            };
            let image_id = run.image.clone();
            listing.containers.push(ListedContainer { container, image: run.image, image_id, state });
        }
        Ok(listing)
    }

    fn events(&self) -> BoxStream<'static, EngineEvent> {
        let receiver = self.shared.events.subscribe();
        let next = |mut receiver: broadcast::Receiver<EngineEvent>| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((EngineEvent::Lost, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        };
        stream::unfold(receiver, next).boxed()
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox> {
        let failed = |e| unavailable("making a pod's folder", e);
        let file = spec.dir.join(SANDBOX);
        if !file.exists() {
            files::close_to_others(&spec.dir, self.settings.users.own, &spec.resolved).map_err(failed)?;
            files::write_hosts(&spec.dir, &spec.resolved.pod, self.address()).map_err(failed)?;
            let sandbox = SandboxFile { pod: spec.pod.clone(), created_at: Timestamp::now() };
            layout::write(&file, &sandbox).map_err(failed)?;
        }
        Ok(Sandbox { ips: vec![self.address()] })
    }

    async fn remove_sandbox(&self, pod: &PodRef) -> Result<()> {
        let dir = self.settings.dir.join(&*pod.uid);
        let failed = |e| unavailable("removing a pod", e);
        for home in files::attempts(&dir).map_err(failed)? {
            kill_in(&home).await?;
        }
        match std::fs::remove_file(dir.join(SANDBOX)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn image(&self, image: &str) -> Result<Option<Image>> {
        if let Some(root) = self.root(image)
            && !root.is_dir()
        {
            let message = format!("the rootfs {} of image {image:?} is not a folder", root.display());
            return Err(ProviderError::Rejected { reason: "ErrImagePull".into(), message });
        }
        Ok(Some(Image { id: image.to_owned(), size: None }))
    }

    async fn pull(&self, request: &PullRequest) -> Result<Image> {
        Ok(self.image(&request.image).await?.unwrap_or_default())
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let refuse = |message: &str| ProviderError::Rejected {
            reason: "CreateContainerConfigError".into(),
            message: message.into(),
        };
        let command: Vec<String> = spec.command.iter().chain(&spec.args).cloned().collect();
        if command.is_empty() {
            return Err(refuse("a command must be given: this node runs processes, not images"));
        }
        let uid = self.settings.users.choose(spec.run_as_user)?;
        if uid == 0 && spec.security.run_as_non_root.or(spec.pod_security.run_as_non_root) == Some(true) {
            return Err(refuse("container has runAsNonRoot and would run as root"));
        }
        let home = &spec.dir;
        let new = !home.join(RUN).exists();
        if new {
            let mut run = files::run(&self.settings, spec, command, uid).map_err(|message| refuse(&message))?;
            run.group = Cgroups::of_machine().map(|groups| groups.group(&id(&spec.container)[..GROUP]));
            let made = files::make_home(home, &run, self.settings.users.own);
            made.map_err(|e| unavailable("making a container's folder", e))?;
        }
        Ok(id(&spec.container))
    }

    async fn start(&self, container: &ContainerRef) -> Result<Timestamp> {
        let home = self.shared.home(container);
        let read = |e| unavailable("reading a container's folder", e);
        if let Some(exit) = layout::read::<Exit>(&home.join(EXIT)).map_err(read)? {
            let event = EngineEvent::Container { container: container.clone(), state: ContainerState::Exited(exit) };
            let _ = self.shared.events.send(event);
        } else if self.attend(container).await?.is_none() {
            self.supervise(&home).await?;
            // It may have ended already, which is told like any end.
            if self.attend(container).await?.is_none() {
                let state = ContainerState::Exited(self.shared.exit(container));
                let _ = self.shared.events.send(EngineEvent::Container { container: container.clone(), state });
            }
        }
        let running = layout::read::<Running>(&home.join(RUNNING)).map_err(read)?;
        Ok(running.map_or_else(Timestamp::now, |r| r.started_at))
    }

    async fn signal(&self, container: &ContainerRef, signal: &Signal) -> Result<()> {
        let asked = client::ask(&self.shared.home(container), &Request::Signal(signal.0.clone())).await;
        asked.map(drop).map_err(|e| unavailable("sending a signal", e))
    }

    async fn resize(&self, container: &ContainerRef, resources: &ResourceRequirements) -> Result<()> {
        let refused = |message: String| ProviderError::Rejected { reason: String::new(), message };
        let limits = Limits::of(resources).map_err(refused)?;
        let run = layout::read::<Run>(&self.shared.home(container).join(RUN));
        let run = run.map_err(|e| unavailable("reading a container's folder", e))?;
        let Some(group) = run.and_then(|run| run.group) else {
            return Err(refused("it was started where limits could not be set".into()));
        };
        // The kernel may have to reclaim memory first.
        let set = tokio::task::spawn_blocking(move || group.set(&limits)).await;
        set.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e| refused(e.to_string()))
    }

    async fn remove(&self, container: &ContainerRef) -> Result<()> {
        self.kill(container).await?;
        match tokio::fs::remove_dir_all(self.shared.home(container)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unavailable("removing a container", error)),
            _ => Ok(()),
        }
    }

    async fn logs(&self, container: &ContainerRef, options: &LogOptions) -> Result<LogStream> {
        logs::open(&self.shared.home(container), options).await
    }

    async fn exec(&self, container: &ContainerRef, command: &[String], io: SessionIo) -> Result<ExitStatus> {
        let request = Request::Exec { command: command.to_vec(), stdin: io.stdin.is_some(), tty: io.tty };
        let asked = client::ask(&self.shared.home(container), &request).await;
        match asked.map_err(|e| unavailable("exec", e))? {
            Some(connection) => client::session(connection, io).await,
            None => Err(ProviderError::NotFound(format!("running {container}"))),
        }
    }

    async fn attach(&self, container: &ContainerRef, io: SessionIo) -> Result<ExitStatus> {
        let request = Request::Attach { stdin: io.stdin.is_some() };
        let asked = client::ask(&self.shared.home(container), &request).await;
        match asked.map_err(|e| unavailable("attach", e))? {
            Some(connection) => client::session(connection, io).await,
            None => Err(ProviderError::NotFound(format!("running {container}"))),
        }
    }

    async fn connect(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>> {
        let supervisors = self.pids(pod);
        let look = move || {
            let table = proc::table();
            let all: Vec<i32> = supervisors.iter().flat_map(|pid| proc::family(&table, *pid)).collect();
            proc::listens(&all, port)
        };
        // All pods share the machine's network, so a port is the pod's when one of its processes listens on it.
        if !tokio::task::spawn_blocking(look).await.unwrap_or(false) {
            return Err(ProviderError::NotFound(format!("a process of the pod that listens on port {port}")));
        }
        let mut last = None;
        for ip in [Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into(), self.address()] {
            match TcpStream::connect((ip, port)).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => last = Some(error),
            }
        }
        Err(unavailable("connecting to a port", last.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into())))
    }

    async fn stats(&self) -> Result<EngineUsage> {
        let dir = self.settings.dir.clone();
        let homes: HashMap<Key, PathBuf> = {
            let watched = guard(&self.shared.watched);
            watched.values().map(|w| (key(&w.container), self.shared.home(&w.container))).collect()
        };
        let look = move || {
            let time = Timestamp::now();
            let logs: HashMap<_, _> =
                homes.into_iter().filter_map(|(key, home)| Some((key, proc::logs(&home, time)?))).collect();
            (proc::table(), logs, proc::network(time), proc::filesystem(&dir, time))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (table, mut logs, network, filesystem) = looked.unwrap_or_default();
        let (now, time) = (Instant::now(), Timestamp::now());
        let mut containers = Vec::new();
        for watched in guard(&self.shared.watched).values_mut() {
            let family = proc::family(&table, watched.running.supervisor.0);
            let of: Vec<_> = family.iter().filter_map(|pid| table.get(pid)).collect();
            let ticks: u64 = of.iter().map(|p| p.ticks).sum();
            let nanos = ticks.saturating_mul(1_000_000_000 / proc::TICKS);
            let last = watched.sample.replace((now, ticks));
            let cores = last.filter(|(at, _)| now > *at).map(|(at, before)| {
                let used = ticks.saturating_sub(before) as f64 / proc::TICKS as f64;
                (used / (now - at).as_secs_f64() * 1e9) as u64
            });
            let usage = Usage {
                time,
                cpu_nanos: Some(nanos),
                cpu_nano_cores: cores,
                memory_working_set: Some(of.iter().map(|p| p.pages).sum::<u64>() * proc::page_size()),
            };
            let logs = logs.remove(&key(&watched.container));
            containers.push(ContainerUse { container: watched.container.clone(), usage, logs });
        }
        // Pods have the machine's network, and none of their own.
        Ok(EngineUsage { node: None, network, filesystem, pods: Vec::new(), containers })
    }
}

impl ProcessEngine {
    fn address(&self) -> IpAddr {
        self.settings.pod_ip.unwrap_or_else(files::own_address)
    }

    /// Starts a supervisor and waits until the container's command runs.
    async fn supervise(&self, home: &Path) -> Result<()> {
        let errors = std::fs::File::create(home.join("supervisor.log"));
        let errors = errors.map_err(|e| unavailable("making a supervisor's log", e))?;
        let mut command = tokio::process::Command::new(&self.settings.program);
        command.arg("supervise").arg(home).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(errors));
        let mut child = command.spawn().map_err(|e| unavailable("starting a supervisor", e))?;
        let Some(out) = child.stdout.take() else { return Err(ProviderError::unavailable("no pipe")) };
        let mut line = String::new();
        let mut reader = BufReader::new(out);
        let read = timeout(START, reader.read_line(&mut line)).await;
        // The handle can be let go: tokio waits for children whose handle is gone.
        drop(child);
        match read {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(unavailable("starting a supervisor", error)),
            Err(_) => return Err(ProviderError::unavailable("a supervisor did not answer in time")),
        }
        match serde_json::from_str::<Reply>(&line) {
            Ok(Reply::Done) => Ok(()),
            Ok(Reply::Failed(message)) => {
                // The word for a container that was made and did not start.
                Err(ProviderError::Rejected { reason: String::new(), message })
            }
            Err(_) => Err(ProviderError::unavailable("a supervisor ended before it answered")),
        }
    }
}
