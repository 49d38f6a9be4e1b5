//! DaemonSets: a pod on every node that fits, bound by the scheduler through its name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::json;

use super::informer::{Key, key_of};
use super::queue::{Outcome, Queue};
use super::revision::{self, History};
use super::scheduler::cluster::may_run;
use super::scheduler::pod::PodInfo;
use super::workload::{BURST, Expected, create, delete, is_available, pod_from, share};
use super::world::{World, controller_of, has_condition, is_terminal};

const HASH: &str = "controller-revision-hash";
const GENERATION: &str = "deprecated.daemonset.template.generation";
/// What daemon pods bear on any node.
const BORNE: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// Hooks the controller to the shared watches and returns its work.
pub(crate) fn start(world: &Arc<World>) -> impl Future<Output = ()> + Send + use<> {
    let queue: Arc<Queue<Key>> = Queue::new();
    let q = queue.clone();
    world.daemon_sets.on_change(move |change| {
        if let Some(set) = change.new {
            q.add(key_of(set.as_ref()));
        }
    });
    let q = queue.clone();
    world.pods.on_change(move |change| {
        for pod in change.old.into_iter().chain(change.new) {
            if let Some(owner) = controller_of(pod.as_ref()).filter(|o| o.kind == "DaemonSet") {
                q.add((pod.namespace().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let (q, sets) = (queue.clone(), Arc::downgrade(&world.daemon_sets));
    world.nodes.on_change(move |change| {
        let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
        let same = |a: &Node, b: &Node| a.labels() == b.labels() && taints(a) == taints(b);
        if let (Some(old), Some(new)) = (change.old, change.new)
            && same(old, new)
        {
            return;
        }
        for set in sets.upgrade().map(|s| s.all()).unwrap_or_default() {
            q.add(key_of(set.as_ref()));
        }
    });
    let world = world.clone();
    async move {
        world.daemon_sets.synced().await;
        world.nodes.synced().await;
        world.pods.synced().await;
        let expected = Expected::default();
        queue.work("daemon-set", 4, |key| reconcile(&world, &expected, key)).await;
    }
}

/// The pod for a node: pinned by name, and tolerant of what befalls nodes.
fn pod_for(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let mut pod = pod_from(set, &set.spec.template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.into());
    labels.insert("pod-template-generation".into(), set.annotations().get(GENERATION).cloned().unwrap_or_default());
    let spec = pod.spec.get_or_insert_default();
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in BORNE {
        tolerations.push(Toleration {
            key: Some((*key).into()),
            operator: Some("Exists".into()),
            effect: Some((*effect).into()),
            ..Toleration::default()
        });
    }
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(Default::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = serde_json::from_value(json!([
            {"key": "metadata.name", "operator": "In", "values": [node]}
        ]))
        .ok();
    }
    pod
}

/// The node that a daemon pod is meant for.
fn target(pod: &Pod) -> Option<&str> {
    super::world::node_of(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let field = terms.first()?.match_fields.as_ref()?.iter().find(|f| f.key == "metadata.name")?;
        field.values.as_ref()?.first().map(String::as_str)
    })
}

async fn reconcile(world: &World, expected: &Expected, key: Key) -> Outcome {
    let Some(set) = world.daemon_sets.get(&key) else { return Ok(None) };
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let uid = set.uid().unwrap_or_default();
    let pods = world.pods_of(&uid);
    if let Some(wait) = expected.behind(&uid, &pods) {
        return Ok(Some(wait));
    }
    let history = History {
        template: &set.spec.template,
        label: HASH,
        annotations: set.annotations().get(GENERATION).map(|g| [(GENERATION.to_owned(), g.clone())].into()),
        keep: usize::try_from(set.spec.revision_history_limit.unwrap_or(10)).unwrap_or_default(),
        used: pods.iter().filter_map(|p| p.labels().get(HASH).cloned()).collect(),
    };
    let hash = revision::sync(world, set.as_ref(), history).await?;
    let mut by_node: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in &pods {
        by_node.entry(target(pod).unwrap_or_default().into()).or_default().push(pod.clone());
    }
    let fits: BTreeMap<String, bool> = world
        .nodes
        .all()
        .iter()
        .map(|n| {
            let probe = PodInfo::of(&pod_for(&set, &hash, &n.name_any()));
            (n.name_any(), may_run(n, &probe))
        })
        .collect();
    let wanted = fits.values().filter(|f| **f).count();
    let fresh = |p: &Pod| p.labels().get(HASH) == Some(&hash);
    let live = |p: &Pod| p.metadata.deletion_timestamp.is_none();
    let min_ready = set.spec.min_ready_seconds.unwrap_or_default();
    let now = Timestamp::now();
    let (mut make, mut lose, mut outdated) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts = [0usize; 6];
    for (node, fit) in &fits {
        let here = by_node.remove(node).unwrap_or_default();
        if !fit {
            counts[1] += usize::from(!here.is_empty());
            lose.extend(here.into_iter().filter(|p| live(p)));
            continue;
        }
        // An ended pod is replaced by a new one.
        lose.extend(here.iter().filter(|p| live(p) && is_terminal(p)).cloned());
        let mut running = here.iter().filter(|p| !is_terminal(p));
        match running.next() {
            None if here.iter().all(|p| live(p)) => make.push(pod_for(&set, &hash, node)),
            None => {}
            Some(pod) => {
                counts[0] += 1;
                counts[2] += usize::from(has_condition(pod, "Ready"));
                counts[3] += usize::from(is_available(pod, min_ready, now));
                counts[4] += usize::from(fresh(pod));
                if live(pod) && !fresh(pod) {
                    outdated.push(pod.clone());
                }
            }
        }
        lose.extend(running.filter(|p| live(p)).cloned());
    }
    let strategy = set.spec.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() != Some("OnDelete") {
        let rolling = strategy.rolling_update.unwrap_or_default();
        let total = i32::try_from(wanted).unwrap_or(i32::MAX);
        let may = share(rolling.max_unavailable.as_ref(), IntOrString::Int(1), total, true).max(1);
        let missing = i32::try_from(wanted - counts[3]).unwrap_or(i32::MAX);
        outdated.sort_by_key(|p| is_available(p, min_ready, now));
        let idle = outdated.iter().filter(|p| !is_available(p, min_ready, now)).count();
        let room = usize::try_from((may - missing).max(0)).unwrap_or_default();
        outdated.truncate(idle + room);
        lose.append(&mut outdated);
    }
    make.truncate(BURST);
    lose.truncate(BURST);
    let want = json!({
        "desiredNumberScheduled": wanted, "currentNumberScheduled": counts[0], "numberMisscheduled": counts[1],
        "numberReady": counts[2], "numberAvailable": counts[3], "updatedNumberScheduled": counts[4],
        "numberUnavailable": wanted - counts[3].min(wanted), "observedGeneration": set.metadata.generation,
    });
    if !make.is_empty() || !lose.is_empty() {
        let gone = delete(world, lose).await?;
        expected.note(&uid, create(world, make).await?, gone);
    }
    world.write_status::<DaemonSet>(&key, &set.status, want).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_pod_is_pinned_to_its_node_and_bears_its_troubles() {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "d", "uid": "u"}, "spec": {
            "selector": {}, "template": {"spec": {"containers": [{"name": "c"}]}}}}))
        .unwrap();
        let pod = pod_for(&set, "h", "n1");
        assert_eq!(target(&pod), Some("n1"));
        let node = |name: &str, taint: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"unschedulable": true,
                "taints": [{"key": taint, "effect": "NoSchedule"}]}}))
            .unwrap()
        };
        let info = PodInfo::of(&pod);
        assert!(may_run(&node("n1", "node.kubernetes.io/unschedulable"), &info));
        assert!(!may_run(&node("n2", "node.kubernetes.io/unschedulable"), &info));
        assert!(!may_run(&node("n1", "foreign"), &info));
    }
}
