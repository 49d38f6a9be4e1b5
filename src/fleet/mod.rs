//! The controller: every `VirtualNode` becomes an agent of this process, and its state goes back into its
//! status.
//!
//! ```text
//!  VirtualNodes ─watch─┐                    ┌▶ node::ownership ─▶ Node
//!  Nodes        ─watch─┼▶ queue ▶ reconcile ┼▶ kubelet listener, pods::add_node
//!  probes, pods, ports ┘        (one name)  └▶ plan ─▶ VirtualNode status
//!
//!  heartbeat queue ─▶ Lease every 10 s        probe queue ─▶ Provider::ping every 10 s
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`] | pure: from what is known of a node to the conditions of its VirtualNode |
//! | [`agent`] | what is known of one node |
//! | [`ports`] | which node has which port |
//! | `reconcile` | brings one VirtualNode a step further |
//! | `register` | its Node |
//! | `serving` | its serving certificate |
//! | `drain` | empties it, with a contract |
//! | `teardown` | takes it down again |
//! | `beat` | Leases and probes, each one queue for the whole fleet |
//! | `pace` | how fast counts of pods are written |
//! | [`alone`] | one node without custom resources |
//! | `set` | VirtualNodeSets: so many VirtualNodes of one template |
//! | [`shard`] | which replica runs which node |
//! | `view` | what the fleet page, metrics and `/debug` are shown |
//! | `credentials` | the Secrets that VirtualNodes name, read by name |
//!
//! Every step is level-triggered: it looks at what is there and does what is missing. So a restart, a lost
//! watch event or an edit in the middle of anything needs no code of its own.

pub mod agent;
pub mod alone;
mod beat;
mod credentials;
mod drain;
mod pace;
pub mod plan;
pub mod ports;
mod reconcile;
mod register;
mod serving;
mod set;
pub(crate) mod shard;
mod teardown;
mod view;

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::api::VirtualNode;
use crate::api::virtual_node::KubeletMode;
use crate::cluster::events::EventWriter;
use crate::cluster::fence::Hold;
use crate::cluster::identity::NodeIdentity;
use crate::cluster::queue::{Backoff, WorkQueue};
use crate::cluster::watch::watch;
use crate::kubelet::KubeletServer;
use crate::kubelet::auth::{Auth, AuthOptions};
use crate::node::live::LiveNodes;
use crate::pod::{PodConfig, PodController, PodWatch};
use crate::telemetry::health::Readiness;
use crate::tls::CertSource;
use agent::Agent;
use alone::{Alone, OneNode};
use pace::Pace;
use ports::Ports;
use serving::Serving;
use set::Sets;
use shard::Share;
use shard::handover::UnderWay;
use shard::lock::Listed;
use shard::members::Members;
use teardown::Released;

/// No request of ours may take longer.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How many VirtualNodes are worked on at a time.
const WORKERS: usize = 24;

/// How the operator runs its fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// This replica's name, `status.shard` of its nodes.
    pub identity: String,
    /// The operator's own namespace, the only one that credentials come from.
    pub namespace: String,
    /// The address of this process, which Nodes publish.
    pub node_ip: IpAddr,
    /// The address that Nodes publish in its place, behind NAT or a Service.
    pub advertise_address: Option<IpAddr>,
    /// The address that kubelet listeners bind.
    pub bind_address: IpAddr,
    /// Ports of nodes whose spec names none.
    pub kubelet_ports: RangeInclusive<u16>,
    /// The port of nodes with `kubelet.mode: Shared`.
    pub kubelet_shared_port: u16,
    /// Where serving certificates come from.
    pub serving_cert: CertSource,
    /// In whose name Secrets, ConfigMaps and tokens of pods are read.
    pub node_identity: NodeIdentity,
    /// How the pods of the nodes are watched.
    pub pod_watch: PodWatch,
    /// How long a provider may be unreachable before its Node is NotReady.
    pub provider_grace: Duration,
    /// Limits of exec, attach and port-forward.
    pub streams: crate::kubelet::StreamOptions,
    /// PEM of the authorities whose client certificates name users at the kubelet API; the cluster's own without it.
    pub client_ca: Option<String>,
}

impl FleetConfig {
    /// The address that Nodes publish.
    pub(crate) fn address(&self) -> IpAddr {
        self.advertise_address.unwrap_or(self.node_ip)
    }
}

/// Why the fleet ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// No serving certificate could be made.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// Another process has started under this one's name.
    #[error("another operator has started under the name {0:?}; give each its own (--identity)")]
    Replaced(String),
}

/// Everything that the parts of the controller share.
pub(crate) struct Fleet {
    client: Client,
    config: FleetConfig,
    virtual_nodes: Store<VirtualNode>,
    nodes: LiveNodes,
    /// The replicas of the operator, this one among them.
    members: Arc<Members>,
    listed: Listed,
    under_way: UnderWay,
    pods: Arc<PodController>,
    kubelet: Arc<KubeletServer>,
    ports: Ports,
    serving: Arc<Serving>,
    events: EventWriter,
    agents: RwLock<HashMap<Arc<str>, Arc<Agent>>>,
    sets: Sets,
    released: Released,
    /// The one node of a process without a fleet.
    alone: Option<Alone>,
    /// VirtualNodes to look at.
    queue: Arc<WorkQueue<Arc<str>>>,
    /// Leases to renew.
    beats: Arc<WorkQueue<Arc<str>>>,
    /// Providers to ask whether they are there.
    probes: Arc<WorkQueue<Arc<str>>>,
    /// Statuses that only count pods.
    counts: Pace,
}

/// Runs the fleet until `shutdown`. Leases, Nodes and pods stay as they are, for the next process.
///
/// # Errors
/// When it cannot start. What goes wrong with one node becomes a condition of that node.
pub async fn run(
    client: Client,
    config: FleetConfig,
    readiness: &Readiness,
    shutdown: CancellationToken,
) -> Result<(), FleetError> {
    run_fleet(client, config, None, readiness, shutdown).await
}

async fn run_fleet(
    client: Client,
    config: FleetConfig,
    one: Option<OneNode>,
    readiness: &Readiness,
    asked_to_stop: CancellationToken,
) -> Result<(), FleetError> {
    // A node that is to be deleted at the end needs everything until then.
    let shutdown = if one.is_some() { CancellationToken::new() } else { asked_to_stop.clone() };
    let only = one.as_ref().map(|one| Arc::from(one.name.as_str()));
    let synced = readiness.register("virtualnodes");
    synced.not_ready("the VirtualNodes have not been listed yet");
    let auth = Auth::new(client.clone(), AuthOptions { client_ca: config.client_ca.clone(), ..AuthOptions::default() });
    let options = crate::kubelet::KubeletOptions { streams: config.streams.clone(), ..Default::default() };
    let queue = WorkQueue::new(Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) });
    let queue = queue.named("virtualnodes");
    let addresses = [config.address(), config.node_ip];
    let (source, namespace) = (config.serving_cert.clone(), config.namespace.clone());
    let serving = Arc::new(Serving::new(client.clone(), source, namespace, &addresses, queue.clone()));
    let kubelet = KubeletServer::new(auth.clone(), serving.certs.clone(), options);
    let (on_counts, identity) = (on_counts(&queue), config.node_identity);
    let pods = PodController::new(
        client.clone(),
        PodConfig { on_counts, identity, watch: config.pod_watch, ..PodConfig::default() },
    );
    let (store, writer) = reflector::store();
    let (sets, sets_writer) = reflector::store();

    let (alone, writer) = match one {
        Some(one) => (Some(Alone::new(one, writer)), None),
        None => (None, Some(writer)),
    };

    let fleet = Arc::new(Fleet {
        alone,
        ports: Ports::new(config.kubelet_ports.clone()),
        serving,
        events: EventWriter::new(client.clone()),
        beats: WorkQueue::on_a_grid(beat::BACKOFF, beat::GRID).named("leases"),
        probes: WorkQueue::on_a_grid(beat::BACKOFF, beat::GRID).named("probes"),
        counts: Pace::default(),
        nodes: LiveNodes::default(),
        sets: Sets {
            store: sets,
            queue: WorkQueue::new(Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) }),
            expected: Default::default(),
        },
        members: match only {
            Some(_) => Members::alone(client.clone(), &config.identity),
            None => Members::new(client.clone(), &config.namespace, &config.identity),
        },
        listed: Listed::default(),
        released: Released::default(),
        under_way: UnderWay::default(),
        agents: RwLock::default(),
        virtual_nodes: store,
        client,
        config,
        pods,
        kubelet,
        queue,
    });

    readiness.show(Arc::new(view::View { fleet: fleet.clone(), auth: auth.clone() }));
    let watching = {
        let (fleet, stop) = (fleet.clone(), shutdown.clone());
        async move {
            match (&fleet.alone, writer) {
                (Some(alone), _) => fleet.wait_alone(alone, &asked_to_stop, &stop).await,
                (None, Some(writer)) => {
                    let sets = fleet.clone().watch_sets(sets_writer, stop.clone());
                    tokio::join!(fleet.clone().watch(writer, stop), sets);
                }
                (None, None) => {}
            }
        }
    };
    let nodes = {
        let fleet = fleet.clone();
        let queue = fleet.queue.clone();
        let shutdown = shutdown.clone();
        async move { fleet.nodes.run(fleet.client.clone(), only.as_deref(), |name| queue.add(name.into()), shutdown).await }
    };
    let working = {
        let (fleet, shutdown) = (fleet.clone(), shutdown.clone());
        async move {
            let both = async {
                // Otherwise a node that is there would look as if it had to be created.
                fleet.nodes.wait_synced().await;
                let _ = fleet.virtual_nodes.wait_until_ready().await;
                fleet.serving.wait_settled().await;
                fleet.members.wait_joined().await;
                if fleet.alone.is_none() {
                    fleet.list_leases().await;
                }
            };
            if shutdown.run_until_cancelled(both).await.is_none() {
                return;
            }
            fleet.first_come_first_served();
            synced.ready();
            let queue = fleet.queue.clone();
            let sets = fleet.clone();
            let sets = async {
                if sets.alone.is_none() {
                    sets.clone().run_sets(shutdown.clone()).await;
                }
            };
            let nodes = queue.run(WORKERS, shutdown.clone(), move |name| {
                let span = tracing::info_span!("reconcile virtual node", node = %name);
                reconcile::reconcile(fleet.clone(), name).instrument(span)
            });
            tokio::join!(sets, nodes);
        }
    };
    let events = fleet.events.clone();
    // A replica keeps its place until its last step is done.
    let left = CancellationToken::new();
    let members = {
        let (fleet, left) = (fleet.clone(), left.clone());
        async move { fleet.members.clone().run(|news| fleet.on_news(news), left).await }
    };
    let replaced = async {
        if shutdown.run_until_cancelled(fleet.members.replaced().cancelled()).await.is_some() {
            shutdown.cancel();
        }
    };
    let everything = async {
        tokio::join!(
            watching,
            nodes,
            working,
            fleet.clone().beat(shutdown.clone()),
            fleet.clone().probe(shutdown.clone()),
            auth.run(shutdown.clone()),
            fleet.kubelet.clone().run(shutdown.clone()),
            fleet.serving.clone().run(shutdown.clone()),
            fleet.pods.clone().run(shutdown.clone()),
            events.run(shutdown.clone()),
            replaced,
        );
        left.cancel();
    };
    tokio::join!(everything, members);
    if fleet.members.replaced().is_cancelled() {
        return Err(FleetError::Replaced(fleet.config.identity.clone()));
    }
    Ok(())
}

/// Counts of pods change all the time while a fleet fills; they are written together.
fn on_counts(queue: &Arc<WorkQueue<Arc<str>>>) -> Arc<dyn Fn(&str) + Send + Sync> {
    let queue = queue.clone();
    Arc::new(move |node| queue.add_after(node.into(), plan::COUNTS_DELAY))
}

impl Fleet {
    async fn watch(self: Arc<Self>, writer: reflector::store::Writer<VirtualNode>, shutdown: CancellationToken) {
        let api: Api<VirtualNode> = Api::all(self.client.clone());
        let config = watcher::Config::default().streaming_lists();
        let events = watch(api, config).modify(|vn| {
            vn.managed_fields_mut().clear();
            vn.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
        });
        let mut events = events.reflect(writer).boxed();
        let mut known: std::collections::HashSet<String> = Default::default();
        let mut listed: Option<std::collections::HashSet<String>> = None;
        while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Init) => listed = Some(Default::default()),
                Ok(watcher::Event::InitApply(vn)) => {
                    listed.get_or_insert_default().insert(vn.name_any());
                }
                Ok(watcher::Event::InitDone) => {
                    let now = listed.take().unwrap_or_default();
                    // Those that vanished during a disconnection included.
                    known.union(&now).for_each(|n| self.queue.add(n.as_str().into()));
                    known = now;
                    self.all_sets();
                }
                Ok(watcher::Event::Apply(vn)) => {
                    self.look_at_set_of(&vn);
                    known.insert(vn.name_any());
                    self.queue.add(vn.name_any().into());
                }
                Ok(watcher::Event::Delete(vn)) => {
                    self.look_at_set_of(&vn);
                    known.remove(&vn.name_any());
                    self.queue.add(vn.name_any().into());
                }
                Err(error) => tracing::warn!(%error, "the watch of VirtualNodes is interrupted; is the CRD installed?"),
            }
        }
    }

    /// Ports that nodes already have are theirs before any port is given out.
    fn first_come_first_served(&self) {
        let mut all = self.virtual_nodes.state();
        all.sort_by_key(|vn| (vn.metadata.creation_timestamp.as_ref().map(|t| t.0), vn.name_any()));
        for vn in all {
            let Some(status) = vn.status.as_ref().and_then(|s| s.kubelet.as_ref()) else { continue };
            // Ports are this replica's own.
            if self.share(&vn.name_any(), &vn) != Share::Ours {
                continue;
            }
            let Ok(port) = u16::try_from(status.port) else { continue };
            let own = vn.spec.kubelet.mode == KubeletMode::PerNode && port != self.config.kubelet_shared_port;
            if vn.spec.kubelet.port.map_or(own, |p| p == status.port) {
                self.ports.claim(&vn.name_any(), port);
            }
        }
    }

    fn virtual_node(&self, name: &str) -> Option<Arc<VirtualNode>> {
        self.virtual_nodes.get(&ObjectRef::new(name))
    }

    fn agent(&self, name: &str) -> Option<Arc<Agent>> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn agent_for(self: &Arc<Self>, name: &Arc<str>, vn: &VirtualNode) -> Arc<Agent> {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        let uid: Arc<str> = vn.metadata.uid.as_deref().unwrap_or_default().into();
        let new = || {
            let hold = Hold::new(self.members.fence.clone());
            Arc::new(Agent::new(name.clone(), uid, hold, self.pods.clone()))
        };
        agents.entry(name.clone()).or_insert_with(new).clone()
    }

    fn drop_agent(&self, name: &str) {
        if let Some(agent) = self.agents.write().unwrap_or_else(PoisonError::into_inner).remove(name) {
            agent.close();
            agent.note_certificate(None);
        }
        self.ports.release(name);
        self.serving.forget(name);
        for queue in [&self.beats, &self.probes] {
            queue.forget(&name.into());
        }
    }
}

/// A request that must not hang.
pub(crate) async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service("the API server did not answer in time".into())),
    }
}

/// A request on behalf of a node, which is not made unless the node is ours.
pub(crate) async fn held<T>(hold: &Hold, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    if !hold.is_valid() {
        return Err(kube::Error::Service("the node may be another replica's by now".into()));
    }
    within(request).await
}

/// True when the API server said that the object is not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True when the API server said that somebody else was faster.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// The version of this build, as Nodes and `vnode version` show it.
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| env!("CARGO_PKG_VERSION").to_owned())
}
