//! The clock of all simulated pods of a process: one task and one heap of timers for every node.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::node::SimNode;

/// Timers that fire before other tasks get their turn.
const BATCH: usize = 256;

pub(super) fn guard<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    // A simulated pod that panics half-way stays as it was last; the others are sound.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the simulation going while it is held.
pub(super) struct Engine {
    pub core: Arc<Core>,
    _stop: DropGuard,
}

/// A node's name and the uid of its VirtualNode.
type NodeKey = (Arc<str>, Arc<str>);

/// What the nodes and the task share.
pub(super) struct Core {
    base: (Instant, Timestamp),
    timers: Mutex<BinaryHeap<Reverse<Timer>>>,
    wake: Notify,
    addresses: Mutex<Addresses>,
    pub nodes: Mutex<HashMap<NodeKey, Weak<SimNode>>>,
}

struct Timer {
    at: Instant,
    node: Weak<SimNode>,
    uid: Arc<str>,
    number: u32,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Engine {
    /// Starts the task on the current runtime.
    pub fn start() -> Arc<Self> {
        let core = Arc::new(Core {
            base: (Instant::now(), Timestamp::now()),
            timers: Mutex::default(),
            wake: Notify::new(),
            addresses: Mutex::default(),
            nodes: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let task = core.clone();
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(task.run()).await });
        Arc::new(Self { core, _stop: stop.drop_guard() })
    }
}

impl Core {
    /// The time: the wall clock at the start plus what the monotonic clock has run since.
    pub fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.base.0.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.1.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// When a time comes.
    pub fn instant(&self, at: Timestamp) -> Instant {
        // Rounded up to the next millisecond, which is what timers count in: a look must not come early.
        let from_base = at.duration_since(self.base.1).as_nanos().max(0);
        let millis = u64::try_from((from_base + 999_999) / 1_000_000).unwrap_or(u64::MAX);
        // About thirty years; further than that is never.
        self.base.0 + std::time::Duration::from_millis(millis.min(1_000_000_000_000))
    }

    pub fn schedule(&self, node: Weak<SimNode>, uid: Arc<str>, number: u32, at: Timestamp) {
        let timer = Timer { at: self.instant(at), node, uid, number };
        let mut timers = guard(&self.timers);
        let first = timers.peek().is_none_or(|t| timer.at < t.0.at);
        timers.push(Reverse(timer));
        drop(timers);
        if first {
            self.wake.notify_one();
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let mut due = Vec::new();
            let next = {
                let mut timers = guard(&self.timers);
                while due.len() < BATCH && timers.peek().is_some_and(|t| t.0.at <= now) {
                    due.extend(timers.pop().map(|t| t.0));
                }
                timers.peek().map(|t| t.0.at)
            };
            let any = !due.is_empty();
            for timer in due {
                if let Some(node) = timer.node.upgrade() {
                    node.fire(&timer.uid, timer.number);
                }
            }
            if any {
                tokio::task::yield_now().await;
                continue;
            }
            let woken = self.wake.notified();
            match next {
                Some(at) => tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => woken.await,
            }
        }
    }

    pub fn take_address(&self, wanted: Option<Ipv4Addr>) -> Ipv4Addr {
        guard(&self.addresses).take(wanted)
    }

    pub fn free_address(&self, ip: Ipv4Addr) {
        guard(&self.addresses).used.remove(&u32::from(ip));
    }
}

/// Pod addresses from 10.0.0.0/8, each given once at a time.
#[derive(Default)]
struct Addresses {
    next: u32,
    used: HashSet<u32>,
}

impl Addresses {
    fn take(&mut self, wanted: Option<Ipv4Addr>) -> Ipv4Addr {
        if let Some(ip) = wanted
            && ip.octets()[0] == 10
            && self.used.insert(ip.into())
        {
            return ip;
        }
        const BASE: u32 = 10 << 24;
        // 16 million addresses; a simulation that large does not fit into memory, so one is free.
        loop {
            self.next = (self.next + 1) & 0x00ff_ffff;
            let last = self.next & 0xff;
            if last != 0 && last != 255 && self.used.insert(BASE | self.next) {
                return Ipv4Addr::from(BASE | self.next);
            }
        }
    }
}
