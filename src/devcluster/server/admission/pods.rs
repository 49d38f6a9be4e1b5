//! What pods are given before they are created: an account and its token, a priority, tolerations.
//! kubernetes: `plugin/pkg/admission`.

use serde_json::{Value, json};

use super::super::{Api, meta};
use super::node;
use crate::status::{ApiError, Result};

const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Admits a new pod.
pub(crate) fn create(api: &Api, value: &mut Value) -> Result<()> {
    if node::is_mirror(value) {
        refuse_references(value)?;
    } else {
        admit_service_account(api, value)?;
    }
    admit_priority(api, value)?;
    let class = text(&value["spec"], "runtimeClassName");
    if !class.is_empty() && api.get("node.k8s.io", "runtimeclasses", "", class).is_none() {
        let message = format!("pod rejected: RuntimeClass {class:?} not found");
        return Err(ApiError::forbidden("pods", "", text(&value["metadata"], "name"), &message));
    }
    if class.is_empty() && !value["spec"]["overhead"].is_null() {
        let message = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(ApiError::forbidden("pods", "", text(&value["metadata"], "name"), message));
    }
    tolerations(value);
    Ok(())
}

/// A pod that a node runs on its own has nothing that the cluster would have to give it.
fn refuse_references(pod: &Value) -> Result<()> {
    let refuse = |what: &str| {
        let message = format!("a mirror pod may not reference {what}");
        Err(ApiError::forbidden("pods", "", text(&pod["metadata"], "name"), &message))
    };
    if !text(&pod["spec"], "serviceAccountName").is_empty() {
        return refuse("service accounts");
    }
    match crate::auth::node::references(pod).iter().any(|(kind, _)| *kind == "secrets") {
        true => refuse("secrets"),
        false => Ok(()),
    }
}

/// The service account must exist; its token is mounted into every container.
fn admit_service_account(api: &Api, pod: &mut Value) -> Result<()> {
    let namespace = text(&pod["metadata"], "namespace").to_owned();
    let pod_name = text(&pod["metadata"], "name").to_owned();
    let spec = &mut pod["spec"];
    let name = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", "") => "default",
        ("", name) | (name, _) => name,
    }
    .to_owned();
    spec["serviceAccountName"] = name.as_str().into();
    spec["serviceAccount"] = name.as_str().into();
    let Some(account) = api.get("", "serviceaccounts", &namespace, &name) else {
        let message = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(ApiError::forbidden("pods", "", &pod_name, &message));
    };
    let account = account.value();
    if !spec["imagePullSecrets"].is_array() && account["imagePullSecrets"].is_array() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let mount = spec["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mount {
        mount_token(spec);
    }
    Ok(())
}

fn mount_token(spec: &mut Value) {
    let volume = meta::generate_name("kube-api-access-");
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().all(|m| m["mountPath"] != TOKEN_MOUNT) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT}));
                needed = true;
            }
        }
    }
    if !needed {
        return;
    }
    let projected = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match spec["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(projected),
        None => spec["volumes"] = json!([projected]),
    }
}

/// Resolves the priority class. admission: `Priority`.
fn admit_priority(api: &Api, pod: &mut Value) -> Result<()> {
    let name = text(&pod["spec"], "priorityClassName").to_owned();
    let class = if name.is_empty() {
        let classes = api.resource("scheduling.k8s.io", "priorityclasses");
        let all = classes.list(&api.store, &Default::default(), |_| true).map(|page| page.objects).unwrap_or_default();
        all.iter().map(|object| object.value()).find(|class| class["globalDefault"] == true)
    } else {
        let found = api.get("scheduling.k8s.io", "priorityclasses", "", &name);
        let Some(found) = found else {
            let message = format!("no PriorityClass with name {name} was found");
            return Err(ApiError::forbidden("pods", "", text(&pod["metadata"], "name"), &message));
        };
        Some(found.value())
    };
    let class = class.unwrap_or_default();
    let pod_name = text(&pod["metadata"], "name").to_owned();
    let spec = &mut pod["spec"];
    if let Some(name) = class["metadata"]["name"].as_str() {
        spec["priorityClassName"] = name.into();
    }
    let refuse = |message: String| Err(ApiError::forbidden("pods", "", &pod_name, &message));
    let computed = class["value"].as_i64().unwrap_or(0);
    if let Some(given) = spec["priority"].as_i64().filter(|given| *given != computed) {
        return refuse(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {computed} from the given PriorityClass name"
        ));
    }
    spec["priority"] = computed.into();
    let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
    if let Some(given) = spec["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        return refuse(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        ));
    }
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

/// Pods outlive a node's silence by five minutes unless they say otherwise. admission: `DefaultTolerationSeconds`.
pub(crate) fn tolerations(pod: &mut Value) {
    let spec = &mut pod["spec"];
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let (own, effect) = (text(t, "key"), text(t, "effect"));
            (own == key || own.is_empty() && text(t, "operator") == "Exists") && matches!(effect, "" | "NoExecute")
        };
        let list = &mut spec["tolerations"];
        if !list.is_array() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else { continue };
        if !list.iter().any(tolerates) {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    if spec["tolerations"].as_array().is_some_and(Vec::is_empty)
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("tolerations");
    }
}
