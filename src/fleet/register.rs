//! A node's Node: created with its marks, adopted only when it is ours, written only when it differs.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::agent::Agent;
use super::plan::{self, Problem, Reached};
use super::{Fleet, held, is_conflict, is_not_found, within};
use crate::api::{VirtualNode, names};
use crate::node::live::LiveNode;
use crate::node::ownership;
use crate::node::render::{self, Endpoint};
use crate::provider::NodeDescription;

/// Why a node is not registered.
pub(super) enum Failed {
    /// Something that only a person can mend.
    Problem(Problem),
    /// The API server refused or did not answer; worth another try.
    Api(kube::Error),
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        Self::Api(error)
    }
}

impl Fleet {
    /// Finds the Node of this name, looking at the API server when the watch has not shown it.
    pub(super) async fn find_node(&self, name: &str) -> kube::Result<Option<Arc<LiveNode>>> {
        if let Some(live) = self.nodes.get(name) {
            return Ok(Some(live));
        }
        // A Node without our label is in no watch of ours.
        let api: Api<Node> = Api::all(self.client.clone());
        Ok(within(api.get_opt(name)).await?.map(|node| Arc::new(LiveNode::of(node))))
    }

    /// Makes sure that the Node is there, that it is ours, and that it says what it should.
    pub(super) async fn ensure_node(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        description: Option<&NodeDescription>,
        endpoint: &Endpoint,
    ) -> Result<(), Failed> {
        let marks = render::marks(vn, description);
        let live = match self.nodes.get(&agent.name) {
            Some(live) if live.is_owned_by(&agent.uid) => live,
            Some(_) => return Err(Failed::Problem(taken(&agent.name))),
            // Deleted already, by us in an earlier step or by somebody else: it is not to come back.
            None if vn.metadata.deletion_timestamp.is_some() => return Ok(()),
            None => return self.create_node(vn, agent, description, endpoint, &marks).await,
        };
        let api: Api<Node> = Api::all(self.client.clone());
        if live.deleting {
            // Its finalizers are somebody else's; a new one is made when it has gone.
            return Ok(());
        }
        if let Some(patch) = ownership::patch(&live, &marks, vn.spec.unschedulable) {
            let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
            match held(&agent.hold, api.patch(&agent.name, &params, &Patch::Merge(patch))).await {
                Ok(node) => self.nodes.put(node),
                Err(error) if is_not_found(&error) => return Ok(()), // the watch will tell
                Err(error) => return Err(error.into()),
            }
        }
        self.adopt(agent, &live.uid);
        self.write_status(vn, agent, description, endpoint, &live).await?;
        Ok(())
    }

    async fn create_node(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        description: Option<&NodeDescription>,
        endpoint: &Endpoint,
        marks: &render::Marks,
    ) -> Result<(), Failed> {
        let status = self.wanted_status(vn, agent, description, endpoint, None);
        let provider_id = description.and_then(|d| d.provider_id.clone());
        let node = Node {
            metadata: ObjectMeta {
                name: Some(agent.name.to_string()),
                labels: Some(marks.labels.clone()),
                annotations: Some(ownership::annotations(marks)),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some(marks.taints.clone()),
                unschedulable: Some(marks.cordon || vn.spec.unschedulable == Some(true)).filter(|u| *u),
                provider_id: provider_id
                    .or_else(|| self.alone.as_ref()?.node.provider_id.clone())
                    .or_else(|| Some(format!("vnode://{}/{}", vn.spec.provider.name(), agent.name))),
                ..NodeSpec::default()
            }),
            status: Some(status.clone()),
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PostParams::default() };
        match held(&agent.hold, api.create(&params, &node)).await {
            Ok(node) => {
                let uid = node.metadata.uid.clone().unwrap_or_default();
                let kept = node.status.as_ref().is_some_and(|s| s.conditions.as_ref().is_some_and(|c| !c.is_empty()));
                let live = Arc::new(LiveNode::of(node.clone()));
                self.nodes.put(node);
                self.adopt(agent, &uid);
                tracing::info!(node = %agent.name, "registered");
                if kept {
                    agent.state().written = Some((render::digest(&status), Instant::now()));
                } else {
                    self.write_status(vn, agent, description, endpoint, &live).await?;
                }
                Ok(())
            }
            Err(error) if is_conflict(&error) => match within(api.get_opt(&agent.name)).await? {
                Some(node) if LiveNode::of(node.clone()).is_owned_by(&agent.uid) => {
                    // Ours, but without our label, or not yet shown by the watch: the next look mends it.
                    self.nodes.put(node);
                    self.queue.add(agent.name.clone());
                    Ok(())
                }
                Some(_) => Err(Failed::Problem(taken(&agent.name))),
                None => Err(Failed::Api(error)),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Notes that the Node of this uid is ours, and begins its heartbeat if it is a new one.
    fn adopt(&self, agent: &Agent, uid: &str) {
        let new = {
            let mut state = agent.state();
            let new = state.node_uid.as_deref() != Some(uid);
            if new {
                state.node_uid = Some(uid.into());
                state.written = None;
            }
            new
        };
        if new {
            self.start_beating(&agent.name);
        }
    }

    fn wanted_status(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        description: Option<&NodeDescription>,
        endpoint: &Endpoint,
        live: Option<&LiveNode>,
    ) -> NodeStatus {
        let state = agent.state();
        let silent = state.unreachable_since.map(|s| s.elapsed()).unwrap_or_default();
        let problem = state.problems.provider.as_ref().or(state.problems.credentials.as_ref());
        // Credentials that went missing under a provider that still answers are no outage.
        let problem = problem.filter(|_| agent.current_provider().is_none());
        let was_ready = live.and_then(LiveNode::ready).map(|ready| &*ready.status == "True");
        let readiness = plan::readiness(&state.reached, problem, silent, self.config.provider_grace, was_ready);
        let before = live.map(|live| &*live.conditions).unwrap_or_default();
        render::status(vn, description, endpoint, &readiness, before, Timestamp::now())
    }

    async fn write_status(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        description: Option<&NodeDescription>,
        endpoint: &Endpoint,
        live: &LiveNode,
    ) -> kube::Result<()> {
        if agent.state().reached == Reached::Unknown
            && !live.conditions.is_empty()
            && agent.current_provider().is_some()
        {
            // After a restart or a takeover the Node says what it said until the provider has answered.
            return Ok(());
        }
        let wanted = self.wanted_status(vn, agent, description, endpoint, Some(live));
        let digest = render::digest(&wanted);
        let ready = wanted.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        let same = |c: &NodeCondition| {
            live.ready().is_some_and(|l| *l.status == *c.status && Some(&*l.reason) == c.reason.as_deref())
        };
        let due = {
            let mut state = agent.state();
            if state.written.is_none() {
                // What another process wrote, or this one before it was started anew, need not be written again.
                let age = live.says(&wanted, Timestamp::now());
                state.written = age.and_then(|age| Some((digest, Instant::now().checked_sub(age)?)));
            }
            state.written.is_none_or(|(old, at)| {
                // Spread, so that a fleet that started together does not write together.
                let interval = names::NODE_STATUS_INTERVAL.mul_f64(0.9 + spread(&agent.name) / 5.0);
                at.elapsed() >= interval || old != digest || !ready.is_some_and(same)
            })
        };
        if !due {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Strategic(status_patch(&wanted, live, description.is_some()));
        match held(&agent.hold, api.patch_status(&agent.name, &params, &patch)).await {
            Ok(node) => {
                self.nodes.put(node);
                agent.state().written = Some((digest, Instant::now()));
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The strategic merge patch for a Node's status: conditions of others stay, resources that are no longer
/// there are taken away, addresses are replaced.
fn status_patch(wanted: &NodeStatus, live: &LiveNode, described: bool) -> Value {
    let mut status = json!(wanted);
    for part in ["capacity", "allocatable"] {
        for resource in &live.resources {
            if status[part].get(resource).is_none() {
                status[part][resource.as_str()] = Value::Null;
            }
        }
    }
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    if !described {
        // The provider has not said yet what it has: what it said before a restart stays.
        for part in ["capacity", "allocatable", "addresses", "nodeInfo"] {
            status.as_object_mut().map(|s| s.remove(part));
        }
    }
    json!({"metadata": {"uid": live.uid}, "status": status})
}

/// A number from 0 to 1 that a name always has in this process.
fn spread(name: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
}

pub(super) fn taken(name: &str) -> Problem {
    Problem::new(
        "NameTaken",
        format!(
            "Node {name} exists and is not of this VirtualNode; it is not touched. Delete it or choose another name"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_that_is_gone_is_taken_away_by_name() {
        let live = LiveNode { resources: vec!["cpu".into(), "gpu".into()], uid: "u".into(), ..LiveNode::default() };
        let wanted: NodeStatus = serde_json::from_value(json!({
            "capacity": {"cpu": "1"}, "allocatable": {"cpu": "1"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        }))
        .unwrap();
        let patch = status_patch(&wanted, &live, true);
        assert_eq!(patch["status"]["capacity"], json!({"cpu": "1", "gpu": null}));
        assert_eq!(patch["status"]["addresses"][1], json!({"$patch": "replace"}));
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(status_patch(&wanted, &live, false)["status"].get("capacity"), None);
    }

    #[test]
    fn names_spread_evenly() {
        let all: Vec<_> = (0..1000).map(|n| spread(&format!("edge-{n}"))).collect();
        assert!(all.iter().all(|s| (0.0..1.0).contains(s)));
        let low = all.iter().filter(|s| **s < 0.5).count();
        assert!((350..650).contains(&low), "{low}");
    }
}
