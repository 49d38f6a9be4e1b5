//! `/pods` and `/runningpods/`.

use http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::connection::text;
use super::handler::{Answered, JSON, Refusal, within};
use super::{KubeletServer, NodeBackend};
use crate::provider::PodObservation;

/// The pods that are bound to the node.
pub(super) fn bound(backend: &dyn NodeBackend) -> Answered {
    let pods = backend.pods();
    let mut body = Vec::with_capacity(64 + pods.len() * 4096);
    body.extend_from_slice(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#);
    for (index, pod) in pods.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        serde_json::to_writer(&mut body, pod.as_ref()).map_err(unserialisable)?;
    }
    body.extend_from_slice(b"]}");
    Ok(text(StatusCode::OK, JSON, body))
}

/// The pods that the provider runs, as far as it knows them: identity and running containers.
pub(super) async fn running(server: &KubeletServer, backend: &dyn NodeBackend) -> Answered {
    let provider = backend.provider();
    let observed = within(server, provider.list_pods()).await?;
    let find = |o: &PodObservation| backend.find(&o.pod.namespace, &o.pod.name);
    let items: Vec<Value> = observed.iter().filter_map(|o| running_pod(o, find(o).as_deref())).collect();
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items });
    Ok(text(StatusCode::OK, JSON, list.to_string()))
}

fn running_pod(observation: &PodObservation, pod: Option<&Pod>) -> Option<Value> {
    let image = |status: &ContainerStatus| {
        let spec = pod.and_then(|p| p.spec.as_ref())?;
        spec.containers.iter().find(|c| c.name == status.name)?.image.clone()
    };
    let is_running = |s: &&ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    let containers: Vec<Value> = observation
        .init_containers
        .iter()
        .chain(&observation.containers)
        .filter(is_running)
        .map(|s| json!({ "name": s.name, "image": image(s).unwrap_or_else(|| s.image.clone()), "resources": {} }))
        .collect();
    let of = &observation.pod;
    let metadata = json!({ "name": &*of.name, "namespace": &*of.namespace, "uid": &*of.uid });
    (!containers.is_empty())
        .then(|| json!({ "metadata": metadata, "spec": { "containers": containers }, "status": {} }))
}

fn unserialisable(error: serde_json::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}
