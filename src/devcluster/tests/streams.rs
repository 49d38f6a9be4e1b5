//! Streams and proxied requests from a client through the API server to a node's kubelet and to pods.

use std::time::Duration;

use crate::common::{connect, head, kubelet_tls, request, start};
use kube::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use vnode_devcluster::DevCluster;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A kubelet that says what it was asked. It switches to any protocol, repeats what it hears with `node:` before it,
/// and says `bye` when the client has said all. Paths below `/refuse` it refuses.
async fn kubelet(kubeconfig: &str) -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, heard) = mpsc::channel(100);
    let tls = kubelet_tls(kubeconfig);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, asked) = (tls.clone(), asked.clone());
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.expect("a client certificate of the cluster");
                let asks = head(&mut stream).await;
                let refused = asks.contains("/refuse") || asks.contains("refused");
                let upgrade = asks.lines().find_map(|l| l.strip_prefix("upgrade: ")).map(String::from);
                asked.send(asks).await.unwrap();
                let Some(upgrade) = upgrade.filter(|_| !refused) else {
                    let code = if refused { "404 Not Found" } else { "200 OK" };
                    let answer = format!(
                        "HTTP/1.1 {code}\r\nX-Node: yes\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nnode"
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return;
                };
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
                     X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                let mut buffer = [0; 1024];
                loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) | Err(_) => break,
                        Ok(n) => {
                            stream.write_all(&[b"node:", &buffer[..n]].concat()).await.unwrap();
                            stream.flush().await.unwrap();
                        }
                    }
                }
                stream.write_all(b"bye").await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    (port, heard)
}

fn pod(name: &str, node: Option<&str>, containers: &[&str]) -> Value {
    let containers: Vec<_> = containers.iter().map(|c| json!({"name": c, "image": "x"})).collect();
    let mut pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}});
    if let Some(node) = node {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

async fn create(client: &Client, path: &str, object: Value) {
    let (code, answer) = request(client, "POST", path, object).await;
    assert_eq!(code, 201, "{answer}");
}

async fn cluster() -> (DevCluster, Client, u16, mpsc::Receiver<String>) {
    let (cluster, client) = start(false).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    create(&client, "/api/v1/namespaces/default/serviceaccounts", account).await;
    let (port, heard) = kubelet(&cluster.admin_kubeconfig().unwrap()).await;
    create(&client, "/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).await;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    let (code, answer) = request(&client, "PATCH", "/api/v1/nodes/n/status", status).await;
    assert_eq!(code, 200, "{answer}");
    create(&client, PODS, pod("one", Some("n"), &["a"])).await;
    create(&client, PODS, pod("two", Some("n"), &["a", "b"])).await;
    create(&client, PODS, pod("free", None, &["a"])).await;
    create(&client, PODS, pod("lost", Some("gone"), &["a"])).await;
    create(&client, PODS, pod("refused", Some("n"), &["a"])).await;
    (cluster, client, port, heard)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an answer in time")
}

fn asks(method: &str, path: &str, upgrade: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
         Authorization: \r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v5.channel.k8s.io\r\n\r\n"
    )
}

#[tokio::test]
async fn a_stream_of_any_protocol_goes_through_to_the_kubelet_and_back() {
    let (cluster, _, _, mut heard) = cluster().await;
    let kubeconfig = cluster.admin_kubeconfig().unwrap();
    for (method, path, upgrade, wanted) in [
        (
            "POST",
            "/exec?command=ls&command=-l&stdin=true&stdout=1&stderr=false",
            "SPDY/3.1",
            "POST /exec/default/one/a?command=ls&command=-l&input=1&output=1 ",
        ),
        ("GET", "/attach?stdout=1&tty=true", "websocket", "GET /attach/default/one/a?output=1&tty=1 "),
        ("POST", "/portforward?ports=80", "SPDY/3.1", "POST /portForward/default/one?port=80 "),
        ("GET", "/portforward", "websocket", "GET /portForward/default/one "),
    ] {
        let mut client = connect(&kubeconfig).await;
        client.write_all(asks(method, &format!("{PODS}/one{path}"), upgrade).as_bytes()).await.unwrap();
        let answer = soon(head(&mut client)).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(answer.contains(&format!("upgrade: {}", upgrade.to_lowercase())), "{answer}");
        assert!(answer.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{answer}");
        let asked = soon(heard.recv()).await.unwrap();
        assert!(asked.starts_with(wanted), "{asked}");
        assert!(!asked.to_lowercase().contains("authorization"), "{asked}");
        assert_eq!(asked.matches("x-stream-protocol-version").count(), 2, "{asked}");
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let mut echo = [0; 10];
        soon(client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"node:hello");
        // The client has said all; the node still has something to say.
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(client.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"bye");
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn streams_that_cannot_be_are_refused_in_the_words_of_kubernetes() {
    let (cluster, _, _, _heard) = cluster().await;
    let kubeconfig = cluster.admin_kubeconfig().unwrap();
    for (method, path, code, said) in [
        ("POST", "/two/exec?command=ls", 400, "a container name must be specified for pod two, choose one of: [a b]"),
        ("POST", "/two/exec?command=ls&container=x", 400, "container x is not valid for pod two"),
        ("GET", "/free/attach", 400, "pod free does not have a host assigned"),
        ("POST", "/free/portforward", 400, "pod free does not have a host assigned"),
        ("POST", "/lost/exec?command=ls", 404, r#"pods \"gone\" not found"#),
        ("POST", "/none/exec?command=ls", 404, r#"pods \"none\" not found"#),
        ("PUT", "/one/exec?command=ls", 405, "the server does not allow this method on the requested resource"),
        ("POST", "/refused/exec?command=ls", 404, "node"),
    ] {
        let mut client = connect(&kubeconfig).await;
        let asks = asks(method, &format!("{PODS}{path}"), "SPDY/3.1");
        client.write_all(asks.as_bytes()).await.unwrap();
        let mut answer = soon(head(&mut client)).await;
        let length = answer.to_lowercase();
        let length = length.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap();
        let mut body = vec![0; length];
        soon(client.read_exact(&mut body)).await.unwrap();
        answer.push_str(&String::from_utf8(body).unwrap());
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {answer}");
        assert!(answer.contains(said), "{path}: {answer}");
    }
    let client = crate::common::client(&kubeconfig).await;
    let (code, answer) = request(&client, "POST", &format!("{PODS}/one/exec?command=ls"), Value::Null).await;
    assert_eq!((code, answer["message"].as_str()), (400, Some("Upgrade request required")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_reader_may_not_run_commands_by_a_websocket_either() {
    let (cluster, admin, _, _heard) = cluster().await;
    const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    create(&admin, &format!("{RBAC}/roles"), role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "name": "jane"}]});
    create(&admin, &format!("{RBAC}/rolebindings"), binding).await;
    let jane = crate::common::client(&cluster.kubeconfig("jane", &[]).unwrap()).await;
    let (code, answer) = request(&jane, "GET", &format!("{PODS}/one/exec?command=ls"), Value::Null).await;
    assert_eq!((code, answer["message"].as_str()), (403, Some("pods \"one\" is forbidden: ")));
    cluster.shutdown().await;
}

#[tokio::test]
async fn logs_come_from_the_kubelet_and_its_refusals_are_worded_by_the_api_server() {
    let (cluster, client, _, mut heard) = cluster().await;
    let (code, text) = request(&client, "GET", &format!("{PODS}/one/log?follow=1&tailLines=3"), Value::Null).await;
    assert_eq!((code, text.as_str()), (200, Some("node")));
    assert!(heard.recv().await.unwrap().starts_with("GET /containerLogs/default/one/a?follow=true&tailLines=3 "));
    let (code, _) = request(&client, "GET", &format!("{PODS}/free/log"), Value::Null).await;
    assert_eq!(code, 204);
    let (code, answer) = request(&client, "GET", &format!("{PODS}/refused/log"), Value::Null).await;
    let wanted = "the server could not find the requested resource ( pods/log refused)";
    assert_eq!((code, answer["message"].as_str()), (404, Some(wanted)));
    cluster.shutdown().await;
}

#[tokio::test]
async fn nodes_and_pods_and_services_are_proxied() {
    let (cluster, client, port, mut heard) = cluster().await;
    let (code, text) = request(&client, "GET", "/api/v1/nodes/n/proxy/metrics/resource?x=y", Value::Null).await;
    assert_eq!((code, text.as_str()), (200, Some("node")));
    assert!(heard.recv().await.unwrap().starts_with("GET /metrics/resource?x=y "));
    let named = format!("/api/v1/nodes/n:{port}/proxy/refuse");
    let (code, text) = request(&client, "POST", &named, json!({"a": 1})).await;
    assert_eq!((code, text.as_str()), (404, Some("node")));
    assert!(heard.recv().await.unwrap().starts_with("POST /refuse "));
    let (code, _) = request(&client, "GET", "/api/v1/nodes/n/proxy", Value::Null).await;
    assert_eq!(code, 301);

    let (code, answer) = request(&client, "GET", &format!("{PODS}/one/proxy/"), Value::Null).await;
    assert_eq!((code, answer["message"].as_str()), (400, Some("address not allowed")));
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web_port = web.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = web.accept().await.unwrap();
            let asked = head(&mut stream).await;
            let first = asked.lines().next().unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{first}", first.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let status = json!({"status": {"podIP": "127.0.0.1"}});
    request(&client, "PATCH", &format!("{PODS}/one/status"), status).await;
    let (_, text) = request(&client, "GET", &format!("{PODS}/one:{web_port}/proxy/a?b=c"), Value::Null).await;
    assert_eq!(text, "GET /a?b=c HTTP/1.1");

    let services = "/api/v1/namespaces/default/services";
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": web_port}]}});
    create(&client, services, service).await;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "http", "port": web_port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    create(&client, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let (_, text) = request(&client, "GET", &format!("{services}/s:http/proxy/x"), Value::Null).await;
    assert_eq!(text, "GET /x HTTP/1.1");
    cluster.shutdown().await;
}

/// A node that speaks SPDY alone: it runs `cat` with a word of its own on stderr, and forwards ports to an echo.
async fn spdy_kubelet(kubeconfig: &str) -> u16 {
    use vnode_spdy::{Options, Stream};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = kubelet_tls(kubeconfig);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.unwrap();
                let asked = head(&mut stream).await;
                assert!(asked.contains("upgrade: SPDY/3.1"), "{asked}");
                if asked.contains("/refused/") {
                    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\npod not found";
                    return stream.write_all(answer).await.unwrap();
                }
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                let (session, connection) = vnode_spdy::server(stream, Options::default());
                let work = async {
                    let mut streams = std::collections::HashMap::<String, Stream>::new();
                    let wanted = if asked.contains("/portForward/") { 2 } else { 4 };
                    while streams.len() < wanted {
                        let incoming = session.accept().await.unwrap();
                        let kind = incoming.headers().get("streamtype").unwrap().to_owned();
                        streams.insert(kind, incoming.accept());
                    }
                    let mut take = |kind: &str| streams.remove(kind).unwrap();
                    let mut error = take("error");
                    if wanted == 2 {
                        let (mut reads, mut writes) = take("data").into_split();
                        tokio::io::copy(&mut reads, &mut writes).await.unwrap();
                        writes.shutdown().await.unwrap();
                        error.shutdown().await.unwrap();
                    } else {
                        let (mut stdin, mut stdout, mut stderr) = (take("stdin"), take("stdout"), take("stderr"));
                        stderr.write_all(b"warned").await.unwrap();
                        stderr.shutdown().await.unwrap();
                        tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
                        stdout.shutdown().await.unwrap();
                        error.write_all(br#"{"status":"Success"}"#).await.unwrap();
                        error.shutdown().await.unwrap();
                    }
                    session.peer_left().await;
                };
                tokio::select! { _ = connection => {}, () = work => {} }
            });
        }
    });
    port
}

async fn websocket(
    kubeconfig: &str,
    path: &str,
    protocol: &str,
) -> tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let mut client = connect(kubeconfig).await;
    let asks = format!(
        "GET {PODS}{path} HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    client.write_all(asks.as_bytes()).await.unwrap();
    let answer = soon(head(&mut client)).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains(&format!("sec-websocket-protocol: {}", protocol.to_lowercase())), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    tokio_tungstenite::WebSocketStream::from_raw_socket(client, role, None).await
}

#[tokio::test]
async fn websocket_clients_reach_a_node_that_speaks_spdy_alone() {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let (cluster, client, _, _heard) = cluster().await;
    let kubeconfig = cluster.admin_kubeconfig().unwrap();
    let port = spdy_kubelet(&kubeconfig).await;
    let status = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    request(&client, "PATCH", "/api/v1/nodes/n/status", status).await;

    let exec = "/one/exec?command=cat&stdin=1&stdout=1&stderr=1";
    let mut socket = websocket(&kubeconfig, exec, "v5.channel.k8s.io").await;
    let input = vec![7u8; 200_000];
    for part in input.chunks(50_000) {
        socket.send(Message::binary([&[0u8], part].concat())).await.unwrap();
    }
    socket.send(Message::binary(vec![255u8, 0])).await.unwrap();
    let mut channels = vec![Vec::new(); 4];
    let mut goodbye = None;
    while let Some(Ok(message)) = soon(socket.next()).await {
        match message {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => {
                goodbye = frame;
                break;
            }
            _ => {}
        }
    }
    // kubectl takes an end without a code for a failure.
    assert_eq!(goodbye.map(|frame| u16::from(frame.code)), Some(1000));
    assert!(channels[1] == input, "{} of {} bytes came back", channels[1].len(), input.len());
    assert_eq!(channels[2], b"warned");
    assert_eq!(channels[3], br#"{"status":"Success"}"#);

    let exec = "/refused/exec?command=cat&stdout=1";
    let mut socket = websocket(&kubeconfig, exec, "v5.channel.k8s.io").await;
    let told = soon(socket.next()).await.unwrap().unwrap().into_data();
    assert_eq!(told[0], 3);
    let status: Value = serde_json::from_slice(&told[1..]).unwrap();
    assert_eq!(status["message"], "Internal error occurred: unable to upgrade connection: pod not found");
    assert_eq!(status["code"], 500);

    let mut socket = websocket(&kubeconfig, "/one/portforward", "SPDY/3.1+portforward.k8s.io").await;
    // A SPDY session inside of messages: here in one pipe, there in the socket.
    let (near, far) = tokio::io::duplex(1 << 16);
    let (session, connection) = vnode_spdy::client(near, vnode_spdy::Options::default());
    let connection = tokio::spawn(connection);
    let carry = tokio::spawn(async move {
        let (mut reads, mut writes) = tokio::io::split(far);
        let mut buffer = vec![0; 1 << 14];
        loop {
            tokio::select! {
                read = reads.read(&mut buffer) => match read {
                    Ok(n @ 1..) => socket.send(Message::binary(buffer[..n].to_vec())).await.unwrap(),
                    _ => break,
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => writes.write_all(&bytes).await.unwrap(),
                    Some(Ok(_)) => {}
                    _ => break,
                },
            }
        }
    });
    let open = |kind| {
        let headers = [("streamtype", kind), ("port", "80"), ("requestid", "0")];
        session.open(vnode_spdy::Headers::from(headers)).unwrap()
    };
    let (_error, mut data) = (open("error"), open("data"));
    soon(data.replied()).await.unwrap();
    data.write_all(b"GET /").await.unwrap();
    data.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon(data.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back, b"GET /");
    carry.abort();
    connection.abort();
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_stopping_cluster_cuts_its_streams() {
    let (cluster, _, _, _heard) = cluster().await;
    let mut client = connect(&cluster.admin_kubeconfig().unwrap()).await;
    client.write_all(asks("GET", &format!("{PODS}/one/attach"), "websocket").as_bytes()).await.unwrap();
    assert!(soon(head(&mut client)).await.starts_with("HTTP/1.1 101 "));
    soon(cluster.shutdown()).await;
    let mut rest = Vec::new();
    let _ = soon(client.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}
