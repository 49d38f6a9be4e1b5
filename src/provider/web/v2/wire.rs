//! The JSON of interface V2, as `docs/provider-http.yaml` describes it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, NodeAddress, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize, Serializer};

use crate::provider::{
    Capabilities, EventType, NodeDescription, PodEvent, PodFeature, PodFeatures, PodObservation, PodRef, ProviderError,
    ResolvedPod, ResolvedVolume, Result, VolumeFiles,
};

/// What the answer for capabilities says it is.
pub(in super::super) const INTERFACE: &str = "vnode.dev/provider";
/// The version that is spoken here.
pub(in super::super) const VERSION: &str = "v2";

/// The answer for capabilities.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct About {
    pub interface: String,
    #[serde(default)]
    pub versions: Vec<String>,
    #[serde(default)]
    pub abilities: Abilities,
    #[serde(default)]
    pub pod_features: Vec<String>,
}

/// What a service can do beyond running pods.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in super::super) struct Abilities {
    pub logs: bool,
    pub exec: bool,
    pub attach: bool,
    pub port_forward: bool,
    pub stats: bool,
    /// It has a change feed.
    pub watch: bool,
    /// `Ignored`, `AtStart` or `Live`.
    pub volume_files: Option<String>,
}

impl About {
    /// True when the answer is one of this interface, and of a version that is spoken here.
    pub fn is_ours(&self) -> bool {
        self.interface == INTERFACE && self.versions.iter().any(|v| v == VERSION)
    }

    /// What the service can do. Words that are not known here are of a newer version, and of no use.
    pub fn capabilities(&self) -> Capabilities {
        let a = &self.abilities;
        let features = PodFeature::ALL.iter().filter(|f| self.pod_features.iter().any(|word| word == f.word()));
        let pod = features.fold(PodFeatures::NONE, |all, f| all.and(PodFeatures::of(&[*f])));
        Capabilities {
            logs: a.logs,
            exec: a.exec,
            attach: a.attach,
            port_forward: a.port_forward,
            stats: a.stats,
            notifies: true,
            volume_files: match a.volume_files.as_deref() {
                Some("Live") => VolumeFiles::Live,
                Some("AtStart") => VolumeFiles::AtStart,
                _ => VolumeFiles::Ignored,
            },
            // The address would have to be put into values that are sent as they are.
            pod: pod.without(&[PodFeature::PodIpInEnvironment]),
            ..Capabilities::default()
        }
    }
}

/// All that a service can do by this interface.
pub(in super::super) fn most() -> Capabilities {
    Capabilities {
        logs: true,
        exec: true,
        attach: true,
        port_forward: true,
        stats: true,
        notifies: true,
        volume_files: VolumeFiles::Live,
        pod: PodFeatures::ALL.without(&[PodFeature::PodIpInEnvironment]),
        ..Capabilities::default()
    }
}

/// A pod as a service is given it. Not for logs: it has the content of Secrets in it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Given<'a> {
    pod: &'a Pod,
    containers: BTreeMap<&'a str, GivenContainer<'a>>,
    volumes: BTreeMap<&'a str, GivenVolume<'a>>,
    pull_secrets: Vec<GivenSecret<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_volumes: Option<&'a [String]>,
}

#[derive(Serialize)]
struct GivenContainer<'a> {
    env: Vec<GivenVariable<'a>>,
    command: &'a [String],
    args: &'a [String],
    mounts: Vec<GivenMount<'a>>,
}

#[derive(Serialize)]
struct GivenVariable<'a> {
    name: &'a str,
    value: &'a str,
    secret: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GivenMount<'a> {
    volume: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_path: Option<&'a str>,
    read_only: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum GivenVolume<'a> {
    Files(Vec<GivenFile<'a>>),
    #[serde(rename_all = "camelCase")]
    EmptyDir {
        medium: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        size_limit: Option<u64>,
    },
    HostPath {
        path: &'a str,
        #[serde(rename = "type")]
        type_: &'a str,
    },
    Other {
        kind: &'a str,
    },
}

#[derive(Serialize)]
struct GivenFile<'a> {
    path: &'a str,
    #[serde(serialize_with = "as_base64")]
    content: &'a [u8],
    mode: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<i64>,
    secret: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GivenSecret<'a> {
    registry: &'a str,
    username: &'a str,
    password: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_token: Option<&'a str>,
}

fn as_base64<S: Serializer>(bytes: &[u8], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&base64::display::Base64Display::new(bytes, &STANDARD))
}

impl<'a> Given<'a> {
    /// All of a pod; `changed` names the volumes whose files are other ones than before.
    pub fn of(pod: &'a ResolvedPod, changed: Option<&'a [String]>) -> Self {
        let containers = pod.containers.iter().map(|(name, c)| {
            let env = c.env.iter().map(|v| GivenVariable { name: &v.name, value: &v.value, secret: v.secret });
            let mounts = c.mounts.iter().map(|m| GivenMount {
                volume: &m.volume,
                path: &m.path,
                sub_path: m.sub_path.as_deref(),
                read_only: m.read_only,
            });
            let (env, mounts) = (env.collect(), mounts.collect());
            (name.as_str(), GivenContainer { env, command: &c.command, args: &c.args, mounts })
        });
        let volumes = pod.volumes.iter().map(|(name, volume)| (name.as_str(), given_volume(volume)));
        let pull_secrets = pod.pull_secrets.iter().map(|s| GivenSecret {
            registry: &s.registry,
            username: &s.username,
            password: &s.password,
            identity_token: s.identity_token.as_deref(),
            registry_token: s.registry_token.as_deref(),
        });
        Self {
            pod: &pod.pod,
            containers: containers.collect(),
            volumes: volumes.collect(),
            pull_secrets: pull_secrets.collect(),
            changed_volumes: changed,
        }
    }
}

fn given_volume(volume: &ResolvedVolume) -> GivenVolume<'_> {
    match volume {
        ResolvedVolume::Files(set) => {
            let file = |f: &'_ crate::provider::VolumeFile| (f.mode, f.owner, f.secret);
            let files = set.files.iter().map(|f| {
                let (mode, owner, secret) = file(f);
                GivenFile { path: &f.path, content: &f.content, mode, owner, secret }
            });
            GivenVolume::Files(files.collect())
        }
        ResolvedVolume::EmptyDir { medium, size_limit } => GivenVolume::EmptyDir { medium, size_limit: *size_limit },
        ResolvedVolume::HostPath { path, type_ } => GivenVolume::HostPath { path, type_ },
        ResolvedVolume::Other { kind } => GivenVolume::Other { kind },
    }
}

/// How a pod is to be stopped.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stop {
    pub grace_period_seconds: u64,
}

/// What a service says of a pod.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The node's uid, when the service has pods of several.
    pub node: Option<String>,
    /// Grows with every change of the pod, so that news that were overtaken are known as such.
    pub sequence: Option<i64>,
    pub start_time: Option<Timestamp>,
    #[serde(rename = "podIPs", default)]
    pub pod_ips: Vec<IpAddr>,
    #[serde(rename = "hostIP")]
    pub host_ip: Option<IpAddr>,
    #[serde(default)]
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(default)]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
    pub reason: Option<String>,
    pub message: Option<String>,
}

impl State {
    /// The pod as the agent knows it; `None` when it is another node's.
    pub fn observation(self, node_uid: &str) -> Option<PodObservation> {
        if self.uid.is_empty() || self.node.as_deref().is_some_and(|n| n != node_uid) {
            return None;
        }
        Some(PodObservation {
            pod: PodRef { namespace: self.namespace.into(), name: self.name.into(), uid: self.uid.into() },
            start_time: self.start_time,
            pod_ips: self.pod_ips,
            host_ip: self.host_ip,
            init_containers: self.init_container_statuses,
            containers: self.container_statuses,
            ephemeral_containers: self.ephemeral_container_statuses,
            reason: self.reason.filter(|r| !r.is_empty()),
            message: self.message.filter(|m| !m.is_empty()),
        })
    }
}

/// All pods of a node.
#[derive(Debug, Deserialize)]
pub(super) struct States {
    pub pods: Vec<State>,
    /// From where on the change feed tells what is not in here.
    pub cursor: Option<String>,
}

/// A pod that the service has no more.
#[derive(Debug, Deserialize)]
pub(super) struct Gone {
    pub uid: Arc<str>,
}

/// Something to be told at a pod.
#[derive(Debug, Deserialize)]
pub(in super::super) struct Notice {
    pub uid: Arc<str>,
    #[serde(default)]
    pub warning: bool,
    #[serde(default)]
    pub field: Option<String>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

impl Notice {
    /// The event. Its reason becomes part of the message: reasons of events are words of this program.
    pub fn event(self, pod: PodRef) -> PodEvent {
        let word = self.reason.chars().filter(char::is_ascii_alphanumeric).take(64).collect::<String>();
        let message: String = self.message.chars().take(1000).collect();
        PodEvent {
            pod,
            field: self.field,
            kind: if self.warning { EventType::Warning } else { EventType::Normal },
            reason: known_reason(&word),
            message: if known_reason(&word) == word || word.is_empty() {
                message
            } else {
                format!("{word}: {message}")
            },
        }
    }
}

fn known_reason(word: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "Pulling",
        "Pulled",
        "Created",
        "Started",
        "Killing",
        "Failed",
        "BackOff",
        "Unhealthy",
        "FailedMount",
        "Scheduled",
        "Evicted",
        "Preempting",
        "OOMKilling",
        "FailedCreatePodSandBox",
        "FailedKillPod",
    ];
    KNOWN.iter().find(|k| **k == word).copied().unwrap_or("ProviderNotice")
}

/// What a node looks like.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Machine {
    capacity: BTreeMap<String, Quantity>,
    conditions: Vec<NodeCondition>,
    addresses: Vec<NodeAddress>,
    operating_system: Option<String>,
    architecture: Option<String>,
    version: Option<String>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
}

impl From<Machine> for NodeDescription {
    fn from(m: Machine) -> Self {
        Self {
            capacity: m.capacity,
            conditions: m.conditions.into_iter().filter(|c| c.type_ != "Ready").collect(),
            addresses: m.addresses,
            operating_system: m.operating_system,
            architecture: m.architecture,
            version: m.version,
            provider_id: m.provider_id,
        }
    }
}

/// A refusal. RFC 9457, with `type` one of ours.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub detail: String,
    /// The pod's field at fault, for `invalid`.
    pub field: String,
    /// One CamelCase word, for `rejected`.
    pub reason: String,
}

/// What stands before the word in `type`.
const PROBLEMS: &str = "https://vnode.dev/problems/";

impl Problem {
    /// What the refusal lets the agent conclude. `None` when it is no problem of ours: then nothing is known.
    pub fn error(self, what: &str, missing: &str) -> Option<ProviderError> {
        let said = [&self.detail, &self.title].into_iter().find(|t| !t.is_empty()).cloned().unwrap_or_default();
        Some(match self.kind.strip_prefix(PROBLEMS)? {
            "not-found" => ProviderError::NotFound(missing.to_owned()),
            "invalid" => ProviderError::Invalid {
                field: if self.field.is_empty() { "spec".into() } else { self.field },
                message: said,
            },
            "rejected" => ProviderError::Rejected {
                reason: match self.reason.chars().all(|c| c.is_ascii_alphanumeric()) && !self.reason.is_empty() {
                    true => self.reason.chars().take(128).collect(),
                    false => "Rejected".into(),
                },
                message: said,
            },
            "unsupported" => ProviderError::Unsupported("this request"),
            "stale-epoch" => ProviderError::unavailable(format!(
                "{what}: another replica of the operator has taken the node over: {said}"
            )),
            _ => return None,
        })
    }
}

/// A state in an answer or an event.
pub(super) fn state(text: &str, what: &str) -> Result<State> {
    serde_json::from_str(text).map_err(|e| ProviderError::unavailable(format!("{what}: makes no sense: {e}")))
}
