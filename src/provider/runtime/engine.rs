//! What starts and stops containers: the one interface between the runtime loop and a container engine.
//!
//! An engine is told exactly what to do and keeps no policy: restarts, probes, hooks, ordering, deadlines
//! and volumes are the loop's. It keeps two kinds of things, both under the mark of its node, so that they
//! are found again after a restart: **sandboxes**, one for each pod (what its containers share: a network
//! namespace, a folder), and **containers**, one for each attempt to run a container of a pod.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodSecurityContext, ResourceRequirements, SecurityContext};
use serde::{Deserialize, Serialize};

use crate::provider::{
    Capabilities, Duplex, EnvVar, ExitStatus, FilesystemUsage, LogOptions, LogStream, NetworkUsage, NodeDescription,
    PodRef, ResolvedPod, Result, SessionIo, Usage,
};

/// Starts and stops containers.
///
/// All calls are idempotent and cancel-safe: the loop drops a call at its deadline and asks again. What an
/// error lets the loop conclude is that of [`ProviderError`](crate::provider::ProviderError):
///
/// * `Rejected` and `Invalid` are answers: the step failed. A non-empty `reason` of `Rejected` is shown to
///   users in place of the step's own (`ErrImagePull`, `CreateContainerError`, `RunContainerError`).
/// * `NotFound`: there is no such sandbox or container.
/// * `Unavailable`: nothing is known; it is asked again, and no pod changes because of it.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Before `://` in container IDs.
    fn scheme(&self) -> &'static str;

    /// Which of logs, exec, attach, port-forward and stats work. The rest is the loop's to say.
    fn capabilities(&self) -> Capabilities;

    /// Refuses a pod that this engine can never run, before anything is made for it.
    fn check(&self, _pod: &ResolvedPod) -> Result<()> {
        Ok(())
    }

    /// Succeeds when the engine can be reached and would accept work.
    async fn ping(&self) -> Result<()>;

    /// What the machine behind the engine looks like.
    async fn describe_node(&self) -> Result<NodeDescription>;

    /// Everything that carries this node's mark, ended containers included. Fails rather than answer in part.
    async fn list(&self) -> Result<Listing>;

    /// What happens to containers from now on. The stream's end, or [`EngineEvent::Lost`], makes the loop
    /// list everything and subscribe anew; so an engine may report what it likes in between.
    fn events(&self) -> BoxStream<'static, EngineEvent>;

    /// Makes what the pod's containers share, or finds it. Returns the pod's addresses, the primary one first.
    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox>;

    /// Removes a pod's sandbox, killing and removing what is left in it. Succeeds when there is none.
    async fn remove_sandbox(&self, pod: &PodRef) -> Result<()>;

    /// The image, if it is there and need not be pulled.
    async fn image(&self, image: &str) -> Result<Option<Image>>;

    /// Pulls an image. `Rejected` when the registry refuses, or does not have it.
    async fn pull(&self, request: &PullRequest) -> Result<Image>;

    /// Makes a container, or finds the one of the same pod, name and attempt. Returns the engine's id for it.
    async fn create(&self, spec: &ContainerSpec) -> Result<String>;

    /// Starts a container that was created; succeeds when it runs or has run. Returns when it started.
    async fn start(&self, container: &ContainerRef) -> Result<Timestamp>;

    /// Sends a signal to a container's main process, and with [`Signal::KILL`] to all its processes.
    /// Succeeds when it has ended already.
    async fn signal(&self, container: &ContainerRef, signal: &Signal) -> Result<()>;

    /// Gives a running container other resources, without ending it. `Rejected` when it cannot have them. Only asked
    /// for where [`PodFeature::Resize`](crate::provider::PodFeature::Resize) is declared.
    async fn resize(&self, _container: &ContainerRef, _resources: &ResourceRequirements) -> Result<()> {
        Ok(())
    }

    /// Removes a container and its log, killing it if it runs. Succeeds when there is none.
    async fn remove(&self, container: &ContainerRef) -> Result<()>;

    /// The files of a generated volume have changed. For engines that copy; mounted folders need nothing.
    async fn refresh(&self, _container: &ContainerRef, _mount: &Mount) -> Result<()> {
        Ok(())
    }

    /// What a container wrote to its termination message path: at most 4096 bytes. The default reads the file
    /// that the loop had made for it on this machine.
    async fn termination_message(&self, _container: &ContainerRef, file: &std::path::Path) -> Result<Bytes> {
        super::files::read_at_most(file, super::files::MESSAGE_LIMIT).await
    }

    /// The log lines of a container, running or not. `previous` has been dealt with: `container` is the one.
    async fn logs(&self, container: &ContainerRef, options: &LogOptions) -> Result<LogStream>;

    /// Runs a command in a running container and returns when it has ended and its output is written. When
    /// the future is dropped, the command is killed. For users, probes and hooks alike.
    async fn exec(&self, container: &ContainerRef, command: &[String], io: SessionIo) -> Result<ExitStatus>;

    /// Joins the main process of a container; returns when the process or the client ends.
    async fn attach(&self, container: &ContainerRef, io: SessionIo) -> Result<ExitStatus>;

    /// Connects to a port inside the pod, for port-forward and probes.
    async fn connect(&self, pod: &PodRef, port: u16) -> Result<Box<dyn Duplex>>;

    /// What each running container uses at this moment, and the machine as a whole if that is known.
    async fn stats(&self) -> Result<EngineUsage>;
}

/// Names one attempt to run a container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerRef {
    /// The pod.
    #[serde(with = "super::record::pod_ref")]
    pub pod: PodRef,
    /// The container's name in the pod.
    pub name: Arc<str>,
    /// 0 for the first run, then one more for each restart.
    pub attempt: u32,
    /// The engine's id, empty until the container is created.
    pub id: String,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {:?} of pod {}", self.name, self.pod)
    }
}

/// What to make for a pod.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Which pod, to be kept with the sandbox.
    pub pod: PodRef,
    /// The pod as it was given, for what is not spelled out here: hostNetwork, hostAliases, dnsConfig, ports.
    pub resolved: ResolvedPod,
    /// The name of the machine that the containers should see.
    pub hostname: String,
    /// A folder of this machine for the pod's files, which the loop makes and removes.
    pub dir: PathBuf,
}

/// What the containers of a pod share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// An image to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The image as the pod names it.
    pub image: String,
    /// The pod that needs it, with its pull secrets as far as they are resolved.
    pub pod: ResolvedPod,
}

/// An image that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// What `status.imageID` shows: a digest, best with the repository before it.
    pub id: String,
    /// Its size, if it is known.
    pub size: Option<u64>,
}

/// A container to make, with everything decided.
#[derive(Clone)]
pub struct ContainerSpec {
    /// Pod, name and attempt; the id is empty.
    pub container: ContainerRef,
    /// To be kept with the container, for people and for other programs.
    pub labels: BTreeMap<String, String>,
    /// The image as the pod names it.
    pub image: String,
    /// What [`Engine::image`] or [`Engine::pull`] said of it.
    pub image_id: String,
    /// Replaces the image's entry point; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty keeps them unless `command` is set.
    pub args: Vec<String>,
    /// In order, each name once.
    pub env: Vec<EnvVar>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// What is to be seen at which path.
    pub mounts: Vec<Mount>,
    /// `targetContainerName` of an ephemeral container: the container whose processes it is to see.
    pub target: Option<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Keep its standard input open for attach.
    pub stdin: bool,
    /// Close the standard input when the first attach session ends.
    pub stdin_once: bool,
    /// The container's own security context.
    pub security: SecurityContext,
    /// The pod's.
    pub pod_security: PodSecurityContext,
    /// User, with the pod's value where the container has none.
    pub run_as_user: Option<i64>,
    /// Group, with the pod's value where the container has none.
    pub run_as_group: Option<i64>,
    /// Requests and limits.
    pub resources: ResourceRequirements,
    /// The signal that asks the main process to end, for images' metadata; the loop sends it by itself.
    pub stop_signal: Option<Signal>,
    /// Where the container writes its last words: `terminationMessagePath`.
    pub termination_message_path: String,
    /// The empty file on this machine that belongs there; it may be bind-mounted.
    pub termination_message_file: PathBuf,
    /// The machine's name, as in [`SandboxSpec::hostname`].
    pub hostname: String,
    /// The pod's `/etc/hosts`, for engines that give containers a file of their own.
    pub hosts: String,
    /// A folder of this machine for this container's files, which the loop makes and removes.
    pub dir: PathBuf,
}

impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments can hold expanded secrets.
        f.debug_struct("ContainerSpec")
            .field("container", &self.container)
            .field("image", &self.image)
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
}

/// A folder or file of this machine to be seen inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// What to show, absolute; `subPath` is applied and proved to lie inside the volume.
    pub source: PathBuf,
    /// Where to show it: `mountPath`.
    pub target: String,
    /// The container may not write to it.
    pub read_only: bool,
    /// Its files change while the container runs (a whole configMap, secret, downwardAPI or projected volume),
    /// so an engine that copies files copies them again when it is told to [`refresh`](Engine::refresh).
    pub generated: bool,
    /// `mountPropagation` as the pod has it.
    pub propagation: Option<String>,
}

/// A signal by its name without `SIG`: `TERM`, `USR1`, `RTMIN+3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signal(pub String);

impl Signal {
    /// The name of the signal that cannot be caught.
    pub const KILL: &'static str = "KILL";

    /// The polite request to end.
    pub fn term() -> Self {
        Self("TERM".into())
    }

    /// The end.
    pub fn kill() -> Self {
        Self(Self::KILL.into())
    }

    /// From `lifecycle.stopSignal`, as in `SIGUSR1`.
    pub fn named(name: &str) -> Self {
        Self(name.strip_prefix("SIG").unwrap_or(name).to_owned())
    }

    /// True for the signal that cannot be caught.
    pub fn is_kill(&self) -> bool {
        self.0 == Self::KILL
    }

    /// Its number on Linux, which most architectures share.
    pub fn number(&self) -> Option<i32> {
        const NAMES: [&str; 31] = [
            "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
            "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
            "WINCH", "IO", "PWR", "SYS",
        ];
        const RT: (i32, i32) = (34, 64);
        let real_time = |text: &str, base: i32| match text {
            "" => Some(base),
            offset => offset.parse::<i32>().ok().map(|n| base + n).filter(|n| (RT.0..=RT.1).contains(n)),
        };
        if let Some(rest) = self.0.strip_prefix("RTMIN") {
            return real_time(rest, RT.0);
        }
        if let Some(rest) = self.0.strip_prefix("RTMAX") {
            return real_time(rest, RT.1);
        }
        let at = NAMES.iter().position(|n| *n == self.0)?;
        i32::try_from(at + 1).ok()
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + n when ended by signal n.
    pub code: i32,
    /// The signal, if one ended it and the engine knows.
    pub signal: Option<i32>,
    /// When its main process began; `None` when it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The kernel ended it for want of memory.
    pub oom_killed: bool,
    /// A word for `terminated.reason` in place of Completed and Error, such as `StartError`.
    pub reason: Option<String>,
    /// What the engine has to say about it.
    pub message: Option<String>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made but not started.
    Created,
    /// Its main process runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Its main process has ended.
    Exited(Exit),
}

/// Something happened at the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// A container is now in this state.
    Container {
        /// Which one.
        container: ContainerRef,
        /// Its state.
        state: ContainerState,
    },
    /// What a pod's containers share is not as it was.
    Sandbox {
        /// Whose it is.
        pod: PodRef,
        /// As it is now; `None` when there is none and one has to be made.
        sandbox: Option<Sandbox>,
    },
    /// Events may have been missed.
    Lost,
}

/// Everything of one node that an engine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// One for each pod.
    pub sandboxes: Vec<ListedSandbox>,
    /// All attempts that have not been removed.
    pub containers: Vec<ListedContainer>,
}

/// A sandbox that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSandbox {
    /// Whose it is.
    pub pod: PodRef,
    /// Its addresses.
    pub sandbox: Sandbox,
    /// When it was made.
    pub created_at: Option<Timestamp>,
}

/// A container that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// Which one.
    pub container: ContainerRef,
    /// The image as the pod named it.
    pub image: String,
    /// As in [`Image::id`].
    pub image_id: String,
    /// Where it is in its life.
    pub state: ContainerState,
}

/// What an engine's containers use. What is not known is left out, never zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineUsage {
    /// The machine as a whole.
    pub node: Option<Usage>,
    /// The machine's network.
    pub network: Option<NetworkUsage>,
    /// The filesystem that pods' files are on.
    pub filesystem: Option<FilesystemUsage>,
    /// Pods with a network of their own.
    pub pods: Vec<(PodRef, NetworkUsage)>,
    /// Each running container.
    pub containers: Vec<ContainerUse>,
}

/// What one container uses.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerUse {
    /// Which container.
    pub container: ContainerRef,
    /// Processor and memory.
    pub usage: Usage,
    /// What its logs take.
    pub logs: Option<FilesystemUsage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_linux_numbers() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("SIGKILL", Some(9)),
            ("SIGHUP", Some(1)),
            ("USR1", Some(10)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMAX+1", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(Signal::named(name).number(), number, "{name}");
        }
    }
}
