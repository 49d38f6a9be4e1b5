//! What Kubernetes takes and warns of. kubernetes: `pkg/api/pod/warnings.go` and the strategies' `WarningsOnCreate`.

use serde_json::Value;

use super::fields::{entries, items, label_fault, text};

/// Labels that others have replaced, since when, and by what.
const REPLACED: [(&str, &str, &str); 6] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
    ("node.alpha.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];

/// The warnings that a write is answered with; `old` is what it replaces.
pub(crate) fn warnings(group: &str, kind: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut said = Vec::new();
    if old.is_some_and(|old| kind == "Pod" || old["spec"] == new["spec"]) {
        return said;
    }
    let spec = &new["spec"];
    match (group, kind) {
        ("", "Pod") => {
            host_name(new, "this is used in the Pod's hostname", &mut said);
            pod(new, "", &mut said);
        }
        ("apps", "Deployment" | "ReplicaSet") | ("batch", "Job") => {
            if old.is_none() {
                host_name(new, "this is used in Pod names and hostnames", &mut said);
            }
            pod(&spec["template"], "spec.template.", &mut said);
        }
        ("apps", "DaemonSet" | "StatefulSet") => pod(&spec["template"], "spec.template.", &mut said),
        ("batch", "CronJob") => {
            if old.is_none() {
                host_name(new, "this is used in Pod names and hostnames", &mut said);
            }
            pod(&spec["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template.", &mut said);
        }
        ("", "Service") if !items(&spec["externalIPs"]).is_empty() => {
            said.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
        }
        ("", "PersistentVolume") if spec["persistentVolumeReclaimPolicy"] == "Recycle" => said.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .into(),
        ),
        ("networking.k8s.io", "Ingress")
            if old.is_none() && !new["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null() =>
        {
            said.push(
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
                    .into(),
            );
        }
        _ => {}
    }
    said
}

fn host_name(object: &Value, why: &str, said: &mut Vec<String>) {
    let name = text(&object["metadata"], "name");
    if let Some(fault) = label_fault(name) {
        said.push(format!(
            "metadata.name: {why}, which can result in surprising behavior; a DNS label is recommended: [{fault}]"
        ));
    }
}

/// A pod or a template, whose fields are at `path`.
fn pod(pod: &Value, path: &str, said: &mut Vec<String>) {
    let spec = &pod["spec"];
    for (key, _) in entries(&spec["nodeSelector"]) {
        if let Some((_, since, by)) = REPLACED.iter().find(|(old, ..)| old == key) {
            said.push(format!("{path}spec.nodeSelector[{key}]: deprecated since {since}; use {by:?} instead"));
        }
    }
    placement(spec, path, said);
    for (key, _) in entries(&pod["metadata"]["annotations"]) {
        let what = match key.as_str() {
            "scheduler.alpha.kubernetes.io/critical-pod" => {
                "non-functional in v1.16+; use the \"priorityClassName\" field instead"
            }
            "seccomp.security.alpha.kubernetes.io/pod" => {
                "non-functional in v1.27+; use the \"seccompProfile\" field instead"
            }
            key if key.starts_with("container.seccomp.security.alpha.kubernetes.io/") => {
                "non-functional in v1.27+; use the \"seccompProfile\" field instead"
            }
            key if key.starts_with("container.apparmor.security.beta.kubernetes.io/") => {
                "deprecated since v1.30; use the \"appArmorProfile\" field instead"
            }
            _ => continue,
        };
        said.push(format!("{path}metadata.annotations[{key}]: {what}"));
    }
    for (i, volume) in items(&spec["volumes"]).iter().enumerate() {
        for (source, since) in [("glusterfs", "deprecated in v1.25, non-functional in v1.26+")] {
            if volume[source].is_object() {
                said.push(format!("{path}spec.volumes[{i}].{source}: {since}"));
            }
        }
    }
    let mut addresses = Vec::new();
    for (i, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        if addresses.contains(&&alias["ip"]) {
            said.push(format!("{path}spec.hostAliases[{i}].ip: duplicate ip {}", alias["ip"]));
        }
        addresses.push(&alias["ip"]);
    }
    for (i, secret) in items(&spec["imagePullSecrets"]).iter().enumerate() {
        if text(secret, "name").is_empty() {
            said.push(format!("{path}spec.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
    containers(spec, path, said);
}

fn placement(spec: &Value, path: &str, said: &mut Vec<String>) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = &spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"];
    for (i, term) in items(terms).iter().enumerate() {
        for (j, rule) in items(&term["matchExpressions"]).iter().enumerate() {
            let at =
                format!("{path}spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[{i}].matchExpressions[{j}].key");
            replaced(text(rule, "key"), &at, said);
        }
    }
    for (i, constraint) in items(&spec["topologySpreadConstraints"]).iter().enumerate() {
        let at = format!("{path}spec.topologySpreadConstraints[{i}]");
        replaced(text(constraint, "topologyKey"), &format!("{at}.topologyKey"), said);
        if constraint["labelSelector"].is_null() {
            said.push(format!("{at}.labelSelector: a null labelSelector results in matching no pod"));
        }
    }
}

fn replaced(key: &str, path: &str, said: &mut Vec<String>) {
    if let Some((_, since, by)) = REPLACED.iter().find(|(old, ..)| *old == key) {
        said.push(format!("{path}: {key} is deprecated since {since}; use {by:?} instead"));
    }
}

fn containers(spec: &Value, path: &str, said: &mut Vec<String>) {
    let mut ports: Vec<(&Value, i64, &Value, String)> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}spec.{list}[{i}]");
            for kind in ["limits", "requests"] {
                for (name, amount) in entries(&container["resources"][kind]) {
                    if matches!(name.as_str(), "memory" | "ephemeral-storage")
                        && amount.as_str().is_some_and(|amount| amount.ends_with('m'))
                    {
                        said.push(format!(
                            "{path}.resources.{kind}[{name}]: fractional byte value {amount} is invalid, must be an \
                             integer"
                        ));
                    }
                }
            }
            let mut names = Vec::new();
            for (j, variable) in items(&container["env"]).iter().enumerate() {
                let name = text(variable, "name");
                // A value that is made of the one before does not hide it.
                if names.contains(&name) && !text(variable, "value").contains(&format!("$({name})")) {
                    said.push(format!(
                        "{path}.env[{j}]: hides previous definition of {name:?}, which may be dropped when using apply"
                    ));
                }
                names.push(name);
            }
            for (j, port) in items(&container["ports"]).iter().enumerate() {
                let key = (&port["protocol"], port["containerPort"].as_i64().unwrap_or(0), &port["hostPort"]);
                let at = format!("{path}.ports[{j}]");
                match ports.iter().find(|(protocol, number, host, _)| (*protocol, *number, *host) == key) {
                    Some((.., other)) => said.push(format!("{at}: duplicate port definition with {other}")),
                    None => ports.push((key.0, key.1, key.2, at)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_taken_with_a_warning_is_told() {
        let pod = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
        let container = |fields: Value| {
            let mut container = json!({"name": "c", "image": "i"});
            for (key, value) in entries(&fields) {
                container[key] = value.clone();
            }
            json!({"containers": [container]})
        };
        for (pod, beginning) in [
            (pod("a", json!({})), ""),
            (pod("a.b", json!({})), "metadata.name: this is used in the Pod's hostname, which"),
            (pod("a", json!({"imagePullSecrets": [{}]})), "spec.imagePullSecrets[0].name: invalid empty name"),
            (
                pod("a", json!({"nodeSelector": {"beta.kubernetes.io/os": "x"}})),
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ),
            (
                pod("a", container(json!({"env": [{"name": "A"}, {"name": "A", "value": "x"}]}))),
                "spec.containers[0].env[1]: hides previous definition of \"A\"",
            ),
            (pod("a", container(json!({"env": [{"name": "A"}, {"name": "A", "value": "$(A):x"}]}))), ""),
            (
                pod("a", container(json!({"ports": [{"containerPort": 1}, {"containerPort": 1}]}))),
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            ),
            (
                pod("a", container(json!({"resources": {"limits": {"memory": "1500m"}}}))),
                "spec.containers[0].resources.limits[memory]: fractional byte value \"1500m\" is invalid",
            ),
        ] {
            let said = warnings("", "Pod", &pod, None);
            assert_eq!(said.len(), usize::from(!beginning.is_empty()), "{said:?}");
            assert!(said.iter().all(|said| said.starts_with(beginning)), "{said:?}");
            assert!(warnings("", "Pod", &pod, Some(&json!({}))).is_empty(), "updates of pods are too many to warn of");
        }
    }
}
