//! PersistentVolumes: free ones are available, and those that are deleted go once nothing is bound to them.
//! kube-controller-manager: `persistentvolume-binder` and `persistentvolume-protection`, without any binding.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::world::{World, gone_is_fine, release};

/// Set by the server on every volume.
const FINALIZER: &str = "kubernetes.io/pv-protection";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.volumes.on_change(move |change| {
        if let Some(volume) = change.new {
            q.add(key_of(volume.as_ref()));
        }
    });
    let world = world.clone();
    async move {
        world.volumes.synced().await;
        queue.work("volume", 4, |key| reconcile(&world, key)).await;
    }
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(volume) = world.volumes.get(&key) else { return Ok(None) };
    let api: Api<PersistentVolume> = Api::all(world.client.clone());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if volume.metadata.deletion_timestamp.is_some() {
        if phase != "Bound" {
            release(&api, volume.as_ref(), FINALIZER).await?;
        }
    } else if matches!(phase, "" | "Pending") && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) {
        let body = json!({"status": {"phase": "Available"}});
        gone_is_fine(api.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(body)).await.map(drop))?;
    }
    Ok(None)
}
