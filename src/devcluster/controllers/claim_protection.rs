//! PersistentVolumeClaims stay while a pod uses them. kube-controller-manager: `persistentvolumeclaim-protection`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::world::{World, claim_names, is_terminal, release};

/// Set by the server on every claim.
const FINALIZER: &str = "kubernetes.io/pvc-protection";

fn claims(pod: &Pod) -> impl Iterator<Item = Key> + '_ {
    let namespace = pod.namespace().unwrap_or_default();
    claim_names(pod).map(move |claim| (namespace.clone(), claim.to_owned()))
}

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.claims.on_change(move |change| {
        if let Some(claim) = change.new.filter(|c| c.metadata.deletion_timestamp.is_some()) {
            q.add(key_of(claim.as_ref()));
        }
    });
    let q = queue.clone();
    world.pods.on_change(move |change| {
        // A pod that is gone or over may have been the last to use a claim.
        if let Some(old) = change.old.filter(|_| change.new.is_none_or(|new| is_terminal(new))) {
            claims(old).for_each(|key| q.add(key));
        }
    });
    let world = world.clone();
    async move {
        world.claims.synced().await;
        world.pods.synced().await;
        queue.work("claim-protection", 4, |key| reconcile(&world, key)).await;
    }
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let deleting = |c: &Arc<PersistentVolumeClaim>| c.metadata.deletion_timestamp.is_some();
    let Some(claim) = world.claims.get(&key).filter(deleting) else { return Ok(None) };
    let in_use = |pod: &Pod| !is_terminal(pod) && claims(pod).any(|used| used == key);
    if world.pods.select(in_use).is_empty() {
        release(&world.api(&key.0), claim.as_ref(), FINALIZER).await?;
    }
    Ok(None)
}
