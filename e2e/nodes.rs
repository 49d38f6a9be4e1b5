//! A VirtualNode becomes a node, follows its edits and goes away again.

use crate::support::{Bed, condition, eventually, has_condition, pod, virtual_node};

#[test]
fn a_virtual_node_becomes_a_ready_node_that_the_columns_describe() {
    let bed = Bed::new();
    let name = bed.name("edge");
    bed.ready_node(&name, "  capacity: {cpu: 8, memory: 32Gi, example.com/gpu: \"2\"}\n  labels: {zone: a}\n");

    let vn = bed.get(&format!("virtualnode/{name}")).expect("it was applied");
    for kind in ["Ready", "Accepted", "CredentialsReady", "ProviderReachable", "Registered", "KubeletServing"] {
        let c = condition(&vn, kind).unwrap_or_else(|| panic!("{kind} is missing: {vn:#}"));
        assert_eq!((&c["status"], &c["observedGeneration"]), (&"True".into(), &vn["metadata"]["generation"]), "{kind}");
    }
    assert_eq!(vn["status"]["observedGeneration"], vn["metadata"]["generation"]);
    assert_eq!(vn["status"]["nodeName"], name.as_str());
    assert_eq!(vn["status"]["shard"], "e2e");

    let header = bed.kubectl(&format!("get virtualnodes {name}"));
    for column in ["NAME", "PROVIDER", "READY", "PODS", "CPU", "MEMORY", "ENDPOINT", "AGE"] {
        assert!(header.contains(column), "{column} is not in:\n{header}");
    }
    assert!(header.contains("mock") && header.contains("32Gi") && header.contains("127.0.0.1:"), "{header}");
    assert!(bed.kubectl("get vn -o wide").contains("SHARD"));
    assert!(bed.kubectl("get vnode").contains(&name), "the category lists it");

    let node = bed.get(&format!("node/{name}")).expect("the Node");
    assert_eq!(node["metadata"]["labels"]["type"], "virtual-kubelet");
    assert_eq!(node["metadata"]["labels"]["zone"], "a");
    assert_eq!(node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"], "true");
    assert_eq!(node["status"]["capacity"]["example.com/gpu"], "2");
    assert_eq!(node["status"]["allocatable"]["cpu"], "8");
    assert_eq!(node["status"]["capacity"]["pods"], "110", "a default");
    let taint = &node["spec"]["taints"][0];
    assert_eq!((&taint["key"], &taint["effect"]), (&"virtual-kubelet.io/provider".into(), &"NoSchedule".into()));
    let types: Vec<_> = node["status"]["addresses"].as_array().expect("addresses").iter().map(|a| &a["type"]).collect();
    assert_eq!(types, ["InternalIP"], "a Hostname that does not resolve would break kubectl logs");
    assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], vn["status"]["kubelet"]["port"]);

    let lease = bed.get(&format!("lease/{name} -n kube-node-lease")).expect("its Lease");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
}

#[test]
fn edits_reach_the_live_node_and_leave_what_others_set_alone() {
    let bed = Bed::new();
    let name = bed.name("edit");
    bed.ready_node(
        &name,
        "  capacity: {cpu: 4}\n  labels: {old: \"1\", kept: \"1\"}\n  taints: [{key: a, effect: NoSchedule}]\n",
    );
    let port = bed.get(&format!("vn/{name}")).expect("it")["status"]["kubelet"]["port"].clone();
    bed.kubectl(&format!("label node {name} foreign=yes"));
    bed.kubectl(&format!("annotate node {name} foreign=yes"));
    bed.kubectl(&format!("taint node {name} foreign=yes:NoSchedule"));
    bed.kubectl(&format!("cordon {name}"));

    bed.apply(&virtual_node(
        &name,
        "  capacity: {cpu: 16}\n  labels: {kept: \"2\", new: \"1\"}\n  taints: [{key: b, value: x, effect: NoExecute}]\n",
    ));
    let node = eventually("the Node follows", || {
        let node = bed.get(&format!("node/{name}"))?;
        let taints = node["spec"]["taints"].to_string();
        (node["status"]["capacity"]["cpu"] == "16"
            && node["metadata"]["labels"]["new"] == "1"
            && taints.contains("\"b\"")
            && !taints.contains("\"a\""))
        .then_some(node)
    });
    let labels = &node["metadata"]["labels"];
    assert_eq!((&labels["kept"], &labels["old"]), (&"2".into(), &serde_json::Value::Null), "{labels}");
    assert_eq!(labels["foreign"], "yes");
    assert_eq!(node["metadata"]["annotations"]["foreign"], "yes");
    assert!(node["spec"]["taints"].to_string().contains("foreign"), "{}", node["spec"]["taints"]);
    assert_eq!(node["spec"]["unschedulable"], true, "a cordon made by hand stays");
    let vn = bed.get(&format!("vn/{name}")).expect("it");
    assert_eq!(vn["status"]["kubelet"]["port"], port, "the agent was not restarted");
}

#[test]
fn a_node_deleted_by_hand_is_registered_again() {
    let bed = Bed::new();
    let name = bed.name("again");
    bed.ready_node(&name, "");
    let uid = bed.get(&format!("node/{name}")).expect("the Node")["metadata"]["uid"].clone();
    bed.kubectl(&format!("delete node {name}"));
    eventually("a new Node of the name", || {
        let node = bed.get(&format!("node/{name}"))?;
        (node["metadata"]["uid"] != uid).then_some(())
    });
    bed.wait(&format!("node/{name}"), "condition=Ready");
    eventually("a Lease that the new Node owns", || {
        let lease = bed.get(&format!("lease/{name} -n kube-node-lease"))?;
        (lease["metadata"]["ownerReferences"][0]["uid"] != uid).then_some(())
    });
}

#[test]
fn the_node_goes_not_ready_when_its_provider_cannot_be_reached_and_recovers() {
    let bed = Bed::with_operator_flags(&["--provider-grace", "3s"]);
    let name = bed.name("flaky");
    bed.ready_node(&name, "");
    bed.apply(&pod(&bed.name("stays"), &name, ""));
    bed.wait_phase(&bed.name("stays"), "Running");
    let before = bed.get(&format!("pod/{}", bed.name("stays"))).expect("the pod");

    bed.apply(&virtual_node(&name, "  provider: {type: mock, mock: {fault: unreachable}}\n"));
    bed.wait(&format!("vn/{name}"), "condition=ProviderReachable=False");
    bed.wait(&format!("node/{name}"), "condition=Ready=False");
    let wide = bed.kubectl(&format!("get vn {name} -o wide"));
    assert!(wide.contains("False") && wide.contains("ProviderUnreachable"), "{wide}");
    let during = bed.get(&format!("pod/{}", bed.name("stays"))).expect("the pod");
    assert_eq!(during["status"]["phase"], "Running", "an outage changes no pod");

    bed.apply(&virtual_node(&name, ""));
    bed.wait(&format!("node/{name}"), "condition=Ready");
    bed.wait(&format!("vn/{name}"), "condition=Ready");
    let after = bed.get(&format!("pod/{}", bed.name("stays"))).expect("the pod");
    assert_eq!(before["status"]["startTime"], after["status"]["startTime"]);
    assert_eq!(before["status"]["containerStatuses"], after["status"]["containerStatuses"]);
}

#[test]
fn deleting_a_virtual_node_leaves_nothing_behind() {
    let bed = Bed::new();
    let name = bed.name("gone");
    bed.ready_node(&name, "");
    bed.apply(&pod(&bed.name("guest"), &name, ""));
    bed.wait_phase(&bed.name("guest"), "Running");
    bed.kubectl(&format!("delete vn {name} --timeout=60s"));
    assert!(bed.get(&format!("pod/{}", bed.name("guest"))).is_none(), "the pod was evicted");
    assert!(bed.get(&format!("node/{name}")).is_none());
    assert!(bed.get(&format!("lease/{name} -n kube-node-lease")).is_none());
}

#[test]
fn a_name_that_a_real_kubelet_owns_is_refused_and_its_node_is_not_touched() {
    let bed = Bed::new();
    let name = bed.name("real");
    bed.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{kubernetes.io/hostname: {name}}}\n"
    ));
    let before = bed.get(&format!("node/{name}")).expect("the Node");
    bed.apply(&virtual_node(&name, "  labels: {mine: \"1\"}\n"));
    let vn = eventually("it is refused", || {
        let vn = bed.get(&format!("vn/{name}"))?;
        has_condition(&vn, "Accepted", "False", "NameTaken").then_some(vn)
    });
    assert!(has_condition(&vn, "Ready", "False", "NameTaken"), "{vn:#}");
    let after = bed.get(&format!("node/{name}")).expect("the Node");
    assert_eq!(before["metadata"]["labels"], after["metadata"]["labels"]);
    assert_eq!(before["spec"]["podCIDR"], after["spec"]["podCIDR"]);
    bed.kubectl(&format!("delete vn {name} --timeout=60s"));
    assert!(bed.get(&format!("node/{name}")).is_some(), "somebody else's Node outlives our object");
    bed.kubectl(&format!("delete node {name}"));
}
