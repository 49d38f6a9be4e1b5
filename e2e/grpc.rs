//! Pods that a gRPC service runs: the service is the example in Rust.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use vnode_example_grpc::{Service, routes};

use crate::support::{Bed, condition, eventually, has_condition, virtual_node};

/// A service behind TLS that wants a token: its port and the authority of its certificate.
fn serve(runtime: &tokio::runtime::Runtime, token: &str) -> (u16, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("signed").pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(vec!["localhost".into()]).expect("a name").signed_by(&key, &issuer);
    let identity = Identity::from_pem(cert.expect("signed").pem(), key.serialize_pem());
    let port = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let mut server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity)).expect("TLS");
        let router = server.add_routes(routes(Service::new(), Some(token.to_owned())).await.expect("routes"));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    });
    (port, ca)
}

#[test]
fn pods_of_a_grpc_service_run_and_outlive_the_operator_and_a_change_of_the_secret() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (port, ca) = serve(&runtime, "second");
    let mut bed = Bed::new();
    let (node, secret) = (bed.name("grpc"), bed.name("token"));
    if bed.get("namespace/vnode-system").is_none() {
        bed.kubectl("create namespace vnode-system");
    }
    let file = bed.dir.path().join("ca.crt");
    std::fs::write(&file, ca).expect("written");
    let file = file.display();
    bed.kubectl(&format!(
        "create secret generic {secret} -n vnode-system --from-literal=token=first --from-file=ca.crt={file}"
    ));
    bed.apply(&virtual_node(
        &node,
        &format!(
            "  credentialsSecretRef: {{name: {secret}}}\n  provider:\n    type: grpc\n    \
             grpc: {{endpoint: \"https://localhost:{port}\", config: {{zone: a}}}}"
        ),
    ));
    let vn = format!("virtualnode/{node}");
    eventually("that the token is refused is told", || {
        let vn = bed.get(&vn)?;
        let said = condition(&vn, "ProviderReachable")?;
        let message = said["message"].to_string();
        (said["status"] == "False" && message.contains("credentialsSecretRef")).then_some(())
    });
    bed.kubectl(&format!("patch secret {secret} -n vnode-system -p {{\"stringData\":{{\"token\":\"second\"}}}}"));
    // The Secret is looked at each minute, and whenever the VirtualNode changes.
    bed.kubectl(&format!("label {vn} looked=at"));
    bed.wait(&vn, "condition=Ready");

    let pod = |name: &str, spec: &str| {
        bed.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n  \
             tolerations: [{{operator: Exists}}]\n  terminationGracePeriodSeconds: 2\n{spec}\n---\n"
        ));
    };
    pod(
        "lasting",
        "  containers:\n  - {name: main, image: none, command: [sh, -c, 'echo $GREETING; sleep 1000'], \
         env: [{name: GREETING, value: hello}]}",
    );
    pod("once", "  restartPolicy: Never\n  containers: [{name: main, image: none, command: [sh, -c, 'exit 3']}]");
    pod("refused", "  containers: [{name: main, image: none}]");
    bed.wait("pod/lasting", "condition=Ready");
    eventually("what the pod wrote is read", || (bed.kubectl("logs lasting") == "hello\n").then_some(()));
    let out = bed.exec(&["lasting", "--", "sh", "-c", "echo $GREETING; exit 4"]);
    assert_eq!((String::from_utf8_lossy(&out.stdout).trim(), out.status.code()), ("hello", Some(4)));
    bed.wait_phase("once", "Failed");
    bed.wait_phase("refused", "Failed");
    let refused = bed.get("pod/refused").expect("it is there")["status"]["message"].to_string();
    assert!(refused.contains("spec.containers[0].command"), "{refused}");

    let before = bed.get("pod/lasting").expect("it is there")["status"]["containerStatuses"][0]["state"].clone();
    bed.kill_operator();
    bed.start_operator();
    bed.wait(&vn, "condition=ProviderReachable");
    bed.kubectl_at_last("exec lasting -- true");
    let after = bed.get("pod/lasting").expect("it is there")["status"]["containerStatuses"][0]["state"].clone();
    assert_eq!(after, before, "it was not started anew");
    assert!(has_condition(&bed.get(&vn).expect("it is there"), "ProviderReachable", "True", "Answering"));
    bed.kubectl("delete pod lasting once refused --timeout=60s");
}

#[test]
fn a_socket_of_the_operators_machine_must_be_allowed() {
    let bed = Bed::new();
    let node = bed.name("socket");
    bed.apply(&virtual_node(&node, "  provider:\n    type: grpc\n    grpc: {endpoint: \"unix:///run/none.sock\"}"));
    eventually("that it is not allowed is told", || {
        let vn = bed.get(&format!("virtualnode/{node}"))?;
        vn["status"]["conditions"].to_string().contains("--allow-host-sockets").then_some(())
    });
    let wrong = bed.try_apply(&virtual_node("wrong", "  provider: {type: grpc}")).expect_err("no endpoint");
    assert!(wrong.contains("provider.grpc must be set, with an endpoint"), "{wrong}");
}
