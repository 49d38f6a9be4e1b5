//! Jobs and CronJobs.

use serde_json::Value;

use super::super::fields::{entries, immutable, items, not_negative, one_of, text};
use super::super::{plain, pod, schedule};
use crate::status::FieldError;

fn template(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for key in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        not_negative(spec, key, path, errors);
    }
    pod::validate_spec(&spec["template"]["spec"], &format!("{path}.template.spec"), errors);
    if spec["template"]["spec"]["restartPolicy"] == "Always" {
        let path = format!("{path}.template.spec.restartPolicy");
        errors.push(FieldError::required(path, "valid values: \"OnFailure\", \"Never\""));
    }
    let modes = ["NonIndexed", "Indexed"];
    if spec["completionMode"].as_str().is_some_and(|mode| !modes.contains(&mode)) {
        errors.push(FieldError::not_supported(format!("{path}.completionMode"), &spec["completionMode"], &modes));
    }
    if !spec["backoffLimitPerIndex"].is_null() && spec["completionMode"] != "Indexed" {
        let detail = "requires indexed completion mode";
        let path = format!("{path}.backoffLimitPerIndex");
        errors.push(FieldError::invalid(path, &spec["backoffLimitPerIndex"], detail));
    }
    one_of(spec, "podReplacementPolicy", path, &["Failed", "TerminatingOrFailed"], errors);
    if !text(spec, "managedBy").is_empty() {
        plain::domain_path(text(spec, "managedBy"), &format!("{path}.managedBy"), errors);
    }
    failure_policy(spec, path, errors);
    if spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        errors.push(FieldError::required(format!("{path}.completions"), "when completion mode is Indexed"));
    }
}

fn failure_policy(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let policy = &spec["podFailurePolicy"];
    if !policy.is_object() {
        return;
    }
    let restart = &spec["template"]["spec"]["restartPolicy"];
    if restart != "Never" {
        let path = format!("{path}.template.spec.restartPolicy");
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(FieldError::invalid(path, restart, detail));
    }
    let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
    for (i, rule) in items(&policy["rules"]).iter().enumerate() {
        let path = format!("{path}.podFailurePolicy.rules[{i}]");
        if !actions.contains(&text(rule, "action")) {
            errors.push(FieldError::not_supported(format!("{path}.action"), &rule["action"], &actions));
        }
        let (codes, conditions) = (rule["onExitCodes"].is_object(), !items(&rule["onPodConditions"]).is_empty());
        let detail = match (codes, conditions) {
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            _ => continue,
        };
        let mut error = FieldError::invalid(path, &Value::Null, "");
        error.message = format!("Invalid value: {detail}");
        errors.push(error);
    }
}

fn success_policy(spec: &Value, errors: &mut Vec<FieldError>) {
    let policy = &spec["successPolicy"];
    if !policy.is_object() {
        return;
    }
    if spec["completionMode"] != "Indexed" {
        let shown = format!("{{\"Rules\":{}}}", policy["rules"]);
        errors.push(FieldError::invalid_shown("spec.successPolicy", &shown, "requires indexed completion mode"));
        return;
    }
    if items(&policy["rules"]).is_empty() {
        let detail = "at least one rules must be specified when successPolicy is specified";
        errors.push(FieldError::required("spec.successPolicy.rules", detail));
    }
    for (i, rule) in items(&policy["rules"]).iter().enumerate() {
        if rule["succeededCount"].is_null() && rule["succeededIndexes"].is_null() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(format!("spec.successPolicy.rules[{i}]"), detail));
        }
    }
}

pub(crate) fn validate(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    const OWN: &str = "batch.kubernetes.io/controller-uid";
    let mut errors = Vec::new();
    let spec = &new["spec"];
    if old.is_none() && spec["manualSelector"] != true {
        let selector = &spec["selector"];
        let labels = &spec["template"]["metadata"]["labels"];
        let selected: Vec<_> = entries(&selector["matchLabels"]).collect();
        if selected.len() != 1
            || !selected.iter().any(|(key, _)| *key == OWN)
            || !selector["matchExpressions"].is_null()
        {
            errors.push(FieldError::invalid("spec.selector", selector, "`selector` not auto-generated"));
        }
        if selected.iter().any(|(key, value)| labels[key.as_str()] != **value) {
            let detail = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
        }
    }
    if old.is_none() && spec["manualSelector"] == true && !spec["selector"].is_object() {
        errors.push(FieldError::required("spec.selector", ""));
        let labels = &spec["template"]["metadata"]["labels"];
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
    }
    template(spec, "spec", &mut errors);
    success_policy(spec, &mut errors);
    if let Some(old) = old {
        let was = &old["spec"];
        immutable(&spec["selector"], &was["selector"], "spec.selector", &mut errors);
        // An indexed Job may grow or shrink as a whole.
        let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
        if !elastic {
            immutable(&spec["completions"], &was["completions"], "spec.completions", &mut errors);
        }
        // What has not begun may still change.
        let begun = !old["status"]["startTime"].is_null();
        if spec["suspend"] != true || begun {
            immutable(&spec["template"], &was["template"], "spec.template", &mut errors);
        }
        immutable(&spec["completionMode"], &was["completionMode"], "spec.completionMode", &mut errors);
        immutable(&spec["podFailurePolicy"], &was["podFailurePolicy"], "spec.podFailurePolicy", &mut errors);
    }
    errors
}

pub(crate) fn validate_cron_job(new: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = &new["metadata"]["name"];
    if name.as_str().is_some_and(|name| name.len() > 52) {
        // A Job's name is that of its pods' hosts, and a time is added to this one.
        errors.push(FieldError::invalid("metadata.name", name, "must be no more than 52 characters"));
    }
    let spec = &new["spec"];
    match spec["schedule"].as_str().filter(|s| !s.is_empty()) {
        None => errors.push(FieldError::required("spec.schedule", "")),
        Some(text) => {
            if let Err(why) = schedule::parse(text) {
                errors.push(FieldError::invalid("spec.schedule", &spec["schedule"], &why));
            }
        }
    }
    if let Err(why) = schedule::zone(spec["timeZone"].as_str()) {
        errors.push(FieldError::invalid("spec.timeZone", &spec["timeZone"], &why));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    if !policies.iter().any(|p| spec["concurrencyPolicy"] == *p) {
        errors.push(FieldError::not_supported("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &policies));
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        not_negative(spec, key, "spec", &mut errors);
    }
    template(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec", &mut errors);
    errors
}
