//! From a VirtualNode and what its provider says to the Node that should be.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::live::Transition;
use crate::api::{VirtualNode, names};
use crate::provider::{NodeDescription, goarch};

/// The Kubernetes version whose kubelet we behave like.
const KUBERNETES: &str = "v1.36.0";
/// What the node can do beyond what every node can, sorted. API servers pass WebSockets on to nodes that
/// declare it, and speak SPDY to the others.
const DECLARED_FEATURES: [&str; 1] = ["ExtendWebSocketsToKubelet"];
/// What a node has when neither the VirtualNode nor the provider says.
const DEFAULT_CAPACITY: [(&str, &str); 4] =
    [("cpu", "4"), ("memory", "16Gi"), ("ephemeral-storage", "100Gi"), ("pods", "110")];

/// The labels, annotations and taints that a Node should have of us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// Labels, the default ones included.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Taints, the default one included.
    pub taints: Vec<Taint>,
    /// The node is to be cordoned because it is being emptied.
    pub cordon: bool,
}

/// The labels, annotations and taints of a VirtualNode's Node.
///
/// What the spec says wins over the defaults, but for the labels that name the node and its provider.
pub fn marks(vn: &VirtualNode, description: Option<&NodeDescription>) -> Marks {
    let name = vn.metadata.name.as_deref().unwrap_or_default();
    let spec = &vn.spec;
    let provider = spec.provider.name();
    let mut labels: BTreeMap<String, String> = [
        ("type", "virtual-kubelet"),
        ("kubernetes.io/role", "agent"),
        ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    labels.insert("kubernetes.io/os".into(), operating_system(vn, description));
    labels.insert("kubernetes.io/arch".into(), architecture(vn, description));
    labels.extend(spec.labels.clone());
    labels.insert("kubernetes.io/hostname".into(), name.into());
    labels.insert(names::PROVIDER_LABEL.into(), provider.into());

    let mut annotations = spec.annotations.clone();
    annotations.insert(names::OWNER_UID.into(), vn.metadata.uid.clone().unwrap_or_default());

    let default = Taint {
        key: names::PROVIDER_TAINT.into(),
        value: Some(provider.into()),
        effect: "NoSchedule".into(),
        time_added: None,
    };
    let mut taints = spec.taints.clone();
    if spec.default_taint && !taints.iter().any(|t| t.key == default.key && t.effect == default.effect) {
        taints.insert(0, default);
    }
    let cordon = spec.drain.requested || vn.metadata.deletion_timestamp.is_some();
    Marks { labels, annotations, taints, cordon }
}

fn operating_system(vn: &VirtualNode, description: Option<&NodeDescription>) -> String {
    let said = vn.spec.operating_system.clone().or_else(|| description?.operating_system.clone());
    said.unwrap_or_else(|| "linux".into())
}

fn architecture(vn: &VirtualNode, description: Option<&NodeDescription>) -> String {
    let said = vn.spec.architecture.clone().or_else(|| description?.architecture.clone());
    said.unwrap_or_else(|| goarch(std::env::consts::ARCH).into())
}

/// What the node has: the spec's word, then the provider's, then the defaults.
pub fn capacity(vn: &VirtualNode, description: Option<&NodeDescription>) -> BTreeMap<String, Quantity> {
    let mut capacity: BTreeMap<String, Quantity> =
        DEFAULT_CAPACITY.iter().map(|(k, v)| ((*k).into(), Quantity((*v).into()))).collect();
    capacity.extend(description.map(|d| d.capacity.clone()).unwrap_or_default());
    capacity.extend(vn.spec.capacity.clone());
    capacity
}

/// How the node is, as its `Ready` condition will say it.
#[derive(Clone, Debug, PartialEq)]
pub struct Readiness {
    /// May pods come?
    pub ready: bool,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Where the node's kubelet API is.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The address that pods of the control plane can reach.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

/// The addresses that the Node publishes.
pub fn addresses(vn: &VirtualNode, description: Option<&NodeDescription>, endpoint: &Endpoint) -> Vec<NodeAddress> {
    let mut addresses = vn.spec.addresses.clone();
    if addresses.is_empty() {
        addresses = description.map(|d| d.addresses.clone()).unwrap_or_default();
    }
    if addresses.is_empty() {
        // No Hostname: API servers would try it first, and it does not resolve.
        addresses = vec![NodeAddress { type_: "InternalIP".into(), address: endpoint.ip.to_string() }];
    }
    addresses
}

/// The Node's status. Times of transition are those of `before`, what the Node says now, where a condition has not
/// changed.
pub fn status(
    vn: &VirtualNode,
    description: Option<&NodeDescription>,
    endpoint: &Endpoint,
    readiness: &Readiness,
    before: &[Transition],
    now: Timestamp,
) -> NodeStatus {
    let capacity = capacity(vn, description);
    let mut allocatable = capacity.clone();
    allocatable.extend(vn.spec.allocatable.clone());

    let info = NodeSystemInfo {
        architecture: architecture(vn, description),
        operating_system: operating_system(vn, description),
        kubelet_version: format!("{KUBERNETES}-vnode-{}", env!("CARGO_PKG_VERSION")),
        container_runtime_version: format!("{}://{}", vn.spec.provider.name(), version(description)),
        os_image: "vnode".into(),
        // Required by the API, and unknown or without meaning here.
        machine_id: vn.metadata.uid.clone().unwrap_or_default(),
        system_uuid: vn.metadata.uid.clone().unwrap_or_default(),
        ..NodeSystemInfo::default()
    };
    NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: Some(addresses(vn, description, endpoint)),
        conditions: Some(conditions(description, readiness, before, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(endpoint.port) }),
        }),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).into()),
        node_info: Some(info),
        ..NodeStatus::default()
    }
}

fn version(description: Option<&NodeDescription>) -> &str {
    description.and_then(|d| d.version.as_deref()).unwrap_or(env!("CARGO_PKG_VERSION"))
}

fn conditions(
    description: Option<&NodeDescription>,
    readiness: &Readiness,
    before: &[Transition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let plain = |kind: &str, status: bool, reason: &str, message: &str| NodeCondition {
        type_: kind.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    // Kubelet's words, so that dashboards and people recognise them.
    let mut all = vec![
        plain("MemoryPressure", false, "KubeletHasSufficientMemory", "the provider reports no memory pressure"),
        plain("DiskPressure", false, "KubeletHasNoDiskPressure", "the provider reports no disk pressure"),
        plain("PIDPressure", false, "KubeletHasSufficientPID", "the provider reports no PID pressure"),
        plain("NetworkUnavailable", false, "ProviderNetwork", "the provider runs the network of its pods"),
    ];
    for said in description.map(|d| d.conditions.as_slice()).unwrap_or_default() {
        all.retain(|c| c.type_ != said.type_);
        all.push(NodeCondition { last_heartbeat_time: Some(Time(now)), ..said.clone() });
    }
    all.retain(|c| c.type_ != "Ready");
    all.push(plain("Ready", readiness.ready, &readiness.reason, &readiness.message));
    for condition in &mut all {
        let same = |old: &&Transition| *old.kind == *condition.type_ && *old.status == *condition.status;
        if let Some(since) = before.iter().find(same).and_then(|old| old.since) {
            condition.last_transition_time = Some(Time(since));
        }
    }
    all
}

/// A number for each statement of a status: each condition without its heartbeat, and each of the other parts that are
/// ours to say. Equal statements have equal numbers.
pub fn statements(status: &NodeStatus) -> Box<[u64]> {
    // All of them are strings and numbers, which always serialise.
    let number = |what: &str, said: serde_json::Result<Vec<u8>>| {
        let mut hasher = DefaultHasher::new();
        (what, said.unwrap_or_default()).hash(&mut hasher);
        hasher.finish()
    };
    let conditions = status.conditions.iter().flatten().map(|condition| {
        let timeless = NodeCondition { last_heartbeat_time: None, ..condition.clone() };
        number("condition", serde_json::to_vec(&timeless))
    });
    let parts = [
        number("capacity", serde_json::to_vec(&status.capacity)),
        number("allocatable", serde_json::to_vec(&status.allocatable)),
        number("addresses", serde_json::to_vec(&status.addresses)),
        number("endpoints", serde_json::to_vec(&status.daemon_endpoints)),
        number("features", serde_json::to_vec(&status.declared_features)),
        number("info", serde_json::to_vec(&status.node_info)),
    ];
    conditions.chain(parts).collect()
}

/// A number that two statuses share when they differ in nothing but their heartbeats.
pub fn digest(status: &NodeStatus) -> u64 {
    let mut hasher = DefaultHasher::new();
    statements(status).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::live::LiveNode;
    use serde_json::json;
    use std::time::Duration;

    fn virtual_node(spec: serde_json::Value) -> VirtualNode {
        let mut vn = json!({
            "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode", "metadata": {"name": "edge", "uid": "u-1"},
            "spec": {"provider": {"type": "mock", "mock": {}}},
        });
        json_patch_merge(&mut vn["spec"], spec);
        serde_json::from_value(vn).unwrap()
    }

    fn json_patch_merge(into: &mut serde_json::Value, more: serde_json::Value) {
        for (k, v) in more.as_object().unwrap() {
            into[k] = v.clone();
        }
    }

    fn quantity(status: &BTreeMap<String, Quantity>, name: &str) -> String {
        status[name].0.clone()
    }

    #[test]
    fn a_node_is_marked_as_virtual_and_tainted_by_default() {
        let marks = marks(&virtual_node(json!({})), None);
        for (key, value) in [
            ("type", "virtual-kubelet"),
            ("kubernetes.io/role", "agent"),
            ("kubernetes.io/hostname", "edge"),
            ("kubernetes.io/os", "linux"),
            ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
            ("vnode.dev/provider", "mock"),
        ] {
            assert_eq!(marks.labels.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(marks.annotations[names::OWNER_UID], "u-1");
        assert_eq!(marks.taints.len(), 1);
        assert_eq!((&*marks.taints[0].key, &*marks.taints[0].effect), ("virtual-kubelet.io/provider", "NoSchedule"));
    }

    #[test]
    fn the_default_taint_can_be_switched_off_or_replaced() {
        assert!(marks(&virtual_node(json!({"defaultTaint": false})), None).taints.is_empty());
        let own = json!({"taints": [{"key": "virtual-kubelet.io/provider", "value": "x", "effect": "NoSchedule"}]});
        let taints = marks(&virtual_node(own), None).taints;
        assert_eq!((taints.len(), taints[0].value.as_deref()), (1, Some("x")));
    }

    #[test]
    fn labels_that_identify_the_node_cannot_be_overridden() {
        let spec = json!({"labels": {"kubernetes.io/hostname": "other", "vnode.dev/provider": "x", "type": "mine"}});
        let labels = marks(&virtual_node(spec), None).labels;
        assert_eq!(labels["kubernetes.io/hostname"], "edge");
        assert_eq!(labels["vnode.dev/provider"], "mock");
        assert_eq!(labels["type"], "mine");
    }

    #[test]
    fn capacity_comes_from_the_spec_then_the_provider_then_the_defaults() {
        let vn = virtual_node(json!({"capacity": {"cpu": 8}, "allocatable": {"cpu": "7500m"}}));
        let description = NodeDescription {
            capacity: [("cpu".into(), Quantity("2".into())), ("memory".into(), Quantity("1Gi".into()))].into(),
            ..NodeDescription::default()
        };
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let readiness = Readiness { ready: true, reason: "KubeletReady".into(), message: String::new() };
        let status = status(&vn, Some(&description), &endpoint, &readiness, &[], Timestamp::UNIX_EPOCH);
        let capacity = status.capacity.unwrap();
        assert_eq!(quantity(&capacity, "cpu"), "8");
        assert_eq!(quantity(&capacity, "memory"), "1Gi");
        assert_eq!(quantity(&capacity, "pods"), "110");
        let allocatable = status.allocatable.unwrap();
        assert_eq!((quantity(&allocatable, "cpu"), quantity(&allocatable, "memory")), ("7500m".into(), "1Gi".into()));
        assert_eq!(status.addresses.unwrap().len(), 1);
    }

    #[test]
    fn declared_features_are_sorted_and_name_websockets() {
        assert!(DECLARED_FEATURES.is_sorted());
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let readiness = Readiness { ready: true, reason: "R".into(), message: String::new() };
        let status = status(&virtual_node(json!({})), None, &endpoint, &readiness, &[], Timestamp::UNIX_EPOCH);
        assert_eq!(status.declared_features.unwrap(), ["ExtendWebSocketsToKubelet"]);
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let vn = virtual_node(json!({}));
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let ready = |ready| Readiness { ready, reason: "R".into(), message: String::new() };
        let first = status(&vn, None, &endpoint, &ready(true), &[], at(1));
        let said = |status: &NodeStatus| Transition::all(status.conditions.clone().unwrap());
        let second = status(&vn, None, &endpoint, &ready(true), &said(&first), at(2));
        assert_eq!(digest(&first), digest(&second), "a heartbeat is no difference");
        let third = status(&vn, None, &endpoint, &ready(false), &said(&second), at(3));
        assert_ne!(digest(&second), digest(&third));
        let time = |s: &NodeStatus, kind: &str| {
            let conditions = s.conditions.as_deref().unwrap();
            conditions.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.clone().unwrap().0
        };
        assert_eq!((time(&second, "Ready"), time(&third, "Ready")), (at(1), at(3)));
        assert_eq!(time(&third, "DiskPressure"), at(1));
    }

    #[test]
    fn a_node_that_says_all_of_a_status_need_not_be_told() {
        let vn = virtual_node(json!({}));
        let endpoint = Endpoint { ip: [10, 0, 0, 1].into(), port: 20000 };
        let ready = Readiness { ready: true, reason: "R".into(), message: String::new() };
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let written = status(&vn, None, &endpoint, &ready, &[], at(100));
        let mut node = k8s_openapi::api::core::v1::Node { status: Some(written.clone()), ..Default::default() };
        // Somebody else's words do not matter.
        let others = NodeCondition { type_: "Burning".into(), ..Default::default() };
        node.status.as_mut().unwrap().conditions.as_mut().unwrap().push(others);
        let live = LiveNode::of(node.clone());
        let wanted = |endpoint: &Endpoint| status(&vn, None, endpoint, &ready, &live.conditions, at(130));
        assert_eq!(live.says(&wanted(&endpoint), at(130)), Some(Duration::from_secs(30)));
        assert_eq!(live.says(&wanted(&Endpoint { port: 20001, ..endpoint.clone() }), at(130)), None);
        node.status.as_mut().unwrap().capacity.as_mut().unwrap().insert("x/y".into(), Quantity("1".into()));
        assert_eq!(LiveNode::of(node).says(&wanted(&endpoint), at(130)), None, "it says more than there is");
    }
}
