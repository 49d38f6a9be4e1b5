//! The Nodes of the fleet as the API server has them: one watch, and of each Node only what decides something.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Taint};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;

use crate::api::names;
use crate::cluster::watch::watch;

use super::render::statements;

/// How long a condition has been what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// `type`
    pub kind: Box<str>,
    /// `status`
    pub status: Box<str>,
    /// `reason`
    pub reason: Box<str>,
    /// `lastTransitionTime`
    pub since: Option<Timestamp>,
}

impl Transition {
    /// What is said by each of a Node's conditions.
    pub fn all(conditions: Vec<NodeCondition>) -> Box<[Self]> {
        let of = |c: NodeCondition| Self {
            kind: c.type_.into(),
            status: c.status.into(),
            reason: c.reason.unwrap_or_default().into(),
            since: c.last_transition_time.map(|t| t.0),
        };
        conditions.into_iter().map(of).collect()
    }
}

/// What of a Node decides what we do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveNode {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.resourceVersion`
    pub resource_version: String,
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`
    pub annotations: BTreeMap<String, String>,
    /// `spec.taints`
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`
    pub unschedulable: bool,
    /// `status.conditions`: others may write them as well.
    pub conditions: Box<[Transition]>,
    /// The names in `status.capacity`, since a resource that is no longer there must be taken away by name.
    pub resources: Vec<String>,
    /// What the status says, as [`statements`].
    pub said: Box<[u64]>,
    /// `lastHeartbeatTime` of the condition `Ready`.
    pub heartbeat: Option<Timestamp>,
    /// Being deleted.
    pub deleting: bool,
}

impl LiveNode {
    /// Keeps what decides.
    pub fn of(node: Node) -> Self {
        let (meta, spec, status) = (node.metadata, node.spec.unwrap_or_default(), node.status.unwrap_or_default());
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        Self {
            said: statements(&status),
            heartbeat: ready.and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or_default(),
            conditions: Transition::all(status.conditions.unwrap_or_default()),
            resources: status.capacity.unwrap_or_default().into_keys().collect(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Its `Ready` condition.
    pub fn ready(&self) -> Option<&Transition> {
        self.conditions.iter().find(|c| &*c.kind == "Ready")
    }

    /// How long ago it was last said that its status holds, when it says all of this status.
    pub fn says(&self, status: &NodeStatus, now: Timestamp) -> Option<Duration> {
        let all = statements(status).iter().all(|statement| self.said.contains(statement));
        let age = self.heartbeat.filter(|_| all)?.duration_until(now);
        Some(age.try_into().unwrap_or_default())
    }

    /// True when the Node stands for the VirtualNode of this uid.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.annotations.get(names::OWNER_UID).is_some_and(|owner| owner == uid)
    }
}

/// The Nodes that carry our provider label.
#[derive(Default)]
pub struct LiveNodes {
    nodes: RwLock<HashMap<String, Arc<LiveNode>>>,
    synced: watch_channel::Sender<bool>,
}

impl LiveNodes {
    /// A Node by name.
    pub fn get(&self, name: &str) -> Option<Arc<LiveNode>> {
        self.read().get(name).cloned()
    }

    /// Notes a Node that we have just written, ahead of the watch. An older version changes nothing.
    pub fn put(&self, node: Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let node = LiveNode::of(node);
        let mut nodes = self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let newer = |old: &LiveNode| version(&old.resource_version) < version(&node.resource_version);
        if nodes.get(&name).is_none_or(|old| newer(old)) {
            nodes.insert(name, Arc::new(node));
        }
    }

    /// Waits until every Node of ours has been seen.
    pub async fn wait_synced(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<LiveNode>>> {
        self.nodes.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Follows the Nodes, or `only` the one of this name, until `shutdown` and names each that changed.
    pub async fn run(&self, client: Client, only: Option<&str>, changed: impl Fn(&str), shutdown: CancellationToken) {
        let api: Api<Node> = Api::all(client);
        let mut config = watcher::Config::default().labels(names::PROVIDER_LABEL).streaming_lists();
        if let Some(name) = only {
            config = config.fields(&format!("metadata.name={name}"));
        }
        let mut events = watch(api, config).boxed();
        let mut listed: Option<HashMap<String, Arc<LiveNode>>> = None;
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(HashMap::new()),
                Ok(watcher::Event::InitApply(node)) => {
                    let name = node.metadata.name.clone().unwrap_or_default();
                    listed.get_or_insert_default().insert(name, Arc::new(LiveNode::of(node)));
                }
                Ok(watcher::Event::InitDone) => {
                    let new = listed.take().unwrap_or_default();
                    let mut nodes = self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let names: Vec<_> = nodes.keys().chain(new.keys()).cloned().collect();
                    *nodes = new;
                    drop(nodes);
                    names.iter().for_each(|n| changed(n));
                    self.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(node)) => {
                    let name = node.metadata.name.clone().unwrap_or_default();
                    self.put(node);
                    changed(&name);
                }
                Ok(watcher::Event::Delete(node)) => {
                    let name = node.metadata.name.unwrap_or_default();
                    self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&name);
                    changed(&name);
                }
                Err(error) => tracing::debug!(%error, "the watch of Nodes is interrupted"),
            }
        }
    }
}

/// Resource versions are compared as numbers, as Kubernetes ≥ 1.35 allows for its own kinds (KEP-5504).
fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}
