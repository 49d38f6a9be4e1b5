//! The rules of single kinds that need the server: what is set on creation, and admission of pods.

use serde_json::{Value, json};

use super::{Api, Write, admission, crds, meta, now};
use crate::selector;
use crate::status::{ApiError, FieldError, Result};

const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Service addresses: 10.96.0.0/12 without its first hundred.
const SERVICE_NET: u32 = (10 << 24) | (96 << 16);
const SERVICE_NET_SIZE: u32 = 1 << 20;
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30_000..=32_767;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Before defaulting: what the server alone decides.
pub(crate) fn prepare_create(api: &Api, write: &Write<'_>, value: &mut Value) -> Result<()> {
    let kind = write.kind;
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if kind.is("", "namespaces") {
        let spec = value["spec"].as_object().and_then(|s| s.get("finalizers")).cloned();
        let mut finalizers: Vec<Value> = spec.and_then(|f| f.as_array().cloned()).unwrap_or_default();
        if !finalizers.contains(&json!("kubernetes")) {
            finalizers.push("kubernetes".into());
        }
        value["spec"] = json!({"finalizers": finalizers});
        value["status"] = json!({"phase": "Active"});
        value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    } else if kind.is("", "pods") {
        value["status"] = json!({"phase": "Pending"});
        let gated = value["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        if gated {
            value["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
                "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
                "observedGeneration": 1, "lastProbeTime": null, "lastTransitionTime": null}]);
        }
    } else if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
        crds::default(value);
        let errors = crds::validate(value);
        if !errors.is_empty() {
            return Err(ApiError::invalid(&kind.kind, &kind.group, &name, &errors));
        }
    } else if kind.is("batch", "jobs") {
        select_own_pods(value);
    } else if kind.is("certificates.k8s.io", "certificatesigningrequests") && value["spec"].is_object() {
        let info = write.user.info();
        for key in ["username", "uid", "groups", "extra"] {
            match info[key].is_null() {
                true => super::create::remove(&mut value["spec"], key),
                false => value["spec"][key] = info[key].clone(),
            }
        }
        value["status"] = json!({});
    } else if kind.is("", "nodes") {
        taint_not_ready(value);
    } else if kind.is("", "services") {
        allocate_service(api, value)?;
    }
    Ok(())
}

/// After defaulting: admission.
pub(crate) fn admit_create(api: &Api, write: &Write<'_>, value: &mut Value, _warnings: &mut [String]) -> Result<()> {
    admission::create(api, write, value)?;
    if write.kind.is("", "pods") && value["spec"].is_object() {
        if admission::node::is_mirror(value) {
            refuse_references(value)?;
        } else {
            admit_service_account(api, value)?;
        }
        admit_priority(api, value)?;
        admit_tolerations(value);
    }
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

/// Before defaulting an update.
pub(crate) fn prepare_update(api: &Api, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<()> {
    let kind = write.kind;
    admission::update(api, write, new, old)?;
    if kind.is("", "namespaces") && write.subresource != "finalize" {
        new["spec"] = old["spec"].clone();
    } else if kind.is("", "pods") && write.subresource == "status" {
        let ip = text(&new["status"], "podIP").to_owned();
        if !ip.is_empty() && new["status"]["podIPs"][0]["ip"] != ip.as_str() {
            new["status"]["podIPs"] = json!([{"ip": ip}]);
        }
    } else if kind.is("apiextensions.k8s.io", "customresourcedefinitions") && write.subresource.is_empty() {
        crds::default(new);
    } else if kind.is("", "services") && write.subresource.is_empty() && new["spec"].is_object() {
        for kept in ["clusterIP", "clusterIPs"] {
            if new["spec"].get(kept).is_none_or(|v| v.is_null() || v == "")
                && text(&new["spec"], "type") != "ExternalName"
            {
                new["spec"][kept] = old["spec"][kept].clone();
            }
        }
        allocate_service(api, new)?;
    }
    Ok(())
}

pub(crate) fn validate_update(write: &Write<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
    let kind = write.kind;
    let mut errors = Vec::new();
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions") && write.subresource.is_empty() {
        errors.extend(crds::validate(new));
        for field in ["group", "scope"] {
            if new["spec"][field] != old["spec"][field] {
                errors.push(FieldError::invalid(format!("spec.{field}"), &new["spec"][field], "field is immutable"));
            }
        }
    }
    errors
}

/// A new node is not ready until the node lifecycle controller has seen that it is. admission: `TaintNodesByCondition`.
fn taint_not_ready(node: &mut Value) {
    const KEY: &str = "node.kubernetes.io/not-ready";
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taint = json!({"key": KEY, "effect": "NoSchedule"});
    match node["spec"]["taints"].as_array_mut() {
        Some(taints) if taints.iter().any(|t| t["key"] == KEY && t["effect"] == "NoSchedule") => {}
        Some(taints) => taints.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
}

/// A Job selects its pods by its own uid.
fn select_own_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    if !job["spec"]["template"].is_object() {
        return;
    }
    if !job["spec"]["template"]["metadata"].is_object() {
        job["spec"]["template"]["metadata"] = json!({});
    }
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    for prefix in ["batch.kubernetes.io/", ""] {
        labels[format!("{prefix}controller-uid")] = uid.clone();
        labels[format!("{prefix}job-name")] = name.clone();
    }
    job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
}

/// Gives a service its address and its node ports.
fn allocate_service(api: &Api, service: &mut Value) -> Result<()> {
    let spec = &service["spec"];
    let kind = match text(spec, "type") {
        "" => "ClusterIP",
        other => other,
    }
    .to_owned();
    if !spec.is_object() || kind == "ExternalName" {
        return Ok(());
    }
    let services = api.resource("", "services");
    if text(spec, "clusterIP").is_empty() {
        let taken = |ip: &str| {
            let at = services.fields().iter().position(|f| &*f.name == "spec.clusterIP");
            let range = crate::store::Range { limit: 1, ..Default::default() };
            let same = |o: &crate::store::Object| at.and_then(|at| o.fields.get(at)).is_some_and(|v| **v == *ip);
            services.list(&api.store, &range, same).is_ok_and(|page| !page.objects.is_empty())
        };
        let free = (0..64).find_map(|_| {
            let host = 100 + rand::random_range(0..SERVICE_NET_SIZE - 200);
            let ip = std::net::Ipv4Addr::from(SERVICE_NET + host).to_string();
            (!taken(&ip)).then_some(ip)
        });
        let ip = free.ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?;
        service["spec"]["clusterIP"] = ip.into();
    }
    let ip = service["spec"]["clusterIP"].clone();
    if !service["spec"]["clusterIPs"].is_array() {
        service["spec"]["clusterIPs"] = json!([ip]);
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) == 0 {
                port["nodePort"] = rand::random_range(NODE_PORTS).into();
            }
        }
    }
    Ok(())
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
        for container in spec[list].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
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
    let spec = &mut pod["spec"];
    if let Some(name) = class["metadata"]["name"].as_str() {
        spec["priorityClassName"] = name.into();
    }
    spec["priority"] = class["value"].as_i64().unwrap_or(0).into();
    if !spec["preemptionPolicy"].is_string() {
        spec["preemptionPolicy"] = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").into();
    }
    Ok(())
}

/// Pods outlive a node's silence by five minutes unless they say otherwise. admission: `DefaultTolerationSeconds`.
fn admit_tolerations(pod: &mut Value) {
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

/// Disruption budgets that cover a pod, with their names.
pub(crate) fn budgets_of(api: &Api, pod: &Value) -> Vec<Value> {
    let namespace = text(&pod["metadata"], "namespace");
    let range = crate::store::Range { namespace: Some(namespace), ..Default::default() };
    let budgets = api.resource("policy", "poddisruptionbudgets");
    let all = budgets.list(&api.store, &range, |_| true).map(|page| page.objects).unwrap_or_default();
    let label = |key: &str| pod["metadata"]["labels"][key].as_str();
    let covers = |budget: &Value| {
        let selector = &budget["spec"]["selector"];
        selector.is_object() && selector::label_selector_matches(selector, label) == Some(true)
    };
    all.iter().map(|object| object.value()).filter(covers).collect()
}

/// Sets a condition of an object, keeping the time of its last transition when its status stays.
pub(crate) fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let mut condition =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()});
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(found) => {
            if found["status"] == condition["status"] {
                condition["lastTransitionTime"] = found["lastTransitionTime"].clone();
            }
            *found = condition;
        }
        None => list.push(condition),
    }
}
