//! Pods leave nodes with a NoExecute taint that they don't tolerate, or no longer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::scheduler::pod::tolerates;
use super::world::{World, is_terminal, node_of, now};

/// How long a pod may stay: `None` for ever.
fn stay(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let value = taint.value.as_deref().unwrap_or_default();
        let covering: Vec<_> = tolerations.iter().filter(|t| tolerates(t, &taint.key, value, "NoExecute")).collect();
        if covering.is_empty() {
            return Some(Duration::ZERO);
        }
        let Some(seconds) = covering.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let passed = (now.as_second() - since.as_second()).max(0);
        let left = Duration::from_secs((seconds.max(0) - passed).max(0) as u64);
        shortest = Some(shortest.map_or(left, |s| s.min(left)));
    }
    shortest
}

fn expelling(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let (w, q) = (Arc::downgrade(world), queue.clone());
    world.nodes.on_change(move |change| {
        let Some(node) = change.new else { return };
        let taints = expelling(node);
        if !taints.is_empty() && change.old.is_none_or(|old| expelling(old) != taints) {
            let pods = w.upgrade().map(|w| w.pods_on(node.metadata.name.as_deref().unwrap_or_default()));
            pods.into_iter().flatten().for_each(|key| q.add(key));
        }
    });
    let (w, q) = (Arc::downgrade(world), queue.clone());
    world.pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
        let Some(name) = node_of(pod) else { return };
        if change.old.is_some_and(|old| node_of(old) == Some(name)) {
            return;
        }
        let node = w.upgrade().and_then(|w| w.nodes.get_in("", name));
        if node.is_some_and(|n| !expelling(&n).is_empty()) {
            q.add(key_of(pod.as_ref()));
        }
    });
    let world = world.clone();
    async move {
        world.nodes.synced().await;
        world.pods.synced().await;
        queue.work("taint-eviction", 16, |key| reconcile(&world, key)).await;
    }
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(pod) = world.pods.get(&key).filter(|p| p.metadata.deletion_timestamp.is_none()) else { return Ok(None) };
    let Some(node) = node_of(&pod).and_then(|n| world.nodes.get_in("", n)) else { return Ok(None) };
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    match stay(&expelling(&node), tolerations, Timestamp::now()) {
        None => Ok(None),
        Some(left) if !left.is_zero() => Ok(Some(left)),
        Some(_) => {
            if !is_terminal(&pod) {
                let condition = json!({"type": "DisruptionTarget", "status": "True", "observedGeneration": pod.metadata.generation,
                    "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now()});
                world.patch_pod_status(&pod, json!({"conditions": [condition]})).await?;
            }
            let said = format!("Marking for deletion Pod {}/{}", key.0, key.1);
            world.event("taint-eviction-controller", pod.as_ref(), "Normal", "TaintManagerEviction", &said);
            world.delete_pod(&pod, None).await?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_toleration_counts_and_none_means_now() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let taint = json!([{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
        for (taints, tolerations, want) in [
            (taint.clone(), json!([]), Some(0)),
            (taint.clone(), json!([{"operator": "Exists"}]), None),
            (taint.clone(), json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]), Some(240)),
            (taint.clone(), json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]), Some(0)),
            (taint.clone(), json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), Some(0)),
            (json!([{"key": "k", "effect": "NoSchedule"}]), json!([]), None),
        ] {
            let said = format!("{taints} {tolerations}");
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            assert_eq!(stay(&taints, &tolerations, now), want.map(Duration::from_secs), "{said}");
        }
    }
}
