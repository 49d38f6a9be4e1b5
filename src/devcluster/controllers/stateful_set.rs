//! StatefulSets: numbered pods, made in order and lost in reverse.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::revision::{self, History};
use super::workload::{Expected, create, delete, is_active, is_available, pod_from};
use super::world::{World, controller_of, has_condition, is_terminal, there_is_fine};

const HASH: &str = "controller-revision-hash";
/// Where the hash is on the revisions themselves.
const REVISION_HASH: &str = "controller.kubernetes.io/hash";

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
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.into());
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name.clone());
        spec.subdomain = set.spec.service_name.clone();
        let volumes = spec.volumes.get_or_insert_default();
        for claim in claims(set, ordinal) {
            let volume = claim.name_any().trim_end_matches(&format!("-{name}")).to_owned();
            volumes.retain(|v| v.name != volume);
            volumes.push(Volume {
                name: volume,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.name_any(),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
        if volumes.is_empty() {
            spec.volumes = None;
        }
    }
    pod.metadata.name = Some(name);
    pod
}

/// The claims of a member: one for each template, named after both.
fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{}-{ordinal}", template.name_any(), set.name_any()));
            claim.metadata.namespace = set.namespace();
            let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
            claim.metadata.labels.get_or_insert_default().extend(selected);
            claim.status = None;
            claim
        })
        .collect()
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
    let bare =
        |p: &Arc<Pod>| p.labels().get(HASH).and_then(|h| h.strip_prefix(&format!("{}-", key.1))).map(String::from);
    let history = History {
        template: &set.spec.template,
        label: REVISION_HASH,
        annotations: None,
        keep: usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or_default(),
        used: pods.iter().filter_map(bare).collect(),
    };
    let hash = format!("{}-{}", key.1, revision::sync(world, set.as_ref(), history).await?);
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
        let api = world.api::<PersistentVolumeClaim>(&key.0);
        for claim in make.iter().flat_map(|ordinal| claims(&set, *ordinal)) {
            there_is_fine(api.create(&PostParams::default(), &claim).await.map(drop))?;
        }
        let made = create(world, make.into_iter().map(|o| pod_of(&set, &hash, o)).collect()).await?;
        expected.note(&uid, made, gone);
    }
    let count = |wanted: &dyn Fn(&Pod) -> bool| pods.iter().filter(|p| is_active(p) && wanted(p)).count();
    let updated = count(&fresh);
    let whole = usize::try_from(wanted).unwrap_or_default();
    let rolled = updated == whole && count(&|p| has_condition(p, "Ready")) == whole;
    let status = set.status.clone().unwrap_or_default();
    let current = match status.current_revision.filter(|_| !rolled) {
        Some(revision) => revision,
        None => hash.clone(),
    };
    let want = json!({
        "replicas": count(&|_| true), "readyReplicas": count(&|p| has_condition(p, "Ready")),
        "availableReplicas": count(&|p| is_available(p, min_ready, now)),
        "currentReplicas": count(&|p| p.labels().get(HASH) == Some(&current)), "updatedReplicas": updated,
        "currentRevision": current, "updateRevision": hash, "collisionCount": 0, "observedGeneration": set.metadata.generation,
    });
    world.write_status::<StatefulSet>(&key, &set.status, want).await?;
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
