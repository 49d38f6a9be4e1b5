//! `kubectl vnode` says how the fleet is, finds what is broken, and `vnode uninstall` leaves nothing behind.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Bed, eventually, pod, vnode_binary};

/// `kubectl vnode`, through kubectl itself: the binary lies on the PATH under the plugin's name.
fn plugin(bed: &Bed, words: &str) -> Output {
    let folder = bed.dir.path().join("bin");
    let link = folder.join("kubectl-vnode");
    if !link.exists() {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::os::unix::fs::symlink(vnode_binary(), &link).expect("a link");
    }
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("kubectl")
        .env("PATH", format!("{}:{path}", folder.display()))
        .env("KUBECONFIG", bed.kubeconfig())
        .arg("vnode")
        .args(words.split_whitespace())
        .output()
        .expect("kubectl")
}

fn said(bed: &Bed, words: &str) -> String {
    let out = plugin(bed, words);
    assert!(out.status.success(), "kubectl vnode {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn link<'a>(checks: &'a Value, name: &str) -> &'a Value {
    let all = checks.as_array().expect("a list of checks");
    all.iter().find(|c| c["link"] == name).unwrap_or_else(|| panic!("no link {name} in {checks}"))
}

#[test]
fn the_plugin_shows_the_fleet_and_finds_nothing_wrong_with_a_good_node() {
    let bed = Bed::new();
    let node = bed.name("well");
    bed.ready_node(&node, "  capacity: {cpu: 4}");
    let app = bed.name("app");
    bed.apply(&pod(&app, &node, ""));
    bed.wait(&format!("pod/{app}"), "condition=Ready");

    let status = said(&bed, "status");
    assert!(status.contains("1 of 1 ready"), "{status}");
    assert!(!status.contains('\x1b'), "no colours in a pipe");
    let status: Value = serde_json::from_str(&said(&bed, "status -o json")).expect("JSON");
    assert_eq!(status["nodes"]["ready"], 1);

    let checks: Value = serde_json::from_str(&said(&bed, &format!("doctor {node} -o json"))).expect("JSON");
    for name in
        ["CRD", "operator's rights", "provider", "Node", "lease", "certificate", "API server → node", "logs", "exec"]
    {
        assert_eq!(link(&checks, name)["verdict"], "ok", "{name}: {checks}");
    }
    let certs = said(&bed, "certs");
    assert!(certs.contains("127.0.0.1") && certs.contains(&node), "{certs}");
    let events = said(&bed, &format!("events {node}"));
    assert!(events.contains(&format!("virtualnode/{node}")), "{events}");
    let top = eventually("usage is measured", || {
        let out = plugin(&bed, &format!("top {node} -o json"));
        let rows: Value = serde_json::from_slice(&out.stdout).ok()?;
        // Counts of pods are written together, after some seconds.
        (rows[0]["cpuMillicores"].is_i64() && rows[0]["pods"] == 1).then_some(rows)
    });
    assert!(top[0]["memoryPercent"].is_i64(), "{top}");

    let refused = plugin(&bed, "doctor no-such-node");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no-such-node"));
    let log = plugin(&bed, &format!("logs {node}"));
    assert!(String::from_utf8_lossy(&log.stderr).contains("is no pod"), "{log:?}");
}

#[test]
fn kubectl_completes_commands_and_names_of_nodes() {
    let bed = Bed::new();
    let node = bed.name("known");
    bed.ready_node(&node, "");
    let link = bed.dir.path().join("kubectl_complete-vnode");
    std::os::unix::fs::symlink(vnode_binary(), &link).expect("a link");
    let completes = |words: &[&str]| {
        let out = Command::new(&link).env("KUBECONFIG", bed.kubeconfig()).args(words).output().expect("it runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert_eq!(completes(&["doctor", "kno"]), format!("{node}\n:4\n"));
    assert!(completes(&["do"]).starts_with("doctor\t"));
    assert_eq!(completes(&["doctor", "--kubeconfig", "/nowhere", "kno"]), ":4\n", "a cluster that is not there");
}

#[test]
fn bench_measures_and_leaves_nothing_behind() {
    let bed = Bed::new();
    let figures = said(&bed, &format!("bench --nodes 3 --pods 12 --namespace {} -o json", bed.namespace));
    let figures: Value = serde_json::from_str(&figures).expect("JSON");
    assert_eq!((&figures["nodes"], &figures["pods"]), (&3.into(), &12.into()));
    assert!(figures["podsPerSecond"].as_f64().is_some_and(|n| n > 0.0), "{figures}");
    assert!(figures["podStartSeconds"]["p99"].as_f64().is_some_and(|n| n > 0.0), "{figures}");
    for left in ["pods --all-namespaces", "virtualnodes"] {
        assert_eq!(bed.kubectl(&format!("get {left} -l vnode-bench -o name")), "", "{left}");
    }
    let drawn = said(&bed, &format!("bench --nodes 1 --pods 0 --namespace {}", bed.namespace));
    assert!(drawn.contains("1 nodes Ready after") && !drawn.contains("pods a second"), "{drawn}");
    let refused = plugin(&bed, "bench --nodes 0");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--nodes"), "{refused:?}");
    let late = plugin(&bed, &format!("bench --nodes 1 --pods 1 --timeout 0s --namespace {}", bed.namespace));
    assert!(String::from_utf8_lossy(&late.stderr).contains("doctor"), "{late:?}");
    assert_eq!(bed.kubectl("get virtualnodes -l vnode-bench -o name"), "");
}

#[test]
fn doctor_names_the_broken_link_and_the_fix() {
    let mut bed = Bed::new();
    let node = bed.name("ill");
    bed.ready_node(&node, "  credentialsSecretRef: null");
    // The provider does not answer.
    bed.kubectl(&format!(
        "patch vn {node} --type=merge -p {{\"spec\":{{\"provider\":{{\"mock\":{{\"fault\":\"unreachable\"}}}}}}}}"
    ));
    bed.wait(&format!("vn/{node}"), "condition=ProviderReachable=False");
    let out = plugin(&bed, &format!("doctor {node} --no-exec"));
    assert!(!out.status.success(), "something is broken");
    let (text, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("BROKEN   provider"), "{text}");
    assert!(error.contains(&format!("provider of node {node}")), "{error}");
    // Without a name it looks at those that are not ready.
    assert!(String::from_utf8_lossy(&plugin(&bed, "doctor").stdout).contains(&node));

    // The credentials are missing.
    bed.kubectl(&format!(
        "patch vn {node} --type=merge -p {{\"spec\":{{\"provider\":{{\"mock\":{{\"fault\":\"\"}}}},\"credentialsSecretRef\":{{\"name\":\"gone\"}}}}}}"
    ));
    bed.wait(&format!("vn/{node}"), "condition=CredentialsReady=False");
    let text = plugin(&bed, &format!("doctor {node}")).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("create secret generic gone"), "{text}");
    bed.kubectl(&format!("patch vn {node} --type=merge -p {{\"spec\":{{\"credentialsSecretRef\":null}}}}"));
    bed.wait(&format!("vn/{node}"), "condition=Ready");

    // The operator is gone: the way from the API server to the node is cut.
    if let Some(operator) = bed.operator.as_mut() {
        operator.kill();
    }
    let out = plugin(&bed, &format!("doctor {node} -o json"));
    assert!(!out.status.success());
    let checks: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let trip = link(&checks, "API server → node");
    assert_eq!(trip["verdict"], "broken", "{trip}");
    assert!(trip["fix"].as_str().is_some_and(|f| f.contains("nothing listens")), "{trip}");
}

#[test]
fn drain_empties_a_node_and_uninstall_leaves_no_finalizer_with_or_without_an_operator() {
    // It deletes every VirtualNode, which on somebody else's cluster may not all be ours.
    let Some(mut bed) = Bed::own() else { return };
    let node = bed.name("full");
    bed.ready_node(&node, "");
    let app = bed.name("app");
    bed.apply(&pod(&app, &node, ""));
    bed.wait_phase(&app, "Running");
    assert!(said(&bed, &format!("drain {node} --dry-run")).contains(&app));
    assert!(bed.get(&format!("pod/{app}")).is_some());
    let drained = said(&bed, &format!("drain {node}"));
    assert!(drained.contains(&format!("{node} is drained")), "{drained}");
    assert!(bed.get(&format!("pod/{app}")).is_none());
    assert!(said(&bed, "status").contains("1 cordoned"));

    let uninstall = |bed: &Bed, timeout: &str| {
        let out = Command::new(vnode_binary())
            .args(["uninstall", "--timeout", timeout, "--kubeconfig"])
            .arg(bed.kubeconfig())
            .output()
            .expect("vnode uninstall");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(uninstall(&bed, "60s").contains("no VirtualNode is left"));
    assert!(bed.get(&format!("node/{node}")).is_none());

    bed.ready_node(&node, "");
    if let Some(operator) = bed.operator.as_mut() {
        operator.kill();
    }
    assert!(uninstall(&bed, "2s").contains("by force"));
    assert!(bed.get(&format!("node/{node}")).is_none());
    assert!(bed.get(&format!("vn/{node}")).is_none());
}
