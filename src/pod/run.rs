//! Hands the steps that [`plan`](super::plan) decides on to those that perform them.
//!
//! Each key that the queue hands out becomes a task, if its node has a call free; otherwise the key is
//! parked at the node and comes back when one is. A task holds a worker's place while it runs, but gives
//! it back while a provider takes its time.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::admission;
use super::adopt::retry;
use super::cache::{Entry, Record, guard};
use super::facts::NodeFacts;
use super::node::NodeState;
use super::outage::Outage;
use super::plan::{AtProvider, Observed, Step, hash, plan};
use super::status::is_terminal;
use super::{Key, PodController};
use crate::cluster::queue::{Item, Outcome};
use crate::provider::{ProviderError, Result};

/// A provider call that takes longer does not hold a worker's place.
const SLOW: Duration = Duration::from_millis(50);
/// Steps taken in one go. Each step but the last changes what is known, so there are few.
const MAX_STEPS: usize = 8;
/// How long after its grace period a pod that has not ended is told again.
pub(super) const OVERDUE: Duration = Duration::from_secs(5);
/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

/// A worker's place, which can be given back for a while.
pub(super) struct Place {
    workers: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// For work that is bounded by other means.
    pub(super) fn none() -> Self {
        Self { workers: None, permit: None }
    }

    fn give_back(&mut self) {
        self.permit = None;
    }

    async fn take_again(&mut self) {
        if let Some(workers) = &self.workers
            && self.permit.is_none()
        {
            // Fails only when the semaphore is closed, which nobody does.
            self.permit = workers.clone().acquire_owned().await.ok();
        }
    }
}

impl PodController {
    /// Works until `shutdown`, then waits for the steps under way, for as long as a call may take.
    pub(super) async fn work(self: Arc<Self>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let next = async {
                let permit = self.workers.clone().acquire_owned().await.ok()?;
                Some((self.queue.next().await?, permit))
            };
            let Some(Some((item, permit))) = shutdown.run_until_cancelled(next).await else { break };
            let Some(node) = self.node_of(item.key()) else { continue };
            let Ok(call) = node.calls.clone().try_acquire_owned() else {
                node.park(item.key().clone());
                drop(item);
                // One may have become free before the key was parked.
                self.unpark(&node);
                continue;
            };
            let place = Place { workers: Some(self.workers.clone()), permit: Some(permit) };
            let controller = self.clone();
            tasks.spawn(async move { controller.perform(item, node, call, place).await });
        }
        tasks.close();
        if tokio::time::timeout(self.config.call_deadline, tasks.wait()).await.is_err() {
            tracing::warn!(steps = tasks.len(), "stopped while steps of pods were under way");
        }
    }

    fn node_of(&self, key: &Key) -> Option<Arc<NodeState>> {
        match key {
            Key::Pod(uid) => self.cache.entry(uid).map(|e| e.node),
            Key::Node(name) | Key::Stray(name, _) => self.cache.node(name),
        }
    }

    fn unpark(&self, node: &NodeState) {
        if node.calls.available_permits() > 0
            && let Some(key) = node.unpark()
        {
            self.queue.add(key);
        }
    }

    async fn perform(
        self: Arc<Self>,
        item: Item<Key>,
        node: Arc<NodeState>,
        call: OwnedSemaphorePermit,
        mut place: Place,
    ) {
        let step = async {
            match item.key() {
                Key::Node(_) => self.compare(&node, &mut place).await,
                Key::Stray(_, pod) => self.clear_stray(&node, pod, &mut place).await,
                Key::Pod(uid) => match self.cache.entry(uid) {
                    Some(entry) => {
                        let pod = || guard(&entry.record).reference.clone();
                        let span = tracing::info_span!("reconcile pod", node = %node.name, pod = %pod(), %uid);
                        self.reconcile(&entry, &mut place).instrument(span).await
                    }
                    None => Outcome::Done,
                },
            }
        };
        let outcome = AssertUnwindSafe(step).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(key = ?item.key(), "a step panicked; it is tried again");
            Outcome::Retry
        });
        if node.removed() {
            self.queue.forget(item.key());
        } else {
            self.queue.settle(item.key(), outcome);
        }
        drop(item);
        drop(call);
        self.unpark(&node);
    }

    /// Calls a provider: within the deadline, without a worker's place while it takes its time, and with a
    /// panic taken for an outage. An answer ends the waiting of what failed in calls of the same sort.
    pub(super) async fn call<T>(
        &self,
        node: &NodeState,
        place: &mut Place,
        waiting: &Outage<Key>,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let deadline = self.config.call_deadline;
        let caught = AssertUnwindSafe(call).catch_unwind();
        let mut timed = std::pin::pin!(tokio::time::timeout(deadline, caught));
        let answer = match tokio::time::timeout(SLOW.min(deadline), timed.as_mut()).await {
            Ok(answer) => answer,
            Err(_) => {
                place.give_back();
                let answer = timed.await;
                place.take_again().await;
                answer
            }
        };
        let result = match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                tracing::error!(node = %node.name, "the provider panicked");
                Err(ProviderError::unavailable("the provider panicked"))
            }
            Err(_) => Err(ProviderError::unavailable(format!("no answer within {deadline:?}"))),
        };
        if !matches!(result, Err(ProviderError::Unavailable { .. })) {
            self.release(waiting.answered());
        }
        result
    }

    /// Tries again at once what waited for an answer.
    pub(super) fn release(&self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            self.queue.forget(&key);
            self.queue.add(key);
        }
    }

    /// When to try again after a provider's error: at its word, after the key's back-off, or as soon as the
    /// provider answers anything.
    pub(super) fn after_outage(&self, waiting: &Outage<Key>, key: Key, error: &ProviderError) -> Outcome {
        if let ProviderError::Unavailable { retry_after: None, .. } = error {
            waiting.failed(key);
        }
        retry(error)
    }

    async fn reconcile(&self, entry: &Entry, place: &mut Place) -> Outcome {
        let node = &entry.node;
        for _ in 0..MAX_STEPS {
            // Until then nothing is known; afterwards every pod of the node is queued.
            if !node.adopted() || !node.may_act() {
                return Outcome::Done;
            }
            let provider = node.provider();
            let (step, reference, pod) = {
                let record = guard(&entry.record);
                if record.deleted && !record.gone && record.at_provider == AtProvider::Absent {
                    return Outcome::Done;
                }
                let pod = record.pod.unpack();
                let observed = observed(&record, &pod, provider.capabilities().volatile, &node.facts());
                (plan(&observed), record.reference.clone(), pod)
            };
            let next = match step {
                Step::Ask => self.ask(entry, &reference, place).await,
                Step::Create => self.create(entry, &pod, false, place).await,
                Step::Restore => self.create(entry, &pod, true, place).await,
                Step::Update => self.update(entry, &pod, place).await,
                Step::Stop(grace) => self.stop(entry, &pod, grace, place).await,
                Step::Hold => Err(self.hold(entry, &pod).await),
                Step::WriteStatus => Err(self.write(entry, &pod).await),
                Step::Vanished => self.vanish(entry, &pod).await,
                Step::Finish => self.finish(entry, &pod).await,
                Step::Delete => self.delete(entry).await,
                Step::Purge => self.purge(entry, &reference, place).await,
                Step::Forget => {
                    self.cache.forget(&reference.uid);
                    self.feed.forget(&reference.uid);
                    self.sources.tokens.forget(&reference.uid);
                    (self.config.on_counts)(&node.name);
                    Err(Outcome::Done)
                }
            };
            if let Err(outcome) = next {
                return outcome;
            }
        }
        Outcome::Retry
    }
}

/// `Ok`: look what is next. `Err`: enough for now.
pub(super) type Next = std::result::Result<(), Outcome>;

fn observed(record: &Record, pod: &Pod, volatile: bool, facts: &NodeFacts) -> Observed {
    let meta = &pod.metadata;
    let written = record.written.as_ref().map(|written| &written.1);
    let status = written.or(pod.status.as_ref());
    let mut grace = Duration::from_secs(
        u64::try_from(meta.deletion_grace_period_seconds.unwrap_or(DEFAULT_GRACE)).unwrap_or_default(),
    );
    let now = Instant::now();
    let overdue = record.stop_by.is_some_and(|by| now > by + OVERDUE);
    if overdue {
        grace = Duration::ZERO;
    }
    Observed {
        gone: record.gone || (record.deleted && record.at_provider != AtProvider::Absent),
        deleting: meta.deletion_timestamp.is_some(),
        terminal: status.is_some_and(is_terminal),
        accepted: status.is_some_and(|s| s.start_time.is_some()),
        refused: record.refused.is_some(),
        at_provider: record.at_provider,
        volatile,
        seen: record.seen,
        terminated: record.observation.as_ref().is_some_and(|o| o.terminated()),
        observed: record.observation.is_some(),
        // The time that is left only shrinks, so a later time is a shorter grace period asked for since.
        stop_asked: !overdue && record.stop_by.is_some_and(|by| by <= now + grace),
        up_to_date: record.applied == Some(hash(pod)) && !record.stale,
        held: admission::is_static(pod) || (!facts.daemon_set_pods && admission::is_of_daemon_set(pod)),
        grace,
    }
}
