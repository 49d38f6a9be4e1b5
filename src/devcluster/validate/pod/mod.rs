//! Pods and pod templates. kubernetes: `pkg/apis/core/validation`, `ValidatePodSpec` and `ValidatePodUpdate`.

pub(crate) mod container;
mod default;

use serde_json::{Value, json};

pub(crate) use default::{default, default_spec};

use crate::status::FieldError;
use crate::validate::fields::{entries, items, label_fault, one_of, qualified_fault, same, text, unique_name};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A pod on creation or, given what it replaces, on update.
pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match old {
        None => validate_spec(&new["spec"], "spec", &mut errors),
        // So it is with every report of status.
        Some(old) if new["spec"] == old["spec"] => {}
        Some(old) => validate_update(&new["spec"], &old["spec"], &mut errors),
    }
    errors
}

/// The spec of a pod or of a template.
pub(crate) fn validate_spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let volumes = volumes(spec, path, errors);
    if items(&spec["containers"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    container::validate(spec, path, &volumes, errors);
    one_of(spec, "restartPolicy", path, &["Always", "Never", "OnFailure"], errors);
    one_of(spec, "dnsPolicy", path, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"], errors);
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
    gates(spec, path, errors);
    node_affinity(&spec["affinity"]["nodeAffinity"], &format!("{path}.affinity.nodeAffinity"), errors);
}

fn labels(labels: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (key, _) in entries(labels) {
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid(path, &json!(key), fault));
        }
    }
}

fn volumes(spec: &Value, path: &str, errors: &mut Vec<FieldError>) -> Vec<String> {
    let mut names = Vec::new();
    for (i, volume) in items(&spec["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        unique_name(volume, &path, &mut names, errors);
        let sources = entries(volume).filter(|(key, source)| *key != "name" && !source.is_null());
        for (extra, _) in sources.skip(1) {
            let detail = "may not specify more than 1 volume type";
            errors.push(FieldError::forbidden(format!("{path}.{extra}"), detail));
        }
        for (source, key) in [("secret", "secretName"), ("configMap", "name"), ("hostPath", "path")] {
            if volume[source].is_object() && text(&volume[source], key).is_empty() {
                errors.push(FieldError::required(format!("{path}.{source}.{key}"), ""));
            }
        }
    }
    names
}

fn tolerations(list: &Value, path: &str, errors: &mut Vec<FieldError>) {
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
            errors.push(FieldError::invalid(path, &json!(name), fault));
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(path, &gate["name"]));
        }
        seen.push(name);
    }
    if !seen.is_empty() && !text(spec, "nodeName").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(format!("{path}.nodeName"), detail));
    }
}

fn node_affinity(affinity: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_object() {
        return;
    }
    let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    let terms = items(&required["nodeSelectorTerms"]);
    if terms.is_empty() {
        errors.push(FieldError::required(path.as_str(), "must have at least one node selector term"));
    }
    for (i, term) in terms.iter().enumerate() {
        for (j, rule) in items(&term["matchExpressions"]).iter().enumerate() {
            let path = format!("{path}[{i}].matchExpressions[{j}]");
            let values = items(&rule["values"]).len();
            match text(rule, "operator") {
                "In" | "NotIn" if values == 0 => {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(format!("{path}.values"), detail));
                }
                "Exists" | "DoesNotExist" if values > 0 => {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(format!("{path}.values"), detail));
                }
                "Gt" | "Lt" if values != 1 => {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(format!("{path}.values"), detail));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                _ => {
                    let detail = "not a valid selector operator";
                    errors.push(FieldError::invalid(format!("{path}.operator"), &rule["operator"], detail));
                }
            }
        }
    }
}

/// What may change in a pod that exists: what is allowed is made equal, and the rest must then be so.
fn validate_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let gated = !items(&old["schedulingGates"]).is_empty();
    for (i, gate) in items(&new["schedulingGates"]).iter().enumerate() {
        if !items(&old["schedulingGates"]).contains(gate) {
            let detail = "only deletion is allowed, but found new scheduling gate";
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), detail));
        }
    }
    let (was, is) = (old["activeDeadlineSeconds"].as_i64(), new["activeDeadlineSeconds"].as_i64());
    if let Some(was) = was
        && is.is_none_or(|is| is > was || is < 0)
    {
        let detail = format!("must be less than or equal to previous value ({was})");
        errors.push(FieldError::invalid("spec.activeDeadlineSeconds", &new["activeDeadlineSeconds"], &detail));
    }
    let same_but_time = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|field| text(a, field) == text(b, field))
    };
    let kept = |list: &Value, wanted: &Value| items(list).iter().any(|t| same_but_time(t, wanted));
    if !items(&old["tolerations"]).iter().all(|t| kept(&new["tolerations"], t)) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
    tolerations(&new["tolerations"], "spec.tolerations", errors);
    for list in ["containers", "initContainers"] {
        for (i, container) in items(&new[list]).iter().enumerate() {
            if text(container, "image").is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{i}].image"), ""));
            }
        }
    }
    let narrowed = entries(&old["nodeSelector"]).all(|(key, value)| new["nodeSelector"][key] == *value);
    if gated && !narrowed {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.push(FieldError::invalid("spec.nodeSelector", &new["nodeSelector"], detail));
    }
    if errors.is_empty() && !same_otherwise(new, old, gated) {
        errors.push(FieldError::forbidden("spec", MAY_CHANGE));
    }
}

fn same_otherwise(new: &Value, old: &Value, gated: bool) -> bool {
    let mut leveled = new.clone();
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
