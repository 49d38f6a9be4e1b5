//! Secrets, ConfigMaps and Services.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::fields::{
    child, config_key_fault, entries, fill, immutable, items, items_mut, one_of, port, text, too_long,
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
    if let Some(old) = old {
        immutable(&new["type"], &old["type"], "type", &mut errors);
        frozen(new, old, &["data"], "immutable", &mut errors);
    }
    errors
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

pub(crate) fn default_service(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    fill(spec, "type", "ClusterIP");
    fill(spec, "sessionAffinity", "None");
    if spec["type"] != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
        fill(spec, "ipFamilies", json!(["IPv4"]));
        fill(spec, "ipFamilyPolicy", "SingleStack");
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in items_mut(spec, "ports") {
        fill(port, "protocol", "TCP");
        let number = port["port"].clone();
        fill(port, "targetPort", number);
    }
}

pub(crate) fn validate_service(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let ports = items(&spec["ports"]);
    if ports.is_empty() && spec["type"] != "ExternalName" && spec["clusterIP"] != "None" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    for (i, item) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        if ports.len() > 1 && text(item, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        port(&item["port"], &format!("{path}.port"), &mut errors);
        one_of(item, "protocol", &path, &["SCTP", "TCP", "UDP"], &mut errors);
    }
    one_of(spec, "type", "spec", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &mut errors);
    errors
}
