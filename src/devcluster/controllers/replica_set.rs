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
use super::workload::{BURST, Expected, by_loss, create, delete, is_active, is_available, pod_from};
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
    world.pods.on_change(move |change| {
        for pod in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(pod.as_ref()).filter(|o| o.kind == "ReplicaSet") {
                q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
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
    let pods = world.pods_of(&uid);
    let spec = &set.spec;
    let now = Timestamp::now();
    if set.metadata.deletion_timestamp.is_none() && expected.behind(&uid, &pods).is_none() {
        let mut active: Vec<_> =
            pods.iter().filter(|p| is_active(p) && labels::matches(&spec.selector, p.labels())).cloned().collect();
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
    let have = serde_json::to_value(&set.status).unwrap_or_default();
    let same = want.as_object().into_iter().flatten().all(|(field, v)| {
        let zero = v.as_u64() == Some(0) && have.get(field).is_none();
        zero && field != "replicas" || have.get(field) == Some(v)
    });
    if !same {
        let body = json!({"status": want});
        let patch = world.api::<ReplicaSet>(&key.0);
        let patch = patch.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(body)).await;
        gone_is_fine(patch.map(drop))?;
    }
    // Pods that are ready become available as time passes.
    let waits = spec.min_ready_seconds.unwrap_or_default() > 0 && want["readyReplicas"] != want["availableReplicas"];
    Ok(waits.then(|| std::time::Duration::from_secs(1)))
}
