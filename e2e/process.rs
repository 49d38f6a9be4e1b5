//! Pods as processes: what a kubelet does with them is done, and a restart of the operator loses nothing.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::scenarios::supervisors;
use crate::support::{Bed, eventually, vnode_binary};

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
        "  initContainers:\n  - {name: first, image: host, command: [sh, -c, 'echo one > $VNODE_CONTAINER_ROOT/scratch/log'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  \
         containers:\n  - {name: main, image: host, command: [sh, -c, 'cat $VNODE_CONTAINER_ROOT/scratch/log; sleep 1000'], \
         readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}, \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  \
         volumes: [{name: scratch, emptyDir: {}}]",
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
    let out = bed.exec(&["steps", "--", "sh", "-c", "echo $HOSTNAME"]);
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

    let probes = bed.ask_node(&node, "metrics/probes");
    let count = |pod: &str, result: &str| {
        let of = |l: &&str| {
            let says = [format!("pod=\"{pod}\""), r#"probe_type="Readiness""#.into(), format!("result=\"{result}\"")];
            l.starts_with("prober_probe_total{") && says.iter().all(|s| l.contains(s))
        };
        probes.lines().find(of).and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    assert!(count("steps", "successful") > 0 && count("steps", "failed") == 0, "{probes}");
    assert!(count("unready", "failed") > 0 && count("unready", "successful") == 0, "{probes}");
    let summary: Value = serde_json::from_str(&bed.ask_node(&node, "stats/summary")).expect("a Summary");
    assert!(
        summary["node"]["fs"]["capacityBytes"].as_u64() > summary["node"]["fs"]["usedBytes"].as_u64(),
        "{summary:#}"
    );
    let pods = summary["pods"].as_array().expect("pods");
    let steps = pods.iter().find(|p| p["podRef"]["name"] == "steps").expect("the pod");
    assert!(steps["containers"][0]["logs"]["usedBytes"].as_u64() > Some(0), "{steps:#}");
    assert!(steps.get("network").is_none(), "it has none of its own: {steps:#}");
    end(&bed);
}

#[test]
fn a_followed_log_goes_on_with_the_next_run_and_ends_with_the_last() {
    let (bed, node, _) = bed();
    // Each run is its number; the first waits until somebody follows it, the third is the last.
    let script = "n=$(cat $VNODE_CONTAINER_ROOT/s/n 2>/dev/null || echo 1); echo run $n; echo $((n + 1)) \
                  > $VNODE_CONTAINER_ROOT/s/n; until [ -e $VNODE_CONTAINER_ROOT/s/go ]; do sleep 0.1; done; [ $n = 3 ]";
    bed.apply(&pod(
        "again",
        &node,
        &format!(
            "  restartPolicy: OnFailure\n  containers:\n  - {{name: main, image: host, command: [sh, -c, '{script}'], \
             volumeMounts: [{{name: s, mountPath: /s}}]}}\n  volumes: [{{name: s, emptyDir: {{}}}}]"
        ),
    ));
    bed.wait("pod/again", "condition=Ready");
    let mut follow = bed.command().args(["logs", "-f", "again"]).stdout(Stdio::piped()).spawn().expect("kubectl");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines().map(|l| l.expect("a line"));
    assert_eq!(lines.next().as_deref(), Some("run 1"));
    bed.exec(&["again", "--", "touch", "s/go"]);
    assert_eq!(lines.collect::<Vec<_>>(), ["run 2", "run 3"]);
    assert!(follow.wait().expect("kubectl").success());
    bed.wait_phase("again", "Succeeded");
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
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: scratch}}\nspec:\n  template:\n    spec:\n      \
         restartPolicy: Never\n      nodeSelector: {{kubernetes.io/hostname: {node}}}\n      \
         tolerations: [{{operator: Exists}}]\n      containers: [{{name: main, image: host, command: ['true']}}]\n"
    ));
    bed.wait("job/scratch", "condition=Complete");
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
         command: [sh, -c, 'echo begun; while ! test -e $VNODE_CONTAINER_ROOT/scratch/end; do sleep 0.1; done; exit 7'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  volumes: [{name: scratch, emptyDir: {}}]",
    ));
    bed.wait_phase("survivor", "Running");
    let before = container(&bed, "survivor").expect("its status");
    bed.kill_operator();
    bed.start_operator_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    bed.kubectl_at_last("exec survivor -- true");
    // The container may end before the command does, and takes it along: its session is told so all the same.
    let touch = "touch $VNODE_CONTAINER_ROOT/scratch/end";
    let out = bed.exec(&["survivor", "--", "sh", "-c", touch]);
    assert!(matches!(out.status.code(), Some(0 | 137)), "{out:?}");
    bed.wait_phase("survivor", "Failed");
    let after = container(&bed, "survivor").expect("its status");
    assert_eq!(after["state"]["terminated"]["exitCode"], 7, "{after:#}");
    assert_eq!(after["containerID"], before["containerID"], "it was not started anew");
    assert_eq!(after["restartCount"], 0);
    assert!(bed.kubectl("logs survivor").contains("begun"));
    end(&bed);
}

#[test]
fn a_node_that_is_deleted_while_no_operator_runs_gives_its_processes_their_time() {
    let (mut bed, node, flags) = bed();
    let file = bed.dir.path().join("ended");
    let script = format!("trap \"touch {}; exit 0\" TERM; while true; do sleep 0.1; done", file.display());
    bed.apply(&pod(
        "polite",
        &node,
        &format!("  containers: [{{name: main, image: host, command: [sh, -c, '{script}']}}]"),
    ));
    bed.wait("pod/polite", "condition=Ready");
    bed.kill_operator();
    bed.kubectl(&format!("delete vn {node} --wait=false"));
    bed.start_operator_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    bed.kubectl(&format!("wait vn/{node} --for=delete --timeout=60s"));
    assert!(file.exists(), "it was told to end before it was ended");
    assert!(bed.get("pod/polite").is_none(), "the node went after its pods");
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

#[test]
fn dev_with_processes_leaves_none_behind() {
    use std::io::{BufRead as _, BufReader};
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config");
    let mut dev = Command::new(vnode_binary())
        .args(["dev", "--provider", "process", "--listen", "127.0.0.1:0", "--kubeconfig-out"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("vnode dev");
    let mut lines = BufReader::new(dev.stdout.take().expect("piped")).lines();
    lines.by_ref().map_while(Result::ok).find(|l| l.contains("Ctrl-C")).expect("it says how to stop it");
    let state = format!("vnode-dev-{}/", dev.id());
    eventually("its sample runs", || (supervisors(&state).len() > 1).then_some(()));
    // Those that are tried again and again, too.
    for (name, command) in [("crash", &["--", "false"][..]), ("nothing", &[])] {
        let kubectl = std::env::var_os("VNODE_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut run = Command::new(kubectl);
        run.arg("--kubeconfig").arg(&file).args(["run", name, "--image=host"]).args(command);
        assert!(run.status().expect("kubectl").success());
    }
    eventually("they were tried", || {
        let find = Command::new("find").arg(std::env::temp_dir().join(&state)).args(["-path", "*/nothing/0"]).output();
        (!find.expect("find").stdout.is_empty()).then_some(())
    });
    let _ = Command::new("kill").args(["-INT", &dev.id().to_string()]).status();
    let status = dev.wait().expect("it ends");
    assert!(status.success(), "Ctrl-C is a clean end: {status}");
    assert_eq!(supervisors(&state), Vec::<String>::new());
    assert!(!std::env::temp_dir().join(&state).exists(), "nor any files");
}

#[test]
fn a_terminal_has_the_size_of_the_clients() {
    let (bed, node, _) = bed();
    bed.apply(&pod("shell", &node, "  containers: [{name: main, image: host, command: [sleep, '1000']}]"));
    bed.wait("pod/shell", "condition=Ready");
    let kubectl = bed.command();
    let words = [kubectl.get_program()].into_iter().chain(kubectl.get_args()).map(|w| w.to_string_lossy().into_owned());
    let kubectl = words.collect::<Vec<_>>().join(" ");
    // The size changes while the shell runs, and it must be told.
    let script = format!(
        "stty cols 91 rows 33; (sleep 4; stty -F /dev/tty cols 60 rows 20) & \
         {kubectl} exec -it shell -- sh -c 'stty size; trap \"stty size; exit\" WINCH; i=0; while [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done'"
    );
    let out = Command::new("script").args(["-qec", &script, "/dev/null"]).output().expect("script is on the PATH");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let at = |size: &str| said.find(size).unwrap_or_else(|| panic!("no {size} in {said:?}"));
    assert!(at("33 91") < at("20 60"));
    end(&bed);
}

#[test]
fn a_log_that_is_followed_is_whole_though_it_is_rotated() {
    let mut bed = Bed::cluster_only();
    let state = bed.dir.path().join("pods").display().to_string();
    bed.start_operator_with(&["--allow-host-processes", "--state-dir", &state]);
    let node = bed.name("small-logs");
    bed.ready_node(&node, "  provider: {type: process, process: {allowRoot: true, logMaxBytes: 8192, logMaxFiles: 3}}");
    bed.apply(&pod(
        "talker",
        &node,
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: host, \
         command: [sh, -c, 'sleep 3; i=0; while [ $i -lt 1500 ]; do echo line $i; i=$((i+1)); [ $((i % 20)) -eq 0 ] && sleep 0.1; done; true']}",
    ));
    bed.wait_phase("talker", "Running");
    // Ends with the container.
    let said = bed.kubectl("logs -f talker");
    let wanted: Vec<String> = (0..1500).map(|n| format!("line {n}")).collect();
    assert!(
        said.lines().eq(wanted.iter()),
        "{} lines, the last of them {:?}",
        said.lines().count(),
        said.lines().last()
    );
    bed.wait_phase("talker", "Succeeded");
    let files = std::fs::read_dir(&state).expect("the state").flatten().flat_map(|node| {
        let find =
            Command::new("find").arg(node.path()).args(["-path", "*/0/log*", "-type", "f"]).output().expect("find");
        String::from_utf8_lossy(&find.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    });
    let files: Vec<String> = files.collect();
    assert_eq!(files.len(), 3, "the oldest lines are let go: {files:?}");
    end(&bed);
}

#[test]
fn an_image_can_be_a_folder() {
    let mut bed = Bed::cluster_only();
    let root = bed.dir.path().join("root");
    // A shell and a few tools with the libraries that they want.
    let script = "set -e; mkdir -p $1/bin $1/tmp $1/etc; for tool in sh ls cat sleep; do path=$(readlink -f $(command -v $tool)); \
        cp $path $1/bin/$tool; for lib in $(ldd $path 2>/dev/null | grep -o '/[^ ]*'); do mkdir -p $1$(dirname $lib); cp -n $(readlink -f $lib) $1$lib; done; done; \
        echo inside > $1/etc/where";
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(&root).status().expect("sh");
    assert!(made.success());
    let state = bed.dir.path().join("pods").display().to_string();
    bed.start_operator_with(&["--allow-host-processes", "--state-dir", &state]);
    let node = bed.name("folders");
    let rootfs = root.display();
    bed.ready_node(
        &node,
        &format!("  provider: {{type: process, process: {{allowRoot: true, rootfs: {{tiny: {rootfs}, none: /no/such/folder}}}}}}"),
    );
    bed.kubectl("create configmap settings --from-literal=key=mounted");
    bed.apply(&pod(
        "inside",
        &node,
        "  containers:\n  - {name: main, image: tiny, command: [sh, -c, 'cat /etc/where /c/key; echo; exec sleep 1000'], \
         volumeMounts: [{name: c, mountPath: /c}]}\n  volumes: [{name: c, configMap: {name: settings}}]",
    ));
    bed.apply(&pod("nowhere", &node, "  containers: [{name: main, image: none, command: [sh]}]"));
    bed.wait("pod/inside", "condition=Ready");
    eventually("it sees its own files and its volumes", || {
        let log = bed.kubectl("logs inside");
        (log.contains("inside") && log.contains("mounted")).then_some(())
    });
    let out = bed.exec(&["inside", "--", "ls", "/"]);
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(seen.contains("bin") && !seen.contains("proc"), "nothing of the machine: {out:?}");
    eventually("a folder that is not there cannot be pulled", || {
        let reason = container(&bed, "nowhere")?["state"]["waiting"]["reason"].clone();
        matches!(reason.as_str(), Some("ErrImagePull" | "ImagePullBackOff")).then_some(())
    });
    end(&bed);
}

#[test]
fn what_a_process_may_use_is_limited_by_the_kernel_and_can_be_changed_while_it_runs() {
    if !limits_can_be_set() {
        eprintln!("*** SKIPPED, NOTHING WAS TESTED: groups of processes cannot be made here");
        return;
    }
    let (bed, node, _) = bed();
    bed.apply(&pod(
        "hungry",
        &node,
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: host, command: [tail, /dev/zero], \
         resources: {limits: {memory: 32Mi}}}",
    ));
    bed.apply(&pod(
        "sized",
        &node,
        "  containers:\n  - {name: main, image: host, command: [sleep, '1000'], \
         resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 67Mi}}}",
    ));
    bed.wait("pod/sized", "condition=Ready");
    // Sizes that nobody else uses.
    let limited_to = |mebibytes: u64| {
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-path", "*/vnode/*", "(", "-name", "memory.max", "-o", "-name"])
            .args(["memory.limit_in_bytes", ")", "-exec", "cat", "{}", "+"])
            .output()
            .expect("find");
        let bytes = (mebibytes << 20).to_string();
        String::from_utf8_lossy(&found.stdout).lines().any(|l| l.trim() == bytes)
    };
    assert!(limited_to(67));
    let size = r#"{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"97Mi","cpu":"700m"}}}]}}"#;
    let patched = bed.command().args(["patch", "pod", "sized", "--subresource", "resize", "-p", size]).output();
    let patched = patched.expect("kubectl");
    assert!(patched.status.success(), "{patched:?}");
    eventually("the kernel knows the new limit", || limited_to(97).then_some(()));
    let status = eventually("the status shows it", || {
        let status = container(&bed, "sized")?;
        (status["resources"]["limits"]["memory"] == "97Mi").then_some(status)
    });
    assert_eq!((&status["restartCount"], &status["state"]["running"].is_object()), (&Value::from(0), &true));
    eventually("an event tells of it", || bed.kubectl("get events").contains("ResizeCompleted").then_some(()));

    bed.wait_phase("hungry", "Failed");
    let ended = &container(&bed, "hungry").expect("its status")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&Value::from(137), &Value::from("OOMKilled")), "{ended:#}");
    end(&bed);
    eventually("groups go with their containers", || (!limited_to(97)).then_some(()));
}

/// A pod of this test runs the test itself, with this variable: then it is the server.
#[cfg(feature = "grpc")]
const HEALTH_PORT: &str = "VNODE_E2E_HEALTH_PORT";

#[cfg(feature = "grpc")]
#[test]
fn a_grpc_probe_asks_the_health_of_a_service() {
    if let Ok(port) = std::env::var(HEALTH_PORT) {
        return serve_health(port.parse().expect("a port"));
    }
    let (bed, node, _) = bed();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let program = std::env::current_exe().expect("this program");
    let name = "process::a_grpc_probe_asks_the_health_of_a_service";
    bed.apply(&pod(
        "asked",
        &node,
        &format!(
            "  containers:\n  - {{name: good, image: host, command: [{}, --exact, '{name}'], \
             env: [{{name: {HEALTH_PORT}, value: '{free}'}}], \
             readinessProbe: {{grpc: {{port: {free}, service: good}}, periodSeconds: 1}}}}\n  \
             - {{name: bad, image: host, command: [sleep, '1000'], \
             readinessProbe: {{grpc: {{port: {free}, service: bad}}, periodSeconds: 1}}}}\n  \
             - {{name: unknown, image: host, command: [sleep, '1000'], \
             readinessProbe: {{grpc: {{port: {free}, service: none}}, periodSeconds: 1}}}}",
            program.display()
        ),
    ));
    let ready = |name: &str| {
        let pod = bed.get("pod/asked")?;
        let all = pod["status"]["containerStatuses"].as_array()?;
        Some(all.iter().find(|c| c["name"] == name)?["ready"] == true)
    };
    eventually("what is healthy is ready", || ready("good")?.then_some(()));
    eventually("what is not is told", || {
        let events = bed.kubectl("get events");
        (events.contains("NOT_SERVING") && events.contains("code 5")).then_some(())
    });
    assert_eq!((ready("bad"), ready("unknown")), (Some(false), Some(false)));
    end(&bed);
}

#[cfg(feature = "grpc")]
fn serve_health(port: u16) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
        let address = ([127, 0, 0, 1], port).into();
        tonic::transport::Server::builder().add_service(health).serve(address).await.expect("it serves");
    });
}

/// Whether an operator of this user can limit what processes use: by groups of the kernel, at their usual place.
pub fn limits_can_be_set() -> bool {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let base = match controllers.contains("memory") {
        true => "/sys/fs/cgroup",
        false => "/sys/fs/cgroup/memory",
    };
    let probe = format!("{base}/vnode-probe-{}", std::process::id());
    std::fs::create_dir(&probe).is_ok() && std::fs::remove_dir(&probe).is_ok()
}
