//! Rules of containers. kubernetes: `pkg/apis/core/validation`, `validateContainers`.

use kube_quantity::ParsedQuantity;
use serde_json::{Value, json};

use crate::status::FieldError;
use crate::validate::fields::{self, entries, items, not_found, not_negative, one_of, text};

/// Reads a quantity as text or as a number.
pub(crate) fn quantity(value: &Value) -> Option<ParsedQuantity> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    ParsedQuantity::try_from(text).ok()
}

/// Every quantity of a resource list must parse and be at least zero.
pub(crate) fn quantities(list: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in entries(list) {
        let path = format!("{path}.{name}");
        let zero = quantity(&json!("0"));
        match quantity(value) {
            None => errors.push(FieldError::invalid(
                path,
                value,
                "quantities must match the regular expression \
                '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            )),
            Some(amount) if zero.is_some_and(|zero| amount < zero) => {
                errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
            }
            Some(_) => {}
        }
    }
}

/// All containers of a pod's spec; `volumes` are the names that mounts may use.
pub(crate) fn validate(spec: &Value, path: &str, volumes: &[String], errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            fields::unique_name(container, &path, &mut names, errors);
            one(container, &path, volumes, errors);
            if list == "initContainers" {
                init_only(container, &path, errors);
            }
        }
    }
}

fn init_only(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if container["restartPolicy"] == "Always" {
        return;
    }
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if !container[field].is_null() {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
        }
    }
}

fn one(container: &Value, path: &str, volumes: &[String], errors: &mut Vec<FieldError>) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), &container["image"], detail));
    }
    one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], errors);
    one_of(container, "terminationMessagePolicy", path, &["FallbackToLogsOnError", "File"], errors);
    ports(container, path, errors);
    environment(container, path, errors);
    mounts(container, path, volumes, errors);
    resources(&container["resources"], &format!("{path}.resources"), errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            validate_probe(&container[probe], &format!("{path}.{probe}"), probe != "readinessProbe", errors);
        }
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            handler(&container["lifecycle"][hook], &format!("{path}.lifecycle.{hook}"), errors);
        }
    }
}

fn ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for (i, port) in items(&container["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(port, "name");
        if !name.is_empty() {
            if name.len() > 15 {
                let detail = "must be no more than 15 characters";
                errors.push(FieldError::invalid(format!("{path}.name"), &port["name"], detail));
            } else if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
            names.push(name);
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            fields::port(&port["containerPort"], &format!("{path}.containerPort"), errors);
        }
        if port["hostPort"].as_i64().unwrap_or(0) != 0 {
            fields::port(&port["hostPort"], &format!("{path}.hostPort"), errors);
        }
        one_of(port, "protocol", &path, &["SCTP", "TCP", "UDP"], errors);
    }
}

fn environment(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other \
        than '='";
    for (i, variable) in items(&container["env"]).iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = text(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
            errors.push(FieldError::invalid(format!("{path}.name"), &variable["name"], NAME));
        }
        let from = &variable["valueFrom"];
        if from.is_object() {
            let sources = entries(from).filter(|(_, source)| !source.is_null()).count();
            let path = format!("{path}.valueFrom");
            if !text(variable, "value").is_empty() {
                errors.push(FieldError::invalid(path, &json!(""), "may not be specified when `value` is not empty"));
            } else if sources == 0 {
                let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                    `secretKeyRef` or `fileKeyRef`";
                errors.push(FieldError::invalid(path, &json!(""), detail));
            } else if sources > 1 {
                let detail = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(path, &json!(""), detail));
            }
        }
    }
}

fn mounts(container: &Value, path: &str, volumes: &[String], errors: &mut Vec<FieldError>) {
    let mut paths = Vec::new();
    for (i, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.iter().any(|v| v == name) {
            errors.push(not_found(format!("{path}.name"), &mount["name"]));
        }
        let at = text(mount, "mountPath");
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if paths.contains(&at) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &mount["mountPath"], "must be unique"));
        }
        paths.push(at);
    }
}

/// Quantities parse, and nothing is requested beyond its limit.
pub(crate) fn resources(resources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    quantities(&resources["limits"], &format!("{path}.limits"), errors);
    quantities(&resources["requests"], &format!("{path}.requests"), errors);
    for (name, request) in entries(&resources["requests"]) {
        let limit = &resources["limits"][name];
        if let (false, Some(wanted), Some(most)) = (limit.is_null(), quantity(request), quantity(limit))
            && wanted > most
        {
            let limit = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(format!("{path}.requests"), request, &detail));
        }
    }
}

fn validate_probe(probe: &Value, path: &str, once: bool, errors: &mut Vec<FieldError>) {
    handler(probe, path, errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        not_negative(probe, key, path, errors);
    }
    if once && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1"));
    }
}

fn handler(handler: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let set: Vec<_> =
        ["exec", "httpGet", "tcpSocket", "grpc", "sleep"].into_iter().filter(|k| !handler[*k].is_null()).collect();
    if set.is_empty() {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    for extra in set.iter().skip(1) {
        errors.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type"));
    }
    if handler["exec"].is_object() && items(&handler["exec"]["command"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    for key in ["httpGet", "tcpSocket", "grpc"] {
        let port = &handler[key]["port"];
        if handler[key].is_object() && port.as_str().is_none_or(str::is_empty) {
            fields::port(port, &format!("{path}.{key}.port"), errors);
        }
    }
}
