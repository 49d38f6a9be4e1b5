//! ReplicaSets: as many pods as asked for.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::informer::{Key, key_of};
use super::labels;
use super::queue::{Outcome, Queue};
use super::workload::{BURST, Expected, by_loss, create, delete, is_active, is_available, owned_by, pod_from};
use super::world::{World, controller_of, gone_is_fine, has_condition, is_terminal};

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.replica_sets.on_change(move |change| {
        if let Some(set) = change.new {
            q.add(key_of(set.as_ref()));
        }
    });
    let q = queue.clone();
    let sets = Arc::downgrade(&world.replica_sets);
    world.pods.on_change(move |change| {
        for pod in change.old.into_iter().chain(change.new) {
            match controller_of(pod.as_ref()) {
                Some(owner) if owner.kind == "ReplicaSet" => {
                    q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
                }
                Some(_) => {}
                // Somebody may want to adopt it.
                None => {
                    let sets = sets.upgrade().map(|s| s.select(|s| wants(s, pod))).unwrap_or_default();
                    sets.iter().for_each(|set| q.add(key_of(set.as_ref())));
                }
            }
        }
    });
    let world = world.clone();
    async move {
        world.replica_sets.synced().await;
        world.pods.synced().await;
        let expected = Expected::default();
        queue.work("replica-set", 16, |key| reconcile(&world, &expected, key)).await;
    }
}

/// Whether a set would have a pod that is nobody's.
fn wants(set: &ReplicaSet, pod: &Pod) -> bool {
    set.namespace() == pod.namespace()
        && set.metadata.deletion_timestamp.is_none()
        && is_active(pod)
        && labels::matches(&set.spec.selector, pod.labels())
}

/// Takes in pods that the selector matches and lets go of those that it no longer does; the pods that are the set's.
async fn claim(world: &World, set: &ReplicaSet, mut pods: Vec<Arc<Pod>>) -> Result<Vec<Arc<Pod>>, kube::Error> {
    let uid = set.uid().unwrap_or_default();
    let api = world.api::<Pod>(&set.namespace().unwrap_or_default());
    let patch = async |pod: &Pod, owner: Value| {
        let body = Patch::Strategic(json!({"metadata": {"uid": pod.uid(), "ownerReferences": [owner]}}));
        gone_is_fine(api.patch(&pod.name_any(), &PatchParams::default(), &body).await.map(drop))
    };
    for pod in world.orphans(&set.namespace().unwrap_or_default()).into_iter().filter(|p| wants(set, p)) {
        patch(&pod, json!(owned_by(set))).await?;
        pods.push(pod);
    }
    let (kept, strange): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|p| labels::matches(&set.spec.selector, p.labels()));
    for pod in strange.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        patch(pod, json!({"$patch": "delete", "uid": uid})).await?;
    }
    Ok(kept)
}

/// The status that these pods make.
fn status(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Value {
    let spec = set.spec.clone();
    let live: Vec<_> = pods.iter().filter(|p| is_active(p)).collect();
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let template = template.unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let count = |wanted: &dyn Fn(&Pod) -> bool| live.iter().filter(|p| wanted(p)).count();
    json!({
        "replicas": live.len(),
        "fullyLabeledReplicas": count(&|p| template.iter().all(|(k, v)| p.labels().get(k) == Some(v))),
        "readyReplicas": count(&|p| has_condition(p, "Ready")),
        "availableReplicas": count(&|p| is_available(p, min_ready, now)),
        "terminatingReplicas": pods.iter().filter(|p| !is_terminal(p) && !is_active(p)).count(),
        "observedGeneration": set.metadata.generation,
    })
}

async fn reconcile(world: &World, expected: &Expected, key: Key) -> Outcome {
    let Some(set) = world.replica_sets.get(&key) else { return Ok(None) };
    let uid = set.uid().unwrap_or_default();
    let mut pods = world.pods_of(&uid);
    if set.metadata.deletion_timestamp.is_none() {
        pods = claim(world, &set, pods).await?;
    }
    let spec = &set.spec;
    let now = Timestamp::now();
    if set.metadata.deletion_timestamp.is_none() && expected.behind(&uid, &pods).is_none() {
        let mut active: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
        if active.len() < wanted {
            let template = spec.template.clone().unwrap_or_default();
            let missing = (wanted - active.len()).min(BURST);
            let made = create(world, (0..missing).map(|_| pod_from(set.as_ref(), &template)).collect()).await;
            if let Err(error) = &made {
                let said = format!("Error creating: {error}");
                world.event("replicaset-controller", set.as_ref(), "Warning", "FailedCreate", &said);
            }
            expected.note(&uid, made?, Vec::new());
        } else if active.len() > wanted {
            by_loss(&mut active);
            active.truncate((active.len() - wanted).min(BURST));
            expected.note(&uid, Vec::new(), delete(world, active).await?);
        }
    }
    let want = status(&set, &pods, now);
    // Pods that are ready become available as time passes.
    let waits = spec.min_ready_seconds.unwrap_or_default() > 0 && want["readyReplicas"] != want["availableReplicas"];
    world.write_status::<ReplicaSet>(&key, &set.status, want).await?;
    Ok(waits.then(|| std::time::Duration::from_secs(1)))
}
