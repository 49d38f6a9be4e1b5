//! Several operators share a fleet and take over from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Bed, PATIENCE, eventually, is_foreign, pod, virtual_node};

const NODES: usize = 24;

/// Each node's owner.
pub fn shards(bed: &Bed) -> BTreeMap<String, String> {
    let list = bed.get("virtualnodes").expect("a list");
    let shard = |vn: &Value| {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (text(&vn["metadata"]["name"]), text(&vn["status"]["shard"]))
    };
    list["items"].as_array().expect("items").iter().map(shard).filter(|(name, _)| name.ends_with(&bed.id)).collect()
}

/// Waits until the nodes belong to exactly these replicas.
fn settled(bed: &Bed, replicas: &[&str]) -> BTreeMap<String, String> {
    let want: BTreeSet<_> = replicas.iter().map(|r| (*r).to_owned()).collect();
    eventually(&format!("the nodes belong to {replicas:?}"), || {
        let shards = shards(bed);
        (shards.values().cloned().collect::<BTreeSet<_>>() == want).then_some(shards)
    })
}

/// So many nodes that are ready, with a pod that runs on each.
pub fn fleet(bed: &Bed, nodes: usize) -> Vec<String> {
    let names: Vec<_> = (0..nodes).map(|n| bed.name(&format!("shared-{n}"))).collect();
    bed.apply(&names.iter().map(|n| format!("{}---\n", virtual_node(n, ""))).collect::<String>());
    for name in &names {
        bed.wait(&format!("virtualnode/{name}"), "condition=Ready");
    }
    bed.apply(&names.iter().map(|n| pod(&format!("on-{n}"), n, "")).collect::<String>());
    for name in &names {
        bed.wait_phase(&format!("on-{name}"), "Running");
    }
    names
}

/// What must not change when nodes change hands: since when each Node is ready, and each pod's containers.
pub fn untouched(bed: &Bed, names: &[String]) -> Vec<(Value, Value)> {
    let look = |name: &String| {
        let node = bed.get(&format!("node/{name}")).expect("the node");
        let ready = crate::support::condition(&node, "Ready").cloned().unwrap_or_default();
        assert_eq!(ready["status"], "True", "{name}: {ready}");
        let pod = bed.get(&format!("pod/on-{name}")).expect("the pod");
        (ready["lastTransitionTime"].clone(), json!([pod["metadata"]["uid"], pod["status"]["containerStatuses"]]))
    };
    names.iter().map(look).collect()
}

#[test]
fn nodes_move_between_replicas_without_being_missed() {
    let bed = Bed::cluster_only();
    let mut replicas: BTreeMap<&str, _> = ["one", "two"].into_iter().map(|id| (id, bed.start_replica(id))).collect();
    let names = fleet(&bed, NODES);
    let two = settled(&bed, &["one", "two"]);
    let before = untouched(&bed, &names);

    // Another one takes its share, and only that.
    replicas.insert("three", bed.start_replica("three"));
    let three = settled(&bed, &["one", "three", "two"]);
    for (node, owner) in &three {
        assert!(owner == "three" || two[node] == *owner, "{node} moved from {} to {owner}", two[node]);
    }
    for name in &names {
        let lease = bed.get(&format!("lease/{name} -n kube-node-lease")).expect("its Lease");
        assert_eq!(lease["spec"]["holderIdentity"], three[name].as_str(), "{name}");
    }
    assert_eq!(untouched(&bed, &names), before, "a new replica touches nothing");

    // One leaves in good order.
    assert_eq!(replicas.get_mut("one").expect("it runs").stop(), Some(0));
    let left = settled(&bed, &["three", "two"]);
    assert!(left.iter().all(|(node, owner)| three[node] == "one" || three[node] == *owner), "{left:?}");
    assert_eq!(untouched(&bed, &names), before, "a replica that leaves touches nothing");

    // One dies.
    replicas.get_mut("two").expect("it runs").kill();
    let died = Instant::now();
    settled(&bed, &["three"]);
    assert!(died.elapsed() < Duration::from_secs(40), "well before a node counts as lost: {:?}", died.elapsed());
    assert_eq!(untouched(&bed, &names), before, "a replica that dies touches nothing");
    for name in names.iter().take(3) {
        assert!(bed.kubectl(&format!("logs on-{name} --tail=1")).len() < 10_000, "its kubelet API answers");
    }
}

#[test]
fn a_replica_that_was_paused_does_not_act_for_nodes_that_it_lost() {
    let bed = Bed::cluster_only();
    let one = bed.start_replica("first");
    let names = fleet(&bed, NODES);
    let two = bed.start_replica("second");
    settled(&bed, &["first", "second"]);
    let before = untouched(&bed, &names);
    one.signal("STOP");
    settled(&bed, &["second"]);
    one.signal("CONT");
    // It comes back as a member, and gets back its share.
    settled(&bed, &["first", "second"]);
    assert_eq!(untouched(&bed, &names), before);
    let log = one.log();
    assert!(log.contains("another replica's by now"), "it noticed what it had lost:\n{log}");
    drop(two);
}

/// Replicas speak to the API server alone, so one that cannot reach it is cut off from all.
#[test]
fn a_replica_that_is_cut_off_loses_its_nodes_and_gets_its_share_when_it_is_back() {
    if is_foreign("only the embedded cluster cuts a client off") {
        return;
    }
    let bed = Bed::cluster_only();
    let near = bed.start_replica("near");
    let names = fleet(&bed, NODES);
    let mut far = bed.start_replica_as("far", "far-away");
    settled(&bed, &["far", "near"]);
    let before = untouched(&bed, &names);
    bed.fault("", &json!({"match": {"user": "far-away"}, "action": {"type": "hang"}}));
    let cut = Instant::now();
    settled(&bed, &["near"]);
    assert!(cut.elapsed() < Duration::from_secs(40), "well before a node counts as lost: {:?}", cut.elapsed());
    assert_eq!(untouched(&bed, &names), before, "nodes that change hands stay ready");
    for name in &names {
        assert!(bed.kubectl(&format!("logs on-{name} --tail=1")).len() < 10_000, "its kubelet API answers");
    }
    bed.kubectl("delete --raw /debug/faults");
    settled(&bed, &["far", "near"]);
    assert_eq!(untouched(&bed, &names), before);
    assert!(far.is_running(), "{}", far.log());
    drop(near);
}

/// The writes of a takeover at which who takes over dies, right before and right after each.
const TAKING: [(&str, &str); 3] = [
    ("PATCH", "/api/v1/nodes/"),
    ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"),
    ("PATCH", "/apis/vnode.dev/v1alpha1/virtualnodes/"),
];

/// One of the moments at every run, all of them with `VNODE_CRASHES=all`.
#[test]
fn a_replica_that_dies_while_it_takes_over_loses_no_pod() {
    if is_foreign("only the embedded cluster holds writes up") {
        return;
    }
    let moments = TAKING.into_iter().flat_map(|write| [(write, true), (write, false)]);
    let all = std::env::var("VNODE_CRASHES").is_ok_and(|word| word == "all");
    std::thread::scope(|threads| {
        for ((method, path), after) in moments.take(if all { usize::MAX } else { 1 }) {
            threads.spawn(move || dies_taking_over(method, path, after));
        }
    });
}

fn dies_taking_over(method: &str, path: &str, after: bool) {
    let bed = Bed::cluster_only();
    let mut one = bed.start_replica("one");
    let names = fleet(&bed, NODES);
    // Elsewhere, so that whoever takes a node over has to say where it is now.
    let mut two = bed.start_replica_at("two", "127.0.0.2");
    let shared = settled(&bed, &["one", "two"]);
    let before = untouched(&bed, &names);
    let taken = shared.iter().find(|(_, owner)| *owner == "one").expect("one has nodes").0;
    one.kill();
    bed.fault(
        "",
        &json!({"match": {"methods": [method], "path": format!("{path}{taken}")}, "count": 1, "after": after,
            "action": {"type": "hang"}}),
    );
    eventually(&format!("{method} {path}{taken} is held up"), || {
        let rules: Value = serde_json::from_str(&bed.kubectl("get --raw /debug/faults")).expect("JSON");
        (rules["rules"][0]["applied"] == 1).then_some(())
    });
    two.kill();
    bed.kubectl("delete --raw /debug/faults");
    let three = bed.start_replica("three");
    settled(&bed, &["three"]);
    let pods = |seen: Vec<(Value, Value)>| seen.into_iter().map(|(_, pod)| pod).collect::<Vec<_>>();
    for name in &names {
        bed.wait(&format!("node/{name}"), "condition=Ready");
    }
    assert_eq!(pods(untouched(&bed, &names)), pods(before), "{method} {path}{taken}, after: {after}");
    bed.kubectl(&format!("delete virtualnodes {} --timeout=60s", names.join(" ")));
    for kind in ["node", "lease -n kube-node-lease"] {
        let left = bed.kubectl(&format!("get {kind} -o name"));
        assert!(names.iter().all(|name| !left.contains(name.as_str())), "{left}");
    }
    drop(three);
}

#[test]
fn whoever_starts_under_a_name_that_is_in_use_supersedes_the_other() {
    let bed = Bed::cluster_only();
    let mut one = bed.start_replica("same");
    let name = bed.name("one");
    bed.apply(&virtual_node(&name, ""));
    bed.wait(&format!("virtualnode/{name}"), "condition=Ready");
    let two = bed.start_replica("same");
    let end = Instant::now() + PATIENCE;
    while !one.log().contains("each needs a name of its own (--identity)") {
        assert!(Instant::now() < end, "{}", one.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(one.stop(), Some(1), "it ends by itself, as a failure");
    bed.kubectl(&format!("label virtualnode {name} looked=at"));
    bed.wait(&format!("node/{name}"), "condition=Ready");
    drop(two);
}
