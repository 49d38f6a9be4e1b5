//! Objects of any kind, by the kind's name as a manifest has it, for tests that talk to the API server themselves.

use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use kube::{Api, Client};

/// The kind of this name.
pub fn resource(kind: &str) -> ApiResource {
    let (group, version) = match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => ("apps", "v1"),
        "Job" => ("batch", "v1"),
        "Lease" => ("coordination.k8s.io", "v1"),
        "PodDisruptionBudget" => ("policy", "v1"),
        "VirtualNode" | "VirtualNodeSet" => ("vnode.dev", "v1alpha1"),
        _ => ("", "v1"),
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// The API of a kind, in the namespace if it has them.
pub fn api(client: &Client, kind: &str, namespace: &str) -> Api<DynamicObject> {
    match kind {
        "Node" | "Namespace" | "VirtualNode" | "VirtualNodeSet" => Api::all_with(client.clone(), &resource(kind)),
        _ => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
    }
}

/// Creates an object. `Err` when it is to be tried again: a new namespace has no service account for a moment.
pub async fn create(api: &Api<DynamicObject>, object: &DynamicObject) -> Result<kube::Result<()>, String> {
    match api.create(&PostParams::default(), object).await {
        Err(error) if error.to_string().contains("serviceaccount") => Err(error.to_string()),
        created => Ok(created.map(drop)),
    }
}

/// What a watch tells of an object, and whether it is gone.
pub fn change<K>(event: watcher::Result<watcher::Event<K>>) -> Option<(K, bool)> {
    match event {
        Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => Some((object, false)),
        Ok(watcher::Event::Delete(object)) => Some((object, true)),
        Ok(_) | Err(_) => None,
    }
}
