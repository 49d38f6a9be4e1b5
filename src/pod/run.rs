//! Performs the steps that [`plan`](super::plan) decides on.
//!
//! Each key that the queue hands out becomes a task, if its node has a call free; otherwise the key is
//! parked at the node and comes back when one is. A task holds a worker's place while it runs, but gives
//! it back while a provider takes its time.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod, PodStatus};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::adopt::retry;
use super::cache::{Entry, NodeState, Record, Trouble, guard};
use super::environment::Resolver;
use super::plan::{AtProvider, Observed, Step, hash, plan};
use super::status::{self, Situation, Story, is_terminal};
use super::write::{self, Written};
use super::{Key, PodController};
use crate::cluster::queue::{Item, Outcome};
use crate::provider::{EventType, PodEvent, PodRef, ProviderError, ResolvedPod, Result};

/// A provider call that takes longer does not hold a worker's place.
const SLOW: Duration = Duration::from_millis(50);
/// Steps taken in one go. Each step but the last changes what is known, so there are few.
const MAX_STEPS: usize = 8;
/// How long after its grace period a pod that has not ended is told again.
const OVERDUE: Duration = Duration::from_secs(5);
/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;

/// A worker's place, which can be given back for a while.
pub(super) struct Place {
    workers: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// For work that is bounded by other means.
    pub fn none() -> Self {
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
                    Some(entry) => self.reconcile(&entry, &mut place).await,
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
    /// panic taken for an outage.
    pub(super) async fn call<T>(
        &self,
        node: &NodeState,
        place: &mut Place,
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
        match answer {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                tracing::error!(node = %node.name, "the provider panicked");
                Err(ProviderError::unavailable("the provider panicked"))
            }
            Err(_) => Err(ProviderError::unavailable(format!("no answer within {deadline:?}"))),
        }
    }

    async fn reconcile(&self, entry: &Entry, place: &mut Place) -> Outcome {
        let node = &entry.node;
        for _ in 0..MAX_STEPS {
            // Until then nothing is known; afterwards every pod of the node is queued.
            if !node.adopted() || !node.reachable() || node.removed() {
                return Outcome::Done;
            }
            let provider = node.provider();
            let (step, reference, pod) = {
                let record = guard(&entry.record);
                if record.deleted && !record.gone && record.at_provider == AtProvider::Absent {
                    return Outcome::Done;
                }
                (
                    plan(&observed(&record, provider.capabilities().volatile)),
                    record.reference.clone(),
                    record.pod.clone(),
                )
            };
            let next = match step {
                Step::Ask => self.ask(entry, &reference, place).await,
                Step::Create => self.create(entry, &pod, false, place).await,
                Step::Restore => self.create(entry, &pod, true, place).await,
                Step::Update => self.update(entry, &pod, place).await,
                Step::Stop(grace) => self.stop(entry, &pod, grace, place).await,
                Step::WriteStatus => Err(self.write(entry, &pod).await),
                Step::Vanished => self.vanish(entry, &pod).await,
                Step::Finish => self.finish(entry, &pod).await,
                Step::Delete => self.delete(entry).await,
                Step::Purge => self.purge(entry, &reference, place).await,
                Step::Forget => {
                    self.cache.forget(&reference.uid);
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

    async fn ask(&self, entry: &Entry, pod: &PodRef, place: &mut Place) -> Next {
        let asked = self.cache.moment();
        let provider = entry.node.provider();
        match self.call(&entry.node, place, provider.get_pod(pod)).await {
            Ok(observation) => {
                self.cache.observe(&entry.node.name, observation, Some(asked));
                Ok(())
            }
            Err(ProviderError::NotFound(_)) => {
                let mut record = guard(&entry.record);
                if record.observed_at <= asked {
                    record.at_provider = AtProvider::Absent;
                    record.observation = None;
                }
                Ok(())
            }
            Err(error) => Err(retry(&error)),
        }
    }

    async fn create(&self, entry: &Entry, pod: &Arc<Pod>, restore: bool, place: &mut Place) -> Next {
        let node = &entry.node;
        let resolver = Resolver { objects: &self.objects, pod, host_ip: node.host_ip() };
        let containers = match resolver.resolve().await {
            Ok((containers, remarks)) => {
                for remark in remarks {
                    self.tell(pod, true, &remark.reason, remark.message);
                }
                containers
            }
            // It ran before with what there was then; that something is missing now must not end it.
            Err(_) if restore => Default::default(),
            Err(remark) => {
                self.tell(pod, true, &remark.reason, remark.message.clone());
                return Err(self.held_up(entry, pod, "CreateContainerConfigError", remark.message).await);
            }
        };
        let resolved = ResolvedPod { pod: pod.clone(), containers, ..ResolvedPod::default() };
        let provider = node.provider();
        let call = async {
            match restore {
                true => provider.restore_pod(&resolved).await,
                false => provider.create_pod(&resolved).await,
            }
        };
        match self.call(node, place, call).await {
            Ok(()) => {
                let mut record = guard(&entry.record);
                record.at_provider = AtProvider::Present;
                record.applied = Some(hash(pod));
                record.trouble = None;
                record.seen = true;
                Ok(())
            }
            Err(error) if error.is_final() => {
                let message = error.to_string();
                self.tell(pod, true, "ProviderCreateFailed", message.clone());
                guard(&entry.record).refused = Some((error.reason().to_owned(), message));
                Ok(())
            }
            Err(error) => {
                self.tell(pod, true, "ProviderCreateFailed", error.to_string());
                // It may have taken effect all the same.
                guard(&entry.record).at_provider = AtProvider::Unknown;
                if restore {
                    return Err(retry(&error));
                }
                match (self.held_up(entry, pod, "ProviderFailed", error.to_string()).await, retry(&error)) {
                    (Outcome::Retry, wanted) => Err(wanted),
                    (other, _) => Err(other),
                }
            }
        }
    }

    /// Shows why the pod does not start. Always to be tried again.
    async fn held_up(&self, entry: &Entry, pod: &Pod, reason: &'static str, message: String) -> Outcome {
        let trouble = Trouble { reason, message };
        guard(&entry.record).trouble = Some(trouble.clone());
        match self.write_story(entry, pod, Story::Waiting(trouble.reason, &trouble.message)).await {
            Outcome::Done => Outcome::Retry,
            other => other,
        }
    }

    async fn update(&self, entry: &Entry, pod: &Arc<Pod>, place: &mut Place) -> Next {
        let node = &entry.node;
        let resolver = Resolver { objects: &self.objects, pod, host_ip: node.host_ip() };
        let containers = match resolver.resolve().await {
            Ok((containers, _)) => containers,
            Err(remark) => {
                self.tell(pod, true, &remark.reason, remark.message);
                return Err(Outcome::Retry);
            }
        };
        let resolved = ResolvedPod { pod: pod.clone(), containers, ..ResolvedPod::default() };
        let provider = node.provider();
        match self.call(node, place, provider.update_pod(&resolved)).await {
            Ok(()) => {}
            Err(ProviderError::NotFound(_)) => {
                guard(&entry.record).at_provider = AtProvider::Unknown;
                return Ok(());
            }
            // What it refuses once it refuses again: the pod keeps running as it is.
            Err(error) if error.is_final() => self.tell(pod, true, "ProviderUpdateFailed", error.to_string()),
            Err(error) => {
                self.tell(pod, true, "ProviderUpdateFailed", error.to_string());
                return Err(retry(&error));
            }
        }
        guard(&entry.record).applied = Some(hash(pod));
        Ok(())
    }

    async fn stop(&self, entry: &Entry, pod: &Pod, grace: Duration, place: &mut Place) -> Next {
        if self.events.is_idle() && !entry.node.provider().capabilities().events {
            for container in pod.spec.iter().flat_map(|s| &s.containers) {
                self.tell(pod, false, "Killing", format!("Stopping container {}", container.name));
            }
        }
        let reference = PodRef::of(pod);
        let provider = entry.node.provider();
        match self.call(&entry.node, place, provider.stop_pod(&reference, grace)).await {
            Ok(()) => {
                guard(&entry.record).stop_by = Some(Instant::now() + grace);
                Ok(())
            }
            Err(ProviderError::NotFound(_)) => {
                guard(&entry.record).at_provider = AtProvider::Absent;
                Ok(())
            }
            Err(error) => {
                self.tell(pod, true, "ProviderDeleteFailed", error.to_string());
                Err(retry(&error))
            }
        }
    }

    async fn write(&self, entry: &Entry, pod: &Pod) -> Outcome {
        let (observation, refused, trouble, stop_by) = {
            let record = guard(&entry.record);
            (record.observation.clone(), record.refused.clone(), record.trouble.clone(), record.stop_by)
        };
        let outcome = match (&observation, &refused, &trouble) {
            (_, Some((reason, message)), _) => self.write_story(entry, pod, Story::Refused(reason, message)).await,
            (Some(observation), ..) => self.write_story(entry, pod, Story::Observed(observation)).await,
            (None, None, Some(t)) => self.write_story(entry, pod, Story::Waiting(t.reason, &t.message)).await,
            (None, None, None) => Outcome::Done,
        };
        match (outcome, stop_by) {
            // A pod that does not end in time is told again.
            (Outcome::Done, Some(by)) => Outcome::After(by.saturating_duration_since(Instant::now()) + OVERDUE),
            (other, _) => other,
        }
    }

    /// Writes the status if it differs from what is there.
    async fn write_story(&self, entry: &Entry, pod: &Pod, story: Story<'_>) -> Outcome {
        let host_ip = entry.node.host_ip();
        let (reference, base) = {
            let record = guard(&entry.record);
            (record.reference.clone(), record.status())
        };
        let new = status::status(&Situation { pod, base: &base, story, host_ip, now: Timestamp::now() });
        let Some(patch) = status::patch(&reference.uid, &base, &new) else { return Outcome::Done };
        if !entry.node.provider().capabilities().events {
            self.tell_of_change(pod, &base, &new);
        }
        match write::patch_status(&self.client, &reference, &patch).await {
            Written::Done(version) => {
                let mut record = guard(&entry.record);
                // The watch may have been faster.
                if version == 0 || super::cache::version(&record.pod) < version {
                    record.written = Some((version, new));
                }
                Outcome::Done
            }
            // The watch brings what happened to it.
            Written::Gone => Outcome::Done,
            Written::Refused(message) => {
                tracing::warn!(pod = %reference, node = %entry.node.name, message, "the API server refused a status");
                Outcome::Retry
            }
            Written::Later(message, after) => {
                tracing::debug!(pod = %reference, message, "a status could not be written; tried again");
                after.map_or(Outcome::Retry, Outcome::RetryAfter)
            }
        }
    }

    async fn vanish(&self, entry: &Entry, pod: &Pod) -> Next {
        self.tell(pod, true, "NotFound", "the provider no longer has this pod".into());
        match self.write_story(entry, pod, Story::Vanished).await {
            Outcome::Done => Err(Outcome::Done),
            other => Err(other),
        }
    }

    async fn finish(&self, entry: &Entry, pod: &Pod) -> Next {
        let observation = guard(&entry.record).observation.clone();
        let story = observation.as_ref().map_or(Story::Vanished, Story::Observed);
        match self.write_story(entry, pod, story).await {
            Outcome::Done => self.delete(entry).await,
            other => Err(other),
        }
    }

    /// Deletes the pod from the API server. What the provider has of it is removed next.
    async fn delete(&self, entry: &Entry) -> Next {
        let reference = guard(&entry.record).reference.clone();
        match write::delete(&self.client, &reference).await {
            Written::Done(_) | Written::Gone => {
                guard(&entry.record).deleted = true;
                Ok(())
            }
            Written::Refused(message) => {
                tracing::warn!(pod = %reference, message, "the API server refused to delete a pod that has ended");
                Err(Outcome::Retry)
            }
            Written::Later(_, after) => Err(after.map_or(Outcome::Retry, Outcome::RetryAfter)),
        }
    }

    async fn purge(&self, entry: &Entry, pod: &PodRef, place: &mut Place) -> Next {
        let provider = entry.node.provider();
        let call = async {
            match provider.stop_pod(pod, Duration::ZERO).await {
                Err(error @ ProviderError::Unavailable { .. }) => Err(error),
                // Removing kills what still runs.
                _ => provider.remove_pod(pod).await,
            }
        };
        match self.call(&entry.node, place, call).await {
            Ok(()) => {
                let mut record = guard(&entry.record);
                record.at_provider = AtProvider::Absent;
                record.observation = None;
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%pod, node = %entry.node.name, %error, "a pod could not be removed from the provider; tried again");
                Err(retry(&error))
            }
        }
    }

    fn tell(&self, pod: &Pod, warning: bool, reason: &str, message: String) {
        let meta = &pod.metadata;
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        self.events.emit(about, warning, reason, message);
    }

    /// An event of a provider.
    pub(super) fn told(&self, event: PodEvent) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(event.pod.name.to_string()),
            namespace: Some(event.pod.namespace.to_string()),
            uid: Some(event.pod.uid.to_string()),
            resource_version: None,
            field_path: event.field,
        };
        self.events.emit(about, event.kind == EventType::Warning, event.reason, event.message);
    }

    /// kubelet's Started and BackOff, when there is time for them.
    fn tell_of_change(&self, pod: &Pod, old: &PodStatus, new: &PodStatus) {
        if !self.events.is_idle() || self.queue.len() > self.config.workers {
            return;
        }
        let before = |name: &str| old.container_statuses.iter().flatten().find(|c| c.name == name);
        for now in new.container_statuses.iter().flatten() {
            let Some(state) = &now.state else { continue };
            let was = before(&now.name);
            let started = |c: &ContainerStatus| c.state.as_ref().and_then(|s| s.running.as_ref()).is_some();
            if state.running.is_some() && !was.is_some_and(|c| started(c) && c.restart_count == now.restart_count) {
                self.tell(pod, false, "Started", format!("Started container {}", now.name));
            }
            if state.waiting.as_ref().is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff")) {
                let message = format!("Back-off restarting failed container {} in pod {}", now.name, PodRef::of(pod));
                self.tell(pod, true, "BackOff", message);
            }
        }
    }
}

/// `Ok`: look what is next. `Err`: enough for now.
type Next = std::result::Result<(), Outcome>;

fn observed(record: &Record, volatile: bool) -> Observed {
    let meta = &record.pod.metadata;
    let written = record.written.as_ref().map(|(_, status)| status);
    let status = written.or(record.pod.status.as_ref());
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
        terminated: record.observation.as_ref().is_some_and(|o| o.is_terminated()),
        observed: record.observation.is_some(),
        // The time that is left only shrinks, so a later time is a shorter grace period asked for since.
        stop_asked: !overdue && record.stop_by.is_some_and(|by| by <= now + grace),
        up_to_date: record.applied == Some(hash(&record.pod)),
        grace,
    }
}
