//! Gives nodes to their new owner, a few at a time, so that each is without an owner for a moment only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::api::{VirtualNode, names};
use crate::cluster::queue::Outcome;
use crate::fleet::agent::Agent;
use crate::fleet::{Fleet, is_not_found, within};

/// Nodes that may be without an owner at a time.
const AT_A_TIME: usize = 16;
/// How long a new owner may take before the next node is given up all the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a node that has to wait its turn is looked at again.
const TURN: Duration = Duration::from_millis(250);

/// Nodes that were given up and not yet taken.
#[derive(Default)]
pub(in crate::fleet) struct UnderWay(Mutex<HashMap<Arc<str>, Instant>>);

impl UnderWay {
    /// True when the node may be given up now.
    fn begin(&self, node: &Arc<str>, now: Instant) -> bool {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, since| now.duration_since(*since) < PATIENCE);
        if under_way.len() >= AT_A_TIME && !under_way.contains_key(node) {
            return false;
        }
        under_way.insert(node.clone(), now);
        true
    }

    /// The node shows an owner again.
    pub(in crate::fleet) fn taken_by(&self, node: &str, shard: Option<&str>) {
        if shard.is_some_and(|shard| !shard.is_empty()) {
            self.taken(node);
        }
    }

    /// The node has an owner.
    pub(in crate::fleet) fn taken(&self, node: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }
}

impl Fleet {
    /// A step of giving a node of ours to the replica whose it is now. Its pods go on at the provider.
    pub(in crate::fleet) async fn hand_over(&self, vn: &VirtualNode, agent: &Arc<Agent>) -> kube::Result<Outcome> {
        if agent.state().held.is_none() {
            self.let_go(agent);
            return Ok(Outcome::Done);
        }
        if !self.under_way.begin(&agent.name, Instant::now()) {
            return Ok(Outcome::After(TURN));
        }
        self.quiesce(agent);
        self.release_lease(agent).await?;
        self.let_go(agent);
        tracing::info!(node = %agent.name, "handed over");
        // Tells the new owner, which watches VirtualNodes and not the Leases of all nodes.
        let patch = json!({"metadata": {"uid": vn.metadata.uid}, "status": {"shard": null}});
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        match within(api.patch_status(&agent.name, &params, &Patch::Merge(patch))).await {
            Err(error) if !is_not_found(&error) => {
                tracing::debug!(node = %agent.name, %error, "the new owner could not be told; it looks by itself");
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// Stops acting for a node. Nothing of it changes anywhere.
    fn quiesce(&self, agent: &Agent) {
        agent.hold.revoke();
        let mut state = agent.state();
        if std::mem::take(&mut state.runs_pods) {
            self.pods.release_node(&agent.name);
        }
    }

    /// Forgets a node that is not ours any more.
    pub(in crate::fleet) fn let_go(&self, agent: &Agent) {
        self.quiesce(agent);
        self.drop_agent(&agent.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_a_time_and_nobody_waits_for_ever() {
        let (under_way, now) = (UnderWay::default(), Instant::now());
        let names: Vec<Arc<str>> = (0..=AT_A_TIME).map(|n| format!("n{n}").into()).collect();
        assert!(names[..AT_A_TIME].iter().all(|n| under_way.begin(n, now)));
        assert!(!under_way.begin(&names[AT_A_TIME], now));
        assert!(under_way.begin(&names[0], now), "a second try of the same");
        under_way.taken("n3");
        assert!(under_way.begin(&names[AT_A_TIME], now));
        assert!(under_way.begin(&"late".into(), now + PATIENCE), "an owner that does not come holds up nobody");
    }
}
