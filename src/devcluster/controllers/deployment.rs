//! Deployments: a ReplicaSet a template, and the roll from the old ones to the new one.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::{owned_by, share};
use super::world::{World, controller_of, gone_is_fine, now, there_is_fine};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.deployments.on_change(move |change| {
        if let Some(deployment) = change.new {
            q.add(key_of(deployment.as_ref()));
        }
    });
    let q = queue.clone();
    world.replica_sets.on_change(move |change| {
        for set in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(set.as_ref()).filter(|o| o.kind == "Deployment") {
                q.add((set.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.deployments.synced().await;
        world.replica_sets.synced().await;
        queue.work("deployment", 8, |key| reconcile(&world, key)).await;
    }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// A short name for a template, from letters that spell no words.
fn hash(template: &PodTemplateSpec) -> String {
    let digest = Sha256::digest(serde_json::to_vec(template).unwrap_or_default());
    digest.iter().take(10).map(|b| char::from(b"bcdfghjklmnpqrstvwxz2456789"[usize::from(*b) % 27])).collect()
}

/// A ReplicaSet in numbers.
#[derive(Clone, Debug, PartialEq)]
struct Set {
    replicas: i32,
    available: i32,
    /// Pods that exist, asked for or not.
    actual: i32,
}

/// The next sizes of the new set and of the old ones, oldest first. kube-controller-manager: `rolloutRolling`.
fn roll(wanted: i32, surge: i32, unavailable: i32, recreate: bool, new: &Set, old: &[Set]) -> (i32, Vec<i32>) {
    let old_total: i32 = old.iter().map(|s| s.replicas).sum();
    if recreate {
        let gone = old.iter().all(|s| s.actual == 0 && s.replicas == 0);
        return (if gone { wanted } else { new.replicas }, vec![0; old.len()]);
    }
    let room = (wanted + surge - old_total - new.replicas).max(0);
    let next_new = if new.replicas > wanted { wanted } else { wanted.min(new.replicas + room) };
    let least = wanted - unavailable;
    let total = old_total + new.replicas;
    let unready_new = (new.replicas - new.available).max(0);
    let mut spare = (total - least - unready_new).max(0);
    let mut next_old: Vec<i32> = old.iter().map(|s| s.replicas).collect();
    // What isn't available is lost first, as it serves nobody.
    for (size, set) in next_old.iter_mut().zip(old) {
        let cut = (set.replicas - set.available).clamp(0, spare);
        *size -= cut;
        spare -= cut;
    }
    let available: i32 = new.available + old.iter().map(|s| s.available).sum::<i32>();
    let mut spare = (available - least).clamp(0, spare);
    for (size, set) in next_old.iter_mut().zip(old) {
        let cut = spare.min(*size).min(set.available.max(0));
        *size -= cut;
        spare -= cut;
    }
    (next_new, next_old)
}

fn numbers(set: &ReplicaSet) -> Set {
    let status = set.status.clone().unwrap_or_default();
    Set {
        replicas: set.spec.replicas.unwrap_or(1),
        available: status.available_replicas.unwrap_or_default(),
        actual: status.replicas,
    }
}

fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or_default()
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(deployment) = world.deployments.get(&key) else { return Ok(None) };
    if deployment.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let spec = &deployment.spec;
    let uid = deployment.uid().unwrap_or_default();
    let sets = world
        .replica_sets
        .select(|s| s.namespace().as_deref() == Some(&key.0) && controller_of(s).is_some_and(|o| o.uid == uid));
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        sets.into_iter().partition(|s| s.spec.template.as_ref().map(without_hash).as_ref() == Some(&spec.template));
    old.append(&mut new.split_off(new.len().min(1)));
    old.sort_by_key(|s| (s.creation_timestamp().map(|t| t.0), s.name_any()));
    let api = world.api::<ReplicaSet>(&key.0);
    let paused = spec.paused.unwrap_or(false);
    let wanted = spec.replicas.unwrap_or(1);
    let latest = old.iter().map(|s| revision(s)).max().unwrap_or_default();
    let Some(new) = new.pop() else {
        if !paused {
            let hash = hash(&spec.template);
            let mut template = spec.template.clone();
            let meta = template.metadata.get_or_insert_default();
            meta.labels.get_or_insert_default().insert(HASH.into(), hash.clone());
            let mut selector = spec.selector.clone();
            selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
            let set = ReplicaSet {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", key.1)),
                    labels: meta.labels.clone(),
                    annotations: Some(
                        [
                            (REVISION.to_string(), (latest + 1).to_string()),
                            ("deployment.kubernetes.io/desired-replicas".to_string(), wanted.to_string()),
                        ]
                        .into(),
                    ),
                    owner_references: Some(vec![owned_by(deployment.as_ref())]),
                    ..ObjectMeta::default()
                },
                spec: ReplicaSetSpec {
                    replicas: Some(0),
                    min_ready_seconds: spec.min_ready_seconds,
                    selector,
                    template: Some(template),
                },
                status: None,
            };
            there_is_fine(api.create(&PostParams::default(), &set).await.map(drop))?;
        }
        return report(world, &deployment, None, &old, latest + 1).await;
    };
    let mut this = revision(&new);
    if this <= latest && !paused {
        this = latest + 1;
        let body = json!({"metadata": {"annotations": {REVISION: this.to_string()}}});
        gone_is_fine(api.patch(&new.name_any(), &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
    }
    let strategy = spec.strategy.clone().unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let quarter = || IntOrString::String("25%".into());
    let surge = share(rolling.max_surge.as_ref(), quarter(), wanted, true);
    let mut unavailable = share(rolling.max_unavailable.as_ref(), quarter(), wanted, false).min(wanted);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    let recreate = strategy.type_.as_deref() == Some("Recreate");
    let now_old: Vec<_> = old.iter().map(|s| numbers(s)).collect();
    let (next_new, next_old) = if paused {
        let alone = now_old.iter().all(|s| s.replicas == 0);
        (if alone { wanted } else { numbers(&new).replicas }, now_old.iter().map(|s| s.replicas).collect())
    } else {
        roll(wanted, surge, unavailable, recreate, &numbers(&new), &now_old)
    };
    for (set, size) in old.iter().chain([&new]).zip(next_old.iter().copied().chain([next_new])) {
        let before = numbers(set).replicas;
        if before == size {
            continue;
        }
        let body = json!({"metadata": {"resourceVersion": set.resource_version()}, "spec": {"replicas": size}});
        gone_is_fine(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
        let way = if size > before { "up" } else { "down" };
        let said = format!("Scaled {way} replica set {} from {before} to {size}", set.name_any());
        world.event("deployment-controller", deployment.as_ref(), "Normal", "ScalingReplicaSet", &said);
    }
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or_default();
    let done: Vec<_> = old.iter().filter(|s| numbers(s).replicas == 0 && numbers(s).actual == 0).collect();
    for set in done.iter().take(done.len().saturating_sub(keep)) {
        gone_is_fine(api.delete(&set.name_any(), &DeleteParams::background()).await.map(drop))?;
    }
    report(world, &deployment, Some(&new), &old, this).await
}

fn condition(deployment: &Deployment, kind: &str, status: bool, reason: &str, message: String) -> Value {
    let status = if status { "True" } else { "False" };
    let before =
        deployment.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_.as_deref() == Some(kind));
    let moved = match before {
        Some(c) if c.status.as_deref() == Some(status) => c.last_transition_time.as_ref().map(|t| t.0.to_string()),
        _ => None,
    };
    let updated = match before {
        Some(c) if c.status.as_deref() == Some(status) && c.reason.as_deref() == Some(reason) => {
            c.last_update_time.as_ref().map(|t| t.0.to_string())
        }
        _ => None,
    };
    json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": moved.unwrap_or_else(now), "lastUpdateTime": updated.unwrap_or_else(now)})
}

async fn report(
    world: &World,
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    revision: i64,
) -> Outcome {
    let (namespace, name) = key_of(deployment);
    let spec = deployment.spec.clone();
    let wanted = spec.replicas.unwrap_or(1);
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| old.iter().chain(new).map(|s| of(s)).sum::<i32>();
    let total = sum(&|s| numbers(s).actual);
    let available = sum(&|s| numbers(s).available);
    let ready = sum(&|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default());
    let updated = new.map_or(0, |s| numbers(s).actual);
    let rolling = spec.strategy.unwrap_or_default().rolling_update.unwrap_or_default();
    let may_miss = share(rolling.max_unavailable.as_ref(), IntOrString::String("25%".into()), wanted, false);
    let enough = available >= wanted - may_miss;
    let has = if enough {
        condition(
            deployment,
            "Available",
            true,
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".into(),
        )
    } else {
        let said = "Deployment does not have minimum availability.".into();
        condition(deployment, "Available", false, "MinimumReplicasUnavailable", said)
    };
    let set = new.map(|s| s.name_any()).unwrap_or_default();
    let complete = updated == wanted && total == wanted && available >= wanted;
    let goes = match (new, complete) {
        (Some(_), true) => {
            let said = format!("ReplicaSet \"{set}\" has successfully progressed.");
            condition(deployment, "Progressing", true, "NewReplicaSetAvailable", said)
        }
        (Some(_), false) => {
            let said = format!("ReplicaSet \"{set}\" is progressing.");
            condition(deployment, "Progressing", true, "ReplicaSetUpdated", said)
        }
        (None, _) => {
            let said = format!("Created new replica set \"{name}-{}\"", hash(&spec.template));
            condition(deployment, "Progressing", true, "NewReplicaSetCreated", said)
        }
    };
    let positive = |n: i32| if n > 0 { json!(n) } else { Value::Null };
    let want = json!({
        "observedGeneration": deployment.metadata.generation, "replicas": positive(total),
        "updatedReplicas": positive(updated), "readyReplicas": positive(ready),
        "availableReplicas": positive(available), "unavailableReplicas": positive((total.max(wanted) - available).max(0)),
        "conditions": [has, goes],
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
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_keeps_enough_pods_and_never_too_many() {
        let set = |replicas, available| Set { replicas, available, actual: replicas };
        for (new, old, want) in [
            (set(0, 0), vec![], (4, vec![])),
            (set(0, 0), vec![set(4, 4)], (1, vec![3])),
            (set(1, 0), vec![set(4, 4)], (1, vec![3])),
            (set(1, 1), vec![set(3, 3)], (2, vec![2])),
            (set(1, 0), vec![set(3, 3)], (2, vec![3])),
            (set(4, 4), vec![set(1, 1)], (4, vec![0])),
            (set(6, 6), vec![], (4, vec![])),
            (set(1, 0), vec![set(4, 0)], (1, vec![3])),
        ] {
            let got = roll(4, 1, 1, false, &new, &old);
            let total = got.0 + got.1.iter().sum::<i32>();
            assert!(total <= 5, "{new:?} {old:?} {got:?}");
            assert_eq!(got, want, "{new:?} {old:?}");
        }
        assert_eq!(roll(3, 0, 0, true, &set(0, 0), &[set(3, 3)]), (0, vec![0]));
        assert_eq!(roll(3, 0, 0, true, &set(0, 0), &[set(0, 0)]), (3, vec![0]));
    }
}
