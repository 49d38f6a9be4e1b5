//! The pods of all nodes of this process: what to do (pure) apart from doing it.
//!
//! ```text
//!  API server ──watch──▶ cache ──▶ queue ──▶ plan ──▶ run ──▶ provider
//!       ▲                  ▲                           │         │
//!       └──────────────────┼──── status, deletion ─────┘         │
//!                          └──────────── observations ───────────┘
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`watch`] | the bound pods: one watch for the whole fleet, or one for each node |
//! | [`cache`] | what is known of each pod, by node and uid |
//! | [`node`] | one node of ours |
//! | [`packed`] | a pod at rest, in a tenth of the memory |
//! | [`plan`] | pure: from what is known to the next step |
//! | [`run`] | hands out the steps; [`steps`] call providers, [`story`] tells the API server, [`adopt`] compares |
//! | [`admission`] | pure: whether a node takes a pod |
//! | [`support`] | pure: what of a pod its provider cannot do |
//! | [`status`] | pure: from an observation to `status` |
//! | [`resolve`] | from a pod to all that its provider needs: [`environment`], [`volumes`], [`pull`] |
//! | [`objects`], [`services`] | what that is read from |
//! | [`feed`] | changes of it reach running pods |
//! | [`outage`] | what waits for somebody to answer again |
//!
//! A pod is one key of one queue. Only one step of a pod is under way at any time, so a status never
//! overtakes an older one. A node's calls to its provider are bounded in number and time, and a call that
//! is slow gives its worker's place back: a hanging provider delays nobody else's pods.

mod admission;
mod adopt;
pub mod cache;
mod environment;
mod facts;
#[cfg(test)]
mod fake_api;
mod feed;
mod node;
mod objects;
mod outage;
pub mod packed;
mod plan;
mod pull;
pub(crate) mod quantity;
#[cfg(test)]
mod refusal_tests;
mod resolve;
mod run;
#[cfg(test)]
mod run_tests;
mod services;
pub mod status;
mod steps;
mod story;
pub mod support;
#[cfg(test)]
mod test_world;
#[cfg(test)]
mod volume_tests;
mod volumes;
mod watch;
#[cfg(test)]
mod watch_tests;
mod write;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, Semaphore, watch as watch_channel};
use tokio_util::sync::CancellationToken;

use crate::api::virtual_node::PodCounts;
use crate::cluster::events::EventWriter;
use crate::cluster::fence::Hold;
use crate::cluster::identity::{NodeClient, NodeIdentity};
use crate::cluster::queue::{Backoff, WorkQueue};
use crate::provider::{PodEvent, PodNotifier, PodObservation, PodRef, Provider};
pub(crate) use admission::is_static;
use cache::Cache;
pub use facts::NodeFacts;
use feed::Feed;
use outage::Outage;
use resolve::Sources;
pub use watch::PodWatch;

/// How the pod controller works.
#[derive(Clone)]
pub struct PodConfig {
    /// Called with a node's name when its [`PodController::counts`] may have changed. Must not block.
    pub on_counts: Arc<dyn Fn(&str) + Send + Sync>,
    /// Steps that run at a time, slow provider calls not counted. Default 32.
    pub workers: usize,
    /// The longest a call to a provider may take. Default 30 s.
    pub call_deadline: Duration,
    /// Calls under way at one provider at a time. Default 16.
    pub per_node_calls: usize,
    /// How often providers that do not notify are asked for their pods. Default 5 s.
    pub poll_interval: Duration,
    /// How often the others are, to find pods that vanished. Default 5 min.
    pub resync_interval: Duration,
    /// In whose name Secrets, ConfigMaps and tokens of pods are read. Default: the operator's.
    pub identity: NodeIdentity,
    /// How the pods are watched. Default: by the number of nodes.
    pub watch: PodWatch,
    /// How the delay of a pod that keeps failing grows. Default 1 s to 5 min.
    pub backoff: Backoff,
}

impl Default for PodConfig {
    fn default() -> Self {
        Self {
            on_counts: Arc::new(|_| {}),
            workers: 32,
            call_deadline: Duration::from_secs(30),
            per_node_calls: 16,
            poll_interval: Duration::from_secs(5),
            resync_interval: Duration::from_secs(300),
            identity: NodeIdentity::default(),
            watch: PodWatch::default(),
            backoff: Backoff { base: Duration::from_secs(1), max: Duration::from_secs(300) },
        }
    }
}

/// A node whose pods are to be run.
#[derive(Clone)]
pub struct NodeHandle {
    /// The Node's name.
    pub name: Arc<str>,
    /// The VirtualNode's uid.
    pub uid: Arc<str>,
    /// What runs the pods.
    pub provider: Arc<dyn Provider>,
    /// `status.hostIP` of the pods, unless the provider knows better.
    pub host_ip: IpAddr,
    /// What decides which pods the node takes.
    pub facts: Arc<NodeFacts>,
    /// The right to act for the node. While it is not valid, nothing is done.
    pub hold: Arc<Hold>,
}

/// Runs the pods of every node of this process.
pub struct PodController {
    client: kube::Client,
    config: PodConfig,
    cache: Cache,
    queue: Arc<WorkQueue<Key>>,
    events: EventWriter,
    sources: Arc<Sources>,
    feed: Arc<Feed>,
    /// What waits for the API server to answer again.
    api: Outage<Key>,
    workers: Arc<Semaphore>,
    /// Whether the shared watch has brought every bound pod; marked as changed when a node's own watch has.
    synced: watch_channel::Sender<bool>,
    nodes_changed: Notify,
}

/// What the queue hands out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The next step of a pod.
    Pod(Arc<str>),
    /// Compare all pods of a node with what its provider has.
    Node(Arc<str>),
    /// A pod at a node's provider that the cluster does not know.
    Stray(Arc<str>, crate::provider::PodRef),
}

impl PodController {
    /// A controller without nodes. Nothing happens before [`run`](Self::run).
    pub fn new(client: kube::Client, config: PodConfig) -> Arc<Self> {
        Arc::new(Self {
            events: EventWriter::new(client.clone()),
            sources: Arc::new(Sources::new(NodeClient::new(client.clone(), config.identity))),
            feed: Arc::new(Feed::new()),
            api: Outage::default(),
            queue: WorkQueue::new(config.backoff).named("pods"),
            workers: Arc::new(Semaphore::new(config.workers.max(1))),
            synced: watch_channel::Sender::new(false),
            nodes_changed: Notify::new(),
            cache: Cache::default(),
            client,
            config,
        })
    }

    /// Watches and reconciles until `shutdown`. Pods keep running at their providers.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let watching = self.clone().watch(shutdown.clone());
        let working = self.clone().work(shutdown.clone());
        let events = self.events.run(shutdown.clone());
        let services = self.sources.services.run(self.client.clone(), shutdown.clone());
        let controller = Arc::downgrade(&self);
        let stale = move |uid: &Arc<str>| {
            if let Some(controller) = controller.upgrade() {
                controller.stale(uid);
            }
        };
        let feeding = self.feed.run(self.sources.clone(), stale, shutdown.clone());
        tokio::join!(watching, working, events, services, feeding);
    }

    /// Where the provider of a node tells of changes. May be made before [`add_node`](Self::add_node).
    pub fn notifier(self: &Arc<Self>, node: &Arc<str>) -> Arc<dyn PodNotifier> {
        Arc::new(NodeNotifier { controller: Arc::downgrade(self), node: node.clone() })
    }

    /// Begins to run a node's pods, or replaces the handle of a node that is there.
    pub fn add_node(&self, node: NodeHandle) {
        let name = node.name.clone();
        self.cache.add_node(node, self.config.per_node_calls);
        self.nodes_changed.notify_one();
        self.queue.add(Key::Node(name));
    }

    /// Puts another provider under a node's pods, which are then compared with what it has.
    pub fn swap_provider(&self, node: &str, provider: Arc<dyn Provider>) {
        if let Some(node) = self.cache.node(node) {
            node.set_provider(provider);
            self.queue.add(Key::Node(node.name.clone()));
        }
    }

    /// Changes what decides which pods the node takes. Pods that it has keep running.
    pub fn set_facts(&self, node: &str, facts: Arc<NodeFacts>) {
        if let Some(node) = self.cache.node(node)
            && node.set_facts(facts)
        {
            self.requeue(&node.name);
        }
    }

    /// Changes the `hostIP` of a node's pods.
    pub fn set_host_ip(&self, node: &str, host_ip: IpAddr) {
        if let Some(node) = self.cache.node(node)
            && node.set_host_ip(host_ip)
        {
            self.requeue(&node.name);
        }
    }

    /// While true, no pod of the node is started, changed, stopped or reported.
    pub fn set_paused(&self, node: &str, paused: bool) {
        if let Some(node) = self.cache.node(node)
            && node.set_paused(paused)
            && !paused
        {
            self.resume(&node.name);
        }
    }

    /// While false, the provider of the node is not called and its pods are left as they are.
    pub fn set_reachable(&self, node: &str, reachable: bool) {
        if let Some(node) = self.cache.node(node)
            && node.set_reachable(reachable)
            && reachable
        {
            self.resume(&node.name);
        }
    }

    /// Goes on at once with a node that had to wait, as one whose hold is valid again.
    pub fn resume(&self, node: &str) {
        if let Some(node) = self.cache.node(node) {
            // Their back-offs were for the time of silence.
            let pods = self.cache.uids(&node.name).into_iter().map(Key::Pod);
            self.release(pods.chain([Key::Node(node.name.clone())]));
        }
    }

    /// Stops reconciling a node's pods and forgets them. They stay as they are, for another replica.
    pub fn release_node(&self, node: &str) {
        self.drop_node(node);
    }

    fn drop_node(&self, node: &str) -> Option<Arc<node::NodeState>> {
        for uid in self.cache.uids(node) {
            self.feed.forget(&uid);
            self.sources.tokens.forget(&uid);
        }
        let node = self.cache.remove_node(node)?;
        self.nodes_changed.notify_one();
        self.queue.forget(&Key::Node(node.name.clone()));
        Some(node)
    }

    /// Stops reconciling a node's pods. Whatever its provider still has of them is removed there, as far as
    /// that succeeds within `deadline`; returns how many pods could not be removed.
    pub async fn remove_node(&self, node: &str, deadline: Duration) -> usize {
        let Some(node) = self.drop_node(node) else { return 0 };
        self.clear_node(&node, deadline).await
    }

    /// How many pods are on the node.
    pub fn counts(&self, node: &str) -> PodCounts {
        self.cache.counts(node)
    }

    /// The pods bound to the node, as the API server last had them.
    pub fn pods(&self, node: &str) -> Vec<Arc<Pod>> {
        self.cache.pods(node)
    }

    /// True when [`pods`](Self::pods) has every pod of a node of ours, those included that the watch had passed over
    /// before the node was.
    pub fn has_all(&self, node: &str) -> bool {
        self.knows(node) && self.cache.node(node).is_some() && !self.cache.needs_listing(node)
    }

    /// The pods that the API server has of a node.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn list(&self, node: &str) -> Result<Vec<Arc<Pod>>, String> {
        Ok(write::list_of_node(&self.client, node).await?.into_iter().map(Arc::new).collect())
    }

    /// A pod that is bound to the node.
    pub fn find(&self, node: &str, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.cache.find(node, namespace, name)
    }

    /// Returns once a pod of the node has changed since the future was first polled, or the node is not ours.
    pub async fn changed(&self, node: &str) {
        if let Some(state) = self.cache.node(node) {
            state.changed.notified().await;
        }
    }

    /// True once every pod of every node has been seen.
    pub fn synced(&self) -> bool {
        *self.synced.borrow() || self.cache.nodes().iter().all(|n| n.seen())
    }

    /// True once every pod of the node has been seen, and of one that has not been added: nothing of it is known.
    pub fn knows(&self, node: &str) -> bool {
        *self.synced.borrow() || self.cache.node(node).is_none_or(|n| n.seen())
    }

    /// Waits until it [knows](Self::knows) the node.
    pub async fn wait_known(&self, node: &str) {
        // Fails only when the sender is gone, which this controller owns.
        let _ = self.synced.subscribe().wait_for(|all| *all || self.cache.node(node).is_none_or(|n| n.seen())).await;
    }

    /// Something that a pod's files are made from has changed.
    fn stale(&self, uid: &Arc<str>) {
        match self.cache.entry(uid) {
            Some(entry) => {
                cache::guard(&entry.record).stale = true;
                self.queue.add(Key::Pod(uid.clone()));
            }
            None => self.feed.forget(uid),
        }
    }

    fn requeue(&self, node: &str) {
        for uid in self.cache.uids(node) {
            self.queue.add(Key::Pod(uid));
        }
    }

    fn observed(&self, node: &Arc<str>, observation: PodObservation) {
        let uid = observation.pod.uid.clone();
        if self.cache.observe(node, observation, None) {
            self.queue.add(Key::Pod(uid));
        }
    }

    fn missed(&self, node: &Arc<str>, pod: &PodRef) {
        if self.cache.doubt(node, &pod.uid) {
            self.queue.add(Key::Pod(pod.uid.clone()));
        }
    }
}

struct NodeNotifier {
    controller: std::sync::Weak<PodController>,
    node: Arc<str>,
}

impl PodNotifier for NodeNotifier {
    fn changed(&self, observation: PodObservation) {
        if let Some(controller) = self.controller.upgrade() {
            controller.observed(&self.node, observation);
        }
    }

    fn missing(&self, pod: &PodRef) {
        if let Some(controller) = self.controller.upgrade() {
            controller.missed(&self.node, pod);
        }
    }

    fn event(&self, event: PodEvent) {
        if let Some(controller) = self.controller.upgrade() {
            controller.told(event);
        }
    }
}
