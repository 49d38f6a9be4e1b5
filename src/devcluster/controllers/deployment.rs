//! Deployments: a ReplicaSet a template, and the roll from the old ones to the new one.

mod report;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::{owned_by, share, template_hash};
use super::world::{World, controller_of, gone_is_fine, there_is_fine};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";

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

/// A ReplicaSet in numbers.
#[derive(Clone, Debug, PartialEq)]
struct Set {
    replicas: i32,
    available: i32,
    /// Pods that exist, asked for or not.
    actual: i32,
}

/// How far a roll may go beyond and below what is wanted.
struct Limits {
    surge: i32,
    unavailable: i32,
    recreate: bool,
}

impl Limits {
    fn of(deployment: &Deployment) -> Self {
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let strategy = deployment.spec.strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self { surge: 0, unavailable: 0, recreate: true };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let quarter = || IntOrString::String("25%".into());
        let surge = share(rolling.max_surge.as_ref(), quarter(), wanted, true);
        let unavailable = share(rolling.max_unavailable.as_ref(), quarter(), wanted, false).min(wanted);
        // Without any room nothing would ever move.
        Self { surge, unavailable: if surge == 0 { unavailable.max(1) } else { unavailable }, recreate: false }
    }
}

/// The next sizes of the new set and of the old ones, oldest first. kube-controller-manager: `rolloutRolling`.
fn roll(wanted: i32, limits: &Limits, new: &Set, old: &[Set]) -> (i32, Vec<i32>) {
    let &Limits { surge, unavailable, recreate } = limits;
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
    let limits = Limits::of(&deployment);
    let now_old: Vec<_> = old.iter().map(|s| numbers(s)).collect();
    let Some(new) = new.pop() else {
        let none = Set { replicas: 0, available: 0, actual: 0 };
        let (size, _) = roll(wanted, &limits, &none, &now_old);
        if paused || (limits.recreate && now_old.iter().any(|s| s.actual > 0 || s.replicas > 0)) {
            resize(world, &deployment, &limits, paused, None, &old).await?;
            return report::write(world, &deployment, None, &old, latest.max(1)).await;
        }
        let set = replica_set(&deployment, size, latest + 1, wanted + limits.surge);
        there_is_fine(api.create(&PostParams::default(), &set).await.map(drop))?;
        let said = format!("Scaled up replica set {} from 0 to {size}", set.name_any());
        world.event("deployment-controller", deployment.as_ref(), "Normal", "ScalingReplicaSet", &said);
        return report::write(world, &deployment, None, &old, latest + 1).await;
    };
    let mut this = revision(&new);
    if this <= latest && !paused {
        this = latest + 1;
        let body = json!({"metadata": {"annotations": {REVISION: this.to_string()}}});
        gone_is_fine(api.patch(&new.name_any(), &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
    }
    resize(world, &deployment, &limits, paused, Some(&new), &old).await?;
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or_default();
    let done: Vec<_> = old.iter().filter(|s| numbers(s).replicas == 0 && numbers(s).actual == 0).collect();
    for set in done.iter().take(done.len().saturating_sub(keep)) {
        gone_is_fine(api.delete(&set.name_any(), &DeleteParams::background()).await.map(drop))?;
    }
    report::write(world, &deployment, Some(&new), &old, this).await
}

/// The set of the present template.
fn replica_set(deployment: &Deployment, size: i32, revision: i64, most: i32) -> ReplicaSet {
    let spec = &deployment.spec;
    let hash = template_hash(&spec.template, None);
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let wanted = spec.replicas.unwrap_or(1);
    let notes = [(REVISION, revision.to_string()), (DESIRED, wanted.to_string()), (MAX, most.to_string())];
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            labels: meta.labels.clone(),
            annotations: Some(notes.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: Some(vec![owned_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

/// Takes all sets a step nearer to what they should be.
async fn resize(
    world: &World,
    deployment: &Arc<Deployment>,
    limits: &Limits,
    paused: bool,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Result<(), kube::Error> {
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let api = world.api::<ReplicaSet>(&deployment.namespace().unwrap_or_default());
    let now_old: Vec<_> = old.iter().map(|s| numbers(s)).collect();
    let now_new = new.map_or(Set { replicas: 0, available: 0, actual: 0 }, |s| numbers(s));
    let (next_new, next_old) = if paused {
        let alone = now_old.iter().all(|s| s.replicas == 0);
        (if alone { wanted } else { now_new.replicas }, now_old.iter().map(|s| s.replicas).collect())
    } else {
        roll(wanted, limits, &now_new, &now_old)
    };
    let notes = [(DESIRED, wanted.to_string()), (MAX, (wanted + limits.surge).to_string())];
    for (set, size) in old.iter().zip(next_old).chain(new.map(|set| (set, next_new))) {
        let before = numbers(set).replicas;
        let told = notes.iter().all(|(key, value)| set.annotations().get(*key) == Some(value));
        if before == size && (told || size == 0) {
            continue;
        }
        let notes: serde_json::Map<_, _> = notes.iter().map(|(key, value)| ((*key).into(), json!(value))).collect();
        let body = json!({"metadata": {"resourceVersion": set.resource_version(), "annotations": notes},
            "spec": {"replicas": size}});
        gone_is_fine(api.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
        if before != size {
            let way = if size > before { "up" } else { "down" };
            let said = format!("Scaled {way} replica set {} from {before} to {size}", set.name_any());
            world.event("deployment-controller", deployment.as_ref(), "Normal", "ScalingReplicaSet", &said);
        }
    }
    Ok(())
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
            let got = roll(4, &Limits { surge: 1, unavailable: 1, recreate: false }, &new, &old);
            let total = got.0 + got.1.iter().sum::<i32>();
            assert!(total <= 5, "{new:?} {old:?} {got:?}");
            assert_eq!(got, want, "{new:?} {old:?}");
        }
        let recreate = Limits { surge: 0, unavailable: 0, recreate: true };
        assert_eq!(roll(3, &recreate, &set(0, 0), &[set(3, 3)]), (0, vec![0]));
        assert_eq!(roll(3, &recreate, &set(0, 0), &[set(0, 0)]), (3, vec![0]));
    }
}
