//! The steps that call a node's provider.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rand::Rng as _;
use tokio::time::Instant;

use super::cache::{Entry, Given, Trouble, guard};
use super::plan::{AtProvider, hash, resources_hash};
use super::resolve::{Gathered, Obstacle, Resolver};
use super::run::{Next, Place};
use super::status::Resize;
use super::{Key, PodController, admission, support};
use crate::cluster::queue::Outcome;
use crate::provider::{Capabilities, PodFeature, PodRef, ProviderError, ResolvedPod, ResolvedVolume, VolumeFiles};

/// How soon a pod that waits for a ConfigMap or Secret looks for it again. What is read is shared by all pods
/// that wait for it, so this can be short.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// How soon a running pod does.
const LOOK_AGAIN_RUNNING: Duration = Duration::from_secs(20);
/// How long the same trouble is not told again.
const TOLD_FOR: Duration = Duration::from_secs(300);

fn key(pod: &PodRef) -> Key {
    Key::Pod(pod.uid.clone())
}

impl PodController {
    pub(super) async fn ask(&self, entry: &Entry, pod: &PodRef, place: &mut Place) -> Next {
        let asked = self.cache.moment();
        let provider = entry.node.provider();
        match self.call(&entry.node, place, &entry.node.reads, provider.get_pod(pod)).await {
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
            Err(error) => Err(self.after_outage(&entry.node.reads, key(pod), &error)),
        }
    }

    async fn resolve(
        &self,
        entry: &Entry,
        pod: &Arc<Pod>,
        capabilities: Capabilities,
    ) -> (Result<ResolvedPod, Obstacle>, Gathered) {
        let node = &entry.node;
        let facts = node.facts();
        let (sources, host_ip) = (&*self.sources, node.host_ip());
        let resolver = Resolver { sources, pod, node: &node.name, host_ip, facts: &facts, capabilities };
        resolver.resolve().await
    }

    /// False when the node does not take the pod, which is then noted as refused.
    fn admit(&self, entry: &Entry, pod: &Pod, capabilities: &Capabilities) -> bool {
        let node = &entry.node;
        let facts = node.facts();
        let (uid, requests, admitted, warned) = {
            let record = guard(&entry.record);
            (record.reference.uid.clone(), record.requests.clone(), record.admitted, record.warned)
        };
        let refuse = |reason: String, message: String| {
            let mut record = guard(&entry.record);
            record.admitted = false;
            record.refused = Some((reason, message));
            false
        };
        if !warned {
            let mut lacking = support::lacking(pod, capabilities.pod);
            let refused = !lacking.is_empty() && facts.reject_unsupported || lacking.iter().any(|l| l.essential);
            if refused && !facts.reject_unsupported {
                lacking.retain(|l| l.essential);
            }
            if !lacking.is_empty() {
                let sentence = support::sentence(&facts.provider, &lacking, refused);
                self.tell(pod, true, "UnsupportedField", sentence.clone());
                if refused {
                    return refuse("UnsupportedField".into(), sentence);
                }
            }
            guard(&entry.record).warned = true;
        }
        if !admitted {
            let _turn = guard(&node.admission);
            let (used, pods) = self.cache.used(&node.name, &uid);
            if let Err(rejection) = admission::admit(pod, &requests, &facts, &used, pods) {
                self.tell(pod, true, &rejection.reason, rejection.message.clone());
                return refuse(rejection.reason, format!("Pod was rejected: {}", rejection.message));
            }
            guard(&entry.record).admitted = true;
        }
        true
    }

    pub(super) async fn create(&self, entry: &Entry, pod: &Arc<Pod>, restore: bool, place: &mut Place) -> Next {
        let node = &entry.node;
        let provider = node.provider();
        let capabilities = provider.capabilities();
        if !restore && !self.admit(entry, pod, &capabilities) {
            return Ok(());
        }
        let (resolved, gathered) = self.resolve(entry, pod, capabilities).await;
        let resolved = match resolved {
            Ok(resolved) => {
                for remark in &gathered.remarks {
                    self.tell(pod, true, remark.reason, remark.message.clone());
                }
                resolved
            }
            // It ran before with what there was then; that something is missing now must not end it.
            Err(_) if restore => ResolvedPod { pod: pod.clone(), ..ResolvedPod::default() },
            Err(obstacle) => {
                if self.held_up(entry, Trouble::Obstacle(obstacle.clone())) {
                    for remark in obstacle.remarks() {
                        self.tell(pod, true, remark.reason, remark.message);
                    }
                }
                let outcome = self.write(entry, pod).await;
                let again = LOOK_AGAIN.mul_f64(rand::rng().random_range(0.5..1.0));
                return Err(if outcome == Outcome::Done { Outcome::After(again) } else { outcome });
            }
        };
        let call = async {
            match restore {
                true => provider.restore_pod(&resolved).await,
                false => provider.create_pod(&resolved).await,
            }
        };
        match self.call(node, place, &node.writes, call).await {
            Ok(()) => {
                {
                    let mut record = guard(&entry.record);
                    record.at_provider = AtProvider::Present;
                    record.applied = Some(hash(pod));
                    record.trouble = None;
                    record.stale = false;
                    record.seen = true;
                    record.resources = (!restore).then(|| resources_hash(pod));
                }
                self.gave(entry, &resolved, gathered, &capabilities);
                Ok(())
            }
            Err(error) if error.is_final() => {
                let message = error.to_string();
                self.tell(pod, true, "ProviderCreateFailed", message.clone());
                guard(&entry.record).refused = Some((error.reason().to_owned(), message));
                Ok(())
            }
            Err(error) => {
                // It may have taken effect all the same.
                guard(&entry.record).at_provider = AtProvider::Unknown;
                let wanted = self.after_outage(&node.writes, key(&resolved.pod_ref()), &error);
                if self.held_up(entry, Trouble::Provider(error.to_string())) {
                    self.tell(pod, true, "ProviderCreateFailed", error.to_string());
                }
                if restore {
                    return Err(wanted);
                }
                match self.write(entry, pod).await {
                    Outcome::Done => Err(wanted),
                    other => Err(other),
                }
            }
        }
    }

    /// Notes why the pod does not start. True when that has not been told for a while.
    fn held_up(&self, entry: &Entry, trouble: Trouble) -> bool {
        let mut record = guard(&entry.record);
        let now = Instant::now();
        if record.trouble.as_ref().is_some_and(|(old, at)| *old == trouble && now < *at + TOLD_FOR) {
            return false;
        }
        record.trouble = Some((trouble, now));
        true
    }

    /// Notes what the provider has of a pod, and follows what that was made from.
    fn gave(&self, entry: &Entry, resolved: &ResolvedPod, gathered: Gathered, capabilities: &Capabilities) {
        let uid = {
            let mut record = guard(&entry.record);
            if capabilities.volume_files == VolumeFiles::Live {
                record.given = Some(given(resolved));
            }
            record.reference.uid.clone()
        };
        if capabilities.volume_files == VolumeFiles::Live {
            let look = (!resolved.unresolved.is_empty()).then(|| Instant::now() + LOOK_AGAIN);
            let again = gathered.renew_at.into_iter().chain(look).min();
            self.feed.follow(&uid, gathered.used, again);
        } else {
            self.feed.forget(&uid);
        }
    }

    pub(super) async fn update(&self, entry: &Entry, pod: &Arc<Pod>, place: &mut Place) -> Next {
        let node = &entry.node;
        let provider = node.provider();
        let capabilities = provider.capabilities();
        let reference = PodRef::of(pod);
        let (before, changed, owed) = {
            let mut record = guard(&entry.record);
            // Before anything is read: what changes from here on is another change.
            record.stale = false;
            (record.given.clone(), record.applied != Some(hash(pod)), record.owed)
        };
        let (resolved, gathered) = self.resolve(entry, pod, capabilities).await;
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(obstacle) => {
                // It runs with what it has, and is looked at again.
                if self.held_up(entry, Trouble::Obstacle(obstacle.clone())) {
                    for remark in obstacle.remarks() {
                        self.tell(pod, true, remark.reason, remark.message);
                    }
                }
                let mut record = guard(&entry.record);
                record.owed |= changed;
                record.applied = Some(hash(pod));
                drop(record);
                let used = if before.is_some() { gathered.used } else { Default::default() };
                self.feed.follow(&reference.uid, used, Some(Instant::now() + LOOK_AGAIN_RUNNING));
                return Ok(());
            }
        };
        for remark in gathered.remarks.iter().filter(|_| changed) {
            self.tell(pod, true, remark.reason, remark.message.clone());
        }
        if changed || owed {
            self.resized(entry, pod, &capabilities);
            let answer = self.call(node, place, &node.writes, provider.update_pod(&resolved)).await;
            self.updated(entry, pod, answer)?;
            if guard(&entry.record).at_provider == AtProvider::Unknown {
                return Ok(());
            }
        }
        if capabilities.volume_files == VolumeFiles::Live {
            let now = given(&resolved);
            let differs = |(name, digest): &(&String, &[u8; 32])| {
                before.as_ref().and_then(|b| b.volumes.get(*name)) != Some(digest)
            };
            let volumes: Vec<String> = now.volumes.iter().filter(differs).map(|(name, _)| name.clone()).collect();
            if !volumes.is_empty() || before.is_some_and(|b| b.containers != now.containers) {
                let answer = self.call(node, place, &node.writes, provider.update_volumes(&resolved, &volumes)).await;
                self.updated(entry, pod, answer)?;
                if guard(&entry.record).at_provider == AtProvider::Unknown {
                    return Ok(());
                }
            }
        }
        {
            let mut record = guard(&entry.record);
            record.applied = Some(hash(pod));
            record.owed = false;
            record.trouble = None;
        }
        self.gave(entry, &resolved, gathered, &capabilities);
        Ok(())
    }

    /// What the answer to an update means. `Err` when it has to be tried again.
    fn updated(&self, entry: &Entry, pod: &Pod, answer: crate::provider::Result<()>) -> Next {
        match answer {
            Ok(()) => Ok(()),
            Err(ProviderError::NotFound(_)) => {
                guard(&entry.record).at_provider = AtProvider::Unknown;
                Ok(())
            }
            // What it refuses once it refuses again: the pod keeps running as it is.
            Err(error) if error.is_final() => {
                self.tell(pod, true, "ProviderUpdateFailed", error.to_string());
                Ok(())
            }
            Err(error) => {
                self.tell(pod, true, "ProviderUpdateFailed", error.to_string());
                guard(&entry.record).stale = true;
                Err(self.after_outage(&entry.node.writes, key(&PodRef::of(pod)), &error))
            }
        }
    }

    /// Notes and tells when a running pod is to have other resources and its provider cannot give them, and when
    /// it has got a container to debug it that will not run.
    fn resized(&self, entry: &Entry, pod: &Pod, capabilities: &Capabilities) {
        let facts = entry.node.facts();
        let debugged =
            pod.spec.as_ref().is_some_and(|s| s.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()));
        if debugged && !capabilities.pod.has(PodFeature::EphemeralContainers) {
            let mut lacking = support::lacking(pod, capabilities.pod);
            lacking.retain(|l| l.feature == PodFeature::EphemeralContainers);
            self.tell(pod, true, "UnsupportedField", support::sentence(&facts.provider, &lacking, false));
        }
        if capabilities.pod.has(PodFeature::Resize) {
            return;
        }
        let refused = {
            let mut record = guard(&entry.record);
            let Some(base) = record.resources else { return };
            let now = if base == resources_hash(pod) { Resize::Unchanged } else { Resize::Refused };
            std::mem::replace(&mut record.resize, now) != now && now == Resize::Refused
        };
        if refused {
            let message = format!("provider {} cannot change the resources of a running pod", facts.provider);
            self.tell(pod, true, "ResizeInfeasible", message);
        }
    }

    pub(super) async fn stop(&self, entry: &Entry, pod: &Pod, grace: Duration, place: &mut Place) -> Next {
        if self.events.is_idle() && !entry.node.provider().capabilities().events {
            for container in pod.spec.iter().flat_map(|s| &s.containers) {
                self.tell(pod, false, "Killing", format!("Stopping container {}", container.name));
            }
        }
        let reference = PodRef::of(pod);
        let provider = entry.node.provider();
        match self.call(&entry.node, place, &entry.node.writes, provider.stop_pod(&reference, grace)).await {
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
                Err(self.after_outage(&entry.node.writes, key(&reference), &error))
            }
        }
    }
    pub(super) async fn purge(&self, entry: &Entry, pod: &PodRef, place: &mut Place) -> Next {
        let provider = entry.node.provider();
        let call = async {
            match provider.stop_pod(pod, Duration::ZERO).await {
                Err(error @ ProviderError::Unavailable { .. }) => Err(error),
                // Removing kills what still runs.
                _ => provider.remove_pod(pod).await,
            }
        };
        match self.call(&entry.node, place, &entry.node.writes, call).await {
            Ok(()) => {
                let mut record = guard(&entry.record);
                record.at_provider = AtProvider::Absent;
                record.observation = None;
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%pod, node = %entry.node.name, %error, "a pod could not be removed from the provider; tried again");
                Err(self.after_outage(&entry.node.writes, key(pod), &error))
            }
        }
    }
}

/// What of a resolved pod may change while it runs, in short.
fn given(resolved: &ResolvedPod) -> Given {
    let mut hasher = DefaultHasher::new();
    resolved.unresolved.hash(&mut hasher);
    for (name, container) in &resolved.containers {
        name.hash(&mut hasher);
        for var in &container.env {
            (&var.name, &var.value).hash(&mut hasher);
        }
        (&container.command, &container.args).hash(&mut hasher);
        for mount in &container.mounts {
            (&mount.volume, &mount.path, &mount.sub_path).hash(&mut hasher);
        }
    }
    let files = |(name, volume): (&String, &ResolvedVolume)| match volume {
        ResolvedVolume::Files(files) => Some((name.clone(), files.digest())),
        _ => None,
    };
    Given { volumes: resolved.volumes.iter().filter_map(files).collect(), containers: hasher.finish() }
}
