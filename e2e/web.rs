//! Pods that an HTTP service runs: the services are the ones under `examples/`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Bed, eventually, has_condition, virtual_node};

/// A service, ended with its handle.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    /// Starts a service; `None`, loudly, where the program for it is not installed.
    fn start(program: &str, file: &str, args: &[&str]) -> Option<Self> {
        let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(program);
        command.arg(path).args(["--listen", "127.0.0.1:0"]).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
        let Ok(mut child) = command.stdout(Stdio::piped()).spawn() else {
            eprintln!("!!! NOT TESTED: {program} is not there, so examples/{file} was not run");
            return None;
        };
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("the service says where it is");
        let url = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
        Some(Self { child, url })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
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

#[test]
fn pods_of_a_service_in_python_outlive_the_operator_and_a_change_of_the_token() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "hush-first").expect("written");
    let file = token.path().display().to_string();
    let Some(service) = Service::start("python3", "web-v2-python/endpoint.py", &["--token-file", &file]) else {
        return;
    };
    let mut bed = Bed::with_operator_flags(&["--log-level", "trace"]);
    let (node, credentials) = (bed.name("web"), bed.name("token"));
    if bed.get("namespace/vnode-system").is_none() {
        bed.kubectl("create namespace vnode-system");
    }
    bed.kubectl(&format!("create secret generic {credentials} -n vnode-system --from-literal=token=hush-first"));
    let spec = format!(
        "  credentialsSecretRef: {{name: {credentials}}}\n  provider:\n    type: web\n    \
         web: {{url: \"{}\", allowInsecure: true}}",
        service.url
    );
    bed.ready_node(&node, &spec);
    bed.kubectl("create configmap settings --from-literal=key=value");
    bed.apply(&pod(
        "web",
        &node,
        "  containers:\n  - {name: main, image: none, command: [sh, -c, 'cat etc/settings/key; echo; sleep 1000'], \
         volumeMounts: [{name: settings, mountPath: /etc/settings}]}\n  \
         volumes: [{name: settings, configMap: {name: settings}}]",
    ));
    bed.apply(&pod(
        "once",
        &node,
        "  restartPolicy: Never\n  containers: [{name: main, image: none, command: [sh, -c, 'exit 3']}]",
    ));
    bed.apply(&pod("refused", &node, "  containers: [{name: main, image: none}]"));
    bed.wait("pod/web", "condition=Ready");
    eventually("what the pod wrote is read", || bed.kubectl("logs web").contains("value").then_some(()));
    let out = bed.exec(&["web", "--", "sh", "-c", "echo $HOSTNAME; exit 4"]);
    assert_eq!((String::from_utf8_lossy(&out.stdout).trim(), out.status.code()), ("web", Some(4)));
    bed.wait_phase("once", "Failed");
    assert_eq!(container(&bed, "once").expect("its status")["state"]["terminated"]["exitCode"], 3);
    bed.wait_phase("refused", "Failed");
    let refused = bed.get("pod/refused").expect("it is there")["status"]["message"].to_string();
    assert!(refused.contains("spec.containers[0].command"), "{refused}");

    let before = container(&bed, "web").expect("its status");
    let log = bed.kill_operator();
    assert!(!log.contains("hush-"), "the token is in no log, however verbose");
    bed.start_operator();
    // The status is still that of the operator before; it serves when it serves.
    bed.kubectl_at_last("exec web -- true");

    std::fs::write(token.path(), "hush-second").expect("written");
    let vn = format!("virtualnode/{node}");
    eventually("that the token is refused is told", || {
        let vn = bed.get(&vn)?;
        let told = vn["status"]["conditions"].to_string();
        (told.contains("401") && told.contains("token")).then_some(())
    });
    assert_eq!(bed.get("pod/web").expect("it is there")["status"]["phase"], "Running");
    bed.kubectl(&format!(
        "patch secret {credentials} -n vnode-system -p {{\"stringData\":{{\"token\":\"hush-second\"}}}}"
    ));
    // The Secret is looked at each minute, and whenever the VirtualNode changes.
    bed.kubectl(&format!("label {vn} looked=at"));
    eventually("the new token is used", || {
        has_condition(&bed.get(&vn)?, "ProviderReachable", "True", "Answering").then_some(())
    });
    let out = bed.exec(&["web", "--", "true"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(container(&bed, "web"), Some(before), "nothing was restarted");
    bed.kubectl("delete pods --all --timeout=60s");
}

#[test]
fn pods_of_a_service_with_virtual_kubelets_interface_run_and_end() {
    let Some(service) = Service::start("node", "web-v1-node/endpoint.mjs", &[]) else { return };
    let bed = Bed::new();
    let node = bed.name("web");
    bed.apply(&virtual_node(&node, &format!("  provider: {{type: web, web: {{url: \"{}\"}}}}", service.url)));
    bed.wait(&format!("node/{node}"), "condition=Ready");
    bed.apply(&pod(
        "web",
        &node,
        "  containers: [{name: main, image: none, command: [sh, -c, 'echo said; sleep 1000']}]",
    ));
    bed.apply(&pod(
        "once",
        &node,
        "  restartPolicy: Never\n  containers: [{name: main, image: none, command: ['true']}]",
    ));
    bed.wait("pod/web", "condition=Ready");
    bed.wait_phase("once", "Succeeded");
    eventually("its log is read", || bed.kubectl("logs web").contains("said").then_some(()));
    let refused = bed.try_kubectl("exec web -- true");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not supported"), "{refused:?}");
    bed.kubectl("delete pods --all --timeout=60s");
    assert_eq!(
        bed.try_apply(&virtual_node("none", "  provider: {type: web}"))
            .unwrap_err()
            .matches("url of the service")
            .count(),
        1
    );
}
