//! Jobs: pods until enough of them succeeded, or too many failed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::{BURST, Expected, create, delete, is_active, pod_from};
use super::world::{World, controller_of, gone_is_fine, has_condition, now};

const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.jobs.on_change(move |change| {
        if let Some(job) = change.new {
            q.add(key_of(job.as_ref()));
        }
    });
    let q = queue.clone();
    world.pods.on_change(move |change| {
        for pod in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(pod.as_ref()).filter(|o| o.kind == "Job") {
                q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.jobs.synced().await;
        world.pods.synced().await;
        let expected = Expected::default();
        queue.work("job", 16, |key| reconcile(&world, &expected, key)).await;
    }
}

/// A job in numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    active: i32,
    succeeded: i32,
    failed: i32,
    /// Restarts within pods, which count as failures too.
    restarts: i32,
    seconds: i64,
}

/// What to do next.
#[derive(Debug, PartialEq)]
enum Next {
    Complete,
    Fail(&'static str, &'static str),
    Suspend,
    /// Create (or, if negative, delete) this many pods.
    Scale(i32),
}

fn next(spec: &JobSpec, counts: Counts) -> Next {
    let parallelism = spec.parallelism.unwrap_or(1);
    if counts.failed + counts.restarts > spec.backoff_limit.unwrap_or(6) {
        return Next::Fail("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    let done = match spec.completions {
        Some(wanted) => counts.succeeded >= wanted,
        None => counts.succeeded > 0 && counts.active == 0,
    };
    if done {
        return Next::Complete;
    }
    if spec.active_deadline_seconds.is_some_and(|limit| counts.seconds >= limit) {
        return Next::Fail("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if spec.suspend == Some(true) {
        return Next::Suspend;
    }
    let wanted = match spec.completions {
        Some(wanted) => parallelism.min(wanted - counts.succeeded),
        // With a work queue, the first success ends the creation of pods.
        None if counts.succeeded > 0 => parallelism.min(counts.active),
        None => parallelism,
    };
    Next::Scale(wanted - counts.active)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

/// `0-2,5`, as `status.completedIndexes` writes a set.
fn ranges(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for i in indexes {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *i => *end = *i,
            _ => runs.push((*i, *i)),
        }
    }
    let runs = runs.iter().map(|(a, b)| match b - a {
        0 => a.to_string(),
        1 => format!("{a},{b}"),
        _ => format!("{a}-{b}"),
    });
    runs.collect::<Vec<_>>().join(",")
}

fn pod_of(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let mut pod = pod_from(job, &spec.template);
    let uid = job.uid().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.insert(format!("{prefix}job-name"), job.name_any());
        labels.insert(format!("{prefix}controller-uid"), uid.clone());
    }
    if let Some(index) = index {
        labels.insert(INDEX.into(), index.to_string());
        pod.metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
        pod.metadata.generate_name = Some(format!("{}-{index}-", job.name_any()));
        if let Some(spec) = &mut pod.spec {
            spec.hostname.get_or_insert_with(|| format!("{}-{index}", job.name_any()));
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                let variable =
                    EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: Some(index.to_string()), value_from: None };
                container.env.get_or_insert_default().push(variable);
            }
        }
    }
    pod
}

fn finished(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    ends.next().map(|c| c.last_transition_time.as_ref().map_or_else(Timestamp::now, |t| t.0))
}

async fn reconcile(world: &World, expected: &Expected, key: Key) -> Outcome {
    let Some(job) = world.jobs.get(&key) else { return Ok(None) };
    let Some(spec) = &job.spec else { return Ok(None) };
    if job.metadata.deletion_timestamp.is_some() || spec.managed_by.as_deref().is_some_and(|m| m != MANAGER) {
        return Ok(None);
    }
    let api = world.api::<Job>(&key.0);
    if let Some(ended) = finished(&job) {
        let Some(ttl) = spec.ttl_seconds_after_finished else { return Ok(None) };
        let left = ended.as_second() + i64::from(ttl) - Timestamp::now().as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        let same = Preconditions { uid: job.uid(), resource_version: None };
        gone_is_fine(api.delete(&key.1, &DeleteParams::foreground().preconditions(same)).await.map(drop))?;
        return Ok(None);
    }
    let uid = job.uid().unwrap_or_default();
    let pods = world.pods_of(&uid);
    if let Some(wait) = expected.behind(&uid, &pods) {
        return Ok(Some(wait));
    }
    let status = job.status.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let of = |wanted: &str| pods.iter().filter(|p| phase(p) == wanted).collect::<Vec<_>>();
    let done: BTreeSet<i32> = of("Succeeded").iter().filter_map(|p| index_of(p)).collect();
    let counted = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let succeeded = if indexed { done.len() } else { of("Succeeded").len() };
    let active: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
    let restarts = active.iter().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
    let begun = status.start_time.as_ref().map(|t| t.0);
    let mut counts = Counts {
        active: counted(active.len()),
        // Pods that were counted may have been deleted since.
        succeeded: counted(succeeded).max(status.succeeded.unwrap_or_default()),
        failed: counted(of("Failed").len()).max(status.failed.unwrap_or_default()),
        restarts: restarts.map(|c| c.restart_count).sum(),
        seconds: begun.map_or(0, |b| Timestamp::now().as_second() - b.as_second()),
    };
    let next = next(spec, counts);
    let mut conditions = serde_json::to_value(&status.conditions).ok().and_then(|v| v.as_array().cloned());
    let conditions = conditions.get_or_insert_default();
    let mut say = |kind: &str, status: &str, reason: &str, message: &str| {
        if conditions.iter().any(|c| c["type"] == kind && c["status"] == status) {
            return;
        }
        conditions.retain(|c| c["type"] != kind);
        conditions.push(json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastProbeTime": now(), "lastTransitionTime": now()}));
    };
    let mut completion = Value::Null;
    match &next {
        Next::Complete => {
            let said = "Reached expected number of succeeded pods";
            say("SuccessCriteriaMet", "True", "CompletionsReached", said);
            say("Complete", "True", "CompletionsReached", said);
            completion = now().into();
            delete(world, active).await?;
            counts.active = 0;
            world.event("job-controller", job.as_ref(), "Normal", "Completed", "Job completed");
        }
        Next::Fail(reason, message) => {
            say("FailureTarget", "True", reason, message);
            say("Failed", "True", reason, message);
            delete(world, active).await?;
            counts.active = 0;
            world.event("job-controller", job.as_ref(), "Warning", reason, message);
        }
        Next::Suspend => {
            say("Suspended", "True", "JobSuspended", "Job suspended");
            expected.note(&uid, Vec::new(), delete(world, active).await?);
        }
        Next::Scale(more) => {
            if conditions_has(&job, "Suspended") {
                say("Suspended", "False", "JobResumed", "Job resumed");
            }
            let many = usize::try_from(more.unsigned_abs()).unwrap_or_default().min(BURST);
            if *more > 0 {
                let taken: BTreeSet<i32> = active.iter().filter_map(|p| index_of(p)).chain(done.clone()).collect();
                let free = (0..spec.completions.unwrap_or_default()).filter(|i| !taken.contains(i));
                let indexes: Vec<Option<i32>> =
                    if indexed { free.map(Some).take(many).collect() } else { vec![None; many] };
                let made = indexes.into_iter().map(|i| pod_of(&job, spec, i)).collect();
                let made = create(world, made).await?;
                counts.active += counted(made.len());
                expected.note(&uid, made, Vec::new());
            } else if *more < 0 {
                let mut surplus = active;
                super::workload::by_loss(&mut surplus);
                surplus.truncate(many);
                expected.note(&uid, Vec::new(), delete(world, surplus).await?);
            }
        }
    }
    let positive = |n: i32| if n > 0 { json!(n) } else { Value::Null };
    let ready = pods.iter().filter(|p| is_active(p) && has_condition(p, "Ready")).count();
    let mut want = json!({
        "active": positive(counts.active), "succeeded": positive(counts.succeeded), "failed": positive(counts.failed),
        "ready": ready, "conditions": conditions, "uncountedTerminatedPods": {}, "terminating":
            pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !super::world::is_terminal(p)).count(),
    });
    if indexed && !done.is_empty() {
        want["completedIndexes"] = ranges(&done).into();
    }
    if begun.is_none() && next != Next::Suspend {
        want["startTime"] = now().into();
    }
    if !completion.is_null() {
        want["completionTime"] = completion;
    }
    let have = serde_json::to_value(&status).unwrap_or_default();
    let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    let same = |(field, v): (&String, &Value)| have.get(field) == Some(v) || (empty(v) && have.get(field).is_none());
    if !want.as_object().into_iter().flatten().all(same) {
        let patch = Patch::Merge(json!({"status": want}));
        gone_is_fine(api.patch_status(&key.1, &PatchParams::default(), &patch).await.map(drop))?;
    }
    let deadline = spec.active_deadline_seconds.map(|limit| (limit - counts.seconds).max(1).unsigned_abs());
    Ok(deadline.map(Duration::from_secs))
}

const MANAGER: &str = "kubernetes.io/job-controller";

fn conditions_has(job: &Job, kind: &str) -> bool {
    job.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_goes_on_until_enough_succeeded_or_too_many_failed() {
        let spec = |v: Value| {
            let mut v = v;
            v["template"] = json!({});
            serde_json::from_value::<JobSpec>(v).unwrap()
        };
        let counts = |active, succeeded, failed| Counts { active, succeeded, failed, ..Counts::default() };
        let limit = Next::Fail("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        for (s, c, want) in [
            (json!({"completions": 3, "parallelism": 2}), counts(0, 0, 0), Next::Scale(2)),
            (json!({"completions": 3, "parallelism": 2}), counts(0, 2, 0), Next::Scale(1)),
            (json!({"completions": 3, "parallelism": 2}), counts(0, 3, 0), Next::Complete),
            (json!({"completions": 1, "backoffLimit": 1}), counts(0, 0, 1), Next::Scale(1)),
            (json!({"completions": 1, "backoffLimit": 1}), counts(0, 0, 2), limit),
            (json!({"parallelism": 3}), counts(2, 1, 0), Next::Scale(0)),
            (json!({"parallelism": 3}), counts(0, 1, 0), Next::Complete),
            (json!({"completions": 1, "suspend": true}), counts(1, 0, 0), Next::Suspend),
            (json!({"completions": 4, "parallelism": 1}), counts(3, 0, 0), Next::Scale(-2)),
        ] {
            assert_eq!(next(&spec(s.clone()), c), want, "{s} {c:?}");
        }
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5, 7, 8])), "0-2,5,7,8");
    }
}
