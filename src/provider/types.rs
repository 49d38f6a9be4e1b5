//! What travels between an agent and its provider.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, NodeAddress, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::error::Result;
#[allow(unused_imports, reason = "rustdoc links to it")]
use super::features::PodFeature;
use super::features::PodFeatures;
use super::volumes::{PullCredentials, ResolvedMount, ResolvedVolume};

/// Names one pod for good: two pods of the same name differ in their uid.
///
/// The uid is the identity at the provider; namespace and name are for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
    /// `metadata.uid`
    pub uid: Arc<str>,
}

impl PodRef {
    /// The reference of a pod that came from the API server.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let text = |v: &Option<String>| Arc::from(v.as_deref().unwrap_or_default());
        Self { namespace: text(&meta.namespace), name: text(&meta.name), uid: text(&meta.uid) }
    }
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod as a provider receives it: everything that needs the API server is already resolved.
#[derive(Clone, Debug, Default)]
pub struct ResolvedPod {
    /// The pod as the API server has it, without `managedFields`.
    pub pod: Arc<Pod>,
    /// Environment, command and arguments of each container by name, init and ephemeral containers included.
    pub containers: BTreeMap<String, ResolvedContainer>,
    /// The pod's volumes by name. Without content when the provider's
    /// [`volume_files`](Capabilities::volume_files) say that it has no use for it.
    pub volumes: BTreeMap<String, ResolvedVolume>,
    /// Containers that are not in [`containers`](Self::containers) yet, since something that they name is missing, and
    /// what that is. Only for providers that say [`starts_apart`](Capabilities::starts_apart); the others get the pod
    /// when all is there.
    pub unresolved: BTreeMap<String, String>,
    /// Credentials from `imagePullSecrets`. See [`credentials_for`](Self::credentials_for).
    pub pull_secrets: Vec<PullCredentials>,
}

impl ResolvedPod {
    /// The pod's identity.
    pub fn pod_ref(&self) -> PodRef {
        PodRef::of(&self.pod)
    }

    /// `spec.securityContext.fsGroup`: the group that owns the files of the pod's volumes.
    pub fn fs_group(&self) -> Option<i64> {
        self.pod.spec.as_ref()?.security_context.as_ref()?.fs_group
    }

    /// The credentials to try for an image, the most specific first.
    pub fn credentials_for(&self, image: &str) -> Vec<&PullCredentials> {
        let mut found: Vec<_> = self.pull_secrets.iter().filter(|c| c.matches(image)).collect();
        // Stable, so that of the same registry's the first one named is tried first.
        found.sort_by_key(|c| std::cmp::Reverse(c.registry.len()));
        found
    }
}

/// What a container needs resolved before it can start. Its Debug output shows no command, which may have a
/// secret in it.
#[derive(Clone, Default)]
pub struct ResolvedContainer {
    /// In the order in which Kubernetes sets them; a later entry of a name has replaced an earlier one.
    pub env: Vec<EnvVar>,
    /// `command` with `$(VAR)` expanded.
    pub command: Vec<String>,
    /// `args` with `$(VAR)` expanded.
    pub args: Vec<String>,
    /// `volumeMounts` with `subPathExpr` expanded.
    pub mounts: Vec<ResolvedMount>,
    /// Some of the above wants the pod's own address, which is not known yet: call
    /// [`with_pod_ips`](Self::with_pod_ips) before the container starts. Only for providers that declare
    /// [`PodIpInEnvironment`](PodFeature::PodIpInEnvironment).
    pub wants_pod_ips: bool,
}

/// Stand for the pod's addresses until they are known. Not a character of any variable: C ends strings there.
const POD_IP: &str = "\0podIP\0";
const POD_IPS: &str = "\0podIPs\0";

impl ResolvedContainer {
    /// Stands for the pod's first address (`status.podIP`) in a value that is completed later.
    pub(crate) fn pod_ip_mark() -> &'static str {
        POD_IP
    }

    /// Stands for all addresses of the pod (`status.podIPs`) in a value that is completed later.
    pub(crate) fn pod_ips_mark() -> &'static str {
        POD_IPS
    }

    /// This container with the pod's addresses, the primary one first, where it asked for them.
    pub fn with_pod_ips(&self, ips: &[IpAddr]) -> Self {
        let mut new = self.clone();
        if !std::mem::take(&mut new.wants_pod_ips) {
            return new;
        }
        let first = ips.first().map(IpAddr::to_string).unwrap_or_default();
        let all = ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        let values = new.env.iter_mut().map(|v| &mut v.value).chain(&mut new.command).chain(&mut new.args);
        for text in values.chain(new.mounts.iter_mut().filter_map(|m| m.sub_path.as_mut())) {
            if text.contains('\0') {
                *text = text.replace(POD_IPS, &all).replace(POD_IP, &first);
            }
        }
        new
    }
}

impl fmt::Debug for ResolvedContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mounts: Vec<_> = self.mounts.iter().map(|m| &m.path).collect();
        f.debug_struct("ResolvedContainer").field("env", &self.env).field("mounts", &mounts).finish_non_exhaustive()
    }
}

/// One resolved environment variable.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// The variable's name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// True when any part of the value came from a Secret, so that a service's secure values can hold it.
    pub secret: bool,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.secret { "<secret>" } else { &self.value };
        write!(f, "{}={value:?}", self.name)
    }
}

/// What a provider knows of one pod. The phase and the conditions are computed from it by the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct PodObservation {
    /// Which pod this is, from the mark that the provider keeps with it.
    pub pod: PodRef,
    /// When the provider accepted the pod.
    pub start_time: Option<Timestamp>,
    /// The pod's addresses, the primary one first; empty while unknown.
    pub pod_ips: Vec<IpAddr>,
    /// The host's address as pods on it should see it; the node's own when `None`.
    pub host_ip: Option<IpAddr>,
    /// One entry for each of `spec.initContainers`.
    pub init_containers: Vec<ContainerStatus>,
    /// One entry for each of `spec.containers`.
    pub containers: Vec<ContainerStatus>,
    /// One entry for each of `spec.ephemeralContainers`.
    pub ephemeral_containers: Vec<ContainerStatus>,
    /// A word for `status.reason` when the provider ended the pod of its own accord.
    pub reason: Option<String>,
    /// The sentence that goes with `reason`.
    pub message: Option<String>,
}

impl PodObservation {
    /// True when no container runs or will run again without being asked to.
    ///
    /// This is what a deletion waits for. Sidecars end after the containers, so they count as well.
    pub fn is_terminated(&self) -> bool {
        let over = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.terminated.is_some());
        let runs = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.running.is_some());
        let mut others = self.init_containers.iter().chain(&self.ephemeral_containers);
        !self.containers.is_empty() && self.containers.iter().all(over) && !others.any(runs)
    }
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Something is wrong.
    Warning,
}

/// Something that users should see among a pod's events, in kubelet's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// Which pod.
    pub pod: PodRef,
    /// The part of the pod, as in `spec.containers{main}`.
    pub field: Option<String>,
    /// How serious it is.
    pub kind: EventType,
    /// One CamelCase word: `Started`, `Killing`, `Unhealthy`.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// What the machine behind a node looks like, as far as the provider knows; the rest is defaulted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeDescription {
    /// Resource name to amount.
    pub capacity: BTreeMap<String, Quantity>,
    /// Conditions beside `Ready`, which is the agent's.
    pub conditions: Vec<NodeCondition>,
    /// Addresses to publish in place of the operator's own.
    pub addresses: Vec<NodeAddress>,
    /// `linux` or `windows`.
    pub operating_system: Option<String>,
    /// As in GOARCH: `amd64`, `arm64`.
    pub architecture: Option<String>,
    /// The version of the service behind the provider.
    pub version: Option<String>,
    /// `spec.providerID` of the Node.
    pub provider_id: Option<String>,
}

/// From what `uname -m` prints, or [`std::env::consts::ARCH`], to GOARCH.
pub fn goarch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i486" | "i586" | "i686" | "x86" => "386",
        m if m.starts_with("armv") => "arm",
        other => other,
    }
}

/// What a provider can do beyond running pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// [`logs`](super::Provider::logs)
    pub logs: bool,
    /// Logs are the text that there is: they cannot be followed, nor asked for since a time or of the run before, and
    /// their lines have neither time nor source.
    pub plain_logs: bool,
    /// [`exec`](super::Provider::exec)
    pub exec: bool,
    /// [`attach`](super::Provider::attach)
    pub attach: bool,
    /// [`port_forward`](super::Provider::port_forward)
    pub port_forward: bool,
    /// [`stats`](super::Provider::stats)
    pub stats: bool,
    /// Calls its notifier on every change; without it the agent polls.
    pub notifies: bool,
    /// Tells the events of its containers itself ([`PodNotifier::event`](super::PodNotifier::event)), so that
    /// the agent does not make them up from statuses.
    pub events: bool,
    /// Pods live in this process and are gone with it. After a restart the agent hands them to
    /// [`restore_pod`](super::Provider::restore_pod).
    pub volatile: bool,
    /// Pods have no identity but their namespace and name: one that has an older pod's name waits for that to go.
    pub by_name: bool,
    /// A pod that was stopped is gone: its end is known only while this process runs.
    pub forgets_stopped: bool,
    /// What becomes of the files of volumes.
    pub volume_files: VolumeFiles,
    /// Starts the containers whose configuration is there while others wait for theirs
    /// ([`unresolved`](ResolvedPod::unresolved)), which come with a later update.
    pub starts_apart: bool,
    /// What of a pod's fields it can do.
    pub pod: PodFeatures,
}

impl Capabilities {
    /// Serves every request of the kubelet API, for pods with these fields.
    pub const fn serving_all(pod: PodFeatures) -> Self {
        Self {
            logs: true,
            plain_logs: false,
            exec: true,
            attach: true,
            port_forward: true,
            stats: true,
            notifies: false,
            events: false,
            volatile: false,
            by_name: false,
            forgets_stopped: false,
            volume_files: VolumeFiles::Ignored,
            starts_apart: false,
            pod,
        }
    }
}

/// What a provider does with the content of volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeFiles {
    /// Nothing. That what a volume names exists is checked, but no content is handed over and no token made.
    #[default]
    Ignored,
    /// They are put into place when the pod is made.
    AtStart,
    /// And replaced when they change: [`update_volumes`](super::Provider::update_volumes) is called.
    Live,
}

/// Which log lines are wanted. Kubernetes: `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Keep the stream open for lines that are written later.
    pub follow: bool,
    /// The container's previous instance instead of the current one.
    pub previous: bool,
    /// Only the last so many lines of what exists.
    pub tail: Option<u64>,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
}

/// Which of a container's streams a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub time: Timestamp,
    /// Where it was written.
    pub source: LogSource,
    /// Its bytes with the line's end, if it had one.
    pub text: Bytes,
}

/// Log lines, oldest first. Ends when there are no more, or never when following a live container.
pub type LogStream = BoxStream<'static, Result<LogLine>>;

/// The reading half of a stream.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// The writing half of a stream.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The streams of an exec or attach session. A `None` stream was not asked for.
pub struct SessionIo {
    /// What the client types; its end is the end of the process's standard input.
    pub stdin: Option<Reader>,
    /// Where standard output goes; with a terminal, standard error too.
    pub stdout: Option<Writer>,
    /// Where standard error goes.
    pub stderr: Option<Writer>,
    /// The client wants a terminal.
    pub tty: bool,
    /// The terminal's sizes, the first one at the start.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// 0 is success; 128 + n when ended by signal n.
    pub code: i32,
}
