//! Keys to look at: each at most once in the queue and in one worker at a time, with delays and a back-off per key.
//!
//! The queue is bounded by the number of objects, as a key that is queued already is not queued again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a reconcile ends in: done, or look again after a while.
pub(crate) type Outcome = Result<Option<Duration>, kube::Error>;

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// No reconcile may hold its key longer.
const DEADLINE: Duration = Duration::from_secs(120);

struct Inner<T> {
    ready: VecDeque<T>,
    queued: HashSet<T>,
    working: HashSet<T>,
    again: HashSet<T>,
    later: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    sequence: u64,
}

/// A queue of keys.
pub(crate) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

impl<T: Clone + Eq + Hash + Send + 'static> Queue<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                queued: HashSet::new(),
                working: HashSet::new(),
                again: HashSet::new(),
                later: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
            }),
            changed: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a key now.
    pub(crate) fn add(&self, key: T) {
        let mut inner = self.inner();
        if inner.working.contains(&key) {
            inner.again.insert(key);
            return;
        }
        if inner.queued.insert(key.clone()) {
            inner.ready.push_back(key);
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Queues a key at the earlier of this and any delay it has already.
    pub(crate) fn add_after(&self, key: T, delay: Duration) {
        let mut inner = self.inner();
        let at = Instant::now() + delay;
        match inner.due.get(&key).copied() {
            Some((before, _)) if before <= at => return,
            Some(slot) => {
                inner.later.remove(&slot);
            }
            None => {}
        }
        inner.sequence += 1;
        let slot = (at, inner.sequence);
        inner.later.insert(slot, key.clone());
        inner.due.insert(key, slot);
        drop(inner);
        self.changed.notify_one();
    }

    /// The next key, or when to look again.
    fn take(&self) -> Result<T, Option<Instant>> {
        let mut inner = self.inner();
        let now = Instant::now();
        while let Some(entry) = inner.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            inner.due.remove(&key);
            if inner.working.contains(&key) {
                inner.again.insert(key);
            } else if inner.queued.insert(key.clone()) {
                inner.ready.push_back(key);
            }
        }
        match inner.ready.pop_front() {
            Some(key) => {
                inner.queued.remove(&key);
                inner.working.insert(key.clone());
                Ok(key)
            }
            None => Err(inner.later.first_key_value().map(|((at, _), _)| *at)),
        }
    }

    async fn next(&self) -> T {
        loop {
            let changed = self.changed.notified();
            match self.take() {
                Ok(key) => return key,
                Err(Some(at)) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                Err(None) => changed.await,
            }
        }
    }

    fn done(&self, key: T, outcome: &Outcome) {
        let mut inner = self.inner();
        inner.working.remove(&key);
        let again = inner.again.remove(&key);
        let delay = match outcome {
            Ok(delay) => {
                inner.failures.remove(&key);
                *delay
            }
            Err(_) => {
                let failures = inner.failures.entry(key.clone()).or_default();
                *failures += 1;
                Some((FIRST_RETRY * 2u32.saturating_pow((*failures).min(12))).min(LAST_RETRY))
            }
        };
        drop(inner);
        if let Some(delay) = delay {
            self.add_after(key.clone(), delay);
        }
        if again {
            self.add(key);
        }
    }

    /// Works on keys, at most `width` at once, until dropped. A panic counts as a failure of its key.
    pub(crate) async fn work<F, Fut>(&self, controller: &'static str, width: usize, reconcile: F)
    where
        F: Fn(T) -> Fut,
        Fut: Future<Output = Outcome>,
    {
        let one = |key: T| {
            let run = AssertUnwindSafe(tokio::time::timeout(DEADLINE, reconcile(key.clone()))).catch_unwind();
            async move {
                let outcome = match run.await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => Err(kube::Error::Service("a reconcile took too long".into())),
                    Err(_) => Err(kube::Error::Service("a reconcile panicked".into())),
                };
                if let Err(error) = &outcome
                    && !matches!(error, kube::Error::Api(s) if s.code == 409)
                {
                    tracing::debug!(controller, %error, "a reconcile failed and will be tried again");
                }
                self.done(key, &outcome);
            }
        };
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                key = self.next(), if running.len() < width => running.push(one(key)),
                Some(()) = running.next() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_queued_once_and_comes_back_when_it_changed_meanwhile() {
        let queue = Queue::new();
        queue.add(1);
        queue.add(1);
        assert_eq!(queue.next().await, 1);
        assert!(queue.take().is_err());
        queue.add(1);
        assert!(queue.take().is_err(), "one worker a key");
        queue.done(1, &Ok(None));
        assert_eq!(queue.take(), Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_earliest_time() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("b", Duration::from_secs(7));
        queue.add_after("b", Duration::from_secs(2));
        assert_eq!(queue.next().await, "b");
        assert_eq!(start.elapsed().as_secs(), 2);
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
