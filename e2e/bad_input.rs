//! Every mistake gets an answer that names the field and the fix.

use crate::support::{Bed, eventually, has_condition, virtual_node};

#[test]
fn the_schema_refuses_nonsense_and_names_the_field() {
    let bed = Bed::cluster_only();
    let cases = [
        ("an unknown type", "  provider: {type: cray, mock: {}}\n", "spec.provider.type"),
        ("no member for the type", "  provider: {type: mock}\n", "provider.mock must be set"),
        ("a member of another type", "  provider: {type: mock, mock: {}, docker: {}}\n", "provider.docker is for"),
        ("an unknown member", "  provider: {type: mock, mock: {}, cray: {}}\n", "spec.provider.cray"),
        ("a capacity that is no quantity", "  capacity: {cpu: abc}\n", "such as 4, 500m or 16Gi"),
        ("a time that is none", "  drain: {timeout: soon}\n", "such as 90s"),
        ("a negative capacity", "  capacity: {cpu: \"-1\"}\n", "not negative"),
        ("a capacity with a bad name", "  capacity: {\"bad name!\": 1}\n", "spec.capacity"),
        ("an unknown effect", "  taints: [{key: a, effect: Sometimes}]\n", "spec.taints[0].effect"),
        ("a bad label", "  labels: {a: \"not valid!\"}\n", "spec.labels"),
        ("a port out of range", "  kubelet: {port: 70000}\n", "spec.kubelet.port"),
        ("a misspelt field", "  capasity: {cpu: 1}\n", "capasity"),
        ("an unknown system", "  operatingSystem: beos\n", "spec.operatingSystem"),
    ];
    for (what, spec, names) in cases {
        match bed.try_apply(&virtual_node(&bed.name("bad"), spec)) {
            Ok(said) => panic!("{what} was accepted: {said}"),
            Err(said) => assert!(said.contains(names), "{what}: the answer does not name {names}:\n{said}"),
        }
    }
    assert!(bed.get(&format!("vn/{}", bed.name("bad"))).is_none());
}

#[test]
fn a_missing_credentials_secret_is_a_condition_that_recovers_when_it_appears() {
    let bed = Bed::new();
    let (name, secret) = (bed.name("cred"), bed.name("key"));
    bed.apply(&virtual_node(&name, &format!("  credentialsSecretRef: {{name: {secret}}}\n")));
    let vn = eventually("it says what is missing", || {
        let vn = bed.get(&format!("vn/{name}"))?;
        has_condition(&vn, "CredentialsReady", "False", "SecretNotFound").then_some(vn)
    });
    assert!(vn["status"]["conditions"].to_string().contains(&secret), "{vn:#}");
    assert!(has_condition(&vn, "Ready", "False", "SecretNotFound"), "{vn:#}");
    let ready = bed.get(&format!("node/{name}")).map(|n| n["status"]["conditions"].to_string()).unwrap_or_default();
    assert!(!ready.contains("\"KubeletReady\""), "the node is not Ready: {ready}");
    bed.kubectl(&format!("create secret generic {secret} -n vnode-system --from-literal=token=hush-hush"));
    bed.wait(&format!("vn/{name}"), "condition=Ready");
    bed.wait(&format!("node/{name}"), "condition=Ready");
    if let Some(operator) = &bed.operator {
        assert!(!operator.log().contains("hush-hush"));
    }
    bed.kubectl(&format!("delete secret {secret} -n vnode-system"));
}

#[test]
fn a_taken_port_is_a_condition_and_frees_itself() {
    let bed = Bed::new();
    let name = bed.name("port");
    let holder = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = holder.local_addr().expect("it").port();
    bed.apply(&virtual_node(&name, &format!("  kubelet: {{port: {port}}}\n")));
    let vn = eventually("it says that the port is taken", || {
        let vn = bed.get(&format!("vn/{name}"))?;
        has_condition(&vn, "KubeletServing", "False", "PortTaken").then_some(vn)
    });
    assert!(vn["status"]["conditions"].to_string().contains(&port.to_string()));
    drop(holder);
    bed.wait(&format!("vn/{name}"), "condition=Ready");
}

#[test]
fn a_port_that_another_program_took_meanwhile_is_given_up_for_another() {
    let mut bed = Bed::new();
    let name = bed.name("moves");
    bed.ready_node(&name, "");
    let port = bed.get(&format!("vn/{name}")).expect("it")["status"]["kubelet"]["port"].clone();
    bed.kill_operator();
    let port = port.as_u64().and_then(|p| u16::try_from(p).ok()).expect("a port");
    let _holder = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free now");
    bed.start_operator();
    eventually("the Node says the other one", || {
        let node = bed.get(&format!("node/{name}"))?;
        let now = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
        (now != u64::from(port)).then_some(())
    });
    bed.wait(&format!("vn/{name}"), "condition=KubeletServing");
    assert!(bed.ask_node(&name, "healthz").contains("ok"));
}

#[test]
fn of_two_virtual_nodes_with_one_port_the_first_keeps_it() {
    let bed = Bed::new();
    let (first, second, port) = (bed.name("first"), bed.name("second"), bed.spare_port());
    let spec = format!("  kubelet: {{port: {port}}}\n");
    bed.ready_node(&first, &spec);
    bed.apply(&virtual_node(&second, &spec));
    eventually("the second is refused", || {
        has_condition(&bed.get(&format!("vn/{second}"))?, "KubeletServing", "False", "PortTaken").then_some(())
    });
    bed.wait(&format!("vn/{first}"), "condition=Ready");
    bed.kubectl(&format!("delete vn {first} --timeout=60s"));
    bed.wait(&format!("vn/{second}"), "condition=Ready");
}
