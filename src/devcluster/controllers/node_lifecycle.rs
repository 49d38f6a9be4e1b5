//! Nodes that fell silent: Ready=Unknown, the taints that follow from conditions, and their pods' Ready=False.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::queue::{Outcome, Queue};
use super::world::{World, gone_is_fine, has_condition, now};

/// Silence longer than this makes a node unknown. kube-controller-manager: `--node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
/// How long kubelets may keep Secrets and ConfigMaps; any client may come to see it on a node.
const TTL: &str = "node.alpha.kubernetes.io/ttl";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];
const NETWORK: (&str, &str) = ("NetworkUnavailable", "node.kubernetes.io/network-unavailable");

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

/// The conditions to write for a node that fell silent.
fn silenced(node: &Node, now: &str) -> Vec<Value> {
    let kinds = ["Ready"].into_iter().chain(PRESSURES.iter().map(|(kind, _)| *kind));
    kinds
        .filter(|kind| condition(node, kind) != Some("Unknown"))
        .map(|kind| {
            let (reason, message) = match condition(node, kind) {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            json!({"type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": now})
        })
        .collect()
}

/// The taints that conditions and cordoning call for, as key and effect.
fn called_for(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut taints = match condition(node, "Ready") {
        Some("True") => Vec::new(),
        Some("Unknown") => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        Some(_) => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
        None => vec![(NOT_READY, "NoSchedule")],
    };
    for (kind, key) in PRESSURES.iter().chain([&NETWORK]) {
        if condition(node, kind) == Some("True") {
            taints.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    taints
}

fn managed(key: &str) -> bool {
    [UNREACHABLE, NOT_READY, UNSCHEDULABLE, NETWORK.1].contains(&key) || PRESSURES.iter().any(|(_, k)| *k == key)
}

/// All taints a node should have, when they are not those it has. Foreign ones stay.
fn taints(node: &Node, now: &str) -> Option<Vec<Value>> {
    let have = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let want = called_for(node);
    let called = |t: &Taint| want.iter().any(|(key, effect)| *key == t.key && *effect == t.effect);
    let missing: Vec<_> =
        want.iter().filter(|(key, effect)| !have.iter().any(|t| t.key == *key && t.effect == *effect)).collect();
    let kept: Vec<_> = have.iter().filter(|t| !managed(&t.key) || called(t)).collect();
    if missing.is_empty() && kept.len() == have.len() {
        return None;
    }
    let kept = kept.into_iter().filter_map(|t| serde_json::to_value(t).ok());
    let added = missing.into_iter().map(|(key, effect)| json!({"key": key, "effect": effect, "timeAdded": now}));
    Some(kept.chain(added).collect())
}

/// The controller's own memory: the last sign of life of each node, by the local clock.
struct Lifecycle {
    world: Arc<World>,
    queue: Arc<Queue<String>>,
    alive: Mutex<HashMap<String, Instant>>,
}

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let me = Arc::new(Lifecycle { world: world.clone(), queue: Queue::new(), alive: Mutex::default() });
    let m = me.clone();
    world.nodes.on_change(move |change| match (change.old, change.new) {
        (old, Some(node)) => {
            let beat = |n: &Node| {
                let conditions = n.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
                // Our own Unknown is no sign of life.
                let ready = conditions.into_iter().find(|c| c.type_ == "Ready" && c.status != "Unknown");
                ready.map(|c| (c.status, c.last_heartbeat_time))
            };
            if old.is_none_or(|old| beat(old) != beat(node) && beat(node).is_some()) {
                m.saw(&node.name_any());
            }
            m.queue.add(node.name_any());
        }
        (Some(node), None) => {
            m.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(&node.name_any());
        }
        (None, None) => {}
    });
    let m = me.clone();
    world.leases.on_change(move |change| {
        let Some(lease) = change.new.filter(|l| l.metadata.namespace.as_deref() == Some("kube-node-lease")) else {
            return;
        };
        let renewed =
            |l: &k8s_openapi::api::coordination::v1::Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
        if change.old.is_none_or(|old| renewed(old) != renewed(lease)) {
            m.saw(&lease.name_any());
        }
    });
    async move {
        me.world.nodes.synced().await;
        me.world.leases.synced().await;
        me.queue.work("node-lifecycle", 16, |name| me.reconcile(name)).await;
    }
}

impl Lifecycle {
    fn saw(&self, name: &str) {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.insert(name.into(), Instant::now());
    }

    async fn reconcile(&self, name: String) -> Outcome {
        let Some(node) = self.world.nodes.get_in("", &name) else { return Ok(None) };
        let silence = {
            let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
            alive.entry(name.clone()).or_insert_with(Instant::now).elapsed()
        };
        let api: Api<Node> = Api::all(self.world.client.clone());
        let params = PatchParams::default();
        if silence > GRACE {
            let conditions = silenced(&node, &now());
            if !conditions.is_empty() {
                let body = json!({"metadata": {"uid": node.uid()}, "status": {"conditions": conditions}});
                gone_is_fine(api.patch_status(&name, &params, &Patch::Strategic(body)).await.map(drop))?;
                let said = format!("Node {name} status is now: NodeNotReady");
                self.world.event("node-controller", node.as_ref(), "Normal", "NodeNotReady", &said);
                // The node's change brings it back here for its taints.
                return Ok(None);
            }
        }
        if let Some(taints) = taints(&node, &now()) {
            let taints = if taints.is_empty() { Value::Null } else { taints.into() };
            let mut body =
                json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": taints}});
            if !node.annotations().contains_key(TTL) {
                body["metadata"]["annotations"] = json!({TTL: "0"});
            }
            gone_is_fine(api.patch(&name, &params, &Patch::Merge(body)).await.map(drop))?;
        }
        if matches!(condition(&node, "Ready"), Some("False" | "Unknown")) {
            for key in self.world.pods_on(&name) {
                let Some(pod) = self.world.pods.get(&key).filter(|p| has_condition(p, "Ready")) else { continue };
                let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now()});
                self.world.patch_pod_status(&pod, json!({"conditions": [condition]})).await?;
            }
        }
        Ok(GRACE.checked_sub(silence).map(|left| left + Duration::from_millis(10)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, spec: Value) -> Node {
        let conditions: Vec<_> = ready.iter().map(|s| json!({"type": "Ready", "status": s})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn keys(taints: Option<Vec<Value>>) -> Option<Vec<String>> {
        taints.map(|all| {
            all.iter().map(|t| format!("{}:{}", t["key"].as_str().unwrap(), t["effect"].as_str().unwrap())).collect()
        })
    }

    #[test]
    fn taints_follow_conditions_and_foreign_ones_stay() {
        let foreign = json!({"key": "mine", "effect": "NoSchedule"});
        let unreachable = |effect: &str| json!({"key": UNREACHABLE, "effect": effect});
        for (node, want) in [
            (node(Some("True"), json!({})), None),
            (node(Some("True"), json!({"taints": [foreign]})), None),
            (
                node(Some("Unknown"), json!({"taints": [foreign]})),
                Some(vec![
                    "mine:NoSchedule",
                    "node.kubernetes.io/unreachable:NoSchedule",
                    "node.kubernetes.io/unreachable:NoExecute",
                ]),
            ),
            (
                node(Some("False"), json!({"taints": [unreachable("NoSchedule"), unreachable("NoExecute")]})),
                Some(vec!["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]),
            ),
            (node(Some("True"), json!({"taints": [unreachable("NoExecute"), foreign]})), Some(vec!["mine:NoSchedule"])),
            (
                node(Some("True"), json!({"unschedulable": true})),
                Some(vec!["node.kubernetes.io/unschedulable:NoSchedule"]),
            ),
            (node(None, json!({})), Some(vec!["node.kubernetes.io/not-ready:NoSchedule"])),
        ] {
            let want = want.map(|w| w.into_iter().map(String::from).collect::<Vec<_>>());
            assert_eq!(keys(taints(&node, "now")), want, "{node:?}");
        }
    }

    #[test]
    fn a_silent_node_is_marked_once_and_says_whether_it_ever_spoke() {
        let first = silenced(&node(Some("True"), json!({})), "now");
        assert_eq!(first[0]["reason"], "NodeStatusUnknown");
        assert_eq!(first[1]["reason"], "NodeStatusNeverUpdated");
        assert_eq!(first.len(), 4);
        assert!(silenced(&node(Some("Unknown"), json!({})), "now").iter().all(|c| c["type"] != "Ready"));
    }
}
