//! What the fleet shows of itself: on its page, in metrics and under `/debug`.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::Fleet;
use crate::api::{VirtualNode, conditions};
use crate::kubelet::auth::{Auth, Denied};
use crate::telemetry::view::{FleetView, NodeRow, NodeState, Wish};

/// More pods of one node are counted, not listed.
const PODS_SHOWN: usize = 500;

pub(super) struct View {
    pub fleet: Arc<Fleet>,
    pub auth: Arc<Auth>,
}

#[async_trait]
impl FleetView for View {
    fn nodes(&self) -> Vec<NodeRow> {
        let mut rows: Vec<_> = self.fleet.virtual_nodes.state().iter().map(|vn| self.row(vn)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    fn node(&self, name: &str) -> Option<Value> {
        let vn = self.fleet.virtual_node(name)?;
        let row = self.row(&vn);
        let status = vn.status.clone().unwrap_or_default();
        let pods = if row.ours { self.fleet.pods.pods(name) } else { Vec::new() };
        let live = self.fleet.nodes.get(name);
        Some(json!({
            "created": vn.metadata.creation_timestamp,
            "conditions": status.conditions,
            "capacity": status.capacity,
            "providerStatus": status.provider,
            "labels": live.as_ref().map(|l| l.labels.clone()),
            "taints": live.as_ref().map(|l| l.taints.clone()),
            "listed": row.ours,
            "podList": pods.iter().take(PODS_SHOWN).map(|p| pod(p)).collect::<Vec<_>>(),
            "node": row,
        }))
    }

    fn internals(&self) -> Value {
        let fleet = &self.fleet;
        let agents = fleet.agents.read().unwrap_or_else(PoisonError::into_inner).len();
        json!({
            "identity": fleet.config.identity,
            "version": super::version(),
            "replicas": fleet.members.alive(),
            "virtualNodes": fleet.virtual_nodes.state().len(),
            "agents": agents,
            "podsSynced": fleet.pods.synced(),
            "queues": {
                "virtualnodes": fleet.queue.len(),
                "leases": fleet.beats.len(),
                "probes": fleet.probes.len(),
            },
        })
    }

    async fn may(&self, headers: &HeaderMap, wish: Wish) -> Result<(), (StatusCode, String)> {
        let (verb, subresource) = match wish {
            Wish::SeeFleet => ("get", "stats"),
            Wish::SeeProcess => ("get", "proxy"),
            Wish::ChangeProcess => ("update", "proxy"),
        };
        self.auth.allow_for_all_nodes(headers, verb, subresource).await.map_err(|denied| {
            let status = match denied {
                Denied::Unauthenticated => StatusCode::UNAUTHORIZED,
                Denied::Forbidden { .. } => StatusCode::FORBIDDEN,
                Denied::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, denied.to_string())
        })
    }
}

impl View {
    fn row(&self, vn: &VirtualNode) -> NodeRow {
        let name = vn.name_any();
        let live = self.fleet.nodes.get(&name);
        let status = vn.status.as_ref();
        let ready = status.is_some_and(|s| conditions::is_true(&s.conditions, conditions::READY));
        let shard = status.and_then(|s| s.shard.clone()).unwrap_or_default();
        NodeRow {
            state: match (vn.metadata.deletion_timestamp.is_some(), ready) {
                (true, _) => NodeState::Deleting,
                (false, true) => NodeState::Ready,
                (false, false) => NodeState::NotReady,
            },
            reason: status.and_then(|s| s.reason.clone()).unwrap_or_default(),
            provider: vn.spec.provider.kind.as_str(),
            zone: vn.spec.labels.get("topology.kubernetes.io/zone").cloned().unwrap_or_default(),
            endpoint: status.and_then(|s| s.kubelet.as_ref()).map(|k| k.endpoint.clone()).unwrap_or_default(),
            cordoned: live.is_some_and(|l| l.unschedulable),
            pods: status.and_then(|s| s.pods).unwrap_or_default(),
            ours: shard == self.fleet.config.identity,
            shard,
            name,
        }
    }
}

fn pod(pod: &Pod) -> Value {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    json!({
        "namespace": pod.namespace(),
        "name": pod.name_any(),
        "phase": status.and_then(|s| s.phase.clone()),
        "ready": containers.iter().filter(|c| c.ready).count(),
        "containers": pod.spec.as_ref().map_or(0, |s| s.containers.len()),
        "restarts": containers.iter().map(|c| c.restart_count).sum::<i32>(),
        "created": pod.metadata.creation_timestamp,
        "deleting": pod.metadata.deletion_timestamp.is_some(),
    })
}
