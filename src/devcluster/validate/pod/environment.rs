//! Environment variables and where their values come from. kubernetes: `pkg/apis/core/validation`, `ValidateEnv`.

use serde_json::{Value, json};

use super::volumes::key_reference;
use crate::status::FieldError;
use crate::validate::fields::{entries, items, qualified_fault, subdomain_fault, text};

const NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that pods can be asked for at all.
const KNOWN: &[&str] =
    &["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn is_variable(name: &str) -> bool {
    name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

pub(super) fn environment(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, variable) in items(&container["env"]).iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = text(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !is_variable(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &variable["name"], NAME));
        }
        value_from(variable, &format!("{path}.valueFrom"), errors);
    }
    for (i, from) in items(&container["envFrom"]).iter().enumerate() {
        let (list, path) = (format!("{path}.envFrom"), format!("{path}.envFrom[{i}]"));
        if !is_variable(text(from, "prefix")) {
            errors.push(FieldError::invalid(format!("{path}.prefix"), &from["prefix"], NAME));
        }
        let sources: Vec<_> = ["configMapRef", "secretRef"].into_iter().filter(|key| from[*key].is_object()).collect();
        for key in &sources {
            let name = text(&from[*key], "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.{key}.name"), ""));
            } else if let Some(fault) = subdomain_fault(name) {
                errors.push(FieldError::invalid(format!("{path}.{key}.name"), &json!(name), fault));
            }
        }
        let fault = match sources.len() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(list, &json!(""), fault));
    }
}

fn value_from(variable: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let from = &variable["valueFrom"];
    if !from.is_object() {
        return;
    }
    if from["fieldRef"].is_object() {
        field_selector(&from["fieldRef"], &format!("{path}.fieldRef"), FIELDS, errors);
    }
    if from["resourceFieldRef"].is_object() {
        resource_selector(&from["resourceFieldRef"], &format!("{path}.resourceFieldRef"), Selects::Own, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if from[key].is_object() {
            key_reference(&from[key], &format!("{path}.{key}"), errors);
        }
    }
    let detail = match entries(from).filter(|(_, source)| !source.is_null()).count() {
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, &json!(""), detail));
}

/// A field of the pod that `allowed` names, or a label or annotation.
pub(super) fn field_selector(selector: &Value, path: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    let (version, field) = (text(selector, "apiVersion"), text(selector, "fieldPath"));
    if field.is_empty() {
        errors.push(FieldError::required(format!("{path}.fieldPath"), ""));
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|field| field.split_once("['"));
    let convertible = match subscript {
        _ if version != "v1" => Err(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations" | "metadata.labels", _)) => Ok(()),
        Some(_) => Err(format!("field label does not support subscript: {field}")),
        None if FIELDS.contains(&field) || KNOWN.contains(&field) || field == "spec.host" => Ok(()),
        None => Err(format!("field label not supported: {field}")),
    };
    if let Err(fault) = convertible {
        let detail = format!("error converting fieldPath: {fault}");
        errors.push(FieldError::invalid(format!("{path}.fieldPath"), &selector["fieldPath"], &detail));
        return;
    }
    match subscript {
        Some((of, key)) => {
            let key = if of == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
            if let Some(fault) = qualified_fault(&key) {
                errors.push(FieldError::invalid(path, &json!(key), fault));
            }
        }
        None if !allowed.contains(&field) => {
            errors.push(FieldError::not_supported(format!("{path}.fieldPath"), &selector["fieldPath"], allowed));
        }
        None => {}
    }
}

/// Whose resources are asked for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Selects {
    /// Those of the container that asks.
    Own,
    /// Those of the container that is named.
    Named,
}

/// An amount of a container's resources.
pub(super) fn resource_selector(selector: &Value, path: &str, whose: Selects, errors: &mut Vec<FieldError>) {
    let resource = text(selector, "resource");
    if whose == Selects::Named && text(selector, "containerName").is_empty() {
        errors.push(FieldError::required(format!("{path}.containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(format!("{path}.resource"), ""));
    } else if !RESOURCES.contains(&resource)
        && !["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix))
    {
        errors.push(FieldError::not_supported(format!("{path}.resource"), &selector["resource"], RESOURCES));
    }
    let divisor = text(selector, "divisor");
    let (allowed, of): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        _ => return,
    };
    if !matches!(divisor, "" | "0") && !allowed.contains(&divisor) {
        let detail = format!("only divisor's values 1m and 1 are supported with the {of} resource");
        errors.push(FieldError::invalid(format!("{path}.divisor"), &selector["resource"], &detail));
    }
}
