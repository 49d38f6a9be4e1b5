//! One Endpoints a Service with a selector, for clients from before there were EndpointSlices.
//! kubernetes: `pkg/controller/endpoint` and `api/v1/endpoints`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::{Key, Outcome, World, has_condition, ip_of, selector};
use crate::controllers::world::gone_is_fine;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The port of a pod that a Service's port leads to; none when the pod has none of that name.
fn port_of(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let fits = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
                p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            ports.find(fits).map(|p| p.container_port)
        }
    }
}

/// The ports that one pod has for a Service.
fn ports_of(service: &Service, pod: &Pod) -> Vec<Value> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let port = |port: &ServicePort| {
        let mut found = Map::new();
        if let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) {
            found.insert("name".into(), name.as_str().into());
        }
        found.insert("port".into(), port_of(port, pod)?.into());
        found.insert("protocol".into(), port.protocol.as_deref().unwrap_or("TCP").into());
        if let Some(protocol) = &port.app_protocol {
            found.insert("appProtocol".into(), protocol.as_str().into());
        }
        Some(Value::Object(found))
    };
    ports.filter_map(port).collect()
}

fn address(service: &Service, pod: &Pod) -> Option<Value> {
    let mut address = json!({"ip": ip_of(pod)?, "targetRef": {"kind": "Pod", "namespace": pod.namespace(),
        "name": pod.name_any(), "uid": pod.uid()}});
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_ref().filter(|node| !node.is_empty()) {
        address["nodeName"] = node.as_str().into();
    }
    if let Some(host) = spec.hostname.as_ref().filter(|_| spec.subdomain == service.metadata.name) {
        address["hostname"] = host.as_str().into();
    }
    Some(address)
}

/// Ports, and the ready and the other addresses that have them.
type Group = (Vec<Value>, Vec<Value>, Vec<Value>);

/// What an Endpoints says of these pods: addresses with the same ports together.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<Value> {
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    // Ports as text, so that they can be compared, to the ready addresses and the others.
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() || publish) {
        let ports = ports_of(service, pod);
        if ports.is_empty() && !(headless && spec.is_some_and(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty))) {
            continue;
        }
        let Some(address) = address(service, pod) else { continue };
        let group = groups.entry(json!(ports).to_string()).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        match publish || has_condition(pod, "Ready") {
            true => group.1.push(address),
            false => group.2.push(address),
        }
    }
    let sorted = |mut addresses: Vec<Value>| {
        addresses.sort_by(|a, b| a["ip"].as_str().cmp(&b["ip"].as_str()));
        addresses
    };
    let subset = |(ports, ready, waiting): Group| {
        let mut subset = Map::new();
        for (name, list) in [("addresses", sorted(ready)), ("notReadyAddresses", sorted(waiting)), ("ports", ports)] {
            if !list.is_empty() {
                subset.insert(name.into(), list.into());
            }
        }
        Value::Object(subset)
    };
    groups.into_values().map(subset).collect()
}

/// Brings the Endpoints of a Service in line with its pods, and removes them with it.
pub(super) async fn reconcile(world: &World, key: &Key, pods: &[Arc<Pod>]) -> Outcome {
    let api = world.api::<Endpoints>(&key.0);
    let Some(service) = world.services.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
        gone_is_fine(api.delete(&key.1, &DeleteParams::default()).await.map(drop))?;
        return Ok(None);
    };
    if selector(&service).is_none() {
        return Ok(None);
    }
    let mut labels = service.labels().clone();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    let wanted = json!({"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets(&service, pods),
        "metadata": {"name": key.1, "namespace": key.0, "labels": labels}});
    let params = PatchParams::apply("endpoints-controller").force();
    api.patch(&key.1, &params, &Patch::Apply(wanted)).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_the_same_ports_are_together_and_those_not_ready_apart() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {
            "selector": {"a": "b"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}}))
        .unwrap();
        let pod = |name: &str, port: i32, ready: &str| -> Arc<Pod> {
            let pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
                "spec": {"nodeName": "n", "containers": [
                    {"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"podIP": format!("10.0.0.{port}"), "conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let found = subsets(&service, &[pod("b", 2, "True"), pod("a", 1, "False"), pod("c", 2, "False")]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1]["ports"], json!([{"name": "web", "port": 2, "protocol": "TCP"}]));
        assert_eq!(found[1]["addresses"][0]["targetRef"]["name"], "b");
        assert_eq!(found[1]["notReadyAddresses"][0]["targetRef"]["name"], "c");
        assert!(found[0].get("addresses").is_none() && found[0]["notReadyAddresses"][0]["ip"] == "10.0.0.1");
    }
}
