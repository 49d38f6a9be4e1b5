//! Pods as containers of a real engine: what a kubelet does with them is done, and neither a restart of the
//! operator nor one of the engine loses anything.
//!
//! Where no engine can be started, each test says so and tests nothing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use serde_json::Value;

use crate::support::podman::{IMAGE, Podman};
use crate::support::{Bed, eventually};

/// An operator that may use an engine, and a node for it.
struct EngineBed {
    // Dropped in this order: the operator, then what runs.
    bed: Bed,
    engine: Podman,
    node: String,
    flags: Vec<String>,
}

impl EngineBed {
    fn new(more: &str) -> Option<Self> {
        let engine = Podman::start()?;
        let mut bed = Bed::cluster_only();
        let state = bed.dir.path().join("pods").display().to_string();
        let flags = ["--allow-host-engine", "--state-dir", &state].map(str::to_owned).to_vec();
        let node = bed.name("engine");
        bed.start_operator_with(&flags.iter().map(String::as_str).collect::<Vec<_>>());
        let host = engine.host();
        bed.ready_node(
            &node,
            &format!(
                "  provider:\n    type: docker\n    docker: {{host: \"{host}\", sandboxImage: \"{IMAGE}\", \
                 sandboxCommand: [sleep, \"1000000\"]{more}}}"
            ),
        );
        Some(Self { bed, engine, node, flags })
    }

    fn start_operator(&mut self) {
        self.bed.start_operator_with(&self.flags.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Applies a pod; `spec` is YAML of two spaces in which `IMAGE` is the engine's.
    fn pod(&self, name: &str, spec: &str) {
        let (spec, node) = (spec.replace("IMAGE", IMAGE), &self.node);
        self.bed.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
             tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 2\n{spec}\n---\n"
        ));
    }

    /// The status of a pod's first container.
    fn container(&self, pod: &str) -> Option<Value> {
        Some(self.bed.get(&format!("pod/{pod}"))?["status"]["containerStatuses"][0].clone())
    }

    /// What a command in a pod prints.
    fn exec(&self, pod: &str, script: &str) -> String {
        let out = self.bed.exec(&[pod, "--", "sh", "-c", script]);
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn waits_with(&self, pod: &str, reason: &str) -> Value {
        eventually(&format!("{pod} waits with {reason}"), || {
            let status = self.container(pod)?;
            (status["state"]["waiting"]["reason"] == reason).then_some(status)
        })
    }

    fn end(&self) {
        self.bed.kubectl("delete pods --all --timeout=90s");
        eventually("nothing is left at the engine", || {
            let out = self.engine.podman(&["ps", "--all", "--quiet"]).ok()?;
            out.stdout.is_empty().then_some(())
        });
    }
}

#[test]
fn containers_end_are_restarted_and_are_refused_as_by_a_kubelet() {
    let Some(bed) = EngineBed::new("") else { return };
    bed.pod(
        "once",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, \
         command: [sh, -c, 'echo said; echo last words > /dev/termination-log; exit 7']}",
    );
    bed.pod("crash", "  containers: [{name: main, image: IMAGE, command: [sh, -c, 'exit 3']}]");
    bed.pod(
        "hungry",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, command: [tail, /dev/zero], \
         resources: {limits: {memory: 24Mi}}}",
    );
    bed.pod("absent", "  containers: [{name: main, image: 'localhost/absent:1', imagePullPolicy: Never}]");
    bed.pod("nowhere", "  containers: [{name: main, image: 'localhost:1/nowhere:1'}]");
    bed.pod("wrong", "  containers: [{name: main, image: IMAGE, command: [/no/such/program]}]");

    bed.bed.wait_phase("once", "Failed");
    let ended = &bed.container("once").expect("its status")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&Value::from(7), &Value::from("Error")), "{ended:#}");
    assert_eq!(ended["message"], "last words\n");
    assert_eq!(bed.bed.kubectl("logs once"), "said\n");

    let crash = bed.waits_with("crash", "CrashLoopBackOff");
    assert_eq!(crash["lastState"]["terminated"]["exitCode"], 3, "{crash:#}");
    let never = bed.waits_with("absent", "ErrImageNeverPull");
    assert!(never["state"]["waiting"]["message"].to_string().contains("Never"), "{never:#}");
    let pull = bed.waits_with("nowhere", "ImagePullBackOff");
    assert!(pull["state"]["waiting"]["message"].to_string().contains("localhost:1/nowhere:1"), "{pull:#}");
    let wrong = eventually("a program that is not there is told", || {
        let status = bed.container("wrong")?;
        let ended = status["lastState"]["terminated"].clone();
        (!ended.is_null()).then_some(ended)
    });
    assert_eq!((&wrong["exitCode"], &wrong["reason"]), (&Value::from(128), &Value::from("StartError")), "{wrong:#}");

    bed.bed.wait_phase("hungry", "Failed");
    let ended = &bed.container("hungry").expect("its status")["state"]["terminated"];
    // Which of the two a kernel tells the engine depends on the machine; that it is killed does not.
    assert_eq!(ended["exitCode"], 137, "{ended:#}");
    assert!(ended["reason"] == "OOMKilled" || ended["reason"] == "Error", "{ended:#}");
    eventually("events tell of it", || {
        let events = bed.bed.kubectl("get events");
        ["Pulling", "BackOff", "Failed", "Started"].iter().all(|e| events.contains(e)).then_some(())
    });
    bed.end();
}

#[test]
fn containers_of_a_pod_share_what_kubernetes_says_and_are_reached() {
    let Some(bed) = EngineBed::new("") else { return };
    bed.bed.kubectl("create configmap settings --from-literal=key=old");
    bed.pod(
        "pair",
        "  hostAliases: [{ip: 10.1.2.3, hostnames: [elsewhere]}]\n  shareProcessNamespace: true\n  \
         securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456}\n  \
         initContainers:\n  - {name: first, image: IMAGE, command: [sh, -c, 'echo from init > /scratch/index.html'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  \
         containers:\n  \
         - {name: web, image: IMAGE, command: [httpd, -f, -p, '127.0.0.1:8080', -h, /scratch], \
         readinessProbe: {httpGet: {port: 8080, path: /index.html}, periodSeconds: 1}, \
         volumeMounts: [{name: scratch, mountPath: /scratch}, {name: memory, mountPath: /memory}]}\n  \
         - {name: side, image: IMAGE, command: [sleep, '1000'], \
         securityContext: {readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}, \
         volumeMounts: [{name: config, mountPath: /etc/settings}, {name: memory, mountPath: /memory}, \
         {name: config, mountPath: /etc/fixed, subPath: key}]}\n  \
         volumes:\n  - {name: scratch, emptyDir: {}}\n  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n  \
         - {name: config, configMap: {name: settings}}",
    );
    bed.pod(
        "typist",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, stdin: true, stdinOnce: true, \
         command: [sh, -c, 'read line; echo got $line; exit 4']}",
    );
    bed.bed.wait("pod/pair", "condition=Ready");
    let side = |script: &str| {
        let out = bed.bed.exec(&["pair", "-c", "side", "--", "sh", "-c", script]);
        (String::from_utf8_lossy(&out.stdout).trim().to_owned(), out.status.code())
    };
    assert_eq!(side("wget -q -O - http://localhost:8080/index.html").0, "from init", "they share localhost");
    assert_eq!(side("hostname; id -u; id -g").0, "pair\n1234\n2345");
    assert!(side("id -G").0.contains("3456"));
    assert!(side("cat /etc/hosts").0.contains("10.1.2.3"));
    assert!(side("ps").0.contains("httpd"), "they share processes");
    assert!(side("grep ' /memory ' /proc/mounts").0.starts_with("tmpfs"));
    assert_eq!(bed.exec("pair", "echo shared > /memory/a"), "");
    assert_eq!(side("cat /memory/a").0, "shared");
    assert_ne!(side("touch /file").1, Some(0), "its root is read-only");
    assert_eq!(side("exit 9").1, Some(9));
    let absent = bed.bed.exec(&["pair", "--", "/no/such/program"]);
    assert!(!absent.status.success(), "{absent:?}");
    assert_eq!(side("cat /etc/settings/key").0, "old");
    assert!(bed.bed.get("pod/pair").expect("it")["status"]["podIP"].is_string());

    let patch = ["patch", "configmap", "settings", "-p", r#"{"data":{"key":"new"}}"#];
    assert!(bed.bed.command().args(patch).status().expect("kubectl").success());
    eventually("the new text", || (side("cat /etc/settings/key").0 == "new").then_some(()));
    assert_eq!(side("cat /etc/fixed").0, "old", "a part of a volume stays as it was");

    let mut forward = bed.bed.command();
    let mut forward = forward
        .args(["port-forward", "pod/pair", ":8080", "--address", "127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    // Kept, or its next line would end it.
    let mut lines = BufReader::new(forward.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("it says where it listens").expect("a line");
    let address = line.split_whitespace().nth(2).expect("an address").to_owned();
    let mut stream = TcpStream::connect(address).expect("the forwarded port");
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").expect("written");
    stream.set_read_timeout(Some(crate::support::PATIENCE)).expect("a deadline");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("an answer");
    assert!(page.contains("from init"), "what listens on localhost alone is reached: {page:?}");
    let _ = forward.kill();
    let _ = forward.wait();

    bed.bed.wait_phase("typist", "Running");
    let mut attach = bed.bed.command();
    attach.args(["attach", "-i", "typist"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attach = attach.spawn().expect("kubectl");
    attach.stdin.take().expect("piped").write_all(b"hello\n").expect("typed");
    let out = attach.wait_with_output().expect("kubectl ends");
    assert!(String::from_utf8_lossy(&out.stdout).contains("got hello"), "{out:?}");
    bed.bed.wait_phase("typist", "Failed");

    eventually("statistics name it", || {
        let stats = bed.bed.ask_node(&bed.node, "stats/summary");
        // The network is the pod's own, so its statistics are.
        ["\"side\"", "workingSetBytes", "\"rxBytes\""].iter().all(|part| stats.contains(part)).then_some(())
    });
    bed.end();
}

#[test]
fn containers_survive_restarts_of_the_operator_and_the_engine() {
    let Some(mut bed) = EngineBed::new("") else { return };
    bed.pod(
        "survivor",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, \
         command: [sh, -c, 'echo begun; while ! test -e /scratch/end; do sleep 0.2; done; exit 7'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  volumes: [{name: scratch, emptyDir: {}}]",
    );
    bed.pod(
        "meanwhile",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, \
         command: [sh, -c, 'while ! test -e /scratch/end; do sleep 0.2; done; exit 5'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  volumes: [{name: scratch, emptyDir: {}}]",
    );
    bed.bed.wait_phase("survivor", "Running");
    bed.bed.wait_phase("meanwhile", "Running");
    let before = bed.container("survivor").expect("its status");

    // It ends while nobody looks.
    bed.bed.kill_operator();
    let id = bed.container("meanwhile").expect("its status")["containerID"].as_str().expect("an id").to_owned();
    let id = id.trim_start_matches("docker://").to_owned();
    let touched = bed.engine.podman(&["exec", &id, "touch", "/scratch/end"]).expect("podman");
    assert!(touched.status.success(), "{touched:?}");
    bed.start_operator();
    bed.bed.wait_phase("meanwhile", "Failed");
    assert_eq!(bed.container("meanwhile").expect("its status")["state"]["terminated"]["exitCode"], 5);

    // The engine goes away: nothing is concluded from that. It comes back, and all is as it was.
    bed.engine.stop();
    eventually("the node says that it cannot reach the engine", || {
        let vn = bed.bed.get(&format!("vn/{}", bed.node))?;
        let condition = crate::support::condition(&vn, "ProviderReachable")?.clone();
        (condition["status"] == "False").then_some(())
    });
    assert_eq!(bed.bed.get("pod/survivor").expect("it")["status"]["phase"], "Running");
    bed.engine.serve();
    bed.bed.wait(&format!("vn/{}", bed.node), "condition=ProviderReachable");
    bed.bed.kubectl_at_last("exec survivor -- true");
    // The container may end before the command does, and takes it along.
    let out = bed.bed.exec(&["survivor", "--", "touch", "/scratch/end"]);
    assert!(matches!(out.status.code(), Some(0 | 137)), "{out:?}");
    bed.bed.wait_phase("survivor", "Failed");
    let after = bed.container("survivor").expect("its status");
    assert_eq!(after["state"]["terminated"]["exitCode"], 7, "{after:#}");
    assert_eq!(after["containerID"], before["containerID"], "it was not started anew");
    assert_eq!(after["restartCount"], 0);
    assert!(bed.bed.kubectl("logs survivor").contains("begun"));

    // A container that somebody removes is run again; a pod that is stopped has its grace.
    bed.pod(
        "removed",
        "  containers:\n  - {name: main, image: IMAGE, \
         command: [sh, -c, 'trap \"echo stopped; exit 0\" TERM; while true; do sleep 0.1; done']}",
    );
    bed.bed.wait_phase("removed", "Running");
    let first = bed.container("removed").expect("its status")["containerID"].clone();
    let id = first.as_str().expect("an id").trim_start_matches("docker://").to_owned();
    assert!(bed.engine.podman(&["rm", "--force", "--time=0", &id]).expect("podman").status.success());
    eventually("it runs again", || {
        let status = bed.container("removed")?;
        (status["state"]["running"].is_object() && status["containerID"] != first).then_some(())
    });
    bed.end();
}

#[test]
fn files_are_copied_to_engines_that_cannot_mount_them() {
    let Some(bed) = EngineBed::new(", volumes: Copy") else { return };
    bed.bed.kubectl("create configmap settings --from-literal=key=old --from-literal=other=fixed");
    bed.pod(
        "copied",
        "  containers:\n  - {name: main, image: IMAGE, command: [sleep, '1000'], \
         volumeMounts: [{name: config, mountPath: /etc/settings}, {name: scratch, mountPath: /scratch}, \
         {name: config, mountPath: /etc/deep/fixed, subPath: other}]}\n  \
         - {name: side, image: IMAGE, command: [sh, -c, 'echo written > /scratch/a; sleep 1000'], \
         volumeMounts: [{name: scratch, mountPath: /scratch}]}\n  \
         volumes: [{name: config, configMap: {name: settings, defaultMode: 0440}}, {name: scratch, emptyDir: {}}]",
    );
    bed.pod(
        "words",
        "  restartPolicy: Never\n  containers:\n  - {name: main, image: IMAGE, terminationMessagePath: /tmp/words, \
         command: [sh, -c, 'echo last > /tmp/words; exit 1']}",
    );
    bed.bed.wait("pod/copied", "condition=Ready");
    assert_eq!(bed.exec("copied", "cat /etc/settings/key /etc/deep/fixed"), "oldfixed");
    assert_eq!(bed.exec("copied", "stat -L -c %a /etc/settings/key"), "440");
    eventually("they share the volume", || (bed.exec("copied", "cat /scratch/a") == "written").then_some(()));
    let patch = ["patch", "configmap", "settings", "-p", r#"{"data":{"key":"new"}}"#];
    assert!(bed.bed.command().args(patch).status().expect("kubectl").success());
    eventually("the new text", || (bed.exec("copied", "cat /etc/settings/key") == "new").then_some(()));
    bed.bed.wait_phase("words", "Failed");
    assert_eq!(bed.container("words").expect("its status")["state"]["terminated"]["message"], "last\n");
    bed.end();
    let left = bed.engine.podman(&["volume", "ls", "--quiet"]).expect("podman");
    assert!(left.stdout.is_empty(), "volumes go with their pods: {left:?}");
}

#[test]
fn an_operator_without_leave_uses_no_engine_of_its_machine() {
    let bed = Bed::new();
    let node = bed.name("forbidden");
    bed.apply(&crate::support::virtual_node(&node, "  provider: {type: docker, docker: {}}"));
    eventually("its condition says what to do", || {
        let vn = bed.get(&format!("vn/{node}"))?;
        vn["status"].to_string().contains("--allow-host-engine").then_some(())
    });
}
