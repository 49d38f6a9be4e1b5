//! What nodes may write: themselves, their lease, and the pods bound to them. admission: `NodeRestriction`.

use serde_json::Value;

use crate::auth::User;
use crate::auth::node::node_name;
use crate::auth::tokens::ISSUER;
use crate::kinds::Kind;
use crate::server::{Api, Write};
use crate::status::{ApiError, Result};
use crate::store::Object;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of Kubernetes' own domains that a kubelet sets.
const KUBELET_LABELS: [&str; 13] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/role",
];

fn refuse(kind: &Kind, object: &Value, message: &str) -> ApiError {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    ApiError::forbidden(&kind.plural, &kind.group, name, message)
}

pub(super) fn create(write: &Write<'_>, value: &Value) -> Result<()> {
    let Some(node) = node_name(write.user) else { return Ok(()) };
    let kind = write.kind;
    if kind.is("", "nodes") {
        own_node(kind, value, node)?;
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let set: Vec<&str> = labels.map(|(key, _)| key.as_str()).filter(|key| restricted(key)).collect();
        if !set.is_empty() {
            let message = format!("node {node:?} is not allowed to set the following labels: {}", set.join(", "));
            return Err(refuse(kind, value, &message));
        }
    } else if kind.is("", "pods") {
        if !is_mirror(value) {
            let message = format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
            return Err(refuse(kind, value, &message));
        }
        if value["spec"]["nodeName"] != node {
            let message = format!("node {node:?} can only create pods with spec.nodeName set to itself");
            return Err(refuse(kind, value, &message));
        }
    } else if kind.is("coordination.k8s.io", "leases") && value["metadata"]["name"] != node {
        let message = "can only access node lease with the same name as the requesting node";
        return Err(refuse(kind, value, message));
    }
    Ok(())
}

pub(super) fn update(write: &Write<'_>, new: &Value, old: &Value) -> Result<()> {
    let Some(node) = node_name(write.user) else { return Ok(()) };
    let kind = write.kind;
    if kind.is("", "nodes") {
        own_node(kind, old, node)?;
        let changed = changed_labels(new, old);
        let set: Vec<&str> = changed.into_iter().filter(|key| restricted(key)).collect();
        if !set.is_empty() {
            return Err(refuse(kind, old, &format!("is not allowed to modify labels: {}", set.join(", "))));
        }
        let nothing = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
        let same = |a: &Value, b: &Value| a == b || nothing(a) && nothing(b);
        for (what, pointer) in [("taints", "/spec/taints"), ("ownerReferences", "/metadata/ownerReferences")] {
            let of = |value: &Value| value.pointer(pointer).cloned().unwrap_or_default();
            if write.subresource.is_empty() && !same(&of(new), &of(old)) {
                return Err(refuse(kind, old, &format!("node {node:?} is not allowed to modify {what}")));
            }
        }
    } else if kind.is("", "pods") && write.subresource == "status" {
        if old["spec"]["nodeName"] != node {
            let message = format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself");
            return Err(refuse(kind, old, &message));
        }
        if !changed_labels(new, old).is_empty() {
            return Err(refuse(kind, old, &format!("node {node:?} cannot update labels through pod status")));
        }
    }
    Ok(())
}

/// Before an object is deleted.
pub(crate) fn delete(user: &User, kind: &Kind, object: &Object) -> Result<()> {
    let Some(node) = node_name(user).filter(|_| kind.is("", "pods")) else { return Ok(()) };
    let pod = object.value();
    match pod["spec"]["nodeName"] == node {
        true => Ok(()),
        false => {
            let message = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
            Err(refuse(kind, &pod, &message))
        }
    }
}

/// Before a pod is evicted.
pub(crate) fn evict(user: &User, kind: &Kind, pod: &Value) -> Result<()> {
    match node_name(user) {
        Some(node) if pod["spec"]["nodeName"] != node => {
            Err(refuse(kind, pod, &format!("node {node} can only evict pods with spec.nodeName set to itself")))
        }
        _ => Ok(()),
    }
}

/// Before a token of a service account is made: only for a pod of the node, and for what the pod mounts.
pub(crate) fn token(api: &Api, user: &User, kind: &Kind, account: &Value, spec: &Value) -> Result<()> {
    let Some(node) = node_name(user) else { return Ok(()) };
    let refuse = |message: &str| Err(refuse(kind, account, message));
    let bound = &spec["boundObjectRef"];
    let (name, uid) = (bound["name"].as_str().unwrap_or_default(), bound["uid"].as_str().unwrap_or_default());
    if bound["kind"] != "Pod" || name.is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let namespace = account["metadata"]["namespace"].as_str().unwrap_or_default();
    let Some(pod) = api.get("", "pods", namespace, name) else {
        return refuse(&format!("pod {name:?} not found"));
    };
    if *pod.uid != *uid {
        return refuse(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. \
             The object might have been deleted and then recreated"
        ));
    }
    let pod = pod.value();
    if pod["spec"]["nodeName"] != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    let mounted = mounted_audiences(&pod);
    for audience in spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !mounted.iter().any(|known| *known == audience || known.is_empty() && audience == ISSUER) {
            return refuse(&format!(
                "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
                user.name
            ));
        }
    }
    Ok(())
}

/// The audiences of the tokens that a pod mounts; the API server's own is empty.
fn mounted_audiences(pod: &Value) -> Vec<&str> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    let tokens = sources.map(|s| &s["serviceAccountToken"]).filter(|token| token.is_object());
    tokens.map(|token| token["audience"].as_str().unwrap_or_default()).collect()
}

/// Whether a pod only shows what a node runs on its own.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR].is_string()
}

fn own_node(kind: &Kind, value: &Value, node: &str) -> Result<()> {
    match value["metadata"]["name"].as_str() {
        Some(name) if name == node => Ok(()),
        name => {
            let message = format!("node {node:?} is not allowed to modify node {:?}", name.unwrap_or_default());
            Err(refuse(kind, value, &message))
        }
    }
}

fn changed_labels<'a>(new: &'a Value, old: &'a Value) -> Vec<&'a str> {
    let (new, old) = (&new["metadata"]["labels"], &old["metadata"]["labels"]);
    let keys = [new, old].into_iter().flat_map(|labels| labels.as_object().into_iter().flatten());
    let mut changed: Vec<&str> =
        keys.map(|(key, _)| key.as_str()).filter(|key| new.get(*key) != old.get(*key)).collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

/// Whether a label belongs to Kubernetes and not to its kubelets.
fn restricted(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return true;
    }
    (below("kubernetes.io") || below("k8s.io"))
        && !below("kubelet.kubernetes.io")
        && !below("node.kubernetes.io")
        && !KUBELET_LABELS.contains(&label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_set_the_labels_of_kubelets_and_none_that_select_workloads() {
        for (label, wanted) in [
            ("a", false),
            ("example.com/a", false),
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/anything", false),
            ("x.kubelet.kubernetes.io/y", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/a", true),
            ("foo.kubernetes.io/a", true),
            ("x.k8s.io/a", true),
            ("notkubernetes.io/a", false),
        ] {
            assert_eq!(restricted(label), wanted, "{label}");
        }
    }

    #[test]
    fn labels_that_came_went_or_changed_are_found() {
        let new = json!({"metadata": {"labels": {"a": "1", "b": "2", "c": "3"}}});
        let old = json!({"metadata": {"labels": {"a": "1", "b": "1", "d": "4"}}});
        assert_eq!(changed_labels(&new, &old), ["b", "c", "d"]);
        assert!(changed_labels(&json!({}), &json!({"metadata": {"labels": {}}})).is_empty());
    }
}
