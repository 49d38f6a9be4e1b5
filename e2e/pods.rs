//! Pods run, end, are deleted and can be looked at.

use std::io::Read as _;
use std::process::Stdio;

use crate::support::{Bed, eventually, has_condition, pod};

#[test]
fn a_pod_runs_and_its_logs_can_be_read() {
    let bed = Bed::new();
    let (node, name) = (bed.name("logs"), bed.name("talker"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, "mock.vnode.dev/logLinesPerMinute: \"6000\""));
    bed.wait(&format!("pod/{name}"), "condition=Ready");
    let status = &bed.get(&format!("pod/{name}")).expect("the pod")["status"];
    assert_eq!(status["hostIP"], "127.0.0.1");
    assert!(status["podIP"].is_string() && status["startTime"].is_string(), "{status:#}");
    assert_eq!(status["containerStatuses"][0]["ready"], true);

    let lines = eventually("it has written lines", || {
        let log = bed.kubectl(&format!("logs {name} --timestamps"));
        (log.lines().count() >= 5).then_some(log)
    });
    assert!(lines.lines().all(|l| l.starts_with("20")), "each line begins with its time:\n{lines}");
    assert_eq!(bed.kubectl(&format!("logs {name} --tail=2")).lines().count(), 2);
    assert_eq!(bed.kubectl(&format!("logs {name} --limit-bytes=7")).len(), 7);
    let wrong = bed.try_kubectl(&format!("logs {name} -c nobody"));
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("nobody"), "{wrong:?}");

    let mut follow =
        bed.command().args(["logs", "-f", "--tail=1", &name]).stdout(Stdio::piped()).spawn().expect("kubectl");
    let mut text = [0; 200];
    follow.stdout.take().expect("piped").read_exact(&mut text).expect("lines keep coming");
    let _ = follow.kill();
    let _ = follow.wait();
}

#[test]
fn pods_end_as_their_containers_and_restart_policy_say() {
    let bed = Bed::new();
    let node = bed.name("ends");
    bed.ready_node(&node, "");
    let ends = |name: &str, code: u8, policy: &str| {
        pod(
            &bed.name(name),
            &node,
            &format!("mock.vnode.dev/runDurationMs: \"300\", mock.vnode.dev/exitCode: \"{code}\""),
        )
        .replace("\nspec:", &format!("\nspec:\n  restartPolicy: {policy}"))
    };
    bed.apply(&(ends("fine", 0, "Never") + &ends("broken", 3, "OnFailure") + &ends("dead", 3, "Never")));
    bed.wait_phase(&bed.name("fine"), "Succeeded");
    bed.wait_phase(&bed.name("dead"), "Failed");
    let dead = bed.get(&format!("pod/{}", bed.name("dead"))).expect("the pod");
    assert_eq!(dead["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    let status = eventually("the third restarts", || {
        let pod = bed.get(&format!("pod/{}", bed.name("broken")))?;
        let status = pod["status"]["containerStatuses"][0].clone();
        (status["restartCount"].as_u64() >= Some(1)).then_some(status)
    });
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3, "{status:#}");
    let vn = eventually("the VirtualNode counts them", || {
        let vn = bed.get(&format!("vn/{node}"))?;
        (vn["status"]["pods"]["failed"] == 1).then_some(vn)
    });
    assert_eq!(vn["status"]["conditions"].as_array().map(Vec::len), Some(6));
}

#[test]
fn a_deleted_pod_gets_its_grace_and_then_goes() {
    let bed = Bed::new();
    let (node, name) = (bed.name("del"), bed.name("slow"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, "mock.vnode.dev/stopLatencyMs: \"1500\""));
    bed.wait_phase(&name, "Running");
    bed.kubectl(&format!("delete pod {name} --wait=false"));
    let leaving = bed.get(&format!("pod/{name}")).expect("it has not ended yet");
    assert!(leaving["metadata"]["deletionTimestamp"].is_string());
    bed.kubectl(&format!("wait pod/{name} --for=delete --timeout=30s"));
}

#[test]
fn a_pod_deleted_before_it_started_goes_at_once() {
    let bed = Bed::new();
    let (node, name) = (bed.name("early"), bed.name("never"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, "mock.vnode.dev/startLatencyMs: \"600000\""));
    eventually("it is bound", || bed.get(&format!("pod/{name}"))?["spec"]["nodeName"].as_str().map(drop));
    bed.kubectl(&format!("delete pod {name} --timeout=30s"));
}

#[test]
fn a_force_deleted_pod_is_gone_at_the_provider_too() {
    let bed = Bed::new();
    let (node, name) = (bed.name("force"), bed.name("victim"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait_phase(&name, "Running");
    bed.kubectl(&format!("delete pod {name} --grace-period=0 --force"));
    eventually("the node no longer runs it", || {
        let running = bed.ask_node(&node, "stats/summary");
        (running.contains("nodeName") && !running.contains(&name)).then_some(())
    });
}

#[test]
fn pods_wait_for_the_config_they_name_and_start_when_it_appears() {
    let bed = Bed::new();
    let (node, name) = (bed.name("env"), bed.name("configured"));
    bed.ready_node(&node, "");
    let missing = bed.name("settings");
    bed.apply(
        &pod(&name, &node, "")
            .replace("image: example/app:1", &format!("image: i, envFrom: [{{configMapRef: {{name: {missing}}}}}]")),
    );
    let waiting = eventually("it says what is missing", || {
        let pod = bed.get(&format!("pod/{name}"))?;
        let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (waiting["reason"] == "CreateContainerConfigError").then_some(waiting)
    });
    assert!(waiting["message"].as_str().is_some_and(|m| m.contains(&missing)), "{waiting}");
    bed.kubectl(&format!("create configmap {missing} --from-literal=A=b"));
    bed.wait_phase(&name, "Running");
    bed.kubectl(&format!("delete configmap {missing}"));
}

#[test]
fn the_node_answers_for_its_pods() {
    let bed = Bed::new();
    let (node, name) = (bed.name("stat"), bed.name("busy"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait_phase(&name, "Running");
    let raw = |path: &str| bed.ask_node(&node, path);
    assert_eq!(raw("healthz").trim(), "ok");
    let pods: serde_json::Value = serde_json::from_str(&raw("pods")).expect("a PodList");
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(1), "{pods:#}");
    assert_eq!(pods["items"][0]["metadata"]["name"], name.as_str());
    let summary: serde_json::Value = serde_json::from_str(&raw("stats/summary")).expect("a Summary");
    assert_eq!(summary["node"]["nodeName"], node.as_str());
    assert_eq!(summary["pods"][0]["podRef"]["name"], name.as_str(), "{summary:#}");
    assert!(raw("runningpods/").contains(&name));
    let metrics = raw("metrics/resource");
    assert!(
        metrics.contains(&format!("pod=\"{name}\"")) && metrics.contains("node_memory_working_set_bytes"),
        "{metrics}"
    );
}

#[test]
fn describe_says_which_volume_a_pod_waits_for() {
    let bed = Bed::new();
    let (node, name, missing) = (bed.name("vol"), bed.name("mounts"), bed.name("files"));
    bed.ready_node(&node, "");
    let volume = format!("\nspec:\n  volumes: [{{name: cfg, configMap: {{name: {missing}}}}}]");
    bed.apply(&pod(&name, &node, "").replace("\nspec:", &volume));
    let words = format!("MountVolume.SetUp failed for volume \"cfg\" : configmap \"{missing}\" not found");
    eventually("describe says so", || {
        bed.kubectl(&format!("describe pod {name}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .contains(&words)
            .then_some(())
    });
    let pod = bed.get(&format!("pod/{name}")).expect("the pod");
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    bed.kubectl(&format!("create configmap {missing} --from-literal=A=b"));
    bed.wait_phase(&name, "Running");
    bed.kubectl(&format!("delete configmap {missing}"));
}

#[test]
fn a_pod_bound_by_hand_to_a_full_node_is_rejected_in_kubelets_words() {
    let bed = Bed::new();
    let (node, first, second) = (bed.name("full"), bed.name("first"), bed.name("second"));
    bed.ready_node(&node, "  capacity: {pods: 1}\n");
    let bound = |name: &str| pod(name, &node, "").replace("\nspec:", &format!("\nspec:\n  nodeName: {node}"));
    bed.apply(&bound(&first));
    bed.wait_phase(&first, "Running");
    bed.apply(&bound(&second));
    bed.wait_phase(&second, "Failed");
    let status = bed.get(&format!("pod/{second}")).expect("the pod")["status"].clone();
    assert_eq!(status["reason"], "OutOfpods");
    let words = "Node didn't have enough resource: pods, requested: 1, used: 1, capacity: 1";
    assert_eq!(status["message"], format!("Pod was rejected: {words}"));
    eventually("the event says so", || bed.kubectl(&format!("describe pod {second}")).contains(words).then_some(()));
    let other = bed.name("other");
    bed.kubectl(&format!("delete pod {first} {second} --wait=true"));
    bed.apply(&bound(&other).replace("nodeSelector: {", "nodeSelector: {zone: nowhere, "));
    bed.wait_phase(&other, "Failed");
    assert_eq!(bed.get(&format!("pod/{other}")).expect("the pod")["status"]["reason"], "NodeAffinity");
}

#[test]
fn pods_of_daemon_sets_stay_pending_with_the_reason_where_they_are_ignored() {
    let bed = Bed::new();
    let (node, name) = (bed.name("agents"), bed.name("proxy"));
    bed.ready_node(&node, "  daemonSetPods: Ignore\n");
    bed.apply(&format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
         template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n      \
         tolerations: [{{operator: Exists}}]\n      containers: [{{name: main, image: example/app:1}}]\n"
    ));
    let pod = eventually("it says why", || {
        let pods = bed.get(&format!("pods -l app={name}"))?;
        let pod = pods["items"].as_array()?.first()?.clone();
        (pod["status"]["reason"] == "DaemonSetPodsIgnored").then_some(pod)
    });
    assert_eq!(pod["status"]["phase"], "Pending");
    assert!(has_condition(&pod, "Ready", "False", "DaemonSetPodsIgnored"), "{pod:#}");
    let uid = pod["metadata"]["uid"].clone();
    let (group, patch) = ("merge", r#"{"spec":{"daemonSetPods":"Run"}}"#);
    bed.kubectl(&format!("patch vn {node} --type {group} -p {patch}"));
    let running = eventually("it runs", || {
        let pods = bed.get(&format!("pods -l app={name}"))?;
        pods["items"].as_array()?.iter().find(|p| p["status"]["phase"] == "Running").cloned()
    });
    assert_eq!(running["metadata"]["uid"], uid, "the same pod, not another one");
    let able = bed.get(&format!("vn/{node}")).expect("the node")["status"]["provider"]["capabilities"].clone();
    assert!(able.as_array().is_some_and(|a| a.iter().any(|w| w == "logs")), "{able}");
    bed.kubectl(&format!("delete daemonset {name}"));
}
