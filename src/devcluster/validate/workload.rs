//! Workloads: what makes pods from a template.

pub(crate) mod job;

use serde_json::{Value, json};

use super::fields::{
    child, entries, fill, immutable, items, label_fault, label_selector, label_value_fault, not_negative, text,
};
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

pub(crate) fn default_replication_controller(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "replicas", 1);
    let labels = spec["template"]["metadata"]["labels"].clone();
    if entries(&labels).next().is_some() {
        if entries(&spec["selector"]).next().is_none() {
            spec["selector"] = labels.clone();
        }
        if let Some(meta) = child(object, "metadata")
            && entries(&meta["labels"]).next().is_none()
        {
            meta["labels"] = labels;
        }
    }
    if let Some(spec) = child(object, "spec") {
        template(spec);
    }
}

pub(crate) fn default_daemon_set(object: &mut Value) {
    const GENERATION: &str = "deprecated.daemonset.template.generation";
    let updates = object["metadata"]["generation"].as_i64().unwrap_or(1).to_string();
    if let Some(meta) = child(object, "metadata") {
        fill(meta, "annotations", json!({}));
        if let Some(annotations) = child(meta, "annotations") {
            fill(annotations, GENERATION, updates);
        }
    }
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
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        fill(claim, "apiVersion", "v1");
        fill(claim, "kind", "PersistentVolumeClaim");
        fill(claim, "status", json!({}));
        super::core::default_claim(claim);
        if let Some(status) = child(claim, "status") {
            fill(status, "phase", "Pending");
        }
    }
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

pub(crate) fn default_cron_job(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    if let Some(job) = child(spec, "jobTemplate").and_then(|t| child(t, "spec")) {
        template(job);
    }
}

pub(crate) fn default_job(object: &mut Value) {
    // Those of the pods are the job's, as the client wrote them: what the server adds comes later.
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if let Some(meta) = child(object, "metadata").filter(|meta| entries(&meta["labels"]).next().is_none())
        && entries(&labels).next().is_some()
    {
        meta["labels"] = labels;
    }
    let Some(spec) = child(object, "spec") else { return };
    fill(spec, "manualSelector", false);
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        fill(spec, "completions", 1);
    }
    for (key, value) in [("parallelism", json!(1)), ("backoffLimit", json!(6)), ("suspend", json!(false))] {
        fill(spec, key, value);
    }
    fill(spec, "completionMode", "NonIndexed");
    let replaced = if spec["podFailurePolicy"].is_object() { "Failed" } else { "TerminatingOrFailed" };
    fill(spec, "podReplacementPolicy", replaced);
    template(spec);
}

pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        not_negative(spec, key, "spec", &mut errors);
    }
    selector(new, &mut errors);
    let labels = &spec["template"]["metadata"]["labels"];
    for (_, value) in entries(labels) {
        if let Some(fault) = label_value_fault(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid("spec.template.labels", value, fault));
        }
    }
    if new["kind"] == "StatefulSet" {
        not_negative(
            &spec["updateStrategy"]["rollingUpdate"],
            "partition",
            "spec.updateStrategy.rollingUpdate",
            &mut errors,
        );
        not_negative(&spec["ordinals"], "start", "spec.ordinals", &mut errors);
        if old.is_none() {
            super::plain::claim_templates(spec, &mut errors);
        }
        let hosts =
            [("metadata.name", text(&new["metadata"], "name")), ("spec.serviceName", text(spec, "serviceName"))];
        for (field, name) in hosts.into_iter().filter(|(_, name)| !name.is_empty() && old.is_none()) {
            if let Some(fault) = label_fault(name) {
                errors.push(FieldError::invalid(field, &json!(name), fault));
            }
        }
    }
    pod::validate_spec(&spec["template"]["spec"], "spec.template.spec", &mut errors);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Never" || policy == "OnFailure" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        let kind = if new["kind"] == "Deployment" { "ReplicaSet" } else { text(new, "kind") };
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", &detail));
    }
    strategy(spec, &mut errors);
    match old {
        Some(old) if new["kind"] == "StatefulSet" => unchanged(spec, &old["spec"], &mut errors),
        Some(old) => immutable(&spec["selector"], &old["spec"]["selector"], "spec.selector", &mut errors),
        None => {}
    }
    errors
}

/// The pods that a workload has are those of its template.
fn selector(new: &Value, errors: &mut Vec<FieldError>) {
    let (spec, kind) = (&new["spec"], text(new, "kind").to_lowercase());
    let (selector, labels) = (&spec["selector"], &spec["template"]["metadata"]["labels"]);
    let before = errors.len();
    if !selector.is_object() {
        // A DaemonSet without a selector is told of its labels alone.
        if kind != "daemonset" {
            errors.push(FieldError::required("spec.selector", ""));
        }
    } else {
        label_selector(selector, "spec.selector", errors);
        let nothing =
            entries(&selector["matchLabels"]).next().is_none() && items(&selector["matchExpressions"]).is_empty();
        if nothing {
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid("spec.selector", &json!({}), &detail));
            return;
        }
        if errors.len() > before {
            errors.push(FieldError::invalid("spec.selector", selector, "invalid label selector"));
            return;
        }
    }
    let label = |key: &str| labels[key].as_str();
    if !selector.is_object() || crate::selector::label_selector_matches(selector, label) != Some(true) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
}

/// What a StatefulSet must keep.
fn unchanged(spec: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    const MAY: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |spec: &Value| -> serde_json::Map<String, Value> {
        entries(spec).filter(|(key, _)| !MAY.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    if rest(spec) != rest(old) {
        let may = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                   'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                   'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden("spec", may));
    }
}

/// A count, or the number before a percent sign; zero for neither.
fn amount(value: &Value) -> i64 {
    let percent = |text: &str| text.strip_suffix('%').and_then(|n| n.parse().ok());
    value.as_i64().or_else(|| value.as_str().and_then(percent)).unwrap_or_default()
}

/// A count or a share of the whole.
fn share(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or \
        '93%', regex used for validation is '[0-9]+%')";
    let detail = match value {
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => "must be greater than or equal to 0",
        Value::String(text) => match text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()) {
            Some(n) if n >= 0 => return,
            _ => PERCENT,
        },
        _ => return,
    };
    errors.push(FieldError::invalid(path, value, detail));
}

/// How templates are rolled out, by the names that the kinds have for it.
fn strategy(spec: &Value, errors: &mut Vec<FieldError>) {
    let shown = |value: &Value| {
        let rolling = if value["rollingUpdate"].is_null() { Value::Null } else { value["rollingUpdate"].clone() };
        format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", value["type"])
    };
    let known = |value: &Value, types: &[&str]| types.iter().any(|t| value["type"] == *t);
    let deployed = &spec["strategy"];
    if deployed.is_object() {
        let rolling = &deployed["rollingUpdate"];
        if !known(deployed, &["Recreate", "RollingUpdate"]) {
            let allowed = ["Recreate", "RollingUpdate"];
            errors.push(FieldError::not_supported_shown("spec.strategy", &shown(deployed), &allowed));
        } else if deployed["type"] == "RollingUpdate"
            && amount(&rolling["maxUnavailable"]) == 0
            && amount(&rolling["maxSurge"]) == 0
        {
            let path = "spec.strategy.rollingUpdate.maxUnavailable";
            errors.push(FieldError::invalid(path, &rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0"));
        }
        if deployed["type"] == "Recreate" && !rolling.is_null() {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
        }
        for key in ["maxUnavailable", "maxSurge"] {
            share(&rolling[key], &format!("spec.strategy.rollingUpdate.{key}"), errors);
        }
        let most = &rolling["maxUnavailable"];
        if most
            .as_str()
            .and_then(|text| text.strip_suffix('%'))
            .and_then(|n| n.parse::<u64>().ok())
            .is_some_and(|n| n > 100)
        {
            let path = "spec.strategy.rollingUpdate.maxUnavailable";
            errors.push(FieldError::invalid(path, most, "must not be greater than 100%"));
        }
        if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64()
            && deadline <= spec["minReadySeconds"].as_i64().unwrap_or_default()
        {
            let path = "spec.progressDeadlineSeconds";
            errors.push(FieldError::invalid(path, &deadline.into(), "must be greater than minReadySeconds"));
        }
    }
    if let Some(policy) = spec["podManagementPolicy"].as_str().filter(|p| !["OrderedReady", "Parallel"].contains(p)) {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        errors.push(FieldError::invalid("spec.podManagementPolicy", &policy.into(), detail));
    }
    let updates = &spec["updateStrategy"];
    let rolling = &updates["rollingUpdate"];
    if spec["podManagementPolicy"].is_null()
        && rolling["maxUnavailable"].is_number()
        && amount(&rolling["maxSurge"]) == 0
        && amount(&rolling["maxUnavailable"]) == 0
    {
        let path = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        errors.push(FieldError::required(path, "cannot be 0 when maxSurge is 0"));
    }
    if amount(&rolling["maxSurge"]) > 0 && amount(&rolling["maxUnavailable"]) > 0 {
        let detail = "may not be set when maxUnavailable is non-zero";
        errors.push(FieldError::invalid("spec.updateStrategy.rollingUpdate.maxSurge", &rolling["maxSurge"], detail));
    }
    if updates.is_object() && spec["podManagementPolicy"].is_null() && !known(updates, &["RollingUpdate", "OnDelete"]) {
        let allowed = ["RollingUpdate", "OnDelete"];
        errors.push(FieldError::not_supported_shown("spec.updateStrategy", &shown(updates), &allowed));
    } else if updates.is_object() && !known(updates, &["RollingUpdate", "OnDelete"]) {
        let detail = "must be 'RollingUpdate' or 'OnDelete'";
        errors.push(FieldError::invalid_shown("spec.updateStrategy", &shown(updates), detail));
    }
}
