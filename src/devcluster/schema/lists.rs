//! How lists and maps of the built-in kinds are merged: the marks of the Kubernetes API's Go types that its generated
//! Rust types leave out.

use super::{List, Strategy};

/// Definition (the last part of its name), field, how server-side apply merges it, how a strategic patch does.
///
/// For server-side apply `set`, `atomic` or a map's keys with commas; for a strategic patch a key, `set`, or nothing
/// when the list is replaced.
const LISTS: &[(&str, &str, &str, &str)] = &[
    ("ObjectMeta", "finalizers", "set", "set"),
    ("ObjectMeta", "ownerReferences", "uid", "uid"),
    ("PodSpec", "containers", "name", "name"),
    ("PodSpec", "initContainers", "name", "name"),
    ("PodSpec", "ephemeralContainers", "name", "name"),
    ("PodSpec", "volumes", "name", "name"),
    ("PodSpec", "imagePullSecrets", "name", "name"),
    ("PodSpec", "hostAliases", "ip", "ip"),
    ("PodSpec", "topologySpreadConstraints", "topologyKey,whenUnsatisfiable", "topologyKey"),
    ("PodSpec", "schedulingGates", "name", "name"),
    ("PodSpec", "resourceClaims", "name", "name"),
    ("PodStatus", "conditions", "type", "type"),
    ("PodStatus", "podIPs", "ip", "ip"),
    ("PodStatus", "hostIPs", "atomic", "ip"),
    ("PodStatus", "resourceClaimStatuses", "name", "name"),
    ("Container", "env", "name", "name"),
    ("Container", "ports", "containerPort,protocol", "containerPort"),
    ("Container", "volumeMounts", "mountPath", "mountPath"),
    ("Container", "volumeDevices", "devicePath", "devicePath"),
    ("EphemeralContainer", "env", "name", "name"),
    ("EphemeralContainer", "ports", "containerPort,protocol", "containerPort"),
    ("EphemeralContainer", "volumeMounts", "mountPath", "mountPath"),
    ("EphemeralContainer", "volumeDevices", "devicePath", "devicePath"),
    ("ContainerStatus", "volumeMounts", "mountPath", "mountPath"),
    ("ContainerStatus", "allocatedResourcesStatus", "name", "name"),
    ("ResourceRequirements", "claims", "name", ""),
    ("NodeSpec", "podCIDRs", "set", "set"),
    ("NodeSpec", "taints", "atomic", "key"),
    ("NodeStatus", "addresses", "type", "type"),
    ("NodeStatus", "conditions", "type", "type"),
    ("NamespaceStatus", "conditions", "type", "type"),
    ("ServiceSpec", "ports", "port,protocol", "port"),
    ("ServiceStatus", "conditions", "type", "type"),
    ("ServiceAccount", "secrets", "name", "name"),
    ("ServiceAccount", "imagePullSecrets", "atomic", ""),
    ("ComponentStatus", "conditions", "type", "type"),
    ("PersistentVolumeClaimStatus", "conditions", "type", "type"),
    ("ReplicationControllerStatus", "conditions", "type", "type"),
    ("ReplicaSetStatus", "conditions", "type", "type"),
    ("DeploymentStatus", "conditions", "type", "type"),
    ("DaemonSetStatus", "conditions", "type", "type"),
    ("StatefulSetStatus", "conditions", "type", "type"),
    ("JobStatus", "conditions", "atomic", "type"),
    ("PodFailurePolicyRule", "onPodConditions", "atomic", ""),
    ("PodDisruptionBudgetStatus", "conditions", "type", "type"),
    ("CertificateSigningRequestStatus", "conditions", "type", ""),
    ("CustomResourceDefinitionStatus", "conditions", "type", ""),
    ("APIServiceStatus", "conditions", "type", "type"),
    ("NetworkPolicyStatus", "conditions", "type", "type"),
    ("EndpointSlice", "endpoints", "atomic", ""),
    ("CSINodeSpec", "drivers", "name", "name"),
    ("ObjectMeta", "managedFields", "atomic", ""),
    ("MutatingWebhookConfiguration", "webhooks", "name", "name"),
    ("ValidatingWebhookConfiguration", "webhooks", "name", "name"),
    ("JSONSchemaProps", "x-kubernetes-validations", "rule", "rule"),
    ("LoadBalancerIngress", "ports", "atomic", ""),
    ("IngressSpec", "tls", "atomic", ""),
    ("ServiceCIDRStatus", "conditions", "type", "type"),
    ("HorizontalPodAutoscalerStatus", "conditions", "type", "type"),
];

/// Definitions that server-side apply owns as a whole.
const ATOMIC: &[&str] = &[
    "OwnerReference",
    "RawExtension",
    "LabelSelector",
    "LocalObjectReference",
    "ObjectReference",
    "TypedLocalObjectReference",
    "ConfigMapKeySelector",
    "SecretKeySelector",
    "SecretReference",
    "ObjectFieldSelector",
    "ResourceFieldSelector",
    "FileKeySelector",
    "NodeSelector",
    "NodeSelectorTerm",
    "TopologySelectorTerm",
    "ScopeSelector",
    "ScopedResourceSelectorRequirement",
    "RoleRef",
    "Subject",
    "CrossVersionObjectReference",
    "EndpointPort",
    "EndpointAddress",
    "IngressServiceBackend.port",
    "ServiceBackendPort",
];

/// Maps that server-side apply owns as a whole.
const ATOMIC_FIELDS: &[(&str, &str)] = &[
    ("PodSpec", "nodeSelector"),
    ("ServiceSpec", "selector"),
    ("ReplicationControllerSpec", "selector"),
    ("ScopeSelector", "matchExpressions"),
    ("Scheduling", "nodeSelector"),
];

/// The part of a definition's name that the tables use.
fn short(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// How a definition's field is merged.
pub(super) fn merging(definition: &str, field: &str) -> (List, Strategy) {
    let definition = short(definition);
    let Some((_, _, list, strategy)) = LISTS.iter().find(|(d, f, ..)| *d == definition && *f == field) else {
        return Default::default();
    };
    let list = match *list {
        "atomic" => List::Atomic,
        "set" => List::Set,
        keys => List::Map(keys.split(',').map(Into::into).collect()),
    };
    let strategy = match *strategy {
        "" => Strategy::Replace,
        "set" => Strategy::Merge,
        key => Strategy::MergeBy(key.into()),
    };
    (list, strategy)
}

/// Whether server-side apply owns a definition's values as a whole.
pub(super) fn atomic(definition: &str) -> bool {
    ATOMIC.contains(&short(definition))
}

/// Whether server-side apply owns the map in a definition's field as a whole.
pub(super) fn atomic_field(definition: &str, field: &str) -> bool {
    ATOMIC_FIELDS.contains(&(short(definition), field))
}

/// The default that completes a list key which is not given.
pub(super) fn default_value(definition: &str, field: &str) -> Option<&'static str> {
    matches!((short(definition), field), ("ContainerPort" | "ServicePort", "protocol")).then_some("TCP")
}
