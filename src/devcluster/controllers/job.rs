//! Jobs: pods until enough of them succeeded, or too many failed.
//!
//! Each pod is kept by a finalizer until its end is in the Job's status, so that none is counted twice or missed:
//! first its uid is written into `uncountedTerminatedPods`, then the finalizer goes, then the counter moves.

mod plan;
mod pods;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use self::plan::{Counts, Next, Verdict, indexes, next, ranges, verdict};
use self::pods::{discard, ended_at, index_of, is_tracked, phase, pod_of, release};
use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::{BURST, Expected, by_loss, create, delete, is_active};
use super::world::{World, controller_of, gone_is_fine, has_condition, is_terminal, now};

const MANAGER: &str = "kubernetes.io/job-controller";
/// The wait after a failed pod, doubled with each in a row. kube-controller-manager: `DefaultJobPodFailureBackOff`.
const FIRST_BACKOFF: i64 = 10;
const LAST_BACKOFF: i64 = 600;

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
            let owner = controller_of(pod.as_ref()).filter(|o| o.kind == "Job").map(|o| o.name.clone());
            // One that lost its Job still has to be let go of.
            let name = owner.or_else(|| pod.labels().get(pods::NAME).filter(|_| pods::is_tracked(pod)).cloned());
            if let Some(name) = name {
                q.add((pod.namespace().unwrap_or_default(), name));
            }
        }
    });
    let world = world.clone();
    async move {
        world.jobs.synced().await;
        world.pods.synced().await;
        let memory = Memory::default();
        queue.work("job", 16, |key| reconcile(&world, &memory, key)).await;
    }
}

/// What is not in any object: writes under way, and how often pods failed in a row.
#[derive(Default)]
struct Memory {
    expected: Expected,
    failures: Mutex<HashMap<String, Failures>>,
}

#[derive(Clone, Copy, Default)]
struct Failures {
    in_a_row: u32,
    last: i64,
}

impl Memory {
    /// Notes ends that are new; the seconds until a pod may be created.
    fn note(&self, job: &str, failed: &[Arc<Pod>], succeeded: bool, now: Timestamp) -> i64 {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if succeeded {
            all.remove(job);
        }
        if !failed.is_empty() {
            let mine = all.entry(job.into()).or_default();
            mine.in_a_row = mine.in_a_row.saturating_add(u32::try_from(failed.len()).unwrap_or(u32::MAX));
            let ended = failed.iter().filter_map(|p| ended_at(p)).max().unwrap_or(now).as_second();
            mine.last = mine.last.max(ended.min(now.as_second()));
        }
        let Some(mine) = all.get(job).filter(|mine| mine.in_a_row > 0) else { return 0 };
        let wait = (FIRST_BACKOFF << (mine.in_a_row - 1).min(10)).min(LAST_BACKOFF);
        (mine.last + wait - now.as_second()).max(0)
    }

    fn forget(&self, job: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
    }
}

/// Whether a Job ended in this way.
pub(super) fn ended(job: &Job, kind: &str) -> bool {
    job.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
}

/// When a Job ended, if it has.
pub(super) fn finished(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    ends.next().map(|c| c.last_transition_time.as_ref().map_or_else(Timestamp::now, |t| t.0))
}

/// The pods' ends: those in the status already, and those to be written there.
#[derive(Default)]
struct Tally {
    succeeded: i32,
    failed: i32,
    /// Uids that are in `uncountedTerminatedPods`, and whose pods still have the finalizer.
    uncounted: [BTreeSet<String>; 2],
    /// Pods to let go of once the status is written.
    ended: Vec<Arc<Pod>>,
    newly_failed: Vec<Arc<Pod>>,
    newly_succeeded: bool,
    /// Indexes that are complete.
    done: BTreeSet<i32>,
    fatal: Option<String>,
}

fn tally(job: &Job, spec: &JobSpec, pods: &[Arc<Pod>]) -> Tally {
    let status = job.status.clone().unwrap_or_default();
    let before = status.uncounted_terminated_pods.unwrap_or_default();
    let mut tally = Tally {
        succeeded: status.succeeded.unwrap_or_default(),
        failed: status.failed.unwrap_or_default(),
        done: indexes(status.completed_indexes.as_deref().unwrap_or_default()),
        ..Tally::default()
    };
    let tracked: BTreeSet<String> = pods.iter().filter(|p| is_tracked(p)).filter_map(|p| p.uid()).collect();
    let known = |uids: Option<Vec<String>>| uids.into_iter().flatten().collect::<BTreeSet<String>>();
    let (good, bad) = (known(before.succeeded), known(before.failed));
    let gone = |uids: &BTreeSet<String>| i32::try_from(uids.difference(&tracked).count()).unwrap_or(i32::MAX);
    tally.succeeded += gone(&good);
    tally.failed += gone(&bad);
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed");
    let failing = ended(job, "FailureTarget");
    for pod in pods.iter().filter(|p| is_tracked(p)) {
        let uid = pod.uid().unwrap_or_default();
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if phase(pod) == "Succeeded" {
            tally.newly_succeeded |= !good.contains(&uid);
            tally.done.extend(index_of(pod));
            tally.uncounted[0].insert(uid);
        } else if phase(pod) == "Failed" || (leaving && (!only_failed || failing)) {
            match verdict(spec, pod) {
                Verdict::Ignore if !bad.contains(&uid) => {}
                verdict => {
                    if let Verdict::FailJob(why) = verdict {
                        tally.fatal.get_or_insert(why);
                    }
                    if !bad.contains(&uid) {
                        tally.newly_failed.push(pod.clone());
                    }
                    tally.uncounted[1].insert(uid);
                }
            }
        } else {
            continue;
        }
        tally.ended.push(pod.clone());
    }
    tally
}

/// The conditions of a Job, to which more are added.
struct Conditions(Vec<Value>);

impl Conditions {
    fn of(job: &Job) -> Self {
        let now = job.status.as_ref().and_then(|s| s.conditions.as_ref());
        Self(now.and_then(|c| serde_json::to_value(c).ok()).and_then(|v| v.as_array().cloned()).unwrap_or_default())
    }

    fn say(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        if self.0.iter().any(|c| c["type"] == kind && c["status"] == status) {
            return;
        }
        self.0.retain(|c| c["type"] != kind);
        self.0.push(json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastProbeTime": now(), "lastTransitionTime": now()}));
    }

    fn get(&self, kind: &str) -> Option<(String, String)> {
        let found = self.0.iter().find(|c| c["type"] == kind && c["status"] == "True")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Some((text("reason"), text("message")))
    }
}

/// What became of a Job's pods when there is no such Job any more, or soon won't be.
async fn abandon(world: &World, key: &Key, job: Option<&Job>) -> Outcome {
    let pods = match job.and_then(ResourceExt::uid) {
        Some(uid) => world.pods_of(&uid),
        None => world.pods.select(|p| {
            p.namespace().as_deref() == Some(&key.0) && is_tracked(p) && p.labels().get(pods::NAME) == Some(&key.1)
        }),
    };
    release(world, &pods).await?;
    Ok(None)
}

async fn reconcile(world: &World, memory: &Memory, key: Key) -> Outcome {
    let Some(job) = world.jobs.get(&key) else { return abandon(world, &key, None).await };
    let Some(spec) = &job.spec else { return Ok(None) };
    if spec.managed_by.as_deref().is_some_and(|m| m != MANAGER) {
        return Ok(None);
    }
    let uid = job.uid().unwrap_or_default();
    if job.metadata.deletion_timestamp.is_some() {
        memory.forget(&uid);
        return abandon(world, &key, Some(&job)).await;
    }
    let api = world.api::<Job>(&key.0);
    if let Some(ended) = finished(&job) {
        memory.forget(&uid);
        abandon(world, &key, Some(&job)).await?;
        let Some(ttl) = spec.ttl_seconds_after_finished else { return Ok(None) };
        let left = ended.as_second() + i64::from(ttl) - Timestamp::now().as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        let same = Preconditions { uid: job.uid(), resource_version: None };
        gone_is_fine(api.delete(&key.1, &DeleteParams::foreground().preconditions(same)).await.map(drop))?;
        return Ok(None);
    }
    let pods = world.pods_of(&uid);
    if let Some(wait) = memory.expected.behind(&uid, &pods) {
        return Ok(Some(wait));
    }
    let status = job.status.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let counted = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let tally = tally(&job, spec, &pods);
    let active: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
    let terminating = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !is_terminal(p)).count();
    let restarts = active.iter().flat_map(|p| p.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
    let begun = status.start_time.as_ref().map(|t| t.0);
    let succeeded = tally.succeeded + counted(tally.uncounted[0].len());
    let mut counts = Counts {
        active: counted(active.len()),
        succeeded: if indexed { counted(tally.done.len()) } else { succeeded },
        failed: tally.failed + counted(tally.uncounted[1].len()),
        restarts: restarts.map(|c| c.restart_count).sum(),
        seconds: begun.map_or(0, |b| Timestamp::now().as_second() - b.as_second()),
    };
    let mut conditions = Conditions::of(&job);
    let failing = conditions.get("FailureTarget").map(|(_, message)| Next::Fail("", message));
    let met = conditions.get("SuccessCriteriaMet").map(|_| Next::Complete);
    let fatal = tally.fatal.clone().map(|why| Next::Fail("PodFailurePolicy", why));
    let next = failing.or(met).or(fatal).unwrap_or_else(|| next(spec, counts));
    // Nothing may be under way when a Job is called ended.
    let settled = active.is_empty() && terminating == 0 && tally.ended.is_empty();
    let mut completion = Value::Null;
    let mut again = None;
    let wait = memory.note(&uid, &tally.newly_failed, tally.newly_succeeded, Timestamp::now());
    match &next {
        Next::Complete => {
            let said = "Reached expected number of succeeded pods";
            conditions.say("SuccessCriteriaMet", "True", "CompletionsReached", said);
            discard(world, active).await?;
            counts.active = 0;
            if settled {
                conditions.say("Complete", "True", "CompletionsReached", said);
                completion = now().into();
                world.event("job-controller", job.as_ref(), "Normal", "Completed", "Job completed");
            }
        }
        Next::Fail(reason, message) => {
            conditions.say("FailureTarget", "True", reason, message);
            // They have not been discarded: each counts as failed.
            delete(world, active).await?;
            counts.active = 0;
            if settled && let Some((reason, message)) = conditions.get("FailureTarget") {
                conditions.say("Failed", "True", &reason, &message);
                world.event("job-controller", job.as_ref(), "Warning", &reason, &message);
            }
        }
        Next::Suspend => {
            conditions.say("Suspended", "True", "JobSuspended", "Job suspended");
            counts.active = 0;
            memory.expected.note(&uid, Vec::new(), discard(world, active).await?);
        }
        Next::Scale(more) => {
            if ended(&job, "Suspended") {
                conditions.say("Suspended", "False", "JobResumed", "Job resumed");
            }
            let replaced = if spec.pod_replacement_policy.as_deref() == Some("Failed") { terminating } else { 0 };
            let more = if *more > 0 { (more - counted(replaced)).max(0) } else { *more };
            let many = usize::try_from(more.unsigned_abs()).unwrap_or_default().min(BURST);
            if more > 0 && wait > 0 {
                again = Some(wait.unsigned_abs());
            } else if more > 0 {
                let taken: BTreeSet<i32> =
                    active.iter().filter_map(|p| index_of(p)).chain(tally.done.iter().copied()).collect();
                let free = (0..spec.completions.unwrap_or_default()).filter(|i| !taken.contains(i));
                let indexes: Vec<Option<i32>> =
                    if indexed { free.map(Some).take(many).collect() } else { vec![None; many] };
                let made = create(world, indexes.into_iter().map(|i| pod_of(&job, spec, i)).collect()).await?;
                counts.active += counted(made.len());
                memory.expected.note(&uid, made, Vec::new());
            } else if more < 0 {
                let mut surplus = active;
                by_loss(&mut surplus);
                surplus.truncate(many);
                counts.active -= counted(surplus.len());
                memory.expected.note(&uid, Vec::new(), discard(world, surplus).await?);
            }
        }
    }
    let positive = |n: i32| if n > 0 { json!(n) } else { Value::Null };
    let ready = pods.iter().filter(|p| is_active(p) && has_condition(p, "Ready")).count();
    let uids = |set: &BTreeSet<String>| if set.is_empty() { Value::Null } else { json!(set) };
    let mut want = json!({
        "active": positive(counts.active), "succeeded": positive(tally.succeeded), "failed": positive(tally.failed),
        "ready": ready, "conditions": conditions.0, "terminating": terminating,
        "uncountedTerminatedPods": {"succeeded": uids(&tally.uncounted[0]), "failed": uids(&tally.uncounted[1])},
    });
    if indexed && !tally.done.is_empty() {
        want["completedIndexes"] = ranges(&tally.done).into();
    }
    if begun.is_none() && next != Next::Suspend {
        want["startTime"] = now().into();
    }
    if !completion.is_null() {
        want["completionTime"] = completion;
    }
    if !says(&serde_json::to_value(&status).unwrap_or_default(), &want) {
        let patch = Patch::Merge(json!({"status": want}));
        gone_is_fine(api.patch_status(&key.1, &PatchParams::default(), &patch).await.map(drop))?;
    }
    release(world, &tally.ended).await?;
    let deadline = spec.active_deadline_seconds.map(|limit| (limit - counts.seconds).max(1).unsigned_abs());
    Ok(deadline.into_iter().chain(again).min().map(Duration::from_secs))
}

/// Whether a status says all of this already; what is empty need not be there.
fn says(have: &Value, want: &Value) -> bool {
    match want {
        Value::Null => have.is_null(),
        Value::Array(items) if items.is_empty() => have.as_array().is_none_or(Vec::is_empty),
        Value::Object(fields) => fields.iter().all(|(key, value)| says(have.get(key).unwrap_or(&Value::Null), value)),
        _ => have == want,
    }
}
