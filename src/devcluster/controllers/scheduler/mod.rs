//! The scheduler: pending pods by priority → [`cluster::Cluster::decide`] → `pods/binding`.
//!
//! The picture of the cluster is kept by the informers' handlers; one loop decides, and up to [`WIDTH`] calls to the
//! API are under way at once. A pod that fits nowhere waits until something changes that could help it.

pub(crate) mod cluster;
pub(crate) mod pod;
pub(crate) mod resources;
mod topology;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::cluster::Cluster;
use self::pod::PodInfo;
use super::informer::{Change, Key, key_of};
use super::world::World;

const NAME: &str = "default-scheduler";
/// Calls to the API at once.
const WIDTH: usize = 32;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(10);

type Rank = (Reverse<i32>, Option<Timestamp>, Key);

#[derive(Default)]
struct State {
    cluster: Cluster,
    ready: BTreeSet<Rank>,
    waiting: BTreeMap<(Instant, Key), ()>,
    /// Pods that fit nowhere, with the time before which they are not tried again.
    hopeless: HashMap<Key, Instant>,
    tries: HashMap<Key, u32>,
    pending: HashMap<Key, Arc<PodInfo>>,
}

/// The scheduler's state and its alarm.
pub(crate) struct Scheduler {
    world: Arc<World>,
    state: Mutex<State>,
    changed: Notify,
}

enum Fate {
    Ours,
    Placed(String),
    Other,
}

/// What the scheduler has to do with a pod.
fn fate(pod: &Pod) -> Fate {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let Some(spec) = pod.spec.as_ref().filter(|_| !matches!(phase, "Succeeded" | "Failed")) else { return Fate::Other };
    match spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        Some(node) => Fate::Placed(node.to_string()),
        None if spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
            && pod.metadata.deletion_timestamp.is_none() =>
        {
            Fate::Ours
        }
        None => Fate::Other,
    }
}

impl Scheduler {
    /// Hooks a scheduler to the shared watches.
    pub(crate) fn new(world: Arc<World>) -> Arc<Self> {
        let scheduler = Arc::new(Self { world: world.clone(), state: Mutex::default(), changed: Notify::new() });
        let s = scheduler.clone();
        world.nodes.on_change(move |change| {
            let mut state = s.state();
            let helps = match (change.old, change.new) {
                (_, Some(node)) => state.cluster.put_node(node),
                (Some(node), None) => {
                    state.cluster.remove_node(&node.name_any());
                    false
                }
                (None, None) => false,
            };
            if helps {
                state.retry_hopeless();
                s.changed.notify_one();
            }
        });
        let s = scheduler.clone();
        world.pods.on_change(move |change| s.observe(change));
        let s = scheduler.clone();
        world.claims.on_change(move |change| {
            let Some(claim) = change.new.filter(|_| change.old.is_none()) else { return };
            let (namespace, name) = key_of(claim.as_ref());
            s.state().retry(|info| info.namespace == namespace && info.claims.contains(&name));
            s.changed.notify_one();
        });
        scheduler
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, change: Change<'_, Pod>) {
        let mut state = self.state();
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid() != old.uid())
        {
            let freed = state.cluster.remove_pod(&old.uid().unwrap_or_default());
            state.forget(&key_of(old.as_ref()));
            if freed {
                state.retry_hopeless();
            }
        }
        let Some(pod) = change.new else {
            self.changed.notify_one();
            return;
        };
        let key = key_of(pod.as_ref());
        match fate(pod) {
            Fate::Placed(node) => {
                state.forget(&key);
                // A status update of a pod that stays where it is changes nothing here.
                let known = change.old.is_some_and(|old| {
                    old.uid() == pod.uid() && matches!(fate(old), Fate::Placed(_)) && old.spec == pod.spec
                });
                if !known {
                    state.cluster.place(PodInfo::of(pod), &node);
                    state.retry_affine();
                }
            }
            Fate::Ours => {
                let same = change.old.is_some_and(|old| {
                    old.uid() == pod.uid()
                        && matches!(fate(old), Fate::Ours)
                        && old.spec == pod.spec
                        && old.labels() == pod.labels()
                });
                if !same {
                    let info = PodInfo::of(pod);
                    state.forget(&key);
                    state.ready.insert((Reverse(info.priority), info.created, key.clone()));
                    state.pending.insert(key, info);
                }
            }
            Fate::Other => {
                state.forget(&key);
                if state.cluster.remove_pod(&pod.uid().unwrap_or_default()) {
                    state.retry_hopeless();
                }
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Decides and binds until dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        self.world.nodes.synced().await;
        self.world.pods.synced().await;
        self.world.claims.synced().await;
        let mut calls = FuturesUnordered::new();
        loop {
            let changed = self.changed.notified();
            let wake = if calls.len() < WIDTH {
                match self.next() {
                    Ok((key, info)) => {
                        let decision = self.decide(&key, &info);
                        calls.push(self.act(key, info, decision));
                        // Deciding is quick and calls are many: let them move on in between.
                        tokio::task::yield_now().await;
                        while let std::task::Poll::Ready(Some(())) = futures::poll!(calls.next()) {}
                        continue;
                    }
                    Err(wake) => wake,
                }
            } else {
                None
            };
            let timer = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = calls.next() => {}
                () = changed, if calls.len() < WIDTH => {}
                () = timer => {}
            }
        }
    }

    /// The most urgent pod, or when the first of the waiting is due.
    fn next(&self) -> Result<(Key, Arc<PodInfo>), Option<Instant>> {
        let mut state = self.state();
        let now = Instant::now();
        while let Some(entry) = state.waiting.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((_, key), ()) = entry.remove_entry();
            state.make_ready(key);
        }
        while let Some((_, _, key)) = state.ready.pop_first() {
            if let Some(info) = state.pending.get(&key).cloned() {
                return Ok((key, info));
            }
        }
        Err(state.waiting.first_key_value().map(|((at, _), ())| *at))
    }

    /// Decides, and counts the pod on its node before the API has heard of it.
    fn decide(&self, key: &Key, info: &Arc<PodInfo>) -> Result<String, String> {
        let mut state = self.state();
        // Asked under the lock: a claim that comes now finds the pod among those to try again.
        let decision = match self.missing_claim(info) {
            Some(fault) if state.cluster.total() > 0 => {
                Err(format!("0/{} nodes are available: {fault}. not found", state.cluster.total()))
            }
            _ => state.cluster.decide(info),
        };
        match &decision {
            Ok(node) => state.cluster.place(info.clone(), node),
            Err(_) => {
                // Under the same lock, or a change that helps could slip in between.
                let at = state.not_before(key);
                state.hopeless.insert(key.clone(), at);
            }
        }
        decision
    }

    /// What is wrong with a pod's claims, whichever node is asked.
    fn missing_claim(&self, info: &PodInfo) -> Option<String> {
        info.claims.iter().find_map(|name| match self.world.claims.get_in(&info.namespace, name) {
            None => Some(format!("persistentvolumeclaim {name:?} not found")),
            Some(claim) if claim.metadata.deletion_timestamp.is_some() => {
                Some(format!("persistentvolumeclaim {name:?} is being deleted"))
            }
            Some(_) => None,
        })
    }

    async fn act(&self, key: Key, info: Arc<PodInfo>, decision: Result<String, String>) {
        match decision {
            Ok(node) => {
                let bound = tokio::time::timeout(CALL, self.bind(&info, &node)).await;
                match bound {
                    Ok(Ok(())) => {
                        self.state().tries.remove(&key);
                        if let Some(pod) = self.world.pods.get(&key) {
                            let said = format!("Successfully assigned {}/{} to {node}", key.0, key.1);
                            self.world.event_of(NAME, pod.as_ref(), "Normal", "Binding", "Scheduled", &said);
                        }
                    }
                    Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                        self.state().cluster.remove_pod(&info.uid);
                    }
                    failed => {
                        tracing::debug!(pod = %info.name, ?failed, "a pod could not be bound and is tried again");
                        let placed = self.world.pods.get(&key).is_some_and(|p| matches!(fate(&p), Fate::Placed(_)));
                        if placed {
                            return;
                        }
                        let mut state = self.state();
                        state.cluster.remove_pod(&info.uid);
                        let at = state.not_before(&key);
                        state.waiting.insert((at, key), ());
                        drop(state);
                        self.changed.notify_one();
                    }
                }
            }
            Err(message) => {
                let Some(pod) = self.world.pods.get(&key) else { return };
                let said_already = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| {
                    c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(&message)
                });
                if said_already {
                    return;
                }
                let status = json!({"conditions": [{"type": "PodScheduled", "status": "False",
                    "observedGeneration": pod.metadata.generation,
                    "reason": "Unschedulable", "message": message,
                    "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}]});
                self.world.event_of(NAME, pod.as_ref(), "Warning", "Scheduling", "FailedScheduling", &message);
                let patch = tokio::time::timeout(CALL, self.world.patch_pod_status(&pod, status)).await;
                if !matches!(patch, Ok(Ok(()))) {
                    tracing::debug!(pod = %info.name, "a pod could not be marked as unschedulable");
                    // Without the condition nobody would know why it waits.
                    let mut state = self.state();
                    if let Some(at) = state.hopeless.remove(&key) {
                        state.waiting.insert((at, key), ());
                    }
                }
                self.changed.notify_one();
            }
        }
    }

    async fn bind(&self, info: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": info.name, "namespace": info.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let api: Api<Pod> = self.world.api(&info.namespace);
        let _: Value = api.create_subresource("binding", &info.name, &PostParams::default(), &binding).await?;
        Ok(())
    }
}

impl State {
    fn forget(&mut self, key: &Key) {
        if let Some(info) = self.pending.remove(key) {
            self.ready.remove(&(Reverse(info.priority), info.created, key.clone()));
            self.tries.remove(key);
        }
        self.hopeless.remove(key);
    }

    fn make_ready(&mut self, key: Key) {
        if let Some(info) = self.pending.get(&key) {
            self.ready.insert((Reverse(info.priority), info.created, key));
        }
    }

    fn not_before(&mut self, key: &Key) -> Instant {
        let tries = self.tries.entry(key.clone()).or_default();
        *tries += 1;
        Instant::now() + (FIRST_RETRY * 2u32.saturating_pow(*tries - 1)).min(LAST_RETRY)
    }

    fn retry_hopeless(&mut self) {
        for (key, at) in std::mem::take(&mut self.hopeless) {
            self.waiting.insert((at, key), ());
        }
    }

    /// A pod that got a place can only help those that want to be near others.
    fn retry_affine(&mut self) {
        self.retry(|info| !info.near.is_empty() || !info.spread.is_empty());
    }

    /// Tries those again that something has become better for.
    fn retry(&mut self, helped: impl Fn(&PodInfo) -> bool) {
        let keys: Vec<_> =
            self.hopeless.keys().filter(|k| self.pending.get(*k).is_some_and(|i| helped(i))).cloned().collect();
        for key in keys {
            if let Some(at) = self.hopeless.remove(&key) {
                self.waiting.insert((at, key), ());
            }
        }
    }
}
