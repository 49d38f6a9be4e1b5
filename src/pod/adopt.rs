//! Comparing a node's pods with what its provider has: after a restart, now and then, and at the end.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rand::Rng as _;

use super::cache::guard;
use super::node::NodeState;
use super::plan::AtProvider;
use super::run::Place;
use super::{Key, PodController, write};
use crate::cluster::queue::Outcome;
use crate::provider::{PodRef, ProviderError};

impl PodController {
    /// Asks the provider for all its pods, and draws the conclusions. Nothing is concluded before every pod
    /// of the cluster has been seen.
    pub(super) async fn compare(&self, node: &Arc<NodeState>, place: &mut Place) -> Outcome {
        if !self.knows(&node.name) || !node.may_act() {
            // Comes back when that changes.
            return Outcome::Done;
        }
        if self.cache.needs_listing(&node.name) {
            match write::list_of_node(&self.client, &node.name).await {
                Ok(pods) => self.cache.listed(node, pods),
                Err(error) => {
                    tracing::warn!(node = %node.name, error, "the node's pods could not be listed; tried again");
                    return Outcome::Retry;
                }
            }
            (self.config.on_counts)(&node.name);
        }
        let asked = self.cache.moment();
        let provider = node.provider();
        let listed = match self.call(node, place, &node.reads, provider.list_pods()).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::debug!(node = %node.name, %error, "the provider could not list its pods; tried again");
                return self.after_outage(&node.reads, Key::Node(node.name.clone()), &error);
            }
        };
        let first = !node.adopted();
        let mut found = HashSet::new();
        for observation in listed {
            let pod = observation.pod.clone();
            found.insert(pod.uid.clone());
            if self.cache.entry(&pod.uid).is_none() {
                self.queue.add(Key::Stray(node.name.clone(), pod));
            } else if self.cache.observe(&node.name, observation, Some(asked)) {
                self.queue.add(Key::Pod(pod.uid));
            }
        }
        for uid in self.cache.uids(&node.name) {
            if found.contains(&uid) {
                continue;
            }
            let Some(entry) = self.cache.entry(&uid) else { continue };
            let mut record = guard(&entry.record);
            match record.at_provider {
                AtProvider::Unknown if first => record.at_provider = AtProvider::Absent,
                // It may have been created after the question, so it is asked for by itself.
                AtProvider::Present if record.observed_at <= asked => record.at_provider = AtProvider::Unknown,
                _ => continue,
            }
            drop(record);
            self.queue.add(Key::Pod(uid));
        }
        if node.set_adopted() {
            self.requeue(&node.name);
        }
        let interval =
            if provider.capabilities().notifies { self.config.resync_interval } else { self.config.poll_interval };
        // Spread, so that nodes that were added together are not asked together for ever.
        Outcome::After(interval.mul_f64(rand::rng().random_range(0.9..=1.1)))
    }

    /// Removes a pod from the provider that the cluster does not know.
    pub(super) async fn clear_stray(&self, node: &Arc<NodeState>, pod: &PodRef, place: &mut Place) -> Outcome {
        if !node.may_act() || self.cache.entry(&pod.uid).is_some() {
            return Outcome::Done;
        }
        match write::exists(&self.client, pod).await {
            Ok(false) => {}
            // The watch will bring it.
            Ok(true) => return Outcome::Done,
            Err(_) => return Outcome::Retry,
        }
        let provider = node.provider();
        match self.call(node, place, &node.writes, provider.remove_pod(pod)).await {
            Ok(()) => {
                tracing::info!(node = %node.name, %pod, uid = %pod.uid, "removed a pod at the provider that the cluster does not know");
                Outcome::Done
            }
            Err(error) => retry(&error),
        }
    }

    /// Removes everything a node's provider has. Returns how many pods are left.
    pub(super) async fn clear_node(&self, node: &Arc<NodeState>, deadline: Duration) -> usize {
        if !node.reachable() {
            return 0;
        }
        let provider = node.provider();
        let left = std::sync::atomic::AtomicUsize::new(0);
        let clear = async {
            let mut place = Place::none();
            let Ok(pods) = self.call(node, &mut place, &node.reads, provider.list_pods()).await else { return };
            left.store(pods.len(), std::sync::atomic::Ordering::Relaxed);
            let calls =
                futures::stream::iter(pods).map(|observation| {
                    let provider = provider.clone();
                    async move {
                        self.call(node, &mut Place::none(), &node.writes, provider.remove_pod(&observation.pod)).await
                    }
                });
            let mut calls = std::pin::pin!(calls.buffer_unordered(self.config.per_node_calls.max(1)));
            while let Some(result) = calls.next().await {
                if result.is_ok() {
                    left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        };
        // What is left at the deadline is counted.
        let _ = tokio::time::timeout(deadline, clear).await;
        left.into_inner()
    }
}

/// When to try again after a provider's error.
pub(super) fn retry(error: &ProviderError) -> Outcome {
    match error {
        ProviderError::Unavailable { retry_after: Some(after), .. } => Outcome::RetryAfter(*after),
        _ => Outcome::Retry,
    }
}
