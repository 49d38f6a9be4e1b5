//! What a Deployment's status says of its sets.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::super::informer::key_of;
use super::super::queue::Outcome;
use super::super::workload::template_hash;
use super::super::world::{World, gone_is_fine, now};
use super::{Limits, REVISION, numbers};

/// Why a roll is not over, or that it is. kube-controller-manager: `syncRolloutStatus`.
#[derive(Debug, PartialEq)]
enum Progress {
    Created,
    Paused,
    Resumed,
    Moved,
    Done,
    TimedOut,
    /// As it was.
    Same,
}

/// What is known of a roll.
struct Roll {
    created: bool,
    paused: bool,
    complete: bool,
    moved: bool,
    /// Seconds since the condition was last updated, and how many there may be.
    silent: i64,
    deadline: Option<i64>,
}

impl Roll {
    /// `reason` is that of the condition now.
    fn progress(&self, reason: Option<&str>) -> Progress {
        match reason {
            Some("DeploymentPaused") if !self.paused => return Progress::Resumed,
            reason if self.paused => {
                return if reason == Some("ProgressDeadlineExceeded") { Progress::Same } else { Progress::Paused };
            }
            Some("NewReplicaSetAvailable") if self.complete => return Progress::Same,
            _ => {}
        }
        if self.complete {
            return Progress::Done;
        }
        if self.created || reason.is_none() {
            return Progress::Created;
        }
        if self.moved || reason == Some("NewReplicaSetAvailable") {
            return Progress::Moved;
        }
        match self.deadline {
            Some(deadline) if self.silent >= deadline => Progress::TimedOut,
            _ => Progress::Same,
        }
    }
}

fn find<'a>(deployment: &'a Deployment, kind: &str) -> Option<&'a DeploymentCondition> {
    let conditions = deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_.as_deref() == Some(kind))
}

fn condition(deployment: &Deployment, kind: &str, status: &str, reason: &str, message: &str, touch: bool) -> Value {
    let before = find(deployment, kind);
    let same = before.filter(|c| c.status.as_deref() == Some(status));
    let moved = same.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0.to_string());
    let updated = same
        .filter(|c| c.reason.as_deref() == Some(reason) && !touch)
        .and_then(|c| c.last_update_time.as_ref())
        .map(|t| t.0.to_string());
    json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": moved.unwrap_or_else(now), "lastUpdateTime": updated.unwrap_or_else(now)})
}

fn progressing(deployment: &Deployment, name: &str, progress: &Progress) -> Value {
    let set = |said: &str| format!("ReplicaSet {name:?} {said}");
    let (status, reason, message) = match progress {
        Progress::Same => {
            return find(deployment, "Progressing").and_then(|c| serde_json::to_value(c).ok()).unwrap_or_default();
        }
        Progress::Created => ("True", "NewReplicaSetCreated", format!("Created new replica set {name:?}")),
        Progress::Paused => ("Unknown", "DeploymentPaused", "Deployment is paused".into()),
        Progress::Resumed => ("Unknown", "DeploymentResumed", "Deployment is resumed".into()),
        Progress::Moved => ("True", "ReplicaSetUpdated", set("is progressing.")),
        Progress::Done => ("True", "NewReplicaSetAvailable", set("has successfully progressed.")),
        Progress::TimedOut => ("False", "ProgressDeadlineExceeded", set("has timed out progressing.")),
    };
    condition(deployment, "Progressing", status, reason, &message, *progress == Progress::Moved)
}

/// The conditions with ours as they are now; what has not changed keeps its place, as do those of others.
/// pkg/controller/deployment/util: `SetDeploymentCondition`.
fn conditions(deployment: &Deployment, ours: [Value; 2]) -> Vec<Value> {
    let status = deployment.status.as_ref().and_then(|status| status.conditions.as_ref());
    let before = status.and_then(|conditions| serde_json::to_value(conditions).ok()).unwrap_or_default();
    let mut all = before.as_array().cloned().unwrap_or_default();
    for condition in ours {
        if !all.contains(&condition) {
            all.retain(|other| other["type"] != condition["type"]);
            all.push(condition);
        }
    }
    all
}

/// Writes what there is to say; `new` is the set of the present template, `revision` its number.
pub(super) async fn write(
    world: &World,
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    revision: i64,
) -> Outcome {
    let (namespace, name) = key_of(deployment);
    let spec = &deployment.spec;
    let wanted = spec.replicas.unwrap_or(1);
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| old.iter().chain(new).map(|s| of(s)).sum::<i32>();
    let total = sum(&|s| numbers(s).actual);
    let available = sum(&|s| numbers(s).available);
    let ready = sum(&|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default());
    let leaving = sum(&|s| s.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or_default());
    let updated = new.map_or(0, |s| numbers(s).actual);
    let limits = Limits::of(deployment);
    let asked = sum(&|s| numbers(s).replicas);
    let has = if available >= wanted - limits.unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    let has = condition(deployment, "Available", has.0, has.1, has.2, false);
    let before = deployment.status.clone().unwrap_or_default();
    let progressing_now = find(deployment, "Progressing");
    let touched = progressing_now.and_then(|c| c.last_update_time.as_ref()).map(|t| t.0.as_second());
    // 2^31-1 means never. pkg/controller/deployment/util: `HasProgressDeadline`.
    let deadline = spec.progress_deadline_seconds.filter(|d| *d != i32::MAX).map(i64::from);
    let roll = Roll {
        created: new.is_none(),
        paused: spec.paused.unwrap_or(false),
        complete: updated == wanted && total == wanted && available >= wanted,
        moved: updated > before.updated_replicas.unwrap_or_default()
            || total - updated < before.replicas.unwrap_or_default() - before.updated_replicas.unwrap_or_default()
            || ready > before.ready_replicas.unwrap_or_default()
            || available > before.available_replicas.unwrap_or_default(),
        silent: touched.map_or(0, |at| Timestamp::now().as_second() - at),
        deadline,
    };
    let progress = roll.progress(progressing_now.and_then(|c| c.reason.as_deref()));
    let set = new.map_or_else(|| format!("{name}-{}", template_hash(&spec.template, None)), |s| s.name_any());
    let goes = progressing(deployment, &set, &progress);
    let positive = |n: i32| if n > 0 { json!(n) } else { Value::Null };
    let want = json!({
        "observedGeneration": deployment.metadata.generation, "replicas": positive(total),
        "updatedReplicas": positive(updated), "readyReplicas": positive(ready), "terminatingReplicas": leaving,
        "availableReplicas": positive(available), "unavailableReplicas": positive((asked - available).max(0)),
        "conditions": conditions(deployment, [has, goes]),
    });
    let api = world.api::<Deployment>(&namespace);
    let have = serde_json::to_value(&deployment.status).unwrap_or_default();
    let same = want.as_object().into_iter().flatten().all(|(k, v)| have.get(k).unwrap_or(&Value::Null) == v);
    if !same {
        let patch = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": want}))).await;
        gone_is_fine(patch.map(drop))?;
    }
    if deployment.annotations().get(REVISION) != Some(&revision.to_string()) {
        let body = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
    }
    let waits = !roll.paused && !roll.complete && progress != Progress::TimedOut && roll.silent < deadline.unwrap_or(0);
    let left = deadline.filter(|_| waits).map(|d| (d - roll.silent + 1).unsigned_abs());
    Ok(left.map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_moves_is_done_or_times_out() {
        let roll = |complete, moved, silent| Roll {
            created: false,
            paused: false,
            complete,
            moved,
            silent,
            deadline: Some(600),
        };
        for (roll, reason, want) in [
            (Roll { created: true, ..roll(false, false, 0) }, None, Progress::Created),
            (roll(false, true, 10), Some("NewReplicaSetCreated"), Progress::Moved),
            (roll(false, false, 10), Some("ReplicaSetUpdated"), Progress::Same),
            (roll(false, false, 600), Some("ReplicaSetUpdated"), Progress::TimedOut),
            (roll(false, true, 900), Some("ProgressDeadlineExceeded"), Progress::Moved),
            (roll(true, false, 10), Some("ReplicaSetUpdated"), Progress::Done),
            (roll(true, false, 10), Some("NewReplicaSetAvailable"), Progress::Same),
            (roll(false, false, 10), Some("NewReplicaSetAvailable"), Progress::Moved),
            (Roll { paused: true, ..roll(false, true, 10) }, Some("ReplicaSetUpdated"), Progress::Paused),
            (Roll { paused: true, ..roll(true, true, 10) }, Some("ProgressDeadlineExceeded"), Progress::Same),
            (roll(false, false, 10), Some("DeploymentPaused"), Progress::Resumed),
        ] {
            assert_eq!(roll.progress(reason), want, "{reason:?}");
        }
    }
}
