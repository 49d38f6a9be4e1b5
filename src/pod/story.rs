//! The steps that tell the API server, and the events beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod, PodStatus};
use tokio::time::Instant;

use super::cache::{Entry, Trouble, guard};
use super::resolve::Obstacle;
use super::run::{Next, OVERDUE};
use super::status::{self, Situation, Story};
use super::write::{self, Written};
use super::{Key, PodController, admission};
use crate::cluster::queue::Outcome;
use crate::provider::{EventType, PodEvent, PodRef};

impl PodController {
    pub(super) async fn write(&self, entry: &Entry, pod: &Pod) -> Outcome {
        let (observation, refused, trouble, stop_by) = {
            let record = guard(&entry.record);
            (record.observed(), record.refused.clone(), record.trouble.clone(), record.stop_by)
        };
        let outcome = match (&observation, &refused, &trouble) {
            (_, Some((reason, message)), _) => self.write_story(entry, pod, Story::Refused(reason, message)).await,
            (Some(observation), ..) => self.write_story(entry, pod, Story::Observed(observation)).await,
            (None, None, Some((Trouble::Provider(message), _))) => {
                self.write_story(entry, pod, Story::Waiting("ProviderFailed", message)).await
            }
            (None, None, Some((Trouble::Obstacle(Obstacle::Containers(failed)), _))) => {
                self.write_story(entry, pod, Story::Unresolved(failed)).await
            }
            (None, None, Some((Trouble::Obstacle(Obstacle::Volumes(_)), _))) => {
                self.write_story(entry, pod, Story::Unresolved(&BTreeMap::new())).await
            }
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
        let (reference, base, resize) = {
            let record = guard(&entry.record);
            (record.reference.clone(), record.status(pod), record.resize)
        };
        let new = status::status(&Situation { pod, base: &base, story, host_ip, now: Timestamp::now(), resize });
        let Some(patch) = status::patch(&reference.uid, &base, &new) else { return Outcome::Done };
        if !entry.node.provider().capabilities().events {
            self.tell_of_change(pod, &base, &new);
        }
        match write::patch_status(&self.client, &reference, &patch).await {
            Written::Done(version) => {
                self.release(self.api.answered());
                if status::is_terminal(&new) {
                    // Nothing of it changes any more.
                    self.feed.forget(&reference.uid);
                    self.sources.tokens.forget(&reference.uid);
                }
                let mut record = guard(&entry.record);
                // The watch may have been faster.
                if version == 0 || record.pod.version() < version {
                    record.written = Some(Box::new((version, new)));
                }
                Outcome::Done
            }
            // Who answers a write knows the latest; a watch may be fed from a cache that is behind.
            Written::Missing => {
                self.note(self.cache.gone(&reference.uid, Some(&entry.node.name)));
                Outcome::Done
            }
            // The watch brings what happened to it.
            Written::Conflict => Outcome::Done,
            Written::Refused(message) => {
                tracing::warn!(pod = %reference, node = %entry.node.name, message, "the API server refused a status");
                Outcome::Retry
            }
            Written::Later(message, after) => {
                tracing::debug!(pod = %reference, message, "a status could not be written; tried again");
                self.after_silence(&reference, after)
            }
        }
    }

    pub(super) async fn vanish(&self, entry: &Entry, pod: &Pod) -> Next {
        self.tell(pod, true, "NotFound", "the provider no longer has this pod".into());
        match self.write_story(entry, pod, Story::Vanished).await {
            Outcome::Done => Err(Outcome::Done),
            other => Err(other),
        }
    }

    pub(super) async fn finish(&self, entry: &Entry, pod: &Pod) -> Next {
        let observation = guard(&entry.record).observed();
        let story = observation.as_ref().map_or(Story::Vanished, Story::Observed);
        match self.write_story(entry, pod, story).await {
            Outcome::Done => self.delete(entry).await,
            other => Err(other),
        }
    }

    /// Deletes the pod from the API server. What the provider has of it is removed next.
    pub(super) async fn delete(&self, entry: &Entry) -> Next {
        let reference = guard(&entry.record).reference.clone();
        match write::delete(&self.client, &reference).await {
            Written::Done(_) | Written::Missing | Written::Conflict => {
                guard(&entry.record).deleted = true;
                Ok(())
            }
            Written::Refused(message) => {
                tracing::warn!(pod = %reference, message, "the API server refused to delete a pod that has ended");
                Err(Outcome::Retry)
            }
            Written::Later(_, after) => Err(self.after_silence(&reference, after)),
        }
    }

    /// Says why a pod stays Pending on a node that leaves it alone.
    pub(super) async fn hold(&self, entry: &Entry, pod: &Pod) -> Outcome {
        if admission::is_static(pod) {
            // A mirror of something else's pod: that one tells of it.
            return Outcome::Done;
        }
        let provider = entry.node.facts().provider.clone();
        let message = format!(
            "node {} is virtual and leaves pods of DaemonSets alone, since its provider {provider} is no machine for node agents; \
             set spec.daemonSetPods: Run on its VirtualNode to run them, or keep the DaemonSet away with a node selector",
            entry.node.name
        );
        self.write_story(entry, pod, Story::Held("DaemonSetPodsIgnored", &message)).await
    }

    /// When to write again: at the API server's word, after the pod's back-off, or as soon as the API server
    /// answers anything.
    fn after_silence(&self, pod: &PodRef, after: Option<Duration>) -> Outcome {
        match after {
            Some(after) => Outcome::RetryAfter(after),
            None => {
                self.api.failed(Key::Pod(pod.uid.clone()));
                Outcome::Retry
            }
        }
    }

    pub(super) fn tell(&self, pod: &Pod, warning: bool, reason: &str, message: String) {
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
        if let (Some(reason @ "DeadlineExceeded"), Some(message)) = (new.reason.as_deref(), &new.message)
            && old.reason.as_deref() != Some(reason)
        {
            self.tell(pod, false, reason, message.clone());
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
                let of = PodRef::of(pod);
                let of = format!("{}_{}({})", of.name, of.namespace, of.uid);
                let message = format!("Back-off restarting failed container {} in pod {of}", now.name);
                self.tell(pod, true, "BackOff", message);
            }
        }
    }
}
