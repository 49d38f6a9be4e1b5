//! Where pods may run: affinity and topology spread. kubernetes: `pkg/apis/core/validation`, `validateAffinity`.

use serde_json::{Value, json};

use crate::status::FieldError;
use crate::validate::fields::{items, label_fault, label_selector, one_of, qualified_fault, text};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn weight(term: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if term["weight"].as_i64().is_none_or(|weight| !(1..=100).contains(&weight)) {
        let shown = json!(term["weight"].as_i64().unwrap_or(0));
        errors.push(FieldError::invalid(format!("{path}.weight"), &shown, "must be in the range 1-100"));
    }
}

/// Affinity to nodes and between pods.
pub(super) fn affinity(affinity: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = &affinity["nodeAffinity"];
    let at = format!("{path}.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    if node[REQUIRED].is_object() {
        let terms = items(&node[REQUIRED]["nodeSelectorTerms"]);
        if terms.is_empty() {
            errors.push(FieldError::required(at.as_str(), "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(term, &format!("{at}[{i}]"), errors);
        }
    }
    for (i, term) in items(&node[PREFERRED]).iter().enumerate() {
        let at = format!("{path}.nodeAffinity.{PREFERRED}[{i}]");
        weight(term, &at, errors);
        node_term(&term["preference"], &format!("{at}.preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in items(&affinity[kind][REQUIRED]).iter().enumerate() {
            pod_term(term, &format!("{path}.{kind}.{REQUIRED}[{i}]"), errors);
        }
        for (i, term) in items(&affinity[kind][PREFERRED]).iter().enumerate() {
            let at = format!("{path}.{kind}.{PREFERRED}[{i}]");
            weight(term, &at, errors);
            pod_term(&term["podAffinityTerm"], &format!("{at}.podAffinityTerm"), errors);
        }
    }
}

fn node_term(term: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (j, rule) in items(&term["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{j}]");
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
        if let Some(fault) = qualified_fault(text(rule, "key")) {
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(text(rule, "key")), fault));
        }
    }
    for (j, rule) in items(&term["matchFields"]).iter().enumerate() {
        let path = format!("{path}.matchFields[{j}]");
        if text(rule, "key") != "metadata.name" {
            let detail = "not a valid field selector key";
            errors.push(FieldError::invalid(format!("{path}.key"), &json!(text(rule, "key")), detail));
        }
        if matches!(text(rule, "operator"), "In" | "NotIn") && items(&rule["values"]).len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.push(FieldError::required(format!("{path}.values"), detail));
        }
    }
}

/// Terms of affinity between pods need a topology.
fn pod_term(term: &Value, path: &str, errors: &mut Vec<FieldError>) {
    label_selector(&term["labelSelector"], &format!("{path}.labelSelector"), errors);
    label_selector(&term["namespaceSelector"], &format!("{path}.namespaceSelector"), errors);
    for namespace in items(&term["namespaces"]) {
        if let Some(fault) = label_fault(namespace.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{path}.namespace"), namespace, fault));
        }
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        let empty = "name part must be non-empty";
        errors.push(FieldError::invalid(format!("{path}.topologyKey"), &json!(""), empty));
    }
    if let Some(fault) = qualified_fault(key) {
        errors.push(FieldError::invalid(format!("{path}.topologyKey"), &json!(key), fault));
    }
}

/// How evenly pods are spread.
pub(super) fn spread(constraints: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let constraints = items(constraints);
    for (i, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if constraint["maxSkew"].as_i64().is_none_or(|n| n <= 0) {
            let detail = "must be greater than zero";
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), &constraint["maxSkew"], detail));
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        one_of(constraint, "whenUnsatisfiable", &path, &["DoNotSchedule", "ScheduleAnyway"], errors);
        // The first of two equal ones is blamed.
        let pair = |c: &Value| (text(c, "topologyKey").to_owned(), text(c, "whenUnsatisfiable").to_owned());
        let own = pair(constraint);
        if constraints[i + 1..].iter().any(|other| pair(other) == own) {
            let value = json!(format!("{{{}, {}}}", own.0, own.1));
            errors.push(FieldError::duplicate(format!("{path}.{{topologyKey, whenUnsatisfiable}}"), &value));
        }
        let least = &constraint["minDomains"];
        if least.as_i64().is_some_and(|n| n <= 0) {
            errors.push(FieldError::invalid(format!("{path}.minDomains"), least, "must be greater than zero"));
        }
        if !least.is_null() && own.1 != "DoNotSchedule" {
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", own.1);
            errors.push(FieldError::invalid(format!("{path}.minDomains"), least, &detail));
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            one_of(constraint, policy, &path, &["Honor", "Ignore"], errors);
        }
        label_selector(&constraint["labelSelector"], &format!("{path}.labelSelector"), errors);
    }
}
