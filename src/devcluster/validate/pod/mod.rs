//! Pods and pod templates. kubernetes: `pkg/apis/core/validation`, `ValidatePodSpec` and `ValidatePodUpdate`.

pub(crate) mod container;
mod default;
mod environment;
mod placement;
pub(crate) mod resize;
mod security;
mod volumes;

use serde_json::{Value, json};

pub(crate) use default::{default, default_spec};

use crate::status::FieldError;
use crate::validate::fields::{
    entries, is_address, items, label_fault, label_value_fault, not_found, one_of, qualified_fault, same,
    subdomain_fault, text, unique_name,
};

pub(crate) const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A pod on creation or, given what it replaces, on update.
pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match old {
        None => {
            annotations(new, &mut errors);
            validate_spec(&new["spec"], "spec", &mut errors);
            if !items(&new["spec"]["ephemeralContainers"]).is_empty() {
                errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
            }
        }
        // So it is with every report of status.
        Some(old) if new["spec"] == old["spec"] => {}
        Some(old) => {
            validate_spec(&new["spec"], "spec", &mut errors);
            validate_update(&new["spec"], &old["spec"], &mut errors);
        }
    }
    errors
}

/// The spec of a pod or of a template.
pub(crate) fn validate_spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let volumes = volumes::volumes(spec, path, errors);
    claims(spec, path, errors);
    if items(&spec["containers"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    container::validate(spec, path, &volumes, errors);
    one_of(spec, "restartPolicy", path, &["Always", "OnFailure", "Never"], errors);
    one_of(spec, "dnsPolicy", path, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    one_of(spec, "preemptionPolicy", path, &["Never", "PreemptLowerPriority"], errors);
    for key in ["hostname", "subdomain"] {
        let name = text(spec, key);
        if let Some(fault) = label_fault(name).filter(|_| !name.is_empty()) {
            errors.push(FieldError::invalid(format!("{path}.{key}"), &spec[key], fault));
        }
    }
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        let path = format!("{path}.activeDeadlineSeconds");
        errors.push(FieldError::invalid(path, &spec["activeDeadlineSeconds"], detail));
    }
    labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), errors);
    tolerations(&spec["tolerations"], &format!("{path}.tolerations"), errors);
    let node = text(spec, "nodeName");
    if let Some(fault) = subdomain_fault(node).filter(|_| !node.is_empty()) {
        errors.push(FieldError::invalid(format!("{path}.nodeName"), &spec["nodeName"], fault));
    }
    gates(spec, path, errors);
    placement::affinity(&spec["affinity"], &format!("{path}.affinity"), errors);
    placement::spread(&spec["topologySpreadConstraints"], &format!("{path}.topologySpreadConstraints"), errors);
    host(spec, path, errors);
    security::pod(spec, path, errors);
    addresses(spec, path, errors);
    for (i, gate) in items(&spec["readinessGates"]).iter().enumerate() {
        if let Some(fault) = qualified_fault(text(gate, "conditionType")) {
            let path = format!("{path}.readinessGates[{i}].conditionType");
            errors.push(FieldError::invalid(path, &gate["conditionType"], fault));
        }
    }
    if spec["os"].is_object() && !matches!(text(&spec["os"], "name"), "linux" | "windows") {
        errors.push(FieldError::not_supported(format!("{path}.os"), &spec["os"]["name"], &["linux", "windows"]));
    }
    security::system(spec, path, errors);
}

/// What is shared with the node.
fn host(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if spec["hostNetwork"] == true {
        for list in ["containers", "initContainers"] {
            for (i, container) in items(&spec[list]).iter().enumerate() {
                for (j, port) in items(&container["ports"]).iter().enumerate() {
                    if port["hostPort"] != port["containerPort"] {
                        let path = format!("{path}.{list}[{i}].ports[{j}].hostPort");
                        let detail = "must match `containerPort` when `hostNetwork` is true";
                        errors.push(FieldError::invalid(path, &port["hostPort"], detail));
                    }
                }
            }
        }
    }
}

const SEARCH: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn addresses(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, alias) in items(&spec["hostAliases"]).iter().enumerate() {
        if !is_address(&alias["ip"]) {
            errors.push(FieldError::invalid(format!("{path}.hostAliases[{i}].ip"), &alias["ip"], ADDRESS));
        }
        for (j, name) in items(&alias["hostnames"]).iter().enumerate() {
            if let Some(fault) = subdomain_fault(name.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(format!("{path}.hostAliases[{i}].hostnames[{j}]"), name, fault));
            }
        }
    }
    for (key, most, what) in [("nameservers", 3, "nameservers"), ("searches", 32, "search paths")] {
        let list = &spec["dnsConfig"][key];
        if items(list).len() > most {
            let detail = format!("must not have more than {most} {what}");
            errors.push(FieldError::invalid(format!("{path}.dnsConfig.{key}"), list, &detail));
        }
    }
    for (i, option) in items(&spec["dnsConfig"]["options"]).iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(FieldError::required(format!("{path}.dnsConfig.options[{i}]"), "must not be empty"));
        }
    }
    let servers = items(&spec["dnsConfig"]["nameservers"]);
    for (i, server) in servers.iter().enumerate().filter(|(_, server)| !is_address(server)) {
        errors.push(FieldError::invalid(format!("{path}.dnsConfig.nameservers[{i}]"), server, ADDRESS));
    }
    for (i, search) in items(&spec["dnsConfig"]["searches"]).iter().enumerate() {
        let name = search.as_str().unwrap_or_default();
        let labels = |name: &str| name.split('.').all(|label| label_fault(&label.replace('_', "a")).is_none());
        if !matches!(name, ".") && !labels(name.strip_suffix('.').unwrap_or(name)) {
            errors.push(FieldError::invalid(format!("{path}.dnsConfig.searches[{i}]"), search, SEARCH));
        }
    }
    if spec["dnsPolicy"] == "None" && !spec["dnsConfig"].is_object() {
        let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig"), detail));
    } else if spec["dnsPolicy"] == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), detail));
    }
}

/// What a report of a pod's status must hold to. kubernetes: `ValidatePodStatusUpdate`.
pub(crate) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (was, is) = (&old["status"]["qosClass"], &new["status"]["qosClass"]);
    if !text(&old["status"], "qosClass").is_empty() && !is.is_null() && is != was {
        errors.push(FieldError::invalid("status.qosClass", is, "field is immutable"));
    }
    if new["status"]["podIPs"] != old["status"]["podIPs"] {
        for (i, ip) in items(&new["status"]["podIPs"]).iter().enumerate().filter(|(_, ip)| !is_address(&ip["ip"])) {
            errors.push(FieldError::invalid(format!("status.podIPs[{i}]"), &ip["ip"], ADDRESS));
        }
    }
    errors
}

/// What may change in the ephemeral containers of a pod: more of them may come. kubernetes:
/// `ValidatePodEphemeralContainersUpdate`.
pub(crate) fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    const AT: &str = "spec.ephemeralContainers";
    let mut errors = Vec::new();
    let containers = ["initContainers", "containers"].into_iter().flat_map(|list| items(&new["spec"][list]));
    let mut names: Vec<String> = containers.map(|container| text(container, "name").to_owned()).collect();
    for (i, container) in items(&new["spec"]["ephemeralContainers"]).iter().enumerate() {
        unique_name(container, &format!("{AT}[{i}]"), &mut names, &mut errors);
        if text(container, "image").is_empty() {
            errors.push(FieldError::required(format!("{AT}[{i}].image"), ""));
        }
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"] {
            if !same(&container[field], &Value::Null) {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(format!("{AT}[{i}].{field}"), detail));
            }
        }
        let target = text(container, "targetContainerName");
        let mut containers = ["initContainers", "containers"].into_iter().flat_map(|list| items(&new["spec"][list]));
        if !target.is_empty() && !containers.any(|other| text(other, "name") == target) {
            errors.push(not_found(format!("{AT}[{i}].targetContainerName"), &container["targetContainerName"]));
        }
    }
    let now = items(&new["spec"]["ephemeralContainers"]);
    for was in items(&old["spec"]["ephemeralContainers"]) {
        let name = text(was, "name");
        match now.iter().find(|container| container["name"] == was["name"]) {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(FieldError::forbidden(AT, &detail));
            }
            Some(is) if is != was => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(FieldError::forbidden(AT, &detail));
            }
            Some(_) => {}
        }
    }
    errors
}

fn labels(labels: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(labels) {
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid(path, &json!(key), fault));
        }
        if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, fault));
        }
    }
}

/// Claims of devices, which containers name.
fn claims(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut names = Vec::new();
    for (i, claim) in items(&spec["resourceClaims"]).iter().enumerate() {
        let path = format!("{path}.resourceClaims[{i}]");
        unique_name(claim, &path, &mut names, errors);
        let (name, template) = (&claim["resourceClaimName"], &claim["resourceClaimTemplateName"]);
        let detail = match (name.is_null(), template.is_null()) {
            (true, true) => "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            (false, false) => "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            _ => continue,
        };
        let shown = format!(
            r#"{{"Name":{},"ResourceClaimName":{name},"ResourceClaimTemplateName":{template}}}"#,
            claim["name"]
        );
        errors.push(FieldError::invalid_shown(path, &shown, detail));
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&spec[list]).iter().enumerate() {
            let mut seen = Vec::new();
            for (j, claim) in items(&container["resources"]["claims"]).iter().enumerate() {
                let path = format!("{path}.{list}[{i}].resources.claims[{j}]");
                let name = text(claim, "name");
                if !names.iter().any(|known| known == name) {
                    let mut error = not_found(path, &claim["name"]);
                    error.message += ": must be one of the names in pod.spec.resourceClaims";
                    error.message += &match names.is_empty() {
                        true => " which is empty".to_owned(),
                        false => format!(": {}", names.join(", ")),
                    };
                    errors.push(error);
                } else if seen.contains(&name) {
                    errors.push(FieldError::duplicate(path, &claim["name"]));
                }
                seen.push(name);
            }
        }
    }
}

/// Annotations that mean something.
fn annotations(pod: &Value, errors: &mut Vec<FieldError>) {
    const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
    const MIRROR: &str = "kubernetes.io/config.mirror";
    for (key, value) in entries(&pod["metadata"]["annotations"]) {
        let said = value.as_str().unwrap_or_default();
        let detail = match key {
            key if key == MIRROR && text(&pod["spec"], "nodeName").is_empty() => {
                "must set spec.nodeName if mirror pod annotation is set".to_owned()
            }
            key if key.starts_with(APPARMOR)
                && !matches!(said, "" | "runtime/default" | "unconfined")
                && !said.starts_with("localhost/") =>
            {
                format!("invalid AppArmor profile name: {said:?}")
            }
            _ => continue,
        };
        errors.push(FieldError::invalid(format!("metadata.annotations[{key}]"), value, &detail));
    }
}

pub(crate) fn tolerations(list: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (i, toleration) in items(list).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if let Some(fault) = qualified_fault(key).filter(|_| !key.is_empty()) {
            errors.push(FieldError::invalid(format!("{path}.key"), &toleration["key"], fault));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), &json!(operator), detail));
        }
        if toleration["tolerationSeconds"].is_number() && text(toleration, "effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), &json!(text(toleration, "effect")), detail));
        }
        if operator == "Exists" && !text(toleration, "value").is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(format!("{path}.operator"), &toleration["value"], detail));
        }
        if !operator.is_empty() {
            one_of(toleration, "operator", &path, &["Equal", "Exists"], errors);
        }
        if !text(toleration, "effect").is_empty() {
            one_of(toleration, "effect", &path, &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
    }
}

fn gates(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    for (i, gate) in items(&spec["schedulingGates"]).iter().enumerate() {
        let path = format!("{path}.schedulingGates[{i}]");
        let name = text(gate, "name");
        if let Some(fault) = qualified_fault(name) {
            errors.push(FieldError::invalid(path.as_str(), &json!(name), fault));
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, &gate["name"]));
        }
        seen.push(name);
    }
    if !seen.is_empty() && !text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(format!("{path}.nodeName"), detail));
    }
}

/// What may change in a pod that exists: what is allowed is made equal, and the rest must then be so.
fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    for list in ["containers", "initContainers"] {
        if items(&new[list]).len() != items(&old[list]).len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{list}"), detail));
            return;
        }
        for (i, container) in items(&new[list]).iter().enumerate() {
            if text(container, "image").is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{i}].image"), ""));
            }
        }
    }
    let gated = !items(&old["schedulingGates"]).is_empty();
    for (i, gate) in items(&new["schedulingGates"]).iter().enumerate() {
        if !items(&old["schedulingGates"]).contains(gate) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name"));
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), &detail));
        }
    }
    let (was, is) = (old["activeDeadlineSeconds"].as_i64(), new["activeDeadlineSeconds"].as_i64());
    if let Some(was) = was
        && is.is_none_or(|is| is > was || is < 0)
    {
        let detail = "must be less than or equal to previous value";
        errors.push(FieldError::invalid("spec.activeDeadlineSeconds", &new["activeDeadlineSeconds"], detail));
    }
    let same_but_time = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|field| text(a, field) == text(b, field))
    };
    let kept = |list: &Value, wanted: &Value| items(list).iter().any(|t| same_but_time(t, wanted));
    if !items(&old["tolerations"]).iter().all(|t| kept(&new["tolerations"], t)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
    let narrowed = entries(&old["nodeSelector"]).all(|(key, value)| new["nodeSelector"][key] == *value);
    if gated && !narrowed {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid("spec.nodeSelector", &new["nodeSelector"], detail));
    }
    if !same_otherwise(new, old, gated) {
        errors.push(FieldError::forbidden("spec", MAY_CHANGE));
    }
}

fn same_otherwise(new: &Value, old: &Value, gated: bool) -> bool {
    let mut leveled = new.clone();
    // What has been refused already is not told again.
    leveled["tolerations"] = Value::Null;
    for list in ["containers", "initContainers"] {
        let Some(containers) = leveled.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for (i, container) in containers.iter_mut().enumerate().filter(|(_, c)| c.is_object()) {
            container["image"] = old[list][i]["image"].clone();
        }
    }
    let mut free = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"];
    if gated {
        free.push("nodeSelector");
    }
    // Binding writes the node's name through the same path.
    if text(old, "nodeName").is_empty() {
        free.push("nodeName");
    }
    if old["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n < 0) && new["terminationGracePeriodSeconds"] == 1
    {
        free.push("terminationGracePeriodSeconds");
    }
    let keys = entries(new).chain(entries(old)).map(|(key, _)| key);
    keys.filter(|key| !free.contains(&key.as_str())).all(|key| same(&leveled[key], &old[key]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(spec: Value) -> Vec<String> {
        validate(&json!({"spec": spec}), None).into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn faults_are_named_by_their_path() {
        let c = json!({"name": "c", "image": "i"});
        let with = |key: &str, value: Value| {
            let mut container = c.clone();
            container[key] = value;
            json!({"containers": [container]})
        };
        for (spec, field) in [
            (json!({}), "spec.containers"),
            (json!({"containers": [c, c]}), "spec.containers[1].name"),
            (json!({"containers": [{"name": "c"}]}), "spec.containers[0].image"),
            (json!({"containers": [c], "restartPolicy": "Sometimes"}), "spec.restartPolicy"),
            (json!({"containers": [c], "tolerations": [{"value": "x"}]}), "spec.tolerations[0].operator"),
            (
                with("volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
                "spec.containers[0].volumeMounts[0].name",
            ),
            (with("ports", json!([{"containerPort": 70000}])), "spec.containers[0].ports[0].containerPort"),
            (
                with("resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
                "spec.containers[0].resources.requests",
            ),
        ] {
            assert_eq!(fields(spec.clone()), [field], "{spec}");
        }
        assert!(fields(json!({"containers": [c]})).is_empty());
    }

    #[test]
    fn a_pod_keeps_its_spec_but_for_a_few_fields() {
        let old = json!({"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}],
            "activeDeadlineSeconds": 10, "terminationGracePeriodSeconds": 30});
        for (key, value, fine) in [
            ("restartPolicy", json!("Never"), false),
            ("terminationGracePeriodSeconds", json!(5), false),
            ("containers", json!([{"name": "c", "image": "j"}]), true),
            ("containers", json!([{"name": "d", "image": "i"}]), false),
            ("activeDeadlineSeconds", json!(5), true),
            ("activeDeadlineSeconds", json!(50), false),
            ("tolerations", json!([{"operator": "Exists"}]), true),
            ("nodeName", json!("n"), true),
        ] {
            let mut new = old.clone();
            new[key] = value;
            let errors = validate(&json!({"spec": new}), Some(&json!({"spec": old})));
            assert_eq!(errors.is_empty(), fine, "{new}: {errors:?}");
        }
    }
}
