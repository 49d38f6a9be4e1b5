//! Nodes and their leases.

use serde_json::{Value, json};

use super::fields::{fill, immutable, items, qualified_fault, text};
use super::pod::container::quantities;
use crate::status::FieldError;

/// A node offers all it has unless it says otherwise.
pub(crate) fn default_node(node: &mut Value) {
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
        if let Some(fault) = qualified_fault(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(key), fault));
        }
        if effect.is_empty() {
            errors.push(FieldError::required(format!("{path}.effect"), ""));
        } else if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            let allowed = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errors.push(FieldError::not_supported(format!("{path}.effect"), &taint["effect"], &allowed));
        }
        if seen.contains(&(key, effect)) {
            errors.push(FieldError::duplicate(path, taint));
        }
        seen.push((key, effect));
    }
    for list in ["capacity", "allocatable"] {
        quantities(&new["status"][list], &format!("status.{list}"), &mut errors);
    }
    if let Some(old) = old.filter(|old| !text(&old["spec"], "podCIDR").is_empty()) {
        immutable(&new["spec"]["podCIDR"], &old["spec"]["podCIDR"], "spec.podCIDR", &mut errors);
    }
    errors
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
