//! Pods as processes: what a kubelet does with them is done, and a restart of the operator loses nothing.

use serde_json::Value;

use crate::support::{Bed, eventually};

/// An operator that may run processes, and a node for them.
fn bed() -> (Bed, String, Vec<String>) {
    let mut bed = Bed::cluster_only();
    let state = bed.dir.path().join("pods").display().to_string();
    let flags = ["--allow-host-processes", "--state-dir", &state].map(str::to_owned).to_vec();
    bed.start_operator_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    let node = bed.name("local");
    bed.ready_node(&node, "  provider: {type: process, process: {allowRoot: true, podIP: 127.0.0.1}}");
    (bed, node, flags)
}

fn pod(name: &str, node: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
         tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 2\n{spec}\n---\n"
    )
}

fn container(bed: &Bed, pod: &str) -> Option<Value> {
    Some(bed.get(&format!("pod/{pod}"))?["status"]["containerStatuses"][0].clone())
}

/// Ends all pods, so that no process is left when the operator is gone.
fn end(bed: &Bed) {
    bed.kubectl("delete pods,jobs --all --timeout=60s");
}

#[test]
fn pods_live_as_on_a_kubelet() {
    let (bed, node, _) = bed();
    bed.apply(&pod(
        "steps",
        &node,
        "  initContainers:\n  - {name: first, image: host, command: [sh, -c, 'echo one > $VNODE_CONTAINER_ROOT/work/log'], \
         volumeMounts: [{name: work, mountPath: /work}]}\n  \
         containers:\n  - {name: main, image: host, command: [sh, -c, 'cat $VNODE_CONTAINER_ROOT/work/log; sleep 1000'], \
         readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}, \
         volumeMounts: [{name: work, mountPath: /work}]}\n  \
         volumes: [{name: work, emptyDir: {}}]",
    ));
    bed.apply(&pod("crash", &node, "  containers: [{name: main, image: host, command: [sh, -c, 'exit 3']}]"));
    bed.apply(&pod(
        "unready",
        &node,
        "  containers:\n  - {name: main, image: host, command: [sleep, '1000'], \
         readinessProbe: {httpGet: {port: 1}, periodSeconds: 1}}",
    ));
    bed.wait("pod/steps", "condition=Ready");
    eventually("what the init container wrote is read", || bed.kubectl("logs steps").contains("one").then_some(()));
    let out = bed.command().args(["exec", "steps", "--", "sh", "-c", "echo $HOSTNAME"]).output().expect("kubectl");
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "steps", "{out:?}");

    let crash = eventually("the second end is backed off from", || {
        let status = container(&bed, "crash")?;
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(status)
    });
    assert_eq!(crash["lastState"]["terminated"]["exitCode"], 3, "{crash:#}");
    eventually("its events tell of it", || {
        let events = bed.kubectl("get events");
        (events.contains("BackOff") && events.contains("Unhealthy")).then_some(())
    });
    assert_eq!(container(&bed, "unready").expect("its status")["ready"], false);
    end(&bed);
}

#[test]
fn config_reaches_running_processes_and_jobs_complete() {
    let (bed, node, _) = bed();
    bed.kubectl("create configmap settings --from-literal=key=old");
    bed.apply(&pod(
        "reload",
        &node,
        "  containers:\n  - {name: main, image: host, \
         command: [sh, -c, 'while true; do cat $VNODE_CONTAINER_ROOT/etc/settings/key; echo; sleep 1; done'], \
         volumeMounts: [{name: c, mountPath: /etc/settings}]}\n  volumes: [{name: c, configMap: {name: settings}}]",
    ));
    bed.apply(&format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: work}}\nspec:\n  template:\n    spec:\n      \
         restartPolicy: Never\n      nodeSelector: {{kubernetes.io/hostname: {node}}}\n      \
         tolerations: [{{operator: Exists}}]\n      containers: [{{name: main, image: host, command: ['true']}}]\n"
    ));
    bed.wait("job/work", "condition=Complete");
    eventually("the old text", || bed.kubectl("logs reload").contains("old").then_some(()));
    bed.command()
        .args(["patch", "configmap", "settings", "-p", r#"{"data":{"key":"new"}}"#])
        .status()
        .expect("kubectl");
    // Within a minute, and the machine is busy.
    eventually("the new text", || bed.kubectl("logs --tail=1 reload").contains("new").then_some(()));
    end(&bed);
}

#[test]
fn processes_survive_a_restart_of_the_operator() {
    let (mut bed, node, flags) = bed();
    bed.apply(&pod(
        "survivor",
        &node,
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: host, \
         command: [sh, -c, 'echo begun; while ! test -e $VNODE_CONTAINER_ROOT/work/end; do sleep 0.2; done; exit 7'], \
         volumeMounts: [{name: work, mountPath: /work}]}\n  volumes: [{name: work, emptyDir: {}}]",
    ));
    bed.wait_phase("survivor", "Running");
    let before = container(&bed, "survivor").expect("its status");
    if let Some(mut operator) = bed.operator.take() {
        operator.kill();
    }
    bed.start_operator_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    eventually("it can be asked again", || {
        let touch = "touch $VNODE_CONTAINER_ROOT/work/end";
        let out = bed.command().args(["exec", "survivor", "--", "sh", "-c", touch]).output().expect("kubectl");
        out.status.success().then_some(())
    });
    bed.wait_phase("survivor", "Failed");
    let after = container(&bed, "survivor").expect("its status");
    assert_eq!(after["state"]["terminated"]["exitCode"], 7, "{after:#}");
    assert_eq!(after["containerID"], before["containerID"], "it was not started anew");
    assert_eq!(after["restartCount"], 0);
    assert!(bed.kubectl("logs survivor").contains("begun"));
    end(&bed);
}

#[test]
fn an_operator_without_leave_runs_no_processes() {
    let bed = Bed::new();
    let node = bed.name("forbidden");
    bed.apply(&crate::support::virtual_node(&node, "  provider: {type: process, process: {}}"));
    eventually("its condition says what to do", || {
        let vn = bed.get(&format!("vn/{node}"))?;
        vn["status"].to_string().contains("--allow-host-processes").then_some(())
    });
}
