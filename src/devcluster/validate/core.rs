//! Secrets, ConfigMaps and Services.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::fields::{
    child, config_key_fault, entries, fill, immutable, items, items_mut, label_selector, text, too_long,
};
use crate::status::FieldError;

const DATA_LIMIT: usize = 1 << 20;

/// Folds `stringData` into `data`.
pub(crate) fn default_secret(secret: &mut Value) {
    fill(secret, "type", "Opaque");
    let plain = secret.as_object_mut().and_then(|map| map.remove("stringData")).unwrap_or_default();
    if entries(&plain).next().is_some() {
        fill(secret, "data", json!({}));
    }
    for (key, value) in entries(&plain) {
        if let Some(data) = child(secret, "data") {
            data[key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
        }
    }
}

pub(crate) fn validate_secret(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in entries(&new["data"]) {
        let path = format!("data[{key}]");
        if let Some(fault) = config_key_fault(key) {
            errors.push(FieldError::invalid(path.as_str(), &json!(key), fault));
        }
        match value.as_str().map(|text| STANDARD.decode(text)) {
            Some(Ok(bytes)) => size += bytes.len(),
            // The value stays out of the message: it may well be the secret itself.
            Some(Err(_)) => errors.push(FieldError::invalid(path, &json!("<redacted>"), "illegal base64 data")),
            None => {}
        }
    }
    if size > DATA_LIMIT {
        errors.push(too_long("data", DATA_LIMIT));
    }
    for key in required_keys(text(new, "type")) {
        if new["data"][*key].is_null() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    let basic = new["data"]["username"].is_null() && new["data"]["password"].is_null();
    if text(new, "type") == "kubernetes.io/basic-auth" && basic {
        for key in ["username", "password"] {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    if text(new, "type") == "kubernetes.io/service-account-token" {
        const ACCOUNT: &str = "kubernetes.io/service-account.name";
        if text(&new["metadata"]["annotations"], ACCOUNT).is_empty() {
            errors.push(FieldError::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
        }
    }
    for (kind, key) in [("dockerconfigjson", ".dockerconfigjson"), ("dockercfg", ".dockercfg")] {
        let said = text(&new["data"], key);
        if text(new, "type").strip_prefix("kubernetes.io/") == Some(kind)
            && let Ok(bytes) = STANDARD.decode(said)
            && !new["data"][key].is_null()
            && let Some(fault) = map_fault(&bytes)
        {
            let shown = json!("<secret contents redacted>");
            errors.push(FieldError::invalid(format!("data[{key}]"), &shown, &fault));
        }
    }
    if let Some(old) = old {
        immutable(&new["type"], &old["type"], "type", &mut errors);
        frozen(new, old, &["data"], "immutable", &mut errors);
    }
    errors
}

/// Why bytes are no JSON object.
fn map_fault(bytes: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(other) => {
            let given = crate::server::http::said(&other);
            Some(format!("json: cannot unmarshal {given} into Go value of type map[string]interface {{}}"))
        }
        Err(_) => Some(crate::server::scan::fault(bytes)),
    }
}

/// What a secret of a type must have.
fn required_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

pub(crate) fn validate_config_map(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for list in ["data", "binaryData"] {
        for (key, value) in entries(&new[list]) {
            let path = format!("{list}[{key}]");
            if let Some(fault) = config_key_fault(key) {
                errors.push(FieldError::invalid(path.as_str(), &json!(key), fault));
            }
            if list == "data" && !new["binaryData"][key].is_null() {
                errors.push(FieldError::invalid(path, &json!(key), "duplicate of key present in binaryData"));
            }
            size += value.as_str().unwrap_or_default().len();
        }
    }
    if size > DATA_LIMIT {
        errors.push(too_long("", DATA_LIMIT));
    }
    if let Some(old) = old {
        frozen(new, old, &["data", "binaryData"], "immutable", &mut errors);
    }
    errors
}

fn frozen(new: &Value, old: &Value, lists: &[&str], flag: &str, errors: &mut Vec<FieldError>) {
    if old[flag] != true {
        return;
    }
    for field in [&[flag][..], lists].concat() {
        if !super::fields::same(&new[field], &old[field]) {
            errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

/// Every namespace can be selected by its name.
pub(crate) fn default_namespace(namespace: &mut Value) {
    let name = text(&namespace["metadata"], "name").to_owned();
    if !name.is_empty()
        && let Some(meta) = child(namespace, "metadata")
    {
        fill(meta, "labels", json!({}));
        meta["labels"]["kubernetes.io/metadata.name"] = name.into();
    }
}

pub(crate) fn default_endpoints(endpoints: &mut Value) {
    for subset in items_mut(endpoints, "subsets") {
        for port in items_mut(subset, "ports") {
            fill(port, "protocol", "TCP");
        }
    }
}

pub(crate) fn default_endpoint_slice(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        fill(port, "protocol", "TCP");
        if port.get("name").is_none_or(Value::is_null) {
            port["name"] = "".into();
        }
    }
}

pub(crate) fn default_claim(claim: &mut Value) {
    if let Some(spec) = child(claim, "spec") {
        fill(spec, "volumeMode", "Filesystem");
    }
}

pub(crate) fn default_volume(volume: &mut Value) {
    if let Some(spec) = child(volume, "spec") {
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill(spec, "volumeMode", "Filesystem");
        if let Some(path) = child(spec, "hostPath") {
            fill(path, "type", "");
        }
    }
}

pub(crate) fn default_ingress_class(class: &mut Value) {
    if let Some(parameters) = child(class, "spec").and_then(|spec| child(spec, "parameters")) {
        fill(parameters, "scope", "Cluster");
    }
}

pub(crate) fn default_csi_driver(driver: &mut Value) {
    let Some(spec) = child(driver, "spec") else { return };
    fill(spec, "attachRequired", true);
    fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    fill(spec, "volumeLifecycleModes", json!(["Persistent"]));
    for off in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        fill(spec, off, false);
    }
}

pub(crate) fn default_network_policy(policy: &mut Value) {
    let Some(spec) = child(policy, "spec") else { return };
    let mut types = vec!["Ingress"];
    if !items(&spec["egress"]).is_empty() {
        types.push("Egress");
    }
    fill(spec, "policyTypes", json!(types));
}

pub(crate) fn default_priority_class(class: &mut Value) {
    fill(class, "preemptionPolicy", "PreemptLowerPriority");
}

pub(crate) fn default_storage_class(class: &mut Value) {
    fill(class, "reclaimPolicy", "Delete");
    fill(class, "volumeBindingMode", "Immediate");
}

pub(crate) fn default_service(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    fill(spec, "type", "ClusterIP");
    fill(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        fill(spec, "sessionAffinityConfig", json!({}));
        if let Some(client) = child(spec, "sessionAffinityConfig") {
            fill(client, "clientIP", json!({}));
            if let Some(client) = child(client, "clientIP") {
                fill(client, "timeoutSeconds", 10_800);
            }
        }
    } else if let Some(spec) = spec.as_object_mut() {
        spec.remove("sessionAffinityConfig");
    }
    if spec["type"] == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if spec["type"] != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in items_mut(spec, "ports") {
        fill(port, "protocol", "TCP");
        let number = port["port"].clone();
        if port["targetPort"] == 0 {
            port["targetPort"] = Value::Null;
        }
        fill(port, "targetPort", number);
    }
}

/// A PodDisruptionBudget says either how many pods there must be or how many may be missing.
pub(crate) fn validate_budget(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let (least, most) = (&spec["minAvailable"], &spec["maxUnavailable"]);
    if !least.is_null() && !most.is_null() {
        let policy = &spec["unhealthyPodEvictionPolicy"];
        let shown = format!(
            "{{\"MinAvailable\":{least},\"Selector\":{},\"MaxUnavailable\":{most},\"UnhealthyPodEvictionPolicy\":{policy}}}",
            spec["selector"]
        );
        errors.push(FieldError::invalid_shown("spec", &shown, "minAvailable and maxUnavailable cannot be both set"));
    }
    for (key, value) in [("minAvailable", least), ("maxUnavailable", most)] {
        let path = format!("spec.{key}");
        match value {
            Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
                errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
            }
            Value::String(text) => match text.strip_suffix('%').and_then(|n| n.parse::<u64>().ok()) {
                None => {
                    let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
                                  or '93%', regex used for validation is '[0-9]+%')";
                    errors.push(FieldError::invalid(path, value, detail));
                }
                Some(n) if n > 100 => errors.push(FieldError::invalid(path, value, "must not be greater than 100%")),
                Some(_) => {}
            },
            _ => {}
        }
    }
    label_selector(&spec["selector"], "spec.selector", &mut errors);
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    let policy = &spec["unhealthyPodEvictionPolicy"];
    if policy.as_str().is_some_and(|p| !policies.contains(&p)) {
        errors.push(FieldError::not_supported("spec.unhealthyPodEvictionPolicy", policy, &policies));
    }
    errors
}
