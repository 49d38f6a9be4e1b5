//! One node of ours: its provider, what decides which pods it takes, and its calls.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Notify, Semaphore};

use super::cache::guard;
use super::facts::NodeFacts;
use super::outage::Outage;
use super::{Key, NodeHandle};
use crate::cluster::fence::Hold;
use crate::provider::Provider;

/// A node of ours.
pub(crate) struct NodeState {
    pub name: Arc<str>,
    pub uid: Arc<str>,
    /// The right to act for it.
    pub hold: Arc<Hold>,
    provider: RwLock<Arc<dyn Provider>>,
    host_ip: RwLock<IpAddr>,
    reachable: AtomicBool,
    paused: AtomicBool,
    /// The provider's pods have been compared with the cluster's once, so that "not there" is knowledge.
    adopted: AtomicBool,
    /// A watch of its own has brought all its pods.
    seen: AtomicBool,
    pub removed: AtomicBool,
    /// Told whenever the API server has something else of one of its pods.
    pub changed: Notify,
    pub calls: Arc<Semaphore>,
    /// Pods that wait for one of `calls`.
    parked: Mutex<HashSet<Key>>,
    facts: RwLock<Arc<NodeFacts>>,
    /// Held while a pod is admitted, so that two do not take the same room.
    pub admission: Mutex<()>,
    /// What waits for the provider to answer questions again.
    pub reads: Outage<Key>,
    /// What waits for it to do again what it is told. It may well answer questions meanwhile.
    pub writes: Outage<Key>,
}

impl NodeState {
    pub fn new(handle: NodeHandle, calls: usize) -> Self {
        Self {
            name: handle.name,
            uid: handle.uid,
            hold: handle.hold,
            provider: RwLock::new(handle.provider),
            host_ip: RwLock::new(handle.host_ip),
            reachable: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            adopted: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            changed: Notify::new(),
            calls: Arc::new(Semaphore::new(calls.max(1))),
            parked: Mutex::default(),
            facts: RwLock::new(handle.facts),
            admission: Mutex::default(),
            reads: Outage::default(),
            writes: Outage::default(),
        }
    }

    pub fn provider(&self) -> Arc<dyn Provider> {
        self.provider.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_provider(&self, provider: Arc<dyn Provider>) {
        *self.provider.write().unwrap_or_else(PoisonError::into_inner) = provider;
    }

    pub fn facts(&self) -> Arc<NodeFacts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True when they are other ones.
    pub fn set_facts(&self, facts: Arc<NodeFacts>) -> bool {
        let mut slot = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        let changed = **slot != *facts;
        *slot = facts;
        changed
    }

    pub fn host_ip(&self) -> IpAddr {
        *self.host_ip.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when it was another one.
    pub fn set_host_ip(&self, ip: IpAddr) -> bool {
        std::mem::replace(&mut *self.host_ip.write().unwrap_or_else(PoisonError::into_inner), ip) != ip
    }

    pub fn reachable(&self) -> bool {
        self.reachable.load(Ordering::Acquire)
    }

    /// True when that is new.
    pub fn set_reachable(&self, reachable: bool) -> bool {
        self.reachable.swap(reachable, Ordering::AcqRel) != reachable
    }

    /// True when that is new.
    pub fn set_paused(&self, paused: bool) -> bool {
        self.paused.swap(paused, Ordering::AcqRel) != paused
    }

    /// Whether anything may be done for the node at this moment.
    pub fn may_act(&self) -> bool {
        self.hold.is_valid() && !self.paused.load(Ordering::Acquire) && self.reachable() && !self.removed()
    }

    pub fn adopted(&self) -> bool {
        self.adopted.load(Ordering::Acquire)
    }

    /// True when it was not before.
    pub fn set_adopted(&self) -> bool {
        !self.adopted.swap(true, Ordering::AcqRel)
    }

    pub fn seen(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }

    /// True when it was not before.
    pub fn set_seen(&self) -> bool {
        !self.seen.swap(true, Ordering::AcqRel)
    }

    pub fn removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub fn park(&self, key: Key) {
        guard(&self.parked).insert(key);
    }

    /// One key that waits for a call.
    pub fn unpark(&self) -> Option<Key> {
        let mut parked = guard(&self.parked);
        let key = parked.iter().next().cloned()?;
        parked.take(&key)
    }
}
