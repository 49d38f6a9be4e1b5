//! Takes a node down: its pods, its Lease, its Node, and at last the finalizer of its VirtualNode.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::agent::Agent;
use super::reconcile::reference;
use super::{Fleet, is_conflict, is_not_found, within};
use crate::api::virtual_node::PodDeletion;
use crate::api::{VirtualNode, names};
use crate::cluster::queue::Outcome;

/// Evictions and deletions of one node under way at a time.
const AT_A_TIME: usize = 16;
/// How often a node that is going away is looked at; the end of a pod is noticed at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a provider may take to free what the node still has there.
const PROVIDER_DEADLINE: Duration = Duration::from_secs(5);

/// What to do next about the pods of a node that goes away.
#[derive(Debug, PartialEq)]
enum Next {
    /// No pod is left.
    Finish,
    /// Ask these to go, and wait.
    Wait,
    /// The time is over.
    GiveUp,
}

fn next(left: usize, deleted_at: Timestamp, timeout: Duration, now: Timestamp) -> Next {
    if left == 0 {
        return Next::Finish;
    }
    let passed = Duration::try_from(now.duration_since(deleted_at)).unwrap_or_default();
    if passed >= timeout { Next::GiveUp } else { Next::Wait }
}

impl Fleet {
    /// A step of taking a node down.
    pub(super) async fn take_down(self: &Arc<Self>, vn: &VirtualNode, agent: &Arc<Agent>) -> kube::Result<Outcome> {
        let policy = &vn.spec.deletion_policy;
        // Without the watch of pods, a node whose pods are not known yet would look empty.
        if agent.state().node_uid.is_some() {
            let wait = tokio::time::timeout(LOOK_AGAIN, self.pods.wait_synced());
            if wait.await.is_err() {
                return Ok(Outcome::After(LOOK_AGAIN));
            }
            self.cordon(agent).await?;
        }
        let pods = self.pods.pods(&agent.name);
        // A DaemonSet's pods come back as long as the Node is there: they go with it.
        let asked: Vec<_> = pods.iter().filter(|p| !is_daemon(p)).cloned().collect();
        let deleted_at = vn.metadata.deletion_timestamp.as_ref().map_or_else(Timestamp::now, |t| t.0);
        let timeout = Duration::from_secs(policy.timeout_seconds.into());
        match next(asked.len(), deleted_at, timeout, Timestamp::now()) {
            Next::Wait => {
                self.ask_to_go(&asked, policy.pods).await;
                let left = timeout.saturating_sub(
                    Duration::try_from(Timestamp::now().duration_since(deleted_at)).unwrap_or_default(),
                );
                return Ok(Outcome::After(LOOK_AGAIN.min(left.max(Duration::from_millis(10)))));
            }
            Next::GiveUp => self.give_up(vn, agent, &asked),
            Next::Finish => {}
        }
        self.finish(vn, agent, &pods).await
    }

    async fn cordon(&self, agent: &Agent) -> kube::Result<()> {
        let Some(live) = self.nodes.get(&agent.name) else { return Ok(()) };
        if live.unschedulable || !live.is_owned_by(&agent.uid) {
            return Ok(());
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = json!({"metadata": {"uid": live.uid}, "spec": {"unschedulable": true}});
        match within(api.patch(&agent.name, &params, &Patch::Merge(patch))).await {
            Ok(node) => self.nodes.put(node),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn ask_to_go(&self, pods: &[Arc<Pod>], how: PodDeletion) {
        let mut staying = pods.to_vec();
        staying.retain(|p| p.metadata.deletion_timestamp.is_none());
        let asked = stream::iter(staying).map(|pod| async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams { preconditions: Some(of_uid(&pod)), ..DeleteParams::default() };
            let answer = match how {
                PodDeletion::Delete => within(api.delete(&pod.name_any(), &params)).await.map(drop),
                PodDeletion::Evict => {
                    let params = EvictParams { delete_options: Some(params), ..EvictParams::default() };
                    within(api.evict(&pod.name_any(), &params)).await.map(drop)
                }
            };
            match answer {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                    // A budget that does not allow it answers 429; the next look asks again.
                    tracing::debug!(pod = %pod.name_any(), %error, "the pod cannot be evicted yet");
                }
                _ => {}
            }
        });
        asked.buffer_unordered(AT_A_TIME).for_each(|()| async {}).await;
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
        self.events.emit(reference(vn), true, "PodsLeftBehind", message);
    }

    async fn finish(self: &Arc<Self>, vn: &VirtualNode, agent: &Agent, left: &[Arc<Pod>]) -> kube::Result<Outcome> {
        let forced = stream::iter(left.to_vec()).map(|pod| async move {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let params = DeleteParams { preconditions: Some(of_uid(&pod)), ..DeleteParams::default() }.grace_period(0);
            match within(api.delete(&pod.name_any(), &params)).await {
                Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
                _ => Ok(()),
            }
        });
        let forced: Vec<kube::Result<()>> = forced.buffer_unordered(AT_A_TIME).collect().await;
        forced.into_iter().collect::<kube::Result<()>>()?;

        self.remove_at_provider(agent).await;
        self.delete_node(&agent.name, &agent.uid).await?;
        self.drop_agent(&agent.name);
        self.release(vn).await?;
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

    /// Deletes the Lease and the Node of a name, if the Node is of this VirtualNode.
    async fn delete_node(&self, name: &str, vn_uid: &str) -> kube::Result<()> {
        let Some(live) = self.find_node(name).await? else { return Ok(()) };
        if !live.is_owned_by(vn_uid) {
            return Ok(());
        }
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), names::LEASE_NAMESPACE);
        match within(leases.delete(name, &DeleteParams::default())).await {
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let of_node = Preconditions { uid: Some(live.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(of_node), ..DeleteParams::default() };
        match within(nodes.delete(name, &params)).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn release(&self, vn: &VirtualNode) -> kube::Result<()> {
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
        if let Some(agent) = self.agent(name) {
            self.remove_at_provider(&agent).await;
            self.delete_node(name, &agent.uid).await?;
            self.drop_agent(name);
        }
        Ok(Outcome::Done)
    }
}

fn of_uid(pod: &Pod) -> Preconditions {
    Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }
}

fn is_daemon(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|o| o.controller == Some(true) && o.kind == "DaemonSet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_until_the_deadline_and_not_longer() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let timeout = Duration::from_secs(300);
        for (left, now, want) in [
            (0, 0, Next::Finish),
            (0, 999, Next::Finish),
            (2, 299, Next::Wait),
            (2, 300, Next::GiveUp),
            (2, -5, Next::Wait), // a clock that runs behind the API server's
        ] {
            assert_eq!(next(left, at(0), timeout, at(now)), want, "{left} left after {now} s");
        }
        assert_eq!(next(1, at(0), Duration::ZERO, at(0)), Next::GiveUp);
    }
}
