//! `VirtualNode`: one node of the cluster, described.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAddress, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::provider::ProviderSpec;

/// A node of the cluster that `vnode` runs. Its name is the Node's name.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vnode.dev",
    version = "v1alpha1",
    kind = "VirtualNode",
    plural = "virtualnodes",
    shortname = "vn",
    category = "vnode",
    status = "VirtualNodeStatus",
    derive = "PartialEq",
    doc = "A node of the cluster that vnode runs. Its name is the Node's name.",
    printcolumn = r#"{"name":"Provider","type":"string","jsonPath":".spec.provider.type"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.pods.total"}"#,
    printcolumn = r#"{"name":"CPU","type":"string","jsonPath":".status.capacity.cpu"}"#,
    printcolumn = r#"{"name":"Memory","type":"string","jsonPath":".status.capacity.memory"}"#,
    printcolumn = r#"{"name":"Endpoint","type":"string","jsonPath":".status.kubelet.endpoint"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason","priority":1}"#,
    printcolumn = r#"{"name":"Shard","type":"string","jsonPath":".status.shard","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name is the Node's name and a label value: at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodeSpec {
    /// What stands behind the node.
    pub provider: ProviderSpec,
    /// A Secret in the operator's own namespace whose data the provider receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretReference>,
    /// What the node has, by resource name. What is left out comes from the provider, then from the
    /// defaults: cpu 4, memory 16Gi, ephemeral-storage 100Gi, pods 110.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods may use of it; as much as `capacity` where left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Taints of the Node, beside the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "taints")]
    pub taints: Vec<Taint>,
    /// Taint the Node with `virtual-kubelet.io/provider=<type>:NoSchedule`.
    #[serde(default = "yes")]
    pub default_taint: bool,
    /// Labels of the Node, beside the default ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// `linux` or `windows`; as the provider says when left out, then `linux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "operating_system")]
    pub operating_system: Option<String>,
    /// As in GOARCH; as the provider says when left out, then that of the machine `vnode` runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub architecture: Option<String>,
    /// Addresses of the Node in place of the operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses")]
    pub addresses: Vec<NodeAddress>,
    /// Keep new pods away, as `kubectl cordon` does. While this is not set, a cordon made by hand is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unschedulable: Option<bool>,
    /// The node's kubelet API.
    #[serde(default)]
    pub kubelet: KubeletSpec,
    /// What happens to the node's pods when the VirtualNode is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How the node is emptied: when the VirtualNode is deleted, or now.
    #[serde(default, skip_serializing_if = "DrainSpec::is_default")]
    pub drain: DrainSpec,
    /// Leave the node as it is: edits of the spec wait, no pod is started, changed or stopped. Its heartbeat and its
    /// kubelet API go on, and a deletion of the VirtualNode is carried out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// `Run` the pods of DaemonSets, or `Ignore` them: they stay Pending and say why. When left out, the
    /// simulator runs them and every other provider ignores them, being no machine for node agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon_set_pods: Option<DaemonSetPods>,
    /// What becomes of a pod with a field that the provider cannot do: `Warn` tells it in an event and runs it
    /// without, `Reject` fails it.
    #[serde(default)]
    pub unsupported_fields: UnsupportedFields,
}

/// What becomes of the pods of DaemonSets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DaemonSetPods {
    /// They stay Pending, with the reason in their status.
    Ignore,
    /// They run like any other pod.
    Run,
}

/// What becomes of a pod with a field that the provider cannot do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum UnsupportedFields {
    /// An event `UnsupportedField` names the fields; the pod runs without them.
    #[default]
    Warn,
    /// The pod fails with reason `UnsupportedField`.
    Reject,
}

/// Names a Secret in the operator's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct SecretReference {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// The node's kubelet API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!(has(self.port) && has(self.mode) && self.mode == 'Shared')")
        .message("nodes of mode Shared listen on the operator's --kubelet-shared-port: leave port out")
)]
pub struct KubeletSpec {
    /// `PerNode` gives the node a port of its own. `Shared` puts it behind one port with all other such nodes of
    /// the same operator process, for networks that admit only that: docs/kubelet-api.md says what differs.
    #[serde(default)]
    pub mode: KubeletMode,
    /// The port it listens on; one of the operator's range when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// How the port of a kubelet API is had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum KubeletMode {
    /// A port for each node.
    #[default]
    PerNode,
    /// One port for all of them.
    Shared,
}

/// What happens to the node's pods when the VirtualNode is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeletionPolicy {
    /// `Evict` respects PodDisruptionBudgets; `Delete` does not ask.
    pub pods: PodDeletion,
    /// After so many seconds, of which `drain.timeout` is a part, whatever is left is deleted without grace and the Node goes, even if the
    /// provider no longer answers.
    #[schemars(range(min = 0, max = 86_400))]
    pub timeout_seconds: u32,
}

impl Default for DeletionPolicy {
    fn default() -> Self {
        Self { pods: PodDeletion::default(), timeout_seconds: 300 }
    }
}

/// How the pods of a node that goes away are removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PodDeletion {
    /// Through the Eviction API, so that PodDisruptionBudgets hold.
    #[default]
    Evict,
    /// Plain deletion with each pod's own grace period.
    Delete,
}

/// How a node is emptied: pods are evicted, then deleted with their grace period, then without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DrainSpec {
    /// Empty the node now and keep it empty, without deleting it: it is cordoned and its pods are evicted. The
    /// condition `Drained` says what holds it up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub requested: bool,
    /// How long PodDisruptionBudgets may hold up evictions, such as `90s`, `10m` or `1h30m`; then pods are deleted. When
    /// left out: four fifths of `deletionPolicy.timeoutSeconds` for a deletion, for ever for a drain on request.
    #[schemars(schema_with = "duration")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Pods that no controller will make anew: `Evict` them as the others, or `Keep` them as long as the deadline allows.
    #[serde(skip_serializing_if = "BarePods::is_default")]
    pub bare_pods: BarePods,
    /// Pods of DaemonSets, which come back as long as the Node is there: `Ignore` them, so that they go with it, or
    /// `Evict` them as the others.
    #[serde(skip_serializing_if = "DrainedDaemonSetPods::is_default")]
    pub daemon_set_pods: DrainedDaemonSetPods,
}

impl DrainSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// `timeout`, if it is set and readable.
    pub fn timeout(&self) -> Option<Duration> {
        let text = self.timeout.as_deref()?;
        let mut total = Duration::ZERO;
        let mut number = 0_u64;
        for c in text.chars() {
            match (c.to_digit(10), c) {
                (Some(digit), _) => number = number.saturating_mul(10).saturating_add(digit.into()),
                (None, 'h') => total += Duration::from_secs(std::mem::take(&mut number).saturating_mul(3600)),
                (None, 'm') => total += Duration::from_secs(std::mem::take(&mut number).saturating_mul(60)),
                (None, 's') => total += Duration::from_secs(std::mem::take(&mut number)),
                _ => return None,
            }
        }
        Some(total)
    }
}

/// What becomes of pods that no controller will make anew when their node is emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum BarePods {
    /// They are evicted as the others.
    #[default]
    Evict,
    /// They hold the drain up until its deadline.
    Keep,
}

impl BarePods {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of the pods of DaemonSets when their node is emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DrainedDaemonSetPods {
    /// They stay as long as the Node.
    #[default]
    Ignore,
    /// They are evicted as the others.
    Evict,
}

impl DrainedDaemonSetPods {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What was last observed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodeStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Accepted`, `CredentialsReady`, `ProviderReachable`, `Registered`, `KubeletServing`; `Drained` while the
    /// node is or has to be emptied, `Paused` while it is paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Why the node is not ready, in one word; empty when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The Node that stands for this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Where the node's kubelet API listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<KubeletStatus>,
    /// What is known of the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderStatus>,
    /// What the Node publishes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    /// How many pods are on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// The replica of the operator that runs the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
}

/// Where the node's kubelet API listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct KubeletStatus {
    /// The address that the Node publishes.
    pub address: String,
    /// The port, kept over restarts.
    pub port: i32,
    /// `address:port`, for people.
    pub endpoint: String,
}

/// What is known of the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ProviderStatus {
    /// The version of the service behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it can do, in words. docs/pod-support.md explains them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
}

/// How many pods are on the node, by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct PodCounts {
    /// All that are bound to the node and not yet over.
    pub total: u32,
    /// Phase Running.
    pub running: u32,
    /// Phase Pending.
    pub pending: u32,
    /// Phase Failed.
    pub failed: u32,
}

fn yes() -> bool {
    true
}

pub(super) fn schema(value: serde_json::Value) -> schemars::Schema {
    // A literal object is always a valid schema.
    schemars::Schema::try_from(value).unwrap_or_default()
}

/// A qualified name: an optional DNS prefix and a name. apimachinery: `IsQualifiedName`.
const QUALIFIED: &str = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$";

fn keys_rule() -> serde_json::Value {
    serde_json::json!({
        "rule": format!("self.all(k, k.matches(r'{QUALIFIED}'))"),
        "message": "each key must be a name such as gpu or example.com/gpu: letters, digits, '-', '_', '.', at most 63 characters after the prefix",
    })
}

pub(super) fn quantities(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 64,
            // No pattern: it would be all that the message has.
            "x-kubernetes-validations": [{
                "rule": "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
                "message": "must be a quantity that is not negative, such as 4, 500m or 16Gi",
            }],
        },
        "x-kubernetes-validations": [keys_rule()],
    }))
}

pub(super) fn label_map(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-kubernetes-validations": [keys_rule()],
    }))
}

fn annotations(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 65536},
        "x-kubernetes-validations": [keys_rule()],
    }))
}

fn taints(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "object",
            "required": ["key", "effect"],
            "properties": {
                "key": {"type": "string", "minLength": 1, "maxLength": 317, "pattern": QUALIFIED},
                "value": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "timeAdded": {"type": "string", "format": "date-time"},
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["key", "effect"],
    }))
}

fn duration(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "string",
        "maxLength": 16,
        // No pattern: it would be all that the message has.
        "x-kubernetes-validations": [{
            "rule": "self.size() > 0 && self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$')",
            "message": "must be a time such as 90s, 10m or 1h30m",
        }],
    }))
}

fn operating_system(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({"type": "string", "enum": ["linux", "windows"], "nullable": true}))
}

fn addresses(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "required": ["type", "address"],
            "properties": {
                "type": {"type": "string", "enum": ["InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS", "Hostname"]},
                "address": {"type": "string", "minLength": 1, "maxLength": 253},
            },
        },
    }))
}

pub(super) fn conditions(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let condition = generator.subschema_for::<Condition>();
    schema(serde_json::json!({
        "type": "array",
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }))
}
