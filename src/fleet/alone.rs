//! One node without custom resources: its VirtualNode is this process's own and the API server never sees it.
//!
//! Everything else is as in a fleet: the same steps, the same agent, the same loops. What would be read from or written
//! to the VirtualNode is kept here, and what would be told of it is told of the Node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::reconcile::reference;
use super::{Fleet, FleetConfig, FleetError};
use crate::api::{VirtualNode, VirtualNodeSpec, names};
use crate::provider::Credentials;
use crate::telemetry::health::Readiness;

/// A node that no VirtualNode of the cluster describes.
#[derive(Clone, Debug)]
pub struct OneNode {
    /// The Node's name.
    pub name: String,
    /// What would be in the VirtualNode.
    pub spec: VirtualNodeSpec,
    /// What would be in the Secret that it names.
    pub credentials: Option<Arc<Credentials>>,
    /// `spec.providerID` of the Node, where the provider does not say it.
    pub provider_id: Option<String>,
    /// Delete the node's pods, its Node and its Lease at the end. Without it they stay for the next process.
    pub delete_on_exit: bool,
}

impl OneNode {
    /// The uid that the node of this name always has: what its Node and its pods at the provider are marked with.
    pub fn uid(name: &str) -> String {
        let digest = Sha256::digest(format!("vnode node\0{name}").as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        // Version 8 of RFC 9562: made in a way of our own.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        uuid::Uuid::from_bytes(bytes).to_string()
    }

    fn virtual_node(&self) -> VirtualNode {
        let mut vn = VirtualNode::new(&self.name, self.spec.clone());
        vn.metadata.uid = Some(Self::uid(&self.name));
        vn.metadata.generation = Some(1);
        vn.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
        vn
    }
}

/// Runs one node until `shutdown`. What it had stays as it is, for the next process, unless it says otherwise.
///
/// # Errors
/// When it cannot start. What goes wrong later is logged, and told in events of the Node.
pub async fn run_node(
    client: Client,
    config: FleetConfig,
    node: OneNode,
    readiness: &Readiness,
    shutdown: CancellationToken,
) -> Result<(), FleetError> {
    super::run_fleet(client, config, Some(node), readiness, shutdown).await
}

/// The one node of a process that has no fleet.
pub(super) struct Alone {
    pub(super) node: OneNode,
    writer: Mutex<Writer<VirtualNode>>,
    /// The node has been taken down.
    gone: CancellationToken,
}

impl Alone {
    pub(super) fn new(node: OneNode, writer: Writer<VirtualNode>) -> Self {
        let this = Self { node, writer: Mutex::new(writer), gone: CancellationToken::new() };
        let vn = this.node.virtual_node();
        for event in [watcher::Event::Init, watcher::Event::InitApply(vn), watcher::Event::InitDone] {
            this.tell(&event);
        }
        this
    }

    fn tell(&self, event: &watcher::Event<VirtualNode>) {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).apply_watcher_event(event);
    }

    /// The node has been taken down.
    pub(super) fn released(&self) {
        self.gone.cancel();
    }
}

impl Fleet {
    /// Changes the VirtualNode of a process that has no fleet.
    pub(super) fn change_own(&self, alone: &Alone, change: impl FnOnce(&mut VirtualNode)) {
        // Read and written under one lock, so that no change is lost.
        let mut writer = alone.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(vn) = self.virtual_node(&alone.node.name) else { return };
        let mut vn = (*vn).clone();
        change(&mut vn);
        writer.apply_watcher_event(&watcher::Event::Apply(vn));
    }

    /// Waits for the shutdown of a process that has no fleet, and takes its node down first if it is to.
    pub(super) async fn wait_alone(&self, alone: &Alone, shutdown: &CancellationToken, stop: &CancellationToken) {
        self.queue.add(alone.node.name.as_str().into());
        shutdown.cancelled().await;
        if alone.node.delete_on_exit {
            tracing::info!(node = alone.node.name, "the node's pods and the Node are deleted");
            self.change_own(alone, |vn| vn.metadata.deletion_timestamp = Some(Time(Timestamp::now())));
            self.queue.add(alone.node.name.as_str().into());
            // Its own deadline, and some time for the last requests.
            let limit = u64::from(alone.node.spec.deletion_policy.timeout_seconds) + 30;
            if tokio::time::timeout(Duration::from_secs(limit), alone.gone.cancelled()).await.is_err() {
                tracing::warn!(node = alone.node.name, "the node could not be deleted in time and is left behind");
            }
        }
        stop.cancel();
    }

    /// What events about a node are told of: its VirtualNode, or the Node where there is none.
    pub(super) fn regarding(&self, vn: &VirtualNode) -> ObjectReference {
        match &self.alone {
            None => reference(vn),
            // The uid of a Node in events is its name, as with kubelet.
            Some(_) => ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(vn.name_any()),
                uid: Some(vn.name_any()),
                ..ObjectReference::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_of_a_name_is_always_the_same_and_that_of_another_differs() {
        assert_eq!(OneNode::uid("edge"), OneNode::uid("edge"));
        assert_ne!(OneNode::uid("edge"), OneNode::uid("edge-1"));
        assert!(uuid::Uuid::parse_str(&OneNode::uid("edge")).is_ok());
    }
}
