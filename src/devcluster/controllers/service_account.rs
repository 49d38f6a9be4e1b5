//! Every namespace has the ServiceAccount `default` and the ConfigMap with the cluster's CA.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::queue::{Outcome, Queue};
use super::world::{World, there_is_fine};

/// The ConfigMap that pods read the CA from.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const ROOT_CA_IS: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<String>> = Queue::new();
    let q = queue.clone();
    world.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new {
            q.add(namespace.name_any());
        }
    });
    let q = queue.clone();
    world.accounts.on_change(move |change| {
        if let (Some(old), None) = (change.old, change.new) {
            q.add(old.namespace().unwrap_or_default());
        }
    });
    let q = queue.clone();
    world.root_cas.on_change(move |change| {
        if let Some(map) = change.new.or(change.old).filter(|_| change.old.is_some()) {
            q.add(map.namespace().unwrap_or_default());
        }
    });
    let world = world.clone();
    async move {
        world.namespaces.synced().await;
        world.accounts.synced().await;
        world.root_cas.synced().await;
        queue.work("service-account", 8, |namespace| reconcile(&world, namespace)).await;
    }
}

async fn reconcile(world: &World, namespace: String) -> Outcome {
    let active = world.namespaces.get_in("", &namespace).filter(|n| n.metadata.deletion_timestamp.is_none());
    if active.is_none() {
        return Ok(None);
    }
    if world.accounts.get_in(&namespace, "default").is_none() {
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".into());
        let made = world.api(&namespace).create(&PostParams::default(), &account).await;
        there_is_fine(made.map(drop))?;
    }
    let data = json!({"ca.crt": world.root_ca_pem});
    match world.root_cas.get_in(&namespace, ROOT_CA) {
        None => {
            let mut map = ConfigMap::default();
            map.metadata.name = Some(ROOT_CA.into());
            map.metadata.annotations = Some([(DESCRIPTION.to_string(), ROOT_CA_IS.to_string())].into());
            map.data = Some([("ca.crt".to_string(), world.root_ca_pem.clone())].into());
            there_is_fine(world.api(&namespace).create(&PostParams::default(), &map).await.map(drop))?;
        }
        Some(map) if serde_json::to_value(&map.data).ok().as_ref() != Some(&data) => {
            let patch = Patch::Merge(json!({"data": data}));
            world.api::<ConfigMap>(&namespace).patch(ROOT_CA, &PatchParams::default(), &patch).await?;
        }
        Some(_) => {}
    }
    Ok(None)
}
