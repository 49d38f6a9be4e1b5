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
//! | `teardown` | takes it down again |
//! | `beat` | Leases and probes, each one queue for the whole fleet |
//! | `credentials` | the Secrets that VirtualNodes name, read by name |
//!
//! Every step is level-triggered: it looks at what is there and does what is missing. So a restart, a lost
//! watch event or an edit in the middle of anything needs no code of its own.

pub mod agent;
mod beat;
mod credentials;
pub mod plan;
pub mod ports;
mod reconcile;
mod register;
mod teardown;

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

use crate::api::VirtualNode;
use crate::cluster::events::EventWriter;
use crate::cluster::queue::{Backoff, WorkQueue};
use crate::kubelet::KubeletServer;
use crate::kubelet::auth::{Auth, AuthOptions};
use crate::node::live::LiveNodes;
use crate::pod::{PodConfig, PodController};
use crate::telemetry::health::Readiness;
use crate::tls::ServingCerts;
use agent::Agent;
use ports::Ports;

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
    /// The address that Nodes publish.
    pub node_ip: IpAddr,
    /// The address that kubelet listeners bind.
    pub bind_address: IpAddr,
    /// Ports of nodes whose spec names none.
    pub kubelet_ports: RangeInclusive<u16>,
    /// How long a provider may be unreachable before its Node is NotReady.
    pub provider_grace: Duration,
    /// Limits of exec, attach and port-forward.
    pub streams: crate::kubelet::StreamOptions,
}

/// Why the fleet ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// No serving certificate could be made.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
}

/// Everything that the parts of the controller share.
pub(crate) struct Fleet {
    client: Client,
    config: FleetConfig,
    virtual_nodes: Store<VirtualNode>,
    nodes: LiveNodes,
    pods: Arc<PodController>,
    kubelet: Arc<KubeletServer>,
    ports: Ports,
    events: EventWriter,
    agents: RwLock<HashMap<Arc<str>, Arc<Agent>>>,
    /// VirtualNodes to look at.
    queue: Arc<WorkQueue<Arc<str>>>,
    /// Leases to renew.
    beats: Arc<WorkQueue<Arc<str>>>,
    /// Providers to ask whether they are there.
    probes: Arc<WorkQueue<Arc<str>>>,
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
    let synced = readiness.register("virtualnodes");
    synced.not_ready("the VirtualNodes have not been listed yet");
    let auth = Auth::new(client.clone(), AuthOptions::default());
    let certs = ServingCerts::self_signed(&[config.node_ip.to_string(), "localhost".into()])?;
    let options = crate::kubelet::KubeletOptions { streams: config.streams.clone(), ..Default::default() };
    let kubelet = KubeletServer::new(auth.clone(), certs, options);
    let queue = WorkQueue::new(Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) });
    let pods = PodController::new(client.clone(), PodConfig { on_counts: on_counts(&queue), ..PodConfig::default() });
    let (store, writer) = reflector::store();

    let fleet = Arc::new(Fleet {
        ports: Ports::new(config.kubelet_ports.clone()),
        events: EventWriter::new(client.clone()),
        beats: WorkQueue::on_a_grid(beat::BACKOFF, beat::GRID),
        probes: WorkQueue::on_a_grid(beat::BACKOFF, beat::GRID),
        nodes: LiveNodes::default(),
        agents: RwLock::default(),
        virtual_nodes: store,
        client,
        config,
        pods,
        kubelet,
        queue,
    });

    let watching = fleet.clone().watch(writer, shutdown.clone());
    let nodes = {
        let fleet = fleet.clone();
        let queue = fleet.queue.clone();
        let shutdown = shutdown.clone();
        async move { fleet.nodes.run(fleet.client.clone(), |name| queue.add(name.into()), shutdown).await }
    };
    let working = {
        let (fleet, shutdown) = (fleet.clone(), shutdown.clone());
        async move {
            let both = async {
                // Otherwise a node that is there would look as if it had to be created.
                fleet.nodes.wait_synced().await;
                let _ = fleet.virtual_nodes.wait_until_ready().await;
            };
            if shutdown.run_until_cancelled(both).await.is_none() {
                return;
            }
            fleet.first_come_first_served();
            synced.ready();
            let queue = fleet.queue.clone();
            queue.run(WORKERS, shutdown, move |name| reconcile::reconcile(fleet.clone(), name)).await;
        }
    };
    let events = fleet.events.clone();
    tokio::join!(
        watching,
        nodes,
        working,
        fleet.clone().beat(shutdown.clone()),
        fleet.clone().probe(shutdown.clone()),
        auth.run(shutdown.clone()),
        fleet.kubelet.clone().run(shutdown.clone()),
        fleet.pods.clone().run(shutdown.clone()),
        events.run(shutdown.clone()),
    );
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
        let events = watcher(api, config).modify(|vn| {
            vn.managed_fields_mut().clear();
            vn.annotations_mut().remove("kubectl.kubernetes.io/last-applied-configuration");
        });
        let mut events = events.backoff(crate::cluster::watch::WatchBackoff::default()).reflect(writer).boxed();
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
                }
                Ok(watcher::Event::Apply(vn)) => {
                    known.insert(vn.name_any());
                    self.queue.add(vn.name_any().into());
                }
                Ok(watcher::Event::Delete(vn)) => {
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
            let Ok(port) = u16::try_from(status.port) else { continue };
            if vn.spec.kubelet.port.is_none_or(|p| p == status.port) {
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
        agents.entry(name.clone()).or_insert_with(|| Arc::new(Agent::new(name.clone(), uid, self.pods.clone()))).clone()
    }

    fn drop_agent(&self, name: &str) {
        if let Some(agent) = self.agents.write().unwrap_or_else(PoisonError::into_inner).remove(name) {
            agent.close();
        }
        self.ports.release(name);
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
