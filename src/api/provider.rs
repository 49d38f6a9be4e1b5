//! `spec.provider`: which provider, and its typed configuration under a member of the same name.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What stands behind the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type != 'mock' || has(self.mock)").message("provider.mock must be set (it may be empty: {}) when provider.type is mock"),
    validation = Rule::new("self.type != 'process' || has(self.process)").message("provider.process must be set (it may be empty: {}) when provider.type is process"),
    validation = Rule::new("self.type == oldSelf.type").message("provider.type cannot change; delete the VirtualNode and create it anew"),
)]
pub struct ProviderSpec {
    /// The provider's type. It cannot change.
    #[serde(rename = "type")]
    pub kind: ProviderType,
    /// Configuration of the simulator, for `type: mock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mock: Option<MockConfig>,
    /// Configuration of pods as processes of the operator's machine, for `type: process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessConfig>,
}

impl ProviderSpec {
    /// A simulated node with the given behaviour.
    pub fn mock(config: MockConfig) -> Self {
        Self { kind: ProviderType::Mock, mock: Some(config), process: None }
    }

    /// A node whose pods are processes of this machine.
    pub fn process(config: ProcessConfig) -> Self {
        Self { kind: ProviderType::Process, mock: None, process: Some(config) }
    }
}

/// The providers in this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderType {
    /// Simulated pods.
    Mock,
    /// Processes of the machine that the operator runs on.
    Process,
}

impl ProviderType {
    /// The word that users write, and that the default taint and label carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mock => "mock",
            Self::Process => "process",
        }
    }
}

/// How a simulated node behaves. Each value can be overridden for a pod by an annotation
/// `mock.vnode.dev/<field>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MockConfig {
    /// Milliseconds from a pod's creation to its containers running.
    #[schemars(range(min = 0, max = 86_400_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_latency_ms: Option<u64>,
    /// Milliseconds a container takes to end when it is asked to.
    #[schemars(range(min = 0, max = 86_400_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_latency_ms: Option<u64>,
    /// Share of each latency and duration that varies at random, in percent.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_percent: Option<u32>,
    /// Milliseconds a container runs before it ends by itself; for ever when absent.
    #[schemars(range(min = 0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_duration_ms: Option<u64>,
    /// Exit code of a container that ends by itself.
    #[schemars(range(min = 0, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Share of pod creations that fail with a retryable error, in percent.
    #[schemars(range(min = 0, max = 100))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_failure_percent: Option<u32>,
    /// Log lines a running container writes each minute.
    #[schemars(range(min = 0, max = 60_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lines_per_minute: Option<u32>,
    /// Makes random choices repeatable; two nodes of one seed and name behave alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// `""` (healthy), `unreachable` (every call fails, so the node goes NotReady), or `hang` (no call is answered).
    #[schemars(extend("enum" = ["", "unreachable", "hang"]))]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fault: String,
    /// Amounts this node has when `spec.capacity` leaves them out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::virtual_node::quantities")]
    pub capacity: BTreeMap<String, Quantity>,
}

/// How pods are run as processes of the operator's machine. The operator must be started with
/// `--allow-host-processes`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessConfig {
    /// Uids that pods may run as; the first is that of pods that name none. Only the operator's own when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 0, max = 4_294_967_294_i64)))]
    pub users: Vec<i64>,
    /// Pods may run as root. They can then do everything on the machine.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_root: bool,
    /// Folders that are the root file system of containers with an image of that name. Other images are not
    /// looked at: their containers see the machine's own files.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rootfs: BTreeMap<String, String>,
    /// Folders of the machine at or below which pods may mount hostPath volumes. None when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub host_paths: Vec<String>,
    /// The size in bytes at which a container's log is rotated. 10 MiB when absent.
    #[schemars(range(min = 4096))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_max_bytes: Option<u64>,
    /// How many files of a container's log are kept. 5 when absent.
    #[schemars(range(min = 1, max = 50))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_max_files: Option<u32>,
    /// The address of pods. That of the interface that leads out of the machine when absent.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
}
