//! ResourceQuotas and LimitRanges. kubernetes: `pkg/apis/core/validation`, `ValidateLimitRange` and
//! `ValidateResourceQuotaSpec`.

use serde_json::{Value, json};

use super::fields::{entries, fill, items, items_mut, qualified_fault, text};
use super::pod::container::{quantities, quantity};
use crate::status::FieldError;

/// What a quota can measure without a name in front.
const MEASURED: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
/// And what it can count, in whole numbers.
const COUNTED: &[&str] = &[
    "pods",
    "services",
    "resourcequotas",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const SCOPES: &[&str] =
    &["Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"];

pub(crate) fn validate_quota(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let hard = &new["spec"]["hard"];
    for (name, amount) in entries(hard) {
        let path = format!("spec.hard[{name}]");
        let named = json!(name);
        let qualified = name.contains('/');
        let counted = COUNTED.contains(&name.as_str());
        let standard = counted
            || MEASURED.contains(&name.as_str())
            || ["requests.hugepages-", "hugepages-", "count/"].iter().any(|prefix| name.starts_with(prefix))
            || name.contains(".storageclass.storage.k8s.io/");
        if let Some(fault) = qualified_fault(name) {
            errors.push(FieldError::invalid(path.as_str(), &named, fault));
        } else if !qualified && !standard {
            let detail = "must be a standard resource type or fully qualified";
            errors.push(FieldError::invalid(path.as_str(), &named, detail));
        }
        if !qualified && !standard {
            errors.push(FieldError::invalid(path.as_str(), &named, "must be a standard resource for quota"));
        }
        quantities(&json!({name: amount}), "spec.hard", &mut errors);
        if counted && amount.as_str().is_some_and(|text| text.ends_with('m')) {
            errors.push(FieldError::invalid(path, amount, "must be an integer"));
        }
    }
    let given = &new["spec"]["scopes"];
    let scopes: Vec<&str> = items(given).iter().filter_map(Value::as_str).collect();
    let both = |a: &str, b: &str| scopes.contains(&a) && scopes.contains(&b);
    let mut refuse = |detail: &str| errors.push(FieldError::invalid("spec.scopes", given, detail));
    if scopes.iter().any(|scope| !SCOPES.contains(scope)) {
        refuse("unsupported scope");
    } else if scopes.contains(&"BestEffort") && entries(hard).any(|(name, _)| name != "pods" && name != "count/pods") {
        refuse("unsupported scope applied to resource");
    }
    if both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating") {
        refuse("conflicting scopes");
    }
    errors
}

/// What a container gets follows from the most that it may have.
pub(crate) fn default_limit_range(range: &mut Value) {
    for limit in items_mut(&mut range["spec"], "limits").filter(|limit| limit["type"] == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            for (name, amount) in entries(&limit[from].clone()) {
                if !limit[to].is_object() {
                    limit[to] = json!({});
                }
                fill(&mut limit[to], name, amount.clone());
            }
        }
    }
}

pub(crate) fn validate_limit_range(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for (i, limit) in items(&new["spec"]["limits"]).iter().enumerate() {
        let path = format!("spec.limits[{i}]");
        let kind = text(limit, "type");
        if let Some(fault) = qualified_fault(kind) {
            if kind.is_empty() {
                errors.push(FieldError::invalid(format!("{path}.type"), &json!(""), "name part must be non-empty"));
            }
            errors.push(FieldError::invalid(format!("{path}.type"), &json!(kind), fault));
        }
        if seen.contains(&kind) {
            errors.push(FieldError::duplicate(format!("{path}.type"), &limit["type"]));
        }
        seen.push(kind);
        for key in ["default", "defaultRequest"] {
            if kind == "Pod" && entries(&limit[key]).next().is_some() {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(format!("{path}.{key}"), detail));
            }
        }
        let storage = |key: &str| limit[key].get("storage").is_some();
        if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(FieldError::required(format!("{path}.limits"), detail));
        }
        ordered(limit, &path, &mut errors);
        for (name, ratio) in entries(&limit["maxLimitRequestRatio"]) {
            if quantity(ratio).zip(quantity(&json!("1"))).is_some_and(|(ratio, one)| ratio < one) {
                let detail = format!("ratio {} is less than 1", ratio.as_str().unwrap_or_default());
                errors.push(FieldError::invalid(format!("{path}.maxLimitRequestRatio[{name}]"), ratio, &detail));
            }
        }
    }
    errors
}

/// From the least to the most, what a limit says of a resource must not go down.
fn ordered(limit: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let all = ["min", "max", "default", "defaultRequest"].into_iter().flat_map(|key| entries(&limit[key]));
    let mut names: Vec<&String> = all.map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    for name in names {
        // Each: which is shown and under which field, which is lower, which higher, and how they are called.
        for (field, shown, low, high, detail) in [
            ("min", "min", "min", "max", "min value {low} is greater than max value {high}"),
            (
                "defaultRequest",
                "defaultRequest",
                "min",
                "defaultRequest",
                "min value {low} is greater than default request value {high}",
            ),
            (
                "defaultRequest",
                "defaultRequest",
                "defaultRequest",
                "max",
                "default request value {low} is greater than max value {high}",
            ),
            (
                "defaultRequest",
                "defaultRequest",
                "defaultRequest",
                "default",
                "default request value {low} is greater than default limit value {high}",
            ),
            ("default", "min", "min", "default", "min value {low} is greater than default value {high}"),
            ("default", "max", "default", "max", "default value {low} is greater than max value {high}"),
        ] {
            let (Some(lower), Some(higher)) = (limit[low].get(name), limit[high].get(name)) else { continue };
            if quantity(lower).zip(quantity(higher)).is_some_and(|(lower, higher)| lower > higher) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let detail = detail.replace("{low}", &text(lower)).replace("{high}", &text(higher));
                errors.push(FieldError::invalid(format!("{path}.{field}[{name}]"), &limit[shown][name], &detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_and_limits_that_contradict_themselves_are_refused() {
        for (spec, fields) in [
            (json!({"hard": {"pods": "5", "requests.cpu": "1500m", "count/jobs.batch": "3"}}), vec![]),
            (json!({"hard": {"pods": "1500m"}}), vec!["spec.hard[pods]"]),
            (json!({"hard": {"foo": "1"}}), vec!["spec.hard[foo]", "spec.hard[foo]"]),
            (json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}), vec!["spec.scopes"]),
        ] {
            let found = validate_quota(&json!({"spec": spec}), None);
            assert_eq!(found.into_iter().map(|error| error.field).collect::<Vec<_>>(), fields, "{spec}");
        }
        for (limit, fields) in [
            (json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}}), vec![]),
            (json!({"type": "Pod", "default": {"cpu": "1"}}), vec!["spec.limits[0].default"]),
            (json!({"type": "PersistentVolumeClaim"}), vec!["spec.limits[0].limits"]),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "max": {"cpu": "500m"}}),
                vec!["spec.limits[0].defaultRequest[cpu]", "spec.limits[0].default[cpu]"],
            ),
        ] {
            let mut range = json!({"spec": {"limits": [limit]}});
            default_limit_range(&mut range);
            let found = validate_limit_range(&range, None);
            assert_eq!(found.into_iter().map(|error| error.field).collect::<Vec<_>>(), fields, "{range}");
        }
    }
}
