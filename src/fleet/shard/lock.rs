//! The node's own Lease as the lock: its holder runs the node.
//!
//! Every write carries the version that was last seen, so that of two who want a node one fails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::api::names::{FIELD_MANAGER, LEASE_NAMESPACE, LEASE_RENEWAL};
use crate::fleet::agent::Agent;
use crate::fleet::{Fleet, is_conflict, is_not_found, within};
use crate::node::lease::{self, Renewal};

/// How soon a node is looked at again whose Lease somebody else has just written.
const AGAIN: Duration = Duration::from_millis(500);
/// How soon a node is looked at again that a living replica should give up. It says so when it has.
const FALLBACK: Duration = Duration::from_secs(30);
/// Leases in one page of a list.
const PAGE: u32 = 500;

/// A node's Lease while it is ours.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::fleet) struct Held {
    /// `resourceVersion` of the Lease.
    pub version: String,
    /// The uid of the Node that owns it, once it does.
    pub node: Option<Arc<str>>,
}

/// What came of trying to take a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::fleet) enum Claim {
    /// It is ours.
    Held,
    /// It is not, and may be worth another look after this time.
    Wait(Duration),
}

/// A Lease as it was read.
#[derive(Clone, Debug, Default)]
struct Known {
    version: String,
    holder: String,
    transitions: i32,
    node: Option<Arc<str>>,
    read: Option<Instant>,
}

impl Known {
    fn of(lease: Lease, read: Instant) -> Self {
        let spec = lease.spec.unwrap_or_default();
        let owners = lease.metadata.owner_references.unwrap_or_default();
        Self {
            version: lease.metadata.resource_version.unwrap_or_default(),
            holder: spec.holder_identity.unwrap_or_default(),
            transitions: spec.lease_transitions.unwrap_or_default(),
            node: owners.into_iter().find(|o| o.kind == "Node").map(|o| o.uid.into()),
            read: Some(read),
        }
    }
}

/// Leases that were listed together, each used once: a replica that takes over many nodes reads them all at once.
#[derive(Default)]
pub(in crate::fleet) struct Listed(Mutex<HashMap<String, Known>>);

impl Listed {
    fn take(&self, node: &str) -> Option<Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node)
    }
}

impl Fleet {
    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), LEASE_NAMESPACE)
    }

    /// Reads the Leases of all nodes, so that they need not be read one by one.
    pub(in crate::fleet) async fn list_leases(&self) {
        let (api, read) = (self.leases(), Instant::now());
        let mut params = ListParams::default().limit(PAGE);
        let mut all = HashMap::new();
        loop {
            // What cannot be listed is read one by one.
            let Ok(page) = within(api.list(&params)).await else { break };
            for lease in page.items {
                let Some(name) = lease.metadata.name.clone() else { continue };
                all.insert(name, Known::of(lease, read));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        *self.listed.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// Takes the node's Lease, if nobody alive has it.
    pub(in crate::fleet) async fn acquire(&self, agent: &Agent) -> kube::Result<Claim> {
        if agent.hold.is_valid() {
            return Ok(Claim::Held);
        }
        let Some(term) = self.members.fence.term() else { return Ok(Claim::Wait(AGAIN)) };
        if agent.state().held.is_some() {
            // It was ours in an earlier term. The next beat says whether it still is.
            self.beats.add(agent.name.clone());
            return Ok(Claim::Wait(AGAIN));
        }
        let name = &*agent.name;
        let (api, me) = (self.leases(), &*self.config.identity);
        let known = match self.listed.take(name) {
            Some(known) => Some(known),
            // A node that never was has no Lease.
            None if self.nodes.get(name).is_none() => None,
            None => self.read_lease(name).await?,
        };
        let known = match known {
            Some(known) => known,
            None => {
                let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
                match within(api.create(&params, &lease::create(name, me, Timestamp::now()))).await {
                    Ok(lease) => {
                        self.took(agent, term, Known::of(lease, Instant::now()));
                        return Ok(Claim::Held);
                    }
                    Err(error) if is_conflict(&error) => match self.read_lease(name).await? {
                        Some(known) => known,
                        None => return Ok(Claim::Wait(AGAIN)),
                    },
                    Err(error) => return Err(error),
                }
            }
        };
        if !self.members.may_take_from(&known.holder, known.read.unwrap_or_else(Instant::now)).await? {
            return Ok(Claim::Wait(FALLBACK));
        }
        let transitions = known.transitions.saturating_add(i32::from(known.holder != me));
        let patch = lease::take(&known.version, me, transitions, Timestamp::now());
        match within(api.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Merge(patch))).await {
            Ok(lease) => {
                if known.holder != me && !known.holder.is_empty() {
                    tracing::info!(node = name, from = known.holder, "taken over");
                }
                self.took(agent, term, Known::of(lease, Instant::now()));
                Ok(Claim::Held)
            }
            Err(error) if is_conflict(&error) || is_not_found(&error) => Ok(Claim::Wait(AGAIN)),
            Err(error) => Err(error),
        }
    }

    async fn read_lease(&self, name: &str) -> kube::Result<Option<Known>> {
        let read = Instant::now();
        Ok(within(self.leases().get_opt(name)).await?.map(|lease| Known::of(lease, read)))
    }

    fn took(&self, agent: &Agent, term: u64, known: Known) {
        agent.state().held = Some(Held { version: known.version, node: known.node });
        agent.epoch.store(i64::from(known.transitions), std::sync::atomic::Ordering::Release);
        agent.hold.confirm(term);
        // It has just been renewed. The Node, once it is there, hurries the next beat to become the Lease's owner.
        self.beats.add_after(agent.name.clone(), LEASE_RENEWAL);
    }

    /// Renews the node's Lease. False when it is somebody else's.
    pub(in crate::fleet) async fn renew_lease(&self, agent: &Agent, term: u64) -> kube::Result<bool> {
        let (held, node) = {
            let state = agent.state();
            (state.held.clone(), state.node_uid.clone())
        };
        let Some(mut held) = held else { return Ok(false) };
        let (api, name) = (self.leases(), &*agent.name);
        // A second try comes with the version that somebody else's write has left, once.
        for last in [false, true] {
            let adopt = node.as_ref().filter(|node| held.node.as_ref() != Some(*node));
            let renewal = Renewal { version: &held.version, node: adopt.map(|uid| (name, &**uid)) };
            let patch = Patch::Merge(lease::renew(&renewal, Timestamp::now()));
            match api.patch_metadata(name, &PatchParams::apply(FIELD_MANAGER), &patch).await {
                Ok(meta) => {
                    held.version = meta.metadata.resource_version.unwrap_or_default();
                    held.node = node.or(held.node);
                    agent.state().held = Some(held);
                    if agent.hold.confirm(term) {
                        self.pods.resume(name);
                        self.queue.add(agent.name.clone());
                    }
                    return Ok(true);
                }
                Err(error) if is_conflict(&error) && !last => match self.read_lease(name).await? {
                    Some(known) if known.holder == self.config.identity => {
                        held = Held { version: known.version, node: known.node };
                    }
                    _ => return Ok(false),
                },
                Err(error) if is_not_found(&error) => {
                    // Gone with its Node, or deleted by hand: whoever creates it first has it.
                    agent.state().held = None;
                    if agent.state().leaving {
                        return Ok(true);
                    }
                    agent.hold.revoke();
                    return Ok(self.acquire_anew(agent).await? == Claim::Held);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn acquire_anew(&self, agent: &Agent) -> kube::Result<Claim> {
        let claim = self.acquire(agent).await?;
        if claim == Claim::Held {
            self.pods.resume(&agent.name);
            self.queue.add(agent.name.clone());
        }
        Ok(claim)
    }

    /// Gives the Lease up, so that the next owner need not wait.
    pub(in crate::fleet) async fn release_lease(&self, agent: &Agent) -> kube::Result<()> {
        let Some(held) = agent.state().held.clone() else { return Ok(()) };
        let patch = json!({"metadata": {"resourceVersion": held.version}, "spec": {"holderIdentity": null}});
        let params = PatchParams::apply(FIELD_MANAGER);
        match within(self.leases().patch_metadata(&agent.name, &params, &Patch::Merge(patch))).await {
            Err(error) if !is_conflict(&error) && !is_not_found(&error) => Err(error),
            _ => {
                agent.state().held = None;
                Ok(())
            }
        }
    }
}
