//! Watches of the bound pods: one for the whole fleet, or one for each node.
//!
//! One shared watch costs the API server and this process the same whatever the number of nodes, but brings the pods of
//! all other nodes of the cluster too, which are dropped as they arrive. A watch of a node brings what the node has: the
//! API server indexes pods by node, as every kubelet needs it. So a few virtual nodes in a big cluster have watches of
//! their own, and a fleet shares one.
//!
//! When a watch has to begin anew, be it after a lost connection or a 410, what is not listed any more has been deleted
//! meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Config, Event};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cache::Applied;
use super::node::NodeState;
use super::{Key, PodController};
use crate::cluster::watch::watch;

/// Nodes that have watches of their own under [`PodWatch::Auto`]. Each watch is a connection.
const FEW: usize = 32;
/// Nodes whose pods are listed at a time, so that many watches do not begin all at once.
const LISTS: usize = 16;

/// How the pods of this process's nodes are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodWatch {
    /// Each node by itself while there are few; together once there have been more than 32.
    #[default]
    Auto,
    /// All bound pods of the cluster, in one watch.
    Shared,
    /// Each node by itself, however many there are.
    PerNode,
}

impl PodWatch {
    /// Whether so many nodes are watched one by one.
    fn per_node(self, nodes: usize) -> bool {
        match self {
            Self::Auto => nodes <= FEW,
            Self::Shared => false,
            Self::PerNode => true,
        }
    }
}

/// Whose pods a watch brings.
enum Scope {
    All,
    Node(Arc<NodeState>),
}

impl Scope {
    fn selector(&self) -> String {
        match self {
            Self::All => "spec.nodeName!=".into(),
            Self::Node(node) => format!("spec.nodeName={}", node.name),
        }
    }
}

/// What all watches have in common.
struct Lists {
    /// Servers before 1.32 refuse to stream lists unless told to by a feature gate.
    streaming: AtomicBool,
    places: Semaphore,
}

/// The watch of one node.
struct Own {
    node: Arc<NodeState>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Own {
    async fn end(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(node = %self.node.name, %error, "the watch of the node's pods ended unexpectedly");
        }
    }
}

impl PodController {
    pub(super) async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let lists = Arc::new(Lists { streaming: AtomicBool::new(true), places: Semaphore::new(LISTS) });
        let mut own: HashMap<Arc<str>, Own> = HashMap::new();
        loop {
            let nodes = self.cache.nodes();
            let shared = !self.config.watch.per_node(nodes.len());
            let ours = |node: &Arc<NodeState>| self.cache.node(&node.name).is_some_and(|n| Arc::ptr_eq(&n, node));
            let wanted = |o: &Own| !shared && !o.task.is_finished() && ours(&o.node);
            let over: Vec<_> = own.extract_if(|_, o| !wanted(o)).collect();
            for (_, watch) in over {
                watch.end().await;
            }
            if shared {
                // Whatever happens until it has listed the pods is found out by that, as after a lost connection.
                return self.follow(Scope::All, &lists, shutdown).await;
            }
            for node in nodes {
                let begin = || self.begin(node.clone(), &lists, &shutdown);
                own.entry(node.name.clone()).or_insert_with(begin);
            }
            if shutdown.run_until_cancelled(self.nodes_changed.notified()).await.is_none() {
                break;
            }
        }
        for watch in own.into_values() {
            watch.end().await;
        }
    }

    fn begin(self: &Arc<Self>, node: Arc<NodeState>, lists: &Arc<Lists>, shutdown: &CancellationToken) -> Own {
        let stop = shutdown.child_token();
        let (this, scope, lists, until) = (self.clone(), Scope::Node(node.clone()), lists.clone(), stop.clone());
        let task = tokio::spawn(async move { this.follow(scope, &lists, until).await });
        Own { node, stop: stop.drop_guard(), task }
    }

    /// Takes in what a watch brings until `shutdown`.
    async fn follow(&self, scope: Scope, lists: &Lists, shutdown: CancellationToken) {
        loop {
            let streaming = lists.streaming.load(Ordering::Relaxed);
            let config = Config::default().fields(&scope.selector());
            let config = if streaming { config.streaming_lists() } else { config.page_size(500) };
            let mut stream = std::pin::pin!(watch(Api::<Pod>::all(self.client.clone()), config));
            let (mut expected, mut listed) = (HashSet::new(), false);
            // Never closed.
            let Some(place) = shutdown.run_until_cancelled(lists.places.acquire()).await else { return };
            let mut place = place.ok();
            loop {
                let Some(next) = shutdown.run_until_cancelled(stream.next()).await else { return };
                match next {
                    Some(Ok(event)) => {
                        if matches!(event, Event::InitDone) {
                            drop(place.take());
                            listed = true;
                        }
                        self.watched(&scope, event, &mut expected);
                    }
                    Some(Err(error)) if streaming && !listed && is_refusal(&error) => {
                        tracing::info!("the API server does not stream lists; pods are listed in pages");
                        lists.streaming.store(false, Ordering::Relaxed);
                        break;
                    }
                    Some(Err(error)) => {
                        let pods = scope.selector();
                        tracing::warn!(pods, %error, "the watch of pods was interrupted; it is resumed");
                        // One that cannot be had must not keep the others from theirs.
                        drop(place.take());
                    }
                    // The stream does not end by itself; if it did, beginning anew is right.
                    None => break,
                }
            }
        }
    }

    fn watched(&self, scope: &Scope, event: Event<Pod>, expected: &mut HashSet<Arc<str>>) {
        self.release(self.api.answered());
        match event {
            Event::Init => {
                *expected = match scope {
                    Scope::All => self.cache.all_uids(),
                    Scope::Node(node) => self.cache.uids(&node.name).into_iter().collect(),
                }
            }
            Event::InitApply(pod) => {
                if let Some(uid) = pod.metadata.uid.as_deref() {
                    expected.remove(uid);
                }
                self.arrived(pod);
            }
            Event::Apply(pod) => self.arrived(pod),
            Event::Delete(pod) => {
                let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
                self.left(pod.metadata.uid.as_deref().unwrap_or_default(), node);
            }
            Event::InitDone => {
                for uid in expected.drain() {
                    self.left(&uid, None);
                }
                self.all_seen(scope);
            }
        }
    }

    /// Every pod of the scope has been seen: what the provider has can be compared with that.
    fn all_seen(&self, scope: &Scope) {
        let nodes = match scope {
            Scope::All if self.synced.send_replace(true) => return,
            Scope::All => self.cache.nodes(),
            Scope::Node(node) if !node.set_seen() => return,
            Scope::Node(node) => {
                // Whoever waits for the node looks again.
                self.synced.send_modify(|_| {});
                vec![node.clone()]
            }
        };
        for node in nodes {
            self.queue.add(Key::Node(node.name.clone()));
        }
    }

    fn arrived(&self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        self.note(self.cache.apply(pod));
    }

    fn left(&self, uid: &str, node: Option<&str>) {
        self.note(self.cache.gone(uid, node));
    }

    pub(super) fn note(&self, applied: Applied) {
        if let Applied::Changed { uid, node, counts } = applied {
            self.queue.add(Key::Pod(uid));
            if counts {
                (self.config.on_counts)(&node);
            }
        }
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e)) = error else { return false };
    matches!(e, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_watched_one_by_one_while_they_are_few() {
        for (watch, nodes, one_by_one) in [
            (PodWatch::Auto, 0, true),
            (PodWatch::Auto, FEW, true),
            (PodWatch::Auto, FEW + 1, false),
            (PodWatch::Shared, 1, false),
            (PodWatch::PerNode, 10_000, true),
        ] {
            assert_eq!(watch.per_node(nodes), one_by_one, "{watch:?} with {nodes} nodes");
        }
    }
}
