//! One EndpointSlice a Service: the addresses of the pods that its selector takes. [`objects`] writes the same as
//! Endpoints.

mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::owned_by;
use super::world::{World, has_condition, is_terminal};

/// A slice holds no more.
const MOST: usize = 1000;

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.services.on_change(move |change| {
        // A Service that is gone takes its Endpoints along.
        if let Some(service) = change.new.or(change.old) {
            q.add(key_of(service.as_ref()));
        }
    });
    let (q, services) = (queue.clone(), Arc::downgrade(&world.services));
    world.pods.on_change(move |change| {
        let Some(services) = services.upgrade() else { return };
        for pod in change.old.into_iter().chain(change.new) {
            for service in services.select(|s| covers(s, pod)) {
                q.add(key_of(service.as_ref()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.services.synced().await;
        world.pods.synced().await;
        queue.work("endpoint-slice", 4, |key| reconcile(&world, key)).await;
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|s| !s.is_empty())
}

fn covers(service: &Service, pod: &Pod) -> bool {
    service.metadata.namespace == pod.metadata.namespace
        && selector(service).is_some_and(|s| s.iter().all(|(k, v)| pod.labels().get(k) == Some(v)))
}

fn ip_of(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

fn ports(service: &Service, pods: &[Arc<Pod>]) -> Vec<Value> {
    let all = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let named = |name: &str| {
        let containers = pods.iter().flat_map(|p| p.spec.iter().flat_map(|s| &s.containers));
        let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
        ports.find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
    };
    all.filter_map(|p| {
        let port = match &p.target_port {
            None => p.port,
            Some(IntOrString::Int(port)) => *port,
            Some(IntOrString::String(name)) => named(name)?,
        };
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        Some(json!({"name": p.name.clone().unwrap_or_default(), "port": port, "protocol": protocol}))
    })
    .collect()
}

fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Vec<Value> {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let endpoint = |pod: &Arc<Pod>| {
        let (serving, leaving) = (has_condition(pod, "Ready"), pod.metadata.deletion_timestamp.is_some());
        Some(json!({
            "addresses": [ip_of(pod)?],
            "conditions": {"ready": publish || (serving && !leaving), "serving": serving, "terminating": leaving},
            "nodeName": super::world::node_of(pod),
            "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name_any(), "uid": pod.uid()},
        }))
    };
    pods.iter().filter_map(endpoint).take(MOST).collect()
}

/// The service's name and five characters, so that no slice of somebody else is in the way; the same after a restart.
fn slice_name(service: &str, uid: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let tail: String = std::iter::repeat_with(|| {
        let letter = ALPHABET[(hash % ALPHABET.len() as u64) as usize];
        hash /= ALPHABET.len() as u64;
        char::from(letter)
    })
    .take(5)
    .collect();
    format!("{service}-{tail}")
}

async fn reconcile(world: &World, key: Key) -> Outcome {
    let Some(service) = world.services.get(&key) else { return objects::reconcile(world, &key, &[]).await };
    if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut pods = world.pods.select(|p| !is_terminal(p) && ip_of(p).is_some() && covers(&service, p));
    pods.sort_by_key(|p| p.name_any());
    objects::reconcile(world, &key, &pods).await?;
    let name = slice_name(&key.1, service.uid().as_deref().unwrap_or_default());
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": key.0, "ownerReferences": [owned_by(service.as_ref())], "labels": {
            "kubernetes.io/service-name": key.1,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4", "endpoints": endpoints(&service, &pods), "ports": ports(&service, &pods),
    });
    let params = PatchParams::apply("endpointslice-controller").force();
    world.api::<EndpointSlice>(&key.0).patch(&name, &params, &Patch::Apply(slice)).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ready_pods_with_an_address_are_ready_endpoints() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {
            "selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "web"}]}}))
        .unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "False"}]}}))
        .unwrap();
        assert!(covers(&service, &pod));
        let pods = [Arc::new(pod)];
        assert_eq!(ports(&service, &pods)[0]["port"], 8080);
        assert_eq!(endpoints(&service, &pods)[0]["conditions"]["ready"], false);
    }
}
