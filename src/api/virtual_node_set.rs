//! `VirtualNodeSet`: so many VirtualNodes of one template.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::virtual_node::{VirtualNodeSpec, conditions, label_map, schema};

/// A number of VirtualNodes of one template.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "vnode.dev",
    version = "v1alpha1",
    kind = "VirtualNodeSet",
    plural = "virtualnodesets",
    shortname = "vns",
    category = "vnode",
    status = "VirtualNodeSetStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    derive = "PartialEq",
    doc = "A number of VirtualNodes of one template.",
    printcolumn = r#"{"name":"Desired","type":"integer","jsonPath":".spec.replicas"}"#,
    printcolumn = r#"{"name":"Current","type":"integer","jsonPath":".status.replicas"}"#,
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.readyReplicas"}"#,
    printcolumn = r#"{"name":"Up-To-Date","type":"integer","jsonPath":".status.updatedReplicas"}"#,
    printcolumn = r#"{"name":"Available","type":"integer","jsonPath":".status.availableReplicas"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    validation = Rule::new("self.metadata.name.size() <= 57").message("the names of the nodes are made from the name: at most 57 characters"),
    validation = Rule::new("!has(self.spec.template.spec.kubelet) || !has(self.spec.template.spec.kubelet.port)").message("spec.template.spec.kubelet.port: nodes of a set cannot have one port; leave it out")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.selector) == has(oldSelf.selector) && (!has(self.selector) || self.selector == oldSelf.selector)").message("selector cannot change; delete the VirtualNodeSet with --cascade=orphan and create it anew"),
    validation = Rule::new("self.names == oldSelf.names").message("names cannot change")
)]
pub struct VirtualNodeSetSpec {
    /// How many nodes there are to be.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100_000))]
    pub replicas: i32,
    /// Which VirtualNodes are of this set. The label `vnode.dev/set`, which all of its nodes have, when left out. It
    /// cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// What the nodes are like.
    pub template: VirtualNodeTemplate,
    /// How long a node must be ready before it counts as available, in seconds.
    #[serde(default)]
    #[schemars(range(min = 0, max = 86_400))]
    pub min_ready_seconds: i32,
    /// How nodes follow a change of the template.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// How nodes are named: `Ordinal` (`edge-0`, `edge-1`, …) or `Generated` (`edge-x7k2p`). It cannot change.
    #[serde(default)]
    pub names: NodeNames,
}

/// What the nodes of a set are like.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct VirtualNodeTemplate {
    /// Labels and annotations of the VirtualNodes.
    #[serde(default)]
    pub metadata: TemplateMetadata,
    /// Their spec.
    pub spec: VirtualNodeSpec,
}

/// Labels and annotations of a set's VirtualNodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct TemplateMetadata {
    /// Labels of the VirtualNodes; those of the Nodes are in `spec.labels`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the VirtualNodes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How nodes follow a change of the template.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateStrategy {
    /// `RollingUpdate`, or `OnDelete`: only nodes that are made anew follow.
    #[serde(rename = "type")]
    pub kind: UpdateType,
    /// How many nodes may be unavailable while nodes are updated: a number or a share such as `10%`, at least one.
    /// Nodes are changed in place where they can be, and made anew when their provider's type changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_share")]
    pub max_unavailable: Option<IntOrString>,
}

/// Whether nodes follow a change of the template by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum UpdateType {
    /// They do, a few at a time.
    #[default]
    RollingUpdate,
    /// Only those that are made anew.
    OnDelete,
}

/// How the nodes of a set are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NodeNames {
    /// The set's name and the lowest free number.
    #[default]
    Ordinal,
    /// The set's name and a word by chance.
    Generated,
}

/// What was last observed of a set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNodeSetStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many VirtualNodes there are, those that go away not counted.
    #[serde(default)]
    pub replicas: i32,
    /// How many are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// How many have been ready for `minReadySeconds`.
    #[serde(default)]
    pub available_replicas: i32,
    /// How many are as the template says.
    #[serde(default)]
    pub updated_replicas: i32,
    /// The selector in words, for `kubectl scale` and autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// `Ready`: as many nodes as desired are up to date and available. `Accepted`: the selector fits the template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

fn one() -> i32 {
    1
}

fn number_or_share(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema(serde_json::json!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "minimum": 0,
        "maxLength": 8,
        "pattern": "^[0-9]{1,3}%$",
    }))
}
