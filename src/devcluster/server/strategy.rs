//! The rules of single kinds that need the server: what is set on creation, and admission of pods.

use serde_json::{Value, json};

use super::{Api, Write, admission, now, services};
use crate::selector;
use crate::status::{ApiError, FieldError, Result};
use crate::validate;

const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Counts the templates that a DaemonSet has had.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

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
    } else if kind.is("", "pods") {
        value["status"] = json!({"phase": "Pending"});
        let gated = value["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        if gated {
            value["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
                "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": now()}]);
        }
    } else if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let versions = value["spec"]["versions"].as_array().into_iter().flatten();
        let stored: Vec<_> = versions.filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
        value["status"] = json!({"storedVersions": stored});
        let errors = validate::definition::validate(value);
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
        services::allocate(api, value)?;
    } else if kind.is("", "persistentvolumeclaims") || kind.is("", "persistentvolumes") {
        value["status"] = json!({"phase": "Pending"});
        let volume = kind.is("", "persistentvolumes");
        if volume {
            value["status"]["lastPhaseTransitionTime"] = now().into();
        }
        let protection = if volume { VOLUME_PROTECTION } else { CLAIM_PROTECTION };
        // plugin/admission/storage/storageobjectinuseprotection.
        let finalizers = value["metadata"]["finalizers"].take();
        let mut finalizers = finalizers.as_array().cloned().unwrap_or_default();
        if !finalizers.contains(&json!(protection)) {
            finalizers.push(protection.into());
        }
        value["metadata"]["finalizers"] = finalizers.into();
    }
    Ok(())
}

/// After defaulting: admission.
pub(crate) fn admit_create(api: &Api, write: &Write<'_>, value: &mut Value) -> Result<()> {
    admission::create(api, write, value)?;
    if write.kind.is("", "pods") && value["spec"].is_object() {
        admission::pods::create(api, value)?;
    }
    Ok(())
}

/// Before defaulting an update.
pub(crate) fn prepare_update(api: &Api, write: &Write<'_>, new: &mut Value, old: &Value) -> Result<()> {
    let kind = write.kind;
    admission::update(api, write, new, old)?;
    if kind.is("", "namespaces") && write.subresource != "finalize" {
        new["spec"] = old["spec"].clone();
    } else if kind.is("", "persistentvolumes") && write.subresource == "status" {
        if new["status"].is_object() && new["status"]["phase"] != old["status"]["phase"] {
            new["status"]["lastPhaseTransitionTime"] = now().into();
        }
    } else if kind.is("", "pods") && write.subresource == "ephemeralcontainers" {
        // Nothing else is changed through this path.
        let containers = new["spec"]["ephemeralContainers"].take();
        new["spec"] = old["spec"].clone();
        super::create::remove(&mut new["spec"], "ephemeralContainers");
        if containers.is_array() {
            new["spec"]["ephemeralContainers"] = containers;
        }
    } else if kind.is("", "pods") && write.subresource == "resize" {
        validate::resize::keep_but_resources(new, old);
    } else if kind.is("", "pods") && write.subresource == "status" {
        let ip = text(&new["status"], "podIP").to_owned();
        if !ip.is_empty() && new["status"]["podIPs"][0]["ip"] != ip.as_str() {
            new["status"]["podIPs"] = json!([{"ip": ip}]);
        } else if ip.is_empty() && new["status"]["podIPs"][0]["ip"].is_string() {
            new["status"]["podIP"] = new["status"]["podIPs"][0]["ip"].clone();
        }
    } else if kind.is("", "pods") && write.subresource.is_empty() && new["spec"].is_object() {
        if new["spec"]["tolerations"] != old["spec"]["tolerations"] {
            admission::pods::tolerations(new);
        }
    } else if kind.is("apps", "daemonsets") {
        let before = old["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|g| g.parse::<i64>().ok());
        let mut full = new.clone();
        (validate::rules("apps", "DaemonSet").default)(&mut full);
        let moved = write.subresource.is_empty() && full["spec"]["template"] != old["spec"]["template"];
        let generation = before.unwrap_or(1) + i64::from(moved);
        if !new["metadata"]["annotations"].is_object() {
            new["metadata"]["annotations"] = json!({});
        }
        new["metadata"]["annotations"][TEMPLATE_GENERATION] = generation.to_string().into();
    } else if kind.is("", "services") && write.subresource.is_empty() && new["spec"].is_object() {
        services::release(new, old);
        if new["spec"]["clusterIP"] != old["spec"]["clusterIP"]
            && new["spec"]["clusterIP"].is_string()
            && new["spec"]["clusterIPs"] == old["spec"]["clusterIPs"]
        {
            // A client that knows one address only means the list of it.
            new["spec"]["clusterIPs"] = json!([new["spec"]["clusterIP"]]);
        }
        for kept in ["clusterIP", "clusterIPs"] {
            if new["spec"].get(kept).is_none_or(|v| v.is_null() || v == "")
                && text(&new["spec"], "type") != "ExternalName"
            {
                new["spec"][kept] = old["spec"][kept].clone();
            }
        }
        services::allocate(api, new)?;
    }
    Ok(())
}

pub(crate) fn validate_update(write: &Write<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
    let kind = write.kind;
    let mut errors = Vec::new();
    if kind.is("", "pods") {
        match write.subresource {
            "status" => errors.extend(validate::validate_status(new, old)),
            "ephemeralcontainers" => errors.extend(validate::validate_ephemeral(new, old)),
            "resize" => errors.extend(validate::resize::validate(new, old)),
            // A node is given by binding alone, and these containers come by their own path.
            "" if ["nodeName", "ephemeralContainers"].iter().any(|key| new["spec"][*key] != old["spec"][*key]) => {
                errors.push(FieldError::forbidden("spec", validate::MAY_CHANGE));
            }
            _ => {}
        }
    } else if kind.is("", "nodes") && write.subresource.is_empty() {
        let (was, is) = (text(&old["spec"], "providerID"), text(&new["spec"], "providerID"));
        if !was.is_empty() && was != is {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", detail));
        }
        if text(&new["spec"], "externalID") != text(&old["spec"], "externalID") {
            errors.push(FieldError::forbidden("spec.externalID", "may not be updated"));
        }
    }
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions") && write.subresource.is_empty() {
        errors.extend(validate::definition::validate_update(new, old));
        let established = old["status"]["conditions"].as_array().into_iter().flatten();
        if established.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
            for name in ["kind", "plural"] {
                if new["spec"]["names"][name] != old["spec"]["names"][name] {
                    let value = &new["spec"]["names"][name];
                    errors.push(FieldError::invalid(format!("spec.names.{name}"), value, "field is immutable"));
                }
            }
        }
        for field in ["group", "scope"] {
            if new["spec"][field] != old["spec"][field] {
                errors.push(FieldError::invalid(format!("spec.{field}"), &new["spec"][field], "field is immutable"));
            }
        }
    }
    errors
}

/// After validation of an update: admission that looks at what will be.
pub(crate) fn admit_update(api: &Api, write: &Write<'_>, new: &Value, old: &Value) -> Result<()> {
    if write.kind.is("", "pods") && write.subresource == "resize" && new["spec"] != old["spec"] {
        // Whether the node can do it is asked of the node.
        let node = text(&old["spec"], "nodeName");
        if !node.is_empty() && api.get("", "nodes", "", node).is_none() {
            let message = format!("node {node:?} not found");
            return Err(ApiError::forbidden("pods", "", text(&new["metadata"], "name"), &message));
        }
    }
    Ok(())
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
    // What the client selects stays beside it, to be refused in validation.
    if !job["spec"]["selector"].is_object() {
        job["spec"]["selector"] = json!({});
    }
    if !job["spec"]["selector"]["matchLabels"].is_object() {
        job["spec"]["selector"]["matchLabels"] = json!({});
    }
    job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid;
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
