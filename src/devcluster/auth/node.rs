//! The Node authorizer: a node's own user reads what pods bound to that node refer to, and nothing of others.
//!
//! kube-apiserver: `plugin/pkg/auth/authorizer/node`. Kubernetes keeps a graph of who refers to what; here the pods of
//! the namespace in question are looked through, which is enough for as many nodes as speak under their own names.

use serde_json::Value;

use super::{Action, User};
use crate::store::{Key, Range, ResourceId, Store};

const LEASES: &str = "kube-node-lease";

/// What the authorizer says. Only its permission is final: roles may still grant what it refuses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Opinion {
    Allowed,
    /// Not by this authorizer, for this reason.
    Refused(String),
    /// As the rules of the role `system:node` say.
    ByRules,
    /// The user is no node.
    None,
}

/// The node that a user is.
pub(crate) fn node_name(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:").filter(|name| !name.is_empty())?;
    user.in_group("system:nodes").then_some(name)
}

pub(crate) fn opinion(store: &Store, user: &User, action: &Action<'_>) -> Opinion {
    let Some(node) = node_name(user) else { return Opinion::None };
    if action.path.is_some() {
        return Opinion::ByRules;
    }
    let refused = |reason: &str| Opinion::Refused(reason.into());
    let related = || match refers(store, node, action) {
        true => Opinion::Allowed,
        false => Opinion::Refused(format!("no relationship found between node '{node}' and this object")),
    };
    let reads = matches!(action.verb, "get" | "list" | "watch");
    match (action.group, action.resource) {
        ("", "secrets" | "configmaps") => match () {
            () if !reads => refused("can only read resources of this type"),
            () if !action.subresource.is_empty() => refused("cannot read subresource"),
            () if action.name.is_empty() => refused("No Object name found"),
            () => related(),
        },
        ("", "persistentvolumeclaims") if action.subresource == "status" => Opinion::ByRules,
        ("", "persistentvolumeclaims" | "persistentvolumes") => match () {
            () if action.verb != "get" => refused("can only get individual resources of this type"),
            () if !action.subresource.is_empty() => refused("cannot get subresource"),
            () => related(),
        },
        ("", "serviceaccounts") => match (action.verb, action.subresource) {
            ("get", "") | ("create", "token") if !action.name.is_empty() => related(),
            _ => refused("can only create tokens for individual service accounts"),
        },
        ("", "pods") if reads && action.subresource.is_empty() => match () {
            () if action.verb == "get" || !action.name.is_empty() => related(),
            () if action.node == node => Opinion::Allowed,
            () => refused("can only list/watch pods with spec.nodeName field selector"),
        },
        ("", "nodes") if reads => match action.name {
            "" => Opinion::Refused(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name if name == node => Opinion::ByRules,
            name => Opinion::Refused(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        ("coordination.k8s.io", "leases") => match () {
            () if !matches!(action.verb, "get" | "create" | "update" | "patch" | "delete") => {
                refused("can only get, create, update, patch, or delete a node lease")
            }
            () if action.namespace != LEASES => {
                Opinion::Refused(format!("can only access leases in the {LEASES:?} system namespace"))
            }
            () if action.verb != "create" && action.name != node => {
                refused("can only access node lease with the same name as the requesting node")
            }
            () => Opinion::Allowed,
        },
        _ => Opinion::ByRules,
    }
}

/// Whether a pod bound to the node refers to the object of an action.
fn refers(store: &Store, node: &str, action: &Action<'_>) -> bool {
    let pods = |namespace: Option<&str>| -> Vec<Value> {
        let resource = store.resource(&ResourceId::new("", "pods"));
        let field = resource.fields().iter().position(|field| &*field.name == "spec.nodeName");
        let range = Range { namespace, ..Range::default() };
        let bound = |object: &crate::store::Object| {
            field.and_then(|at| object.fields.get(at)).is_none_or(|of_pod| **of_pod == *node)
        };
        let page = resource.list(store, &range, bound);
        let pods = page.map(|page| page.objects).unwrap_or_default();
        pods.iter().map(|pod| pod.value()).filter(|pod| pod["spec"]["nodeName"] == node).collect()
    };
    let name = action.name;
    match action.resource {
        "pods" => {
            let resource = store.resource(&ResourceId::new("", "pods"));
            let pod = resource.get(&Key::new(action.namespace, name));
            pod.is_some_and(|pod| pod.value()["spec"]["nodeName"] == node)
        }
        "persistentvolumes" => pods(None).iter().any(|pod| {
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            let claims = store.resource(&ResourceId::new("", "persistentvolumeclaims"));
            references(pod).iter().filter(|(kind, _)| *kind == "persistentvolumeclaims").any(|(_, claim)| {
                claims.get(&Key::new(namespace, claim)).is_some_and(|c| c.value()["spec"]["volumeName"] == name)
            })
        }),
        resource => pods(Some(action.namespace))
            .iter()
            .any(|pod| references(pod).iter().any(|(kind, referred)| *kind == resource && referred == name)),
    }
}

/// What a pod refers to: resource and name.
pub(crate) fn references(pod: &Value) -> Vec<(&'static str, String)> {
    fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
        value[key].as_array().into_iter().flatten()
    }
    let mut found = Vec::new();
    let mut note = |kind: &'static str, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push((kind, name.to_owned()));
        }
    };
    let spec = &pod["spec"];
    note("serviceaccounts", &spec["serviceAccountName"]);
    for secret in list(spec, "imagePullSecrets") {
        note("secrets", &secret["name"]);
    }
    for container in ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|key| list(spec, key)) {
        for variable in list(container, "env") {
            note("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
            note("configmaps", &variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for source in list(container, "envFrom") {
            note("secrets", &source["secretRef"]["name"]);
            note("configmaps", &source["configMapRef"]["name"]);
        }
    }
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    for volume in list(spec, "volumes") {
        note("secrets", &volume["secret"]["secretName"]);
        note("secrets", &volume["csi"]["nodePublishSecretRef"]["name"]);
        note("configmaps", &volume["configMap"]["name"]);
        note("persistentvolumeclaims", &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object() {
            let name = volume["name"].as_str().unwrap_or_default();
            note("persistentvolumeclaims", &format!("{pod_name}-{name}").into());
        }
        for source in list(&volume["projected"], "sources") {
            note("secrets", &source["secret"]["name"]);
            note("configmaps", &source["configMap"]["name"]);
        }
        for driver in ["azureFile", "cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            note("secrets", &volume[driver]["secretRef"]["name"]);
            note("secrets", &volume[driver]["secretName"]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Draft, Expect};
    use serde_json::json;

    fn store() -> std::sync::Arc<Store> {
        let store = Store::open(None);
        let put = |plural: &str, object: Value| {
            let resource = store.resource(&ResourceId::new("", plural));
            store.put(&resource, Draft::new(&object, &resource.fields()), Expect::Absent).unwrap();
        };
        put(
            "pods",
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n", "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"env": [{"name": "x", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}],
            "containers": [{"envFrom": [{"secretRef": {"name": "all"}}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "w", "projected": {"sources": [{"secret": {"name": "part"}}]}}]}}),
        );
        put(
            "pods",
            json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"nodeName": "m", "volumes": [
            {"name": "v", "secret": {"secretName": "foreign"}}]}}),
        );
        put(
            "persistentvolumeclaims",
            json!({"metadata": {"name": "claim", "namespace": "a"}, "spec": {"volumeName": "pv"}}),
        );
        store
    }

    #[test]
    fn a_node_reads_what_its_own_pods_refer_to() {
        let store = store();
        let node = User { name: "system:node:n".into(), groups: vec!["system:nodes".into()], ..User::default() };
        for (verb, what, namespace, name, allowed) in [
            ("get", "secrets", "a", "pull", true),
            ("get", "secrets", "a", "all", true),
            ("watch", "secrets", "a", "part", true),
            ("get", "secrets", "a", "foreign", false),
            ("get", "secrets", "b", "pull", false),
            ("list", "secrets", "a", "", false),
            ("update", "secrets", "a", "pull", false),
            ("get", "configmaps", "a", "cm", true),
            ("get", "configmaps", "a", "other", false),
            ("get", "persistentvolumeclaims", "a", "claim", true),
            ("get", "persistentvolumes", "", "pv", true),
            ("get", "persistentvolumes", "", "other", false),
            ("get", "pods", "a", "p", true),
            ("get", "pods", "a", "q", false),
            ("list", "pods", "", "", false),
            ("get", "nodes", "", "m", false),
            ("get", "serviceaccounts", "a", "sa", true),
            ("get", "serviceaccounts", "a", "other", false),
        ] {
            let action = Action { verb, resource: what, namespace, name, ..Action::default() };
            let got = opinion(&store, &node, &action);
            assert_eq!(got == Opinion::Allowed, allowed, "{verb} {what} {namespace}/{name}: {got:?}");
        }
        let own = Action { verb: "list", resource: "pods", node: "n", ..Action::default() };
        assert_eq!(opinion(&store, &node, &own), Opinion::Allowed);
        let own = Action { verb: "get", resource: "nodes", name: "n", ..Action::default() };
        assert_eq!(opinion(&store, &node, &own), Opinion::ByRules);
    }

    #[test]
    fn only_members_of_the_nodes_group_with_a_nodes_name_are_nodes() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).into()).collect(),
            ..User::default()
        };
        assert_eq!(node_name(&user("system:node:n", &["system:nodes"])), Some("n"));
        assert_eq!(node_name(&user("system:node:n", &["x"])), None);
        assert_eq!(node_name(&user("system:node:", &["system:nodes"])), None);
        assert_eq!(node_name(&user("joe", &["system:nodes"])), None);
    }
}
