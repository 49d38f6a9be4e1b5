//! Serving certificates: kept, asked for, given; and nodes that share a port.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::support::{Bed, condition, eventually, has_condition, pod, virtual_node};

/// Asks a node over TLS that is verified with these authorities.
fn verified(bed: &Bed, node: &str, authorities: &str) -> bool {
    let file = bed.dir.path().join(format!("{node}.ca"));
    std::fs::write(&file, authorities).expect("a file");
    let endpoint = bed.kubectl(&format!("get vn {node} -o jsonpath={{.status.kubelet.endpoint}}"));
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "20", "--cacert"]).arg(&file);
    let out = curl.arg(format!("https://{endpoint}/healthz")).output().expect("curl is on the PATH");
    // Refused for want of credentials, by a node that is who it says.
    String::from_utf8_lossy(&out.stdout) == "401"
}

/// What the Secret that keeps the authority tells clients to trust.
fn kept(bed: &Bed) -> Option<String> {
    let secret = bed.get("secret/vnode-kubelet-ca -n vnode-system")?;
    let bytes = STANDARD.decode(secret["data"]["ca.crt"].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

#[test]
fn the_authority_is_kept_over_restarts() {
    let mut bed = Bed::new();
    let node = bed.name("kept");
    bed.ready_node(&node, "");
    let authority = kept(&bed).expect("an authority");
    assert!(verified(&bed, &node, &authority));
    bed.kill_operator();
    bed.start_operator();
    eventually("the node serves again", || verified(&bed, &node, &authority).then_some(()));
    assert_eq!(kept(&bed).as_ref(), Some(&authority));
    // A Secret that somebody deletes is made anew, and served with at once.
    bed.kubectl("delete secret vnode-kubelet-ca -n vnode-system");
    eventually("a new authority", || {
        let new = kept(&bed)?;
        (new != authority && verified(&bed, &node, &new)).then_some(())
    });
}

#[test]
fn a_node_asks_for_its_certificate_and_says_how_to_approve_it() {
    let bed = Bed::with_operator_flags(&["--serving-cert", "csr"]);
    let node = bed.name("asks");
    bed.apply(&virtual_node(&node, ""));
    let pending = eventually("it waits for approval", || {
        let vn = bed.get(&format!("vn/{node}"))?;
        has_condition(&vn, "KubeletServing", "False", "CertificatePending").then_some(vn)
    });
    let says = condition(&pending, "KubeletServing").expect("there")["message"].as_str().expect("text").to_owned();
    let command = says.split("kubectl ").nth(1).expect("a command").to_owned();
    let name = command.split_whitespace().last().expect("a name").to_owned();
    let csr = bed.get(&format!("csr/{name}")).expect("the request");
    assert_eq!(csr["spec"]["username"], format!("system:node:{node}"), "{csr:#}");
    assert!(csr["spec"]["groups"].as_array().is_some_and(|g| g.iter().any(|g| g == "system:nodes")), "{csr:#}");
    assert_eq!(csr["spec"]["signerName"], "kubernetes.io/kubelet-serving");
    // The Node is there meanwhile, for approvers look at it.
    bed.wait(&format!("node/{node}"), "condition=Ready");
    bed.kubectl(&command);
    bed.wait(&format!("vn/{node}"), "condition=KubeletServing");
    let published = bed.get("configmap/extension-apiserver-authentication -n kube-system").expect("there");
    let authority = published["data"]["client-ca-file"].as_str().expect("text").to_owned();
    assert!(verified(&bed, &node, &authority), "the cluster's own authority vouches for it");
    let name = bed.name("talks");
    bed.apply(&pod(&name, &node, ""));
    bed.wait_phase(&name, "Running");
    assert!(!bed.kubectl(&format!("logs {name} --tail=1")).is_empty());

    let other = bed.name("denied");
    bed.apply(&virtual_node(&other, ""));
    let request = eventually("the other asks", || {
        let all = bed.get("csr")?;
        let of = |c: &&Value| c["spec"]["username"] == format!("system:node:{other}");
        Some(all["items"].as_array()?.iter().find(of)?["metadata"]["name"].as_str()?.to_owned())
    });
    bed.kubectl(&format!("certificate deny {request}"));
    eventually("it says that it was refused", || {
        let vn = bed.get(&format!("vn/{other}"))?;
        has_condition(&vn, "KubeletServing", "False", "CertificateRejected").then_some(())
    });
    let metrics = bed.ask_node(&node, "metrics");
    assert!(metrics.contains(r#"vnode_serving_certificates{state="rejected"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"vnode_serving_certificates{state="valid"} 1"#), "{metrics}");
}

#[test]
fn a_certificate_that_is_given_is_served_as_soon_as_it_fits() {
    let bed = Bed::with_operator_flags(&["--serving-cert", "secret"]);
    let node = bed.name("given");
    bed.apply(&virtual_node(&node, ""));
    let says = |reason: &str| {
        eventually(reason, || {
            let vn = bed.get(&format!("vn/{node}"))?;
            has_condition(&vn, "KubeletServing", "False", reason).then_some(vn)
        })
    };
    says("CertificateMissing");
    let put = |address: &str| {
        let made = rcgen::generate_simple_self_signed(vec![address.to_owned()]).expect("a certificate");
        let indent = |pem: String| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let manifest = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: vnode-kubelet-serving}}\ntype: kubernetes.io/tls\n\
             stringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
            indent(cert.clone()),
            indent(key)
        );
        let file = bed.dir.path().join("secret.yaml");
        std::fs::write(&file, manifest).expect("a file");
        bed.kubectl(&format!("apply -n vnode-system -f {}", file.display()));
        cert
    };
    put("10.1.2.3");
    let vn = says("CertificateMismatch");
    let message = condition(&vn, "KubeletServing").expect("there")["message"].as_str().expect("text").to_owned();
    assert!(message.contains("is not for 127.0.0.1"), "{message}");
    let cert = put("127.0.0.1");
    bed.wait(&format!("vn/{node}"), "condition=KubeletServing");
    assert!(verified(&bed, &node, &cert));
}

#[test]
fn nodes_behind_one_port_are_told_apart() {
    let mut bed = Bed::cluster_only();
    let port = bed.spare_port().to_string();
    bed.start_operator_with(&["--kubelet-shared-port", &port]);
    let nodes = [bed.name("one"), bed.name("two")];
    for node in &nodes {
        bed.ready_node(node, "  kubelet: {mode: Shared}");
        assert_eq!(bed.kubectl(&format!("get vn {node} -o jsonpath={{.status.kubelet.port}}")), port);
        bed.apply(&pod(&format!("on-{node}"), node, ""));
    }
    let refused = bed.try_apply(&virtual_node(&bed.name("bad"), "  kubelet: {mode: Shared, port: 30000}"));
    assert!(refused.is_err_and(|e| e.contains("leave port out")));
    for node in &nodes {
        let pod = format!("on-{node}");
        bed.wait_phase(&pod, "Running");
        assert!(bed.kubectl(&format!("logs {pod} --tail=1")).len() > 1);
        let out = bed.exec(&[&pod, "--", "echo", node]);
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), *node, "{out:?}");
    }
    let metrics = bed.ask_node(&nodes[0], "metrics/resource");
    for node in &nodes {
        let sample = format!(
            "container_memory_working_set_bytes{{container=\"main\",namespace=\"{}\",node=\"{node}\"",
            bed.namespace
        );
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
        let own: Value = serde_json::from_str(&bed.ask_node(&nodes[0], &format!("pods?node={node}"))).expect("pods");
        let names: Vec<_> = own["items"].as_array().expect("a list").iter().map(|p| &p["metadata"]["name"]).collect();
        assert_eq!(names, [&Value::from(format!("on-{node}"))]);
    }
    // One of them takes a port of its own, the other stays.
    bed.ready_node(&nodes[0], "  kubelet: {mode: PerNode}");
    eventually("it has moved", || {
        let now = bed.kubectl(&format!("get vn {} -o jsonpath={{.status.kubelet.port}}", nodes[0]));
        (now != port).then_some(())
    });
    for node in &nodes {
        bed.kubectl_at_last(&format!("logs on-{node} --tail=1"));
    }
}

#[test]
fn pods_get_what_they_refer_to_in_the_name_of_their_node() {
    let bed = Bed::with_operator_flags(&["--node-identity", "impersonate"]);
    let nodes = [bed.name("mine"), bed.name("theirs")];
    for node in &nodes {
        bed.ready_node(node, "");
    }
    for of in &nodes {
        bed.kubectl(&format!("create secret generic of-{of} --from-literal=key=value-of-{of}"));
        bed.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: on-{of}}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: {of}}}\n  \
             tolerations: [{{operator: Exists}}]\n  containers:\n  - name: main\n    image: example/app:1\n    \
             env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: of-{of}, key: key}}}}}}]\n"
        ));
        bed.wait_phase(&format!("on-{of}"), "Running");
    }
    // What the operator is allowed in the name of one node ends at that node's pods.
    let as_node = |node: &str, secret: &str| {
        let node = format!("system:node:{node}");
        bed.try_kubectl(&format!("get secret {secret} --as {node} --as-group system:nodes")).status.success()
    };
    for (node, secret, allowed) in [(0, 0, true), (0, 1, false), (1, 0, false), (1, 1, true)] {
        assert_eq!(as_node(&nodes[node], &format!("of-{}", nodes[secret])), allowed, "{node} {secret}");
    }
}
