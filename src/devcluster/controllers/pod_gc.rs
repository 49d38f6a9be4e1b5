//! Pods nobody will ever finish: on nodes that are gone, deleted before they were scheduled, or ended long ago.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::world::{World, is_terminal, node_of, now};

/// A node may be registered again this long before its pods are given up.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods beyond this many are deleted, oldest first.
const KEEP: usize = 12_500;
const SWEEP: Duration = Duration::from_secs(60);

/// The ended pods to delete.
fn surplus(mut ended: Vec<Arc<Pod>>, keep: usize) -> Vec<Arc<Pod>> {
    let excess = ended.len().saturating_sub(keep);
    ended.sort_by_key(|p| (p.creation_timestamp().map(|t| t.0), key_of(p.as_ref())));
    ended.truncate(excess);
    ended
}

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let (w, q) = (Arc::downgrade(world), queue.clone());
    world.nodes.on_change(move |change| {
        if let (Some(node), None) = (change.old, change.new) {
            let pods = w.upgrade().map(|w| w.pods_on(&node.name_any()));
            pods.into_iter().flatten().for_each(|key| q.add_after(key, QUARANTINE));
        }
    });
    let (w, q) = (Arc::downgrade(world), queue.clone());
    world.pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
        match node_of(pod) {
            None if pod.metadata.deletion_timestamp.is_some() => q.add(key_of(pod.as_ref())),
            Some(node)
                if change.old.is_none_or(|old| node_of(old) != Some(node))
                    && w.upgrade().is_some_and(|w| w.nodes.get_in("", node).is_none()) =>
            {
                q.add_after(key_of(pod.as_ref()), QUARANTINE);
            }
            _ => {}
        }
    });
    let world = world.clone();
    async move {
        world.nodes.synced().await;
        world.pods.synced().await;
        let sweep = async {
            let mut ticks = tokio::time::interval(SWEEP);
            loop {
                ticks.tick().await;
                for pod in surplus(world.pods.select(is_terminal), KEEP) {
                    if let Err(error) = world.delete_pod(&pod, Some(0)).await {
                        tracing::debug!(%error, "an ended pod could not be deleted and is left for the next sweep");
                    }
                }
            }
        };
        tokio::join!(queue.work("pod-gc", 16, |key| reconcile(&world, key)), sweep);
    }
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(pod) = world.pods.get(&key) else { return Ok(None) };
    match node_of(&pod) {
        None if pod.metadata.deletion_timestamp.is_some() => {}
        None => return Ok(None),
        Some(node) => {
            if world.nodes.get_in("", node).is_some() {
                return Ok(None);
            }
            // The cache may lag behind; only the API's own word loses a pod.
            if Api::<Node>::all(world.client.clone()).get_opt(node).await?.is_some() {
                return Ok(Some(QUARANTINE));
            }
            if !is_terminal(&pod) {
                let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists", "lastTransitionTime": now()});
                world.patch_pod_status(&pod, json!({"phase": "Failed", "conditions": [condition]})).await?;
            }
        }
    }
    world.delete_pod(&pod, Some(0)).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ended_pods_go_first() {
        let pod = |name: &str, at: &str| {
            let meta = json!({"metadata": {"name": name, "creationTimestamp": at}});
            Arc::new(serde_json::from_value::<Pod>(meta).unwrap())
        };
        let pods = vec![pod("new", "2026-01-02T00:00:00Z"), pod("old", "2026-01-01T00:00:00Z")];
        let gone = surplus(pods.clone(), 1);
        assert_eq!(gone.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["old"]);
        assert!(surplus(pods, 2).is_empty());
    }
}
