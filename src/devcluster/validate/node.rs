//! Nodes and their leases.

use serde_json::{Value, json};

use super::fields::{fill, is_cidr, items, label_value_fault, qualified_fault, text};
use super::pod::container::quantities;
use crate::status::FieldError;

/// A node offers all it has unless it says otherwise.
pub(crate) fn default_node(node: &mut Value) {
    let cidr = text(&node["spec"], "podCIDR").to_owned();
    // Of the two the older field counts.
    if !cidr.is_empty() && node["spec"]["podCIDRs"][0] != cidr.as_str() {
        node["spec"]["podCIDRs"] = json!([cidr]);
    }
    let capacity = node["status"]["capacity"].clone();
    if capacity.is_object() {
        fill(&mut node["status"], "allocatable", capacity);
    }
}

pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for (i, taint) in items(&new["spec"]["taints"]).iter().enumerate() {
        // kubernetes: ValidateNode hands taints the path of metadata.
        let path = format!("metadata.taints[{i}]");
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        if key.is_empty() {
            let detail = "name part must be non-empty";
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(key), detail));
        }
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(key), fault));
        }
        if let Some(fault) = label_value_fault(text(taint, "value")) {
            errors.push(FieldError::invalid(format!("{path}.value"), &taint["value"], fault));
        }
        if effect.is_empty() {
            errors.push(FieldError::required(format!("{path}.effect"), ""));
        } else if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            let allowed = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errors.push(FieldError::not_supported(format!("{path}.effect"), &taint["effect"], &allowed));
        }
        if seen.contains(&(key, effect)) {
            let shown = format!(
                r#"{{"Key":{},"Value":{},"Effect":{},"TimeAdded":{}}}"#,
                json!(key),
                json!(text(taint, "value")),
                json!(effect),
                taint["timeAdded"]
            );
            let mut error = FieldError::duplicate(path, &Value::Null);
            error.message = format!("Duplicate value: {shown}: taints must be unique by key and effect pair");
            errors.push(error);
        }
        seen.push((key, effect));
    }
    for (i, address) in items(&new["status"]["addresses"]).iter().enumerate() {
        if items(&new["status"]["addresses"])[..i].contains(address) {
            let mut error = FieldError::duplicate(format!("status.addresses[{i}]"), &Value::Null);
            let shown = format!(r#"{{"Type":{},"Address":{}}}"#, address["type"], address["address"]);
            error.message = format!("Duplicate value: {shown}");
            errors.push(error);
        }
    }
    for (i, cidr) in items(&new["spec"]["podCIDRs"]).iter().enumerate() {
        if !is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(FieldError::invalid(format!("spec.podCIDRs[{i}]"), cidr, detail));
        }
    }
    for list in ["capacity", "allocatable"] {
        let mut found = Vec::new();
        quantities(&new["status"][list], "", &mut found);
        errors.extend(found.into_iter().map(|mut error| {
            error.field = format!("status.{list}.{}", error.field.trim_matches(['[', ']']));
            error
        }));
    }
    let cidrs = items(&new["spec"]["podCIDRs"]);
    let family = |v4: bool| cidrs.iter().filter(|c| c.as_str().is_some_and(|c| c.contains(':') != v4)).count();
    if family(true) > 1 || family(false) > 1 {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid("spec.podCIDRs", &new["spec"]["podCIDRs"], detail));
    }
    if let Some(old) = old
        && !text(&old["spec"], "podCIDR").is_empty()
        && new["spec"]["podCIDRs"] != old["spec"]["podCIDRs"]
    {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.insert(0, FieldError::forbidden("spec.podCIDRs", detail));
    }
    errors
}

/// Fields of leases that only clusters with coordinated leader election keep, which this one is not.
pub(crate) fn default_lease(lease: &mut Value) {
    if let Some(spec) = lease.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("strategy");
        spec.remove("preferredHolder");
    }
}

pub(crate) fn validate_lease(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if new["spec"]["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        let (value, detail) = (&new["spec"]["leaseDurationSeconds"], "must be greater than 0");
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", value, detail));
    }
    if new["spec"]["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        let (value, detail) = (&new["spec"]["leaseTransitions"], "must be greater than or equal to 0");
        errors.push(FieldError::invalid("spec.leaseTransitions", value, detail));
    }
    errors
}
