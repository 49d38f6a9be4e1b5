//! Defaults of pods and pod templates. kubernetes: `pkg/apis/core/v1/defaults.go`.

use serde_json::{Value, json};

use crate::validate::fields::{child, entries, fill, fill_zero, items, items_mut, text};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// A pod: its spec, its phase and its class of service.
pub(crate) fn default(pod: &mut Value) {
    if !pod["spec"].is_object() {
        return;
    }
    default_spec(&mut pod["spec"]);
    // Only pods, not templates: a template's `resources` stay as written.
    for list in CONTAINER_LISTS {
        for container in items_mut(&mut pod["spec"], list) {
            requests_from_limits(&mut container["resources"]);
        }
    }
    if pod["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    }
    fill(&mut pod["spec"], "enableServiceLinks", true);
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let class = qos_class(&pod["spec"]);
    fill(&mut pod["status"], "qosClass", class);
}

/// A pod template's spec.
pub(crate) fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    fill(spec, "restartPolicy", "Always");
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "securityContext", json!({}));
    let named = [text(spec, "serviceAccountName"), text(spec, "serviceAccount")];
    let account = named.into_iter().find(|name| !name.is_empty()).map(str::to_owned);
    if let Some(account) = account {
        fill(spec, "serviceAccountName", account.as_str());
        fill(spec, "serviceAccount", account);
    }
    let host_network = spec["hostNetwork"] == true;
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let policy = pull_policy(text(container, "image"));
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    for port in items_mut(container, "ports") {
        fill(port, "protocol", "TCP");
        if host_network && let Some(number) = port["containerPort"].as_i64() {
            fill_zero(port, "hostPort", number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, probe) {
            for (key, default) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                fill_zero(probe, key, default);
            }
            default_handler(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(handler) = child(container, "lifecycle").and_then(|lifecycle| child(lifecycle, hook)) {
            default_handler(handler);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = child(variable, "valueFrom").and_then(|from| child(from, "fieldRef")) {
            fill(field, "apiVersion", "v1");
        }
        if let Some(field) = child(variable, "valueFrom").and_then(|from| child(from, "resourceFieldRef")) {
            fill(field, "divisor", "0");
        }
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(http) = child(handler, "httpGet") {
        fill(http, "path", "/");
        fill(http, "scheme", "HTTP");
    }
    if let Some(grpc) = child(handler, "grpc")
        && grpc["service"].is_null()
    {
        grpc["service"] = "".into();
    }
}

/// `latest` moves, so it is always pulled; any other tag or a digest stays.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or_default();
    if image.contains('@') {
        return "IfNotPresent";
    }
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

/// What is limited is also requested, unless the request says otherwise.
fn requests_from_limits(resources: &mut Value) {
    let limits: Vec<_> = entries(&resources["limits"]).map(|(k, v)| (k.clone(), v.clone())).collect();
    if limits.is_empty() {
        return;
    }
    fill(resources, "requests", json!({}));
    for (key, limit) in limits {
        fill(&mut resources["requests"], &key, limit);
    }
}

fn default_volume(volume: &mut Value) {
    const MODE: i64 = 0o644;
    let has_source = entries(volume).any(|(key, source)| key != "name" && !source.is_null());
    if !has_source {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, source) {
            fill(source, "defaultMode", MODE);
        }
    }
    if let Some(path) = child(volume, "hostPath")
        && path.get("type").is_none_or(Value::is_null)
    {
        path["type"] = "".into();
    }
    if let Some(downward) = child(volume, "downwardAPI") {
        items_mut(downward, "items").for_each(default_downward);
    }
    if let Some(projected) = child(volume, "projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                fill_zero(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                items_mut(downward, "items").for_each(default_downward);
            }
        }
    }
    if let Some(claim) = child(volume, "ephemeral").and_then(|e| child(e, "volumeClaimTemplate"))
        && let Some(spec) = child(claim, "spec")
    {
        fill(spec, "volumeMode", "Filesystem");
    }
}

fn default_downward(item: &mut Value) {
    if let Some(field) = child(item, "fieldRef") {
        fill(field, "apiVersion", "v1");
    }
}

/// The class of service that a pod's requests and limits of cpu and memory earn it.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers = || ["initContainers", "containers"].into_iter().flat_map(|list| items(&spec[list]));
    let named = ["cpu", "memory"];
    let set = |c: &Value, kind: &str, name: &str| !c["resources"][kind][name].is_null();
    if !containers().any(|c| named.iter().any(|n| set(c, "requests", n) || set(c, "limits", n))) {
        return "BestEffort";
    }
    let guaranteed = containers().all(|c| {
        named.iter().all(|n| set(c, "limits", n) && c["resources"]["limits"][n] == c["resources"]["requests"][n])
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_moving_tags_are_always_pulled() {
        for (image, policy) in [
            ("img", "Always"),
            ("img:latest", "Always"),
            ("img:1", "IfNotPresent"),
            ("host:5000/img", "Always"),
            ("host:5000/img:2", "IfNotPresent"),
            ("img@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn class_of_service_follows_requests_and_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"limits": both}), "Guaranteed"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": both}), "Burstable"),
        ] {
            let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
            default(&mut pod);
            assert_eq!(pod["status"]["qosClass"], class, "{pod}");
            let once = pod.clone();
            default(&mut pod);
            assert_eq!(pod, once);
        }
    }
}
