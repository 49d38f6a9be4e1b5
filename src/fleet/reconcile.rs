//! Brings one VirtualNode a step further.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::agent::{Agent, Problems};
use super::plan::{self, Known, Problem};
use super::register::Failed;
use super::{Fleet, credentials, is_conflict, is_not_found, within};
use crate::api::virtual_node::{DaemonSetPods, UnsupportedFields};
use crate::api::{ProviderType, VirtualNode, conditions, names};
use crate::cluster::merge;
use crate::cluster::queue::Outcome;
use crate::node::render::{self, Endpoint};
use crate::pod::{NodeFacts, NodeHandle, support};
use crate::provider::{ProviderContext, registry};

/// A step, with what goes wrong in it contained: one agent's failure is one agent's.
pub(super) async fn reconcile(fleet: Arc<Fleet>, name: Arc<str>) -> Outcome {
    let step = AssertUnwindSafe(fleet.clone().step(name.clone())).catch_unwind();
    match step.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            if is_conflict(&error) || is_not_found(&error) {
                tracing::debug!(node = %name, %error, "somebody else was faster; trying again");
            } else {
                tracing::warn!(node = %name, %error, "a step failed; it is tried again");
            }
            Outcome::Retry
        }
        Err(_) => {
            tracing::error!(node = %name, "the agent panicked; it is tried again");
            if let (Some(vn), Some(agent)) = (fleet.virtual_node(&name), fleet.agent(&name)) {
                agent.state().problems.registered =
                    Some(Problem::new("AgentPanicked", "the node's agent failed; see the operator's log"));
                // Best effort: the step that follows says the same or better.
                let _ = fleet.write_status_of(&vn, &agent).await;
            }
            Outcome::Retry
        }
    }
}

impl Fleet {
    async fn step(self: Arc<Self>, name: Arc<str>) -> kube::Result<Outcome> {
        let Some(vn) = self.virtual_node(&name) else {
            return self.clean_up_after(&name).await;
        };
        if let Some(agent) = self.agent(&name)
            && vn.metadata.uid.as_deref() != Some(&*agent.uid)
        {
            // Deleted and created anew while we looked away.
            self.clean_up_after(&name).await?;
        }
        let leaving = vn.metadata.deletion_timestamp.is_some();
        if leaving && !vn.finalizers().iter().any(|f| f == names::FINALIZER) {
            return Ok(Outcome::Done);
        }
        if !leaving && !self.ensure_finalizer(&vn).await? {
            return Ok(Outcome::Done);
        }
        let agent = self.agent_for(&name, &vn);
        let outcome = self.bring_up(&vn, &agent).await;
        if leaving {
            return self.take_down(&vn, &agent).await;
        }
        let written = self.write_status_of(&vn, &agent).await?;
        let outcome = outcome?;
        Ok(match (outcome, written) {
            (Outcome::Done, Some(later)) => Outcome::After(later),
            (outcome, _) => outcome,
        })
    }

    /// False when the object is gone.
    async fn ensure_finalizer(&self, vn: &VirtualNode) -> kube::Result<bool> {
        if vn.finalizers().iter().any(|f| f == names::FINALIZER) {
            return Ok(true);
        }
        let mut finalizers = vn.finalizers().to_vec();
        finalizers.push(names::FINALIZER.into());
        // With the version, so that no finalizer that somebody else sets at the same time is lost.
        let patch = json!({"metadata": {
            "finalizers": finalizers, "resourceVersion": vn.resource_version(), "uid": vn.uid(),
        }});
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        match within(api.patch_metadata(&vn.name_any(), &params, &Patch::Merge(patch))).await {
            Err(error) if is_not_found(&error) => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    /// Does what is missing between a VirtualNode and a node that takes pods, as far as it goes now.
    async fn bring_up(self: &Arc<Self>, vn: &VirtualNode, agent: &Arc<Agent>) -> kube::Result<Outcome> {
        let mut problems = Problems::default();
        let outcome = self.bring_up_parts(vn, agent, &mut problems).await;
        if let Err(error) = &outcome {
            problems.registered = Some(Problem::new("NotRegistered", format!("the API server: {error}")));
        }
        agent.state().problems = problems;
        outcome
    }

    async fn bring_up_parts(
        self: &Arc<Self>,
        vn: &VirtualNode,
        agent: &Arc<Agent>,
        problems: &mut Problems,
    ) -> kube::Result<Outcome> {
        if agent.state().node_uid.is_none()
            && let Some(live) = self.find_node(&agent.name).await?
            && !live.is_owned_by(&agent.uid)
        {
            problems.accepted = Some(super::register::taken(&agent.name));
            // Its owner may give the name up; nobody tells us, since the Node carries no label of ours.
            return Ok(Outcome::After(std::time::Duration::from_secs(30)));
        }
        let waits = self.ensure_provider(vn, agent, problems).await;
        let Some(endpoint) = self.ensure_port(vn, agent, problems).await else {
            return Ok(Outcome::Retry);
        };
        let (description, known) = {
            let state = agent.state();
            (state.description.clone(), state.node_uid.is_some())
        };
        // A node that has never been is not shown before its provider has said what it has.
        if description.is_some() || known || self.nodes.get(&agent.name).is_some() {
            match self.ensure_node(vn, agent, description.as_deref(), &endpoint).await {
                Ok(()) => self.run_pods(vn, agent, &endpoint),
                Err(Failed::Problem(problem)) => problems.accepted = Some(problem),
                Err(Failed::Api(error)) => return Err(error),
            }
        }
        Ok(waits)
    }

    /// Makes the provider, or another one when its configuration or credentials have changed.
    async fn ensure_provider(
        self: &Arc<Self>,
        vn: &VirtualNode,
        agent: &Arc<Agent>,
        problems: &mut Problems,
    ) -> Outcome {
        let (found, waits) = match self.credentials(vn).await {
            Ok(None) => (None, Outcome::Done),
            Ok(Some(found)) => (Some(found), Outcome::After(credentials::REFRESH)),
            Err(problem) => {
                problems.credentials = Some(problem);
                // A provider that already runs keeps the credentials that it has.
                return Outcome::After(credentials::MISSING_RETRY);
            }
        };
        let wanted = (vn.spec.provider.clone(), found.as_ref().map(|f| f.version.clone()));
        if agent.state().built_from.as_ref() == Some(&wanted) {
            return waits;
        }
        let context = ProviderContext {
            node: agent.name.clone(),
            node_uid: agent.uid.clone(),
            notifier: self.pods.notifier(&agent.name),
            credentials: found.map(|f| f.data),
        };
        match registry::build(&vn.spec.provider, context) {
            Ok(provider) => {
                agent.set_provider(provider.clone());
                let runs_pods = {
                    let mut state = agent.state();
                    state.built_from = Some(wanted);
                    // What the old one said of the machine is asked again, and holds until it is answered.
                    state.described = None;
                    state.runs_pods
                };
                if runs_pods {
                    self.pods.swap_provider(&agent.name, provider);
                }
                self.probes.forget(&agent.name);
                self.probes.add(agent.name.clone());
                waits
            }
            Err(error) => {
                problems.provider = Some(Problem::new("ProviderInvalid", format!("spec.provider: {error}")));
                Outcome::Retry
            }
        }
    }

    /// Opens the node's port, the same as before a restart where it can.
    async fn ensure_port(
        self: &Arc<Self>,
        vn: &VirtualNode,
        agent: &Arc<Agent>,
        problems: &mut Problems,
    ) -> Option<Endpoint> {
        let asked = vn.spec.kubelet.port.and_then(|p| u16::try_from(p).ok());
        let before = vn.status.as_ref().and_then(|s| s.kubelet.as_ref()).and_then(|k| u16::try_from(k.port).ok());
        let open = agent.state().endpoint.clone();
        if let Some(open) = open {
            if asked.is_none_or(|p| p == open.port) {
                return Some(open);
            }
            let mut state = agent.state();
            state.listening = None;
            state.endpoint = None;
        }
        let port = match asked.or(before) {
            Some(port) if self.ports.claim(&agent.name, port) => port,
            Some(port) if asked.is_some() => {
                let owner = self.ports.owner(port).unwrap_or_default();
                let message =
                    format!("spec.kubelet.port: port {port} is VirtualNode {owner}'s; choose another, or none");
                problems.kubelet = Some(Problem::new("PortTaken", message));
                return None;
            }
            _ => match self.ports.take(&agent.name) {
                Some(port) => port,
                None => {
                    problems.kubelet = Some(Problem::new(
                        "NoPortLeft",
                        "every port of --kubelet-ports is in use; give the operator a larger range",
                    ));
                    return None;
                }
            },
        };
        match self.kubelet.listen(agent.clone(), SocketAddr::new(self.config.bind_address, port)).await {
            Ok(listening) => {
                let endpoint = Endpoint { ip: self.config.node_ip, port };
                let mut state = agent.state();
                state.listening = Some(listening);
                state.endpoint = Some(endpoint.clone());
                Some(endpoint)
            }
            Err(error) => {
                self.ports.release(&agent.name);
                let said = if asked.is_some() { "spec.kubelet.port: " } else { "" };
                let message = format!("{said}port {port} cannot be opened: {error}");
                problems.kubelet = Some(Problem::new("PortTaken", message));
                if asked.is_none() && before != Some(port) {
                    // Another program has this one of the range: try the next.
                    self.queue.add(agent.name.clone());
                }
                None
            }
        }
    }

    /// Lets the pod controller run the node's pods.
    fn run_pods(&self, vn: &VirtualNode, agent: &Agent, endpoint: &Endpoint) {
        let Some(provider) = agent.current_provider() else { return };
        let facts = Arc::new(self.facts(vn, agent));
        let reached = {
            let mut state = agent.state();
            if state.runs_pods {
                drop(state);
                return self.pods.set_facts(&agent.name, facts);
            }
            if state.node_uid.is_none() {
                return;
            }
            state.runs_pods = true;
            state.reached == plan::Reached::Yes
        };
        let handle =
            NodeHandle { name: agent.name.clone(), uid: agent.uid.clone(), provider, host_ip: endpoint.ip, facts };
        self.pods.add_node(handle);
        if !reached {
            self.pods.set_reachable(&agent.name, false);
        }
    }

    /// What decides which pods the node takes: its Node as it is now, others' labels and taints included.
    fn facts(&self, vn: &VirtualNode, agent: &Agent) -> NodeFacts {
        let live = self.nodes.get(&agent.name);
        let description = agent.state().description.clone();
        let mut allocatable = render::capacity(vn, description.as_deref());
        allocatable.extend(vn.spec.allocatable.clone());
        if description.is_none() {
            // What the provider has is not known yet, and the defaults must not turn pods away.
            allocatable.clear();
        }
        let marks = render::marks(vn, description.as_deref());
        let operating_system = marks.labels.get("kubernetes.io/os").cloned().unwrap_or_default();
        let by_default = vn.spec.provider.kind == ProviderType::Mock;
        NodeFacts {
            provider: vn.spec.provider.kind.as_str().into(),
            allocatable,
            labels: live.as_ref().map_or(marks.labels, |l| l.labels.clone()),
            taints: live.as_ref().map_or(marks.taints, |l| l.taints.clone()),
            operating_system,
            daemon_set_pods: vn.spec.daemon_set_pods.map_or(by_default, |d| d == DaemonSetPods::Run),
            reject_unsupported: vn.spec.unsupported_fields == UnsupportedFields::Reject,
        }
    }

    /// Writes what is known into the VirtualNode's status, if it differs. Returns when to look again, if counts
    /// of pods are held back.
    pub(super) async fn write_status_of(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
    ) -> kube::Result<Option<std::time::Duration>> {
        let pods = self.pods.counts(&agent.name);
        let (wanted, counts_written) = {
            let state = agent.state();
            let known = Known {
                vn,
                problems: &state.problems,
                reached: &state.reached,
                description: state.description.as_deref(),
                registered: state.node_uid.is_some(),
                endpoint: state.endpoint.as_ref(),
                pods,
                capabilities: agent.current_provider().map(|p| support::words(&p.capabilities())).unwrap_or_default(),
                shard: &self.config.identity,
            };
            (plan::status(&known, Timestamp::now()), state.counts_written)
        };
        let before = json!(vn.status.clone().unwrap_or_default());
        let Some(patch) = merge::diff(&before, &json!(wanted)) else { return Ok(None) };
        let only_counts = patch.as_object().is_some_and(|p| p.len() == 1 && p.contains_key("pods"));
        if only_counts && let Some(at) = counts_written {
            let left = plan::COUNTS_DELAY.saturating_sub(at.elapsed());
            if !left.is_zero() {
                return Ok(Some(left));
            }
        }
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = json!({"metadata": {"uid": vn.metadata.uid}, "status": patch});
        match within(api.patch_status(&agent.name, &params, &Patch::Merge(patch))).await {
            Err(error) if is_not_found(&error) => return Ok(None),
            answer => drop(answer?),
        }
        agent.state().counts_written = Some(Instant::now());
        self.tell(vn, agent, &wanted);
        Ok(None)
    }

    /// An event when a VirtualNode becomes ready or stops being so, and when the reason changes.
    fn tell(&self, vn: &VirtualNode, agent: &Agent, status: &crate::api::VirtualNodeStatus) {
        let Some(ready) = status.conditions.iter().find(|c| c.type_ == conditions::READY) else { return };
        let before = vn.status.as_ref().and_then(|s| s.conditions.iter().find(|c| c.type_ == conditions::READY));
        let told = agent.state().told.replace(ready.reason.clone());
        if before.is_some_and(|b| b.reason == ready.reason) || told.as_ref() == Some(&ready.reason) {
            return;
        }
        // Every node starts by waiting for its provider: nothing worth telling.
        if ready.reason == "NotYetKnown" || ready.reason == "NotRegistered" {
            return;
        }
        self.events.emit(reference(vn), ready.status != "True", &ready.reason, ready.message.clone());
    }
}

/// The VirtualNode as events name it.
pub(super) fn reference(vn: &VirtualNode) -> ObjectReference {
    vn.object_ref(&())
}
