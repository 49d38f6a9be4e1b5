//! Brings one VirtualNode a step further.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio::time::Instant;

use super::agent::{Agent, Problems};
use super::drain::{Deadlines, Stage};
use super::plan::{self, Known, Problem};
use super::register::Failed;
use super::shard::Share;
use super::shard::lock::Claim;
use super::{Fleet, credentials, held, is_conflict, is_not_found, within};
use crate::api::virtual_node::{DaemonSetPods, KubeletMode, UnsupportedFields};
use crate::api::{ProviderType, VirtualNode, conditions, names};
use crate::cluster::merge;
use crate::cluster::queue::Outcome;
use crate::kubelet::Listening;
use crate::node::render::{self, Endpoint};
use crate::pod::{NodeFacts, NodeHandle, support};
use crate::provider::{NodeDescription, ProviderContext, registry};

/// How soon a node is looked at again while this replica does not know whose it is.
const LOST: Duration = Duration::from_secs(1);
/// How soon a name is looked at again that a foreign Node has.
const NAME_TAKEN: Duration = Duration::from_secs(30);
/// Ports of the range that are tried in a row when other programs have them.
const PORTS_TRIED: usize = 32;

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
        match (self.share(&name, &vn), self.agent(&name)) {
            (Share::Ours, _) => self.under_way.taken(&name),
            (Share::Theirs, Some(agent)) => return self.hand_over(&vn, &agent).await,
            (Share::Theirs, None) => {
                self.under_way.taken_by(&name, vn.status.as_ref().and_then(|s| s.shard.as_deref()));
                return Ok(Outcome::Done);
            }
            (Share::Unknown, _) => return Ok(Outcome::After(LOST)),
        }
        let leaving = vn.metadata.deletion_timestamp.is_some();
        if self.released.has(&vn) || leaving && !vn.finalizers().iter().any(|f| f == names::FINALIZER) {
            return Ok(Outcome::Done);
        }
        if !leaving && !self.ensure_finalizer(&vn).await? {
            return Ok(Outcome::Done);
        }
        let agent = self.agent_for(&name, &vn);
        if let Some(stranger) = self.stranger(&agent).await? {
            if leaving {
                return self.take_down(&vn, &agent, Ok(Outcome::Done)).await;
            }
            agent.state().problems = Problems { accepted: Some(stranger), ..Problems::default() };
            self.write_status_of(&vn, &agent).await?;
            // Its owner may give the name up; nobody tells us, since the Node carries no label of ours.
            return Ok(Outcome::After(NAME_TAKEN));
        }
        if let Claim::Wait(time) = self.acquire(&agent).await? {
            return Ok(Outcome::After(time));
        }
        let frozen = vn.spec.paused && !leaving;
        self.pods.set_paused(&name, frozen);
        let outcome =
            if frozen && agent.state().runs_pods { Ok(Outcome::Done) } else { self.bring_up(&vn, &agent).await };
        self.pods.set_paused(&name, frozen);
        if leaving {
            return self.take_down(&vn, &agent, outcome).await;
        }
        let draining = self.drain_on_request(&vn, &agent, frozen).await?;
        let written = self.write_status_of(&vn, &agent).await?;
        let outcome = outcome?;
        Ok(match (outcome, written.into_iter().chain(draining).min()) {
            (Outcome::Done, Some(later)) => Outcome::After(later),
            (outcome, _) => outcome,
        })
    }

    /// Empties the node if its spec asks for it. Returns when to look again.
    async fn drain_on_request(&self, vn: &VirtualNode, agent: &Agent, frozen: bool) -> kube::Result<Option<Duration>> {
        if !vn.spec.drain.requested {
            agent.state().drained = None;
            return Ok(None);
        }
        if frozen || agent.state().node_uid.is_none() || !self.pods.knows(&agent.name) {
            return Ok(None);
        }
        self.cordon(agent).await?;
        let conditions = vn.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        let begun = conditions.iter().find(|c| c.type_ == conditions::DRAINED && c.status == "False");
        let since = begun.map_or_else(Timestamp::now, |c| c.last_transition_time.0);
        let deadlines = Deadlines::on_request(&vn.spec.drain, &vn.spec.deletion_policy);
        let (stage, _, wait) = self.drain(vn, agent, deadlines, since).await?;
        Ok((stage != Stage::Done).then_some(wait))
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

    /// What is wrong when a Node of this name is there that is not ours.
    async fn stranger(&self, agent: &Agent) -> kube::Result<Option<Problem>> {
        if agent.state().node_uid.is_some() {
            return Ok(None);
        }
        let found = self.find_node(&agent.name).await?;
        Ok(found.filter(|live| !live.is_owned_by(&agent.uid)).map(|_| super::register::taken(&agent.name)))
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
                Ok(()) => {
                    self.ensure_certificate(vn, agent, description.as_deref(), &endpoint, problems);
                    self.run_pods(vn, agent, &endpoint);
                }
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
        if let Err(error) = registry::global().check(&vn.spec.provider) {
            problems.accepted = Some(Problem::new("UnknownProvider", error.to_string()));
            return Outcome::Retry;
        }
        let context = ProviderContext {
            node: agent.name.clone(),
            node_uid: agent.uid.clone(),
            notifier: self.pods.notifier(&agent.name),
            epoch: agent.epoch.load(std::sync::atomic::Ordering::Acquire),
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
                let mut message = error.to_string();
                if !message.starts_with("spec.") {
                    message.insert_str(0, "spec.provider: ");
                }
                problems.provider = Some(Problem::new("ProviderInvalid", message));
                Outcome::Retry
            }
        }
    }

    /// Lets the node have a certificate for what it publishes, and says what stands in the way.
    fn ensure_certificate(
        &self,
        vn: &VirtualNode,
        agent: &Agent,
        description: Option<&NodeDescription>,
        endpoint: &Endpoint,
        problems: &mut Problems,
    ) {
        let addresses = render::addresses(vn, description, endpoint);
        let names = agent.set_names(addresses.into_iter().map(|a| a.address).collect());
        // Until the provider has said where it is, the Node publishes what it did before.
        let settled = description.is_some() && agent.state().node_uid.is_some();
        if settled {
            self.serving.want(&agent.name, &names);
        }
        let (word, problem, until) = self.serving.state(&agent.name, &names);
        agent.note_certificate(Some(word));
        agent.state().certificate_until = until;
        problems.kubelet = problems.kubelet.take().or(problem);
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
        // What was shared before is no port of its own.
        let before = before.filter(|p| *p != self.config.kubelet_shared_port);
        let shares = vn.spec.kubelet.mode == KubeletMode::Shared;
        let (open, shared) = {
            let state = agent.state();
            (state.endpoint.clone(), state.shares_port)
        };
        if let Some(open) = open {
            if shared == shares && (shares || asked.is_none_or(|p| p == open.port)) {
                return Some(open);
            }
            let mut state = agent.state();
            state.listening = None;
            state.endpoint = None;
        }
        if shares {
            return self.share_port(agent, problems).await;
        }
        let mut port = match asked.or(before) {
            Some(port) if self.ports.claim(&agent.name, port) => Some(port),
            Some(port) if asked.is_some() => {
                let owner = self.ports.owner(port).unwrap_or_default();
                let message =
                    format!("spec.kubelet.port: port {port} is VirtualNode {owner}'s; choose another, or none");
                problems.kubelet = Some(Problem::new("PortTaken", message));
                return None;
            }
            _ => self.ports.take(&agent.name),
        };
        let mut refused = None;
        for _ in 0..PORTS_TRIED {
            let Some(wanted) = port else {
                let message = "every port of --kubelet-ports is in use; give the operator a larger range";
                refused = Some(Problem::new("NoPortLeft", message));
                break;
            };
            match self.kubelet.listen(agent.clone(), SocketAddr::new(self.config.bind_address, wanted)).await {
                Ok(listening) => return Some(self.listens(agent, listening, false)),
                Err(error) => {
                    let said = if asked.is_some() { "spec.kubelet.port: " } else { "" };
                    let message = format!("{said}port {wanted} cannot be opened: {error}");
                    refused = Some(Problem::new("PortTaken", message));
                }
            }
            self.ports.release(&agent.name);
            if asked.is_some() {
                break;
            }
            // Another program has this one, be it the one that the node had before: the next of the range will do.
            port = self.ports.take(&agent.name);
        }
        self.ports.release(&agent.name);
        problems.kubelet = refused;
        None
    }

    /// Gives the node its place at the port that nodes share.
    async fn share_port(&self, agent: &Arc<Agent>, problems: &mut Problems) -> Option<Endpoint> {
        self.ports.release(&agent.name);
        let port = self.config.kubelet_shared_port;
        match self.kubelet.share(agent.clone(), SocketAddr::new(self.config.bind_address, port)).await {
            Ok(listening) => Some(self.listens(agent, listening, true)),
            Err(error) => {
                let message = format!("--kubelet-shared-port: port {port} cannot be opened: {error}");
                problems.kubelet = Some(Problem::new("PortTaken", message));
                None
            }
        }
    }

    fn listens(&self, agent: &Agent, listening: Listening, shares_port: bool) -> Endpoint {
        let endpoint = Endpoint { ip: self.config.address(), port: listening.port() };
        let mut state = agent.state();
        state.listening = Some(listening);
        state.shares_port = shares_port;
        state.endpoint = Some(endpoint.clone());
        endpoint
    }

    /// Lets the pod controller run the node's pods.
    fn run_pods(&self, vn: &VirtualNode, agent: &Agent, endpoint: &Endpoint) {
        let Some(provider) = agent.current_provider() else { return };
        let facts = Arc::new(self.facts(vn, agent));
        // Held to the end: what the provider answers, and the node's loss, come before all of this or after it.
        let mut state = agent.state();
        if state.runs_pods {
            drop(state);
            return self.pods.set_facts(&agent.name, facts);
        }
        if state.node_uid.is_none() {
            return;
        }
        state.runs_pods = true;
        let handle = NodeHandle {
            name: agent.name.clone(),
            uid: agent.uid.clone(),
            hold: agent.hold.clone(),
            provider,
            host_ip: endpoint.ip,
            facts,
        };
        self.pods.add_node(handle);
        self.pods.set_reachable(&agent.name, state.reached == plan::Reached::Yes);
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
            provider: vn.spec.provider.name().into(),
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
    pub(super) async fn write_status_of(&self, vn: &VirtualNode, agent: &Agent) -> kube::Result<Option<Duration>> {
        // Before all of them have been seen, as after a restart, there are as many as there were.
        let pods = match self.pods.has_all(&agent.name) {
            true => self.pods.counts(&agent.name),
            false => vn.status.as_ref().and_then(|s| s.pods).unwrap_or_default(),
        };
        let wanted = {
            let state = agent.state();
            let known = Known {
                vn,
                problems: &state.problems,
                reached: &state.reached,
                description: state.description.as_deref(),
                registered: state.node_uid.is_some(),
                endpoint: state.endpoint.as_ref(),
                certificate_until: state.certificate_until,
                pods,
                capabilities: agent.current_provider().map(|p| support::words(&p.capabilities())).unwrap_or_default(),
                drained: state.drained.as_ref(),
                shard: &self.config.identity,
            };
            plan::status(&known, Timestamp::now())
        };
        let before = json!(vn.status.clone().unwrap_or_default());
        let Some(patch) = merge::diff(&before, &json!(wanted)) else { return Ok(None) };
        let only_counts = patch.as_object().is_some_and(|p| p.len() == 1 && p.contains_key("pods"));
        if only_counts {
            let mut state = agent.state();
            let written = state.counts_written;
            let turn = *state.counts_turn.get_or_insert_with(|| self.counts.turn(Instant::now()));
            let due = written.map_or(turn, |at| turn.max(at + plan::COUNTS_DELAY));
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Ok(Some(left));
            }
        }
        if let Some(alone) = &self.alone {
            self.change_own(alone, |vn| vn.status = Some(wanted.clone()));
            self.tell(vn, agent, &wanted);
            return Ok(None);
        }
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
        let patch = json!({"metadata": {"uid": vn.metadata.uid}, "status": patch});
        let patch = Patch::Merge(patch);
        let request = api.patch_status(&agent.name, &params, &patch);
        let stranger = agent.state().problems.accepted.is_some();
        // What has another Node's name has no Lease, and its VirtualNode is ours by share.
        let answer = if stranger { within(request).await } else { held(&agent.hold, request).await };
        match answer {
            Err(error) if is_not_found(&error) => return Ok(None),
            answer => drop(answer?),
        }
        {
            let mut state = agent.state();
            (state.counts_written, state.counts_turn) = (Some(Instant::now()), None);
        }
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
        if self.alone.is_some() {
            // There is no condition that anybody could look at.
            match &*ready.status {
                "True" => tracing::info!(node = %agent.name, reason = ready.reason, "{}", ready.message),
                _ => tracing::warn!(node = %agent.name, reason = ready.reason, "{}", ready.message),
            }
        }
        self.events.emit(self.regarding(vn), ready.status != "True", &ready.reason, ready.message.clone());
    }
}

/// The VirtualNode as events name it.
pub(super) fn reference(vn: &VirtualNode) -> ObjectReference {
    vn.object_ref(&())
}
