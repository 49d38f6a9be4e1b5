//! What the workload controllers share: pods from templates, readiness, and waiting for their own writes to come back.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::world::{World, has_condition, is_terminal};

/// Writes of one reconcile under way at once.
const WIDTH: usize = 16;
/// Pods created or deleted in one reconcile at most.
pub(crate) const BURST: usize = 500;
/// A write that the watch hasn't shown by then is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes that the cache has not shown yet; while there are any, counting pods would mislead.
#[derive(Default)]
pub(crate) struct Expected(Mutex<HashMap<String, Writes>>);

struct Writes {
    created: HashSet<String>,
    deleted: HashSet<String>,
    at: Instant,
}

impl Expected {
    pub(crate) fn note(&self, owner: &str, created: Vec<String>, deleted: Vec<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = Writes {
            created: created.into_iter().collect(),
            deleted: deleted.into_iter().collect(),
            at: Instant::now(),
        };
        all.insert(owner.into(), writes);
    }

    /// How long to wait, if the cache is behind.
    pub(crate) fn behind(&self, owner: &str, pods: &[std::sync::Arc<Pod>]) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = all.get_mut(owner)?;
        for pod in pods {
            writes.created.remove(pod.metadata.uid.as_deref().unwrap_or_default());
        }
        let still: HashSet<&str> = pods
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
            .filter_map(|p| p.metadata.uid.as_deref())
            .collect();
        writes.deleted.retain(|uid| still.contains(uid.as_str()));
        if (writes.created.is_empty() && writes.deleted.is_empty()) || writes.at.elapsed() > PATIENCE {
            all.remove(owner);
            return None;
        }
        // The pods' own events come first; this is for those that never do.
        Some(PATIENCE)
    }
}

/// A controlling owner reference to an object.
pub(crate) fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into(),
        kind: K::kind(&()).into(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A pod made from a template for its owner.
pub(crate) fn pod_from<K: Resource<DynamicType = ()>>(owner: &K, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name_any())),
            namespace: owner.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates pods, several at once; returns their uids.
pub(crate) async fn create(world: &World, pods: Vec<Pod>) -> Result<Vec<String>, kube::Error> {
    let made = futures::stream::iter(pods).map(|pod| async move {
        let api = world.api::<Pod>(&pod.namespace().unwrap_or_default());
        Ok::<_, kube::Error>(api.create(&PostParams::default(), &pod).await?.uid().unwrap_or_default())
    });
    made.buffer_unordered(WIDTH).try_collect().await
}

/// Deletes pods, several at once; returns their uids.
pub(crate) async fn delete(world: &World, pods: Vec<std::sync::Arc<Pod>>) -> Result<Vec<String>, kube::Error> {
    let gone = futures::stream::iter(pods).map(|pod| async move {
        world.delete_pod(&pod, None).await?;
        Ok::<_, kube::Error>(pod.uid().unwrap_or_default())
    });
    gone.buffer_unordered(WIDTH).try_collect().await
}

/// Neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Ready for at least this many seconds.
pub(crate) fn is_available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    let since = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == "Ready" && c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref());
    has_condition(pod, "Ready")
        && (min_ready == 0 || since.is_some_and(|t| now.as_second() - t.0.as_second() >= i64::from(min_ready)))
}

/// Sorts pods so that the cheapest to lose come first.
pub(crate) fn by_loss(pods: &mut [std::sync::Arc<Pod>]) {
    pods.sort_by_key(|p| {
        let assigned = super::world::node_of(p).is_some();
        let phase = match p.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        };
        let cost =
            p.annotations().get("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse::<i32>().ok());
        let born = p.creation_timestamp().map(|t| t.0);
        (assigned, phase, has_condition(p, "Ready"), cost.unwrap_or_default(), std::cmp::Reverse(born))
    });
}

/// A short name for a pod template: a 32-bit FNV-1a hash of it, its digits spelt with letters that make no words.
/// kube-controller-manager: `ComputeHash` and `SafeEncodeString`.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    bytes.extend(collisions.into_iter().flat_map(i32::to_le_bytes));
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|b| char::from(b"bcdfghjklmnpqrstvwxz2456789"[usize::from(b) % 27])).collect()
}

/// A count or a share of `total`, the share rounded as asked.
pub(crate) fn share(value: Option<&IntOrString>, default: IntOrString, total: i32, up: bool) -> i32 {
    match value.unwrap_or(&default) {
        IntOrString::Int(count) => *count,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let exact = percent * i64::from(total);
            let rounded = if up { (exact + 99) / 100 } else { exact / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_as_asked() {
        let quarter = || IntOrString::String("25%".into());
        assert_eq!(share(None, quarter(), 10, true), 3);
        assert_eq!(share(None, quarter(), 10, false), 2);
        assert_eq!(share(Some(&IntOrString::Int(4)), quarter(), 10, true), 4);
    }
}
