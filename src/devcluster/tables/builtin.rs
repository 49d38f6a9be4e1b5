//! The printers of the built-in kinds other than Pod and the workloads.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::workload as w;
use super::{Column, Printer, col, human, network, pod, storage, wide};

#[cfg(test)]
pub(super) const KINDS: &[(&str, &str)] = &[
    ("", "Pod"),
    ("", "Node"),
    ("", "Namespace"),
    ("", "ConfigMap"),
    ("", "Secret"),
    ("", "ServiceAccount"),
    ("", "Service"),
    ("", "Endpoints"),
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "ReplicationController"),
    ("coordination.k8s.io", "Lease"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "DaemonSet"),
    ("apps", "StatefulSet"),
    ("apps", "ControllerRevision"),
    ("batch", "Job"),
    ("batch", "CronJob"),
    ("policy", "PodDisruptionBudget"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("node.k8s.io", "RuntimeClass"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("apiregistration.k8s.io", "APIService"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("networking.k8s.io", "IPAddress"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("", "ResourceQuota"),
    ("", "PodTemplate"),
];

pub(super) const AGE: Column = col("Age", "string", "");

/// The printer of a built-in kind, when it has one of its own.
pub(super) fn printer((group, kind): (&str, &str)) -> Option<Printer> {
    let printer = |columns, cells| Some(Printer { columns, cells });
    match (group, kind) {
        ("", "Pod") => printer(pod::COLUMNS, pod::cells),
        ("", "Node") => printer(NODE, node),
        ("", "Namespace") => printer(NAMESPACE, |o, now| vec![text(o, "/status/phase").into(), age(o, now)]),
        ("", "ConfigMap") => {
            printer(DATA, |o, now| vec![(size(o, "/data") + size(o, "/binaryData")).into(), age(o, now)])
        }
        ("", "Secret") => printer(SECRET, |o, now| vec![text(o, "/type").into(), size(o, "/data").into(), age(o, now)]),
        ("", "ServiceAccount") => printer(SERVICE_ACCOUNT, |o, now| vec![age(o, now)]),
        ("", "Service") => printer(network::SERVICE, network::service),
        ("", "Endpoints") => printer(network::ENDPOINTS, |o, now| vec![network::endpoints(o).into(), age(o, now)]),
        ("" | "events.k8s.io", "Event") => printer(EVENT, event),
        ("", "PersistentVolume") => printer(storage::PV, storage::persistent_volume),
        ("", "PersistentVolumeClaim") => printer(storage::PVC, storage::persistent_volume_claim),
        ("coordination.k8s.io", "Lease") => {
            printer(LEASE, |o, now| vec![text(o, "/spec/holderIdentity").into(), age(o, now)])
        }
        ("", "ReplicationController") => printer(w::REPLICA_SET, w::replica_set),
        ("apps", "Deployment") => printer(w::DEPLOYMENT, w::deployment),
        ("apps", "ReplicaSet") => printer(w::REPLICA_SET, w::replica_set),
        ("apps", "DaemonSet") => printer(w::DAEMON_SET, w::daemon_set),
        ("apps", "StatefulSet") => printer(w::STATEFUL_SET, w::stateful_set),
        ("apps", "ControllerRevision") => printer(w::CONTROLLER_REVISION, w::controller_revision),
        ("batch", "Job") => printer(w::JOB, w::job),
        ("batch", "CronJob") => printer(w::CRON_JOB, w::cron_job),
        ("policy", "PodDisruptionBudget") => printer(w::BUDGET, w::budget),
        ("scheduling.k8s.io", "PriorityClass") => printer(PRIORITY_CLASS, |o, now| {
            let default = o.get("globalDefault").and_then(Value::as_bool).unwrap_or(false);
            let policy = match text(o, "/preemptionPolicy") {
                "" => "PreemptLowerPriority",
                other => other,
            };
            vec![int(o, "/value").into(), default.into(), age(o, now), policy.into()]
        }),
        ("node.k8s.io", "RuntimeClass") => {
            printer(RUNTIME_CLASS, |o, now| vec![text(o, "/handler").into(), age(o, now)])
        }
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            printer(ROLE, |o, _| vec![o.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default()])
        }
        ("rbac.authorization.k8s.io", "RoleBinding") => printer(ROLE_BINDING, binding),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => printer(CLUSTER_ROLE_BINDING, binding),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            printer(CRD, |o, _| vec![o.pointer("/metadata/creationTimestamp").cloned().unwrap_or_default()])
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => printer(CSR, signing_request),
        ("discovery.k8s.io", "EndpointSlice") => printer(network::SLICE, network::endpoint_slice),
        ("apiregistration.k8s.io", "APIService") => printer(API_SERVICE, api_service),
        ("storage.k8s.io", "StorageClass") => printer(storage::STORAGE_CLASS, storage::storage_class),
        ("storage.k8s.io", "CSIDriver") => printer(storage::CSI_DRIVER, storage::csi_driver),
        ("storage.k8s.io", "CSINode") => printer(storage::CSI_NODE, storage::csi_node),
        ("storage.k8s.io", "VolumeAttachment") => printer(storage::VOLUME_ATTACHMENT, storage::volume_attachment),
        ("networking.k8s.io", "Ingress") => printer(network::INGRESS, network::ingress),
        ("networking.k8s.io", "IngressClass") => printer(network::INGRESS_CLASS, network::ingress_class),
        ("networking.k8s.io", "IPAddress") => printer(network::IP_ADDRESS, network::ip_address),
        ("networking.k8s.io", "ServiceCIDR") => printer(network::SERVICE_CIDR, network::service_cidr),
        ("networking.k8s.io", "NetworkPolicy") => printer(network::NETWORK_POLICY, network::network_policy),
        ("", "ResourceQuota") => printer(w::QUOTA, w::quota),
        ("", "PodTemplate") => printer(w::POD_TEMPLATE, w::pod_template),
        _ => None,
    }
}

/// A string at a JSON pointer, empty when there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A whole number at a JSON pointer, 0 when there is none.
pub(super) fn int(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// A list at a JSON pointer, empty when there is none.
pub(super) fn array<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The number of keys of a map at a JSON pointer.
pub(super) fn size(value: &Value, pointer: &str) -> usize {
    value.pointer(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// The age cell.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(object, "/metadata/creationTimestamp", now).into()
}

/// The time since the timestamp at a JSON pointer.
pub(super) fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    human::since(text(object, pointer), now)
}

/// `<none>` for the empty string.
pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// `a=b,c=d`, `<none>` when empty; a label selector's expressions as `kubectl` writes them.
pub(super) fn selector(value: Option<&Value>) -> String {
    let Some(value) = value else { return "<none>".into() };
    let labels = value.get("matchLabels").unwrap_or(value);
    let mut parts: Vec<String> =
        labels.as_object().into_iter().flatten().filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?))).collect();
    for e in array(value, "/matchExpressions") {
        let key = text(e, "/key");
        let values = array(e, "/values").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
        parts.push(match text(e, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.into(),
        });
    }
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

const NODE: &[Column] = &[
    col("Status", "string", "The status of the node"),
    col("Roles", "string", "The roles of the node"),
    AGE,
    col("Version", "string", "Kubelet Version reported by the node."),
    wide("Internal-IP", "string", "List of addresses reachable to the node."),
    wide("External-IP", "string", "List of addresses reachable to the node."),
    wide(
        "OS-Image",
        "string",
        "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
    ),
    wide(
        "Kernel-Version",
        "string",
        "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
    ),
    wide(
        "Container-Runtime",
        "string",
        "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
    ),
];

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let ready = array(node, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_string();
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles = BTreeSet::new();
    for (label, value) in node.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        if let Some(role) = label.strip_prefix("node-role.kubernetes.io/") {
            roles.extend((!role.is_empty()).then_some(role));
        } else if label == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|v| !v.is_empty()));
        }
    }
    let roles = roles.into_iter().collect::<Vec<_>>().join(",");
    let address = |kind: &str| {
        let found = array(node, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
        or_none(found.map(|a| text(a, "/address")).unwrap_or_default())
    };
    let info = |field: &str| match text(node, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".to_string(),
        said => said.to_string(),
    };
    vec![
        status.into(),
        or_none(&roles).into(),
        age(node, now),
        text(node, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

const NAMESPACE: &[Column] = &[col("Status", "string", "The status of the namespace"), AGE];
const DATA: &[Column] = &[col("Data", "string", "Data contains the configuration data."), AGE];
const SECRET: &[Column] = &[
    col("Type", "string", "Used to facilitate programmatic handling of secret data."),
    col("Data", "string", "Data contains the secret data."),
    AGE,
];
const SERVICE_ACCOUNT: &[Column] = &[AGE];
const LEASE: &[Column] =
    &[col("Holder", "string", "holderIdentity contains the identity of the holder of a current lease."), AGE];
const RUNTIME_CLASS: &[Column] =
    &[col("Handler", "string", "handler specifies the underlying runtime that the CRI implementation will use."), AGE];
const ROLE: &[Column] = &[col("Created At", "date", "")];
const CRD: &[Column] = &[col("Created At", "date", "")];
const PRIORITY_CLASS: &[Column] = &[
    col("Value", "integer", "value represents the integer value of this priority class."),
    col("Global-Default", "boolean", "globalDefault specifies whether pods without a class get this one."),
    AGE,
    col("PreemptionPolicy", "string", "preemptionPolicy is the policy for preempting pods with lower priority."),
];
const EVENT: &[Column] = &[
    col("Last Seen", "string", "Time when this event was last observed"),
    col("Type", "string", "Type of this event (Normal, Warning), new types could be added in the future."),
    col("Reason", "string", "This should be a short, machine understandable string that gives the reason."),
    col("Object", "string", "The object that this event is about."),
    wide("Subobject", "string", "If referring to a piece of an object instead of an entire object."),
    wide("Source", "string", "The component reporting this event."),
    col("Message", "string", "A human-readable description of the status of this operation."),
    wide("First Seen", "string", "The time at which the event was first recorded."),
    wide("Count", "string", "The number of times this event has occurred."),
    wide("Name", "string", ""),
];

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        pointers.iter().map(|p| text(event, p)).find(|t| !t.is_empty()).unwrap_or_default().to_string()
    };
    let regarding = ["/involvedObject", "/regarding"].iter().find_map(|p| event.pointer(p)).unwrap_or(&Value::Null);
    let first = first_of(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last = first_of(&[
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
        "/eventTime",
        "/firstTimestamp",
    ]);
    let count = [int(event, "/series/count"), int(event, "/count"), int(event, "/deprecatedCount"), 1]
        .into_iter()
        .find(|c| *c > 0)
        .unwrap_or(1);
    // Each falls back by itself. printers/internalversion: `formatEventSource`.
    let component =
        first_of(&["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let host = first_of(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    let kind = text(regarding, "/kind").to_lowercase();
    let name = text(regarding, "/name");
    let object = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    vec![
        human::since(&last, now).into(),
        text(event, "/type").into(),
        text(event, "/reason").into(),
        object.into(),
        text(regarding, "/fieldPath").into(),
        source.into(),
        first_of(&["/message", "/note"]).trim().into(),
        human::since(&first, now).into(),
        count.into(),
        text(event, "/metadata/name").into(),
    ]
}

const ROLE_BINDING: &[Column] = &[
    col(
        "Role",
        "string",
        "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef \
         cannot be resolved, the Authorizer must return an error.",
    ),
    AGE,
    wide("Users", "string", "Users in the roleBinding"),
    wide("Groups", "string", "Groups in the roleBinding"),
    wide("ServiceAccounts", "string", "ServiceAccounts in the roleBinding"),
];

const CLUSTER_ROLE_BINDING: &[Column] = &[
    col(
        "Role",
        "string",
        "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the \
         Authorizer must return an error.",
    ),
    AGE,
    wide("Users", "string", "Users in the clusterRoleBinding"),
    wide("Groups", "string", "Groups in the clusterRoleBinding"),
    wide("ServiceAccounts", "string", "ServiceAccounts in the clusterRoleBinding"),
];

fn binding(binding: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &str| {
        let names: Vec<String> = array(binding, "/subjects")
            .iter()
            .filter(|s| text(s, "/kind") == kind)
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
                _ => text(s, "/name").to_string(),
            })
            .collect();
        names.join(", ")
    };
    let role = format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    vec![role.into(), age(binding, now), of("User").into(), of("Group").into(), of("ServiceAccount").into()]
}

const CSR: &[Column] = &[
    AGE,
    col("SignerName", "string", "signerName indicates the requested signer, and is a qualified name."),
    col("Requestor", "string", "username contains the name of the user that created the request."),
    col("RequestedDuration", "string", "expirationSeconds is the requested duration of validity."),
    col("Condition", "string", "Whether the request is pending, approved, denied or failed, and issued."),
];

fn signing_request(csr: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| array(csr, "/status/conditions").iter().any(|c| text(c, "/type") == kind);
    let mut condition = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        _ => "Pending",
    }
    .to_string();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !text(csr, "/status/certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let duration = csr.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    vec![
        age(csr, now),
        or_none(text(csr, "/spec/signerName")).into(),
        text(csr, "/spec/username").into(),
        duration.map_or_else(|| "<none>".into(), human::human_duration).into(),
        condition.into(),
    ]
}

const API_SERVICE: &[Column] = &[
    col("Service", "string", "The reference to the service that hosts this API endpoint."),
    col("Available", "string", "Whether this service is available."),
    AGE,
];

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match object.pointer("/spec/service").filter(|s| !s.is_null()) {
        Some(s) => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
        None => "Local".into(),
    };
    let available = array(object, "/status/conditions").iter().find(|c| text(c, "/type") == "Available");
    let available = match available {
        Some(c) if text(c, "/status") == "True" => "True".to_string(),
        Some(c) => format!("{} ({})", text(c, "/status"), text(c, "/reason")),
        None => "Unknown".into(),
    };
    vec![service.into(), available.into(), age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cordoned_node_says_so_and_lists_its_roles() {
        let object = json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/agent": "", "kubernetes.io/role": "virtual"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                       "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        });
        let got = node(&object, Timestamp::now());
        assert_eq!(got[0], "Ready,SchedulingDisabled");
        assert_eq!(got[1], "agent,virtual");
        assert_eq!(json!(got[3..]), json!(["v1", "10.0.0.1", "<none>", "<unknown>", "<unknown>", "<unknown>"]));
    }
}
