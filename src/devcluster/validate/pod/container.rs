//! Rules of containers. kubernetes: `pkg/apis/core/validation`, `validateContainers`.

use kube_quantity::ParsedQuantity;
use serde_json::{Value, json};

use super::environment::environment;
use super::{security, volumes::mounts};
use crate::status::FieldError;
use crate::validate::fields::{self, entries, items, not_negative, one_of, port_name_faults, text};

/// Reads a quantity as text or as a number.
pub(crate) fn quantity(value: &Value) -> Option<ParsedQuantity> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    ParsedQuantity::try_from(text).ok()
}

/// Every quantity of a resource list must parse and be at least zero.
pub(crate) fn quantities(list: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (name, value) in entries(list) {
        let path = format!("{path}[{name}]");
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
    let stop_within = spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    for list in ["containers", "initContainers"] {
        let mut taken = Vec::new();
        for (i, container) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            fields::unique_name(container, &path, &mut names, errors);
            one(container, &path, volumes, errors);
            host_ports(container, &path, &mut taken, errors);
            pause(&container["lifecycle"], &path, stop_within, errors);
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
    one_of(container, "terminationMessagePolicy", path, &["File", "FallbackToLogsOnError"], errors);
    one_of(container, "imagePullPolicy", path, &["Always", "IfNotPresent", "Never"], errors);
    security::container(&container["securityContext"], path, errors);
    for policy in items(&container["resizePolicy"]) {
        let path = format!("{path}.resizePolicy");
        for (key, allowed) in
            [("resourceName", ["cpu", "memory"]), ("restartPolicy", ["NotRequired", "RestartContainer"])]
        {
            if !allowed.contains(&text(policy, key)) {
                errors.push(FieldError::not_supported(path.as_str(), &json!(text(policy, key)), &allowed));
            }
        }
    }
    one_of(container, "restartPolicy", path, &["Always", "Never", "OnFailure"], errors);
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
            let faults = port_name_faults(name);
            for detail in &faults {
                errors.push(FieldError::invalid(format!("{path}.name"), &port["name"], detail));
            }
            if faults.is_empty() && names.contains(&name) {
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

/// A port of the node is given to one container.
fn host_ports(container: &Value, path: &str, taken: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    for (i, port) in items(&container["ports"]).iter().enumerate() {
        let number = port["hostPort"].as_i64().unwrap_or(0);
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
        if taken.contains(&key) {
            errors.push(FieldError::duplicate(format!("{path}.ports[{i}].hostPort"), &json!(key)));
        }
        taken.push(key);
    }
}

/// A hook that sleeps must end before the container is killed.
fn pause(lifecycle: &Value, path: &str, within: i64, errors: &mut Vec<FieldError>) {
    for hook in ["postStart", "preStop"] {
        let seconds = &lifecycle[hook]["sleep"]["seconds"];
        if seconds.as_i64().is_some_and(|n| n < 0 || n > within) {
            let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({within})");
            errors.push(FieldError::invalid(format!("{path}.lifecycle.{hook}.sleep"), seconds, &detail));
        }
    }
}

/// Quantities parse, and nothing is requested beyond its limit.
pub(crate) fn resources(resources: &Value, path: &str, errors: &mut Vec<FieldError>) {
    quantities(&resources["limits"], &format!("{path}.limits"), errors);
    quantities(&resources["requests"], &format!("{path}.requests"), errors);
    for list in ["limits", "requests"] {
        for (name, amount) in entries(&resources[list]) {
            resource_name(name, amount, &format!("{path}.{list}[{name}]"), errors);
        }
    }
    for (name, _) in entries(&resources["requests"]).filter(|(name, _)| is_extended(name)) {
        if resources["limits"][name].is_null() {
            let detail = "Limit must be set for non overcommitable resources";
            errors.push(FieldError::required(format!("{path}.limits"), detail));
        }
    }
    for (name, request) in entries(&resources["requests"]) {
        let limit = &resources["limits"][name];
        let (false, Some(wanted), Some(most)) = (limit.is_null(), quantity(request), quantity(limit)) else {
            continue;
        };
        let whole = is_extended(name) || name.starts_with(HUGE);
        let rule = match whole {
            true if wanted != most => "equal to",
            false if wanted > most => "less than or equal to",
            _ => continue,
        };
        let limit = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
        let detail = format!("must be {rule} {name} limit of {limit}");
        errors.push(FieldError::invalid(format!("{path}.requests"), request, &detail));
    }
    let both = || ["limits", "requests"].into_iter().flat_map(|list| entries(&resources[list]));
    let named = |wanted: fn(&str) -> bool| both().any(|(name, _)| wanted(name));
    if named(|name| name.starts_with(HUGE)) && !named(|name| matches!(name, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Pages of memory by their size, as in `hugepages-2Mi`.
const HUGE: &str = "hugepages-";

/// A resource of the node's devices, which is counted in whole pieces.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

fn resource_name(name: &str, amount: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE);
    if let Some(fault) = fields::qualified_fault(name) {
        errors.push(FieldError::invalid(path, &json!(name), fault));
    } else if !standard && !name.contains('/') {
        for detail in
            ["must be a standard resource type or fully qualified", "must be a standard resource for containers"]
        {
            errors.push(FieldError::invalid(path, &json!(name), detail));
        }
    }
    if let Some(size) = name.strip_prefix(HUGE)
        && let (Some(size), Some(given)) = (bytes(size), amount.as_str().and_then(bytes))
        && (given == 0 || given % size != 0)
    {
        let detail = format!("{} is not positive integer multiple of {name}", amount.as_str().unwrap_or_default());
        errors.push(FieldError::invalid(path, amount, &detail));
    }
    // Quantities have been rewritten: parts of a whole are thousandths or less.
    if is_extended(name) && amount.as_str().is_some_and(|amount| amount.ends_with(['m', 'u', 'n'])) {
        errors.push(FieldError::invalid(path, amount, "must be an integer"));
    }
}

/// A whole number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = ["", "Ki", "Mi", "Gi", "Ti"].iter().position(|known| *known == unit)?;
    number.parse::<u64>().ok()?.checked_mul(1 << (10 * shift)).filter(|_| !number.is_empty())
}

fn validate_probe(probe: &Value, path: &str, once: bool, errors: &mut Vec<FieldError>) {
    handler(probe, path, errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        not_negative(probe, key, path, errors);
    }
    let grace = &probe["terminationGracePeriodSeconds"];
    let detail = match grace.as_i64() {
        Some(_) if !once => "must not be set for readinessProbes",
        Some(n) if n <= 0 => "must be greater than 0",
        _ => "",
    };
    if !detail.is_empty() {
        errors.push(FieldError::invalid(format!("{path}.terminationGracePeriodSeconds"), grace, detail));
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
        match port.as_str() {
            _ if !handler[key].is_object() => {}
            None | Some("") => fields::port(port, &format!("{path}.{key}.port"), errors),
            Some(name) => {
                for detail in port_name_faults(name) {
                    errors.push(FieldError::invalid(format!("{path}.{key}.port"), port, detail));
                }
            }
        }
        if key == "httpGet" && handler[key].is_object() {
            one_of(&handler[key], "scheme", &format!("{path}.{key}"), &["HTTP", "HTTPS"], errors);
        }
    }
}
