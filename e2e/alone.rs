//! `vnode node`: one node without custom resources, started as Virtual Kubelet is.

use std::time::{Duration, Instant};

use crate::support::{Bed, Process, eventually, has_condition, pod};

/// A node of this bed, with the port that the bed keeps free.
fn node(bed: &Bed, name: &str, flags: &[&str], variables: &[(&str, &str)]) -> Process {
    let port = bed.spare_port().to_string();
    let mut all = vec![("KUBELET_PORT", port.as_str()), ("VKUBELET_POD_IP", "127.0.0.1")];
    all.extend(variables);
    bed.start_node(name, flags, &all)
}

#[test]
fn a_node_started_as_virtual_kubelet_takes_pods_and_survives_a_kill() {
    let bed = Bed::cluster_only();
    let name = bed.name("vk");
    let file = bed.dir.path().join("mock.json");
    let config = format!(r#"{{"{name}": {{"cpu": "2", "memory": "32Gi", "pods": "5", "providerID": "mock://one"}}}}"#);
    std::fs::write(&file, config).expect("a file");
    let flags = ["--provider", "mock", "--provider-config", file.to_str().expect("text"), "--klog.v=2"];
    let variables = [("VKUBELET_TAINT_KEY", "example.com/virtual"), ("VKUBELET_TAINT_VALUE", "yes")];
    let mut process = node(&bed, &name, &flags, &variables);
    eventually("there is a Node", || bed.get(&format!("node/{name}")));
    bed.wait(&format!("node/{name}"), "condition=Ready");

    let made = bed.get(&format!("node/{name}")).expect("it");
    assert_eq!(made["spec"]["taints"].as_array().map(Vec::len), Some(1), "{made:#}");
    assert_eq!(made["spec"]["taints"][0]["key"], "example.com/virtual");
    assert_eq!(made["spec"]["taints"][0]["value"], "yes");
    assert_eq!(made["spec"]["taints"][0]["effect"], "NoSchedule");
    assert_eq!(made["spec"]["providerID"], "mock://one");
    assert_eq!(made["status"]["capacity"]["cpu"], "2");
    assert_eq!(made["status"]["capacity"]["pods"], "5");
    assert_eq!(made["metadata"]["labels"]["type"], "virtual-kubelet");
    assert_eq!(made["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], bed.spare_port());
    assert!(process.log().contains("--klog.v does nothing here"), "{}", process.log());

    let manifest = pod("one", &name, "").replace("virtual-kubelet.io/provider", "example.com/virtual");
    bed.apply(&manifest);
    bed.wait("pod/one", "condition=Ready");
    eventually("its log can be read", || (!bed.kubectl("logs one").is_empty()).then_some(()));
    let before = bed.get("pod/one").expect("it")["status"]["containerStatuses"].clone();

    process.kill();
    let mut process = node(&bed, &name, &flags, &variables);
    // The kubelet API answers again once the pod is taken back.
    bed.kubectl_at_last("logs one");
    let after = bed.get("pod/one").expect("it")["status"]["containerStatuses"].clone();
    assert_eq!(before, after, "the pod was not started anew");

    assert_eq!(process.stop(), Some(0));
    assert!(bed.get(&format!("node/{name}")).is_some(), "the Node stays");
    assert!(bed.get("pod/one").is_some_and(|p| p["status"]["phase"] == "Running"), "so does the pod");

    let mut process = node(&bed, &name, &[&flags[..], &["--delete-on-exit"]].concat(), &variables);
    bed.kubectl_at_last("logs one");
    assert_eq!(process.stop(), Some(0));
    assert!(bed.get(&format!("node/{name}")).is_none(), "the Node is gone");
    assert!(bed.get("pod/one").is_none(), "so is the pod");
    assert!(bed.get(&format!("lease/{name} -n kube-node-lease")).is_none(), "so is the Lease");
}

#[test]
fn a_node_that_another_program_made_is_taken_only_when_asked_for() {
    let bed = Bed::cluster_only();
    let name = bed.name("old");
    bed.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{type: virtual-kubelet, keep: me}}}}\nspec:\n  \
         taints: [{{key: virtual-kubelet.io/provider, value: mock, effect: NoSchedule}}]\n"
    ));
    let uid = bed.get(&format!("node/{name}")).expect("it")["metadata"]["uid"].clone();
    let process = node(&bed, &name, &["--provider", "mock"], &[]);
    eventually("it says that the name is taken", || process.log().contains("NameTaken").then_some(()));
    drop(process);

    let _process = node(&bed, &name, &["--provider", "mock", "--adopt-node"], &[]);
    bed.wait(&format!("node/{name}"), "condition=Ready");
    let node = bed.get(&format!("node/{name}")).expect("it");
    assert_eq!(node["metadata"]["uid"], uid, "it is the same Node");
    assert_eq!(node["metadata"]["labels"]["keep"], "me");
    assert_eq!(node["spec"]["taints"].as_array().map(Vec::len), Some(1), "{node:#}");
}

#[test]
fn a_configuration_that_cannot_be_read_ends_the_program_with_the_field() {
    let bed = Bed::cluster_only();
    let file = bed.dir.path().join("mock.yaml");
    std::fs::write(&file, "startLatency: 5\n").expect("a file");
    let name = bed.name("bad");
    let mut process =
        node(&bed, &name, &["--provider", "mock", "--provider-config", file.to_str().expect("text")], &[]);
    let end = Instant::now() + Duration::from_secs(20);
    while process.is_running() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!process.is_running());
    assert!(process.log().contains("error: --provider-config: mock.startLatency: there is no such field"));
}

#[test]
fn a_provider_that_the_program_does_not_have_is_told_with_those_that_it_has() {
    let bed = Bed::new();
    let name = bed.name("own");
    bed.apply(&format!(
        "apiVersion: vnode.dev/v1alpha1\nkind: VirtualNode\nmetadata: {{name: {name}}}\nspec:\n  \
         provider: {{type: external, external: {{name: toy, config: {{any: [thing]}}}}}}\n"
    ));
    let vn = eventually("it says so", || {
        let vn = bed.get(&format!("vn/{name}"))?;
        has_condition(&vn, "Accepted", "False", "UnknownProvider").then_some(vn)
    });
    assert!(vn["status"]["conditions"].to_string().contains("no provider called \\\"toy\\\""), "{vn:#}");
    assert_eq!(vn["spec"]["provider"]["external"]["config"]["any"][0], "thing", "what is free-form is kept");
    bed.kubectl(&format!("delete vn {name} --timeout=60s"));
}
