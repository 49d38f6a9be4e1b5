//! Workloads: what makes pods from a template.

use serde_json::{Value, json};

use super::fields::{child, entries, fill, immutable, not_negative};
use super::pod;
use crate::status::FieldError;

fn template(spec: &mut Value) {
    if let Some(pod) = child(spec, "template").and_then(|t| child(t, "spec")) {
        pod::default_spec(pod);
    }
}

pub(crate) fn default_deployment(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    rolling(spec, "strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
    template(spec);
}

pub(crate) fn default_replica_set(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    template(spec);
}

pub(crate) fn default_daemon_set(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "revisionHistoryLimit", 10);
    rolling(spec, "updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}));
    template(spec);
}

pub(crate) fn default_stateful_set(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "podManagementPolicy", "OrderedReady");
    rolling(spec, "updateStrategy", json!({"partition": 0}));
    fill(spec, "persistentVolumeClaimRetentionPolicy", json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
    template(spec);
}

fn rolling(spec: &mut Value, key: &str, limits: Value) {
    fill(spec, key, json!({}));
    fill(&mut spec[key], "type", "RollingUpdate");
    if spec[key]["type"] == "RollingUpdate" {
        fill(&mut spec[key], "rollingUpdate", json!({}));
        for (name, value) in entries(&limits) {
            fill(&mut spec[key]["rollingUpdate"], name, value.clone());
        }
    }
}

pub(crate) fn default_job(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        fill(spec, "completions", 1);
    }
    for (key, value) in [("parallelism", json!(1)), ("backoffLimit", json!(6)), ("suspend", json!(false))] {
        fill(spec, key, value);
    }
    fill(spec, "completionMode", "NonIndexed");
    fill(spec, "podReplacementPolicy", "TerminatingOrFailed");
    template(spec);
}

pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    not_negative(spec, "replicas", "spec", &mut errors);
    if !spec["selector"].is_object() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if entries(&spec["selector"]["matchLabels"]).any(|(key, value)| labels[key] != *value) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
    pod::validate_spec(&spec["template"]["spec"], "spec.template.spec", &mut errors);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Never" || policy == "OnFailure" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if let Some(old) = old {
        immutable(&spec["selector"], &old["spec"]["selector"], "spec.selector", &mut errors);
    }
    errors
}

pub(crate) fn validate_job(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    for key in ["parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished"] {
        not_negative(spec, key, "spec", &mut errors);
    }
    pod::validate_spec(&spec["template"]["spec"], "spec.template.spec", &mut errors);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        let path = "spec.template.spec.restartPolicy";
        errors.push(FieldError::required(path, "valid values: \"OnFailure\", \"Never\""));
    }
    if let Some(old) = old {
        immutable(&spec["selector"], &old["spec"]["selector"], "spec.selector", &mut errors);
    }
    errors
}
