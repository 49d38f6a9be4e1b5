//! `/pods` and `/runningpods/`.

use std::sync::Arc;

use futures::FutureExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::KubeletServer;
use super::connection::text;
use super::handler::{Answered, JSON, Of, Refusal, ask_each, within};
use crate::provider::PodObservation;

/// The pods that are bound to the nodes.
pub(super) fn bound(of: Of<'_>) -> Answered {
    let mut body = Vec::with_capacity(4096);
    body.extend_from_slice(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#);
    let mut first = true;
    for node in of.nodes() {
        for pod in node.pods() {
            if !std::mem::take(&mut first) {
                body.push(b',');
            }
            serde_json::to_writer(&mut body, pod.as_ref()).map_err(unserialisable)?;
        }
    }
    body.extend_from_slice(b"]}");
    Ok(text(StatusCode::OK, JSON, body))
}

/// The pods that the providers run, as far as they know them: identity and running containers.
pub(super) async fn running(server: &Arc<KubeletServer>, of: Of<'_>) -> Answered {
    let answers = ask_each(server, of, |server, node| {
        async move {
            let observed = within(&server, node.provider().list_pods()).await;
            let find = |o: &PodObservation| node.find(&o.pod.namespace, &o.pod.name);
            observed.map(|all| all.iter().filter_map(|o| running_pod(o, find(o).as_deref())).collect::<Vec<Value>>())
        }
        .boxed()
    })
    .await;
    let mut items = Vec::new();
    for (node, answer) in of.nodes().iter().zip(answers) {
        match answer {
            Ok(pods) => items.extend(pods),
            // One of many that is out of reach does not hide the others.
            Err(error) if of.is_shared() => tracing::debug!(%error, node = node.name(), "a provider lists no pods"),
            Err(error) => return Err(error.into()),
        }
    }
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
