//! The printers of the workload kinds.

use jiff::Timestamp;
use serde_json::Value;

use super::builtin::{AGE, age, array, int, or_none, selector, since, text};
use super::{Column, col, human, wide};

const CONTAINERS: Column = wide("Containers", "string", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "string", "Images referenced by each container in the template.");
const SELECTOR: Column = wide("Selector", "string", "Label selector for the pods.");

/// Containers, images and selector: the wide columns that workloads share.
fn template(object: &Value, template: &str, chosen_by: &str) -> [Value; 3] {
    let of = |field: &str| {
        let all: Vec<_> =
            array(object, &format!("{template}/spec/containers")).iter().map(|c| text(c, field)).collect();
        all.join(",")
    };
    [of("/name").into(), of("/image").into(), selector(object.pointer(chosen_by)).into()]
}

fn with_template(mut cells: Vec<Value>, object: &Value) -> Vec<Value> {
    cells.extend(template(object, "/spec/template", "/spec/selector"));
    cells
}

pub(super) const DEPLOYMENT: &[Column] = &[
    col("Ready", "string", "Number of the pod with ready state"),
    col("Up-to-date", "string", "Total number of non-terminated pods that have the desired template spec."),
    col("Available", "string", "Total number of available pods (ready for at least minReadySeconds)."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let cells = vec![
        format!("{}/{}", int(object, "/status/readyReplicas"), int(object, "/spec/replicas")).into(),
        int(object, "/status/updatedReplicas").into(),
        int(object, "/status/availableReplicas").into(),
        age(object, now),
    ];
    with_template(cells, object)
}

pub(super) const REPLICA_SET: &[Column] = &[
    col("Desired", "integer", "Replicas is the number of desired pods."),
    col("Current", "integer", "Replicas is the most recently observed number of non-terminating pods."),
    col("Ready", "integer", "The number of pods targeted by this set with a Ready condition."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let cells = vec![
        int(object, "/spec/replicas").into(),
        int(object, "/status/replicas").into(),
        int(object, "/status/readyReplicas").into(),
        age(object, now),
    ];
    with_template(cells, object)
}

pub(super) const DAEMON_SET: &[Column] = &[
    col("Desired", "integer", "The number of nodes that should be running the daemon pod."),
    col("Current", "integer", "The number of nodes that run at least one daemon pod and are supposed to."),
    col("Ready", "integer", "The number of nodes that should be running the daemon pod with it ready."),
    col("Up-to-date", "integer", "The number of nodes that run the updated daemon pod."),
    col("Available", "integer", "The number of nodes that have the daemon pod running and available."),
    col("Node Selector", "string", "The nodes that the daemon pods may run on."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let cells = vec![
        int(object, "/status/desiredNumberScheduled").into(),
        int(object, "/status/currentNumberScheduled").into(),
        int(object, "/status/numberReady").into(),
        int(object, "/status/updatedNumberScheduled").into(),
        int(object, "/status/numberAvailable").into(),
        selector(object.pointer("/spec/template/spec/nodeSelector")).into(),
        age(object, now),
    ];
    with_template(cells, object)
}

pub(super) const STATEFUL_SET: &[Column] =
    &[col("Ready", "string", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES];

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = format!("{}/{}", int(object, "/status/readyReplicas"), int(object, "/spec/replicas"));
    let [containers, images, _] = template(object, "/spec/template", "/spec/selector");
    vec![ready.into(), age(object, now), containers, images]
}

pub(super) const CONTROLLER_REVISION: &[Column] = &[
    col("Controller", "string", "Controller of the object"),
    col("Revision", "string", "Revision indicates the revision of the state represented by Data."),
    AGE,
];

pub(super) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = array(object, "/metadata/ownerReferences")
        .iter()
        .find(|r| r.get("controller").and_then(Value::as_bool) == Some(true));
    let owner = owner.map(|r| {
        let kind = text(r, "/kind").to_lowercase();
        match text(r, "/apiVersion").split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", text(r, "/name")),
            None => format!("{kind}/{}", text(r, "/name")),
        }
    });
    vec![or_none(&owner.unwrap_or_default()).into(), int(object, "/revision").into(), age(object, now)]
}

pub(super) const JOB: &[Column] = &[
    col("Status", "string", "Status of the job."),
    col("Completions", "string", "The desired number of successfully finished pods the job should be run with."),
    col("Duration", "string", "Time required to complete the job."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let done = int(object, "/status/succeeded");
    let completions = match object.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{done}/{wanted}"),
        None => match int(object, "/spec/parallelism") {
            many if many > 1 => format!("{done}/1 of {many}"),
            _ => format!("{done}/1"),
        },
    };
    let is = |kind: &str| {
        array(object, "/status/conditions").iter().any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
    };
    let status = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if object.pointer("/metadata/deletionTimestamp").is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let duration = match text(object, "/status/startTime").parse::<Timestamp>() {
        Err(_) => String::new(),
        Ok(start) => {
            let end = text(object, "/status/completionTime").parse().unwrap_or(now);
            human::human_duration(end.as_second() - start.as_second())
        }
    };
    with_template(vec![status.into(), completions.into(), duration.into(), age(object, now)], object)
}

pub(super) const CRON_JOB: &[Column] = &[
    col("Schedule", "string", "The schedule in Cron format."),
    col("Timezone", "string", "The time zone name for the given schedule."),
    col("Suspend", "boolean", "Whether subsequent executions are suspended."),
    col("Active", "integer", "Number of currently running jobs."),
    col("Last Schedule", "string", "When was the last time the job was successfully scheduled."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let last = match text(object, "/status/lastScheduleTime") {
        "" => "<none>".to_string(),
        _ => since(object, "/status/lastScheduleTime", now),
    };
    let suspended = object.pointer("/spec/suspend").and_then(Value::as_bool).unwrap_or(false);
    let mut cells = vec![
        text(object, "/spec/schedule").into(),
        or_none(text(object, "/spec/timeZone")).into(),
        if suspended { "True" } else { "False" }.into(),
        array(object, "/status/active").len().into(),
        last.into(),
        age(object, now),
    ];
    cells.extend(template(object, "/spec/jobTemplate/spec/template", "/spec/jobTemplate/spec/selector"));
    cells
}

pub(super) const BUDGET: &[Column] = &[
    col("Min Available", "string", "The minimum number of pods that must be available."),
    col("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
    col("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time."),
    AGE,
];

pub(super) fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let share = |pointer: &str| match object.pointer(pointer) {
        None | Some(Value::Null) => "N/A".to_string(),
        Some(Value::String(percent)) => percent.clone(),
        Some(number) => number.to_string(),
    };
    vec![
        share("/spec/minAvailable").into(),
        share("/spec/maxUnavailable").into(),
        int(object, "/status/disruptionsAllowed").into(),
        age(object, now),
    ]
}

pub(super) const POD_TEMPLATE: &[Column] = &[
    col("Containers", "string", "Names of each container in the template."),
    col("Images", "string", "Images referenced by each container in the template."),
    col("Pod Labels", "string", "The labels for the pod template."),
];

pub(super) fn pod_template(object: &Value, _: Timestamp) -> Vec<Value> {
    let all = |key: &str| {
        let containers = array(object, "/template/spec/containers").iter();
        Value::from(containers.map(|container| text(container, key)).collect::<Vec<_>>().join(","))
    };
    vec![all("/name"), all("/image"), selector(object.pointer("/template/metadata/labels")).into()]
}

pub(super) const QUOTA: &[Column] = &[
    col("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume."),
    col(
        "Limit",
        "string",
        "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
    ),
    AGE,
];

pub(super) fn quota(quota: &Value, now: Timestamp) -> Vec<Value> {
    let used = |name: &str| match quota.pointer("/status/used").and_then(|used| used[name].as_str()) {
        None => "0".to_owned(),
        Some(used) => used.to_owned(),
    };
    let hard = quota.pointer("/status/hard").or(quota.pointer("/spec/hard")).and_then(Value::as_object);
    let line = |limits: bool| {
        let of_kind = hard.into_iter().flatten().filter(|(name, _)| name.starts_with("limits") == limits);
        let shown = of_kind.map(|(name, most)| format!("{name}: {}/{}", used(name), most.as_str().unwrap_or_default()));
        Value::from(shown.collect::<Vec<_>>().join(", "))
    };
    vec![line(false), line(true), age(quota, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_jobs_row_tells_its_state_and_how_long_it_took() {
        let object = json!({"spec": {"completions": 3}, "status": {"succeeded": 3,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:05Z",
            "conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(job(&object, Timestamp::now())[..3], ["Complete", "3/3", "65s"].map(Value::from));
        let object = json!({"spec": {"parallelism": 2}});
        assert_eq!(job(&object, Timestamp::now())[..3], ["Running", "0/1 of 2", ""].map(Value::from));
    }

    #[test]
    fn a_deployments_row_has_its_counts_and_template() {
        let object = json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}]}}}, "status": {"readyReplicas": 2}});
        let got = deployment(&object, Timestamp::now());
        assert_eq!(json!(got[..3]), json!(["2/3", 0, 0]));
        assert_eq!(json!(got[4..]), json!(["c", "i:1", "app=d"]));
    }
}
