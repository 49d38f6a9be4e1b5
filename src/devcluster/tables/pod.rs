//! The Pod's row: the one whose status is a story and not a field.

use jiff::Timestamp;
use serde_json::Value;

use super::builtin::{age, array, int, text};
use super::{Column, col, human, wide};

pub(super) const COLUMNS: &[Column] = &[
    col("Ready", "string", "The aggregate readiness state of this pod for accepting traffic."),
    col("Status", "string", "The aggregate status of the containers in this pod."),
    col(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod \
         has restarted.",
    ),
    col("Age", "string", ""),
    wide(
        "IP",
        "string",
        "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
    ),
    wide("Node", "string", "NodeName indicates in which node this pod is scheduled."),
    wide(
        "Nominated Node",
        "string",
        "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right \
         away.",
    ),
    wide("Readiness Gates", "string", "If specified, all readiness gates will be evaluated for pod readiness."),
];

/// The cells after the name.
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summary(pod);
    let restarts = match &summary.last_restart {
        Some(at) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, human::since(at, now)),
        _ => summary.restarts.to_string(),
    };
    let or_none = |s: &str| if s.is_empty() { "<none>".to_string() } else { s.to_string() };
    let gates = array(pod, "/spec/readinessGates");
    let passed = gates.iter().filter(|g| condition(pod, text(g, "/conditionType")) == Some("True")).count();
    let ip = match array(pod, "/status/podIPs").first() {
        Some(first) => text(first, "/ip"),
        None => text(pod, "/status/podIP"),
    };
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.status.into(),
        restarts.into(),
        age(pod, now),
        or_none(ip).into(),
        or_none(text(pod, "/spec/nodeName")).into(),
        or_none(text(pod, "/status/nominatedNodeName")).into(),
        if gates.is_empty() { "<none>".into() } else { format!("{passed}/{}", gates.len()).into() },
    ]
}

struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<String>,
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    array(pod, "/status/conditions").iter().find(|c| text(c, "/type") == kind).map(|c| text(c, "/status"))
}

/// `Signal:9`, `ExitCode:1` or the state's own reason.
fn ended(terminated: &Value) -> String {
    match (text(terminated, "/reason"), int(terminated, "/signal"), int(terminated, "/exitCode")) {
        ("", 0, code) => format!("ExitCode:{code}"),
        ("", signal, _) => format!("Signal:{signal}"),
        (reason, ..) => reason.into(),
    }
}

fn later(a: Option<String>, status: &Value) -> Option<String> {
    let b = text(status, "/lastState/terminated/finishedAt");
    // RFC 3339 in UTC sorts as text.
    match a {
        Some(a) if a.as_str() >= b => Some(a),
        a if b.is_empty() => a,
        _ => Some(b.to_string()),
    }
}

fn summary(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let mut status = match text(pod, "/status/reason") {
        "" => phase.to_string(),
        reason => reason.to_string(),
    };
    let gated = |c: &&Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
    if array(pod, "/status/conditions").iter().any(|c| gated(&c)) {
        status = "SchedulingGated".into();
    }
    let inits = array(pod, "/spec/initContainers");
    let sidecar = |name: &str| inits.iter().any(|c| text(c, "/name") == name && text(c, "/restartPolicy") == "Always");
    let mut total = array(pod, "/spec/containers").len();
    total += inits.iter().filter(|c| text(c, "/restartPolicy") == "Always").count();

    let (mut ready, mut restarts, mut last) = (0, 0, None);
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    let mut initializing = false;
    for (i, c) in array(pod, "/status/initContainerStatuses").iter().enumerate() {
        restarts += int(c, "/restartCount");
        last = later(last, c);
        let is_sidecar = sidecar(text(c, "/name"));
        if is_sidecar {
            sidecar_restarts += int(c, "/restartCount");
            sidecar_last = later(sidecar_last, c);
        }
        let terminated = c.pointer("/state/terminated");
        if terminated.is_some_and(|t| int(t, "/exitCode") == 0) {
            continue;
        }
        if is_sidecar && c.get("started").and_then(Value::as_bool) == Some(true) {
            ready += usize::from(c.get("ready").and_then(Value::as_bool) == Some(true));
            continue;
        }
        let waiting = text(c, "/state/waiting/reason");
        status = match terminated {
            Some(t) => format!("Init:{}", ended(t)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", inits.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || condition(pod, "Initialized") == Some("True") {
        (restarts, last) = (sidecar_restarts, sidecar_last);
        let mut running = false;
        for c in array(pod, "/status/containerStatuses").iter().rev() {
            restarts += int(c, "/restartCount");
            last = later(last, c);
            let waiting = text(c, "/state/waiting/reason");
            if !waiting.is_empty() {
                status = waiting.into();
            } else if let Some(t) = c.pointer("/state/terminated") {
                status = ended(t);
            } else if c.get("ready").and_then(Value::as_bool) == Some(true) && c.pointer("/state/running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            status = if condition(pod, "Ready") == Some("True") { "Running" } else { "NotReady" }.into();
        }
    }
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        if text(pod, "/status/reason") == "NodeLost" {
            status = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            status = "Terminating".into();
        }
    }
    Summary { ready, total, status, restarts, last_restart: last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(status: Value, spec: Value, deleted: bool) -> Vec<Value> {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}});
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        pod["spec"] = spec;
        pod["status"] = status;
        cells(&pod, "2026-01-01T01:00:00Z".parse().unwrap())
    }

    #[test]
    fn the_status_tells_what_holds_the_pod_up() {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]});
        let plain = json!({"containers": [{"name": "c"}]});
        for (status, spec, deleted, want) in [
            (json!({"phase": "Pending"}), &plain, false, ["0/1", "Pending", "0"]),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                &plain,
                false,
                ["0/1", "SchedulingGated", "0"],
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2,
                    "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]}),
                &plain,
                false,
                ["1/1", "Running", "2 (5m ago)"],
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                &plain,
                false,
                ["0/1", "CrashLoopBackOff", "1"],
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                &plain,
                false,
                ["0/1", "Completed", "0"],
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 3}}}]}),
                &plain,
                false,
                ["0/1", "ExitCode:3", "0"],
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                &spec,
                false,
                ["0/1", "Init:0/1", "0"],
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                &spec,
                false,
                ["0/1", "Init:Error", "0"],
            ),
            (json!({"phase": "Running"}), &plain, true, ["0/1", "Terminating", "0"]),
            (json!({"phase": "Failed", "reason": "Evicted"}), &plain, true, ["0/1", "Evicted", "0"]),
        ] {
            let got = row(status.clone(), spec.clone(), deleted);
            assert_eq!(got[..3], want.map(Value::from), "{status}");
        }
    }

    #[test]
    fn a_sidecar_counts_as_a_container() {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
        let status = json!({"phase": "Running",
            "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
            "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]});
        assert_eq!(row(status, spec, false)[..2], ["2/2", "Running"].map(Value::from));
    }
}
