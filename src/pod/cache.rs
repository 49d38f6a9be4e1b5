//! What is known of each pod, by node and uid.
//!
//! One map of nodes, one of pods; each pod's record is behind a lock of its own that is never held over an
//! await. Pods of nodes that are not ours are not kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::NodeHandle;
use super::admission::{self, Requests};
use super::node::NodeState;
use super::packed::{PackedObservation, PackedPod, Phase};
use super::plan::AtProvider;
use super::resolve::Obstacle;
use super::status::Resize;
use crate::api::virtual_node::PodCounts;
use crate::provider::{PodObservation, PodRef};
use crate::telemetry::metrics::metrics;

pub(crate) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // Records are replaced field by field with values made beforehand, so a panic leaves them sound.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a pod does not run yet, as its status tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// Something that it needs is not there.
    Obstacle(Obstacle),
    /// The provider did not take it: the error.
    Provider(String),
}

/// What the provider was last given, to tell what has changed since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Digest of each volume with files.
    pub volumes: BTreeMap<String, [u8; 32]>,
    /// Hash of environments, commands, arguments and mounts.
    pub containers: u64,
}

/// What is known of one pod.
pub(crate) struct Record {
    pub reference: PodRef,
    /// As the API server last had it.
    pub pod: PackedPod,
    /// The API server has it no more.
    pub gone: bool,
    pub at_provider: AtProvider,
    /// What the provider last said.
    pub observation: Option<PackedObservation>,
    /// Number of the notification that `observation` came with.
    pub observed_at: u64,
    /// Hash of what the provider was last given.
    pub applied: Option<u64>,
    /// A final refusal by the provider: reason and message.
    pub refused: Option<(String, String)>,
    /// Why it could not be created yet.
    pub trouble: Option<(Trouble, tokio::time::Instant)>,
    /// Something that its files are made from has changed.
    pub stale: bool,
    /// What the provider was last given beside the pod itself.
    pub given: Option<Given>,
    /// The node has room for it.
    pub admitted: bool,
    /// What it takes of the node.
    pub requests: Arc<Requests>,
    /// It was told which of its fields the provider cannot do.
    pub warned: bool,
    /// The resources that the provider was given when it cannot change them: what a resize is measured by.
    pub resources: Option<u64>,
    /// Whether the provider follows a change of them.
    pub resize: Resize,
    /// A change of the pod that the provider could not be given yet.
    pub owed: bool,
    /// The provider has had it since this process started.
    pub seen: bool,
    /// The API server was told to delete it for good.
    pub deleted: bool,
    /// When the containers have to be over, once asked to stop.
    pub stop_by: Option<tokio::time::Instant>,
    /// The status last written, until the watch has caught up with it.
    pub written: Option<Box<(u64, PodStatus)>>,
    /// What `counts` currently counts it as.
    counted: Option<Counted>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Running,
    Pending,
    Failed,
    Over,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub node: Arc<NodeState>,
    pub record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Index {
    nodes: HashMap<Arc<str>, NodeEntry>,
    pods: HashMap<Arc<str>, Entry>,
    /// Nodes whose pods were seen and dropped. When one of them becomes ours, its pods have to be listed.
    foreign: HashSet<Arc<str>>,
}

struct NodeEntry {
    state: Arc<NodeState>,
    uids: HashSet<Arc<str>>,
    counts: PodCounts,
    /// Its pods are being listed; holds those that were deleted meanwhile.
    listing: Option<HashSet<Arc<str>>>,
}

/// What the arrival of a pod from the API server means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Not on a node of ours, or older than what is known.
    Ignored,
    /// Something changed; the node's counts too when `counts`.
    Changed { uid: Arc<str>, node: Arc<str>, counts: bool },
}

/// The pods of our nodes.
#[derive(Default)]
pub(crate) struct Cache {
    index: RwLock<Index>,
    notifications: AtomicU64,
}

/// `metadata.resourceVersion` as the number that it is on every API server (KEP-5504).
pub(crate) fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Record {
    fn new(pod: &Pod, packed: PackedPod) -> Self {
        Self {
            reference: PodRef::of(pod),
            stale: false,
            given: None,
            // What ran before this process started was admitted then.
            admitted: pod.status.as_ref().is_some_and(|s| s.start_time.is_some()),
            requests: Arc::new(admission::requests(pod)),
            warned: false,
            resources: None,
            resize: Resize::Unknown,
            owed: false,
            pod: packed,
            gone: false,
            at_provider: AtProvider::Unknown,
            observation: None,
            observed_at: 0,
            applied: None,
            refused: None,
            trouble: None,
            seen: false,
            deleted: false,
            stop_by: None,
            written: None,
            counted: None,
        }
    }

    /// The status as it will be on the API server once all writes are seen. `pod` was unpacked from this record, and
    /// need not be unpacked again unless a later one has arrived meanwhile.
    pub fn status(&self, pod: &Pod) -> PodStatus {
        let known = |pod: &Pod| pod.status.clone().unwrap_or_default();
        match &self.written {
            Some(written) => written.1.clone(),
            None if self.pod.version() == version(pod) => known(pod),
            None => known(&self.pod.unpack()),
        }
    }

    /// What the provider last said.
    pub fn observed(&self) -> Option<PodObservation> {
        self.observation.as_ref()?.unpack(self.reference.clone())
    }

    fn class(&self) -> Counted {
        match self.pod.phase() {
            Phase::Running => Counted::Running,
            Phase::Failed => Counted::Failed,
            Phase::Succeeded => Counted::Over,
            Phase::Pending => Counted::Pending,
        }
    }
}

fn count(counts: &mut PodCounts, what: Counted, up: bool) {
    let step = |n: &mut u32| *n = if up { n.saturating_add(1) } else { n.saturating_sub(1) };
    match what {
        Counted::Running => step(&mut counts.running),
        Counted::Pending => step(&mut counts.pending),
        Counted::Failed => return step(&mut counts.failed),
        Counted::Over => return,
    }
    step(&mut counts.total);
}

impl Cache {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a node ours. Its pods' records survive when it was ours already.
    pub fn add_node(&self, handle: NodeHandle, calls: usize) {
        let mut index = self.write();
        let name = handle.name.clone();
        if let Some(entry) = index.nodes.get(&name)
            && entry.state.uid == handle.uid
        {
            entry.state.set_provider(handle.provider);
            entry.state.set_host_ip(handle.host_ip);
            entry.state.set_facts(handle.facts);
            return;
        }
        let listing = index.foreign.remove(&name).then(HashSet::new);
        let state = Arc::new(NodeState::new(handle, calls));
        let old = index.nodes.insert(
            name,
            NodeEntry { state: state.clone(), uids: HashSet::new(), counts: PodCounts::default(), listing },
        );
        // The same name under a new VirtualNode: the pods stay bound to the name, what is known of their
        // provider does not.
        if let Some(old) = old {
            old.state.changed.notify_waiters();
            for uid in old.uids {
                let Some(pod) = index.pods.get(&uid).map(|e| guard(&e.record).pod.unpack()) else { continue };
                index.pods.remove(&uid);
                index.insert(&state, &pod, PackedPod::new(&pod));
            }
        }
    }

    /// Forgets a node and its pods; later arrivals of its pods are foreign.
    pub fn remove_node(&self, name: &str) -> Option<Arc<NodeState>> {
        let mut index = self.write();
        let (name, entry) = index.nodes.remove_entry(name)?;
        entry.state.removed.store(true, Ordering::Release);
        entry.state.changed.notify_waiters();
        if !entry.uids.is_empty() || entry.listing.is_some() {
            index.foreign.insert(name);
        }
        for uid in &entry.uids {
            index.pods.remove(uid);
        }
        Some(entry.state)
    }

    pub fn node(&self, name: &str) -> Option<Arc<NodeState>> {
        self.read().nodes.get(name).map(|n| n.state.clone())
    }

    pub fn nodes(&self) -> Vec<Arc<NodeState>> {
        self.read().nodes.values().map(|n| n.state.clone()).collect()
    }

    pub fn entry(&self, uid: &str) -> Option<Entry> {
        self.read().pods.get(uid).cloned()
    }

    pub fn uids(&self, node: &str) -> Vec<Arc<str>> {
        self.read().nodes.get(node).map(|n| n.uids.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn all_uids(&self) -> HashSet<Arc<str>> {
        self.read().pods.keys().cloned().collect()
    }

    pub fn counts(&self, node: &str) -> PodCounts {
        self.read().nodes.get(node).map(|n| n.counts).unwrap_or_default()
    }

    pub fn pods(&self, node: &str) -> Vec<Arc<Pod>> {
        let index = self.read();
        let Some(node) = index.nodes.get(node) else { return Vec::new() };
        let live = |uid| {
            let record = guard(&index.pods.get(uid)?.record);
            (!record.gone).then(|| record.pod.unpack())
        };
        node.uids.iter().filter_map(live).collect()
    }

    /// What the pods of the node take that are admitted and not over, and how many they are; without one of them.
    pub fn used(&self, node: &str, except: &str) -> (Requests, usize) {
        let index = self.read();
        let (mut sum, mut pods) = (Requests::default(), 0);
        let Some(node) = index.nodes.get(node) else { return (sum, pods) };
        for uid in node.uids.iter().filter(|u| &***u != except) {
            let Some(entry) = index.pods.get(uid) else { continue };
            let record = guard(&entry.record);
            if record.gone || !record.admitted || record.refused.is_some() || record.pod.terminal() {
                continue;
            }
            pods += 1;
            for (name, amount) in &record.requests.amounts {
                let slot = match sum.amounts.get_mut(name) {
                    Some(slot) => slot,
                    None => sum.amounts.entry(name.clone()).or_default(),
                };
                *slot = slot.saturating_add(*amount);
            }
            sum.ports.extend(record.requests.ports.iter().cloned());
        }
        (sum, pods)
    }

    pub fn find(&self, node: &str, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let index = self.read();
        index.nodes.get(node)?.uids.iter().find_map(|uid| {
            let record = guard(&index.pods.get(uid)?.record);
            let wanted = !record.gone && &*record.reference.name == name && &*record.reference.namespace == namespace;
            wanted.then(|| record.pod.unpack())
        })
    }

    /// True when the node's pods have to be listed because the watch has dropped some of them.
    pub fn needs_listing(&self, node: &str) -> bool {
        self.read().nodes.get(node).is_some_and(|n| n.listing.is_some())
    }

    /// Takes in the answer of listing a node's pods, unless the node was given up meanwhile: then it is listed again.
    pub fn listed(&self, node: &Arc<NodeState>, pods: Vec<Pod>) {
        let same = |n: &&mut NodeEntry| Arc::ptr_eq(&n.state, node);
        let Some(deleted) = self.write().nodes.get_mut(&node.name).filter(same).and_then(|n| n.listing.take()) else {
            return;
        };
        for pod in pods {
            if pod.metadata.uid.as_deref().is_some_and(|uid| !deleted.contains(uid)) {
                self.apply(pod);
            }
        }
    }

    /// Takes in a pod from the watch.
    pub fn apply(&self, pod: Pod) -> Applied {
        let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) else { return Applied::Ignored };
        let Some(uid) = pod.metadata.uid.as_deref() else { return Applied::Ignored };
        // Packing takes time, which is not spent with everybody waiting for the index; nor on pods that are not ours.
        let ours = self.read().nodes.contains_key(node);
        let packed = ours.then(|| PackedPod::new(&pod));
        let mut index = self.write();
        let Some(state) = index.nodes.get(node).map(|n| n.state.clone()) else {
            if !index.foreign.contains(node) {
                index.foreign.insert(node.into());
            }
            return Applied::Ignored;
        };
        // It may have become ours in between.
        let packed = packed.unwrap_or_else(|| PackedPod::new(&pod));
        let name = state.name.clone();
        // Whoever waits can look only when the index is free again.
        state.changed.notify_waiters();
        if let Some(entry) = index.pods.get(uid).cloned() {
            let mut record = guard(&entry.record);
            if version(&pod) < record.pod.version() {
                return Applied::Ignored;
            }
            if record.written.as_ref().is_some_and(|written| written.0 <= version(&pod)) {
                record.written = None;
            }
            let uid = record.reference.uid.clone();
            if pod.metadata.generation != record.pod.generation() {
                record.requests = Arc::new(admission::requests(&pod));
            }
            record.pod = packed;
            let counts = index.recount(&name, &mut record, false);
            Applied::Changed { uid, node: name, counts }
        } else {
            let uid = index.insert(&state, &pod, packed);
            Applied::Changed { uid, node: name, counts: true }
        }
    }

    /// The API server has the pod no more. The record stays until the provider has let go of it.
    pub fn gone(&self, uid: &str, node: Option<&str>) -> Applied {
        let mut index = self.write();
        if let Some(tombs) = node.and_then(|n| index.nodes.get_mut(n)).and_then(|n| n.listing.as_mut()) {
            tombs.insert(uid.into());
        }
        let Some(entry) = index.pods.get(uid).cloned() else { return Applied::Ignored };
        let mut record = guard(&entry.record);
        record.gone = true;
        entry.node.changed.notify_waiters();
        index.recount(&entry.node.name, &mut record, true);
        Applied::Changed { uid: record.reference.uid.clone(), node: entry.node.name.clone(), counts: true }
    }

    /// Drops the record of a pod.
    pub fn forget(&self, uid: &str) {
        let mut index = self.write();
        let Some(entry) = index.pods.remove(uid) else { return };
        index.recount(&entry.node.name, &mut guard(&entry.record), true);
        if let Some(node) = index.nodes.get_mut(&entry.node.name) {
            node.uids.remove(uid);
        }
    }

    /// A number that orders what is asked of a provider with its notifications.
    pub fn moment(&self) -> u64 {
        self.notifications.fetch_add(1, Ordering::AcqRel)
    }

    /// Takes in what a provider said, unprompted or as the answer to a question asked at `asked`; an answer
    /// does not replace a notification that came after the question. True when it is news of a pod of ours.
    pub fn observe(&self, node: &str, observation: PodObservation, asked: Option<u64>) -> bool {
        let Some(entry) = self.entry(&observation.pod.uid) else { return false };
        if &*entry.node.name != node {
            return false;
        }
        let observation = PackedObservation::new(&observation);
        let mut record = guard(&entry.record);
        if asked.is_some_and(|asked| record.observed_at > asked) {
            return false;
        }
        let news = record.at_provider != AtProvider::Present || record.observation.as_ref() != Some(&observation);
        record.observed_at = asked.unwrap_or_else(|| self.moment());
        record.at_provider = AtProvider::Present;
        record.seen = true;
        record.observation = Some(observation);
        news
    }

    /// Notes that a node's provider may have lost a pod, so that it is asked for. False when it is not there anyway.
    pub fn doubt(&self, node: &str, uid: &str) -> bool {
        let Some(entry) = self.entry(uid).filter(|e| &*e.node.name == node) else { return false };
        let mut record = guard(&entry.record);
        let there = record.at_provider == AtProvider::Present;
        if there {
            record.at_provider = AtProvider::Unknown;
        }
        there
    }
}

impl Index {
    fn insert(&mut self, node: &Arc<NodeState>, pod: &Pod, packed: PackedPod) -> Arc<str> {
        let mut record = Record::new(pod, packed);
        let uid = record.reference.uid.clone();
        if let Some(entry) = self.nodes.get_mut(&node.name) {
            entry.uids.insert(uid.clone());
        }
        self.recount(&node.name, &mut record, false);
        self.pods.insert(uid.clone(), Entry { node: node.clone(), record: Arc::new(Mutex::new(record)) });
        uid
    }

    /// True when the counts changed.
    fn recount(&mut self, node: &str, record: &mut Record, remove: bool) -> bool {
        let new = (!remove).then(|| record.class());
        let old = std::mem::replace(&mut record.counted, new);
        if old == new {
            return false;
        }
        if let (Some(Counted::Pending), Some(Counted::Running), Some(bound)) = (old, new, record.pod.scheduled()) {
            metrics().pod_start.observe(jiff::Timestamp::now().duration_since(bound).as_secs_f64().max(0.0));
        }
        if let Some(entry) = self.nodes.get_mut(node) {
            if let Some(old) = old {
                count(&mut entry.counts, old, false);
            }
            if let Some(new) = new {
                count(&mut entry.counts, new, true);
            }
        }
        true
    }
}
