//! Takes a node down: its pods, its Node, its Lease, and at last the finalizer of its VirtualNode.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::agent::Agent;
use super::drain::{Deadlines, LOOK_AGAIN, Stage};
use super::{Fleet, is_conflict, is_not_found, within};
use crate::api::{VirtualNode, names};
use crate::cluster::queue::Outcome;

/// How long a provider may take to free what the node still has there.
const PROVIDER_DEADLINE: Duration = Duration::from_secs(5);

/// VirtualNodes without our finalizer, by name and uid, until the watch tells that they are gone. What it showed last may
/// still have the finalizer; taken down once more, the node would come back for a moment, and stay if we end in it.
#[derive(Default)]
pub(super) struct Released(Mutex<HashMap<Arc<str>, Arc<str>>>);

impl Released {
    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, name: &Arc<str>, uid: &Arc<str>) {
        self.all().insert(name.clone(), uid.clone());
    }

    /// Whether it is this very one.
    pub fn has(&self, vn: &VirtualNode) -> bool {
        self.all().get(vn.metadata.name.as_deref().unwrap_or_default()).map(|uid| &**uid) == vn.metadata.uid.as_deref()
    }

    fn forget(&self, name: &str) {
        self.all().remove(name);
    }
}

impl Fleet {
    /// A step of taking a node down, for which it was brought up as far as it goes.
    pub(super) async fn take_down(
        self: &Arc<Self>,
        vn: &VirtualNode,
        agent: &Arc<Agent>,
        brought_up: kube::Result<Outcome>,
    ) -> kube::Result<Outcome> {
        let deadlines = Deadlines::of_deletion(&vn.spec.drain, &vn.spec.deletion_policy);
        let since = vn.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |t| t.0);
        if brought_up.is_err() && !agent.state().runs_pods && !deadlines.over(since) {
            // Its pods are unknown because the API server did not answer, and they must have their time.
            return brought_up;
        }
        // A node whose pods are not known yet would look empty.
        if agent.state().node_uid.is_some() {
            let wait = tokio::time::timeout(LOOK_AGAIN, self.pods.wait_known(&agent.name));
            if wait.await.is_err() {
                return Ok(Outcome::After(LOOK_AGAIN));
            }
            self.cordon(agent).await?;
        }
        let (stage, left, wait) = self.drain(vn, agent, deadlines, since).await?;
        match stage {
            Stage::Evict | Stage::Delete => {
                self.write_status_of(vn, agent).await?;
                return Ok(Outcome::After(wait));
            }
            Stage::Force => self.give_up(vn, agent, &left),
            Stage::Done => {}
        }
        self.finish(vn, agent).await
    }

    fn give_up(&self, vn: &VirtualNode, agent: &Agent, left: &[Arc<Pod>]) {
        if std::mem::replace(&mut agent.state().gave_up, true) {
            return;
        }
        let names: Vec<_> =
            left.iter().map(|p| format!("{}/{}", p.namespace().unwrap_or_default(), p.name_any())).collect();
        let message = format!(
            "after {} s (spec.deletionPolicy.timeoutSeconds) these pods are deleted without grace and may still run at \
             the provider: {}",
            vn.spec.deletion_policy.timeout_seconds,
            names.join(", ")
        );
        tracing::warn!(node = %agent.name, "{message}");
        self.events.emit(self.regarding(vn), true, "PodsLeftBehind", message);
    }

    async fn finish(self: &Arc<Self>, vn: &VirtualNode, agent: &Agent) -> kube::Result<Outcome> {
        // Those of DaemonSets too: they go with the node.
        self.force(agent, &self.pods_of(agent).await?).await?;
        self.remove_at_provider(agent).await;
        agent.state().leaving = true;
        self.delete_node(&agent.name, &agent.uid).await?;
        self.drop_agent(&agent.name);
        self.release(vn).await?;
        self.released.note(&agent.name, &agent.uid);
        tracing::info!(node = %agent.name, "removed");
        Ok(Outcome::Done)
    }

    async fn remove_at_provider(&self, agent: &Agent) {
        if std::mem::take(&mut agent.state().runs_pods) {
            let behind = self.pods.remove_node(&agent.name, PROVIDER_DEADLINE).await;
            if behind > 0 {
                tracing::warn!(node = %agent.name, behind, "pods could not be removed at the provider");
            }
        }
    }

    /// Deletes the Node and the Lease of a name, if they are of this VirtualNode. The Lease goes last, being what
    /// entitles to delete the Node.
    async fn delete_node(&self, name: &str, vn_uid: &str) -> kube::Result<()> {
        if let Some(live) = self.find_node(name).await? {
            if !live.is_owned_by(vn_uid) {
                return Ok(());
            }
            let nodes: Api<Node> = Api::all(self.client.clone());
            let of_node = Preconditions { uid: Some(live.uid.clone()), resource_version: None };
            let params = DeleteParams { preconditions: Some(of_node), ..DeleteParams::default() };
            match within(nodes.delete(name, &params)).await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error),
                _ => {}
            }
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), names::LEASE_NAMESPACE);
        match within(leases.delete(name, &DeleteParams::default())).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn release(&self, vn: &VirtualNode) -> kube::Result<()> {
        if let Some(alone) = &self.alone {
            alone.released();
            return Ok(());
        }
        let finalizers: Vec<_> = vn.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
        let patch = json!({"metadata": {
            "finalizers": finalizers, "resourceVersion": vn.resource_version(), "uid": vn.uid(),
        }});
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        match within(api.patch_metadata(&vn.name_any(), &params, &Patch::Merge(patch))).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// What is left of a VirtualNode that is gone without having been taken down, as when somebody removed
    /// its finalizer by hand.
    pub(super) async fn clean_up_after(self: &Arc<Self>, name: &str) -> kube::Result<Outcome> {
        self.released.forget(name);
        if let Some(agent) = self.agent(name) {
            self.remove_at_provider(&agent).await;
            self.delete_node(name, &agent.uid).await?;
            self.drop_agent(name);
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_virtual_node_is_not_mistaken_for_one_that_was_made_anew_under_its_name() {
        let vn = |uid: &str| {
            let spec = json!({"provider": {"type": "mock", "mock": {}}});
            let vn: VirtualNode = serde_json::from_value(json!({
                "apiVersion": "vnode.dev/v1alpha1", "kind": "VirtualNode",
                "metadata": {"name": "edge", "uid": uid}, "spec": spec,
            }))
            .unwrap();
            vn
        };
        let released = Released::default();
        assert!(!released.has(&vn("a")));
        released.note(&"edge".into(), &"a".into());
        assert!(released.has(&vn("a")) && !released.has(&vn("b")));
        released.forget("edge");
        assert!(!released.has(&vn("a")));
    }
}
