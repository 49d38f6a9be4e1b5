//! Names that other programs and people see.

/// The API group of our kinds.
pub const GROUP: &str = "vnode.dev";
/// Keeps a VirtualNode until its pods, Lease and Node are gone.
pub const FINALIZER: &str = "vnode.dev/agent";
/// Field manager of the fields of a Node and a VirtualNode that we set.
pub const FIELD_MANAGER: &str = "vnode";
/// Field manager of the Node's labels, annotations and taints, which a VirtualNode's edit may take away.
pub const NODE_SPEC_MANAGER: &str = "vnode-node";
/// `reportingComponent` of our events.
pub const EVENT_COMPONENT: &str = "vnode";

/// Annotation on a Node: the uid of the VirtualNode that owns it. Without ours, a Node is not touched.
pub const OWNER_UID: &str = "vnode.dev/owner-uid";
/// Label on a Node: its provider's type. Every Node of ours has it, and the fleet's Node watch selects by it.
pub const PROVIDER_LABEL: &str = "vnode.dev/provider";

/// Key of the default taint; its value is the provider's type.
pub const PROVIDER_TAINT: &str = "virtual-kubelet.io/provider";

/// Where the heartbeats of nodes live.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// How long a node's Lease is good for. kubelet: `nodeLeaseDurationSeconds`.
pub const LEASE_DURATION: std::time::Duration = std::time::Duration::from_secs(40);
/// How often a node's Lease is renewed: a quarter of its duration, as kubelet does.
pub const LEASE_RENEWAL: std::time::Duration = std::time::Duration::from_secs(10);
/// How often a Node's status is written when nothing in it has changed. kubelet: `nodeStatusReportFrequency`.
pub const NODE_STATUS_INTERVAL: std::time::Duration = std::time::Duration::from_secs(300);
