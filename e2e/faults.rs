//! Nothing is lost or doubled when something breaks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Bed, PATIENCE, eventually, pod, virtual_node};

/// What must not change of a pod that nobody touched.
fn lives(bed: &Bed) -> Vec<(String, String, String, String, u64)> {
    let list = bed.get("pods").expect("a list");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut lives: Vec<_> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|p| {
            let c = &p["status"]["containerStatuses"][0];
            (
                text(&p["metadata"]["uid"]),
                text(&p["status"]["phase"]),
                text(&p["status"]["startTime"]),
                format!("{} {}", text(&c["containerID"]), c["state"]["running"]["startedAt"]),
                c["restartCount"].as_u64().unwrap_or(99),
            )
        })
        .collect();
    lives.sort();
    lives
}

fn fifty_running_pods(bed: &Bed, node: &str) {
    bed.ready_node(node, "");
    let manifest: String = (0..50).map(|n| pod(&bed.name(&format!("p{n}")), node, "")).collect();
    bed.apply(&manifest);
    eventually("fifty pods run", || {
        let lives = lives(bed);
        (lives.len() == 50 && lives.iter().all(|l| l.1 == "Running")).then_some(())
    });
}

#[test]
fn fifty_pods_survive_kill_minus_nine_of_the_operator() {
    let mut bed = Bed::new();
    let node = bed.name("killed");
    fifty_running_pods(&bed, &node);
    let (before, port) = (lives(&bed), bed.get(&format!("vn/{node}")).expect("it")["status"]["kubelet"].clone());
    bed.operator.as_mut().expect("it runs").kill();
    bed.start_operator();
    eventually("the new operator knows all pods", || {
        let summary: Value = serde_json::from_str(&bed.ask_node(&node, "stats/summary")).ok()?;
        (summary["pods"].as_array()?.len() == 50).then_some(())
    });
    assert_eq!(before, lives(&bed), "same pods, same start times, nothing recreated");
    let vn = bed.get(&format!("vn/{node}")).expect("it");
    assert_eq!(vn["status"]["kubelet"], port, "the port is kept");
    bed.kubectl("delete pods --all --timeout=60s");
}

/// `VNODE_OUTAGE` has another number of seconds than a minute's.
#[test]
fn a_minute_without_the_api_server_loses_no_pod_and_leases_resume() {
    let Some(mut bed) = Bed::own() else { return };
    let outage = std::env::var("VNODE_OUTAGE").map_or(60, |s| s.parse().expect("a number of seconds"));
    let node = bed.name("cut");
    fifty_running_pods(&bed, &node);
    let before = lives(&bed);
    bed.cluster.take().expect("our own").kill();
    std::thread::sleep(Duration::from_secs(outage)); // the outage itself
    bed.start_cluster();
    let back = Instant::now();
    let renewed = |bed: &Bed| {
        let lease = bed.get(&format!("lease/{node} -n kube-node-lease"))?;
        Some(lease["spec"]["renewTime"].as_str()?.to_owned())
    };
    let first = renewed(&bed).expect("the Lease is still there");
    eventually("the Lease is renewed", || (renewed(&bed)? != first).then_some(()));
    assert!(back.elapsed() < PATIENCE);
    bed.wait(&format!("node/{node}"), "condition=Ready");
    bed.apply(&pod(&bed.name("after"), &node, ""));
    bed.wait_phase(&bed.name("after"), "Running");
    bed.kubectl(&format!("delete pod {} --timeout=60s", bed.name("after")));
    assert_eq!(before, lives(&bed), "no pod was lost, doubled or restarted");
}

#[test]
fn a_watch_that_is_cut_off_and_answered_with_410_misses_nothing() {
    let Some(bed) = Bed::own() else { return };
    let (node, goes, stays, comes) = (bed.name("blind"), bed.name("goes"), bed.name("stays"), bed.name("comes"));
    bed.ready_node(&node, "");
    bed.apply(&(pod(&goes, &node, "") + &pod(&stays, &node, "")));
    bed.wait_phase(&goes, "Running");
    bed.wait_phase(&stays, "Running");
    let kept = bed.get(&format!("pod/{stays}")).expect("it")["status"]["startTime"].clone();
    // Blind: no watch of the pods of all namespaces comes about any more.
    let blind = json!({"match": {"path": "/api/v1/pods", "watch": true}, "action": {"type": "status", "code": 503}});
    bed.fault("", &blind);
    bed.fault("/cut-watches", &json!({"resource": "pods"}));
    bed.kubectl(&format!("delete pod {goes} --grace-period=0 --force"));
    bed.apply(&pod(&comes, &node, ""));
    bed.wait(&format!("pod/{comes}"), "condition=PodScheduled");
    bed.fault("/compact", &json!({"resource": "pods"}));
    bed.kubectl("delete --raw /debug/faults");
    bed.wait_phase(&comes, "Running");
    eventually("the node has the pods that there are", || {
        let known = bed.ask_node(&node, "pods");
        (!known.contains(&goes) && known.contains(&stays) && known.contains(&comes)).then_some(())
    });
    assert_eq!(bed.get(&format!("pod/{stays}")).expect("it")["status"]["startTime"], kept, "it ran on");
}

#[test]
fn a_provider_that_hangs_cannot_hold_up_the_deletion_of_its_virtual_node() {
    let bed = Bed::new();
    let (name, guest) = (bed.name("hang"), bed.name("stuck"));
    let spec = |fault: &str| {
        format!(
            "  provider: {{type: mock, mock: {{fault: \"{fault}\"}}}}\n  deletionPolicy: {{pods: Delete, timeoutSeconds: 5}}\n"
        )
    };
    bed.ready_node(&name, &spec(""));
    bed.apply(&pod(&guest, &name, ""));
    bed.wait_phase(&guest, "Running");
    bed.apply(&virtual_node(&name, &spec("hang")));
    bed.wait(&format!("vn/{name}"), "condition=ProviderReachable=False");
    let start = Instant::now();
    bed.kubectl(&format!("delete vn {name} --timeout=60s"));
    assert!(start.elapsed() >= Duration::from_secs(4), "the pods had their time");
    assert!(start.elapsed() < Duration::from_secs(40), "the deadline was honoured: {:?}", start.elapsed());
    assert!(bed.get(&format!("pod/{guest}")).is_none() && bed.get(&format!("node/{name}")).is_none());
    let events = bed.kubectl("get events -A");
    assert!(events.contains(&guest), "an event names what was left behind:\n{events}");
}

#[test]
fn one_hanging_provider_does_not_delay_the_other_nodes() {
    let bed = Bed::new();
    let (bad, good) = (bed.name("bad"), bed.name("good"));
    bed.ready_node(&good, "");
    bed.apply(&virtual_node(&bad, "  provider: {type: mock, mock: {fault: hang}}\n"));
    let direct =
        |name: &str, node: &str| pod(name, node, "").replace("\nspec:", &format!("\nspec:\n  nodeName: {node}"));
    let stuck: String = (0..40).map(|n| direct(&bed.name(&format!("s{n}")), &bad)).collect();
    bed.apply(&stuck);
    bed.apply(&pod(&bed.name("free"), &good, ""));
    bed.wait_phase(&bed.name("free"), "Running");
    bed.kubectl("delete pods --all --grace-period=0 --force");
}

#[test]
fn a_pod_bound_to_a_node_that_is_going_away_is_not_left_behind() {
    let bed = Bed::new();
    let (node, late) = (bed.name("leaving"), bed.name("late"));
    bed.ready_node(&node, "  deletionPolicy: {timeoutSeconds: 20}\n");
    let slow = pod(&bed.name("slow"), &node, "mock.vnode.dev/stopLatencyMs: \"3000\"");
    bed.apply(&slow);
    bed.wait_phase(&bed.name("slow"), "Running");
    bed.kubectl(&format!("delete vn {node} --wait=false"));
    bed.apply(&pod(&late, &node, "").replace("\nspec:", &format!("\nspec:\n  nodeName: {node}")));
    bed.kubectl(&format!("wait vn/{node} --for=delete --timeout=60s"));
    eventually("the late pod is gone too", || bed.get(&format!("pod/{late}")).is_none().then_some(()));
}

#[test]
fn the_operator_stops_cleanly_and_a_second_one_takes_its_nodes_over() {
    let mut bed = Bed::new();
    let node = bed.name("handed");
    bed.ready_node(&node, "");
    let code = bed.operator.as_mut().expect("it runs").stop();
    assert_eq!(code, Some(0), "{}", bed.operator.as_ref().map(crate::support::Process::log).unwrap_or_default());
    let node_object = bed.get(&format!("node/{node}")).expect("a stopped operator deletes nothing");
    assert_eq!(node_object["metadata"]["name"], node.as_str());
    bed.start_operator();
    bed.apply(&pod(&bed.name("next"), &node, ""));
    bed.wait_phase(&bed.name("next"), "Running");
    bed.wait(&format!("vn/{node}"), "condition=Ready");
}
