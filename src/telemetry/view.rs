//! What the fleet lets be seen of itself. The fleet implements it; the fleet page, `/debug` and the metrics read it.

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::api::virtual_node::PodCounts;

/// How a node is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// All is well.
    Ready,
    /// Something stands in its way.
    NotReady,
    /// It is going away.
    Deleting,
}

impl NodeState {
    /// As metrics and the page name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Deleting => "deleting",
        }
    }
}

/// One node, short enough that ten thousand of them fit into an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: NodeState,
    /// Why it is not ready, in one word; empty when it is.
    pub reason: String,
    /// The provider's type.
    pub provider: &'static str,
    /// The replica that runs it.
    pub shard: String,
    /// Its zone, by the usual label; empty without one.
    pub zone: String,
    /// `address:port` of its kubelet API; empty while it has none.
    pub endpoint: String,
    /// New pods are kept away.
    pub cordoned: bool,
    /// How many pods are on it.
    pub pods: PodCounts,
    /// This replica runs it.
    #[serde(skip)]
    pub ours: bool,
}

/// What somebody wants to look at, or to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nodes and their pods: the right to `get` `nodes/stats` of all nodes.
    SeeFleet,
    /// The state of the process: the right to `get` `nodes/proxy` of all nodes.
    SeeProcess,
    /// Another log level: the right to `update` `nodes/proxy` of all nodes.
    ChangeProcess,
}

/// A fleet to look at.
#[async_trait]
pub trait FleetView: Send + Sync + 'static {
    /// Every node, by name.
    fn nodes(&self) -> Vec<NodeRow>;

    /// One node with its conditions, and its pods if this replica runs it.
    fn node(&self, name: &str) -> Option<serde_json::Value>;

    /// Queues, caches and replicas.
    fn internals(&self) -> serde_json::Value;

    /// Whether who sent a request with these headers may have what they wish: decided by the cluster, as for the
    /// kubelet API. The error is the answer to give.
    async fn may(&self, headers: &HeaderMap, wish: Wish) -> Result<(), (StatusCode, String)>;
}
