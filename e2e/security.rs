//! Nobody reads from a node who may not.

use std::process::Command;

use crate::support::{Bed, eventually, pod};

#[test]
fn the_kubelet_api_refuses_strangers_and_says_nothing_about_pods() {
    let bed = Bed::new();
    let (node, name) = (bed.name("closed"), bed.name("private"));
    bed.ready_node(&node, "");
    bed.apply(&pod(&name, &node, ""));
    bed.wait_phase(&name, "Running");
    let endpoint = bed.kubectl(&format!("get vn {node} -o jsonpath={{.status.kubelet.endpoint}}"));
    let ask = |path: &str, token: Option<&str>| {
        let mut curl = Command::new("curl");
        curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20"]);
        if let Some(token) = token {
            curl.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        let out = curl.arg(format!("https://{endpoint}{path}")).output().expect("curl is on the PATH");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let there = format!("/containerLogs/{}/{name}/main", bed.namespace);
    for path in ["/pods", "/healthz", "/metrics", "/stats/summary", &there, "/containerLogs/default/none/main", "/"] {
        assert_eq!(ask(path, None), "401", "{path} without credentials");
        assert_eq!(ask(path, Some("rubbish")), "401", "{path} with a bad token");
    }
    bed.kubectl(&format!("create serviceaccount {}", bed.name("nobody")));
    let token = bed.kubectl(&format!("create token {}", bed.name("nobody")));
    for path in [there.as_str(), "/containerLogs/default/none/main", "/pods"] {
        assert_eq!(ask(path, Some(token.trim())), "403", "{path} with an account that has no rights");
    }
    bed.kubectl(&format!("create clusterrole {} --verb=get --resource=nodes/log,nodes/pods", bed.name("reader")));
    bed.kubectl(&format!(
        "create clusterrolebinding {0} --clusterrole={0} --serviceaccount={2}:{1}",
        bed.name("reader"),
        bed.name("writer"),
        bed.namespace
    ));
    bed.kubectl(&format!("create serviceaccount {}", bed.name("writer")));
    let token = bed.kubectl(&format!("create token {}", bed.name("writer")));
    assert_eq!(ask("/pods", Some(token.trim())), "200", "nodes/pods is enough for /pods");
    assert_eq!(ask("/stats/summary", Some(token.trim())), "403", "but not for /stats");
    bed.kubectl(&format!("delete clusterrole,clusterrolebinding {}", bed.name("reader")));
    bed.kubectl(&format!("delete serviceaccount {} {}", bed.name("nobody"), bed.name("writer")));
}

#[test]
fn no_secret_is_told_however_verbose_the_operator_is() {
    const VALUE: &str = "correct-horse-battery-staple";
    // The same in base64, as it is sent.
    const ENCODED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ";
    let bed = Bed::with_operator_flags(&["--log-level", "trace"]);
    let (node, app, secret) = (bed.name("quiet"), bed.name("app"), bed.name("secret"));
    bed.kubectl(&format!("create secret generic {secret} --from-literal=password={VALUE}"));
    bed.kubectl(&format!("create secret generic {secret} --from-literal=token={VALUE} --namespace vnode-system"));
    bed.ready_node(&node, &format!("  credentialsSecretRef: {{name: {secret}}}"));
    let pod = |name: &str, key: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
             tolerations: [{{key: virtual-kubelet.io/provider, operator: Exists}}]\n  \
             containers:\n    - name: main\n      image: example/app:1\n      \
             env: [{{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: {secret}, key: {key}}}}}}}]\n      \
             envFrom: [{{secretRef: {{name: {secret}}}}}]\n      \
             volumeMounts: [{{name: s, mountPath: /s}}]\n  \
             volumes: [{{name: s, secret: {{secretName: {secret}}}}}]\n---\n"
        )
    };
    // One that runs, and one that fails for its secret.
    let failing = bed.name("failing");
    bed.apply(&(pod(&app, "password") + &pod(&failing, "missing")));
    bed.wait_phase(&app, "Running");
    eventually("an event of the pod whose key is missing", || {
        let events = bed.kubectl(&format!("get events --field-selector involvedObject.name={failing}"));
        events.contains("missing").then_some(())
    });
    bed.kubectl(&format!("exec {app} -- env"));
    let places = [
        ("/metrics", bed.ask_node(&node, "metrics")),
        ("/pods", bed.ask_node(&node, "pods")),
        ("an event", bed.kubectl("get events -A -o yaml")),
        ("a pod", bed.kubectl("get pods -o yaml")),
        ("a node", bed.kubectl("get virtualnodes,nodes -o yaml")),
        ("the log", bed.operator.as_ref().map(|o| o.log()).unwrap_or_default()),
    ];
    for (place, text) in places {
        assert!(!text.is_empty(), "{place} says something");
        for line in text.lines() {
            assert!(!line.contains(VALUE) && !line.contains(ENCODED), "{place} tells a secret: {line}");
            // Three parts in base64 are a token.
            assert!(!line.contains("Bearer ey"), "{place} tells a token: {line}");
        }
    }
}
