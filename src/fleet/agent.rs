//! What is known of one node of the fleet. It owns no task and no timer.

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::drain::Progress;
use super::plan::{Problem, Reached};
use super::shard::lock::Held;
use crate::api::ProviderSpec;
use crate::cluster::fence::Hold;
use crate::kubelet::{Listening, NodeBackend};
use crate::node::render::Endpoint;
use crate::pod::PodController;
use crate::provider::{NodeDescription, Provider};
use crate::telemetry::metrics::metrics;

/// One node of the fleet.
pub struct Agent {
    /// The VirtualNode's and the Node's name.
    pub name: Arc<str>,
    /// The VirtualNode's uid.
    pub uid: Arc<str>,
    /// The right to act for it.
    pub hold: Arc<Hold>,
    /// How often the node has changed hands, for providers that can tell an older owner from a newer one.
    pub epoch: AtomicI64,
    provider: ArcSwapOption<Arc<dyn Provider>>,
    /// The addresses that the Node publishes.
    names: ArcSwap<Vec<String>>,
    pods: Arc<PodController>,
    state: Mutex<State>,
}

/// The changing part of an [`Agent`].
#[derive(Default)]
pub struct State {
    /// The configuration that the provider was made from, and the version of its credentials.
    pub built_from: Option<(ProviderSpec, Option<String>)>,
    /// What the provider said of the machine behind the node.
    pub description: Option<Arc<NodeDescription>>,
    /// When it said so.
    pub described: Option<Instant>,
    /// Whether the provider answers.
    pub reached: Reached,
    /// Since when it does not.
    pub unreachable_since: Option<Instant>,
    /// The open port.
    pub listening: Option<Listening>,
    /// The port is one that nodes share.
    pub shares_port: bool,
    /// The state of its certificate as metrics count it.
    pub certificate: Option<&'static str>,
    /// Until when its own certificate is valid, where it has one.
    pub certificate_until: Option<Timestamp>,
    /// Where the kubelet API is, once it listens.
    pub endpoint: Option<Endpoint>,
    /// The uid of the Node that is ours.
    pub node_uid: Option<Arc<str>>,
    /// The digest of the Node's status as we last wrote it, and when.
    pub written: Option<(u64, Instant)>,
    /// The node's Lease, while it is ours.
    pub(super) held: Option<Held>,
    /// When the Lease was last renewed.
    pub renewed: Option<Instant>,
    /// The Node and its Lease are being deleted: the Lease is not to come back.
    pub leaving: bool,
    /// The pod controller runs this node's pods.
    pub runs_pods: bool,
    /// What stands in the way, by part.
    pub problems: Problems,
    /// What was last told in an event, so that a repeated look does not repeat it.
    pub told: Option<String>,
    /// When a status that only counts pods was last written.
    pub counts_written: Option<Instant>,
    /// When such a status may be written that waits for its turn.
    pub counts_turn: Option<Instant>,
    /// How far a drain of the node has come, while there is one.
    pub(super) drained: Option<Progress>,
    /// The deadline of a deletion has passed and what was left behind has been told.
    pub gave_up: bool,
    /// When the agent was made, for the order of events.
    pub since: Option<Timestamp>,
}

/// What stands in the way of a node, by the condition that says so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problems {
    /// `Accepted`
    pub accepted: Option<Problem>,
    /// `CredentialsReady`
    pub credentials: Option<Problem>,
    /// `ProviderReachable`, when the provider could not even be made.
    pub provider: Option<Problem>,
    /// `Registered`
    pub registered: Option<Problem>,
    /// `KubeletServing`
    pub kubelet: Option<Problem>,
}

impl Agent {
    /// An agent that has done nothing yet.
    pub fn new(name: Arc<str>, uid: Arc<str>, hold: Arc<Hold>, pods: Arc<PodController>) -> Self {
        let state = State { since: Some(Timestamp::now()), ..State::default() };
        Self {
            name,
            uid,
            hold,
            epoch: AtomicI64::new(0),
            provider: ArcSwapOption::empty(),
            names: ArcSwap::default(),
            pods,
            state: Mutex::new(state),
        }
    }

    /// Its state. Never held over an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider as it is now, if one could be made.
    pub fn current_provider(&self) -> Option<Arc<dyn Provider>> {
        self.provider.load_full().map(|p| (*p).clone())
    }

    /// Puts another provider under the node.
    pub fn set_provider(&self, provider: Arc<dyn Provider>) {
        self.provider.store(Some(Arc::new(provider)));
    }

    /// Notes which addresses the Node publishes; what was noted before when they are the same.
    pub fn set_names(&self, names: Vec<String>) -> Arc<Vec<String>> {
        let before = self.names.load_full();
        if *before == names {
            return before;
        }
        let names = Arc::new(names);
        self.names.store(names.clone());
        names
    }

    /// Counts the node among those whose certificate is in this state.
    pub fn note_certificate(&self, word: Option<&'static str>) {
        let before = std::mem::replace(&mut self.state().certificate, word);
        if before != word {
            if let Some(word) = before {
                metrics().certificates_in(word).dec();
            }
            if let Some(word) = word {
                metrics().certificates_in(word).inc();
            }
        }
    }

    /// Frees its port.
    pub fn close(&self) {
        self.state().listening = None;
    }
}

#[async_trait]
impl NodeBackend for Agent {
    fn name(&self) -> &str {
        &self.name
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.pods(&self.name)
    }

    fn serving_names(&self) -> Arc<Vec<String>> {
        self.names.load_full()
    }

    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.find(&self.name, namespace, name)
    }

    async fn changed(&self) {
        self.pods.changed(&self.name).await;
    }

    fn provider(&self) -> Arc<dyn Provider> {
        self.current_provider().unwrap_or_else(|| Arc::new(Absent))
    }
}

/// Stands in while there is no provider, as when the credentials are missing.
struct Absent;

#[async_trait]
impl Provider for Absent {
    fn capabilities(&self) -> crate::provider::Capabilities {
        crate::provider::Capabilities::default()
    }
    async fn create_pod(&self, _: &crate::provider::ResolvedPod) -> crate::provider::Result<()> {
        Err(absent())
    }
    async fn stop_pod(&self, _: &crate::provider::PodRef, _: std::time::Duration) -> crate::provider::Result<()> {
        Err(absent())
    }
    async fn remove_pod(&self, _: &crate::provider::PodRef) -> crate::provider::Result<()> {
        Err(absent())
    }
    async fn get_pod(&self, _: &crate::provider::PodRef) -> crate::provider::Result<crate::provider::PodObservation> {
        Err(absent())
    }
    async fn list_pods(&self) -> crate::provider::Result<Vec<crate::provider::PodObservation>> {
        Err(absent())
    }
    async fn ping(&self) -> crate::provider::Result<()> {
        Err(absent())
    }
}

fn absent() -> crate::provider::ProviderError {
    crate::provider::ProviderError::unavailable("it has not been set up yet")
}
