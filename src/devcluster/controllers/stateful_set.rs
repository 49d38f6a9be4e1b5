//! StatefulSets: numbered pods, made in order and lost in reverse.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::workload::{Expected, create, delete, is_active, is_available, pod_from};
use super::world::{World, controller_of, gone_is_fine, has_condition, is_terminal};

const HASH: &str = "controller-revision-hash";

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.stateful_sets.on_change(move |change| {
        if let Some(set) = change.new {
            q.add(key_of(set.as_ref()));
        }
    });
    let q = queue.clone();
    world.pods.on_change(move |change| {
        for pod in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(pod.as_ref()).filter(|o| o.kind == "StatefulSet") {
                q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let world = world.clone();
    async move {
        world.stateful_sets.synced().await;
        world.pods.synced().await;
        let expected = Expected::default();
        queue.work("stateful-set", 8, |key| reconcile(&world, &expected, key)).await;
    }
}

/// A numbered pod as far as ordering cares.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Member {
    ready: bool,
    leaving: bool,
    ended: bool,
    fresh: bool,
}

/// The ordinals to create and to delete now.
fn plan(
    wanted: std::ops::Range<i32>,
    parallel: bool,
    roll_from: Option<i32>,
    have: &BTreeMap<i32, Member>,
) -> (Vec<i32>, Vec<i32>) {
    let (mut make, mut lose) = (Vec::new(), Vec::new());
    for ordinal in wanted.clone() {
        let settled = match have.get(&ordinal) {
            None => {
                make.push(ordinal);
                false
            }
            Some(m) if m.ended && !m.leaving => {
                lose.push(ordinal);
                false
            }
            Some(m) => m.ready && !m.leaving,
        };
        if !settled && !parallel {
            return (make, lose);
        }
    }
    let surplus = have.iter().rev().filter(|(o, _)| !wanted.contains(o));
    for (ordinal, member) in surplus {
        if !member.leaving {
            lose.push(*ordinal);
        }
        if !parallel {
            return (make, lose);
        }
    }
    // A roll replaces one pod at a time, from the highest, and waits for each.
    if let Some(from) = roll_from.filter(|_| make.is_empty() && lose.is_empty()) {
        for ordinal in wanted.rev().filter(|o| *o >= from) {
            match have.get(&ordinal) {
                Some(m) if m.leaving || (m.fresh && !m.ready) => break,
                Some(m) if !m.fresh => {
                    lose.push(ordinal);
                    break;
                }
                _ => {}
            }
        }
    }
    (make, lose)
}

fn pod_of(set: &StatefulSet, hash: &str, ordinal: i32) -> Pod {
    let mut pod = pod_from(set, &set.spec.template);
    let name = format!("{}-{ordinal}", set.name_any());
    pod.metadata.generate_name = None;
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.into());
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name.clone());
        spec.subdomain = set.spec.service_name.clone();
    }
    pod.metadata.name = Some(name);
    pod
}

async fn reconcile(world: &World, expected: &Expected, key: Key) -> Outcome {
    let Some(set) = world.stateful_sets.get(&key) else { return Ok(None) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let uid = set.uid().unwrap_or_default();
    let pods = world.pods_of(&uid);
    if let Some(wait) = expected.behind(&uid, &pods) {
        return Ok(Some(wait));
    }
    let digest = Sha256::digest(serde_json::to_vec(&set.spec.template).unwrap_or_default());
    let hash = format!("{}-{}", key.1, digest.iter().take(5).map(|b| format!("{b:02x}")).collect::<String>());
    let (now, min_ready) = (Timestamp::now(), set.spec.min_ready_seconds.unwrap_or_default());
    let mut by_ordinal: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for pod in &pods {
        let ordinal = pod.name_any().rsplit_once('-').and_then(|(_, o)| o.parse().ok());
        by_ordinal.extend(ordinal.map(|o| (o, pod.clone())));
    }
    let fresh = |p: &Pod| p.labels().get(HASH) == Some(&hash);
    let have = by_ordinal
        .iter()
        .map(|(o, p)| {
            let member = Member {
                ready: is_available(p, min_ready, now),
                leaving: p.metadata.deletion_timestamp.is_some(),
                ended: is_terminal(p),
                fresh: fresh(p),
            };
            (*o, member)
        })
        .collect();
    let start = set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or_default();
    let wanted = set.spec.replicas.unwrap_or(1);
    let strategy = set.spec.update_strategy.clone().unwrap_or_default();
    let partition = strategy.rolling_update.and_then(|r| r.partition).unwrap_or_default();
    let rolls = strategy.type_.as_deref() != Some("OnDelete");
    let parallel = set.spec.pod_management_policy.as_deref() == Some("Parallel");
    let (make, lose) = plan(start..start + wanted, parallel, rolls.then_some(start + partition), &have);
    if !make.is_empty() || !lose.is_empty() {
        let gone = delete(world, lose.iter().filter_map(|o| by_ordinal.get(o).cloned()).collect()).await?;
        let made = create(world, make.into_iter().map(|o| pod_of(&set, &hash, o)).collect()).await?;
        expected.note(&uid, made, gone);
    }
    let count = |wanted: &dyn Fn(&Pod) -> bool| pods.iter().filter(|p| is_active(p) && wanted(p)).count();
    let updated = count(&fresh);
    let rolled = updated == usize::try_from(wanted).unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let current = match status.current_revision.filter(|_| !rolled) {
        Some(revision) => revision,
        None => hash.clone(),
    };
    let want = json!({
        "replicas": count(&|_| true), "readyReplicas": count(&|p| has_condition(p, "Ready")),
        "availableReplicas": count(&|p| is_available(p, min_ready, now)),
        "currentReplicas": count(&|p| p.labels().get(HASH) == Some(&current)), "updatedReplicas": updated,
        "currentRevision": current, "updateRevision": hash, "observedGeneration": set.metadata.generation,
    });
    let have = serde_json::to_value(&set.status).unwrap_or_default();
    let same = |(field, v): (&String, &Value)| have.get(field).unwrap_or(&json!(0)) == v;
    if have.is_null() || !want.as_object().into_iter().flatten().all(same) {
        let patch = Patch::Merge(json!({"status": want}));
        let api = world.api::<StatefulSet>(&key.0);
        gone_is_fine(api.patch_status(&key.1, &PatchParams::default(), &patch).await.map(drop))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_in_order_and_go_in_reverse() {
        let m = |ready, leaving, fresh| Member { ready, leaving, ended: false, fresh };
        let good = m(true, false, true);
        let all = |members: &[Member]| (0..).zip(members.iter().copied()).collect::<BTreeMap<i32, Member>>();
        for (replicas, parallel, have, want) in [
            (3, false, all(&[]), (vec![0], vec![])),
            (3, true, all(&[]), (vec![0, 1, 2], vec![])),
            (3, false, all(&[m(false, false, true)]), (vec![], vec![])),
            (3, false, all(&[good]), (vec![1], vec![])),
            (1, false, all(&[good, good, good]), (vec![], vec![2])),
            (1, false, all(&[good, good, m(true, true, true)]), (vec![], vec![])),
            (2, false, all(&[m(true, false, false), m(true, false, false)]), (vec![], vec![1])),
            (2, false, all(&[m(true, false, false), good]), (vec![], vec![0])),
            (2, false, all(&[good, good]), (vec![], vec![])),
        ] {
            assert_eq!(plan(0..replicas, parallel, Some(0), &have), want, "{replicas} {have:?}");
        }
    }
}
